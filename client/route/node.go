package route

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/impossibledb/idb/client/wire"
)

// errDown: the node could not be reached the last time; its keeper is trying.
var errDown = errors.New("node is not reachable")

// nodeState is what callers need to know before they choose a node.
type nodeState int32

const (
	nodeIdle   nodeState = iota // never wanted: the first caller starts its keepers
	nodeTrying                  // first dial, or the first after a loss: worth waiting for
	nodeUp                      // connected
	nodeDown                    // the last dial failed: not worth a caller's time
	nodeGone                    // left the cluster
)

// node is one server and the connections to it.
//
//	idle ──▶ trying ──▶ up ──lost──▶ trying
//	           │  ▲                     │
//	           ▼  └───── dialed ◀── down┘ (keeper, with backoff)
type node struct {
	id  string
	c   *Cluster
	ctx context.Context
	end context.CancelFunc

	state atomic.Int32
	links []atomic.Pointer[wire.Conn]
	turn  atomic.Uint32
	busy  atomic.Int32 // requests in flight

	mu    sync.Mutex
	addrs []string // the one that worked last comes first
	kept  []bool   // which links have a keeper
	err   error    // why the last dial or connection failed
}

func newNode(c *Cluster, id string, addrs ...string) *node {
	n := &node{
		id: id, c: c, addrs: addrs,
		links: make([]atomic.Pointer[wire.Conn], c.opt.ConnsPerNode),
		kept:  make([]bool, c.opt.ConnsPerNode),
	}
	n.ctx, n.end = context.WithCancel(c.base)
	return n
}

func (n *node) is() nodeState { return nodeState(n.state.Load()) }

// usable says that a request sent here has a chance.
func (n *node) usable() bool {
	s := n.is()
	return s == nodeUp || s == nodeTrying || s == nodeIdle
}

// lastErr is why the node is down.
func (n *node) lastErr() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// addr is where the node was reached last, or would be tried first.
func (n *node) addr() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.addrs) == 0 {
		return ""
	}
	return n.addrs[0]
}

// maxAddrs is how many addresses of a node are remembered.
const maxAddrs = 4

// learn adds an address; a topology's address goes before those known.
func (n *node) learn(addr string) {
	if addr == "" {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.addrs, addr); i >= 0 {
		return
	}
	n.addrs = n.addrs[:min(len(n.addrs), maxAddrs-1)]
	// A connected node keeps the address that works in front.
	if n.is() == nodeUp {
		n.addrs = append(n.addrs, addr)
		return
	}
	n.addrs = append([]string{addr}, n.addrs...)
}

// pick is a live link, or waits for the first dial to end. It fails at once
// when the node is down.
func (n *node) pick(ctx context.Context) (*wire.Conn, error) {
	for {
		if l := n.live(); l != nil {
			return l, nil
		}
		changed := n.c.changed.wait()
		switch n.is() {
		case nodeIdle:
			n.keep(0, nil)
			continue
		case nodeDown, nodeGone:
			return nil, errDown
		case nodeUp:
			if n.live() == nil {
				// Between a loss and its keeper's notice: as good as trying.
				break
			}
			continue
		case nodeTrying:
			if n.live() != nil {
				continue
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-n.c.base.Done():
			return nil, ErrClosed
		}
	}
}

// spread is how many requests in flight make a further connection worth its
// while: fewer coalesce better into the writes of one. With 32, on two cores, 64
// goroutines that transfer cost the client a fifth more, and 128 that read cost a
// fifth more on both sides together.
const spread = 128

// live is a connected link or nil. Requests stay on the first one until it is
// busy, then take turns.
func (n *node) live() *wire.Conn {
	busy := int(n.busy.Load())
	want := min(len(n.links), 1+busy/spread)
	var at int
	if want > 1 {
		at = int(n.turn.Add(1)) % want
	}
	if l := n.link(at); l != nil {
		return l
	}
	if at > 0 {
		n.keep(at, nil)
	}
	for i := range n.links {
		if l := n.link(i); l != nil {
			return l
		}
	}
	return nil
}

// link is a connection that has not failed. A failed one stays in its place
// until its keeper has noticed.
func (n *node) link(i int) *wire.Conn {
	l := n.links[i].Load()
	if l == nil {
		return nil
	}
	select {
	case <-l.Done():
		return nil
	default:
		return l
	}
}

// keep starts the keeper of one link unless it runs. With a link it starts
// connected; the link is closed if the keeper has one already.
func (n *node) keep(i int, l *wire.Conn) {
	n.mu.Lock()
	if n.kept[i] || n.is() == nodeGone {
		n.mu.Unlock()
		if l != nil {
			_ = l.Close()
		}
		return
	}
	n.kept[i] = true
	if i == 0 && n.is() == nodeIdle {
		n.state.Store(int32(nodeTrying))
	}
	n.mu.Unlock()
	if !n.c.start(func() { n.keeper(i, l) }) && l != nil {
		_ = l.Close()
	}
}

// shortLived connections are not dialed again at once.
const shortLived = 20 * time.Millisecond

// keeper holds one link open until the node or the cluster ends.
func (n *node) keeper(i int, l *wire.Conn) {
	// A node that does not answer is dialed less and less often, one that
	// answers and drops the connection again nearly at once: callers wait for it.
	dead := backoff{min: 20 * time.Millisecond, max: time.Second}
	flapping := backoff{min: 2 * time.Millisecond, max: 50 * time.Millisecond}
	for {
		if l == nil {
			var err error
			if l, err = n.dial(); err != nil {
				n.failed(err)
				if n.c.sleep(n.ctx, dead.next()) != nil {
					return
				}
				continue
			}
		}
		dead.reset()
		since := time.Now()
		n.opened(i, l)
		select {
		case <-l.Done():
		case <-n.ctx.Done():
		}
		_ = l.Close()
		err := l.Err()
		n.lost(i, l, err)
		l = nil
		if n.ctx.Err() != nil {
			return
		}
		if errors.Is(err, wire.ErrPeerSilent) {
			// A dial of a stopped process succeeds; only its hello does not come.
			n.failed(err)
		}
		if time.Since(since) > shortLived {
			flapping.reset()
		} else if n.c.sleep(n.ctx, flapping.next()) != nil {
			return
		}
	}
}

// dial tries the known addresses once each.
func (n *node) dial() (*wire.Conn, error) {
	n.mu.Lock()
	addrs := slices.Clone(n.addrs)
	n.mu.Unlock()
	err := errors.New("no address known")
	for _, a := range addrs {
		var l *wire.Conn
		if l, err = n.c.open(n.ctx, a, n.c.opt.Silence); err != nil {
			continue
		}
		if id := l.Hello().NodeID; id != "" && id != n.id {
			_ = l.Close()
			err = fmt.Errorf("%s is now node %s, not %s", a, id, n.id)
			continue
		}
		n.mu.Lock()
		if k := slices.Index(n.addrs, a); k > 0 {
			n.addrs = append([]string{a}, slices.Delete(n.addrs, k, k+1)...)
		}
		n.mu.Unlock()
		return l, nil
	}
	return nil, err
}

func (n *node) opened(i int, l *wire.Conn) {
	n.links[i].Store(l)
	n.mu.Lock()
	was := n.is()
	if was != nodeGone {
		n.state.Store(int32(nodeUp))
	}
	n.mu.Unlock()
	if was != nodeUp {
		n.c.opt.Logger.Debug("node connected", "node", n.id, "addr", n.addr())
	}
	n.c.changed.fire()
}

func (n *node) lost(i int, l *wire.Conn, err error) {
	n.links[i].CompareAndSwap(l, nil)
	n.mu.Lock()
	n.err = err
	other := n.connectedLocked()
	if !other && n.is() != nodeGone {
		n.state.Store(int32(nodeTrying))
	}
	n.mu.Unlock()
	n.c.opt.Logger.Debug("connection lost", "node", n.id, "error", err)
	n.c.changed.fire()
	if !other && i > 0 {
		// This keeper's dial decides for callers only if it is the first link's.
		n.keep(0, nil)
	}
}

func (n *node) failed(err error) {
	n.mu.Lock()
	n.err = err
	was := n.is()
	if !n.connectedLocked() && was != nodeGone {
		n.state.Store(int32(nodeDown))
	}
	n.mu.Unlock()
	if was != nodeDown {
		n.c.opt.Logger.Debug("node unreachable", "node", n.id, "error", err)
	}
	n.c.changed.fire()
}

func (n *node) connectedLocked() bool {
	for i := range n.links {
		if n.link(i) != nil {
			return true
		}
	}
	return false
}

// leave ends the node's keepers: it is no longer part of the cluster.
func (n *node) leave() {
	n.mu.Lock()
	n.state.Store(int32(nodeGone))
	n.mu.Unlock()
	n.end()
}
