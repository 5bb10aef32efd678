package router

import (
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn/hlc"
)

// several is a commit request over many groups.
func several(c *testCluster) *wire.CommitRequest {
	users, _ := c.places.View().Collection("users")
	req := &wire.CommitRequest{ID: c.requestID(), Collections: []wire.TxnCollection{{Name: "users", Number: uint32(users.ID)}}}
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		req.Collections[0].Writes = append(req.Collections[0].Writes, wire.WriteItem{Op: wire.OpPut, ID: id, Body: body(c.t, m{"v": id})})
	}
	return req
}

// A driver goes on when commands are refused or their answers lost, wherever the
// groups are led: what comes of them comes while others are being sent.
func TestDriverGoesOn(t *testing.T) {
	for _, tc := range []struct {
		name    string
		disturb func(core *testCore)
	}{
		{"refused", func(core *testCore) {
			core.fail = []error{shardgroup.ErrOverloaded, &shardgroup.NotLeaderError{Group: core.id}, shardgroup.ErrOutcomeUnknown}
		}},
		{"answers lost", func(core *testCore) { core.lose = 3 }},
	} {
		for _, node := range []placement.NodeID{"n1", "n2"} {
			t.Run(tc.name+" at "+string(node), func(t *testing.T) {
				c := newTestCluster(t, 2, 3)
				c.put("n1", "users", "a", m{})
				for _, core := range c.groups {
					core.setLeader("n1")
				}
				req := several(c)
				for _, core := range c.groups {
					core.mu.Lock()
					tc.disturb(core)
					core.mu.Unlock()
				}
				r := c.nodes[node].router
				reply, e := r.commit(t.Context(), req)
				if e != nil || reply.Time == 0 || reply.Cost.Groups < 2 {
					t.Fatalf("commit: %+v %v", reply, e)
				}
				until(t, "it to be settled everywhere", func() bool {
					held := 0
					for _, core := range c.groups {
						held += core.machine.LocksHeld() + len(core.machine.Unfinished(hlc.Max))
					}
					return held == 0 && r.TxnStats().Running == 0
				})
			})
		}
	}
}

// Close ends drivers that have something left to send, and tells who waits that
// the outcome is not known.
func TestCloseEndsDrivers(t *testing.T) {
	c := newTestCluster(t, 1, 3)
	c.put("n1", "users", "a", m{})
	req := several(c)
	for _, core := range c.groups {
		core.mu.Lock()
		for range 1 << 16 {
			core.fail = append(core.fail, shardgroup.ErrOverloaded)
		}
		core.mu.Unlock()
	}
	r := c.nodes["n1"].router
	ended := make(chan *wire.Error, 1)
	go func() { // joined below
		_, e := r.commit(t.Context(), req)
		ended <- e
	}()
	until(t, "the driver to be at work", func() bool { return r.TxnStats().Running == 1 })
	r.Close()
	select {
	case e := <-ended:
		if e == nil || !e.Code.Unknown() {
			t.Errorf("who waits was told %v", e)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("who waits was not told")
	}
	if n := r.TxnStats().Running; n != 0 {
		t.Errorf("%d coordinators are at work after Close", n)
	}
	if _, e := r.commit(t.Context(), several(c)); e == nil || e.Code != wire.CodeOverloaded {
		t.Errorf("a closed router answers %v", e)
	}
}
