package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// Peers that stand still, in virtual time and with the real timeouts: none of
// these tests takes longer than its computing.

// bubble runs a server over in-memory connections.
func bubble(t *testing.T, o ServerOptions, test func(t *testing.T, s *Server, connect func() (net.Conn, <-chan struct{}))) {
	synctest.Test(t, func(t *testing.T) {
		o.Hello = func(*ConnInfo, *Hello) (HelloReply, *Error) { return HelloReply{}, nil }
		s := NewServer(o)
		defer s.Close()
		test(t, s, func() (net.Conn, <-chan struct{}) {
			near, far := net.Pipe()
			ended := make(chan struct{})
			go func() {
				_ = s.ServeConn(far)
				close(ended)
			}()
			return near, ended
		})
	})
}

func greet(t *testing.T, nc net.Conn) {
	t.Helper()
	writeFrame(t, nc, helloFrame())
	if f, err := ReadFrame(nc, MaxFrameBytes); err != nil || f.Flags != FlagResponse {
		t.Fatalf("hello: %+v, %v", f, err)
	}
}

// within fails the test unless the connection ends between least and most.
func within(t *testing.T, ended <-chan struct{}, least, most time.Duration) {
	t.Helper()
	began := time.Now()
	select {
	case <-ended:
		if took := time.Since(began); took < least {
			t.Errorf("dropped after %v already, %v are granted", took, least)
		}
	case <-time.After(most):
		t.Errorf("still there after %v", most)
	}
}

func TestSilentStrangerIsDropped(t *testing.T) {
	bubble(t, ServerOptions{Handler: echo}, func(t *testing.T, _ *Server, connect func() (net.Conn, <-chan struct{})) {
		nc, ended := connect()
		defer nc.Close()
		within(t, ended, 5*time.Second, 7*time.Second)
	})
}

func TestSlowHelloIsDropped(t *testing.T) {
	bubble(t, ServerOptions{Handler: echo}, func(t *testing.T, _ *Server, connect func() (net.Conn, <-chan struct{})) {
		nc, ended := connect()
		defer nc.Close()
		hello := helloFrame()
		go dribble(nc, ended, AppendFrame(nil, &hello), time.Second)
		within(t, ended, 5*time.Second, 7*time.Second)
	})
}

// dribble writes a byte at a time until the connection ends.
func dribble(nc net.Conn, ended <-chan struct{}, b []byte, pause time.Duration) {
	ticks := time.NewTicker(pause)
	defer ticks.Stop()
	for i := range b {
		if _, err := nc.Write(b[i : i+1]); err != nil {
			return
		}
		select {
		case <-ticks.C:
		case <-ended:
			return
		}
	}
}

func TestHalfAFrameIsDropped(t *testing.T) {
	for name, cut := range map[string]int{"in the length": 2, "in the head": 12, "before the body": FrameOverhead, "in the body": FrameOverhead + 3} {
		t.Run(name, func(t *testing.T) {
			bubble(t, ServerOptions{Handler: echo}, func(t *testing.T, _ *Server, connect func() (net.Conn, <-chan struct{})) {
				nc, ended := connect()
				defer nc.Close()
				greet(t, nc)
				if _, err := nc.Write(AppendFrame(nil, &Frame{Kind: KindGet, Request: 2, Body: make([]byte, 100)})[:cut]); err != nil {
					t.Fatal(err)
				}
				within(t, ended, 10*time.Second, 14*time.Second)
			})
		})
	}
}

func TestDribbledFrameIsDropped(t *testing.T) {
	bubble(t, ServerOptions{Handler: echo}, func(t *testing.T, _ *Server, connect func() (net.Conn, <-chan struct{})) {
		nc, ended := connect()
		defer nc.Close()
		greet(t, nc)
		go dribble(nc, ended, AppendFrame(nil, &Frame{Kind: KindGet, Request: 2, Body: make([]byte, 10_000)}), 2*time.Second)
		within(t, ended, 60*time.Second, 64*time.Second)
	})
}

// Slow is not still: a frame a second, each in two pieces, goes on for ever.
func TestSlowPeerIsServed(t *testing.T) {
	bubble(t, ServerOptions{Handler: echo}, func(t *testing.T, s *Server, connect func() (net.Conn, <-chan struct{})) {
		nc, _ := connect()
		defer nc.Close()
		greet(t, nc)
		for i := range 200 {
			f := AppendFrame(nil, &Frame{Kind: KindGet, Request: uint64(i + 2), Body: []byte("slow")})
			for _, piece := range [][]byte{f[:i%len(f)], f[i%len(f):]} {
				if _, err := nc.Write(piece); err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
				<-time.After(4 * time.Second)
			}
			if got, err := ReadFrame(nc, MaxFrameBytes); err != nil || string(got.Body) != "slow" {
				t.Fatalf("frame %d: %v", i, err)
			}
		}
		if s.Stats().Dropped != 0 {
			t.Error("dropped")
		}
	})
}

func TestIdlePeerIsKept(t *testing.T) {
	bubble(t, ServerOptions{Handler: echo}, func(t *testing.T, _ *Server, connect func() (net.Conn, <-chan struct{})) {
		nc, _ := connect()
		c := NewConn(nc, ConnOptions{})
		defer c.Close()
		if _, err := c.Handshake(context.Background(), Hello{}); err != nil {
			t.Fatal(err)
		}
		<-time.After(24 * time.Hour)
		if body, err := c.Call(context.Background(), KindGet, []byte("still here")); err != nil || string(body) != "still here" {
			t.Errorf("%q, %v", body, err)
		}
	})
}

func TestPeerThatNeverReadsIsDropped(t *testing.T) {
	bubble(t, ServerOptions{Handler: echo, MaxConnBytes: 2 << 20}, func(t *testing.T, s *Server, connect func() (net.Conn, <-chan struct{})) {
		nc, ended := connect()
		defer nc.Close()
		greet(t, nc)
		go func() { // asks and asks
			for i := uint64(2); ; i++ {
				if _, err := nc.Write(AppendFrame(nil, &Frame{Kind: KindGet, Request: i, Body: make([]byte, 100_000)})); err != nil {
					return
				}
			}
		}()
		synctest.Wait()
		// The server has stopped reading: what it holds for this peer is bounded.
		if st := s.Stats(); st.AnswerBytes < 512<<10 || st.AnswerBytes > 5<<20 || st.RequestBytes > 3<<20 {
			t.Errorf("held for a peer that does not read: %+v", st)
		}
		within(t, ended, 10*time.Second, 14*time.Second)
		if st := s.Stats(); st.AnswerBytes != 0 || st.RequestBytes != 0 || st.InFlight != 0 || st.Dropped != 1 {
			t.Errorf("left behind: %+v", st)
		}
	})
}

func TestSlowReaders(t *testing.T) {
	for _, tc := range []struct {
		name        string
		pace        int // bytes a second, of 8 MiB
		least, most time.Duration
	}{
		{"drop by drop", 10 << 10, 10 * time.Second, 14 * time.Second},
		{"too slow in all", 50 << 10, 60 * time.Second, 64 * time.Second},
		{"slow", 200 << 10, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, ServerOptions{Handler: echo}, func(t *testing.T, s *Server, connect func() (net.Conn, <-chan struct{})) {
				nc, ended := connect()
				defer nc.Close()
				greet(t, nc)
				writeFrame(t, nc, Frame{Kind: KindGet, Request: 2, Body: make([]byte, 8<<20)})
				read := make(chan int64, 1)
				go func() {
					n := int64(0)
					for n < (FrameOverhead + 8<<20) {
						got, err := io.CopyN(io.Discard, nc, min(int64(tc.pace), (FrameOverhead+8<<20)-n))
						n += got
						if err != nil {
							break
						}
						<-time.After(time.Second)
					}
					read <- n
				}()
				if tc.most == 0 {
					if n := <-read; n < (FrameOverhead+8<<20) || s.Stats().Dropped != 0 {
						t.Errorf("dropped after %d bytes", n)
					}
					return
				}
				within(t, ended, tc.least, tc.most)
				<-read
			})
		})
	}
}

// When too much waits for slow clients in all, they are dropped sooner.
func TestMemoryShortensPatience(t *testing.T) {
	bubble(t, ServerOptions{Handler: echo, MaxAnswerBytes: 1 << 20}, func(t *testing.T, _ *Server, connect func() (net.Conn, <-chan struct{})) {
		nc, ended := connect()
		defer nc.Close()
		greet(t, nc)
		writeFrame(t, nc, Frame{Kind: KindGet, Request: 2, Body: make([]byte, 2<<20)})
		within(t, ended, time.Second, 5*time.Second)
	})
}

// A server that says nothing at all is given up; one that answers pings is
// waited for as long as the caller wishes.
func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		go func() { _, _ = io.Copy(io.Discard, far) }()
		c := NewConn(near, ConnOptions{})
		began := time.Now()
		_, err := c.Call(context.Background(), KindGet, nil)
		if took := time.Since(began); !errors.Is(err, ErrPeerSilent) || took > 11*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		_ = c.Close()
	})
	slow := HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
		<-time.After(time.Hour)
		_ = resp.Reply(req.Body)
	})
	bubble(t, ServerOptions{Handler: slow}, func(t *testing.T, _ *Server, connect func() (net.Conn, <-chan struct{})) {
		nc, _ := connect()
		c := NewConn(nc, ConnOptions{})
		defer c.Close()
		if _, err := c.Handshake(context.Background(), Hello{}); err != nil {
			t.Fatal(err)
		}
		if body, err := c.Call(context.Background(), KindGet, []byte("late")); err != nil || string(body) != "late" {
			t.Errorf("%q, %v", body, err)
		}
	})
}

// A caller whose server does not read waits no longer than its context.
func TestServerThatNeverReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		c := NewConn(near, ConnOptions{KeepAlive: -1, MaxQueued: 1000})
		unsent := 0
		failed := make(chan error, 10)
		for range 10 {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			go func() {
				_, err := c.Call(ctx, KindWrite, make([]byte, 600))
				failed <- err
			}()
			synctest.Wait()
		}
		began := time.Now()
		for range 10 {
			var lost *ConnError
			err := <-failed
			if !errors.As(err, &lost) || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			if !lost.Sent {
				unsent++
			}
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("waited %v", took)
		}
		if unsent == 0 {
			t.Error("calls that found the queue full say that they were sent")
		}
		_ = c.Close()
	})
}

// A frame that was still queued when the connection ended was not sent, and
// its caller may be told so for certain.
func TestQueuedIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		c := NewConn(near, ConnOptions{KeepAlive: -1})
		failed := [2]chan error{make(chan error, 1), make(chan error, 1)}
		for i := range failed {
			go func() {
				_, err := c.Call(context.Background(), KindWrite, make([]byte, 100))
				failed[i] <- err
			}()
			synctest.Wait() // the first is being written, to nobody
		}
		_ = c.Close()
		for i, want := range []Code{CodeOutcomeUnknown, CodeUnavailable} {
			if err := <-failed[i]; CodeOf(err) != want {
				t.Errorf("call %d: %v (%v), want %v", i, err, CodeOf(err), want)
			}
		}
	})
}

// A handler that streams to a slow client stops when its time is up.
func TestStreamEndsInTime(t *testing.T) {
	ended := make(chan error, 1)
	handler := HandlerFunc(func(ctx context.Context, _ *Request, resp *Responder) {
		for {
			if err := resp.Send(make([]byte, 100_000)); err != nil {
				ended <- err
				return
			}
		}
	})
	bubble(t, ServerOptions{Handler: handler}, func(t *testing.T, s *Server, connect func() (net.Conn, <-chan struct{})) {
		ended = make(chan error, 1)
		nc, _ := connect()
		defer nc.Close()
		greet(t, nc)
		began := time.Now()
		writeFrame(t, nc, Frame{Kind: KindScan, Request: 2, Timeout: 3000})
		if err := <-ended; err != context.DeadlineExceeded || time.Since(began) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if st := s.Stats(); st.AnswerBytes > 4<<20 {
			t.Errorf("%d bytes were queued", st.AnswerBytes)
		}
	})
}

// Requests whose answers wait for room are open: they are counted, and their
// IDs are in use.
func TestWaitingAnswersAreOpen(t *testing.T) {
	bubble(t, ServerOptions{Handler: echo, MaxQueued: 1000}, func(t *testing.T, s *Server, connect func() (net.Conn, <-chan struct{})) {
		nc, _ := connect()
		defer nc.Close()
		greet(t, nc)
		var frames []byte
		for id := uint64(2); id < 12; id++ {
			frames = AppendFrame(frames, &Frame{Kind: KindGet, Request: id, Body: make([]byte, 300)})
		}
		if _, err := nc.Write(frames); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		ss := s.open()[0]
		ss.mu.Lock()
		open := len(ss.open)
		ss.mu.Unlock()
		if st := s.Stats(); st.InFlight == 0 || int64(open) != st.InFlight {
			t.Errorf("%d are open, %d in service", open, st.InFlight)
		}
		for range 10 {
			if f, err := ReadFrame(nc, MaxFrameBytes); err != nil || len(f.Body) != 300 {
				t.Fatalf("%+v, %v", f, err)
			}
		}
	})
}

// Requests end in time also without anyone who asks, and one timer serves all.
func TestDeadlinesInOrder(t *testing.T) {
	type end struct {
		id    uint64
		after time.Duration
	}
	ends := make(chan end, 10)
	var began time.Time
	handler := HandlerFunc(func(ctx context.Context, req *Request, _ *Responder) {
		<-ctx.Done()
		ends <- end{req.ID, time.Since(began)}
	})
	bubble(t, ServerOptions{Handler: handler}, func(t *testing.T, _ *Server, connect func() (net.Conn, <-chan struct{})) {
		ends = make(chan end, 10)
		nc, _ := connect()
		defer nc.Close()
		greet(t, nc)
		go func() { _, _ = io.Copy(io.Discard, nc) }()
		began = time.Now()
		for _, ms := range []uint32{3000, 1000, 2000, 500, 500} {
			writeFrame(t, nc, Frame{Kind: KindGet, Request: uint64(ms) + uint64(time.Since(began)/time.Millisecond) + 1, Timeout: ms})
			<-time.After(time.Millisecond)
		}
		for _, want := range []time.Duration{503, 504, 1001, 2002, 3000} {
			if got := <-ends; got.after.Milliseconds() != int64(want) {
				t.Errorf("ended after %v, want %d ms", got.after, want)
			}
		}
	})
}
