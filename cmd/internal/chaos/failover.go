package chaos

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
)

// Failover is what the end of one node cost.
type Failover struct {
	Node string
	// Groups is how long each group that the node led took to acknowledge its
	// next write, counted from the kill, as a client saw it.
	Groups map[uint32]time.Duration
}

// First is when the first write of any of those groups was acknowledged.
func (f Failover) First() time.Duration {
	return f.extreme(func(a, b time.Duration) bool { return a < b })
}

// Last is when all of those groups had acknowledged one.
func (f Failover) Last() time.Duration {
	return f.extreme(func(a, b time.Duration) bool { return a > b })
}

func (f Failover) extreme(better func(a, b time.Duration) bool) time.Duration {
	var best time.Duration
	first := true
	for _, d := range f.Groups {
		if first || better(d, best) {
			best, first = d, false
		}
	}
	return best
}

const probeCollection = "probes"

// MeasureFailover kills the node that leads most groups and times the first
// acknowledged write of each group that it led. The node stays down.
func (c *Cluster) MeasureFailover(ctx context.Context, db *client.DB) (Failover, error) {
	status, err := db.Status(ctx)
	if err != nil {
		return Failover{}, err
	}
	byNode := map[string][]uint32{}
	for group, node := range Leaders(status) {
		if group != 0 {
			byNode[node] = append(byNode[node], group)
		}
	}
	var victim *Node
	for _, n := range c.Nodes {
		if victim == nil || len(byNode[n.ID]) > len(byNode[victim.ID]) {
			victim = n
		}
	}
	groups := byNode[victim.ID]
	if len(groups) == 0 {
		return Failover{}, fmt.Errorf("no node leads a group: %v", byNode)
	}
	ids := map[uint32]string{}
	probes := db.Collection(probeCollection)
	for _, g := range groups {
		ids[g] = documentOf(status.Topology, probeCollection, g)
		// Written once before: connections are up, the collection is there.
		if _, err := probes.Put(ctx, ids[g], client.D{"v": "before"}); err != nil {
			return Failover{}, err
		}
	}
	f := Failover{Node: victim.ID, Groups: map[uint32]time.Duration{}}
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		failed error
	)
	killed := time.Now()
	victim.Kill()
	for _, g := range groups {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, err := probes.Put(ctx, ids[g], client.D{"v": "after"})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = fmt.Errorf("group %d after %s was killed: %w", g, victim.ID, err)
				return
			}
			f.Groups[g] = time.Since(killed)
		}()
	}
	wg.Wait()
	return f, failed
}

// documentOf is an ID that is placed in a group.
func documentOf(t wire.Topology, collection string, group uint32) string {
	for i := 0; ; i++ {
		id := fmt.Sprintf("probe-%d", i)
		if t.Owners[wire.Partition(collection, "", id, uint32(len(t.Owners)))] == group {
			return id
		}
	}
}
