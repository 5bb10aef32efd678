package sim

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// wires is a network of two machines, a and b, with a connection between them.
type wires struct {
	*Network
	t        *testing.T
	a, b     *Port
	l        net.Listener
	dialed   net.Conn
	accepted net.Conn
}

func bubble(t *testing.T, f func(t *testing.T, w *wires)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(rand.New(rand.NewPCG(1, 1)))
		n.normal = Link{Latency: 10 * time.Millisecond}
		w := &wires{Network: n, t: t, a: n.Join("a"), b: n.Join("b")}
		w.l = must(w.b.Listen("b:1"))(t)
		w.dialed = must(w.a.Dial(t.Context(), "b:1"))(t)
		w.accepted = must(w.l.Accept())(t)
		f(t, w)
		w.a.Exit(true)
		w.b.Exit(true)
		synctest.Wait()
		if len(n.conns) != 0 || len(n.listeners) != 0 {
			t.Errorf("%d connections and %d listeners are left", len(n.conns), len(n.listeners))
		}
	})
}

// takes is how long f takes in virtual time.
func takes(f func()) time.Duration {
	begun := time.Now()
	f()
	return time.Since(begun)
}

func (w *wires) send(c net.Conn, s string) {
	w.t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		w.t.Fatal(n, err)
	}
}

func (w *wires) receive(c net.Conn, want string) time.Duration {
	w.t.Helper()
	return takes(func() {
		w.t.Helper()
		b := make([]byte, len(want))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
			w.t.Fatalf("%q, %v, want %q", b, err, want)
		}
	})
}

func (w *wires) fails(c net.Conn, want error) time.Duration {
	w.t.Helper()
	return takes(func() {
		w.t.Helper()
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, want) {
			w.t.Fatalf("%d bytes, %v, want %v", n, err, want)
		}
	})
}

func about(t *testing.T, got, want time.Duration) {
	t.Helper()
	if got < want || got > want+want/10+time.Millisecond {
		t.Errorf("it took %v, want %v", got, want)
	}
}

func TestNetworkCarries(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		w.send(w.dialed, "one ")
		w.send(w.dialed, "two")
		about(t, w.receive(w.accepted, "one two"), 10*time.Millisecond)
		w.send(w.accepted, "back")
		about(t, w.receive(w.dialed, "back"), 10*time.Millisecond)

		// What was sent before the end is read first.
		w.send(w.dialed, "last")
		ok(t, w.dialed.Close())
		w.receive(w.accepted, "last")
		w.fails(w.accepted, io.EOF)
		if _, err := w.accepted.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("a write to one who has closed: %v", err)
		}
		w.fails(w.dialed, net.ErrClosed)
	})
}

func TestNetworkAddresses(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		if _, err := w.b.Listen("b:1"); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a port twice: %v", err)
		}
		if _, err := w.b.Listen("a:1"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("another machine's port: %v", err)
		}
		took := takes(func() {
			if _, err := w.a.Dial(t.Context(), "b:2"); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a port that nobody has: %v", err)
			}
		})
		about(t, took, 20*time.Millisecond)
	})
}

func TestNetworkDeadline(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		ok(t, w.dialed.SetDeadline(time.Now().Add(time.Second)))
		about(t, w.fails(w.dialed, os.ErrDeadlineExceeded), time.Second)
		time.AfterFunc(time.Second, func() { w.accepted.Close() })
		about(t, w.fails(w.accepted, net.ErrClosed), time.Second)
	})
}

// A cut holds everything back, also the end; when it is mended an old
// connection comes back at TCP's next try, and a new one at once.
func TestNetworkCut(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		w.Change("a", "b", func(l *Link) { l.Cut = true })
		w.send(w.dialed, "held")
		w.send(w.accepted, "passes") // one way only
		about(t, w.receive(w.dialed, "passes"), 10*time.Millisecond)
		time.AfterFunc(5*time.Second, w.Heal)
		// Tries at 0, 0.2, 0.6, 1.4, 3.0, 6.2 s.
		about(t, w.receive(w.accepted, "held"), 6200*time.Millisecond)

		w.Change("a", "b", func(l *Link) { l.Cut = true })
		ok(t, w.dialed.Close())
		time.AfterFunc(time.Second, w.Heal)
		about(t, w.fails(w.accepted, io.EOF), 1400*time.Millisecond)
		about(t, takes(func() { must(w.a.Dial(t.Context(), "b:1"))(t) }), 20*time.Millisecond)

		w.Change("b", "a", func(l *Link) { l.Cut = true })
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		took := takes(func() {
			if _, err := w.a.Dial(ctx, "b:1"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a dial whose answer cannot come back: %v", err)
			}
		})
		about(t, took, 2*time.Second)
	})
}

func TestNetworkFreeze(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		w.Freeze("b")
		w.send(w.dialed, "taken by the kernel")
		w.send(w.accepted, "not sent yet")
		must(w.a.Dial(t.Context(), "b:1"))(t) // the kernel answers
		time.AfterFunc(3*time.Second, func() { w.Thaw("b") })
		about(t, w.receive(w.dialed, "not sent yet"), 3010*time.Millisecond)
		if took := w.receive(w.accepted, "taken by the kernel"); took > time.Millisecond {
			t.Errorf("what the kernel had took %v", took)
		}
		w.Freeze("b")
		time.AfterFunc(time.Second, func() { w.Thaw("b") })
		about(t, takes(func() { w.b.Dial(t.Context(), "b:1") }), 1010*time.Millisecond)
	})
}

// What a frozen process has written was never sent if it is killed.
func TestNetworkKillFrozen(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		w.send(w.accepted, "sent")
		w.Freeze("b")
		w.send(w.accepted, "never")
		w.b.Exit(true)
		w.receive(w.dialed, "sent")
		w.fails(w.dialed, io.EOF)
	})
}

// With its power a machine loses the means to say so; its kernel, once it is
// back, knows nothing of the connection.
func TestNetworkPowerLoss(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		w.b.Exit(false)
		if _, err := w.accepted.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the dead can write: %v", err)
		}
		w.send(w.dialed, "into the void")
		ok(t, w.dialed.SetDeadline(time.Now().Add(10*time.Second)))
		about(t, w.fails(w.dialed, os.ErrDeadlineExceeded), 10*time.Second)
		ok(t, w.dialed.SetDeadline(time.Time{}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.a.Dial(ctx, "b:1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a dial of a machine without power: %v", err)
		}
		w.b = w.Join("b")
		if took := w.fails(w.dialed, syscall.ECONNRESET); took > 15*time.Second {
			t.Errorf("the reset came after %v", took)
		}
	})
}

func TestNetworkReset(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		w.Reset("b", "a")
		w.fails(w.dialed, syscall.ECONNRESET)
		w.fails(w.accepted, syscall.ECONNRESET)
	})
}

func TestNetworkBandwidthAndLoss(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		w.Change("a", "b", func(l *Link) { l.BytesPerSecond = 1000 })
		w.send(w.dialed, strings.Repeat("x", 500))
		w.send(w.dialed, strings.Repeat("y", 500))
		about(t, w.receive(w.accepted, strings.Repeat("x", 500)+strings.Repeat("y", 500)), 1010*time.Millisecond)
		w.Heal()
		w.Change("a", "b", func(l *Link) { l.Loss = 0.5 })
		slow := 0
		for range 100 {
			w.send(w.dialed, "z")
			if w.receive(w.accepted, "z") >= firstRetry {
				slow++
			}
		}
		if slow < 20 || slow > 80 {
			t.Errorf("%d of 100 segments came late, half of them should", slow)
		}
	})
}

// A writer waits when nobody reads.
func TestNetworkWindow(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		done := make(chan time.Duration)
		begun := time.Now()
		big := strings.Repeat("b", 3*window)
		go func() {
			w.send(w.dialed, big)
			done <- time.Since(begun)
		}()
		time.Sleep(time.Minute)
		w.receive(w.accepted, big)
		if took := <-done; took < time.Minute {
			t.Errorf("%d bytes were taken after %v although nobody read", len(big), took)
		}
	})
}
