package main

import (
	"context"
	"fmt"
	"log"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type worker struct {
	lat, rlat, ulat []int64
	ops, errs, ab   int64
	longest         int64 // of all operations, also of those that failed
	lastErr         error
}

func drive(ctx context.Context, p Peer) {
	var measuring, stop atomic.Bool
	var total atomic.Int64
	ws := make([]worker, *fC)
	var wg sync.WaitGroup
	if *fWork == "T" {
		if err := need[Transferer](p).SetupAccounts(ctx, *fAcct); err != nil {
			log.Fatal("accounts: ", err)
		}
	}
	for i := range ws {
		wg.Add(1)
		go func() {
			defer wg.Done()
			w := &ws[i]
			op := makeOp(p, i)
			var patience patience
			defer patience.end()
			for !stop.Load() && total.Add(1) < *fMaxOps {
				t := time.Now()
				kind, ab, err := op(patience.from(ctx, t))
				d := time.Since(t).Nanoseconds()
				if !measuring.Load() || stop.Load() {
					continue
				}
				w.ab += int64(ab)
				w.longest = max(w.longest, d)
				if err != nil {
					w.errs++
					w.lastErr = err
					time.Sleep(time.Millisecond)
					continue
				}
				w.ops++
				w.lat = append(w.lat, d)
				switch kind {
				case 'r':
					w.rlat = append(w.rlat, d)
				case 'u':
					w.ulat = append(w.ulat, d)
				}
			}
		}()
	}
	time.Sleep(*fWarm)
	s0, c0, b0 := sampleDir(*fPidDir), selfCPU(), busyCPU()
	measuring.Store(true)
	t0 := time.Now()
	time.Sleep(*fDur)
	stop.Store(true)
	el := time.Since(t0).Seconds()
	s1, c1, b1 := sampleDir(*fPidDir), selfCPU(), busyCPU()
	wg.Wait()
	r := result{Label: *fLabel, Workload: *fWork, Dist: *fDist, Mode: *fMode, C: *fC, Secs: el}
	if r.Label == "" {
		r.Label = *fPeer
	}
	var lat, rl, ul []int64
	var lastErr error
	for i := range ws {
		r.Ops += ws[i].ops
		r.Errs += ws[i].errs
		r.Aborts += ws[i].ab
		r.Longest = max(r.Longest, float64(ws[i].longest)/1e6)
		lat = append(lat, ws[i].lat...)
		rl = append(rl, ws[i].rlat...)
		ul = append(ul, ws[i].ulat...)
		if ws[i].lastErr != nil {
			lastErr = ws[i].lastErr
		}
	}
	r.OpsPerSec = float64(r.Ops) / el
	r.P50, r.P95, r.P99, r.Max = pct(lat, .5), pct(lat, .95), pct(lat, .99), pct(lat, 1)
	if len(rl) > 0 && len(ul) > 0 {
		r.ReadP50, r.ReadP99, r.UpdP50, r.UpdP99 = pct(rl, .5), pct(rl, .99), pct(ul, .5), pct(ul, .99)
	}
	k := float64(max(r.Ops, 1)) / 1000
	r.SrvCPUPerK = (s1.cpu - s0.cpu) / k
	r.SrvCores = (s1.cpu - s0.cpu) / el
	r.CliCPUPerK = (c1 - c0) / k
	r.OtherCores = (b1 - b0 - (s1.cpu - s0.cpu) - (c1 - c0)) / el
	r.WriteKiBPerOp = float64(s1.wbytes-s0.wbytes) / 1024 / float64(max(r.Ops, 1))
	r.RSSMiB, r.DiskMiB = s1.rss, s1.disk
	if lastErr != nil {
		r.Note = fmt.Sprintf("last error: %.120v", lastErr)
	}
	if t, ok := p.(Transferer); ok && *fWork == "T" {
		r.Accounts = *fAcct
		sum, err := t.Total(ctx, *fAcct)
		if r.Conserved = err == nil && sum == int64(*fAcct)*initialBalance; r.Conserved {
			r.Note += " total conserved"
		} else {
			r.Note += fmt.Sprintf(" TOTAL %d WRONG (%v)", sum, err)
		}
	}
	emit(r)
}

// patience is a context of ten seconds, or up to eleven: all operations of a
// worker that begin within a second share it. One for each would be work of this
// program, and a timer, that no database asks for.
type patience struct {
	ctx    context.Context
	cancel context.CancelFunc
	until  time.Time
}

func (p *patience) from(parent context.Context, now time.Time) context.Context {
	if now.After(p.until) {
		p.end()
		p.ctx, p.cancel = context.WithTimeout(parent, 11*time.Second)
		p.until = now.Add(time.Second)
	}
	return p.ctx
}

func (p *patience) end() {
	if p.cancel != nil {
		p.cancel()
	}
}

// makeOp returns one client's closed-loop step: kind ('r' or 'u'), aborts, error.
func makeOp(p Peer, w int) func(context.Context) (byte, int, error) {
	rng := newRand(int64(w)*7919 + time.Now().UnixNano())
	next := chooser(rng, *fDist, *fN)
	encode := encoding(p)
	buf := make([]byte, 0, *fSize+64)
	put := func(ctx context.Context) (byte, int, error) {
		i := next()
		buf = encode(buf[:0], i, rng, *fSize)
		return 'u', 0, p.Put(ctx, w, key(i), buf)
	}
	get := func(ctx context.Context) (byte, int, error) {
		v, err := p.Get(ctx, w, key(next()))
		if err == nil && len(v) == 0 {
			err = fmt.Errorf("empty value")
		}
		return 'r', 0, err
	}
	mix := func(reads int) func(context.Context) (byte, int, error) {
		return func(ctx context.Context) (byte, int, error) {
			if rng.Intn(100) < reads {
				return get(ctx)
			}
			return put(ctx)
		}
	}
	switch *fWork {
	case "W":
		return put
	case "R":
		return get
	case "RS":
		s := need[StaleGetter](p)
		return func(ctx context.Context) (byte, int, error) {
			v, err := s.GetStale(ctx, w, key(next()))
			if err == nil && len(v) == 0 {
				err = fmt.Errorf("empty value")
			}
			return 'r', 0, err
		}
	case "A":
		return mix(50)
	case "B":
		return mix(95)
	case "F":
		c := need[CASer](p)
		return func(ctx context.Context) (byte, int, error) {
			i := next()
			n, err := c.RMW(ctx, w, key(i), func([]byte) []byte {
				buf = encode(buf[:0], i, rng, *fSize)
				return buf
			})
			return 'u', n, err
		}
	case "T":
		t := need[Transferer](p)
		account := chooser(rng, *fDist, *fAcct)
		return func(ctx context.Context) (byte, int, error) {
			a, b := account(), account()
			for b == a {
				b = account()
			}
			n, err := t.Transfer(ctx, w, a, b, 1)
			return 'u', n, err
		}
	case "I": // insert new documents
		n, t0 := 0, time.Now().UnixNano()
		return func(ctx context.Context) (byte, int, error) {
			n++
			buf = encode(buf[:0], 10_000_000+w*100_000+n, rng, *fSize)
			return 'u', 0, need[Inserter](p).Insert(ctx, w, fmt.Sprintf("new%d-%d-%d", t0, w, n), buf)
		}
	}
	if strings.HasPrefix(*fWork, "Q") {
		q := need[Queryer](p)
		return func(ctx context.Context) (byte, int, error) {
			n, err := q.Query(ctx, w, (*fWork)[1:], rng)
			if err == nil && n == 0 {
				err = fmt.Errorf("query returned nothing")
			}
			return 'r', 0, err
		}
	}
	log.Fatalf("unknown workload %q", *fWork)
	return nil
}

func pct(x []int64, q float64) float64 {
	if len(x) == 0 {
		return 0
	}
	sort.Slice(x, func(i, j int) bool { return x[i] < x[j] })
	return float64(x[min(int(q*float64(len(x))), len(x)-1)]) / 1e6
}
