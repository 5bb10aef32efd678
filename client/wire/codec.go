package wire

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/tinylib/msgp/msgp"
)

// Message is a body of the protocol: any struct of message.go, and Error.
//
// Messages that carry documents are coded by hand over bytes (documents.go):
// they are on the path of every read and write, a document is spliced in and
// cut out without a copy, and nothing is reflected on. The others are coded
// with vmihailenco/msgpack (control.go). Both write the same shortest forms.
type Message interface {
	// AppendTo appends the message's encoding to dst.
	AppendTo(dst []byte) []byte
	// decodeFrom reads a validated body.
	decodeFrom(body []byte) error
}

// Append appends m's encoding to dst; a nil m has an empty body.
func Append(dst []byte, m Message) []byte {
	if m == nil {
		return dst
	}
	return m.AppendTo(dst)
}

// Decode validates body and decodes it into m. Byte fields and, in requests,
// strings share body's memory: body must not change while m is used, and m
// keeps it alive. Fields that body does not have become zero. An error is an
// *Error with the code to answer.
func Decode(body []byte, m Message) error {
	if err := Validate(body); err != nil {
		return err
	}
	if err := m.decodeFrom(body); err != nil {
		var refusal *Error
		if errors.As(err, &refusal) {
			return refusal
		}
		return Refuse(CodeBadRequest, "message: %s: %v", nameOf(m), err)
	}
	return nil
}

func nameOf(m Message) string {
	name := fmt.Sprintf("%T", m)
	return name[len("*wire."):]
}

// sizeHint is about how many bytes a message is encoded to: a little more than
// its documents have, so that room is made for them in one step.
func sizeHint(m Message) int {
	const head = 64 // of a document and its neighbours
	size := head
	documents := func(docs []Document) {
		for i := range docs {
			size += head + len(docs[i].ID) + len(docs[i].Body)
		}
	}
	switch m := m.(type) {
	case *WriteRequest:
		for i := range m.Items {
			size += head + len(m.Items[i].ID) + len(m.Items[i].Body)
		}
	case *WriteReply:
		for i := range m.Results {
			size += head + len(m.Results[i].Doc)
		}
	case *GetReply:
		for i := range m.Results {
			size += head + len(m.Results[i].Doc.ID) + len(m.Results[i].Doc.Body)
		}
	case *ScanPage:
		documents(m.Docs)
	case *HistoryReply:
		documents(m.Versions)
	}
	return size
}

// reader takes the fields of nested arrays out of a validated body. The first
// error sticks; after it every read gives zero.
type reader struct {
	b    []byte
	left uint32 // fields left in the open array
	err  error
}

// newReader is at a body: one field that is not in an array.
func newReader(body []byte) reader { return reader{b: body, left: 1} }

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.left, r.b = 0, nil
}

// has says that there is a field to read and counts it.
func (r *reader) has() bool {
	if r.left == 0 {
		return false
	}
	r.left--
	return true
}

// open enters the array that is the next field. It gives what close needs to
// leave it again, and false if the field is missing.
func (r *reader) open() (outer uint32, ok bool) {
	if !r.has() {
		return 0, false
	}
	outer = r.left
	n, rest, err := msgp.ReadArrayHeaderBytes(r.b)
	if err != nil {
		r.fail(err)
		return 0, false
	}
	r.b, r.left = rest, n
	return outer, true
}

// close skips what the array has more than is known, and goes on behind it.
func (r *reader) close(outer uint32) {
	for ; r.left > 0; r.left-- {
		n := skip(r.b)
		if n < 0 {
			r.fail(errCut)
			return
		}
		r.b = r.b[n:]
	}
	if r.err == nil {
		r.left = outer
	}
}

var errCut = errors.New("a value is cut")

// list enters an array of values and gives their number, which is bounded:
// what is allocated for it is a multiple of its size.
func (r *reader) list(what string) (n int, outer uint32) {
	outer, ok := r.open()
	if !ok {
		return 0, 0
	}
	if r.left > MaxItems {
		r.fail(Refuse(CodeTooManyItems, "message: %d %s, at most %d in one request (send several)", r.left, what, MaxItems))
		return 0, 0
	}
	return int(r.left), outer
}

func (r *reader) uint64() uint64 {
	if !r.has() {
		return 0
	}
	if c := firstByte(r.b); c < 0x80 {
		r.b = r.b[1:]
		return uint64(c)
	}
	v, rest, err := msgp.ReadUint64Bytes(r.b)
	if err != nil {
		r.fail(err)
		return 0
	}
	r.b = rest
	return v
}

// firstByte is b's first byte; of nothing it is one that begins no value.
func firstByte(b []byte) byte {
	if len(b) == 0 {
		return 0xc1
	}
	return b[0]
}

func (r *reader) uint32() uint32 {
	v := r.uint64()
	if v > 1<<32-1 {
		r.fail(fmt.Errorf("%d does not fit 32 bits", v))
		return 0
	}
	return uint32(v)
}

func (r *reader) uint8() uint8 {
	v := r.uint64()
	if v > 1<<8-1 {
		r.fail(fmt.Errorf("%d does not fit 8 bits", v))
		return 0
	}
	return uint8(v)
}

func (r *reader) bool() bool {
	if !r.has() {
		return false
	}
	v, rest, err := msgp.ReadBoolBytes(r.b)
	if err != nil {
		r.fail(err)
		return false
	}
	r.b = rest
	return v
}

// shared is a string in the body's memory.
func (r *reader) shared() string {
	b := r.text()
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// string is a string of its own, for what outlives the body.
func (r *reader) string() string { return string(r.text()) }

func (r *reader) text() []byte {
	if !r.has() {
		return nil
	}
	v, rest, err := msgp.ReadStringZC(r.b)
	if err != nil {
		r.fail(err)
		return nil
	}
	r.b = rest
	return v
}

// bytes is a bin field; empty is nil.
func (r *reader) bytes() []byte {
	if !r.has() {
		return nil
	}
	v, rest, err := msgp.ReadBytesZC(r.b)
	if err != nil {
		r.fail(err)
		return nil
	}
	r.b = rest
	if len(v) == 0 {
		return nil
	}
	return v[:len(v):len(v)]
}

// value is one whole msgpack value as it is, or nil for msgpack's nil.
func (r *reader) value() []byte {
	if !r.has() {
		return nil
	}
	n := skip(r.b)
	if n < 0 {
		r.fail(errCut)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	if v[0] == 0xc0 {
		return nil
	}
	return v
}

// isNil takes a nil in place of the next field's array.
func (r *reader) isNil() bool {
	if r.left == 0 || firstByte(r.b) != 0xc0 {
		return false
	}
	r.left--
	r.b = r.b[1:]
	return true
}

// appendValue splices a document in; none is msgpack's nil.
func appendValue(dst, value []byte) []byte {
	if len(value) == 0 {
		return msgp.AppendNil(dst)
	}
	return append(dst, value...)
}
