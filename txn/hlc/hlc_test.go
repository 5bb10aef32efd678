package hlc

import (
	"sync"
	"testing"
	"time"
)

func TestClockNeverRepeatsOrGoesBack(t *testing.T) {
	wall := time.UnixMilli(1_700_000_000_000)
	var mu sync.Mutex
	c := NewClock(func() time.Time { mu.Lock(); defer mu.Unlock(); return wall })

	prev := c.Now()
	for i := range 200_000 { // more than one millisecond's counter holds
		if i == 100_000 {
			mu.Lock()
			wall = wall.Add(-time.Hour) // the wall clock is set back
			mu.Unlock()
		}
		next := c.Now()
		if next <= prev {
			t.Fatalf("call %d: %v is not above %v", i, next, prev)
		}
		prev = next
	}
}

func TestClockConcurrent(t *testing.T) {
	c := NewClock(func() time.Time { return time.UnixMilli(1) })
	const workers, each = 8, 10_000
	got := make([][]Timestamp, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for range each {
				got[w] = append(got[w], c.Now())
			}
		})
	}
	wg.Wait()
	seen := make(map[Timestamp]bool, workers*each)
	for _, ts := range got {
		for _, x := range ts {
			if seen[x] {
				t.Fatalf("%v was given out twice", x)
			}
			seen[x] = true
		}
	}
}

func TestObserve(t *testing.T) {
	c := NewClock(func() time.Time { return time.UnixMilli(1000) })
	far := FromMillis(5000) + 7
	if got := c.Ahead(); got != 0 {
		t.Errorf("a new clock is ahead by %v", got)
	}
	c.Observe(far)
	if got := c.Ahead(); got != 4*time.Second {
		t.Errorf("after Observe(%v) at 1s: ahead by %v", far, got)
	}
	if got := c.Now(); got != far+1 {
		t.Fatalf("after Observe(%v): %v", far, got)
	}
	c.Observe(FromMillis(1)) // the past changes nothing
	if got := c.Now(); got != far+2 {
		t.Fatalf("after Observe of the past: %v", got)
	}
}

func TestTimestampParts(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_123)
	ts := FromTime(at) + 5
	if !ts.Time().Equal(at) {
		t.Errorf("Time is %v, want %v", ts.Time(), at)
	}
	if end := EndOf(at); end.Millis() != at.UnixMilli() || (end+1).Millis() != at.UnixMilli()+1 {
		t.Errorf("EndOf(%v) is %v", at, end)
	}
	if got := ts.Add(-time.Second); got.Millis() != at.UnixMilli()-1000 || uint16(got) != 5 {
		t.Errorf("Add(-1s) is %v", got)
	}
	if got := Timestamp(3).Add(-time.Hour); got != 0 {
		t.Errorf("Add below zero is %v, want 0", got)
	}
	if got := ts.String(); got != "2023-11-14T22:13:20.123Z+5" {
		t.Errorf("String is %q", got)
	}
}
