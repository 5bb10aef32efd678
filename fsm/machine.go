package fsm

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// digestsKept is how many entries back a replica remembers its digest. It must
// cover the entries between a leader's reading its digest and the command with
// it being applied, and what a follower applies in one go.
const digestsKept = 2048

// Options of a machine.
type Options struct {
	Group  placement.GroupID
	Engine *mvcc.Engine
	Logger hclog.Logger // nil is silent

	// OnMark is called from Apply for each Mark, when the entry's effects are
	// readable and before anything after it is applied. It must not block.
	// pin keeps the state as it is for a Survey, which must be closed; it is of
	// no use once OnMark has returned. Nil passes marks over.
	OnMark func(index uint64, k Mark, pin func() (*Survey, error))
	// TailEntries is how many entries leave what they changed beside documents
	// in rows of their own before it is sealed, 1024 at most; zero means that.
	// It decides what is stored: all replicas must have the same. It is there
	// for tests, which cannot wait for so many.
	TailEntries int
	// Locate tells where a document belongs, for surveys; false if the
	// collection is not known here (yet). Nil knows none.
	Locate func(c placement.CollectionID, id string) (p placement.PartitionID, known bool)
}

// Machine is one replica's state of one shard group.
//
// Apply, Install and Flush come from above, one at a time (Flush may overlap
// with the others). Reads come from any goroutine and see what is applied.
//
// Invariants: applied never moves back but by Install of a newer snapshot, and
// is published after the effect is readable. clock <= ceiling. The rows of
// memory are those in the engine, as of applied.
type Machine struct {
	group  placement.GroupID
	engine *mvcc.Engine
	log    hclog.Logger
	onMark func(uint64, Mark, func() (*Survey, error))
	locate func(placement.CollectionID, string) (placement.PartitionID, bool)

	tailEntries uint64 // see Options.TailEntries

	applied atomic.Uint64
	clock   atomic.Uint64
	ceiling atomic.Uint64
	latest  atomic.Uint64
	view    atomic.Pointer[view]

	// swap is held for writing while Install replaces the rows. The engine does
	// that in one durable step, but a reader that is made in its middle finds
	// neither the old rows nor the new ones.
	swap sync.RWMutex

	mu     sync.RWMutex
	meta   meta                // guarded by mu
	counts map[countKey]counts // guarded by mu
	halted error               // why Apply failed; guarded by mu
	life   uint64              // guarded by mu; counts the times memory was loaded

	// locks are those of prepared transactions, as readers see them: changed
	// after the rows are.
	locks lockBoard

	// shown is how much of the tail readers see.
	shown shownTail

	// newest are documents that were written lately, for readers: changed after
	// the rows are, and before locks is.
	newest *mvcc.Newest

	// ripe is before which horizon nothing can be garbage, so that a sweep
	// need not look. It is of this replica alone; what is missing is 0.
	ripe map[countKey]hlc.Timestamp // guarded by mu

	// applyMu is held by Apply and Install, and guards what only they use.
	applyMu  sync.Mutex
	digests  digestRing
	requests recentRequests
	heads    recentHeads
	tail     tail
	held     lockTable // as Apply has it; locks repeats it
	decoder  entryDecoder
	scratch  scratch
}

// Open opens a group's state where it was left, or empty.
func Open(o Options) (*Machine, error) {
	switch {
	case o.Engine == nil:
		return nil, errors.New("fsm: Options.Engine is missing")
	case o.Group == 0 || o.Group > mvcc.MaxGroup:
		return nil, fmt.Errorf("fsm: %d cannot be a shard group's ID (1 to %d)", o.Group, mvcc.MaxGroup)
	}
	if o.TailEntries == 0 {
		o.TailEntries = tailEntries
	}
	if o.TailEntries < 1 || o.TailEntries > tailEntries {
		return nil, fmt.Errorf("fsm: Options.TailEntries is %d (1 to %d)", o.TailEntries, tailEntries)
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	m := &Machine{group: o.Group, engine: o.Engine, log: o.Logger.Named("fsm").With("group", o.Group.String()), onMark: o.OnMark, locate: o.Locate, tailEntries: uint64(o.TailEntries), newest: o.Engine.Newest()}
	if err := m.load(); err != nil {
		return nil, fmt.Errorf("opening the state of %s: %w", o.Group, err)
	}
	return m, nil
}

// load takes memory from the rows and publishes it.
func (m *Machine) load() error {
	mem, err := loadMemory(m.engine, m.group)
	if err != nil {
		return err
	}
	m.digests.reset()
	m.digests.put(mem.meta.applied, mem.meta.digest)
	m.requests.reset(mem.meta.youngest)
	m.heads.reset()
	m.takeTail(&mem.tail, &mem.meta)
	if !mutant.On(mutant.NewestOutlives) {
		m.newest.Reset()
	}
	m.held = mem.txns
	m.locks.replace(mem.txns.clone())
	m.mu.Lock()
	m.meta, m.counts = mem.meta, mem.counts
	m.ripe = map[countKey]hlc.Timestamp{}
	m.life++
	m.view.Store(mem.view)
	m.mu.Unlock()
	m.publish(&mem.meta)
	return nil
}

// publish is the last step of every change.
func (m *Machine) publish(meta *meta) {
	m.clock.Store(uint64(meta.clock))
	m.ceiling.Store(uint64(meta.ceiling))
	m.latest.Store(uint64(max(meta.clock, meta.requests)))
	m.applied.Store(meta.applied)
}

// Group is the machine's group.
func (m *Machine) Group() placement.GroupID { return m.group }

// Engine is the engine that the machine's rows are in.
func (m *Machine) Engine() *mvcc.Engine { return m.engine }

// Applied is the index of the last applied entry. Its effect is readable.
func (m *Machine) Applied() uint64 { return m.applied.Load() }

// Clock is the largest timestamp of an effect.
func (m *Machine) Clock() hlc.Timestamp { return hlc.Timestamp(m.clock.Load()) }

// Latest is the larger of Clock and the horizon of request IDs. Whoever makes
// request IDs by a clock that is behind it is refused as expired: nodes move
// their clocks up to it.
func (m *Machine) Latest() hlc.Timestamp { return hlc.Timestamp(m.latest.Load()) }

// Ceiling is the timestamp above which none was used or promised.
func (m *Machine) Ceiling() hlc.Timestamp { return hlc.Timestamp(m.ceiling.Load()) }

// Err is why the machine halted, or nil.
func (m *Machine) Err() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.halted
}

// Flush makes what is applied durable, and answers up to which index that is.
// The engine is shared: concurrent flushes of several groups are one.
func (m *Machine) Flush() (appliedOnDisk uint64, err error) {
	applied := m.Applied()
	if err := m.engine.Flush(); err != nil {
		return 0, fmt.Errorf("flushing the state of %s: %w", m.group, err)
	}
	return applied, nil
}

// reader reads the rows as they are.
func (m *Machine) reader() (*mvcc.Reader, error) {
	m.swap.RLock()
	defer m.swap.RUnlock()
	return m.engine.NewReader(m.group, false)
}

// Durable is the applied index that a crash now would leave. It costs a read.
func (m *Machine) Durable() (uint64, error) {
	m.swap.RLock()
	defer m.swap.RUnlock()
	r, err := m.engine.DurableReader(m.group)
	if err != nil {
		return 0, err
	}
	on, err := readMeta(r, m.group)
	return on.applied, errors.Join(err, r.Close())
}

// Owned is the epoch of the last Own, and the partitions in order. The slice
// is shared: it is not to be changed.
func (m *Machine) Owned() (placement.Epoch, []placement.PartitionID) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.meta.epoch, m.view.Load().partitions
}

// CheckOwner refuses a partition that the group does not own at this epoch.
func (m *Machine) CheckOwner(p placement.PartitionID, epoch placement.Epoch) error {
	if err := m.check(p, epoch); err != nil {
		return err
	}
	return nil
}

func (m *Machine) check(p placement.PartitionID, epoch placement.Epoch) *Error {
	v := m.view.Load()
	if v.check(p, epoch) {
		return nil
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return &Error{Code: wire.CodeStaleEpoch, Epoch: m.meta.epoch, Detail: v.why(m.group, p, epoch)}
}

// Horizons are the replicated horizons: of request IDs, and of collections'
// histories.
func (m *Machine) Horizons() (requests hlc.Timestamp, history []HistoryHorizon) {
	m.mu.RLock()
	requests = m.meta.requests
	m.mu.RUnlock()
	for c, at := range m.view.Load().horizons {
		history = append(history, HistoryHorizon{Collection: c, At: at})
	}
	sortHorizons(history)
	return requests, history
}

// Youngest is the largest time of a request ID that was ever recorded.
func (m *Machine) Youngest() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.meta.youngest
}

// DigestCommand carries this replica's digest at its applied index, for the
// others to compare with.
func (m *Machine) DigestCommand() Command {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return Command{Digest: &Digest{At: m.meta.applied, Value: m.meta.digest}}
}

// Stats are a replica's numbers at one applied index.
type Stats struct {
	Applied     uint64
	Term        uint64
	Clock       hlc.Timestamp
	Ceiling     hlc.Timestamp
	Digest      uint64
	Epoch       placement.Epoch
	Partitions  int
	Documents   uint64
	Bytes       uint64            // of live documents: IDs and bodies
	Rows        uint64            // versions of all documents and unique entries, tombstones included
	Collections []CollectionStats // in order of their IDs; those of unique entries too
}

// CollectionStats are one collection's part.
type CollectionStats struct {
	Collection placement.CollectionID
	Documents  uint64
	Bytes      uint64
	Rows       uint64
}

// Stats reads no rows.
func (m *Machine) Stats() Stats {
	m.mu.RLock()
	defer m.mu.RUnlock()
	s := Stats{
		Applied: m.meta.applied, Term: m.meta.term, Clock: m.meta.clock, Ceiling: m.meta.ceiling,
		Digest: m.meta.digest, Epoch: m.meta.epoch, Partitions: len(m.view.Load().partitions),
	}
	by := map[placement.CollectionID]*CollectionStats{}
	for k, c := range m.counts {
		b := by[k.collection]
		if b == nil {
			b = &CollectionStats{Collection: k.collection}
			by[k.collection] = b
		}
		b.Documents += c.docs
		b.Bytes += c.bytes
		b.Rows += c.rows
		s.Rows += c.rows
		if !unique.IsEntries(k.collection) {
			s.Documents += c.docs
			s.Bytes += c.bytes
		}
	}
	for _, b := range by {
		s.Collections = append(s.Collections, *b)
	}
	sortCollections(s.Collections)
	return s
}

// halt makes an error of Apply final.
func (m *Machine) halt(err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.halted == nil {
		m.halted = err
		m.log.Error("halted", "applied", m.meta.applied, "error", err)
	}
	return err
}

// digestRing remembers the digests of the last entries.
type digestRing struct {
	at    [digestsKept]uint64
	value [digestsKept]uint64
}

func (r *digestRing) reset() { *r = digestRing{} }

func (r *digestRing) put(index, digest uint64) {
	r.at[index%digestsKept], r.value[index%digestsKept] = index, digest
}

func (r *digestRing) get(index uint64) (digest uint64, found bool) {
	i := index % digestsKept
	return r.value[i], r.at[i] == index && index != 0
}
