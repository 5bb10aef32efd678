package shardgroup

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/placement"
)

// lines is a machine that remembers every entry.
type lines struct {
	mu sync.Mutex
	v  []string
}

func (m *lines) Apply(_ uint64, data []byte) (*placement.Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if string(data) == "unreadable" {
		return nil, errors.New("an entry of a newer version")
	}
	m.v = append(m.v, string(data))
	return &placement.Result{Catalog: uint64(len(m.v))}, nil
}

func (m *lines) Snapshot() ([]byte, error) { return []byte(m.String()), nil }

func (m *lines) Restore(b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.v = strings.Split(string(b), " ")
	return nil
}

func (m *lines) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.v, " ")
}

// The placement group replicates, survives its leader and a restart of all,
// and is read linearizably.
func TestPlacementGroup(t *testing.T) {
	leaks := noLeaks(t)
	c := newCluster(t, 3, 0, nil)
	var members []Member
	for _, id := range c.order {
		members = append(members, Member{Node: id, Incarnation: "1"})
	}
	start := func(id placement.NodeID) *Placement {
		p, err := c.node(id).host.StartPlacement(members, &lines{})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, id := range c.order {
		start(id)
	}
	leader := func(not ...placement.NodeID) (l *Placement) {
		c.wait("a placement leader", func() bool {
			for _, id := range c.order {
				n := c.node(id)
				if n == nil || len(not) > 0 && id == not[0] {
					continue
				}
				if p := n.host.Placement(); p != nil && p.IsLeader() {
					l = p
					return true
				}
			}
			return false
		})
		return l
	}
	propose := func(line string) {
		c.wait("a placement entry", func() bool {
			v, err := leader().Propose(ctxFor(t, time.Second), []byte(line))
			if err != nil {
				return false
			}
			if r, ok := v.(*placement.Result); !ok || r.Catalog == 0 {
				t.Fatalf("answer: %v", v)
			}
			return true
		})
	}
	for i := range 5 {
		propose(fmt.Sprint(i))
	}
	l := leader()
	if err := l.ReadIndex(ctxFor(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, id := range c.order {
		p := c.node(id).host.Placement()
		var nl *NotLeaderError
		if p != l {
			if _, err := p.Propose(ctxFor(t, time.Second), []byte("astray")); !errors.As(err, &nl) {
				t.Errorf("propose at a follower: %v", err)
			}
		}
		if s := p.Status(); s.ID != 0 || s.Leader == "" {
			t.Errorf("status: %+v", s)
		}
	}
	gone := c.stop(l.host.cfg.NodeID)
	propose("late")
	applied := leader().Status().Applied
	c.start(gone.id, gone.dir)
	start(gone.id)
	c.wait("the old leader to catch up", func() bool { return c.node(gone.id).host.Placement().Status().Applied >= applied })

	// A snapshot holds everything, and where it ends.
	l = leader()
	if err := l.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	var stopped []*testNode
	for _, id := range c.order {
		stopped = append(stopped, c.stop(id))
	}
	for _, n := range stopped {
		c.start(n.id, n.dir)
		start(n.id)
	}
	l = leader()
	if err := l.ReadIndex(ctxFor(t, 2*time.Second)); err != nil {
		t.Fatal(err)
	}
	if got := l.machine.(*lines).String(); got != "0 1 2 3 4 late" {
		t.Errorf("after the restart: %q", got)
	}

	// An entry that cannot be read halts every replica, and no node.
	_, err := l.Propose(ctxFor(t, time.Second), []byte("unreadable"))
	if !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("unreadable entry: %v", err)
	}
	select {
	case h := <-c.node(l.host.cfg.NodeID).halts:
		if h.Group != 0 || !strings.Contains(h.Error(), "newer version") {
			t.Errorf("halted: %v", h)
		}
	case <-time.After(5 * time.Second):
		t.Error("the replica did not halt")
	}
	c.close()
	leaks()
}
