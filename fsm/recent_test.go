package fsm

import (
	"math/rand/v2"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
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
		if len(h.young)+len(h.old) > 2*headsFull {
			t.Fatalf("%d are remembered", len(h.young)+len(h.old))
		}
	}
	last := 5*headsFull - 1
	if v := h.get([]byte(key(last))); v == nil || v.version != uint64(last) {
		t.Errorf("the last: %+v", v)
	}
	if h.get([]byte(key(0))) != nil {
		t.Error("the first is still there")
	}
	h.old[key(last)] = &head{version: 1} // an older head of the same document
	h.forget([]byte(key(last)))
	if h.get([]byte(key(last))) != nil {
		t.Error("a forgotten head came back")
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
