package shardgroup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/leader"
	"github.com/impossibledb/idb/shardgroup/transport"
	"github.com/impossibledb/idb/txn/hlc"
)

// Bounds of one entry, and how many may be in flight. Two in flight keep the
// disk busy while the next one fills; more only make entries smaller. With few
// callers a second one makes entries smaller too: they wait for the first
// together, unless a good part of an entry has come meanwhile.
const (
	batchCommands = 256
	batchBytes    = 512 << 10
	batchWindow   = 2
	batchSecond   = 16       // commands
	secondBytes   = 64 << 10 // or bytes, that a second entry in flight begins with

	// maxCommandBytes bounds a single command: an entry must fit in one message
	// between nodes, or it could never be replicated.
	maxCommandBytes = transport.MaxEntryBytes - 1<<10

	// maxCompared is how many documents of commands in flight are compared with
	// what is read, to find whether a reader has to wait for them: it costs some
	// microseconds at most, and everybody who proposes waits for it.
	maxCompared = 2048
)

// Outcome is what became of one command of ProposeMany.
type Outcome struct {
	Result fsm.Result
	Err    error // as Propose's
}

// proposal is one command that waits.
type proposal struct {
	cmd   fsm.Command
	size  int
	seq   uint64 // order of arrival
	since time.Time
	kept  bool // was kept back by a hold
	out   *Outcome
	w     *waiter
	done  func(fsm.Result, error) // instead of out and w, if not nil
}

// waiter is one caller and how many of its commands have no outcome yet.
type waiter struct {
	left atomic.Int32
	done chan struct{} // closed at 0
}

// finish gives a proposal its outcome. No lock is held.
func (p *proposal) finish(r fsm.Result, err error) {
	if p.done != nil {
		p.done(r, err)
		return
	}
	p.out.Result, p.out.Err = r, err
	if p.w.left.Add(-1) == 0 {
		close(p.w.done)
	}
}

// batcher packs commands into entries, in the order and with the timestamps
// that package leader's Memory says.
type batcher struct {
	g *Group

	mu      sync.Mutex
	cond    sync.Cond
	queue   []*proposal // guarded by mu; queue[head:] wait
	head    int         // guarded by mu
	bytes   int         // guarded by mu
	seq     uint64      // guarded by mu; of the last proposal queued
	flying  []*batch    // guarded by mu; in order
	stopped bool        // guarded by mu
	paused  time.Time   // guarded by mu; until then nothing is proposed
	waits   bool        // guarded by mu; for a turn of the cadence
	turn    uint64      // guarded by mu; the round in which it may start
	burst   *burst      // guarded by mu; of that round, nil: nothing is announced

	memory  leader.Memory // guarded by mu
	drained []drainWait   // guarded by mu
	riders  riders

	// held wait for a hold to end, in their order; what memory keeps back is
	// here and not in queue.
	held      []*proposal // guarded by mu
	heldBytes int         // guarded by mu
}

// drainWait is a reader that waits until the batches proposed before it are
// applied.
type drainWait struct {
	upto uint64
	ch   chan error
}

// refusedError: the entry could not be made; nothing was proposed.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return "shardgroup: entry cannot be made: " + e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// batch is the commands of one entry.
type batch struct {
	props   []*proposal
	callers int // commands that somebody waits for, all but riders
	term    uint64
	since   time.Time
	round   uint64 // of the cadence, 0: none
	gaveUp  bool   // guarded by batcher.mu; the callers were told "unknown"
}

func (b *batcher) init(g *Group) {
	b.g = g
	b.cond.L = &b.mu
	b.riders.wait = riderWait
}

// newProposal checks a command, so that one that cannot be packed does not
// spoil the others of its entry.
func newProposal(c fsm.Command, now time.Time, out *Outcome, w *waiter) (proposal, error) {
	if err := c.Check(); err != nil {
		return proposal{}, fmt.Errorf("shardgroup: command cannot be proposed: %w", err)
	}
	size := c.EncodedLen()
	if size > maxCommandBytes {
		return proposal{}, fmt.Errorf("shardgroup: command of %d bytes cannot be proposed, %d are possible", size, maxCommandBytes)
	}
	return proposal{cmd: c, size: size, since: now, out: out, w: w}, nil
}

// add queues commands; those that do not fit get their outcome at once. urgent
// commands are the group's own and always fit.
func (b *batcher) add(props []*proposal, urgent bool) {
	cfg := &b.g.host.cfg
	refused := len(props)
	var err error
	b.mu.Lock()
	switch {
	case b.stopped:
		err, refused = b.g.stopError(), 0
	case b.memory.Term() == 0:
		err, refused = b.g.notLeader(), 0
	default:
		for i, p := range props {
			if waits := b.bytes + b.heldBytes; !urgent && (len(b.queue)-b.head+len(b.held) >= cfg.QueueCommands || waits+p.size > cfg.QueueBytes && waits > 0) {
				err, refused = ErrOverloaded, i
			}
			if err != nil {
				break
			}
			if b.memory.Held(&p.cmd) {
				b.keepLocked(p)
			} else {
				b.queueLocked(p)
			}
		}
	}
	b.g.host.cadence.moved(refused, 0)
	asks := b.asksLocked()
	b.cond.Signal()
	b.mu.Unlock()
	if refused > 0 {
		b.g.host.cadence.came(asks)
	}
	if err != nil {
		for _, p := range props[refused:] {
			p.finish(fsm.Result{}, err)
		}
	}
}

func (b *batcher) queueLocked(p *proposal) {
	b.seq++
	p.seq = b.seq
	b.queue = append(b.queue, p)
	b.bytes += p.size
}

// open begins a term with the machine's clock and ceiling.
func (b *batcher) open(term uint64, clock, ceiling hlc.Timestamp) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.memory.Open(term, clock, ceiling)
	b.letGoLocked()
	b.paused = time.Time{}
	b.cond.Signal()
}

// shut ends the term: what was not proposed is refused.
func (b *batcher) shut(err error) {
	b.mu.Lock()
	b.memory.Shut()
	queue := append(b.queue[b.head:], b.held...)
	b.queue, b.head, b.bytes = nil, 0, 0
	b.held, b.heldBytes = nil, 0
	waits := b.drained
	b.drained = nil
	b.g.host.cadence.moved(-len(queue), 0)
	b.mu.Unlock()
	b.endRiders(err)
	for _, p := range queue {
		p.finish(fsm.Result{}, err)
	}
	for _, w := range waits {
		w.ch <- err
	}
}

// stop ends run.
func (b *batcher) stop() {
	b.mu.Lock()
	b.stopped = true
	b.cond.Broadcast()
	b.mu.Unlock()
	b.shut(b.g.stopError())
}

// run proposes batches until stop.
func (b *batcher) run() {
	cmds := make([]fsm.Command, 0, batchCommands)
	for {
		bt := b.take()
		if bt == nil {
			return
		}
		size := 16
		cmds = cmds[:0]
		for _, p := range bt.props {
			cmds = append(cmds, p.cmd)
			size += p.size
		}
		data, err := fsm.AppendEntry(make([]byte, 0, size), cmds)
		clear(cmds)
		if err != nil {
			b.landed(bt, nil, &refusedError{err})
			continue
		}
		if mutant.On(mutant.AckBeforeCommit) {
			b.ackEarly(bt)
		}
		if !b.g.propose(data, bt.term, func(answer any, err error) { b.landed(bt, answer, err) }) {
			b.landed(bt, nil, raft.ErrRaftShutdown)
		}
	}
}

// take waits for commands and an open window, and assigns timestamps.
func (b *batcher) take() *batch {
	b.mu.Lock()
	defer b.mu.Unlock()
	cadence := &b.g.host.cadence
	bt := &batch{}
	for {
		ready := !b.stopped && b.memory.Term() != 0 && b.head < len(b.queue) && b.roomLocked() && !b.pausedLocked()
		if round := b.turn; round != 0 && !ready {
			announced := b.burst != nil
			b.turn, b.burst = 0, nil
			b.mu.Unlock()
			if announced {
				b.g.host.logs.Forgo(1)
			}
			cadence.leave(round)
			b.mu.Lock()
			continue
		}
		if b.stopped {
			return nil
		}
		if ready && b.turnLocked(bt) {
			break
		}
		b.cond.Wait()
	}
	bt.term, bt.since = b.memory.Term(), time.Now()
	n, size := 0, 0
	for b.head+n < len(b.queue) && n < batchCommands {
		p := b.queue[b.head+n]
		if n > 0 && size+p.size > batchBytes {
			break
		}
		size += p.size
		n++
	}
	bt.props = make([]*proposal, n)
	copy(bt.props, b.queue[b.head:])
	clear(b.queue[b.head : b.head+n])
	b.head += n
	b.bytes -= size
	if b.head == len(b.queue) {
		b.queue, b.head = b.queue[:0], 0
	} else if b.head > 4096 && b.head > len(b.queue)/2 {
		b.queue = append(b.queue[:0], b.queue[b.head:]...)
		b.head = 0
	}
	bt.callers = n
	bt.props = b.boardLocked(bt.props, size)
	for _, p := range bt.props {
		p.cmd.Time = b.memory.Assign(b.g.host.cfg.Clock.Now())
	}
	var u *burst
	if bt.round != 0 {
		u, b.burst = b.burst, nil
	}
	if b.g.burst.Store(u); u != nil {
		b.g.logs.expected.Add(1)
	}
	b.flying = append(b.flying, bt)
	b.memory.Send()
	cadence.moved(-n, n)
	return bt
}

// asksLocked: what was queued makes it ask for a turn.
func (b *batcher) asksLocked() bool { return !b.waits && b.turn == 0 && len(b.flying) == 0 }

// turnLocked: an entry may start now. A second one in flight is full enough to
// go by itself.
func (b *batcher) turnLocked(bt *batch) bool {
	if len(b.flying) > 0 {
		return true
	}
	if b.turn != 0 {
		bt.round, b.turn = b.turn, 0
		return true
	}
	if b.waits {
		return false
	}
	var now bool
	bt.round, now = b.g.host.cadence.enter(b)
	b.waits = !now
	return now
}

// roomLocked: one more entry may be in flight.
func (b *batcher) roomLocked() bool {
	switch n := len(b.flying); {
	case n == 0:
		return true
	case n >= batchWindow:
		return false
	default:
		return len(b.queue)-b.head >= batchSecond || b.bytes >= secondBytes
	}
}

// pausedLocked: leadership is being handed over, and raft refuses entries.
func (b *batcher) pausedLocked() bool {
	return !b.paused.IsZero() && time.Now().Before(b.paused)
}

// landed gives a batch its outcome.
func (b *batcher) landed(bt *batch, answer any, err error) {
	results, ok := answer.([]fsm.Result)
	b.mu.Lock()
	for i, f := range b.flying {
		if f == bt {
			b.flying = append(b.flying[:i], b.flying[i+1:]...)
			break
		}
	}
	requeued := 0
	gaveUp := bt.gaveUp
	var waits []drainWait
	var drainErr error
	var refused *refusedError
	transfer := errors.Is(err, raft.ErrLeadershipTransferInProgress)
	if ok && err == nil {
		b.memory.Land()
		kept := b.drained[:0]
		for _, w := range b.drained {
			if b.memory.Landed(w.upto) {
				waits = append(waits, w)
			} else {
				kept = append(kept, w)
			}
		}
		b.drained = kept
	} else {
		// Some entry of this term has another fate than to be applied in order:
		// whoever counted on it must ask again.
		if transfer || errors.As(err, &refused) || answer == errVoid {
			b.memory.Land()
		} else {
			b.memory.Lose(bt.term)
		}
		waits, b.drained = b.drained, nil
		drainErr = b.g.notLeader()
	}
	if transfer && !gaveUp && !b.stopped && b.memory.Term() == bt.term {
		// Nothing was proposed. Wait for the handover to end either way; if it
		// fails the commands go on here, if not they are refused by shut.
		b.paused = time.Now().Add(5 * time.Millisecond)
		rest := b.queue[b.head:]
		at, _ := slices.BinarySearchFunc(rest, bt.props[0].seq, func(p *proposal, seq uint64) int { return cmp.Compare(p.seq, seq) })
		b.queue, b.head = slices.Concat(rest[:at], bt.props, rest[at:]), 0
		for _, p := range bt.props {
			b.bytes += p.size
		}
		time.AfterFunc(5*time.Millisecond, func() {
			b.mu.Lock()
			b.cond.Signal()
			b.mu.Unlock()
		})
		gaveUp = true
		requeued = len(bt.props)
		// These may be what holds were to keep back.
		b.memory.Break()
	}
	b.letGoLocked()
	b.g.host.cadence.moved(requeued, -bt.callers)
	b.cond.Signal()
	b.mu.Unlock()
	b.g.host.cadence.leave(bt.round)
	if err != nil {
		b.g.forgo() // perhaps it never came to the log
	}
	for _, w := range waits {
		w.ch <- drainErr
	}
	if gaveUp {
		return
	}
	var outcome error
	switch {
	case errors.As(err, &refused):
		outcome = refused
	case err != nil:
		outcome = b.g.proposalError(err)
	case answer == errVoid:
		outcome = b.g.notLeader()
	case !ok || len(results) != len(bt.props):
		outcome = ErrOutcomeUnknown // the replica has halted
	}
	for i, p := range bt.props {
		if outcome != nil {
			p.finish(fsm.Result{}, outcome)
		} else {
			p.finish(results[i], nil)
		}
	}
}

// expire tells those who have waited too long: queued commands were not
// proposed, those in flight may yet be applied.
func (b *batcher) expire(now time.Time, limit time.Duration) {
	var late, unknown []*proposal
	b.mu.Lock()
	for b.head < len(b.queue) && now.Sub(b.queue[b.head].since) > limit {
		p := b.queue[b.head]
		b.queue[b.head] = nil
		b.head++
		b.bytes -= p.size
		late = append(late, p)
	}
	for len(b.held) > 0 && now.Sub(b.held[0].since) > limit {
		p := b.held[0]
		b.held = b.held[1:]
		b.heldBytes -= p.size
		late = append(late, p)
	}
	b.g.host.cadence.moved(-len(late), 0)
	for _, bt := range b.flying {
		if !bt.gaveUp && now.Sub(bt.since) > limit {
			bt.gaveUp = true
			unknown = append(unknown, bt.props...)
		}
	}
	b.mu.Unlock()
	for _, p := range late {
		p.finish(fsm.Result{}, ErrTimeout)
	}
	for _, p := range unknown {
		p.finish(fsm.Result{}, ErrOutcomeUnknown)
	}
}

// promise raises the floor to ts, for a reader of these documents (nil: of
// anything). The ceiling must be at or above ts already. What it answers tells
// when everything assigned at or below ts that the reader has to see is applied;
// nil: it is.
func (b *batcher) promise(ts hlc.Timestamp, keys []fsm.ReadKey) (<-chan error, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	upto, ok := b.memory.Promise(ts)
	if !ok {
		return nil, b.g.notLeader()
	}
	return b.drainLocked(upto - b.apartLocked(ts, keys)), nil
}

// apartLocked is how many of the batches in flight, from the last one on, a
// reader of these documents at ts need not wait for. A batch that is lost is
// lost for all who read, whatever they read: then nothing is promised any more.
func (b *batcher) apartLocked(ts hlc.Timestamp, keys []fsm.ReadKey) (n uint64) {
	compared := 0
	for _, bt := range slices.Backward(b.flying) {
		if bt.gaveUp {
			break // its commands are their callers' again
		}
		if bt.props[0].cmd.Time <= ts {
			for _, p := range bt.props {
				compared += len(keys) * p.cmd.Documents()
			}
			if keys == nil || compared > maxCompared || slices.ContainsFunc(bt.props, func(p *proposal) bool { return p.cmd.Touches(keys) }) {
				break
			}
		}
		n++
	}
	return n
}

// drainLocked tells when the first upto batches have landed; nil: they have.
func (b *batcher) drainLocked(upto uint64) <-chan error {
	if b.memory.Landed(upto) {
		return nil
	}
	w := drainWait{upto: upto, ch: make(chan error, 1)}
	b.drained = append(b.drained, w)
	return w.ch
}

// drain waits for what promise or drainLocked has answered.
func (g *Group) drain(ctx context.Context, landed <-chan error) error {
	if landed == nil {
		return nil
	}
	select {
	case err := <-landed:
		return err
	case <-ctx.Done():
		return ErrTimeout
	case <-g.stop:
		return g.stopError()
	}
}

// queued is how much waits.
func (b *batcher) queued() (commands, bytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queue) - b.head + len(b.held), b.bytes + b.heldBytes
}

// Propose replicates one command and answers its result. It fails with
// *NotLeaderError, ErrOverloaded, ErrDiskFull, ErrTimeout or ErrStopped if
// nothing was done, and with ErrOutcomeUnknown if the command may yet be
// applied. The end of ctx stops the waiting, not the command.
func (g *Group) Propose(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	if err := g.admit(ctx); err != nil {
		return fsm.Result{}, err
	}
	// One piece of memory for everything a lone command needs.
	one := &struct {
		p    proposal
		w    waiter
		out  Outcome
		list [1]*proposal
	}{}
	one.w.done = make(chan struct{})
	one.w.left.Store(1)
	var err error
	if one.p, err = newProposal(c, time.Now(), &one.out, &one.w); err != nil {
		return fsm.Result{}, err
	}
	one.list[0] = &one.p
	g.batcher.add(one.list[:], false)
	if err := g.await(ctx, &one.w); err != nil {
		return fsm.Result{}, err
	}
	return one.out.Result, one.out.Err
}

// ProposeMany replicates commands and answers one outcome for each. They are
// applied in their order unless leadership is handed over meanwhile. They may
// come to lie in several entries, and some may fail while others do not.
func (g *Group) ProposeMany(ctx context.Context, cs []fsm.Command) []Outcome {
	outs := make([]Outcome, len(cs))
	if len(cs) == 0 {
		return outs
	}
	fail := func(err error) []Outcome {
		// The commands' own outcomes may still be written to: answer others.
		outs := make([]Outcome, len(cs))
		for i := range outs {
			outs[i].Err = err
		}
		return outs
	}
	if err := g.admit(ctx); err != nil {
		return fail(err)
	}
	w := &waiter{done: make(chan struct{})}
	w.left.Store(int32(len(cs)))
	props := make([]proposal, len(cs))
	list := make([]*proposal, 0, len(cs))
	now := time.Now()
	for i := range cs {
		var err error
		if props[i], err = newProposal(cs[i], now, &outs[i], w); err != nil {
			p := proposal{out: &outs[i], w: w}
			p.finish(fsm.Result{}, err)
			continue
		}
		list = append(list, &props[i])
	}
	g.batcher.add(list, false)
	if err := g.await(ctx, w); err != nil {
		return fail(err)
	}
	return outs
}

// admit refuses what cannot be proposed now, and waits for a term that begins.
func (g *Group) admit(ctx context.Context) error {
	if ctx.Err() != nil {
		return ErrTimeout
	}
	if _, err := g.term(ctx); err != nil {
		return err
	}
	return g.shortOfDisk()
}

// shortOfDisk says why nothing may be written, if that is so.
func (g *Group) shortOfDisk() error {
	if g.host.full.Load() {
		return &DiskFullError{Group: g.id, Nodes: []placement.NodeID{g.host.cfg.NodeID}}
	}
	if short := g.short.Load(); short != nil {
		return short
	}
	return nil
}

// await waits for a caller's outcomes.
func (g *Group) await(ctx context.Context, w *waiter) error {
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
	case <-g.stop:
		// What was still queued is being refused just now; what is in flight
		// gets an outcome while raft settles.
		select {
		case <-w.done:
			return nil
		case <-ctx.Done():
		case <-g.down:
		}
	}
	select {
	case <-w.done:
		return nil
	default:
		return ErrOutcomeUnknown
	}
}

// proposeOwn replicates a command of the group's own, also when the disk is
// nearly full: these make room, or are tiny.
func (g *Group) proposeOwn(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	if _, err := g.term(ctx); err != nil {
		return fsm.Result{}, err
	}
	var out Outcome
	w := &waiter{done: make(chan struct{})}
	w.left.Store(1)
	p, err := newProposal(c, time.Now(), &out, w)
	if err != nil {
		return fsm.Result{}, err
	}
	g.batcher.add([]*proposal{&p}, true)
	if err := g.await(ctx, w); err != nil {
		return fsm.Result{}, err
	}
	return out.Result, out.Err
}
