package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"
)

// A frame:
//
//	0        4      5       6          8             12              20
//	| length | kind | flags | reserved | timeout, ms | request ID    | body …
//	  uint32   uint8  uint8   uint16=0   uint32        uint64
//
// All numbers are big-endian. The length counts the bytes after itself. The
// timeout is of requests; 0 is none. Request IDs are chosen by the sender of a
// request and are its own until the answer's last frame; 0 names the
// connection itself and is used by a server that refuses one.
const (
	lengthBytes = 4
	headBytes   = 16 // after the length
	// FrameOverhead is what a frame adds to its body.
	FrameOverhead = lengthBytes + headBytes
)

// Magic is the first field of every hello.
const Magic = "idb"

// Flags of a frame.
const (
	FlagResponse = 1 << 0 // an answer
	FlagMore     = 1 << 1 // of an answer: more frames follow
	FlagError    = 1 << 2 // of an answer: the body is an Error; nothing follows

	knownFlags = FlagResponse | FlagMore | FlagError
)

// Frame is one frame, taken apart.
type Frame struct {
	Kind    Kind
	Flags   uint8
	Timeout uint32 // milliseconds
	Request uint64
	Body    []byte
}

// AppendFrame appends f's bytes to dst.
func AppendFrame(dst []byte, f *Frame) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(headBytes+len(f.Body)))
	dst = append(dst, byte(f.Kind), f.Flags, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, f.Timeout)
	dst = binary.BigEndian.AppendUint64(dst, f.Request)
	return append(dst, f.Body...)
}

// FrameError is a frame that breaks the protocol. The connection cannot go on:
// where the next frame begins is no longer certain, or the peer is no peer.
type FrameError struct {
	Code    Code
	Request uint64 // 0: not known
	Text    string
}

// Error says what was wrong.
func (e *FrameError) Error() string { return "frame: " + e.Text }

func badFrame(code Code, request uint64, format string, args ...any) error {
	return &FrameError{Code: code, Request: request, Text: fmt.Sprintf(format, args...)}
}

// Sizes of the read buffer and of a body's first piece. A body is allocated
// as it arrives, so that a length alone costs the sender as much as it costs
// the receiver.
const (
	minReadBuffer = 4 << 10
	maxReadBuffer = 64 << 10
	firstPiece    = 256 << 10
)

// frameReader takes frames from a byte stream. Every body is memory of its
// own: whoever gets the frame may keep it.
type frameReader struct {
	src io.Reader
	max int // largest frame, its length field included

	buf        []byte
	start, end int // unread bytes in buf

	received atomic.Uint64 // bytes read from src; a watcher sees progress by it
	frames   atomic.Uint64 // frames completed
	partial  atomic.Bool   // waiting for the rest of a frame
}

// next is the next frame. io.EOF is a clean end, between frames.
func (r *frameReader) next(f *Frame) error {
	if err := r.fill(FrameOverhead, false); err != nil {
		return err
	}
	b := r.buf[r.start:]
	length := int64(binary.BigEndian.Uint32(b))
	*f = Frame{
		Kind:    Kind(b[4]),
		Flags:   b[5],
		Timeout: binary.BigEndian.Uint32(b[8:]),
		Request: binary.BigEndian.Uint64(b[12:]),
	}
	switch {
	case length < headBytes:
		return badFrame(CodeBadRequest, 0, "a length of %d, the head alone has %d bytes", length, headBytes)
	case b[6] != 0 || b[7] != 0:
		return badFrame(CodeBadRequest, f.Request, "the reserved bytes are %02x%02x, they must be zero", b[6], b[7])
	case f.Flags&^knownFlags != 0:
		return badFrame(CodeBadRequest, f.Request, "flags 0x%02x are not known", f.Flags&^knownFlags)
	case length+lengthBytes > int64(r.max):
		return badFrame(CodeFrameTooLarge, f.Request, "%d bytes, at most %d are accepted (send less in one request)", length+lengthBytes, r.max)
	}
	r.start += FrameOverhead
	body, err := r.body(int(length) - headBytes)
	if err != nil {
		return err
	}
	f.Body = body
	r.frames.Add(1)
	return nil
}

// buffered says that at least a whole head is waiting: next will not block
// for want of one.
func (r *frameReader) buffered() bool { return r.end-r.start >= FrameOverhead }

// fill reads until n bytes are in the buffer. Inside a frame, even an empty
// buffer means that the rest of it is awaited.
func (r *frameReader) fill(n int, inside bool) error {
	for r.end-r.start < n {
		if r.start == r.end {
			r.start, r.end = 0, 0
		} else if len(r.buf)-r.start < n {
			r.end = copy(r.buf, r.buf[r.start:r.end])
			r.start = 0
		}
		if r.buf == nil {
			r.buf = make([]byte, minReadBuffer)
		}
		r.partial.Store(inside || r.end > r.start)
		room := len(r.buf) - r.end
		got, err := r.src.Read(r.buf[r.end:])
		r.received.Add(uint64(got))
		r.end += got
		if got == room && len(r.buf) < maxReadBuffer {
			// The peer sends more than fits: read more at once from now on.
			grown := make([]byte, 2*len(r.buf))
			r.end = copy(grown, r.buf[r.start:r.end])
			r.start = 0
			r.buf = grown
		}
		if err != nil && r.end-r.start < n {
			if err == io.EOF && r.end > r.start {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	r.partial.Store(false)
	return nil
}

func (r *frameReader) body(n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if n <= len(r.buf) {
		// Through the buffer, so that one read brings what follows as well.
		if err := r.fill(n, true); err != nil {
			return nil, cut(err)
		}
		body := make([]byte, n)
		copy(body, r.buf[r.start:])
		r.start += n
		return body, nil
	}
	r.partial.Store(true)
	body := make([]byte, min(n, firstPiece))
	have := copy(body, r.buf[r.start:r.end])
	r.start += have
	for have < n {
		if have == len(body) {
			grown := make([]byte, min(n, 4*have))
			copy(grown, body)
			body = grown
		}
		got, err := r.src.Read(body[have:])
		r.received.Add(uint64(got))
		have += got
		if err != nil && have < n {
			return nil, cut(err)
		}
	}
	r.partial.Store(false)
	return body, nil
}

// cut is err for a stream that ends inside a frame.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ReadFrame reads one frame from r without reading past it. It is for tools
// and tests; connections read many frames at once.
func ReadFrame(r io.Reader, maxBytes int) (*Frame, error) {
	var length [lengthBytes]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int64(binary.BigEndian.Uint32(length[:]))
	fr := frameReader{src: io.LimitReader(r, n), max: maxBytes}
	fr.buf = make([]byte, minReadBuffer)
	fr.end = copy(fr.buf, length[:])
	f := new(Frame)
	if err := fr.next(f); err != nil {
		return nil, err
	}
	return f, nil
}
