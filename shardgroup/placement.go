package shardgroup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/transport"
)

// PlacementMachine is the placement group's state machine. placement.Machine
// is one.
type PlacementMachine interface {
	// Apply carries out an entry; an error means that it cannot be understood
	// and the replica must halt. Empty data is nobody's entry.
	Apply(index uint64, data []byte) (*placement.Result, error)
	// Snapshot and Restore are the whole state as bytes.
	Snapshot() ([]byte, error)
	Restore([]byte) error
}

var _ PlacementMachine = (*placement.Machine)(nil)

// PlacementStore is where the placement group keeps its log, its votes and its
// snapshots.
type PlacementStore interface {
	raft.LogStore
	raft.StableStore
	raft.SnapshotStore
	io.Closer
}

// boltPlacementStore is raft-boltdb for log and votes, files for snapshots.
type boltPlacementStore struct {
	*raftboltdb.BoltStore
	*raft.FileSnapshotStore
}

// OpenPlacementStore is the default factory.
func OpenPlacementStore(dir string, log hclog.Logger) (PlacementStore, error) {
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, newRaftLogger(log))
	if err != nil {
		return nil, fmt.Errorf("shardgroup: open placement snapshots in %s: %w", dir, err)
	}
	bolt, err := openBolt(filepath.Join(dir, "raft.db"))
	if err != nil {
		return nil, err
	}
	return &boltPlacementStore{BoltStore: bolt, FileSnapshotStore: snaps}, nil
}

// Placement is this node's replica of the placement group: a placement.Log.
type Placement struct {
	replica
	members []Member
	machine PlacementMachine
	store   PlacementStore
	index   uint64 // of the last applied entry; raft's FSM goroutine only
}

var _ placement.Log = (*Placement)(nil)

// StartPlacement starts this node's replica of the placement group. The
// machine is restored from the group's snapshot and log. Whoever starts the
// node remembers that it is a member.
func (h *Host) StartPlacement(members []Member, machine PlacementMachine) (*Placement, error) {
	spec := GroupSpec{ID: 0, Members: members}
	if err := spec.validate(); err != nil {
		return nil, err
	}
	if _, err := spec.self(h.cfg.NodeID, h.cfg.Incarnation); err != nil {
		return nil, err
	}
	h.mu.Lock()
	if h.closed || h.placement != nil || h.starting[0] {
		defer h.mu.Unlock()
		if h.closed {
			return nil, ErrStopped
		}
		return nil, fmt.Errorf("%w: placement runs already", ErrExists)
	}
	h.starting[0] = true
	h.mu.Unlock()
	p, err := openPlacement(h, spec, machine)
	h.mu.Lock()
	delete(h.starting, 0)
	closed := h.closed
	if err == nil && !closed {
		h.placement = p
		h.byID.Store(placement.GroupID(0), &p.replica)
	}
	h.mu.Unlock()
	if err == nil && closed {
		err = errors.Join(ErrStopped, p.close())
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

func openPlacement(h *Host, spec GroupSpec, machine PlacementMachine) (*Placement, error) {
	dir := h.cfg.path("placement")
	if err := vfs.MakeDir(h.cfg.FS, dir); err != nil {
		return nil, fmt.Errorf("shardgroup: create %s: %w", dir, err)
	}
	p := &Placement{members: spec.Members, machine: machine}
	if err := p.init(h, spec); err != nil {
		return nil, err
	}
	p.onReady = func(uint64) {}
	p.onLost = func() {}
	p.onStop = func() {}
	store, err := h.cfg.PlacementStore(dir, p.log)
	if err != nil {
		return nil, err
	}
	p.store = store
	if err := vfs.SyncDir(h.cfg.FS, dir); err != nil { // bbolt does not
		return nil, errors.Join(err, store.Close())
	}
	fail := func(err error) (*Placement, error) { return nil, errors.Join(err, store.Close()) }
	logs := &watchedLogs{LogStore: store, fatal: h.fatal, stop: p.stopRaftGoroutine}
	p.stable = newGroupStable(store, spec.ID, h.clock, h.fatal, p.stopRaftGoroutine)
	if err := bootstrap(logs, p.stable, store, spec.configuration()); err != nil {
		return fail(err)
	}
	cache, err := raft.NewLogCache(256, logs)
	if err != nil {
		return fail(err)
	}
	p.trans, err = h.cfg.Peers.Raft(spec.ID, transport.RaftOptions{
		Timeout:       h.cfg.Timing.Heartbeat,
		AppendTimeout: h.cfg.StallLimit + time.Second,
		PlainIDs:      spec.plain(),
	})
	if err != nil {
		return fail(err)
	}
	conf := h.cfg.raftConfig(p.self, p.notify, p.log.Named("raft"), spec.voters())
	// The state is in memory only: it comes from the snapshot and the log.
	conf.NoSnapshotRestoreOnStart = false
	conf.SnapshotInterval = time.Minute
	conf.SnapshotThreshold = 4096
	conf.TrailingLogs = 1024
	if err := p.start(conf, (*placementFSM)(p), cache, p.stable, store); err != nil {
		_ = p.trans.Close() // never fails
		return fail(err)
	}
	return p, nil
}

// Propose appends data and answers what the machine answered to it. Errors are
// as Group.Propose's.
func (p *Placement) Propose(ctx context.Context, data []byte) (any, error) {
	if len(data) == 0 {
		return nil, errors.New("shardgroup: an empty placement entry is nobody's")
	}
	term, err := p.term(ctx)
	if err != nil {
		return nil, err
	}
	if p.host.full.Load() {
		return nil, ErrDiskFull
	}
	type outcome struct {
		answer any
		err    error
	}
	done := make(chan outcome, 1)
	// Handing over waits for raft's loop, which a slow disk may hold up.
	p.host.spawn(func() {
		if !p.propose(data, term, func(answer any, err error) { done <- outcome{answer, err} }) {
			done <- outcome{err: raft.ErrRaftShutdown}
		}
	})
	select {
	case o := <-done:
		switch {
		case o.err != nil:
			return nil, p.proposalError(o.err)
		case o.answer == errVoid:
			return nil, p.notLeader()
		}
		if r, ok := o.answer.(*placement.Result); ok {
			return r, nil
		}
		return nil, ErrOutcomeUnknown // the replica has halted
	case <-ctx.Done():
		return nil, ErrOutcomeUnknown
	case <-p.stop:
		return nil, ErrOutcomeUnknown
	}
}

// Status is what this replica knows of itself.
func (p *Placement) Status() wire.GroupStatus {
	s := p.replica.status()
	s.Flushed = s.Applied
	return s
}

// Members are those that the group was started with.
func (p *Placement) Members() []Member { return slices.Clone(p.members) }

func (p *Placement) close() error {
	p.shutdown()
	return p.store.Close()
}

// watchedLogs ends the node when the log fails.
type watchedLogs struct {
	raft.LogStore
	fatal func(error)
	stop  func()
}

func (l *watchedLogs) failed(err error) error {
	if err == nil || errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	err = fmt.Errorf("shardgroup: placement log: %w", err)
	l.fatal(err)
	return err
}

// GetLog reads an entry. raft panics if it cannot read a committed one, so a
// failure ends the goroutine instead.
func (l *watchedLogs) GetLog(index uint64, e *raft.Log) error {
	err := l.failed(l.LogStore.GetLog(index, e))
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		l.stop()
	}
	return err
}

// StoreLog stores an entry.
func (l *watchedLogs) StoreLog(e *raft.Log) error { return l.failed(l.LogStore.StoreLog(e)) }

// StoreLogs stores entries.
func (l *watchedLogs) StoreLogs(es []*raft.Log) error { return l.failed(l.LogStore.StoreLogs(es)) }

// DeleteRange removes entries.
func (l *watchedLogs) DeleteRange(low, high uint64) error {
	return l.failed(l.LogStore.DeleteRange(low, high))
}

// placementFSM is raft's view of the machine.
type placementFSM Placement

var _ raft.FSM = (*placementFSM)(nil)

// Apply applies one entry.
func (f *placementFSM) Apply(l *raft.Log) any {
	if h := f.halted.Load(); h != nil {
		return h
	}
	void, err := voidEntry(l)
	var answer any = l.Term
	if err == nil {
		switch {
		case void:
			answer = errVoid
		case len(l.Data) > 0:
			answer, err = f.machine.Apply(l.Index, l.Data)
		}
	}
	if err != nil {
		f.halt(err)
		return err
	}
	f.index = l.Index
	f.applied.advance(l.Index)
	return answer
}

// maxPlacementSnapshot bounds what Restore reads.
const maxPlacementSnapshot = 64 << 20

// The state's index goes before the state in a snapshot, so that a restored
// replica knows what it has applied:
//
//	| version u8 = 1 | index u64 | state… |
func (f *placementFSM) Snapshot() (raft.FSMSnapshot, error) {
	if h := f.halted.Load(); h != nil {
		return nil, h
	}
	b, err := f.machine.Snapshot()
	if err != nil {
		return nil, err
	}
	return placementSnapshot(appendPlacementSnapshot(nil, f.index, b)), nil
}

// Restore replaces the state.
func (f *placementFSM) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxPlacementSnapshot+1))
	if err != nil {
		return err
	}
	index, state, err := decodePlacementSnapshot(b)
	if err == nil {
		err = f.machine.Restore(state)
	}
	if err != nil {
		// raft only logs this and would go on with the old state.
		err = fmt.Errorf("shardgroup: restore placement: %w", err)
		f.host.fatal(err)
		return err
	}
	f.index = index
	f.applied.advance(index)
	return nil
}

func appendPlacementSnapshot(b []byte, index uint64, state []byte) []byte {
	return append(binary.BigEndian.AppendUint64(append(b, recordVersion), index), state...)
}

func decodePlacementSnapshot(b []byte) (index uint64, state []byte, err error) {
	if len(b) > maxPlacementSnapshot {
		return 0, nil, fmt.Errorf("%w: it has more than %d bytes", errRecordDamaged, maxPlacementSnapshot)
	}
	r := recordReader{b: b}
	r.version()
	index = r.u64()
	return index, r.b, r.err
}

type placementSnapshot []byte

// Persist writes the bytes.
func (s placementSnapshot) Persist(sink raft.SnapshotSink) error {
	_, err := io.Copy(sink, bytes.NewReader(s))
	return err // raft closes or cancels the sink
}

// Release has nothing to release.
func (s placementSnapshot) Release() {}
