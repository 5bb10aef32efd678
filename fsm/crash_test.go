package fsm

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	pvfs "github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/fsm/vfs"
)

var (
	crashSeed = flag.Uint64("crash.seed", 0, "first seed of the crash tests")
	crashRuns = flag.Int("crash.runs", 14, "runs of the crash tests, of some 50 power losses each")
)

// crasher is a file system that takes copies of itself as a power loss would
// leave it, just before randomly chosen operations.
type crasher struct {
	mem *pvfs.MemFS
	vfs.FS

	flushed atomic.Uint64 // an index that Flush has returned
	handed  atomic.Uint64 // the last index that Apply was given

	mu     sync.Mutex
	rng    *rand.Rand
	every  int
	left   int
	points []crashPoint
}

// crashPoint is what a power loss left, and what must be true of it.
type crashPoint struct {
	fs      *pvfs.MemFS
	flushed uint64 // on disk, at least
	handed  uint64 // at most
	before  string // the operation that did not happen
}

func newCrasher(seed uint64, every, points int) *crasher {
	c := &crasher{mem: pvfs.NewCrashableMem(), rng: rand.New(rand.NewPCG(seed, 3)), every: every, left: points}
	c.FS = errorfs.Wrap(c.mem, errorfs.InjectorFunc(c.maybe))
	return c
}

func (c *crasher) maybe(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == 0 || c.rng.IntN(c.every) != 0 {
		return nil
	}
	c.left--
	p := crashPoint{flushed: c.flushed.Load(), before: fmt.Sprintf("operation %d on %s", op.Kind, op.Path)}
	p.fs = c.mem.CrashClone(pvfs.CrashCloneCfg{UnsyncedDataPercent: c.rng.IntN(101), RNG: c.rng})
	p.handed = c.handed.Load()
	c.points = append(c.points, p)
	return nil
}

// now takes a copy as a power loss would leave it that spares nothing unsynced.
func (c *crasher) now(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := crashPoint{flushed: c.flushed.Load(), handed: c.handed.Load(), before: what}
	p.fs = c.mem.CrashClone(pvfs.CrashCloneCfg{})
	c.points = append(c.points, p)
}

// crashOptions make an engine that flushes and compacts all the time.
func crashOptions(seed uint64) mvcc.EngineOptions {
	return mvcc.EngineOptions{MemTableBytes: 64 << 10, CacheBytes: 1 << 20, InlineValues: seed%2 == 1}
}

// reference is what one log must lead to.
type reference struct {
	log     []Entry
	digests map[uint64]uint64
	rows    string
}

func makeReference(t *testing.T, seed uint64, entries int) *reference {
	w := newWorkload(t, seed)
	w.big = true
	lead := newReplica(t, nil)
	ref := &reference{digests: map[uint64]uint64{0: 0}}
	for range entries {
		e := w.entry(lead)
		lead.mustApply(e)
		ref.log = append(ref.log, e)
		ref.digests[e.Index] = lead.Stats().Digest
	}
	lead.verify()
	ref.rows = lead.rows()
	return ref
}

// TestCrashes loses power at random operations on files, thousands of times in
// all. What is left must be the state after some entry: not before the last
// flush, not after the last entry handed in; and the log must lead from there
// to where it leads without a crash.
func TestCrashes(t *testing.T) {
	points := 0
	for run := range *crashRuns {
		seed := *crashSeed + uint64(run)
		ref := makeReference(t, seed, 250)
		c := newCrasher(seed, 4, 64)
		r := &replica{t: t, fs: c, opts: crashOptions(seed)}
		r.open()
		rng := rand.New(rand.NewPCG(seed, 5))
		for rest := ref.log; len(rest) > 0; {
			n := min(1+rng.IntN(12), len(rest))
			c.handed.Store(rest[n-1].Index)
			r.mustApply(rest[:n]...)
			rest = rest[n:]
			if rng.IntN(12) == 0 {
				applied, err := r.Flush()
				if err != nil {
					t.Fatal(err)
				}
				c.flushed.Store(applied)
				if rng.IntN(4) == 0 {
					c.now("what follows a flush")
				}
				if on, err := r.Durable(); err != nil || on < applied {
					t.Fatalf("seed %d: flushed up to %d, durable up to %d, %v", seed, applied, on, err)
				}
			}
		}
		r.shut()
		for _, p := range c.points {
			points++
			ref.recover(t, fmt.Sprintf("seed %d (-crash.seed=%d -crash.runs=1), before %s", seed, seed, p.before), p, rng)
		}
	}
	t.Logf("%d power losses", points)
	if points < 20**crashRuns {
		t.Fatalf("only %d power losses: the test does not test", points)
	}
}

// recover opens what a crash left, checks it, and brings it to the end.
func (ref *reference) recover(t *testing.T, name string, p crashPoint, rng *rand.Rand) {
	t.Helper()
	r := &replica{t: t, fs: p.fs, opts: mvcc.EngineOptions{MemTableBytes: 64 << 10, CacheBytes: 1 << 20, OnFatal: func(err error) { t.Errorf("%s: %v", name, err) }}}
	r.open()
	defer r.shut()
	s := r.Stats()
	if s.Applied < p.flushed || s.Applied > p.handed {
		t.Fatalf("%s: at %d, flushed were %d and handed in %d", name, s.Applied, p.flushed, p.handed)
	}
	if s.Digest != ref.digests[s.Applied] {
		t.Fatalf("%s: at %d with digest %016x, it was %016x", name, s.Applied, s.Digest, ref.digests[s.Applied])
	}
	r.verify()
	for rest := ref.log; len(rest) > 0; {
		n := min(1+rng.IntN(80), len(rest))
		r.mustApply(rest[:n]...)
		rest = rest[n:]
	}
	last := ref.log[len(ref.log)-1].Index
	if got := r.Stats().Digest; got != ref.digests[last] {
		t.Fatalf("%s: recovered to digest %016x, want %016x", name, got, ref.digests[last])
	}
	if got := r.rows(); got != ref.rows {
		t.Fatalf("%s: recovered to other rows: %s", name, diff(ref.rows, got))
	}
}

// TestCrashesOfInstall loses power while a snapshot arrives and is installed
// in a replica that is behind. What is left is the old state or the new one;
// a complete import is found and installed; then the log leads on.
func TestCrashesOfInstall(t *testing.T) {
	const behind, at = 60, 180
	points, installed := 0, 0
	for run := range (*crashRuns + 1) / 2 {
		seed := *crashSeed + uint64(run)
		ref := makeReference(t, seed, 250)
		source := newReplica(t, nil)
		source.mustApply(ref.log[:at]...)
		var stream bytes.Buffer
		x, err := source.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.WriteTo(&stream); err != nil {
			t.Fatal(err)
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}

		c := newCrasher(seed, 4, 40)
		r := &replica{t: t, fs: c, opts: crashOptions(seed)}
		r.open()
		c.handed.Store(behind)
		r.mustApply(ref.log[:behind]...)
		rng := rand.New(rand.NewPCG(seed, 6))
		c.handed.Store(at)
		imp, err := r.NewImporter("import")
		if err != nil {
			t.Fatal(err)
		}
		for stream.Len() > 0 {
			if _, err := imp.Write(stream.Next(1 + rng.IntN(20_000))); err != nil {
				t.Fatal(err)
			}
		}
		im, err := imp.Finish()
		if err != nil {
			t.Fatal(err)
		}
		r.mustApply(ref.log[behind]) // in the memory table, where it overlaps with what comes
		if err := r.Install(im); err != nil {
			t.Fatal(err)
		}
		c.flushed.Store(at) // Install is durable when it returns
		c.now("what follows an install")
		c.handed.Store(250)
		r.mustApply(ref.log[at:]...)
		r.shut()

		for _, p := range c.points {
			points++
			name := fmt.Sprintf("seed %d (-crash.seed=%d -crash.runs=1), before %s", seed, seed, p.before)
			if ref.finishInstall(t, name, p, at) {
				installed++
			}
			ref.recover(t, name, p, rng)
		}
	}
	t.Logf("%d power losses, %d imports finished after them", points, installed)
	if points < 8**crashRuns || installed == 0 {
		t.Fatalf("%d power losses, %d finished installs: the test does not test", points, installed)
	}
}

// finishInstall does what a node does at its start with an import it finds.
func (ref *reference) finishInstall(t *testing.T, name string, p crashPoint, at uint64) bool {
	t.Helper()
	r := &replica{t: t, fs: p.fs, opts: mvcc.EngineOptions{MemTableBytes: 64 << 10, CacheBytes: 1 << 20}}
	r.open()
	defer r.shut()
	if s := r.Stats(); s.Digest != ref.digests[s.Applied] {
		t.Fatalf("%s: at %d with digest %016x, it was %016x", name, s.Applied, s.Digest, ref.digests[s.Applied])
	}
	im, err := mvcc.OpenImported(p.fs, "import")
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if im == nil {
		return false
	}
	before := r.Applied()
	if err := r.Install(im); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if got := r.Applied(); got != max(before, at) {
		t.Fatalf("%s: at %d after finishing the install of %d", name, got, at)
	}
	if there, err := vfs.Exists(p.fs, "import"); err != nil || there {
		t.Fatalf("%s: the import is still there (%v)", name, err)
	}
	return before < at
}

// TestWriteErrors makes writing to the engine's files fail: the machine must
// say so (a failed Apply or Flush, or the engine's OnFatal), not carry on.
func TestWriteErrors(t *testing.T) {
	for seed := range uint64(12) {
		ref := makeReference(t, seed, 120)
		var broken atomic.Bool
		mem := pvfs.NewCrashableMem()
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if broken.Load() && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileWrite) && strings.HasSuffix(op.Path, ".sst") {
				return errors.New("no space left on device")
			}
			return nil
		}))
		fatal := make(chan error, 1)
		r := &replica{t: t, fs: fs, opts: mvcc.EngineOptions{MemTableBytes: 64 << 10, CacheBytes: 1 << 20, OnFatal: func(err error) {
			fatal <- err
			broken.Store(false) // the engine tries again for ever; a process would have ended
		}}}
		r.open()
		r.mustApply(ref.log[:60]...)
		if _, err := r.Flush(); err != nil {
			t.Fatal(err)
		}
		r.mustApply(ref.log[60]) // stays in the memory table: larger ones may be flushed already
		broken.Store(true)
		if _, err := r.Flush(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-fatal:
			if !strings.Contains(err.Error(), "no space left") {
				t.Fatal(err)
			}
		default:
			t.Fatal("a flush that could not write said nothing")
		}
		r.engine.Abandon() // the process is over
		r.shut()
	}
}
