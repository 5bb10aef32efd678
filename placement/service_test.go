package placement

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/vfs"
)

// testNet is a few services that call each other. The placement group's log is
// a lock around one machine per member, applied to in step unless it is held
// back.
type testNet struct {
	t *testing.T

	mu       sync.Mutex
	services map[NodeID]*Service
	machines map[NodeID]*Machine
	leader   NodeID
	index    uint64
	down     map[NodeID]bool
	lost     int // proposals that are applied without an answer
	behind   map[NodeID][][]byte
	proposed int

	reads atomic.Int64
}

func newTestNet(t *testing.T, members, followers int) *testNet {
	n := &testNet{t: t, services: map[NodeID]*Service{}, machines: map[NodeID]*Machine{}, down: map[NodeID]bool{}, behind: map[NodeID][][]byte{}, leader: "n1"}
	var ids []NodeID
	var nodes []Node
	for i := range members {
		ids = append(ids, NodeID(fmt.Sprintf("n%d", i+1)))
	}
	for i := range members + followers {
		nodes = append(nodes, Node{ID: NodeID(fmt.Sprintf("n%d", i+1)), Incarnation: "i"})
	}
	for i, node := range nodes {
		s := NewService(Options{Self: node.ID, Peers: testPeers{n, node.ID}, AttemptTimeout: 100 * time.Millisecond, PollTimeout: 200 * time.Millisecond})
		t.Cleanup(s.Close)
		n.services[node.ID] = s
		if i < members {
			n.machines[node.ID] = NewMachine()
			s.StartMember(testNetLog{n, node.ID}, n.machines[node.ID])
		} else {
			s.StartFollower(ids)
		}
	}
	groups, err := PlanGroups(nodes, 2, 1, wire.LeadersSpread)
	if err != nil {
		t.Fatal(err)
	}
	n.propose("n1", Command{InitCluster: &InitCluster{ClusterID: "c", Members: ids, Nodes: nodes, Groups: groups, Owners: []GroupID{1, 2, 1}}})
	return n
}

func (n *testNet) propose(at NodeID, c Command) *Result {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r, err := n.services[at].Propose(ctx, fresh(c))
	if err != nil {
		n.t.Fatalf("at %s: %v", at, err)
	}
	return r
}

var lastRequest atomic.Uint64

// fresh gives a request that has no ID one of its own.
func fresh(c Command) Command {
	for _, id := range requestsOf(c) {
		if *id == (wire.RequestID{}) {
			id.Time = lastRequest.Add(1)
		}
	}
	return c
}

func requestsOf(c Command) (ids []*wire.RequestID) {
	switch {
	case c.CreateCollection != nil:
		ids = append(ids, &c.CreateCollection.Request)
	case c.DropCollection != nil:
		ids = append(ids, &c.DropCollection.Request)
	case c.SetSettings != nil:
		ids = append(ids, &c.SetSettings.Request)
	case c.SetLeaders != nil:
		ids = append(ids, &c.SetLeaders.Request)
	}
	return ids
}

type testNetLog struct {
	n  *testNet
	id NodeID
}

func (l testNetLog) Leader() (NodeID, uint64, bool) {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	return l.n.leader, 1, l.n.leader != ""
}

func (l testNetLog) Propose(_ context.Context, data []byte) (any, error) {
	n := l.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.leader != l.id {
		return nil, errors.New("not the leader")
	}
	n.index++
	n.proposed++
	var answer *Result
	for id, m := range n.machines {
		if held, ok := n.behind[id]; ok {
			n.behind[id] = append(held, data)
			continue
		}
		r, err := m.Apply(n.index, data)
		if err != nil {
			return nil, err
		}
		if id == l.id {
			answer = r
		}
	}
	if n.lost > 0 {
		n.lost--
		return nil, errors.New("leadership lost")
	}
	return answer, nil
}

func (l testNetLog) ReadIndex(context.Context) error {
	l.n.reads.Add(1)
	if leader, _, _ := l.Leader(); leader != l.id {
		return errors.New("not the leader")
	}
	return nil
}

type testPeers struct {
	n    *testNet
	self NodeID
}

func (p testPeers) Call(ctx context.Context, to NodeID, kind wire.Kind, body []byte) ([]byte, error) {
	p.n.mu.Lock()
	down, s := p.n.down[to] || p.n.down[p.self], p.n.services[to]
	p.n.mu.Unlock()
	if down || s == nil {
		return nil, errors.New("connection refused")
	}
	if kind == wire.KindPlacement {
		return s.HandlePlacement(ctx, p.self, body)
	}
	return s.HandleWait(ctx, p.self, body)
}

// A change made anywhere is seen where it was made at once, and everywhere soon.
func TestServiceSpreads(t *testing.T) {
	n := newTestNet(t, 3, 2)
	for i, at := range []NodeID{"n1", "n2", "n4", "n5"} {
		name := fmt.Sprintf("c%d", i)
		if r := n.propose(at, Command{CreateCollection: &CreateCollection{Name: name}}); r.Err() != nil {
			t.Fatal(r.Err())
		}
		if _, ok := n.services[at].View().Collection(name); !ok {
			t.Errorf("%s does not see what it created", at)
		}
		for id, s := range n.services {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if _, err := s.WaitFor(ctx, func(v *View) bool { _, ok := v.Collection(name); return ok }); err != nil {
				t.Errorf("%s never sees %s", id, name)
			}
			cancel()
		}
	}
}

// The leader moves, dies and comes back; a lost answer is not a lost change,
// and a drop whose answer was lost is done, not "not found".
func TestServiceFindsLeader(t *testing.T) {
	n := newTestNet(t, 3, 1)
	lead := func(id NodeID) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.leader = id
	}
	n.propose("n4", Command{CreateCollection: &CreateCollection{Name: "users"}})
	lead("n3")
	n.propose("n4", Command{SetSettings: &SetSettings{Settings: wire.Settings{RetentionSeconds: 7}}})
	lead("")
	done := make(chan *Result)
	go func() {
		done <- n.propose("n4", Command{CreateCollection: &CreateCollection{Name: "late"}})
	}()
	lead("n2")
	if r := <-done; r.Err() != nil {
		t.Error(r.Err())
	}
	n.mu.Lock()
	n.down["n1"], n.lost = true, 1
	n.mu.Unlock()
	r := n.propose("n4", Command{DropCollection: &DropCollection{Name: "users"}})
	if r.Err() != nil {
		t.Error(r.Err())
	}
	n.propose("n4", Command{FinishDrop: &FinishDrop{Collection: 1, Group: 1}})
	n.mu.Lock()
	n.lost = 1
	n.mu.Unlock()
	// The last confirmation: applied, answer lost, applied again.
	if r := n.propose("n4", Command{FinishDrop: &FinishDrop{Collection: 1, Group: 2}}); r.Err() != nil {
		t.Error(r.Err())
	}
	n.mu.Lock()
	n.lost = 1
	n.mu.Unlock()
	if r := n.propose("n2", Command{DropCollection: &DropCollection{Name: "nothing"}}); r.Code != wire.CodeCollectionNotFound {
		t.Errorf("a drop of what was not there, whose first answer was lost: %+v", r)
	}
	if r := n.propose("n2", Command{DropCollection: &DropCollection{Name: "nothing"}}); r.Code != wire.CodeCollectionNotFound {
		t.Errorf("a drop of what was not there: %+v", r)
	}
}

// An attempt that was held up on its way to the leader comes after the request
// was answered through another node, and after others have used the name since.
func TestServiceLateAttempt(t *testing.T) {
	n := newTestNet(t, 3, 1)
	late := func(c Command) *Result {
		t.Helper()
		b, err := n.services["n1"].HandlePlacement(t.Context(), "n3", c.Encode())
		if err != nil {
			t.Fatal(err)
		}
		r, err := DecodeResult(b)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	names := func() (out []string) {
		for _, c := range n.services["n1"].View().Collections {
			out = append(out, fmt.Sprintf("%s %d", c.Name, c.ID))
		}
		return out
	}
	drop := func(c Command) {
		t.Helper()
		r := n.propose("n2", c)
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		for g := range n.services["n1"].View().Groups {
			n.propose("n2", Command{FinishDrop: &FinishDrop{Collection: CollectionID(r.Collection.ID), Group: GroupID(g + 1)}})
		}
	}
	for _, implicit := range []bool{false, true} {
		create := fresh(Command{CreateCollection: &CreateCollection{Name: "a", Implicit: implicit}})
		first := n.propose("n4", create)
		drop(fresh(Command{DropCollection: &DropCollection{Name: "a"}}))
		if r := late(create); r.Code != wire.CodeOK || r.Collection.ID != first.Collection.ID {
			t.Errorf("a late create is answered %+v, the first was %+v", r, first)
		}
		if got := names(); len(got) != 0 {
			t.Errorf("a late create has made %v (implicit: %v)", got, implicit)
		}
	}

	n.propose("n4", Command{CreateCollection: &CreateCollection{Name: "b"}})
	first := fresh(Command{DropCollection: &DropCollection{Name: "b"}})
	drop(first)
	again := n.propose("n2", Command{CreateCollection: &CreateCollection{Name: "b"}})
	if r := late(first); r.Code != wire.CodeOK || r.Collection.ID == again.Collection.ID {
		t.Errorf("a late drop is answered %+v", r)
	}
	if c, ok := n.services["n1"].View().Collection("b"); !ok || uint32(c.ID) != again.Collection.ID {
		t.Errorf("a late drop has taken what was made anew: %v", names())
	}

	// A refusal is as final as an effect.
	nothing := fresh(Command{DropCollection: &DropCollection{Name: "c"}})
	if r := n.propose("n4", nothing); r.Code != wire.CodeCollectionNotFound {
		t.Errorf("%+v", r)
	}
	n.propose("n2", Command{CreateCollection: &CreateCollection{Name: "c"}})
	if r := late(nothing); r.Code != wire.CodeCollectionNotFound {
		t.Errorf("a drop that was refused is, late, answered %+v", r)
	}
	old := fresh(Command{SetSettings: &SetSettings{Settings: wire.Settings{RetentionSeconds: 7}}})
	n.propose("n4", old)
	n.propose("n2", Command{SetSettings: &SetSettings{Settings: wire.Settings{RetentionSeconds: 9}}})
	late(old)
	if got := n.services["n1"].View().Settings.RetentionSeconds; got != 9 {
		t.Errorf("late settings have replaced newer ones: retention %d", got)
	}
}

// "Not yet" is of the attempt that met it: one that was never answered may come
// when the name is free again.
func TestServiceNotYetIsUnknown(t *testing.T) {
	n := newTestNet(t, 3, 1)
	n.propose("n1", Command{CreateCollection: &CreateCollection{Name: "a"}})
	n.propose("n1", Command{DropCollection: &DropCollection{Name: "a"}})
	if r := n.propose("n4", Command{CreateCollection: &CreateCollection{Name: "a"}}); r.Code != wire.CodeUnavailable {
		t.Errorf("of a name that rests: %+v", r)
	}
	n.mu.Lock()
	n.lost = 1
	n.mu.Unlock()
	var refusal *wire.Error
	r, err := n.services["n4"].Propose(t.Context(), fresh(Command{CreateCollection: &CreateCollection{Name: "a"}}))
	if !errors.As(err, &refusal) || refusal.Code != wire.CodeOutcomeUnknown {
		t.Errorf("of a name that rests, after an attempt without an answer: %+v, %v", r, err)
	}
}

// Without a majority the answer says whether something may have happened.
func TestServiceGivesUp(t *testing.T) {
	n := newTestNet(t, 3, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	n.mu.Lock()
	n.leader = ""
	n.mu.Unlock()
	var refusal *wire.Error
	_, err := n.services["n4"].Propose(ctx, fresh(Command{CreateCollection: &CreateCollection{Name: "x"}}))
	if !errors.As(err, &refusal) || refusal.Code != wire.CodeUnavailable || !strings.Contains(refusal.Message, "nothing was done") {
		t.Errorf("%+v", err)
	}
	n.mu.Lock()
	n.leader, n.lost = "n1", 1000
	n.mu.Unlock()
	ctx2, cancel2 := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel2()
	_, err = n.services["n4"].Propose(ctx2, fresh(Command{CreateCollection: &CreateCollection{Name: "x"}}))
	if !errors.As(err, &refusal) || refusal.Code != wire.CodeOutcomeUnknown {
		t.Errorf("%+v", err)
	}
	n.services["n4"].Close()
	_, err = n.services["n4"].Propose(t.Context(), fresh(Command{CreateCollection: &CreateCollection{Name: "x"}}))
	if !errors.As(err, &refusal) || refusal.Code != wire.CodeShuttingDown && refusal.Code != wire.CodeOutcomeUnknown {
		t.Errorf("after Close: %+v", err)
	}
}

// A collection that this node has not heard of is looked for at the leader
// before it is said not to exist.
func TestLookup(t *testing.T) {
	n := newTestNet(t, 3, 1)
	n.mu.Lock()
	n.behind["n2"], n.behind["n3"] = [][]byte{}, [][]byte{} // only the leader has it
	n.mu.Unlock()
	n.propose("n1", Command{CreateCollection: &CreateCollection{Name: "users"}})
	for _, at := range []NodeID{"n2", "n3", "n4"} {
		if _, c, err := n.services[at].Lookup(t.Context(), "users"); err != nil || c.ID != 1 {
			t.Errorf("at %s: %v", at, err)
		}
	}
	_, _, err := n.services["n3"].Lookup(t.Context(), "usres")
	var refusal *wire.Error
	if !errors.As(err, &refusal) || refusal.Code != wire.CodeCollectionNotFound || !strings.Contains(refusal.Message, "did you mean users?") {
		t.Errorf("%v", err)
	}
	if _, _, err := n.services["n3"].Lookup(t.Context(), "_x"); !errors.As(err, &refusal) || refusal.Code != wire.CodeBadCollection {
		t.Errorf("%v", err)
	}
}

// Many callers share a refresh, but never one that began before they came.
func TestRefreshIsShared(t *testing.T) {
	n := newTestNet(t, 1, 1)
	if v, err := n.services["n2"].Refresh(t.Context()); err != nil || v.ClusterID != "c" || n.reads.Load() == 0 {
		t.Fatalf("%+v %v", v, err)
	}
	var g refreshGate
	var bg sync.WaitGroup
	defer bg.Wait()
	started, release := make(chan int, 10), make(chan struct{})
	runs := 0
	f := func(context.Context) error {
		runs++
		started <- runs
		<-release
		return nil
	}
	errs := make(chan error, 3)
	go func() { errs <- g.do(t.Context(), t.Context(), &bg, f) }()
	<-started
	for range 2 { // these come while the first runs
		go func() { errs <- g.do(t.Context(), t.Context(), &bg, f) }()
	}
	for {
		g.mu.Lock()
		waiting := g.next != nil
		g.mu.Unlock()
		if waiting {
			break
		}
	}
	release <- struct{}{}
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	if <-started != 2 {
		t.Error("the second refresh is not a second one")
	}
	close(release)
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	g.close()
	if err := g.do(t.Context(), t.Context(), &bg, f); err == nil {
		t.Error("a refresh after close")
	}
}

// A node starts with what it last knew; a damaged or missing file is nothing
// known, not an error.
func TestCache(t *testing.T) {
	n := newTestNet(t, 1, 0)
	fs := pebblevfs.NewMem()
	open := func() *Service {
		s := NewService(Options{Self: "n9", Peers: testPeers{n, "n9"}, FS: fs, Path: "TOPOLOGY", PollTimeout: 50 * time.Millisecond})
		t.Cleanup(s.Close)
		return s
	}
	s := open()
	if v := s.View(); v.ClusterID != "" {
		t.Errorf("knows %q from nowhere", v.ClusterID)
	}
	s.StartFollower([]NodeID{"n1"})
	n.propose("n1", Command{CreateCollection: &CreateCollection{Name: "users"}})
	has := func(v *View) bool { _, ok := v.Collection("users"); return ok }
	if _, err := s.WaitFor(t.Context(), has); err != nil {
		t.Fatal(err)
	}
	waitFile(t, fs, func(st *State) bool { return st.Applied == s.View().Applied })
	s.Close()
	n.mu.Lock()
	n.down["n1"] = true
	n.mu.Unlock()
	if v := open().View(); !has(v) || v.ClusterID != "c" {
		t.Error("the cached state is not shown")
	}
	b, err := vfs.ReadFile(fs, "TOPOLOGY", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		damaged := append([]byte(nil), b...)
		damaged[i] ^= 0x40
		if err := vfs.WriteFile(fs, "TOPOLOGY", damaged); err != nil {
			t.Fatal(err)
		}
		if st, err := readCache(fs, "TOPOLOGY"); err == nil {
			t.Fatalf("a flipped bit in byte %d reads as %+v", i, st)
		}
	}
	for cut := range b {
		if err := vfs.WriteFile(fs, "TOPOLOGY", b[:cut]); err != nil {
			t.Fatal(err)
		}
		if _, err := readCache(fs, "TOPOLOGY"); err == nil {
			t.Fatalf("%d of %d bytes are accepted", cut, len(b))
		}
	}
	if v := open().View(); v.ClusterID != "" {
		t.Error("a cut cache is shown")
	}
}

// waitFile waits until the cache file holds a state.
func waitFile(t *testing.T, fs vfs.FS, ok func(*State) bool) {
	t.Helper()
	limit := time.After(5 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if st, err := readCache(fs, "TOPOLOGY"); err == nil && st != nil && ok(st) {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("the cache is not written")
		}
	}
}

// What comes from other nodes is checked.
func TestHandlersRefuse(t *testing.T) {
	n := newTestNet(t, 2, 1)
	var refusal *wire.Error
	for name, f := range map[string]func() error{
		"no command": func() error {
			_, err := n.services["n1"].HandlePlacement(t.Context(), "x", []byte{1, 2, 3})
			return err
		},
		"no question": func() error { _, err := n.services["n1"].HandleWait(t.Context(), "x", []byte{9}); return err },
	} {
		if err := f(); !errors.As(err, &refusal) || refusal.Code != wire.CodeBadRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
	command := fresh(Command{CreateCollection: &CreateCollection{Name: "x"}}).Encode()
	for _, at := range []NodeID{"n2", "n3"} {
		if _, err := n.services[at].HandlePlacement(t.Context(), "x", command); !errors.As(err, &refusal) || refusal.Code != wire.CodeNotLeader {
			t.Errorf("%s: %v", at, err)
		}
		if _, err := n.services[at].HandleWait(t.Context(), "x", question{fresh: true}.encode()); !errors.As(err, &refusal) || refusal.Code != wire.CodeNotLeader {
			t.Errorf("%s: %v", at, err)
		}
	}
	if refusal.Leader != "" { // n3 is no member and does not know
		t.Errorf("leader %q", refusal.Leader)
	}
}
