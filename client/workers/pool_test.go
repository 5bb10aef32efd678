package workers

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// What a burst has left ends, and what a steady load uses stays.
func TestIdleEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(func(open chan struct{}) { <-open })
		burst := func(n int) {
			open := make(chan struct{})
			for range n {
				p.Run(open)
			}
			close(open)
			synctest.Wait()
		}
		idle := func() int {
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.idle)
		}
		burst(100)
		if n := idle(); n != 100 {
			t.Fatalf("%d are idle after 100 tasks at once", n)
		}
		time.Sleep(3 * trimEvery / 2) // from here on between two trims
		if n := idle(); n != 100 {
			t.Fatalf("%d are left: those that had just worked were ended", n)
		}
		for range 10 {
			burst(10)
			time.Sleep(trimEvery)
		}
		if n := idle(); n != 10 {
			t.Errorf("%d are left under a load that takes 10", n)
		}
		time.Sleep(10 * trimEvery)
		if n := idle(); n != 0 {
			t.Errorf("%d are left without a load", n)
		}
		burst(maxIdle + 10)
		if n := idle(); n != maxIdle {
			t.Errorf("%d are kept, want %d", n, maxIdle)
		}
		p.Close() // the bubble ends when all have
	})
}

// A task is begun at once, however many have not ended.
func TestTasksWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(func(f func()) { f() })
		const n = 2 * maxIdle
		var begun, ended atomic.Int64
		all := make(chan struct{})
		for range n {
			p.Run(func() {
				if begun.Add(1) == n {
					close(all)
				}
				<-all
				ended.Add(1)
			})
		}
		<-all
		p.Close()
		if e := ended.Load(); e != n {
			t.Errorf("the pool is closed, and %d of %d tasks have ended", e, n)
		}
		late := make(chan struct{})
		p.Run(func() { close(late) })
		<-late // the bubble ends when its goroutine has
	})
}
