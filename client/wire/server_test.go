package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestHello(t *testing.T) {
	noLeaks(t)
	_, addr := listen(t, ServerOptions{
		Handler:     echo,
		MaxInFlight: 77,
		MaxFrame:    1 << 20,
		Hello: func(who *ConnInfo, h *Hello) (HelloReply, *Error) {
			if who.Remote == "" || h.Client == "" {
				t.Errorf("who is it? %+v", who)
			}
			if h.ClusterID != "" && h.ClusterID != "c1" {
				return HelloReply{}, Refuse(CodeWrongCluster, "this node belongs to cluster c1, the client wants %s", h.ClusterID)
			}
			return HelloReply{Server: "idb test", NodeID: "n1", ClusterID: "c1", Now: 9, MaxDocument: 1234, TopologyEpoch: 3}, nil
		},
	})
	c := dial(t, addr, ConnOptions{})
	want := HelloReply{Version: ProtocolVersion, Server: "idb test", NodeID: "n1", ClusterID: "c1", Now: 9,
		MaxFrame: 1 << 20, MaxDocument: 1234, MaxInFlight: 77, TopologyEpoch: 3}
	if got := c.Hello(); got != want {
		t.Errorf("%+v", got)
	}
	if _, err := c.Call(context.Background(), KindGet, make([]byte, 1<<20)); CodeOf(err) != CodeFrameTooLarge || c.Err() != nil {
		t.Errorf("above the server's limit: %v", err)
	}
	for _, tc := range []struct {
		name  string
		hello Hello
		code  Code
	}{
		{"a newer protocol", Hello{Client: "x", MinVersion: 2, MaxVersion: 9}, CodeBadVersion},
		{"an upside-down range", Hello{Client: "x", MinVersion: 5, MaxVersion: 1}, CodeBadVersion},
		{"another cluster", Hello{Client: "x", ClusterID: "c2"}, CodeWrongCluster},
	} {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c := NewConn(nc, ConnOptions{})
		if _, err := c.Handshake(context.Background(), tc.hello); CodeOf(err) != tc.code {
			t.Errorf("%s: %v", tc.name, err)
		}
		<-c.Done() // refused for good
		_ = c.Close()
	}
}

// A server that chooses a version it was not offered is not trusted.
func TestServerChoosesAnotherVersion(t *testing.T) {
	noLeaks(t)
	_, addr := listen(t, ServerOptions{Handler: echo, Hello: func(*ConnInfo, *Hello) (HelloReply, *Error) {
		return HelloReply{Version: 8}, nil
	}})
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := NewConn(nc, ConnOptions{})
	defer c.Close()
	if _, err := c.Handshake(context.Background(), Hello{}); CodeOf(err) != CodeBadVersion {
		t.Error(err)
	}
}

func TestPeerPort(t *testing.T) {
	noLeaks(t)
	type name string
	_, addr := listen(t, ServerOptions{
		Handler: HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
			who, _ := req.Conn.Identity.(name)
			_ = resp.Reply([]byte(string(who) + " asks for " + req.Kind.String()))
		}),
		PeerHello: func(who *ConnInfo, body []byte) ([]byte, *Error) {
			if len(body) == 0 {
				return nil, Refuse(CodeWrongCluster, "who are you?")
			}
			who.Identity = name(body)
			return []byte("welcome"), nil
		},
	})
	connect := func() *Conn {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c := NewConn(nc, ConnOptions{})
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	ctx := context.Background()
	c := connect()
	if body, err := c.Call(ctx, KindPeerHello, []byte("n2")); err != nil || string(body) != "welcome" {
		t.Fatalf("%q, %v", body, err)
	}
	for _, kind := range []Kind{KindConfirm, KindRaftAppend, KindGet} {
		if body, err := c.Call(ctx, kind, nil); err != nil || string(body) != "n2 asks for "+kind.String() {
			t.Errorf("%v: %q, %v", kind, body, err)
		}
	}
	if _, err := connect().Call(ctx, KindPeerHello, nil); CodeOf(err) != CodeWrongCluster {
		t.Errorf("a stranger: %v", err)
	}
	if _, err := connect().Handshake(ctx, Hello{}); CodeOf(err) != CodeUnsupported {
		t.Errorf("a client at the peer port: %v", err)
	}
	_, clients := listen(t, ServerOptions{Handler: echo})
	nc, err := net.Dial("tcp", clients)
	if err != nil {
		t.Fatal(err)
	}
	c = NewConn(nc, ConnOptions{})
	defer c.Close()
	if _, err := c.Call(ctx, KindPeerHello, []byte("n2")); CodeOf(err) != CodeUnsupported {
		t.Errorf("a node at the client port: %v", err)
	}
	client := dial(t, clients, ConnOptions{})
	for _, kind := range []Kind{KindConfirm, KindGroupCommand, 127} {
		if _, err := client.Call(ctx, kind, nil); CodeOf(err) != CodeUnsupported {
			t.Errorf("a client asks for %v: %v", kind, err)
		}
	}
	for _, kind := range []Kind{0, lastClientKind + 1, 63, 128, 255} {
		if _, err := client.Call(ctx, kind, nil); CodeOf(err) != CodeUnsupported {
			t.Errorf("kind %d: %v", kind, err)
		}
	}
	if client.Err() != nil {
		t.Errorf("unknown kinds cost the connection: %v", client.Err())
	}
}

func TestTooManyRequests(t *testing.T) {
	noLeaks(t)
	release := make(chan struct{})
	s, addr := listen(t, ServerOptions{MaxInFlight: 3, Handler: HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
		<-release
		_ = resp.Reply(req.Body)
	})})
	nc := raw(t, addr)
	for i := range 5 {
		writeFrame(t, nc, Frame{Kind: KindGet, Request: uint64(i + 2)})
	}
	for range 2 {
		f, err := ReadFrame(nc, MaxFrameBytes)
		var refusal Error
		if err != nil || f.Flags != FlagResponse|FlagError || Decode(f.Body, &refusal) != nil || refusal.Code != CodeTooManyRequests {
			t.Fatalf("%+v %v, %v", f, refusal, err)
		}
	}
	close(release)
	for range 3 {
		if f, err := ReadFrame(nc, MaxFrameBytes); err != nil || f.Flags != FlagResponse {
			t.Fatalf("%+v, %v", f, err)
		}
	}
	wait(t, "nothing in service", func() bool { return s.Stats().InFlight == 0 })
}

func TestRequestIDTwice(t *testing.T) {
	noLeaks(t)
	_, addr := listen(t, ServerOptions{Handler: HandlerFunc(func(ctx context.Context, req *Request, resp *Responder) {
		if len(req.Body) > 0 {
			<-ctx.Done()
		}
		_ = resp.Reply(nil)
	})})
	nc := raw(t, addr)
	for range 2 { // after its answer an ID may be used again
		writeFrame(t, nc, Frame{Kind: KindGet, Request: 2})
		if f, err := ReadFrame(nc, MaxFrameBytes); err != nil || f.Flags != FlagResponse {
			t.Fatalf("%+v, %v", f, err)
		}
	}
	for range 2 {
		writeFrame(t, nc, Frame{Kind: KindGet, Request: 2, Body: []byte("wait")})
	}
	f, err := ReadFrame(nc, MaxFrameBytes)
	var refusal Error
	if err != nil || f.Request != 0 || Decode(f.Body, &refusal) != nil || !strings.Contains(refusal.Message, "still open") {
		t.Errorf("%+v %v, %v", f, refusal, err)
	}
}

// One connection cannot fill the memory with requests, and when all together
// have too much in service, those that have little go on.
func TestRequestBytesAreBounded(t *testing.T) {
	noLeaks(t)
	const size = 100_000
	for _, tc := range []struct {
		name    string
		options ServerOptions
		most    int64
	}{
		{"of a connection", ServerOptions{MaxConnBytes: 10 * size}, 12 * size},
		{"of all", ServerOptions{MaxRequestBytes: 5 * size}, 7 * size},
	} {
		t.Run(tc.name, func(t *testing.T) {
			release := make(chan struct{})
			tc.options.Handler = HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
				if req.Kind == KindWrite {
					<-release
				}
				_ = resp.Reply(nil)
			})
			s, addr := listen(t, tc.options)
			greedy, modest := dial(t, addr, ConnOptions{}), dial(t, addr, ConnOptions{})
			var wg sync.WaitGroup
			for range 60 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					if _, err := greedy.Call(context.Background(), KindWrite, make([]byte, size)); err != nil {
						t.Error(err)
					}
				}()
			}
			held := func() bool {
				for _, ss := range s.open() {
					if ss.heldBack.Load() {
						return true
					}
				}
				return false
			}
			wait(t, "the greedy one to be held back", held)
			for range 10 {
				if _, err := modest.Call(context.Background(), KindGet, make([]byte, size)); err != nil {
					t.Error(err)
				}
			}
			if got := s.Stats().RequestBytes; got > tc.most {
				t.Errorf("%d bytes in service", got)
			}
			close(release)
			wg.Wait()
			wait(t, "nothing in service", func() bool { return s.Stats().RequestBytes == 0 })
		})
	}
}

func TestServerIsOverloaded(t *testing.T) {
	noLeaks(t)
	release := make(chan struct{})
	_, addr := listen(t, ServerOptions{MaxRequests: 2, Handler: HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
		<-release
		_ = resp.Reply(req.Body)
	})})
	first, second := raw(t, addr), raw(t, addr)
	writeFrame(t, first, Frame{Kind: KindGet, Request: 2})
	writeFrame(t, first, Frame{Kind: KindGet, Request: 3})
	writeFrame(t, first, Frame{Kind: KindPing, Request: 4})
	if f, err := ReadFrame(first, MaxFrameBytes); err != nil || f.Kind != KindPing {
		t.Fatalf("%+v, %v", f, err)
	}
	writeFrame(t, second, Frame{Kind: KindGet, Request: 2})
	f, err := ReadFrame(second, MaxFrameBytes)
	var refusal Error
	if err != nil || Decode(f.Body, &refusal) != nil || refusal.Code != CodeOverloaded {
		t.Errorf("%+v %v, %v", f, refusal, err)
	}
	close(release)
}

func TestTooManyConns(t *testing.T) {
	noLeaks(t)
	s, addr := listen(t, ServerOptions{MaxConns: 3, Handler: echo})
	conns := []*Conn{dial(t, addr, ConnOptions{}), dial(t, addr, ConnOptions{}), dial(t, addr, ConnOptions{})}
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := NewConn(nc, ConnOptions{})
	defer c.Close()
	if _, err := c.Handshake(context.Background(), Hello{}); CodeOf(err) != CodeTooManyConns {
		t.Errorf("%v", err)
	}
	for i, c := range conns {
		if _, err := c.Call(context.Background(), KindGet, nil); err != nil {
			t.Errorf("connection %d suffers: %v", i, err)
		}
	}
	_ = conns[0].Close()
	wait(t, "room for one", func() bool { return s.Stats().Conns < 3 })
	dial(t, addr, ConnOptions{})
}

func TestDrain(t *testing.T) {
	noLeaks(t)
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	s, addr := listen(t, ServerOptions{Handler: HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
		arrived <- struct{}{}
		<-release
		_ = resp.Reply([]byte("done"))
	})})
	c := dial(t, addr, ConnOptions{})
	answered := make(chan error, 1)
	go func() {
		body, err := c.Call(context.Background(), KindWrite, nil)
		if err == nil && string(body) != "done" {
			err = errors.New(string(body))
		}
		answered <- err
	}()
	<-arrived
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Drain(short); err != context.DeadlineExceeded {
		t.Errorf("drained while a request is in service: %v", err)
	}
	if _, err := c.Call(context.Background(), KindWrite, nil); CodeOf(err) != CodeShuttingDown {
		t.Errorf("a new request: %v", err)
	}
	if nc, err := net.Dial("tcp", addr); err == nil {
		_ = nc.Close()
		t.Error("still accepts connections")
	}
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(context.Background()) }()
	close(release)
	if err := <-drained; err != nil {
		t.Error(err)
	}
	_ = s.Close()
	if err := <-answered; err != nil {
		t.Errorf("the request in service: %v", err)
	}
	if err := s.ServeConn(nil2(t)); err != ErrServerClosed {
		t.Errorf("serve after close: %v", err)
	}
}

func nil2(t *testing.T) net.Conn {
	near, far := net.Pipe()
	t.Cleanup(func() { _ = near.Close() })
	return far
}

func TestCloseWaitsForHandlers(t *testing.T) {
	noLeaks(t)
	arrived := make(chan struct{}, 1)
	var mu sync.Mutex
	over := false
	s, addr := listen(t, ServerOptions{Handler: HandlerFunc(func(ctx context.Context, _ *Request, resp *Responder) {
		arrived <- struct{}{}
		<-ctx.Done()
		if err := resp.Reply(nil); err == nil {
			t.Error("an answer to nobody")
		}
		mu.Lock()
		over = true
		mu.Unlock()
	})})
	nc := raw(t, addr)
	writeFrame(t, nc, Frame{Kind: KindGet, Request: 2})
	<-arrived
	_ = s.Close()
	mu.Lock()
	defer mu.Unlock()
	if !over {
		t.Error("Close came back before the handler")
	}
}

// When the client goes, its requests end.
func TestClientGoes(t *testing.T) {
	noLeaks(t)
	arrived, ended := make(chan struct{}, 1), make(chan struct{})
	_, addr := listen(t, ServerOptions{Handler: HandlerFunc(func(ctx context.Context, _ *Request, _ *Responder) {
		arrived <- struct{}{}
		<-ctx.Done()
		close(ended)
	})})
	nc := raw(t, addr)
	writeFrame(t, nc, Frame{Kind: KindGet, Request: 2})
	<-arrived
	_ = nc.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the request goes on for nobody")
	}
}

func TestObserve(t *testing.T) {
	noLeaks(t)
	seen := make(chan Observation, 10)
	_, addr := listen(t, ServerOptions{
		Handler: HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
			if req.Kind == KindGet {
				_ = resp.Fail(Refuse(CodeNotFound, "users/u1 does not exist"))
				return
			}
			_ = resp.Send([]byte("12"))
			_ = resp.Reply([]byte("345"))
		}),
		Observe: func(o Observation) { o.Took = min(o.Took, 1); seen <- o },
	})
	c := dial(t, addr, ConnOptions{})
	_, _ = c.Call(context.Background(), KindGet, []byte("body"))
	if o := <-seen; o.Kind != KindGet || o.Code != CodeNotFound || o.BytesIn != 4 || o.Took == 0 {
		t.Errorf("%+v", o)
	}
	_ = c.Stream(context.Background(), KindScan, nil, func([]byte) error { return nil })
	if o := <-seen; o.Kind != KindScan || o.Code != CodeOK || o.BytesOut != 5 {
		t.Errorf("%+v", o)
	}
	_, _ = c.Call(context.Background(), KindConfirm, []byte("b"))
	if o := <-seen; o.Kind != KindConfirm || o.Code != CodeUnsupported || o.BytesIn != 1 {
		t.Errorf("%+v", o)
	}
}

// A refusal is read by the peer also if it goes on sending.
func TestRefusalReachesAPeerThatSends(t *testing.T) {
	noLeaks(t)
	_, addr := listen(t, ServerOptions{Handler: echo})
	for range 3 {
		nc := raw(t, addr)
		junk := AppendFrame(nil, &Frame{Kind: KindGet, Flags: FlagResponse, Request: 2})
		junk = append(junk, make([]byte, 12<<20)...) // more than sockets hold
		sent := make(chan error, 1)
		go func() {
			_, err := nc.Write(junk)
			sent <- err
		}()
		f, err := ReadFrame(nc, MaxFrameBytes)
		var refusal Error
		if err != nil || f.Flags != FlagResponse|FlagError || Decode(f.Body, &refusal) != nil || !strings.Contains(refusal.Message, "flags") {
			t.Fatalf("%+v %v, %v", f, refusal, err)
		}
		if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("after the refusal: %v", err)
		}
		if err := <-sent; err != nil {
			t.Errorf("the peer could not finish: %v", err)
		}
		_ = nc.Close()
	}
}

// A server over a listener that fails for want of files goes on.
func TestAcceptErrors(t *testing.T) {
	noLeaks(t)
	s := NewServer(ServerOptions{Handler: echo, Hello: func(*ConnInfo, *Hello) (HelloReply, *Error) { return HelloReply{}, nil }})
	defer s.Close()
	near, far := net.Pipe()
	defer near.Close()
	l := &fakeListener{results: make(chan any, 4)}
	l.results <- tempError{}
	l.results <- tempError{}
	l.results <- far
	broken := errors.New("broken")
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	greet(t, near)
	l.results <- broken
	if err := <-served; err != broken {
		t.Errorf("%v", err)
	}
}

type tempError struct{}

func (tempError) Error() string   { return "too many open files" }
func (tempError) Temporary() bool { return true }

type fakeListener struct{ results chan any }

func (l *fakeListener) Accept() (net.Conn, error) {
	switch r := (<-l.results).(type) {
	case net.Conn:
		return r, nil
	case error:
		return nil, r
	}
	return nil, net.ErrClosed
}
func (l *fakeListener) Close() error   { return nil }
func (l *fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestLifetime(t *testing.T) {
	l := new(lifetime)
	if l.Err() != nil || l.Value(1) != nil {
		t.Error("ended before it began")
	}
	ran := make(chan string, 3)
	stop := l.AfterFunc(func() { ran <- "stopped" })
	l.AfterFunc(func() { ran <- "after" })
	if !stop() || stop() {
		t.Error("stop tells the wrong thing")
	}
	derived, cancel := context.WithTimeout(l, time.Hour)
	defer cancel()
	l.end(context.DeadlineExceeded)
	l.end(context.Canceled)
	<-l.Done()
	<-derived.Done()
	if l.Err() != context.DeadlineExceeded || derived.Err() != context.DeadlineExceeded {
		t.Errorf("%v, %v", l.Err(), derived.Err())
	}
	l.AfterFunc(func() { ran <- "late" })
	got := map[string]bool{<-ran: true, <-ran: true}
	if !got["after"] || !got["late"] {
		t.Errorf("ran: %v", got)
	}
}

func TestCodesAndKindsHaveNames(t *testing.T) {
	for _, c := range []Code{CodeOK, CodeBadRequest, CodeNotFound, CodeVersionConflict, CodeTooManyConns, CodeShuttingDown, CodeOutcomeExpired, CodeInternal} {
		if _, ok := codeNames[c]; !ok {
			t.Errorf("code %d has no name", uint16(c))
		}
	}
	if Code(999).String() != "999" || Kind(99).String() != "99" || KindGet.String() != "get" {
		t.Error("names")
	}
	if CodeOf(errors.New("x")) != CodeInternal || CodeOf(nil) != CodeOK {
		t.Error("CodeOf")
	}
}
