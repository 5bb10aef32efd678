package shardgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/seglog"
)

// Host runs the replicas of one node over one log and one state engine.
//
// Everything here stops in this order: groups, the host's own goroutines,
// the engines. After a fatal error nothing leaves the node any more, but
// goroutines that wait for a broken disk may never return.
type Host struct {
	cfg      Config
	log      hclog.Logger
	logs     *seglog.Log
	state    *mvcc.Engine
	stable   StableStore
	confirm  *confirmer
	surveys  *surveyor
	clock    *stopwatch
	cadence  cadence
	arrivals arrivals

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	stop   chan struct{}
	bg     sync.WaitGroup

	full     atomic.Bool // free space is below the reserve
	critical atomic.Bool // and below what entries of others may use
	dead     atomic.Bool // fatal was called
	fatalErr atomic.Pointer[error]

	resolver atomic.Pointer[Resolver]

	mu        sync.Mutex
	groups    map[placement.GroupID]*Group // guarded by mu
	placement *Placement                   // guarded by mu; nil: not a member
	starting  map[placement.GroupID]bool   // guarded by mu
	closed    bool                         // guarded by mu

	byID sync.Map // placement.GroupID -> *replica; what other nodes may ask about
}

// OpenHost opens the node's engines. No group runs before Recover or StartGroup.
func OpenHost(cfg Config) (*Host, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	h := &Host{
		cfg:      cfg,
		log:      cfg.Logger.Named("shardgroup"),
		clock:    newStopwatch(),
		stop:     make(chan struct{}),
		groups:   make(map[placement.GroupID]*Group),
		starting: make(map[placement.GroupID]bool),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	if cfg.Resolver != nil {
		h.SetResolver(cfg.Resolver)
	}
	h.confirm = newConfirmer(h)
	h.surveys = newSurveyor(h)
	if err := h.openStores(); err != nil {
		h.cancel()
		return nil, errors.Join(err, h.closeStores())
	}
	cfg.Peers.HandleAtOnce(wire.KindConfirm, h.confirm.serve)
	h.measureSpace()
	w := newWatchdog(h)
	h.spawn(w.watch)
	h.spawn(w.probeDisk)
	h.spawn(h.watchSpace)
	h.spawn(h.trim)
	h.spawn(h.surveys.run)
	return h, nil
}

func (h *Host) openStores() (err error) {
	cfg := &h.cfg
	for _, dir := range []string{cfg.Dir, cfg.path("install")} {
		if err := vfs.MakeDir(cfg.FS, dir); err != nil {
			return fmt.Errorf("shardgroup: create %s: %w", dir, err)
		}
	}
	if h.logs, err = openNodeLog(cfg.FS, cfg.path("log"), seglog.Options{}, h.log, h.fatal); err != nil {
		return err
	}
	h.cadence.logs = h.logs
	err = openOnce(cfg.FS, cfg.path("state"), func() (err error) {
		h.state, err = mvcc.OpenEngine(cfg.path("state"), mvcc.EngineOptions{
			FS:          cfg.FS,
			CacheBytes:  cfg.CacheBytes,
			NewestBytes: cfg.NewestBytes,
			Logger:      cfg.Logger.Named("state"),
			OnFatal:     h.fatal,
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("shardgroup: %w", err)
	}
	if h.stable, err = cfg.Stable(cfg.path("raft.db")); err != nil {
		return err
	}
	// bbolt syncs its file, and not the directory that has its name.
	return vfs.SyncDir(cfg.FS, cfg.Dir)
}

func (h *Host) closeStores() error {
	var errs []error
	if h.stable != nil {
		errs = append(errs, h.stable.Close())
	}
	dead := h.dead.Load()
	if dead && !h.cfg.JoinAfterFatal {
		return errors.Join(errs...)
	}
	if h.state != nil {
		if dead {
			h.state.Abandon()
		}
		err := h.state.Close()
		if !dead && err != nil && h.dead.Load() {
			// The disk failed in the middle of that.
			if !h.cfg.JoinAfterFatal {
				return errors.Join(append(errs, err)...)
			}
			dead = true
			h.state.Abandon()
			err = errors.Join(err, h.state.Close())
		}
		errs = append(errs, err)
	}
	if h.logs != nil {
		if dead {
			h.logs.Abandon()
		}
		errs = append(errs, h.logs.Close())
	}
	return errors.Join(errs...)
}

// Recover starts the groups that earlier lives of this node were members of.
// The placement group is not among them: see StartPlacement.
func (h *Host) Recover() error {
	ids := h.logs.Groups(keyGroup)
	errs := make([]error, len(ids))
	var all sync.WaitGroup
	for i, id := range ids {
		all.Add(1)
		go func() {
			defer all.Done()
			errs[i] = h.recoverGroup(placement.GroupID(id))
		}()
	}
	all.Wait()
	return errors.Join(errs...)
}

func (h *Host) recoverGroup(id placement.GroupID) error {
	spec, err := decodeGroup(id, h.logs.Get(groupKey(keyGroup, id)))
	if err != nil {
		return err
	}
	_, err = h.StartGroup(spec)
	return err
}

// StartGroup starts this node's replica of a group. The group is remembered
// before it starts, and started again by Recover. If it runs already with the
// same members it is answered as it is.
func (h *Host) StartGroup(spec GroupSpec) (*Group, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	if spec.ID == 0 {
		return nil, errors.New("shardgroup: group 0 is the placement group (StartPlacement)")
	}
	if _, err := spec.self(h.cfg.NodeID, h.cfg.Incarnation); err != nil {
		return nil, err
	}
	h.mu.Lock()
	switch g := h.groups[spec.ID]; {
	case h.closed:
		h.mu.Unlock()
		return nil, ErrStopped
	case g != nil:
		h.mu.Unlock()
		if !g.spec.sameMembers(spec) {
			return nil, fmt.Errorf("%w: %s", ErrExists, spec.ID)
		}
		return g, nil
	case h.starting[spec.ID]:
		h.mu.Unlock()
		return nil, fmt.Errorf("shardgroup: %s is being started (retry)", spec.ID)
	}
	h.starting[spec.ID] = true
	h.mu.Unlock()
	g, err := h.start(spec)
	h.mu.Lock()
	delete(h.starting, spec.ID)
	closed := h.closed
	if err == nil && !closed {
		h.groups[spec.ID] = g
		h.byID.Store(spec.ID, &g.replica)
	}
	h.mu.Unlock()
	if err == nil && closed {
		g.close()
		err = ErrStopped
	}
	if err != nil {
		return nil, err
	}
	return g, nil
}

// start remembers the group and opens it.
func (h *Host) start(spec GroupSpec) (*Group, error) {
	if err := h.remember(spec); err != nil {
		return nil, err
	}
	return openGroup(h, spec)
}

// remember writes the group's record, if it is another one than before.
func (h *Host) remember(spec GroupSpec) error {
	key, record := groupKey(keyGroup, spec.ID), encodeGroup(spec)
	if bytes.Equal(h.logs.Get(key), record) {
		return nil
	}
	if err := h.logs.Update(seglog.Change{Key: key, Value: record}); err != nil {
		err = fmt.Errorf("shardgroup: remember %s: %w", spec.ID, err)
		h.fatal(err)
		return err
	}
	return nil
}

// Group is a running replica; false if this node has none of that group.
func (h *Host) Group(id placement.GroupID) (*Group, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g, ok := h.groups[id]
	return g, ok
}

// Groups are the running replicas, in order of their IDs.
func (h *Host) Groups() []*Group {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*Group, 0, len(h.groups))
	for _, g := range h.groups {
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b *Group) int { return int(int64(a.id) - int64(b.id)) })
	return list
}

// Placement is this node's replica of the placement group; nil if it has none.
func (h *Host) Placement() *Placement {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.placement
}

// StateEngine is the node's state engine, for its metrics.
func (h *Host) StateEngine() *mvcc.Engine { return h.state }

// DiskFull says that free space is below the reserve and writes are refused.
func (h *Host) DiskFull() bool { return h.full.Load() }

// Err is the fatal error, if there was one.
func (h *Host) Err() error {
	if p := h.fatalErr.Load(); p != nil {
		return *p
	}
	return nil
}

// replica is a group's part that other nodes may ask about.
func (h *Host) replica(id placement.GroupID) *replica {
	v, ok := h.byID.Load(id)
	if !ok {
		return nil
	}
	return v.(*replica)
}

// spawn runs f in a goroutine that Close joins.
func (h *Host) spawn(f func()) {
	h.bg.Add(1)
	go func() {
		defer h.bg.Done()
		f()
	}()
}

// fatal ends the node: from here on nothing it does may be seen. The caller
// must not go on with what failed.
func (h *Host) fatal(err error) {
	if !h.dead.CompareAndSwap(false, true) {
		return
	}
	h.fatalErr.Store(&err)
	h.cfg.Peers.Cut()
	h.log.Error("fatal", "error", err)
	if h.cfg.OnFatal != nil {
		go h.cfg.OnFatal(err) // usually ends the process; not joined
	}
}

// HandOver gives away the leadership of every group that this node leads, for
// a stop that clients do not notice. It does what it can until ctx ends.
func (h *Host) HandOver(ctx context.Context) {
	var wg sync.WaitGroup
	hand := func(r *replica, to placement.NodeID) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := r.TransferLeadership(ctx, to); err != nil {
				r.log.Info("leadership was not handed over", "error", err)
			}
		}()
	}
	for _, g := range h.Groups() {
		if to := g.bestFollower(); g.IsLeader() && to != "" {
			hand(&g.replica, to)
		}
	}
	if p := h.Placement(); p != nil && p.IsLeader() && len(p.servers()) > 1 {
		hand(&p.replica, "")
	}
	wg.Wait()
}

// Close stops every group, joins every goroutine and closes the engines. After
// a fatal error it waits a few seconds at most: a disk that hangs keeps its
// goroutines.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	groups, place := h.groups, h.placement
	h.groups, h.placement = map[placement.GroupID]*Group{}, nil
	h.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		var wg sync.WaitGroup
		for _, g := range groups {
			wg.Add(1)
			go func() { defer wg.Done(); g.close() }()
		}
		var err error
		if place != nil {
			err = place.close()
		}
		wg.Wait()
		h.cadence.stop()
		close(h.stop)
		h.cancel()
		h.confirm.close()
		h.bg.Wait()
		done <- errors.Join(err, h.closeStores())
	}()
	if !h.dead.Load() || h.cfg.JoinAfterFatal {
		return <-done
	}
	limit := time.NewTimer(3 * time.Second)
	defer limit.Stop()
	select {
	case err := <-done:
		return err
	case <-limit.C:
		return fmt.Errorf("shardgroup: not everything stopped after: %w", h.Err())
	}
}
