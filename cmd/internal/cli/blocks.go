package cli

import (
	"bytes"
	"errors"
	"io"
)

const (
	blockBytes = 256 << 10 // how much text a worker gets at a time
	// maxLineBytes bounds one line. A document is at most 16 MiB in its stored
	// form; as JSON text it may be several times that.
	maxLineBytes = 96 << 20
)

// block is a run of whole lines of the input.
type block struct {
	text []byte
	line int   // number of the first line, from 1
	done int64 // offset in the source (the packed file) once this block was read
	long bool  // text is the start of a line above maxLineBytes, the rest is skipped
}

// blockReader cuts input at line ends. Its memory is a block, or the longest
// line up to maxLineBytes.
type blockReader struct {
	r    io.Reader
	pos  func() int64 // offset in the source
	rest []byte       // a line that has begun
	line int          // lines handed out
	end  bool
	max  int
}

func newBlockReader(r io.Reader, pos func() int64) *blockReader {
	return &blockReader{r: r, pos: pos, max: maxLineBytes}
}

// next is the next block, or io.EOF.
func (b *blockReader) next() (block, error) {
	if b.end {
		return block{}, io.EOF
	}
	buf := make([]byte, len(b.rest), max(blockBytes, 2*len(b.rest)))
	copy(buf, b.rest)
	b.rest = nil
	searched := len(buf)
	for {
		n, err := b.fill(buf)
		buf = buf[:n]
		if err == io.EOF {
			b.end = true
			if len(buf) == 0 {
				return block{}, io.EOF
			}
			return b.cut(buf), nil
		}
		if err != nil {
			return block{}, err
		}
		if i := bytes.LastIndexByte(buf[searched:], '\n'); i >= 0 {
			i += searched + 1
			b.rest = buf[i:]
			return b.cut(buf[:i]), nil
		}
		searched = len(buf)
		if len(buf) >= b.max {
			return b.skipLine(buf)
		}
		buf = append(make([]byte, 0, 2*cap(buf)), buf...)
	}
}

// fill reads until buf is full and answers its new length. io.EOF is the end of
// the input; a packed file that ends early is another error, which is why this
// is not io.ReadFull.
func (b *blockReader) fill(buf []byte) (int, error) {
	n := len(buf)
	for n < cap(buf) {
		m, err := b.r.Read(buf[n:cap(buf)])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (b *blockReader) cut(text []byte) block {
	out := block{text: text, line: b.line + 1, done: b.pos()}
	b.line += bytes.Count(text, newline)
	return out
}

var newline = []byte{'\n'}

// skipLine reads past the end of a line that is too long.
func (b *blockReader) skipLine(start []byte) (block, error) {
	out := block{text: start[:min(len(start), 256)], line: b.line + 1, long: true}
	b.line++
	buf := make([]byte, blockBytes)
	for {
		n, err := b.r.Read(buf)
		if i := bytes.IndexByte(buf[:n], '\n'); i >= 0 {
			b.rest = buf[i+1 : n]
			out.done = b.pos()
			return out, nil
		}
		switch {
		case errors.Is(err, io.EOF):
			b.end = true
			out.done = b.pos()
			return out, nil
		case err != nil:
			return block{}, err
		}
	}
}
