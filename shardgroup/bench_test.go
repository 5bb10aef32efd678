package shardgroup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/seglog"
)

// Three nodes in this process, real files and fsyncs, puts of 1 KiB documents.
// The load is in the process too, so figures are a little above what a client
// over the network sees and the CPU is shared by all.
func BenchmarkPropose(b *testing.B) {
	for _, groups := range []int{1, 8} {
		for _, clients := range []int{1, 64, 256} {
			b.Run(fmt.Sprintf("groups=%d/clients=%d", groups, clients), func(b *testing.B) {
				c := seeded(b, 3, groups, func(_ placement.NodeID, cfg *Config) { cfg.Timing = Timing{} })
				leaders := spread(c)
				body := raw(b, map[string]any{"v": strings.Repeat("x", 1000)})
				load(b, clients, func(ctx context.Context, i uint64) error {
					r, err := leaders[i%uint64(groups)].Propose(ctx, write(wire.OpPut, fmt.Sprintf("doc-%d", rand.IntN(100000)), body))
					if err == nil && r.Wire.Error != nil {
						err = r.Wire.Error
					}
					return err
				})
			})
		}
	}
}

func BenchmarkReadIndex(b *testing.B) {
	for _, groups := range []int{1, 8} {
		for _, clients := range []int{1, 64} {
			b.Run(fmt.Sprintf("groups=%d/clients=%d", groups, clients), func(b *testing.B) {
				c := seeded(b, 3, groups, func(_ placement.NodeID, cfg *Config) { cfg.Timing = Timing{} })
				leaders := spread(c)
				load(b, clients, func(ctx context.Context, i uint64) error {
					return leaders[i%uint64(groups)].ReadIndex(ctx)
				})
			})
		}
	}
}

// spread puts the groups' leaders on the nodes in turn.
func spread(c *cluster) []*Group {
	var leaders []*Group
	for i, s := range c.specs {
		leaders = append(leaders, c.leadBy(s.ID, c.order[i%len(c.order)]))
	}
	return leaders
}

// load runs b.N operations by some clients and reports latencies.
func load(b *testing.B, clients int, op func(ctx context.Context, i uint64) error) {
	ctx := context.Background()
	var next, failed atomic.Uint64
	took := make([]time.Duration, b.N)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for range clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := next.Add(1) - 1
				if i >= uint64(b.N) {
					return
				}
				begin := time.Now()
				if err := op(ctx, i); err != nil && failed.Add(1) == 1 {
					b.Logf("operation %d: %v", i, err)
				}
				took[i] = time.Since(begin)
			}
		}()
	}
	wg.Wait()
	b.StopTimer()
	if n := failed.Load(); n > 0 {
		b.Errorf("%d of %d operations failed", n, b.N)
	}
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// The log alone: groups that append at the same moment, each waiting for its
// own entry of eight documents of 1 KiB, on real files.
func BenchmarkLogAppend(b *testing.B) {
	for _, groups := range []int{1, 8} {
		for _, size := range []int{1 << 10, 8 << 10} {
			b.Run(fmt.Sprintf("groups=%d/bytes=%d", groups, size), func(b *testing.B) {
				benchmarkLogAppend(b, groups, size)
			})
		}
	}
}

func openBenchLog(b *testing.B) *seglog.Log {
	e, err := openNodeLog(vfs.Default, b.TempDir(), seglog.Options{}, hclog.NewNullLogger(), func(err error) { b.Errorf("fatal: %v", err) })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := e.Close(); err != nil {
			b.Error(err)
		}
	})
	return e
}

func benchmarkLogAppend(b *testing.B, groups, size int) {
	e := openBenchLog(b)
	var stores []*logStore
	for g := range groups {
		stores = append(stores, testStore(b, e, placement.GroupID(g+1)))
	}
	body := make([]byte, size)
	for i := range body {
		body[i] = byte(rand.Uint32())
	}
	took := make([][]time.Duration, groups)
	b.ResetTimer()
	var wg sync.WaitGroup
	var next atomic.Int64
	for g, s := range stores {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := uint64(1); next.Add(1) <= int64(b.N); i++ {
				begin := time.Now()
				if err := s.StoreLog(&raft.Log{Index: i, Term: 1, Data: body}); err != nil {
					b.Error(err)
				}
				took[g] = append(took[g], time.Since(begin))
				// As a snapshot does, so that the log does not only grow.
				if i%4096 == 0 {
					if err := s.DeleteRange(1, i-2048); err != nil {
						b.Error(err)
					}
				}
			}
		}()
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
}
