package txn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// recordFormat begins every record. Zero is never valid.
const recordFormat = 1

// stagedFormat begins a prepared record that names participants.
const stagedFormat = 2

// Intent is a version that a prepared transaction will write, if it commits.
type Intent struct {
	Collection placement.CollectionID
	ID         string
	// Nothing: the document does not exist and will not; the lock is all there is.
	Nothing bool
	Deleted bool
	Version uint64
	Created hlc.Timestamp // 0: the commit timestamp
	Body    []byte
}

// PreparedRecord is a participant's yes, with everything it holds.
//
//	| format u8 = 1 | home uvarint | p, deadline, born u64 | reads | ranges |
//	  intents uvarint, (collection uvarint, id, flags u8, version uvarint, created u64, body) ... |
//
// Home's own yes has format 2, and after the format: participants uvarint,
// partition uvarint ...
type PreparedRecord struct {
	// Participants, of home's: it is committed when they have all prepared.
	Participants []placement.PartitionID

	Home     placement.PartitionID
	At       hlc.Timestamp // p
	Deadline hlc.Timestamp // by wall clocks: when others begin to ask home
	Born     hlc.Timestamp // of the first attempt
	Reads    []Read        // shared locks
	Ranges   []Range       // the same, of ranges
	Intents  []Intent      // exclusive locks
}

const (
	intentNothing = 1 << 0
	intentDeleted = 1 << 1
)

// Append appends the record.
func (p *PreparedRecord) Append(dst []byte) []byte {
	if len(p.Participants) == 0 {
		dst = append(dst, recordFormat)
	} else {
		dst = AppendPartitions(append(dst, stagedFormat), p.Participants)
	}
	dst = binary.AppendUvarint(dst, uint64(p.Home))
	for _, t := range [...]hlc.Timestamp{p.At, p.Deadline, p.Born} {
		dst = binary.BigEndian.AppendUint64(dst, uint64(t))
	}
	dst = appendReads(dst, p.Reads)
	dst = appendRanges(dst, p.Ranges)
	dst = binary.AppendUvarint(dst, uint64(len(p.Intents)))
	for i := range p.Intents {
		n := &p.Intents[i]
		var flags byte
		if n.Nothing {
			flags |= intentNothing
		}
		if n.Deleted {
			flags |= intentDeleted
		}
		dst = binary.AppendUvarint(dst, uint64(n.Collection))
		dst = appendText(dst, n.ID)
		dst = append(dst, flags)
		dst = binary.AppendUvarint(dst, n.Version)
		dst = binary.BigEndian.AppendUint64(dst, uint64(n.Created))
		dst = appendText(dst, n.Body)
	}
	return dst
}

// Decode reads the record; it shares b's memory. Where there is room in p's Reads
// and Intents it uses that.
func (p *PreparedRecord) Decode(b []byte) error {
	staged := len(b) > 0 && b[0] == stagedFormat
	var r Reader
	if staged {
		r.B = b[1:]
	} else {
		var err error
		if r, err = begin(b, "prepared"); err != nil {
			return err
		}
	}
	readRoom, intentRoom := p.Reads, p.Intents[:0]
	*p = PreparedRecord{}
	if staged {
		if p.Participants = r.Partitions(); len(p.Participants) == 0 {
			r.Fail(errors.New("staged without participants"))
		}
	}
	p.Home, p.At, p.Deadline, p.Born = placement.PartitionID(r.Uvarint32()), r.Time(), r.Time(), r.Time()
	p.Reads = r.reads(readRoom)
	p.Ranges = r.ranges()
	if n := r.Count(1+1+1+1+8+1, MaxItems); n > 0 {
		p.Intents = slices.Grow(intentRoom, n)
		for range n {
			t := Intent{Collection: placement.CollectionID(r.Uvarint32()), ID: r.Text(wire.MaxIDBytes)}
			flags := r.U8()
			if r.err == nil && flags&^(intentNothing|intentDeleted) != 0 {
				r.err = fmt.Errorf("intent with flags %#x: %w", flags, ErrNewer)
				r.B = nil
			}
			t.Nothing, t.Deleted = flags&intentNothing != 0, flags&intentDeleted != 0
			t.Version, t.Created, t.Body = r.Uvarint(), r.Time(), r.Bytes(wire.MaxFrameBytes)
			p.Intents = append(p.Intents, t)
		}
	}
	return end(&r, "prepared", b)
}

// CommittedRecord is home's decision, kept until every participant has
// resolved it.
//
//	| format u8 = 1 | C u64 | participants uvarint, partition uvarint ... |
type CommittedRecord struct {
	At           hlc.Timestamp // C
	Participants []placement.PartitionID
}

// Append appends the record.
func (c *CommittedRecord) Append(dst []byte) []byte {
	dst = append(dst, recordFormat)
	dst = binary.BigEndian.AppendUint64(dst, uint64(c.At))
	return AppendPartitions(dst, c.Participants)
}

// Decode reads the record.
func (c *CommittedRecord) Decode(b []byte) error {
	r, err := begin(b, "committed")
	if err != nil {
		return err
	}
	*c = CommittedRecord{At: r.Time(), Participants: r.Partitions()}
	return end(&r, "committed", b)
}

// Tombstone is what is left of a transaction that was refused, resolved or
// aborted: that it was, so that nothing late is taken for new.
//
//	| format u8 = 1 | state u8 |
type Tombstone struct{ State State }

// Append appends the record.
func (t Tombstone) Append(dst []byte) []byte { return append(dst, recordFormat, byte(t.State)) }

// Decode reads the record.
func (t *Tombstone) Decode(b []byte) error {
	r, err := begin(b, "tombstone")
	if err != nil {
		return err
	}
	t.State = State(r.U8())
	if r.err == nil && t.State != Refused && t.State != Done && t.State != Aborted {
		r.Fail(fmt.Errorf("%s is no end", t.State))
	}
	return end(&r, "tombstone", b)
}

func begin(b []byte, what string) (Reader, error) {
	switch {
	case len(b) > 0 && b[0] > recordFormat:
		return Reader{}, fmt.Errorf("txn: %s record of format %d: %w", what, b[0], ErrNewer)
	case len(b) == 0 || b[0] != recordFormat:
		return Reader{}, fmt.Errorf("txn: %s record of %d bytes: %w", what, len(b), ErrDamaged)
	}
	return Reader{B: b[1:]}, nil
}

func end(r *Reader, what string, b []byte) error {
	if err := r.Err(); err != nil {
		return fmt.Errorf("txn: %s record of %d bytes: %w", what, len(b), err)
	}
	return nil
}

// An answer, between nodes:
//
//	| format u8 = 1 | state u8 | flags u8 | at u64 | conflict, if there is one:
//	  code u16 | collection uvarint | id | range u8 | version uvarint | rival 24 | detail |
//	the answer to a write, if there is one | participants, of Staged
const (
	answerDuplicate = 1 << 0
	answerConflict  = 1 << 1
	answerWrite     = 1 << 2
	maxDetail       = 1 << 10
)

// Append appends the answer.
func (a *Answer) Append(dst []byte) []byte {
	var flags byte
	if a.Duplicate {
		flags |= answerDuplicate
	}
	if a.Conflict != nil {
		flags |= answerConflict
	}
	if a.Write != nil {
		flags |= answerWrite
	}
	dst = append(dst, recordFormat, byte(a.State), flags)
	dst = binary.BigEndian.AppendUint64(dst, uint64(a.At))
	if c := a.Conflict; c != nil {
		dst = binary.BigEndian.AppendUint16(dst, uint16(c.Code))
		dst = binary.AppendUvarint(dst, uint64(c.Collection))
		dst = appendText(dst, c.ID)
		if c.Range {
			dst = append(dst, 1)
		} else {
			dst = append(dst, 0)
		}
		dst = binary.AppendUvarint(dst, c.Version)
		dst = AppendID(dst, c.Rival)
		dst = appendText(dst, c.Detail[:min(len(c.Detail), maxDetail)])
	}
	if a.Write != nil {
		dst = appendText(dst, a.Write)
	}
	if a.State == Staged {
		dst = AppendPartitions(dst, a.Participants)
	}
	return dst
}

// Decode reads an answer out of r; others may follow it.
func (a *Answer) Decode(r *Reader) {
	*a = Answer{}
	if f := r.U8(); r.err == nil && f != recordFormat {
		r.Fail(fmt.Errorf("answer of format %d", f))
	}
	a.State = State(r.U8())
	flags := r.U8()
	if r.err == nil && (a.State > Staged || flags&^(answerDuplicate|answerConflict|answerWrite) != 0) {
		r.Fail(errors.New("unknown state or flags"))
	}
	a.Duplicate = flags&answerDuplicate != 0
	a.At = r.Time()
	if flags&answerConflict != 0 {
		a.Conflict = readConflict(r)
	}
	if flags&answerWrite != 0 {
		if a.Write = bytes.Clone(r.Bytes(wire.MaxFrameBytes)); a.Write == nil {
			r.Fail(errors.New("a write without an answer"))
		}
	}
	if a.State == Staged {
		a.Participants = r.Partitions()
	}
}

func readConflict(r *Reader) *Conflict {
	c := &Conflict{Code: wire.Code(uint16(r.U8())<<8 | uint16(r.U8()))}
	c.Collection, c.ID = placement.CollectionID(r.Uvarint32()), string(r.Bytes(wire.MaxIDBytes))
	c.Range, c.Version, c.Rival, c.Detail = r.U8() == 1, r.Uvarint(), r.ID(), string(r.Bytes(maxDetail))
	return c
}
