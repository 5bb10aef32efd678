package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
)

// Memory that a node may take on top of what it had, whatever is sent to it.
const hostileBudget = 384 << 20

// TestHostileClients attacks a node in every way we know, one after the other.
// Its memory stays within a budget, it never ends, and a well-behaved client
// of the same node keeps getting answers.
func TestHostileClients(t *testing.T) {
	rng := choices(t)
	c := start(t, Options{Nodes: 1, Replicas: 1, Shards: 2})
	ctx := within(t, 2*time.Minute)
	db := dial(t, c)
	docs := db.Collection("docs")
	large := client.D{"pad": string(bytes.Repeat([]byte("x"), 1000<<10))}
	if _, err := docs.Put(ctx, "large", large); err != nil {
		t.Fatal(err)
	}
	node := c.Nodes[0]
	cases, err := HostileCases("../../../testdata/wire/hostile.json")
	if err != nil {
		t.Fatal(err)
	}

	// Those that are dropped for their silence wait it out beside the rest.
	var silent sync.WaitGroup
	defer silent.Wait()
	for _, h := range cases {
		if h.Then == "dropped" {
			silent.Go(func() {
				if err := h.Play(ctx, node.ClientAddr, 25*time.Second); err != nil {
					t.Error(err)
				}
			})
		}
	}

	attacks := []struct {
		name string
		do   func() error
	}{
		{"the table of bad frames", func() error {
			var bad []error
			for _, h := range cases {
				if h.Then != "dropped" {
					bad = append(bad, h.Play(ctx, node.ClientAddr, 10*time.Second))
				}
			}
			return errors.Join(bad...)
		}},
		{"the same on the peer port", func() error {
			for _, h := range cases {
				data, err := h.Bytes()
				if err == nil {
					err = Send(ctx, node.PeerAddr, data, 20*time.Millisecond)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}},
		{"damaged frames", func() error {
			bounded, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			sent, err := Fuzz(bounded, node.ClientAddr, goodFrames(), rng.Uint64(), 8)
			t.Logf("%d damaged connections", sent)
			return err
		}},
		{"frames that are announced and do not come", func() error {
			release, err := Promise(ctx, node.ClientAddr, 200)
			if err != nil {
				return err
			}
			defer release()
			pause(ctx, time.Second)
			return nil
		}},
		{"connections that say nothing", func() error {
			release, err := hold(ctx, node.ClientAddr, 1000, nil)
			if err != nil {
				return err
			}
			defer release()
			pause(ctx, time.Second)
			return nil
		}},
		{"answers that nobody reads", func() error {
			release, err := NeverRead(ctx, node.ClientAddr, "docs", "large", 16, 500)
			if err != nil {
				return err
			}
			defer release()
			pause(ctx, 2*time.Second)
			return nil
		}},
	}
	calm := measure(ctx, t, docs, func() error { pause(ctx, time.Second); return nil }, node)
	t.Logf("%-44s %v", "nobody", calm)
	for _, a := range attacks {
		o := measure(ctx, t, docs, a.do, node)
		t.Logf("%-44s %v", a.name, o)
		if o.err != nil {
			t.Errorf("%s: %v", a.name, o.err)
		}
		if grown := o.memory - calm.memory; grown > hostileBudget {
			t.Errorf("%s: resident memory grew by %d MiB, the budget is %d MiB", a.name, grown>>20, hostileBudget>>20)
		}
		if err := c.Died(); err != nil {
			t.Fatalf("%s: %v", a.name, err)
		}
	}
}

// observed is what a well-behaved client saw, and what the node took.
type observed struct {
	operations int
	p99        time.Duration
	memory     int64 // highest
	err        error
}

func (o observed) String() string {
	return fmt.Sprintf("%5d operations, p99 %v, at most %d MiB", o.operations, o.p99, o.memory>>20)
}

// measure runs an attack beside a well-behaved client.
func measure(ctx context.Context, t *testing.T, docs *client.Collection, attack func() error, node *Node) observed {
	t.Helper()
	var (
		o    observed
		took []time.Duration
		wg   sync.WaitGroup
	)
	ends := make(chan struct{})
	wg.Add(2)
	go func() {
		defer wg.Done()
		for {
			began := time.Now()
			one, cancel := context.WithTimeout(ctx, 10*time.Second)
			_, err := docs.Put(one, "small", client.D{"n": len(took)})
			if err == nil {
				_, err = docs.Get(one, "small")
			}
			cancel()
			if err != nil {
				t.Errorf("the well-behaved client: %v", err)
				return
			}
			took = append(took, time.Since(began))
			select {
			case <-ends:
				return
			default:
			}
		}
	}()
	go func() {
		defer wg.Done()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			if m, err := node.ResidentBytes(); err == nil {
				o.memory = max(o.memory, m)
			}
			select {
			case <-tick.C:
			case <-ends:
				return
			}
		}
	}()
	o.err = attack()
	close(ends)
	wg.Wait()
	slices.Sort(took)
	if o.operations = len(took); o.operations > 0 {
		o.p99 = took[len(took)*99/100].Round(10 * time.Microsecond)
	}
	return o
}

// goodFrames are what the fuzzer damages: one of each request.
func goodFrames() [][]byte {
	id := wire.RequestID{Time: 1}
	doc := []byte{0x81, 0xa1, 'v', 0x01} // {"v": 1}
	var all [][]byte
	for i, m := range []struct {
		kind    wire.Kind
		message wire.Message
	}{
		{wire.KindHello, &wire.Hello{Magic: wire.Magic, MinVersion: 1, MaxVersion: 1}},
		{wire.KindPing, nil},
		{wire.KindTopology, &wire.TopologyRequest{}},
		{wire.KindWrite, &wire.WriteRequest{Collection: "fuzz", Number: 1, Items: []wire.WriteItem{{RequestID: id, Op: wire.OpPut, ID: "a", Body: doc}}}},
		{wire.KindWrite, &wire.WriteRequest{Collection: "fuzz", Number: 1, Ordered: true, Items: []wire.WriteItem{
			{RequestID: id, Op: wire.OpInsert, ID: "b", Body: doc}, {RequestID: id, Op: wire.OpDelete, ID: "b"},
		}}},
		{wire.KindGet, &wire.GetRequest{Collection: "fuzz", IDs: []string{"a", "b"}}},
		{wire.KindScan, &wire.ScanRequest{Collection: "fuzz", Prefix: "a", Limit: 10}},
		{wire.KindCount, &wire.CountRequest{Collection: "fuzz"}},
		{wire.KindHistory, &wire.HistoryRequest{Collection: "fuzz", ID: "a"}},
		{wire.KindCreateCollection, &wire.CreateCollectionRequest{Name: "fuzz2", RequestID: id}},
		{wire.KindClusterInit, &wire.ClusterInitRequest{Nodes: []string{"127.0.0.1:1"}, Shards: 1, Replicas: 1, Partitions: 7}},
		{wire.KindClusterStatus, nil},
		{wire.KindNodeStatus, nil},
		{wire.KindSettings, &wire.SettingsRequest{RequestID: id}},
		{wire.KindLeaders, &wire.LeadersRequest{Leaders: wire.LeadersTogether, RequestID: id}},
		{wire.KindCancel, nil},
		{wire.KindConfirm, nil},
	} {
		all = append(all, wire.AppendFrame(nil, &wire.Frame{Kind: m.kind, Request: uint64(i + 2), Body: wire.Append(nil, m.message)}))
	}
	return all
}
