package node

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
)

type numbered struct {
	N int `json:"n"`
}

// TestCutsAmongWriters: writers write one document and, when they are told,
// another, mostly of another group, led by a node whose clock is seconds away.
// Scans, counts and read-only transactions see the second only with the first,
// and what was acknowledged before they began; nobody is kept from his work.
func TestCutsAmongWriters(t *testing.T) {
	const writers, least = 6, 20
	skews := []time.Duration{0, 2 * time.Second, -2 * time.Second}
	d, err := StartDev(t.Context(), DevConfig{Dir: t.TempDir(), Nodes: 3, now: func(i int) func() time.Time {
		return func() time.Time { return time.Now().Add(skews[i]) }
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stopDev(t, d)
	db := dial(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	pairs, moving := db.Collection("pairs"), db.Collection("moving")
	name := func(which string, w int) string { return fmt.Sprintf("%s-%d", which, w) }
	put := func(c *client.Collection, id string, n int) bool {
		if _, err := c.Put(ctx, id, numbered{n}); err != nil {
			t.Errorf("put %s: %v", id, err)
			return false
		}
		return true
	}
	for w := range writers {
		if !put(pairs, name("first", w), 0) || !put(pairs, name("second", w), 0) || !put(moving, fmt.Sprintf("m%d-0", w), 0) {
			return
		}
	}
	var wg sync.WaitGroup
	var told [writers]atomic.Int64 // pairs acknowledged
	var wrote, scans, counts, sums atomic.Int64
	end := time.Now().Add(4 * time.Second)
	going := func() bool {
		return !t.Failed() && ctx.Err() == nil && (time.Now().Before(end) || min(wrote.Load()/writers, scans.Load(), counts.Load(), sums.Load()) < least)
	}
	for w := range writers {
		wg.Go(func() {
			for n := 1; going(); n++ {
				if !put(pairs, name("first", w), n) || !put(pairs, name("second", w), n) {
					return
				}
				told[w].Store(int64(n))
				if !put(moving, fmt.Sprintf("m%d-%d", w, n), n) {
					return
				}
				if _, err := moving.Delete(ctx, fmt.Sprintf("m%d-%d", w, n-1)); err != nil {
					t.Errorf("delete: %v", err)
					return
				}
				wrote.Add(1)
			}
		})
	}
	before := func() (n [writers]int) {
		for w := range n {
			n[w] = int(told[w].Load())
		}
		return n
	}
	check := func(what string, known [writers]int, found map[string]int) {
		for w := range writers {
			first, second := found[name("first", w)], found[name("second", w)]
			if second < known[w] {
				t.Errorf("a %s found writer %d's second at %d, after %d was acknowledged", what, w, second, known[w])
			}
			if first != second && first != second+1 {
				t.Errorf("a %s of %d documents found writer %d's second at %d with the first at %d", what, len(found), w, second, first)
			}
		}
	}
	wg.Go(func() {
		for going() {
			known, found := before(), map[string]int{}
			for doc, err := range pairs.Scan(ctx) {
				var v numbered
				if err == nil {
					err = doc.Decode(&v)
				}
				if err != nil {
					t.Errorf("scan: %v", err)
					return
				}
				found[doc.ID] = v.N
			}
			check("scan", known, found)
			scans.Add(1)
		}
	})
	wg.Go(func() {
		for going() {
			n, err := moving.Count(ctx)
			if err != nil || n < writers || n > 2*writers {
				t.Errorf("count: %d of %d to %d, %v", n, writers, 2*writers, err)
				return
			}
			counts.Add(1)
		}
	})
	var attempts atomic.Int64
	wg.Go(func() {
		var ids []string
		for w := range writers {
			ids = append(ids, name("first", w), name("second", w))
		}
		ids = append(ids, "nobody")
		for going() {
			known, found := before(), map[string]int{}
			err := db.Transact(ctx, func(tx *client.Tx) error {
				attempts.Add(1)
				docs, err := tx.Collection("pairs").GetMany(ctx, ids)
				for i, doc := range docs {
					var v numbered
					if doc == nil {
						continue
					}
					if err := doc.Decode(&v); err != nil {
						return err
					}
					found[ids[i]] = v.N
				}
				return err
			}, client.ReadOnly())
			if err != nil {
				t.Errorf("read-only transaction: %v", err)
				return
			}
			check("transaction", known, found)
			sums.Add(1)
		}
	})
	wg.Wait()
	t.Logf("%d rounds of %d writers, %d scans, %d counts, %d read-only transactions in %d attempts",
		wrote.Load(), writers, scans.Load(), counts.Load(), sums.Load(), attempts.Load())
	// The third attempt reads at a cut, where nothing can change.
	if attempts.Load() > 3*(sums.Load()+1) {
		t.Errorf("%d attempts for %d read-only transactions", attempts.Load(), sums.Load())
	}
	if ctx.Err() != nil {
		t.Error("somebody starved")
	}
}
