package route

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/impossibledb/idb/txn/hlc"
)

// Clock estimates the servers' clock. The estimate is the largest reading,
// carried on by this process's monotonic time: every reading was delayed on its
// way, so the largest one was delayed least.
type Clock struct {
	start time.Time
	// ahead is the servers' Unix milliseconds minus the milliseconds since start.
	ahead atomic.Int64
}

func newClock() *Clock {
	k := &Clock{start: time.Now()}
	k.ahead.Store(math.MinInt64)
	return k
}

// Now is the servers' time, or zero if no server was heard yet.
func (k *Clock) Now() hlc.Timestamp {
	ahead := k.ahead.Load()
	if ahead == math.MinInt64 {
		return 0
	}
	return hlc.FromMillis(ahead + time.Since(k.start).Milliseconds())
}

// Correct takes the word of a server that the estimate is ahead of all clocks
// that count: it came from a node whose wall clock is wrong.
func (k *Clock) Correct(ts hlc.Timestamp) {
	k.ahead.Store(ts.Millis() - time.Since(k.start).Milliseconds())
}

// Observe takes a reading that has just arrived; zero is none.
func (k *Clock) Observe(ts uint64) {
	if ts == 0 {
		return
	}
	ahead := hlc.Timestamp(ts).Millis() - time.Since(k.start).Milliseconds()
	for {
		old := k.ahead.Load()
		if ahead <= old || k.ahead.CompareAndSwap(old, ahead) {
			return
		}
	}
}
