package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// world is a set of nodes whose disks and placement group are memory, and
// where the n-th thing that a coordinator does can go wrong.
type world struct {
	mu      sync.Mutex
	nodes   map[placement.NodeID]*worldNode
	ids     []placement.NodeID
	machine *placement.Machine
	index   uint64
	polls   int // status rounds since the groups exist

	step    int  // of the coordinator, counted
	breakAt int  // 0: never
	after   bool // the step is done, and its answer lost
	steps   []string
	names   int  // cluster IDs made
	stale   bool // views are old until they are refreshed
}

type worldNode struct {
	w         *world
	self      placement.Node
	version   string
	down      bool
	full      bool // cannot persist
	mu        sync.Mutex
	identity  *Identity // guarded by mu
	placement bool      // guarded by mu; started
	fresh     bool      // guarded by mu; has refreshed its view
	adopter   *Adopter
	service   nodePlacement
}

func newWorld(n int) *world {
	w := &world{nodes: map[placement.NodeID]*worldNode{}, machine: placement.NewMachine()}
	for i := range n {
		id := placement.NodeID(fmt.Sprintf("n%d", i+1))
		node := &worldNode{w: w, version: "0.1.0", self: placement.Node{
			ID: id, ClientAddr: string(id) + ":1", PeerAddr: string(id) + ":2", Incarnation: "i-" + string(id),
		}}
		node.adopter = NewAdopter(node)
		node.service = nodePlacement{w, node}
		w.nodes[id] = node
		w.ids = append(w.ids, id)
	}
	return w
}

var errBroken = errors.New("connection reset")

// at is a step of the coordinator: it runs f, unless this is the step that
// breaks, and then with or without effect.
func (w *world) at(name string, f func() error) error {
	w.mu.Lock()
	w.step++
	w.steps = append(w.steps, name)
	broken := w.step == w.breakAt
	after := w.after
	w.mu.Unlock()
	if broken && !after {
		return errBroken
	}
	err := f()
	if broken {
		return errBroken
	}
	return err
}

// Node

func (n *worldNode) Self() placement.Node { return n.self }

func (n *worldNode) Identity() *Identity {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.identity
}

func (n *worldNode) Persist(id *Identity) error {
	if n.full {
		return errors.New("no space left on device")
	}
	back, err := DecodeIdentity(id.Encode()) // as from its disk
	n.mu.Lock()
	n.identity = back
	n.mu.Unlock()
	return err
}

func (n *worldNode) StartPlacement(*Identity) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.placement = true
	return nil
}

func (n *worldNode) started() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.placement
}

// Cluster

func (w *world) StatusAt(_ context.Context, addr string) (s wire.NodeStatus, err error) {
	id := placement.NodeID(strings.TrimSuffix(addr, ":1"))
	err = w.at("status "+string(id), func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		n, ok := w.nodes[id]
		if !ok || n.down {
			return errors.New("connection refused")
		}
		s = wire.NodeStatus{Node: n.self.Info(), Version: n.version, Ready: w.machine.View().Ready}
		identity := n.Identity()
		if identity == nil {
			return nil
		}
		s.ClusterID = identity.ClusterID
		if id == w.ids[0] && len(w.machine.View().Groups) > 0 {
			w.polls++ // first the groups elect leaders, then they get their partitions
		}
		for _, g := range w.machine.View().Groups {
			r := wire.GroupStatus{ID: uint32(g.ID), State: "follower"}
			if g.Preferred == id && w.polls > 2 {
				r.State = "leader"
				if w.polls > 8 {
					r.Partitions = uint32(len(w.machine.View().PartitionsOf(g.ID)))
				}
			}
			s.Groups = append(s.Groups, r)
		}
		return nil
	})
	return s, err
}

func (w *world) Adopt(ctx context.Context, node placement.Node, body []byte) (answer []byte, err error) {
	name := "adopt "
	if len(body) == 0 {
		name = "ask "
	}
	err = w.at(name+string(node.ID), func() error {
		n := w.nodes[node.ID]
		if n.down {
			return errors.New("connection refused")
		}
		answer, err = n.adopter.Handle(ctx, "n1", body)
		return err
	})
	return answer, err
}

// nodePlacement is the placement service of one node.
type nodePlacement struct {
	w *world
	n *worldNode
}

func (p nodePlacement) quorum() bool {
	identity := p.n.Identity()
	if identity == nil || !p.n.started() {
		return false
	}
	up, voters := 0, identity.Voters()
	for _, id := range voters {
		if v := p.w.nodes[id]; v.started() && !v.down {
			up++
		}
	}
	return up > len(voters)/2
}

func (p nodePlacement) Propose(_ context.Context, c placement.Command) (r *placement.Result, err error) {
	name := "propose init"
	if c.FinishInit != nil {
		name = "propose finish"
	}
	err = p.w.at(name, func() error {
		if !p.quorum() {
			return &wire.Error{Code: wire.CodeUnavailable, Message: "no majority"}
		}
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		if c.FinishInit != nil && p.w.polls < 9 {
			return errors.New("init was finished before the groups owned their partitions")
		}
		p.w.index++
		r, err = p.w.machine.Apply(p.w.index, c.Encode())
		return err
	})
	if errors.Is(err, errBroken) {
		err = &wire.Error{Code: wire.CodeOutcomeUnknown, Message: "no answer"}
	}
	return r, err
}

func (p nodePlacement) Refresh(context.Context) (*placement.View, error) {
	err := p.w.at("refresh", func() error {
		if !p.quorum() {
			return &wire.Error{Code: wire.CodeUnavailable, Message: "no majority"}
		}
		return nil
	})
	p.n.mu.Lock()
	p.n.fresh = p.n.fresh || err == nil
	p.n.mu.Unlock()
	return p.View(), err
}

func (p nodePlacement) View() *placement.View {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	if p.n.identity == nil || p.w.stale && !p.n.fresh {
		return placement.NewMachine().View()
	}
	return p.w.machine.View()
}

// initialise runs cluster init on one node, with or without a broken step.
func (w *world) initialise(t *testing.T, on placement.NodeID, breakAt int, after bool, req *wire.ClusterInitRequest) (*wire.ClusterInitReply, error) {
	t.Helper()
	w.mu.Lock()
	w.step, w.breakAt, w.after, w.steps = 0, breakAt, after, nil
	w.mu.Unlock()
	in := NewInitialiser(InitOptions{
		Self: on, Cluster: w, Placement: w.nodes[on].service, Poll: time.Millisecond, StepTimeout: time.Second,
		NewClusterID: func() string { w.names++; return fmt.Sprintf("cluster-%d", w.names) },
	})
	return in.Init(t.Context(), req)
}

func (w *world) request() *wire.ClusterInitRequest {
	req := &wire.ClusterInitRequest{Shards: 4, Replicas: 3, Partitions: 31}
	for _, id := range w.ids {
		req.Nodes = append(req.Nodes, w.nodes[id].self.ClientAddr)
	}
	return req
}

// check fails unless there is one whole cluster.
func (w *world) check(t *testing.T, name string) {
	t.Helper()
	v := w.machine.View()
	if v.ClusterID != name || !v.Ready || len(v.Groups) != 4 || len(v.Owners) != 31 || len(v.Nodes) != len(w.ids) {
		t.Errorf("the cluster is %q, ready %v, %d groups, %d partitions, %d nodes", v.ClusterID, v.Ready, len(v.Groups), len(v.Owners), len(v.Nodes))
	}
	for id, n := range w.nodes {
		if n.identity == nil || n.identity.ClusterID != name || !n.placement {
			t.Errorf("%s: identity %+v, placement started %v", id, n.identity, n.placement)
		}
	}
}

func codeOf(err error) wire.Code {
	var refusal *wire.Error
	if errors.As(err, &refusal) {
		return refusal.Code
	}
	return wire.CodeOK
}

func TestInit(t *testing.T) {
	w := newWorld(5)
	reply, err := w.initialise(t, "n3", 0, false, w.request())
	if err != nil {
		t.Fatal(err)
	}
	if reply.ClusterID != "cluster-1" || reply.Resumed || len(reply.Topology.Groups) != 4 {
		t.Errorf("%+v", reply)
	}
	w.check(t, "cluster-1")
	if members := w.machine.View().Members; len(members) != 5 {
		t.Errorf("members %v", members)
	}
	w.stale = true
	for _, on := range w.ids {
		_, err = w.initialise(t, on, 0, false, w.request())
		if codeOf(err) != wire.CodeClusterExists || !strings.Contains(err.Error(), "cluster-1 already (nodes n1 n2 n3 n4 n5, 4 shard groups, 3 replicas, 31 partitions)") {
			t.Errorf("again on %s: %v", on, err)
		}
	}
	other := w.request()
	other.Shards = 8
	if _, err := w.initialise(t, "n1", 0, false, other); codeOf(err) != wire.CodeClusterExists {
		t.Errorf("another spec: %v", err)
	}
}

// Init is broken off at each of its steps, with and without the step's effect,
// and completed from the same and from another node.
func TestInitInterrupted(t *testing.T) {
	whole := newWorld(3)
	if _, err := whole.initialise(t, "n1", 0, false, whole.request()); err != nil {
		t.Fatal(err)
	}
	steps := whole.steps
	if len(steps) < 15 {
		t.Fatalf("only %d steps: %v", len(steps), steps)
	}
	for k := 1; k <= len(steps); k++ {
		for _, after := range []bool{false, true} {
			for _, second := range []placement.NodeID{"n1", "n2", "n3"} {
				w := newWorld(3)
				name := fmt.Sprintf("broken at %d (%s), done %v, completed on %s", k, steps[k-1], after, second)
				_, err := w.initialise(t, "n1", k, after, w.request())
				if err != nil && codeOf(err) != wire.CodeUnavailable && codeOf(err) != wire.CodeOutcomeUnknown {
					t.Errorf("%s: %v", name, err)
				}
				begun := slices.ContainsFunc(w.ids, func(id placement.NodeID) bool { return w.nodes[id].identity != nil })
				ready := w.machine.View().Ready
				reply, err2 := w.initialise(t, second, 0, false, w.request())
				switch {
				case ready:
					if codeOf(err2) != wire.CodeClusterExists {
						t.Errorf("%s: it was finished, and then %v", name, err2)
					}
				case err2 != nil:
					t.Errorf("%s: %v after %v", name, err2, err)
					continue
				case reply.Resumed != begun:
					t.Errorf("%s: resumed is %v", name, reply.Resumed)
				}
				w.check(t, w.machine.View().ClusterID)
				if _, err := w.initialise(t, "n2", 0, false, w.request()); codeOf(err) != wire.CodeClusterExists {
					t.Errorf("%s: a third time: %v", name, err)
				}
			}
		}
	}
}

// Two coordinators at once form one cluster: the first node decides.
func TestInitTwice(t *testing.T) {
	for range 30 {
		w := newWorld(3)
		var all sync.WaitGroup
		errs := make([]error, 2)
		var id sync.Mutex
		for i, on := range []placement.NodeID{"n1", "n3"} {
			all.Add(1)
			go func() {
				defer all.Done()
				in := NewInitialiser(InitOptions{
					Self: on, Cluster: w, Placement: w.nodes[on].service, Poll: time.Millisecond, StepTimeout: time.Second,
					NewClusterID: func() string { id.Lock(); defer id.Unlock(); w.names++; return fmt.Sprintf("cluster-%d", w.names) },
				})
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				_, errs[i] = in.Init(ctx, w.request())
			}()
		}
		all.Wait()
		if errs[0] != nil && errs[1] != nil {
			t.Fatalf("both failed: %v and %v", errs[0], errs[1])
		}
		for _, err := range errs {
			if err != nil && codeOf(err) != wire.CodeWrongCluster && codeOf(err) != wire.CodeClusterExists {
				t.Errorf("the loser was told %v", err)
			}
		}
		w.check(t, w.machine.View().ClusterID)
	}
}

// What cannot be a cluster is refused before anything is changed.
func TestInitRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		before func(w *world, r *wire.ClusterInitRequest)
		code   wire.Code
		text   string
	}{
		{"too many replicas", func(_ *world, r *wire.ClusterInitRequest) { r.Replicas = 4 }, wire.CodeBadClusterRequest, "4 replicas are asked for but only 3 nodes"},
		{"no shards", func(_ *world, r *wire.ClusterInitRequest) { r.Shards = 0 }, wire.CodeBadClusterRequest, "use 1 to 1024"},
		{"no prime", func(_ *world, r *wire.ClusterInitRequest) { r.Partitions = 30 }, wire.CodeBadClusterRequest, "29 is one"},
		{"too few partitions", func(_ *world, r *wire.ClusterInitRequest) { r.Shards = 40 }, wire.CodeBadClusterRequest, "ask for at least 41"},
		{"no nodes", func(_ *world, r *wire.ClusterInitRequest) { r.Nodes = nil }, wire.CodeBadClusterRequest, "no nodes"},
		{"one twice", func(_ *world, r *wire.ClusterInitRequest) { r.Nodes[1] = r.Nodes[0] }, wire.CodeBadClusterRequest, "n1:1 is named twice"},
		{"one down", func(w *world, _ *wire.ClusterInitRequest) { w.nodes["n2"].down = true }, wire.CodeUnavailable, "n2:1 (connection refused)"},
		{"same IDs", func(w *world, _ *wire.ClusterInitRequest) { w.nodes["n2"].self.ID = "n1" }, wire.CodeBadClusterRequest, "n1:1 and n2:1 are both called n1"},
		{"other version", func(w *world, _ *wire.ClusterInitRequest) { w.nodes["n3"].version = "0.2.0" }, wire.CodeBadClusterRequest, "n3:1 runs 0.2.0"},
		{"asked elsewhere", func(_ *world, r *wire.ClusterInitRequest) { r.Nodes = r.Nodes[:2]; r.Replicas = 2 }, wire.CodeBadClusterRequest, "n3 was asked"},
		{"no peer port", func(w *world, _ *wire.ClusterInitRequest) { w.nodes["n1"].self.PeerAddr = "" }, wire.CodeBadClusterRequest, "does not say who it is"},
		{"two clusters", func(w *world, _ *wire.ClusterInitRequest) {
			w.nodes["n1"].identity = w.formed("x", "n1")
			w.nodes["n2"].identity = w.formed("y", "n2")
		}, wire.CodeWrongCluster, "x and y"},
		{"another cluster", func(w *world, _ *wire.ClusterInitRequest) { w.nodes["n1"].identity = w.formed("x", "n1") }, wire.CodeClusterExists, "began to form cluster x with nodes n1, 1 shard groups"},
		{"full disk", func(w *world, _ *wire.ClusterInitRequest) { w.nodes["n1"].full = true }, wire.CodeInternal, "no space left"},
	} {
		w := newWorld(3)
		req := w.request()
		c.before(w, req)
		_, err := w.initialise(t, "n3", 0, false, req)
		if codeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %d %v, want %d %q", c.name, codeOf(err), err, c.code, c.text)
		}
		if slices.ContainsFunc(w.steps, func(s string) bool { return strings.HasPrefix(s, "propose") }) || w.nodes["n3"].identity != nil {
			t.Errorf("%s: went on to %v", c.name, w.steps)
		}
	}
}

func (w *world) formed(cluster string, nodes ...placement.NodeID) *Identity {
	id := &Identity{Format: 1, ClusterID: cluster, Spec: Spec{Shards: 1, Replicas: 1, Partitions: 2}}
	for _, n := range nodes {
		self := w.nodes[n].self
		id.Members = append(id.Members, Member{ID: n, Incarnation: self.Incarnation, PeerAddr: self.PeerAddr, ClientAddr: self.ClientAddr})
	}
	return id
}

// Leaders are where the cluster was asked to have them, an interrupted init goes
// on with that, and one that asks for another place is another cluster.
func TestInitLeaders(t *testing.T) {
	w := newWorld(3)
	req := w.request()
	req.Leaders = wire.LeadersTogether
	if _, err := w.initialise(t, "n1", 6, false, req); err == nil {
		t.Fatal("it was not interrupted")
	}
	if _, err := w.initialise(t, "n2", 0, false, w.request()); codeOf(err) != wire.CodeClusterExists || !strings.Contains(err.Error(), "leaders together") {
		t.Errorf("completed with leaders elsewhere: %v", err)
	}
	reply, err := w.initialise(t, "n2", 0, false, req)
	if err != nil || !reply.Resumed || reply.Topology.Leaders != wire.LeadersTogether {
		t.Fatal(reply, err)
	}
	for _, g := range reply.Topology.Groups {
		if g.Preferred != "n1" {
			t.Errorf("g%d should be led by %s", g.ID, g.Preferred)
		}
	}
	w = newWorld(3)
	req.Leaders = 7
	if _, err := w.initialise(t, "n1", 0, false, req); codeOf(err) != wire.CodeBadClusterRequest || !strings.Contains(err.Error(), "0 is spread, 1 is together") {
		t.Errorf("a place that is not known: %v", err)
	}
}

// What a node remembers of its cluster is in the oldest format that can say it.
func TestIdentityFormats(t *testing.T) {
	w := newWorld(3)
	id := w.formed("c", "n1", "n2", "n3")
	if s := string(id.Encode()); !strings.HasPrefix(s, `{"format":1,`) || strings.Contains(s, "leaders") {
		t.Errorf("leaders spread: %s", s)
	}
	id.Spec.Leaders = wire.LeadersTogether
	text := string(id.Encode())
	if !strings.HasPrefix(text, `{"format":2,`) || !strings.Contains(text, `"leaders":"together"`) {
		t.Errorf("leaders together: %s", text)
	}
	if back, err := DecodeIdentity([]byte(text)); err != nil || back.Spec != id.Spec {
		t.Errorf("%+v %v", back, err)
	}
	for name, bad := range map[string]string{
		"format 1 with leaders":    strings.Replace(text, `"format":2`, `"format":1`, 1),
		"format 2 without":         strings.Replace(text, `,"leaders":"together"`, "", 1),
		"a place nobody knows":     strings.Replace(text, "together", "apart", 1),
		"a format nobody knows":    strings.Replace(text, `"format":2`, `"format":3`, 1),
		"spread, and said so":      strings.Replace(text, "together", "spread", 1),
		"a place that is a number": strings.Replace(text, `"together"`, "1", 1),
	} {
		if back, err := DecodeIdentity([]byte(bad)); err == nil {
			t.Errorf("%s: %+v", name, back)
		}
	}
}

// A group that does not come up is named, and the request can be repeated.
func TestInitWaits(t *testing.T) {
	w := newWorld(3)
	w.polls = -1 << 30
	in := NewInitialiser(InitOptions{Self: "n1", Cluster: w, Placement: w.nodes["n1"].service, Poll: time.Millisecond, StepTimeout: time.Second, Timeout: 50 * time.Millisecond})
	_, err := in.Init(context.Background(), w.request())
	if codeOf(err) != wire.CodeUnavailable || !strings.Contains(err.Error(), "g1 has no leader yet, g2 has no leader yet") {
		t.Fatal(err)
	}
	w.polls = 0
	if reply, err := w.initialise(t, "n2", 0, false, w.request()); err != nil || !reply.Resumed {
		t.Fatal(reply, err)
	}
	w.check(t, w.machine.View().ClusterID)
}

func TestAdopter(t *testing.T) {
	w := newWorld(3)
	n := w.nodes["n1"]
	good := w.formed("c", "n1", "n2")
	wiped := w.formed("c", "n1", "n2")
	wiped.Members[0].Incarnation = "before"
	if b, err := n.adopter.Handle(t.Context(), "n2", nil); b != nil || err != nil {
		t.Error(b, err)
	}
	for name, x := range map[string]struct {
		id   *Identity
		code wire.Code
	}{
		"not a member": {w.formed("c", "n2", "n3"), wire.CodeBadClusterRequest},
		"was wiped":    {wiped, wire.CodeBadClusterRequest},
		"incomplete":   {w.formed("", "n1"), wire.CodeBadRequest},
	} {
		if _, err := n.adopter.Handle(t.Context(), "n2", x.id.Encode()); codeOf(err) != x.code || n.identity != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for range 2 {
		if _, err := n.adopter.Handle(t.Context(), "n2", good.Encode()); err != nil || !n.placement {
			t.Error(err)
		}
	}
	if b, err := n.adopter.Handle(t.Context(), "n2", nil); err != nil || string(b) != string(good.Encode()) {
		t.Errorf("%s %v", b, err)
	}
	other := w.formed("d", "n1", "n2")
	if _, err := n.adopter.Handle(t.Context(), "n2", other.Encode()); codeOf(err) != wire.CodeWrongCluster || n.identity.ClusterID != "c" {
		t.Error(err)
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add(newWorld(3).formed("c", "n1", "n2").Encode())
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"cluster":"c","members":[],"spec":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := DecodeIdentity(b)
		if err != nil {
			return
		}
		again, err := DecodeIdentity(id.Encode())
		if err != nil || !again.same(id) || len(id.Voters()) == 0 {
			t.Fatalf("%+v came back as %+v, %v", id, again, err)
		}
	})
}
