package router

import (
	"context"
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
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				r := c.nodes[node].router
				if _, e := r.commit(ctx, several(c)); e != nil {
					t.Fatal(e)
				}
				until(t, "the first to end", func() bool { return r.TxnStats().Running == 0 })
				r.txns.mu.Lock()
				r.txns.ticks.Stop() // as it has when it fires and finds no drivers
				r.txns.mu.Unlock()

				req := several(c)
				for _, core := range c.groups {
					core.mu.Lock()
					tc.disturb(core)
					core.mu.Unlock()
				}
				reply, e := r.commit(ctx, req)
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
	overload(c)
	r := c.nodes["n1"].router
	ended := committing(t, r, req)
	until(t, "the driver to be at work", func() bool { return r.TxnStats().Running == 1 })
	r.Close()
	if e := <-ended; e == nil || !e.Code.Unknown() {
		t.Errorf("who waits was told %v", e)
	}
	if n := r.TxnStats().Running; n != 0 {
		t.Errorf("%d coordinators are at work after Close", n)
	}
	if _, e := r.commit(t.Context(), several(c)); e == nil || e.Code != wire.CodeOverloaded {
		t.Errorf("a closed router answers %v", e)
	}
}

// Of a driver that Close has ended nothing more is sent, though the answers that
// it was waiting for come: the groups may be closed already.
func TestCloseSilencesDrivers(t *testing.T) {
	c := newTestCluster(t, 2, 3)
	c.put("n1", "users", "a", m{})
	req := several(c)
	v := c.places.View()
	users, _ := v.Collection("users")
	home := c.groups[v.Owner(partitionOf(v, users, "a"))]
	for _, core := range c.groups {
		core.setLeader("n2")
	}
	home.setLeader("n1")
	sent, answer := make(chan struct{}, 2), make(chan struct{})
	c.mu.Lock()
	c.intercept = func(_, _ placement.NodeID, kind wire.Kind) error {
		if kind == wire.KindGroupTxn {
			sent <- struct{}{}
			<-answer
		}
		return nil
	}
	c.mu.Unlock()
	r := c.nodes["n1"].router
	ended := committing(t, r, req)
	for range len(c.groups) - 1 {
		<-sent // by a goroutine of the driver, which home has answered meanwhile
	}
	until(t, "home to prepare", func() bool { return home.machine.LocksHeld() > 0 })
	home.mu.Lock()
	before := home.index
	home.mu.Unlock()

	closed := make(chan struct{})
	go func() { defer close(closed); r.Close() }() // joined below
	until(t, "the driver to be stopped", func() bool { return r.TxnStats().Running == 0 })
	if e := <-ended; e == nil || !e.Code.Unknown() {
		t.Errorf("who waits was told %v", e)
	}
	close(answer) // all have prepared: home would be told
	<-closed
	home.mu.Lock()
	defer home.mu.Unlock()
	if home.index != before {
		t.Errorf("%d entries were proposed after the driver had been stopped", home.index-before)
	}
	if n := r.TxnStats().Running; n != 0 {
		t.Errorf("%d coordinators are at work after Close", n)
	}
}

// Close does not wait for a transaction in one group that waits for its turn.
func TestCloseEndsCommitInOneGroup(t *testing.T) {
	c := newTestCluster(t, 1, 1)
	c.put("n1", "users", "a", m{})
	req := several(c)
	req.TimeoutMillis = uint32(maxTxnTimeout / time.Millisecond)
	overload(c)
	r := c.nodes["n1"].router
	ended := committing(t, r, req)
	until(t, "it to be at work", func() bool { return r.TxnStats().Running == 1 })
	began := time.Now()
	r.Close()
	if e := <-ended; e == nil {
		t.Error("who waits was told that it is committed")
	}
	if took := time.Since(began); took > maxTxnTimeout/2 {
		t.Errorf("Close took %s", took)
	}
}

// overload has every group refuse what is proposed.
func overload(c *testCluster) {
	for _, core := range c.groups {
		core.mu.Lock()
		core.fail = repeat(shardgroup.ErrOverloaded, 1<<16)
		core.mu.Unlock()
	}
}

// committing commits in a goroutine, which ends with the router if not before.
func committing(t *testing.T, r *Router, req *wire.CommitRequest) <-chan *wire.Error {
	ended := make(chan *wire.Error, 1)
	go func() { // joined by who receives
		_, e := r.commit(t.Context(), req)
		ended <- e
	}()
	return ended
}
