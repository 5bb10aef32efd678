package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/router/admin"
	"github.com/impossibledb/idb/shardgroup"
)

// This file is what the node does for package admin: it takes the identity of
// a cluster, reaches nodes that no topology knows yet, and runs the steps that
// the reconciler decides on.

const maxIdentityBytes = 1 << 20

// readIdentity finds the cluster that the node belongs to, if it does.
func (n *Node) readIdentity() error {
	path := filepath.Join(n.cfg.DataDir, fileCluster)
	b, err := vfs.ReadFile(n.cfg.FS, path, maxIdentityBytes)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("data directory %s: its %s file cannot be read: %w", n.cfg.DataDir, fileCluster, cause(err))
	}
	id, err := admin.DecodeIdentity(b)
	if err != nil {
		return fmt.Errorf("data directory %s: its %s file: %w", n.cfg.DataDir, fileCluster, err)
	}
	m, ok := id.Member(n.self)
	if !ok || m.Incarnation != n.dir.id.Incarnation {
		return fmt.Errorf("data directory %s: its %s file is of another node (restore the directory as a whole)", n.cfg.DataDir, fileCluster)
	}
	n.identity.Store(id)
	return nil
}

func (n *Node) clusterID() string {
	if id := n.identity.Load(); id != nil {
		return id.ClusterID
	}
	return ""
}

// Self is this node as it is now.
func (n *Node) Self() placement.Node { return placement.NodeFromInfo(n.info()) }

// Identity is the cluster's, nil before this node was adopted.
func (n *Node) Identity() *admin.Identity { return n.identity.Load() }

// Persist makes the cluster's identity durable.
func (n *Node) Persist(id *admin.Identity) error {
	if err := vfs.WriteFile(n.cfg.FS, filepath.Join(n.cfg.DataDir, fileCluster), id.Encode()); err != nil {
		return err
	}
	n.identity.Store(id)
	n.log.Info("adopted", "cluster", id.ClusterID)
	return nil
}

// StartPlacement starts this node's part in the placement group and the
// reconciler. Once they run it does nothing.
func (n *Node) StartPlacement(id *admin.Identity) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.joined || n.closed {
		return nil
	}
	voters := id.Voters()
	member := false
	var members []shardgroup.Member
	for _, v := range voters {
		m, _ := id.Member(v)
		members = append(members, shardgroup.Member{Node: v, Incarnation: m.Incarnation})
		member = member || v == n.self
	}
	if member {
		machine := placement.NewMachine()
		log, err := n.host.StartPlacement(members, machine)
		if err != nil {
			return err
		}
		n.places.StartMember(log, machine)
	} else {
		n.places.StartFollower(voters)
	}
	n.reconciler.Store(admin.StartReconciler(admin.ReconcilerOptions{
		Self: n.Self(), Placement: n.places, Local: local{n}, Logger: n.log.Named("reconcile"),
	}))
	n.joined = true
	return nil
}

// kick makes the reconciler look now. Raft's own loops call it, so it waits for
// nothing: mu is held while the disk is asked.
func (n *Node) kick() {
	if r := n.reconciler.Load(); r != nil {
		r.Kick()
	}
}

func (n *Node) stopReconciler() {
	n.mu.Lock()
	r := n.reconciler.Swap(nil)
	n.closed = true
	n.mu.Unlock()
	if r != nil {
		r.Close()
	}
}

// resolve tells where a node listens for its peers: as the cluster knows it,
// or, before it knows anything, as it was when the cluster was formed.
func (n *Node) resolve(id placement.NodeID) (string, error) {
	if n.cfg.peerAddr != nil {
		if addr, ok := n.cfg.peerAddr(string(id)); ok {
			return addr, nil
		}
	}
	if known, ok := n.places.View().Node(id); ok {
		return known.PeerAddr, nil
	}
	if formed := n.identity.Load(); formed != nil {
		if m, ok := formed.Member(id); ok {
			return m.PeerAddr, nil
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if addr, ok := n.strangers[id]; ok {
		return addr, nil
	}
	return "", fmt.Errorf("node %s is not known here", id)
}

// reach is how cluster init, run on this node, reaches the nodes.
type reach struct{ n *Node }

// StatusAt asks by client address.
func (r reach) StatusAt(ctx context.Context, addr string) (wire.NodeStatus, error) {
	return admin.StatusAt(ctx, r.n.cfg.Dial, addr, serverName())
}

// Adopt sends an identity, or the question for one, to a node.
func (r reach) Adopt(ctx context.Context, node placement.Node, body []byte) ([]byte, error) {
	if node.ID == r.n.self {
		return r.n.adopter.Handle(ctx, r.n.self, body)
	}
	r.n.mu.Lock()
	r.n.strangers[node.ID] = node.PeerAddr
	r.n.mu.Unlock()
	return r.n.peers.Call(ctx, node.ID, wire.KindAdopt, body)
}

// local is what the reconciler does on this node.
type local struct{ n *Node }

// Replicas are the shard groups that run here.
func (l local) Replicas() map[placement.GroupID]placement.Replica {
	out := make(map[placement.GroupID]placement.Replica)
	for _, g := range l.n.host.Groups() {
		s := g.Status()
		owned, _ := g.Machine().Owned()
		out[g.ID()] = placement.Replica{Leading: g.IsLeader(), Commit: s.Commit, Owned: owned, Preferred: g.Preferred()}
	}
	return out
}

// StartGroup starts this node's replica of a group as it was placed.
func (l local) StartGroup(g placement.Group) error {
	v := l.n.places.View()
	spec := shardgroup.GroupSpec{ID: g.ID, Preferred: g.Preferred}
	for _, id := range g.Replicas {
		info, ok := v.Node(id)
		if !ok {
			return fmt.Errorf("%s has a replica on %s, which is not registered", g.ID, id)
		}
		spec.Members = append(spec.Members, shardgroup.Member{Node: id, Incarnation: info.Incarnation})
	}
	_, err := l.n.host.StartGroup(spec)
	return err
}

// Prefer tells this node's replica of a group who should lead it.
func (l local) Prefer(id placement.GroupID, leader placement.NodeID) error {
	g, ok := l.n.host.Group(id)
	if !ok {
		return errNoReplica
	}
	return g.Prefer(leader)
}

var errNoReplica = errors.New("there is no replica here")

// Propose proposes to a group led here.
func (l local) Propose(ctx context.Context, id placement.GroupID, c fsm.Command) (fsm.Result, error) {
	g, ok := l.n.host.Group(id)
	if !ok {
		return fsm.Result{}, errNoReplica
	}
	return g.Propose(ctx, c)
}

// Transfer hands the leadership of a group to another node.
func (l local) Transfer(ctx context.Context, id placement.GroupID, to placement.NodeID) error {
	g, ok := l.n.host.Group(id)
	if !ok {
		return errNoReplica
	}
	return g.TransferLeadership(ctx, to)
}

// PeerStatus asks another node for its status.
func (l local) PeerStatus(ctx context.Context, node placement.NodeID) (s wire.NodeStatus, err error) {
	body, err := l.n.peers.Call(ctx, node, wire.KindNodeStatus, nil)
	if err != nil {
		return s, err
	}
	return s, wire.Decode(body, &s)
}
