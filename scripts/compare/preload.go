package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

func preload(ctx context.Context, p Peer) {
	t0 := time.Now()
	b, isBatch := p.(Batcher)
	size := 1
	if isBatch {
		size = b.BatchSize()
	}
	encode := encoding(p)
	var next atomic.Int64
	var firstErr atomic.Value
	var wg sync.WaitGroup
	for w := 0; w < *fC; w++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := newRand(int64(w) + 1)
			for ctx.Err() == nil {
				lo := int(next.Add(int64(size))) - size
				hi := min(lo+size, *fN)
				if lo >= *fN {
					return
				}
				var ks []string
				var vs [][]byte
				for i := lo; i < hi; i++ {
					ks = append(ks, key(i))
					vs = append(vs, encode(nil, i, rng, *fSize))
				}
				var err error
				for try := 0; try < 20 && ctx.Err() == nil; try++ {
					if isBatch {
						err = b.PutBatch(ctx, w, ks, vs)
					} else {
						err = p.Put(ctx, w, ks[0], vs[0])
					}
					if err == nil {
						break
					}
					time.Sleep(50 * time.Millisecond)
				}
				if err != nil {
					firstErr.CompareAndSwap(nil, err)
				}
			}
		}()
	}
	wg.Wait()
	s := sampleDir(*fPidDir)
	fmt.Printf("preload %s n=%d batch=%d in %.1fs (%.0f docs/s) rss %v disk %v err=%v ctx=%v\n", *fPeer, *fN, size,
		time.Since(t0).Seconds(), float64(*fN)/time.Since(t0).Seconds(), s.rss, s.disk, firstErr.Load(), ctx.Err())
}
