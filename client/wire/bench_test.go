package wire

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
)

// echo answers with what it was asked.
var echo = HandlerFunc(func(_ context.Context, req *Request, resp *Responder) { _ = resp.Reply(req.Body) })

// BenchmarkCall is one round trip of 1 KiB each way over loopback, client and
// server in one process.
func BenchmarkCall(b *testing.B) {
	for _, callers := range []int{1, 4, 16, 64, 256} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			_, c := serve(b, ServerOptions{Handler: echo})
			body := bytes.Repeat([]byte{1}, 1024)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for i := range callers {
				n := b.N / callers
				if i < b.N%callers {
					n++
				}
				wg.Add(1)
				go func() {
					defer wg.Done()
					for range n {
						if _, err := c.Call(ctx, KindGet, body); err != nil {
							b.Error(err)
							return
						}
					}
				}()
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
		})
	}
}

// serve starts a server on loopback and a client that has said hello.
func serve(t testing.TB, o ServerOptions) (*Server, *Conn) {
	t.Helper()
	s, addr := listen(t, o)
	return s, dial(t, addr, ConnOptions{})
}

func listen(t testing.TB, o ServerOptions) (*Server, string) {
	t.Helper()
	if o.Hello == nil && o.PeerHello == nil {
		o.Hello = func(*ConnInfo, *Hello) (HelloReply, *Error) { return HelloReply{Server: "test", NodeID: "n1"}, nil }
	}
	s := NewServer(o)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-served; err != nil && err != ErrServerClosed {
			t.Errorf("serve: %v", err)
		}
	})
	return s, l.Addr().String()
}

func dial(t testing.TB, addr string, o ConnOptions) *Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := NewConn(nc, o)
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Handshake(context.Background(), Hello{Client: "test"}); err != nil {
		t.Fatal(err)
	}
	return c
}
