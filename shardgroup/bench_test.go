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

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
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
