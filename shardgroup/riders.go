package shardgroup

import (
	"sync/atomic"
	"time"

	"github.com/impossibledb/idb/fsm"
)

const (
	// riderWait is how long a command that nobody waits for stays behind for an
	// entry to go with. It is short beside the time after which others settle
	// what a coordinator has left behind.
	riderWait = 10 * time.Millisecond
	// maxRiders is how many wait at most: then they go.
	maxRiders = batchCommands / 2
)

// riders are commands that have time, what a coordinator has left to do when
// its client has the answer. What an entry costs hardly depends on how many
// commands it carries, so they go with the next entry of their group that
// others need, before those, whose locks they may let go. Without one they go
// by themselves after a while, and at once if somebody waits for locks here.
type riders struct {
	impatient atomic.Int32  // who waits for locks here
	wait      time.Duration // riderWait, but in tests

	waiting []*proposal // guarded by batcher.mu
	timer   *time.Timer // guarded by batcher.mu; runs while some wait
}

// StartLater is StartTxn of a command that nobody waits for: the Resolve or
// Forget of a transaction whose outcome is known to who asked for it.
func (g *Group) StartLater(c fsm.Command, done func(fsm.Result, error)) bool {
	p, ok := g.starting(c, done)
	if ok {
		g.batcher.ride(p)
	}
	return ok
}

// ride has a command wait for an entry to go with.
func (b *batcher) ride(p *proposal) {
	if b.riders.impatient.Load() > 0 {
		b.add([]*proposal{p}, false)
		return
	}
	b.mu.Lock()
	if b.stopped || b.memory.Term() == 0 {
		b.mu.Unlock()
		b.add([]*proposal{p}, false) // it says why not
		return
	}
	r := &b.riders
	r.waiting = append(r.waiting, p)
	full := len(r.waiting) >= maxRiders
	if r.timer == nil {
		r.timer = time.AfterFunc(r.wait, b.hurry)
	} else if len(r.waiting) == 1 {
		r.timer.Reset(r.wait)
	}
	b.mu.Unlock()
	// Somebody may have begun to wait who has not seen this one.
	if full || r.impatient.Load() > 0 {
		b.hurry()
	}
}

// hurry has those that wait go in an entry of their own.
func (b *batcher) hurry() {
	b.mu.Lock()
	out := b.ridersLocked()
	b.mu.Unlock()
	if len(out) > 0 {
		b.add(out, false)
	}
}

// boardLocked puts those that wait into an entry, if it has the room: first,
// so that who comes with them does not meet their locks.
func (b *batcher) boardLocked(props []*proposal, size int) []*proposal {
	for _, p := range b.riders.waiting {
		size += p.size
	}
	if len(b.riders.waiting) == 0 || len(props)+len(b.riders.waiting) > batchCommands || size > batchBytes {
		return props
	}
	out := b.ridersLocked()
	for _, p := range out {
		p.seq = props[0].seq
	}
	return append(out, props...)
}

// ridersLocked takes out all that wait.
func (b *batcher) ridersLocked() []*proposal {
	r := &b.riders
	if len(r.waiting) == 0 {
		return nil
	}
	r.timer.Stop()
	out := r.waiting
	r.waiting = nil
	return out
}

// endRiders tells those that wait that they will not be proposed.
func (b *batcher) endRiders(err error) {
	b.mu.Lock()
	out := b.ridersLocked()
	b.mu.Unlock()
	for _, p := range out {
		p.finish(fsm.Result{}, err)
	}
}

// beginWait and endWait bracket a wait for locks of this group: what lets them
// go does not stay behind meanwhile.
func (g *Group) beginWait() {
	g.batcher.riders.impatient.Add(1)
	g.batcher.hurry()
}

func (g *Group) endWait() { g.batcher.riders.impatient.Add(-1) }
