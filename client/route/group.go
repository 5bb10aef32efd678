package route

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// probePatience is how long one probe may hang before another caller probes too.
	probePatience = 200 * time.Millisecond
	// detour is how long a replica that forwards stands in for a leader that
	// this client cannot reach, before the leader is looked for again.
	detour = time.Second
	// detourAfter is how long a group must have been without a leader before a
	// replica is asked to forward. Before, it is more likely that the leader is
	// gone for all than for this client: asking the replicas themselves then
	// tells the end of the election sooner.
	detourAfter = 1500 * time.Millisecond
)

// way is how a group is reached.
type way struct {
	node   *node
	direct bool      // node is the leader; otherwise it forwards
	until  time.Time // of a detour
}

// group remembers who leads a shard group. While nobody is known to, one caller
// at a time looks for the leader and the others wait for what it finds.
type group struct {
	id  uint32
	hot atomic.Pointer[way] // nil: look for the leader

	mu       sync.Mutex
	replicas []string
	hint     string // named as leader, not yet confirmed by an answer
	term     uint64 // of the last hint from a topology
	prober   uint64 // whose probe is out; 0: nobody's
	since    time.Time
	probers  uint64 // tokens given out
	turn     int    // next replica to try
	looking  backoff
	lost     time.Time // when the leader was lost; zero: there is one
	detoured time.Time // when a replica was last asked to forward; zero: it answered
	wake     signal
}

func (g *group) setReplicas(ids []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.replicas = slices.Clone(ids)
}

// route is the known way, if there is one and it may still be used.
func (g *group) route() *way {
	w := g.hot.Load()
	if w == nil || !w.node.usable() {
		return nil
	}
	if !w.direct && time.Now().After(w.until) {
		return nil
	}
	return w
}

// told takes a topology's word for the leader. It counts less than an answer:
// it only helps when nobody is known to lead, or its term is newer.
func (g *group) told(leader string, term uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w := g.hot.Load()
	known := w != nil && w.direct
	if term > g.term || (!known && g.hint == "" && g.term == 0) {
		g.term = term
		g.hint = leader
		if known && w.node.id != leader {
			g.hot.CompareAndSwap(w, nil)
		}
	}
}

// probe asks to be the one who looks for the leader. It gives a token, or zero
// if someone else is looking. A holder asks again before each of its probes.
func (g *group) probe(token uint64) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.prober != 0 && g.prober != token && now.Sub(g.since) < probePatience {
		return 0
	}
	if g.prober != token || token == 0 {
		g.probers++
		g.prober = g.probers
	}
	g.since = now
	return g.prober
}

// release lets someone else look.
func (g *group) release(token uint64) {
	if token == 0 {
		return
	}
	g.mu.Lock()
	mine := g.prober == token
	if mine {
		g.prober = 0
	}
	g.mu.Unlock()
	if mine {
		g.wake.fire()
	}
}

// pace is how long to wait before the next probe. An election takes some
// hundred milliseconds, and every client looks for its end.
func (g *group) pace() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.looking.min, g.looking.max = 4*time.Millisecond, 80*time.Millisecond
	return g.looking.next()
}

// candidate is the next node to probe: the hint, then the replicas in turn,
// leaving out those that are down and, if there is a choice, the one that has
// just refused. The second result is false when the node should forward: every
// other probe, once the ordinary way has led nowhere for a while, and one at a
// time, because a server may hold such a request for long.
func (g *group) candidate(v *View, not *node, probes int) (*node, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.lost.IsZero() {
		g.lost = now
	}
	direct := probes%2 == 0 || now.Sub(g.lost) < detourAfter || now.Sub(g.detoured) < detour
	if n := v.nodes[g.hint]; n != nil && n != not && n.usable() && direct {
		return n, true
	}
	var spare *node
	for range g.replicas {
		n := v.nodes[g.replicas[g.turn%len(g.replicas)]]
		g.turn++
		if n == nil || !n.usable() {
			continue
		}
		if n != not {
			spare = n
			break
		}
		spare = n
	}
	if spare != nil {
		if !direct {
			g.detoured = now
		}
		return spare, direct
	}
	// No replica can be reached from here; another node may reach them.
	for _, n := range v.nodes {
		if n.usable() {
			return n, false
		}
	}
	return nil, false
}

// found: n answered for the group.
func (g *group) found(n *node, direct bool) {
	w := g.hot.Load()
	if w != nil && w.node == n && w.direct == direct && (direct || time.Now().Before(w.until)) {
		return
	}
	if w != nil && w.direct && !direct && w.node.usable() {
		return
	}
	next := &way{node: n, direct: direct}
	if !direct {
		next.until = time.Now().Add(detour)
	}
	g.mu.Lock()
	g.hot.Store(next)
	g.looking.reset()
	g.detoured = time.Time{}
	if direct {
		g.hint, g.lost = n.id, time.Time{}
	}
	g.mu.Unlock()
	g.wake.fire()
}

// refused: n does not lead, and named another node or none.
func (g *group) refused(n *node, hint string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w := g.hot.Load(); w != nil && w.node == n {
		g.hot.CompareAndSwap(w, nil)
	}
	switch {
	case hint != "" && hint != n.id:
		g.hint = hint
	case g.hint == n.id:
		g.hint = ""
	}
}
