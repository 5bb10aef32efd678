//go:build unix

package wire

import "syscall"

const canTry = true

// readNow reads what has arrived. No bytes and no error are the end.
func readNow(fd uintptr, b []byte) (int, error) { return now(sysRead, fd, b) }

// writeNow writes what the socket takes.
func writeNow(fd uintptr, b []byte) (int, error) { return now(sysWrite, fd, b) }

func now(call func(fd int, b []byte) (int, error), fd uintptr, b []byte) (int, error) {
	for {
		n, err := call(int(fd), b)
		switch err {
		case nil:
			return n, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, errAgain
		}
		return 0, err
	}
}
