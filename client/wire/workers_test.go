package wire

import (
	"testing"
	"testing/synctest"
)

// What a burst has left ends, and what a steady load uses stays.
func TestIdleWorkersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w workers
		burst := func(n int) {
			open := make(chan struct{})
			for range n {
				w.run(func() { <-open })
			}
			close(open)
			synctest.Wait()
		}
		idle := func() int {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.idle)
		}
		burst(100)
		if n := idle(); n != 100 {
			t.Fatalf("%d workers are idle after 100 requests at once", n)
		}
		w.trim()
		if n := idle(); n != 100 {
			t.Fatalf("%d workers are left: those that had just worked were ended", n)
		}
		for range 10 {
			burst(10)
			w.trim()
		}
		if n := idle(); n != 10 {
			t.Errorf("%d workers are left under a load that takes 10", n)
		}
		for range 10 {
			w.trim()
		}
		if n := idle(); n != 0 {
			t.Errorf("%d workers are left without a load", n)
		}
		burst(3) // it still works
		w.close()
	})
}
