package fsm

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// What an entry changes beside documents is small and scattered: the scalar
// state, some counts, an answer for each request, how transactions have ended,
// the records of those that are under way. It is one row per entry, the entry's
// tail:
//
//	| format u8 | applied, term, clock, ceiling, requests, epoch, digest, youngest, sealed, before u64
//	| counts uvarint | that many: partition, collection, documents, bytes, rows uvarint
//	| answers uvarint | that many: partition uvarint | time u64 | random 16 | length uvarint | answer, or an end (ends.go)
//	| records uvarint | that many, in order: what u8 | partition uvarint | time u64 | random 16 | if set: length uvarint, record |
//
// What happened to a record is its role (mvcc.RolePrepared or RoleCommitted),
// and 0x80 if it was deleted.
//
// From time to time an entry seals: all counts and answers since the last seal
// are written to rows of their own, by partition, and so are the records that
// were set since then and are still there. Most are not: a transaction lives for
// milliseconds. A record that has a row, by a seal or because it is long, loses
// it in the entry that deletes it. So rows and tail are the records, each in one
// of the two.
//
// What is between the seal (excluded) and the applied index is the tail of the
// group: memory repeats it, and takes it from the rows when the machine is
// opened. Their keys are the slots of a ring, so rows of sealed entries are
// written over and need not be deleted. "before" is the applied index before
// the entry: a row that is missing is noticed.
//
// Which entries seal follows from the log, not from the replica.
const (
	tailFormat    = 3
	answersFormat = 2 // of sealed ones
	tailFields    = 10
	tailFixed     = 1 + 8*tailFields
	// tailEntries is how many indexes a tail covers at most: every row in it has
	// a slot of its own.
	tailEntries = mvcc.TailSlots
	// tailAnswers is about how many answers and ends a tail has at most; one
	// entry's may come on top.
	tailAnswers = 4096
	// maxTailAnswer is the longest answer that goes into a tail. A longer one (a
	// document that the retry does not bring) has a row of its own.
	maxTailAnswer = 512
	// tailRecordBytes is about how large the records are that a tail sets and
	// deletes, at most; one entry's may come on top.
	tailRecordBytes = 4 << 20
	// maxTailRecord is the longest record of a transaction that goes into a tail.
	// A longer one has a row of its own: mostly it is gone before it comes to a
	// disk, and a tail's row is not.
	maxTailRecord = 1 << 10
	// tailRecordHead is what a record is taken for on top of its length.
	tailRecordHead = 32
	recordDeleted  = 0x80
)

// tail is the group's tail in memory. It is of what the entry under way has
// left, too. Readers look for answers beside Apply (shownTail).
type tail struct {
	answers []byte                // encoded as in the rows, one after the other
	count   int                   // of them
	table   []uint32              // open addressing, at most half full: where in answers, plus one
	counts  map[countKey]struct{} // which counts were changed
	order   []uint64              // scratch of sorted

	records     map[txnRow]struct{} // those that are there and have no row
	recordBytes int                 // of all that were set or deleted, and their heads
}

// tableSize is what most tails have room in. An entry of commits over many
// partitions leaves an end in each, so a table can grow.
const tableSize = 4 * tailAnswers // a power of two

func (t *tail) reset() {
	if cap(t.answers) > 1<<20 {
		t.answers = nil
	}
	if t.counts == nil {
		t.counts, t.records = map[countKey]struct{}{}, map[txnRow]struct{}{}
	}
	if len(t.table) != tableSize {
		t.table = make([]uint32, tableSize)
	}
	t.answers, t.count, t.recordBytes = t.answers[:0], 0, 0
	clear(t.table)
	clear(t.counts)
	clear(t.records)
}

// hash is where to look for a request first.
func (k *requestKey) hash() uint32 {
	return binary.LittleEndian.Uint32(k[12:]) ^ uint32(k.partition())*0x9e3779b1
}

// begin encodes what comes before an answer.
func (t *tail) begin(k *requestKey, length int) {
	if 2*t.count >= len(t.table) {
		t.grow()
	}
	t.place(k, len(t.answers))
	t.count++
	t.answers = binary.AppendUvarint(t.answers, uint64(k.partition()))
	t.answers = append(t.answers, k[4:]...)
	t.answers = binary.AppendUvarint(t.answers, uint64(length))
}

func (t *tail) place(k *requestKey, at int) {
	mask := uint32(len(t.table) - 1)
	s := k.hash() & mask
	for t.table[s] != 0 {
		s = (s + 1) & mask
	}
	t.table[s] = uint32(at) + 1
}

func (t *tail) grow() {
	t.table = make([]uint32, 2*len(t.table))
	for r := (tailReader{b: t.answers}); len(r.b) > 0; {
		at := len(t.answers) - len(r.b)
		var k requestKey
		r.answer(nil, &k)
		t.place(&k, at)
	}
}

// find is what the tail's first bytes say of an ID, if it is one of these
// subjects.
func (t *tail) find(k *requestKey, of subject, first int) (answer []byte, found bool) {
	mask := uint32(len(t.table) - 1)
	for s := k.hash() & mask; t.table[s] != 0; s = (s + 1) & mask {
		at := int(t.table[s] - 1)
		if at >= first {
			continue
		}
		r := tailReader{b: t.answers[at:]}
		var have requestKey
		if answer = r.answer(nil, &have); have == *k && subjectOf(answer)&of != 0 {
			return answer, true
		}
	}
	return nil, false
}

// sorted is where the answers begin, by partition and then in their order: the
// partition in the upper half.
func (t *tail) sorted() []uint64 {
	t.order = t.order[:0]
	r := tailReader{b: t.answers}
	for len(r.b) > 0 {
		at := len(t.answers) - len(r.b)
		var k requestKey
		r.answer(nil, &k)
		t.order = append(t.order, uint64(k.partition())<<32|uint64(at))
	}
	slices.Sort(t.order)
	return t.order
}

// appendTailCounts appends one of a tail row's counts.
func appendTailCounts(dst []byte, k countKey, c counts) []byte {
	for _, v := range [...]uint64{uint64(k.partition), uint64(k.collection), c.docs, c.bytes, c.rows} {
		dst = binary.AppendUvarint(dst, v)
	}
	return dst
}

// record takes in what happened to a record; nil: it was deleted.
func (t *tail) record(k txnRow, record []byte) {
	if record == nil {
		delete(t.records, k)
	} else {
		t.records[k] = struct{}{}
	}
	t.recordBytes += tailRecordHead + len(record)
}

// appendTailRecord appends what happened to a record.
func appendTailRecord(dst []byte, k txnRow, record []byte) []byte {
	what := byte(k.role)
	if record == nil {
		what |= recordDeleted
	}
	dst = binary.AppendUvarint(append(dst, what), uint64(k.partition))
	dst = txn.AppendID(dst, k.id)
	if record == nil {
		return dst
	}
	return append(binary.AppendUvarint(dst, uint64(len(record))), record...)
}

// tailReader takes a row of the tail apart, or one of sealed answers.
type tailReader struct {
	b   []byte
	bad error
}

func (r *tailReader) fail(what string) {
	if r.bad == nil {
		r.bad = fmt.Errorf("%s: %w", what, ErrDamaged)
	}
	r.b = nil
}

func (r *tailReader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit || n > 1 && r.b[n-1] == 0 {
		r.fail("bad number")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *tailReader) bytes(n int) []byte {
	if n > len(r.b) {
		r.fail("it ends too soon")
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

// count reads how many things of at least min bytes follow.
func (r *tailReader) count(min int) int {
	return int(r.uvarint(uint64(len(r.b) / min)))
}

// answer reads one; the partition is in front of it in a tail's row only.
func (r *tailReader) answer(p *placement.PartitionID, k *requestKey) (answer []byte) {
	if p == nil {
		binary.BigEndian.PutUint32(k[:], uint32(r.uvarint(1<<32-1)))
	} else {
		binary.BigEndian.PutUint32(k[:], uint32(*p))
	}
	copy(k[4:], r.bytes(len(k)-4))
	return r.bytes(int(r.uvarint(uint64(len(r.b)))))
}

// record reads what happened to one.
func (r *tailReader) record() (k txnRow, record []byte) {
	what := r.bytes(1)
	if r.bad != nil {
		return k, nil
	}
	k.role = mvcc.Role(what[0] &^ recordDeleted)
	if k.role != mvcc.RolePrepared && k.role != mvcc.RoleCommitted {
		r.fail(fmt.Sprintf("a record of role %d", k.role))
		return k, nil
	}
	k.partition = placement.PartitionID(r.uvarint(1<<32 - 1))
	if b := r.bytes(8 + 16); b != nil {
		k.id.Time = binary.BigEndian.Uint64(b)
		copy(k.id.Random[:], b[8:])
	}
	if what[0]&recordDeleted != 0 {
		return k, nil
	}
	record = r.bytes(int(r.uvarint(maxTailRecord)))
	if r.bad == nil && len(record) == 0 {
		r.fail("an empty record")
	}
	return k, record
}

// tailRow is a row of the tail, taken apart. Its lists are parts of the row.
type tailRow struct {
	meta
	rest []byte
}

func (t *tailRow) decode(b []byte) error {
	if len(b) > 0 && b[0] > tailFormat {
		return fmt.Errorf("fsm: tail row of format %d: %w", b[0], ErrNewer)
	}
	if len(b) < tailFixed+3 || b[0] != tailFormat {
		return fmt.Errorf("fsm: tail row of %d bytes: %w", len(b), ErrDamaged)
	}
	err := t.meta.decode(b[:tailFixed])
	if err == nil && (t.before >= t.applied || t.sealed > t.applied) {
		err = fmt.Errorf("fsm: tail row of entry %d, after %d, sealed at %d: %w", t.applied, t.before, t.sealed, ErrDamaged)
	}
	t.rest = b[tailFixed:]
	return err
}

// each goes over what the row's entry left. A record is nil if it was deleted.
func (t *tailRow) each(count func(countKey, counts), answer func(requestKey, []byte) error, record func(txnRow, []byte) error) error {
	r := tailReader{b: t.rest}
	for range r.count(5) {
		k := countKey{placement.PartitionID(r.uvarint(1<<32 - 1)), placement.CollectionID(r.uvarint(1<<32 - 1))}
		c := counts{docs: r.uvarint(1<<64 - 1), bytes: r.uvarint(1<<64 - 1), rows: r.uvarint(1<<64 - 1)}
		if r.bad == nil {
			count(k, c)
		}
	}
	for range r.count(1 + 8 + 16 + 1) {
		var k requestKey
		a := r.answer(nil, &k)
		if r.bad == nil {
			r.bad = answer(k, a)
		}
	}
	for range r.count(1 + 1 + 8 + 16) {
		k, b := r.record()
		if r.bad == nil {
			r.bad = record(k, b)
		}
	}
	if r.bad == nil && len(r.b) > 0 {
		r.fail(fmt.Sprintf("%d bytes after its end", len(r.b)))
	}
	if r.bad != nil {
		return fmt.Errorf("fsm: tail row of entry %d: %w", t.applied, r.bad)
	}
	return nil
}

// rowSource is what a tail is read from.
type rowSource interface {
	Each(start, end []byte, fn func(key, value []byte) error) error
}

// readMeta is the newest scalar state in the rows.
func readMeta(src rowSource, g placement.GroupID) (newest meta, err error) {
	start, end := mvcc.KindSpan(g, mvcc.KindTail)
	err = src.Each(start, end, func(_, value []byte) error {
		var t tailRow
		if err := t.decode(value); err != nil {
			return err
		}
		if t.applied > newest.applied {
			newest = t.meta
		}
		return nil
	})
	return newest, err
}

// readTail reads the scalar state and what is not sealed of the entries up to
// it, in their order.
func readTail(src rowSource, g placement.GroupID) (newest meta, rows []tailRow, err error) {
	start, end := mvcc.KindSpan(g, mvcc.KindTail)
	err = src.Each(start, end, func(key, value []byte) error {
		var t tailRow
		if err := t.decode(value); err != nil {
			return err
		}
		if !bytes.Equal(key, mvcc.AppendTailKey(nil, g, t.applied)) {
			return fmt.Errorf("fsm: the tail row of entry %d lies at %x: %w", t.applied, key, ErrDamaged)
		}
		if t.applied > newest.applied {
			newest = t.meta
		}
		t.rest = bytes.Clone(t.rest)
		rows = append(rows, t)
		return nil
	})
	if err != nil {
		return meta{}, nil, err
	}
	rows = slices.DeleteFunc(rows, func(t tailRow) bool { return t.applied <= newest.sealed })
	slices.SortFunc(rows, func(a, b tailRow) int { return cmp.Compare(a.applied, b.applied) })
	before := newest.sealed
	for i := range rows {
		if rows[i].before != before {
			return meta{}, nil, fmt.Errorf("fsm: the tail row of entry %d follows %d, and the one before it is of %d: %w", rows[i].applied, rows[i].before, before, ErrDamaged)
		}
		before = rows[i].applied
	}
	return newest, rows, nil
}

// load takes the rows into memory. Counts and records are laid over those that
// are sealed.
func (t *tail) load(rows []tailRow, kept map[countKey]counts, txns *lockTable) error {
	t.reset()
	if mutant.On(mutant.TailUnread) {
		return nil
	}
	for i := range rows {
		err := rows[i].each(func(k countKey, c counts) {
			t.counts[k] = struct{}{}
			if c == (counts{}) {
				delete(kept, k)
			} else {
				kept[k] = c
			}
		}, func(k requestKey, answer []byte) error {
			t.begin(&k, len(answer))
			t.answers = append(t.answers, answer...)
			return nil
		}, func(k txnRow, record []byte) error {
			_, young := t.records[k]
			switch {
			case record != nil && txns.has(k):
				return fmt.Errorf("the record of transaction %s was there: %w", k.id, ErrDamaged)
			case record == nil && !young && !mutant.On(mutant.TailDeletesUnread):
				return fmt.Errorf("the record of transaction %s that is deleted is not in the tail: %w", k.id, ErrDamaged)
			}
			if record == nil && mutant.On(mutant.TailDeletesUnread) {
				return nil
			}
			t.record(k, record)
			return txns.load(k, bytes.Clone(record))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// The applier's side.

// setCounts changes kept counts.
func (a *applier) setCounts(k countKey, n counts) {
	a.dirty[k] = n
	a.touched = append(a.touched, k)
	a.m.tail.counts[k] = struct{}{}
}

// remember keeps the answer to a request, until its horizon has passed.
func (a *applier) remember(id *wire.RequestID, p placement.PartitionID, r *Result, keepDoc bool) error {
	a.m.requests.add(id)
	a.meta.youngest = max(a.meta.youngest, id.Time)
	if answerLen(r, keepDoc) > maxTailAnswer {
		return a.rememberAlone(id, p, r, keepDoc)
	}
	t := &a.m.tail
	start := len(t.answers)
	k := requestKeyOf(p, id)
	a.m.shown.Lock()
	t.begin(&k, answerLen(r, keepDoc))
	t.answers = appendAnswer(t.answers, r, keepDoc)
	a.m.shown.Unlock()
	a.answered++
	a.foldAnswer(t.answers[start:])
	return nil
}

// rememberAlone keeps it in a row of its own.
func (a *applier) rememberAlone(id *wire.RequestID, p placement.PartitionID, r *Result, keepDoc bool) error {
	a.key = mvcc.AppendRequestKey(a.key[:0], a.m.group, p, id.Time, &id.Random)
	a.row = appendAnswer(append(a.row[:0], smallFormat), r, keepDoc)
	a.requests[requestKeyOf(p, id)] = bytes.Clone(a.row[1:])
	return a.set(a.key, a.row)
}

// answerTo looks for the answer to a request, or for an end.
func (a *applier) answerTo(p placement.PartitionID, id *wire.RequestID, of subject) (answer []byte, found bool, err error) {
	k := requestKeyOf(p, id)
	if answer, found = a.m.tail.find(&k, of, len(a.m.tail.answers)); found {
		return answer, true, nil
	}
	if answer, found = a.requests[k]; found && of&ofRequest != 0 {
		return answer, true, nil
	}
	reader, err := a.read()
	if err != nil {
		return nil, false, err
	}
	return storedAnswer(reader, a.m.group, p, id, of)
}

// storedAnswer looks for it in the rows, those of the tail left out.
func storedAnswer(r *mvcc.Reader, g placement.GroupID, p placement.PartitionID, id *wire.RequestID, of subject) (answer []byte, found bool, err error) {
	if of&ofRequest != 0 {
		row, found, err := r.Get(mvcc.AppendRequestKey(nil, g, p, id.Time, &id.Random))
		if err != nil {
			return nil, false, err
		}
		if found {
			answer, err = aloneAnswer(row)
			return bytes.Clone(answer), err == nil, err
		}
	}
	if mutant.On(mutant.SealedUnread) {
		return nil, false, nil
	}
	want := requestKeyOf(p, id)
	err = sealedAnswers(r, g, p, id.Time, func(k requestKey, x []byte) (more bool) {
		if k == want && subjectOf(x)&of != 0 {
			answer, found = bytes.Clone(x), true
		}
		return !found
	})
	return answer, found, err
}

// sealedAnswers goes over a partition's sealed rows that can have something of
// this time, as long as fn wants more of them. What it is called with is part of
// a row.
func sealedAnswers(r *mvcc.Reader, g placement.GroupID, p placement.PartitionID, time uint64, fn func(requestKey, []byte) (more bool)) error {
	start, end := mvcc.AnswersFrom(g, p, time)
	return r.EachLazy(start, end, func(key []byte, value func() ([]byte, error)) (more bool, err error) {
		if _, _, first, _, err := mvcc.DecodeAnswersKey(key); err != nil || first > time {
			return true, err
		}
		b, err := value()
		if err != nil {
			return false, err
		}
		more = true
		err = eachAnswer(p, b, func(k requestKey, x []byte) error {
			more = fn(k, x) && more
			return nil
		})
		return more, err
	})
}

// aloneAnswer is the answer in a row of its own.
func aloneAnswer(row []byte) ([]byte, error) {
	switch {
	case len(row) == 0:
		return nil, fmt.Errorf("fsm: empty answer row: %w", ErrDamaged)
	case row[0] > smallFormat:
		return nil, fmt.Errorf("fsm: answer row of format %d: %w", row[0], ErrNewer)
	case row[0] != smallFormat:
		return nil, fmt.Errorf("fsm: answer row of format %d: %w", row[0], ErrDamaged)
	}
	return row[1:], nil
}

// Sealed answers and ends of one partition are in one row, in the order of the log:
//
//	| format u8 = 2 | count uvarint | that many: time u64 | random 16 | length uvarint | answer |
//
// The key has the largest time, by which the row is forgotten, and the smallest.

// eachAnswer goes over a row of sealed answers. They are parts of it.
func eachAnswer(p placement.PartitionID, row []byte, fn func(requestKey, []byte) error) error {
	if len(row) > 0 && row[0] > answersFormat {
		return fmt.Errorf("fsm: sealed answers of format %d: %w", row[0], ErrNewer)
	}
	if len(row) == 0 || row[0] != answersFormat {
		return fmt.Errorf("fsm: sealed answers of %d bytes: %w", len(row), ErrDamaged)
	}
	r := tailReader{b: row[1:]}
	for range r.count(8 + 16 + 1) {
		var k requestKey
		if answer := r.answer(&p, &k); r.bad == nil {
			r.bad = fn(k, answer)
		}
	}
	if r.bad == nil && len(r.b) > 0 {
		r.fail(fmt.Sprintf("%d bytes after its end", len(r.b)))
	}
	if r.bad != nil {
		return fmt.Errorf("fsm: sealed answers: %w", r.bad)
	}
	return nil
}

// setRecord keeps a record of a transaction that is under way.
func (a *applier) setRecord(k txnKey, role mvcc.Role, record []byte) error {
	a.key = mvcc.AppendTxnKey(a.key[:0], a.m.group, k.partition, role, k.id.Time, &k.id.Random)
	if len(record) > maxTailRecord {
		return a.set(a.key, record)
	}
	a.foldRow(opSet, a.key, record)
	a.record(txnRow{k, role}, record)
	return nil
}

// deleteRecord drops it.
func (a *applier) deleteRecord(k txnKey, role mvcc.Role) error {
	a.key = mvcc.AppendTxnKey(a.key[:0], a.m.group, k.partition, role, k.id.Time, &k.id.Random)
	row := txnRow{k, role}
	if _, young := a.m.tail.records[row]; !young {
		return a.delete(a.key)
	}
	a.foldRow(opDelete, a.key, nil)
	a.record(row, nil)
	return nil
}

// record notes in the tail what happened to a record.
func (a *applier) record(k txnRow, record []byte) {
	a.m.tail.record(k, record)
	a.records = appendTailRecord(a.records, k, record)
	a.recorded++
}

// foldAnswer folds a remembered answer, with its request. (One in a row of its
// own is folded with the row.)
func (a *applier) foldAnswer(b []byte) {
	_, _ = a.digest.Write([]byte{opRemember})
	_, _ = a.digest.Write(b)
}

// endEntry writes the entry's tail. It says whether the entry sealed what was
// before it: the batch must be committed then, for lookups go to the rows.
func (a *applier) endEntry(seal bool) (sealed bool, err error) {
	t := &a.m.tail
	sealed = seal || a.meta.applied-a.meta.sealed >= a.m.tailEntries || t.count >= tailAnswers || t.recordBytes >= tailRecordBytes
	touched, answers, answered := a.touched, t.answers[a.tailStart:], a.answered
	records, recorded := a.records, a.recorded
	if sealed {
		if err := a.seal(); err != nil {
			return false, err
		}
		a.meta.sealed = a.meta.applied
		touched, answers, answered = nil, nil, 0
		records, recorded = nil, 0
	}
	slices.SortFunc(touched, countKey.compare)
	touched = slices.Compact(touched)
	a.row = a.meta.append(a.row[:0])
	a.row = binary.AppendUvarint(a.row, uint64(len(touched)))
	for _, k := range touched {
		a.row = appendTailCounts(a.row, k, a.countsOf(k))
	}
	a.row = binary.AppendUvarint(a.row, uint64(answered))
	a.row = append(a.row, answers...)
	a.row = binary.AppendUvarint(a.row, uint64(recorded))
	a.row = append(a.row, records...)
	a.key = mvcc.AppendTailKey(a.key[:0], a.m.group, a.meta.applied)
	if a.sealed = sealed; sealed && mutant.On(mutant.TailDroppedEarly) {
		a.emptyTail()
	}
	a.touched, a.tailStart, a.answered = a.touched[:0], len(t.answers), 0
	a.records, a.recorded = a.records[:0], 0
	return sealed, a.writer().Set(a.key, a.row)
}

// seal writes the tail's counts, answers and records to rows of their own.
// Nothing of it is folded into the digest: it follows from what is.
func (a *applier) seal() error {
	t := &a.m.tail
	b := a.writer()
	for k := range t.counts {
		a.key = mvcc.AppendNumbered(a.key[:0], a.m.group, mvcc.KindCounts, uint32(k.partition), uint32(k.collection))
		var err error
		if c := a.countsOf(k); c == (counts{}) {
			err = b.Delete(a.key)
		} else {
			a.row = c.append(a.row[:0])
			err = b.Set(a.key, a.row)
		}
		if err != nil {
			return err
		}
	}
	for k := range t.records {
		if k.role == mvcc.RolePrepared && mutant.On(mutant.SealForgetsPrepared) {
			continue
		}
		a.key = mvcc.AppendTxnKey(a.key[:0], a.m.group, k.partition, k.role, k.id.Time, &k.id.Random)
		a.row = a.m.held.append(a.row[:0], k)
		if err := b.Set(a.key, a.row); err != nil {
			return err
		}
	}
	for order := t.sorted(); len(order) > 0; {
		p := placement.PartitionID(order[0] >> 32)
		var first, last uint64
		n := uint64(0)
		list := a.row[:0]
		for ; len(order) > 0 && placement.PartitionID(order[0]>>32) == p; order = order[1:] {
			r := tailReader{b: t.answers[uint32(order[0]):]}
			var k requestKey
			answer := r.answer(nil, &k)
			at := k.time()
			if hlc.Timestamp(at) < a.meta.requests || subjectOf(answer) != ofRequest && mutant.On(mutant.SealForgetsEnds) {
				continue
			}
			if n++; n == 1 {
				first = at
			}
			first, last = min(first, at), max(last, at)
			list = append(list, k[4:]...)
			list = binary.AppendUvarint(list, uint64(len(answer)))
			list = append(list, answer...)
		}
		if a.row = list; n == 0 {
			continue
		}
		a.key = mvcc.AppendAnswersKey(a.key[:0], a.m.group, p, last, first, a.meta.applied)
		head := binary.AppendUvarint([]byte{answersFormat}, n)
		if err := b.SetJoined(a.key, head, list); err != nil {
			return err
		}
	}
	return nil
}

// Remembered counts the answers that are kept, ends left out, by reading them.
// Nothing may be applied meanwhile.
func (m *Machine) Remembered() (n int, err error) {
	r, err := m.reader()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	now, rows, err := readTail(r, m.group)
	if err != nil {
		return 0, err
	}
	count := func(k requestKey, answer []byte) error {
		if hlc.Timestamp(k.time()) >= now.requests && subjectOf(answer) == ofRequest {
			n++
		}
		return nil
	}
	for i := range rows {
		err := rows[i].each(func(countKey, counts) {}, count, func(txnRow, []byte) error { return nil })
		if err != nil {
			return 0, err
		}
	}
	start, end := mvcc.KindSpan(m.group, mvcc.KindAnswers)
	err = r.Each(start, end, func(_, value []byte) error { return eachAnswer(0, value, count) })
	if err != nil {
		return 0, err
	}
	start, end = mvcc.KindSpan(m.group, mvcc.KindRequest)
	return n, r.Each(start, end, func(_, _ []byte) error { n++; return nil })
}
