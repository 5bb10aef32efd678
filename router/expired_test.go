package router

import (
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/txn/hlc"
)

// A group whose clock was ahead once refuses request IDs of the time of day. A
// node that does not hold the group has not heard of its clock: with the first
// refusal it does, or those who make their IDs by it would be refused until that
// time has come.
func TestExpiredMovesClock(t *testing.T) {
	for _, tc := range []struct {
		name string
		send func(c *testCluster, id wire.RequestID) *wire.Error
	}{
		{"write", func(c *testCluster, id wire.RequestID) *wire.Error {
			reply, err := c.write("n3", &wire.WriteRequest{Collection: "users", Items: []wire.WriteItem{{RequestID: id, Op: wire.OpPut, ID: "a", Body: body(c.t, m{"v": 1})}}})
			if err != nil {
				c.t.Fatal(err)
			}
			return reply.Results[0].Error
		}},
		{"transaction", func(c *testCluster, id wire.RequestID) *wire.Error {
			v := c.places.View()
			users, _ := v.Collection("users")
			_, e := c.nodes["n3"].router.commit(c.t.Context(), &wire.CommitRequest{ID: id, Collections: []wire.TxnCollection{{
				Name: "users", Number: uint32(users.ID), Writes: []wire.WriteItem{
					{Op: wire.OpPut, ID: "a", Body: body(c.t, m{"v": 1})}, {Op: wire.OpPut, ID: "b", Body: body(c.t, m{"v": 1})}, {Op: wire.OpPut, ID: "c", Body: body(c.t, m{"v": 1})},
				},
			}}})
			return e
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newTestCluster(t, 3, 3)
			now := c.clock.Now()
			c.clock.Observe(now.Add(2 * time.Hour))
			var ids []string
			for i := range 60 { // in every group
				ids = append(ids, string(rune('a'+i%26))+string(rune('a'+i/26)))
			}
			fill(t, c, "users", ids, 0)
			horizon := now.Add(time.Hour)
			for _, core := range c.groups {
				core.setLeader("n1")
				if core.machine.Clock() < horizon {
					t.Fatalf("the clock of %s is at %v, nothing is tested", core.id, core.machine.Clock())
				}
				if _, err := core.propose("n1", fsm.Command{Horizon: &fsm.Horizon{RequestIDs: horizon}}); err != nil {
					t.Fatal(err)
				}
			}
			n := c.nodes["n3"]
			o := n.router.opts
			o.Clock = hlc.NewClock(nil)
			n.router = New(o)
			id := wire.RequestID{Time: uint64(o.Clock.Now()), Random: [16]byte{1}}
			if e := tc.send(c, id); e == nil || e.Code != wire.CodeOutcomeExpired {
				t.Fatalf("an ID of the time of day: %v", e)
			}
			heard := o.Clock.Now()
			if heard < horizon {
				t.Fatalf("the node's clock is at %v, and IDs before %v are refused", heard, horizon)
			}
			id = wire.RequestID{Time: uint64(heard), Random: [16]byte{2}}
			if e := tc.send(c, id); e != nil {
				t.Errorf("an ID by the node's clock: %v", e)
			}
		})
	}
}
