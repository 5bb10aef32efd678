package wire

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Handler answers requests. ServeWire runs in a goroutine of its own for each
// request and answers through resp before it returns: Reply or Fail once, with
// Sends before it for a streaming answer. Its context ends when the client
// cancels, when the request's time is up, or when the connection is gone.
//
// A panic is not caught: it is a bug, and a node that goes on with half of a
// change in memory is worse than one that starts again.
type Handler interface {
	ServeWire(ctx context.Context, req *Request, resp *Responder)
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, req *Request, resp *Responder)

// ServeWire calls f.
func (f HandlerFunc) ServeWire(ctx context.Context, req *Request, resp *Responder) {
	f(ctx, req, resp)
}

// Start says how a request is served.
type Start int

// The ways to serve a request.
const (
	StartApart Start = iota // by ServeWire, in a goroutine of its own
	StartHere               // by ServeWire, now, on the goroutine that reads the connection: it does not wait
	StartTaken              // by StartWire, which has taken it
)

// Starter is a Handler that is asked how to serve each request.
//
// Most requests wait for something that many wait for together. A goroutine for
// each costs two switches per request; the Starter puts the request where it
// waits, and one goroutine answers all that waited.
type Starter interface {
	Handler
	// StartWire runs on the goroutine that reads the connection, which takes no
	// other request meanwhile: it must not wait. A request that it takes is
	// answered once, by anyone at any time, through a Replies, or is given back
	// by Handover. With any other answer it has done nothing.
	StartWire(ctx context.Context, req *Request, resp *Responder) Start
}

// Handover gives a request that StartWire has taken to ServeWire, in a
// goroutine of its own.
func (p *Responder) Handover() { p.r.session.server.workers.Run(task{r: p.r}) }

// Spawn runs f in a goroutine of the server, which Close waits for. It is for
// requests that StartWire has taken.
func (p *Responder) Spawn(f func()) { p.r.session.server.workers.Run(task{f: f}) }

// Replies answers requests that a Starter has taken, many at a time: what goes
// to one connection is written to it at once, by Flush. The zero value is ready
// for use. It is for one goroutine.
type Replies struct{ boxes []*outbox }

// Reply answers a request for good and never waits. It is false if the client
// is slow to take its answers, and nothing was done: hand the request over.
func (rs *Replies) Reply(p *Responder, m Message) bool {
	s := p.r.session
	f := outgoing{Frame: Frame{Kind: p.r.request.Kind, Request: p.r.request.ID, Flags: FlagResponse}, message: m, most: s.answerLimit(), hold: true}
	p.answered, p.code = true, CodeOK
	room, err := s.answer(p.r, &f, true)
	if room != nil || err == errTooLarge {
		p.answered = false
		return false
	}
	if err == nil {
		p.bytes += f.size - FrameOverhead
		if !slices.Contains(rs.boxes, s.out) {
			rs.boxes = append(rs.boxes, s.out)
		}
	}
	s.complete(p.r)
	return true
}

// Flush sends what was replied.
func (rs *Replies) Flush() {
	for i, o := range rs.boxes {
		o.flush()
		rs.boxes[i] = nil
	}
	rs.boxes = rs.boxes[:0]
}

// Request is one request. Body belongs to the handler, which may keep it.
type Request struct {
	Kind Kind
	ID   uint64
	Body []byte
	Conn *ConnInfo
}

// ConnInfo is who is at the other end. It does not change after the hello.
type ConnInfo struct {
	Remote string // address
	Hello  Hello  // of a client
	Peer   bool   // another node, by KindPeerHello
	// Identity is what the hello functions want to remember of this peer.
	Identity any
}

// ErrAnswered: the request already has its last answer.
var ErrAnswered = errors.New("wire: the request is already answered")

// inFlight is a request being served: the request, its context and its
// responder in one piece of memory.
type inFlight struct {
	request   Request
	responder Responder
	lifetime  lifetime
	session   *session
	started   time.Time // zero: nobody observes
	charge    int64     // see pace
	round     uint32    // of pace, when it was begun
	made      bool      // an answer waits for its client; guarded by session.mu
	largest   int       // frame of the answer, without its head
}

// Responder answers one request. It is for one goroutine at a time and must
// not be used after ServeWire has returned.
type Responder struct {
	r        *inFlight
	answered bool
	code     Code // of the last answer
	bytes    int
}

// Reply sends the last answer. The body is copied. It waits while the client
// is slow to take earlier answers. When too many bytes wait like this the
// answer is given up: the client is refused with Overloaded or OutcomeUnknown
// instead, and the error is that refusal.
func (p *Responder) Reply(body []byte) error {
	return p.finish(outgoing{Frame: Frame{Flags: FlagResponse, Body: body}}, CodeOK)
}

// ReplyMessage is Reply with a message; nil is an empty body.
func (p *Responder) ReplyMessage(m Message) error {
	return p.finish(outgoing{Frame: Frame{Flags: FlagResponse}, message: m}, CodeOK)
}

// Fail sends a refusal as the last answer.
func (p *Responder) Fail(refusal *Error) error {
	return p.finish(outgoing{Frame: Frame{Flags: FlagResponse | FlagError}, message: refusal}, refusal.Code)
}

// Send sends a part of a streaming answer, more follow. The body is copied.
// It waits while the client is slow to take earlier answers; the error is the
// context's, a refusal to Fail with when too many bytes wait like this or the
// part is too large, or it says that the connection is gone.
func (p *Responder) Send(body []byte) error {
	return p.part(outgoing{Frame: Frame{Flags: FlagResponse | FlagMore, Body: body}})
}

// SendMessage is Send with a message.
func (p *Responder) SendMessage(m Message) error {
	return p.part(outgoing{Frame: Frame{Flags: FlagResponse | FlagMore}, message: m})
}

// Answered says that the last answer was given.
func (p *Responder) Answered() bool { return p.answered }

func (p *Responder) part(f outgoing) error {
	if p.answered {
		return ErrAnswered
	}
	return p.send(f)
}

func (p *Responder) finish(f outgoing, code Code) error {
	if p.answered {
		return ErrAnswered
	}
	p.answered, p.code = true, code
	err := p.send(f)
	if refusal, ok := err.(*Error); ok && refusal.Code == CodeFrameTooLarge {
		p.answered = false
		return p.Fail(refusal)
	}
	return err
}

func (p *Responder) send(f outgoing) error {
	s := p.r.session
	f.Kind, f.Request, f.most = p.r.request.Kind, p.r.request.ID, s.answerLimit()
	last := f.Flags&FlagMore == 0
	var ended <-chan struct{} // a last answer is sent also when the time is up
	for {
		room, err := s.answer(p.r, &f, last)
		if err == errTooLarge {
			return Refuse(CodeFrameTooLarge, "the answer has %d bytes, a frame holds %d (ask for less at once)", f.size, f.most)
		}
		if err != nil {
			return err
		}
		if room == nil {
			p.bytes += f.size - FrameOverhead
			return nil
		}
		if !last && ended == nil {
			ended = p.r.lifetime.Done()
		}
		waits := f.hint()
		if !s.hoard(waits) {
			p.r.largest = max(p.r.largest, waits)
			return p.shed(last)
		}
		s.made(p.r)
		select {
		case <-room:
			s.hoard(-waits)
		case <-ended:
			s.hoard(-waits)
			return p.r.lifetime.Err()
		}
	}
}

// shed gives up an answer because too many wait for a client that does not
// take them. A refusal goes out in its place, at once and past every limit: it
// is small, and who would wait here would keep the large answer in memory.
func (p *Responder) shed(last bool) error {
	refusal := Refuse(CodeOverloaded, "%s: the answer was given up, because the answers before it are not read (read them, then ask again)", p.r.request.Kind)
	refusal.RetryAfterMillis = 100
	if !last {
		return refusal
	}
	if p.r.request.Kind.mutates() {
		refusal = Refuse(CodeOutcomeUnknown, "%s: the answer was given up, because the answers before it are not read (retry under the same request ID)", p.r.request.Kind)
	}
	p.code = refusal.Code
	p.r.session.refuseNow(p.r, refusal)
	return refusal
}

// lifetime is a request's context. It costs nothing until someone waits on
// it: the channel is made by the first Done, and deadlines are kept by one
// timer per connection (session.expire).
type lifetime struct {
	deadline time.Time // zero: none

	mu    sync.Mutex
	done  chan struct{} // nil: nobody has asked
	err   error
	after map[*afterFunc]struct{}
}

type afterFunc struct{ f func() }

var _ context.Context = (*lifetime)(nil)

// Deadline is when the request's time is up.
func (l *lifetime) Deadline() (time.Time, bool) { return l.deadline, !l.deadline.IsZero() }

// Done is closed when the request ends.
func (l *lifetime) Done() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done == nil {
		l.done = make(chan struct{})
		if l.err != nil {
			close(l.done)
		}
	}
	return l.done
}

// Err is why it ended.
func (l *lifetime) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Value is of no use here.
func (l *lifetime) Value(any) any { return nil }

// AfterFunc lets package context derive contexts from this one without a
// goroutine for each.
func (l *lifetime) AfterFunc(f func()) (stop func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		go f() // as package context does; it ends with f
		return func() bool { return false }
	}
	a := &afterFunc{f}
	if l.after == nil {
		l.after = make(map[*afterFunc]struct{})
	}
	l.after[a] = struct{}{}
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		_, waiting := l.after[a]
		delete(l.after, a)
		return waiting
	}
}

// end ends the request; the first reason stays.
func (l *lifetime) end(err error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = err
	if l.done != nil {
		close(l.done)
	}
	after := l.after
	l.after = nil
	l.mu.Unlock()
	for a := range after {
		a.f() // ends a derived context; does not block
	}
}
