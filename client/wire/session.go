package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// session is the server's side of one connection.
//
// Life of a session: hello, requests, and either the peer goes (end), or it
// breaks a rule and is told so (refuse), or it stands still (drop).
//
// Invariant: a request is in open from its arrival until just before its last
// answer is queued, so that a client that has the answer can use the ID again.
type session struct {
	server *Server
	nc     net.Conn
	out    *outbox
	in     frameReader
	info   ConnInfo

	tooMany bool // over MaxConns: refuse it
	began   time.Time

	mu       sync.Mutex
	open     map[uint64]*inFlight
	pace     pace
	feeding  bool        // a goroutine waits to begin what waits
	err      error       // set once: why the connection ends
	expiry   *time.Timer // of the earliest deadline; nil: never armed
	expireAt time.Time   // when expiry fires; zero: it is not armed

	greeted  atomic.Bool
	bytes    atomic.Int64  // of requests in service
	waiting  atomic.Int64  // bytes of answers whose handlers wait for room
	heldBack atomic.Bool   // the reading waits for freed
	freed    chan struct{} // one signal that bytes has fallen

	gone    chan struct{}  // closed with err
	ended   chan struct{}  // closed when everything of the session is over
	serving sync.WaitGroup // requests
	bg      sync.WaitGroup // the writer, the expiry timer while armed

	// What the watcher saw last; its own.
	watch watched
}

// maxHello is the largest first frame: a stranger gets no more memory.
const maxHello = 16 << 10

func newSession(s *Server, nc net.Conn) *session {
	ss := &session{
		server: s,
		nc:     nc,
		began:  time.Now(),
		open:   make(map[uint64]*inFlight),
		freed:  make(chan struct{}, 1),
		gone:   make(chan struct{}),
		ended:  make(chan struct{}),
	}
	if addr := nc.RemoteAddr(); addr != nil {
		ss.info.Remote = addr.String()
	}
	ss.out = newOutbox(nc, s.o.MaxQueued, ss.end)
	ss.out.all = &s.answers
	ss.in = frameReader{src: ss.out.source(), max: min(maxHello, s.o.MaxFrame)}
	return ss
}

// run reads until the connection ends, and waits for all that it started.
func (ss *session) run() {
	ss.bg.Add(1)
	go func() {
		defer ss.bg.Done()
		ss.out.run()
	}()
	err := ss.read()
	var refused *refusedError
	if errors.As(err, &refused) {
		ss.server.dropped.Add(1)
		ss.server.o.Logger.Debug("connection refused", "remote", ss.info.Remote, "error", err)
		ss.refuse(refused)
	}
	ss.end(err)
	ss.serving.Wait()
	ss.bg.Wait()
	ss.out.count(-int(ss.out.backlog.Load())) // nobody will read it
}

// refusedError ends a connection with a word to the peer.
type refusedError struct {
	kind    Kind
	request uint64
	refusal *Error
}

func (e *refusedError) Error() string { return e.refusal.Message }

func (ss *session) read() error {
	var f Frame
	if ss.tooMany {
		return &refusedError{refusal: Refuse(CodeTooManyConns, "this node serves %d connections already, which is its limit (try another node, or close some)", ss.server.o.MaxConns)}
	}
	if err := ss.next(&f); err != nil {
		return err
	}
	if err := ss.hello(&f); err != nil {
		return err
	}
	ss.in.max = ss.server.o.MaxFrame
	ss.greeted.Store(true)
	for {
		if !ss.in.buffered() {
			if err := ss.waitForRoom(); err != nil {
				return err
			}
		}
		if err := ss.next(&f); err != nil {
			return err
		}
		if err := ss.take(&f); err != nil {
			return err
		}
	}
}

// next is the next frame, which must be a request.
func (ss *session) next(f *Frame) error {
	if err := ss.in.next(f); err != nil {
		var bad *FrameError
		if errors.As(err, &bad) {
			return &refusedError{request: bad.Request, refusal: &Error{Code: bad.Code, Message: bad.Error()}}
		}
		return err
	}
	if f.Flags != 0 {
		return &refusedError{f.Kind, f.Request, Refuse(CodeBadRequest, "frame: flags 0x%02x on a request, they are for answers", f.Flags)}
	}
	if f.Request == 0 {
		return &refusedError{f.Kind, 0, Refuse(CodeBadRequest, "frame: request ID 0 stands for the connection, requests begin at 1")}
	}
	return nil
}

// fairShare is how many bytes of requests a connection may have in service
// when all connections together have too many.
const fairShare = 256 << 10

// waitForRoom holds back the reading while the client is slow to take its
// answers, or has too much in service. What others have in service holds back
// only those that have much themselves.
func (ss *session) waitForRoom() error {
	for room := ss.out.full(); room != nil; room = ss.out.full() {
		<-room // closed also when the connection fails
	}
	if !ss.overloaded() {
		return nil
	}
	ss.heldBack.Store(true)
	defer ss.heldBack.Store(false)
	for ss.overloaded() {
		select {
		case <-ss.freed:
		case <-ss.gone:
			return nil // the next read says why
		}
	}
	return nil
}

func (ss *session) overloaded() bool {
	o, mine := &ss.server.o, ss.bytes.Load()
	return mine > o.MaxConnBytes || mine > fairShare && ss.server.requestBytes.Load() > o.MaxRequestBytes
}

// finished counts a request out.
func (ss *session) finished(bytes int) {
	ss.bytes.Add(-int64(bytes))
	ss.server.finished(bytes)
	if ss.heldBack.Load() {
		select {
		case ss.freed <- struct{}{}:
		default:
		}
	}
}

// hello answers the first frame.
func (ss *session) hello(f *Frame) error {
	o := &ss.server.o
	var body []byte
	var refusal *Error
	switch {
	case f.Kind == KindHello && o.Hello != nil:
		body, refusal = ss.clientHello(f.Body)
	case f.Kind == KindPeerHello && o.PeerHello != nil:
		ss.info.Peer = true
		body, refusal = o.PeerHello(&ss.info, f.Body)
	case f.Kind == KindPeerHello:
		refusal = Refuse(CodeUnsupported, "hello: this port is for clients, nodes have one of their own (see --peer-addr)")
	case f.Kind == KindHello:
		refusal = Refuse(CodeUnsupported, "hello: this port is for nodes, clients have one of their own (see --client-addr)")
	default:
		refusal = Refuse(CodeBadRequest, "hello: the first frame is of kind %s, it must be a hello", f.Kind)
	}
	if refusal != nil {
		return &refusedError{f.Kind, f.Request, refusal}
	}
	_, err := ss.out.send(&Frame{Kind: f.Kind, Flags: FlagResponse, Request: f.Request, Body: body}, true)
	return err
}

func (ss *session) clientHello(body []byte) ([]byte, *Error) {
	hello := &ss.info.Hello
	if err := Decode(body, hello); err != nil {
		return nil, err.(*Error)
	}
	if hello.Magic != Magic {
		return nil, Refuse(CodeBadRequest, "hello: magic is %.16q, it must be %q (is this an ImpossibleDB client?)", hello.Magic, Magic)
	}
	if hello.MinVersion > ProtocolVersion || hello.MaxVersion < ProtocolVersion || hello.MinVersion > hello.MaxVersion {
		return nil, Refuse(CodeBadVersion, "hello: the client speaks protocol versions %d to %d, this server %d (upgrade the older one)",
			hello.MinVersion, hello.MaxVersion, ProtocolVersion)
	}
	o := &ss.server.o
	reply, refusal := o.Hello(&ss.info, hello)
	if refusal != nil {
		return nil, refusal
	}
	set := func(v *uint32, d int) {
		if *v == 0 {
			*v = uint32(d)
		}
	}
	set(&reply.Version, ProtocolVersion)
	set(&reply.MaxFrame, o.MaxFrame)
	set(&reply.MaxDocument, DefaultDocumentSize)
	set(&reply.MaxInFlight, o.MaxInFlight)
	return reply.AppendTo(nil), nil
}

// take starts a request, or answers what needs no handler.
func (ss *session) take(f *Frame) error {
	switch {
	case f.Kind == KindPing:
		_, err := ss.out.send(&Frame{Kind: KindPing, Flags: FlagResponse, Request: f.Request}, true)
		return err
	case f.Kind == KindCancel:
		ss.cancel(f.Request)
		return nil
	case f.Kind == KindHello || f.Kind == KindPeerHello:
		return &refusedError{f.Kind, f.Request, Refuse(CodeBadRequest, "hello: a second one on one connection")}
	case f.Kind == 0 || f.Kind > lastKind || f.Kind > lastClientKind && f.Kind < firstPeerKind:
		return ss.turnDown(f, Refuse(CodeUnsupported, "request: kind %d is not known to this server (is it older than the client?)", f.Kind))
	case f.Kind.Peer() && !ss.info.Peer:
		return ss.turnDown(f, Refuse(CodeUnsupported, "request: kind %s is for nodes only", f.Kind))
	}
	// Counted first, then asked: Drain sees this request, or it sees Drain.
	ss.bytes.Add(int64(len(f.Body)))
	ss.server.began(len(f.Body))
	if ss.server.draining.Load() {
		ss.finished(len(f.Body))
		return ss.turnDown(f, Refuse(CodeShuttingDown, "this node is shutting down (ask another one)"))
	}
	if ss.server.inFlight.Load() > int64(ss.server.o.MaxRequests) {
		ss.finished(len(f.Body))
		return ss.turnDown(f, Refuse(CodeOverloaded, "this node serves %d requests already, which is its limit (retry, or ask another node)", ss.server.o.MaxRequests))
	}
	r := &inFlight{session: ss}
	r.request = Request{Kind: f.Kind, ID: f.Request, Body: f.Body, Conn: &ss.info}
	r.responder.r = r
	if f.Timeout != 0 || ss.server.o.Observe != nil {
		now := time.Now()
		if f.Timeout != 0 {
			r.lifetime.deadline = now.Add(time.Duration(f.Timeout) * time.Millisecond)
		}
		if ss.server.o.Observe != nil {
			r.started = now
		}
	}
	ss.mu.Lock()
	if err := ss.err; err != nil {
		ss.mu.Unlock()
		ss.finished(len(f.Body))
		return err
	}
	if _, twice := ss.open[f.Request]; twice {
		ss.mu.Unlock()
		ss.finished(len(f.Body))
		return &refusedError{f.Kind, 0, Refuse(CodeBadRequest, "request: ID %d is of a request that is still open", f.Request)}
	}
	if len(ss.open) >= ss.server.o.MaxInFlight {
		ss.mu.Unlock()
		ss.finished(len(f.Body))
		return ss.turnDown(f, Refuse(CodeTooManyRequests, "request: %d are open on this connection, which is the limit (wait for answers)", ss.server.o.MaxInFlight))
	}
	ss.open[f.Request] = r
	ss.serving.Add(1)
	if f.Timeout != 0 {
		ss.armLocked(r.lifetime.deadline)
	}
	unread := ss.out.full() != nil
	now := ss.info.Peer || ss.pace.admit(r, unread)
	if !now {
		ss.feedLocked()
	}
	ss.mu.Unlock()
	if now {
		ss.begin(r)
	}
	return nil
}

// begin has r served. It does not wait.
func (ss *session) begin(r *inFlight) {
	s := ss.server
	how := StartApart
	if s.starter != nil {
		how = s.starter.StartWire(&r.lifetime, &r.request, &r.responder)
	}
	switch how {
	case StartTaken:
	case StartHere:
		ss.serve(r)
	default:
		s.workers.Run(task{r: r})
	}
}

// turnDown refuses one request; the connection goes on.
func (ss *session) turnDown(f *Frame, refusal *Error) error {
	if ss.server.o.Observe != nil {
		ss.server.o.Observe(Observation{Kind: f.Kind, Code: refusal.Code, Peer: ss.info.Peer, BytesIn: len(f.Body)})
	}
	_, err := ss.out.send(&Frame{Kind: f.Kind, Flags: FlagResponse | FlagError, Request: f.Request, Body: refusal.AppendTo(nil)}, true)
	return err
}

// serve runs the handler; in a worker's goroutine.
func (ss *session) serve(r *inFlight) {
	s := ss.server
	s.o.Handler.ServeWire(&r.lifetime, &r.request, &r.responder)
	if !r.responder.answered {
		refusal := Refuse(CodeInternal, "request: kind %s got no answer from its handler", r.request.Kind)
		if r.lifetime.Err() != nil {
			refusal = Refuse(CodeOutcomeUnknown, "request: its time was up, or it was cancelled, before there was an answer (retry under the same request ID)")
		}
		_ = r.responder.Fail(refusal)
	}
	ss.complete(r)
}

// complete ends an answered request.
func (ss *session) complete(r *inFlight) {
	s := ss.server
	r.lifetime.end(context.Canceled)
	ss.finished(len(r.request.Body))
	if s.o.Observe != nil {
		s.o.Observe(Observation{
			Kind: r.request.Kind, Code: r.responder.code, Peer: ss.info.Peer,
			Took: time.Since(r.started), BytesIn: len(r.request.Body), BytesOut: r.responder.bytes,
		})
	}
	ss.serving.Done()
}

// answer queues a frame of an answer, or gives a channel to wait on first. The
// last one ends the request: before it can arrive, its ID is free.
func (ss *session) answer(r *inFlight, f *outgoing, last bool) (room <-chan struct{}, err error) {
	if room := ss.out.full(); room != nil {
		return room, nil
	}
	alone := false
	if last {
		ss.mu.Lock()
		delete(ss.open, r.request.ID)
		alone = len(ss.open) == 0
		ss.mu.Unlock()
	}
	_, room, err = ss.out.offer(f, alone)
	switch {
	case err == errTooLarge:
		if last {
			ss.mu.Lock()
			ss.open[r.request.ID] = r // a refusal follows
			ss.mu.Unlock()
		}
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("wire: the client is gone: %w", err)
	case room != nil && !last:
	case room != nil:
		ss.mu.Lock()
		ss.open[r.request.ID] = r // not answered yet after all
		ss.mu.Unlock()
	default:
		r.largest = max(r.largest, f.size)
		if last {
			ss.makeWay(r)
		}
	}
	return room, nil
}

func (ss *session) made(r *inFlight) {
	ss.mu.Lock()
	ss.pace.made(r)
	ss.mu.Unlock()
}

// makeWay makes way for requests that wait for others to end. The answer is
// queued: until then the request counts as one in the making.
func (ss *session) makeWay(r *inFlight) {
	ss.mu.Lock()
	ss.pace.ended(r)
	for len(ss.pace.waiting) > 0 && ss.out.full() == nil {
		next := ss.pace.next()
		if next == nil {
			break
		}
		ss.mu.Unlock()
		ss.begin(next)
		ss.mu.Lock()
	}
	ss.mu.Unlock()
}

// feedLocked sees to it that waiting requests begin also when none ends: when
// the client has taken its answers, and when those that were begun only wait.
func (ss *session) feedLocked() {
	if ss.feeding || ss.err != nil {
		return
	}
	ss.feeding = true
	ss.bg.Add(1)
	go func() {
		defer ss.bg.Done()
		rounds := time.NewTicker(paceRound)
		defer rounds.Stop()
		for {
			for room := ss.out.full(); room != nil; room = ss.out.full() {
				<-room // closed also when the connection fails
			}
			ss.mu.Lock()
			next := ss.pace.next()
			if next == nil && len(ss.pace.waiting) == 0 {
				ss.feeding = false
				ss.mu.Unlock()
				return
			}
			ss.mu.Unlock()
			if next != nil {
				ss.begin(next)
				continue
			}
			select {
			case <-rounds.C:
				ss.mu.Lock()
				ss.pace.age(ss.open)
				ss.mu.Unlock()
			case <-ss.gone:
			}
		}
	}()
}

// fewAnswers is how many bytes of answers may wait on any connection, and
// smallAnswer how large one is that is not worth giving up.
const (
	fewAnswers  = 1 << 20
	smallAnswer = 4 << 10
)

// hoard counts bytes of an answer that waits for room, or with a negative
// number counts them out. It is false, and has counted nothing, if too many
// wait already.
func (ss *session) hoard(bytes int) bool {
	s := ss.server
	mine, all := ss.waiting.Add(int64(bytes)), s.answers.bytes.Add(int64(bytes))
	if bytes <= smallAnswer || ss.info.Peer {
		return true
	}
	if mine <= fewAnswers || mine <= s.o.MaxConnAnswerBytes && all <= s.o.MaxAnswerBytes {
		return true
	}
	ss.waiting.Add(-int64(bytes))
	s.answers.bytes.Add(-int64(bytes))
	return false
}

// refuseNow answers a request past every limit.
func (ss *session) refuseNow(r *inFlight, refusal *Error) {
	ss.mu.Lock()
	delete(ss.open, r.request.ID)
	ss.mu.Unlock()
	// A failed connection needs no answer.
	_, _ = ss.out.send(&Frame{Kind: r.request.Kind, Flags: FlagResponse | FlagError, Request: r.request.ID, Body: refusal.AppendTo(nil)}, false)
	ss.makeWay(r)
}

// answerLimit is the largest frame that the other side accepts: nodes agree on
// their own limit, every client takes the protocol's.
func (ss *session) answerLimit() int {
	if ss.info.Peer {
		return ss.server.o.MaxFrame
	}
	return MaxFrameBytes
}

// cancel ends a request's context. It may have been answered already.
func (ss *session) cancel(id uint64) {
	ss.mu.Lock()
	r := ss.open[id]
	ss.mu.Unlock()
	if r != nil {
		r.lifetime.end(context.Canceled)
	}
}

// armLocked makes expire run at the deadline, if not before. Requests of one
// client mostly have the same timeout, so the timer is set once per timeout
// and not once per request.
func (ss *session) armLocked(deadline time.Time) {
	if !ss.expireAt.IsZero() && !deadline.Before(ss.expireAt) {
		return
	}
	ss.expireAt = deadline
	wait := time.Until(deadline)
	if ss.expiry == nil {
		ss.bg.Add(1)
		ss.expiry = time.AfterFunc(wait, ss.expire)
		return
	}
	if !ss.expiry.Stop() {
		ss.bg.Add(1) // a stopped run has been counted already, any other counts for itself
	}
	ss.expiry.Reset(wait)
}

// expire ends the requests whose time is up.
func (ss *session) expire() {
	defer ss.bg.Done()
	now := time.Now()
	ss.mu.Lock()
	ss.expireAt = time.Time{}
	var over []*inFlight
	var next time.Time
	for _, r := range ss.open {
		d := r.lifetime.deadline
		switch {
		case d.IsZero() || r.lifetime.Err() != nil:
		case !d.After(now):
			over = append(over, r)
		case next.IsZero() || d.Before(next):
			next = d
		}
	}
	if !next.IsZero() && ss.err == nil {
		ss.armLocked(next)
	}
	ss.mu.Unlock()
	for _, r := range over {
		r.lifetime.end(context.DeadlineExceeded)
	}
}

// end ends the connection and every request on it. It does not wait for them.
func (ss *session) end(err error) {
	if err == nil || err == io.EOF {
		err = errClientGone
	}
	ss.mu.Lock()
	if ss.err != nil {
		ss.mu.Unlock()
		return
	}
	ss.err = err
	open := make([]*inFlight, 0, len(ss.open))
	for _, r := range ss.open {
		open = append(open, r)
	}
	never := ss.pace.waiting // begun by nobody
	ss.pace.waiting = nil
	if ss.expiry != nil && ss.expiry.Stop() {
		ss.bg.Done()
	}
	close(ss.gone)
	ss.mu.Unlock()
	_ = ss.nc.Close() // nothing can be lost that was not lost already
	ss.out.fail(err)
	for _, r := range open {
		r.lifetime.end(context.Canceled)
	}
	for _, r := range never {
		ss.finished(len(r.request.Body))
		ss.serving.Done()
	}
}

var errClientGone = errors.New("the client closed the connection")

// drop ends the connection of a peer that stands still.
func (ss *session) drop(err error) {
	ss.server.dropped.Add(1)
	ss.server.o.Logger.Debug("connection dropped", "remote", ss.info.Remote, "error", err)
	ss.end(err)
}

// lingerTimeout is how long a refused peer has to read why.
const lingerTimeout = time.Second

// refuse tells the peer why its connection ends. A socket that is closed with
// unread input may throw away what it had to say, so some input is read and
// forgotten first.
func (ss *session) refuse(e *refusedError) {
	f := Frame{Kind: e.kind, Flags: FlagResponse | FlagError, Request: e.request, Body: e.refusal.AppendTo(nil)}
	if _, err := ss.out.send(&f, false); err != nil {
		return
	}
	_ = ss.nc.SetDeadline(time.Now().Add(lingerTimeout))
	if drained := ss.out.drained(); drained != nil {
		<-drained // or the deadline fails the write
	}
	if half, ok := ss.nc.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, ss.nc, MaxFrameBytes)
	}
}

// watched is what the watcher remembers of a connection between looks.
type watched struct {
	frames       uint64 // frames read when the present one began
	received     uint64
	frameSince   time.Time // zero: between frames
	receiveSince time.Time

	written    uint64
	mark       uint64    // end of what was queued at markSince
	markSince  time.Time // zero: nothing was queued
	writeSince time.Time
}

// stalled says that the peer should be dropped. Only the watcher calls it.
func (ss *session) stalled(now time.Time, patience time.Duration) bool {
	o := &ss.server.o
	w := &ss.watch
	if !ss.greeted.Load() {
		return now.Sub(ss.began) > o.HelloTimeout
	}
	frames, received := ss.in.frames.Load(), ss.in.received.Load()
	switch {
	case !ss.in.partial.Load():
		w.frameSince = time.Time{}
	case w.frameSince.IsZero() || w.frames != frames:
		w.frameSince, w.receiveSince = now, now
	case w.received != received:
		w.receiveSince = now
	}
	w.frames, w.received = frames, received
	if !w.frameSince.IsZero() && (now.Sub(w.receiveSince) > o.StallTimeout || now.Sub(w.frameSince) > o.FrameTimeout) {
		return true
	}
	written, backlog := ss.out.written.Load(), ss.out.backlog.Load()
	if backlog <= 0 {
		w.markSince = time.Time{}
		return false
	}
	if w.markSince.IsZero() || written >= w.mark {
		w.mark, w.markSince = written+uint64(backlog), now
		w.writeSince = now
	} else if w.written != written {
		w.writeSince = now
	}
	w.written = written
	return now.Sub(w.writeSince) > patience || now.Sub(w.markSince) > o.FrameTimeout
}
