package route

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/impossibledb/idb/client/wire"
)

// ErrClosed: the Cluster was closed.
var ErrClosed = errors.New("client is closed")

// Cluster is a client's knowledge of a cluster and its connections to it. It is
// safe for concurrent use.
//
// Invariant: every goroutine it starts is joined by Close.
type Cluster struct {
	opt   Options
	clock *Clock
	view  atomic.Pointer[View] // nil until a topology has arrived

	base context.Context // ends at Close
	stop context.CancelFunc
	bg   sync.WaitGroup

	changed signal // fired when a node's state or the view changes
	turn    atomic.Uint32
	counts  counters
	life    lifetimes

	refreshing flight

	mu        sync.Mutex
	closed    bool             // guarded by mu
	nodes     map[string]*node // by node ID; guarded by mu
	clusterID string           // expected, or learned from the first node; guarded by mu
}

type counters struct {
	requests, attempts, unknown atomic.Uint64
}

// Counts are what a Cluster has done since it was opened.
type Counts struct {
	Requests  uint64 // calls of Do and Stream
	Attempts  uint64 // frames sent for them
	Unknown   uint64 // requests that ended with an unknown outcome
	Nodes     int    // nodes known
	Connected int    // of them, with a connection
}

// Open connects to the first of the addresses that answers and learns the rest
// of the cluster from it. It tries until ctx ends; the error then says what
// every address answered. A node that belongs to no cluster yet is enough.
func Open(ctx context.Context, opt Options) (*Cluster, error) {
	opt = opt.withDefaults()
	if err := opt.validate(); err != nil {
		return nil, err
	}
	c := &Cluster{opt: opt, clock: newClock(), nodes: make(map[string]*node), clusterID: opt.ClusterID}
	c.base, c.stop = context.WithCancel(context.Background())

	wait := backoff{min: 50 * time.Millisecond, max: time.Second}
	for {
		err := c.seek(ctx)
		if err == nil {
			break
		}
		var refusal *wire.Error
		if errors.As(err, &refusal) && judge(refusal.Code, false, false) == final {
			c.Close()
			return nil, err
		}
		if c.sleep(ctx, wait.next()) != nil {
			c.Close()
			return nil, fmt.Errorf("no node answered: %w (check the addresses and that the nodes run)", err)
		}
	}
	// An error here is a node without a cluster, or one that has just gone: the
	// watch goes on asking, and requests say what is wrong.
	_ = c.refresh(ctx, nil, 0)
	c.start(c.watch)
	return c, nil
}

// Close ends every connection and joins every goroutine. Requests under way
// fail with ErrClosed.
func (c *Cluster) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.bg.Wait()
	c.life.close()
}

// start runs f in a goroutine that Close joins; false after Close.
func (c *Cluster) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.bg.Go(f)
	return true
}

// Clock is the estimate of the servers' clock, the base of request IDs.
func (c *Cluster) Clock() *Clock { return c.clock }

// View is the current topology; nil while the cluster is not initialised.
func (c *Cluster) View() *View { return c.view.Load() }

// Counts reads the counters.
func (c *Cluster) Counts() Counts {
	out := Counts{
		Requests: c.counts.requests.Load(),
		Attempts: c.counts.attempts.Load(),
		Unknown:  c.counts.unknown.Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		out.Nodes++
		if n.is() == nodeUp {
			out.Connected++
		}
	}
	return out
}

// open connects to an address and says hello. KeepAlive is wire's.
func (c *Cluster) open(ctx context.Context, addr string, keepAlive time.Duration) (*wire.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.DialTimeout)
	defer cancel()
	nc, err := c.opt.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	expect := c.clusterID
	c.mu.Unlock()
	conn := wire.NewConn(nc, wire.ConnOptions{KeepAlive: keepAlive})
	hello, err := conn.Handshake(ctx, wire.Hello{Client: c.opt.Name, ClusterID: expect})
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	c.clock.Observe(hello.Now)
	if hello.ClusterID != "" {
		c.mu.Lock()
		if c.clusterID == "" {
			c.clusterID = hello.ClusterID
		}
		c.mu.Unlock()
	}
	return conn, nil
}

// seek tries all addresses at once and ends with the first that answers; later
// ones become connections too.
func (c *Cluster) seek(ctx context.Context) error {
	results := make(chan error, len(c.opt.Addrs))
	for _, a := range c.opt.Addrs {
		ok := c.start(func() {
			l, err := c.open(c.base, a, c.opt.Silence)
			if err == nil {
				c.adopt(a, l)
			}
			results <- err
		})
		if !ok {
			return ErrClosed
		}
	}
	var failed []string
	var last error
	for range c.opt.Addrs {
		select {
		case err := <-results:
			if err == nil {
				return nil
			}
			last = err
			text := err.Error()
			failed = append(failed, text)
		case <-ctx.Done():
			if last == nil {
				last = fmt.Errorf("%s: no answer yet", strings.Join(c.opt.Addrs, ", "))
			}
			return last
		case <-c.base.Done():
			return ErrClosed
		}
	}
	if len(failed) == 1 {
		return last
	}
	return &seekError{text: strings.Join(failed, "; "), last: last}
}

// seekError is what every address answered.
type seekError struct {
	text string
	last error
}

func (e *seekError) Error() string { return e.text }
func (e *seekError) Unwrap() error { return e.last }

// adopt makes a connection that was opened by address the node's first link.
func (c *Cluster) adopt(addr string, l *wire.Conn) {
	id := l.Hello().NodeID
	if id == "" {
		id = addr
	}
	c.mu.Lock()
	n := c.nodes[id]
	if n == nil {
		// With a topology, only its nodes count: this one has left the cluster.
		if c.view.Load() != nil || c.closed {
			c.mu.Unlock()
			_ = l.Close()
			return
		}
		n = newNode(c, id, addr)
		c.nodes[id] = n
	}
	c.mu.Unlock()
	n.learn(addr)
	n.keep(0, l)
}

// anyNode is a node to ask what every node can answer: connected ones in turn,
// leaving out the one that has just failed if there is a choice. When none is
// up it waits for one.
func (c *Cluster) anyNode(ctx context.Context, not *node) (*node, error) {
	for {
		changed := c.changed.wait()
		var up, idle, spare *node
		c.mu.Lock()
		skip := int(c.turn.Add(1))
		ups := 0
		for _, n := range c.nodes {
			if n.is() == nodeUp && n != not {
				ups++
			}
		}
		for _, id := range c.sortedLocked() {
			n := c.nodes[id]
			switch {
			case n == not:
				if n.usable() {
					spare = n
				}
			case n.is() == nodeUp:
				if ups > 0 && skip%ups == 0 {
					up = n
				}
				skip++
				if up == nil && spare == nil {
					spare = n
				}
			case n.usable():
				idle = n
			}
		}
		c.mu.Unlock()
		switch {
		case up != nil:
			return up, nil
		case idle != nil:
			return idle, nil
		case spare != nil:
			return spare, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.base.Done():
			return nil, ErrClosed
		}
	}
}

// reachable says that a node is connected or has not been tried.
func (c *Cluster) reachable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if n.usable() {
			return true
		}
	}
	return false
}

// whyDown is the last failure of each node that is down, for errors.
func (c *Cluster) whyDown() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []error
	for _, id := range c.sortedLocked() {
		if n := c.nodes[id]; n.is() == nodeDown {
			if err := n.lastErr(); err != nil {
				all = append(all, fmt.Errorf("%s: %w", id, err))
			}
		}
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	texts := make([]string, len(all))
	for i, err := range all {
		texts[i] = err.Error()
	}
	return &seekError{text: strings.Join(texts, "; "), last: all[0]}
}
