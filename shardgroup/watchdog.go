package shardgroup

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// watchdog ends the node when its disk stalls or fails. raft's heartbeats go
// on while a leader waits for an fsync, so without it a leader that can make no
// progress would stay leader.
type watchdog struct {
	h     *Host
	probe busy // the probe that runs now
}

func newWatchdog(h *Host) *watchdog { return &watchdog{h: h, probe: busy{clock: h.clock}} }

// stopwatch tells time that a change of the wall clock does not move.
type stopwatch struct{ begun time.Time }

func newStopwatch() *stopwatch { return &stopwatch{begun: time.Now()} }

// now is never 0.
func (s *stopwatch) now() int64 { return int64(time.Since(s.begun)) + 1 }

// busy is since when something waits for the disk.
type busy struct {
	clock *stopwatch
	since atomic.Int64 // of clock; 0: it does not
}

func (b *busy) begin() { b.since.Store(b.clock.now()) }
func (b *busy) end()   { b.since.Store(0) }

// probeBytes is what a probe writes: one page.
const probeBytes = 4096

// probe writes and syncs a small file again and again. It waits on the disk
// as long as the disk takes; watch looks at the clock meanwhile.
func (w *watchdog) probeDisk() {
	path := w.h.cfg.path("probe")
	tick := time.NewTicker(w.h.cfg.ProbeInterval)
	defer tick.Stop()
	var f vfs.File
	defer func() {
		if f != nil {
			_ = f.Close() // was synced after every write
		}
	}()
	page := make([]byte, probeBytes)
	for {
		w.probe.begin()
		var err error
		if f == nil {
			f, err = w.h.cfg.FS.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
		}
		if err == nil {
			page[0]++
			if _, err = f.WriteAt(page, 0); err == nil {
				err = f.Sync()
			}
		}
		w.probe.end()
		if err != nil && !w.outOfSpace() {
			w.h.fatal(fmt.Errorf("shardgroup: disk probe %s: %w", path, err))
			return
		}
		select {
		case <-tick.C:
		case <-w.h.stop:
			return
		}
	}
}

// outOfSpace: a full disk is no broken one.
func (w *watchdog) outOfSpace() bool {
	free, err := w.h.cfg.FreeSpace()
	return err == nil && free < w.h.cfg.DiskReserve
}

// watch looks for something that waits for the disk too long. A process that
// was paused finds everything old when it goes on: what it missed does not
// count.
func (w *watchdog) watch() {
	limit := w.h.cfg.StallLimit
	every := max(limit/10, time.Millisecond)
	tick := time.NewTicker(every)
	defer tick.Stop()
	seen, resumed := w.h.clock.now(), int64(0)
	for {
		select {
		case <-w.h.stop:
			return
		case <-tick.C:
		}
		now := w.h.clock.now()
		if time.Duration(now-seen) > limit/2 {
			resumed = now
		}
		seen = now
		if what, since := w.oldest(); since != 0 {
			if d := time.Duration(now - max(since, resumed)); d > limit {
				w.h.fatal(fmt.Errorf("shardgroup: the disk of %s stalls: %s has waited %v, the limit is %v (check the disk)", w.h.cfg.Dir, what, d.Round(time.Millisecond), limit))
				return
			}
		}
	}
}

// oldest is what has waited for the disk longest, and since when.
func (w *watchdog) oldest() (what string, since int64) {
	look := func(name string, b *busy) {
		t := b.since.Load()
		if t != 0 && (since == 0 || t < since) {
			what, since = name, t
		}
	}
	look("the disk probe", &w.probe)
	for _, g := range w.h.Groups() {
		look("the log of "+g.id.String(), &g.logs.busy)
		look("the vote of "+g.id.String(), &g.stable.busy)
	}
	if p := w.h.Placement(); p != nil {
		look("the vote of placement", &p.stable.busy)
	}
	return what, since
}

// watchSpace keeps the reserve.
func (h *Host) watchSpace() {
	tick := time.NewTicker(h.cfg.SpaceInterval)
	defer tick.Stop()
	for {
		select {
		case <-h.stop:
			return
		case <-tick.C:
			h.measureSpace()
		}
	}
}

// measureSpace sets full and critical. Both come with a distance to go back,
// so that they do not flutter.
func (h *Host) measureSpace() {
	free, err := h.cfg.FreeSpace()
	if err != nil {
		h.log.Warn("free space is not known", "error", err)
		return
	}
	below := func(was bool, limit uint64) bool {
		if was {
			limit += limit / 8
		}
		return free < limit
	}
	full := below(h.full.Load(), h.cfg.DiskReserve)
	critical := below(h.critical.Load(), h.cfg.DiskReserve/4)
	if h.full.Swap(full) != full {
		if full {
			h.log.Error("disk is nearly full, writes are refused", "free_bytes", free, "reserve_bytes", h.cfg.DiskReserve)
		} else {
			h.log.Info("disk has space again, writes are accepted", "free_bytes", free)
		}
	}
	if h.critical.Swap(critical) != critical {
		h.log.Warn("entries of other nodes", "refused", critical, "free_bytes", free)
	}
	for _, g := range h.Groups() {
		h.tellSpace(&g.replica)
	}
	if p := h.Placement(); p != nil {
		h.tellSpace(&p.replica)
	}
}

// errCritical is why a follower takes no entries.
var errCritical = fmt.Errorf("shardgroup: %w, and this node takes no entries until space is back", ErrDiskFull)

func (h *Host) tellSpace(r *replica) {
	r.trans.SetFull(h.full.Load())
	if h.critical.Load() {
		r.trans.RefuseEntries(errCritical)
	} else {
		r.trans.RefuseEntries(nil)
	}
}
