//go:build unix

package wire

import "syscall"

const canTryWrite = true

// writeNow writes what the socket takes without waiting; that may be nothing.
func writeNow(fd uintptr, b []byte) (int, error) {
	for {
		n, err := syscall.Write(int(fd), b)
		switch err {
		case nil:
			return n, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, nil
		}
		return 0, err
	}
}
