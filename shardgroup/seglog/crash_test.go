package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	files "github.com/impossibledb/idb/fsm/vfs"
)

// model is what one group should have: of every entry the generation that wrote
// it, and in its three records one version.
type model struct {
	first, last uint64            // 0, 0: empty
	gens        map[uint64]uint64 // of first … last, and some more
	version     uint64            // of the records; 0: none yet
}

func (m model) clone() model {
	c := m
	c.gens = make(map[uint64]uint64, len(m.gens))
	for i, g := range m.gens {
		if i+200 > m.first { // a cut that comes back may show these
			c.gens[i] = g
		}
	}
	return c
}

func (m *model) append(first uint64, n int, gen uint64) {
	if m.first == 0 {
		m.first = first
	}
	for i := range uint64(n) {
		m.gens[first+i] = gen
	}
	m.last = first + uint64(n) - 1
}

func sizeOf(index, gen uint64) int { return int(index*2654435761+gen*97) % 3000 }

// records are the changes that bring a group's records to a version. The third
// exists in every other one.
func records(group uint32, version uint64) []Change {
	v := fmt.Appendf(nil, "%d", version)
	changes := []Change{{Key{1, group}, v}, {Key{2, group}, v}, {Key{3, group}, v}}
	if version%2 == 1 {
		changes[2].Value = nil
	}
	return changes
}

// seen is a group's state as a log shows it.
func seen(l *Log, group uint32) (model, error) {
	m := model{gens: make(map[uint64]uint64)}
	m.first, m.last = l.Bounds(group)
	for i := m.first; i <= m.last && i > 0; i++ {
		b, err := l.Read(group, i)
		if err != nil {
			return m, fmt.Errorf("entry %d: %w", i, err)
		}
		var g uint32
		var index, gen uint64
		if _, err := fmt.Sscanf(string(b), "g%d/%d/%d ", &g, &index, &gen); err != nil {
			return m, fmt.Errorf("entry %d: %.20q", i, b)
		}
		if want := payloadOf(group, i, gen, sizeOf(i, gen)); !bytes.Equal(b, want) {
			return m, fmt.Errorf("entry %d is %.30q", i, b)
		}
		m.gens[i] = gen
	}
	a, b, c := l.Get(Key{1, group}), l.Get(Key{2, group}), l.Get(Key{3, group})
	if a != nil {
		if _, err := fmt.Sscan(string(a), &m.version); err != nil {
			return m, err
		}
	}
	if !bytes.Equal(a, b) || m.version%2 == 0 && !bytes.Equal(a, c) || m.version%2 == 1 && c != nil {
		return m, fmt.Errorf("records are of several versions: %q %q %q", a, b, c)
	}
	return m, nil
}

// is says what is different in m from what it should be. front says that a cut
// of the front may have come back.
func (m *model) is(want *model, front bool) error {
	if m.last != want.last || m.version != want.version {
		return fmt.Errorf("last is %d and the records' version %d, want %d and %d", m.last, m.version, want.last, want.version)
	}
	if m.first != want.first && (!front || m.first > want.first || m.first == 0 || want.first == 0) {
		return fmt.Errorf("first is %d, want %d", m.first, want.first)
	}
	for i := m.first; i <= m.last; i++ {
		if m.gens[i] != want.gens[i] {
			return fmt.Errorf("entry %d is of generation %d, want %d", i, m.gens[i], want.gens[i])
		}
	}
	return nil
}

var crashOps = []errorfs.OpKind{
	errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileWriteAt, errorfs.OpCreate,
	errorfs.OpRename, errorfs.OpRemove, errorfs.OpReuseForWrite,
}

// hooked calls hook before every operation that changes something.
func hooked(fs vfs.FS, hook func(errorfs.Op)) vfs.FS {
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if slices.Contains(crashOps, op.Kind) {
			hook(op)
		}
		return nil
	}))
}

func cut(fs *vfs.MemFS, r *rand.Rand) (*vfs.MemFS, int) {
	percent := []int{0, 0, 30, 50, 80, 100}[r.IntN(6)]
	return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: r}), percent
}

// nthCut cuts the power before the nth operation.
type nthCut struct {
	mem *vfs.MemFS
	at  int

	mu    sync.Mutex
	ops   int
	rng   *rand.Rand
	clone *vfs.MemFS // nil: not yet
}

func (c *nthCut) hook(errorfs.Op) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ops++; c.ops == c.at {
		c.clone, _ = cut(c.mem, c.rng)
	}
}

func (c *nthCut) taken() *vfs.MemFS {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clone
}

// TestCrash writes three groups' logs and records at once and, at thousands of
// points inside writes, syncs, renames and removals, looks at what a power cut
// there leaves: everything acknowledged, of what was on its way all or nothing.
// Then it cuts the power again in the middle of that recovery, and once more
// after the recovered log was written to: what a recovery has shown stays.
func TestCrash(t *testing.T) {
	points := 1500
	if testing.Short() {
		points = 200
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const groups = 3
	mem := vfs.NewCrashableMem()
	type pair struct{ now, next model } // acknowledged, and with what is on its way
	var mu sync.Mutex
	models := make([]pair, groups+1)
	for g := range models {
		models[g].now.gens, models[g].next.gens = map[uint64]uint64{}, map[uint64]uint64{}
	}
	var crashes, again, torn atomic.Int64
	rng := rand.New(rand.NewPCG(seed, 1))

	check := func(name string, l *Log, want []pair) (got []model) {
		for g := uint32(1); g <= groups; g++ {
			m, err := seen(l, g)
			if err != nil {
				t.Errorf("%s: group %d: %v", name, g, err)
				return nil
			}
			if err := m.is(&want[g].now, true); err != nil {
				if err2 := m.is(&want[g].next, true); err2 != nil {
					t.Errorf("%s: group %d is not as acknowledged: %v; nor with what was on its way: %v", name, g, err, err2)
				}
			} else if len(want[g].next.gens) > 0 && m.is(&want[g].next, true) != nil {
				torn.Add(1)
			}
			got = append(got, m)
		}
		return got
	}
	// Not the helpers that end the test at once: this runs inside writes of the
	// log that is tested, which would never come back.
	begin := func(name string, fs vfs.FS, o Options) *Log {
		o.Fatal = func(err error) { t.Errorf("%s: fatal: %v", name, err) }
		l, err := Open(fs, "log", o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return nil
		}
		return l
	}
	end := func(name string, l *Log) {
		if err := l.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	same := func(name string, fs vfs.FS, want []model) {
		l := begin(name, fs, small)
		if l == nil {
			return
		}
		for g := uint32(1); g <= groups; g++ {
			m, err := seen(l, g)
			if err == nil {
				err = m.is(&want[g-1], false)
			}
			if err != nil {
				t.Errorf("%s: group %d is not as the recovery before has shown it: %v", name, g, err)
			}
		}
		end(name, l)
	}
	look := func() {
		mu.Lock()
		defer mu.Unlock()
		if crashes.Load() >= int64(points) || rng.IntN(8) != 0 {
			return
		}
		n := crashes.Add(1)
		want := slices.Clone(models)
		clone, percent := cut(mem, rng)
		name := fmt.Sprintf("crash %d (%d%% of unsynced data kept)", n, percent)

		// A second cut somewhere in the recovery from the first.
		second := &nthCut{mem: clone, at: rng.IntN(14), rng: rand.New(rand.NewPCG(seed, uint64(n)))}
		l := begin(name, hooked(clone, second.hook), Options{MinSegment: small.MinSegment, MaxSegment: small.MaxSegment, Existing: true})
		if l == nil {
			return
		}
		got := check(name, l, want)
		if during := second.taken(); during != nil {
			again.Add(1)
			name := name + ", and in its recovery"
			if l := begin(name, during, small); l != nil {
				check(name, l, want)
				end(name, l)
			}
		}
		if t.Failed() {
			end(name, l)
			return
		}
		// Power fails again: at once, or after some more was written where the
		// first cut tore something off.
		if rng.IntN(2) == 0 {
			for g := uint32(1); g <= groups; g++ {
				m := &got[g-1]
				first := m.last + 1
				p := payloads{payloadOf(g, first, 1<<40+uint64(n), sizeOf(first, 1<<40+uint64(n)))}
				if err := l.Append(g, first, p); err != nil {
					t.Errorf("%s, append afterwards: %v", name, err)
				}
				m.append(first, 1, 1<<40+uint64(n))
			}
		}
		after, _ := cut(clone, rng)
		same(name+", and after its recovery", after, got)
		end(name, l)
		if rng.IntN(2) == 0 {
			same(name+", closed and opened", clone, got)
		}
	}

	l := open(t, hooked(mem, func(errorfs.Op) {}), small)
	// From here on, when the log is known to be begun.
	shut(t, l)
	l = open(t, hooked(mem, func(errorfs.Op) { look() }), small)
	var wg sync.WaitGroup
	for g := uint32(1); g <= groups; g++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(seed, uint64(g)+100))
			m := model{gens: map[uint64]uint64{}}
			set := func(next model, do func() error) {
				mu.Lock()
				models[g].next = next.clone()
				mu.Unlock()
				if err := do(); err != nil {
					t.Errorf("group %d: %v", g, err)
				}
				m = next
				mu.Lock()
				models[g].now = m.clone()
				mu.Unlock()
			}
			gen, high := uint64(1), uint64(0)
			for crashes.Load() < int64(points) && !t.Failed() {
				next := m.clone()
				switch k := r.IntN(20); {
				case k == 0 && m.first != 0: // a conflict
					gen++
					from := m.first + uint64(r.IntN(int(m.last-m.first+1)))
					next.last = from - 1
					if from == m.first {
						next.first, next.last = 0, 0
					}
					set(next, func() error { return l.CutBack(g, from) })
				case k <= 3 && m.last > m.first && (g != 3 || r.IntN(20) == 0): // a snapshot; group 3 lags
					upto := m.first + uint64(r.IntN(int(m.last-m.first)))
					next.first = upto + 1
					set(next, func() error { return l.CutFront(g, upto) })
				case k <= 5:
					next.version++
					set(next, func() error { return l.Update(records(g, next.version)...) })
				case g == 3 && r.IntN(4) != 0: // and is quiet
					next.version++
					set(next, func() error { return l.Update(records(g, next.version)...) })
				default:
					n := 1 + r.IntN(6)
					from := m.last + 1
					if m.first == 0 {
						from = high + 1 + uint64(r.IntN(3))
					}
					next.append(from, n, gen)
					high = max(high, next.last)
					var p payloads
					for i := from; i < from+uint64(n); i++ {
						p = append(p, payloadOf(g, i, gen, sizeOf(i, gen)))
					}
					set(next, func() error { return l.Append(g, from, p) })
				}
			}
			got, err := seen(l, g)
			if err == nil {
				err = got.is(&m, false)
			}
			if err != nil {
				t.Errorf("group %d, while running: %v", g, err)
			}
		}()
	}
	wg.Wait()
	s := l.Metrics()
	t.Logf("%d crashes, %d of them again in the recovery, %d with something torn off; %+v", crashes.Load(), again.Load(), torn.Load(), s)
	shut(t, l)
	if got := crashes.Load(); got < int64(points) {
		t.Errorf("%d crash points, want %d", got, points)
	}
	if s.Reused < 50 || s.CarriedBytes == 0 || torn.Load() == 0 || again.Load() < int64(points/4) {
		t.Errorf("the crashes did not reach everything: %+v, %d torn, %d in a recovery", s, torn.Load(), again.Load())
	}
}

// TestCrashFirst cuts the power while a log is opened for the first time.
func TestCrashFirst(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		mem := vfs.NewCrashableMem()
		first := &nthCut{mem: mem, at: r.IntN(14), rng: rand.New(rand.NewPCG(r.Uint64(), 1))}
		l := open(t, hooked(mem, first.hook), small)
		shut(t, l)
		clone := first.taken()
		if clone == nil {
			continue
		}
		l = open(t, clone, small)
		put(t, l, 1, 1, 1, 10)
		clone, _ = cut(clone, r)
		shut(t, l)
		l = open(t, clone, Options{Existing: true})
		has(t, l, 1, 1, 1, 10)
		shut(t, l)
	}
	if _, err := Open(vfs.NewMem(), "log", Options{Existing: true}); !errors.Is(err, ErrDamaged) {
		t.Errorf("an empty directory where a log was: %v", err)
	}
}

// tornImage is a log with an old segment that is not needed, a torn one, and a
// prepared one behind its end. The
// cleaner may come between with a batch of its own: then it is made anew.
func tornImage(t *testing.T) image {
	for range 1000 {
		mem := vfs.NewCrashableMem()
		l := open(t, mem, small)
		put(t, l, 1, 1, 1, 3*block) // the first segment has no room for it
		put(t, l, 1, 2, 1, 5*block) // nor the second for this
		l.mu.Lock()
		for l.ready == nil {
			l.changed.Wait()
		}
		l.mu.Unlock()
		m := imageOf(t, mem)
		shut(t, l)
		all := m.batches(t)
		tail := all[len(all)-1]
		if m[segmentName(1)] != nil && m[segmentName(4)] != nil && tail.file == segmentName(3) {
			return m.with(tail.file, func(b []byte) []byte { clear(b[tail.at+block:][:block]); return b })
		}
	}
	t.Fatal("the cleaner came between every time")
	return nil
}

// TestCrashInRecovery cuts the power at each operation of a recovery that has
// the most to do: a torn segment and a prepared one behind the end of the log,
// and an old one that is not needed.
func TestCrashInRecovery(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	m := tornImage(t)
	for at := 1; ; at++ {
		done := false
		for range 20 {
			fs := m.fs(t)
			// What the image holds is on disk.
			for name := range m {
				f, err := fs.OpenReadWrite("log/"+name, files.Unspecified)
				if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(files.SyncDir(fs, "log"), files.SyncDir(fs, "/")); err != nil {
				t.Fatal(err)
			}
			c := &nthCut{mem: fs, at: at, rng: rand.New(rand.NewPCG(r.Uint64(), 1))}
			l := open(t, hooked(fs, c.hook), small)
			has(t, l, 1, 1, 1, 3*block)
			clone := c.taken()
			shut(t, l)
			if done = clone == nil; done {
				break
			}
			l = open(t, clone, small)
			has(t, l, 1, 1, 1, 3*block)
			put(t, l, 1, 2, 1, 10)
			shut(t, l)
		}
		if done {
			if at < 10 {
				t.Errorf("a recovery has only %d operations", at-1)
			}
			break
		}
	}
}

// TestKilledThenPowerCut kills the process between a write and its sync, and
// cuts the power after the next one has shown what it read: that is on disk.
func TestKilledThenPowerCut(t *testing.T) {
	mem := vfs.NewCrashableMem()
	var broken atomic.Bool
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && op.Kind == errorfs.OpFileSyncData {
			return errorfs.ErrInjected
		}
		return nil
	}))
	o := Options{Fatal: func(error) {}}
	l := open(t, fs, o)
	put(t, l, 1, 1, 1, 5000)
	broken.Store(true)
	if err := l.Append(1, 2, payloads{payloadOf(1, 2, 1, 5000)}); err == nil {
		t.Fatal("an append was acknowledged without a sync")
	}
	_ = l.Close() // only ends its goroutines: the log is broken

	l = open(t, mem, Options{})
	has(t, l, 1, 1, 2, 5000)
	after := mem.CrashClone(vfs.CrashCloneCfg{})
	shut(t, l)
	l = open(t, after, Options{})
	has(t, l, 1, 1, 2, 5000)
	shut(t, l)
}
