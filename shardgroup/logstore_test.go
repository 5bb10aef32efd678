package shardgroup

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	files "github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/seglog"
)

func openTestLog(t testing.TB, fs vfs.FS, o seglog.Options) *seglog.Log {
	t.Helper()
	l, err := openNodeLog(fs, "log", o, hclog.NewNullLogger(), func(err error) { t.Errorf("fatal: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// smallSegments make many of little.
var smallSegments = seglog.Options{MinSegment: 8 << 10, MaxSegment: 32 << 10}

func testStore(t testing.TB, l *seglog.Log, g placement.GroupID) *logStore {
	return openLogStore(l, g, newStopwatch(), func(err error) { t.Errorf("fatal: %v", err) }, func() {})
}

// entryOf is the entry that generation gen has at an index. Its size varies so
// that the engine's log and tables are cut everywhere.
func entryOf(g placement.GroupID, index, gen uint64) *raft.Log {
	r := rand.New(rand.NewPCG(uint64(g)<<32|index, gen))
	l := &raft.Log{Index: index, Term: gen, Type: raft.LogCommand, Data: make([]byte, r.IntN(600)), AppendedAt: time.Unix(0, int64(index*gen))}
	for i := range l.Data {
		l.Data[i] = byte(r.Uint32())
	}
	if r.IntN(3) == 0 {
		l.Extensions = []byte(fmt.Sprintf("%08d", index))
	}
	if r.IntN(50) == 0 {
		l.Data = nil
	}
	return l
}

func sameEntry(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data) &&
		bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

// logModel is what a group's log should hold: for every index, the generation
// that wrote it last.
type logModel struct {
	first, last uint64
	high        uint64   // the largest index there ever was
	base        uint64   // gens begins here
	gens        []uint64 // of index i at gens[i-base]
}

// clone also forgets the generations of entries that were deleted long ago.
func (m logModel) clone() logModel {
	keep := m.gens
	if drop := len(keep) - 500; drop > 0 && m.first > m.base+uint64(drop) {
		keep, m.base = keep[drop:], m.base+uint64(drop)
	}
	m.gens = append([]uint64(nil), keep...)
	return m
}

func (m *logModel) gen(index uint64) uint64 { return m.gens[index-m.base] }

func (m *logModel) append(from uint64, n int, gen uint64) {
	for m.base+uint64(len(m.gens)) < from+uint64(n) {
		m.gens = append(m.gens, 0)
	}
	for i := range uint64(n) {
		m.gens[from+i-m.base] = gen
	}
	m.high = max(m.high, from+uint64(n)-1)
	if m.first == 0 {
		m.first = from
	}
	m.last = from + uint64(n) - 1
}

// check says what is wrong with a recovered log that should hold m. A deleted
// prefix may have come back: its deletion is not synced.
func (m *logModel) check(g placement.GroupID, s *logStore) error {
	if s.last != m.last {
		return fmt.Errorf("last is %d, want %d", s.last, m.last)
	}
	if s.first > m.first || (s.first == 0) != (m.first == 0) {
		return fmt.Errorf("first is %d, want at most %d", s.first, m.first)
	}
	for i := max(s.first, m.base); i != 0 && i <= s.last; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if want := entryOf(g, i, m.gen(i)); !sameEntry(&l, want) {
			return fmt.Errorf("entry %d is of term %d, want term %d", i, l.Term, want.Term)
		}
	}
	return nil
}

// TestLogStoreCrash writes the logs of three groups at once and, at thousands
// of points inside the log's writes and syncs, looks at what a power cut
// there would leave: everything that was acknowledged, and of what was on its
// way either all or nothing.
func TestLogStoreCrash(t *testing.T) {
	points := 1500
	if testing.Short() {
		points = 300
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const groups = 3
	mem := vfs.NewCrashableMem()

	type pair struct{ now, next logModel } // acknowledged, and with what is on its way
	var mu sync.Mutex
	var models [groups + 1]pair
	var crashes atomic.Int64
	rng := rand.New(rand.NewPCG(seed, 1))

	look := func() {
		mu.Lock()
		defer mu.Unlock()
		if crashes.Load() >= int64(points) || rng.IntN(3) != 0 {
			return
		}
		crashes.Add(1)
		percent := []int{0, 0, 50, 100}[rng.IntN(4)]
		// An operation that ends between these lines was on its way before.
		var want [groups + 1]pair
		copy(want[:], models[:])
		clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
		e := openTestLog(t, clone, smallSegments)
		defer e.Close()
		for g := placement.GroupID(1); g <= groups; g++ {
			s := testStore(t, e, g)
			if err := want[g].now.check(g, s); err != nil {
				if err2 := want[g].next.check(g, s); err2 != nil {
					t.Errorf("crash %d (%d%% of unsynced data kept), group %d: not as acknowledged: %v; nor with what was on its way: %v", crashes.Load(), percent, g, err, err2)
				}
			}
		}
	}
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileWriteAt, errorfs.OpCreate, errorfs.OpRename, errorfs.OpRemove, errorfs.OpReuseForWrite:
			look()
		}
		return nil
	}))
	e := openTestLog(t, fs, smallSegments)
	var wg sync.WaitGroup
	for g := placement.GroupID(1); g <= groups; g++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(seed, uint64(g)+100))
			s := testStore(t, e, g)
			var m logModel
			set := func(next logModel, do func() error) {
				mu.Lock()
				models[g].next = next
				mu.Unlock()
				if err := do(); err != nil {
					t.Errorf("group %d: %v", g, err)
				}
				m = next
				mu.Lock()
				models[g].now = m.clone()
				mu.Unlock()
			}
			gen := uint64(1)
			for crashes.Load() < int64(points) && !t.Failed() {
				next := m.clone()
				switch k := r.IntN(20); {
				case k == 0 && m.first != 0: // a conflict with a new leader
					gen++
					from := m.first + uint64(r.IntN(int(m.last-m.first+1)))
					next.last = from - 1
					if from == m.first {
						next.first, next.last = 0, 0
					}
					set(next, func() error { return s.DeleteRange(from, m.last) })
				case k <= 3 && m.first != 0 && m.last > m.first: // a snapshot
					upto := m.first + uint64(r.IntN(int(m.last-m.first)))
					next.first = upto + 1
					set(next, func() error { return s.DeleteRange(m.first, upto) })
				default:
					n := 1 + r.IntN(8)
					from := m.last + 1
					if m.first == 0 && from == 1 {
						from = m.high + 1
					}
					next.append(from, n, gen)
					logs := make([]*raft.Log, n)
					for i := range logs {
						logs[i] = entryOf(g, from+uint64(i), gen)
					}
					set(next, func() error { return s.StoreLogs(logs) })
				}
			}
			if err := m.check(g, s); err != nil {
				t.Errorf("group %d, while running: %v", g, err)
			}
		}()
	}
	wg.Wait()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if got := crashes.Load(); got < int64(points) {
		t.Errorf("%d crash points, want %d", got, points)
	}
}

func TestLogStoreRefusesHoles(t *testing.T) {
	fatals := 0
	e := openTestLog(t, vfs.NewMem(), seglog.Options{})
	defer e.Close()
	s := openLogStore(e, 1, newStopwatch(), func(error) { fatals++ }, func() {})
	steps := []struct {
		name string
		do   func() error
		ok   bool
	}{
		{"begin anywhere", func() error { return s.StoreLog(entryOf(1, 100, 1)) }, true},
		{"go on", func() error { return s.StoreLogs([]*raft.Log{entryOf(1, 101, 1), entryOf(1, 102, 1)}) }, true},
		{"skip one", func() error { return s.StoreLog(entryOf(1, 104, 1)) }, false},
		{"once more", func() error { return s.StoreLog(entryOf(1, 102, 1)) }, false},
		{"before the first", func() error { return s.StoreLog(entryOf(1, 99, 1)) }, false},
		{"a hole inside", func() error { return s.StoreLogs([]*raft.Log{entryOf(1, 103, 1), entryOf(1, 105, 1)}) }, false},
		{"delete the middle", func() error { return s.DeleteRange(101, 101) }, false},
		{"delete nothing", func() error { return s.DeleteRange(1, 50) }, true},
		{"delete more than all", func() error { return s.DeleteRange(1, 500) }, true},
		{"begin again", func() error { return s.StoreLog(entryOf(1, 7, 1)) }, true},
	}
	for _, st := range steps {
		before := fatals
		err := st.do()
		if (err == nil) != st.ok {
			t.Errorf("%s: %v", st.name, err)
		}
		if !st.ok && fatals == before {
			t.Errorf("%s: the node was not ended", st.name)
		}
	}
	if f, l := s.first, s.last; f != 7 || l != 7 {
		t.Errorf("log is %d to %d, want 7 to 7", f, l)
	}
	if err := s.GetLog(100, &raft.Log{}); err != raft.ErrLogNotFound {
		t.Errorf("a deleted entry: %v", err)
	}
}

// The cache must answer as the disk does, whatever was truncated.
func TestLogStoreCache(t *testing.T) {
	e := openTestLog(t, vfs.NewMem(), seglog.Options{})
	defer e.Close()
	s := testStore(t, e, 1)
	r := rand.New(rand.NewPCG(1, 2))
	var m logModel
	gen := uint64(1)
	for range 600 {
		switch k := r.IntN(30); {
		case k == 0 && m.first != 0:
			gen++
			from := m.first + uint64(r.IntN(int(m.last-m.first+1)))
			if err := s.DeleteRange(from, m.last); err != nil {
				t.Fatal(err)
			}
			if m.last = from - 1; from == m.first {
				m.first, m.last = 0, 0
			}
		case k == 1 && m.last > m.first:
			upto := m.first + uint64(r.IntN(int(m.last-m.first)))
			if err := s.DeleteRange(m.first, upto); err != nil {
				t.Fatal(err)
			}
			m.first = upto + 1
		default:
			n := 1 + r.IntN(100)
			from := m.last + 1
			if m.first == 0 {
				from = m.high + 1
			}
			var logs []*raft.Log
			for i := range n {
				l := entryOf(1, from+uint64(i), gen)
				if r.IntN(2000) == 0 {
					l.Data = make([]byte, logCacheBytes/2)
				}
				logs = append(logs, l)
			}
			if err := s.StoreLogs(logs); err != nil {
				t.Fatal(err)
			}
			m.append(from, n, gen)
		}
		if s.cacheBytes > logCacheBytes+logCacheBytes/2 || s.cacheBytes < 0 {
			t.Fatalf("cache holds %d bytes", s.cacheBytes)
		}
		for range 3 {
			if m.first == 0 {
				continue
			}
			i := m.first + uint64(r.IntN(int(m.last-m.first+1)))
			var l raft.Log
			if err := s.GetLog(i, &l); err != nil {
				t.Fatal(err)
			}
			if l.Index != i || l.Term != m.gen(i) {
				t.Fatalf("entry %d of term %d, want term %d (got index %d)", i, l.Term, m.gen(i), l.Index)
			}
		}
	}
}

// What must not be opened is refused with a line that says why.
func TestLogRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		prep func(fs vfs.FS) error
		want string
	}{
		{"a storage engine of before", func(fs vfs.FS) error { return files.WriteFile(fs, "log/MANIFEST-000001", nil) }, "format of an earlier version"},
		{"an emptied directory", func(fs vfs.FS) error { return errors.Join(fs.RemoveAll("log"), fs.MkdirAll("log", 0o755)) }, "wipe this node's data"},
		{"no directory", func(fs vfs.FS) error { return fs.RemoveAll("log") }, "wipe this node's data"},
	} {
		fs := vfs.NewMem()
		if err := openTestLog(t, fs, seglog.Options{}).Close(); err != nil {
			t.Fatal(err)
		}
		if err := tc.prep(fs); err != nil {
			t.Fatal(err)
		}
		if l, err := openNodeLog(fs, "log", seglog.Options{}, hclog.NewNullLogger(), nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
			if err == nil {
				_ = l.Close()
			}
		}
	}
}

func FuzzDecodeEntry(f *testing.F) {
	for i := range uint64(5) {
		l := entryOf(1, i, 3)
		f.Add(appendEntry(nil, l))
	}
	f.Add([]byte{})
	f.Add([]byte{2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var l raft.Log
		if decodeEntry(1, b, &l) != nil {
			return
		}
		again := appendEntry(nil, &l)
		if !bytes.Equal(b, again) {
			t.Errorf("%x decodes to what encodes as %x", b, again)
		}
	})
}

// What may go ahead is readable at once, and durable when it is on disk.
func TestLogStoreAhead(t *testing.T) {
	var held heldLog
	l, err := seglog.Open(errorfs.Wrap(vfs.NewMem(), &held), "log", seglog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := openLogStore(l, 1, newStopwatch(), func(err error) { t.Errorf("fatal: %v", err) }, func() {})
	entry := func(i, term uint64) *raft.Log { return &raft.Log{Index: i, Term: term, Data: []byte{byte(i)}} }
	if err := s.StoreLogs([]*raft.Log{entry(1, 1)}); err != nil {
		t.Fatal(err)
	}
	durable := func(i uint64) bool {
		gone := make(chan struct{})
		close(gone)
		return s.Durable(i, gone, nil) == nil
	}
	gate := make(chan struct{})
	held.gate.Store(&gate)
	s.ahead = func([]*raft.Log) bool { return true }
	if err := s.StoreLogs([]*raft.Log{entry(2, 1), entry(3, 1)}); err != nil {
		t.Fatal(err)
	}
	if err := s.StoreLogs([]*raft.Log{entry(4, 1)}); err != nil {
		t.Fatal(err)
	}
	var got raft.Log
	if err := s.GetLog(4, &got); err != nil || got.Term != 1 || s.busy.since.Load() == 0 {
		t.Errorf("an entry on its way to the disk: %+v %v, the watchdog sees %d", got, err, s.busy.since.Load())
	}
	if !durable(1) || durable(2) || durable(4) {
		t.Errorf("durable are 1 to 4: %v %v %v %v", durable(1), durable(2), durable(3), durable(4))
	}
	// One that fell out of the cache waits for the disk.
	s.mu.Lock()
	s.dropCacheLocked()
	s.mu.Unlock()
	read := make(chan error, 1)
	go func() { read <- s.GetLog(3, &raft.Log{}) }()
	held.gate.Store(nil)
	close(gate)
	if err := s.Durable(4, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Errorf("an entry that fell out of the cache: %v", err)
	}

	// A suffix that is replaced is durable when what replaced it is.
	gate = make(chan struct{})
	held.gate.Store(&gate)
	if err := s.StoreLogs([]*raft.Log{entry(5, 1)}); err != nil {
		t.Fatal(err)
	}
	cut := make(chan error, 1)
	go func() { cut <- s.DeleteRange(3, 5) }()
	for s.oldest.Load() != 3 {
		runtime.Gosched()
	}
	if durable(3) || !durable(2) {
		t.Errorf("while a suffix is cut off, durable are 2 and 3: %v %v", durable(2), durable(3))
	}
	held.gate.Store(nil)
	close(gate)
	if err := <-cut; err != nil {
		t.Fatal(err)
	}
	s.ahead = nil
	if err := s.StoreLogs([]*raft.Log{entry(3, 2)}); err != nil {
		t.Fatal(err)
	}
	if err := s.Durable(3, nil, nil); err != nil || s.busy.since.Load() != 0 {
		t.Errorf("at rest: %v, the watchdog sees %d", err, s.busy.since.Load())
	}
	s.close()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// A log that breaks tells those that wait for it.
func TestLogStoreAheadBreaks(t *testing.T) {
	var fail failingFS
	l, err := seglog.Open(errorfs.Wrap(vfs.NewMem(), &fail), "log", seglog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	fatal := make(chan error, 1)
	s := openLogStore(l, 1, newStopwatch(), func(err error) { fatal <- err }, func() {})
	s.ahead = func([]*raft.Log) bool { return true }
	fail.fail.Store(true)
	if err := s.StoreLogs([]*raft.Log{{Index: 1, Term: 1}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Durable(1, nil, nil); err == nil {
		t.Error("an entry that could not be written is durable")
	}
	if err := <-fatal; err == nil {
		t.Error("the node was not told")
	}
	s.close()
	_ = l.Close()
}
