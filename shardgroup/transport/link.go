package transport

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

type linkKey struct {
	node  placement.NodeID
	class class
}

// link is this node's way to another one, for one class of requests. It holds
// at most one connection and dials when there is none: one caller dials, the
// others wait for it.
type link struct {
	p    *Peers
	node placement.NodeID
	c    class

	mu      sync.Mutex
	conn    *peerConn     // guarded by mu; nil: none
	dialing chan struct{} // guarded by mu; closed when the dial is over
	err     error         // guarded by mu; of the last dial
	failed  time.Time     // guarded by mu; when it failed
	down    int           // guarded by mu; failures in a row
	closed  bool          // guarded by mu
}

// peerConn is a connection that this node opened.
type peerConn struct {
	*wire.Conn
	peer    *peerInfo
	cluster string // what this node said in its hello
}

func (p *Peers) link(node placement.NodeID, c class) (*link, error) {
	k := linkKey{node, c}
	p.mu.RLock()
	l, cut := p.links[k], p.cut
	p.mu.RUnlock()
	if cut {
		return nil, errCut
	}
	if l != nil {
		return l, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut || p.links == nil {
		return nil, errCut
	}
	if l = p.links[k]; l == nil {
		l = &link{p: p, node: node, c: c}
		p.links[k] = l
	}
	return l, nil
}

// conn is a connection to node that works, as far as is known.
func (p *Peers) conn(ctx context.Context, c class, node placement.NodeID, incarnation string) (*peerConn, error) {
	l, err := p.link(node, c)
	if err != nil {
		return nil, err
	}
	pc, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	if incarnation != "" && pc.peer.Incarnation != incarnation {
		return nil, wrongIncarnation(node, pc.peer.Incarnation, incarnation)
	}
	return pc, nil
}

func wrongIncarnation(node placement.NodeID, have, want string) error {
	return fmt.Errorf("transport: node %s has incarnation %s, %s is a member (its data was wiped; it must be removed and added again)", node, have, want)
}

// ready is the connection there is now; nil if there is none that works, as
// far as is known.
func (l *link) ready() *peerConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.conn
	if c == nil || l.closed || c.cluster != l.p.o.ClusterID() {
		return nil
	}
	select {
	case <-c.Done():
		return nil
	default:
		return c
	}
}

func (l *link) get(ctx context.Context) (*peerConn, error) {
	for {
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return nil, errCut
		}
		if c := l.conn; c != nil {
			select {
			case <-c.Done():
			default:
				if c.cluster == l.p.o.ClusterID() {
					l.mu.Unlock()
					return c, nil
				}
				// This node has joined a cluster since: say so.
			}
			l.conn = nil
			l.mu.Unlock()
			_ = c.Close() // it has failed already
			continue
		}
		if wait := l.dialing; wait != nil {
			l.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, &wire.ConnError{Err: ctx.Err()}
			}
		}
		if l.err != nil && time.Since(l.failed) < redialAfter {
			err := l.err
			l.mu.Unlock()
			return nil, err
		}
		done := make(chan struct{})
		l.dialing = done
		l.mu.Unlock()

		// The dial is for everybody who waits, so it does not end with this
		// caller's context.
		dctx, cancel := context.WithTimeout(l.p.ctx, l.p.o.DialTimeout)
		c, err := l.p.dial(dctx, l.c, l.node, "")
		cancel()

		l.mu.Lock()
		l.dialing, l.conn, l.err = nil, c, err
		close(done)
		if err != nil {
			l.failed = time.Now()
			if l.down++; l.down == 1 && l.c == classControl {
				l.p.log.Warn("peer is not reachable", "peer", l.node, "error", err)
			}
		} else if l.down > 0 && l.c == classControl {
			l.p.log.Info("peer is reachable again", "peer", l.node, "failed_dials", l.down)
		}
		if err == nil {
			l.down = 0
		}
		closed := l.closed
		l.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if closed {
			_ = c.Close()
			return nil, errCut
		}
		return c, nil
	}
}

func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	c, wait := l.conn, l.dialing
	l.conn = nil
	l.mu.Unlock()
	if c != nil {
		_ = c.Close()
	}
	if wait != nil {
		<-wait // Cut has ended its context
	}
}

// peerKeepAlive is how long a peer that owes an answer may say nothing before
// it is pinged; after as long again the connection is given up. After a network
// partition an old connection is no use for many seconds, a new one is at once.
const peerKeepAlive = 1500 * time.Millisecond

// dial opens a connection to node and says hello on it.
func (p *Peers) dial(ctx context.Context, c class, node placement.NodeID, incarnation string) (*peerConn, error) {
	if p.isCut() {
		return nil, errCut
	}
	addr, err := p.o.Resolve(node)
	if err != nil {
		return nil, fmt.Errorf("transport: address of node %s: %w", node, err)
	}
	nc, err := p.o.Dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("transport: node %s at %s: %w", node, addr, err)
	}
	conn := wire.NewConn(nc, wire.ConnOptions{MaxInFlight: maxPeerInFlight, MaxQueued: 16 << 20, KeepAlive: peerKeepAlive})
	pc := &peerConn{Conn: conn, cluster: p.o.ClusterID()}
	if err := pc.hello(ctx, p, node, incarnation); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("transport: node %s at %s: %w", node, addr, err)
	}
	return pc, nil
}

func (c *peerConn) hello(ctx context.Context, p *Peers, node placement.NodeID, incarnation string) error {
	b, err := c.Call(ctx, wire.KindPeerHello, p.appendHello(c.cluster))
	if err != nil {
		return refusal(err)
	}
	peer, err := decodeHello(b)
	if err != nil {
		return err
	}
	switch {
	case peer.Node != node:
		return fmt.Errorf("the node there is %s (check the addresses)", peer.Node)
	case foreign(c.cluster, peer.Cluster):
		return &wire.Error{Code: wire.CodeWrongCluster, Message: wrongCluster(p.o.NodeID, c.cluster, peer.Node, peer.Cluster)}
	case incarnation != "" && peer.Incarnation != incarnation:
		return wrongIncarnation(node, peer.Incarnation, incarnation)
	}
	c.peer = peer
	return nil
}

// refusal takes out what the other side held against the connection; before
// the hello there is no request to be unsure of.
func refusal(err error) error {
	var lost *wire.ConnError
	if errors.As(err, &lost) && lost.Refusal() != nil {
		return lost.Refusal()
	}
	return err
}
