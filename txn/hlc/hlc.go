// Package hlc holds the hybrid logical clock: timestamps that read as wall
// time and order as counters. Nothing in ImpossibleDB depends on two clocks
// agreeing; a timestamp is an order first and a time of day second.
//
// The idea is from Kulkarni, Demirbas et al., "Logical Physical Clocks" (2014).
package hlc

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Timestamp is 48 bits of Unix milliseconds and 16 bits of counter:
//
//	63            16 15       0
//	| milliseconds | counter |
//
// Zero is no timestamp.
type Timestamp uint64

const counterBits = 16

// Max is above every timestamp that a clock gives out.
const Max = Timestamp(1<<64 - 1)

// FromMillis is the first timestamp of a Unix millisecond.
func FromMillis(ms int64) Timestamp { return Timestamp(ms) << counterBits }

// FromTime is the first timestamp of t's millisecond.
func FromTime(t time.Time) Timestamp { return FromMillis(t.UnixMilli()) }

// EndOf is the last timestamp of t's millisecond: a read "as of t" sees
// everything that was written in it.
func EndOf(t time.Time) Timestamp { return FromMillis(t.UnixMilli()+1) - 1 }

// Millis is the timestamp's Unix time in milliseconds.
func (t Timestamp) Millis() int64 { return int64(t >> counterBits) }

// Time is the timestamp's wall time, to the millisecond, in UTC.
func (t Timestamp) Time() time.Time { return time.UnixMilli(t.Millis()).UTC() }

// Add moves the wall part by d (to the millisecond) and keeps the counter.
// It stops at zero instead of wrapping.
func (t Timestamp) Add(d time.Duration) Timestamp {
	ms := t.Millis() + d.Milliseconds()
	if ms < 0 {
		return 0
	}
	return FromMillis(ms) | t&(1<<counterBits-1)
}

// String prints the timestamp as time and counter.
func (t Timestamp) String() string {
	return fmt.Sprintf("%s+%d", t.Time().Format("2006-01-02T15:04:05.000Z"), uint16(t))
}

// Clock gives out timestamps that never repeat and never go back, whatever the
// wall clock does. It is safe for concurrent use.
type Clock struct {
	now  func() time.Time
	last atomic.Uint64 // largest timestamp given out or observed
}

// NewClock makes a clock over now; nil means time.Now.
func NewClock(now func() time.Time) *Clock {
	if now == nil {
		now = time.Now
	}
	return &Clock{now: now}
}

// Now is a timestamp above every one this clock gave out or observed.
func (c *Clock) Now() Timestamp {
	wall := uint64(FromTime(c.now()))
	for {
		last := c.last.Load()
		next := max(wall, last+1)
		if c.last.CompareAndSwap(last, next) {
			return Timestamp(next)
		}
	}
}

// Ahead is how far what it has given out or observed is ahead of the wall clock.
func (c *Clock) Ahead() time.Duration {
	return max(0, Timestamp(c.last.Load()).Time().Sub(c.now()))
}

// Observe moves the clock to at least t.
func (c *Clock) Observe(t Timestamp) {
	for {
		last := c.last.Load()
		if uint64(t) <= last || c.last.CompareAndSwap(last, uint64(t)) {
			return
		}
	}
}
