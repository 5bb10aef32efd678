package shardgroup

import (
	"errors"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
)

// writing proposes a write in the background.
func writing(t *testing.T, g *Group, id string) chan Outcome {
	done := make(chan Outcome, 1)
	go func() {
		r, err := g.Propose(ctxFor(t, 10*time.Second), write(wire.OpPut, id, raw(t, map[string]int{"n": 1})))
		done <- Outcome{r, err}
	}()
	return done
}

func heldBack(g *Group) int {
	g.batcher.mu.Lock()
	defer g.batcher.mu.Unlock()
	return len(g.batcher.held)
}

func TestHold(t *testing.T) {
	c := seeded(t, 1, 1, nil)
	defer c.close()
	g := c.leader(1)
	c.must(1, write(wire.OpPut, "before", raw(t, map[string]int{"n": 1})))

	h, kept, err := g.Hold(ctxFor(t, 5*time.Second), []placement.CollectionID{1}, []placement.CollectionID{1})
	if err != nil {
		t.Fatal(err)
	}
	if h.Clock != g.Machine().Clock() || kept[0].Documents != 1 {
		t.Fatalf("held at %d with %d documents, the machine is at %d with 1", h.Clock, kept[0].Documents, g.Machine().Clock())
	}
	done := writing(t, g, "during")
	eventually(t, "the write is kept back", func() bool { return heldBack(g) == 1 })
	// What the hold is not about goes on.
	other := write(wire.OpPut, "elsewhere", raw(t, map[string]int{"n": 1}))
	other.Write.Collection = 2
	if _, err := g.Propose(ctxFor(t, 5*time.Second), other); err != nil {
		t.Fatal(err)
	}
	select {
	case o := <-done:
		t.Fatalf("a held write ended: %+v", o)
	default:
	}
	at := g.host.cfg.Clock.Now().Add(time.Hour) // far beyond what a clock would assign
	if err := g.Redeem(ctxFor(t, 5*time.Second), h.Term, h.Token, fsm.Promise{To: at, Epoch: 1, Partitions: []placement.PartitionID{0}}); err != nil {
		t.Fatal(err)
	}
	if got := g.Machine().Ceiling(); got < at {
		t.Fatalf("the ceiling is at %d, promised was %d", got, at)
	}
	o := <-done
	if o.Err != nil || o.Result.Wire.Time <= uint64(at) {
		t.Fatalf("held back until a promise at %d, the write has time %d, %v", at, o.Result.Wire.Time, o.Err)
	}
	if err := g.Redeem(ctxFor(t, 5*time.Second), h.Term, h.Token, fsm.Promise{To: at + 1, Epoch: 1}); !errors.Is(err, ErrHoldBroken) {
		t.Fatalf("one hold, two promises: %v", err)
	}

	h, _, err = g.Hold(ctxFor(t, 5*time.Second), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var stale *fsm.Error
	err = g.Redeem(ctxFor(t, 5*time.Second), h.Term, h.Token, fsm.Promise{To: at + 1<<30, Epoch: 1, Partitions: []placement.PartitionID{0, 5}})
	if !errors.As(err, &stale) || stale.Code != wire.CodeStaleEpoch {
		t.Fatalf("a promise for a partition that is not owned: %v", err)
	}
}

// TestHoldEnds: by its time, if nobody redeems it; and a write that has been
// kept back for long lets nobody begin another.
func TestHoldEnds(t *testing.T) {
	c := seeded(t, 1, 1, nil)
	defer c.close()
	g := c.leader(1)
	h, _, err := g.Hold(ctxFor(t, 5*time.Second), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	done := writing(t, g, "a")
	eventually(t, "the write is kept back", func() bool { return heldBack(g) == 1 })
	if _, _, err := g.Hold(ctxFor(t, 5*time.Second), nil, nil); err != nil {
		t.Fatalf("holds exclude each other: %v", err)
	}
	refused := false
	for heldBack(g) == 1 {
		_, _, err := g.Hold(ctxFor(t, 5*time.Second), nil, nil)
		refused = refused || errors.Is(err, ErrHoldRefused)
	}
	if o := <-done; o.Err != nil {
		t.Fatal(o.Err)
	}
	if !refused {
		t.Fatal("holds were begun beside a write that had waited for half a second")
	}
	if err := g.Redeem(ctxFor(t, 5*time.Second), h.Term, h.Token, fsm.Promise{To: 1}); !errors.Is(err, ErrHoldBroken) {
		t.Fatalf("promised by a hold that was over: %v", err)
	}
	h, _, err = g.Hold(ctxFor(t, 5*time.Second), nil, nil)
	if err != nil {
		t.Fatalf("the write is done, and still no hold: %v", err)
	}
	done = writing(t, g, "b")
	eventually(t, "the write is kept back", func() bool { return heldBack(g) == 1 })
	g.Release(h.Term, h.Token)
	if o := <-done; o.Err != nil {
		t.Fatal(o.Err)
	}
}

func TestHoldEndsWithLeadership(t *testing.T) {
	c := seeded(t, 3, 1, nil)
	defer c.close()
	g := c.leader(1)
	h, _, err := g.Hold(ctxFor(t, 5*time.Second), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.TransferLeadership(ctxFor(t, 5*time.Second), ""); err != nil {
		t.Fatal(err)
	}
	next := c.leader(1, g.host.cfg.NodeID)
	for _, at := range []*Group{g, next} {
		if err := at.Redeem(ctxFor(t, 5*time.Second), h.Term, h.Token, fsm.Promise{To: 1, Epoch: 1}); err == nil {
			t.Fatalf("promised at %s by a hold of an earlier term", at.host.cfg.NodeID)
		}
	}
	if o := <-writing(t, next, "a"); o.Err != nil {
		t.Fatal(o.Err)
	}
}

// Clocks stay near the wall's, however often the leader changes: each begins
// above what the one before has promised.
func TestNewLeadersStayNearTheWall(t *testing.T) {
	c := seeded(t, 3, 1, nil)
	nodes := []placement.NodeID{"n1", "n2", "n3"}
	for i := range 12 {
		g := c.leadBy(1, nodes[i%len(nodes)])
		c.wait("a read at a time", func() bool {
			clock := g.host.cfg.Clock
			return g.ReadAt(ctxFor(t, time.Second), clock.Now()) == nil
		})
		c.must(1, write(wire.OpPut, "a", raw(t, map[string]any{"n": i})))
	}
	if ahead := c.leader(1).host.cfg.Clock.Ahead(); ahead > 2*ceilingLead {
		t.Errorf("after 12 leaders the clock is ahead by %v", ahead)
	}
}
