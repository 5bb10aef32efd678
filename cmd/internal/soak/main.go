// Command soak runs a cluster of the real binary under mixed load and random
// faults for as long as it is told to, judges what the clients saw, and shows
// that goroutines, memory and open files of every node stay flat.
//
//	soak -duration 10m
//
// It exits with 1 when a check fails, and says how to run the same again.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/impossibledb/idb/cmd/internal/chaos"
)

var (
	duration = flag.Duration("duration", 10*time.Minute, "how long to run")
	seed     = flag.Uint64("seed", 0, "choices of clients and faults; 0: from the clock")
	shards   = flag.Int("shards", 8, "shard groups")
	clients  = flag.Int("clients", 8, "clients on shared documents")
	pace     = flag.Duration("pace", 20*time.Millisecond, "how long a client thinks between operations, on average")
	calm     = flag.Duration("calm", 4*time.Second, "time between two faults, on average")
	binary   = flag.String("idb", "", "the idb command; empty: build it")
	dir      = flag.String("dir", "", "keep data and logs there; empty: a temporary directory, removed if all is well")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	fmt.Printf("soak for %v, seed %d (again: -seed %d)\n", *duration, *seed, *seed)
	work := *dir
	if work == "" {
		if work, err = os.MkdirTemp("", "idb-soak-"); err != nil {
			return err
		}
		defer func() {
			if err == nil {
				os.RemoveAll(work)
			} else {
				fmt.Printf("data and logs are in %s\n", work)
			}
		}()
	}
	if work, err = filepath.Abs(work); err != nil {
		return err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	if *binary == "" {
		if *binary, err = chaos.Build(ctx, work); err != nil {
			return err
		}
	}
	setup, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := chaos.Start(setup, chaos.Options{Binary: *binary, Dir: work, Shards: *shards})
	if err != nil {
		return err
	}
	defer c.Close()
	load, err := chaos.StartLoad(setup, c.URL(), chaos.LoadOptions{Clients: *clients, Pace: *pace, Seed: *seed})
	if err != nil {
		return err
	}
	watch := newWatch(c)
	hurtErr := hurt(ctx, c, load, watch)
	load.Stop()
	if hurtErr != nil {
		return fmt.Errorf("%w\n%s", hurtErr, c.LogTails(15))
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
	defer cancel()
	if err := c.Heal(end); err != nil {
		return err
	}
	fmt.Println("the load has ended; judging")
	report, err := load.Judge(end, work)
	if err != nil {
		return err
	}
	fmt.Println(report)
	watch.print()
	return watch.judge()
}

// hurt runs faults until the time is up, a node's resources being looked at
// before each of them, while the cluster is whole.
func hurt(ctx context.Context, c *chaos.Cluster, load *chaos.Load, watch *watch) error {
	rng := rand.New(rand.NewPCG(*seed, 0))
	began := time.Now()
	counts := map[string]int{}
	for time.Since(began) < *duration && ctx.Err() == nil {
		t := time.NewTimer(*calm/2 + time.Duration(rng.Int64N(int64(*calm))))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			continue
		}
		if err := watch.look(ctx, time.Since(began)); err != nil {
			return err
		}
		fault := chaos.Faults[rng.IntN(len(chaos.Faults))]
		if time.Since(began) > *duration/3 {
			// From here on one process lives to the end, so that a slow leak has
			// the time to show.
			c.Spared = c.Nodes[len(c.Nodes)-1]
			if fault.Name == chaos.KillAll.Name {
				fault = chaos.PauseTwo
			}
		}
		counts[fault.Name]++
		from := time.Now()
		bounded, cancel := context.WithTimeout(ctx, time.Minute)
		_, err := fault.Do(bounded, c, rng, load.Progress)
		if err == nil {
			err = load.Progress(bounded, 200) // it works again, for everybody
		}
		cancel()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("after %v, fault %q: %w", time.Since(began).Round(time.Second), fault.Name, err)
		}
		if err := c.Died(); err != nil {
			return err
		}
		fmt.Printf("%7s  %-26s whole again after %v; %d operations so far\n", time.Since(began).Round(time.Second), fault.Name,
			time.Since(from).Round(time.Millisecond), load.Answered())
	}
	fmt.Printf("faults: %v\n", counts)
	return nil
}
