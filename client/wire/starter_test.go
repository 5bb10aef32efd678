package wire

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// collector takes gets and answers them when told to; the others are served
// here (confirmations) or apart.
type collector struct {
	mu    sync.Mutex
	taken []*Responder
	apart int
}

func (c *collector) StartWire(_ context.Context, req *Request, resp *Responder) Start {
	switch {
	case req.Kind == KindGet:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.taken = append(c.taken, resp)
		return StartTaken
	case req.Kind == KindCount:
		return StartHere
	}
	return StartApart
}

func (c *collector) ServeWire(_ context.Context, req *Request, resp *Responder) {
	c.mu.Lock()
	c.apart++
	c.mu.Unlock()
	_ = resp.Reply([]byte("apart"))
}

func (c *collector) take(t *testing.T, n int) []*Responder {
	t.Helper()
	wait(t, fmt.Sprintf("%d requests", n), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.taken) >= n
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.taken
	c.taken = nil
	return taken
}

// Many requests are answered from one goroutine, and what goes to one client is
// held until Flush.
func TestTakenRequests(t *testing.T) {
	noLeaks(t)
	h := new(collector)
	seen := make(chan Observation, 100)
	s, addr := listen(t, ServerOptions{Handler: h, Observe: func(o Observation) { seen <- o }})
	conns := []*Conn{dial(t, addr, ConnOptions{}), dial(t, addr, ConnOptions{})}
	var wg sync.WaitGroup
	const n = 10
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var reply Error
			if err := conns[i%2].Do(context.Background(), KindGet, nil, &reply); err != nil || reply.Message != "hello" {
				t.Errorf("%v %q", err, reply.Message)
			}
		}()
	}
	taken := h.take(t, n)
	var out Replies
	for _, r := range taken {
		if !out.Reply(r, &Error{Message: "hello"}) {
			t.Error("no room for an answer")
		}
	}
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Drain(short); err != context.DeadlineExceeded {
		t.Errorf("drained while answers are held: %v", err)
	}
	out.Flush()
	wg.Wait()
	if err := s.Drain(context.Background()); err != nil {
		t.Error(err)
	}
	if st := s.Stats(); st.InFlight != 0 || st.RequestBytes != 0 {
		t.Errorf("%+v", st)
	}
	for range n {
		if o := <-seen; o.Kind != KindGet || o.Code != CodeOK || o.BytesOut == 0 {
			t.Errorf("%+v", o)
		}
	}
	if h.apart != 0 {
		t.Errorf("%d were served apart", h.apart)
	}
}

func TestStartHereAndHandover(t *testing.T) {
	noLeaks(t)
	h := new(collector)
	_, addr := listen(t, ServerOptions{Handler: h})
	c := dial(t, addr, ConnOptions{})
	for _, kind := range []Kind{KindCount, KindWrite} {
		if b, err := c.Call(context.Background(), kind, nil); err != nil || string(b) != "apart" {
			t.Errorf("%v: %q %v", kind, b, err)
		}
	}
	answer := make(chan string, 1)
	go func() {
		b, err := c.Call(context.Background(), KindGet, nil)
		answer <- fmt.Sprint(string(b), err)
	}()
	h.take(t, 1)[0].Handover()
	if got := <-answer; got != "apart<nil>" {
		t.Error(got)
	}
}

// Who does not read his answers makes nobody wait: they are handed over.
func TestTakenRequestOfASlowClient(t *testing.T) {
	noLeaks(t)
	h := new(collector)
	s, addr := listen(t, ServerOptions{Handler: h, MaxQueued: 64 << 10})
	nc := raw(t, addr)
	large := &Document{ID: "a", Body: append([]byte{0xc6, 0, 0x80, 0, 0}, make([]byte, 8<<20)...)}
	for i := range 4 { // as many as are begun whatever they may answer
		writeFrame(t, nc, Frame{Kind: KindGet, Request: uint64(i + 2)})
	}
	refused := 0
	for _, r := range h.take(t, 4) {
		var out Replies
		if !out.Reply(r, large) {
			refused++
			r.Handover()
		}
		out.Flush()
	}
	if refused == 0 {
		t.Fatal("four answers of 8 MiB found room")
	}
	if got := s.Stats().AnswerBytes; got > 32<<20 {
		t.Errorf("%d bytes wait", got)
	}
}

// Close ends while requests are taken only when they are answered, and joins
// what was spawned for them.
func TestCloseWaitsForTakenRequests(t *testing.T) {
	noLeaks(t)
	h := new(collector)
	s, addr := listen(t, ServerOptions{Handler: h})
	nc := raw(t, addr)
	writeFrame(t, nc, Frame{Kind: KindGet, Request: 2})
	r := h.take(t, 1)[0]
	closed := make(chan struct{})
	go func() { _ = s.Close(); close(closed) }()
	select {
	case <-closed:
		t.Fatal("closed before the request was answered")
	case <-time.After(20 * time.Millisecond):
	}
	over := false
	r.Spawn(func() {
		var out Replies
		out.Reply(r, &Error{})
		out.Flush()
		over = true
	})
	<-closed
	if !over {
		t.Error("closed before the goroutine was over")
	}
}

func TestAsk(t *testing.T) {
	noLeaks(t)
	release := make(chan struct{})
	_, addr := listen(t, ServerOptions{Handler: HandlerFunc(func(ctx context.Context, req *Request, resp *Responder) {
		switch req.Kind {
		case KindGet:
			_ = resp.Reply(req.Body)
		case KindCount:
			_ = resp.Fail(Refuse(CodeNotFound, "no"))
		default:
			select {
			case <-release:
			case <-ctx.Done():
			}
			_ = resp.Reply(nil)
		}
	})})
	c := dial(t, addr, ConnOptions{MaxInFlight: 2})
	type answer struct {
		body []byte
		err  error
	}
	got := make(chan answer, 10)
	then := func(b []byte, err error) { got <- answer{b, err} }
	if _, ok := c.Ask(KindGet, 0, []byte("x"), then); !ok {
		t.Fatal("not sent")
	}
	if a := <-got; a.err != nil || !bytes.Equal(a.body, []byte("x")) {
		t.Errorf("%+v", a)
	}
	if _, ok := c.Ask(KindCount, 0, nil, then); !ok {
		t.Fatal("not sent")
	}
	if a := <-got; CodeOf(a.err) != CodeNotFound {
		t.Errorf("%+v", a)
	}
	forget, ok := c.Ask(KindWrite, 0, nil, func([]byte, error) { t.Error("forgotten, and answered") })
	if !ok {
		t.Fatal("not sent")
	}
	if _, ok := c.Ask(KindWrite, 0, nil, then); !ok {
		t.Fatal("not sent")
	}
	if _, ok := c.Ask(KindWrite, 0, nil, then); ok {
		t.Error("a third request where two may be on their way")
	}
	forget()
	wait(t, "the forgotten one's slot", func() bool { return c.InFlight() == 1 })
	_ = c.Close()
	if a := <-got; a.err == nil {
		t.Errorf("%+v from a closed connection", a)
	}
	if _, ok := c.Ask(KindGet, 0, nil, then); ok {
		t.Error("sent on a closed connection")
	}
	close(release)
}
