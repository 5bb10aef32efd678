package admin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// Placement is the placement service of the coordinating node.
type Placement interface {
	Propose(ctx context.Context, c placement.Command) (*placement.Result, error)
	Refresh(ctx context.Context) (*placement.View, error)
	View() *placement.View
}

// Cluster is how the coordinator reaches the nodes.
type Cluster interface {
	// StatusAt asks the node at a client address for its status.
	StatusAt(ctx context.Context, clientAddr string) (wire.NodeStatus, error)
	// Adopt sends KindAdopt to a node's peer port. The node may not be in any
	// topology yet: PeerAddr is where it listens. It may be this node itself.
	Adopt(ctx context.Context, node placement.Node, body []byte) ([]byte, error)
}

// InitOptions of an Initialiser. Self, Cluster and Placement are needed.
type InitOptions struct {
	Self      placement.NodeID
	Cluster   Cluster
	Placement Placement
	Logger    hclog.Logger // nil: none

	// NewClusterID makes a cluster's name. nil: 128 random bits.
	NewClusterID func() string
	// StepTimeout bounds one request to one node. Too short gives up on a slow
	// disk; too long waits for a node that is down. Zero means 5s.
	StepTimeout time.Duration
	// Poll is how often the groups are looked at while they start. Zero means 50ms.
	Poll time.Duration
	// Timeout bounds a request without a deadline. Zero means 60s.
	Timeout time.Duration
}

func (o InitOptions) withDefaults() InitOptions {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.NewClusterID == nil {
		o.NewClusterID = newClusterID
	}
	if o.StepTimeout <= 0 {
		o.StepTimeout = 5 * time.Second
	}
	if o.Poll <= 0 {
		o.Poll = 50 * time.Millisecond
	}
	if o.Timeout <= 0 {
		o.Timeout = 60 * time.Second
	}
	return o
}

func newClusterID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Initialiser coordinates cluster init.
type Initialiser struct {
	opts InitOptions
	mu   sync.Mutex // one init at a time on this node
}

// NewInitialiser makes one. It starts nothing.
func NewInitialiser(o InitOptions) *Initialiser { return &Initialiser{opts: o.withDefaults()} }

// Init forms the cluster that req asks for, or completes it if an earlier
// attempt was interrupted. It returns when every shard group serves. Errors
// are *wire.Error; after any but CodeBadClusterRequest, CodeClusterExists and
// CodeWrongCluster the same request may be sent again, to any of the nodes.
func (in *Initialiser) Init(ctx context.Context, req *wire.ClusterInitRequest) (*wire.ClusterInitReply, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, in.opts.Timeout)
		defer cancel()
	}
	spec := Spec{Shards: req.Shards, Replicas: req.Replicas, Partitions: req.Partitions, Leaders: req.Leaders}
	if !spec.Leaders.Known() {
		return nil, refuse(wire.CodeBadClusterRequest, "leaders are to be at the place %s, which is not known here: 0 is spread, 1 is together", spec.Leaders)
	}
	if err := placement.CheckSpec(len(req.Nodes), int(spec.Shards), int(spec.Replicas), int(spec.Partitions)); err != nil {
		return nil, refuse(wire.CodeBadClusterRequest, "%v", err)
	}
	nodes, clusterID, err := in.survey(ctx, req.Nodes)
	if err != nil {
		return nil, err
	}
	id := identityOf(nodes, spec)
	resumed := clusterID != ""
	if resumed {
		in.opts.Logger.Info("cluster init found a cluster", "cluster", clusterID)
		id, err = in.resume(ctx, nodes, clusterID, id)
		if err != nil {
			return nil, err
		}
	} else {
		id.ClusterID = in.opts.NewClusterID()
		in.opts.Logger.Info("cluster init began", "cluster", id.ClusterID, "nodes", len(nodes))
	}
	if err := in.adoptAll(ctx, nodes, id); err != nil {
		return nil, err
	}
	if err := in.form(ctx, nodes, id); err != nil {
		return nil, err
	}
	if err := in.await(ctx, req.Nodes, id); err != nil {
		return nil, err
	}
	if err := in.propose(ctx, placement.Command{FinishInit: &placement.FinishInit{ClusterID: id.ClusterID}}); err != nil {
		return nil, err
	}
	in.settle(ctx, req.Nodes)
	in.opts.Logger.Info("cluster init done", "cluster", id.ClusterID, "resumed", resumed)
	return &wire.ClusterInitReply{ClusterID: id.ClusterID, Topology: in.opts.Placement.View().Topology(), Resumed: resumed}, nil
}

// survey asks every named node who it is, and refuses what cannot be a
// cluster. It answers the nodes by ID and the cluster that some of them
// belong to, if any.
func (in *Initialiser) survey(ctx context.Context, addrs []string) ([]placement.Node, string, error) {
	if i := firstRepeated(addrs); i >= 0 {
		return nil, "", refuse(wire.CodeBadClusterRequest, "the address %s is named twice", addrs[i])
	}
	statuses := make([]wire.NodeStatus, len(addrs))
	errs := make([]error, len(addrs))
	in.each(ctx, len(addrs), func(ctx context.Context, i int) {
		statuses[i], errs[i] = in.opts.Cluster.StatusAt(ctx, addrs[i])
	})
	var unreachable []string
	for i, err := range errs {
		if err != nil {
			unreachable = append(unreachable, fmt.Sprintf("%s (%v)", addrs[i], err))
		}
	}
	if len(unreachable) > 0 {
		return nil, "", refuse(wire.CodeUnavailable, "not every node answers: %s (start them, then repeat; nothing was done)", strings.Join(unreachable, "; "))
	}
	clusterID := ""
	for i, s := range statuses {
		for j := range i {
			if statuses[j].Node.ID == s.Node.ID {
				return nil, "", refuse(wire.CodeBadClusterRequest, "%s and %s are both called %s; each node needs an ID of its own (idb node --id)", addrs[j], addrs[i], s.Node.ID)
			}
		}
		if s.Node.ID == "" || s.Node.PeerAddr == "" || s.Node.Incarnation == "" {
			return nil, "", refuse(wire.CodeBadClusterRequest, "%s does not say who it is: ID %q, peer address %q", addrs[i], s.Node.ID, s.Node.PeerAddr)
		}
		if s.Version != statuses[0].Version {
			return nil, "", refuse(wire.CodeBadClusterRequest, "%s runs version %s and %s runs %s; form a cluster of one version", addrs[0], statuses[0].Version, addrs[i], s.Version)
		}
		switch {
		case s.ClusterID == "":
		case clusterID == "":
			clusterID = s.ClusterID
		case clusterID != s.ClusterID:
			return nil, "", refuse(wire.CodeWrongCluster, "the nodes belong to different clusters already, among them %s and %s (%s is %s): nodes cannot change clusters; name others, or start them with empty data directories",
				clusterID, s.ClusterID, addrs[i], s.Node.ID)
		}
	}
	nodes := make([]placement.Node, len(statuses))
	for i, s := range statuses {
		nodes[i] = placement.NodeFromInfo(s.Node)
	}
	slices.SortFunc(nodes, func(a, b placement.Node) int { return strings.Compare(string(a.ID), string(b.ID)) })
	if !slices.ContainsFunc(nodes, func(n placement.Node) bool { return n.ID == in.opts.Self }) {
		return nil, "", refuse(wire.CodeBadClusterRequest, "node %s was asked to form a cluster that it is no part of; send the request to one of the nodes that are named", in.opts.Self)
	}
	return nodes, clusterID, nil
}

func firstRepeated(ss []string) int {
	for i, s := range ss {
		if slices.Contains(ss[:i], s) {
			return i
		}
	}
	return -1
}

// identityOf is what the nodes would be formed as, without a name.
func identityOf(nodes []placement.Node, spec Spec) *Identity {
	id := &Identity{Format: spec.format(), Spec: spec}
	for _, n := range nodes {
		id.Members = append(id.Members, Member{ID: n.ID, Incarnation: n.Incarnation, PeerAddr: n.PeerAddr, ClientAddr: n.ClientAddr})
	}
	return id
}

// resume finds out what an earlier init began, and whether it is what is
// wanted now.
func (in *Initialiser) resume(ctx context.Context, nodes []placement.Node, clusterID string, want *Identity) (*Identity, error) {
	have, err := in.identityAmong(ctx, nodes)
	if err != nil {
		return nil, err
	}
	if have == nil || have.ClusterID != clusterID {
		return nil, refuse(wire.CodeUnavailable, "the nodes began to form cluster %s, but none says with whom (repeat)", clusterID)
	}
	formed := in.formed(ctx, nodes, clusterID)
	if formed {
		return nil, refuse(wire.CodeClusterExists, "these nodes form cluster %s already (%s); nothing was done", clusterID, have.describe())
	}
	if !sameNodes(have, want) || have.Spec != want.Spec {
		return nil, refuse(wire.CodeClusterExists, "these nodes began to form cluster %s with %s: repeat the request with exactly these to complete it, or start all of them with empty data directories",
			clusterID, have.describe())
	}
	return have, nil
}

// sameNodes compares who the members are. Addresses may have changed since;
// the identity keeps the old ones and the topology will have the new.
func sameNodes(a, b *Identity) bool {
	return slices.EqualFunc(a.Members, b.Members, func(x, y Member) bool {
		return x.ID == y.ID && x.Incarnation == y.Incarnation
	})
}

// identityAmong asks the nodes for an identity until one has it.
func (in *Initialiser) identityAmong(ctx context.Context, nodes []placement.Node) (*Identity, error) {
	var last error
	for _, n := range nodes {
		b, err := in.adopt(ctx, n, nil)
		if err != nil {
			last = err
			continue
		}
		if len(b) > 0 {
			return DecodeIdentity(b)
		}
	}
	return nil, last
}

// formed says that the cluster's init was finished. Without an answer from the
// placement group it was not: at worst the steps are repeated.
func (in *Initialiser) formed(ctx context.Context, nodes []placement.Node, clusterID string) bool {
	if v := in.opts.Placement.View(); v.ClusterID == clusterID && v.Ready {
		return true
	}
	// This node may not have been adopted yet, or be cut off from the others;
	// then it cannot ask, and adoption comes first.
	id, err := in.identityAmong(ctx, slices.DeleteFunc(slices.Clone(nodes), func(n placement.Node) bool { return n.ID != in.opts.Self }))
	if err != nil || id == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, in.opts.StepTimeout)
	defer cancel()
	v, err := in.opts.Placement.Refresh(ctx)
	return err == nil && v.ClusterID == clusterID && v.Ready
}

// adoptAll gives every node the identity. The first, by ID, decides: of two
// coordinators that run at once with names of their own, one is refused there
// before it has changed anything.
func (in *Initialiser) adoptAll(ctx context.Context, nodes []placement.Node, id *Identity) error {
	body := id.Encode()
	if _, err := in.adopt(ctx, nodes[0], body); err != nil {
		return in.adoptError(nodes[0], err)
	}
	rest := nodes[1:]
	errs := make([]error, len(rest))
	in.each(ctx, len(rest), func(ctx context.Context, i int) { _, errs[i] = in.opts.Cluster.Adopt(ctx, rest[i], body) })
	for i, err := range errs {
		if err != nil {
			return in.adoptError(rest[i], err)
		}
	}
	return nil
}

func (in *Initialiser) adopt(ctx context.Context, n placement.Node, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, in.opts.StepTimeout)
	defer cancel()
	return in.opts.Cluster.Adopt(ctx, n, body)
}

func (in *Initialiser) adoptError(n placement.Node, err error) error {
	var refusal *wire.Error
	if errors.As(err, &refusal) {
		return refusal
	}
	return refuse(wire.CodeUnavailable, "node %s at %s did not answer: %v (repeat the request to complete the cluster)", n.ID, n.PeerAddr, err)
}

// form proposes the first map. It is computed again if it has to be repeated;
// the first to be applied stays.
func (in *Initialiser) form(ctx context.Context, nodes []placement.Node, id *Identity) error {
	groups, err := placement.PlanGroups(nodes, int(id.Spec.Shards), int(id.Spec.Replicas), id.Spec.Leaders)
	if err != nil {
		return refuse(wire.CodeBadClusterRequest, "%v", err)
	}
	ids := make([]placement.GroupID, len(groups))
	for i, g := range groups {
		ids[i] = g.ID
	}
	owners, err := placement.ComputeMap(ids, id.Spec.Partitions, nil)
	if err != nil {
		return refuse(wire.CodeBadClusterRequest, "%v", err)
	}
	return in.propose(ctx, placement.Command{InitCluster: &placement.InitCluster{
		ClusterID: id.ClusterID, Members: id.Voters(), Nodes: nodes, Groups: groups, Owners: owners, Leaders: id.Spec.Leaders,
	}})
}

func (in *Initialiser) propose(ctx context.Context, c placement.Command) error {
	result, err := in.opts.Placement.Propose(ctx, c)
	if err != nil {
		return err
	}
	return result.Err()
}

// await returns when every shard group has a leader and owns its partitions.
func (in *Initialiser) await(ctx context.Context, addrs []string, id *Identity) error {
	tick := time.NewTicker(in.opts.Poll)
	defer tick.Stop()
	for {
		missing := in.missing(ctx, addrs)
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return refuse(wire.CodeUnavailable, "cluster %s is formed, but %s (repeat the request to go on waiting)", id.ClusterID, summary(missing))
		}
	}
}

// settle gives the nodes a moment to hear that it is done, so that whoever asks
// for the cluster's status next sees every node ready. It is a courtesy: a node
// that takes longer will hear of it too.
func (in *Initialiser) settle(ctx context.Context, addrs []string) {
	ctx, cancel := context.WithTimeout(ctx, in.opts.StepTimeout/4)
	defer cancel()
	tick := time.NewTicker(in.opts.Poll)
	defer tick.Stop()
	for ctx.Err() == nil {
		ready := make([]bool, len(addrs))
		in.each(ctx, len(addrs), func(ctx context.Context, i int) {
			status, err := in.opts.Cluster.StatusAt(ctx, addrs[i])
			ready[i] = err == nil && status.Ready
		})
		if !slices.Contains(ready, false) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// summary lists a few of the groups that do not serve.
func summary(missing []string) string {
	const most = 4
	if len(missing) <= most {
		return strings.Join(missing, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(missing[:most], ", "), len(missing)-most)
}

// missing says of every shard group that does not serve yet what it lacks.
func (in *Initialiser) missing(ctx context.Context, addrs []string) []string {
	v := in.opts.Placement.View()
	if v.ClusterID == "" {
		return []string{"this node has not seen its topology yet"}
	}
	statuses := make([]wire.NodeStatus, len(addrs))
	in.each(ctx, len(addrs), func(ctx context.Context, i int) {
		statuses[i], _ = in.opts.Cluster.StatusAt(ctx, addrs[i]) // who does not answer leads nothing
	})
	var missing []string
	for _, g := range v.Groups {
		lacks := g.ID.String() + " has no leader yet"
		for _, s := range statuses {
			for _, r := range s.Groups {
				if r.ID != uint32(g.ID) || r.State != "leader" {
					continue
				}
				lacks = g.ID.String() + " does not own its partitions yet"
				if r.Partitions > 0 {
					lacks = ""
				}
			}
		}
		if lacks != "" {
			missing = append(missing, lacks)
		}
	}
	return missing
}

// each runs f for 0 … n-1 at once, each with the time of one step.
func (in *Initialiser) each(ctx context.Context, n int, f func(ctx context.Context, i int)) {
	ctx, cancel := context.WithTimeout(ctx, in.opts.StepTimeout)
	defer cancel()
	var all sync.WaitGroup
	for i := range n {
		all.Add(1)
		go func() {
			defer all.Done()
			f(ctx, i)
		}()
	}
	all.Wait()
}
