package mvcc

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/impossibledb/idb/txn/hlc"
)

// What is found is what was put last, whatever was put, forgotten and pushed out
// in between; and memory keeps its bound.
func TestNewest(t *testing.T) {
	const most = 512 << 10
	rng := rand.New(rand.NewPCG(1, 2))
	n := newNewestMemory(most)
	groups := []*Newest{{n: n}, {n: n}}
	model := []map[string]Row{{}, {}}
	bodies := make([]byte, 2*maxNewestBody)
	for i := range bodies {
		bodies[i] = byte(rng.Uint32())
	}
	now := hlc.Timestamp(1)
	found, quiet := 0, 0
	var dst []byte
	for step := range 300_000 {
		which := rng.IntN(2)
		g, m := groups[which], model[which]
		key := fmt.Appendf(nil, "%d of some documents, %d", rng.IntN(3000), which)
		switch what := rng.IntN(100); {
		case what < 60:
			row, ok := g.Get(key, 0, dst)
			dst = row.Body
			want, known := m[string(key)]
			if !ok {
				break
			}
			if found++; !known || row.Version != want.Version || row.Updated != want.Updated || row.Created != want.Created || row.Deleted != want.Deleted || string(row.Body) != string(want.Body) {
				t.Fatalf("step %d: %s: found %+v, it is %+v (%v)", step, key, row, want, known)
			}
			if _, ok := g.Get(key, want.Updated, nil); !ok {
				t.Fatalf("step %d: not found at the time of the version", step)
			}
			if _, ok := g.Get(key, want.Updated-1, nil); ok {
				t.Fatalf("step %d: found before the time of the version", step)
			}
		case what < 90:
			if rng.IntN(10_000) == 0 { // as if it were not worth it
				g.batches = trialBatches - 1
				g.hits.Store(0)
			}
			if !g.Begin() {
				g.rest = 0
				quiet++
				clear(m)
				break
			}
			size := rng.IntN(200)
			if what == 61 {
				size = rng.IntN(len(bodies))
			}
			now++
			at := rng.IntN(len(bodies) - size)
			row := Row{Version: rng.Uint64(), Created: now - 1, Updated: now, Deleted: rng.IntN(10) == 0}
			if !row.Deleted {
				row.Body = bodies[at : at+size]
			}
			g.Put(key, &row)
			m[string(key)] = row
			fits := len(row.Body) <= maxNewestBody && newestFixed+len(key)+roomFor(len(row.Body)) <= n.most
			if _, ok := g.Get(key, 0, nil); ok != fits {
				t.Fatalf("step %d: a body of %d bytes is kept: %v", step, len(row.Body), ok)
			}
		case what < 94:
			g.Forget(key)
			delete(m, string(key))
		case step%5000 == 0:
			g.Reset()
			clear(m)
		}
		if b := n.bytes(); step%100 == 0 && b > most {
			t.Fatalf("step %d: %d bytes, %d are allowed", step, b, most)
		}
	}
	if found < 10_000 || quiet == 0 {
		t.Errorf("found %d, nothing was kept %d times", found, quiet)
	}
	// It is given up if nobody looks, and begun again by who does; looks in vain
	// have it given up for longer.
	g := &Newest{n: n}
	begins := func(most int) (n int) {
		for n < most && !g.Begin() {
			n++
		}
		return n
	}
	ends := func(look func(i int)) int {
		for i := range 2 * trialBatches {
			if !g.Begin() {
				return i
			}
			g.Put(fmt.Appendf(nil, "%d", i), &Row{Version: 1, Updated: 1})
			look(i)
		}
		return 0
	}
	if begins(10) != 10 {
		t.Error("kept though nobody has looked")
	}
	g.Get([]byte("x"), 0, nil)
	if begins(10) != 0 {
		t.Error("a look does not begin it")
	}
	g.wanted.Store(false)
	if at := ends(func(int) {}); at != trialBatches-2 && at != trialBatches-1 {
		t.Errorf("kept for %d batches though nobody looks", at)
	}
	if g.Get([]byte("1"), 0, nil); begins(10) != 0 {
		t.Error("a look does not begin it again")
	}
	if at := ends(func(i int) { g.Get(fmt.Appendf(nil, "%d", i-i%putsPerHit), 0, nil) }); at != 0 {
		t.Errorf("given up after %d batches though what is put is read", at)
	}
	if at := ends(func(i int) { g.Get([]byte("x"), 0, nil) }); at == 0 {
		t.Error("kept though all looks are in vain")
	}
	g.Get([]byte("x"), 0, nil)
	if n := begins(2 * restBatches); n != restBatches {
		t.Errorf("begun again after %d batches in vain, not %d", n, restBatches)
	}
	if none := (&Newest{n: newNewestMemory(-1)}); true {
		none.Get(nil, 0, nil)
		if none.Begin() {
			t.Error("without memory something is kept")
		}
	}
}

// Readers beside a writer find a version that is no older than what was
// published before they asked, whole.
func TestNewestBesideWriter(t *testing.T) {
	n := newNewestMemory(256 << 10)
	g := &Newest{n: n}
	var published [64]atomic.Uint64
	key := func(i int) []byte { return fmt.Appendf(nil, "document %d", i) }
	body := func(i int, version uint64) []byte {
		b := make([]byte, 8+(uint64(i)*37+version*13)%900)
		for k := range b {
			b[k] = byte(version)
		}
		return b
	}
	var stop atomic.Bool
	var hits atomic.Uint64
	var bg sync.WaitGroup
	for r := range 3 {
		bg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(r), 5))
			var dst []byte
			for !stop.Load() {
				i := rng.IntN(len(published))
				seen := published[i].Load()
				row, ok := g.Get(key(i), 0, dst)
				if dst = row.Body; !ok {
					continue
				}
				hits.Add(1)
				if row.Version < seen || string(row.Body) != string(body(i, row.Version)) {
					t.Errorf("document %d: version %d was published, found %d of %d bytes", i, seen, row.Version, len(row.Body))
					return
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(7, 7))
	for v := uint64(1); v < 60_000 || hits.Load() < 1000 && v < 10_000_000; v++ {
		i := rng.IntN(len(published))
		kept := g.Begin()
		if kept {
			g.Put(key(i), &Row{Version: v, Updated: hlc.Timestamp(v), Body: body(i, v)})
		}
		published[i].Store(v)
	}
	stop.Store(true)
	bg.Wait()
}
