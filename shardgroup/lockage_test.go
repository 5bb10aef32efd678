package shardgroup

import (
	"slices"
	"testing"
	"time"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// Those who wait for a lock get it in the order of their ages, whoever came first.
func TestLockByAge(t *testing.T) {
	c := seeded(t, 1, 1, nil)
	l := c.leader(1)
	ctx := ctxFor(t, 10*time.Second)
	now := hlc.NewClock(nil).Now()
	key := fsm.ReadKey{Epoch: 1, Collection: 1, ID: "a"}
	newID := func() txn.ID { return txn.ID(newRequest(now)) }
	first := newID()
	if err := l.Lock(ctx, first, now, key, time.Minute, true); err != nil {
		t.Fatal(err)
	}
	ages := []int{4, 1, 5, 3, 2}
	got := make(chan int)
	for i, age := range ages {
		go func() { // joined by got
			id := newID()
			if err := l.Lock(ctx, id, now.Add(time.Duration(age)*time.Second), key, time.Minute, true); err != nil {
				t.Error(err)
			}
			got <- age
			l.Unlock(id)
		}()
		c.wait("them to wait", func() bool { return len(l.Waits()) == i+1 })
	}
	l.Unlock(first)
	var order []int
	for range ages {
		order = append(order, <-got)
	}
	if !slices.IsSorted(order) {
		t.Errorf("they got it in order %v", order)
	}
	l.locks.mu.Lock()
	defer l.locks.mu.Unlock()
	if len(l.locks.wanted) > 0 {
		t.Errorf("still wanted: %v", l.locks.wanted)
	}
}
