package doc

import (
	"bytes"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tinylib/msgp/msgp"
)

// maxBuild bounds what a Builder makes: its offsets are 32 bits wide.
const maxBuild = 1 << 30

// Builder writes one canonical value from a walk in any order of keys. The
// first error sticks and is answered by Finish. Its memory is a small multiple
// of its output and is kept for the next use. It trusts its caller to write one
// value per Key.
//
// Invariant: everything before the open containers' entries is final; a map is
// put in order when it closes, so what lies inside it is already in order.
//
//	dst:  |head|key value|key value|head|value|value ...
//	       ^ outer frame            ^ inner frame
type Builder struct {
	dst     []byte
	base    int // where this value begins in dst
	frames  []buildFrame
	entries []buildEntry // of the open maps, outermost first
	scratch []byte
	depth   int // most containers open at once
	err     error
}

// buildFrame is an open map or array.
type buildFrame struct {
	head     int // offset of the container's first byte
	body     int // offset behind the head as written so far
	n        int // fields or elements begun
	entries  int // length of Builder.entries when it was opened
	isMap    bool
	unsorted bool
}

// buildEntry is one field of an open map, as offsets into dst.
type buildEntry struct{ start, key, keyEnd, end uint32 }

// NewBuilder makes a Builder that refuses nesting beyond maxDepth (0: the default).
func NewBuilder(maxDepth int) *Builder {
	b := &Builder{}
	b.Reset(nil, maxDepth)
	return b
}

// Reset begins a new value, to be appended to dst.
func (b *Builder) Reset(dst []byte, maxDepth int) {
	if maxDepth <= 0 {
		maxDepth = DefaultMaxDepth
	}
	b.dst, b.base, b.depth, b.err = dst, len(dst), maxDepth, nil
	b.frames, b.entries = b.frames[:0], b.entries[:0]
}

// Finish is dst with the value, or the first error.
func (b *Builder) Finish() ([]byte, error) {
	dst, err := b.dst, b.err
	b.dst = nil
	switch {
	case err != nil:
		return dst[:b.base], err
	case len(b.frames) > 0:
		return dst[:b.base], errorf(ErrInvalid, "", "%d arrays or maps were not closed", len(b.frames))
	}
	return dst, nil
}

func (b *Builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// BeginMap opens a map; Key and one value follow for each field, then End.
func (b *Builder) BeginMap() { b.begin(true, fixMap) }

// BeginArray opens an array; its elements follow, then End.
func (b *Builder) BeginArray() { b.begin(false, fixArray) }

func (b *Builder) begin(isMap bool, tag byte) {
	if b.err != nil {
		return
	}
	if len(b.frames) >= b.depth {
		b.fail(errorf(ErrTooDeep, b.path(), "arrays and maps are nested deeper than %d", b.depth))
		return
	}
	if len(b.dst) > maxBuild {
		b.fail(errorf(ErrTooLarge, "", "the document is larger than %d bytes", maxBuild))
		return
	}
	b.element()
	b.frames = append(b.frames, buildFrame{head: len(b.dst), body: len(b.dst) + 1, entries: len(b.entries), isMap: isMap})
	b.dst = append(b.dst, tag)
}

// element counts a value that an array receives; a map counts its keys.
func (b *Builder) element() {
	if n := len(b.frames); n > 0 && !b.frames[n-1].isMap {
		b.frames[n-1].n++
	}
}

// Key begins a field of the open map.
func (b *Builder) Key(name []byte) {
	if b.err != nil {
		return
	}
	start := len(b.dst)
	b.dst = msgp.AppendStringFromBytes(b.dst, name)
	b.keyWritten(start, len(b.dst)-len(name))
}

// KeyString is Key for a string.
func (b *Builder) KeyString(name string) {
	if b.err != nil {
		return
	}
	start := len(b.dst)
	b.dst = msgp.AppendString(b.dst, name)
	b.keyWritten(start, len(b.dst)-len(name))
}

// keyWritten notes the key that lies at the end of dst.
func (b *Builder) keyWritten(start, key int) {
	if len(b.frames) == 0 || !b.frames[len(b.frames)-1].isMap {
		b.fail(errorf(ErrInvalid, "", "a field name outside of a map"))
		return
	}
	if len(b.dst) > maxBuild {
		b.fail(errorf(ErrTooLarge, "", "the document is larger than %d bytes", maxBuild))
		return
	}
	f := &b.frames[len(b.frames)-1]
	if f.n > 0 {
		last := &b.entries[len(b.entries)-1]
		last.end = uint32(start)
		if !f.unsorted {
			c := bytes.Compare(b.dst[last.key:last.keyEnd], b.dst[key:])
			if c == 0 {
				b.fail(b.twice(b.dst[key:]))
				return
			}
			f.unsorted = c > 0
		}
	}
	f.n++
	b.entries = append(b.entries, buildEntry{uint32(start), uint32(key), uint32(len(b.dst)), 0})
}

func (b *Builder) twice(name []byte) error {
	return errorf(ErrInvalid, "", "the field name %s occurs twice in one map", quotePath(string(name)))
}

// End closes the innermost open map or array.
func (b *Builder) End() {
	if b.err != nil {
		return
	}
	if len(b.frames) == 0 {
		b.fail(errorf(ErrInvalid, "", "nothing is open to be closed"))
		return
	}
	f := &b.frames[len(b.frames)-1]
	if f.isMap && f.unsorted {
		b.sort(f)
		if b.err != nil {
			return
		}
	}
	if f.n <= 15 {
		b.dst[f.head] |= byte(f.n)
	} else {
		b.widen(f)
	}
	b.entries = b.entries[:f.entries]
	b.frames = b.frames[:len(b.frames)-1]
}

// widen replaces the one-byte head by one that holds the count.
func (b *Builder) widen(f *buildFrame) {
	var head [5]byte
	h := head[:0]
	if f.isMap {
		h = AppendMapHead(h, f.n)
	} else {
		h = AppendArrayHead(h, f.n)
	}
	more := len(h) - 1
	b.dst = append(b.dst, head[:more]...)
	copy(b.dst[f.body+more:], b.dst[f.body:len(b.dst)-more])
	copy(b.dst[f.head:], h)
}

// sort puts the fields of the innermost map in order of their names.
func (b *Builder) sort(f *buildFrame) {
	entries := b.entries[f.entries:]
	entries[len(entries)-1].end = uint32(len(b.dst))
	dst := b.dst
	if len(entries) <= 12 {
		for i := 1; i < len(entries); i++ {
			e := entries[i]
			j := i
			for j > 0 && bytes.Compare(dst[entries[j-1].key:entries[j-1].keyEnd], dst[e.key:e.keyEnd]) > 0 {
				entries[j] = entries[j-1]
				j--
			}
			entries[j] = e
		}
	} else {
		slices.SortFunc(entries, func(x, y buildEntry) int {
			return bytes.Compare(dst[x.key:x.keyEnd], dst[y.key:y.keyEnd])
		})
	}
	scratch := b.scratch[:0]
	for i, e := range entries {
		if i > 0 {
			p := entries[i-1]
			if bytes.Equal(dst[p.key:p.keyEnd], dst[e.key:e.keyEnd]) {
				b.fail(b.twice(dst[e.key:e.keyEnd]))
				return
			}
		}
		scratch = append(scratch, dst[e.start:e.end]...)
	}
	copy(dst[f.body:], scratch)
	b.scratch = scratch
}

// path names the field or element that is being written, for errors.
func (b *Builder) path() string {
	var p []byte
	for i := range b.frames {
		f := &b.frames[i]
		if f.isMap && f.n == 0 || len(p) > 200 {
			continue
		}
		if len(p) > 0 {
			p = append(p, '.')
		}
		if !f.isMap {
			index := f.n // an element is counted when it is written
			if i+1 < len(b.frames) {
				index--
			}
			p = strconv.AppendInt(p, int64(index), 10)
			continue
		}
		next := len(b.entries)
		if i+1 < len(b.frames) {
			next = b.frames[i+1].entries
		}
		e := b.entries[next-1]
		p = append(p, b.dst[e.key:e.keyEnd]...)
	}
	return string(p)
}

// Null writes null.
func (b *Builder) Null() { b.element(); b.dst = AppendNull(b.dst) }

// Bool writes a bool.
func (b *Builder) Bool(v bool) { b.element(); b.dst = AppendBool(b.dst, v) }

// Int writes an int.
func (b *Builder) Int(v int64) { b.element(); b.dst = AppendInt(b.dst, v) }

// Float writes a float.
func (b *Builder) Float(v float64) { b.element(); b.dst = AppendFloat(b.dst, v) }

// Text writes a string given as bytes of valid UTF-8.
func (b *Builder) Text(v []byte) { b.element(); b.dst = AppendText(b.dst, v) }

// String writes a string, which must be valid UTF-8.
func (b *Builder) String(v string) { b.element(); b.dst = AppendString(b.dst, v) }

// Bytes writes bytes.
func (b *Builder) Bytes(v []byte) { b.element(); b.dst = AppendBytes(b.dst, v) }

// Time writes a timestamp.
func (b *Builder) Time(t time.Time) { b.element(); b.dst = AppendTime(b.dst, t) }

// Raw writes a canonical value as it is.
func (b *Builder) Raw(r Raw) { b.element(); b.dst = append(b.dst, r...) }

var builders = sync.Pool{New: func() any { return new(Builder) }}

// keepBytes is the largest buffer that a pool keeps.
const keepBytes = 64 << 10

func putBuilder(b *Builder) {
	if cap(b.scratch) > keepBytes || cap(b.entries) > keepBytes/16 {
		return
	}
	b.dst = nil
	builders.Put(b)
}
