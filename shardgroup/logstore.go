package shardgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/seglog"
)

// A log entry on disk. The log's record around it has group and index, and a
// checksum over all.
//
//	| version u8 = 1 | type u8 | term u64 | appended at, unix ns i64 | extensions u32 | extensions… | data… |
const (
	entryVersion = 1
	entryHeader  = 1 + 1 + 8 + 8 + 4
)

// Limits of a group's entry cache: what a follower that is a little behind, or
// the applier, would otherwise read back from the disk.
const (
	logCacheEntries = 512
	logCacheBytes   = 2 << 20
)

// logStore is one group's raft.LogStore over the node's log.
//
// Invariant: the entries are first … last without a hole; first = last = 0 is
// empty. StoreLogs returns after the entries are synced, unless ahead says that
// it need not: then Durable tells. After a failed write nothing is known about
// the disk, so the node ends (fatal).
type logStore struct {
	log   *seglog.Log
	group placement.GroupID
	fatal func(error)
	stop  func() // ends raft's goroutine, which would panic on what follows
	busy  busy   // the oldest commit that runs; the watchdog reads it
	// ahead says whether these entries may go to the followers while they are
	// written here; nil: never.
	ahead func([]*raft.Log) bool

	// bytes counts what was stored since the last snapshot, for its trigger.
	bytes atomic.Int64
	// expected is how many appends of this group the log waits for.
	expected atomic.Int32

	mu     sync.RWMutex
	first  uint64 // guarded by mu
	last   uint64 // guarded by mu
	closed bool   // guarded by mu; raft leaves a goroutine behind that reads now and then

	// writes are under way, oldest first; guarded by mu. oldest is their lowest
	// index, to be read without mu.
	writes []*logWrite
	oldest atomic.Uint64 // 0: none
	ended  chan struct{} // guarded by mu; closed when a write ends; nil: nobody waits
	broken error         // guarded by mu; why nothing is written any more
	down   chan struct{} // closed with closed

	cache      [logCacheEntries]raft.Log // guarded by mu; ring by index
	cacheLow   uint64                    // guarded by mu; cacheLow … last are cached; 0: none
	cacheBytes int                       // guarded by mu
}

// logWrite is entries that are being written.
type logWrite struct {
	first uint64
	begun int64 // of busy's clock
}

var (
	errLogClosed = errors.New("shardgroup: log is closed")
	errUnwritten = errors.New("shardgroup: entry is not written yet")
)

func openLogStore(l *seglog.Log, g placement.GroupID, clock *stopwatch, fatal func(error), stop func()) *logStore {
	s := &logStore{log: l, group: g, fatal: fatal, stop: stop, busy: busy{clock: clock}, down: make(chan struct{})}
	s.first, s.last = l.Bounds(uint32(g))
	return s
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
	for err == errUnwritten { // it fell out of the cache
		if err = s.Durable(index, nil, nil); err == nil {
			err = s.get(index, l)
		}
	}
	if err == errLogClosed {
		return raft.ErrLogNotFound
	}
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
	if oldest := s.oldest.Load(); oldest != 0 && index >= oldest {
		return errUnwritten
	}
	v, err := s.log.Read(uint32(s.group), index)
	if errors.Is(err, seglog.ErrNotFound) {
		return errors.New("it is missing inside the log (damaged)")
	}
	if err != nil {
		return err
	}
	return decodeEntry(index, v, l)
}

// StoreLog stores one entry.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries and returns when they are on disk, or, if they may
// go ahead, when they are on their way there.
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
	if next == 0 || first != 0 && next != last+1 {
		err := fmt.Errorf("shardgroup: log of %s holds %d to %d, cannot append %d", s.group, first, last, next)
		s.fatal(err)
		return err
	}
	size := 0
	for i, l := range logs {
		if l.Index != next+uint64(i) {
			err := fmt.Errorf("shardgroup: entries for %s have a hole: %d follows %d", s.group, l.Index, logs[i-1].Index)
			s.fatal(err)
			return err
		}
		size += entrySize(l)
	}
	w, expected := s.begin(next), int(s.expected.Swap(0))
	var err error
	if s.ahead != nil && s.ahead(logs) {
		err = s.log.AppendLater(uint32(s.group), next, logEntries(logs), expected, func(err error) { _ = s.end(w, err) })
		if err != nil {
			err = s.end(w, err)
		}
	} else {
		err = s.end(w, s.log.AppendExpected(uint32(s.group), next, logEntries(logs), expected))
	}
	if err != nil {
		return err
	}
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

// begin notes that entries from first on are being written.
func (s *logStore) begin(first uint64) *logWrite {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &logWrite{first: first, begun: s.busy.clock.now()}
	s.writes = append(s.writes, w)
	s.lookLocked()
	return w
}

// end notes that a write has ended. After an error nothing is written any more.
func (s *logStore) end(w *logWrite, err error) error {
	if err != nil {
		err = fmt.Errorf("shardgroup: write the log of %s: %w", s.group, err)
		s.mu.Lock()
		s.broken = err
		s.wakeLocked()
		s.mu.Unlock()
		s.fatal(err)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = slices.DeleteFunc(s.writes, func(o *logWrite) bool { return o == w })
	s.lookLocked()
	return nil
}

// lookLocked tells what has become of the writes.
func (s *logStore) lookLocked() {
	s.wakeLocked()
	if len(s.writes) == 0 {
		s.oldest.Store(0)
		s.busy.end()
		return
	}
	// A suffix may have been cut while the end of its write was not noted yet.
	lowest := s.writes[0].first
	for _, w := range s.writes[1:] {
		lowest = min(lowest, w.first)
	}
	s.oldest.Store(lowest)
	s.busy.since.Store(s.writes[0].begun)
}

func (s *logStore) wakeLocked() {
	if s.ended != nil {
		close(s.ended)
		s.ended = nil
	}
}

// Durable returns when everything up to index is on disk. It fails when that
// will not be, or when a channel is closed.
func (s *logStore) Durable(index uint64, cancel, stop <-chan struct{}) error {
	for {
		if oldest := s.oldest.Load(); oldest == 0 || index < oldest || mutant.On(mutant.DurabilityUnawaited) {
			return nil
		}
		s.mu.Lock()
		oldest, err := s.oldest.Load(), s.broken // as no write ends meanwhile
		if s.ended == nil {
			s.ended = make(chan struct{})
		}
		ended := s.ended
		s.mu.Unlock()
		if oldest == 0 || index < oldest {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-ended:
		case <-s.down:
			return errLogClosed
		case <-cancel:
			return errUnwritten
		case <-stop:
			return errUnwritten
		}
	}
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
//
// They are out of sight before they are deleted, so that nobody looks for what
// is going; and mu is not held while the disk works.
func (s *logStore) DeleteRange(low, high uint64) error {
	back, err := s.hide(low, high)
	if err != nil {
		if err != errLogClosed {
			s.fatal(err)
		}
		return err
	}
	if back != 0 {
		// A suffix is synced: what replaces it counts on it.
		w := s.begin(back)
		return s.end(w, s.log.CutBack(uint32(s.group), back))
	}
	return nil
}

// hide takes entries out of the bounds, and deletes those of a prefix. It
// answers where a suffix is to be cut, 0 if there is none.
func (s *logStore) hide(low, high uint64) (back uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, errLogClosed
	}
	if s.first == 0 || high < s.first || low > s.last || low > high {
		return 0, nil
	}
	low, high = max(low, s.first), min(high, s.last)
	switch {
	case low != s.first && high != s.last:
		return 0, fmt.Errorf("shardgroup: deleting %d to %d would cut a hole into the log of %s, %d to %d", low, high, s.group, s.first, s.last)
	case low == s.first && high == s.last:
		s.first, s.last = 0, 0
		s.dropCacheLocked()
		return low, nil
	case low == s.first:
		if mutant.On(mutant.LogCutTooFar) {
			high = min(high+1<<10, s.last-1)
		}
		// Losing the deletion of a prefix in a crash only brings back entries
		// that a snapshot covers: it is not waited for.
		if err := s.log.CutFront(uint32(s.group), high); err != nil {
			return 0, fmt.Errorf("shardgroup: truncate the log of %s: %w", s.group, err)
		}
		s.first = high + 1
		if s.cacheLow != 0 && s.cacheLow < s.first {
			for i := s.cacheLow; i < s.first; i++ {
				s.cacheBytes -= len(s.cache[i%logCacheEntries].Data)
				s.cache[i%logCacheEntries] = raft.Log{}
			}
			s.cacheLow = s.first
		}
		return 0, nil
	default:
		s.last = low - 1
		s.dropCacheLocked()
		return low, nil
	}
}

// termOf is the term of the entry at index; false if the log does not hold it.
func (s *logStore) termOf(index uint64) (uint64, bool) {
	var l raft.Log
	if s.GetLog(index, &l) != nil {
		return 0, false
	}
	return l.Term, true
}

// close makes later calls harmless; the log may be closed after it.
func (s *logStore) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		close(s.down)
	}
	s.closed = true
	s.dropCacheLocked()
}

// logEntries are entries as the log takes them.
type logEntries []*raft.Log

func (e logEntries) Len() int                        { return len(e) }
func (e logEntries) Size(i int) int                  { return entrySize(e[i]) }
func (e logEntries) AppendTo(b []byte, i int) []byte { return appendEntry(b, e[i]) }

func entrySize(l *raft.Log) int { return entryHeader + len(l.Extensions) + len(l.Data) }

func appendEntry(b []byte, l *raft.Log) []byte {
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	b = append(b, entryVersion, byte(l.Type))
	b = binary.BigEndian.AppendUint64(b, l.Term)
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Extensions)))
	b = append(b, l.Extensions...)
	return append(b, l.Data...)
}

// decodeEntry makes an entry of v, whose bytes it keeps.
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
	body := v[entryHeader:]
	if ext > 0 {
		l.Extensions = body[:ext:ext]
	}
	if len(body) > int(ext) {
		l.Data = body[ext:]
	}
	return nil
}
