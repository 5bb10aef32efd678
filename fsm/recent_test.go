package fsm

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// TestRecentRequests: an ID that was recorded is never "unseen", however many
// came after it and in whatever order of times; most others are.
func TestRecentRequests(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	id := func(time uint64) (id wire.RequestID) {
		id.Time = time
		for i := range id.Random {
			id.Random[i] = byte(rng.Uint32())
		}
		return id
	}
	var r recentRequests
	r.reset(1000)
	if old := id(1000); r.unseen(&old) {
		t.Fatal("a time from before is unseen")
	}
	var all []wire.RequestID
	for n := range uint64(5 * filterFull) {
		x := id(1001 + n + uint64(rng.IntN(5000)))
		r.add(&x)
		all = append(all, x)
		if i := rng.IntN(len(all)); r.unseen(&all[i]) {
			t.Fatalf("number %d is unseen after %d", i, len(all))
		}
	}
	for i := range all {
		if r.unseen(&all[i]) {
			t.Fatalf("number %d of %d is unseen", i, len(all))
		}
	}
	seen := 0
	for range 10_000 {
		if x := id(1 << 40); !r.unseen(&x) {
			seen++
		}
	}
	if seen > 15 {
		t.Errorf("%d of 10000 new IDs must be looked up", seen)
	}
}

func TestRecentHeads(t *testing.T) {
	var h recentHeads
	h.reset()
	key := func(n int) string { return string(rune(n)) }
	for n := range 5 * headsFull {
		h.put([]byte(key(n)), head{version: uint64(n)})
		if h.young.count+h.old.count > 2*headsFull {
			t.Fatalf("%d are remembered", h.young.count+h.old.count)
		}
	}
	last := 5*headsFull - 1
	if v, ok := h.get([]byte(key(last))); !ok || v.version != uint64(last) {
		t.Errorf("the last: %+v, %v", v, ok)
	}
	if _, ok := h.get([]byte(key(0))); ok {
		t.Error("the first is still there")
	}
	h.old, h.young = h.young, h.old // both have a head of the document
	h.put([]byte(key(last)), head{version: 1})
	h.forget([]byte(key(last)))
	if _, ok := h.get([]byte(key(last))); ok {
		t.Error("a forgotten head came back")
	}
}

// TestRecentHeadsAreTheLast: what is remembered is what was put last, and never
// what was forgotten since; and the last that were put are remembered.
func TestRecentHeadsAreTheLast(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var h recentHeads
	h.reset()
	want := map[string]head{}
	var puts []string
	found := 0
	for n := range 20 * headsFull {
		key := strings.Repeat("k", rng.IntN(40)) + fmt.Sprint(rng.IntN(3*headsFull))
		switch rng.IntN(10) {
		case 0:
			h.forget([]byte(key))
			delete(want, key)
		case 1, 2, 3, 4, 5:
			want[key] = head{version: uint64(n), created: 1, updated: hlc.Timestamp(n), size: uint32(n), deleted: n%3 == 0}
			h.put([]byte(key), want[key])
			puts = append(puts, key)
		default:
			if len(puts) > 0 {
				key = puts[max(0, len(puts)-1-rng.IntN(headsFull))]
			}
			got, ok := h.get([]byte(key))
			w, there := want[key]
			if ok && (!there || got != w) {
				t.Fatalf("step %d: %q is remembered as %+v, and is %+v, %v", n, key, got, w, there)
			}
			if there && !ok {
				t.Fatalf("step %d: %q, one of the last, is not remembered", n, key)
			}
			found++
		}
	}
	if found < headsFull {
		t.Errorf("only %d were found", found)
	}
}

// TestRetryAfterMany: the first of many writes is retried when its ID has left
// memory and is only in the rows.
func TestRetryAfterMany(t *testing.T) {
	r := newReplica(t, nil)
	r.mustApply(mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{1}}}))
	write := func(n uint64) Command {
		return Command{Write: &Write{Partition: 1, Epoch: 1, Collection: 1, Item: wire.WriteItem{
			Op: wire.OpPut, ID: "x", RequestID: request(100+n, n), Body: []byte{0x80},
		}}}
	}
	index := uint64(1)
	for n := uint64(0); n < 3*filterFull; {
		var cs []Command
		for range 1000 {
			cs = append(cs, write(n))
			n++
		}
		index++
		r.mustApply(mustEntry(t, index, cs...))
	}
	first := write(0)
	if r.requests.unseen(&first.Write.Item.RequestID) || first.Write.Item.RequestID.Time >= r.requests.floor {
		t.Fatal("the first ID is still in memory: nothing is tested")
	}
	res := r.mustApply(mustEntry(t, index+1, first))[0][0]
	if !res.Wire.Duplicate || res.Wire.Version != 1 {
		t.Errorf("%+v", res.Wire)
	}
}
