package route

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/impossibledb/idb/client/wire"
)

// pollGrace is how much later than it promised a node may answer a poll.
const pollGrace = 5 * time.Second

// watch asks one node after the other for a topology newer than ours. While no
// node can be reached it goes back to the addresses the client was given.
func (c *Cluster) watch() {
	wait := backoff{min: 50 * time.Millisecond, max: 2 * time.Second}
	var not *node
	for c.base.Err() == nil {
		if !c.reachable() {
			_ = c.seek(c.base)
		}
		// Not for ever: the nodes may have moved to addresses that only the
		// ones we were given can tell.
		ctx, cancel := context.WithTimeout(c.base, c.opt.DialTimeout)
		n, err := c.anyNode(ctx, not)
		cancel()
		if err != nil {
			continue
		}
		began := time.Now()
		_ = c.watchAt(n)
		if not = n; time.Since(began) > wait.max {
			wait.reset()
		}
		if c.sleep(c.base, wait.next()) != nil {
			return
		}
	}
}

// watchAt polls one node until it fails. The poll has a connection of its own:
// on one with requests, it would always be the other request that is under
// way, and a lone request is sent faster than one in company.
func (c *Cluster) watchAt(n *node) error {
	conn, err := c.open(c.base, n.addr(), 0)
	if err != nil {
		return err
	}
	defer conn.Close()
	pace := backoff{min: 50 * time.Millisecond, max: 2 * time.Second}
	for {
		began := time.Now()
		ctx, cancel := context.WithTimeout(c.base, c.opt.Poll+pollGrace)
		err := c.poll(ctx, conn, c.opt.Poll)
		cancel()
		if err != nil {
			return err
		}
		if n.is() == nodeGone {
			return nil
		}
		// Answers at once, again and again, are of a node that does not hold
		// polls, or of a storm of changes: both are asked at a slower pace.
		if time.Since(began) > time.Second {
			pace.reset()
		} else if err := c.sleep(c.base, pace.next()); err != nil {
			return err
		}
	}
}

// poll asks one node for a newer topology, which it may hold back for hold.
func (c *Cluster) poll(ctx context.Context, conn *wire.Conn, hold time.Duration) error {
	var ask wire.TopologyRequest
	if v := c.view.Load(); v != nil && hold > 0 {
		ask = wire.TopologyRequest{
			HaveEpoch:   v.Topology.Epoch,
			HaveCatalog: v.Topology.Catalog,
			WaitMillis:  uint32(hold / time.Millisecond),
		}
	}
	var t wire.Topology
	if err := conn.Do(ctx, wire.KindTopology, &ask, &t); err != nil {
		return err
	}
	c.install(&t)
	return nil
}

// refresh asks nodes for their topology, first the given one if it is not nil,
// until one answers with an epoch of at least want. It ends early with the
// refusal of a node that has none.
func (c *Cluster) refresh(ctx context.Context, first *node, want uint64) error {
	var not *node
	var last error
	wait := backoff{min: 10 * time.Millisecond, max: 100 * time.Millisecond}
	for try := 0; try <= 2*max(1, c.nodeCount()); try++ {
		n, err := first, error(nil)
		if n == nil || !n.usable() {
			if n, err = c.anyNode(ctx, not); err != nil {
				return errors.Join(last, err)
			}
		}
		first = nil
		var conn *wire.Conn
		if conn, last = n.pick(ctx); last == nil {
			last = c.poll(ctx, conn, 0)
		}
		if last == nil {
			if v := c.view.Load(); v != nil && v.Topology.Epoch >= want {
				return nil
			}
		}
		not = n
		var refusal *wire.Error
		if errors.As(last, &refusal) && refusal.Code == wire.CodeNotInitialised && c.view.Load() == nil {
			return last
		}
		if err := c.sleep(ctx, wait.next()); err != nil {
			return errors.Join(last, err)
		}
	}
	return last
}

// flight lets many callers share one call.
type flight struct {
	mu   sync.Mutex
	done chan struct{} // nil: nobody is under way
}

// hurryUp bounds how long a request waits for a newer topology before it is
// simply sent again.
const hurryUp = time.Second

// hurry fetches a topology of at least the epoch, now, and first from the node
// that has it; callers share one fetch.
func (c *Cluster) hurry(ctx context.Context, first *node, want uint64) {
	c.refreshing.mu.Lock()
	done := c.refreshing.done
	if done == nil {
		done = make(chan struct{})
		c.refreshing.done = done
		if !c.start(func() {
			ctx, cancel := context.WithTimeout(c.base, hurryUp)
			_ = c.refresh(ctx, first, want)
			cancel()
			c.refreshing.mu.Lock()
			c.refreshing.done = nil
			c.refreshing.mu.Unlock()
			close(done)
		}) {
			c.refreshing.done = nil
			close(done)
		}
	}
	c.refreshing.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
	case <-c.base.Done():
	}
}

// Refresh fetches the topology now. It is how a caller sees a change that it
// has just made.
func (c *Cluster) Refresh(ctx context.Context) error { return c.refresh(ctx, nil, 0) }
