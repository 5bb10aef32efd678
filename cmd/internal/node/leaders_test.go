package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// leads counts how many shard groups each running node leads.
func leads(d *Dev, down ...string) map[string]int {
	out := map[string]int{}
	for _, n := range d.nodes {
		if slices.Contains(down, n.ID()) {
			continue
		}
		for _, g := range n.Groups() {
			if g.ID != 0 && g.State == "leader" {
				out[n.ID()]++
			}
		}
	}
	return out
}

// settled says that every replica prefers whom the node's view does: else two
// nodes could hand a leadership to each other for ever.
func settled(d *Dev, down ...string) bool {
	for _, n := range d.nodes {
		if slices.Contains(down, n.ID()) {
			continue
		}
		for _, g := range n.host.Groups() {
			if want, ok := n.places.View().Group(g.ID()); !ok || g.Preferred() != want.Preferred {
				return false
			}
		}
	}
	return true
}

// awaitLeads waits until leaders are as wanted, and nobody wants otherwise.
func awaitLeads(t *testing.T, d *Dev, what string, want map[string]int, down ...string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(40 * time.Second)
	for {
		got := leads(d, down...)
		if maps.Equal(got, want) && settled(d, down...) {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: nodes lead %v, want %v; every replica prefers whom it should: %v", what, got, want, settled(d, down...))
		}
	}
}

// restart starts a closed node again, from its directory and at its addresses.
func restart(t *testing.T, d *Dev, i int) {
	t.Helper()
	old := d.nodes[i]
	cfg, info := old.cfg, old.info()
	cfg.ClientAddr, cfg.PeerAddr, cfg.HTTPAddr = info.ClientAddr, info.PeerAddr, info.HTTPAddr
	n, err := Start(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.nodes[i] = n
}

// Leaders go to one node and back, stand by when it is lost, and return when it
// is back, while clients write into every group and none of them is told of it.
func TestLeadersTogether(t *testing.T) {
	d, err := StartDev(t.Context(), DevConfig{Dir: t.TempDir(), Nodes: 3, Shards: 6}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stopDev(t, d)
	db := dial(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	var wrote [3]atomic.Int64
	var writers sync.WaitGroup
	defer writers.Wait()
	defer cancel()
	for w := range wrote {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				err := db.Transact(t.Context(), func(tx *client.Tx) error {
					for _, id := range []string{fmt.Sprint("a", w, i%50), fmt.Sprint("b", w, i%50)} {
						if err := tx.Collection("docs").Put(id, map[string]any{"i": i}); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				wrote[w].Add(1)
			}
		})
	}
	// goOn waits until every writer wrote some more.
	goOn := func() {
		t.Helper()
		var before [3]int64
		for w := range wrote {
			before[w] = wrote[w].Load()
		}
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		late := time.After(30 * time.Second)
		for w := range wrote {
			for wrote[w].Load() < before[w]+10 {
				select {
				case <-tick.C:
				case <-late:
					t.Fatalf("writer %d does not go on; leaders %v", w, leads(d))
				}
			}
		}
	}
	set := func(place client.Leaders) {
		t.Helper()
		if _, err := db.SetLeaders(t.Context(), place); err != nil {
			t.Fatal(err)
		}
		for _, n := range d.nodes { // nobody need be asked twice
			if _, err := n.places.WaitFor(t.Context(), func(v *placement.View) bool { return v.Leaders == place }); err != nil {
				t.Fatal(err)
			}
		}
	}
	one, each := map[string]int{"n1": 6}, map[string]int{"n1": 2, "n2": 2, "n3": 2}
	awaitLeads(t, d, "as formed", each)
	set(wire.LeadersTogether)
	awaitLeads(t, d, "together", one)
	goOn()
	set(wire.LeadersSpread)
	awaitLeads(t, d, "spread again", each)
	goOn()
	set(wire.LeadersTogether)
	awaitLeads(t, d, "together again", one)

	if err := d.nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	goOn()
	if got := leads(d, "n1"); got["n2"]+got["n3"] != 6 {
		t.Errorf("n2 and n3 lead %v after n1 is gone", got)
	}
	restart(t, d, 0)
	awaitLeads(t, d, "n1 is back", one)
	goOn()
	cancel()
	writers.Wait()

	// All start again: each group by what its nodes remember.
	for _, n := range d.nodes {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range d.nodes {
		restart(t, d, i)
	}
	awaitLeads(t, d, "after a restart of all", one)
	for _, n := range d.nodes {
		if got := n.places.View().Leaders; got != wire.LeadersTogether {
			t.Errorf("%s has leaders %s after a restart", n.ID(), got)
		}
	}
}
