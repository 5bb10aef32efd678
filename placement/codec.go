package placement

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Records of this package are
//
//	version u8 | kind u8 | fields…
//
// with unsigned varints for numbers and length-prefixed bytes for strings.
// Version zero is never valid. Commands, snapshots and the cache file share
// the coding; each has its own kinds.

const (
	codecVersion = leadersVersion // the newest that is read
	// leadersVersion is of records that say where leaders are, by a field at the
	// end.
	leadersVersion = 3
	// uniqueVersion is of every other record that is written.
	uniqueVersion = 2
	// plainVersion is of records whose collections have no unique constraints.
	plainVersion = 1
)

var (
	// ErrNewer: the record was written by a newer version of the software.
	// Nothing is wrong with it; upgrade this node.
	ErrNewer = errors.New("placement: record written by a newer version")
	// ErrDamaged: the record is not one, or was damaged.
	ErrDamaged = errors.New("placement: damaged record")
)

// encoder appends fields.
type encoder struct{ b []byte }

func newEncoder(kind byte) *encoder { return &encoder{b: []byte{uniqueVersion, kind}} }

func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }

func (e *encoder) str(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) bool(v bool) {
	if v {
		e.b = append(e.b, 1)
	} else {
		e.b = append(e.b, 0)
	}
}

// decoder reads fields. After the first failure every read answers zero and
// err tells what was wrong, so that callers check once at the end.
type decoder struct {
	b       []byte
	version byte
	at      int
	err     error
}

// newDecoder checks the header and returns the kind.
func newDecoder(b []byte) (*decoder, byte, error) {
	if len(b) < 2 || b[0] == 0 {
		return nil, 0, fmt.Errorf("%w: no header", ErrDamaged)
	}
	if b[0] > codecVersion {
		return nil, 0, fmt.Errorf("%w: version %d, this one reads up to %d", ErrNewer, b[0], codecVersion)
	}
	return &decoder{b: b, version: b[0], at: 2}, b[1], nil
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s at byte %d of %d", ErrDamaged, what, d.at, len(d.b))
	}
}

func (d *decoder) uint() uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b[d.at:])
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.at += n
	return v
}

// uint32 reads a number that must fit 32 bits.
func (d *decoder) uint32() uint32 {
	v := d.uint()
	if v > 1<<32-1 {
		d.fail("number too large")
		return 0
	}
	return uint32(v)
}

// count reads how many elements follow. Each takes at least one byte, so a
// count above what is left is refused before anything is allocated.
func (d *decoder) count() int {
	n := d.uint()
	if d.err == nil && n > uint64(len(d.b)-d.at) {
		d.fail("count beyond the end")
		return 0
	}
	return int(n)
}

func (d *decoder) str() string {
	n := d.count()
	if d.err != nil {
		return ""
	}
	s := string(d.b[d.at : d.at+n])
	d.at += n
	return s
}

func (d *decoder) byte() byte {
	if d.err != nil {
		return 0
	}
	if d.at == len(d.b) {
		d.fail("it ends too soon")
		return 0
	}
	d.at++
	return d.b[d.at-1]
}

func (d *decoder) bool() bool {
	switch d.uint() {
	case 0:
		return false
	case 1:
		return true
	}
	d.fail("bad flag")
	return false
}

// done refuses what follows the last field.
func (d *decoder) done() error {
	if d.err == nil && d.at != len(d.b) {
		d.fail("bytes after the end")
	}
	return d.err
}
