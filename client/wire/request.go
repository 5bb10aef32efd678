package wire

import (
	"context"
	"errors"
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
// is slow to take earlier answers.
func (p *Responder) Reply(body []byte) error {
	return p.finish(FlagResponse, body, CodeOK)
}

// ReplyMessage sends the last answer; a nil m is an empty body.
func (p *Responder) ReplyMessage(m Message) error {
	buf := getScratch()
	*buf = Append(*buf, m)
	err := p.Reply(*buf)
	putScratch(buf)
	return err
}

// Fail sends a refusal as the last answer.
func (p *Responder) Fail(refusal *Error) error {
	buf := getScratch()
	*buf = refusal.AppendTo(*buf)
	err := p.finish(FlagResponse|FlagError, *buf, refusal.Code)
	putScratch(buf)
	return err
}

// Send sends a part of a streaming answer, more follow. The body is copied.
// It waits while the client is slow to take earlier answers; the error is the
// context's, or says that the connection is gone.
func (p *Responder) Send(body []byte) error {
	if p.answered {
		return ErrAnswered
	}
	return p.send(FlagResponse|FlagMore, body)
}

// SendMessage sends a part of a streaming answer.
func (p *Responder) SendMessage(m Message) error {
	buf := getScratch()
	*buf = Append(*buf, m)
	err := p.Send(*buf)
	putScratch(buf)
	return err
}

// Answered says that the last answer was given.
func (p *Responder) Answered() bool { return p.answered }

func (p *Responder) finish(flags uint8, body []byte, code Code) error {
	if p.answered {
		return ErrAnswered
	}
	if limit := p.r.session.answerLimit(); len(body)+FrameOverhead > limit {
		return p.Fail(Refuse(CodeFrameTooLarge, "the answer has %d bytes, a frame holds %d (ask for less at once)", len(body), limit-FrameOverhead))
	}
	p.answered, p.code = true, code
	return p.send(flags, body)
}

func (p *Responder) send(flags uint8, body []byte) error {
	s := p.r.session
	f := Frame{Kind: p.r.request.Kind, Flags: flags, Request: p.r.request.ID, Body: body}
	last := flags&FlagMore == 0
	var ended <-chan struct{} // a last answer is sent also when the time is up
	for {
		room, err := s.answer(p.r, &f, last)
		if err != nil {
			return err
		}
		if room == nil {
			p.bytes += len(body)
			return nil
		}
		if !last && ended == nil {
			ended = p.r.lifetime.Done()
		}
		s.server.waiting.Add(int64(len(body)))
		select {
		case <-room:
			s.server.waiting.Add(-int64(len(body)))
		case <-ended:
			s.server.waiting.Add(-int64(len(body)))
			return p.r.lifetime.Err()
		}
	}
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
