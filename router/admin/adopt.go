package admin

import (
	"context"
	"fmt"
	"sync"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// Node is what a node does when it is adopted by a cluster.
type Node interface {
	// Self is this node as it is now.
	Self() placement.Node
	// Identity is what Persist kept; nil before.
	Identity() *Identity
	// Persist makes the identity durable: after it returned nil, a restart
	// finds it, also after a power loss. From then on the node refuses
	// connections from other clusters.
	Persist(id *Identity) error
	// StartPlacement starts this node's part in the placement group: as a
	// voter, bootstrapped with the identity's Voters, or as a follower. Where
	// it is started already it does nothing.
	StartPlacement(id *Identity) error
}

// Adopter answers KindAdopt.
type Adopter struct {
	node Node
	mu   sync.Mutex // one adoption at a time
}

// NewAdopter serves adoptions of a node.
func NewAdopter(n Node) *Adopter { return &Adopter{node: n} }

// Handle takes the identity in body and answers it when it is durable and the
// placement group is started. The same identity again is success; another is
// refused. An empty body asks for the identity this node has; the answer is
// empty if it has none.
func (a *Adopter) Handle(_ context.Context, from placement.NodeID, body []byte) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	have := a.node.Identity()
	if len(body) == 0 {
		if have == nil {
			return nil, nil
		}
		return have.Encode(), nil
	}
	id, err := DecodeIdentity(body)
	if err != nil {
		return nil, refuse(wire.CodeBadRequest, "adoption from %s: %v", from, err)
	}
	self := a.node.Self()
	if have != nil {
		if !have.same(id) {
			return nil, refuse(wire.CodeWrongCluster, "node %s belongs to cluster %s (%s) and cannot be adopted by %s", self.ID, have.ClusterID, have.describe(), id.ClusterID)
		}
		return body, a.start(have)
	}
	m, ok := id.Member(self.ID)
	switch {
	case !ok:
		return nil, refuse(wire.CodeBadClusterRequest, "node %s is not among the members of cluster %s (%s)", self.ID, id.ClusterID, id.describe())
	case m.Incarnation != self.Incarnation:
		return nil, refuse(wire.CodeBadClusterRequest, "node %s was wiped since cluster %s began to form (wipe the other nodes too, then start again)", self.ID, id.ClusterID)
	}
	if err := a.node.Persist(id); err != nil {
		return nil, refuse(wire.CodeInternal, "node %s cannot keep the cluster's identity: %v (check its disk, then repeat)", self.ID, err)
	}
	return body, a.start(id)
}

func (a *Adopter) start(id *Identity) error {
	if err := a.node.StartPlacement(id); err != nil {
		return refuse(wire.CodeInternal, "node %s cannot start its part of the placement group: %v (see its log, then repeat)", a.node.Self().ID, err)
	}
	return nil
}

// String names the member in messages.
func (m Member) String() string { return fmt.Sprintf("%s (%s)", m.ID, m.PeerAddr) }
