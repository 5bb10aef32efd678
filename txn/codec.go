package txn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

var (
	// ErrDamaged: bytes that no version wrote.
	ErrDamaged = errors.New("damaged")
	// ErrNewer: written by a newer version of the program.
	ErrNewer = errors.New("written by a newer version")
)

// A part of a transaction, inside a command or a record that has the version:
//
//	reads uvarint  | (collection uvarint, id, at u64) ...
//	ranges uvarint | (collection uvarint, prefix, from, to, at u64) ...
//	writes uvarint | (collection uvarint, id, max bytes uvarint, ops uvarint,
//	                  (op u8, condition u8, if-version uvarint, body) ...) ...
//
// where IDs and bodies are a length uvarint and their bytes.

// AppendPart appends a part.
func AppendPart(dst []byte, p *Part) []byte {
	dst = appendReads(dst, p.Reads)
	dst = appendRanges(dst, p.Ranges)
	dst = binary.AppendUvarint(dst, uint64(len(p.Writes)))
	for i := range p.Writes {
		w := &p.Writes[i]
		dst = binary.AppendUvarint(dst, uint64(w.Collection))
		dst = appendText(dst, w.ID)
		dst = binary.AppendUvarint(dst, uint64(w.MaxBytes))
		dst = binary.AppendUvarint(dst, uint64(len(w.Ops)))
		for j := range w.Ops {
			o := &w.Ops[j]
			dst = append(dst, byte(o.Op), o.Cond)
			dst = binary.AppendUvarint(dst, o.IfVersion)
			dst = appendText(dst, o.Body)
		}
	}
	return dst
}

// PartLen is at least what AppendPart appends.
func PartLen(p *Part) int {
	n := 3 * 5
	for i := range p.Reads {
		n += 5 + 3 + len(p.Reads[i].ID) + 8
	}
	for i := range p.Ranges {
		r := &p.Ranges[i]
		n += 5 + 3*3 + len(r.Prefix) + len(r.From) + len(r.To) + 8
	}
	for i := range p.Writes {
		w := &p.Writes[i]
		n += 5 + 3 + len(w.ID) + 5 + 3
		for j := range w.Ops {
			n += 2 + 10 + 5 + len(w.Ops[j].Body)
		}
	}
	return n
}

func appendReads(dst []byte, reads []Read) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(reads)))
	for i := range reads {
		dst = binary.AppendUvarint(dst, uint64(reads[i].Collection))
		dst = appendText(dst, reads[i].ID)
		dst = binary.BigEndian.AppendUint64(dst, uint64(reads[i].At))
	}
	return dst
}

func appendRanges(dst []byte, ranges []Range) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(ranges)))
	for i := range ranges {
		r := &ranges[i]
		dst = binary.AppendUvarint(dst, uint64(r.Collection))
		dst = appendText(dst, r.Prefix)
		dst = appendText(dst, r.From)
		dst = appendText(dst, r.To)
		dst = binary.BigEndian.AppendUint64(dst, uint64(r.At))
	}
	return dst
}

func appendText[T ~string | ~[]byte](dst []byte, s T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

// AppendID appends an ID: time u64, random 16.
func AppendID(dst []byte, id ID) []byte {
	dst = binary.BigEndian.AppendUint64(dst, id.Time)
	return append(dst, id.Random[:]...)
}

// IDLen is an ID's length in bytes.
const IDLen = 8 + 16

// Reader takes fields out of bytes. After the first failure all are zero, and
// Err says what it was. What it returns shares the bytes' memory.
type Reader struct {
	B   []byte
	err error
}

var errShort = errors.New("it ends too soon")

// Fail notes the first failure.
func (r *Reader) Fail(err error) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %w", err, ErrDamaged)
	}
	r.B = nil
}

// Err is the first failure, or that bytes are left.
func (r *Reader) Err() error {
	if r.err == nil && len(r.B) != 0 {
		r.Fail(fmt.Errorf("%d bytes after its end", len(r.B)))
	}
	return r.err
}

// U8 reads a byte.
func (r *Reader) U8() byte {
	if len(r.B) < 1 {
		r.Fail(errShort)
		return 0
	}
	v := r.B[0]
	r.B = r.B[1:]
	return v
}

// Time reads a timestamp.
func (r *Reader) Time() hlc.Timestamp {
	if len(r.B) < 8 {
		r.Fail(errShort)
		return 0
	}
	v := binary.BigEndian.Uint64(r.B)
	r.B = r.B[8:]
	return hlc.Timestamp(v)
}

// ID reads a transaction's ID.
func (r *Reader) ID() (id ID) {
	id.Time = uint64(r.Time())
	if len(r.B) < len(id.Random) {
		r.Fail(errShort)
		return ID{}
	}
	r.B = r.B[copy(id.Random[:], r.B):]
	return id
}

// Uvarint reads a number in its shortest form: no other is taken.
func (r *Reader) Uvarint() uint64 {
	v, n := binary.Uvarint(r.B)
	if n <= 0 || n > 1 && r.B[n-1] == 0 {
		r.Fail(errors.New("bad number"))
		return 0
	}
	r.B = r.B[n:]
	return v
}

// Uvarint32 reads a number of 32 bits.
func (r *Reader) Uvarint32() uint32 {
	v := r.Uvarint()
	if v > 1<<32-1 {
		r.Fail(errors.New("number too large"))
		return 0
	}
	return uint32(v)
}

// Bytes reads bytes with their length; none are nil.
func (r *Reader) Bytes(limit int) []byte {
	n := r.Uvarint()
	if n > uint64(limit) || n > uint64(len(r.B)) {
		r.Fail(errShort)
		return nil
	}
	v := r.B[:n:n]
	r.B = r.B[n:]
	if n == 0 {
		return nil
	}
	return v
}

// Text is Bytes as a string.
func (r *Reader) Text(limit int) string {
	b := r.Bytes(limit)
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// Count reads how many things of at least min bytes follow.
func (r *Reader) Count(min, limit int) int {
	n := r.Uvarint()
	if n > uint64(limit) || n > uint64(len(r.B)/min) {
		r.Fail(errShort)
		return 0
	}
	return int(n)
}

// Partitions reads a list of partitions.
func (r *Reader) Partitions() []placement.PartitionID {
	n := r.Count(1, MaxParticipants)
	if n == 0 {
		return nil
	}
	ps := make([]placement.PartitionID, 0, n)
	for range n {
		ps = append(ps, placement.PartitionID(r.Uvarint32()))
	}
	return ps
}

// AppendPartitions appends a list of partitions.
func AppendPartitions(dst []byte, ps []placement.PartitionID) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(ps)))
	for _, p := range ps {
		dst = binary.AppendUvarint(dst, uint64(p))
	}
	return dst
}

func (r *Reader) reads(room []Read) []Read {
	n := r.Count(1+1+8, MaxItems)
	if n == 0 {
		return nil
	}
	reads := slices.Grow(room[:0], n)
	for range n {
		reads = append(reads, Read{Collection: placement.CollectionID(r.Uvarint32()), ID: r.Text(wire.MaxIDBytes), At: r.Time()})
	}
	return reads
}

func (r *Reader) ranges() []Range {
	n := r.Count(1+3+8, MaxItems)
	if n == 0 {
		return nil
	}
	ranges := make([]Range, 0, n)
	for range n {
		ranges = append(ranges, Range{
			Collection: placement.CollectionID(r.Uvarint32()),
			Prefix:     r.Text(wire.MaxIDBytes), From: r.Text(wire.MaxIDBytes), To: r.Text(wire.MaxIDBytes), At: r.Time(),
		})
	}
	return ranges
}

// Part reads a part.
func (r *Reader) Part() (p Part) {
	p.Reads = r.reads(nil)
	p.Ranges = r.ranges()
	n := r.Count(1+1+1+1, MaxItems)
	if n == 0 {
		return p
	}
	p.Writes = make([]Write, 0, n)
	for range n {
		w := Write{Collection: placement.CollectionID(r.Uvarint32()), ID: r.Text(wire.MaxIDBytes), MaxBytes: r.Uvarint32()}
		ops := r.Count(1+1+1+1, MaxOps)
		if ops == 0 {
			r.Fail(errors.New("a write without an operation"))
			return p
		}
		w.Ops = make([]Op, 0, ops)
		for range ops {
			o := Op{Op: wire.WriteOp(r.U8()), Cond: r.U8(), IfVersion: r.Uvarint(), Body: r.Bytes(wire.MaxFrameBytes)}
			if r.err == nil && (o.Op == 0 || o.Op > wire.OpDelete || o.Cond&^(wire.CondAbsent|wire.CondPresent) != 0) {
				r.err = fmt.Errorf("operation %d with conditions %#x: %w", o.Op, o.Cond, ErrNewer)
				r.B = nil
			}
			w.Ops = append(w.Ops, o)
		}
		p.Writes = append(p.Writes, w)
	}
	return p
}
