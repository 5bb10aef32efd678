package shardgroup

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/shardgroup/seglog"
	"github.com/impossibledb/idb/shardgroup/transport"
)

// sendHold is how long after sending a snapshot the log is kept from there on,
// so that the follower finds in it what it needs next.
const sendHold = time.Minute

// snapshotStore is a group's raft.SnapshotStore. It holds one marker and no
// data: what is on disk is the state engine. See DESIGN.md for the order of
// steps and the crash argument.
type snapshotStore struct {
	g *Group

	mu      sync.Mutex
	mark    marker          // guarded by mu; index 0: none yet
	staged  *staging        // guarded by mu; received in full, raft is being told
	pending *pendingInstall // guarded by mu; its record is on disk
	holds   []*hold         // guarded by mu; of snapshots that are or were just sent
	serial  int             // guarded by mu; for names of directories
	over    bool            // guarded by mu
}

var (
	_ raft.SnapshotStore         = (*snapshotStore)(nil)
	_ transport.SnapshotReceiver = (*snapshotStore)(nil)
)

// openSnapshotStore reads the marker and a pending install, and removes what
// is left of snapshots that did not arrive in full.
func openSnapshotStore(g *Group) (*snapshotStore, error) {
	s := &snapshotStore{g: g}
	var err error
	if b := g.host.logs.Get(groupKey(keyMarker, g.id)); b != nil {
		if s.mark, err = decodeMarker(b); err != nil {
			return nil, fmt.Errorf("%s: %w", g.id, err)
		}
	}
	if b := g.host.logs.Get(groupKey(keyPending, g.id)); b != nil {
		p, err := decodePending(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", g.id, err)
		}
		s.pending = &p
	}
	fs, dir := g.host.cfg.FS, g.host.cfg.path("install")
	names, err := fs.List(dir)
	if err != nil {
		return nil, fmt.Errorf("shardgroup: list %s: %w", dir, err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, g.id.String()+"-") && (s.pending == nil || name != s.pending.dir) {
			if err := fs.RemoveAll(fs.PathJoin(dir, name)); err != nil {
				return nil, fmt.Errorf("shardgroup: remove %s: %w", name, err)
			}
		}
	}
	return s, nil
}

func (s *snapshotStore) marker() marker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mark
}

// hold keeps the log from the end of a snapshot that is being sent.
type hold struct {
	index uint64
	until time.Time // zero: it is not sent yet
}

// held is the index from which on the log should be kept now; 0: none.
func (s *snapshotStore) held() (first uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.holds = slices.DeleteFunc(s.holds, func(h *hold) bool { return !h.until.IsZero() && now.After(h.until) })
	for _, h := range s.holds {
		if first == 0 || h.index < first {
			first = h.index
		}
	}
	return first
}

func (s *snapshotStore) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

func (m *marker) meta(id string, size int64) *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version:            raft.SnapshotVersionMax,
		ID:                 id,
		Index:              m.index,
		Term:               m.term,
		Configuration:      m.conf,
		ConfigurationIndex: m.confIndex,
		Size:               size,
	}
}

func (m *marker) markerID() string  { return fmt.Sprintf("marker-%d-%d", m.term, m.index) }
func (m *marker) installID() string { return fmt.Sprintf("install-%d-%d", m.term, m.index) }

// List answers the marker, if there is one.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	m := s.marker()
	if m.index == 0 {
		return nil, nil
	}
	return []*raft.SnapshotMeta{m.meta(m.markerID(), 0)}, nil
}

// Create begins a snapshot: of this replica's own state (the machine's Persist
// says so), or one that was received.
func (s *snapshotStore) Create(_ raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &snapshotSink{store: s, mark: marker{index: index, term: term, applied: index, conf: conf, confIndex: confIndex}}, nil
}

// Open opens the machine as it is now, for a follower, or the snapshot that
// was just received, for Restore.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	mark, pending := s.mark, s.pending
	s.mu.Unlock()
	if pending != nil && id == pending.installID() {
		return pending.meta(id, 0), io.NopCloser(strings.NewReader("")), nil
	}
	if mark.index == 0 || id != mark.markerID() {
		return nil, nil, fmt.Errorf("shardgroup: %s has no snapshot %s", s.g.id, id)
	}
	return s.export(id, mark)
}

// export pins the machine's state and says which index it has.
func (s *snapshotStore) export(id string, at marker) (_ *raft.SnapshotMeta, _ io.ReadCloser, err error) {
	if h := s.g.halted.Load(); h != nil {
		return nil, nil, h
	}
	keep := &hold{index: at.index}
	s.mu.Lock()
	s.holds = append(s.holds, keep)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if keep.index = at.index; err != nil {
			keep.until = time.Now()
		}
	}()
	for {
		confIndex, conf := s.g.apply.configuration()
		x, err := s.g.machine.Snapshot()
		if err != nil {
			return nil, nil, fmt.Errorf("shardgroup: export %s: %w", s.g.id, err)
		}
		if again, _ := s.g.apply.configuration(); again != confIndex {
			_ = x.Close() // only read from
			continue
		}
		if x.Applied > at.index {
			term, ok := s.g.logs.termOf(x.Applied)
			if !ok {
				_ = x.Close() // only read from
				return nil, nil, fmt.Errorf("shardgroup: export %s: entry %d is not in the log", s.g.id, x.Applied)
			}
			at.index, at.term = x.Applied, term
			at.conf, at.confIndex = conf, confIndex
		}
		return at.meta(id, 0), &exportReader{store: s, export: x, keep: keep}, nil
	}
}

// exportReader is an export as raft wants it. It can only be written to
// something, which is what the transport does.
type exportReader struct {
	store  *snapshotStore
	export *fsm.Export
	keep   *hold
	sent   bool // all of it was written
	once   sync.Once
	err    error
}

var _ transport.Sized = (*exportReader)(nil)

// Size is the exact number of bytes. It walks over the whole state, which is
// why the transport asks only when it has reached the follower.
func (r *exportReader) Size() (int64, error) { return r.export.Size() }

func (r *exportReader) Read([]byte) (int, error) {
	return 0, errors.New("shardgroup: a snapshot is streamed with WriteTo")
}

// WriteTo streams the state.
func (r *exportReader) WriteTo(w io.Writer) (int64, error) {
	n, err := r.export.WriteTo(w)
	r.sent = err == nil
	return n, err
}

// Close lets go of the pinned state.
func (r *exportReader) Close() error {
	r.once.Do(func() {
		r.err = r.export.Close()
		r.store.mu.Lock()
		defer r.store.mu.Unlock()
		r.keep.until = time.Now()
		if r.sent {
			r.keep.until = r.keep.until.Add(sendHold)
		}
	})
	return r.err
}

// snapshotSink makes a marker, or a pending install.
type snapshotSink struct {
	store *snapshotStore
	mark  marker
	local bool     // the machine has been flushed up to mark.applied
	taken *staging // the snapshot that was received
}

// ID is what raft opens the snapshot by.
func (k *snapshotSink) ID() string {
	if k.taken != nil {
		return k.mark.installID()
	}
	return k.mark.markerID()
}

// Write is not how snapshots arrive.
func (k *snapshotSink) Write([]byte) (int, error) {
	return 0, errors.New("shardgroup: a snapshot arrives through the transport's receiver")
}

// ReadFrom takes over the snapshot that the receiver has completed. The bytes
// were read before raft heard of it; the count is theirs.
func (k *snapshotSink) ReadFrom(io.Reader) (int64, error) {
	s := k.store
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.staged
	if st == nil || st.meta.LastLogIndex != k.mark.index || st.meta.LastLogTerm != k.mark.term {
		return 0, fmt.Errorf("shardgroup: no snapshot of %s at %d was received", s.g.id, k.mark.index)
	}
	st.taken, k.taken, s.staged = true, st, nil
	k.mark.applied = st.imported.Applied
	return st.meta.Size, nil
}

// Close writes the record.
func (k *snapshotSink) Close() error {
	s := k.store
	switch {
	case k.taken != nil:
		p := pendingInstall{marker: k.mark, dir: k.taken.dir}
		if err := s.g.host.logs.Update(seglog.Change{Key: groupKey(keyPending, s.g.id), Value: encodePending(p)}); err != nil {
			err = fmt.Errorf("shardgroup: write pending install of %s: %w", s.g.id, err)
			s.g.host.fatal(err)
			return err
		}
		s.mu.Lock()
		s.pending = &p
		s.mu.Unlock()
		return nil
	case k.local:
		if err := s.g.host.logs.Update(seglog.Change{Key: groupKey(keyMarker, s.g.id), Value: encodeMarker(k.mark)}); err != nil {
			err = fmt.Errorf("shardgroup: write snapshot marker of %s: %w", s.g.id, err)
			s.g.host.fatal(err)
			return err
		}
		s.mu.Lock()
		s.mark = k.mark
		s.mu.Unlock()
		s.g.logs.bytes.Store(0)
		s.g.apply.snapshotTaken()
		return nil
	default:
		return fmt.Errorf("shardgroup: snapshot of %s was closed before it was made", s.g.id)
	}
}

// Cancel gives the snapshot up.
func (k *snapshotSink) Cancel() error {
	if k.taken != nil {
		return k.taken.imported.Remove()
	}
	return nil
}

// staging is a snapshot that is being received.
type staging struct {
	store    *snapshotStore
	meta     raft.InstallSnapshotRequest
	dir      string
	importer *fsm.Importer
	imported *fsm.Imported // after Finish
	taken    bool          // guarded by store.mu; a sink has it
}

// ReceiveSnapshot begins to take a snapshot into tables.
func (s *snapshotStore) ReceiveSnapshot(meta *raft.InstallSnapshotRequest) (transport.Staging, error) {
	if err := s.g.check(); err != nil {
		return nil, err
	}
	if free, err := s.g.host.cfg.FreeSpace(); err == nil && free < uint64(meta.Size)+s.g.host.cfg.DiskReserve/4 {
		return nil, fmt.Errorf("shardgroup: snapshot of %s has %d bytes, the disk has %d left: %w", s.g.id, meta.Size, free, ErrDiskFull)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil, ErrStopped
	}
	if s.pending != nil {
		return nil, fmt.Errorf("shardgroup: a snapshot of %s is being installed", s.g.id)
	}
	s.serial++
	dir := fmt.Sprintf("%s-%d-%d", s.g.id, meta.LastLogIndex, s.serial)
	im, err := s.g.machine.NewImporter(s.g.host.cfg.path("install", dir))
	if err != nil {
		return nil, fmt.Errorf("shardgroup: receive snapshot of %s: %w", s.g.id, err)
	}
	s.g.log.Info("receiving snapshot", "index", meta.LastLogIndex, "bytes", meta.Size)
	return &staging{store: s, meta: *meta, dir: dir, importer: im}, nil
}

func (st *staging) Write(p []byte) (int, error) { return st.importer.Write(p) }

// Finish completes and syncs the tables and offers them to raft's sink.
func (st *staging) Finish() (io.Reader, error) {
	im, err := st.importer.Finish()
	if err != nil {
		return nil, fmt.Errorf("shardgroup: receive snapshot of %s: %w", st.store.g.id, err)
	}
	st.imported = im
	st.store.mu.Lock()
	defer st.store.mu.Unlock()
	st.store.staged = st
	return strings.NewReader(""), nil
}

// Release removes the tables unless raft has taken them.
func (st *staging) Release() {
	s := st.store
	s.mu.Lock()
	if s.staged == st {
		s.staged = nil
	}
	taken := st.taken
	s.mu.Unlock()
	if taken {
		return
	}
	var err error
	if st.imported != nil {
		err = st.imported.Remove()
	} else {
		err = st.importer.Abort()
	}
	if err != nil {
		s.g.log.Warn("tables of an unused snapshot were not removed", "dir", st.dir, "error", err)
	}
}

// finishPending completes an install that a crash interrupted, before raft
// starts.
func (s *snapshotStore) finishPending() error {
	s.mu.Lock()
	pending := s.pending
	s.mu.Unlock()
	if pending == nil || mutant.On(mutant.InstallUnfinished) {
		return nil
	}
	s.g.log.Info("completing an interrupted snapshot install", "index", pending.index)
	_, err := s.install()
	return err
}

// errLogConflict ends the process once: at the next start the log is empty
// and the snapshot stands alone.
var errLogConflict = errors.New("the log went on after the snapshot with other entries and was discarded; starting again resolves it")

// install carries the pending snapshot out. Every step may be repeated.
func (s *snapshotStore) install() (marker, error) {
	s.mu.Lock()
	pending := s.pending
	s.mu.Unlock()
	if pending == nil {
		return marker{}, errors.New("no snapshot is pending")
	}
	g := s.g
	first, _ := g.logs.FirstIndex()
	last, _ := g.logs.LastIndex()
	conflict := false
	if last > pending.index {
		term, ok := g.logs.termOf(pending.index)
		conflict = first <= pending.index && (!ok || term != pending.term)
	}
	if first != 0 {
		upto := pending.index
		if conflict {
			upto = last
		}
		if err := g.logs.DeleteRange(first, upto); err != nil {
			return marker{}, err
		}
	}
	imported, err := mvcc.OpenImported(g.host.cfg.FS, g.host.cfg.path("install", pending.dir))
	if err != nil {
		return marker{}, err
	}
	if imported != nil {
		if err := g.machine.Install(imported); err != nil {
			return marker{}, err
		}
	}
	if have := g.machine.Applied(); have < pending.applied {
		return marker{}, fmt.Errorf("the tables of the snapshot at %d are missing, the state is at %d", pending.applied, have)
	}
	if err := g.host.logs.Update(
		seglog.Change{Key: groupKey(keyMarker, g.id), Value: encodeMarker(pending.marker)},
		seglog.Change{Key: groupKey(keyPending, g.id)},
	); err != nil {
		return marker{}, err
	}
	s.mu.Lock()
	s.mark, s.pending = pending.marker, nil
	s.mu.Unlock()
	g.logs.bytes.Store(0)
	if conflict && g.running.Load() {
		return marker{}, errLogConflict
	}
	return pending.marker, nil
}
