package route

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/txn/hlc"
)

// What each refusal means to a read, to a write, and to a write of which an
// earlier attempt may have been received.
func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		code                wire.Code
		read, write, doubts verdict
	}{
		{wire.CodeBadRequest, final, final, final},
		{wire.CodeBadDocument, final, final, final},
		{wire.CodeBadCursor, final, final, final},
		{wire.CodeBadVersion, final, final, unknown},
		{wire.CodeNotFound, final, final, final},
		{wire.CodeCollectionNotFound, final, final, unknown},
		{wire.CodeHistoryExpired, final, final, final},
		{wire.CodeVersionConflict, final, final, final},
		{wire.CodeAlreadyExists, final, final, final},
		{wire.CodeUpdateFailed, final, final, final},
		{wire.CodeClusterExists, final, final, unknown},
		{wire.CodeDocumentTooLarge, final, final, final},
		{wire.CodeFrameTooLarge, final, final, unknown},
		{wire.CodeTooManyRequests, again, again, again},
		{wire.CodeTooManyConns, again, again, again},
		{wire.CodeDiskFull, final, final, again},
		{wire.CodeNotLeader, again, again, again},
		{wire.CodeStaleEpoch, again, again, again},
		{wire.CodeUnavailable, again, again, again},
		{wire.CodeOverloaded, again, again, again},
		{wire.CodeTimeout, again, again, again},
		{wire.CodeNotInitialised, again, again, again},
		{wire.CodeWrongCluster, final, final, unknown},
		{wire.CodeShuttingDown, again, again, again},
		{wire.CodeOutcomeUnknown, doubt, doubt, doubt},
		{wire.CodeOutcomeExpired, final, final, unknown},
		{wire.CodeInternal, again, doubt, doubt},
		{wire.Code(999), final, final, unknown}, // of a later version
	} {
		if got := judge(tc.code, false, false); got != tc.read {
			t.Errorf("%d for a read: %d, want %d", tc.code, got, tc.read)
		}
		if got := judge(tc.code, true, false); got != tc.write {
			t.Errorf("%d for a write: %d, want %d", tc.code, got, tc.write)
		}
		if got := judge(tc.code, true, true); got != tc.doubts {
			t.Errorf("%d for a write in doubt: %d, want %d", tc.code, got, tc.doubts)
		}
	}
}

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newClock()
		if k.Now() != 0 {
			t.Error("a clock that nobody set")
		}
		at := func(ms int64) uint64 { return uint64(hlc.FromMillis(ms)) }
		k.Observe(at(1_000_000))
		time.Sleep(500 * time.Millisecond) // virtual: the bubble's clock moves on
		if got := k.Now().Millis(); got != 1_000_500 {
			t.Errorf("half a second later it is %d", got)
		}
		k.Observe(at(1_000_300)) // delayed on its way
		k.Observe(0)
		if got := k.Now().Millis(); got != 1_000_500 {
			t.Errorf("a late reading set it back to %d", got)
		}
		k.Observe(at(1_000_800)) // the servers are ahead of the estimate
		if got := k.Now().Millis(); got != 1_000_800 {
			t.Errorf("a newer reading made it %d", got)
		}
	})
}

func TestBackoff(t *testing.T) {
	b := backoff{min: 10 * time.Millisecond, max: 100 * time.Millisecond}
	var sum time.Duration
	for range 50 {
		d := b.next()
		if d < 5*time.Millisecond || d > 100*time.Millisecond {
			t.Fatalf("waits %s", d)
		}
		sum += d
	}
	if sum < 50*45*time.Millisecond {
		t.Errorf("does not grow: %s in all", sum)
	}
	if b.reset(); b.next() > 10*time.Millisecond {
		t.Error("does not begin again")
	}
}

// Operations that start together share a deadline; it is never early and at
// most a second late, and contexts do not pile up.
func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Cluster{}
		const length = 30 * time.Second
		seen := make(map[context.Context]bool)
		for range 1000 {
			ctx, cancel := c.Bound(context.Background(), length)
			if cancel != nil {
				t.Fatal("a timer of its own")
			}
			deadline, _ := ctx.Deadline()
			if left := time.Until(deadline); left < length || left > length+time.Second {
				t.Fatalf("%s left", left)
			}
			seen[ctx] = true
			time.Sleep(100 * time.Millisecond) // virtual
		}
		if len(seen) > 110 {
			t.Errorf("%d contexts for 100 seconds", len(seen))
		}
		if n := len(c.life.all); n > 40 {
			t.Errorf("%d contexts are kept", n)
		}
		own, cancel := context.WithTimeout(context.Background(), time.Second)
		if got, _ := c.Bound(own, length); got != own {
			t.Error("a deadline was replaced")
		}
		cancel()
		mine, cancel := context.WithCancel(context.Background())
		got, stop := c.Bound(mine, length)
		if cancel(); !errors.Is(got.Err(), context.Canceled) {
			t.Error("a cancellation was lost")
		}
		stop()
		last, _ := c.Bound(context.Background(), length)
		c.life.close()
		if last.Err() == nil {
			t.Error("outlives Close")
		}
	})
}

// The leader of a group is what answered last; hints only help to look.
func TestGroup(t *testing.T) {
	c := &Cluster{opt: Options{}.withDefaults()}
	c.base, c.stop = context.WithCancel(context.Background())
	v := &View{nodes: make(map[string]*node)}
	for _, id := range []string{"n1", "n2", "n3"} {
		v.nodes[id] = newNode(c, id)
	}
	n1, n2, n3 := v.nodes["n1"], v.nodes["n2"], v.nodes["n3"]
	g := &group{id: 1}
	g.setReplicas([]string{"n1", "n2", "n3"})

	g.told("n2", 5)
	if w := g.route(); w != nil {
		t.Fatal("a hint is no way yet")
	}
	token := g.probe(0)
	if token == 0 || g.probe(0) != 0 {
		t.Fatal("one at a time looks for the leader")
	}
	if n, direct := g.candidate(v, nil, 0); n != n2 || !direct {
		t.Errorf("the hint is asked first, not %s", n.id)
	}
	g.refused(n2, "n3")
	if n, _ := g.candidate(v, n2, 1); n != n3 {
		t.Errorf("the refusal's hint is asked next, not %s", n.id)
	}
	g.found(n3, true)
	g.release(token)
	if w := g.route(); w == nil || w.node != n3 || !w.direct {
		t.Fatal("an answer makes the way")
	}
	g.told("n1", 4)
	if g.route() == nil {
		t.Error("an old topology's word counts less than an answer")
	}
	g.told("n1", 6)
	if g.route() != nil {
		t.Error("a newer term ends the old leader's")
	}
	g.found(n1, true)
	g.refused(n2, "n2") // somebody else's late refusal
	if w := g.route(); w == nil || w.node != n1 {
		t.Error("a refusal by another node says nothing about the leader")
	}
	n1.state.Store(int32(nodeDown))
	if g.route() != nil {
		t.Error("a node that is down is no way")
	}
	g.found(n2, false)
	if w := g.route(); w == nil || w.direct {
		t.Error("a detour")
	}
	for _, n := range v.nodes {
		n.state.Store(int32(nodeDown))
	}
	if n, _ := g.candidate(v, nil, 0); n != nil {
		t.Error("nobody is left to ask")
	}
	c.stop()
}
