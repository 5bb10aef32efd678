package fsm

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// txnKey names a transaction at one partition.
type txnKey struct {
	partition placement.PartitionID
	id        txn.ID
}

// docRef names a document.
type docRef struct {
	partition  placement.PartitionID
	collection placement.CollectionID
	id         string
}

// held is a prepared transaction at one partition. It is never changed.
type held struct {
	txnKey
	rec  txn.PreparedRecord
	size int // of the record

	// Room for what most hold of a partition: one document.
	read   [1]txn.Read
	intent [1]txn.Intent
}

// newHeld takes a record as it is stored, with its memory.
func newHeld(k txnKey, record []byte) (*held, error) {
	h := &held{txnKey: k, size: len(record)}
	h.rec.Reads, h.rec.Intents = h.read[:0], h.intent[:0]
	if err := h.rec.Decode(record); err != nil {
		return nil, sameFault(err)
	}
	return h, nil
}

// staged is home's answer to who asks about what it has staged.
func (h *held) staged() txn.Answer {
	return txn.Answer{State: txn.Staged, At: h.rec.At, Participants: h.rec.Participants, Duplicate: true}
}

// sharers are those that hold a document shared, in their order: mostly one.
type sharers struct {
	first *held
	more  []*held
}

// lockTable is what the records of prepared and committed transactions say, by
// what is asked of it. It repeats rows and the tail: losing it loses nothing.
type lockTable struct {
	prepared  map[txnKey]*held
	committed map[txnKey]*txn.CommittedRecord
	excl      map[docRef]*held
	shared    map[docRef]sharers
	ranged    []*held // those that hold ranges
	bytes     int     // of the prepared records
}

func newLockTable() lockTable {
	return lockTable{
		prepared: map[txnKey]*held{}, committed: map[txnKey]*txn.CommittedRecord{},
		excl: map[docRef]*held{}, shared: map[docRef]sharers{},
	}
}

func (t *lockTable) clone() lockTable {
	c := newLockTable()
	for _, h := range t.prepared {
		c.add(h)
	}
	for k, r := range t.committed {
		c.committed[k] = r
	}
	return c
}

func (t *lockTable) add(h *held) {
	t.prepared[h.txnKey] = h
	t.bytes += h.size
	for i := range h.rec.Intents {
		n := &h.rec.Intents[i]
		t.excl[docRef{h.partition, n.Collection, n.ID}] = h
	}
	for i := range h.rec.Reads {
		k := docRef{h.partition, h.rec.Reads[i].Collection, h.rec.Reads[i].ID}
		if s := t.shared[k]; s.first == nil {
			t.shared[k] = sharers{first: h}
		} else {
			t.shared[k] = sharers{s.first, append(s.more, h)}
		}
	}
	if len(h.rec.Ranges) > 0 {
		t.ranged = append(t.ranged, h)
	}
}

func (t *lockTable) remove(h *held) {
	delete(t.prepared, h.txnKey)
	t.bytes -= h.size
	for i := range h.rec.Intents {
		n := &h.rec.Intents[i]
		delete(t.excl, docRef{h.partition, n.Collection, n.ID})
	}
	for i := range h.rec.Reads {
		k := docRef{h.partition, h.rec.Reads[i].Collection, h.rec.Reads[i].ID}
		switch s := t.shared[k]; {
		case s.first != h:
			t.shared[k] = sharers{s.first, without(s.more, h)}
		case len(s.more) > 0:
			t.shared[k] = sharers{s.more[0], s.more[1:]}
		default:
			delete(t.shared, k)
		}
	}
	if len(h.rec.Ranges) > 0 {
		t.ranged = without(t.ranged, h)
	}
}

// without is the list without one, in memory of its own.
func without(list []*held, h *held) []*held {
	var left []*held
	for _, o := range list {
		if o != h {
			left = append(left, o)
		}
	}
	return left
}

// blocks is who keeps a document from being written: a holder of an intent, or
// of a shared lock on it or on a range around it.
func (t *lockTable) blocks(p placement.PartitionID, c placement.CollectionID, id string) *held {
	return t.blocksOther(p, c, id, txn.ID{})
}

// blocksOther leaves out what a transaction holds itself.
func (t *lockTable) blocksOther(p placement.PartitionID, c placement.CollectionID, id string, self txn.ID) *held {
	k := docRef{p, c, id}
	if h := t.excl[k]; h != nil && h.id != self {
		return h
	}
	s := t.shared[k]
	if s.first != nil && s.first.id != self {
		return s.first
	}
	for _, h := range s.more {
		if h.id != self {
			return h
		}
	}
	for _, h := range t.ranged {
		if h.partition != p || h.id == self {
			continue
		}
		for i := range h.rec.Ranges {
			if r := &h.rec.Ranges[i]; r.Collection == c && r.Contains(id) {
				return h
			}
		}
	}
	return nil
}

// intentOn is who is about to write a document.
func (t *lockTable) intentOn(p placement.PartitionID, c placement.CollectionID, id string, self txn.ID) *held {
	if h := t.excl[docRef{p, c, id}]; h != nil && h.id != self {
		return h
	}
	return nil
}

// intentIn is who is about to write a document of a range, and which.
func (t *lockTable) intentIn(p placement.PartitionID, r *txn.Range, self txn.ID) (*held, string) {
	var first *held
	var at string
	for k, h := range t.excl {
		if k.partition == p && k.collection == r.Collection && h.id != self && r.Contains(k.id) && (first == nil || k.id < at) {
			first, at = h, k.id // the first, so that every replica names the same
		}
	}
	return first, at
}

// has says whether a record is there.
func (t *lockTable) has(k txnRow) bool {
	if k.role == mvcc.RolePrepared {
		return t.prepared[k.txnKey] != nil
	}
	return t.committed[k.txnKey] != nil
}

// append appends a record that is there.
func (t *lockTable) append(dst []byte, k txnRow) []byte {
	if k.role == mvcc.RolePrepared {
		return t.prepared[k.txnKey].rec.Append(dst)
	}
	return t.committed[k.txnKey].Append(dst)
}

// load takes a record in as it is stored, with its memory; nil: it is gone.
func (t *lockTable) load(k txnRow, record []byte) error {
	switch {
	case record == nil && k.role == mvcc.RolePrepared:
		t.remove(t.prepared[k.txnKey])
	case record == nil:
		delete(t.committed, k.txnKey)
	case k.role == mvcc.RolePrepared:
		h, err := newHeld(k.txnKey, record)
		if err != nil {
			return err
		}
		t.add(h)
	default:
		rec := &txn.CommittedRecord{}
		if err := rec.Decode(record); err != nil {
			return sameFault(err)
		}
		t.committed[k.txnKey] = rec
	}
	return nil
}

// loadTxns makes the table of what is stored in rows: the tail is to be laid
// over it.
func loadTxns(r *mvcc.Reader, g placement.GroupID, partitions []placement.PartitionID) (lockTable, error) {
	t := newLockTable()
	for _, p := range partitions {
		start, _ := mvcc.TxnSpan(g, p, mvcc.RolePrepared)
		_, end := mvcc.TxnSpan(g, p, mvcc.RoleCommitted)
		err := r.Each(start, end, func(key, value []byte) error {
			_, role, time, random, err := mvcc.DecodeTxnKey(key)
			if err != nil {
				return fmt.Errorf("%w: %w", err, ErrDamaged)
			}
			return t.load(txnRow{txnKey{p, txn.ID{Time: time, Random: random}}, role}, slices.Clone(value))
		})
		if err != nil {
			return t, err
		}
	}
	return t, nil
}

// sameFault tells this package's errors for package txn's.
func sameFault(err error) error {
	switch {
	case errors.Is(err, txn.ErrNewer):
		return fmt.Errorf("%w: %w", err, ErrNewer)
	case errors.Is(err, txn.ErrDamaged):
		return fmt.Errorf("%w: %w", err, ErrDamaged)
	}
	return err
}

// lockChange is one step from a table to the next.
type lockChange struct {
	add, remove *held
	committed   txnKey
	record      *txn.CommittedRecord // nil: the record of committed is gone
	of          bool                 // the change is of committed
}

func (t *lockTable) apply(c *lockChange) {
	switch {
	case c.add != nil:
		t.add(c.add)
	case c.remove != nil:
		t.remove(c.remove)
	case c.of && c.record != nil:
		t.committed[c.committed] = c.record
	case c.of:
		delete(t.committed, c.committed)
	}
}

// lockBoard is the table as readers see it. A lock comes on it after the batch
// that took it, and leaves it after what it became is readable.
type lockBoard struct {
	count atomic.Int64 // prepared transactions, so that most readers need no more

	mu      sync.RWMutex
	table   lockTable     // guarded by mu
	changed chan struct{} // guarded by mu; closed when something was taken off; nil: nobody waits
}

func (b *lockBoard) replace(t lockTable) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.table = t
	b.wakeLocked()
}

func (b *lockBoard) publish(changes []lockChange) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range changes {
		b.table.apply(&changes[i])
	}
	b.wakeLocked()
}

func (b *lockBoard) wakeLocked() {
	b.count.Store(int64(len(b.table.prepared)))
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

// Holder is a prepared transaction at one partition.
type Holder struct {
	ID        txn.ID
	Partition placement.PartitionID
	Home      placement.PartitionID
	At        hlc.Timestamp // p
	Deadline  hlc.Timestamp
	Born      hlc.Timestamp
	Reads     int // documents and ranges that it holds shared
	Writes    int

	// Of Blockers: what it keeps from the command, the first it was found to.
	Collection placement.CollectionID
	Document   string
}

// Staged says whether this is the home of the transaction, and has staged it.
func (m *Machine) Staged(home placement.PartitionID, id txn.ID) bool {
	if m.locks.count.Load() == 0 {
		return false
	}
	m.locks.mu.RLock()
	defer m.locks.mu.RUnlock()
	h := m.locks.table.prepared[txnKey{home, id}]
	return h != nil && len(h.rec.Participants) > 0
}

// Changed is closed when any transaction has let go of its locks, or taken some.
func (m *Machine) Changed() <-chan struct{} {
	m.locks.mu.Lock()
	defer m.locks.mu.Unlock()
	return m.locks.changedLocked()
}

func (b *lockBoard) changedLocked() chan struct{} {
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return b.changed
}

func (h *held) holder() Holder {
	return Holder{
		ID: h.id, Partition: h.partition, Home: h.rec.Home, At: h.rec.At, Deadline: h.rec.Deadline, Born: h.rec.Born,
		Reads: len(h.rec.Reads) + len(h.rec.Ranges), Writes: len(h.rec.Intents),
	}
}

// LocksHeld is how many transactions are prepared here.
func (m *Machine) LocksHeld() int { return int(m.locks.count.Load()) }

// IntentsOn are the prepared transactions that are about to write documents. A
// reader asks before it reads: who is not listed has either not prepared yet,
// or what it wrote is readable.
func (m *Machine) IntentsOn(keys []ReadKey) []Holder {
	if m.locks.count.Load() == 0 || mutant.On(mutant.IntentsUnread) {
		return nil
	}
	m.locks.mu.RLock()
	defer m.locks.mu.RUnlock()
	var out []Holder
	for i := range keys {
		h := m.locks.table.excl[docRef{keys[i].Partition, keys[i].Collection, keys[i].ID}]
		if h != nil && !slices.ContainsFunc(out, func(o Holder) bool { return o.ID == h.id && o.Partition == h.partition }) {
			out = append(out, h.holder())
		}
	}
	return out
}

// IntentsIn are those that are about to write documents that a scan may find.
func (m *Machine) IntentsIn(s *ScanSpec) []Holder {
	if m.locks.count.Load() == 0 || mutant.On(mutant.IntentsUnread) {
		return nil
	}
	m.locks.mu.RLock()
	defer m.locks.mu.RUnlock()
	var out []Holder
	for _, h := range m.locks.table.prepared {
		if s.Partitions != nil && !slices.Contains(s.Partitions, h.partition) {
			continue
		}
		for i := range h.rec.Intents {
			n := &h.rec.Intents[i]
			if r := (txn.Range{Prefix: s.Prefix}); n.Collection == s.Collection && r.Contains(n.ID) {
				out = append(out, h.holder())
				break
			}
		}
	}
	sortHolders(out)
	return out
}

// Undecided are the prepared transactions that are about to write documents of
// these collections (nil: of any), and a clock: what was prepared before and is
// not listed any more was resolved, with a timestamp at or below it.
func (m *Machine) Undecided(collections []placement.CollectionID) ([]Holder, hlc.Timestamp) {
	var out []Holder
	if m.locks.count.Load() > 0 {
		m.locks.mu.RLock()
		for _, h := range m.locks.table.prepared {
			if slices.ContainsFunc(h.rec.Intents, func(n txn.Intent) bool { return within(n.Collection, collections) }) {
				out = append(out, h.holder())
			}
		}
		m.locks.mu.RUnlock()
		sortHolders(out)
	}
	// The clock is set before a lock leaves the table (applier.commit).
	m.mu.RLock()
	defer m.mu.RUnlock()
	return out, m.meta.clock
}

func within(c placement.CollectionID, collections []placement.CollectionID) bool {
	return collections == nil || slices.Contains(collections, c)
}

// Writes says whether a command may give documents of these collections (nil:
// of any) versions at a timestamp that it is yet to get. Resolve does not: its
// timestamp was fixed by home.
func (c *Command) Writes(collections []placement.CollectionID) bool {
	part := func(p *txn.Part) bool {
		return slices.ContainsFunc(p.Writes, func(w txn.Write) bool { return within(w.Collection, collections) })
	}
	switch {
	case c.Write != nil:
		return within(c.Write.Collection, collections)
	case c.Txn == nil:
		return false
	case c.Txn.Prepare != nil:
		return part(&c.Txn.Prepare.Part)
	case c.Txn.Decide != nil:
		return part(&c.Txn.Decide.Part)
	case c.Txn.Commit != nil:
		return slices.ContainsFunc(c.Txn.Commit.Parts, func(p PartitionPart) bool { return part(&p.Part) })
	}
	return false
}

// Touches says whether a command may begin something that a reader of these
// documents has to see: a version, an intent, or that they are not this group's,
// or nobody's, any more. What only ends a transaction that has prepared does not:
// until then the reader finds its intents.
func (c *Command) Touches(keys []ReadKey) bool {
	doc := func(p placement.PartitionID, of placement.CollectionID, id string) bool {
		return slices.ContainsFunc(keys, func(k ReadKey) bool { return k.Partition == p && k.Collection == of && k.ID == id })
	}
	part := func(p placement.PartitionID, part *txn.Part) bool {
		return slices.ContainsFunc(part.Writes, func(w txn.Write) bool { return doc(p, w.Collection, w.ID) })
	}
	switch {
	case c.Write != nil:
		return doc(c.Write.Partition, c.Write.Collection, c.Write.Item.ID)
	case c.Own != nil:
		return true
	case c.Drop != nil:
		return slices.ContainsFunc(keys, func(k ReadKey) bool { return k.Collection == c.Drop.Collection })
	case c.Txn == nil:
		return false
	case c.Txn.Prepare != nil:
		return part(c.Txn.Partition, &c.Txn.Prepare.Part) && !mutant.On(mutant.PrepareUnawaited)
	case c.Txn.Decide != nil:
		return part(c.Txn.Partition, &c.Txn.Decide.Part)
	case c.Txn.Commit != nil:
		return slices.ContainsFunc(c.Txn.Commit.Parts, func(p PartitionPart) bool { return part(p.Partition, &p.Part) })
	}
	return false
}

// Documents is how many documents a command may write.
func (c *Command) Documents() int {
	switch {
	case c.Txn == nil:
		return 1
	case c.Txn.Prepare != nil:
		return len(c.Txn.Prepare.Part.Writes)
	case c.Txn.Decide != nil:
		return len(c.Txn.Decide.Part.Writes)
	case c.Txn.Commit != nil:
		n := 0
		for i := range c.Txn.Commit.Parts {
			n += len(c.Txn.Commit.Parts[i].Part.Writes)
		}
		return n
	}
	return 0
}

// Blockers are the prepared transactions that a command would be refused for,
// and a channel that is closed when any transaction has let go of its locks,
// or taken some.
func (m *Machine) Blockers(c *Command) ([]Holder, <-chan struct{}) {
	if m.locks.count.Load() == 0 {
		return nil, nil
	}
	m.locks.mu.Lock()
	defer m.locks.mu.Unlock()
	var out []Holder
	t := &m.locks.table
	note := func(h *held, c placement.CollectionID, id string) {
		if h != nil && !slices.ContainsFunc(out, func(o Holder) bool { return o.ID == h.id && o.Partition == h.partition }) {
			o := h.holder()
			o.Collection, o.Document = c, id
			out = append(out, o)
		}
	}
	part := func(p placement.PartitionID, part *txn.Part, self txn.ID) {
		for i := range part.Reads {
			r := &part.Reads[i]
			note(t.intentOn(p, r.Collection, r.ID, self), r.Collection, r.ID)
		}
		for i := range part.Ranges {
			h, id := t.intentIn(p, &part.Ranges[i], self)
			note(h, part.Ranges[i].Collection, id)
		}
		for i := range part.Writes {
			w := &part.Writes[i]
			note(t.blocksOther(p, w.Collection, w.ID, self), w.Collection, w.ID)
		}
	}
	switch {
	case c.Write != nil:
		w := c.Write
		note(t.blocks(w.Partition, w.Collection, w.Item.ID), w.Collection, w.Item.ID)
	case c.Txn != nil:
		x := c.Txn
		switch {
		case x.Prepare != nil:
			part(x.Partition, &x.Prepare.Part, x.ID)
		case x.Decide != nil:
			part(x.Partition, &x.Decide.Part, x.ID)
		case x.Commit != nil:
			for i := range x.Commit.Parts {
				part(x.Commit.Parts[i].Partition, &x.Commit.Parts[i].Part, x.ID)
			}
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, m.locks.changedLocked()
}

// Holders are all prepared transactions, in order of their partitions and IDs.
func (m *Machine) Holders() []Holder {
	if m.locks.count.Load() == 0 {
		return nil
	}
	m.locks.mu.RLock()
	defer m.locks.mu.RUnlock()
	out := make([]Holder, 0, len(m.locks.table.prepared))
	for _, h := range m.locks.table.prepared {
		out = append(out, h.holder())
	}
	sortHolders(out)
	return out
}

func sortHolders(hs []Holder) {
	slices.SortFunc(hs, func(a, b Holder) int {
		if a.Partition != b.Partition {
			return int(a.Partition) - int(b.Partition)
		}
		if a.ID.Less(b.ID) {
			return -1
		}
		return 1
	})
}

// Unfinished is a committed transaction whose participants may not all have
// resolved it.
type Unfinished struct {
	ID     txn.ID
	Home   placement.PartitionID
	Record *txn.CommittedRecord
}

// Unfinished are all of them whose commit timestamp is at or below at.
func (m *Machine) Unfinished(at hlc.Timestamp) []Unfinished {
	m.locks.mu.RLock()
	defer m.locks.mu.RUnlock()
	var out []Unfinished
	for k, r := range m.locks.table.committed {
		if r.At <= at {
			out = append(out, Unfinished{k.id, k.partition, r})
		}
	}
	slices.SortFunc(out, func(a, b Unfinished) int {
		if a.ID.Less(b.ID) {
			return -1
		}
		return 1
	})
	return out
}
