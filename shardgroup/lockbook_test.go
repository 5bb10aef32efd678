package shardgroup

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// TestLocksOfTheDeadExpire: what clients that died have locked up front goes,
// though nobody asks for those documents again, and never fills the book.
func TestLocksOfTheDeadExpire(t *testing.T) {
	var b lockBook
	b.init()
	now := time.Now()
	key := func(i int) docKey { return docKey{placement.PartitionID(1), placement.CollectionID(1), fmt.Sprint(i)} }
	lock := func(i int, at time.Time) bool {
		_, _, ok := b.take(key(i), frontLock{id: txn.ID{Time: uint64(i + 1)}, expires: at.Add(time.Second)}, at)
		return ok
	}
	for i := range 3 {
		if !lock(i, now.Add(time.Duration(i)*time.Second/4)) {
			t.Fatalf("lock %d is refused", i)
		}
	}
	b.mu.Lock()
	changed := b.changed
	b.mu.Unlock()
	b.expire(now.Add(time.Second / 2))
	if n := b.count.Load(); n != 3 {
		t.Fatalf("%d locks are left, none of three has expired", n)
	}
	b.expire(now.Add(5 * time.Second / 4))
	if n := b.count.Load(); n != 1 || len(b.of) != 1 {
		t.Fatalf("%d locks of %d transactions are left, one of three has not expired", n, len(b.of))
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	for i := range maxFrontLocks - 1 {
		if !lock(10+i, now.Add(time.Second)) {
			t.Fatalf("lock %d is refused", i)
		}
	}
	if lock(5, now.Add(time.Second)) {
		t.Error("more locks than the book may have")
	}
	if !lock(5, now.Add(10*time.Second)) {
		t.Error("expired locks keep the book full")
	}
	if n := b.count.Load(); n != 1 {
		t.Errorf("%d locks are counted, there is one", n)
	}
}

// TestLateLockIsRefused: a request for a lock that was carried twice, or was
// slow, locks nothing for a transaction that has ended; what is remembered of
// those has a bound.
func TestLateLockIsRefused(t *testing.T) {
	c := seeded(t, 1, 1, nil)
	l := c.leader(1)
	ctx := ctxFor(t, 20*time.Second)
	now := hlc.NewClock(nil).Now()
	key := fsm.ReadKey{Epoch: 1, Collection: 1, ID: "a"}
	id := txn.ID(newRequest(now))
	lock := func(id txn.ID) error { return l.Lock(ctx, id, now, key, time.Minute, true) }
	late := func(what string) {
		t.Helper()
		var back *StepBack
		if err := lock(id); !errors.As(err, &back) || back.Rival != id {
			t.Errorf("%s: %v", what, err)
		}
		if locks := l.FrontLocks(); len(locks) > 0 {
			t.Fatalf("%s: %+v is held for nobody", what, locks)
		}
	}
	if err := lock(id); err != nil {
		t.Fatal(err)
	}
	l.Unlock(id)
	late("carried twice, after the end")
	id = txn.ID(newRequest(now))
	l.Unlock(id)
	late("carried after the end only")

	// One whose commit has come needs no more locks here.
	id = txn.ID(newRequest(now))
	if err := lock(id); err != nil {
		t.Fatal(err)
	}
	l.locks.commits(id)
	late("after its commit")
	// One that was never locked for is not remembered: there are many.
	other := txn.ID(newRequest(now))
	l.locks.commits(other)
	if err := lock(other); err != nil {
		t.Error(err)
	}
	l.Unlock(other)

	for range 2 * maxEnded {
		l.Unlock(txn.ID(newRequest(now)))
	}
	if len(l.locks.ended) != maxEnded || len(l.locks.order) != maxEnded {
		t.Errorf("%d and %d are remembered, want %d", len(l.locks.ended), len(l.locks.order), maxEnded)
	}
	if err := lock(id); err != nil {
		t.Errorf("one that ended long ago is remembered for ever: %v", err)
	}
}

// TestLocksPassedOn: who gets another's locks is not kept from the document by
// them, and lets go of them.
func TestLocksPassedOn(t *testing.T) {
	c := seeded(t, 1, 1, nil)
	l := c.leader(1)
	ctx := ctxFor(t, 10*time.Second)
	now := hlc.NewClock(nil).Now()
	key := fsm.ReadKey{Epoch: 1, Collection: 1, ID: "a"}
	first, second, third := txn.ID(newRequest(now)), txn.ID(newRequest(now)), txn.ID(newRequest(now))
	if err := l.Lock(ctx, first, now, key, time.Minute, true); err != nil {
		t.Fatal(err)
	}
	l.PassLocks(first, second)
	l.PassLocks(third, first) // nothing
	blocks := func(id txn.ID) bool {
		holders, _ := l.locks.blockers(&fsm.Command{Txn: &fsm.Txn{ID: id, Commit: &fsm.Commit{
			Parts: []fsm.PartitionPart{{Part: txn.Part{Reads: []txn.Read{{Collection: 1, ID: "a"}}}}},
		}}}, time.Now())
		return len(holders) > 0
	}
	if blocks(second) {
		t.Error("it waits for its own lock")
	}
	if !blocks(third) {
		t.Error("the lock keeps nobody away any more")
	}
	l.Unlock(first)
	if locks := l.FrontLocks(); len(locks) != 1 || locks[0].ID != second {
		t.Errorf("after the first has let go: %+v", locks)
	}
	l.Unlock(second)
	if locks := l.FrontLocks(); len(locks) != 0 || blocks(third) {
		t.Errorf("after the second has let go: %+v", locks)
	}
}
