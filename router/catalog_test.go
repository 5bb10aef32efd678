package router

import (
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// TestLateAttempts: two attempts of one request arrive at different routers, the
// second long after the first was answered and others have used the name since.
func TestLateAttempts(t *testing.T) {
	c := newTestCluster(t, 3, 4)
	count := func() uint64 {
		t.Helper()
		var n wire.CountReply
		if err := c.serve("n2", wire.KindCount, &wire.CountRequest{Collection: "users"}, &n); err != nil {
			t.Fatal(err)
		}
		return n.Count
	}
	anew := func(separator string) uint32 {
		t.Helper()
		var info wire.CollectionInfo
		if err := c.serve("n2", wire.KindDropCollection, &wire.DropCollectionRequest{Name: "users"}, &info); err != nil {
			t.Fatal(err)
		}
		err := c.serve("n2", wire.KindCreateCollection, &wire.CreateCollectionRequest{Name: "users", Options: wire.CollectionOptions{Separator: separator}}, &info)
		if err != nil {
			t.Fatal(err)
		}
		return info.ID
	}

	// The creation by a first write.
	first := wire.CreateCollectionRequest{Name: "users", RequestID: c.requestID(), Implicit: true}
	var made, late wire.CollectionInfo
	if err := c.serve("n1", wire.KindCreateCollection, &first, &made); err != nil {
		t.Fatal(err)
	}
	drop := wire.DropCollectionRequest{Name: "users", RequestID: c.requestID()}
	if err := c.serve("n2", wire.KindDropCollection, &drop, new(wire.CollectionInfo)); err != nil {
		t.Fatal(err)
	}
	if err := c.serve("n3", wire.KindCreateCollection, &first, &late); err != nil || late.ID != made.ID {
		t.Errorf("the late creation is answered %+v, %v, the first was %+v", late, err, made)
	}
	if err := c.serve("n3", wire.KindCollection, &wire.CollectionRequest{Name: "users"}, new(wire.CollectionInfo)); codeOf(err) != wire.CodeCollectionNotFound {
		t.Errorf("a late creation has brought a dropped collection back: %v", err)
	}

	// A drop, after the name was made anew.
	var again wire.CollectionInfo
	if err := c.serve("n2", wire.KindCreateCollection, &wire.CreateCollectionRequest{Name: "users"}, &again); err != nil {
		t.Fatal(err)
	}
	if err := c.serve("n3", wire.KindDropCollection, &drop, new(wire.CollectionInfo)); err != nil {
		t.Errorf("a late drop: %v", err)
	}
	if err := c.serve("n1", wire.KindCollection, &wire.CollectionRequest{Name: "users"}, &late); err != nil || late.ID != again.ID {
		t.Errorf("after a late drop there is %+v, %v; %d was made anew", late, err, again.ID)
	}

	// A write, and what its number was is dropped: by a router that knows, by one
	// that learns it from the machine, and by one that forwards.
	for _, separator := range []string{"/", "-", ""} {
		write := wire.WriteRequest{Collection: "users", Number: late.ID, Items: []wire.WriteItem{
			{Op: wire.OpPut, ID: "a-b/c", Body: body(t, m{"x": 1}), RequestID: c.requestID()},
		}}
		if reply, err := c.write("n1", &write); err != nil || reply.Results[0].Error != nil {
			t.Fatalf("%+v, %v", reply, err)
		}
		stale := c.nodes["n3"].router.opts.Placement.View()
		late.ID = anew(separator)
		for _, node := range c.ids {
			if reply, err := c.write(node, &write); codeOf(err) != wire.CodeCollectionNotFound {
				t.Errorf("a late write at %s: %+v, %v", node, reply, err)
			}
		}
		coll, _ := stale.Collection("users")
		b := batch{r: c.nodes["n3"].router, req: &write, view: stale, coll: coll, results: make([]wire.WriteResult, 1)}
		b.unordered(t.Context(), []int{0})
		if e := b.results[0].Error; coll == nil || e != nil && e.Code != wire.CodeCollectionNotFound || e == nil && !b.results[0].Duplicate {
			t.Errorf("a late write by an old view: %+v %v", b.results[0], e)
		}
		if n := count(); n != 0 {
			t.Errorf("a late write came to the collection that was made anew: %d documents", n)
		}
	}
}

// TestRefusalHasTheTime: a refused client learns how late it is, and what is
// shared between refusals stays as it is.
func TestRefusalHasTheTime(t *testing.T) {
	c := newTestCluster(t, 1, 1)
	r := c.nodes["n1"].router
	shared := refuse(wire.CodeTxnConflict, "a: is held")
	before := uint64(r.opts.Clock.Now())
	if e := r.refusal(shared); e.Now <= before || e.Code != shared.Code || e.Message != shared.Message || shared.Now != 0 {
		t.Errorf("%+v of %+v", e, shared)
	}
}

// Where leaders should be is decided once for one request, and told by every node.
func TestPlaceLeaders(t *testing.T) {
	c := newTestCluster(t, 3, 4)
	placed := func(l wire.Leaders, id wire.RequestID) wire.Topology {
		t.Helper()
		var topology wire.Topology
		if err := c.serve("n2", wire.KindLeaders, &wire.LeadersRequest{Leaders: l, RequestID: id}, &topology); err != nil {
			t.Fatal(err)
		}
		return topology
	}
	nodes := func(topology wire.Topology) map[string]int {
		led := map[string]int{}
		for _, g := range topology.Groups {
			led[g.Preferred]++
		}
		return led
	}
	first := c.requestID()
	if got := placed(wire.LeadersTogether, first); got.Leaders != wire.LeadersTogether || nodes(got)["n1"] != 4 {
		t.Errorf("together: %+v", got)
	}
	if got := placed(wire.LeadersSpread, c.requestID()); got.Leaders != wire.LeadersSpread || len(nodes(got)) != 3 {
		t.Errorf("spread: %+v", got)
	}
	if got := placed(wire.LeadersTogether, first); got.Leaders != wire.LeadersSpread {
		t.Errorf("a late attempt did it again: %+v", got)
	}
	var fresh wire.Topology
	if err := c.serve("n3", wire.KindTopology, &wire.TopologyRequest{Fresh: true}, &fresh); err != nil || fresh.Leaders != wire.LeadersSpread || len(nodes(fresh)) != 3 {
		t.Errorf("another node: %+v, %v", fresh, err)
	}
	if err := c.serve("n1", wire.KindLeaders, &wire.LeadersRequest{Leaders: 7}, &fresh); codeOf(err) != wire.CodeBadRequest {
		t.Errorf("a place that is not known: %v", err)
	}
}

// TestUnnamed: requests without what tells them apart are refused.
func TestUnnamed(t *testing.T) {
	c := newTestCluster(t, 1, 1)
	c.put("n1", "users", "a", m{})
	r := c.nodes["n1"].router
	if _, e := r.write(t.Context(), &wire.WriteRequest{Collection: "users", Items: []wire.WriteItem{
		{Op: wire.OpDelete, ID: "a", RequestID: c.requestID()},
	}}); e == nil || e.Code != wire.CodeBadRequest {
		t.Errorf("a write without a number: %v", e)
	}
	if _, e := r.commit(t.Context(), &wire.CommitRequest{ID: c.requestID(), Collections: []wire.TxnCollection{
		{Name: "users", Writes: []wire.WriteItem{{Op: wire.OpDelete, ID: "a"}}},
	}}); e == nil || e.Code != wire.CodeBadRequest {
		t.Errorf("a commit without a number: %v", e)
	}
	if _, e := r.createCollection(t.Context(), &wire.CreateCollectionRequest{Name: "b"}); e == nil || e.Code != wire.CodeBadRequest {
		t.Errorf("a create without a request ID: %v", e)
	}
	if _, e := r.dropCollection(t.Context(), &wire.DropCollectionRequest{Name: "users"}); e == nil || e.Code != wire.CodeBadRequest {
		t.Errorf("a drop without a request ID: %v", e)
	}
	if _, e := r.settings(t.Context(), &wire.SettingsRequest{}); e == nil || e.Code != wire.CodeBadRequest {
		t.Errorf("settings without a request ID: %v", e)
	}
	if _, e := r.placeLeaders(t.Context(), &wire.LeadersRequest{Leaders: wire.LeadersTogether}); e == nil || e.Code != wire.CodeBadRequest {
		t.Errorf("leaders without a request ID: %v", e)
	}
	if c, ok := r.opts.Placement.View().Collection("users"); !ok || c.ID != placement.CollectionID(1) {
		t.Errorf("something was done: %+v", c)
	}
}
