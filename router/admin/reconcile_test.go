package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
)

// site is what runs on one node, kept by the test.
type site struct {
	mu       sync.Mutex
	replicas map[placement.GroupID]placement.Replica
	lead     bool // groups that are started lead
	failOwn  int
	asked    int
	moved    []string
	dropped  []string
	peer     wire.NodeStatus
	peerErr  error
	moveErr  error
	changed  chan struct{}

	failPrefer int
}

func (s *site) event() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *site) Replicas() map[placement.GroupID]placement.Replica {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[placement.GroupID]placement.Replica)
	for id, r := range s.replicas {
		out[id] = r
	}
	return out
}

func (s *site) StartGroup(g placement.Group) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replicas[g.ID] = placement.Replica{Leading: s.lead, Commit: 10, Preferred: g.Preferred}
	s.event()
	return nil
}

func (s *site) Prefer(g placement.GroupID, leader placement.NodeID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.event()
	if s.failPrefer > 0 {
		s.failPrefer--
		return errors.New("not now")
	}
	r := s.replicas[g]
	r.Preferred = leader
	s.replicas[g] = r
	return nil
}

func (s *site) Propose(_ context.Context, g placement.GroupID, c fsm.Command) (fsm.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.event()
	switch {
	case c.Own != nil:
		if s.failOwn > 0 {
			s.failOwn--
			return fsm.Result{}, errors.New("not now")
		}
		r := s.replicas[g]
		if r.Owned != 0 {
			return fsm.Result{}, errors.New("owned twice")
		}
		r.Owned = c.Own.Epoch
		s.replicas[g] = r
	case c.Drop != nil:
		s.dropped = append(s.dropped, fmt.Sprintf("%d in %s", c.Drop.Collection, g))
	}
	return fsm.Result{}, nil
}

func (s *site) Transfer(_ context.Context, g placement.GroupID, to placement.NodeID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.event()
	s.moved = append(s.moved, fmt.Sprintf("%s to %s", g, to))
	if s.moveErr != nil {
		return s.moveErr
	}
	r := s.replicas[g]
	r.Leading = false
	s.replicas[g] = r
	return nil
}

func (s *site) PeerStatus(context.Context, placement.NodeID) (wire.NodeStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return s.peer, s.peerErr
}

// until waits for a condition on the site.
func (s *site) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.After(10 * time.Second)
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		s.mu.Lock()
		done := ok()
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-s.changed:
		case <-poll.C:
		case <-limit:
			t.Fatalf("it did not happen: %s; replicas %+v, moved %v, dropped %v", what, s.replicas, s.moved, s.dropped)
		}
	}
}

// selfLog is the placement group of one node.
type selfLog struct {
	mu      sync.Mutex
	machine *placement.Machine
	index   uint64
}

func (l *selfLog) Propose(_ context.Context, data []byte) (any, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index++
	return l.machine.Apply(l.index, data)
}
func (l *selfLog) ReadIndex(context.Context) error          { return nil }
func (l *selfLog) Leader() (placement.NodeID, uint64, bool) { return "a", 1, true }

func TestReconciler(t *testing.T) {
	log := &selfLog{machine: placement.NewMachine()}
	service := placement.NewService(placement.Options{Self: "a"})
	defer service.Close()
	service.StartMember(log, log.machine)
	s := &site{replicas: map[placement.GroupID]placement.Replica{}, lead: true, failOwn: 2, changed: make(chan struct{}, 1), peerErr: errors.New("down")}
	self := placement.Node{ID: "a", ClientAddr: "new:1", Incarnation: "1"}
	r := StartReconciler(ReconcilerOptions{
		Settle: -1,
		Self:   self, Placement: service, Local: s,
		Interval: 10 * time.Millisecond, TransferPause: time.Millisecond, TransferRetry: 50 * time.Millisecond,
	})
	propose := func(c placement.Command) *placement.Result {
		t.Helper()
		result, err := service.Propose(t.Context(), c)
		if err != nil || result.Err() != nil {
			t.Fatal(err, result.Err())
		}
		return result
	}
	propose(placement.Command{InitCluster: &placement.InitCluster{
		ClusterID: "c", Members: []placement.NodeID{"a"},
		Nodes: []placement.Node{{ID: "a", ClientAddr: "old:1", Incarnation: "1"}, {ID: "b", Incarnation: "1"}},
		Groups: []placement.Group{
			{ID: 1, Replicas: []placement.NodeID{"a", "b"}, Preferred: "a"},
			{ID: 2, Replicas: []placement.NodeID{"a", "b"}, Preferred: "b"},
			{ID: 3, Replicas: []placement.NodeID{"b"}, Preferred: "b"},
			{ID: 4, Replicas: []placement.NodeID{"a", "b"}, Preferred: "b"},
		},
		Owners: []placement.GroupID{1, 2, 3, 4, 1},
	}})
	s.until(t, "three groups own their partitions, in spite of two failures", func() bool {
		return len(s.replicas) == 3 && s.replicas[1].Owned == 1 && s.replicas[2].Owned == 1 && s.replicas[4].Owned == 1
	})
	if _, err := service.WaitFor(t.Context(), func(v *placement.View) bool { n, _ := v.Node("a"); return n == self }); err != nil {
		t.Error(err)
	}

	// A drop is carried out in what is led here, and confirmed.
	users := propose(placement.Command{CreateCollection: &placement.CreateCollection{Request: wire.RequestID{Time: 1}, Name: "users"}})
	propose(placement.Command{DropCollection: &placement.DropCollection{Request: wire.RequestID{Time: 2}, Name: "users"}})
	v, err := service.WaitFor(t.Context(), func(v *placement.View) bool {
		c, ok := v.CollectionByID(placement.CollectionID(users.Collection.ID))
		return ok && len(c.Pending) == 1
	})
	if c, _ := v.Dropped("users"); err != nil || c.Pending[0] != 3 {
		t.Errorf("%+v %v", c, err)
	}
	s.mu.Lock()
	slices.Sort(s.dropped)
	if got := slices.Compact(s.dropped); !slices.Equal(got, []string{"1 in g1", "1 in g2", "1 in g4"}) {
		t.Errorf("dropped %v", got)
	}
	if len(s.moved) != 0 {
		t.Errorf("moved %v to a node that is down", s.moved)
	}
	// b comes up, not yet ready; then it is, but one transfer fails at first.
	s.asked = 0
	s.peer, s.peerErr = wire.NodeStatus{Ready: false, Groups: []wire.GroupStatus{{ID: 2, Applied: 10}, {ID: 4, Applied: 10}}}, nil
	s.mu.Unlock()
	s.until(t, "a few looks at b", func() bool { return s.asked >= 3 })
	s.mu.Lock()
	if len(s.moved) != 0 {
		t.Errorf("moved %v to a node that is not ready", s.moved)
	}
	s.moveErr = errors.New("it is behind")
	s.peer.Ready = true
	s.mu.Unlock()
	s.until(t, "a first try", func() bool { return len(s.moved) > 0 })
	s.mu.Lock()
	s.moveErr = nil
	s.mu.Unlock()
	s.until(t, "both groups are handed over", func() bool { return !s.replicas[2].Leading && !s.replicas[4].Leading })
	if !s.replicas[1].Leading {
		t.Error("a group that is where it should be was moved")
	}
	// Leaders are to be together, on b: replicas here are told, in spite of a
	// failure, and what is led here goes there.
	s.mu.Lock()
	s.failPrefer = 1
	s.peer.Groups = append(s.peer.Groups, wire.GroupStatus{ID: 1, Applied: 10})
	s.mu.Unlock()
	propose(placement.Command{SetLeaders: &placement.SetLeaders{
		Request: wire.RequestID{Time: 3}, Leaders: wire.LeadersTogether, Preferred: placement.PlanLeaders(v.Groups, wire.LeadersTogether),
	}})
	s.until(t, "the last group is handed over to b, and all know of it", func() bool {
		return !s.replicas[1].Leading && s.replicas[1].Preferred == "b" && s.replicas[2].Preferred == "b" && s.replicas[4].Preferred == "b"
	})
	r.Close()
	s.mu.Lock()
	count := len(s.moved)
	replica := s.replicas[2]
	replica.Leading = true
	s.replicas[2] = replica
	s.mu.Unlock()
	r.Kick()
	if s.mu.Lock(); len(s.moved) != count {
		t.Error("it goes on after Close")
	}
	s.mu.Unlock()
}
