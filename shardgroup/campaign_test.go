package shardgroup

import (
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// patient gives raft timeouts that no wait of these tests outlasts, so that any
// election is firstElection's.
func patient(_ placement.NodeID, c *Config) {
	c.Timing.Heartbeat, c.StallLimit = 8*time.Second, time.Minute
}

func preferN2(c *cluster) GroupSpec {
	s := GroupSpec{ID: 7, Preferred: "n2"}
	for _, id := range c.order {
		s.Members = append(s.Members, Member{Node: id, Incarnation: "1"})
	}
	return s
}

// A group that starts, for the first time or again, does not wait for raft's
// timeouts to have a leader.
func TestFirstElection(t *testing.T) {
	c := newCluster(t, 3, 0, func(id placement.NodeID, conf *Config) {
		patient(id, conf)
		conf.Timing.Heartbeat = 30 * time.Second
	})
	for _, id := range c.order {
		if _, err := c.node(id).host.StartGroup(preferN2(c)); err != nil {
			t.Fatal(err)
		}
	}
	if l := c.leader(7); l.host.cfg.NodeID != "n2" {
		t.Errorf("%s leads, n2 is preferred", l.host.cfg.NodeID)
	}
	c.must(7, own())
	c.must(7, write(wire.OpPut, "a", raw(t, map[string]any{"v": 1})))
	var stopped []*testNode
	for _, id := range c.order {
		stopped = append(stopped, c.stop(id))
	}
	for _, n := range stopped {
		c.restart(n)
	}
	l := c.leader(7)
	if l.host.cfg.NodeID != "n2" {
		t.Errorf("after a restart %s leads, n2 is preferred", l.host.cfg.NodeID)
	}
	if err := l.ReadIndex(ctxFor(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := l.Machine().Count(1); n != 1 {
		t.Errorf("%d documents after a restart", n)
	}
}

// Without the preferred member the others stand back for half a timeout, not
// for the two that raft would wait.
func TestFirstElectionWithoutPreferred(t *testing.T) {
	c := newCluster(t, 3, 0, patient)
	began := time.Now()
	for _, id := range []placement.NodeID{"n1", "n3"} {
		if _, err := c.node(id).host.StartGroup(preferN2(c)); err != nil {
			t.Fatal(err)
		}
	}
	l := c.leader(7)
	if took := time.Since(began); took < 4*time.Second {
		t.Errorf("%s was elected after %v, it should stand back for 4s", l.host.cfg.NodeID, took)
	}
}
