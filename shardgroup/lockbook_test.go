package shardgroup

import (
	"fmt"
	"testing"
	"time"

	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
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
