package shardgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/placement"
)

// A log entry on disk. The key has group and index.
//
//	| version u8 = 1 | type u8 | term u64 | appended at, unix ns i64 | extensions u32 | extensions… | data… |
//
// The engine's own checksums (of its log and its blocks) cover the record.
const (
	entryVersion = 1
	entryHeader  = 1 + 1 + 8 + 8 + 4
)

// Limits of a group's entry cache: what a follower that is a little behind, or
// the applier, would otherwise read back from the engine.
const (
	logCacheEntries = 512
	logCacheBytes   = 8 << 20
)

// logStore is one group's raft.LogStore over the shared log engine.
//
// Invariant: the entries are first … last without a hole; first = last = 0 is
// empty. StoreLogs returns after the entries are synced. After a failed write
// nothing is known about the disk, so the node ends (fatal).
type logStore struct {
	engine *logEngine
	group  placement.GroupID
	fatal  func(error)
	stop   func() // ends raft's goroutine, which would panic on what follows
	busy   busy   // the commit that runs now; the watchdog reads it

	// bytes counts what was stored since the last snapshot, for its trigger.
	bytes atomic.Int64

	mu     sync.RWMutex
	first  uint64 // guarded by mu
	last   uint64 // guarded by mu
	closed bool   // guarded by mu; raft leaves a goroutine behind that reads now and then

	cache      [logCacheEntries]raft.Log // guarded by mu; ring by index
	cacheLow   uint64                    // guarded by mu; cacheLow … last are cached; 0: none
	cacheBytes int                       // guarded by mu
}

var errLogClosed = errors.New("shardgroup: log is closed")

func openLogStore(e *logEngine, g placement.GroupID, clock *stopwatch, fatal func(error), stop func()) (*logStore, error) {
	s := &logStore{engine: e, group: g, fatal: fatal, stop: stop, busy: busy{clock: clock}}
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: entryKey(g, 0), UpperBound: groupKey(keyEntry, g+1)})
	if err != nil {
		return nil, fmt.Errorf("shardgroup: open log of %s: %w", g, err)
	}
	defer it.Close()
	if it.First() {
		s.first = binary.BigEndian.Uint64(it.Key()[5:])
	}
	if it.Last() {
		s.last = binary.BigEndian.Uint64(it.Key()[5:])
	}
	if err := it.Error(); err != nil {
		return nil, fmt.Errorf("shardgroup: open log of %s: %w", g, err)
	}
	return s, nil
}

// FirstIndex is the index of the oldest entry; 0 if there is none.
func (s *logStore) FirstIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.first, nil
}

// LastIndex is the index of the newest entry; 0 if there is none.
func (s *logStore) LastIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.last, nil
}

// GetLog reads one entry. The bytes it returns are shared and must not be changed.
func (s *logStore) GetLog(index uint64, l *raft.Log) error {
	err := s.get(index, l)
	if err != nil && err != raft.ErrLogNotFound {
		err = fmt.Errorf("shardgroup: entry %d of %s: %w", index, s.group, err)
		s.fatal(err)
		s.stop()
	}
	return err
}

func (s *logStore) get(index uint64, l *raft.Log) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed || index < s.first || index > s.last || s.first == 0 {
		return raft.ErrLogNotFound
	}
	if s.cacheLow != 0 && index >= s.cacheLow {
		*l = s.cache[index%logCacheEntries]
		return nil
	}
	var key [entryKeyLen]byte
	putEntryKey(key[:], s.group, index)
	v, closer, err := s.engine.db.Get(key[:])
	if err != nil {
		if errors.Is(err, pebble.ErrNotFound) {
			err = errors.New("it is missing inside the log (damaged)")
		}
		return err
	}
	defer closer.Close()
	return decodeEntry(index, v, l)
}

// StoreLog stores one entry.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries and returns when they are on disk.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	s.mu.RLock()
	first, last, closed := s.first, s.last, s.closed
	s.mu.RUnlock()
	if closed {
		return errLogClosed
	}
	next := logs[0].Index
	if next == 0 || (first != 0 && (next < first || next > last+1)) {
		err := fmt.Errorf("shardgroup: log of %s holds %d to %d, cannot append %d", s.group, first, last, next)
		s.fatal(err)
		return err
	}
	size := 0
	for _, l := range logs {
		size += entryKeyLen + entryHeader + len(l.Extensions) + len(l.Data) + 16
	}
	b := s.engine.db.NewBatchWithSize(size)
	for i, l := range logs {
		if l.Index != next+uint64(i) {
			err := fmt.Errorf("shardgroup: entries for %s have a hole: %d follows %d", s.group, l.Index, logs[i-1].Index)
			_ = b.Close()
			s.fatal(err)
			return err
		}
		op := b.SetDeferred(entryKeyLen, entryHeader+len(l.Extensions)+len(l.Data))
		putEntryKey(op.Key, s.group, l.Index)
		encodeEntry(op.Value, l)
		if err := op.Finish(); err != nil {
			_ = b.Close()
			s.fatal(err)
			return err
		}
	}
	s.busy.begin()
	err := b.Commit(pebble.Sync)
	s.busy.end()
	if err != nil {
		err = fmt.Errorf("shardgroup: append to the log of %s: %w", s.group, err)
		s.fatal(err)
		return err
	}
	_ = b.Close()
	s.bytes.Add(int64(size))

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == 0 {
		s.first = next
	}
	for _, l := range logs {
		s.cacheLocked(l)
		s.last = max(s.last, l.Index)
	}
	return nil
}

// cacheLocked adds the entry that follows those in the cache.
func (s *logStore) cacheLocked(l *raft.Log) {
	if s.cacheLow != 0 && l.Index != s.last+1 {
		s.dropCacheLocked()
	}
	if s.cacheLow == 0 {
		s.cacheLow = l.Index
	}
	for s.cacheLow < l.Index && (l.Index-s.cacheLow >= logCacheEntries || s.cacheBytes+len(l.Data) > logCacheBytes) {
		old := &s.cache[s.cacheLow%logCacheEntries]
		s.cacheBytes -= len(old.Data)
		*old = raft.Log{}
		s.cacheLow++
	}
	// A copy: the pointer leads into raft's future, which would keep the
	// answers of the whole batch alive.
	s.cache[l.Index%logCacheEntries] = *l
	s.cacheBytes += len(l.Data)
}

func (s *logStore) dropCacheLocked() {
	clear(s.cache[:])
	s.cacheLow, s.cacheBytes = 0, 0
}

// DeleteRange removes entries from the front (after a snapshot) or from the
// back (a conflict with the leader), both ends included.
func (s *logStore) DeleteRange(low, high uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errLogClosed
	}
	if s.first == 0 || high < s.first || low > s.last || low > high {
		return nil
	}
	low, high = max(low, s.first), min(high, s.last)
	if low != s.first && high != s.last {
		err := fmt.Errorf("shardgroup: deleting %d to %d would cut a hole into the log of %s, %d to %d", low, high, s.group, s.first, s.last)
		s.fatal(err)
		return err
	}
	// Losing the deletion of a prefix in a crash only brings back entries that
	// a snapshot covers. A suffix is synced: what replaces it counts on it.
	opts := pebble.NoSync
	if high == s.last {
		opts = pebble.Sync
	}
	if err := s.engine.db.DeleteRange(entryKey(s.group, low), entryKey(s.group, high+1), opts); err != nil {
		err = fmt.Errorf("shardgroup: truncate the log of %s: %w", s.group, err)
		s.fatal(err)
		return err
	}
	switch {
	case low == s.first && high == s.last:
		s.first, s.last = 0, 0
		s.dropCacheLocked()
	case low == s.first:
		s.first = high + 1
		if s.cacheLow != 0 && s.cacheLow < s.first {
			for i := s.cacheLow; i < s.first; i++ {
				s.cacheBytes -= len(s.cache[i%logCacheEntries].Data)
				s.cache[i%logCacheEntries] = raft.Log{}
			}
			s.cacheLow = s.first
		}
	default:
		s.last = low - 1
		s.dropCacheLocked()
	}
	return nil
}

// termOf is the term of the entry at index; false if the log does not hold it.
func (s *logStore) termOf(index uint64) (uint64, bool) {
	var l raft.Log
	if s.GetLog(index, &l) != nil {
		return 0, false
	}
	return l.Term, true
}

// close makes later calls harmless; the engine may be closed after it.
func (s *logStore) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.dropCacheLocked()
}

func encodeEntry(v []byte, l *raft.Log) {
	v[0], v[1] = entryVersion, byte(l.Type)
	binary.BigEndian.PutUint64(v[2:], l.Term)
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	binary.BigEndian.PutUint64(v[10:], uint64(at))
	binary.BigEndian.PutUint32(v[18:], uint32(len(l.Extensions)))
	n := copy(v[entryHeader:], l.Extensions)
	copy(v[entryHeader+n:], l.Data)
}

// decodeEntry copies out of v.
func decodeEntry(index uint64, v []byte, l *raft.Log) error {
	if len(v) < entryHeader {
		return fmt.Errorf("record of %d bytes is shorter than its header (damaged)", len(v))
	}
	if v[0] == 0 {
		return errors.New("record has version 0 (damaged)")
	}
	if v[0] > entryVersion {
		return fmt.Errorf("record has version %d, this program reads up to %d (written by a newer version)", v[0], entryVersion)
	}
	if raft.LogType(v[1]) > raft.LogConfiguration {
		return fmt.Errorf("record has unknown type %d (damaged)", v[1])
	}
	ext := binary.BigEndian.Uint32(v[18:])
	if uint64(ext) > uint64(len(v)-entryHeader) {
		return fmt.Errorf("record claims %d bytes of extensions in %d (damaged)", ext, len(v)-entryHeader)
	}
	*l = raft.Log{Index: index, Type: raft.LogType(v[1]), Term: binary.BigEndian.Uint64(v[2:])}
	if at := int64(binary.BigEndian.Uint64(v[10:])); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	body := append(make([]byte, 0, len(v)-entryHeader), v[entryHeader:]...)
	if ext > 0 {
		l.Extensions = body[:ext:ext]
	}
	if len(body) > int(ext) {
		l.Data = body[ext:]
	}
	return nil
}
