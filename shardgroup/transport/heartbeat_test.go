package transport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/placement"
)

// The schedule of hashicorp/raft issue 695, over TCP: a leader is cut off and
// stays leader, the others elect another, and the first thing to reach the old
// one again is a heartbeat. If that heartbeat is handled beside raft's main
// loop, the old leader's next entry carries the new leader's term.
//
// The schedule is run twice. With the fast path that the stock transport has,
// replicas must come to differ, or the schedule proves nothing; with
// RaftTransport as it is they must not.
func TestHeartbeatCannotDiverge(t *testing.T) {
	t.Run("fast path diverges", func(t *testing.T) {
		t.Parallel()
		if !deposedLeaderSchedule(t, true) {
			t.Error("replicas agree although heartbeats took the fast path: this test cannot fail any more")
		}
	})
	t.Run("ours does not", func(t *testing.T) {
		t.Parallel()
		if deposedLeaderSchedule(t, false) {
			t.Error("replicas hold different entries at the same index")
		}
	})
}

var errLinkCut = errors.New("link is cut")

// faulty is a RaftTransport whose links can be cut, and which can have the
// heartbeat fast path that RaftTransport refuses to have.
type faulty struct {
	*RaftTransport
	fast bool
	rpc  chan raft.RPC
	stop chan struct{}
	beat atomic.Pointer[func(raft.RPC)]

	mu       sync.Mutex
	cut      map[raft.ServerID]bool
	beatOnly map[raft.ServerID]bool
}

func newFaulty(t *RaftTransport, fast bool) *faulty {
	f := &faulty{RaftTransport: t, fast: fast, rpc: make(chan raft.RPC), stop: make(chan struct{}), cut: map[raft.ServerID]bool{}, beatOnly: map[raft.ServerID]bool{}}
	go func() {
		for {
			select {
			case r := <-t.Consumer():
				if q, ok := r.Command.(*raft.AppendEntriesRequest); ok && isHeartbeat(q) {
					if h := f.beat.Load(); h != nil {
						(*h)(r)
						continue
					}
				}
				select {
				case f.rpc <- r:
				case <-f.stop:
					return
				}
			case <-f.stop:
				return
			}
		}
	}()
	return f
}

func isHeartbeat(q *raft.AppendEntriesRequest) bool {
	return q.PrevLogEntry == 0 && q.PrevLogTerm == 0 && len(q.Entries) == 0 && q.LeaderCommitIndex == 0
}

func (f *faulty) Consumer() <-chan raft.RPC { return f.rpc }

func (f *faulty) SetHeartbeatHandler(h func(raft.RPC)) {
	f.RaftTransport.SetHeartbeatHandler(h)
	if f.fast {
		f.beat.Store(&h)
	}
}

func (f *faulty) Close() error {
	close(f.stop)
	return f.RaftTransport.Close()
}

func (f *faulty) set(m map[raft.ServerID]bool, v bool, ids ...raft.ServerID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		m[id] = v
	}
}

func (f *faulty) blocked(id raft.ServerID, heartbeat bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cut[id] || f.beatOnly[id] && !heartbeat
}

func (f *faulty) AppendEntries(id raft.ServerID, a raft.ServerAddress, q *raft.AppendEntriesRequest, r *raft.AppendEntriesResponse) error {
	if f.blocked(id, isHeartbeat(q)) {
		return errLinkCut
	}
	return f.RaftTransport.AppendEntries(id, a, q, r)
}

func (f *faulty) RequestVote(id raft.ServerID, a raft.ServerAddress, q *raft.RequestVoteRequest, r *raft.RequestVoteResponse) error {
	if f.blocked(id, false) {
		return errLinkCut
	}
	return f.RaftTransport.RequestVote(id, a, q, r)
}

func (f *faulty) RequestPreVote(id raft.ServerID, a raft.ServerAddress, q *raft.RequestPreVoteRequest, r *raft.RequestPreVoteResponse) error {
	if f.blocked(id, false) {
		return errLinkCut
	}
	return f.RaftTransport.RequestPreVote(id, a, q, r)
}

// journal is a state machine that remembers everything.
type journal struct {
	mu sync.Mutex
	v  []string
}

func (j *journal) Apply(l *raft.Log) any {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.v = append(j.v, fmt.Sprintf("%d:%s", l.Index, l.Data))
	return nil
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.v, " ")
}

func (j *journal) Snapshot() (raft.FSMSnapshot, error) { return nil, io.EOF }
func (j *journal) Restore(io.ReadCloser) error         { return nil }

type raftNode struct {
	id    raft.ServerID
	raft  *raft.Raft
	fsm   *journal
	trans *faulty
}

// testPeers makes connected Peers.
func testPeers(t testing.TB, ids ...placement.NodeID) []*Peers {
	t.Helper()
	addrs := map[placement.NodeID]string{}
	var listeners []net.Listener
	for _, id := range ids {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs[id] = l.Addr().String()
		listeners = append(listeners, l)
	}
	var all []*Peers
	for i, id := range ids {
		p, err := New(Options{
			NodeID: id, Incarnation: "1", ClusterID: func() string { return "c" }, Listener: listeners[i],
			Resolve: func(n placement.NodeID) (string, error) { return addrs[n], nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		p.Start()
		t.Cleanup(func() { _ = p.Close() })
		all = append(all, p)
	}
	return all
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(15 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("gave up waiting for %s", what)
		}
	}
}

// deposedLeaderSchedule runs it and says whether replicas came to differ.
func deposedLeaderSchedule(t *testing.T, fast bool) (diverged bool) {
	const a, b, c = "a@1", "b@1", "c@1"
	var nodes []*raftNode
	for i, p := range testPeers(t, "a", "b", "c") {
		conf := raft.DefaultConfig()
		conf.LocalID = []raft.ServerID{a, b, c}[i]
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 150*time.Millisecond, 150*time.Millisecond, 150*time.Millisecond
		if i == 0 { // as if this process was paused: it does not notice that it is alone
			conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 20*time.Second, 20*time.Second, 20*time.Second
		}
		conf.CommitTimeout = 10 * time.Millisecond
		conf.Logger = hclog.NewNullLogger()
		rt, err := p.Raft(1, RaftOptions{})
		if err != nil {
			t.Fatal(err)
		}
		n := &raftNode{id: conf.LocalID, fsm: &journal{}, trans: newFaulty(rt, fast)}
		store := raft.NewInmemStore()
		n.raft, err = raft.NewRaft(conf, n.fsm, store, store, raft.NewInmemSnapshotStore(), n.trans)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.raft.Shutdown().Error() })
		nodes = append(nodes, n)
	}
	old := nodes[0]
	servers := raft.Configuration{}
	for _, n := range nodes {
		node, _ := SplitServerID(n.id)
		servers.Servers = append(servers.Servers, raft.Server{ID: n.id, Address: raft.ServerAddress(node)})
	}
	for _, n := range nodes {
		if err := n.raft.BootstrapCluster(servers).Error(); err != nil {
			t.Fatal(err)
		}
	}
	// b or c is elected first, being quick, and hands over to a.
	leads := func(ns []*raftNode) *raftNode {
		for _, n := range ns {
			if n.raft.State() == raft.Leader {
				return n
			}
		}
		return nil
	}
	eventually(t, "a to lead", func() bool {
		l := leads(nodes)
		if l != nil && l != old {
			_ = l.raft.LeadershipTransferToServer(a, "a").Error()
		}
		return old.raft.State() == raft.Leader
	})
	if err := old.raft.Apply([]byte("v1"), time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "v1 everywhere", func() bool {
		return strings.HasSuffix(nodes[1].fsm.String(), "v1") && strings.HasSuffix(nodes[2].fsm.String(), "v1")
	})

	old.trans.set(old.trans.cut, true, b, c)
	nodes[1].trans.set(nodes[1].trans.cut, true, a)
	nodes[2].trans.set(nodes[2].trans.cut, true, a)
	var next *raftNode
	eventually(t, "another leader", func() bool { next = leads(nodes[1:]); return next != nil })
	term := next.raft.CurrentTerm()
	if err := next.raft.Barrier(time.Second).Error(); err != nil {
		t.Fatal(err)
	}

	// Only heartbeats of the new leader reach the old one.
	next.trans.set(next.trans.beatOnly, true, a)
	next.trans.set(next.trans.cut, false, a)
	eventually(t, "the heartbeat to arrive", func() bool { return old.raft.CurrentTerm() >= term })
	_ = old.raft.Apply([]byte("from the deposed leader"), time.Second).Error() // refused, or the disaster

	for _, n := range nodes {
		n.trans.set(n.trans.cut, false, a, b, c)
		n.trans.set(n.trans.beatOnly, false, a, b, c)
	}
	eventually(t, "v2 to be committed", func() bool {
		l := leads(nodes[1:])
		return l != nil && l.raft.Apply([]byte("v2"), time.Second).Error() == nil
	})
	eventually(t, "v2 everywhere", func() bool {
		at := nodes[0].raft.AppliedIndex()
		for _, n := range nodes {
			if n.raft.AppliedIndex() != at || !strings.Contains(n.fsm.String(), ":v2") {
				return false
			}
		}
		return true
	})
	for _, n := range nodes {
		t.Logf("%s: %s", n.id, n.fsm)
	}
	return nodes[0].fsm.String() != nodes[1].fsm.String() || nodes[1].fsm.String() != nodes[2].fsm.String()
}
