package shardgroup

import (
	"sync"
	"time"

	"github.com/impossibledb/idb/shardgroup/seglog"
)

// Bounds of a round of entries.
const (
	// lightLoad is how many commands a node has to have, waiting and in flight,
	// before an entry waits for anything but its own group.
	lightLoad = 8
	// A round waits for the callers of the one before: restFor at most, when the
	// first have come no longer than restGap for the next, and not for more of them
	// than restShare, in percent.
	restFor   = 2 * time.Millisecond
	restGap   = 400 * time.Microsecond
	restShare = 75
	// A round that has not landed after four usual ones is not waited for: a
	// group may have lost its majority.
	minRound = 5 * time.Millisecond
	maxRound = 50 * time.Millisecond
)

// cadence makes the groups of a node start their entries together when there
// is much to do. What an entry costs, in messages, syncs and hand-overs on
// every replica, hardly depends on how many commands it carries, and groups
// that start together share syncs; so under load a round begins when the one
// before has landed and most of its callers are back with their next command.
// Under light load nothing waits.
type cadence struct {
	logs *seglog.Log // that the groups write to; nil: bursts are not announced

	mu      sync.Mutex
	round   uint64        // guarded by mu; the present one, from 1 on
	flying  int           // guarded by mu; its entries that have not landed
	resting bool          // guarded by mu; it has landed, the next one waits for commands
	enough  int           // guarded by mu; how many
	waiting []*batcher    // guarded by mu; groups that go with the next
	queued  int           // guarded by mu; commands that wait, in all groups
	sent    int           // guarded by mu; commands in flight, in all groups
	most    int           // guarded by mu; commands that waited or flew at once since the round began
	began   time.Time     // guarded by mu; of the round
	ended   time.Time     // guarded by mu; when it had landed
	last    time.Time     // guarded by mu; when commands came since, zero: none came
	usual   time.Duration // guarded by mu; how long a round takes
	timer   *time.Timer   // guarded by mu; ends the round or the rest
}

// enter asks for a turn for b, which has commands and nothing in flight; its
// lock is held. The answer is the round to report the landing to, 0 if to none,
// and whether b may start; if not, b is given a turn later.
func (c *cadence) enter(b *batcher) (round uint64, now bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.resting:
		if c.queued >= c.enough {
			c.timer.Reset(0)
		}
	case c.queued+c.sent < lightLoad:
		return 0, true
	case c.flying == 0:
		c.beginLocked(1)
		return c.round, true
	}
	c.waiting = append(c.waiting, b)
	return 0, false
}

// leave reports that an entry of a round has landed, or that a turn is not used.
func (c *cadence) leave(round uint64) {
	if round == 0 {
		return
	}
	c.mu.Lock()
	if round != c.round || c.flying == 0 {
		c.mu.Unlock()
		return // given up
	}
	var turn []*batcher
	if c.flying--; c.flying == 0 {
		c.ended = time.Now()
		c.last = time.Time{}
		c.tookLocked(c.ended.Sub(c.began))
		c.enough = c.most * restShare / 100
		if c.queued >= c.enough {
			turn = c.nextLocked()
		} else {
			c.resting = true
			c.timer.Reset(c.restLeftLocked())
		}
	}
	round = c.round
	c.mu.Unlock()
	c.giveTurns(turn, round)
}

// came says that commands have come, of a group that asks for its turn presently
// or has done so. No batcher's lock is held.
func (c *cadence) came(asks bool) {
	c.mu.Lock()
	var turn []*batcher
	switch {
	case !c.resting:
	case c.queued >= c.enough && !asks:
		turn = c.nextLocked()
	default:
		first := c.last.IsZero()
		c.last = time.Now()
		if first && c.queued < c.enough {
			c.timer.Reset(c.restLeftLocked())
		}
	}
	round := c.round
	c.mu.Unlock()
	c.giveTurns(turn, round)
}

// moved keeps account of commands: how many more wait, and are in flight.
func (c *cadence) moved(queued, sent int) {
	c.mu.Lock()
	c.queued += queued
	c.sent += sent
	c.most = max(c.most, c.queued+c.sent)
	c.mu.Unlock()
}

// late ends a round that did not land, or a rest.
func (c *cadence) late() {
	c.mu.Lock()
	var turn []*batcher
	if c.resting {
		if left := c.restLeftLocked(); left > 0 && c.queued < c.enough {
			c.timer.Reset(left)
		} else {
			turn = c.nextLocked()
		}
	} else if limit := c.limitLocked(); c.flying > 0 && time.Since(c.began) >= limit {
		c.tookLocked(limit)
		turn = c.nextLocked()
	}
	round := c.round
	c.mu.Unlock()
	c.giveTurns(turn, round)
}

// nextLocked begins a round of the groups that wait.
func (c *cadence) nextLocked() []*batcher {
	turn := c.waiting
	c.waiting = nil
	c.beginLocked(len(turn))
	return turn
}

func (c *cadence) beginLocked(entries int) {
	c.round++
	c.flying, c.resting = entries, false
	c.most, c.began = c.queued+c.sent, time.Now()
	if c.timer == nil {
		c.timer = time.AfterFunc(c.limitLocked(), c.late)
	} else if entries > 0 {
		c.timer.Reset(c.limitLocked())
	}
}

func (c *cadence) tookLocked(d time.Duration) { c.usual += (min(d, maxRound) - c.usual) / 8 }

func (c *cadence) limitLocked() time.Duration { return min(max(4*c.usual, minRound), maxRound) }

// restLeftLocked is how long the round waits for callers yet: altogether not
// longer than a round takes.
func (c *cadence) restLeftLocked() time.Duration {
	end := c.ended.Add(min(c.usual, restFor))
	if gap := c.last.Add(restGap); !c.last.IsZero() && gap.Before(end) {
		end = gap
	}
	return time.Until(end)
}

// giveTurns lets groups start.
func (c *cadence) giveTurns(turn []*batcher, round uint64) {
	var u *burst
	if c.logs != nil && len(turn) > 1 {
		u = newBurst(round, turn)
		c.logs.Expect(len(turn))
	}
	for _, b := range turn {
		b.mu.Lock()
		b.waits, b.turn, b.burst = false, round, u
		stopped := b.stopped
		b.cond.Signal()
		b.mu.Unlock()
		if stopped {
			if u != nil {
				c.logs.Forgo(1)
			}
			c.leave(round)
		}
	}
}

// stop ends the timer.
func (c *cadence) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
}
