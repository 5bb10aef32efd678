package wire

import (
	"bytes"
	"io"
	"reflect"
	"testing"

	"github.com/vmihailenco/msgpack/v5"
)

// FuzzDecode: no body makes any message's decoder panic, and what is accepted
// is encoded and decoded again as the same.
func FuzzDecode(f *testing.F) {
	for _, e := range messageTable {
		body := Append(nil, e.m)
		f.Add(body)
		f.Add(body[:len(body)/2])
	}
	for _, v := range refusedTable {
		if v.Times == 0 {
			f.Add([]byte(v.Hex))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		valid := Validate(body) == nil
		if valid {
			if n := skip(body); n != len(body) {
				t.Fatalf("skip sees %d bytes of %d", n, len(body))
			}
			// What is let through, the library can walk too.
			if err := msgpack.NewDecoder(bytes.NewReader(body)).Skip(); err != nil {
				t.Fatalf("the library refuses what Validate accepts: %v", err)
			}
		}
		for _, m := range everyMessage() {
			err := Decode(body, m)
			if err == nil && !valid {
				t.Fatalf("%s decoded from a body that is not valid", nameOf(m))
			}
			if err != nil {
				if CodeOf(err) == CodeInternal {
					t.Fatalf("%s: %v has no code", nameOf(m), err)
				}
				continue
			}
			again := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
			if err := Decode(Append(nil, m), again); err != nil || !reflect.DeepEqual(m, again) {
				t.Fatalf("%s: was %+v\nis %+v, %v", nameOf(m), m, again, err)
			}
		}
	})
}

// FuzzFrames: the reader takes any stream in any pieces for the same frames.
func FuzzFrames(f *testing.F) {
	var stream []byte
	for _, e := range frameTable {
		stream = AppendFrame(stream, &e.f)
		f.Add(AppendFrame(nil, &e.f), 3)
	}
	f.Add(stream, 1)
	f.Add(stream, 1000)
	f.Fuzz(func(t *testing.T, stream []byte, piece int) {
		read := func(r *frameReader) (frames []Frame, err error) {
			for {
				var f Frame
				if err = r.next(&f); err != nil {
					return frames, err
				}
				frames = append(frames, f)
			}
		}
		const most = 1 << 20
		whole, err1 := read(&frameReader{src: bytes.NewReader(stream), max: most})
		pieces, err2 := read(&frameReader{src: &pieceReader{stream, max(1, piece&0xffff)}, max: most})
		if !reflect.DeepEqual(whole, pieces) || err1.Error() != err2.Error() {
			t.Fatalf("%d frames (%v) from the whole, %d (%v) from pieces", len(whole), err1, len(pieces), err2)
		}
		var back []byte
		for i := range whole {
			back = AppendFrame(back, &whole[i])
		}
		if !bytes.HasPrefix(stream, back) {
			t.Fatal("frames are not written as they were read")
		}
	})
}

type pieceReader struct {
	b []byte
	n int
}

func (r *pieceReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b[:min(len(r.b), r.n)])
	r.b = r.b[n:]
	return n, nil
}
