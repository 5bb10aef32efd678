package shardgroup

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/transport"
)

// sleepyLeader makes n1 a node that does not notice that it is alone, as a
// paused process does not, however long the test takes. It is never elected by
// itself.
func sleepyLeader(id placement.NodeID, c *Config) {
	if id == "n1" {
		c.Timing.Heartbeat, c.StallLimit = time.Hour, 2*time.Hour
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
	joined := make(chan error, 1)
	if !l.Join("read", func(_ []any, err error) { joined <- err }) {
		t.Fatal("no read may join")
	}
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
	select {
	case err := <-joined:
		if err == nil {
			t.Fatal("a deposed leader confirmed a joined read from answers given before it")
		}
	default: // still waits for the voters
	}
	old.setIn(nil)
	c.isolate("n1", false)
}

// Reads that join are answered once each: confirmed with what was acknowledged
// before, or refused, also when the replica stops.
func TestJoin(t *testing.T) {
	c := seeded(t, 3, 1, nil)
	l := c.leader(1)
	for _, id := range c.order {
		if g := c.group(id, 1); g != l && g.Join("read", nil) {
			t.Errorf("a read joins at %s, which does not lead", id)
		}
	}
	var answered, refused, rounds atomic.Int64
	answer := func(reads []any, err error) {
		rounds.Add(1)
		if err != nil {
			refused.Add(int64(len(reads)))
		} else {
			for _, want := range reads {
				if got := l.applied.load(); got < want.(uint64) {
					t.Errorf("confirmed at %d, %d was acknowledged before", got, want)
				}
			}
		}
		answered.Add(int64(len(reads)))
	}
	var joined atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for n := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if i%50 == 0 {
					_, _ = l.Propose(ctxFor(t, time.Second), write(wire.OpPut, fmt.Sprintf("d%d", n), raw(t, map[string]any{"i": i})))
				}
				if l.Join(l.raft.CommitIndex(), answer) {
					joined.Add(1)
				}
				for joined.Load() > answered.Load()+64 {
					select {
					case <-stop:
						return
					case <-time.After(100 * time.Microsecond):
					}
				}
			}
		}()
	}
	c.wait("reads to be confirmed", func() bool { return answered.Load() > 500 })
	if refused.Load() > 0 {
		t.Errorf("%d reads of a healthy leader were refused", refused.Load())
	}
	if rounds.Load() >= answered.Load() {
		t.Errorf("%d rounds for %d reads: none was shared", rounds.Load(), answered.Load())
	}
	node := l.host.cfg.NodeID
	c.stop(node)
	close(stop)
	wg.Wait()
	if joined.Load() != answered.Load() {
		t.Errorf("%d reads joined, %d were answered", joined.Load(), answered.Load())
	}
	if l.Join("read", answer) {
		t.Error("a read joins a stopped replica")
	}
}

// A voter that does not answer costs a few milliseconds, once: the other one is
// asked, and asked first from then on.
func TestSilentVoter(t *testing.T) {
	c := seeded(t, 3, 1, sleepyLeader)
	l := c.leadBy(1, "n1")
	if err := l.ReadIndex(ctxFor(t, 2*time.Second)); err != nil {
		t.Fatal(err)
	}
	voters := map[placement.NodeID]bool{}
	for _, id := range c.order {
		if id == "n1" {
			continue
		}
		// Its answers do not arrive; what it is asked does.
		hold := false
		c.node("n1").net.setIn(&hold)
		began := c.node(id).host.confirm.served.Load()
		done := make(chan error, 1)
		go func() { done <- l.ReadIndex(ctxFor(t, 5*time.Second)) }()
		c.wait("both voters to be asked", func() bool { return c.node(id).host.confirm.served.Load() > began })
		c.node("n1").net.setIn(nil)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		voters[id] = true
	}
	if len(voters) != 2 {
		t.Fatal("two voters were expected")
	}
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
	asked := l.raft.CurrentTerm()
	ask := func(to raft.ServerID, term uint64) (bool, error) {
		rd := &round{begun: true, term: term}
		body := encodeQuestions([]question{{round: rd, replica: &l.replica}})
		node, incarnation := transport.SplitServerID(to)
		answer, err := l.host.cfg.Peers.CallIncarnation(ctxFor(t, time.Second), node, incarnation, wire.KindConfirm, body)
		if err != nil {
			return false, err
		}
		v, err := decodeVerdicts(answer, 1)
		return err == nil && v[0] == 1, err
	}
	for _, s := range l.servers() {
		if s.ID == l.self {
			continue
		}
		if yes, err := ask(s.ID, asked); err != nil || !yes {
			t.Fatalf("%s: %v %v", s.ID, yes, err)
		}
		node := s.Address
		other := Member{Node: placement.NodeID(node), Incarnation: "2"}.serverID()
		if yes, err := ask(other, asked); err == nil {
			t.Fatalf("incarnation 2 of %s was confirmed by incarnation 1: %v", node, yes)
		}
		if yes, err := ask(s.ID, asked-1); err != nil || yes {
			t.Fatalf("%s confirmed a term below its own: %v %v", s.ID, yes, err)
		}
		name, incarnation := transport.SplitServerID(other)
		if l.host.cfg.Peers.Ask(name, incarnation, wire.KindConfirm, nil, func([]byte, error) {}) != nil {
			t.Fatalf("incarnation 2 of %s was asked at incarnation 1", node)
		}
	}
}

func TestWatermark(t *testing.T) {
	var w watermark
	var got []int
	for _, at := range []int{3, 1, 2} {
		w.when(uint64(at), func(bool) { got = append(got, at) })
	}
	w.advance(1)
	w.advance(1)
	w.when(1, func(bool) { got = append(got, 10) })
	w.advance(5)
	w.when(6, func(reached bool) {
		if reached {
			got = append(got, 6)
		} else {
			got = append(got, -6)
		}
	})
	if w.n.Load() != 1 {
		t.Errorf("%d waiters are counted, 1 waits", w.n.Load())
	}
	w.close()
	w.when(5, func(reached bool) {
		if reached {
			got = append(got, 5)
		}
	})
	w.when(7, func(reached bool) {
		if !reached {
			got = append(got, -7)
		}
	})
	want := []int{1, 10, 3, 2, -6, 5, -7}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	if w.n.Load() != 0 {
		t.Errorf("%d waiters are counted, none waits", w.n.Load())
	}
}
