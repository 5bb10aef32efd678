package shardgroup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
)

// mark has the leader log one, again while leadership moves.
func (c *cluster) mark(g placement.GroupID, k fsm.Mark) (id [16]byte, index uint64) {
	c.t.Helper()
	c.wait("a mark", func() bool {
		for i := range k.ID {
			k.ID[i] = byte(rand.Uint32())
		}
		var err error
		index, err = c.leader(g).Mark(ctxFor(c.t, 5*time.Second), k)
		return err == nil
	})
	return k.ID, index
}

// Replicas that are written to all the time find the same at every mark, also
// while one of them is away and comes back.
func TestMarksUnderLoad(t *testing.T) {
	check := noLeaks(t)
	c := seeded(t, 3, 2, func(_ placement.NodeID, cfg *Config) { cfg.SnapshotBytes, cfg.TrailingEntries = 64<<10, 64 })
	body := raw(t, map[string]any{"text": "some text that takes a little room"})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				g := placement.GroupID(1 + w%2)
				for _, id := range c.order {
					if gr := c.group(id, g); gr != nil && gr.IsLeader() {
						ctx, cancel := context.WithTimeout(context.Background(), time.Second)
						_, _ = gr.Propose(ctx, write(wire.OpPut, fmt.Sprintf("d%d-%d", w, i%50), body)) // of no interest here
						cancel()
					}
				}
			}
		}()
	}
	compared := 0
	compare := func(nodes ...placement.NodeID) {
		for _, s := range c.specs {
			id, index := c.mark(s.ID, fsm.Mark{State: true, To: 100})
			var first *fsm.Findings
			for _, n := range nodes {
				f, err := c.group(n, s.ID).Findings(ctxFor(t, 10*time.Second), id, index)
				if errors.Is(err, ErrNoSurvey) {
					continue // it was sent a snapshot beyond
				}
				if err != nil {
					t.Fatalf("%s on %s: %v", s.ID, n, err)
				}
				if f.Index != index || f.FaultsFound != 0 {
					t.Errorf("%s on %s, marked at %d: found at %d %+v", s.ID, n, index, f.Index, f.Faults)
				}
				if first == nil {
					first = f
				} else if compared++; !reflect.DeepEqual(first, f) {
					t.Fatalf("%s on %s found\n%+v\nothers\n%+v", s.ID, n, f, first)
				}
			}
		}
	}
	for range 10 {
		compare("n1", "n2", "n3")
	}
	away := c.stop("n3")
	compare("n1", "n2")
	c.restart(away)
	for range 5 {
		compare("n1", "n2", "n3")
	}
	close(stop)
	wg.Wait()
	if compared < 2*2*10 {
		t.Errorf("%d comparisons", compared)
	}
	c.close()
	check()
}

// A mark that a replica does not remember is refused as that; one that it has
// not reached is waited for.
func TestFindingsOfPassedMarks(t *testing.T) {
	c := seeded(t, 3, 1, nil)
	id, index := c.mark(1, fsm.Mark{State: true})
	var other [16]byte
	for _, n := range c.order {
		if _, err := c.group(n, 1).Findings(ctxFor(t, 10*time.Second), id, index); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		if _, err := c.group(n, 1).Findings(ctxFor(t, 10*time.Second), other, index); !errors.Is(err, ErrNoSurvey) {
			t.Errorf("%s: %v", n, err)
		}
		if _, err := c.group(n, 1).Findings(ctxFor(t, 10*time.Millisecond), other, index+1000); !errors.Is(err, ErrTimeout) {
			t.Errorf("%s: %v", n, err)
		}
	}
	// In its next life a node replays the mark, and nobody waits for it.
	n := c.restart(c.stop("n3"))
	c.equal(1)
	g, _ := n.host.Group(1)
	if _, err := g.Findings(ctxFor(t, 10*time.Second), id, index); !errors.Is(err, ErrNoSurvey) {
		t.Error(err)
	}
	// Many marks at once: the oldest give way, nothing stays pinned.
	for range 3 * surveysWaiting {
		c.mark(1, fsm.Mark{State: true, To: 100, RateKiB: 1})
	}
	id, index = c.mark(1, fsm.Mark{State: true})
	if _, err := c.leader(1).Findings(ctxFor(t, 10*time.Second), id, index); err != nil {
		t.Error(err)
	}
}

// A row that one replica's engine was given behind its back shows in its sums.
func TestMarkShowsDifference(t *testing.T) {
	c := seeded(t, 3, 1, nil)
	c.must(1, write(wire.OpPut, "a", raw(t, map[string]any{"v": 1})))
	c.equal(1)
	g := c.group("n2", 1)
	b := g.Machine().Engine().NewBatch(0)
	key := mvcc.AppendTime(mvcc.AppendDocument(nil, 1, 0, 1, "zzz"), 1)
	err := b.Set(key, mvcc.AppendRow(nil, &mvcc.Row{Version: 1, Created: 1, Body: raw(t, map[string]any{})}))
	if err = errors.Join(err, b.Commit(0), b.Close()); err != nil {
		t.Fatal(err)
	}
	id, index := c.mark(1, fsm.Mark{State: true, To: 1})
	found := map[placement.NodeID]*fsm.Findings{}
	for _, n := range c.order {
		if found[n], err = c.group(n, 1).Findings(ctxFor(t, 10*time.Second), id, index); err != nil {
			t.Fatal(err)
		}
	}
	sum := func(n placement.NodeID, i int) uint64 { return found[n].Partitions[i].Sum }
	if sum("n1", 0) != sum("n2", 0) || sum("n1", 1) == sum("n2", 1) || sum("n1", 1) != sum("n3", 1) {
		t.Error("the planted row does not show, or not where it is")
	}
}
