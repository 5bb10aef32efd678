package main

import (
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
)

// timerSlack is how late the kernel may wake a thread that sleeps, in
// nanoseconds, so that it can wake several at once. Go's monitor thread sleeps
// 20 µs at a time while any thread is in a system call, and on a node under
// load one always is: it waits for the log to be synced. At the kernel's 50 µs
// the monitors of three nodes took a sixth of two cores under updates. With a
// longer one the Go scheduler is slower to notice that a thread waits for the
// disk; see extraProcs. Threads that run Go code have usualSlack, but for a few
// that were busy when the program began: theirs makes timers as much later.
const (
	timerSlack = 5_000_000
	usualSlack = 50_000
)

// extraProcs is how many threads more than cores run Go code: one that waits
// for the disk keeps its place until the monitor looks.
const extraProcs = 1

// punctualThreads is how many threads are started with usualSlack. Go uses them
// again and again, and starts others only when all of them wait for the disk.
const punctualThreads = 32

// Of prctl(2).
const (
	prSetTimerSlack = 29
	prGetTimerSlack = 30
)

// startPunctual starts threads that wake in time, of which the calling one is
// one.
func startPunctual() {
	setSlack(usualSlack)
	var started, ended sync.WaitGroup
	all := make(chan struct{})
	for range punctualThreads {
		started.Add(1)
		ended.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			setSlack(usualSlack)
			started.Done()
			<-all // each has to have its own
		})
	}
	started.Wait()
	close(all)
	ended.Wait()
}

// setSlack sets the calling thread's.
func setSlack(ns uintptr) bool {
	_, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetTimerSlack, ns, 0)
	return errno == 0
}

// coarseTimers raises the timer slack of a process that will run a node. A
// thread has it from the thread that started it, and the monitor is started
// before main: so the process runs its own program once more, which keeps the
// process ID and everything else. Whatever fails, the node runs without it.
func coarseTimers() {
	if !slices.Contains(os.Args[1:], "node") && !slices.Contains(os.Args[1:], "dev") {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	now, _, _ := syscall.RawSyscall(syscall.SYS_PRCTL, prGetTimerSlack, 0, 0)
	if now == timerSlack {
		if os.Getenv("GOMAXPROCS") == "" {
			runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + extraProcs)
		}
		startPunctual()
	}
	if now == 0 || now >= timerSlack {
		return // 0: it has none, being a real-time thread
	}
	if !setSlack(timerSlack) {
		return
	}
	if now, _, _ := syscall.RawSyscall(syscall.SYS_PRCTL, prGetTimerSlack, 0, 0); now != timerSlack {
		return // it would go on for ever
	}
	// By its path, which is what process lists show; by the link, should the
	// file be gone.
	if exe, err := os.Executable(); err == nil {
		_ = syscall.Exec(exe, os.Args, os.Environ())
	}
	_ = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}
