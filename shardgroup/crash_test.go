package shardgroup

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/transport"
	"github.com/impossibledb/idb/txn/hlc"
)

// memStable keeps terms and votes in memory. In a crash test it is ahead of the
// disk, which is harmless: a term may be skipped, not repeated.
type memStable struct {
	mu sync.Mutex
	m  map[string][]byte
	n  map[string]uint64
}

func newMemStable() *memStable { return &memStable{m: map[string][]byte{}, n: map[string]uint64{}} }

func (s *memStable) Set(k, v []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[string(k)] = append([]byte(nil), v...)
	return nil
}

func (s *memStable) Get(k []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.m[string(k)]; ok {
		return v, nil
	}
	return nil, errNotFound
}

func (s *memStable) SetUint64(k []byte, v uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n[string(k)] = v
	return nil
}

func (s *memStable) GetUint64(k []byte) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.n[string(k)]; ok {
		return v, nil
	}
	return 0, errNotFound
}

func (s *memStable) Close() error { return nil }

func (s *memStable) clone() *memStable {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := newMemStable()
	for k, v := range s.m {
		c.m[k] = v
	}
	for k, v := range s.n {
		c.n[k] = v
	}
	return c
}

// lone is a host by itself on a file system in memory.
func lone(t testing.TB, fs vfs.FS, stable StableStore) (*Host, func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	peers, err := transport.New(transport.Options{
		NodeID: "n1", Listener: l,
		Resolve: func(placement.NodeID) (string, error) { return l.Addr().String(), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	h, err := OpenHost(Config{
		NodeID: "n1", Dir: "data", FS: fs, Peers: peers, Clock: hlc.NewClock(nil), Logger: testLogger(),
		Timing: quick, Stable: func(string) (StableStore, error) { return stable, nil },
		FreeSpace:       func() (uint64, error) { return 1 << 40, nil },
		SnapshotEntries: 40, TrailingEntries: 3,
	})
	if err != nil {
		t.Fatal(err)
	}
	return h, func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		_ = peers.Close()
	}
}

// TestHostCrash cuts the power of a node under load at points all over its
// writes and syncs: of the log, of the state's flushes, of markers and
// truncations. Whatever was acknowledged before the cut is there after a
// restart, and nothing happened twice.
func TestHostCrash(t *testing.T) {
	points := 80
	if testing.Short() {
		points = 20
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const counters = 4
	mem := vfs.NewCrashableMem()
	stable := newMemStable()
	var acked, tried [counters]atomic.Int64
	type crash struct {
		fs        vfs.FS
		stable    *memStable
		low, high [counters]int64
		marker    uint64
	}
	var mu sync.Mutex
	var crashes []crash
	perMarker := map[uint64]int{}
	var last time.Time
	var armed atomic.Bool
	var group atomic.Pointer[Group]
	rng := rand.New(rand.NewPCG(seed, 1))
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpCreate, errorfs.OpRename, errorfs.OpRemove:
		default:
			return nil
		}
		if !armed.Load() {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		// Spread over several snapshots. Most operations are appends to the
		// log; the rare ones matter as much.
		gap := 25 * time.Millisecond
		if op.Kind == errorfs.OpRename || op.Kind == errorfs.OpCreate {
			gap = 3 * time.Millisecond
		}
		// And not all of them before the first snapshot, where all is slow.
		marker := group.Load().snaps.marker().index
		if len(crashes) >= points || perMarker[marker] >= points/4 || time.Since(last) < gap || rng.IntN(4) == 0 {
			return nil
		}
		perMarker[marker]++
		last = time.Now()
		var c crash
		for i := range counters {
			c.low[i] = acked[i].Load()
		}
		c.fs = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 0, 50}[rng.IntN(3)], RNG: rng})
		for i := range counters {
			c.high[i] = tried[i].Load()
		}
		c.stable = stable.clone()
		c.marker = marker
		crashes = append(crashes, c)
		return nil
	}))
	h, stop := lone(t, fs, stable)
	g, err := h.StartGroup(GroupSpec{ID: 1, Members: []Member{{Node: "n1"}}})
	if err != nil {
		t.Fatal(err)
	}
	group.Store(g)
	eventually(t, "a leader", g.IsLeader)
	if _, err := g.Propose(ctxFor(t, 5*time.Second), own()); err != nil {
		t.Fatal(err)
	}
	armed.Store(true)
	inc := raw(t, map[string]any{"$inc": map[string]any{"n": 1}})
	enough := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(crashes) >= points
	}
	var wg sync.WaitGroup
	for i := range counters {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for !enough() {
				tried[i].Add(1)
				r, err := g.Propose(ctxFor(t, 10*time.Second), write(wire.OpUpsert, fmt.Sprintf("c%d", i), inc))
				if err != nil || r.Wire.Error != nil {
					t.Errorf("increment: %v %v", err, r.Wire.Error)
					return
				}
				acked[i].Add(1)
			}
		}()
	}
	wg.Wait()
	stop()
	markers := map[uint64]bool{}
	for _, c := range crashes {
		markers[c.marker] = true
	}
	if len(markers) < 3 {
		t.Errorf("crashes lie within %d snapshots only: the test did not reach markers and truncation", len(markers))
	}

	limit := make(chan struct{}, 4)
	for i, c := range crashes {
		wg.Add(1)
		limit <- struct{}{}
		go func() {
			defer func() { <-limit; wg.Done() }()
			h, stop := lone(t, c.fs, c.stable)
			defer stop()
			if err := h.Recover(); err != nil {
				t.Errorf("crash %d: %v", i, err)
				return
			}
			g, ok := h.Group(1)
			if !ok {
				t.Errorf("crash %d: the group was forgotten", i)
				return
			}
			if err := within(10*time.Second, g.IsLeader); !err {
				t.Errorf("crash %d: no leader", i)
				return
			}
			if err := g.ReadIndex(ctxFor(t, 5*time.Second)); err != nil {
				t.Errorf("crash %d: %v", i, err)
				return
			}
			for k := range counters {
				var v struct {
					N int64 `idb:"n"`
				}
				d, err := read(t, g.Machine(), fmt.Sprintf("c%d", k), fsm.At{})
				if err == nil {
					err = doc.Raw(d.Body).Decode(&v)
				} else if c.low[k] == 0 {
					err = nil
				}
				if err != nil || v.N < c.low[k] || v.N > c.high[k] {
					t.Errorf("crash %d (marker %d): counter %d is %d, %d increments were acknowledged and %d tried (%v)", i, c.marker, k, v.N, c.low[k], c.high[k], err)
				}
			}
		}()
	}
	wg.Wait()
}
