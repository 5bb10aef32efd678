package sim

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/impossibledb/idb/cmd/internal/workload"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run this seed only")
	seedsFlag = flag.Int("seeds", 150, "how many seeds to run")
	firstFlag = flag.Uint64("first", 1, "the first of them")
	loadFlag  = flag.String("load", "", "workloads to choose from, separated by commas; empty: all")
	outFlag   = flag.String("out", filepath.Join(os.TempDir(), "idb-sim"), "where the plan and the pictures of a failure go")
)

// standstill is for how long in real time virtual time may stand still. A
// goroutine that waits for a mutex whose holder waits for time stops it for
// ever; a busy machine stops it for a while.
const standstill = 2 * time.Minute

// play runs a plan in a bubble of its own and judges it.
func play(t *testing.T, p *Plan, seed uint64) (res *Result) {
	t.Helper()
	var passed atomic.Int64 // virtual time, in steps
	over := make(chan struct{})
	defer close(over)
	go func() {
		tick := time.NewTicker(standstill / 10)
		defer tick.Stop()
		for seen, since := int64(-1), 0; ; {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			if now := passed.Load(); now != seen || now < 0 {
				seen, since = now, 0
			} else if since++; since >= 10 {
				buf := make([]byte, 16<<20)
				buf = buf[:runtime.Stack(buf, true)]
				fmt.Fprintf(os.Stderr, "%s stands still in virtual time\n%s\n%s\n", t.Name(), p, buf)
				os.Exit(3)
			}
		}
	}()
	// A panic of the nodes ends every run of the process; with
	// GODEBUG=tracebacklabels=1 the trace names this one.
	pprof.Do(context.Background(), pprof.Labels("run", t.Name()), func(ctx context.Context) {
		var err error
		synctest.Test(t, func(t *testing.T) {
			done := make(chan struct{})
			var clock sync.WaitGroup
			clock.Go(func() {
				tick := time.NewTicker(100 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
						passed.Add(1)
					case <-done:
						return
					}
				}
			})
			res, err = Run(ctx, p, seed, testLog())
			close(done)
			clock.Wait()
		})
		passed.Store(math.MinInt64) // what follows is in real time
		if err != nil {
			t.Fatalf("the run could not be made: %v\n%s", err, p)
		}
	})
	res.Judge()
	totals.add(res)
	return res
}

// totals are what all runs together have done.
var totals sum

type sum struct {
	mu               sync.Mutex
	runs, replayed   int
	answered, events int64
	virtual, slowest time.Duration
}

func (s *sum) add(r *Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs++
	s.replayed += r.Replayed
	s.answered += r.Answered
	s.events += int64(r.Events)
	s.virtual += r.Virtual
	s.slowest = max(s.slowest, r.Resumed)
}

func (s *sum) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%d runs, %.1f virtual hours, %d operations answered, %d faults and repairs, %d logs replayed, writes went on after %v at most",
		s.runs, s.virtual.Hours(), s.answered, s.events, s.replayed, s.slowest.Round(time.Millisecond))
}

// fail prints a failure at once and leaves what helps to understand it.
func fail(t *testing.T, p *Plan, res *Result, again string) {
	t.Fail()
	name := filepath.Base(t.Name())
	text := fmt.Sprintf("\n%s fails\n%s", t.Name(), res.Report(p, again))
	path := filepath.Join(*outFlag, name+".html")
	var page bytes.Buffer
	err := errors.Join(res.Page(p, t.Name(), again).WriteHTML(&page), os.MkdirAll(*outFlag, 0o755))
	if err = errors.Join(err, os.WriteFile(path, page.Bytes(), 0o644)); err != nil {
		text += err.Error() + "\n"
	} else {
		text += "picture: " + path + "\n"
	}
	fmt.Println(text)
}

// TestSeeds runs random plans.
func TestSeeds(t *testing.T) {
	first, n := *firstFlag, *seedsFlag
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	} else if testing.Short() {
		n = min(n, 8)
	}
	names := workload.Names()
	if *loadFlag != "" {
		names = strings.Split(*loadFlag, ",")
	}
	t.Run("run", func(t *testing.T) {
		for seed := first; seed < first+uint64(n); seed++ {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				p := RandomPlan(seed, names)
				res := play(t, p, seed)
				if res.Err() != nil {
					fail(t, p, res, again(seed))
				} else if *seedFlag != 0 {
					t.Logf("\n%s\n%s", p, res)
				}
			})
		}
	})
	fmt.Println("simulated so far:", &totals)
}

// again says how a seed is run again.
func again(seed uint64) string {
	s := fmt.Sprintf("make sim SEED=%d", seed)
	if *loadFlag != "" {
		s += " LOAD=" + *loadFlag
	}
	return s
}

// TestScenarios runs the plans that were written down.
func TestScenarios(t *testing.T) {
	const dir = "../../../testdata/scenarios"
	files, err := filepath.Glob(dir + "/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios in", dir, err)
	}
	for _, file := range files {
		name := filepath.Base(file[:len(file)-len(".txt")])
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p, err := ParsePlan(string(text))
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			res := play(t, p, 1)
			if res.Err() != nil {
				fail(t, p, res, fmt.Sprintf("go test ./cmd/internal/sim -run 'TestScenarios/^%s$'", name))
			} else if testing.Verbose() {
				t.Logf("\n%s\n%s", p, res)
			}
		})
	}
}

// TestSimulatorSees: what no database survives is noticed. Without this, a
// simulator that hurts nobody would pass everything.
func TestSimulatorSees(t *testing.T) {
	for _, tc := range []struct{ name, plan, want string }{
		{"lost syncs", `
load set register
lasts 8s
2s  lie disk all
4s  power off all
5s  start all`, ""},
		{"a majority that forgets", `
load set
lasts 9s
2s  lie disk n1 n2
4s  power off n1 n2
5s  kill n3
5s  start n1 n2
6.5s  start n3`, ""},
		{"writes that do not come back", `
load set
lasts 4s
1s  kill n1 n2`, "within"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p, err := ParsePlan(tc.plan)
			if err != nil {
				t.Fatal(err)
			}
			if tc.want == "within" {
				p.unhealed = true
			}
			res := play(t, p, 1)
			if res.Err() == nil || !strings.Contains(res.Err().Error(), tc.want) {
				t.Errorf("nothing was noticed: %v\n%s", res.Err(), res)
			}
		})
	}
}
