package shardgroup

import (
	"errors"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
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
