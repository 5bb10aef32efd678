package wire

import (
	"fmt"

	"github.com/tinylib/msgp/msgp"
)

// The messages that carry documents. Each pair of methods lists the fields in
// the order of message.go; the number in the array header is their count.

// appendArray writes the header of an array.
func appendArray(dst []byte, n int) []byte { return msgp.AppendArrayHeader(dst, uint32(n)) }

// AppendTo appends the encoding.
func (m *Error) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 7)
	dst = msgp.AppendUint64(dst, uint64(m.Code))
	dst = msgp.AppendString(dst, m.Message)
	dst = msgp.AppendString(dst, m.Leader)
	dst = msgp.AppendUint64(dst, m.Version)
	dst = msgp.AppendUint64(dst, m.Epoch)
	dst = msgp.AppendUint64(dst, uint64(m.RetryAfterMillis))
	return msgp.AppendUint64(dst, m.Now)
}

func (m *Error) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *Error) decode(r *reader) {
	*m = Error{}
	outer, ok := r.open()
	if !ok {
		return
	}
	code := r.uint64()
	if code > 1<<16-1 {
		r.fail(fmt.Errorf("%d is no code", code))
		return
	}
	m.Code = Code(code)
	m.Message = r.string()
	m.Leader = r.string()
	m.Version = r.uint64()
	m.Epoch = r.uint64()
	m.RetryAfterMillis = r.uint32()
	m.Now = r.uint64()
	r.close(outer)
}

// appendError writes an error where there may be none.
func appendError(dst []byte, e *Error) []byte {
	if e == nil {
		return msgp.AppendNil(dst)
	}
	return e.AppendTo(dst)
}

func (r *reader) error() *Error {
	if r.left == 0 || r.isNil() {
		return nil
	}
	e := new(Error)
	e.decode(r)
	return e
}

// AppendTo appends the encoding.
func (m *RequestID) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 2)
	dst = msgp.AppendUint64(dst, m.Time)
	return msgp.AppendBytes(dst, m.Random[:])
}

func (m *RequestID) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *RequestID) decode(r *reader) {
	*m = RequestID{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Time = r.uint64()
	if random := r.bytes(); len(random) == len(m.Random) {
		copy(m.Random[:], random)
	} else if random != nil {
		r.fail(fmt.Errorf("a request ID has %d random bytes, this one has %d", len(m.Random), len(random)))
	}
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *WriteItem) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 8)
	dst = m.RequestID.AppendTo(dst)
	dst = msgp.AppendUint64(dst, uint64(m.Op))
	dst = msgp.AppendString(dst, m.ID)
	dst = appendValue(dst, m.Body)
	dst = msgp.AppendUint64(dst, m.IfVersion)
	dst = msgp.AppendUint64(dst, uint64(m.Cond))
	dst = msgp.AppendUint64(dst, m.RestoreVersion)
	return msgp.AppendBool(dst, m.ReturnDoc)
}

func (m *WriteItem) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *WriteItem) decode(r *reader) {
	*m = WriteItem{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.RequestID.decode(r)
	m.Op = WriteOp(r.uint8())
	m.ID = r.shared()
	m.Body = r.value()
	m.IfVersion = r.uint64()
	m.Cond = r.uint8()
	m.RestoreVersion = r.uint64()
	m.ReturnDoc = r.bool()
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *WriteRequest) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 6)
	dst = msgp.AppendString(dst, m.Collection)
	dst = msgp.AppendUint64(dst, m.Epoch)
	dst = msgp.AppendBool(dst, m.Direct)
	dst = msgp.AppendBool(dst, m.Ordered)
	dst = appendArray(dst, len(m.Items))
	for i := range m.Items {
		dst = m.Items[i].AppendTo(dst)
	}
	return msgp.AppendUint64(dst, uint64(m.Number))
}

func (m *WriteRequest) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *WriteRequest) decode(r *reader) {
	items := m.Items
	*m = WriteRequest{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Collection = r.shared()
	m.Epoch = r.uint64()
	m.Direct = r.bool()
	m.Ordered = r.bool()
	n, open := r.list("items")
	if n > 0 {
		m.Items = sized(items, n)
		for i := range m.Items {
			m.Items[i].decode(r)
		}
	}
	r.closeList(open)
	m.Number = r.uint32()
	r.close(outer)
}

// sized is a slice of n elements, in old's memory if that is enough, so that a
// caller who decodes into the same message again allocates nothing.
func sized[T any](old []T, n int) []T {
	if cap(old) >= n {
		return old[:n]
	}
	return make([]T, n)
}

// AppendTo appends the encoding.
func (m *WriteResult) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 7)
	dst = appendError(dst, m.Error)
	dst = msgp.AppendUint64(dst, m.Version)
	dst = msgp.AppendUint64(dst, m.Time)
	dst = msgp.AppendUint64(dst, m.CreatedAt)
	dst = msgp.AppendBool(dst, m.Created)
	dst = msgp.AppendBool(dst, m.Duplicate)
	return appendValue(dst, m.Doc)
}

func (m *WriteResult) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *WriteResult) decode(r *reader) {
	*m = WriteResult{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Error = r.error()
	m.Version = r.uint64()
	m.Time = r.uint64()
	m.CreatedAt = r.uint64()
	m.Created = r.bool()
	m.Duplicate = r.bool()
	m.Doc = r.value()
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *WriteReply) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 3)
	dst = appendArray(dst, len(m.Results))
	for i := range m.Results {
		dst = m.Results[i].AppendTo(dst)
	}
	dst = msgp.AppendUint64(dst, m.Now)
	return m.Cost.AppendTo(dst)
}

func (m *WriteReply) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *WriteReply) decode(r *reader) {
	results := m.Results
	*m = WriteReply{}
	outer, ok := r.open()
	if !ok {
		return
	}
	n, open := r.list("results")
	if n > 0 {
		m.Results = sized(results, n)
		for i := range m.Results {
			m.Results[i].decode(r)
		}
	}
	r.closeList(open)
	m.Now = r.uint64()
	m.Cost.decode(r)
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *GetRequest) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 8)
	dst = msgp.AppendString(dst, m.Collection)
	dst = msgp.AppendUint64(dst, m.Epoch)
	dst = msgp.AppendBool(dst, m.Direct)
	dst = appendArray(dst, len(m.IDs))
	for _, id := range m.IDs {
		dst = msgp.AppendString(dst, id)
	}
	dst = msgp.AppendUint64(dst, m.AtVersion)
	dst = msgp.AppendUint64(dst, m.AtTime)
	dst = msgp.AppendBool(dst, m.NoBody)
	return msgp.AppendUint64(dst, uint64(m.MaxBytes))
}

func (m *GetRequest) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *GetRequest) decode(r *reader) {
	ids := m.IDs
	*m = GetRequest{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Collection = r.shared()
	m.Epoch = r.uint64()
	m.Direct = r.bool()
	n, open := r.list("IDs")
	if n > 0 {
		m.IDs = sized(ids, n)
		for i := range m.IDs {
			m.IDs[i] = r.shared()
		}
	}
	r.closeList(open)
	m.AtVersion = r.uint64()
	m.AtTime = r.uint64()
	m.NoBody = r.bool()
	m.MaxBytes = r.uint32()
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *Document) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 6)
	dst = msgp.AppendString(dst, m.ID)
	dst = msgp.AppendUint64(dst, m.Version)
	dst = msgp.AppendUint64(dst, m.CreatedAt)
	dst = msgp.AppendUint64(dst, m.UpdatedAt)
	dst = msgp.AppendBool(dst, m.Deleted)
	return appendValue(dst, m.Body)
}

func (m *Document) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

// The ID is a string of its own: programs keep IDs, and one kept ID must not
// keep a whole page alive.
func (m *Document) decode(r *reader) {
	*m = Document{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.ID = r.string()
	m.Version = r.uint64()
	m.CreatedAt = r.uint64()
	m.UpdatedAt = r.uint64()
	m.Deleted = r.bool()
	m.Body = r.value()
	r.close(outer)
}

// appendDocuments writes a list of documents.
func appendDocuments(dst []byte, docs []Document) []byte {
	dst = appendArray(dst, len(docs))
	for i := range docs {
		dst = docs[i].AppendTo(dst)
	}
	return dst
}

func (r *reader) documents(old []Document) (docs []Document) {
	n, open := r.list("documents")
	if n > 0 {
		docs = sized(old, n)
		for i := range docs {
			docs[i].decode(r)
		}
	}
	r.closeList(open)
	return docs
}

// closeList leaves a list whose values have all been read.
func (r *reader) closeList(outer uint32) {
	if r.err == nil {
		r.left = outer
	}
}

// AppendTo appends the encoding.
func (m *GetResult) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 2)
	dst = appendError(dst, m.Error)
	return m.Doc.AppendTo(dst)
}

func (m *GetResult) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *GetResult) decode(r *reader) {
	*m = GetResult{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Error = r.error()
	m.Doc.decode(r)
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *GetReply) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 3)
	dst = appendArray(dst, len(m.Results))
	for i := range m.Results {
		dst = m.Results[i].AppendTo(dst)
	}
	dst = msgp.AppendUint64(dst, m.Now)
	return m.Cost.AppendTo(dst)
}

func (m *GetReply) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *GetReply) decode(r *reader) {
	results := m.Results
	*m = GetReply{}
	outer, ok := r.open()
	if !ok {
		return
	}
	n, open := r.list("results")
	if n > 0 {
		m.Results = sized(results, n)
		for i := range m.Results {
			m.Results[i].decode(r)
		}
	}
	r.closeList(open)
	m.Now = r.uint64()
	m.Cost.decode(r)
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *ScanRequest) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 8)
	dst = msgp.AppendString(dst, m.Collection)
	dst = msgp.AppendString(dst, m.Prefix)
	dst = msgp.AppendBytes(dst, m.Cursor)
	dst = msgp.AppendUint64(dst, uint64(m.Limit))
	dst = msgp.AppendUint64(dst, uint64(m.MaxBytes))
	dst = msgp.AppendBool(dst, m.NoBody)
	dst = msgp.AppendUint64(dst, m.AtTime)
	return msgp.AppendBool(dst, m.Reverse)
}

func (m *ScanRequest) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *ScanRequest) decode(r *reader) {
	*m = ScanRequest{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Collection = r.shared()
	m.Prefix = r.shared()
	m.Cursor = r.bytes()
	m.Limit = r.uint32()
	m.MaxBytes = r.uint32()
	m.NoBody = r.bool()
	m.AtTime = r.uint64()
	m.Reverse = r.bool()
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *ScanPage) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 4)
	dst = appendDocuments(dst, m.Docs)
	dst = msgp.AppendBytes(dst, m.Cursor)
	dst = msgp.AppendUint64(dst, m.Time)
	return m.Cost.AppendTo(dst)
}

func (m *ScanPage) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *ScanPage) decode(r *reader) {
	docs := m.Docs
	*m = ScanPage{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Docs = r.documents(docs)
	m.Cursor = r.bytes()
	m.Time = r.uint64()
	m.Cost.decode(r)
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *CountRequest) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 2)
	dst = msgp.AppendString(dst, m.Collection)
	return msgp.AppendString(dst, m.Prefix)
}

func (m *CountRequest) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *CountRequest) decode(r *reader) {
	*m = CountRequest{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Collection = r.shared()
	m.Prefix = r.shared()
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *CountReply) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 3)
	dst = msgp.AppendUint64(dst, m.Count)
	dst = msgp.AppendUint64(dst, m.Bytes)
	return m.Cost.AppendTo(dst)
}

func (m *CountReply) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *CountReply) decode(r *reader) {
	*m = CountReply{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Count = r.uint64()
	m.Bytes = r.uint64()
	m.Cost.decode(r)
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *HistoryRequest) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 7)
	dst = msgp.AppendString(dst, m.Collection)
	dst = msgp.AppendUint64(dst, m.Epoch)
	dst = msgp.AppendBool(dst, m.Direct)
	dst = msgp.AppendString(dst, m.ID)
	dst = msgp.AppendUint64(dst, m.Before)
	dst = msgp.AppendUint64(dst, uint64(m.Limit))
	return msgp.AppendBool(dst, m.NoBody)
}

func (m *HistoryRequest) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *HistoryRequest) decode(r *reader) {
	*m = HistoryRequest{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Collection = r.shared()
	m.Epoch = r.uint64()
	m.Direct = r.bool()
	m.ID = r.shared()
	m.Before = r.uint64()
	m.Limit = r.uint32()
	m.NoBody = r.bool()
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *HistoryReply) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 3)
	dst = appendDocuments(dst, m.Versions)
	dst = msgp.AppendBool(dst, m.More)
	return m.Cost.AppendTo(dst)
}

func (m *HistoryReply) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *HistoryReply) decode(r *reader) {
	versions := m.Versions
	*m = HistoryReply{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Versions = r.documents(versions)
	m.More = r.bool()
	m.Cost.decode(r)
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *Cost) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 6)
	dst = msgp.AppendUint64(dst, uint64(m.Groups))
	dst = msgp.AppendUint64(dst, m.Keys)
	dst = msgp.AppendUint64(dst, m.Docs)
	dst = msgp.AppendUint64(dst, m.Bytes)
	dst = msgp.AppendUint64(dst, m.WaitMicros)
	return msgp.AppendUint64(dst, m.ReadVersion)
}

func (m *Cost) decodeFrom(body []byte) error {
	r := newReader(body)
	m.decode(&r)
	return r.err
}

func (m *Cost) decode(r *reader) {
	*m = Cost{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Groups = r.uint32()
	m.Keys = r.uint64()
	m.Docs = r.uint64()
	m.Bytes = r.uint64()
	m.WaitMicros = r.uint64()
	m.ReadVersion = r.uint64()
	r.close(outer)
}
