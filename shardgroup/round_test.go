package shardgroup

import (
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
)

// sleepyLeader makes n1 a node that does not notice for long that it is alone,
// as a paused process does not. It is never elected by itself.
func sleepyLeader(id placement.NodeID, c *Config) {
	if id == "n1" {
		c.Timing.Heartbeat, c.StallLimit = 20*time.Second, time.Minute
	}
}

// A voter's answer to an earlier question must not confirm a later read: it
// was given before the voter elected somebody else.
func TestReadIgnoresOldAnswers(t *testing.T) {
	c := seeded(t, 3, 1, sleepyLeader)
	l := c.leadBy(1, "n1")
	c.must(1, write(wire.OpPut, "a", raw(t, map[string]any{"v": 1})))
	old := c.node("n1").net

	// An early read asks the voters; their answers are on the way for long.
	hold, pass := false, true
	old.setIn(&hold)
	early := make(chan error, 1)
	go func() { early <- l.ReadIndex(ctxFor(t, 10*time.Second)) }()
	c.wait("the early round to be asked", func() bool {
		n := 0
		for _, p := range []placement.NodeID{"n2", "n3"} {
			if c.node(p).host.confirm.served.Load() > 0 {
				n++
			}
		}
		return n == 2
	})
	c.isolate("n1", true)
	c.leader(1, "n1")
	var next *Group
	c.wait("v2 to be acknowledged", func() bool {
		next = c.leader(1, "n1")
		r, err := next.Propose(ctxFor(t, time.Second), write(wire.OpPut, "a", raw(t, map[string]any{"v": 2})))
		return err == nil && r.Wire.Error == nil
	})
	if !l.IsLeader() {
		t.Fatal("n1 has noticed; the schedule needs it to believe that it leads")
	}

	// The read that matters begins after v2 was acknowledged. Then the old
	// answers arrive, and nothing else.
	late := make(chan error, 1)
	go func() { late <- l.ReadIndex(ctxFor(t, 700*time.Millisecond)) }()
	c.wait("the late read to wait", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.next != nil
	})
	old.setIn(&pass) // in, but not out
	if err := <-early; err != nil {
		t.Logf("the early read: %v", err) // may succeed: it began before v2
	}
	if err := <-late; err == nil {
		d, _ := read(t, l.Machine(), "a", fsm.At{})
		t.Fatalf("a deposed leader confirmed a read from answers given before it; it would serve version %d, version 2 is acknowledged", d.Version)
	}
	old.setIn(nil)
	c.isolate("n1", false)
}

// Members without a vote must not confirm a read: both other voters may follow
// somebody else.
func TestReadIgnoresLearners(t *testing.T) {
	c := seeded(t, 5, 1, sleepyLeader)
	l := c.leadBy(1, "n1")
	c.must(1, write(wire.OpPut, "a", raw(t, map[string]any{"v": 1})))
	c.mu.Lock()
	for _, a := range []placement.NodeID{"n1", "n4", "n5"} {
		for _, b := range []placement.NodeID{"n2", "n3"} {
			c.nodes[a].net.setCut(b, true)
			c.nodes[b].net.setCut(a, true)
		}
	}
	c.mu.Unlock()
	c.wait("v2 to be acknowledged", func() bool {
		r, err := c.leader(1, "n1").Propose(ctxFor(t, time.Second), write(wire.OpPut, "a", raw(t, map[string]any{"v": 2})))
		return err == nil && r.Wire.Error == nil
	})
	if !l.IsLeader() {
		t.Fatal("n1 has noticed; the schedule needs it to believe that it leads")
	}
	verified := make(chan error, 1)
	go func() { verified <- l.raft.VerifyLeader().Error() }()
	select {
	case err := <-verified:
		if err == nil {
			t.Log("raft's VerifyLeader says that n1 leads, with two learners' answers")
		}
	case <-time.After(500 * time.Millisecond):
	}
	if err := l.ReadIndex(ctxFor(t, 700*time.Millisecond)); err == nil {
		d, _ := read(t, l.Machine(), "a", fsm.At{})
		t.Fatalf("a deposed leader confirmed a read with learners; it would serve version %d, version 2 is acknowledged", d.Version)
	}
	c.mu.Lock()
	for _, n := range c.nodes {
		for _, id := range c.order {
			n.net.setCut(id, false)
		}
	}
	c.mu.Unlock()
}

// A voter that lost its data does not confirm as the one it was.
func TestConfirmNamesTheIncarnation(t *testing.T) {
	c := seeded(t, 3, 1, nil)
	l := c.leader(1)
	q := []question{{group: 1, term: l.raft.CurrentTerm()}}
	for _, s := range l.servers() {
		if s.ID == l.self {
			continue
		}
		if v, err := l.host.confirm.send(s.ID, q); err != nil || !v[0] {
			t.Fatalf("%s: %v %v", s.ID, v, err)
		}
		node := s.Address
		if v, err := l.host.confirm.send(Member{Node: placement.NodeID(node), Incarnation: "2"}.serverID(), q); err == nil {
			t.Fatalf("incarnation 2 of %s was confirmed by incarnation 1: %v", node, v)
		}
		q[0].term--
		if v, err := l.host.confirm.send(s.ID, q); err != nil || v[0] {
			t.Fatalf("%s confirmed a term below its own: %v %v", s.ID, v, err)
		}
		q[0].term++
	}
}

func TestWatermark(t *testing.T) {
	var w watermark
	var got []int
	for _, at := range []int{3, 1, 2} {
		w.when(uint64(at), func() { got = append(got, at) })
	}
	w.advance(1)
	w.advance(1)
	w.when(1, func() { got = append(got, 10) })
	w.advance(5)
	w.when(6, func() { got = append(got, 6) })
	want := []int{1, 10, 3, 2}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	if w.n.Load() != 1 {
		t.Errorf("%d waiters are counted, 1 waits", w.n.Load())
	}
}
