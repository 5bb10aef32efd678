package sim

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/shardgroup"
)

// store is log, terms and votes in one journal.
//
//	change: | 1 | key bytes | value bytes |                      a value
//	        | 2 | index | term | type u8 | time | data | ext |   an entry
//	        | 3 | low | high |                                   entries removed
//
// raft-boltdb's behaviour is its contract, down to the text of "not found".
type store struct {
	j       *journal
	values  map[string][]byte    // guarded by j.mu
	entries map[uint64]*raft.Log // guarded by j.mu
	low     uint64               // guarded by j.mu; 0: no entries
	high    uint64               // guarded by j.mu
}

const (
	changeValue  = 1
	changeEntry  = 2
	changeRemove = 3
)

var errNoKey = errors.New("not found")

func openStore(fs vfs.FS, path string) (*store, error) {
	s := &store{values: map[string][]byte{}, entries: map[uint64]*raft.Log{}}
	j, err := openJournal(fs, path, s.replay, s.live)
	if err != nil {
		return nil, fmt.Errorf("sim: open %s: %w", path, err)
	}
	s.j = j
	return s, nil
}

// OpenStable is a shardgroup.StableStore over a file system.
func OpenStable(fs vfs.FS, path string) (shardgroup.StableStore, error) {
	s, err := openStore(fs, path)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// replay applies the changes of one record.
func (s *store) replay(change []byte) error {
	r := &changeReader{b: change}
	for len(r.b) > 0 {
		switch kind := r.u8(); kind {
		case changeValue:
			k, v := r.bytes(), r.bytes()
			s.values[string(k)] = bytes.Clone(v)
		case changeEntry:
			l := &raft.Log{Index: r.u64(), Term: r.u64(), Type: raft.LogType(r.u8())}
			if at := r.u64(); at != 0 {
				l.AppendedAt = time.Unix(0, int64(at))
			}
			l.Data, l.Extensions = bytes.Clone(r.bytes()), bytes.Clone(r.bytes())
			if r.err == nil {
				s.put(l)
			}
		case changeRemove:
			low, high := r.u64(), r.u64()
			s.remove(low, high)
		default:
			return fmt.Errorf("a change of kind %d is not known", kind)
		}
	}
	return r.err
}

// live is everything as records.
func (s *store) live() []byte {
	var b, all []byte
	for _, k := range slices.Sorted(maps.Keys(s.values)) {
		b = appendValue(b, k, s.values[k])
	}
	for _, i := range slices.Sorted(maps.Keys(s.entries)) {
		b = appendEntry(b, s.entries[i])
		if len(b) > 1<<20 {
			all, b = appendRecord(all, b), nil
		}
	}
	return appendRecord(all, b)
}

func appendValue(b []byte, k string, v []byte) []byte {
	return appendBytes(appendBytes(append(b, changeValue), []byte(k)), v)
}

func appendEntry(b []byte, l *raft.Log) []byte {
	b = binary.BigEndian.AppendUint64(append(b, changeEntry), l.Index)
	b = append(binary.BigEndian.AppendUint64(b, l.Term), byte(l.Type))
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	return appendBytes(appendBytes(b, l.Data), l.Extensions)
}

func (s *store) put(l *raft.Log) {
	s.entries[l.Index] = l
	if s.low == 0 || l.Index < s.low {
		s.low = l.Index
	}
	s.high = max(s.high, l.Index)
}

func (s *store) remove(low, high uint64) {
	for i := max(low, s.low); i <= min(high, s.high); i++ {
		delete(s.entries, i)
	}
	s.low, s.high = 0, 0
	for i := range s.entries {
		if s.low == 0 || i < s.low {
			s.low = i
		}
		s.high = max(s.high, i)
	}
}

func (s *store) Close() error { return s.j.close() }

// Set stores a value durably.
func (s *store) Set(k, v []byte) error {
	key, value := string(k), bytes.Clone(v)
	return s.j.write(appendValue(nil, key, value), func() { s.values[key] = value })
}

// Get reads a value.
func (s *store) Get(k []byte) ([]byte, error) {
	s.j.mu.RLock()
	defer s.j.mu.RUnlock()
	v, ok := s.values[string(k)]
	if !ok {
		return nil, errNoKey
	}
	return bytes.Clone(v), nil
}

// SetUint64 stores a number durably.
func (s *store) SetUint64(k []byte, v uint64) error {
	return s.Set(k, binary.BigEndian.AppendUint64(nil, v))
}

// GetUint64 reads a number.
func (s *store) GetUint64(k []byte) (uint64, error) {
	v, err := s.Get(k)
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("sim: %q has %d bytes and is no number", k, len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// FirstIndex is the first entry's; 0: there is none.
func (s *store) FirstIndex() (uint64, error) {
	s.j.mu.RLock()
	defer s.j.mu.RUnlock()
	return s.low, nil
}

// LastIndex is the last entry's; 0: there is none.
func (s *store) LastIndex() (uint64, error) {
	s.j.mu.RLock()
	defer s.j.mu.RUnlock()
	return s.high, nil
}

// GetLog reads an entry.
func (s *store) GetLog(index uint64, l *raft.Log) error {
	s.j.mu.RLock()
	defer s.j.mu.RUnlock()
	e := s.entries[index]
	if e == nil {
		return raft.ErrLogNotFound
	}
	*l = *e
	l.Data, l.Extensions = bytes.Clone(e.Data), bytes.Clone(e.Extensions)
	return nil
}

// StoreLog stores an entry durably.
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs stores entries durably, all or none.
func (s *store) StoreLogs(logs []*raft.Log) error {
	var b []byte
	own := make([]*raft.Log, len(logs))
	for i, l := range logs {
		c := *l
		c.Data, c.Extensions = bytes.Clone(l.Data), bytes.Clone(l.Extensions)
		own[i] = &c
		b = appendEntry(b, l)
	}
	return s.j.write(b, func() {
		for _, l := range own {
			s.put(l)
		}
	})
}

// DeleteRange removes entries, both ends included.
func (s *store) DeleteRange(low, high uint64) error {
	b := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{changeRemove}, low), high)
	return s.j.write(b, func() { s.remove(low, high) })
}

// placementStore adds snapshots, one file each.
type placementStore struct {
	*store
	*snapshots
}

// OpenPlacementStore is a shardgroup.PlacementStore over a file system.
func OpenPlacementStore(fs vfs.FS, dir string) (shardgroup.PlacementStore, error) {
	s, err := openStore(fs, fs.PathJoin(dir, "raft.db"))
	if err != nil {
		return nil, err
	}
	return &placementStore{store: s, snapshots: &snapshots{fs: fs, dir: dir}}, nil
}

// snapshots keeps the latest two, as raft.FileSnapshotStore does.
//
//	file: | meta length u32 | meta JSON | content | crc32c u32 |
type snapshots struct {
	fs  vfs.FS
	dir string
	mu  sync.Mutex // around directory listings and removals; nothing syncs under it
}

const (
	keptSnapshots  = 2
	snapshotPrefix = "snapshot-"
	maxSnapshot    = 128 << 20
)

// Create begins a snapshot; it is there once its sink is closed.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, cIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != 1 {
		return nil, fmt.Errorf("sim: snapshot version %d is not known", version)
	}
	return &sink{s: s, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixMilli()),
		Index: index, Term: term, Configuration: c, ConfigurationIndex: cIndex,
	}}, nil
}

// List has the newest first.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := s.fs.List(s.dir)
	if err != nil {
		return nil, err
	}
	var list []*raft.SnapshotMeta
	for _, name := range names {
		if !strings.HasPrefix(name, snapshotPrefix) || strings.HasSuffix(name, ".tmp") {
			continue
		}
		if meta, _, err := s.read(name); err == nil { // a damaged one is not there
			list = append(list, meta)
		}
	}
	slices.SortFunc(list, func(a, b *raft.SnapshotMeta) int {
		switch {
		case a.Term != b.Term:
			return int(int64(b.Term) - int64(a.Term))
		case a.Index != b.Index:
			return int(int64(b.Index) - int64(a.Index))
		}
		return strings.Compare(b.ID, a.ID)
	})
	return list[:min(len(list), keptSnapshots)], nil
}

// Open reads a snapshot.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, content, err := s.read(snapshotPrefix + id)
	if err != nil {
		return nil, nil, err
	}
	return meta, io.NopCloser(bytes.NewReader(content)), nil
}

func (s *snapshots) read(name string) (*raft.SnapshotMeta, []byte, error) {
	b, err := vfs.ReadFile(s.fs, s.fs.PathJoin(s.dir, name), maxSnapshot)
	if err != nil {
		return nil, nil, err
	}
	damaged := fmt.Errorf("sim: snapshot %s is damaged", name)
	if len(b) < 4 {
		return nil, nil, damaged
	}
	b, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	r := &changeReader{b: b}
	head := r.bytes()
	if r.err != nil || checksum(b) != sum {
		return nil, nil, damaged
	}
	meta := new(raft.SnapshotMeta)
	if err := json.Unmarshal(head, meta); err != nil {
		return nil, nil, damaged
	}
	meta.Size = int64(len(r.b))
	return meta, r.b, nil
}

// sink gathers a snapshot and writes it whole.
type sink struct {
	s    *snapshots
	meta raft.SnapshotMeta
	b    []byte
	done bool
}

func (k *sink) ID() string { return k.meta.ID }

func (k *sink) Write(b []byte) (int, error) {
	k.b = append(k.b, b...)
	return len(b), nil
}

func (k *sink) Cancel() error {
	k.done = true
	return nil
}

func (k *sink) Close() error {
	if k.done {
		return nil
	}
	k.done = true
	k.meta.Size = int64(len(k.b))
	head, err := json.Marshal(k.meta)
	if err != nil {
		return err
	}
	b := append(appendBytes(nil, head), k.b...)
	b = binary.BigEndian.AppendUint32(b, checksum(b))
	if err := vfs.WriteFile(k.s.fs, k.s.fs.PathJoin(k.s.dir, snapshotPrefix+k.meta.ID), b); err != nil {
		return err
	}
	return k.s.reap()
}

// reap removes what List does not show any more.
func (s *snapshots) reap() error {
	kept, err := s.List()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := s.fs.List(s.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		id, ok := strings.CutPrefix(name, snapshotPrefix)
		if !ok || slices.ContainsFunc(kept, func(m *raft.SnapshotMeta) bool { return m.ID == id }) {
			continue
		}
		if err := s.fs.Remove(s.fs.PathJoin(s.dir, name)); err != nil {
			return err
		}
	}
	return nil
}
