package shardgroup

import (
	"sync"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/transport"
)

// The entries of a round reach a follower at about the same time, one for each
// group, and each would begin a sync that the next one has to wait for. So the
// leader's node says how many there are, and the log of the follower waits for
// all of them, as that of the leader does: a round costs one sync on each node.
// Nothing but time depends on it: what is announced and does not come is waited
// for a millisecond.

// burst is the entries of one round, by who is sent them.
type burst struct {
	number uint32
	to     map[raft.ServerID]uint16
}

// newBurst is the burst of a round of these groups.
func newBurst(round uint64, groups []*batcher) *burst {
	u := &burst{number: uint32(round), to: make(map[raft.ServerID]uint16)}
	for _, b := range groups {
		for _, s := range b.g.servers() {
			u.to[s.ID]++
		}
	}
	return u
}

// Leaving is part of transport.Bursts, as are the two after it.
func (g *Group) Leaving(to raft.ServerID) transport.Burst {
	u := g.burst.Load()
	if u == nil {
		return transport.Burst{}
	}
	return transport.Burst{Number: u.number, Count: u.to[to]}
}

func (g *Group) Arriving(from placement.NodeID, b transport.Burst) {
	g.logs.expected.Add(1)
	if g.host.arrivals.first(from, b.Number) {
		g.host.logs.Expect(int(b.Count))
	}
}

func (g *Group) Answered() { g.forgo() }

// forgo takes back what the log expects of this group.
func (g *Group) forgo() {
	if n := g.logs.expected.Swap(0); n > 0 {
		g.host.logs.Forgo(int(n))
	}
}

// lateBursts is how far below the newest burst of a node one counts as an old
// one that comes late. Beyond it the node has begun to count anew.
const lateBursts = 1000

// arrivals are the newest bursts of other nodes.
type arrivals struct {
	mu     sync.Mutex
	newest map[placement.NodeID]uint32 // guarded by mu
}

// first says whether a message is the first of its burst.
func (a *arrivals) first(from placement.NodeID, number uint32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	newest, known := a.newest[from]
	if ahead := int32(number - newest); known && ahead <= 0 && ahead > -lateBursts {
		return false
	}
	if a.newest == nil {
		a.newest = make(map[placement.NodeID]uint32)
	}
	a.newest[from] = number
	return true
}
