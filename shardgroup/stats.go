package shardgroup

import (
	"sync/atomic"
	"time"

	"github.com/impossibledb/idb/shardgroup/seglog"
	"github.com/impossibledb/idb/txn"
)

// Queued is what waits in the group's batcher to be proposed.
func (g *Group) Queued() (commands, bytes int) { return g.batcher.queued() }

// LogMetrics are the numbers of the log that all groups share.
func (h *Host) LogMetrics() seglog.Metrics { return h.logs.Metrics() }

// TxnStats is what transactions did in this group since its replica started
// here, and what they hold now. What counts belongs to the time as leader.
type TxnStats struct {
	Prepared int           // held now
	Oldest   time.Duration // how long the oldest of them has been prepared

	Waiting  int           // commands that wait for locks now
	Waits    uint64        // waits that have ended
	WaitTime time.Duration // and how long they took, together
	Stepped  uint64        // commands that stepped back from an older transaction

	FrontLocks int    // documents locked up front now
	Locked     uint64 // and since the start

	// What was done for transactions that somebody had left behind.
	Rescued  uint64 // recoveries begun
	Aborted  uint64 // that home aborted for it
	Resolved uint64 // Resolves that were confirmed
}

// recoveryCounts are those of TxnStats.
type recoveryCounts struct{ rescued, aborted, resolved atomic.Uint64 }

// note counts what a message of a recovery came to.
func (c *recoveryCounts) note(s txn.Step, a *txn.Answer) {
	switch {
	case (s == txn.AbortIfUndecided || s == txn.Reject) && a.State == txn.Aborted && !a.Duplicate:
		c.aborted.Add(1)
	case s == txn.Resolve:
		c.resolved.Add(1)
	}
}

// TxnStats reads them.
func (g *Group) TxnStats() TxnStats {
	s := TxnStats{
		Stepped: g.locks.stepped.Load(), Waits: g.locks.waited[0].Load(),
		WaitTime: time.Duration(g.locks.waited[1].Load()) * time.Microsecond,
		Locked:   g.locks.taken.Load(), FrontLocks: int(g.locks.count.Load()),
		Rescued: g.recovery.rescued.Load(), Aborted: g.recovery.aborted.Load(), Resolved: g.recovery.resolved.Load(),
	}
	g.locks.mu.Lock()
	s.Waiting = len(g.locks.waiting)
	g.locks.mu.Unlock()
	now := g.host.cfg.Clock.Now().Time()
	for _, h := range g.machine.Holders() {
		s.Prepared++
		s.Oldest = max(s.Oldest, now.Sub(h.At.Time()))
	}
	return s
}
