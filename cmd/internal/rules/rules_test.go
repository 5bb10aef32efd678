package rules

import (
	"errors"
	"flag"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/impossibledb/idb/fsm/mutant"
)

var (
	seeds = flag.Int("rules.seeds", 2000, "runs of each ring")
	first = flag.Uint64("rules.first", 0, "the first of them")
	seed  = flag.Int64("rules.seed", -1, "one run only, with its transcript")
)

// play runs a ring's seeds, two at a time on two cores.
func play(t *testing.T, g ring, meet ...string) {
	t.Helper()
	if *seed >= 0 {
		pool := newEnginePool()
		r := newRun(uint64(*seed), os.Stdout)
		g.run(r, pool)
		if err := errors.Join(r.fault, pool.close()); err != nil {
			t.Fatal(err)
		}
		return
	}
	if testing.Short() {
		*seeds = min(*seeds, 500)
	}
	// Machines are large and short-lived; what lives on is small.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	began := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	met := map[string]int{}
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			pool := newEnginePool()
			for !t.Failed() {
				n := next.Add(1) - 1
				if n >= int64(*seeds) {
					break
				}
				run, err := g.play(*first+uint64(n), pool)
				if err != nil {
					t.Errorf("fault in run %d: %v\nagain: go test ./cmd/internal/rules -run %s -rules.seed %d", n+1, err, t.Name(), *first+uint64(n))
				}
				mu.Lock()
				for what, n := range run {
					met[what] += n
				}
				mu.Unlock()
			}
			if err := pool.close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	for _, what := range slices.Sorted(maps.Keys(met)) {
		t.Logf("%8.2f %s", float64(met[what])/float64(next.Load()), what)
	}
	for _, what := range meet {
		if met[what] == 0 && *seeds >= 500 && !t.Failed() && !mutant.Enabled {
			t.Errorf("no run of %d met this: %s", *seeds, what)
		}
	}
	t.Logf("%d runs in %v, %.0f a minute", min(next.Load(), int64(*seeds)), took.Round(time.Millisecond), float64(*seeds)/took.Minutes())
}

// TestShard and TestPlacement: see what they count; a ring that meets nothing
// finds nothing.
func TestShard(t *testing.T) {
	play(t, Shards, "answers compared", "crashes", "drops", "installs", "promises", "reads", "retries of what was done",
		"terms served", "versions collected", "void entries", "writes", "refused: stale_epoch", "refused: version_conflict",
		"refused: outcome_expired", "refused: collection_not_found")
}

func TestPlacement(t *testing.T) {
	play(t, Placements, "states compared", "crashes", "installs", "terms served", "collections that were",
		"answers: ok", "answers: unavailable", "answers: collection_exists", "answers: cluster_exists", "answers: wrong_cluster")
}

func TestTransactions(t *testing.T) {
	play(t, Transactions, "commits in one entry", "commits over several groups", "transactions done", "transactions refused",
		"read-only transactions", "recoveries", "coordinators dead", "leader changes", "readers at an intent", "single writes at a lock", "reads at a time",
		"staged", "inquiries about what is staged")
}

func TestCuts(t *testing.T) {
	play(t, Cuts, "cut reads", "cuts refused", "cuts that asked", "cuts that asked again", "commits found by a cut", "writes kept back",
		"promises refused", "commits over several groups", "transactions done", "leader changes", "reads at a time")
}

// TestTransactionMistakes breaks each rule of the protocol, and sees it caught.
func TestTransactionMistakes(t *testing.T) {
	for m := noMistake + 1; m < lastMistake; m++ {
		t.Run(mistakeNames[m], func(t *testing.T) {
			t.Parallel()
			pool := newEnginePool()
			defer func() {
				if err := pool.close(); err != nil {
					t.Error(err)
				}
			}()
			const budget = 3000
			for n := range uint64(budget) {
				r := newRun(n, nil)
				runTxns(r, pool, m >= firstCutMistake, m)
				if r.fault != nil {
					t.Logf("caught by seed %d: %.300v", n, r.fault)
					return
				}
			}
			t.Errorf("not caught by %d seeds", budget)
		})
	}
}
