package route

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
)

// Exchange is one request: how it is put on the wire and what its answer
// means. Its methods are called from the goroutine that called Do.
type Exchange interface {
	// Place says which partition answers for the request under this view; false
	// if any node does, and routes it on.
	Place(v *View) (partition uint32, ok bool)
	// Append appends the request's body. Epoch is the epoch it is routed by and
	// direct asks for a refusal instead of forwarding; both are zero when the
	// server is to route it.
	Append(dst []byte, epoch uint64, direct bool) []byte
	// Read takes the answer. A *wire.Error stands for the answer, as if the
	// server had refused the request with it; any other error (BadAnswer) is a
	// fault of the answer. lost: an earlier attempt may have been received and
	// its answer was lost.
	Read(body []byte, lost bool) error
}

// Mode says what a repeated or lost request would mean.
type Mode uint8

const (
	// Read changes nothing: it may be sent any number of times.
	Read Mode = iota
	// Write changes something, under a request ID that was never sent before.
	Write
	// Repeat is a Write whose request ID may have been sent before, by an
	// earlier call: that attempt may have been received.
	Repeat
)

// Streamer is an Exchange whose answer is a stream. Begin is called before each
// attempt and drops what an earlier one left; Part takes one part; Read is
// called with nil after the last.
type Streamer interface {
	Exchange
	Begin()
	Part(body []byte) error
}

// try is what is known of one request under way.
type try struct {
	mutates  bool
	attempts int
	lost     bool // of a mutation: an attempt may have been received and is not answered
	faults   int  // answers that blame the server itself
	hops     int  // refusals that named another node
	losses   int  // attempts that nobody answered
	probes   int
	// leaderless: the last attempt failed for want of the leader.
	leaderless bool
	bare       int // refusals by nodes without a cluster
	token      uint64
	group      *group
	last       *node // asked last
	not        *node // failed last: prefer another
	refusal    *wire.Error
	err        error
	start      time.Time
	wait       backoff
}

// release lets another request look for the leader.
func (t *try) release() {
	if t.token != 0 {
		t.group.release(t.token)
		t.token = 0
	}
}

// place is where an attempt goes.
type place struct {
	node   *node
	group  *group // nil: any node
	epoch  uint64
	direct bool
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// maxPooled keeps a rare large document from staying in the pool for ever.
const maxPooled = 1 << 20

// Do sends a request until it is answered, refused for good, or ctx ends. The
// error is a *Failure. Of a write, the exchange must carry the same request ID
// in every attempt.
func (c *Cluster) Do(ctx context.Context, kind wire.Kind, mode Mode, x Exchange) error {
	c.counts.requests.Add(1)
	t := try{
		mutates: mode != Read, lost: mode == Repeat, start: time.Now(),
		wait: backoff{min: 4 * time.Millisecond, max: 100 * time.Millisecond},
	}
	err := c.do(ctx, kind, x, &t)
	t.release()
	if err == nil {
		return nil
	}
	return c.failure(err, &t)
}

func (c *Cluster) do(ctx context.Context, kind wire.Kind, x Exchange, t *try) error {
	for {
		p, err := c.pick(ctx, x, t)
		if err != nil {
			return err
		}
		t.last = p.node
		l, err := p.node.pick(ctx)
		if err == nil {
			err = c.attempt(ctx, kind, l, p, x, t)
		}
		pause, err := c.settle(ctx, p, err, t)
		if err != nil || pause < 0 {
			return err
		}
		if t.token != 0 && pause > 0 {
			if t.leaderless {
				// The pace of looking is the group's, however long this
				// request has been on its way.
				pause = t.group.pace()
			} else {
				t.release()
			}
		}
		if pause > 0 {
			if err := c.sleep(ctx, pause); err != nil {
				return err
			}
		}
	}
}

// attempt is one frame there and one back.
func (c *Cluster) attempt(ctx context.Context, kind wire.Kind, l *wire.Conn, p place, x Exchange, t *try) error {
	p.node.busy.Add(1)
	buf := buffers.Get().(*[]byte)
	*buf = x.Append((*buf)[:0], p.epoch, p.direct)
	t.attempts++
	c.counts.attempts.Add(1)
	var answer []byte
	var err error
	if s, ok := x.(Streamer); ok {
		s.Begin()
		err = l.Stream(ctx, kind, *buf, s.Part)
	} else {
		answer, err = l.Call(ctx, kind, *buf)
	}
	if cap(*buf) <= maxPooled {
		buffers.Put(buf)
	}
	p.node.busy.Add(-1)
	if err != nil {
		return err
	}
	return x.Read(answer, t.lost)
}

// settle decides what an attempt's end means: a negative pause is the end, with
// the error or without; otherwise the request is sent again after the pause.
func (c *Cluster) settle(ctx context.Context, p place, err error, t *try) (time.Duration, error) {
	if err == nil {
		if p.group != nil {
			p.group.found(p.node, p.direct)
		}
		return -1, nil
	}
	t.leaderless = false
	refusal, refused := err.(*wire.Error) //nolint:errorlint // a refusal is never wrapped; a wrapped one is about an answer
	if !refused {
		return c.unanswered(ctx, p, err, t)
	}
	c.clock.Observe(refusal.Now)
	t.refusal, t.err, t.not = refusal, nil, nil
	switch judge(refusal.Code, t.mutates, t.lost) {
	case final:
		// Whoever decides about a document leads its group.
		if p.group != nil && p.direct && Decisive(refusal.Code) && refusal.Code >= wire.CodeNotFound {
			p.group.found(p.node, true)
		}
		return -1, errFinal
	case unknown:
		return -1, errUnknown
	case doubt:
		t.lost = t.mutates
	}
	switch refusal.Code {
	case wire.CodeNotLeader:
		t.not, t.leaderless = p.node, true
		if p.group != nil {
			p.group.refused(p.node, refusal.Leader)
		}
		if t.hops++; refusal.Leader != "" && refusal.Leader != p.node.id && t.hops%3 != 0 && c.known(refusal.Leader) {
			return 0, nil
		}
	case wire.CodeStaleEpoch:
		t.release()
		if v := c.view.Load(); v == nil || v.Topology.Epoch <= max(p.epoch, refusal.Epoch) {
			c.hurry(ctx, p.node, max(refusal.Epoch, p.epoch))
			if v := c.view.Load(); v != nil && v.Topology.Epoch > p.epoch {
				return 0, nil
			}
		} else {
			return 0, nil
		}
	case wire.CodeUnavailable, wire.CodeOutcomeUnknown, wire.CodeShuttingDown:
		t.not, t.leaderless = p.node, true
		if p.group != nil {
			p.group.refused(p.node, refusal.Leader)
		}
	case wire.CodeNotInitialised:
		t.not = p.node
		// One node without a cluster may be a newcomer; when all are, only an
		// administrator can help.
		if t.bare++; c.view.Load() == nil && t.bare > c.nodeCount() {
			return -1, errFinal
		}
	case wire.CodeInternal:
		t.not = p.node
		if t.faults++; t.faults >= internalTries {
			if t.lost {
				return -1, errUnknown
			}
			return -1, errFinal
		}
	case wire.CodeWrongCluster:
		return -1, errFinal
	}
	pause := t.wait.next()
	if advice := time.Duration(refusal.RetryAfterMillis) * time.Millisecond; advice > pause {
		pause = min(advice, time.Second)
	}
	return pause, nil
}

// unanswered settles an attempt that no answer came to.
func (c *Cluster) unanswered(ctx context.Context, p place, err error, t *try) (time.Duration, error) {
	if errors.Is(err, ErrClosed) {
		return -1, err
	}
	var bad *badAnswer
	if errors.As(err, &bad) {
		t.lost, t.err = t.mutates, err
		if t.faults++; t.faults >= internalTries {
			return -1, errGarbled
		}
		return t.wait.next(), nil
	}
	if t.mutates && maybeSent(err) {
		t.lost = true
	}
	if c.base.Err() != nil {
		return -1, ErrClosed
	}
	if e := ctx.Err(); e != nil {
		return -1, e
	}
	down := errors.Is(err, errDown)
	if down {
		if why := p.node.lastErr(); why != nil {
			err = why
		}
	}
	t.err, t.not, t.leaderless = err, p.node, true
	// The first loss may be the connection's only: the same node is asked again
	// at once, and if it is gone the keeper's dial will tell.
	if t.losses++; t.losses == 1 && !down && p.node.usable() {
		t.not = nil
		return 0, nil
	}
	if p.group != nil {
		p.group.refused(p.node, "")
	}
	if t.losses <= 2 {
		return 0, nil
	}
	return t.wait.next(), nil
}

var (
	errFinal   = errors.New("refused")
	errUnknown = errors.New("outcome unknown")
	errGarbled = errors.New("answers cannot be read")
)

// failure words the end of a request.
func (c *Cluster) failure(err error, t *try) *Failure {
	f := &Failure{
		Refusal: t.refusal, Err: t.err, Unknown: t.lost,
		Attempts: t.attempts, Took: time.Since(t.start),
	}
	if t.last != nil {
		f.Node = t.last.id
	}
	switch {
	case errors.Is(err, errFinal):
		// A decisive refusal settles what was lost before it.
		f.Unknown, f.Err = false, nil
	case errors.Is(err, errUnknown):
		f.Unknown = true
	default:
		f.Ended = err
		if c.base.Err() != nil {
			f.Ended = ErrClosed
		}
		// Nobody to ask is the better reason than how the last one went.
		if why := c.whyDown(); why != nil && (f.Refusal == nil && f.Err == nil || !c.reachable()) {
			f.Err, f.Node = why, ""
		}
	}
	if mutant.On(mutant.UnknownIsRefused) {
		f.Unknown = false
	}
	if f.Unknown {
		c.counts.unknown.Add(1)
	}
	return f
}

// pick chooses where the next attempt goes, and waits while nobody knows.
func (c *Cluster) pick(ctx context.Context, x Exchange, t *try) (place, error) {
	if err := ctx.Err(); err != nil {
		return place{}, err
	}
	if c.base.Err() != nil {
		return place{}, ErrClosed
	}
	v := c.view.Load()
	if v != nil {
		if p, ok := x.Place(v); ok && int(p) < len(v.owners) && v.owners[p] != nil {
			return c.pickGroup(ctx, v, v.owners[p], x, t)
		}
	}
	n, err := c.anyNode(ctx, t.not)
	return place{node: n}, err
}

func (c *Cluster) pickGroup(ctx context.Context, v *View, g *group, x Exchange, t *try) (place, error) {
	if t.group != g {
		t.release()
	}
	p := place{group: g, epoch: v.Topology.Epoch}
	for {
		if w := g.route(); w != nil {
			t.release()
			p.node, p.direct = w.node, w.direct
			return p, nil
		}
		wake, changed := g.wake.wait(), c.changed.wait()
		if t.token = g.probe(t.token); t.token != 0 {
			t.group = g
			if p.node, p.direct = g.candidate(v, t.not, t.probes); p.node != nil {
				t.probes++
				if !p.direct {
					// It may be held until there is a leader; others go on looking.
					t.release()
				}
				return p, nil
			}
			// Nobody can be reached: wait for a keeper to get through.
			t.release()
			if err := c.await(ctx, changed, changed, 0); err != nil {
				return p, err
			}
		} else if err := c.await(ctx, wake, changed, probePatience/2); err != nil {
			return p, err
		}
		// The topology may have moved the partition meanwhile.
		if c.view.Load() != v {
			return c.pick(ctx, x, t)
		}
	}
}

// await waits for either signal, at most d if d is not zero.
func (c *Cluster) await(ctx context.Context, a, b <-chan struct{}, d time.Duration) error {
	var timeout <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-a:
	case <-b:
	case <-timeout:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.base.Done():
		return ErrClosed
	}
	return nil
}

func (c *Cluster) known(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[id]
	return n != nil && n.usable()
}

func (c *Cluster) nodeCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.nodes)
}

func (c *Cluster) sortedLocked() []string {
	ids := make([]string, 0, len(c.nodes))
	for id := range c.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
