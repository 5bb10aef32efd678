package router

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

func fill(t *testing.T, c *testCluster, collection string, ids []string, pad int) {
	t.Helper()
	for at := 0; at < len(ids); at += 200 {
		req := &wire.WriteRequest{Collection: collection}
		for _, id := range ids[at:min(at+200, len(ids))] {
			req.Items = append(req.Items, wire.WriteItem{Op: wire.OpPut, ID: id, Body: body(t, m{"id": id, "pad": strings.Repeat("x", pad)})})
		}
		reply, err := c.write("n1", req)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range reply.Results {
			if r.Error != nil {
				t.Fatal(r.Error)
			}
		}
	}
}

func idsOf(docs []wire.Document) []string {
	ids := make([]string, len(docs))
	for i, d := range docs {
		ids[i] = d.ID
	}
	return ids
}

// A scan answers every matching document once, in order, whatever the groups,
// the direction, the prefix, the limits and the node that is asked, and
// whatever is written meanwhile.
func TestScanMerge(t *testing.T) {
	c := newTestCluster(t, 3, 5)
	random := rand.New(rand.NewPCG(3, 4))
	var ids []string
	for i := range 700 {
		ids = append(ids, fmt.Sprintf("%c%c/%04d", 'a'+i%5, 'a'+i%7, i))
	}
	fill(t, c, "docs", ids, 40)
	slices.Sort(ids)
	for _, prefix := range []string{"", "a", "ab/", "c", "zz", "ab/0141"} {
		var want []string
		for _, id := range ids {
			if strings.HasPrefix(id, prefix) {
				want = append(want, id)
			}
		}
		for _, reverse := range []bool{false, true} {
			if reverse {
				want = slices.Clone(want)
				slices.Reverse(want)
			}
			for _, limit := range []uint32{0, 1, 7, 100, 5000} {
				var got []string
				var at uint64
				req := &wire.ScanRequest{Collection: "docs", Prefix: prefix, Reverse: reverse, Limit: limit, NoBody: limit == 7}
				for page := 0; ; page++ {
					node := c.ids[random.IntN(3)]
					docs, last, err := c.scan(node, req)
					if err != nil {
						t.Fatalf("%q reverse %v limit %d: %v", prefix, reverse, limit, err)
					}
					if limit > 0 && len(docs) > int(limit) {
						t.Fatalf("%d documents, the limit is %d", len(docs), limit)
					}
					if page > 0 && last.Time != at {
						t.Fatalf("the scan moved from time %d to %d", at, last.Time)
					}
					at = last.Time
					got = append(got, idsOf(docs)...)
					if len(last.Cursor) == 0 {
						break
					}
					if page == 0 { // after the first page, the scan sees nothing of this
						c.put("n2", "docs", fmt.Sprintf("ab/new-%d-%v-%s", limit, reverse, prefix), m{})
						c.one("n3", "docs", wire.WriteItem{Op: wire.OpDelete, ID: fmt.Sprintf("ab/new-%d-%v-%s", limit, reverse, prefix)})
					}
					if limit == 1 && page > 20 { // enough of a slow one
						want = want[:len(got)]
						break
					}
					req.Cursor = last.Cursor
				}
				if !slices.Equal(got, want) {
					t.Fatalf("%q reverse %v limit %d: %d documents, want %d", prefix, reverse, limit, len(got), len(want))
				}
				if limit == 1 {
					want = nil
					for _, id := range ids {
						if strings.HasPrefix(id, prefix) {
							want = append(want, id)
						}
					}
					if reverse {
						slices.Reverse(want)
					}
				}
			}
		}
	}
}

// What was acknowledged before a scan began is in it, and its pages are of one
// state: documents changed after the first page are seen as they were.
func TestScanSnapshot(t *testing.T) {
	c := newTestCluster(t, 3, 3)
	var ids []string
	for i := range 60 {
		ids = append(ids, fmt.Sprintf("d%03d", i))
	}
	fill(t, c, "docs", ids, 0)
	first, last, err := c.scan("n2", &wire.ScanRequest{Collection: "docs", Limit: 10})
	if err != nil || len(first) != 10 {
		t.Fatal(len(first), err)
	}
	for _, id := range ids {
		if r := c.put("n1", "docs", id, m{"changed": true}); r.Error != nil {
			t.Fatal(r.Error)
		}
	}
	for _, core := range c.groups { // leaders change, and another node is asked
		core.setLeader("n3")
	}
	rest, _, err := c.scan("n1", &wire.ScanRequest{Collection: "docs", Cursor: last.Cursor})
	if err != nil || len(rest) != 50 {
		t.Fatal(len(rest), err)
	}
	for _, d := range rest {
		if d.Version != 1 {
			t.Errorf("%s is at version %d in a scan that began before", d.ID, d.Version)
		}
	}
	again, _, err := c.scan("n1", &wire.ScanRequest{Collection: "docs"})
	if err != nil || len(again) != 60 || again[59].Version != 2 {
		t.Errorf("%d documents, %v", len(again), err)
	}
	past, _, err := c.scan("n1", &wire.ScanRequest{Collection: "docs", AtTime: last.Time})
	if err != nil || len(past) != 60 || past[59].Version != 1 {
		t.Errorf("at the time of the first: %d documents, %v", len(past), err)
	}
}

// A large answer comes in several pages, each with a cursor to go on from.
func TestScanPages(t *testing.T) {
	c := newTestCluster(t, 1, 3)
	var ids []string
	for i := range 300 {
		ids = append(ids, fmt.Sprintf("d%03d", i))
	}
	fill(t, c, "docs", ids, 2000)
	var pages []*wire.ScanPage
	last, e := c.nodes["n1"].router.scan(t.Context(), &wire.ScanRequest{Collection: "docs"}, func(p wire.Message) error {
		pages = append(pages, p.(*wire.ScanPage))
		return nil
	})
	if e != nil {
		t.Fatal(e)
	}
	if len(pages) < 2 || len(last.Cursor) != 0 || last.Cost.Docs != 300 || last.Cost.Groups != 3 || last.Cost.Keys < 300 {
		t.Errorf("%d pages before the last, cost %+v", len(pages), last.Cost)
	}
	n := len(pages[0].Docs)
	docs, _, err := c.scan("n1", &wire.ScanRequest{Collection: "docs", Cursor: pages[0].Cursor})
	if err != nil || len(docs) != 300-n || docs[0].ID != ids[n] {
		t.Errorf("%d documents after the first page of %d, %v", len(docs), n, err)
	}
	docs, page, err := c.scan("n1", &wire.ScanRequest{Collection: "docs", MaxBytes: 50_000})
	if err != nil || len(docs) < 20 || len(docs) > 26 || len(page.Cursor) == 0 {
		t.Errorf("%d documents in 50 kB, %v", len(docs), err)
	}
	// From cursor to cursor, whatever ended a page: every document once.
	for _, req := range []wire.ScanRequest{{Limit: 7}, {MaxBytes: 20_000}, {Limit: 1, Reverse: true, Prefix: "d29"}} {
		var want, got []string
		for _, id := range ids {
			if strings.HasPrefix(id, req.Prefix) {
				want = append(want, id)
			}
		}
		if req.Reverse {
			slices.Reverse(want)
		}
		req.Collection = "docs"
		for more := true; more; more = len(req.Cursor) > 0 {
			docs, page, err := c.scan("n1", &req)
			if err != nil || len(got) > len(want) {
				t.Fatalf("after %d documents: %v", len(got), err)
			}
			for i := range docs {
				got = append(got, docs[i].ID)
			}
			req.Cursor = page.Cursor
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d, %d bytes, reverse %v: cursors led past %d documents of %d", req.Limit, req.MaxBytes, req.Reverse, len(got), len(want))
		}
	}
	// A client that does not take its pages stops the scan.
	fail := fmt.Errorf("gone")
	if _, e := c.nodes["n1"].router.scan(t.Context(), &wire.ScanRequest{Collection: "docs"}, func(wire.Message) error { return fail }); e == nil {
		t.Error("the scan went on")
	}
}

// With a separator, a prefix that holds it is one partition's, and only its
// group is asked.
func TestScanOneGroup(t *testing.T) {
	c := newTestCluster(t, 3, 4)
	var info wire.CollectionInfo
	if err := c.serve("n1", wire.KindCreateCollection, &wire.CreateCollectionRequest{Name: "orders", Options: wire.CollectionOptions{Separator: "/"}}, &info); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for i := range 90 {
		ids = append(ids, fmt.Sprintf("tenant%d/order-%d", i%9, i))
	}
	fill(t, c, "orders", ids, 0)
	docs, last, err := c.scan("n2", &wire.ScanRequest{Collection: "orders", Prefix: "tenant4/"})
	if err != nil || len(docs) != 10 || last.Cost.Groups != 1 {
		t.Errorf("%d documents, %+v, %v", len(docs), last, err)
	}
	docs, last, err = c.scan("n2", &wire.ScanRequest{Collection: "orders", Prefix: "tenant"})
	if err != nil || len(docs) != 90 || last.Cost.Groups != 4 {
		t.Errorf("%d documents, %+v, %v", len(docs), last, err)
	}
	var count wire.CountReply
	if err := c.serve("n3", wire.KindCount, &wire.CountRequest{Collection: "orders", Prefix: "tenant4/"}, &count); err != nil || count.Count != 10 || count.Cost.Groups != 1 {
		t.Errorf("%+v %v", count, err)
	}
	if err := c.serve("n3", wire.KindCount, &wire.CountRequest{Collection: "orders", Prefix: "tenant"}, &count); err != nil || count.Count != 90 {
		t.Errorf("%+v %v", count, err)
	}
	if err := c.serve("n3", wire.KindCount, &wire.CountRequest{Collection: "orders"}, &count); err != nil || count.Count != 90 || count.Bytes == 0 {
		t.Errorf("%+v %v", count, err)
	}
}

// Scans and counts go on through elections, and say so when they cannot.
func TestScanFaults(t *testing.T) {
	c := newTestCluster(t, 3, 2)
	fill(t, c, "docs", []string{"a", "b", "c", "d"}, 0)
	core := c.groups[1]
	leader := core.leading()
	core.setLeader("")
	done := make(chan error)
	go func() {
		docs, _, err := c.scan("n1", &wire.ScanRequest{Collection: "docs"})
		if err == nil && len(docs) != 4 {
			err = fmt.Errorf("%d documents", len(docs))
		}
		done <- err
	}()
	core.setLeader(leader)
	if err := <-done; err != nil {
		t.Error(err)
	}
	core.setLeader("")
	for _, n := range c.nodes {
		n.router.opts.Patience = 30 * time.Millisecond
	}
	req := &wire.ScanRequest{Collection: "docs"}
	_, err := c.nodes["n1"].router.Serve(t.Context(), wire.KindScan, wire.Append(nil, req), nil)
	if codeOf(err) != wire.CodeNotLeader && codeOf(err) != wire.CodeUnavailable {
		t.Error(err)
	}
	_, err = c.nodes["n1"].router.Serve(t.Context(), wire.KindCount, wire.Append(nil, &wire.CountRequest{Collection: "docs"}), nil)
	if codeOf(err) != wire.CodeNotLeader && codeOf(err) != wire.CodeUnavailable {
		t.Error(err)
	}
}

func TestCursor(t *testing.T) {
	for _, c := range []cursor{
		{collection: 1, after: "a", time: 1},
		{collection: 7, prefix: "ab", after: "ab", time: hlc.Max, reverse: true},
		{collection: 1<<32 - 1, prefix: strings.Repeat("é", 256), after: strings.Repeat("é", 256), time: 99},
	} {
		got, e := decodeCursor(c.encode())
		if e != nil || got != c {
			t.Errorf("%+v came back as %+v, %v", c, got, e)
		}
	}
}

// Whatever a client sends as a cursor, it is refused or means what it says.
func FuzzCursor(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(cursor{collection: 3, prefix: "p", after: "pq", time: 5}.encode())
	f.Add(cursor{collection: 3, after: "\x00", time: 5, reverse: true}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, e := decodeCursor(b)
		if e != nil {
			if e.Code != wire.CodeBadCursor || e.Message == "" {
				t.Fatalf("%+v", e)
			}
			return
		}
		if again := c.encode(); string(again) != string(b) {
			t.Fatalf("%x means %+v, which is %x", b, c, again)
		}
	})
}

func TestHostileCursors(t *testing.T) {
	c := newTestCluster(t, 1, 1)
	fill(t, c, "docs", []string{"a1", "a2", "b1"}, 0)
	fill(t, c, "other", []string{"a1", "a2"}, 0)
	_, page, err := c.scan("n1", &wire.ScanRequest{Collection: "docs", Prefix: "a", Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	good := page.Cursor
	ahead := cursor{collection: 1, prefix: "a", after: "a1", time: c.clock.Now().Add(time.Hour)}
	gone := cursor{collection: 99, prefix: "a", after: "a1", time: c.clock.Now()}
	flipped := slices.Clone(good)
	flipped[9] ^= 1
	newer := slices.Clone(good)
	newer[0] = 2
	for name, x := range map[string]struct {
		req  wire.ScanRequest
		code wire.Code
	}{
		"good":                {wire.ScanRequest{Collection: "docs", Prefix: "a", Cursor: good}, wire.CodeOK},
		"other prefix":        {wire.ScanRequest{Collection: "docs", Prefix: "", Cursor: good}, wire.CodeBadCursor},
		"other direction":     {wire.ScanRequest{Collection: "docs", Prefix: "a", Reverse: true, Cursor: good}, wire.CodeBadCursor},
		"other collection":    {wire.ScanRequest{Collection: "other", Prefix: "a", Cursor: good}, wire.CodeBadCursor},
		"other time":          {wire.ScanRequest{Collection: "docs", Prefix: "a", Cursor: good, AtTime: 5}, wire.CodeBadCursor},
		"unknown collection":  {wire.ScanRequest{Collection: "docs", Prefix: "a", Cursor: gone.encode()}, wire.CodeBadCursor},
		"from the future":     {wire.ScanRequest{Collection: "docs", Prefix: "a", Cursor: ahead.encode()}, wire.CodeFutureTime},
		"damaged":             {wire.ScanRequest{Collection: "docs", Prefix: "a", Cursor: flipped}, wire.CodeBadCursor},
		"of a newer version":  {wire.ScanRequest{Collection: "docs", Prefix: "a", Cursor: newer}, wire.CodeBadCursor},
		"cut":                 {wire.ScanRequest{Collection: "docs", Prefix: "a", Cursor: good[:len(good)-1]}, wire.CodeBadCursor},
		"one byte":            {wire.ScanRequest{Collection: "docs", Prefix: "a", Cursor: []byte{1}}, wire.CodeBadCursor},
		"a megabyte":          {wire.ScanRequest{Collection: "docs", Prefix: "a", Cursor: make([]byte, 1<<20)}, wire.CodeBadCursor},
		"prefix too long":     {wire.ScanRequest{Collection: "docs", Prefix: strings.Repeat("a", 600)}, wire.CodeBadID},
		"prefix not UTF-8":    {wire.ScanRequest{Collection: "docs", Prefix: "\xff"}, wire.CodeBadID},
		"time in the future":  {wire.ScanRequest{Collection: "docs", AtTime: uint64(c.clock.Now().Add(time.Hour))}, wire.CodeFutureTime},
		"nothing by the name": {wire.ScanRequest{Collection: "dcos"}, wire.CodeCollectionNotFound},
	} {
		_, _, err := c.scan("n1", &x.req)
		if codeOf(err) != x.code {
			t.Errorf("%s: %v, want %d", name, err, x.code)
		}
	}
}

// A chunk request between nodes comes through whole, and garbage is refused.
func FuzzGroupScan(f *testing.F) {
	q := groupScan{group: 3}
	q.spec.Partitions = []placement.PartitionID{1, 2, 270}
	q.spec.Prefix, q.spec.After, q.spec.At, q.spec.Limit, q.spec.MaxBytes, q.spec.Reverse = "p", "pq", 77, 10, 1000, true
	f.Add(q.encode())
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		q, e := decodeGroupScan(b)
		if e != nil {
			return
		}
		again, e := decodeGroupScan(q.encode())
		if e != nil || fmt.Sprint(again) != fmt.Sprint(q) {
			t.Fatalf("%+v came back as %+v, %v", q, again, e)
		}
	})
}

// deaf is a way to the placement group that is shut until it is opened.
type deaf struct {
	placement.Peers
	hears atomic.Bool
}

func (d *deaf) Call(ctx context.Context, to placement.NodeID, kind wire.Kind, body []byte) ([]byte, error) {
	b, err := d.Peers.Call(ctx, to, kind, body)
	if !d.hears.Load() { // what is on its way is lost too
		return nil, fmt.Errorf("lost")
	}
	return b, err
}

// A node that has not heard that a name was dropped scans the collection of
// that name that there is now, and says so if there is none.
func TestScanOfDropped(t *testing.T) {
	for _, again := range []bool{false, true} {
		c := newTestCluster(t, 3, 3)
		fill(t, c, "users", []string{"old1", "old2"}, 0)
		n := c.nodes["n3"]
		way := &deaf{Peers: n}
		way.hears.Store(true)
		late := placement.NewService(placement.Options{Self: "n3", Peers: way, AttemptTimeout: 200 * time.Millisecond})
		defer late.Close()
		late.StartFollower([]placement.NodeID{"n1"})
		if _, err := late.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		way.hears.Store(false)
		var info wire.CollectionInfo
		if err := c.serve("n1", wire.KindDropCollection, &wire.DropCollectionRequest{Name: "users"}, &info); err != nil {
			t.Fatal(err)
		}
		if again {
			fill(t, c, "users", []string{"new"}, 0)
		}
		if old, ok := late.View().Collection("users"); !ok || uint32(old.ID) != info.ID || old.Dropping() {
			t.Fatal("n3 has heard of the drop: nothing is tested")
		}
		c.mu.Lock()
		c.intercept = func(from, _ placement.NodeID, kind wire.Kind) error {
			if from == "n3" && slices.Contains(PeerKinds, kind) {
				way.hears.Store(true)
			}
			return nil
		}
		c.mu.Unlock()
		o := n.router.opts
		o.Placement = late
		n.router = New(o)
		docs, _, err := c.scan("n3", &wire.ScanRequest{Collection: "users"})
		switch {
		case again && (err != nil || len(docs) != 1 || docs[0].ID != "new"):
			t.Errorf("the new collection has %v, %v", idsOf(docs), err)
		case !again && (codeOf(err) != wire.CodeCollectionNotFound || !strings.Contains(err.Error(), "users")):
			t.Errorf("a dropped collection has %v, %v", idsOf(docs), err)
		}
	}
}

// A time that came from an answer is not in the future, also for a node whose
// clock is an hour behind those that gave it.
func TestTimesOfOtherClocks(t *testing.T) {
	c := newTestCluster(t, 3, 3)
	fill(t, c, "docs", []string{"a", "b"}, 0)
	docs, last, err := c.scan("n1", &wire.ScanRequest{Collection: "docs"})
	if err != nil || len(docs) != 2 {
		t.Fatal(docs, err)
	}
	n := c.nodes["n3"]
	o := n.router.opts
	for _, ask := range []func() error{
		func() error {
			_, err := c.get("n3", &wire.GetRequest{Collection: "docs", IDs: []string{"a"}, AtTime: last.Time})
			return err
		},
		func() error {
			docs, _, err := c.scan("n3", &wire.ScanRequest{Collection: "docs", AtTime: last.Time})
			if err == nil && len(docs) != 2 {
				t.Errorf("%d documents", len(docs))
			}
			return err
		},
	} {
		o.Clock = hlc.NewClock(func() time.Time { return time.Now().Add(-time.Hour) })
		n.router = New(o)
		if err := ask(); err != nil {
			t.Error(err)
		}
	}
	// What no clock has reached is.
	ahead := uint64(c.clock.Now().Add(time.Hour))
	if _, err := c.get("n3", &wire.GetRequest{Collection: "docs", IDs: []string{"a"}, AtTime: ahead}); codeOf(err) != wire.CodeFutureTime {
		t.Error(err)
	} else if no := new(wire.Error); !errors.As(err, &no) || no.Version < last.Time || no.Version >= ahead {
		t.Errorf("it says that now is %d; the last write was at %d, and %d is in the future", no.Version, last.Time, ahead)
	}
}

// A node that has not heard of a change of the catalog tells of it all the same,
// if it is asked for what is there now.
func TestFreshCatalog(t *testing.T) {
	c := newTestCluster(t, 3, 3)
	n := c.nodes["n3"]
	way := &deaf{Peers: n}
	way.hears.Store(true)
	late := placement.NewService(placement.Options{Self: "n3", Peers: way, AttemptTimeout: 200 * time.Millisecond})
	defer late.Close()
	late.StartFollower([]placement.NodeID{"n1"})
	if _, err := late.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	way.hears.Store(false)
	fill(t, c, "users", []string{"a"}, 0)
	o := n.router.opts
	o.Placement = late
	n.router = New(o)
	names := func(fresh bool) (names []string, err error) {
		var top wire.Topology
		err = c.serve("n3", wire.KindTopology, &wire.TopologyRequest{Fresh: fresh}, &top)
		for _, x := range top.Collections {
			names = append(names, x.Name)
		}
		return names, err
	}
	if list, err := names(false); err != nil || len(list) != 0 {
		t.Fatalf("n3 has heard of the collection, nothing is tested: %v, %v", list, err)
	}
	if list, err := names(true); codeOf(err) != wire.CodeUnavailable {
		t.Errorf("n3 reaches nobody, and tells what is there now: %v, %v", list, err)
	}
	way.hears.Store(true)
	if list, err := names(true); err != nil || !slices.Equal(list, []string{"users"}) {
		t.Errorf("asked for what is there now, n3 tells %v, %v", list, err)
	}
}
