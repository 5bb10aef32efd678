package router

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn"
)

func cutMessages() []*groupCut {
	return []*groupCut{
		{step: lookStep, group: 3, collections: []placement.CollectionID{7, 300}, counts: []placement.CollectionID{}},
		{step: txn.CutHold, group: 3, all: true, collections: []placement.CollectionID{}, counts: []placement.CollectionID{7}},
		{step: txn.CutPromise, group: 3, term: 4, token: 5, promise: fsm.Promise{To: 0x1122334455667788, Epoch: 9, Partitions: []placement.PartitionID{0, 270}}},
		{step: txn.CutRelease, group: 3, term: 4, token: 5},
	}
}

// TestCutMessages: what is sent comes back, and cut off anywhere it is refused.
func TestCutMessages(t *testing.T) {
	for _, q := range cutMessages() {
		b := q.encode()
		got, err := decodeGroupCut(b)
		if err != nil || !reflect.DeepEqual(got, q) {
			t.Errorf("%+v came back as %+v, %v", q, got, err)
		}
		for n := range b {
			if _, err := decodeGroupCut(b[:n]); err == nil {
				t.Errorf("the first %d of %d bytes pass", n, len(b))
			}
		}
		if _, err := decodeGroupCut(append(bytes.Clone(b), 0)); err == nil {
			t.Error("a byte too much passes")
		}
		a := groupCutAnswer{}
		if q.step == lookStep || q.step == txn.CutHold {
			a.held = txn.Held{Term: 4, Token: 5, Clock: 6, Undecided: []txn.Open{{ID: txn.ID{Time: 8}, Home: 270}}}
			a.kept = make([]shardgroup.Kept, len(q.counts))
			for i := range a.kept {
				a.kept[i] = shardgroup.Kept{Documents: 300, Bytes: 70_000}
			}
			b = a.append([]byte{peerVersion})
		} else {
			b = []byte{peerVersion}
		}
		back, err := decodeGroupCutAnswer(b, q)
		if err != nil || !reflect.DeepEqual(back, a) {
			t.Errorf("%+v came back as %+v, %v", a, back, err)
		}
		for n := range b {
			if _, err := decodeGroupCutAnswer(b[:n], q); err == nil {
				t.Errorf("the first %d of %d bytes of an answer pass", n, len(b))
			}
		}
	}
}

func FuzzCutMessages(f *testing.F) {
	for _, q := range cutMessages() {
		f.Add(q.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := decodeGroupCut(b)
		if err != nil {
			return
		}
		if again, err := decodeGroupCut(q.encode()); err != nil || !reflect.DeepEqual(q, again) {
			t.Fatalf("%+v came back as %+v, %v", q, again, err)
		}
		if a, err := decodeGroupCutAnswer(b, q); err == nil && len(a.held.Undecided) > len(b) {
			t.Fatal("more transactions than bytes")
		}
	})
}

// TestCutsAreShared: those who come while a cut is under way share the next.
func TestCutsAreShared(t *testing.T) {
	c := newTestCluster(t, 3, 3)
	for i := range 30 {
		c.put("n1", "things", fmt.Sprint("d", i), map[string]int{"n": i})
	}
	gate := make(chan struct{})
	reached := make(chan struct{}, 100)
	c.mu.Lock()
	clear(c.calls)
	c.intercept = func(_, _ placement.NodeID, kind wire.Kind) error {
		if kind == wire.KindGroupCut {
			reached <- struct{}{}
			<-gate
		}
		return nil
	}
	c.mu.Unlock()
	const scans = 20
	var all sync.WaitGroup
	scan := func() {
		docs, page, err := c.scan("n1", &wire.ScanRequest{Collection: "things"})
		if err != nil || len(docs) != 30 || page.Time == 0 {
			t.Errorf("%d documents, %v", len(docs), err)
		}
	}
	all.Go(scan)
	<-reached // the first cut has begun
	for range scans {
		all.Go(scan)
	}
	r := c.nodes["n1"].router
	for waiting := false; !waiting; time.Sleep(time.Millisecond) {
		r.cuts.mu.Lock()
		for _, lane := range r.cuts.lanes {
			waiting = lane.next != nil
		}
		r.cuts.mu.Unlock()
	}
	time.Sleep(20 * time.Millisecond) // the others join; one that comes later only makes a third cut
	close(gate)
	all.Wait()
	c.mu.Lock()
	calls := c.calls[wire.KindGroupCut]
	c.mu.Unlock()
	// Two of three groups are led elsewhere; a cut is a hold and a promise.
	if calls > 4*2*2 {
		t.Fatalf("%d scans took %d messages of cuts", scans+1, calls)
	}
	r.cuts.mu.Lock()
	defer r.cuts.mu.Unlock()
	if len(r.cuts.lanes) != 0 {
		t.Fatal("a lane that nobody waits in is kept")
	}
}

// TestCutGroupGone: a group without a leader holds up the others for no longer
// than it takes to find that out, and the cut is made when it has one again.
func TestCutGroupGone(t *testing.T) {
	c := newTestCluster(t, 3, 3)
	for i := range 30 {
		c.put("n1", "things", fmt.Sprint("d", i), map[string]int{"n": i})
	}
	core := c.groups[2]
	was := core.leading()
	core.setLeader("")
	done := make(chan error, 1)
	go func() {
		_, _, err := c.scan("n1", &wire.ScanRequest{Collection: "things"})
		done <- err
	}()
	for i := range 5 {
		if r := c.one("n2", "things", wire.WriteItem{Op: wire.OpPut, ID: idIn(c, 1, i), Body: body(t, map[string]int{"n": 1})}); r.Error != nil {
			t.Fatalf("a write to another group: %v", r.Error)
		}
	}
	core.setLeader(was)
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	core.setLeader("")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := c.nodes["n1"].router.Serve(ctx, wire.KindCount, wire.Append(nil, &wire.CountRequest{Collection: "things"}), nil)
	if code := codeOf(err); code != wire.CodeTimeout && code != wire.CodeUnavailable && code != wire.CodeNotLeader {
		t.Fatalf("a count without one of the groups: %v", err)
	}
	core.setLeader(was)
}

// idIn is the n-th ID of a document in a group.
func idIn(c *testCluster, g placement.GroupID, n int) string {
	v := c.places.View()
	coll, _ := v.Collection("things")
	for i := 0; ; i++ {
		id := fmt.Sprint("x", i)
		if v.Owner(partitionOf(v, coll, id)) == g {
			if n--; n < 0 {
				return id
			}
		}
	}
}

func TestCountAtACut(t *testing.T) {
	c := newTestCluster(t, 3, 3)
	for i := range 30 {
		c.put("n1", "things", fmt.Sprint("d", i), map[string]int{"n": i})
	}
	for _, node := range c.ids {
		var reply wire.CountReply
		if err := c.serve(node, wire.KindCount, &wire.CountRequest{Collection: "things"}, &reply); err != nil || reply.Count != 30 || reply.Bytes == 0 || reply.Cost.ReadVersion == 0 {
			t.Fatalf("%s: %+v, %v", node, reply, err)
		}
		if err := c.serve(node, wire.KindCount, &wire.CountRequest{Collection: "things", Prefix: "d1"}, &reply); err != nil || reply.Count != 11 || reply.Bytes != 0 {
			t.Fatalf("%s: %+v, %v", node, reply, err)
		}
	}
}
