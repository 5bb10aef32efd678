package shardgroup

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/leader"
	"github.com/impossibledb/idb/shardgroup/transport"
)

// replica is what shard groups and the placement group have in common: one
// raft instance, its leadership, and reads confirmed by the voters.
//
// Invariant: ready is not 0 only while this node led the term ready when last
// heard of, and the first entry of that term has been applied.
type replica struct {
	host *Host
	id   placement.GroupID
	self raft.ServerID
	log  hclog.Logger

	raft    *raft.Raft
	running atomic.Bool // raft is set; its own goroutines may not look at it before
	trans   *transport.RaftTransport
	stable  *groupStable // nil: the store reports errors by itself
	logs    *logStore    // nil: the placement group, which has another

	notify  chan bool     // raft's; consumed by watchLeadership
	stop    chan struct{} // closed when the replica is to stop
	stopped sync.Once
	down    chan struct{} // closed when raft has stopped
	bg      sync.WaitGroup

	ready   atomic.Uint64 // term; see the invariant
	halted  atomic.Pointer[HaltError]
	applied watermark // index of the last entry that the machine has seen

	// onReady is called when this node begins to serve as leader, before it is
	// known to others; onLost when it does not lead any more. Both from one
	// goroutine.
	onReady func(term uint64)
	onLost  func()
	// onStop is called when the replica begins to stop: its own goroutines end.
	onStop func()

	flights chan flight // proposed, in order; consumed by collect
	flying  atomic.Int64

	mu        sync.Mutex
	leader    placement.NodeID            // guarded by mu; as last reported
	leaderAt  time.Time                   // guarded by mu; when this node began to lead
	leadsNow  bool                        // guarded by mu; raft says leader, ready or not
	readyCond chan struct{}               // guarded by mu; closed when ready or leadsNow changes
	next      *round                      // guarded by mu; has not begun, nil: none
	deaf      bool                        // guarded by mu; no read joins a round any more
	transfers map[raft.ServerID]time.Time // guarded by mu; when leadership was last offered to whom

	favour atomic.Uint32 // which voter rounds begin with, modulo their number
}

// flight is one entry on its way.
type flight struct {
	future raft.ApplyFuture
	// done is called once, with the machine's answer or raft's error.
	done func(answer any, err error)
}

func (r *replica) init(h *Host, spec GroupSpec) (err error) {
	r.host = h
	r.id = spec.ID
	r.log = h.log.With("group", spec.ID.String())
	r.notify = make(chan bool, 64)
	r.stop = make(chan struct{})
	r.down = make(chan struct{})
	r.readyCond = make(chan struct{})
	r.transfers = map[raft.ServerID]time.Time{}
	r.flights = make(chan flight, 64)
	r.self, err = spec.self(h.cfg.NodeID, h.cfg.Incarnation)
	return err
}

// start creates the raft instance. The stores must be in order.
func (r *replica) start(conf *raft.Config, fsm raft.FSM, logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore) (err error) {
	defer func() {
		// raft panics if it cannot save the term while it starts.
		if p := recover(); p != nil {
			err = fmt.Errorf("shardgroup: start %s: %v", r.id, p)
		}
	}()
	r.raft, err = raft.NewRaft(conf, fsm, logs, stable, snaps, r.trans)
	if err != nil {
		return fmt.Errorf("shardgroup: start %s: %w", r.id, err)
	}
	r.running.Store(true)
	r.raft.RegisterObserver(raft.NewObserver(nil, false, r.observe))
	r.bg.Add(2)
	go func() { defer r.bg.Done(); r.watchLeadership() }()
	go func() { defer r.bg.Done(); r.collect() }()
	return nil
}

// observe is called by raft in its own goroutine. It must not block.
func (r *replica) observe(o *raft.Observation) bool {
	l, ok := o.Data.(raft.LeaderObservation)
	if !ok {
		return false
	}
	node, _ := transport.SplitServerID(l.LeaderID)
	if node == "" {
		node = placement.NodeID(l.LeaderAddr)
	}
	r.mu.Lock()
	changed := r.leader != node
	r.leader = node
	r.mu.Unlock()
	if changed && r.host.cfg.OnLeader != nil {
		r.host.cfg.OnLeader(r.id, node, r.raft.CurrentTerm())
	}
	return false
}

// stopRaftGoroutine ends the goroutine of raft that met a broken disk. The
// node is cut off by then; raft would panic if it got an error.
func (r *replica) stopRaftGoroutine() {
	if r.running.Load() {
		runtime.Goexit()
	}
}

// watchLeadership follows raft's word on who leads.
func (r *replica) watchLeadership() {
	for {
		select {
		case leads := <-r.notify:
			if leads {
				r.lead()
			} else {
				r.follow()
			}
		case <-r.stop:
			r.follow()
			return
		}
	}
}

// lead commits the first entry of the new term. When it is applied, so is
// everything that any earlier leader acknowledged.
func (r *replica) lead() {
	r.setLeads(true)
	if mutant.On(mutant.NoBarrier) {
		r.onReady(r.raft.CurrentTerm())
		r.ready.Store(r.raft.CurrentTerm())
		r.wakeReady()
		return
	}
	applied := make(chan uint64, 1)
	if !r.propose(nil, 0, func(answer any, err error) {
		term, _ := answer.(uint64)
		applied <- term
	}) {
		return
	}
	var term uint64
	select {
	case term = <-applied:
	case <-r.stop:
		return
	}
	if term == 0 || r.raft.State() != raft.Leader || r.raft.CurrentTerm() != term {
		return // the next notification says so
	}
	r.log.Info("leading", "term", term)
	r.onReady(term)
	r.ready.Store(term)
	r.wakeReady()
}

func (r *replica) follow() {
	if r.ready.Swap(0) != 0 {
		r.log.Info("not leading any more", "term", r.raft.CurrentTerm())
	}
	r.setLeads(false)
	r.onLost()
}

func (r *replica) setLeads(v bool) {
	r.mu.Lock()
	r.leadsNow = v
	r.leaderAt = time.Now()
	r.mu.Unlock()
	r.wakeReady()
}

func (r *replica) wakeReady() {
	r.mu.Lock()
	close(r.readyCond)
	r.readyCond = make(chan struct{})
	r.mu.Unlock()
}

// term waits until this node may serve as leader and answers the term; it
// fails at once on a node that does not lead.
func (r *replica) term(ctx context.Context) (uint64, error) {
	if t := r.ready.Load(); t != 0 && !r.host.dead.Load() && r.halted.Load() == nil {
		return t, nil
	}
	for {
		r.mu.Lock()
		leads, cond := r.leadsNow, r.readyCond
		r.mu.Unlock()
		if err := r.check(); err != nil {
			return 0, err
		}
		if t := r.ready.Load(); t != 0 {
			return t, nil
		}
		if !leads {
			return 0, r.notLeader()
		}
		select {
		case <-cond:
		case <-ctx.Done():
			return 0, ErrTimeout
		case <-r.stop:
			return 0, r.stopError()
		}
	}
}

// check says why the replica serves nothing, if it does not.
func (r *replica) check() error {
	if h := r.halted.Load(); h != nil {
		return h
	}
	if r.host.dead.Load() {
		return ErrStopped
	}
	select {
	case <-r.stop:
		return r.stopError()
	default:
		return nil
	}
}

func (r *replica) stopError() error {
	if h := r.halted.Load(); h != nil {
		return h
	}
	return ErrStopped
}

func (r *replica) notLeader() error {
	node, term, _ := r.Leader()
	if node == r.host.cfg.NodeID {
		node = "" // it led when it was asked, and does not serve now
	}
	return &NotLeaderError{Group: r.id, Leader: node, Term: term}
}

// Leader is the leader as far as this replica knows.
func (r *replica) Leader() (node placement.NodeID, term uint64, known bool) {
	if r.raft == nil {
		return "", 0, false
	}
	addr, id := r.raft.LeaderWithID()
	term = r.raft.CurrentTerm()
	node, _ = transport.SplitServerID(id)
	if node == "" {
		node = placement.NodeID(addr)
	}
	return node, term, node != ""
}

// IsLeader says whether this node serves as the leader.
func (r *replica) IsLeader() bool {
	return r.ready.Load() != 0 && !r.host.dead.Load() && r.halted.Load() == nil
}

// propose hands an entry to raft's main loop, waiting until that takes it, and
// calls done when the outcome is known. False: the replica is stopping, and
// done is not called. Empty data is the first entry of a term.
//
// The term that the proposer believes to lead goes with the entry, and every
// replica drops the entry if the log gave it another one: see leader.Void.
func (r *replica) propose(data []byte, term uint64, done func(any, error)) bool {
	select {
	case <-r.stop:
		return false
	default:
	}
	l := raft.Log{Data: data}
	if len(data) > 0 {
		l.Extensions = leader.Stamp(term)
	}
	r.flying.Add(1)
	f := flight{future: r.raft.ApplyLog(l, 0), done: done}
	select {
	case r.flights <- f:
		return true
	case <-r.down:
		r.flying.Add(-1)
		return false
	}
}

// errVoid is the answer to an entry that every replica drops; see propose.
var errVoid = errors.New("shardgroup: proposed in another term")

// voidEntry says whether an entry is to be dropped, and checks its form.
func voidEntry(l *raft.Log) (bool, error) {
	if len(l.Data) == 0 {
		return false, nil
	}
	void, err := leader.Void(l.Extensions, l.Term)
	if err != nil {
		return false, fmt.Errorf("entry %d: %w", l.Index, err)
	}
	return void, nil
}

// collect waits for entries in the order they were proposed.
//
// A future can hang for ever once raft has shut down; shutdown makes sure that
// none is left by then.
func (r *replica) collect() {
	for {
		select {
		case f := <-r.flights:
			err := f.future.Error()
			var answer any
			if err == nil {
				answer = f.future.Response()
			}
			r.flying.Add(-1)
			f.done(answer, err)
		case <-r.down:
			// Nothing is proposed any more; what is left has its outcome.
			for {
				select {
				case f := <-r.flights:
					r.flying.Add(-1)
					f.done(nil, raft.ErrRaftShutdown)
				default:
					return
				}
			}
		}
	}
}

// TransferLeadership hands the group to another member and returns when this
// node does not lead any more, or the attempt failed. Empty: any member.
//
// One that has not answered since an attempt is not asked again: raft would wait
// for it with a goroutine that does not end when leadership is lost, and would
// refuse every entry of a later term for it.
func (r *replica) TransferLeadership(ctx context.Context, to placement.NodeID) error {
	if !r.IsLeader() {
		return r.notLeader()
	}
	if to == "" {
		_ = r.raft.LeadershipTransfer()
	} else {
		s, err := r.member(to)
		if err != nil {
			return err
		}
		r.mu.Lock()
		last, again := r.transfers[s.ID]
		if again = again && !mutant.On(mutant.OfferedAgain) && !r.trans.Progress(s.ID).At.After(last); !again {
			r.transfers[s.ID] = time.Now()
		}
		r.mu.Unlock()
		if again {
			return fmt.Errorf("shardgroup: %s did not take %s over %v ago, and has not answered since (is it up?)", to, r.id, time.Since(last).Round(time.Millisecond))
		}
		_ = r.raft.LeadershipTransferToServer(s.ID, s.Address)
	}
	// The future may never answer if raft stops meanwhile; leadership tells as
	// well. raft itself gives up after an election timeout.
	limit := time.NewTimer(2*r.host.cfg.Timing.Election + 100*time.Millisecond)
	defer limit.Stop()
	for {
		r.mu.Lock()
		leads, cond := r.leadsNow, r.readyCond
		r.mu.Unlock()
		if !leads {
			return nil
		}
		select {
		case <-cond:
		case <-limit.C:
			return fmt.Errorf("shardgroup: %s did not take %s over in time (is it up, and not far behind?)", orAny(to), r.id)
		case <-ctx.Done():
			return ErrTimeout
		case <-r.stop:
			return r.stopError()
		}
	}
}

func orAny(n placement.NodeID) string {
	if n == "" {
		return "no other member"
	}
	return string(n)
}

func (r *replica) member(n placement.NodeID) (raft.Server, error) {
	for _, s := range r.servers() {
		if node, _ := transport.SplitServerID(s.ID); node == n {
			return s, nil
		}
	}
	return raft.Server{}, fmt.Errorf("shardgroup: %s is not a member of %s", n, r.id)
}

// servers is the latest configuration.
func (r *replica) servers() []raft.Server {
	return r.raft.GetConfiguration().Configuration().Servers
}

// halt stops this replica for good while the node goes on.
func (r *replica) halt(err error) {
	h := &HaltError{Group: r.id, Err: err}
	if !r.halted.CompareAndSwap(nil, h) {
		return
	}
	r.log.Error("replica halted", "error", err)
	r.trans.Shut()
	r.wakeReady()
	r.host.spawn(func() {
		r.shutdown()
		if r.host.cfg.OnHalt != nil {
			r.host.cfg.OnHalt(h)
		}
	})
}

// shutdown stops raft and joins everything. Only the first call works; the
// others wait for it.
func (r *replica) shutdown() {
	r.stopped.Do(func() {
		close(r.stop)
		r.wakeReady()
		r.closeRounds()
		r.onStop()
		// Entries that raft has in hand get their outcome while it still runs.
		r.settle(500 * time.Millisecond)
		r.trans.Shut()
		// Now nothing can be committed that is not yet. What was committed is
		// on its way through the machine's queue, whose futures would be lost
		// by a shutdown.
		r.drainMachine(time.Second)
		_ = r.raft.Shutdown().Error() // joins raft; it has no error
		_ = r.trans.Close()           // never fails
		r.applied.close()
		close(r.down)
	})
	<-r.down
	r.bg.Wait()
}

// settle waits until no entry is in flight, or for at most d.
func (r *replica) settle(d time.Duration) {
	limit := time.NewTimer(d)
	defer limit.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for r.flying.Load() > 0 {
		select {
		case <-tick.C:
		case <-limit.C:
			return
		}
	}
}

// drainMachine waits until the machine has seen what raft handed to it, if
// anybody waits for that.
func (r *replica) drainMachine(d time.Duration) {
	limit := time.NewTimer(d)
	defer limit.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for r.flying.Load() > 0 && r.applied.load() < r.raft.AppliedIndex() {
		select {
		case <-tick.C:
		case <-limit.C:
			return
		}
	}
}

// watermark is an index that only rises, and those who wait for it.
type watermark struct {
	v atomic.Uint64
	n atomic.Int32 // len(wait), to be read without mu

	mu   sync.Mutex
	wait []waitFor // guarded by mu; few
	over bool      // guarded by mu; it rises no more
}

type waitFor struct {
	index uint64
	then  func(reached bool)
}

func (w *watermark) load() uint64 { return w.v.Load() }

// advance raises the mark; one goroutine at a time calls it.
func (w *watermark) advance(to uint64) {
	if to <= w.v.Load() {
		return
	}
	w.v.Store(to)
	if w.n.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	kept := w.wait[:0]
	for _, f := range w.wait {
		if f.index <= to {
			f.then(true)
		} else {
			kept = append(kept, f)
		}
	}
	clear(w.wait[len(kept):])
	w.wait = kept
	w.n.Store(int32(len(kept)))
}

// when calls then, which must not block, once: when the mark is at index, now
// or from advance, or with false when it will never be.
func (w *watermark) when(index uint64, then func(reached bool)) {
	if w.v.Load() >= index {
		then(true)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n.Add(1)
	// advance stores first and looks at n after, so either it sees this waiter
	// or this sees its mark.
	if reached := w.v.Load() >= index; reached || w.over {
		w.n.Add(-1)
		then(reached)
		return
	}
	w.wait = append(w.wait, waitFor{index, then})
}

// close says that the mark rises no more.
func (w *watermark) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	for _, f := range w.wait {
		f.then(false)
	}
	w.wait = nil
	w.n.Store(0)
}
