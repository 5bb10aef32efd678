package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// LoadOptions shape a load. The zero value works.
type LoadOptions struct {
	// Clients of each workload. Zero means 4.
	Clients int
	// Share, by name of a workload, is its number of clients if not Clients.
	Share map[string]int
	// Patience is how long one operation may take, retries included. Shorter
	// leaves more outcomes unknown. Zero means 20s.
	Patience time.Duration
	// Impatience is which part of the operations, from 0 to 1, have a patience
	// of milliseconds, so that some answers are lost without any fault.
	Impatience float64
	// Pace is how long a client thinks between two operations, on average.
	// Zero: not at all.
	Pace time.Duration
	// Operations bounds what one client does. Zero: until it is stopped.
	Operations int
	// Seed makes the choices; zero means 1.
	Seed uint64
}

func (o LoadOptions) withDefaults() LoadOptions {
	if o.Clients == 0 {
		o.Clients = 4
	}
	if o.Patience == 0 {
		o.Patience = 20 * time.Second
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	return o
}

// Counts are how operations ended so far.
type Counts struct {
	Answered, Refused, Unknown int64
}

// Load is clients at work.
type Load struct {
	o         LoadOptions
	workloads []Workload
	counts    []counts // by workload
	ends      chan struct{}
	once      sync.Once
	wg        sync.WaitGroup // the clients
	idle      chan struct{}  // closed when the last client has ended
}

type counts struct{ answered, refused, unknown atomic.Int64 }

// Start makes the collections and starts the clients, spread over the
// connections. Stop must be called unless it fails.
func Start(ctx context.Context, dbs []*client.DB, o LoadOptions, ws ...Workload) (*Load, error) {
	if len(dbs) == 0 || len(ws) == 0 {
		return nil, errors.New("a load needs a connection and a workload")
	}
	l := &Load{
		o: o.withDefaults(), workloads: ws, counts: make([]counts, len(ws)),
		ends: make(chan struct{}), idle: make(chan struct{}),
	}
	for _, w := range ws {
		if err := w.Setup(ctx, dbs[0]); err != nil {
			return nil, err
		}
	}
	number := 0
	for i, w := range ws {
		clients := l.o.Clients
		if n, ok := l.o.Share[w.Name()]; ok {
			clients = n
		}
		for range clients {
			s := Session{
				Number: number, DB: dbs[number%len(dbs)], All: dbs,
				Rng: rand.New(rand.NewPCG(l.o.Seed, uint64(number))), Again: l.o.Patience,
			}
			number++
			step := w.Client(s)
			l.wg.Go(func() { l.client(&l.counts[i], s.Rng, step) })
		}
	}
	// Ends when the clients do, which Stop waits for.
	go func() {
		l.wg.Wait()
		close(l.idle)
	}()
	return l, nil
}

// client does one step after the other until the load ends.
func (l *Load) client(c *counts, rng *rand.Rand, step Step) {
	for n := 0; l.o.Operations == 0 || n < l.o.Operations; n++ {
		select {
		case <-l.ends:
			return
		default:
		}
		patience := l.o.Patience
		if l.o.Impatience > 0 && rng.Float64() < l.o.Impatience {
			patience = time.Duration(1+rng.IntN(20)) * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		outcome := step(ctx)
		cancel()
		switch outcome {
		case history.Refused:
			c.refused.Add(1)
		case history.Unknown:
			c.unknown.Add(1)
		default:
			c.answered.Add(1)
		}
		if l.o.Pace > 0 {
			t := time.NewTimer(time.Duration(rng.Int64N(int64(2 * l.o.Pace))))
			select {
			case <-t.C:
			case <-l.ends:
				t.Stop()
			}
		}
	}
}

// Counts are how operations ended so far, by workload.
func (l *Load) Counts() map[string]Counts {
	all := map[string]Counts{}
	for i, w := range l.workloads {
		c := &l.counts[i]
		all[w.Name()] = Counts{c.answered.Load(), c.refused.Load(), c.unknown.Load()}
	}
	return all
}

// Answered is how many operations were answered so far, reads included.
func (l *Load) Answered() int64 {
	sum := int64(0)
	for i := range l.counts {
		sum += l.counts[i].answered.Load()
	}
	return sum
}

// Progress waits until that many more operations were answered.
func (l *Load) Progress(ctx context.Context, operations int) error {
	from := l.Answered()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		done := l.Answered() - from
		if done >= int64(operations) {
			return nil
		}
		select {
		case <-tick.C:
		case <-l.idle:
			return fmt.Errorf("%d of %d operations were answered, and the clients have ended", done, operations)
		case <-ctx.Done():
			return fmt.Errorf("%d of %d operations were answered: %w", done, operations, ctx.Err())
		}
	}
}

// Wait waits until every client has done its share or ctx ends.
func (l *Load) Wait(ctx context.Context) error {
	select {
	case <-l.idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop ends the clients after their operations under way. It may be called
// more than once.
func (l *Load) Stop() {
	l.once.Do(func() { close(l.ends) })
	<-l.idle
}

// Judge reads everything back, once the load has stopped and the cluster is
// whole, and judges what the clients were told.
func (l *Load) Judge(ctx context.Context, db *client.DB) []Verdict {
	var all []Verdict
	for i, w := range l.workloads {
		c := &l.counts[i]
		v := Verdict{Workload: w.Name(), Counts: Counts{c.answered.Load(), c.refused.Load(), c.unknown.Load()}}
		if err := w.Final(ctx, db); err != nil {
			v.Checks = append(v.Checks, history.Verdict{
				Checker: "reads at rest", Judged: "reads of the whole cluster after the load",
				Anomalies: []history.Anomaly{{Name: "unreadable", Text: err.Error()}},
			})
		}
		v.Checks = append(v.Checks, w.Judge()...)
		all = append(all, v)
	}
	return all
}

// Workloads are those of the load.
func (l *Load) Workloads() []Workload { return l.workloads }

// Cleanup drops all collections.
func (l *Load) Cleanup(ctx context.Context, db *client.DB) error {
	var failed []error
	for _, w := range l.workloads {
		failed = append(failed, w.Cleanup(ctx, db))
	}
	return errors.Join(failed...)
}
