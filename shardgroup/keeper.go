package shardgroup

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/leader"
	"github.com/impossibledb/idb/shardgroup/transport"
	"github.com/impossibledb/idb/txn/hlc"
)

// keeper does what a leader has to do besides serving: it has the replicas
// compare digests, raises the horizons, collects garbage, gives up on
// proposals that take too long, and moves leadership where it belongs.
type keeper struct {
	g *Group

	mu     sync.Mutex
	cancel context.CancelFunc // guarded by mu; of the term that is kept now
	bg     sync.WaitGroup

	compared atomic.Uint64 // digests proposed
	late     chan struct{} // somebody waits for one of them
	hurry    atomic.Bool   // do not wait before leadership is moved; for tests

	// run's own.
	digestAt   uint64        // applied index of the last digest
	digestTime time.Time     // and when
	sweep      fsm.Sweep     // where the walk for garbage stands
	sweepTime  time.Time     // when it stood at its beginning
	history    hlc.Timestamp // clock when nothing was left to raise

	moveAfter time.Time // no attempt to move leadership before; watch's own
}

const (
	keeperTick = 100 * time.Millisecond
	// digestIdle is how long a group that is written seldom goes without a
	// comparison.
	digestIdle = 15 * time.Second
	// preferAfter is how long a leader that is not the preferred one stays, so
	// that leadership does not go to a node that has only just come back.
	preferAfter = 5 * time.Second
	moveRetry   = 20 * time.Second
	// nearEnough is how many entries behind a follower may be to be given
	// leadership: writes stop until it has caught up.
	nearEnough = 256
)

func (k *keeper) begin(term uint64) {
	k.end()
	k.mu.Lock()
	defer k.mu.Unlock()
	ctx, cancel := context.WithCancel(k.g.host.ctx)
	k.cancel = cancel
	k.bg.Add(3)
	go func() { defer k.bg.Done(); k.watch(ctx) }()
	go func() { defer k.bg.Done(); k.run(ctx) }()
	go func() { defer k.bg.Done(); k.settle(ctx) }()
}

// end stops the work of the term and waits for it.
func (k *keeper) end() {
	k.mu.Lock()
	if k.cancel != nil {
		k.cancel()
		k.cancel = nil
	}
	k.mu.Unlock()
	k.bg.Wait()
}

// watch does what must not wait for a proposal of the group's own.
func (k *keeper) watch(ctx context.Context) {
	k.moveAfter = time.Now().Add(preferAfter)
	defer k.g.short.Store(nil)
	tick := time.NewTicker(keeperTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			k.g.batcher.expire(now, k.g.host.cfg.ProposalTimeout)
			k.move(ctx, now)
			k.g.measureMembers()
		}
	}
}

// measureMembers finds out whether the members with disk space are a majority:
// entries that no majority takes would end as unknown. A member tells with its
// answers, also to heartbeats, and what it told last counts: one that is gone
// is no help either.
func (g *Group) measureMembers() {
	var full []placement.NodeID
	voters := 0
	for _, s := range g.servers() {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		n, _ := transport.SplitServerID(s.ID)
		if s.ID == g.self && g.host.full.Load() || s.ID != g.self && g.trans.Progress(s.ID).Full {
			full = append(full, n)
		}
	}
	if voters-len(full) > voters/2 {
		g.short.Store(nil)
		return
	}
	g.short.Store(&DiskFullError{Group: g.id, Nodes: full})
}

// run proposes what the group needs for itself.
func (k *keeper) run(ctx context.Context) {
	now := time.Now()
	k.digestAt, k.digestTime = k.g.applied.load(), now
	k.sweepTime = now
	tick := time.NewTicker(keeperTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			k.compare(ctx, now)
			k.forget(ctx, now)
		}
	}
}

// own proposes a command of the group's own; what fails comes again.
func (k *keeper) own(ctx context.Context, c fsm.Command) bool {
	ctx, cancel := context.WithTimeout(ctx, k.g.host.cfg.ProposalTimeout)
	defer cancel()
	_, err := k.g.proposeOwn(ctx, c)
	return err == nil
}

// compare has the replicas compare digests.
func (k *keeper) compare(ctx context.Context, now time.Time) {
	applied := k.g.applied.load()
	since := applied - k.digestAt
	if since < k.g.host.cfg.DigestEvery && (since <= 1 || now.Sub(k.digestTime) < digestIdle) {
		return
	}
	if k.own(ctx, k.g.machine.DigestCommand()) {
		k.digestAt, k.digestTime = k.g.applied.load(), now
		k.compared.Add(1)
	}
}

// move hands leadership over if this node's disk is full, or if another one is
// preferred.
func (k *keeper) move(ctx context.Context, now time.Time) {
	full := k.g.host.full.Load()
	if now.Before(k.moveAfter) && !full && !k.hurry.Load() {
		return
	}
	to := k.g.Preferred()
	if full {
		to = k.g.bestFollower()
	} else if to == "" || to == k.g.host.cfg.NodeID || !k.g.mayLead(to) {
		return
	}
	if to == "" {
		return
	}
	k.g.log.Info("handing leadership over", "to", to, "disk_full", full)
	if err := k.g.TransferLeadership(ctx, to); err != nil {
		k.g.log.Warn("leadership was not handed over", "to", to, "error", err)
		k.moveAfter = now.Add(moveRetry)
	}
}

// mayLead says whether a member is up, close behind, and has disk space, as
// far as its answers to entries and heartbeats tell.
func (g *Group) mayLead(n placement.NodeID) bool {
	s, err := g.member(n)
	if err != nil {
		return false
	}
	p := g.trans.Progress(s.ID)
	return p.Success && !p.Full && time.Since(p.At) < 2*g.host.cfg.Timing.Heartbeat+time.Second &&
		p.LastIndex+nearEnough >= g.raft.LastIndex()
}

// bestFollower is the member that is closest behind and may lead.
func (g *Group) bestFollower() placement.NodeID {
	var best placement.NodeID
	var at uint64
	for _, s := range g.servers() {
		n, _ := transport.SplitServerID(s.ID)
		if s.ID == g.self || !g.mayLead(n) {
			continue
		}
		if p := g.trans.Progress(s.ID); best == "" || p.LastIndex > at {
			best, at = n, p.LastIndex
		}
	}
	return best
}

// forget raises the horizons and collects what lies below.
func (k *keeper) forget(ctx context.Context, now time.Time) {
	cfg := &k.g.host.cfg
	if now.Sub(k.sweepTime) < cfg.SweepInterval {
		return
	}
	k.sweepTime = now
	k.raiseHorizons(ctx)
	limits := fsm.SweepLimits{}
	keep := func(c placement.CollectionID) uint32 {
		if cfg.Retention == nil {
			return 0
		}
		r, _ := cfg.Retention(c)
		return r.Versions
	}
	for ctx.Err() == nil {
		garbage, err := k.g.machine.FindGarbage(&k.sweep, limits, keep)
		if err != nil {
			k.g.log.Warn("looking for garbage failed", "error", err)
			return
		}
		for i := range garbage.Collects {
			if !k.own(ctx, fsm.Command{Collect: &garbage.Collects[i]}) {
				return
			}
		}
		if garbage.Done {
			return
		}
		// A long history is walked in small steps, with room for others between.
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// raiseHorizons moves the horizons up to what the settings allow, if anything
// lies below them: an idle group writes nothing.
func (k *keeper) raiseHorizons(ctx context.Context) {
	cfg := &k.g.host.cfg
	m := k.g.machine
	clock := m.Clock()
	requests, history := m.Horizons()
	now := cfg.Clock.Now()
	var h fsm.Horizon
	if to, ok := leader.Forget(requests, clock, m.Youngest(), now, cfg.RequestIDTTL); ok {
		h.RequestIDs = to
	}
	if cfg.Retention != nil && clock > k.history {
		all := true
		for _, c := range m.Stats().Collections {
			if c.Rows <= c.Documents {
				continue
			}
			r, known := cfg.Retention(c.Collection)
			if !known || r.Forever {
				continue
			}
			have := hlc.Timestamp(0)
			if i := slices.IndexFunc(history, func(x fsm.HistoryHorizon) bool { return x.Collection == c.Collection }); i >= 0 {
				have = history[i].At
			}
			if to := now.Add(-r.Age); have < clock && to > have.Add(max(r.Age/16, cfg.SweepInterval/2)) {
				// Not above the clock: a scan of a group that nobody writes to reads there.
				h.History = append(h.History, fsm.HistoryHorizon{Collection: c.Collection, At: min(to, clock)})
			}
			all = all && have >= clock
		}
		if all {
			k.history = clock
		}
	}
	if h.RequestIDs != 0 || len(h.History) > 0 {
		k.own(ctx, fsm.Command{Horizon: &h})
	}
}
