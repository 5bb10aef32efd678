package wire

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/impossibledb/idb/client/workers"
)

// Logger is what the server needs of the house's logger.
type Logger interface {
	Debug(event string, facts ...any)
	Warn(event string, facts ...any)
}

type noLogger struct{}

func (noLogger) Debug(string, ...any) {}
func (noLogger) Warn(string, ...any)  {}

// ServerOptions are the settings of a server.
type ServerOptions struct {
	// Handler answers every request but hellos and pings.
	Handler Handler
	// Hello accepts a client, or refuses it. Magic and protocol version have
	// been checked; what it leaves empty of the limits and the version is
	// filled in. Nil: clients are not served here.
	Hello func(*ConnInfo, *Hello) (HelloReply, *Error)
	// PeerHello accepts another node by the body of its KindPeerHello, or
	// refuses it; the answer's body is its own affair. Nil: this is no peer
	// port, and peer kinds are refused.
	PeerHello func(*ConnInfo, []byte) ([]byte, *Error)
	Logger    Logger

	// MaxConns is how many connections there may be; more are refused with
	// TooManyConns. Zero means 4096.
	MaxConns int
	// MaxInFlight is how many requests one connection may have in service;
	// more are refused with TooManyRequests. Zero means MaxInFlight.
	MaxInFlight int
	// MaxRequests is how many requests all connections together may have in
	// service; more are refused with Overloaded. Zero means 65536.
	MaxRequests int
	// MaxFrame is the largest frame accepted, in bytes. Zero means MaxFrameBytes.
	MaxFrame int
	// MaxQueued is how many bytes of answers wait on one connection for a slow
	// client before its handlers and its reading wait. Zero means 512 KiB.
	MaxQueued int
	// MaxConnBytes bounds the request bodies that one connection has in
	// service; past it no new frames are read from it. Zero means 32 MiB.
	MaxConnBytes int64
	// MaxRequestBytes bounds those of all connections together; past it no new
	// frames are read from connections that have more than 256 KiB in service.
	// Zero means 256 MiB.
	MaxRequestBytes int64
	// MaxConnAnswerBytes bounds the answers that are ready and wait, beyond
	// MaxQueued, for the client of one connection; past it further ones are
	// given up. Too little hurts clients that ask for much at once. Zero means
	// 32 MiB.
	MaxConnAnswerBytes int64
	// MaxAnswerBytes bounds the answers that wait on all connections together.
	// Past half of it the patience with clients that do not read is one second
	// instead of StallTimeout; past all of it connections queue 64 KiB instead
	// of MaxQueued, and those with more than 1 MiB waiting beyond that have
	// further answers given up. Zero means 64 MiB.
	MaxAnswerBytes int64

	// HelloTimeout is how long a new connection may take to say hello. Zero
	// means 5s.
	HelloTimeout time.Duration
	// StallTimeout is how long a peer may stand still in the middle of a frame,
	// its own or ours, before it is dropped. Zero means 10s.
	StallTimeout time.Duration
	// FrameTimeout is how long a peer may take for one whole frame, or to read
	// all that was queued when it fell behind. Too short drops honest peers on
	// thin lines; too long lets dribbling ones hold memory. Zero means 60s.
	FrameTimeout time.Duration

	// Observe is told of every answered request; nil: no time is measured.
	Observe func(Observation)
}

// Observation is one answered request.
type Observation struct {
	Kind     Kind
	Code     Code
	Peer     bool
	Took     time.Duration // in the handler
	BytesIn  int           // of the request's body
	BytesOut int           // of the answer's bodies
}

func (o ServerOptions) withDefaults() ServerOptions {
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&o.MaxConns, 4096)
	set(&o.MaxInFlight, MaxInFlight)
	set(&o.MaxRequests, 1<<16)
	set(&o.MaxFrame, MaxFrameBytes)
	set(&o.MaxQueued, 512<<10)
	if o.MaxConnBytes <= 0 {
		o.MaxConnBytes = 32 << 20
	}
	if o.MaxRequestBytes <= 0 {
		o.MaxRequestBytes = 256 << 20
	}
	if o.MaxConnAnswerBytes <= 0 {
		o.MaxConnAnswerBytes = 32 << 20
	}
	if o.MaxAnswerBytes <= 0 {
		o.MaxAnswerBytes = 64 << 20
	}
	if o.HelloTimeout <= 0 {
		o.HelloTimeout = 5 * time.Second
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = 10 * time.Second
	}
	if o.FrameTimeout <= 0 {
		o.FrameTimeout = 60 * time.Second
	}
	if o.Logger == nil {
		o.Logger = noLogger{}
	}
	return o
}

// Server serves connections. Each has two goroutines, one that reads and one
// that writes; requests are served by goroutines that the connections share.
// One more looks over all connections for peers that stand still, so that no
// timer is touched on the way of a request.
//
// Life of a server: NewServer, Serve on one or more listeners (or ServeConn),
// Drain to let go of the work in hand, Close.
type Server struct {
	o       ServerOptions
	starter Starter // the handler, if it is one
	workers *workers.Pool[task]

	requestBytes atomic.Int64  // bodies in service
	answers      pressure      // bytes of answers that wait for their clients
	inFlight     atomic.Int64  // requests in service
	accepted     atomic.Uint64 // connections ever
	dropped      atomic.Uint64 // connections ended by us

	mu        sync.Mutex
	sessions  map[*session]struct{}
	listeners map[net.Listener]struct{}
	closed    bool
	draining  atomic.Bool
	quiet     chan struct{} // closed when the last request ends; nil: nobody waits

	stop chan struct{}
	bg   sync.WaitGroup // sessions, Serve loops and the watcher
}

// NewServer makes a server. It must be closed.
func NewServer(o ServerOptions) *Server {
	o = o.withDefaults()
	s := &Server{
		o:         o,
		answers:   pressure{max: o.MaxAnswerBytes},
		sessions:  make(map[*session]struct{}),
		listeners: make(map[net.Listener]struct{}),
		stop:      make(chan struct{}),
		workers:   workers.New(task.do),
	}
	s.starter, _ = o.Handler.(Starter)
	s.bg.Add(1)
	go func() {
		defer s.bg.Done()
		s.watch()
	}()
	return s
}

// ErrServerClosed: Serve or ServeConn after Close or Drain.
var ErrServerClosed = errors.New("wire: server closed")

// Serve accepts connections until the server is closed or drained, when it
// returns nil, or until the listener fails. It closes the listener.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed || s.draining.Load() {
		s.mu.Unlock()
		_ = l.Close()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.bg.Add(1)
	s.mu.Unlock()
	defer func() {
		_ = l.Close()
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
		s.bg.Done()
	}()
	for pause := time.Duration(0); ; {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			s.start(nc)
			continue
		}
		s.mu.Lock()
		over := s.closed || s.draining.Load()
		s.mu.Unlock()
		if over {
			return nil
		}
		var temporary interface{ Temporary() bool }
		if !errors.As(err, &temporary) || !temporary.Temporary() {
			return err
		}
		// Out of files, most likely: those we have go on, new ones wait.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.o.Logger.Warn("accept failed", "error", err, "again_in", pause)
		select {
		case <-time.After(pause):
		case <-s.stop:
			return nil
		}
	}
}

// ServeConn serves one connection and returns when it has ended.
func (s *Server) ServeConn(nc net.Conn) error {
	ended := s.start(nc)
	if ended == nil {
		return ErrServerClosed
	}
	<-ended
	return nil
}

// start begins a session. It gives nil if the server takes none.
func (s *Server) start(nc net.Conn) (ended <-chan struct{}) {
	ss := newSession(s, nc)
	s.mu.Lock()
	if s.closed || s.draining.Load() {
		s.mu.Unlock()
		_ = nc.Close()
		return nil
	}
	// One too many is told so, which takes a session for a moment; a flood of
	// them is not.
	ss.tooMany = len(s.sessions) >= s.o.MaxConns
	if len(s.sessions) >= s.o.MaxConns+s.o.MaxConns/8+16 {
		s.mu.Unlock()
		_ = nc.Close()
		return nil
	}
	s.sessions[ss] = struct{}{}
	s.accepted.Add(1)
	s.bg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.bg.Done()
		ss.run()
		s.mu.Lock()
		delete(s.sessions, ss)
		s.mu.Unlock()
		close(ss.ended)
	}()
	return ss.ended
}

// Drain stops accepting connections and refuses new requests with
// ShuttingDown, and waits until those in service are answered, or for ctx.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.draining.Store(true)
	for l := range s.listeners {
		_ = l.Close()
	}
	s.mu.Unlock()
	for {
		s.mu.Lock()
		if s.inFlight.Load() == 0 {
			s.mu.Unlock()
			break
		}
		if s.quiet == nil {
			s.quiet = make(chan struct{})
		}
		quiet := s.quiet
		s.mu.Unlock()
		select {
		case <-quiet:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	// The answers are queued; let them out.
	for _, ss := range s.open() {
		drained := ss.out.drained()
		if drained == nil {
			continue
		}
		select {
		case <-drained:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// open lists the sessions.
func (s *Server) open() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.sessions))
}

// Close ends every connection, cancels the requests in service and waits for
// their handlers and for every goroutine of the server.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
		for l := range s.listeners {
			_ = l.Close()
		}
	}
	s.mu.Unlock()
	for _, ss := range s.open() {
		ss.end(errServerStops)
	}
	s.bg.Wait()
	s.workers.Close()
	return nil
}

// ServerStats is a server's state in numbers.
type ServerStats struct {
	Conns        int
	Accepted     uint64 // connections ever
	Dropped      uint64 // connections that broke a rule or stood still
	InFlight     int64  // requests in service
	RequestBytes int64  // their bodies
	AnswerBytes  int64  // answers that wait for their clients
}

// Stats gives the server's numbers.
func (s *Server) Stats() ServerStats {
	st := ServerStats{
		Accepted:     s.accepted.Load(),
		Dropped:      s.dropped.Load(),
		InFlight:     s.inFlight.Load(),
		RequestBytes: s.requestBytes.Load(),
		AnswerBytes:  s.answers.bytes.Load(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Conns = len(s.sessions)
	return st
}

// watch looks at every connection a few times per timeout.
func (s *Server) watch() {
	period := min(s.o.HelloTimeout, s.o.StallTimeout, 4*time.Second) / 4
	ticks := time.NewTicker(max(period, time.Millisecond))
	defer ticks.Stop()
	for {
		select {
		case <-s.stop:
			return
		case now := <-ticks.C:
			s.look(now)
		}
	}
}

func (s *Server) look(now time.Time) {
	patience := s.o.StallTimeout
	if s.answers.bytes.Load() > s.o.MaxAnswerBytes/2 {
		patience = min(patience, time.Second)
	}
	s.mu.Lock()
	var stalled []*session
	for ss := range s.sessions {
		if ss.stalled(now, patience) {
			stalled = append(stalled, ss)
		}
	}
	s.mu.Unlock()
	for _, ss := range stalled {
		ss.drop(errStalled)
	}
}

var (
	errStalled     = errors.New("the peer stands still")
	errServerStops = errors.New("the server stops")
)

// began and finished count a request.
func (s *Server) began(bytes int) {
	s.inFlight.Add(1)
	s.requestBytes.Add(int64(bytes))
}

func (s *Server) finished(bytes int) {
	s.requestBytes.Add(-int64(bytes))
	if s.inFlight.Add(-1) != 0 || !s.draining.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quiet != nil {
		close(s.quiet)
		s.quiet = nil
	}
}

// task is a request to serve, or something else to do.
type task struct {
	r *inFlight
	f func()
}

func (t task) do() {
	if t.f != nil {
		t.f()
	} else {
		t.r.session.serve(t.r)
	}
}
