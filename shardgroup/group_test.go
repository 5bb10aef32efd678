package shardgroup

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
)

func TestProposeReadRestart(t *testing.T) {
	leaks := noLeaks(t)
	c := seeded(t, 3, 2, nil)
	body := raw(t, map[string]any{"n": 1})
	for _, s := range c.specs {
		for i := range 20 {
			r := c.must(s.ID, write(wire.OpPut, string(rune('a'+i)), body))
			if r.Wire.Error != nil || !r.Wire.Created {
				t.Fatalf("put: %+v", r.Wire)
			}
		}
		l := c.leader(s.ID)
		if err := l.ReadIndex(ctxFor(t, 2*time.Second)); err != nil {
			t.Fatal(err)
		}
		if d, err := read(t, l.Machine(), "c", fsm.At{}); err != nil || d.Version != 1 {
			t.Fatalf("read: %+v %v", d, err)
		}
		for _, id := range c.order {
			g := c.group(id, s.ID)
			var nl *NotLeaderError
			if !g.IsLeader() {
				if err := g.ReadIndex(ctxFor(t, time.Second)); !errors.As(err, &nl) || nl.Leader == "" {
					t.Fatalf("read at a follower: %v", err)
				}
				if _, err := g.Propose(ctxFor(t, time.Second), write(wire.OpPut, "x", body)); !errors.As(err, &nl) {
					t.Fatalf("propose at a follower: %v", err)
				}
			}
		}
		c.equal(s.ID)
	}
	// All at once, as after a power cut; the state engine loses what it had
	// not flushed.
	var stopped []*testNode
	for _, id := range c.order {
		stopped = append(stopped, c.stop(id))
	}
	for _, n := range stopped {
		c.restart(n)
	}
	for _, s := range c.specs {
		l := c.leader(s.ID)
		if err := l.ReadIndex(ctxFor(t, 2*time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, _, err := l.Machine().Count(1); err != nil || n != 20 {
			t.Fatalf("after restart: %d documents, %v", n, err)
		}
		c.equal(s.ID)
	}
	c.close()
	leaks()
}

// The largest document fits in an entry, and an entry in a message.
//
// Heartbeats wait behind it, which has to be written and synced and is a
// thousand times what the timing of other tests is for: on a busy machine each
// attempt would end a leadership, and the next one begin from the front.
func TestLargestDocument(t *testing.T) {
	c := seeded(t, 3, 1, func(_ placement.NodeID, cfg *Config) { cfg.Timing.Heartbeat = 2 * time.Second })
	cmd := write(wire.OpPut, "large", raw(t, map[string]any{"v": strings.Repeat("x", wire.MaxDocumentBytes-64)}))
	cmd.Write.MaxBytes = wire.MaxDocumentBytes
	if r := c.must(1, cmd); r.Wire.Error != nil {
		t.Fatalf("put: %v", r.Wire.Error)
	}
	c.equal(1)
	over := write(wire.OpPut, "over", make([]byte, maxCommandBytes))
	if _, err := c.leader(1).Propose(ctxFor(t, time.Second), over); err == nil || !strings.Contains(err.Error(), "cannot be proposed") {
		t.Errorf("a command that fits in no message: %v", err)
	}
	c.must(1, write(wire.OpPut, "after", raw(t, map[string]any{"v": 1})))
}

// Members that let the preferred one go first are back to normal timing soon.
func TestHeadStartEnds(t *testing.T) {
	c := newCluster(t, 3, 0, nil)
	s := GroupSpec{ID: 7, Preferred: "n2"}
	for _, id := range c.order {
		s.Members = append(s.Members, Member{Node: id, Incarnation: "1"})
	}
	for _, id := range c.order {
		if _, err := c.node(id).host.StartGroup(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range c.order {
		g := c.group(id, 7)
		c.wait("normal timing of "+string(id), func() bool {
			rc := g.raft.ReloadableConfig()
			return rc.HeartbeatTimeout == quick.Heartbeat && rc.ElectionTimeout == quick.Heartbeat
		})
	}
}

// Starting a group again is fine, with other members it is refused, and a
// stranger cannot be started at all.
func TestStartGroupAgain(t *testing.T) {
	c := newCluster(t, 1, 1, nil)
	h := c.node("n1").host
	g, err := h.StartGroup(c.specs[0])
	if have, ok := h.Group(1); err != nil || !ok || have != g {
		t.Errorf("the same group again: %v", err)
	}
	other := GroupSpec{ID: 1, Members: []Member{{Node: "n1", Incarnation: "1"}, {Node: "n2", Incarnation: "1"}}}
	if _, err := h.StartGroup(other); !errors.Is(err, ErrExists) {
		t.Errorf("with other members: %v", err)
	}
	for _, s := range []GroupSpec{
		{ID: 2, Members: []Member{{Node: "n2", Incarnation: "1"}}},
		{ID: 2, Members: []Member{{Node: "n1", Incarnation: "2"}}},
		{ID: 0, Members: []Member{{Node: "n1", Incarnation: "1"}}},
	} {
		if _, err := h.StartGroup(s); err == nil {
			t.Errorf("%+v was started", s)
		}
	}
	c.stop("n1")
	if _, err := h.StartGroup(c.specs[0]); !errors.Is(err, ErrStopped) {
		t.Errorf("after Close: %v", err)
	}
}

// A graceful stop hands leadership over before it takes effect.
func TestHandOver(t *testing.T) {
	c := seeded(t, 3, 2, nil)
	for _, s := range c.specs {
		c.leadBy(s.ID, "n1")
	}
	c.node("n1").host.HandOver(ctxFor(t, 5*time.Second))
	for _, s := range c.specs {
		if g := c.group("n1", s.ID); g.IsLeader() {
			t.Errorf("n1 still leads %s", s.ID)
		}
		c.must(s.ID, write(wire.OpPut, "a", raw(t, map[string]any{"v": 1})))
	}
}

// Retention is carried out by the leader: request IDs and old versions go.
func TestForgetting(t *testing.T) {
	c := seeded(t, 3, 1, func(_ placement.NodeID, cfg *Config) {
		cfg.SweepInterval, cfg.RequestIDTTL = 20*time.Millisecond, 100*time.Millisecond
		cfg.Retention = func(placement.CollectionID) (Retention, bool) {
			return Retention{Age: 50 * time.Millisecond, Versions: 2}, true
		}
	})
	first := write(wire.OpPut, "a", raw(t, map[string]any{"v": 1}))
	c.must(1, first)
	for i := range 9 {
		c.must(1, write(wire.OpPut, "a", raw(t, map[string]any{"v": i})))
	}
	c.wait("old versions to be collected", func() bool {
		return c.leader(1).Machine().Stats().Rows == 3 // the document and two superseded
	})
	c.wait("the first request to be forgotten", func() bool {
		r := c.must(1, first)
		return r.Wire.Error != nil && r.Wire.Error.Code == wire.CodeOutcomeExpired
	})
	if d, err := read(t, c.leader(1).Machine(), "a", fsm.At{}); err != nil || d.Version != 10 {
		t.Errorf("the document: version %d, %v", d.Version, err)
	}
	c.equal(1)
	// A scan of a group that nobody writes to reads at its clock.
	l := c.leader(1)
	if _, history := l.Machine().Horizons(); len(history) != 1 || history[0].At > l.Machine().Clock() {
		t.Errorf("history is kept from %v on, and the clock is at %d", history, l.Machine().Clock())
	}
	if _, _, _, err := l.Machine().Scan(fsm.ScanSpec{Collection: 1, At: l.Machine().Clock()}); err != nil {
		t.Errorf("a scan of now: %v", err)
	}
	// An idle group writes nothing.
	var last uint64
	c.wait("rest", func() bool {
		now := l.raft.LastIndex()
		same := now == last
		last = now
		<-time.After(300 * time.Millisecond) // a bound: several sweeps long
		return same && l.raft.LastIndex() == now
	})
}

// A new leader holds what its predecessor acknowledged, and does not know yet
// that it is committed: its machine lacks it. Until an entry of its own term is
// applied it answers nothing.
func TestNewLeaderKnowsWhatItInherited(t *testing.T) {
	// A look at the disk's free space would let entries in again.
	c := seeded(t, 3, 1, func(_ placement.NodeID, cfg *Config) { cfg.SpaceInterval = time.Hour })
	for round := 1; ; round++ {
		l := c.leadBy(1, "n1")
		key := fmt.Sprintf("d%d", round)
		if r, err := l.Propose(ctxFor(t, 5*time.Second), write(wire.OpPut, key, raw(t, map[string]any{"v": 1}))); err != nil || r.Wire.Error != nil {
			t.Fatal(err, r.Wire.Error)
		}
		// The old leader is gone before it can say what is committed, and the
		// others take no entries: whoever is elected cannot commit its first.
		c.isolate("n1", true)
		held := errors.New("held back by the test")
		var next *Group
		for _, id := range []placement.NodeID{"n2", "n3"} {
			c.group(id, 1).trans.RefuseEntries(held)
		}
		c.wait("another node to be elected", func() bool {
			for _, id := range []placement.NodeID{"n2", "n3"} {
				g := c.group(id, 1)
				g.mu.Lock()
				leads := g.leadsNow && g.raft.State() == raft.Leader
				g.mu.Unlock()
				if leads {
					next = g
				}
			}
			return next != nil
		})
		_, missing := read(t, next.Machine(), key, fsm.At{})
		err := next.ReadIndex(ctxFor(t, 500*time.Millisecond))
		if err == nil {
			if _, lost := read(t, next.Machine(), key, fsm.At{}); lost != nil {
				t.Fatalf("stale read: %s was acknowledged, the new leader confirms a read and has: %v", key, lost)
			}
		}
		for _, id := range []placement.NodeID{"n2", "n3"} {
			c.group(id, 1).trans.RefuseEntries(nil)
		}
		c.isolate("n1", false)
		if missing != nil { // the schedule that matters
			if err == nil {
				t.Fatal("a new leader confirmed a read before it had committed anything")
			}
			l := c.leader(1)
			if err := l.ReadIndex(ctxFor(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := read(t, l.Machine(), key, fsm.At{}); err != nil {
				t.Fatalf("%s was acknowledged, and now: %v", key, err)
			}
			return
		}
		if round == 20 {
			t.Fatal("new leaders always knew already: the test does not test")
		}
	}
}
