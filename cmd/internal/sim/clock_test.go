package sim

import (
	"testing"
	"testing/synctest"
	"time"
)

// A clock that drifts goes on from where it was, jumps without losing its rate,
// and is right again when it is set.
func TestWallClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{}
		is := func(want time.Duration) {
			t.Helper()
			if got := time.Until(n.Now()); got != want {
				t.Errorf("the clock is %v ahead, want %v", got, want)
			}
		}
		is(0)
		n.Drift(100 * time.Millisecond)
		is(0)
		time.Sleep(10 * time.Second)
		is(time.Second)
		n.Jump(-3 * time.Second)
		is(-2 * time.Second)
		time.Sleep(10 * time.Second)
		is(-time.Second)
		n.Drift(-2 * time.Second) // backwards
		before := n.Now()
		time.Sleep(time.Second)
		is(-3 * time.Second)
		if !n.Now().Before(before) {
			t.Error("it does not run backwards")
		}
		n.SetClock()
		time.Sleep(time.Minute)
		is(0)
	})
}
