package wire

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A new connection is served a few requests at a time, until its answers have
// shown that they are small; large ones stay few.
func TestPace(t *testing.T) {
	for _, tc := range []struct {
		name              string
		size, requests    int
		first, fewer, all int // in service: at first, at least and at most once sizes are known
	}{
		{"small answers", 100, 500, 8, 500, 500},
		{"answers of 64 KiB", 64 << 10, 200, 8, 40, 80},
		{"large answers", 2 << 20, 40, 8, alwaysServe, alwaysServe},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var release atomic.Pointer[chan struct{}]
			running := 0
			handler := HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
				<-*release.Load()
				_ = resp.Reply(make([]byte, tc.size))
			})
			bubble(t, ServerOptions{Handler: handler}, func(t *testing.T, s *Server, connect func() (net.Conn, <-chan struct{})) {
				hold := func() { c := make(chan struct{}); release.Store(&c) }
				hold()
				nc, _ := connect()
				c := NewConn(nc, ConnOptions{KeepAlive: -1})
				defer c.Close()
				if _, err := c.Handshake(context.Background(), Hello{}); err != nil {
					t.Fatal(err)
				}
				answers := make(chan error, 1000)
				ask := func(n int) {
					for range n {
						go func() {
							_, err := c.Call(context.Background(), KindGet, nil)
							answers <- err
						}()
					}
					synctest.Wait()
				}
				inService := func() int {
					ss := s.open()[0]
					ss.mu.Lock()
					defer ss.mu.Unlock()
					return ss.pace.running[KindGet]
				}
				ask(tc.requests)
				if running = inService(); running != tc.first {
					t.Errorf("%d are served at first, want %d", running, tc.first)
				}
				close(*release.Load())
				for range tc.requests {
					if err := <-answers; err != nil {
						t.Fatal(err)
					}
				}
				hold()
				ask(tc.requests)
				if running = inService(); running < tc.fewer || running > tc.all {
					t.Errorf("%d are served in the end, want %d to %d", running, tc.fewer, tc.all)
				}
				close(*release.Load())
				for range tc.requests {
					if err := <-answers; err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait() // the last handlers may still be returning
				ss := s.open()[0]
				ss.mu.Lock()
				defer ss.mu.Unlock()
				if ss.pace.charged != 0 || ss.pace.running[KindGet] != 0 {
					t.Errorf("charged %d, running %d after all is answered", ss.pace.charged, ss.pace.running[KindGet])
				}
			})
		})
	}
}

// Requests that only wait do not keep others from being served.
func TestPaceGoesOnWhileOthersWait(t *testing.T) {
	handler := HandlerFunc(func(ctx context.Context, req *Request, resp *Responder) {
		if len(req.Body) > 0 {
			<-ctx.Done()
		}
		_ = resp.Reply(make([]byte, 1<<20))
	})
	bubble(t, ServerOptions{Handler: handler}, func(t *testing.T, _ *Server, connect func() (net.Conn, <-chan struct{})) {
		nc, _ := connect()
		c := NewConn(nc, ConnOptions{KeepAlive: -1})
		if _, err := c.Handshake(context.Background(), Hello{}); err != nil {
			t.Fatal(err)
		}
		waiting := make(chan error, 100)
		for range 100 {
			go func() {
				_, err := c.Call(context.Background(), KindGet, []byte("wait"))
				waiting <- err
			}()
		}
		synctest.Wait()
		began := time.Now()
		for range 10 {
			if _, err := c.Call(context.Background(), KindGet, nil); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("behind a hundred that wait, ten took %v", took)
		}
		_ = c.Close()
		for range 100 {
			if err := <-waiting; err == nil {
				t.Error("one that waits has an answer")
			}
		}
	})
}

// Requests that were not begun when the connection ends are let go.
func TestPacedRequestsEndWithTheConnection(t *testing.T) {
	handler := HandlerFunc(func(ctx context.Context, _ *Request, resp *Responder) {
		<-ctx.Done()
		_ = resp.Reply(nil)
	})
	bubble(t, ServerOptions{Handler: handler}, func(t *testing.T, s *Server, connect func() (net.Conn, <-chan struct{})) {
		nc, ended := connect()
		greet(t, nc)
		for id := uint64(2); id < 102; id++ {
			writeFrame(t, nc, Frame{Kind: KindGet, Request: id, Timeout: 60_000, Body: []byte("body")})
		}
		synctest.Wait()
		if st := s.Stats(); st.InFlight != 100 || st.RequestBytes != 400 {
			t.Errorf("%+v", st)
		}
		_ = nc.Close()
		within(t, ended, 0, time.Second)
		if st := s.Stats(); st.InFlight != 0 || st.RequestBytes != 0 {
			t.Errorf("left behind: %+v", st)
		}
	})
}

// An answer that is given up is refused by what it was of.
func TestShedAnswers(t *testing.T) {
	const size = 600 << 10
	handler := HandlerFunc(func(_ context.Context, req *Request, resp *Responder) { _ = resp.Reply(make([]byte, size)) })
	bubble(t, ServerOptions{Handler: handler, MaxConnAnswerBytes: 2 * size}, func(t *testing.T, s *Server, connect func() (net.Conn, <-chan struct{})) {
		nc, _ := connect()
		defer nc.Close()
		greet(t, nc)
		kinds := map[uint64]Kind{}
		var asks []byte // one piece, read as one: reading stops at the first answers
		for id := uint64(2); id < 18; id++ {
			kinds[id] = []Kind{KindGet, KindWrite}[id%2]
			asks = AppendFrame(asks, &Frame{Kind: kinds[id], Request: id})
		}
		if _, err := nc.Write(asks); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if st := s.Stats(); st.AnswerBytes > 8*size {
			t.Errorf("%d answers wait", st.AnswerBytes/size)
		}
		shed := 0
		for range kinds {
			f, err := ReadFrame(nc, MaxFrameBytes)
			if err != nil {
				t.Fatal(err)
			}
			if f.Flags&FlagError == 0 {
				continue
			}
			shed++
			var refusal Error
			want := map[Kind]Code{KindGet: CodeOverloaded, KindWrite: CodeOutcomeUnknown}[kinds[f.Request]]
			if err := Decode(f.Body, &refusal); err != nil || refusal.Code != want {
				t.Errorf("%v: %+v, %v", kinds[f.Request], refusal, err)
			}
		}
		if shed == 0 {
			t.Error("none was given up")
		}
	})
}
