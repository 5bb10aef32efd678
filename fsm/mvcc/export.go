package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"github.com/impossibledb/idb/placement"
)

// A snapshot stream carries the rows of one group:
//
//	header  | "idbsnap\n" | version u32 | group u32 | applied u64 | sum u64 |
//	frame   | kind u8 | length u32 | payload | sum u64 |
//	rows    kind 1, payload: key length uvarint | key after the group | value length uvarint | value | ...
//	end     kind 2, payload: rows u64 | payload bytes u64 | sum of all frames' sums, chained u64 |
//
// Sums are xxhash64 of everything before them in the header or frame. Numbers
// are big endian. Nothing follows the end.
const (
	streamMagic    = "idbsnap\n"
	streamVersion  = 1
	streamHeader   = len(streamMagic) + 4 + 4 + 8 + 8
	frameHead      = 1 + 4
	frameOverhead  = frameHead + 8
	frameRows      = 1
	frameEnd       = 2
	endPayload     = 8 + 8 + 8
	framePayload   = 128 << 10 // a frame is closed before it passes this, if it has a row
	maxFrameLength = 64 << 20  // no row comes near it
)

// Export is a group's rows at one moment, ready to be streamed. It pins the
// tables of that moment, and the memory tables, until it is closed.
type Export struct {
	Group   placement.GroupID
	Applied uint64 // set by whoever knows what it means, before Size and WriteTo

	r    *Reader
	size int64
}

// NewExport pins the group's rows as they are now. One iterator serves both
// passes: unlike a snapshot of the engine it is not disturbed when the group's
// span is replaced meanwhile.
func (e *Engine) NewExport(g placement.GroupID) (*Export, error) {
	r, err := e.newReader(g, &pebble.IterOptions{})
	if err != nil {
		return nil, err
	}
	return &Export{Group: g, r: r}, nil
}

// Close lets go of the pinned tables.
func (x *Export) Close() error { return x.r.Close() }

// Each reads rows of the pinned state: see Reader.
func (x *Export) Each(start, end []byte, fn func(key, value []byte) error) error {
	return x.r.Each(start, end, fn)
}

// Size is the exact length of what WriteTo writes. It walks over the rows, but
// does not read old versions' values.
func (x *Export) Size() (int64, error) {
	if x.size != 0 {
		return x.size, nil
	}
	size, frame := int64(streamHeader), 0
	for ok := x.r.it.First(); ok; ok = x.r.it.Next() {
		v := x.r.it.LazyValue()
		n := rowLen(len(x.r.it.Key())-groupBytes, v.Len())
		if frame > 0 && frame+n > framePayload {
			size += int64(frameOverhead + frame)
			frame = 0
		}
		frame += n
	}
	if err := x.r.it.Error(); err != nil {
		return 0, err
	}
	if frame > 0 {
		size += int64(frameOverhead + frame)
	}
	x.size = size + frameOverhead + endPayload
	return x.size, nil
}

// rowLen is what a row takes in a frame.
func rowLen(key, value int) int {
	return uvarintLen(uint64(key)) + key + uvarintLen(uint64(value)) + value
}

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// WriteTo writes the stream.
func (x *Export) WriteTo(w io.Writer) (int64, error) {
	fw := frameWriter{w: w}
	head := append(make([]byte, 0, streamHeader), streamMagic...)
	head = binary.BigEndian.AppendUint32(head, streamVersion)
	head = binary.BigEndian.AppendUint32(head, uint32(x.Group))
	head = binary.BigEndian.AppendUint64(head, x.Applied)
	head = binary.BigEndian.AppendUint64(head, xxhash.Sum64(head))
	if err := fw.write(head); err != nil {
		return fw.written, err
	}
	fw.begin(frameRows)
	for ok := x.r.it.First(); ok; ok = x.r.it.Next() {
		v, err := x.r.it.ValueAndErr()
		if err != nil {
			return fw.written, err
		}
		key := x.r.it.Key()[groupBytes:]
		n := rowLen(len(key), len(v))
		if have := len(fw.frame) - frameHead; have > 0 && have+n > framePayload {
			if err := fw.end(); err != nil {
				return fw.written, err
			}
			fw.begin(frameRows)
		}
		fw.rows++
		fw.frame = binary.AppendUvarint(fw.frame, uint64(len(key)))
		fw.frame = append(fw.frame, key...)
		fw.frame = binary.AppendUvarint(fw.frame, uint64(len(v)))
		fw.frame = append(fw.frame, v...)
	}
	if err := x.r.it.Error(); err != nil {
		return fw.written, err
	}
	if len(fw.frame) > frameHead {
		if err := fw.end(); err != nil {
			return fw.written, err
		}
	}
	rows, bytes, chain := fw.rows, fw.bytes, fw.chain
	fw.begin(frameEnd)
	fw.frame = binary.BigEndian.AppendUint64(fw.frame, rows)
	fw.frame = binary.BigEndian.AppendUint64(fw.frame, bytes)
	fw.frame = binary.BigEndian.AppendUint64(fw.frame, chain)
	if err := fw.end(); err != nil {
		return fw.written, err
	}
	if x.size != 0 && x.size != fw.written {
		return fw.written, fmt.Errorf("mvcc: snapshot of %s: wrote %d bytes after announcing %d", x.Group, fw.written, x.size)
	}
	return fw.written, nil
}

// frameWriter writes frames and keeps the totals for the end.
type frameWriter struct {
	w       io.Writer
	written int64
	frame   []byte
	rows    uint64
	bytes   uint64
	chain   uint64
}

func (f *frameWriter) begin(kind byte) { f.frame = append(f.frame[:0], kind, 0, 0, 0, 0) }

func (f *frameWriter) end() error {
	n := len(f.frame) - frameHead
	if n > maxFrameLength {
		return errors.New("mvcc: a row is too long for a snapshot")
	}
	binary.BigEndian.PutUint32(f.frame[1:], uint32(n))
	sum := xxhash.Sum64(f.frame)
	f.frame = binary.BigEndian.AppendUint64(f.frame, sum)
	f.bytes += uint64(n)
	f.chain = chainSum(f.chain, sum)
	return f.write(f.frame)
}

func (f *frameWriter) write(b []byte) error {
	n, err := f.w.Write(b)
	f.written += int64(n)
	return err
}

// chainSum folds one frame's sum into that of all before it.
func chainSum(chain, sum uint64) uint64 {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], chain)
	binary.BigEndian.PutUint64(b[8:], sum)
	return xxhash.Sum64(b[:])
}
