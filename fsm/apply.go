package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"

	"github.com/cespare/xxhash/v2"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// Apply runs committed entries, in order, as one storage batch (more if one of
// them collects garbage). There is one set of results per entry; it is nil for
// an entry at or below Applied, which was run before. An error halts the
// machine: nothing of the call's unfinished part was kept, and the replica
// must stop.
func (m *Machine) Apply(entries []Entry) ([][]Result, error) {
	m.applyMu.Lock()
	defer m.applyMu.Unlock()
	if err := m.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHalted, err)
	}
	results := make([][]Result, len(entries))
	a := m.newApplier(entries)
	err := a.run(entries, results)
	if err == nil {
		err = a.commit()
	}
	if err = errors.Join(err, a.close()); err != nil {
		return nil, m.halt(fmt.Errorf("applying to %s: %w", m.group, err))
	}
	return results, nil
}

// scratch is memory that one applier after the other uses.
type scratch struct {
	docs     map[string]pending
	requests map[requestKey][]byte
	dirty    map[countKey]counts
	touched  []countKey // by the entry; not in order
	ripe     map[countKey]hlc.Timestamp
	gone     map[string]struct{}
	changes  []lockChange // of the machine's table, for readers
	records  []byte       // what happened to transactions' records in the entry, as in the tail's row
	key      []byte
	key2     []byte
	row      []byte
	keys     []byte // of docs
}

func (s *scratch) makeMaps() {
	s.docs = map[string]pending{}
	s.requests = map[requestKey][]byte{}
	s.dirty = map[countKey]counts{}
	s.ripe = map[countKey]hlc.Timestamp{}
	s.gone = map[string]struct{}{}
}

// clear empties the maps. Emptying one takes time by what it ever held, so
// after a large batch they are made anew.
func (s *scratch) clear() {
	if s.keys = s.keys[:0]; cap(s.keys) > 1<<20 {
		s.keys = nil
	}
	if cap(s.records) > 1<<20 && len(s.records) == 0 {
		s.records = nil
	}
	if max(len(s.docs), len(s.requests), len(s.dirty), len(s.gone)) > 64 {
		s.makeMaps()
		return
	}
	clear(s.docs)
	clear(s.requests)
	clear(s.dirty)
	clear(s.ripe)
	clear(s.gone)
}

// pending is a document as the batch has made it. The newest version is all
// that most commands ask for; only restore looks at the rest.
type pending struct {
	newest mvcc.Row
	older  []mvcc.Row // written by this batch too, oldest first
}

// requestKey is a request's key in a map: partition, time, random.
type requestKey [4 + 8 + 16]byte

// applier runs entries against the state before them and what it has changed
// so far. It works on copies of what readers see, until commit.
type applier struct {
	*scratch
	m      *Machine
	meta   meta
	view   *view
	forked bool // view is a copy already

	reader *mvcc.Reader // the state at the last cut; opened when needed
	batch  *mvcc.Batch
	dirtyB bool // the batch holds something

	digest  xxhash.Digest
	answers []txn.Answer // what transactions' results point to
	freed   uint64       // what was removed in ranges, about, in bytes
	size    int

	tailStart int // where the entry's answers begin in the machine's tail
	answered  int // how many there are
	recorded  int // how many things are in records

	sealed bool // the batch seals the tail
}

func (m *Machine) newApplier(entries []Entry) *applier {
	size := 0
	for i := range entries {
		size += len(entries[i].Data)
	}
	if m.scratch.docs == nil {
		m.scratch.makeMaps()
	}
	m.scratch.touched, m.scratch.records = m.scratch.touched[:0], m.scratch.records[:0]
	a := &applier{scratch: &m.scratch, m: m, view: m.view.Load(), size: size, tailStart: len(m.tail.answers)}
	m.mu.RLock()
	a.meta = m.meta
	m.mu.RUnlock()
	return a
}

func (a *applier) run(entries []Entry, results [][]Result) error {
	for i := range entries {
		e := &entries[i]
		if e.Index <= a.meta.applied && !mutant.On(mutant.AppliedAgain) {
			continue
		}
		if len(e.Data) == 0 {
			results[i] = []Result{}
			if err := a.advance(e, false); err != nil {
				return err
			}
			continue
		}
		commands, err := a.m.decoder.decode(e.Data)
		if err != nil {
			return fmt.Errorf("entry %d: %w", e.Index, err)
		}
		// What Collect removes depends on what is stored: the state at the end
		// of the entry before, however many entries this call brought. A Mark
		// looks at the state at the end of its own.
		cut, mark := false, false
		for c := range commands {
			cut = cut || commands[c].Collect != nil || commands[c].Mark != nil
			mark = mark || commands[c].Mark != nil
		}
		if cut {
			if err := a.commit(); err != nil {
				return err
			}
		}
		results[i] = make([]Result, len(commands))
		a.beginDigest(e.Index)
		for c := range commands {
			if err := a.command(&commands[c], &results[i][c]); err != nil {
				return fmt.Errorf("entry %d, command %d: %w", e.Index, c, err)
			}
		}
		a.meta.digest = a.digest.Sum64()
		if err := a.advance(e, mark); err != nil {
			return err
		}
		if cut {
			if err := a.commit(); err != nil {
				return err
			}
			a.m.mark(e.Index, commands)
		}
	}
	return nil
}

// advance ends an entry. One without commands does not count in the digest.
// With a mark, all that is in tails is to lie in rows of its own.
func (a *applier) advance(e *Entry, mark bool) error {
	a.meta.before, a.meta.applied, a.meta.term = a.meta.applied, e.Index, e.Term
	a.m.digests.put(e.Index, a.meta.digest)
	a.dirtyB = true
	if mutant.On(mutant.AppliedApart) && a.batch != nil {
		err := errors.Join(a.batch.Commit(0), a.batch.Close())
		if a.batch = nil; err != nil {
			return err
		}
	}
	sealed, err := a.endEntry(mark)
	if err != nil || !sealed {
		return err
	}
	return a.commit()
}

func (a *applier) command(c *Command, r *Result) error {
	switch {
	case c.Write != nil:
		return a.write(c, r)
	case c.Own != nil:
		return a.own(c.Own)
	case c.Ceiling != nil:
		a.meta.ceiling = max(a.meta.ceiling, c.Ceiling.To)
		a.fold(opState, nil, uint64(a.meta.ceiling))
		return nil
	case c.Promise != nil:
		a.promise(c.Promise, r)
		return nil
	case c.Horizon != nil:
		return a.horizon(c.Horizon)
	case c.Collect != nil:
		return a.collect(c.Collect)
	case c.Drop != nil:
		return a.drop(c.Drop)
	case c.Digest != nil:
		return a.compare(c.Digest)
	case c.Txn != nil:
		return a.txn(c, r)
	case c.Mark != nil:
		a.fold(opState, c.Mark.ID[:])
		return nil
	default:
		return fmt.Errorf("empty command: %w", ErrDamaged)
	}
}

// tick is the next effect's timestamp.
func (a *applier) tick(at hlc.Timestamp) (hlc.Timestamp, error) {
	ts := max(at, a.meta.clock+1)
	if ts <= a.meta.clock {
		return 0, errors.New("the clock has no timestamps left")
	}
	a.meta.clock = ts
	a.meta.ceiling = max(a.meta.ceiling, ts)
	return ts, nil
}

// fork makes the view the applier's own before it is changed.
func (a *applier) fork() *view {
	if !a.forked {
		a.view, a.forked = a.view.clone(), true
	}
	return a.view
}

func (a *applier) own(o *Own) error {
	for _, p := range o.Partitions {
		if !a.fork().own(p, o.Epoch) {
			continue
		}
		a.key = mvcc.AppendNumbered(a.key[:0], a.m.group, mvcc.KindOwned, uint32(p))
		a.row = appendSmall(a.row[:0], uint64(o.Epoch))
		if err := a.set(a.key, a.row); err != nil {
			return err
		}
	}
	a.meta.epoch = max(a.meta.epoch, o.Epoch)
	a.fold(opState, nil, uint64(a.meta.epoch))
	return nil
}

func (a *applier) promise(p *Promise, r *Result) {
	for _, id := range p.Partitions {
		if !a.view.check(id, p.Epoch) {
			r.Wire.Error, r.Detail = &wire.Error{Code: wire.CodeStaleEpoch, Epoch: uint64(a.meta.epoch)}, a.view.why(a.m.group, id, p.Epoch)
			a.fold(opAnswer, nil, uint64(wire.CodeStaleEpoch))
			return
		}
	}
	a.meta.ceiling = max(a.meta.ceiling, p.To)
	a.fold(opState, nil, uint64(a.meta.ceiling))
}

func (a *applier) horizon(h *Horizon) error {
	if h.RequestIDs > a.meta.requests {
		a.meta.requests = h.RequestIDs
		a.fold(opState, nil, uint64(h.RequestIDs))
		for _, p := range a.view.partitions {
			start, end := mvcc.RequestSpan(a.m.group, p, h.RequestIDs)
			if err := a.deleteRange(start, end); err != nil {
				return err
			}
			// Not folded, nor are the rows: answers were, when they were given.
			start, end = mvcc.AnswersSpan(a.m.group, p, h.RequestIDs)
			if err := a.writer().DeleteRange(start, end); err != nil {
				return err
			}
		}
	}
	for _, c := range h.History {
		if c.At <= a.view.horizons[c.Collection] {
			continue
		}
		if a.view.isDropped(c.Collection) {
			continue
		}
		a.fork().horizons[c.Collection] = c.At
		a.key = mvcc.AppendNumbered(a.key[:0], a.m.group, mvcc.KindHorizon, uint32(c.Collection))
		a.row = appendSmall(a.row[:0], uint64(c.At))
		if err := a.set(a.key, a.row); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) drop(d *Drop) error {
	if _, done := a.view.dropped[d.Collection]; done {
		return nil
	}
	v := a.fork()
	v.dropped[d.Collection] = struct{}{}
	a.key = mvcc.AppendNumbered(a.key[:0], a.m.group, mvcc.KindDropped, uint32(d.Collection))
	if err := a.set(a.key, appendSmall(nil)); err != nil {
		return err
	}
	if err := a.removeAll(d.Collection, true); err != nil {
		return err
	}
	// Its entries go with it. Most collections have none.
	return a.removeAll(unique.Entries(d.Collection), false)
}

// removeAll removes a collection's rows and its horizon: in every partition, or
// only where there are some.
func (a *applier) removeAll(c placement.CollectionID, everywhere bool) error {
	_, has := a.view.horizons[c]
	if delete(a.view.horizons, c); has || everywhere {
		a.key = mvcc.AppendNumbered(a.key[:0], a.m.group, mvcc.KindHorizon, uint32(c))
		if err := a.delete(a.key); err != nil {
			return err
		}
	}
	for _, p := range a.view.partitions {
		k := countKey{p, c}
		some := a.countsOf(k) != (counts{})
		if !some && !everywhere {
			continue
		}
		start, end := mvcc.CollectionSpan(a.m.group, p, c)
		if mutant.On(mutant.DropLeavesRows) {
			end = start
		}
		if err := a.deleteRange(start, end); err != nil {
			return err
		}
		if some {
			a.freed += a.countsOf(k).size()
			a.setCounts(k, counts{})
		}
	}
	return nil
}

// compare halts a replica that had another digest than the leader. One that
// does not remember (it was restarted, or got a snapshot) will see the next.
func (a *applier) compare(d *Digest) error {
	mine, found := a.m.digests.get(d.At)
	if found && mine != d.Value && !mutant.On(mutant.ApplyRandom) {
		return fmt.Errorf("%w: at entry %d its digest is %016x, the leader's %016x", ErrDiverged, d.At, mine, d.Value)
	}
	return nil
}

// countsOf is what the batch has made of the counts.
func (a *applier) countsOf(k countKey) counts {
	if c, ok := a.dirty[k]; ok {
		return c
	}
	// Only Apply and Install change the map, and applyMu is held.
	return a.m.counts[k]
}

// read is the state at the last cut.
func (a *applier) read() (*mvcc.Reader, error) {
	if a.reader == nil {
		r, err := a.m.engine.NewReader(a.m.group, true)
		if err != nil {
			return nil, err
		}
		a.reader = r
	}
	return a.reader, nil
}

// writer is the open batch.
func (a *applier) writer() *mvcc.Batch {
	if a.batch == nil {
		a.batch = a.m.engine.NewBatch(a.size + a.size/4 + 4<<10)
	}
	return a.batch
}

func (a *applier) set(key, value []byte) error {
	a.foldRow(opSet, key, value)
	return a.writer().Set(key, value)
}

func (a *applier) delete(key []byte) error {
	a.foldRow(opDelete, key, nil)
	return a.writer().Delete(key)
}

func (a *applier) deleteRange(start, end []byte) error {
	a.foldRow(opDeleteRange, start, end)
	return a.writer().DeleteRange(start, end)
}

// commit writes the batch, then publishes what it did.
func (a *applier) commit() error {
	if !a.dirtyB {
		return nil
	}
	b := a.writer()
	kept := a.m.newest.Begin()
	if err := b.Commit(a.freed); err != nil {
		return err
	}
	if kept {
		for doc, p := range a.docs {
			a.m.newest.Put(stringBytes(doc), &p.newest)
		}
	}
	a.m.mu.Lock()
	a.m.meta = a.meta
	for k, c := range a.dirty {
		if c == (counts{}) {
			delete(a.m.counts, k)
			delete(a.m.ripe, k)
		} else {
			a.m.counts[k] = c
		}
	}
	maps.Copy(a.m.ripe, a.ripe)
	a.m.view.Store(a.view)
	a.m.mu.Unlock()
	if len(a.changes) > 0 {
		a.m.locks.publish(a.changes)
		clear(a.changes)
		a.changes = a.changes[:0]
	}
	a.showTail()
	a.m.publish(&a.meta)
	return a.close()
}

// close ends a batch, committed or not, and what belongs to it.
func (a *applier) close() (err error) {
	if a.reader != nil {
		err = a.reader.Close()
		a.reader = nil
	}
	if a.batch != nil {
		err = errors.Join(err, a.batch.Close())
		a.batch = nil
	}
	a.dirtyB, a.forked, a.freed, a.sealed = false, false, 0, false
	a.scratch.clear()
	return err
}

// The digest of an entry folds, after the digest before it and the index:
//
//	| op u8 | key length u32 | value length u32 | key without the group | value |
//
// for every row set or deleted, and the like for answers and scalar state.
const (
	opSet         = 1
	opDelete      = 2
	opDeleteRange = 3
	opAnswer      = 4
	opState       = 5
	opRemember    = 6 // the answer or end and its ID as the tail's row has them
)

func (a *applier) beginDigest(index uint64) {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], a.meta.digest)
	binary.BigEndian.PutUint64(b[8:], index)
	a.digest.Reset()
	_, _ = a.digest.Write(b[:])
}

const groupBytes = 4

func (a *applier) foldRow(op byte, key, value []byte) {
	var b [9]byte
	b[0] = op
	binary.BigEndian.PutUint32(b[1:], uint32(len(key)-groupBytes))
	binary.BigEndian.PutUint32(b[5:], uint32(len(value)))
	_, _ = a.digest.Write(b[:])
	_, _ = a.digest.Write(key[groupBytes:])
	if op == opDeleteRange {
		value = value[groupBytes:]
	}
	_, _ = a.digest.Write(value)
}

func (a *applier) fold(op byte, tail []byte, fields ...uint64) {
	var room [64]byte
	b := append(room[:0], op, byte(len(fields)), byte(len(tail)))
	for _, f := range fields {
		b = binary.BigEndian.AppendUint64(b, f)
	}
	_, _ = a.digest.Write(append(b, tail...))
}

// partitionOf says whether a partition's rows are this group's to touch.
func (a *applier) owns(p placement.PartitionID) bool {
	_, ok := a.view.since[p]
	return ok
}
