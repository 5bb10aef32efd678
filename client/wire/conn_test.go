package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestManyCallersGetTheirOwnAnswers(t *testing.T) {
	noLeaks(t)
	_, c := serve(t, ServerOptions{Handler: echo})
	var wg sync.WaitGroup
	for caller := range 300 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			body := make([]byte, 8+caller*37%5000)
			for call := range 50 {
				binary.BigEndian.PutUint64(body, uint64(caller)<<32|uint64(call))
				got, err := c.Call(context.Background(), KindGet, body)
				if err != nil || !bytes.Equal(got, body) {
					t.Errorf("caller %d, call %d: %d bytes, %v", caller, call, len(got), err)
					return
				}
			}
		}()
	}
	wg.Wait()
	if n := c.InFlight(); n != 0 {
		t.Errorf("%d requests in flight after all were answered", n)
	}
}

func TestLargeBodies(t *testing.T) {
	noLeaks(t)
	_, c := serve(t, ServerOptions{Handler: echo})
	for _, n := range []int{0, 1, minReadBuffer - FrameOverhead, minReadBuffer, maxReadBuffer, firstPiece, firstPiece + 1, 5 << 20, MaxFrameBytes - FrameOverhead} {
		body := bytes.Repeat([]byte{byte(n), 7}, n/2+1)[:n]
		got, err := c.Call(context.Background(), KindGet, body)
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("%d bytes: %d came back, %v", n, len(got), err)
		}
	}
	_, err := c.Call(context.Background(), KindGet, make([]byte, MaxFrameBytes-FrameOverhead+1))
	if CodeOf(err) != CodeFrameTooLarge {
		t.Errorf("a byte too many: %v", err)
	}
	if c.Err() != nil {
		t.Errorf("the connection suffered: %v", c.Err())
	}
}

func TestRefusalsArriveWhole(t *testing.T) {
	noLeaks(t)
	want := &Error{Code: CodeVersionConflict, Message: "users/u17: version is 9, the write expected 8 (re-read and retry)", Leader: "n2", Version: 9, Epoch: 4, RetryAfterMillis: 20}
	_, c := serve(t, ServerOptions{Handler: HandlerFunc(func(_ context.Context, _ *Request, resp *Responder) {
		if err := resp.Fail(want); err != nil {
			t.Error(err)
		}
		if err := resp.Reply(nil); err != ErrAnswered {
			t.Errorf("a second answer: %v", err)
		}
	})})
	_, err := c.Call(context.Background(), KindWrite, nil)
	var got *Error
	if !errors.As(err, &got) || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestMessagesThere(t *testing.T) {
	noLeaks(t)
	_, c := serve(t, ServerOptions{Handler: HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
		var count CountRequest
		if err := Decode(req.Body, &count); err != nil {
			_ = resp.Fail(err.(*Error))
			return
		}
		_ = resp.ReplyMessage(&CountReply{Count: uint64(len(count.Collection))})
	})})
	var reply CountReply
	if err := c.Do(context.Background(), KindCount, &CountRequest{Collection: "seven77"}, &reply); err != nil || reply.Count != 7 {
		t.Errorf("%+v, %v", reply, err)
	}
	if _, err := c.Call(context.Background(), KindCount, []byte{0xc1}); CodeOf(err) != CodeBadRequest {
		t.Errorf("a bad body: %v", err)
	}
}

func TestHandlerThatDoesNotAnswer(t *testing.T) {
	noLeaks(t)
	_, c := serve(t, ServerOptions{Handler: HandlerFunc(func(context.Context, *Request, *Responder) {})})
	if _, err := c.Call(context.Background(), KindGet, nil); CodeOf(err) != CodeInternal {
		t.Error(err)
	}
}

func TestContextEndsTheCallAndTheRequest(t *testing.T) {
	noLeaks(t)
	arrived, ended := make(chan struct{}, 1), make(chan error, 1)
	s, c := serve(t, ServerOptions{Handler: HandlerFunc(func(ctx context.Context, req *Request, resp *Responder) {
		if req.Kind == KindPing {
			return
		}
		arrived <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
	})})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-arrived
		cancel()
	}()
	_, err := c.Call(ctx, KindGet, nil)
	var lost *ConnError
	if !errors.As(err, &lost) || !lost.Sent || !errors.Is(err, context.Canceled) || CodeOf(err) != CodeOutcomeUnknown {
		t.Errorf("cancelled: %v", err)
	}
	if err := <-ended; err != context.Canceled {
		t.Errorf("the handler saw %v", err)
	}

	// A deadline ends on both sides by itself.
	ctx, cancel = context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	_, err = c.Call(ctx, KindGet, nil)
	<-arrived
	if CodeOf(err) != CodeOutcomeUnknown { // told by whoever was first, the client's clock or the server's
		t.Errorf("too late: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the handler's context did not end")
	}

	// What never left is known not to have happened.
	_, err = c.Call(ctx, KindGet, nil)
	if !errors.As(err, &lost) || lost.Sent || CodeOf(err) != CodeTimeout {
		t.Errorf("after the deadline: %v", err)
	}
	wait(t, "the slots to be free", func() bool { return c.InFlight() == 0 && s.Stats().InFlight == 0 })
}

// The deadline reaches the server, which ends the request also if the client
// never says cancel.
func TestServerEndsRequestsInTime(t *testing.T) {
	noLeaks(t)
	type seen struct {
		left time.Duration
		err  error
	}
	ended := make(chan seen, 3)
	_, addr := listen(t, ServerOptions{Handler: HandlerFunc(func(ctx context.Context, _ *Request, _ *Responder) {
		deadline, _ := ctx.Deadline()
		left := time.Until(deadline)
		inner, cancel := context.WithCancel(ctx) // derived contexts end too
		defer cancel()
		<-inner.Done()
		ended <- seen{left, context.Cause(inner)}
	})})
	nc := raw(t, addr)
	for i, ms := range []uint32{60, 20, 40} { // an earlier deadline after a later one
		writeFrame(t, nc, Frame{Kind: KindGet, Request: uint64(i + 2), Timeout: ms})
	}
	for range 3 {
		select {
		case s := <-ended:
			if s.err != context.DeadlineExceeded || s.left > 60*time.Millisecond {
				t.Errorf("%+v", s)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a request outlived its timeout")
		}
	}
}

func TestLostConnection(t *testing.T) {
	noLeaks(t)
	arrived := make(chan struct{}, 1)
	s, c := serve(t, ServerOptions{Handler: HandlerFunc(func(ctx context.Context, _ *Request, _ *Responder) {
		arrived <- struct{}{}
		<-ctx.Done()
	})})
	failed := make(chan error, 1)
	go func() {
		_, err := c.Call(context.Background(), KindWrite, nil)
		failed <- err
	}()
	<-arrived
	_ = s.Close()
	var lost *ConnError
	if err := <-failed; !errors.As(err, &lost) || !lost.Sent || CodeOf(err) != CodeOutcomeUnknown {
		t.Errorf("in service: %v", err)
	}
	<-c.Done()
	if _, err := c.Call(context.Background(), KindWrite, nil); !errors.As(err, &lost) || lost.Sent || CodeOf(err) != CodeUnavailable {
		t.Errorf("on the lost connection: %v", err)
	}
	if c.Err() == nil {
		t.Error("a lost connection has no error")
	}
}

func TestCloseEndsEveryCall(t *testing.T) {
	noLeaks(t)
	arrived := make(chan struct{}, 2000)
	_, c := serve(t, ServerOptions{Handler: HandlerFunc(func(ctx context.Context, _ *Request, _ *Responder) {
		arrived <- struct{}{}
		<-ctx.Done()
	})})
	const callers = MaxInFlight + 200 // the last 200 wait for a slot
	failed := make(chan error, callers+1)
	for range callers {
		go func() {
			_, err := c.Call(context.Background(), KindWrite, nil)
			failed <- err
		}()
	}
	go func() {
		failed <- c.Stream(context.Background(), KindScan, nil, func([]byte) error { return nil })
	}()
	for range MaxInFlight {
		<-arrived
	}
	_ = c.Close()
	unsent := 0
	for range callers + 1 {
		err := <-failed
		var lost *ConnError
		if !errors.As(err, &lost) || !errors.Is(err, ErrConnClosed) {
			t.Fatalf("%v", err)
		}
		if !lost.Sent {
			unsent++
		}
	}
	if unsent != callers+1-MaxInFlight {
		t.Errorf("%d calls say they were not sent, %d are right", unsent, callers+1-MaxInFlight)
	}
}

// More callers than the server allows wait in line, in order, and give up
// with their context.
func TestCallersWaitForSlots(t *testing.T) {
	noLeaks(t)
	var most, now atomic.Int64
	release := make(chan struct{})
	_, addr := listen(t, ServerOptions{MaxInFlight: 4, Handler: HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		<-release
		now.Add(-1)
		_ = resp.Reply(req.Body)
	})})
	c := dial(t, addr, ConnOptions{})
	if got := c.Hello().MaxInFlight; got != 4 {
		t.Fatalf("the server told a limit of %d", got)
	}
	var wg sync.WaitGroup
	for range 40 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := c.Call(context.Background(), KindGet, nil); err != nil {
				t.Error(err)
			}
		}()
	}
	wait(t, "a line of 36", func() bool { return c.queue() == 36 })
	ctx, cancel := context.WithCancel(context.Background())
	gaveUp := make(chan error, 1)
	go func() {
		_, err := c.Call(ctx, KindGet, nil)
		gaveUp <- err
	}()
	wait(t, "one more in line", func() bool { return c.queue() == 37 })
	cancel()
	var lost *ConnError
	if err := <-gaveUp; !errors.As(err, &lost) || lost.Sent || !errors.Is(err, context.Canceled) {
		t.Errorf("gave up in line: %v", err)
	}
	close(release)
	wg.Wait()
	if most.Load() > 4 {
		t.Errorf("%d requests at once, the server allows 4", most.Load())
	}
}

func (c *Conn) queue() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting)
}

// A cancelled call keeps its slot until the server has let go of it, so the
// server's limit is never met.
func TestCancelledCallsKeepTheirSlots(t *testing.T) {
	noLeaks(t)
	arrived, release := make(chan struct{}, 10), make(chan struct{})
	_, addr := listen(t, ServerOptions{MaxInFlight: 2, Handler: HandlerFunc(func(_ context.Context, _ *Request, resp *Responder) {
		arrived <- struct{}{}
		<-release // deaf to cancelling
		_ = resp.Reply([]byte("done"))
	})})
	c := dial(t, addr, ConnOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	for range 2 {
		go func() { _, _ = c.Call(ctx, KindGet, nil) }()
		<-arrived
	}
	cancel()
	third := make(chan error, 1)
	go func() {
		body, err := c.Call(context.Background(), KindGet, nil)
		if err == nil && string(body) != "done" {
			err = fmt.Errorf("answer %q", body)
		}
		third <- err
	}()
	wait(t, "the third in line", func() bool { return c.queue() == 1 })
	close(release)
	if err := <-third; err != nil {
		t.Error(err)
	}
	wait(t, "all slots free", func() bool { return c.InFlight() == 0 })
}

func TestStream(t *testing.T) {
	noLeaks(t)
	cancelled := make(chan error, 1)
	_, c := serve(t, ServerOptions{Handler: HandlerFunc(func(ctx context.Context, req *Request, resp *Responder) {
		switch string(req.Body) {
		case "three":
			for _, part := range []string{"one", "two"} {
				if err := resp.Send([]byte(part)); err != nil {
					t.Error(err)
				}
			}
			_ = resp.Reply([]byte("three"))
			if err := resp.Send([]byte("four")); err != ErrAnswered {
				t.Errorf("a part after the last: %v", err)
			}
		case "none":
			_ = resp.Reply(nil)
		case "fails":
			_ = resp.Send([]byte("one"))
			_ = resp.Fail(Refuse(CodeUnavailable, "no leader"))
		case "endless":
			for {
				if err := resp.Send(make([]byte, 1000)); err != nil {
					cancelled <- err
					return
				}
				if ctx.Err() != nil {
					cancelled <- ctx.Err()
					return
				}
			}
		}
	})})
	stream := func(ctx context.Context, what string) (parts []string, err error) {
		err = c.Stream(ctx, KindScan, []byte(what), func(part []byte) error {
			parts = append(parts, string(part))
			return nil
		})
		return parts, err
	}
	ctx := context.Background()
	if parts, err := stream(ctx, "three"); err != nil || strings.Join(parts, " ") != "one two three" {
		t.Errorf("%q, %v", parts, err)
	}
	if parts, err := stream(ctx, "none"); err != nil || len(parts) != 0 {
		t.Errorf("%q, %v", parts, err)
	}
	if parts, err := stream(ctx, "fails"); CodeOf(err) != CodeUnavailable || strings.Join(parts, " ") != "one" {
		t.Errorf("%q, %v", parts, err)
	}
	if _, err := c.Call(ctx, KindScan, []byte("three")); !errors.Is(err, errStreamed) {
		t.Errorf("a stream where one answer is wanted: %v", err)
	}

	stop := errors.New("enough")
	n := 0
	err := c.Stream(ctx, KindScan, []byte("endless"), func([]byte) error {
		if n++; n == 10 {
			return stop
		}
		return nil
	})
	if err != stop || n != 10 {
		t.Errorf("%v after %d parts", err, n)
	}
	if err := <-cancelled; err == nil {
		t.Error("the handler was not stopped")
	}

	short, cancel := context.WithCancel(ctx)
	n = 0
	err = c.Stream(short, KindScan, []byte("endless"), func([]byte) error {
		if n++; n == 10 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || n != 10 {
		t.Errorf("%v after %d parts", err, n)
	}
	<-cancelled
	wait(t, "all slots free", func() bool { return c.InFlight() == 0 })
}

// More than any queue holds goes through a stream and through many answers
// at once: who waits for room gets it.
func TestMoreThanTheQueues(t *testing.T) {
	noLeaks(t)
	part := bytes.Repeat([]byte{7}, 100_000)
	_, addr := listen(t, ServerOptions{MaxQueued: 150_000, Handler: HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
		for range 100 {
			if req.Kind != KindScan {
				break
			}
			if err := resp.Send(part); err != nil {
				t.Error(err)
			}
		}
		_ = resp.Reply(part)
	})})
	c := dial(t, addr, ConnOptions{MaxQueued: 150_000})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range 40 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 5 {
				if body, err := c.Call(ctx, KindGet, part); err != nil || !bytes.Equal(body, part) {
					t.Errorf("%d bytes, %v", len(body), err)
					return
				}
			}
		}()
	}
	got := 0
	if err := c.Stream(ctx, KindScan, nil, func(p []byte) error { got += len(p); return nil }); err != nil || got != 101*len(part) {
		t.Errorf("%d bytes, %v", got, err)
	}
	wg.Wait()
}

// A stream whose reader stands still fails by itself; other calls go on.
func TestStreamReaderStandsStill(t *testing.T) {
	noLeaks(t)
	first, resume := make(chan struct{}), make(chan struct{})
	_, addr := listen(t, ServerOptions{Handler: HandlerFunc(func(ctx context.Context, req *Request, resp *Responder) {
		if req.Kind == KindScan {
			_ = resp.Send([]byte("the first"))
			<-first
		}
		for req.Kind == KindScan && ctx.Err() == nil {
			if resp.Send(make([]byte, 10_000)) != nil {
				return
			}
		}
		_ = resp.Reply(nil)
	})})
	c := dial(t, addr, ConnOptions{MaxStream: 1 << 20})
	failed := make(chan error, 1)
	go func() {
		failed <- c.Stream(context.Background(), KindScan, nil, func([]byte) error {
			select {
			case <-first:
			default:
				close(first)
			}
			<-resume
			return nil
		})
	}()
	<-first
	for range 100 {
		if _, err := c.Call(context.Background(), KindGet, nil); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, "the stream to be cancelled", func() bool { return c.InFlight() == 0 })
	close(resume)
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "wait for their reader") {
		t.Errorf("%v", err)
	}
}

// A server that does not follow the protocol is left.
func TestServerThatBreaksTheProtocol(t *testing.T) {
	noLeaks(t)
	for name, answer := range map[string]func(id uint64) []byte{
		"request": func(id uint64) []byte {
			return AppendFrame(nil, &Frame{Kind: KindGet, Request: id})
		},
		"unknown request ID": func(id uint64) []byte {
			return AppendFrame(nil, &Frame{Kind: KindGet, Flags: FlagResponse, Request: id + 1<<slotBits})
		},
		"unknown slot": func(id uint64) []byte {
			return AppendFrame(nil, &Frame{Kind: KindGet, Flags: FlagResponse, Request: id + 1})
		},
		"answer to the connection": func(uint64) []byte {
			return AppendFrame(nil, &Frame{Kind: KindGet, Flags: FlagResponse})
		},
		"error that does not decode": func(id uint64) []byte {
			return AppendFrame(nil, &Frame{Kind: KindGet, Flags: FlagResponse | FlagError, Request: id, Body: []byte{0xc1}})
		},
		"length bomb": func(uint64) []byte {
			return []byte{0xff, 0xff, 0xff, 0xff, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}
		},
		"half a frame": func(id uint64) []byte {
			return AppendFrame(nil, &Frame{Kind: KindGet, Flags: FlagResponse, Request: id, Body: make([]byte, 10)})[:25]
		},
		"nothing": func(uint64) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			c := NewConn(near, ConnOptions{})
			defer c.Close()
			go func() {
				defer far.Close()
				f, err := ReadFrame(far, MaxFrameBytes)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = far.Write(answer(f.Request))
			}()
			_, err := c.Call(context.Background(), KindGet, nil)
			var lost *ConnError
			if !errors.As(err, &lost) || !lost.Sent {
				t.Errorf("%v", err)
			}
		})
	}
}

// An answer twice is a broken server too: the second meets a free slot.
func TestServerThatAnswersTwice(t *testing.T) {
	noLeaks(t)
	near, far := net.Pipe()
	c := NewConn(near, ConnOptions{})
	defer c.Close()
	go func() {
		defer far.Close()
		f, err := ReadFrame(far, MaxFrameBytes)
		if err != nil {
			t.Error(err)
			return
		}
		b := AppendFrame(nil, &Frame{Kind: KindGet, Flags: FlagResponse, Request: f.Request})
		_, _ = far.Write(append(b, b...))
	}()
	if _, err := c.Call(context.Background(), KindGet, nil); err != nil {
		t.Error(err)
	}
	<-c.Done()
	var bad *FrameError
	if !errors.As(c.Err(), &bad) {
		t.Errorf("%v", c.Err())
	}
}

// What the server holds against the connection is not an answer to a request.
func TestConnectionRefused(t *testing.T) {
	noLeaks(t)
	near, far := net.Pipe()
	c := NewConn(near, ConnOptions{})
	defer c.Close()
	go func() {
		_, _ = ReadFrame(far, MaxFrameBytes)
		body := Refuse(CodeTooManyConns, "enough of them").AppendTo(nil)
		_, _ = far.Write(AppendFrame(nil, &Frame{Flags: FlagResponse | FlagError, Body: body}))
		_ = far.Close()
	}()
	_, err := c.Call(context.Background(), KindWrite, nil)
	var lost *ConnError
	var refusal *Error
	if !errors.As(err, &lost) || !lost.Sent || lost.Refusal() == nil || lost.Refusal().Code != CodeTooManyConns {
		t.Errorf("%v", err)
	}
	if errors.As(err, &refusal) || CodeOf(err) != CodeOutcomeUnknown {
		t.Errorf("a write looks refused: %v", err)
	}
}

// wait polls until a condition holds.
func wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ticks := time.NewTicker(time.Millisecond)
	defer ticks.Stop()
	deadline := time.After(10 * time.Second)
	for !cond() {
		select {
		case <-ticks.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// raw is a connection that has said hello and from then on is in the test's
// own hands. Request ID 1 is used.
func raw(t testing.TB, addr string) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	writeFrame(t, nc, helloFrame())
	f, err := ReadFrame(nc, MaxFrameBytes)
	if err != nil || f.Flags != FlagResponse || f.Request != 1 {
		t.Fatalf("hello: %+v, %v", f, err)
	}
	return nc
}

func helloFrame() Frame {
	return Frame{Kind: KindHello, Request: 1, Body: Append(nil, &Hello{Magic: Magic, MinVersion: 1, MaxVersion: 1, Client: "test"})}
}

func writeFrame(t testing.TB, nc net.Conn, f Frame) {
	t.Helper()
	if _, err := nc.Write(AppendFrame(nil, &f)); err != nil {
		t.Fatal(err)
	}
}
