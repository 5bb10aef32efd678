package router

import (
	"context"
	"fmt"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn/hlc"
)

// instant is a group that does everything at once: what is left is the router.
type instant struct{ testGroup }

func (instant) Propose(context.Context, fsm.Command) (fsm.Result, error) {
	return fsm.Result{Wire: wire.WriteResult{Version: 1, Time: 1}}, nil
}
func (instant) ProposeMany(_ context.Context, cs []fsm.Command) []shardgroup.Outcome {
	return make([]shardgroup.Outcome, len(cs))
}
func (instant) ReadIndex(context.Context) error             { return nil }
func (instant) ReadAt(context.Context, hlc.Timestamp) error { return nil }

func (instant) BeginRead([]fsm.ReadKey, hlc.Timestamp) (shardgroup.Pending, error) {
	return shardgroup.Pending{}, nil
}

func BenchmarkServe(b *testing.B) {
	t := b
	c := newTestCluster(t, 1, 1)
	c.put("n1", "users", "u1", m{"name": "x"})
	for i := range 100 {
		c.put("n1", "users", fmt.Sprintf("u%d", i), m{"name": "x"})
	}
	n := c.nodes["n1"]
	o := n.router.opts
	o.Groups = groupsFunc(func() Group { g, _ := n.Group(1); return instant{g.(testGroup)} })
	r := New(o)
	payload := body(t, m{"name": "somebody", "pad": string(make([]byte, 900))})
	number, err := c.number("n1", "users", false)
	if err != nil {
		b.Fatal(err)
	}
	write := wire.Append(nil, &wire.WriteRequest{Collection: "users", Number: number, Direct: true, Items: []wire.WriteItem{{
		Op: wire.OpPut, ID: "u1", Body: payload, RequestID: c.requestID(),
	}}})
	many := &wire.WriteRequest{Collection: "users", Number: number, Direct: true}
	for i := range 100 {
		many.Items = append(many.Items, wire.WriteItem{Op: wire.OpPut, ID: fmt.Sprintf("u%d", i), Body: payload, RequestID: c.requestID()})
	}
	bulk := wire.Append(nil, many)
	get := wire.Append(nil, &wire.GetRequest{Collection: "users", Direct: true, IDs: []string{"u1"}})
	for _, x := range []struct {
		name string
		kind wire.Kind
		body []byte
	}{{"put", wire.KindWrite, write}, {"bulk100", wire.KindWrite, bulk}, {"get", wire.KindGet, get}} {
		b.Run(x.name, func(b *testing.B) {
			b.ReportAllocs()
			var out []byte
			for b.Loop() {
				reply, err := r.Serve(context.Background(), x.kind, x.body, nil)
				if err != nil {
					b.Fatal(err)
				}
				out = wire.Append(out[:0], reply)
			}
		})
	}
}

type groupsFunc func() Group

func (f groupsFunc) Group(placement.GroupID) (Group, bool) { return f(), true }
