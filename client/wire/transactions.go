package wire

import "github.com/tinylib/msgp/msgp"

// The messages of transactions, by hand as those that carry documents. Each
// pair of methods lists the fields in the order of message.go.

// decodeBody decodes a message that is a body of its own.
func decodeBody(body []byte, decode func(*reader)) error {
	r := newReader(body)
	decode(&r)
	return r.err
}

// eachOf decodes a list into memory of its own.
func eachOf[T any](r *reader, what string, one func(*T, *reader)) []T {
	n, open := r.list(what)
	var all []T
	if n > 0 {
		all = make([]T, n)
		for i := range all {
			one(&all[i], r)
		}
	}
	r.closeList(open)
	return all
}

// AppendTo appends the encoding.
func (m *CommitRequest) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 6)
	dst = m.ID.AppendTo(dst)
	dst = msgp.AppendUint64(dst, m.Born)
	dst = msgp.AppendUint64(dst, uint64(m.Attempt))
	dst = msgp.AppendUint64(dst, uint64(m.TimeoutMillis))
	return msgp.AppendBool(appendTxnCollections(dst, m.Collections), m.Locked)
}

func appendTxnCollections(dst []byte, all []TxnCollection) []byte {
	dst = appendArray(dst, len(all))
	for i := range all {
		dst = all[i].AppendTo(dst)
	}
	return dst
}

func (m *CommitRequest) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *CommitRequest) decode(r *reader) {
	*m = CommitRequest{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.ID.decode(r)
	m.Born = r.uint64()
	m.Attempt = r.uint32()
	m.TimeoutMillis = r.uint32()
	m.Collections = eachOf(r, "collections", (*TxnCollection).decode)
	m.Locked = r.bool()
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *TxnCollection) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 5)
	dst = msgp.AppendString(dst, m.Name)
	dst = appendArray(dst, len(m.Reads))
	for i := range m.Reads {
		dst = m.Reads[i].AppendTo(dst)
	}
	dst = appendArray(dst, len(m.Ranges))
	for i := range m.Ranges {
		dst = m.Ranges[i].AppendTo(dst)
	}
	dst = appendArray(dst, len(m.Writes))
	for i := range m.Writes {
		dst = m.Writes[i].AppendTo(dst)
	}
	return msgp.AppendUint64(dst, uint64(m.Number))
}

func (m *TxnCollection) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *TxnCollection) decode(r *reader) {
	*m = TxnCollection{}
	outer, ok := r.open()
	if !ok {
		return
	}
	m.Name = r.shared()
	m.Reads = eachOf(r, "reads", (*TxnRead).decode)
	m.Ranges = eachOf(r, "ranges", (*TxnRange).decode)
	m.Writes = eachOf(r, "writes", (*WriteItem).decode)
	m.Number = r.uint32()
	r.close(outer)
}

// AppendTo appends the encoding.
func (m *TxnRead) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 2)
	dst = msgp.AppendString(dst, m.ID)
	return msgp.AppendUint64(dst, m.At)
}

func (m *TxnRead) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *TxnRead) decode(r *reader) {
	*m = TxnRead{}
	if outer, ok := r.open(); ok {
		m.ID = r.shared()
		m.At = r.uint64()
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *TxnRange) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 4)
	dst = msgp.AppendString(dst, m.Prefix)
	dst = msgp.AppendString(dst, m.From)
	dst = msgp.AppendString(dst, m.To)
	return msgp.AppendUint64(dst, m.At)
}

func (m *TxnRange) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *TxnRange) decode(r *reader) {
	*m = TxnRange{}
	if outer, ok := r.open(); ok {
		m.Prefix, m.From, m.To = r.shared(), r.shared(), r.shared()
		m.At = r.uint64()
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *CommitReply) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 4)
	dst = msgp.AppendUint64(dst, m.Time)
	dst = msgp.AppendBool(dst, m.Duplicate)
	dst = msgp.AppendUint64(dst, m.Now)
	return m.Cost.AppendTo(dst)
}

func (m *CommitReply) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *CommitReply) decode(r *reader) {
	*m = CommitReply{}
	if outer, ok := r.open(); ok {
		m.Time = r.uint64()
		m.Duplicate = r.bool()
		m.Now = r.uint64()
		m.Cost.decode(r)
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *LockRequest) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 7)
	dst = m.ID.AppendTo(dst)
	dst = msgp.AppendUint64(dst, m.Born)
	dst = msgp.AppendUint64(dst, uint64(m.TTLMillis))
	dst = msgp.AppendString(dst, m.Collection)
	dst = msgp.AppendString(dst, m.Document)
	dst = msgp.AppendBool(dst, m.Direct)
	return msgp.AppendBool(dst, m.First)
}

func (m *LockRequest) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *LockRequest) decode(r *reader) {
	*m = LockRequest{}
	if outer, ok := r.open(); ok {
		m.ID.decode(r)
		m.Born = r.uint64()
		m.TTLMillis = r.uint32()
		m.Collection, m.Document = r.shared(), r.shared()
		m.Direct = r.bool()
		m.First = r.bool()
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *LockReply) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 4)
	dst = m.Result.AppendTo(dst)
	dst = msgp.AppendUint64(dst, m.AsOf)
	dst = msgp.AppendUint64(dst, m.Now)
	return m.Cost.AppendTo(dst)
}

func (m *LockReply) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *LockReply) decode(r *reader) {
	*m = LockReply{}
	if outer, ok := r.open(); ok {
		m.Result.decode(r)
		m.AsOf = r.uint64()
		m.Now = r.uint64()
		m.Cost.decode(r)
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *UnlockRequest) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 3)
	dst = m.ID.AppendTo(dst)
	dst = appendTxnCollections(dst, m.Collections)
	return msgp.AppendBool(dst, m.Direct)
}

func (m *UnlockRequest) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *UnlockRequest) decode(r *reader) {
	*m = UnlockRequest{}
	if outer, ok := r.open(); ok {
		m.ID.decode(r)
		m.Collections = eachOf(r, "collections", (*TxnCollection).decode)
		m.Direct = r.bool()
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *EvaluateRequest) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 3)
	dst = msgp.AppendString(dst, m.Collection)
	dst = m.Document.AppendTo(dst)
	dst = appendArray(dst, len(m.Items))
	for i := range m.Items {
		dst = m.Items[i].AppendTo(dst)
	}
	return dst
}

func (m *EvaluateRequest) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *EvaluateRequest) decode(r *reader) {
	*m = EvaluateRequest{}
	if outer, ok := r.open(); ok {
		m.Collection = r.shared()
		m.Document.decode(r)
		m.Items = eachOf(r, "items", (*WriteItem).decode)
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *EvaluateReply) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 2)
	dst = appendValue(dst, m.Body)
	return msgp.AppendUint64(dst, m.Now)
}

func (m *EvaluateReply) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *EvaluateReply) decode(r *reader) {
	*m = EvaluateReply{}
	if outer, ok := r.open(); ok {
		m.Body = r.value()
		m.Now = r.uint64()
		r.close(outer)
	}
}
