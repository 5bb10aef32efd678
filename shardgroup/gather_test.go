package shardgroup

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

func TestFirstOfABurst(t *testing.T) {
	var a arrivals
	for i, c := range []struct {
		from   string
		number uint32
		first  bool
	}{
		{"n1", 7, true}, {"n1", 7, false}, {"n2", 7, true},
		{"n1", 8, true}, {"n1", 7, false}, {"n1", 8, false}, // one that comes late
		{"n1", 1 << 31, true},             // far ahead
		{"n1", 3, true}, {"n1", 3, false}, // its node was started again
		{"n2", 5, false},                                                   //
		{"n3", 1<<32 - 1, true}, {"n3", 0, true}, {"n3", 1<<32 - 1, false}, // past the end
	} {
		if got := a.first(placement.NodeID(c.from), c.number); got != c.first {
			t.Errorf("%d: number %d of %s is the first of its burst: %v", i, c.number, c.from, got)
		}
	}
}

// The entries of a round are announced to the followers.
func TestRoundIsAnnounced(t *testing.T) {
	c := seeded(t, 3, 3, nil)
	var groups []*Group
	for g := placement.GroupID(1); g <= 3; g++ {
		groups = append(groups, c.leadBy(g, "n1"))
	}
	// A round that does not land by itself, on a node with much to do.
	pace := &groups[0].host.cadence
	pace.mu.Lock()
	pace.queued += 100
	pace.beginLocked(1)
	pace.began = time.Now().Add(time.Hour)
	pace.mu.Unlock()
	var all sync.WaitGroup
	for i, g := range groups {
		all.Go(func() {
			res, err := g.Propose(ctxFor(t, 10*time.Second), write(wire.OpPut, fmt.Sprint("d", i), raw(t, map[string]any{"n": 1})))
			if err != nil || res.Wire.Error != nil {
				t.Errorf("group %d: %v %v", g.ID(), res.Wire.Error, err)
			}
		})
	}
	waiting := func() int {
		pace.mu.Lock()
		defer pace.mu.Unlock()
		return len(pace.waiting)
	}
	c.wait("the groups to wait for the next round", func() bool { return waiting() == len(groups) })
	pace.mu.Lock()
	turn := pace.nextLocked()
	round := pace.round
	pace.queued -= 100
	pace.mu.Unlock()
	pace.giveTurns(turn, round)
	all.Wait()

	for _, n := range []placement.NodeID{"n2", "n3"} {
		member := c.group(n, 1)
		for _, g := range groups {
			if u := g.Leaving(member.self); u.Number != uint32(round) || u.Count != 3 {
				t.Errorf("group %d sends %+v to %s, want 3 entries of round %d", g.ID(), u, n, round)
			}
		}
		a := &member.host.arrivals
		c.wait("the burst to arrive", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.newest["n1"] == uint32(round)
		})
	}
}
