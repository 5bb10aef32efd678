package shardgroup

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/transport"
	"github.com/impossibledb/idb/txn/hlc"
)

// Group is one replica of one shard group. Propose and the reads work on the
// leader only; the machine applies on every replica, always from raft's own
// goroutine.
type Group struct {
	replica
	spec    GroupSpec
	machine *fsm.Machine
	batcher batcher
	snaps   *snapshotStore
	apply   *applier
	promise promises
	keeper  keeper
	locks   lockBook
	burst   atomic.Pointer[burst]       // of the newest entry proposed; nil: it is alone
	shared  atomic.Pointer[sharedFlush] // of the snapshot that is to be taken; nil: it flushes alone

	recovery recoveryCounts

	// short is why the leader refuses writes although its own disk has space:
	// the members with space are no majority. nil: they are one.
	short atomic.Pointer[DiskFullError]

	reloadMu sync.Mutex // held while raft's settings are changed

	preferMu  sync.Mutex                       // held while the preferred leader is changed
	preferred atomic.Pointer[placement.NodeID] // who should lead; never nil
}

// openGroup brings the group's stores in order and starts raft.
func openGroup(h *Host, spec GroupSpec) (_ *Group, err error) {
	g := &Group{spec: spec}
	g.preferred.Store(&spec.Preferred)
	if err := g.init(h, spec); err != nil {
		return nil, err
	}
	g.batcher.init(g)
	g.promise.g = g
	g.keeper.g = g
	g.keeper.late = make(chan struct{}, 1)
	g.locks.init()
	g.onReady = g.becomeLeader
	g.onLost = g.loseLeadership
	g.onStop = func() { g.batcher.stop(); g.keeper.end() }

	g.logs = openLogStore(h.logs, spec.ID, h.clock, h.fatal, g.stopRaftGoroutine)
	before, err := g.logs.LastIndex()
	if err != nil {
		return nil, err
	}
	g.machine, err = fsm.Open(fsm.Options{
		Group: spec.ID, Engine: h.state, Logger: h.cfg.Logger, Locate: h.cfg.Locate,
		OnMark: func(index uint64, k fsm.Mark, pin func() (*fsm.Survey, error)) {
			if index > before { // else it is of an earlier life, and nobody waits
				h.surveys.applied(spec.ID, index, k, pin)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("shardgroup: open %s: %w", spec.ID, err)
	}
	g.snaps, err = openSnapshotStore(g)
	if err != nil {
		return nil, err
	}
	if err := g.snaps.finishPending(); err != nil {
		return nil, err
	}
	if err := g.checkLog(); err != nil {
		return nil, err
	}
	g.stable = newGroupStable(h.stable, spec.ID, h.clock, h.fatal, g.stopRaftGoroutine)
	if err := bootstrap(g.logs, g.stable, g.snaps, spec.configuration()); err != nil {
		return nil, err
	}
	g.logs.ahead = g.ahead
	g.apply = newApplier(g)
	g.applied.advance(g.machine.Applied())
	h.cfg.Clock.Observe(g.machine.Latest())
	g.trans, err = h.cfg.Peers.Raft(spec.ID, transport.RaftOptions{
		Timeout:       max(h.cfg.Timing.Heartbeat, 200*time.Millisecond),
		AppendTimeout: h.cfg.StallLimit + time.Second,
		Receiver:      g.snaps,
		Bursts:        g,
		Durable: func(index uint64, cancel <-chan struct{}) error {
			return g.logs.Durable(index, cancel, g.stop)
		},
		PlainIDs: spec.plain(),
	})
	if err != nil {
		return nil, err
	}
	if h.critical.Load() {
		g.trans.RefuseEntries(errCritical)
	}
	conf := h.cfg.raftConfig(g.self, g.notify, g.log.Named("raft"), spec.voters())
	campaigns := spec.Preferred != "" && spec.voters() > 1
	if campaigns {
		// Shortening the timeout makes raft campaign (firstElection), so it
		// begins longer: the preferred member's by as little as counts.
		conf.HeartbeatTimeout += time.Millisecond
		if spec.Preferred != h.cfg.NodeID {
			conf.HeartbeatTimeout *= 2
		}
		conf.ElectionTimeout = max(conf.ElectionTimeout, conf.HeartbeatTimeout)
	}
	if err := g.start(conf, g.apply, g.logs, g.stable, g.snaps); err != nil {
		_ = g.trans.Close() // never fails
		return nil, err
	}
	g.bg.Add(1)
	go func() { defer g.bg.Done(); g.batcher.run() }()
	if campaigns {
		g.bg.Add(1)
		go func() { defer g.bg.Done(); g.firstElection() }()
	}
	return g, nil
}

// ahead says whether raft may send entries to the followers while the log
// writes them. raft then counts this node's vote too early, so a follower's
// answer is held back until the entries are on disk here (RaftOptions.Durable):
// a group that needs no answer cannot go ahead. A configuration is waited for,
// because it may be one that needs none.
func (g *Group) ahead(logs []*raft.Log) bool {
	if !g.running.Load() || g.raft.State() != raft.Leader {
		return false
	}
	for _, l := range logs {
		if l.Type != raft.LogCommand && l.Type != raft.LogNoop {
			return false
		}
	}
	voters := 0
	for _, s := range g.servers() {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	return voters > 1
}

// reload changes raft's settings while it runs.
func (g *Group) reload(change func(*raft.ReloadableConfig)) {
	g.reloadMu.Lock()
	defer g.reloadMu.Unlock()
	rc := g.raft.ReloadableConfig()
	was := rc
	change(&rc)
	if rc == was {
		return
	}
	if err := g.raft.ReloadConfig(rc); err != nil {
		g.log.Warn("settings were not changed", "error", err)
	}
}

// checkLog refuses a replica whose log and state do not meet: one of its
// directories was put back from another time.
func (g *Group) checkLog() error {
	m := g.snaps.marker()
	if applied := g.machine.Applied(); applied < m.applied {
		return fmt.Errorf("shardgroup: state of %s is at %d, below its snapshot at %d (state and log directories do not belong together; wipe this node's data and let it be copied again)", g.id, applied, m.applied)
	}
	if first, _ := g.logs.FirstIndex(); first > m.index+1 {
		return fmt.Errorf("shardgroup: log of %s begins at %d, its snapshot ends at %d (entries are missing; wipe this node's data and let it be copied again)", g.id, first, m.index)
	}
	return nil
}

// bootstrap writes the group's first entry, the same on all members, if there
// is nothing yet. It may be repeated after a crash at any point.
func bootstrap(logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore, c raft.Configuration) error {
	list, err := snaps.List()
	if err != nil {
		return err
	}
	last, err := logs.LastIndex()
	if err != nil || last > 0 || len(list) > 0 {
		return err
	}
	if err := logs.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)}); err != nil {
		return err
	}
	term, err := stable.GetUint64([]byte("CurrentTerm"))
	if err != nil && err.Error() != errNotFound.Error() {
		return err
	}
	if term == 0 {
		return stable.SetUint64([]byte("CurrentTerm"), 1)
	}
	return nil
}

// ID is the group's.
func (g *Group) ID() placement.GroupID { return g.id }

// Spec is what the group was started with. Preferred may have changed since.
func (g *Group) Spec() GroupSpec { return g.spec }

// Preferred is the member that should lead when nothing speaks against it.
func (g *Group) Preferred() placement.NodeID { return *g.preferred.Load() }

// Prefer changes it, on this node. The other members are told by others, and
// may be told later: until then leadership can be handed over once too often.
// It is remembered before it counts, so that the group starts by it.
func (g *Group) Prefer(n placement.NodeID) error {
	g.preferMu.Lock()
	defer g.preferMu.Unlock()
	if n == g.Preferred() {
		return nil
	}
	spec := g.spec
	spec.Preferred = n
	if err := g.host.remember(spec); err != nil {
		return err
	}
	g.preferred.Store(&n)
	return nil
}

// Machine is the group's state. On the leader, after ReadIndex or ReadAt, it
// may be read; on other replicas it lags.
func (g *Group) Machine() *fsm.Machine { return g.machine }

// becomeLeader is called when the first entry of a term is applied, before
// anything is served in it.
func (g *Group) becomeLeader(term uint64) {
	g.promise.reset()
	g.batcher.open(term, g.machine.Clock(), g.machine.Ceiling())
	g.keeper.begin(term)
}

func (g *Group) loseLeadership() {
	g.batcher.shut(g.lostError())
	g.locks.clear()
	g.keeper.end()
}

func (g *Group) lostError() error {
	if err := g.check(); err != nil {
		return err
	}
	return g.notLeader()
}

// close stops the group and joins everything it started.
func (g *Group) close() {
	g.shutdown()
	g.keeper.end() // a term that began while raft was stopping
	g.logs.close()
	g.snaps.close()
}

// Status is what this replica knows of itself. It reads no rows.
func (g *Group) Status() wire.GroupStatus {
	s := g.replica.status()
	st := g.machine.Stats()
	s.Applied = g.applied.load()
	s.Flushed = g.snaps.marker().index
	s.Partitions = uint32(st.Partitions)
	s.Documents = st.Documents
	s.Bytes = st.Bytes
	s.Clock = uint64(st.Clock)
	s.Digest = st.Digest
	if err := g.machine.Err(); err != nil && s.Error == "" {
		s.Error = err.Error()
	}
	return s
}

func (r *replica) status() wire.GroupStatus {
	leader, term, _ := r.Leader()
	s := wire.GroupStatus{
		ID:        uint32(r.id),
		State:     "follower",
		Leader:    string(leader),
		Term:      term,
		Commit:    r.raft.CommitIndex(),
		Applied:   r.applied.load(),
		LastIndex: r.raft.LastIndex(),
	}
	switch r.raft.State() {
	case raft.Leader:
		s.State = "leader"
	case raft.Candidate:
		s.State = "candidate"
	case raft.Shutdown:
		s.State = "stopped"
	}
	if h := r.halted.Load(); h != nil {
		s.State, s.Error = "stopped", h.Error()
	}
	return s
}

// Clock answers a timestamp at or above that of everything acknowledged before
// the call, with leadership confirmed: a read at it sees all of that.
func (g *Group) Clock(ctx context.Context) (hlc.Timestamp, error) {
	if err := g.ReadIndex(ctx); err != nil {
		return 0, err
	}
	return g.machine.Clock(), nil
}

// ReadAt promises that nothing will be written at or below ts that is not in
// the machine when ReadAt returns: reads of the machine at ts are then stable,
// for as long as its history reaches back, and whoever leads next keeps the
// promise. It does not by itself order ts after writes acknowledged elsewhere;
// take ts from Clock for that.
func (g *Group) ReadAt(ctx context.Context, ts hlc.Timestamp) error {
	return g.readAt(ctx, ts, nil)
}

func (g *Group) readAt(ctx context.Context, ts hlc.Timestamp, keys []fsm.ReadKey) error {
	if _, err := g.term(ctx); err != nil {
		return err
	}
	if g.machine.Ceiling() < ts {
		if err := g.promise.raise(ctx, ts); err != nil {
			return err
		}
	} else {
		g.promise.used(ts)
	}
	landed, err := g.batcher.promise(ts, keys)
	if err != nil {
		return err
	}
	return g.drain(ctx, landed)
}

// Pending is a read of documents that was begun and may have to wait. Reads of
// several groups are begun side by side and waited for in turn. The zero value
// waits for nothing.
type Pending struct {
	g *Group // nil: the read may go on

	round  *round       // confirms; nil: the read is at a timestamp
	landed <-chan error // of the promise; nil: it is not made yet
	at     hlc.Timestamp
	keys   []fsm.ReadKey
}

// BeginRead is ReadIndex (at is 0) or ReadAt of these documents alone, up to
// where it waits. At a timestamp the read does not wait for entries on their way
// that have nothing to do with the documents, which is mostly all of them: then
// there is nothing to wait for. The keys must stay as they are until Wait has
// returned.
func (g *Group) BeginRead(keys []fsm.ReadKey, at hlc.Timestamp) (Pending, error) {
	p := Pending{g: g, at: at, keys: keys}
	if !g.IsLeader() {
		return p, nil // Wait knows what to do
	}
	if at == 0 {
		p.round = g.joinRound()
		return p, nil
	}
	if g.machine.Ceiling() < at {
		g.promise.start(at)
		return p, nil
	}
	g.promise.used(at)
	if len(g.machine.IntentsOn(keys)) > 0 {
		// Mostly what ends them is on its way; it costs less than to ask home.
		p.keys = nil
	}
	var err error
	if p.landed, err = g.batcher.promise(at, p.keys); err != nil || p.landed == nil {
		return Pending{}, err
	}
	return p, nil
}

// Ready says that Wait would not wait.
func (p *Pending) Ready() bool { return p.g == nil }

// Wait returns when the read may go on.
func (p *Pending) Wait(ctx context.Context) error {
	switch {
	case p.g == nil:
		return nil
	case p.round != nil:
		return p.g.awaitRound(ctx, p.round)
	case p.landed != nil:
		return p.g.drain(ctx, p.landed)
	case p.at != 0:
		return p.g.readAt(ctx, p.at, p.keys)
	}
	return p.g.ReadIndex(ctx)
}

// ceilingLead is how far above the present a ceiling is set, so that one entry
// serves the reads of some time. A new leader's timestamps begin above the
// ceiling. Many leaders one soon after the other would drive the clocks ahead of
// the wall by so much each: where they are ahead already it is less, down to
// leastLead.
const (
	ceilingLead = 2 * time.Second
	leastLead   = 100 * time.Millisecond
)

// promises raises the ceiling for readers.
type promises struct {
	g *Group

	mu      sync.Mutex
	raising *raise // guarded by mu; nil: none on its way
}

// raise is one entry that raises the ceiling, and everybody who waits for it.
type raise struct {
	to   hlc.Timestamp
	done chan struct{}
	err  error // valid after done
}

func (p *promises) reset() {
	p.mu.Lock()
	p.raising = nil
	p.mu.Unlock()
}

// raise returns when the ceiling is at or above ts.
func (p *promises) raise(ctx context.Context, ts hlc.Timestamp) error {
	for p.g.machine.Ceiling() < ts {
		r := p.start(ts)
		select {
		case <-r.done:
			if r.err != nil {
				return r.err
			}
		case <-ctx.Done():
			return ErrTimeout
		case <-p.g.stop:
			return p.g.stopError()
		}
	}
	return nil
}

// used raises the ceiling in the background when a reader has come close to it.
func (p *promises) used(ts hlc.Timestamp) {
	if ts.Add(p.lead()/2) > p.g.machine.Ceiling() && ts <= p.g.host.cfg.Clock.Now() {
		p.start(ts)
	}
}

func (p *promises) lead() time.Duration {
	return max(ceilingLead-p.g.host.cfg.Clock.Ahead(), leastLead)
}

// start proposes a higher ceiling unless one is on its way.
func (p *promises) start(ts hlc.Timestamp) *raise {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.raising != nil {
		return p.raising
	}
	r := &raise{to: max(ts, p.g.host.cfg.Clock.Now()).Add(p.lead()), done: make(chan struct{})}
	p.raising = r
	p.g.host.spawn(func() {
		_, r.err = p.g.proposeOwn(p.g.host.ctx, fsm.Command{Ceiling: &fsm.Ceiling{To: r.to}})
		p.mu.Lock()
		if p.raising == r {
			p.raising = nil
		}
		p.mu.Unlock()
		close(r.done)
	})
	return r
}
