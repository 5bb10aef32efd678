package router

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
)

type m = map[string]any

// Every operation, through every node, whoever leads.
func TestOperations(t *testing.T) {
	c := newTestCluster(t, 3, 4)
	for n, node := range c.ids {
		for i := range 12 {
			id := fmt.Sprintf("u%d-%d", n, i)
			r := c.put(node, "users", id, m{"n": i})
			if r.Error != nil || r.Version != 1 || !r.Created {
				t.Fatalf("put %s at %s: %+v %v", id, node, r, r.Error)
			}
			r = c.one(node, "users", wire.WriteItem{Op: wire.OpUpdate, ID: id, Body: body(t, m{"$inc": m{"n": 1}}), IfVersion: 1, ReturnDoc: true})
			if r.Error != nil || r.Version != 2 {
				t.Fatalf("update %s: %+v %v", id, r, r.Error)
			}
		}
	}
	reply, err := c.get("n2", &wire.GetRequest{Collection: "users", IDs: []string{"u0-0", "nobody", "u2-11", ""}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []wire.Code{0, wire.CodeNotFound, 0, wire.CodeBadID} {
		got := reply.Results[i]
		if want == 0 && (got.Error != nil || got.Doc.Version != 2) || want != 0 && (got.Error == nil || got.Error.Code != want) {
			t.Errorf("get %d: %+v %v", i, got, got.Error)
		}
	}
	if got := reply.Results[1].Error.Message; got != "users/nobody: does not exist" {
		t.Errorf("message %q", got)
	}
}

// A refusal says what was wrong, where, and what to do.
func TestWriteRefusals(t *testing.T) {
	c := newTestCluster(t, 3, 3)
	for range 9 {
		c.put("n1", "users", "u17", m{"name": "Ada", "n": 1})
	}
	c.put("n1", "users", "gone", m{})
	c.one("n1", "users", wire.WriteItem{Op: wire.OpDelete, ID: "gone"})
	doc := body(t, m{"a": 1})
	for _, x := range []struct {
		item wire.WriteItem
		code wire.Code
		text string
	}{
		{wire.WriteItem{Op: wire.OpPut, ID: "u17", Body: doc, IfVersion: 8}, wire.CodeVersionConflict, "users/u17: version is 9, the write expected 8 (re-read and retry)"},
		{wire.WriteItem{Op: wire.OpInsert, ID: "u17", Body: doc}, wire.CodeAlreadyExists, "users/u17: exists already, at version 9 (put replaces it)"},
		{wire.WriteItem{Op: wire.OpPut, ID: "u17", Body: doc, Cond: wire.CondAbsent}, wire.CodeAlreadyExists, "users/u17: exists already, at version 9 (put replaces it)"},
		{wire.WriteItem{Op: wire.OpPut, ID: "x", Body: doc, Cond: wire.CondPresent}, wire.CodeNotFound, "users/x: does not exist"},
		{wire.WriteItem{Op: wire.OpPut, ID: "x", Body: doc, IfVersion: 3}, wire.CodeVersionConflict, "users/x: does not exist, the write expected version 3 (re-read and retry)"},
		{wire.WriteItem{Op: wire.OpUpdate, ID: "x", Body: body(t, m{"$set": m{"a": 1}})}, wire.CodeNotFound, "users/x: does not exist"},
		{wire.WriteItem{Op: wire.OpDelete, ID: "gone"}, wire.CodeNotFound, "users/gone: does not exist"},
		{wire.WriteItem{Op: wire.OpUpdate, ID: "u17", Body: body(t, m{"$inc": m{"name": 1}})}, wire.CodeUpdateFailed, "users/u17: $inc"},
		{wire.WriteItem{Op: wire.OpRestore, ID: "u17", RestoreVersion: 99}, wire.CodeVersionNotFound, "users/u17: has no version 99 to restore (list its history)"},
		{wire.WriteItem{Op: wire.OpUpdate, ID: "u17", Body: body(t, m{"$frob": m{"a": 1}})}, wire.CodeBadUpdate, "users/u17: "},
		{wire.WriteItem{Op: wire.OpUpdate, ID: "u17", Body: doc}, wire.CodeBadUpdate, "users/u17: "},
		{wire.WriteItem{Op: wire.OpUpdate, ID: "u17"}, wire.CodeBadUpdate, "no operators"},
		{wire.WriteItem{Op: wire.OpPut, ID: "u17"}, wire.CodeBadDocument, "no document"},
		{wire.WriteItem{Op: wire.OpPut, ID: "u17", Body: body(t, []int{1})}, wire.CodeBadDocument, "users/u17: "},
		{wire.WriteItem{Op: wire.OpPut, ID: "u17", Body: body(t, m{"_secret": 1})}, wire.CodeBadDocument, "_secret"},
		{wire.WriteItem{Op: wire.OpPut, ID: "u17", Body: body(t, m{"b": strings.Repeat("x", 70<<10)})}, wire.CodeDocumentTooLarge, "users/u17: "},
		{wire.WriteItem{Op: wire.OpPut, ID: "u17", Body: nested(70)}, wire.CodeTooDeep, "nested deeper"},
		{wire.WriteItem{Op: wire.OpPut, ID: "", Body: doc}, wire.CodeBadID, "users: the document ID is empty"},
		{wire.WriteItem{Op: wire.OpPut, ID: strings.Repeat("i", 513), Body: doc}, wire.CodeBadID, "513 bytes"},
		{wire.WriteItem{Op: wire.OpPut, ID: "a\xff", Body: doc}, wire.CodeBadID, "not UTF-8"},
		{wire.WriteItem{Op: 99, ID: "u17", Body: doc}, wire.CodeBadRequest, "unknown write operation 99"},
		{wire.WriteItem{Op: wire.OpInsert, ID: "u17", Body: doc, IfVersion: 3}, wire.CodeBadRequest, "insert"},
		{wire.WriteItem{Op: wire.OpPut, ID: "u17", Body: doc, IfVersion: 3, Cond: wire.CondAbsent}, wire.CodeBadRequest, "contradict"},
		{wire.WriteItem{Op: wire.OpPut, ID: "u17", Body: doc, Cond: 64}, wire.CodeBadRequest, "condition"},
		{wire.WriteItem{Op: wire.OpUpdate, ID: "u17", Body: body(t, m{"$set": m{"a": 1}}), Cond: wire.CondAbsent}, wire.CodeBadRequest, "absent"},
		{wire.WriteItem{Op: wire.OpDelete, ID: "u17", Body: doc}, wire.CodeBadRequest, "carries no document"},
		{wire.WriteItem{Op: wire.OpRestore, ID: "u17"}, wire.CodeBadRequest, "names the version"},
		{wire.WriteItem{Op: wire.OpPut, ID: "u17", Body: doc, RestoreVersion: 1}, wire.CodeBadRequest, "only a restore"},
	} {
		r := c.one("n2", "users", x.item)
		if r.Error == nil || r.Error.Code != x.code || !strings.Contains(r.Error.Message, x.text) {
			t.Errorf("op %d on %q: %+v, want %d %q", x.item.Op, x.item.ID, r.Error, x.code, x.text)
		}
	}
	for _, x := range []struct {
		req  wire.WriteRequest
		code wire.Code
	}{
		{wire.WriteRequest{Collection: "users"}, wire.CodeBadRequest},
		{wire.WriteRequest{Collection: "_x", Items: []wire.WriteItem{{Op: wire.OpPut, ID: "a", Body: doc}}}, wire.CodeBadCollection},
		{wire.WriteRequest{Collection: "", Items: []wire.WriteItem{{Op: wire.OpPut, ID: "a", Body: doc}}}, wire.CodeBadCollection},
	} {
		if _, err := c.write("n1", &x.req); codeOf(err) != x.code {
			t.Errorf("%+v: %v", x.req, err)
		}
	}
	req := wire.WriteRequest{Collection: "users", Number: 1, Items: []wire.WriteItem{{Op: wire.OpPut, ID: "a", Body: doc}}}
	r := New(c.nodes["n1"].router.opts)
	if _, err := r.write(t.Context(), &req); err != nil {
		t.Fatal(err)
	} else if reply, _ := r.write(t.Context(), &req); reply.Results[0].Error == nil {
		t.Error("a write without a request ID was accepted")
	}
}

// nested is {"a":{"a":…1}}, which Marshal refuses to make.
func nested(depth int) []byte {
	return append(bytes.Repeat([]byte{0x81, 0xa1, 'a'}, depth), 1)
}

// The first write makes a collection, once, however many write at once; an
// update of nothing does not, and suggests what was meant.
func TestFirstWrite(t *testing.T) {
	c := newTestCluster(t, 3, 2)
	var all sync.WaitGroup
	for i := range 60 {
		all.Add(1)
		go func() {
			defer all.Done()
			if r := c.put(c.ids[i%3], "cities", fmt.Sprint(i), m{"n": i}); r.Error != nil {
				t.Error(r.Error)
			}
		}()
	}
	all.Wait()
	if n := len(c.places.View().Collections); n != 1 {
		t.Errorf("%d collections", n)
	}
	r := c.one("n1", "citeis", wire.WriteItem{Op: wire.OpUpdate, ID: "x", Body: body(t, m{"$set": m{"a": 1}})})
	if r.Error == nil || r.Error.Code != wire.CodeCollectionNotFound || r.Error.Message != "collection citeis does not exist (did you mean cities?)" {
		t.Errorf("%+v", r.Error)
	}
	if _, err := c.get("n3", &wire.GetRequest{Collection: "city", IDs: []string{"x"}}); codeOf(err) != wire.CodeCollectionNotFound {
		t.Error(err)
	}
	if err := c.serve("n2", wire.KindSettings, &wire.SettingsRequest{Settings: wire.Settings{ExplicitCollections: true}}, new(wire.Settings)); err != nil {
		t.Fatal(err)
	}
	if r := c.put("n3", "logs", "x", m{}); r.Error == nil || r.Error.Code != wire.CodeCollectionNotFound || !strings.Contains(r.Error.Message, "idb collection create logs") {
		t.Errorf("%+v", r.Error)
	}
}

// An ordered bulk stops at the first failure; an unordered one does what it can.
func TestBulk(t *testing.T) {
	c := newTestCluster(t, 3, 4)
	items := func() []wire.WriteItem {
		var items []wire.WriteItem
		for i := range 40 {
			items = append(items, wire.WriteItem{Op: wire.OpInsert, ID: fmt.Sprintf("d%02d", i), Body: body(t, m{"i": i})})
		}
		items[20].ID = "d05" // exists by then
		items[30].ID = ""    // wrong in itself
		return items
	}
	for _, node := range c.ids {
		name := "unordered-" + string(node)
		reply, err := c.write(node, &wire.WriteRequest{Collection: name, Items: items()})
		if err != nil {
			t.Fatal(err)
		}
		failed := 0
		for i, r := range reply.Results {
			if r.Error != nil {
				failed++
				if i != 5 && i != 20 && i != 30 {
					t.Errorf("item %d: %v", i, r.Error)
				}
			}
		}
		if failed != 2 || reply.Cost.Groups != 4 || reply.Cost.Docs != 38 {
			t.Errorf("%d failed, cost %+v", failed, reply.Cost)
		}

		name = "ordered-" + string(node)
		ordered := items()
		ordered[30].ID = "d30"
		reply, err = c.write(node, &wire.WriteRequest{Collection: name, Ordered: true, Items: ordered})
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range reply.Results {
			want := wire.CodeOK
			switch {
			case i == 20:
				want = wire.CodeAlreadyExists
			case i > 20:
				want = wire.CodeNotAttempted
			}
			got := wire.CodeOK
			if r.Error != nil {
				got = r.Error.Code
			}
			if got != want {
				t.Errorf("%s: item %d: %d, want %d", name, i, got, want)
			}
			if want == wire.CodeNotAttempted && r.Error != nil && !strings.Contains(r.Error.Message, "item 21 of this ordered write failed") {
				t.Errorf("item %d: %q", i, r.Error.Message)
			}
		}
		var count wire.CountReply
		if err := c.serve(node, wire.KindCount, &wire.CountRequest{Collection: name}, &count); err != nil || count.Count != 20 {
			t.Errorf("%s: %d documents, %v", name, count.Count, err)
		}
	}
}

// A write is carried through elections, lost answers and dead nodes, once.
func TestWriteRetries(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	core := c.groups[1]
	if r := c.put("n1", "users", "a", m{}); r.Error != nil {
		t.Fatal(r.Error)
	}
	inc := func() wire.WriteItem {
		return wire.WriteItem{Op: wire.OpUpdate, ID: "a", Body: body(t, m{"$inc": m{"n": 1}})}
	}
	version := uint64(1)
	for _, x := range []struct {
		name   string
		before func()
		dup    bool
	}{
		{"no leader for a while", func() {
			core.setLeader("")
			go core.setLeader("n2")
		}, false},
		{"the answer is lost", func() { core.lose = 1 }, true},
		{"two answers are lost", func() { core.lose = 2 }, true},
		{"leader moved", func() { core.setLeader("n3") }, false},
		{"not proposed", func() { core.fail = []error{shardgroup.ErrStopped, &shardgroup.NotLeaderError{}} }, false},
		{"the first hop breaks", func() {
			core.setLeader("n2")
			c.breakOnce(&wire.ConnError{Sent: true, Err: fmt.Errorf("reset")})
		}, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			x.before()
			r := c.one("n1", "users", inc())
			version++
			if r.Error != nil || r.Version != version || r.Duplicate != x.dup {
				t.Fatalf("%+v %v, want version %d, duplicate %v", r, r.Error, version, x.dup)
			}
		})
	}
}

// breakOnce makes the next call between nodes fail.
func (c *testCluster) breakOnce(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.intercept = func(_, _ placement.NodeID, _ wire.Kind) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.intercept = nil
		return err
	}
}

// What may have happened is never reported as refused.
func TestUnknownStaysUnknown(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	core := c.groups[1]
	c.put("n1", "users", "a", m{})
	c.timeout = 80 * time.Millisecond
	core.setLeader("n1")
	core.lose = 1
	core.fail = append([]error{nil}, repeat(shardgroup.ErrStopped, 100)...)
	item := wire.WriteItem{Op: wire.OpUpdate, ID: "a", Body: body(t, m{"$inc": m{"n": 1}}), RequestID: c.requestID()}
	r := c.one("n1", "users", item)
	if r.Error == nil || r.Error.Code != wire.CodeOutcomeUnknown || !strings.Contains(r.Error.Message, "same request ID") {
		t.Fatalf("%+v", r.Error)
	}
	core.fail = nil
	if r = c.one("n1", "users", item); r.Error != nil || !r.Duplicate || r.Version != 2 {
		t.Fatalf("the retry: %+v %v", r, r.Error)
	}
	for _, last := range []error{shardgroup.ErrOverloaded, shardgroup.ErrDiskFull} {
		core.lose, core.fail = 1, []error{nil, last}
		r = c.one("n1", "users", wire.WriteItem{Op: wire.OpUpdate, ID: "a", Body: body(t, m{"$inc": m{"n": 1}}), RequestID: c.requestID()})
		if r.Error == nil || r.Error.Code != wire.CodeOutcomeUnknown {
			t.Fatalf("an attempt was applied and the next refused with %v: %+v", last, r.Error)
		}
	}
	core.fail = repeat(shardgroup.ErrStopped, 100)
	if r = c.one("n1", "users", wire.WriteItem{Op: wire.OpDelete, ID: "a"}); r.Error == nil || r.Error.Code != wire.CodeUnavailable {
		t.Fatalf("never proposed: %+v", r.Error)
	}
	core.fail = []error{shardgroup.ErrOverloaded, shardgroup.ErrDiskFull}
	for _, want := range []wire.Code{wire.CodeOverloaded, wire.CodeDiskFull} {
		if r = c.one("n1", "users", wire.WriteItem{Op: wire.OpDelete, ID: "a"}); r.Error == nil || r.Error.Code != want || r.Error.RetryAfterMillis == 0 {
			t.Errorf("%+v, want %d", r.Error, want)
		}
	}
}

// An ordered write that is carried again, and stops where the first attempt need
// not have stopped: what follows may have happened too.
func TestOrderedStaysUnknown(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	core := c.groups[1]
	core.setLeader("n2")
	c.put("n2", "users", "there", m{})
	for _, x := range []struct {
		name          string
		id            string
		fail          []error
		first, second wire.Code
	}{
		{"a refusal of this attempt", "a", []error{shardgroup.ErrDiskFull}, wire.CodeOutcomeUnknown, wire.CodeOutcomeUnknown},
		{"a refusal of every attempt", "there", nil, wire.CodeAlreadyExists, wire.CodeNotAttempted},
	} {
		core.fail = x.fail
		c.breakOnce(&wire.ConnError{Sent: true, Err: fmt.Errorf("reset")})
		reply, err := c.write("n1", &wire.WriteRequest{Collection: "users", Ordered: true, Items: []wire.WriteItem{
			{Op: wire.OpInsert, ID: x.id, Body: body(t, m{}), RequestID: c.requestID()},
			{Op: wire.OpInsert, ID: "b", Body: body(t, m{}), RequestID: c.requestID()},
		}})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []wire.Code{x.first, x.second} {
			if e := reply.Results[i].Error; e == nil || e.Code != want {
				t.Errorf("%s: item %d: %+v, want %d", x.name, i, e, want)
			}
		}
	}
}

func repeat(err error, n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}

// A direct request is refused with the leader's name, and makes no hop.
func TestDirect(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	core := c.groups[1]
	core.setLeader("n2")
	c.put("n2", "users", "a", m{})
	reply, err := c.write("n1", &wire.WriteRequest{Collection: "users", Direct: true, Items: []wire.WriteItem{{Op: wire.OpDelete, ID: "a"}}})
	if err != nil {
		t.Fatal(err)
	}
	if e := reply.Results[0].Error; e == nil || e.Code != wire.CodeNotLeader || e.Leader != "n2" || e.Message != "users/a: g1 is led by n2 (ask it)" {
		t.Errorf("%+v", e)
	}
	if n := c.calls[wire.KindWrite]; n != 0 {
		t.Errorf("%d hops", n)
	}
	got, err := c.get("n3", &wire.GetRequest{Collection: "users", Direct: true, IDs: []string{"a"}})
	if err != nil || got.Results[0].Error == nil || got.Results[0].Error.Leader != "n2" {
		t.Errorf("%+v %v", got, err)
	}
	core.setLeader("")
	got, err = c.get("n2", &wire.GetRequest{Collection: "users", Direct: true, IDs: []string{"a"}})
	if err != nil || got.Results[0].Error == nil || got.Results[0].Error.Code != wire.CodeNotLeader || got.Results[0].Error.Leader != "" {
		t.Errorf("%+v %v", got, err)
	}
	var history wire.HistoryReply
	if err := c.serve("n1", wire.KindHistory, &wire.HistoryRequest{Collection: "users", ID: "a", Direct: true}, &history); codeOf(err) != wire.CodeNotLeader {
		t.Error(err)
	}
}

// A node whose catalog is older than a drop finds out from the machine.
func TestDropAndAgain(t *testing.T) {
	c := newTestCluster(t, 3, 2)
	for i := range 10 {
		c.put("n1", "users", fmt.Sprint(i), m{"old": true})
	}
	var info wire.CollectionInfo
	if err := c.serve("n2", wire.KindDropCollection, &wire.DropCollectionRequest{Name: "users"}, &info); err != nil || info.Dropping || info.ID != 1 {
		t.Fatalf("%+v %v", info, err)
	}
	if err := c.serve("n2", wire.KindDropCollection, &wire.DropCollectionRequest{Name: "users"}, &info); codeOf(err) != wire.CodeCollectionNotFound {
		t.Error(err)
	}
	if _, err := c.get("n3", &wire.GetRequest{Collection: "users", IDs: []string{"1"}}); codeOf(err) != wire.CodeCollectionNotFound {
		t.Error(err)
	}
	if r := c.put("n3", "users", "1", m{"new": true}); r.Error != nil || r.Version != 1 {
		t.Fatalf("%+v %v", r, r.Error)
	}
	var count wire.CountReply
	if err := c.serve("n1", wire.KindCount, &wire.CountRequest{Collection: "users"}, &count); err != nil || count.Count != 1 {
		t.Errorf("%d, %v", count.Count, err)
	}

	// A drop that a group does not confirm: decided, waited for, not reported
	// as done; and the name waits with it.
	c.mu.Lock()
	c.autoDrops = false
	c.mu.Unlock()
	c.timeout = 80 * time.Millisecond
	err := c.serve("n2", wire.KindDropCollection, &wire.DropCollectionRequest{Name: "users"}, &info)
	if codeOf(err) != wire.CodeOutcomeUnknown {
		t.Error(err)
	}
	if r := c.put("n1", "users", "2", m{}); r.Error == nil || r.Error.Code != wire.CodeUnavailable || !strings.Contains(r.Error.Message, "being dropped") {
		t.Errorf("%+v", r.Error)
	}
	c.timeout = 5 * time.Second
	done := make(chan wire.WriteResult)
	go func() { done <- c.put("n1", "users", "2", m{}) }()
	c.mu.Lock()
	for _, coll := range c.places.View().Collections {
		if coll.Dropping() {
			c.finishDropLocked(coll.ID)
		}
	}
	c.mu.Unlock()
	if r := <-done; r.Error != nil {
		t.Errorf("the write that waited for the drop: %v", r.Error)
	}
}

func TestNotInitialised(t *testing.T) {
	service := placement.NewService(placement.Options{Self: "n1"})
	defer service.Close()
	c := newTestCluster(t, 1, 1)
	o := c.nodes["n1"].router.opts
	o.Placement = service
	r := New(o)
	for kind, req := range map[wire.Kind]wire.Message{
		wire.KindWrite:            &wire.WriteRequest{Collection: "c", Items: []wire.WriteItem{{ID: "a"}}},
		wire.KindGet:              &wire.GetRequest{Collection: "c", IDs: []string{"a"}},
		wire.KindScan:             &wire.ScanRequest{Collection: "c"},
		wire.KindCount:            &wire.CountRequest{Collection: "c"},
		wire.KindHistory:          &wire.HistoryRequest{Collection: "c", ID: "a"},
		wire.KindCreateCollection: &wire.CreateCollectionRequest{Name: "c"},
		wire.KindDropCollection:   &wire.DropCollectionRequest{Name: "c"},
		wire.KindSettings:         &wire.SettingsRequest{},
		wire.KindLeaders:          &wire.LeadersRequest{},
		wire.KindCollection:       &wire.CollectionRequest{Name: "c"},
		wire.KindTopology:         &wire.TopologyRequest{},
	} {
		_, err := r.Serve(t.Context(), kind, wire.Append(nil, req), nil)
		if codeOf(err) != wire.CodeNotInitialised {
			t.Errorf("kind %d: %v", kind, err)
		}
	}
	for _, kind := range []wire.Kind{wire.KindClusterStatus, wire.KindNodeStatus, wire.KindPing} {
		if _, err := r.Serve(t.Context(), kind, nil, nil); err != nil {
			t.Errorf("kind %d: %v", kind, err)
		}
	}
	if _, err := r.Serve(t.Context(), 63, nil, nil); codeOf(err) != wire.CodeUnsupported {
		t.Error(err)
	}
	for kind := range wire.KindSettings + 1 {
		if _, err := r.Serve(t.Context(), kind, []byte{0xc1, 0xff}, nil); kind != wire.KindPing && kind != wire.KindClusterStatus && kind != wire.KindNodeStatus && codeOf(err) == wire.CodeOK {
			t.Errorf("kind %d accepted garbage", kind)
		}
	}
}
