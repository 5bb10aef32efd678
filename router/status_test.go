package router

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// A status is there within its time whoever is down or silent, and says who.
func TestClusterStatus(t *testing.T) {
	c := newTestCluster(t, 4, 4)
	c.down["n2"] = true
	block := make(chan struct{})
	defer close(block)
	c.mu.Lock()
	c.intercept = func(_, to placement.NodeID, _ wire.Kind) error {
		if to == "n3" {
			select {
			case <-block:
			case <-time.After(150 * time.Millisecond): // the call's own deadline
			}
			return context.DeadlineExceeded
		}
		return nil
	}
	c.mu.Unlock()
	start := time.Now()
	var status wire.ClusterStatus
	if err := c.serve("n1", wire.KindClusterStatus, nil, &status); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("it took %v", d)
	}
	want := map[string]string{"n1": "", "n2": "connection refused", "n3": "no answer within", "n4": ""}
	if len(status.Nodes) != len(want) {
		t.Fatalf("%d nodes", len(status.Nodes))
	}
	for _, n := range status.Nodes {
		if w := want[n.ID]; w == "" && (n.Error != "" || n.Status.Node.ID != n.ID) || !strings.Contains(n.Error, w) {
			t.Errorf("%s: error %q, status of %q", n.ID, n.Error, n.Status.Node.ID)
		}
	}
	for _, g := range status.Topology.Groups {
		if g.Leader != string(c.groups[placement.GroupID(g.ID)].leading()) || g.Term != 3 {
			t.Errorf("group %d: leader %q in term %d", g.ID, g.Leader, g.Term)
		}
	}
}

// A request for news is held until there is some, or its time is up.
func TestTopologyWait(t *testing.T) {
	c := newTestCluster(t, 2, 2)
	var have wire.Topology
	if err := c.serve("n1", wire.KindTopology, &wire.TopologyRequest{}, &have); err != nil {
		t.Fatal(err)
	}
	if have.ClusterID != "test" || len(have.Owners) != 31 || len(have.Groups) != 2 || have.Groups[0].Leader == "" {
		t.Fatalf("%+v", have)
	}
	done := make(chan wire.Topology)
	go func() {
		var next wire.Topology
		_ = c.serve("n1", wire.KindTopology, &wire.TopologyRequest{HaveEpoch: have.Epoch, HaveCatalog: have.Catalog, WaitMillis: 60_000}, &next)
		done <- next
	}()
	if r := c.put("n2", "users", "a", m{}); r.Error != nil {
		t.Fatal(r.Error)
	}
	if next := <-done; next.Catalog <= have.Catalog || len(next.Collections) != 1 {
		t.Errorf("%+v", next)
	}
	var same wire.Topology
	if err := c.serve("n1", wire.KindTopology, &wire.TopologyRequest{HaveEpoch: 99, HaveCatalog: 99, WaitMillis: 20}, &same); err != nil || same.Epoch != 1 {
		t.Errorf("%+v %v", same, err)
	}
}

// History and old versions, by version and by time, from every node.
func TestHistory(t *testing.T) {
	c := newTestCluster(t, 3, 2)
	var times []uint64
	for i := range 5 {
		r := c.put("n1", "users", "a", m{"n": i})
		if r.Error != nil {
			t.Fatal(r.Error)
		}
		times = append(times, r.Time)
	}
	c.one("n1", "users", wire.WriteItem{Op: wire.OpDelete, ID: "a"})
	r := c.one("n2", "users", wire.WriteItem{Op: wire.OpRestore, ID: "a", RestoreVersion: 2})
	if r.Error != nil {
		t.Fatal(r.Error)
	}
	for _, node := range c.ids {
		var h wire.HistoryReply
		if err := c.serve(node, wire.KindHistory, &wire.HistoryRequest{Collection: "users", ID: "a", Limit: 4}, &h); err != nil {
			t.Fatal(err)
		}
		if len(h.Versions) != 4 || !h.More || h.Versions[0].Version != r.Version || !h.Versions[1].Deleted {
			t.Errorf("%s: %+v", node, h)
		}
		var rest wire.HistoryReply
		if err := c.serve(node, wire.KindHistory, &wire.HistoryRequest{Collection: "users", ID: "a", Before: h.Versions[3].Version}, &rest); err != nil {
			t.Fatal(err)
		}
		if len(rest.Versions) != 3 || rest.More || rest.Versions[2].Version != 1 {
			t.Errorf("%s: %+v", node, rest)
		}
		for i, at := range times {
			got, err := c.get(node, &wire.GetRequest{Collection: "users", IDs: []string{"a"}, AtTime: at})
			if err != nil || got.Results[0].Error != nil || got.Results[0].Doc.Version != uint64(i+1) {
				t.Errorf("%s at time %d: %+v %v", node, i, got, err)
			}
			got, err = c.get(node, &wire.GetRequest{Collection: "users", IDs: []string{"a"}, AtVersion: uint64(i + 1)})
			if err != nil || got.Results[0].Error != nil || got.Results[0].Doc.UpdatedAt != at {
				t.Errorf("%s at version %d: %+v %v", node, i+1, got, err)
			}
		}
	}
	for _, x := range []struct {
		req  wire.GetRequest
		code wire.Code
		text string
	}{
		{wire.GetRequest{IDs: []string{"a"}, AtVersion: 99}, wire.CodeVersionNotFound, "users/a: has no version 99 (list its history)"},
		{wire.GetRequest{IDs: []string{"a"}, AtTime: times[0] - 1}, wire.CodeVersionNotFound, "users/a: did not exist at 20"},
		{wire.GetRequest{IDs: []string{"a"}, AtTime: 5, AtVersion: 5}, wire.CodeBadRequest, "not both"},
		{wire.GetRequest{IDs: []string{"a"}, AtTime: uint64(c.clock.Now().Add(time.Minute))}, wire.CodeFutureTime, "in the future"},
		{wire.GetRequest{}, wire.CodeBadRequest, "no IDs"},
	} {
		x.req.Collection = "users"
		got, err := c.get("n3", &x.req)
		if err == nil && got.Results[0].Error != nil {
			err = got.Results[0].Error
		}
		var refusal *wire.Error
		if !errors.As(err, &refusal) || refusal.Code != x.code || !strings.Contains(refusal.Message, x.text) {
			t.Errorf("%+v: %v, want %d %q", x.req, err, x.code, x.text)
		}
	}
	var h wire.HistoryReply
	if err := c.serve("n1", wire.KindHistory, &wire.HistoryRequest{Collection: "users", ID: "never"}, &h); codeOf(err) != wire.CodeNotFound {
		t.Error(err)
	}
}

// An answer never outgrows a frame: what has no room is left out, and says so
// where it matters.
func TestAnswersAreBounded(t *testing.T) {
	c := newTestCluster(t, 2, 2)
	var ids []string
	for i := range 420 {
		ids = append(ids, strings.Repeat("d", 1+i%3)+"-"+string(rune('a'+i%26))+strings.Repeat("x", i/26))
	}
	fill(t, c, "docs", ids, 60_000)
	for _, node := range c.ids {
		reply, err := c.get(node, &wire.GetRequest{Collection: "docs", IDs: ids})
		if err != nil {
			t.Fatal(err)
		}
		size, left := 0, 0
		for _, r := range reply.Results {
			size += len(r.Doc.Body)
			if r.Error != nil {
				left++
				if r.Error.Code != wire.CodeFrameTooLarge {
					t.Fatal(r.Error)
				}
			}
		}
		if size > maxGetBytes || size < maxGetBytes/2 || left == 0 {
			t.Errorf("%s: %d bytes, %d left out", node, size, left)
		}
		req := &wire.WriteRequest{Collection: "docs"}
		for _, id := range ids {
			req.Items = append(req.Items, wire.WriteItem{Op: wire.OpUpdate, ID: id, Body: body(t, m{"$set": m{"n": 1}}), ReturnDoc: true})
		}
		written, err := c.write(node, req)
		if err != nil {
			t.Fatal(err)
		}
		size, left = 0, 0
		for i, r := range written.Results {
			if r.Error != nil || r.Version < 2 {
				t.Fatalf("item %d: %+v %v", i, r, r.Error)
			}
			if size += len(r.Doc); len(r.Doc) == 0 {
				left++
			}
		}
		if size > maxReturnedBytes || left == 0 {
			t.Errorf("%s: %d bytes returned, %d left out", node, size, left)
		}
	}
}
