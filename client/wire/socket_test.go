package wire

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
)

// socketPair is two ends of a connection over loopback.
func socketPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = dialed.Close()
		_ = accepted.Close()
	})
	return dialed.(*net.TCPConn), accepted.(*net.TCPConn)
}

// testSocket is newSocket, where there are sockets.
func testSocket(t *testing.T, nc net.Conn) *socket {
	t.Helper()
	if !canTry {
		t.Skip("package net does it all here")
	}
	s := newSocket(nc)
	if s == nil {
		t.Fatal("a TCP connection is taken for no socket")
	}
	return s
}

// What a socket says at the end of its connection is what package net says.
func TestSocketEnds(t *testing.T) {
	ends := map[string]func(ours, theirs *net.TCPConn){
		"closed there": func(_, theirs *net.TCPConn) { _ = theirs.Close() },
		"closed here":  func(ours, _ *net.TCPConn) { _ = ours.Close() },
		"reset":        func(_, theirs *net.TCPConn) { _ = theirs.SetLinger(0); _ = theirs.Close() },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			ours, theirs := socketPair(t)
			s := testSocket(t, ours)
			if _, err := theirs.Write([]byte("abc")); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 8)
			if n, err := s.Read(b); n != 3 || err != nil {
				t.Fatalf("read %d bytes, %v", n, err)
			}
			end(ours, theirs)
			_, err := s.Read(b)
			switch name {
			case "closed there":
				if err != io.EOF {
					t.Fatalf("read: %v, want EOF", err)
				}
				return
			case "closed here":
				if !errors.Is(err, net.ErrClosed) {
					t.Fatalf("read: %v, want closed", err)
				}
			case "reset":
				if op := (*net.OpError)(nil); !errors.As(err, &op) || !errors.Is(err, syscall.ECONNRESET) || !strings.Contains(err.Error(), ours.RemoteAddr().String()) {
					t.Fatalf("read: %v, want a reset by %s", err, ours.RemoteAddr())
				}
			}
			if _, err := s.tryWrite([]byte("d")); err == nil {
				t.Fatal("a write to it succeeds")
			}
		})
	}
}

// A socket that is full takes what fits, and then nothing, without waiting.
func TestSocketTakesWhatFits(t *testing.T) {
	ours, theirs := socketPair(t)
	s := testSocket(t, ours)
	piece := make([]byte, 48<<10)
	sent := 0
	for {
		n, err := s.tryWrite(piece)
		if err != nil {
			t.Fatal(err)
		}
		if sent += n; n == 0 {
			break
		}
	}
	if n, err := io.ReadFull(theirs, make([]byte, sent)); err != nil {
		t.Fatalf("%d of %d bytes: %v", n, sent, err)
	}
}
