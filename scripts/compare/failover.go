package main

import (
	"context"
	"fmt"
	"log"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ready polls, with fresh connections each time (no client back-off counted),
// until a put and a linearizable get both succeed.
func ready(ctx context.Context, cfg Config) {
	t0 := time.Now()
	if *fSince > 0 {
		t0 = time.UnixMilli(*fSince)
	}
	rng := newRand(1)
	for w := 0; ctx.Err() == nil; w++ {
		p := newPeer(*fPeer)
		c, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := p.Open(c, cfg)
		cancel()
		if err == nil {
			c, cancel := context.WithTimeout(ctx, 150*time.Millisecond)
			if err = p.Put(c, w, key(1), encoding(p)(nil, 1, rng, *fSize)); err == nil {
				_, err = p.Get(c, w, key(1))
			}
			cancel()
			p.Close()
		}
		if err == nil {
			fmt.Printf("ready %s after %.0f ms\n", *fPeer, float64(time.Since(t0).Microseconds())/1000)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println("not ready in time")
}

// failover runs writers, kills the leader's process and reports the time to the
// first write that was issued after the kill and succeeded.
func failover(ctx context.Context, p Peer, cfg Config) {
	li, err := need[Leaderer](p).Leader(ctx)
	if err != nil {
		log.Fatal("leader: ", err)
	}
	pid := readPid(*fPidDir, li+1)
	if pid <= 1 {
		log.Fatal("no pid")
	}
	// Of a peer with many leaders, only keys that the victim leads are written:
	// the others would be answered at once.
	affected := func(string) bool { return true }
	if pl, ok := p.(Placer); ok {
		ledBy, err := pl.LedBy(ctx)
		if err != nil {
			log.Fatal("leaders: ", err)
		}
		affected = func(k string) bool { return ledBy(k) == li }
	}
	encode := encoding(p)
	var killed atomic.Int64
	first := make(chan time.Time, *fC)
	var stop atomic.Bool
	var before, after, errs atomic.Int64
	var wg sync.WaitGroup
	for i := 0; i < *fC; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := newRand(int64(i))
			for w := i; !stop.Load(); {
				k := killed.Load()
				c, cancel := context.WithTimeout(ctx, time.Duration(100+rng.Intn(60))*time.Millisecond) // short and staggered: the resolution
				n := rng.Intn(*fN)
				for !affected(key(n)) {
					n = rng.Intn(*fN)
				}
				err := p.Put(c, w, key(n), encode(nil, n, rng, *fSize))
				cancel()
				switch {
				case err != nil:
					errs.Add(1)
					w++ // try another node
					time.Sleep(2 * time.Millisecond)
				case k > 0:
					after.Add(1)
					select {
					case first <- time.Now():
					default:
					}
				default:
					before.Add(1)
				}
			}
		}()
	}
	time.Sleep(2 * time.Second)
	t0 := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		log.Fatal(err)
	}
	for alive(pid) && time.Since(t0) < time.Second {
		time.Sleep(200 * time.Microsecond)
	}
	killed.Store(1)
	select {
	case t := <-first:
		fmt.Printf("failover %s leader=%d first write %.0f ms after kill (before %d)\n", *fPeer, li+1, float64(t.Sub(t0).Microseconds())/1000, before.Load())
	case <-time.After(40 * time.Second):
		fmt.Println("failover: no write in 40 s")
	}
	time.Sleep(time.Second)
	stop.Store(true)
	wg.Wait()
}
