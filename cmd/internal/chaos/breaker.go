package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/report"
	"github.com/impossibledb/idb/cmd/internal/workload"
)

// Breaker breaks a cluster for package verify: faults one after the other, in
// shuffled rounds, so that a short run meets every kind.
type Breaker struct {
	c      *Cluster
	faults []Fault
	rng    *rand.Rand
	kinds  []string // in the order in which they come next

	mu  sync.Mutex
	now string // guarded by mu
}

// calm is how long the cluster is left alone between two faults, at most.
const calm = 1500 * time.Millisecond

// servesAgain is how long it may take to serve everybody again after a fault.
const servesAgain = 45 * time.Second

// NewBreaker makes a breaker of these kinds of faults, each of which the
// cluster must be able to bear.
func NewBreaker(c *Cluster, kinds []string, seed uint64) *Breaker {
	return &Breaker{c: c, faults: AllFaults(kinds), rng: rand.New(rand.NewPCG(seed, 0xb4ea)), kinds: append([]string(nil), kinds...)}
}

// Now says what is being done.
func (b *Breaker) Now() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

func (b *Breaker) set(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = what
}

// Break hurts until ctx ends.
func (b *Breaker) Break(ctx context.Context, load *workload.Load, start time.Time, note func(report.Fault)) error {
	for turn := 0; ; turn++ {
		b.set("")
		pause(ctx, calm/3+time.Duration(b.rng.Int64N(int64(calm*2/3))))
		if ctx.Err() != nil {
			return nil
		}
		f := b.next(turn)
		b.set(f.Name)
		from := time.Since(start)
		bounded, cancel := context.WithTimeout(ctx, servesAgain)
		target, err := f.Do(bounded, b.c, b.rng, load.Progress)
		note(report.Fault{Name: f.Name, Target: target, From: from, To: time.Since(start)})
		if err == nil {
			b.set("after " + f.Name)
			err = load.Progress(bounded, 50) // it works again
		}
		cancel()
		if died := b.c.Died(); died != nil {
			return died
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("after fault %q (%s) the cluster did not serve again: %w\n%s", f.Name, target, err, b.c.LogTails(8))
		}
	}
}

// next is a fault of each kind in turn, the kinds in another order each time.
func (b *Breaker) next(turn int) Fault {
	if turn%len(b.kinds) == 0 {
		b.rng.Shuffle(len(b.kinds), func(i, j int) { b.kinds[i], b.kinds[j] = b.kinds[j], b.kinds[i] })
	}
	kind := b.kinds[turn%len(b.kinds)]
	var of []Fault
	for _, f := range b.faults {
		if f.Kind == kind {
			of = append(of, f)
		}
	}
	return of[b.rng.IntN(len(of))]
}

// Heal makes the cluster whole.
func (b *Breaker) Heal(ctx context.Context) error {
	b.set("")
	bounded, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := b.c.Heal(bounded); err != nil {
		return err
	}
	return b.c.Died()
}

// anyLeader is a node that leads a group; -1 if nobody can be asked.
func (c *Cluster) anyLeader(ctx context.Context, rng *rand.Rand) int {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	db, err := client.Dial(ctx, c.URL())
	if err != nil {
		return -1
	}
	defer db.Close()
	status, err := db.Status(ctx)
	if err != nil {
		return -1
	}
	leaders := Leaders(status)
	for _, g := range rng.Perm(len(status.Topology.Groups)) {
		id := status.Topology.Groups[g].ID
		for i, n := range c.Nodes {
			if n.ID == leaders[id] {
				return i
			}
		}
	}
	return -1
}
