package shardgroup

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
)

const (
	// holdTime is how long a hold lasts whose coordinator is gone. Writes wait
	// that long then; a cut that takes longer fails and is begun again.
	holdTime = 500 * time.Millisecond
	// holdPatience is how long a write may have been kept back for a new hold to
	// begin: holds overlap, and a stream of them must come to an end.
	holdPatience = 50 * time.Millisecond
)

// ErrHoldRefused: writes have been kept back for long enough, or there are too
// many holds; nothing is held. Ask again after a pause.
var ErrHoldRefused = errors.New("shardgroup: writes were kept back for too long for another hold")

// ErrHoldBroken: the hold had ended before the promise: by its time, or because
// leadership or an entry was lost. Nothing was promised.
var ErrHoldBroken = errors.New("shardgroup: the hold was broken before the promise")

// Kept is what a group counts of one collection.
type Kept struct{ Documents, Bytes uint64 }

// Hold keeps writes into these collections (nil: into any) from getting
// timestamps, until Redeem or Release, or for half a second. It answers when
// everything that has one is applied: how far the machine is, who is about to
// write there, and the kept counts of the collections in counts. Whether this
// node led all the time is for Redeem to find out.
func (g *Group) Hold(ctx context.Context, collections, counts []placement.CollectionID) (txn.Held, []Kept, error) {
	if _, err := g.term(ctx); err != nil {
		return txn.Held{}, nil, err
	}
	h, err := g.batcher.hold(ctx, collections)
	if err != nil {
		return txn.Held{}, nil, err
	}
	// The list comes before the counts: what is resolved meanwhile was listed,
	// or counts.
	holders, clock := g.machine.Undecided(collections)
	h.Clock = clock
	for _, o := range holders {
		h.Undecided = append(h.Undecided, txn.Open{ID: o.ID, Home: o.Home})
	}
	kept := make([]Kept, len(counts))
	for i, c := range counts {
		if kept[i].Documents, kept[i].Bytes, err = g.machine.Count(c); err != nil {
			g.Release(h.Term, h.Token)
			return txn.Held{}, nil, err
		}
	}
	return h, kept, nil
}

// Redeem ends a hold with a promise: if it was unbroken until now, nothing that
// it was to keep back is written at or below p.To. The promise is in the log when
// Redeem returns nil, in the term of the hold: nobody else has led in between.
func (g *Group) Redeem(ctx context.Context, term, token uint64, p fsm.Promise) error {
	if _, err := g.term(ctx); err != nil {
		return err
	}
	var out Outcome
	w := &waiter{done: make(chan struct{})}
	w.left.Store(1)
	prop, err := newProposal(fsm.Command{Promise: &p}, time.Now(), &out, w)
	if err != nil {
		return err
	}
	if err := g.batcher.redeem(term, token, &prop); err != nil {
		return err
	}
	if err := g.await(ctx, w); err != nil {
		return err
	}
	if out.Err == nil && out.Result.Wire.Error != nil {
		e := out.Result.Wire.Error
		return &fsm.Error{Code: e.Code, Epoch: placement.Epoch(e.Epoch), Detail: out.Result.Detail}
	}
	return out.Err
}

// Release ends a hold without a promise.
func (g *Group) Release(term, token uint64) { g.batcher.release(term, token) }

// keepLocked keeps a proposal back.
func (b *batcher) keepLocked(p *proposal) {
	p.kept = true
	b.held = append(b.held, p)
	b.heldBytes += p.size
}

// letGoLocked queues what no hold keeps back any more, in its order.
func (b *batcher) letGoLocked() {
	if len(b.held) == 0 {
		return
	}
	kept := b.held[:0]
	for _, p := range b.held {
		if b.memory.Held(&p.cmd) {
			kept = append(kept, p)
			continue
		}
		b.heldBytes -= p.size
		b.queueLocked(p)
	}
	clear(b.held[len(kept):])
	b.held = kept
	b.cond.Signal()
}

// starvedLocked says that a write which was kept back has waited long enough.
func (b *batcher) starvedLocked(now time.Time) bool {
	late := func(p *proposal) bool { return p.kept && now.Sub(p.since) > holdPatience }
	return slices.ContainsFunc(b.held, late) || slices.ContainsFunc(b.queue[b.head:], late)
}

// hold begins a hold and waits until what has its timestamp is applied.
func (b *batcher) hold(ctx context.Context, collections []placement.CollectionID) (txn.Held, error) {
	b.mu.Lock()
	now := time.Now()
	b.expireHoldsLocked(now)
	term := b.memory.Term()
	if term == 0 {
		b.mu.Unlock()
		return txn.Held{}, b.g.notLeader()
	}
	if b.starvedLocked(now) {
		b.mu.Unlock()
		return txn.Held{}, ErrHoldRefused
	}
	token, upto, ok := b.memory.Hold(now.Add(holdTime), collections)
	if !ok {
		b.mu.Unlock()
		return txn.Held{}, ErrHoldRefused
	}
	// What waits in the queue has no timestamp yet.
	rest := b.queue[:b.head]
	for _, p := range b.queue[b.head:] {
		if b.memory.Held(&p.cmd) {
			b.bytes -= p.size
			b.keepLocked(p)
		} else {
			rest = append(rest, p)
		}
	}
	clear(b.queue[len(rest):])
	b.queue = rest
	time.AfterFunc(holdTime, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.expireHoldsLocked(time.Now())
	})
	h := txn.Held{Term: term, Token: token}
	landed := b.drainLocked(upto)
	b.mu.Unlock()
	err := b.g.drain(ctx, landed)
	if err != nil {
		b.release(term, token)
	}
	return h, err
}

func (b *batcher) expireHoldsLocked(now time.Time) {
	b.memory.Expire(now)
	b.letGoLocked()
}

// redeem ends a hold with a promise, and queues that before what was held back.
func (b *batcher) redeem(term, token uint64, p *proposal) error {
	b.mu.Lock()
	if b.stopped {
		b.mu.Unlock()
		return b.g.stopError()
	}
	if !b.memory.Redeem(term, token, time.Now(), p.cmd.Promise.To) {
		b.mu.Unlock()
		return ErrHoldBroken
	}
	b.queueLocked(p)
	b.letGoLocked()
	b.g.host.cadence.moved(1, 0)
	asks := b.asksLocked()
	b.cond.Signal()
	b.mu.Unlock()
	b.g.host.cadence.came(asks)
	return nil
}

func (b *batcher) release(term, token uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.memory.Release(term, token)
	b.letGoLocked()
}
