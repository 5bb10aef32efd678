package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

// crumbs gives a stream in pieces of random sizes.
type crumbs struct {
	r io.Reader
	n *rand.Rand
}

func (c crumbs) Read(p []byte) (int, error) {
	return c.r.Read(p[:min(len(p), 1+c.n.IntN(5000))])
}

func TestFramesComeBackInAnyPieces(t *testing.T) {
	const seed = 7
	r := rand.New(rand.NewPCG(seed, seed))
	var sent []Frame
	var stream []byte
	for i := range 200 {
		f := Frame{Kind: Kind(r.IntN(128)), Flags: uint8(r.IntN(8)), Timeout: r.Uint32(), Request: r.Uint64()}
		if n := []int{0, 1, 100, 5000, 70_000, 300_000}[r.IntN(6)]; n > 0 && (n < 50_000 || i%20 == 0) {
			f.Body = make([]byte, n)
			for j := range f.Body {
				f.Body[j] = byte(r.Uint32())
			}
		}
		sent = append(sent, f)
		stream = AppendFrame(stream, &f)
	}
	for name, src := range map[string]io.Reader{
		"whole":   bytes.NewReader(stream),
		"crumbs":  crumbs{bytes.NewReader(stream), r},
		"bytes":   iotest.OneByteReader(bytes.NewReader(stream)),
		"dataEOF": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		in := frameReader{src: src, max: MaxFrameBytes}
		for i := range sent {
			var f Frame
			if err := in.next(&f); err != nil {
				t.Fatalf("%s: frame %d: %v", name, i, err)
			}
			if !reflect.DeepEqual(f, sent[i]) {
				t.Fatalf("%s: frame %d came back as another", name, i)
			}
		}
		if err := in.next(new(Frame)); err != io.EOF {
			t.Errorf("%s: at the end: %v", name, err)
		}
		if in.received.Load() != uint64(len(stream)) || in.partial.Load() {
			t.Errorf("%s: received %d of %d, partial %v", name, in.received.Load(), len(stream), in.partial.Load())
		}
	}
	plain := bytes.NewReader(stream)
	for i := range sent {
		f, err := ReadFrame(plain, MaxFrameBytes)
		if err != nil || !reflect.DeepEqual(*f, sent[i]) {
			t.Fatalf("ReadFrame %d: %v", i, err)
		}
	}
}

func TestBadFrames(t *testing.T) {
	good := AppendFrame(nil, &Frame{Kind: KindGet, Request: 9, Body: []byte("body")})
	with := func(at int, b ...byte) []byte {
		bad := bytes.Clone(good)
		copy(bad[at:], b)
		return bad
	}
	for _, tc := range []struct {
		name string
		in   []byte
		code Code
		id   uint64
		text string
	}{
		{"a length of zero", with(0, 0, 0, 0, 0), CodeBadRequest, 0, "length of 0"},
		{"a length without a head", with(0, 0, 0, 0, 15), CodeBadRequest, 0, "length of 15"},
		{"the largest length", with(0, 0xff, 0xff, 0xff, 0xff), CodeFrameTooLarge, 9, "4294967299 bytes"},
		{"one byte too many", with(0, 0, 0, 0, 0xfd), CodeFrameTooLarge, 9, "at most 256"},
		{"reserved", with(7, 1), CodeBadRequest, 9, "reserved"},
		{"unknown flags", with(5, 0x48), CodeBadRequest, 9, "flags 0x48"},
		{"a plain text protocol", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), CodeBadRequest, 0x2e310d0a486f7374, "reserved"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := frameReader{src: bytes.NewReader(tc.in), max: 256}
			err := in.next(new(Frame))
			var bad *FrameError
			if !errors.As(err, &bad) || bad.Code != tc.code || bad.Request != tc.id || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%+v, want %q (code %v, request %x)", err, tc.text, tc.code, tc.id)
			}
		})
	}
	for cut := 1; cut < len(good); cut++ {
		in := frameReader{src: bytes.NewReader(good[:cut]), max: 256}
		if err := in.next(new(Frame)); err != io.ErrUnexpectedEOF {
			t.Errorf("cut after %d bytes: %v", cut, err)
		}
	}
	big := AppendFrame(nil, &Frame{Kind: KindGet, Body: make([]byte, 1<<20)})
	in := frameReader{src: bytes.NewReader(big[:900<<10]), max: MaxFrameBytes}
	if err := in.next(new(Frame)); err != io.ErrUnexpectedEOF {
		t.Errorf("a large frame cut: %v", err)
	}
}

// A length alone makes nobody allocate.
func TestBodiesAreAllocatedAsTheyArrive(t *testing.T) {
	head := AppendFrame(nil, &Frame{Kind: KindPing, Request: 1, Body: make([]byte, 16<<20)})[:FrameOverhead+10]
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const frames = 10
	for range frames {
		in := frameReader{src: bytes.NewReader(head), max: MaxFrameBytes}
		if err := in.next(new(Frame)); err != io.ErrUnexpectedEOF {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if allocated := (after.TotalAlloc - before.TotalAlloc) / frames; allocated > 2*firstPiece {
		t.Errorf("10 bytes of a frame of 16 MiB made %d bytes", allocated)
	}
}
