package fsm

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// Small rows begin with a format byte, 1, and go on with u64 fields.
const smallFormat = 1

func appendSmall(dst []byte, fields ...uint64) []byte {
	return appendFields(dst, smallFormat, fields...)
}

func appendFields(dst []byte, format byte, fields ...uint64) []byte {
	dst = append(dst, format)
	for _, f := range fields {
		dst = binary.BigEndian.AppendUint64(dst, f)
	}
	return dst
}

func decodeSmall(what string, b []byte, fields ...*uint64) error {
	return decodeFields(what, smallFormat, b, fields...)
}

func decodeFields(what string, format byte, b []byte, fields ...*uint64) error {
	if len(b) > 0 && b[0] > format {
		return fmt.Errorf("fsm: %s row of format %d: %w", what, b[0], ErrNewer)
	}
	if len(b) != 1+8*len(fields) || b[0] != format {
		return fmt.Errorf("fsm: %s row %x: %w", what, b, ErrDamaged)
	}
	for i, f := range fields {
		*f = binary.BigEndian.Uint64(b[1+8*i:])
	}
	return nil
}

// meta is the machine's scalar state, in the row of each entry's tail.
type meta struct {
	applied  uint64
	term     uint64          // of the entry at applied
	clock    hlc.Timestamp   // largest timestamp of an effect
	ceiling  hlc.Timestamp   // none above was used or promised
	requests hlc.Timestamp   // request IDs below are forgotten
	epoch    placement.Epoch // of the last Own
	digest   uint64          // of every entry up to applied
	youngest uint64          // largest time of a request ID that was recorded
	sealed   uint64          // the last entry that sealed what was before it
	before   uint64          // what was applied before the last entry
}

func (m *meta) append(dst []byte) []byte {
	return appendFields(dst, tailFormat, m.applied, m.term, uint64(m.clock), uint64(m.ceiling), uint64(m.requests), uint64(m.epoch), m.digest, m.youngest, m.sealed, m.before)
}

func (m *meta) decode(b []byte) error {
	return decodeFields("tail", tailFormat, b, &m.applied, &m.term, (*uint64)(&m.clock), (*uint64)(&m.ceiling), (*uint64)(&m.requests), (*uint64)(&m.epoch), &m.digest, &m.youngest, &m.sealed, &m.before)
}

// view is what readers and writers look up in every operation. It is never
// changed: a command that changes it makes another one.
type view struct {
	since      map[placement.PartitionID]placement.Epoch // owned partitions
	partitions []placement.PartitionID                   // the same, in order
	dropped    map[placement.CollectionID]struct{}
	horizons   map[placement.CollectionID]hlc.Timestamp
}

func newView() *view {
	return &view{
		since:    map[placement.PartitionID]placement.Epoch{},
		dropped:  map[placement.CollectionID]struct{}{},
		horizons: map[placement.CollectionID]hlc.Timestamp{},
	}
}

func (v *view) clone() *view {
	return &view{
		since:      maps.Clone(v.since),
		partitions: slices.Clone(v.partitions),
		dropped:    maps.Clone(v.dropped),
		horizons:   maps.Clone(v.horizons),
	}
}

// own adds a partition; it says whether that is new.
func (v *view) own(p placement.PartitionID, epoch placement.Epoch) bool {
	if _, ok := v.since[p]; ok {
		return false
	}
	v.since[p] = epoch
	at, _ := slices.BinarySearch(v.partitions, p)
	v.partitions = slices.Insert(v.partitions, at, p)
	return true
}

// isDropped says that a collection was dropped, or that whose entries it holds.
func (v *view) isDropped(c placement.CollectionID) bool {
	_, dropped := v.dropped[unique.Of(c)]
	return dropped
}

// check refuses what the group does not own, or was sent by a map from before
// it did.
func (v *view) check(p placement.PartitionID, epoch placement.Epoch) bool {
	since, ok := v.since[p]
	return ok && epoch >= since || mutant.On(mutant.EpochUnchecked)
}

// why words a refusal by check.
func (v *view) why(g placement.GroupID, p placement.PartitionID, epoch placement.Epoch) string {
	if since, ok := v.since[p]; ok {
		return fmt.Sprintf("%s owns partition %d since epoch %d, the request was routed at %d", g, p, since, epoch)
	}
	return fmt.Sprintf("%s does not own partition %d", g, p)
}

// countKey is what counts are kept by.
type countKey struct {
	partition  placement.PartitionID
	collection placement.CollectionID
}

func (k countKey) compare(o countKey) int {
	return cmp.Or(cmp.Compare(k.partition, o.partition), cmp.Compare(k.collection, o.collection))
}

// counts are kept, never scanned.
type counts struct {
	docs  uint64 // live documents
	bytes uint64 // of their IDs and bodies
	rows  uint64 // versions, tombstones included
}

// size is what all versions take, about: those of the past are taken to be as
// large as the living, or of a quarter KiB if none lives.
func (c counts) size() uint64 {
	if c.docs == 0 {
		return c.rows * 256
	}
	return c.rows * (c.bytes/c.docs + 1)
}

func (c *counts) append(dst []byte) []byte { return appendSmall(dst, c.docs, c.bytes, c.rows) }

func (c *counts) decode(b []byte) error {
	return decodeSmall("counts", b, &c.docs, &c.bytes, &c.rows)
}

// An answer is remembered under its request ID:
//
//	| flags u8 | version uvarint | time, created u64 | code u16 | detail length u8 | detail | document |
//
// The code and the detail are there if it is a refusal; the version is the
// refusal's then. The document is what is left, if there is one.
const (
	answerCreated   = 1 << 0
	answerHasDoc    = 1 << 1
	answerRefused   = 1 << 2
	answerFlags     = answerCreated | answerHasDoc | answerRefused
	maxAnswerDetail = 255
)

// answerLen is how many bytes appendAnswer appends.
func answerLen(r *Result, keepDoc bool) int {
	n, version := 1+1+8+8, r.Wire.Version
	if r.Wire.Error != nil {
		version = r.Wire.Error.Version
		n += 2 + 1 + min(len(r.Detail), maxAnswerDetail)
	}
	for ; version >= 0x80; version >>= 7 {
		n++
	}
	if keepDoc {
		n += len(r.Wire.Doc)
	}
	return n
}

// appendAnswer appends what a retry needs to get the same answer. keepDoc says
// that the document cannot be had from the retry itself.
func appendAnswer(dst []byte, r *Result, keepDoc bool) []byte {
	var flags byte
	version := r.Wire.Version
	if r.Wire.Created {
		flags |= answerCreated
	}
	keepDoc = keepDoc && r.Wire.Doc != nil
	if keepDoc {
		flags |= answerHasDoc
	}
	if r.Wire.Error != nil {
		flags |= answerRefused
		version = r.Wire.Error.Version
	}
	dst = append(dst, flags)
	dst = binary.AppendUvarint(dst, version)
	dst = binary.BigEndian.AppendUint64(dst, r.Wire.Time)
	dst = binary.BigEndian.AppendUint64(dst, r.Wire.CreatedAt)
	if r.Wire.Error != nil {
		detail := r.Detail[:min(len(r.Detail), maxAnswerDetail)]
		dst = binary.BigEndian.AppendUint16(dst, uint16(r.Wire.Error.Code))
		dst = append(dst, byte(len(detail)))
		dst = append(dst, detail...)
	}
	if keepDoc {
		dst = append(dst, r.Wire.Doc...)
	}
	return dst
}

// decodeAnswer makes the result of a retry. The document is copied out of b.
func decodeAnswer(b []byte, r *Result) error {
	if len(b) > 0 && b[0]&^answerFlags != 0 {
		return fmt.Errorf("fsm: answer with flags %#x: %w", b[0], ErrNewer)
	}
	in := tailReader{b: b}
	flags := in.bytes(1)
	version := in.uvarint(1<<64 - 1)
	times := in.bytes(16)
	if in.bad != nil {
		return fmt.Errorf("fsm: answer of %d bytes: %w", len(b), in.bad)
	}
	*r = Result{Wire: wire.WriteResult{
		Time:      binary.BigEndian.Uint64(times),
		CreatedAt: binary.BigEndian.Uint64(times[8:]),
		Created:   flags[0]&answerCreated != 0,
		Duplicate: true,
	}}
	if flags[0]&answerRefused == 0 {
		r.Wire.Version = version
	} else {
		code, n := in.bytes(2), in.bytes(1)
		if in.bad == nil {
			r.Wire.Error = &wire.Error{Code: wire.Code(binary.BigEndian.Uint16(code)), Version: version}
			r.Detail = string(in.bytes(int(n[0])))
		}
	}
	if flags[0]&answerHasDoc != 0 {
		r.Wire.Doc = append([]byte{}, in.b...)
	} else if len(in.b) > 0 {
		in.fail(fmt.Sprintf("%d bytes after its end", len(in.b)))
	}
	if in.bad != nil {
		return fmt.Errorf("fsm: answer of %d bytes: %w", len(b), in.bad)
	}
	return nil
}

// memory is everything the machine keeps in memory, as the rows say.
type memory struct {
	meta   meta
	view   *view
	counts map[countKey]counts
	tail   tail
	txns   lockTable
}

// loadMemory reads it.
func loadMemory(e *mvcc.Engine, g placement.GroupID) (mem *memory, err error) {
	r, err := e.NewReader(g, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	mem = &memory{view: newView(), counts: map[countKey]counts{}}
	now, rows, err := readTail(r, g)
	if err != nil {
		return nil, err
	}
	mem.meta = now
	each := func(k mvcc.Kind, fn func(key, value []byte) error) {
		if err == nil {
			start, end := mvcc.KindSpan(g, k)
			err = r.Each(start, end, fn)
		}
	}
	var n, m uint32
	var v uint64
	each(mvcc.KindOwned, func(key, value []byte) error {
		err := errors.Join(mvcc.DecodeNumbered(key, &n), decodeSmall("ownership", value, &v))
		mem.view.own(placement.PartitionID(n), placement.Epoch(v))
		return err
	})
	each(mvcc.KindCounts, func(key, value []byte) error {
		var c counts
		err := errors.Join(mvcc.DecodeNumbered(key, &n, &m), c.decode(value))
		mem.counts[countKey{placement.PartitionID(n), placement.CollectionID(m)}] = c
		return err
	})
	each(mvcc.KindDropped, func(key, value []byte) error {
		err := errors.Join(mvcc.DecodeNumbered(key, &n), decodeSmall("dropped", value))
		mem.view.dropped[placement.CollectionID(n)] = struct{}{}
		return err
	})
	each(mvcc.KindHorizon, func(key, value []byte) error {
		err := errors.Join(mvcc.DecodeNumbered(key, &n), decodeSmall("horizon", value, &v))
		mem.view.horizons[placement.CollectionID(n)] = hlc.Timestamp(v)
		return err
	})
	if err == nil {
		mem.txns, err = loadTxns(r, g, mem.view.partitions)
	}
	if err == nil {
		err = mem.tail.load(rows, mem.counts, &mem.txns)
	}
	if err != nil {
		return nil, err
	}
	return mem, nil
}
