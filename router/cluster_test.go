package router

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/shardgroup/leader"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
)

// testCluster is several routers over real machines and a real placement
// machine, with logs that are function calls: each group has one machine, and
// a leader that the test chooses.
type testCluster struct {
	t       testing.TB
	clock   *hlc.Clock
	nodes   map[placement.NodeID]*testNode
	ids     []placement.NodeID
	groups  map[placement.GroupID]*testCore
	places  *placement.Machine
	applied uint64
	timeout time.Duration // of the requests that the test makes

	mu        sync.Mutex
	down      map[placement.NodeID]bool // guarded by mu
	lead      placement.NodeID          // guarded by mu; of the placement group
	autoDrops bool                      // guarded by mu; drops are carried out at once
	intercept func(from, to placement.NodeID, kind wire.Kind) error
	calls     map[wire.Kind]int // guarded by mu; between nodes
}

type testNode struct {
	c      *testCluster
	id     placement.NodeID
	router *Router
	places *placement.Service
}

// testCore is a group's log and machine.
type testCore struct {
	id      placement.GroupID
	machine *fsm.Machine

	mu     sync.Mutex
	leader placement.NodeID // guarded by mu; empty: none
	index  uint64           // guarded by mu
	memory leader.Memory    // guarded by mu; its holds
	unheld sync.Cond        // of mu
	fail   []error          // guarded by mu; what the next proposals answer instead
	lose   int              // guarded by mu; so many proposals are applied and their answers lost

	// look, if set, changes what a node's replica answers to a question for findings.
	look    func(node placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error)
	surveys map[[16]byte]*coreSurvey // guarded by mu
	clock   *hlc.Clock
}

func newTestCluster(t testing.TB, nodes, shards int) *testCluster {
	t.Helper()
	c := &testCluster{
		t: t, clock: hlc.NewClock(nil), nodes: map[placement.NodeID]*testNode{}, groups: map[placement.GroupID]*testCore{},
		places: placement.NewMachine(), down: map[placement.NodeID]bool{}, lead: "n1", autoDrops: true, calls: map[wire.Kind]int{},
		timeout: 5 * time.Second,
	}
	engine, err := mvcc.OpenEngine("state", mvcc.EngineOptions{FS: pebblevfs.NewMem(), MemTableBytes: 1 << 20, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	var members []placement.Node
	for i := range nodes {
		id := placement.NodeID(fmt.Sprintf("n%d", i+1))
		c.ids = append(c.ids, id)
		members = append(members, placement.Node{ID: id, PeerAddr: string(id), Incarnation: "i"})
	}
	groups, err := placement.PlanGroups(members, shards, nodes, wire.LeadersSpread)
	if err != nil {
		t.Fatal(err)
	}
	var ids []placement.GroupID
	for _, g := range groups {
		ids = append(ids, g.ID)
	}
	owners, err := placement.ComputeMap(ids, 31, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range c.ids {
		n := &testNode{c: c, id: id}
		n.places = placement.NewService(placement.Options{Self: id, Peers: n, AttemptTimeout: 200 * time.Millisecond})
		n.places.StartMember(testLog{c, id}, c.places)
		t.Cleanup(n.places.Close)
		n.router = New(Options{
			Self: id, Placement: n.places, Groups: n, Peers: n, Clock: c.clock, Limits: doc.Limits{MaxBytes: 64 << 10, MaxDepth: 64},
			Patience: 2 * time.Second, AttemptTimeout: 500 * time.Millisecond, ScanChunk: 4 << 10, StatusTimeout: 150 * time.Millisecond,
			Status: func(context.Context) wire.NodeStatus {
				return wire.NodeStatus{Node: wire.NodeInfo{ID: string(id)}, Ready: true, Groups: n.statuses()}
			},
		})
		c.nodes[id] = n
	}
	c.place(placement.Command{InitCluster: &placement.InitCluster{ClusterID: "test", Members: c.ids, Nodes: members, Groups: groups, Owners: owners}})
	for _, g := range groups {
		core := &testCore{id: g.ID, leader: g.Preferred, clock: c.clock, surveys: map[[16]byte]*coreSurvey{}}
		core.unheld.L = &core.mu
		core.memory.Open(3, 0, 0)
		core.machine, err = fsm.Open(fsm.Options{Group: g.ID, Engine: engine, OnMark: func(index uint64, k fsm.Mark, pin func() (*fsm.Survey, error)) {
			s, err := pin()
			if err != nil {
				t.Error(err)
				return
			}
			core.surveys[k.ID] = &coreSurvey{mark: k, index: index, pinned: s} // propose holds mu
		}})
		if err != nil {
			t.Fatal(err)
		}
		c.groups[g.ID] = core
		if _, err := core.propose(core.leader, fsm.Command{Own: &fsm.Own{Epoch: 1, Partitions: c.places.View().PartitionsOf(g.ID)}}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// place applies a placement command and carries out drops.
func (c *testCluster) place(cmd placement.Command) *placement.Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applied++
	r, err := c.places.Apply(c.applied, cmd.Encode())
	if err != nil {
		c.t.Error(err)
		return &placement.Result{Code: wire.CodeInternal}
	}
	if c.autoDrops && cmd.DropCollection != nil && r.Code == wire.CodeOK {
		c.finishDropLocked(placement.CollectionID(r.Collection.ID))
	}
	return r
}

func (c *testCluster) finishDropLocked(id placement.CollectionID) {
	for _, core := range c.groups {
		if _, err := core.propose(core.leader, fsm.Command{Drop: &fsm.Drop{Collection: id}}); err != nil {
			c.t.Error(err)
		}
		c.applied++
		if _, err := c.places.Apply(c.applied, placement.Command{FinishDrop: &placement.FinishDrop{Collection: id, Group: core.id}}.Encode()); err != nil {
			c.t.Error(err)
		}
	}
}

// testLog is the placement group's log as one node sees it.
type testLog struct {
	c  *testCluster
	id placement.NodeID
}

func (l testLog) Leader() (placement.NodeID, uint64, bool) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	return l.c.lead, 1, l.c.lead != ""
}

func (l testLog) Propose(_ context.Context, data []byte) (any, error) {
	if leader, _, _ := l.Leader(); leader != l.id {
		return nil, &shardgroup.NotLeaderError{Leader: leader}
	}
	cmd, err := placement.DecodeCommand(data)
	if err != nil {
		return nil, err
	}
	return l.c.place(cmd), nil
}

func (l testLog) ReadIndex(context.Context) error {
	if leader, _, _ := l.Leader(); leader != l.id {
		return &shardgroup.NotLeaderError{Leader: leader}
	}
	return nil
}

// Call is a request to another node.
func (n *testNode) Call(ctx context.Context, to placement.NodeID, kind wire.Kind, body []byte) ([]byte, error) {
	c := n.c
	c.mu.Lock()
	c.calls[kind]++
	down, intercept := c.down[to], c.intercept
	c.mu.Unlock()
	if down {
		return nil, errors.New("connection refused")
	}
	if intercept != nil {
		if err := intercept(n.id, to, kind); err != nil {
			return nil, err
		}
	}
	other, ok := c.nodes[to]
	if !ok {
		return nil, fmt.Errorf("no node %s", to)
	}
	body = slices.Clone(body)
	switch {
	case kind == wire.KindPlacement:
		return other.places.HandlePlacement(ctx, n.id, body)
	case kind == wire.KindPlacementWait:
		return other.places.HandleWait(ctx, n.id, body)
	case slices.Contains(PeerKinds, kind):
		return other.router.HandlePeer(ctx, kind, body)
	}
	m, err := other.router.Serve(ctx, kind, body, func(wire.Message) error { return errors.New("not a stream") })
	if err != nil {
		return nil, err
	}
	return wire.Append(nil, m), nil
}

func (n *testNode) Group(id placement.GroupID) (Group, bool) {
	core, ok := n.c.groups[id]
	if !ok {
		return nil, false
	}
	if g, _ := n.c.places.View().Group(id); !g.Has(n.id) {
		return nil, false
	}
	return testGroup{core, n.id}, true
}

func (n *testNode) statuses() (out []wire.GroupStatus) {
	for _, core := range n.c.groups {
		s := wire.GroupStatus{ID: uint32(core.id), State: "follower", Term: 3}
		if core.leading() == n.id {
			s.State = "leader"
		}
		out = append(out, s)
	}
	return out
}

func (core *testCore) leading() placement.NodeID {
	core.mu.Lock()
	defer core.mu.Unlock()
	return core.leader
}

func (core *testCore) setLeader(n placement.NodeID) {
	core.mu.Lock()
	defer core.mu.Unlock()
	core.leader = n
}

func (core *testCore) propose(self placement.NodeID, cmds ...fsm.Command) ([]fsm.Result, error) {
	core.mu.Lock()
	defer core.mu.Unlock()
	for slices.ContainsFunc(cmds, func(c fsm.Command) bool { return core.memory.Held(&c) }) {
		core.unheld.Wait()
	}
	if core.leader != self || self == "" {
		return nil, &shardgroup.NotLeaderError{Group: core.id, Leader: core.leader}
	}
	if len(core.fail) > 0 {
		err := core.fail[0]
		core.fail = core.fail[1:]
		if err != nil {
			return nil, err
		}
	}
	for i := range cmds {
		cmds[i].Time = core.clock.Now()
	}
	data, err := fsm.AppendEntry(nil, cmds)
	if err != nil {
		return nil, err
	}
	core.index++
	results, err := core.machine.Apply([]fsm.Entry{{Index: core.index, Term: 1, Data: data}})
	if err != nil {
		return nil, err
	}
	if core.lose > 0 {
		core.lose--
		return nil, shardgroup.ErrOutcomeUnknown
	}
	return results[0], nil
}

// coreSurvey is a mark that was applied.
type coreSurvey struct {
	mark   fsm.Mark
	index  uint64
	pinned *fsm.Survey // nil once it has run
	found  []byte
}

// survey is what the one machine found at a mark.
func (core *testCore) survey(id [16]byte) (fsm.Mark, *fsm.Findings, error) {
	core.mu.Lock()
	defer core.mu.Unlock()
	s := core.surveys[id]
	if s == nil {
		return fsm.Mark{}, nil, shardgroup.ErrNoSurvey
	}
	if s.pinned != nil {
		f, err := s.pinned.Run(context.Background(), func(int) error { return nil })
		if err = errors.Join(err, s.pinned.Close()); err != nil {
			return s.mark, nil, err
		}
		s.pinned, s.found = nil, f.Append(nil)
	}
	f, err := fsm.DecodeFindings(s.found)
	return s.mark, f, err
}

// testGroup is one node's replica.
type testGroup struct {
	core *testCore
	self placement.NodeID
}

func (g testGroup) Leader() (placement.NodeID, uint64, bool) {
	l := g.core.leading()
	return l, 3, l != ""
}

func (g testGroup) Propose(_ context.Context, c fsm.Command) (fsm.Result, error) {
	rs, err := g.core.propose(g.self, c)
	if err != nil {
		return fsm.Result{}, err
	}
	return rs[0], nil
}

func (g testGroup) ProposeMany(_ context.Context, cs []fsm.Command) []shardgroup.Outcome {
	out := make([]shardgroup.Outcome, len(cs))
	for i, rest := 0, cs; len(rest) > 0; {
		n := min(len(rest), 100)
		rs, err := g.core.propose(g.self, rest[:n]...)
		for k := range n {
			out[i+k].Err = err
			if err == nil {
				out[i+k].Result = rs[k]
			}
		}
		i, rest = i+n, rest[n:]
	}
	return out
}

func (g testGroup) confirm() error {
	if l := g.core.leading(); l != g.self {
		return &shardgroup.NotLeaderError{Group: g.core.id, Leader: l}
	}
	return nil
}

func (g testGroup) ReadIndex(context.Context) error { return g.confirm() }

func (g testGroup) Join(read any, answer func([]any, error)) bool {
	if g.confirm() != nil {
		return false
	}
	answer([]any{read}, nil)
	return true
}

func (g testGroup) ReadAt(_ context.Context, t hlc.Timestamp) error {
	if err := g.confirm(); err != nil {
		return err
	}
	g.core.clock.Observe(t) // what is written from now on is later
	return nil
}

func (g testGroup) BeginRead(_ []fsm.ReadKey, at hlc.Timestamp) (shardgroup.Pending, error) {
	if at == 0 {
		return shardgroup.Pending{}, g.ReadIndex(context.Background())
	}
	return shardgroup.Pending{}, g.ReadAt(context.Background(), at)
}

func (g testGroup) Clock(context.Context) (hlc.Timestamp, error) {
	return g.core.machine.Clock(), g.confirm()
}

func (g testGroup) Machine() Reader { return g.core.machine }

func (g testGroup) Hold(_ context.Context, collections, counts []placement.CollectionID) (txn.Held, []shardgroup.Kept, error) {
	core := g.core
	core.mu.Lock()
	defer core.mu.Unlock()
	if core.leader != g.self {
		return txn.Held{}, nil, &shardgroup.NotLeaderError{Group: core.id, Leader: core.leader}
	}
	token, _, _ := core.memory.Hold(time.Now().Add(time.Minute), collections)
	h := txn.Held{Term: 3, Token: token}
	_, h.Clock = core.machine.Undecided(collections)
	kept := make([]shardgroup.Kept, len(counts))
	for i, c := range counts {
		kept[i].Documents, kept[i].Bytes, _ = core.machine.Count(c)
	}
	return h, kept, nil
}

func (g testGroup) Redeem(_ context.Context, term, token uint64, p fsm.Promise) error {
	core := g.core
	core.mu.Lock()
	ok := core.leader == g.self && core.memory.Redeem(term, token, time.Now(), p.To)
	core.clock.Observe(p.To)
	core.unheld.Broadcast()
	core.mu.Unlock()
	if !ok {
		return shardgroup.ErrHoldBroken
	}
	rs, err := core.propose(g.self, fsm.Command{Promise: &p})
	if err == nil && rs[0].Wire.Error != nil {
		err = rs[0].Wire.Error
	}
	return err
}

func (g testGroup) Release(term, token uint64) {
	g.core.mu.Lock()
	defer g.core.mu.Unlock()
	g.core.memory.Release(term, token)
	g.core.unheld.Broadcast()
}

func (g testGroup) ProposeTxn(ctx context.Context, c fsm.Command, _ hlc.Timestamp, _ bool) (fsm.Result, error) {
	return g.Propose(ctx, c)
}

// StartTxn tells the outcome before it returns, as a group does that refuses a
// command at once.
func (g testGroup) StartTxn(c fsm.Command, done func(fsm.Result, error)) bool {
	done(g.Propose(context.Background(), c))
	return true
}

func (g testGroup) StartLater(c fsm.Command, done func(fsm.Result, error)) bool {
	return g.StartTxn(c, done)
}

func (g testGroup) AwaitConfirm(context.Context, placement.PartitionID, txn.ID) {}

func (g testGroup) AwaitWrite(context.Context, *fsm.Command) {}

func (g testGroup) ClearReads(context.Context, []fsm.ReadKey, hlc.Timestamp) error { return nil }

func (g testGroup) ClearScan(context.Context, *fsm.ScanSpec, hlc.Timestamp) error { return nil }

func (g testGroup) Lock(context.Context, txn.ID, hlc.Timestamp, fsm.ReadKey, time.Duration, bool) error {
	return g.confirm()
}

func (g testGroup) Unlock(txn.ID) {}

func (g testGroup) PassLocks(_, _ txn.ID) {}

func (g testGroup) FrontLocks() []shardgroup.FrontLock { return nil }

func (g testGroup) Waits() []shardgroup.Waiting { return nil }

func (g testGroup) Mark(_ context.Context, k fsm.Mark) (uint64, error) {
	if _, err := g.core.propose(g.self, fsm.Command{Mark: &k}); err != nil {
		return 0, err
	}
	g.core.mu.Lock()
	defer g.core.mu.Unlock()
	return g.core.surveys[k.ID].index, nil
}

func (g testGroup) Findings(_ context.Context, id [16]byte, index uint64) (*fsm.Findings, error) {
	k, f, err := g.core.survey(id)
	if err == nil && f.Index != index {
		return nil, fmt.Errorf("a question for index %d, the mark is at %d", index, f.Index)
	}
	if err == nil && g.core.look != nil {
		return g.core.look(g.self, k, f)
	}
	return f, err
}

// Requests, as a client makes them.

func (c *testCluster) serve(node placement.NodeID, kind wire.Kind, req wire.Message, reply wire.Message) error {
	c.t.Helper()
	var id *wire.RequestID
	switch q := req.(type) {
	case *wire.CreateCollectionRequest:
		id = &q.RequestID
	case *wire.DropCollectionRequest:
		id = &q.RequestID
	case *wire.SettingsRequest:
		id = &q.RequestID
	case *wire.LeadersRequest:
		id = &q.RequestID
	}
	if id != nil && *id == (wire.RequestID{}) {
		*id = c.requestID()
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	m, err := c.nodes[node].router.Serve(ctx, kind, wire.Append(nil, req), func(wire.Message) error { return errors.New("not a stream") })
	if err != nil {
		var refusal *wire.Error
		if !errors.As(err, &refusal) || refusal.Message == "" {
			c.t.Errorf("kind %d: the refusal has no text: %#v", kind, err)
		}
		return err
	}
	if err := wire.Decode(wire.Append(nil, m), reply); err != nil {
		c.t.Fatalf("kind %d: the answer does not decode: %v", kind, err)
	}
	return nil
}

var lastRequest struct {
	sync.Mutex
	n uint64
}

func (c *testCluster) requestID() wire.RequestID {
	lastRequest.Lock()
	defer lastRequest.Unlock()
	lastRequest.n++
	id := wire.RequestID{Time: uint64(c.clock.Now())}
	for i := range 8 {
		id.Random[i] = byte(lastRequest.n >> (8 * i))
	}
	return id
}

func body(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := doc.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (c *testCluster) write(node placement.NodeID, req *wire.WriteRequest) (*wire.WriteReply, error) {
	c.t.Helper()
	for i := range req.Items {
		if req.Items[i].RequestID == (wire.RequestID{}) {
			req.Items[i].RequestID = c.requestID()
		}
	}
	reply := new(wire.WriteReply)
	if req.Number == 0 {
		creates := false
		for i := range req.Items {
			op := req.Items[i].Op
			creates = creates || op == wire.OpPut || op == wire.OpInsert || op == wire.OpUpsert
		}
		var err error
		if req.Number, err = c.number(node, req.Collection, creates); err != nil {
			return reply, err
		}
	}
	return reply, c.serve(node, wire.KindWrite, req, reply)
}

// number looks a collection up as a client does before it writes, and creates
// it for a first write.
func (c *testCluster) number(node placement.NodeID, name string, creates bool) (uint32, error) {
	c.t.Helper()
	var info wire.CollectionInfo
	err := c.serve(node, wire.KindCollection, &wire.CollectionRequest{Name: name}, &info)
	if creates && codeOf(err) == wire.CodeCollectionNotFound {
		err = c.serve(node, wire.KindCreateCollection, &wire.CreateCollectionRequest{Name: name, Implicit: true}, &info)
	}
	return info.ID, err
}

// one writes one document and answers its result.
func (c *testCluster) one(node placement.NodeID, collection string, item wire.WriteItem) wire.WriteResult {
	c.t.Helper()
	reply, err := c.write(node, &wire.WriteRequest{Collection: collection, Items: []wire.WriteItem{item}})
	if err != nil {
		var refusal *wire.Error
		errors.As(err, &refusal)
		return wire.WriteResult{Error: refusal}
	}
	return reply.Results[0]
}

func (c *testCluster) put(node placement.NodeID, collection, id string, v any) wire.WriteResult {
	c.t.Helper()
	return c.one(node, collection, wire.WriteItem{Op: wire.OpPut, ID: id, Body: body(c.t, v)})
}

func (c *testCluster) get(node placement.NodeID, req *wire.GetRequest) (*wire.GetReply, error) {
	c.t.Helper()
	reply := new(wire.GetReply)
	return reply, c.serve(node, wire.KindGet, req, reply)
}

// scan reads pages until the answer is complete.
func (c *testCluster) scan(node placement.NodeID, req *wire.ScanRequest) (docs []wire.Document, last *wire.ScanPage, err error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	add := func(m wire.Message) {
		var page wire.ScanPage
		if err := wire.Decode(wire.Append(nil, m), &page); err != nil {
			c.t.Fatal(err)
		}
		docs = append(docs, page.Docs...)
		last = &page
	}
	m, err := c.nodes[node].router.Serve(ctx, wire.KindScan, wire.Append(nil, req), func(part wire.Message) error { add(part); return nil })
	if err != nil {
		return docs, last, err
	}
	add(m)
	return docs, last, nil
}

func codeOf(err error) wire.Code {
	var refusal *wire.Error
	if errors.As(err, &refusal) && refusal != nil {
		return refusal.Code
	}
	return wire.CodeOK
}
