package shardgroup

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// trimTick is how often the log is looked at.
	trimTick = 200 * time.Millisecond
	// leastLog is what the log may take however small the state is: below it
	// flushes would come too often.
	leastLog = 64 << 20
	// resendBytes bounds the end of a group's log that is kept in any case: what
	// a leader may send a follower once more, which then looks for it in its own
	// log.
	resendBytes = 2 << 20
)

// trim keeps the log short: groups whose log has grown are flushed, and what
// all followers that keep up have is cut off. See DESIGN.md, "How much log".
func (h *Host) trim() {
	tick := time.NewTicker(trimTick)
	defer tick.Stop()
	for {
		select {
		case <-h.stop:
			return
		case <-tick.C:
			h.trimOnce()
		}
	}
}

func (h *Host) trimOnce() {
	groups := h.Groups()
	room, used := h.logRoom(), h.logs.Used()
	crowded, due := used > room, false
	for _, g := range groups {
		due = due || g.snapshotDue(1)
	}
	if !due && !crowded {
		return
	}
	var ripe []*Group
	for _, g := range groups {
		// One flush serves all groups, so those that are half way join in; and
		// what will be in the way must be flushed before it can go.
		if g.snapshotDue(2) || crowded && g.pins(room/2) {
			ripe = append(ripe, g)
		}
	}
	h.takeSnapshots(ripe)
	for _, g := range groups {
		// In small steps: segments that become free one by one are used again,
		// many at once are deleted, and made anew.
		g.truncate(room-room/16, used > 2*room)
	}
}

// logRoom is how much disk the log may take now. A follower that is further
// behind than all the state is large is served sooner by a snapshot.
func (h *Host) logRoom() int64 {
	least := min(leastLog, h.cfg.LogBytes)
	if h.full.Load() {
		return least
	}
	if h.logs.Used() <= least {
		return h.cfg.LogBytes // not asked for yet
	}
	m, err := h.state.Metrics()
	if err != nil {
		return h.cfg.LogBytes // being closed
	}
	return min(h.cfg.LogBytes, max(least, 2*int64(m.DiskBytes)))
}

// snapshotDue says whether the log has grown to 1/part of what triggers a
// snapshot.
func (g *Group) snapshotDue(part int64) bool {
	cfg := &g.host.cfg
	bytes, entries := g.logs.bytes.Load(), g.apply.sinceSnapshot()
	return g.maySnapshot() && (bytes >= cfg.SnapshotBytes/part || entries >= cfg.SnapshotEntries/uint64(part))
}

// pins says whether something that is not flushed lies outside the newest bytes
// of the log.
func (g *Group) pins(bytes int64) bool {
	return g.maySnapshot() && g.logs.log.Recent(uint32(g.id), bytes) > g.snaps.marker().index+1
}

func (g *Group) maySnapshot() bool {
	return g.apply.sinceSnapshot() > 0 && g.halted.Load() == nil && !g.host.dead.Load()
}

// sharedFlush is one flush for the snapshots of several groups.
type sharedFlush struct {
	missing atomic.Int32  // groups whose state is still to be taken
	taken   chan struct{} // closed when none is missing
	done    chan struct{} // closed when it is flushed, and err is set
	err     error
}

// arrive says that a group's state was taken, or will not be.
func (f *sharedFlush) arrive() {
	if f.missing.Add(-1) == 0 {
		close(f.taken)
	}
}

// takeSnapshots has raft write markers. The groups' states are taken first, so
// that one flush has them all.
func (h *Host) takeSnapshots(groups []*Group) {
	if len(groups) == 0 {
		return
	}
	f := &sharedFlush{taken: make(chan struct{}), done: make(chan struct{})}
	f.missing.Store(int32(len(groups)))
	var wg sync.WaitGroup
	for _, g := range groups {
		g.shared.Store(f)
		wg.Go(func() {
			err := g.raft.Snapshot().Error()
			if g.shared.CompareAndSwap(f, nil) { // it did not come to Persist
				f.arrive()
			}
			if err != nil && g.check() == nil {
				g.log.Warn("snapshot was not taken", "error", err)
			}
		})
	}
	<-f.taken
	f.err = h.state.Flush()
	close(f.done)
	wg.Wait()
}

// keepAll has raft leave the log alone after a snapshot: it counts entries, and
// what matters is which segments they are in, over all groups.
const keepAll = math.MaxUint64

// truncate cuts off what is flushed and is not kept for followers: the last
// TrailingEntries, as far as they lie in the newest bytes of the log. What a
// follower needs next that was sent a snapshot stays too, unless there is far
// too much.
func (g *Group) truncate(bytes int64, evenHeld bool) {
	first, _ := g.logs.FirstIndex()
	last, _ := g.logs.LastIndex()
	if first == 0 || g.halted.Load() != nil || g.host.dead.Load() {
		return
	}
	id := uint32(g.id)
	keep := g.logs.log.Recent(id, bytes)
	resend := max(g.logs.log.Short(id, resendBytes), last-min(last, maxAppendEntries)+1)
	keep = max(min(keep, resend), last-min(last, g.host.cfg.TrailingEntries)+1)
	if held := g.snaps.held(); held != 0 && !evenHeld {
		keep = min(keep, held)
	}
	upto := min(keep-1, g.snaps.marker().index, last-1)
	if upto < first {
		return
	}
	_ = g.logs.DeleteRange(first, upto) // an error has ended the node
}
