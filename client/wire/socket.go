package wire

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// socket reads and writes a connection of the operating system, without telling
// the scheduler of calls that do not wait (see silent_linux.go). One goroutine
// at a time may read, and one write.
type socket struct {
	nc      net.Conn
	conn    syscall.RawConn
	in, out transfer
}

// transfer holds the arguments and results of one call, for a closure that is
// made once: a call allocates nothing.
type transfer struct {
	buf  []byte
	n    int
	err  error
	once func(fd uintptr) bool
}

// errAgain: the call would have had to wait, and did nothing.
var errAgain = errors.New("not now")

// newSocket is nil for a connection that is no socket, and where sockets cannot
// be used like this.
func newSocket(nc net.Conn) *socket {
	sc, ok := nc.(syscall.Conn)
	if !ok || !canTry {
		return nil
	}
	conn, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	s := &socket{nc: nc, conn: conn}
	s.in.once = func(fd uintptr) bool {
		s.in.n, s.in.err = readNow(fd, s.in.buf)
		return s.in.err != errAgain
	}
	s.out.once = func(fd uintptr) bool {
		s.out.n, s.out.err = writeNow(fd, s.out.buf)
		return true // done, whatever was written
	}
	return s
}

// Read waits for some bytes, as net.Conn's does.
func (s *socket) Read(buf []byte) (int, error) {
	n, err := s.in.do(s.conn.Read, buf)
	switch {
	case err != nil:
		return 0, s.failed("read", err)
	case n == 0 && len(buf) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// tryWrite writes as much as fits without waiting.
func (s *socket) tryWrite(buf []byte) (int, error) {
	n, err := s.out.do(s.conn.Write, buf)
	if err != nil && err != errAgain {
		return 0, s.failed("write", err)
	}
	return n, nil
}

// failed words an error as package net does.
func (s *socket) failed(op string, err error) error {
	if errno, ok := err.(syscall.Errno); ok {
		remote := s.nc.RemoteAddr()
		return &net.OpError{Op: op, Net: remote.Network(), Source: s.nc.LocalAddr(), Addr: remote, Err: os.NewSyscallError(op, errno)}
	}
	return err // of package net
}

func (t *transfer) do(with func(func(fd uintptr) bool) error, buf []byte) (int, error) {
	t.buf, t.n, t.err = buf, 0, nil
	err := with(t.once)
	t.buf = nil
	if err != nil {
		return 0, err
	}
	return t.n, t.err
}
