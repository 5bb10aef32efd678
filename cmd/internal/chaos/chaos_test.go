package chaos

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
)

var (
	// command is what the nodes run: built once for all tests, or given (built
	// with -race, for example).
	command = flag.String("idb", "", "the idb command to test; empty: build it")
	seed    = flag.Uint64("seed", 0, "choices of clients and faults; 0: from the clock")
)

func TestMain(m *testing.M) {
	if ran, err := Stub(os.Args[1:]); ran {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	flag.Parse()
	os.Exit(func() int {
		if *command != "" || testing.Short() {
			return m.Run()
		}
		dir, err := os.MkdirTemp("", "idb-chaos-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if *command, err = Build(context.Background(), dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// within is a context that ends before the test's own deadline would.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, o Options) *Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("a cluster of processes takes its time")
	}
	o.Binary, o.Dir = *command, t.TempDir()
	c, err := Start(within(t, 30*time.Second), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the nodes' logs end with\n%s", c.LogTails(40))
		}
		c.Close()
	})
	return c
}

func dial(t *testing.T, c *Cluster) *client.DB {
	t.Helper()
	db, err := client.Dial(within(t, 10*time.Second), c.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// choices prints the seed, so that a failure says how to run it again.
func choices(t *testing.T) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("again: go test ./cmd/internal/chaos -run '^%s$' -seed %d", t.Name(), s)
	return rand.New(rand.NewPCG(s, 0))
}

// TestFaults runs every fault once, in random order, below clients that share
// documents, and judges what the clients saw.
func TestFaults(t *testing.T) {
	rng := choices(t)
	c := start(t, Options{})
	ctx := within(t, 3*time.Minute)
	load, err := StartLoad(ctx, c.URL(), LoadOptions{Seed: rng.Uint64(), Pace: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer load.Stop()
	if err := load.Progress(ctx, 300); err != nil {
		t.Fatal(err)
	}
	faults := slices.Clone(Faults)
	rng.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	for _, f := range faults {
		began := time.Now()
		if _, err := f.Do(ctx, c, rng, load.Progress); err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		whole := time.Since(began)
		if err := load.Progress(ctx, 300); err != nil {
			t.Fatalf("after %s: %v", f.Name, err)
		}
		if err := c.Died(); err != nil {
			t.Fatalf("after %s: %v", f.Name, err)
		}
		t.Logf("%-26s %v, and 300 operations more after %v", f.Name, whole.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	}
	load.Stop()
	report, err := load.Judge(ctx, t.ArtifactDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report)
}

// TestFailover times the first write after kill -9 of a leader, and of all
// nodes. The bounds are generous: a test's machine is shared.
func TestFailover(t *testing.T) {
	c := start(t, Options{Shards: 8})
	db := dial(t, c)
	ctx := within(t, 2*time.Minute)
	load, err := StartLoad(ctx, c.URL(), LoadOptions{Clients: 16, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer load.Stop()
	var firsts []time.Duration
	for range 5 {
		if err := load.Progress(ctx, 500); err != nil {
			t.Fatal(err)
		}
		f, err := c.MeasureFailover(ctx, db)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s killed: it led %d groups; first write after %v, all of them after %v", f.Node, len(f.Groups),
			f.First().Round(time.Millisecond), f.Last().Round(time.Millisecond))
		firsts = append(firsts, f.First())
		if err := c.Heal(ctx); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(firsts)
	t.Logf("median of 5: %v", firsts[2].Round(time.Millisecond))
	if firsts[2] > 10*time.Second {
		t.Errorf("the median fail-over took %v", firsts[2])
	}

	c.KillAll()
	began := time.Now()
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	probe := db.Collection(probeCollection)
	if _, err := probe.Put(ctx, "again", client.D{"v": "again"}); err != nil {
		t.Fatal(err)
	}
	first := time.Since(began)
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("all killed: first write after %v, all ready after %v", first.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	load.Stop()
	report, err := load.Judge(ctx, t.ArtifactDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report)
}
