package history

import (
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Counter follows one document that clients only increment, each time by one
// and with the new count returned: a retry that was applied twice, or an
// increment that was lost, shows in the sum and in the counts.
type Counter struct {
	mu       sync.Mutex
	acked    int           // guarded by mu; increments that were acknowledged
	unknown  int           // guarded by mu
	returned map[int64]int // guarded by mu; how many increments were told each count
}

// NewCounter starts at zero.
func NewCounter() *Counter { return &Counter{returned: map[int64]int{}} }

// Incremented notes what the client was told of one increment.
func (c *Counter) Incremented(outcome Outcome, count int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch outcome {
	case Done:
		c.acked++
		c.returned[count]++
	case Unknown:
		c.unknown++
	}
}

// Acknowledged is how many increments must be in the final count.
func (c *Counter) Acknowledged() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acked
}

// Judge compares the final count, and the number of changes that the document
// says it had, with what clients were told.
func (c *Counter) Judge(count int64, version uint64) Verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	var f found
	if count < int64(c.acked) {
		f.addf("lost update", "count is %d, but %d increments were acknowledged: %d are lost", count, c.acked, int64(c.acked)-count)
	}
	if most := int64(c.acked + c.unknown); count > most {
		f.addf("applied twice", "count is %d, but only %d increments were acknowledged and %d are unknown: %d were applied twice",
			count, c.acked, c.unknown, count-most)
	}
	if version != uint64(count) {
		f.addf("applied twice", "count is %d at version %d: each version is one increment", count, version)
	}
	for _, n := range slices.Sorted(maps.Keys(c.returned)) {
		switch times := c.returned[n]; {
		case times > 1:
			f.addf("lost update", "count %d was returned to %d increments", n, times)
		case n < 1 || n > count:
			f.addf("lost update", "count %d was returned, but the document ends at %d", n, count)
		}
	}
	return Verdict{
		Checker:   "exactly once",
		Judged:    fmt.Sprintf("%d increments acknowledged, %d unknown, the count is %d", c.acked, c.unknown, count),
		Anomalies: f.ends(),
	}
}
