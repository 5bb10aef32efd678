package wire

import (
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// Go's scheduler is told of every system call, because it may wait: a thread of
// the runtime, the monitor, then gives the processor to another goroutine. Calls
// on a socket that is not waited for need none of this, and it is dear for a
// process that is idle most of the time: while nothing runs the monitor sleeps,
// the first call that the scheduler is told of wakes it, and then it looks every
// 20 µs, for a millisecond at least. A client that waited for its servers spent a
// quarter of its processor time on that. So these calls are silent.
//
// The monitor has another duty that is needed: it stops a goroutine that has run
// for 10 ms while others are ready. Asleep, it would not, if a silent call was all
// that woke the process. It sleeps no longer than to the next timer, though: while
// silent calls are made, one is never far (vigil).

// silentMost is how many bytes are moved silently: a garbage collection that
// begins meanwhile waits for the call.
const silentMost = 64 << 10

func sysRead(fd int, b []byte) (int, error) {
	if len(b) == 0 || len(b) > silentMost || !onWatch.keep() {
		return syscall.Read(fd, b)
	}
	return silent(syscall.SYS_READ, fd, b)
}

func sysWrite(fd int, b []byte) (int, error) {
	if len(b) == 0 || len(b) > silentMost || !onWatch.keep() {
		return syscall.Write(fd, b)
	}
	return silent(syscall.SYS_WRITE, fd, b)
}

func silent(call uintptr, fd int, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// vigil has a timer in this process that fires within vigilPeriod, as long as
// silent calls are made.
type vigil struct {
	kept atomic.Bool // there is a timer
	used atomic.Bool // since the last one fired
}

const vigilPeriod = 10 * time.Millisecond

// The monitor is the process's, and so is this.
var onWatch vigil

// keep says that a call may be silent. If not, there was no timer: there is one
// now, and the monitor, which may sleep already, has to be woken by the call.
func (v *vigil) keep() bool {
	if v.kept.Load() {
		if !v.used.Load() {
			v.used.Store(true)
		}
		return true
	}
	if v.kept.CompareAndSwap(false, true) {
		time.AfterFunc(vigilPeriod, v.fired)
	}
	return false
}

// fired does not wait, and is the last that runs when no more calls are made.
func (v *vigil) fired() {
	if v.used.Swap(false) {
		time.AfterFunc(vigilPeriod, v.fired)
		return
	}
	v.kept.Store(false)
}
