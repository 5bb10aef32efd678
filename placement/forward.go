package placement

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/impossibledb/idb/client/wire"
)

// Propose carries out a command, wherever the leader is, and returns when this
// node sees its effect. It tries until the context ends: every command may be
// applied twice with the effect of once. An error is a *wire.Error:
// CodeUnavailable when nothing was proposed, CodeOutcomeUnknown when something
// may have been. A refusal by the machine is in the Result, see Result.Err;
// there, CodeUnavailable is "not yet" and holds for every attempt so far.
func (s *Service) Propose(ctx context.Context, c Command) (*Result, error) {
	data := c.Encode()
	var (
		delay retryDelay
		maybe bool // an earlier attempt may have been, or be yet, applied
		last  error
	)
	for turn := 0; ; turn++ {
		node, local := s.target(turn)
		if node != "" || local {
			r, sent, err := s.try(ctx, node, local, data)
			if err == nil {
				s.catchUp(ctx, r)
				if maybe && r.Code == wire.CodeUnavailable {
					// The machine keeps no "not yet": an attempt that was never
					// answered may come after what this one met.
					return nil, s.gaveUp(true, r.Err())
				}
				return r, nil
			}
			maybe = maybe || sent
			last = err
		}
		if !delay.wait(ctx) || s.ctx.Err() != nil {
			return nil, s.gaveUp(maybe, last)
		}
	}
}

func (s *Service) gaveUp(maybe bool, last error) error {
	if s.ctx.Err() != nil && !maybe {
		return errClosed
	}
	reason := "no leader is known"
	if last != nil {
		reason = last.Error()
	}
	if maybe {
		return &wire.Error{Code: wire.CodeOutcomeUnknown, Message: fmt.Sprintf(
			"the placement group was asked but did not answer in time: %s (the change may yet happen; look, then repeat it)", reason)}
	}
	return &wire.Error{Code: wire.CodeUnavailable, Message: fmt.Sprintf(
		"the placement group cannot be reached: %s (nothing was done; retry)", reason)}
}

// target is whom to ask at this turn: the leader if it is known, else each
// member in turn. local says that it is this node.
func (s *Service) target(turn int) (node NodeID, local bool) {
	log, _ := s.member()
	if log != nil {
		if leader, _, known := log.Leader(); known && leader != "" {
			return leader, leader == s.opts.Self
		}
	} else if turn == 0 {
		s.mu.Lock()
		leader := s.leader
		s.mu.Unlock()
		if leader != "" {
			return leader, false
		}
	}
	members := s.memberIDs()
	if len(members) == 0 {
		return "", false
	}
	node = members[turn%len(members)]
	if node == s.opts.Self { // and it does not know a leader
		return "", false
	}
	return node, false
}

// try makes one attempt. sent says that the command may have been proposed
// although err is not nil.
func (s *Service) try(ctx context.Context, node NodeID, local bool, data []byte) (r *Result, sent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.AttemptTimeout)
	defer cancel()
	if local {
		log, _ := s.member()
		r, err := proposeTo(ctx, log, data)
		return r, true, err
	}
	body, err := s.opts.Peers.Call(ctx, node, wire.KindPlacement, data)
	if err != nil {
		return nil, s.learnLeader(err), err
	}
	r, err = DecodeResult(body)
	if err == nil {
		s.setLeader(node)
	}
	return r, true, err
}

func proposeTo(ctx context.Context, log Log, data []byte) (*Result, error) {
	answer, err := log.Propose(ctx, data)
	if err != nil {
		return nil, err
	}
	r, ok := answer.(*Result)
	if !ok {
		return nil, fmt.Errorf("placement: the log answered %T", answer)
	}
	return r, nil
}

// learnLeader takes the hint of a refusal and says whether the refused request
// may have been proposed nevertheless.
func (s *Service) learnLeader(err error) (sent bool) {
	var refusal *wire.Error
	var lost *wire.ConnError
	switch {
	case errors.As(err, &lost):
		s.setLeader("")
		return lost.Sent
	case errors.As(err, &refusal):
		s.setLeader(NodeID(refusal.Leader))
		return !refusal.Code.Retryable()
	}
	s.setLeader("")
	return false // there was no connection
}

func (s *Service) setLeader(n NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leader = n
}

// catchUp waits, as long as the context lasts, until this node sees the state
// in which a command was answered.
func (s *Service) catchUp(ctx context.Context, r *Result) {
	if _, m := s.member(); m != nil {
		s.publish(m.View())
	}
	_, _ = s.WaitFor(ctx, func(v *View) bool { return v.Epoch >= r.Epoch && v.Catalog >= r.Catalog })
}

// Refresh returns a view that holds everything the placement group had
// committed before the call. Concurrent callers share the question.
func (s *Service) Refresh(ctx context.Context) (*View, error) {
	if err := s.refresh.do(ctx, s.ctx, &s.bg, s.refreshOnce); err != nil {
		return s.View(), err
	}
	return s.View(), nil
}

// refreshOnce asks the leader, trying for a few attempts' time.
func (s *Service) refreshOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*s.opts.AttemptTimeout)
	defer cancel()
	var delay retryDelay
	var last error
	for turn := 0; ; turn++ {
		node, local := s.target(turn)
		if node != "" || local {
			err := s.refreshFrom(ctx, node, local)
			if err == nil {
				return nil
			}
			last = err
		}
		if !delay.wait(ctx) {
			return s.gaveUp(false, last)
		}
	}
}

func (s *Service) refreshFrom(ctx context.Context, node NodeID, local bool) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.AttemptTimeout)
	defer cancel()
	if local {
		log, m := s.member()
		if err := log.ReadIndex(ctx); err != nil {
			return err
		}
		s.publish(m.View())
		return nil
	}
	v, err := s.ask(ctx, node, question{have: s.View().Applied, fresh: true})
	if err != nil {
		s.learnLeader(err)
		return err
	}
	s.setLeader(node)
	if v != nil {
		s.publish(v)
	}
	return nil
}

// refreshGate lets one refresh run at a time. A caller shares only a refresh
// that begins after its call: one that is under way may have read too early.
type refreshGate struct {
	mu      sync.Mutex
	running *refreshRun
	next    *refreshRun // will start when running ends
	closed  bool
}

type refreshRun struct {
	done chan struct{}
	err  error
}

func (g *refreshGate) do(ctx, life context.Context, bg *sync.WaitGroup, f func(context.Context) error) error {
	g.mu.Lock()
	run := g.next
	if run == nil {
		if g.closed {
			g.mu.Unlock()
			return errClosed
		}
		run = &refreshRun{done: make(chan struct{})}
		g.next = run
		if g.running == nil {
			bg.Add(1)
			go g.loop(life, bg, f)
		}
	}
	g.mu.Unlock()
	select {
	case <-run.done:
		return run.err
	case <-ctx.Done():
		return &wire.Error{Code: wire.CodeTimeout, Message: "the request's time ended while the catalog was being read (retry)"}
	}
}

// close refuses new refreshes, so that the service can join the last one.
func (g *refreshGate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// loop runs refreshes until nobody waits for one.
func (g *refreshGate) loop(life context.Context, bg *sync.WaitGroup, f func(context.Context) error) {
	defer bg.Done()
	for {
		g.mu.Lock()
		g.running, g.next = g.next, nil
		run := g.running
		g.mu.Unlock()
		if run == nil {
			return
		}
		run.err = f(life)
		close(run.done)
	}
}

// question is a watcher's: what is newer than have? An answer is held for up
// to wait; fresh asks the leader, which first makes sure that it still leads.
type question struct {
	have  uint64
	wait  time.Duration
	fresh bool
}

// maxWait bounds how long a member holds a question.
const maxWait = time.Minute

func (q question) encode() []byte {
	e := newEncoder(kindWait)
	e.uint(q.have)
	e.uint(uint64(q.wait.Milliseconds()))
	e.bool(q.fresh)
	return e.b
}

func decodeQuestion(b []byte) (question, error) {
	d, kind, err := newDecoder(b)
	if err != nil {
		return question{}, err
	}
	if kind != kindWait {
		return question{}, fmt.Errorf("%w: kind %d is no question", ErrDamaged, kind)
	}
	q := question{have: d.uint()}
	q.wait = time.Duration(min(d.uint(), uint64(maxWait.Milliseconds()))) * time.Millisecond
	q.fresh = d.bool()
	return q, d.done()
}

// ask puts a question to a member; the answer nil is "nothing newer".
func (s *Service) ask(ctx context.Context, node NodeID, q question) (*View, error) {
	body, err := s.opts.Peers.Call(ctx, node, wire.KindPlacementWait, q.encode())
	if err != nil {
		return nil, err
	}
	if len(body) == 0 {
		return nil, nil
	}
	state, err := decodeState(body)
	if err != nil {
		return nil, err
	}
	return NewView(state), nil
}

// HandlePlacement serves KindPlacement: a command from another node.
func (s *Service) HandlePlacement(ctx context.Context, from NodeID, body []byte) ([]byte, error) {
	if _, err := DecodeCommand(body); err != nil {
		return nil, &wire.Error{Code: wire.CodeBadRequest, Message: fmt.Sprintf("placement command from %s: %v", from, err)}
	}
	log, err := s.leading()
	if err != nil {
		return nil, err
	}
	r, err := proposeTo(ctx, log, body)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeOutcomeUnknown, Message: fmt.Sprintf("placement command at %s: %v", s.opts.Self, err)}
	}
	return r.Encode(), nil
}

// HandleWait serves KindPlacementWait: a question from another node.
func (s *Service) HandleWait(ctx context.Context, from NodeID, body []byte) ([]byte, error) {
	q, err := decodeQuestion(body)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeBadRequest, Message: fmt.Sprintf("placement question from %s: %v", from, err)}
	}
	if q.fresh {
		log, err := s.leading()
		if err != nil {
			return nil, err
		}
		if err := log.ReadIndex(ctx); err != nil {
			return nil, &wire.Error{Code: wire.CodeUnavailable, Message: fmt.Sprintf("placement leader %s: %v", s.opts.Self, err)}
		}
	}
	_, m := s.member()
	if m == nil {
		return nil, s.notLeader()
	}
	if q.wait > 0 {
		ctx, cancel := context.WithTimeout(ctx, q.wait)
		defer cancel()
		for {
			changed := m.Changed()
			if m.View().Applied > q.have {
				break
			}
			select {
			case <-changed:
				continue
			case <-ctx.Done():
			case <-s.ctx.Done():
				return nil, errClosed
			}
			break
		}
	}
	v := m.View()
	if v.Applied <= q.have {
		return nil, nil
	}
	return s.encoded.of(v), nil
}

// leading is the log if this node leads it, else the refusal that says who does.
func (s *Service) leading() (Log, error) {
	log, _ := s.member()
	if log != nil {
		if leader, _, known := log.Leader(); known && leader == s.opts.Self {
			return log, nil
		}
	}
	return nil, s.notLeader()
}

func (s *Service) notLeader() *wire.Error {
	e := &wire.Error{Code: wire.CodeNotLeader, Message: fmt.Sprintf("node %s does not lead the placement group", s.opts.Self)}
	if log, _ := s.member(); log != nil {
		if leader, _, known := log.Leader(); known && leader != s.opts.Self {
			e.Leader = string(leader)
		}
	}
	return e
}

// encodedState keeps the bytes of the last state sent: watchers on many nodes
// ask for the same one.
type encodedState struct {
	mu    sync.Mutex
	view  *View
	bytes []byte
}

func (c *encodedState) of(v *View) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view != v {
		c.view, c.bytes = v, encodeState(v.State)
	}
	return c.bytes
}
