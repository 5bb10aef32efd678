package shardgroup

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// Resolver reaches the groups that other partitions of a transaction belong to.
type Resolver interface {
	// Step has a command applied by the group that owns its partition; the
	// epoch is the resolver's to fill in. An error is "not known": it may have
	// been applied.
	Step(ctx context.Context, x *fsm.Txn) (txn.Answer, error)
	// Decision asks home what it has decided, as of a moment during the call.
	Decision(ctx context.Context, home placement.PartitionID, id txn.ID) (txn.Answer, error)
}

// SetResolver gives the host its way to other groups. It may come after groups
// have started: until then nothing of other groups is resolved.
func (h *Host) SetResolver(r Resolver) { h.resolver.Store(&r) }

func (g *Group) resolve() (Resolver, bool) {
	if r := g.host.resolver.Load(); r != nil {
		return *r, true
	}
	return nil, false
}

// StepBack says that a command of a transaction was not proposed, because an
// older one holds what it needs.
type StepBack struct{ Rival txn.ID }

func (e *StepBack) Error() string { return "shardgroup: an older transaction holds what is needed" }

// ProposeTxn replicates a command of a transaction, after it has waited for the
// locks that others hold. free says that the transaction holds nothing
// elsewhere that others could wait for in a circle: then it waits for anybody,
// else for younger ones only, and steps back from an older one (*StepBack; a
// Decide is proposed all the same, and refused).
func (g *Group) ProposeTxn(ctx context.Context, c fsm.Command, born hlc.Timestamp, free bool) (fsm.Result, error) {
	x := c.Txn
	if x.Settle != nil {
		g.AwaitConfirm(ctx, x.Partition, x.ID)
	}
	waits := waitsForLocks(x)
	if waits {
		if rival, back := g.awaitLocks(ctx, &c, waitOf(&c), born, free); back && x.Decide == nil {
			return fsm.Result{}, &StepBack{rival}
		}
	}
	res, err := g.Propose(ctx, c)
	if waits && err == nil {
		// From here on the machine holds what is needed, or nothing is.
		g.locks.commits(x.ID)
	}
	return res, err
}

// StartTxn is ProposeTxn for a caller that waits in no goroutine: done is called
// once, with what ProposeTxn would answer, on a goroutine that must not wait.
// False: there is something to wait for before the command can be proposed, or
// it cannot be now, and nothing was done.
func (g *Group) StartTxn(c fsm.Command, done func(fsm.Result, error)) bool {
	x := c.Txn
	if x.Settle != nil && g.machine.Staged(x.Partition, x.ID) {
		return false
	}
	if waitsForLocks(x) {
		if holders, _ := g.machine.Blockers(&c); len(holders) > 0 {
			return false
		}
		if fronts, _ := g.locks.blockers(&c, time.Now()); len(fronts) > 0 {
			return false
		}
		tell := done
		done = func(res fsm.Result, err error) {
			if err == nil {
				g.locks.commits(x.ID)
			}
			tell(res, err)
		}
	}
	p, ok := g.starting(c, done)
	if ok {
		g.batcher.add([]*proposal{p}, false)
	}
	return ok
}

// starting makes a proposal that tells its outcome, if one can be taken now.
func (g *Group) starting(c fsm.Command, done func(fsm.Result, error)) (*proposal, bool) {
	// Not admit: a term that begins now may wait for this very goroutine, which
	// tells the outcome of its first entry.
	if g.ready.Load() == 0 || g.check() != nil || g.shortOfDisk() != nil {
		return nil, false
	}
	p, err := newProposal(c, time.Now(), nil, nil)
	p.done = done
	return &p, err == nil
}

// waitsForLocks says that a transaction's command waits for the locks of others
// before it is proposed.
func waitsForLocks(x *fsm.Txn) bool {
	return x.Prepare != nil || x.Decide != nil || x.Commit != nil
}

// AwaitWrite waits until a single write is not refused for a lock, for a while.
func (g *Group) AwaitWrite(ctx context.Context, c *fsm.Command) {
	if g.machine.LocksHeld() == 0 && g.locks.count.Load() == 0 {
		return
	}
	g.awaitLocks(ctx, c, Waiting{What: WaitWrite}, 0, true)
}

// confirmWait is how long somebody who asks home waits for the word on what is
// staged: mostly it is on its way, and to ask all participants costs more.
const confirmWait = 5 * time.Millisecond

// AwaitConfirm waits a moment if this is a transaction's home and it is staged.
func (g *Group) AwaitConfirm(ctx context.Context, home placement.PartitionID, id txn.ID) {
	if !g.machine.Staged(home, id) {
		return
	}
	g.beginWait()
	defer g.endWait()
	timer := time.NewTimer(confirmWait)
	defer timer.Stop()
	for {
		changed := g.machine.Changed()
		if !g.machine.Staged(home, id) {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case <-g.stop:
			return
		}
	}
}

// Inquire goes on with what home has said of a transaction: of what is staged it
// asks the participants, and tells home what their votes come to. abort and
// above are as in txn.NewInquiry.
func Inquire(ctx context.Context, r Resolver, id txn.ID, home placement.PartitionID, abort bool, above hlc.Timestamp, first txn.Answer) (txn.Answer, error) {
	if first.State != txn.Staged {
		return first, nil
	}
	q := txn.NewInquiry(home, abort, above)
	ms := q.Answer(q.Begin()[0], first)
	for {
		if a, known := q.Outcome(); known {
			return a, nil
		}
		answers := make([]txn.Answer, len(ms))
		errs := make([]error, len(ms))
		var all sync.WaitGroup
		for i := range ms {
			one := func() { answers[i], errs[i] = r.Step(ctx, fsm.MessageTxn(id, ms[i])) }
			if i < len(ms)-1 {
				all.Go(one)
			} else {
				one()
			}
		}
		all.Wait()
		var next []txn.Message
		for i, m := range ms {
			if errs[i] != nil {
				return txn.Answer{}, errs[i]
			}
			next = append(next, q.Answer(m, answers[i])...)
		}
		ms = next
	}
}

// waitOf is what a transaction's command is to those who look at waits.
func waitOf(c *fsm.Command) Waiting {
	x := c.Txn
	switch {
	case x.Prepare != nil:
		return Waiting{What: WaitPrepare, Home: x.Prepare.Home, HomeKnown: true}
	case x.Decide != nil:
		return Waiting{What: WaitDecide, Home: x.Partition, HomeKnown: true}
	}
	return Waiting{What: WaitCommit, Home: x.Partition, HomeKnown: true}
}

// lockPoll is how often who waits looks for locks that have expired.
const lockPoll = 50 * time.Millisecond

// awaitLocks waits until nobody holds what a command needs, or the time is up:
// then it is for the machine to say. back says that the command is to step
// back, from whom. shown is how the wait looks from outside.
func (g *Group) awaitLocks(ctx context.Context, c *fsm.Command, shown Waiting, born hlc.Timestamp, free bool) (rival txn.ID, back bool) {
	var self txn.ID
	if c.Txn != nil {
		self = c.Txn.ID
	}
	var w *Waiting
	var timer *time.Timer
	for {
		now := time.Now()
		holders, released := g.machine.Blockers(c)
		fronts, unlocked := g.locks.blockers(c, now)
		if len(holders) == 0 && len(fronts) == 0 {
			break
		}
		late := false
		wall := g.host.cfg.Clock.Now()
		for _, h := range holders {
			late = late || h.Deadline <= wall
			if !free && older(h.Born, h.ID, born, self) {
				rival, back = h.ID, true
			}
		}
		for _, f := range fronts {
			if holder := f.frontLock.id; !free && older(f.born, holder, born, self) {
				rival, back = holder, true
			}
		}
		if back {
			g.locks.stepped.Add(1)
			g.batcher.hurry() // so that it does not meet them again
			break
		}
		if w == nil {
			g.beginWait()
			begun := shown // who does not wait allocates nothing
			begun.ID, begun.Born, begun.Since = self, born, now
			w = &begun
			g.locks.enter(w)
			timer = time.NewTimer(g.host.cfg.LockWait)
		}
		g.locks.reasons(w, holders, fronts)
		if late {
			g.keeper.hurryUp()
		}
		up := false
		poll := time.NewTimer(lockPoll)
		select {
		case <-released:
		case <-unlocked:
		case <-poll.C:
		case <-timer.C:
			up = true
		case <-ctx.Done():
			up = true
		case <-g.stop:
			up = true
		}
		poll.Stop()
		if up {
			break
		}
	}
	if w != nil {
		timer.Stop()
		g.locks.leave(w)
		g.endWait()
	}
	return rival, back
}

func older(born hlc.Timestamp, id txn.ID, than hlc.Timestamp, thanID txn.ID) bool {
	return cmp.Or(cmp.Compare(born, than), bytes.Compare(id.Random[:], thanID.Random[:])) < 0
}

// Lock locks a document up front for a transaction, which then reads it: until
// its commit has come, it is let go, or the time is up. An older transaction
// waits for it, a younger one steps back (*StepBack), unless it is free: it
// holds nothing yet that others could wait for in a circle.
func (g *Group) Lock(ctx context.Context, id txn.ID, born hlc.Timestamp, k fsm.ReadKey, ttl time.Duration, free bool) error {
	if _, err := g.term(ctx); err != nil {
		return err
	}
	key := docKey{k.Partition, k.Collection, k.ID}
	// What the machine holds is asked for as if the document were to be written.
	c := fsm.Command{Txn: &fsm.Txn{ID: id, Partition: k.Partition, Prepare: &fsm.Prepare{
		Part: txn.Part{Writes: []txn.Write{{Collection: k.Collection, ID: k.ID}}},
	}}}
	limit := time.Now().Add(g.host.cfg.LockWait)
	mine := frontLock{id: id, born: born}
	g.locks.want(key, mine)
	defer g.locks.unwant(key, id)
	for {
		if rival, back := g.awaitLocks(ctx, &c, Waiting{What: WaitLock}, born, free); back {
			return &StepBack{rival}
		}
		if ctx.Err() != nil {
			return ErrTimeout
		}
		now := time.Now()
		mine.expires = now.Add(ttl)
		h, changed, ok := g.locks.take(key, mine, now)
		switch {
		case ok:
			// Whoever lost leadership in between has emptied its book before this
			// lock came into it, and nobody would look after it.
			if _, err := g.term(ctx); err != nil {
				g.locks.release(id)
				return err
			}
			return nil
		case h == (frontLock{}):
			return ErrOverloaded
		case h.id == id: // it has let go, and this request was on its way for longer
			return &StepBack{id}
		case now.After(limit):
			return &StepBack{h.id}
		case changed == nil:
			continue // it was taken meanwhile: awaitLocks tells whether to wait
		}
		poll := time.NewTimer(lockPoll)
		select {
		case <-changed:
		case <-poll.C:
		case <-ctx.Done():
		case <-g.stop:
			poll.Stop()
			return g.stopError()
		}
		poll.Stop()
	}
}

// Unlock lets go of what a transaction has locked up front here. It has ended: a
// Lock of it that comes later is refused, as far as it is remembered.
func (g *Group) Unlock(id txn.ID) { g.locks.end(id) }

// PassLocks makes what one transaction has locked up front here another's: the
// next one of the same work, which would wait for the first otherwise.
func (g *Group) PassLocks(from, to txn.ID) { g.locks.pass(from, to) }

// FrontLocks are the documents that are locked up front here.
func (g *Group) FrontLocks() []FrontLock {
	all := g.locks.fronts(time.Now())
	slices.SortFunc(all, func(a, b FrontLock) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Collection, b.Collection), cmp.Compare(a.Document, b.Document))
	})
	return all
}

// LocksUpFront is how many locks are in the book, expired ones included.
func (g *Group) LocksUpFront() int { return int(g.locks.count.Load()) }

// Waits are the commands that wait for locks now, the longest first.
func (g *Group) Waits() (now []Waiting) {
	b := &g.locks
	b.mu.Lock()
	for w := range b.waiting {
		now = append(now, *w)
	}
	b.mu.Unlock()
	slices.SortFunc(now, func(a, b Waiting) int { return a.Since.Compare(b.Since) })
	return now
}

// ClearReads returns when reads of these documents, now or (at is not 0) at a
// time, need not look at intents: what was decided is resolved here, and what
// is undecided was so at a moment of this call, or will be above at. It comes
// after ReadIndex or ReadAt, and before the read.
func (g *Group) ClearReads(ctx context.Context, keys []fsm.ReadKey, at hlc.Timestamp) error {
	if g.machine.LocksHeld() == 0 {
		return nil
	}
	return g.clear(ctx, g.machine.IntentsOn(keys), at)
}

// ClearScan is ClearReads of everything that a scan may find.
func (g *Group) ClearScan(ctx context.Context, s *fsm.ScanSpec, at hlc.Timestamp) error {
	if g.machine.LocksHeld() == 0 {
		return nil
	}
	return g.clear(ctx, g.machine.IntentsIn(s), at)
}

func (g *Group) clear(ctx context.Context, holders []fsm.Holder, at hlc.Timestamp) error {
	if at != 0 {
		holders = slices.DeleteFunc(holders, func(h fsm.Holder) bool { return h.At > at })
	}
	if len(holders) == 0 {
		return nil
	}
	g.beginWait()
	defer g.endWait()
	r, ok := g.resolve()
	if !ok {
		return ErrTimeout
	}
	errs := make([]error, len(holders))
	var all sync.WaitGroup
	for i := range holders {
		one := func() { errs[i] = g.clearOne(ctx, r, &holders[i], at) }
		if i < len(holders)-1 {
			all.Go(one)
		} else {
			one()
		}
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *Group) clearOne(ctx context.Context, r Resolver, h *fsm.Holder, at hlc.Timestamp) error {
	var a txn.Answer
	var err error
	overdue := h.Deadline <= g.host.cfg.Clock.Now()
	switch {
	case overdue:
		a, err = r.Step(ctx, &fsm.Txn{ID: h.ID, Partition: h.Home, Settle: &fsm.Settle{Abort: true}})
	case at != 0:
		a, err = r.Step(ctx, &fsm.Txn{ID: h.ID, Partition: h.Home, Settle: &fsm.Settle{Raise: at}})
	default:
		a, err = r.Decision(ctx, h.Home, h.ID)
	}
	if err == nil {
		a, err = Inquire(ctx, r, h.ID, h.Home, overdue, at, a)
	}
	if err != nil || !a.Decided() {
		return err
	}
	if overdue {
		g.recovery.note(txn.AbortIfUndecided, &a)
	}
	if a.State != txn.Committed || at != 0 && a.At > at {
		return nil // nothing of it is to be seen; it is resolved in its time
	}
	if !g.holds(h) {
		return nil // the coordinator's own message is mostly here already
	}
	if h.Partition == h.Home {
		return g.notLeader() // another leader has confirmed it, and it is staged here yet
	}
	_, err = r.Step(ctx, &fsm.Txn{ID: h.ID, Partition: h.Partition, Resolve: &fsm.Resolve{Commit: true, At: a.At}})
	if err == nil && g.holds(h) && !mutant.On(mutant.ResolvedElsewhere) {
		// Another leader has resolved it, and here its writes are not readable yet.
		return g.notLeader()
	}
	return err
}

// holds says whether what a transaction has prepared is still unresolved here.
func (g *Group) holds(h *fsm.Holder) bool {
	return slices.ContainsFunc(g.machine.Holders(), func(o fsm.Holder) bool { return o.ID == h.ID && o.Partition == h.Partition })
}

// Recovery of what was left behind.
const (
	settleTick = 200 * time.Millisecond
	// finishAfter is how long a commit may take to be resolved everywhere before
	// home sees to it: its coordinator is mostly quicker.
	finishAfter  = time.Second
	settleAtOnce = 16
	// How long a prepared transaction may stay undecided, whatever its deadline
	// says: clocks disagree.
	shortestHold = time.Second
	longestHold  = time.Minute
)

// settle looks for transactions whose coordinator is gone, until ctx ends:
// prepared ones past their deadline, and committed ones that are not resolved.
func (k *keeper) settle(ctx context.Context) {
	tick := time.NewTicker(settleTick)
	defer tick.Stop()
	var bg sync.WaitGroup
	defer bg.Wait()
	slots := make(chan struct{}, settleAtOnce)
	var mu sync.Mutex
	busy := map[string]bool{}
	seen := map[string]time.Time{} // since when, by name, on this process's own clock
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			k.g.locks.expire(time.Now())
		case <-k.late:
		}
		r, ok := k.g.resolve()
		if !ok {
			continue
		}
		now := k.g.host.cfg.Clock.Now()
		run := func(name string, rec txn.Recovery, id txn.ID, first []txn.Message) {
			mu.Lock()
			again := busy[name]
			busy[name] = true
			mu.Unlock()
			if again {
				return
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			bg.Go(func() {
				k.rescue(ctx, r, id, rec, first)
				mu.Lock()
				delete(busy, name)
				mu.Unlock()
				<-slots
			})
		}
		// A clock that was pushed ahead stands still until the wall has caught up,
		// so what is overdue by this process's own time is overdue too. Asking
		// home too early costs a transaction, and nothing else.
		still := map[string]time.Time{}
		age := func(name string) time.Duration {
			first, ok := seen[name]
			if !ok {
				first = time.Now()
			}
			still[name] = first
			return time.Since(first)
		}
		for _, h := range k.g.machine.Holders() {
			name := "p" + h.ID.String() + string(rune(h.Partition))
			limit := min(max(h.Deadline.Time().Sub(h.At.Time()), shortestHold), longestHold)
			if age(name) >= limit || h.Deadline <= now {
				rec, first := txn.NewRecovery(h.ID, h.Home, h.Partition)
				run(name, rec, h.ID, first)
			}
		}
		for _, u := range k.g.machine.Unfinished(hlc.Max) {
			name := "c" + u.ID.String()
			if age(name) >= finishAfter || u.Record.At <= now.Add(-finishAfter) {
				rec, first := txn.NewFinish(u.ID, u.Home, u.Record)
				run(name, rec, u.ID, first)
			}
		}
		seen = still
	}
}

// hurryUp has settle look now.
func (k *keeper) hurryUp() {
	select {
	case k.late <- struct{}{}:
	default:
	}
}

// rescue carries a recovery's messages until it has ended, or a while is over:
// then it is begun again.
func (k *keeper) rescue(ctx context.Context, r Resolver, id txn.ID, rec txn.Recovery, ms []txn.Message) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	k.g.recovery.rescued.Add(1)
	for !rec.Ended() && ctx.Err() == nil {
		if len(ms) == 0 {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				return
			}
			ms = rec.Tick(0)
			continue
		}
		var next []txn.Message
		for _, m := range ms {
			a, err := r.Step(ctx, fsm.MessageTxn(id, m))
			if err != nil {
				rec.Lost(m)
				continue
			}
			k.g.recovery.note(m.Step, &a)
			next = append(next, rec.Answer(m, a)...)
		}
		ms = next
	}
}
