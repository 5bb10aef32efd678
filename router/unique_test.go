package router

import (
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/txn/hlc"
)

// A refusal that rests on a document that was not there is not kept if the
// document has come and gone since: it may have been what held the value.
func TestRefusalOfWhatCameAndWent(t *testing.T) {
	c := newTestCluster(t, 1, 1)
	c.put("n1", "users", "other", m{})
	r := c.nodes["n1"].router
	v := c.places.View()
	users, _ := v.Collection("users")
	for _, tc := range []struct {
		name       string
		comesFirst bool
		changes    []wire.WriteItem
		again      bool
	}{
		{name: "nothing happened"},
		{"it came and went", false, []wire.WriteItem{{Op: wire.OpPut, Body: body(t, m{"v": 1})}, {Op: wire.OpDelete}}, true},
		{"it came", false, []wire.WriteItem{{Op: wire.OpPut, Body: body(t, m{"v": 1})}}, true},
		{"it was there, and is still", true, nil, false},
		{"it was there, and was written", true, []wire.WriteItem{{Op: wire.OpPut, Body: body(t, m{"v": 2})}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id := "doc " + tc.name
			if tc.comesFirst {
				c.put("n1", "users", id, m{"v": 1})
			}
			p := partitionOf(v, users, id)
			g, _ := r.opts.Groups.Group(v.Owner(p))
			b := &batch{r: r, view: v, coll: users, req: &wire.WriteRequest{Collection: "users"}}
			w := &uniqueWrite{b: b, g: g, item: &wire.WriteItem{ID: id, Op: wire.OpPut, RequestID: c.requestID()}, key: fsm.ReadKey{
				Partition: p, Epoch: v.Epoch, Collection: users.ID, ID: id,
			}}
			seen, live, since, err := w.read(t.Context())
			if err != nil || live != tc.comesFirst {
				t.Fatalf("read: %+v %v %v", seen, live, err)
			}
			for _, item := range tc.changes {
				item.ID = id
				if res := c.one("n1", "users", item); res.Error != nil {
					t.Fatal(res.Error)
				}
			}
			still := w.still(hlc.Timestamp(seen.UpdatedAt), since)
			o, again := w.refuse(t.Context(), w.transaction(), &still, &fsm.Refused{Code: wire.CodeDuplicateValue, Detail: "why"})
			if again != tc.again || o.Err != nil {
				t.Fatalf("begins again: %v, %+v", again, o)
			}
			if !again && (o.Result.Wire.Error == nil || o.Result.Wire.Error.Code != wire.CodeDuplicateValue) {
				t.Errorf("the refusal is %+v", o.Result)
			}
		})
	}
}
