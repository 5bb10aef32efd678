package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// payloads are entries as a test has them.
type payloads [][]byte

func (p payloads) Len() int                        { return len(p) }
func (p payloads) Size(i int) int                  { return len(p[i]) }
func (p payloads) AppendTo(b []byte, i int) []byte { return append(b, p[i]...) }

// small options make a log of many segments out of little.
var small = Options{MinSegment: 2 * block, MaxSegment: 6 * block}

func open(t testing.TB, fs vfs.FS, o Options) *Log {
	t.Helper()
	if o.Fatal == nil {
		o.Fatal = func(err error) { t.Errorf("fatal: %v", err) }
	}
	l, err := Open(fs, "log", o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func shut(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, l *Log, group uint32, first uint64, n, size int) {
	t.Helper()
	var p payloads
	for i := range n {
		p = append(p, payloadOf(group, first+uint64(i), 1, size))
	}
	if err := l.Append(group, first, p); err != nil {
		t.Fatal(err)
	}
}

// payloadOf is what generation gen has at an index.
func payloadOf(group uint32, index, gen uint64, size int) []byte {
	r := rand.New(rand.NewPCG(uint64(group)<<32|index, gen))
	b := fmt.Appendf(nil, "g%d/%d/%d ", group, index, gen)
	for len(b) < size {
		b = append(b, byte(r.Uint32()))
	}
	return b
}

func has(t testing.TB, l *Log, group uint32, first, last uint64, size int) {
	t.Helper()
	if f, la := l.Bounds(group); f != first || la != last {
		t.Fatalf("group %d has %d to %d, want %d to %d", group, f, la, first, last)
	}
	for i := first; i <= last && i > 0; i++ {
		b, err := l.Read(group, i)
		if err != nil || !bytes.Equal(b, payloadOf(group, i, 1, size)) {
			t.Fatalf("entry %d of group %d is %.20q (%v)", i, group, b, err)
		}
	}
	for _, i := range []uint64{first - 1, last + 1, 0, 1 << 63} {
		if i >= first && i <= last && first > 0 {
			continue
		}
		if _, err := l.Read(group, i); !errors.Is(err, ErrNotFound) {
			t.Fatalf("entry %d of group %d, outside the log: %v", i, group, err)
		}
	}
}

func TestLogKeeps(t *testing.T) {
	fs := vfs.NewMem()
	l := open(t, fs, small)
	put(t, l, 1, 1, 10, 300)
	put(t, l, 2, 100, 3, 5000) // begins anywhere, a batch longer than the segments
	put(t, l, 1, 11, 1, 0)
	if err := l.Update(Change{Key{1, 2}, []byte("two")}, Change{Key{1, 1}, []byte{}}, Change{Key{2, 1}, []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if err := l.Update(Change{Key{2, 1}, nil}, Change{Key{9, 9}, nil}, Change{Key{1, 2}, []byte("zwei")}); err != nil {
		t.Fatal(err)
	}
	look := func() {
		t.Helper()
		has(t, l, 2, 100, 102, 5000)
		for i := uint64(1); i <= 10; i++ {
			if b, err := l.Read(1, i); err != nil || !bytes.Equal(b, payloadOf(1, i, 1, 300)) {
				t.Fatalf("entry %d: %.20q %v", i, b, err)
			}
		}
		if got := fmt.Sprintf("%v %v %s %v %v", l.Groups(1), l.Groups(2), l.Get(Key{1, 2}), l.Get(Key{1, 1}) == nil, l.Get(Key{2, 1}) == nil); got != "[1 2] [] zwei false true" {
			t.Fatalf("records are %s", got)
		}
	}
	look()
	for range 3 {
		shut(t, l)
		l = open(t, fs, Options{MinSegment: 2 * block, MaxSegment: 6 * block, Existing: true})
		look()
	}
	// Cut both ends, go on, and look again after each opening.
	if err := errors.Join(l.CutFront(1, 4), l.CutBack(1, 9), l.CutFront(2, 102), l.CutFront(7, 7), l.CutBack(7, 7), l.CutBack(2, 1)); err != nil {
		t.Fatal(err)
	}
	put(t, l, 2, 7, 2, 10) // an empty log begins anywhere, lower too
	put(t, l, 1, 9, 2, 300)
	for range 2 {
		has(t, l, 1, 5, 10, 300)
		has(t, l, 2, 7, 8, 10)
		shut(t, l)
		l = open(t, fs, small)
	}
	if err := l.CutBack(1, 1); err != nil { // everything
		t.Fatal(err)
	}
	has(t, l, 1, 0, 0, 0)
	shut(t, l)
	if err := l.Append(1, 1, payloads{nil}); !errors.Is(err, ErrClosed) {
		t.Errorf("append to a closed log: %v", err)
	}
	if _, err := l.Read(1, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("read from a closed log: %v", err)
	}
	if err := l.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("closing again: %v", err)
	}
}

func TestLogRefuses(t *testing.T) {
	l := open(t, vfs.NewMem(), small)
	defer shut(t, l)
	put(t, l, 1, 5, 3, 10)
	for _, first := range []uint64{0, 1, 4, 5, 7, 9, 1 << 63} {
		if err := l.Append(1, first, payloads{nil}); !errors.Is(err, ErrGap) {
			t.Errorf("append at %d: %v", first, err)
		}
	}
	if err := l.Append(1, 8, huge{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a huge append: %v", err)
	}
	if err := l.Update(Change{Key{1, 1}, make([]byte, maxValue+1)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a huge record: %v", err)
	}
	has(t, l, 1, 5, 7, 10)
}

type huge struct{}

func (huge) Len() int                    { return 2 }
func (huge) Size(int) int                { return maxAppend/2 + 1 }
func (huge) AppendTo([]byte, int) []byte { panic("not reached") }

// syncs counts syncs of data, and holds them up while there is a gate.
type syncs struct {
	mu    sync.Mutex
	count int
	gate  chan struct{} // a sync takes one; nil: none are held up
	began chan struct{}
}

func (s *syncs) MaybeError(op errorfs.Op) error {
	if op.Kind == errorfs.OpFileSyncData {
		s.mu.Lock()
		s.count++
		gate, began := s.gate, s.began
		s.mu.Unlock()
		if gate != nil {
			began <- struct{}{}
			<-gate
		}
	}
	return nil
}

func (*syncs) String() string { return "count" }

// Appends that come while a sync runs share the next one.
func TestGroupCommit(t *testing.T) {
	s := &syncs{}
	l := open(t, errorfs.Wrap(vfs.NewMem(), s), Options{})
	defer shut(t, l)
	put(t, l, 100, 1, 1, 10)
	l.mu.Lock()
	for l.ready == nil { // nothing else syncs from here on
		l.changed.Wait()
	}
	l.mu.Unlock()
	s.mu.Lock()
	s.gate, s.began = make(chan struct{}), make(chan struct{})
	s.mu.Unlock()
	before := l.Metrics()
	var wg sync.WaitGroup
	write := func(g uint32) {
		wg.Add(1)
		go func() { defer wg.Done(); put(t, l, g, 1, 1, 10) }()
	}
	write(0)
	<-s.began // the first one is in its sync
	for g := uint32(1); g <= 50; g++ {
		write(g)
	}
	for { // until all of them wait
		l.mu.Lock()
		n := 0
		for _, b := range l.queue {
			n += len(b.waiters)
		}
		l.mu.Unlock()
		if n == 50 {
			break
		}
	}
	s.gate <- struct{}{}
	<-s.began
	s.gate <- struct{}{}
	wg.Wait()
	s.mu.Lock()
	s.gate = nil
	s.mu.Unlock()
	if n := l.Metrics().Batches - before.Batches; n != 2 {
		t.Errorf("51 appends took %d syncs, want 2", n)
	}
	for g := range uint32(51) {
		has(t, l, g, 1, 1, 10)
	}
}

// Segments are used again, and the log does not grow beyond what lives.
func TestSegmentsComeAround(t *testing.T) {
	fs := vfs.NewMem()
	l := open(t, fs, small)
	if err := l.Update(Change{Key{1, 9}, []byte("kept")}); err != nil {
		t.Fatal(err)
	}
	put(t, l, 9, 1, 3, 700) // a quiet group, in the oldest segment
	for i := uint64(1); i <= 2000; i++ {
		put(t, l, 1, i, 1, 700)
		if i%20 == 0 {
			if err := l.CutFront(1, i-10); err != nil {
				t.Fatal(err)
			}
			// Freeing is not waited for by appends; here it is.
			l.mu.Lock()
			for l.err == nil && (l.cleanDue || l.cleaning || len(l.released) > keepFree) {
				l.changed.Wait()
			}
			l.mu.Unlock()
		}
		if m := l.Metrics(); m.DiskBytes > 60*6*block {
			t.Fatalf("%d appends: the log takes %d bytes for %d that live", i, m.DiskBytes, m.LiveBytes)
		}
	}
	has(t, l, 9, 1, 3, 700)
	has(t, l, 1, 1991, 2000, 700)
	m := l.Metrics()
	if m.Reused < 100 || m.CarriedBytes < 2100 {
		t.Errorf("%+v: segments were not used again, or nothing was carried forward", m)
	}
	if m.CarriedBytes > m.WrittenBytes/10 {
		t.Errorf("%+v: too much was carried forward", m)
	}
	for range 2 {
		shut(t, l)
		l = open(t, fs, small)
		has(t, l, 9, 1, 3, 700)
		has(t, l, 1, 1991, 2000, 700)
		if v := l.Get(Key{1, 9}); string(v) != "kept" {
			t.Errorf("the record is %q", v)
		}
	}
	shut(t, l)
}

// A cut that nobody waits for reaches the disk although nothing more is
// written, and what it frees is free.
func TestCutFreesIdleLog(t *testing.T) {
	l := open(t, vfs.NewMem(), small)
	defer shut(t, l)
	put(t, l, 1, 1, 100, 1000)
	for i := uint64(101); i <= 150; i++ {
		put(t, l, 1, i, 1, 1000)
	}
	if err := l.CutFront(1, 150); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.table.segs) > 1 || len(l.released) > keepFree {
		l.changed.Wait() // its end is the test's time limit
	}
}

// So does one that an append takes along before the cleaner looks, although a
// record in the oldest segment is still needed: what is left is no waste.
func TestCutWithAppendFreesIdleLog(t *testing.T) {
	for range 100 {
		l := open(t, vfs.NewMem(), small)
		if err := l.Update(Change{Key{1, 1}, []byte("kept")}); err != nil {
			t.Fatal(err)
		}
		for i := uint64(1); i <= 100; i++ {
			put(t, l, 1, i, 1, 1000)
		}
		if err := l.CutFront(1, 100); err != nil {
			t.Fatal(err)
		}
		put(t, l, 1, 101, 1, 1000)
		l.mu.Lock()
		for len(l.table.segs) > slack {
			l.changed.Wait() // its end is the test's time limit
		}
		l.mu.Unlock()
		shut(t, l)
	}
}

// After a write that failed nothing is taken any more, and everybody learns.
func TestWriteFails(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSyncData} {
		var mu sync.Mutex
		broken := false
		var fatal []error
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if broken && op.Kind == kind {
				return errorfs.ErrInjected
			}
			return nil
		}))
		o := small
		o.Fatal = func(err error) { mu.Lock(); fatal = append(fatal, err); mu.Unlock() }
		l := open(t, fs, o)
		put(t, l, 1, 1, 1, 10)
		mu.Lock()
		broken = true
		mu.Unlock()
		var wg sync.WaitGroup
		for g := range uint32(20) {
			wg.Add(1)
			go func() {
				defer wg.Done()
				if err := l.Append(g+10, 1, payloads{nil}); !errors.Is(err, errorfs.ErrInjected) {
					t.Errorf("append to a broken disk: %v", err)
				}
			}()
		}
		wg.Wait()
		mu.Lock()
		broken = false
		mu.Unlock()
		if err := l.Append(1, 2, payloads{nil}); !errors.Is(err, errorfs.ErrInjected) {
			t.Errorf("append after a failure: %v", err)
		}
		if err := l.Update(Change{Key{1, 1}, nil}); !errors.Is(err, errorfs.ErrInjected) {
			t.Errorf("update after a failure: %v", err)
		}
		if len(fatal) != 1 || !errors.Is(fatal[0], errorfs.ErrInjected) {
			t.Errorf("fatal was told %v", fatal)
		}
		if err := l.Close(); !errors.Is(err, errorfs.ErrInjected) {
			t.Errorf("closing a broken log: %v", err)
		}
	}
}

// A log whose disk hangs can be left: nothing waits but the write itself, and
// nothing is written after it.
func TestAbandon(t *testing.T) {
	s := &syncs{}
	l := open(t, errorfs.Wrap(vfs.NewMem(), s), Options{})
	put(t, l, 1, 1, 1, 10)
	l.mu.Lock()
	for l.ready == nil { // nothing else syncs from here on
		l.changed.Wait()
	}
	l.mu.Unlock()
	s.mu.Lock()
	s.gate, s.began = make(chan struct{}), make(chan struct{})
	s.mu.Unlock()
	results := make(chan error, 2)
	for g := range uint32(2) {
		go func() { results <- l.Append(10+g, 1, payloads{nil}) }()
		if g == 0 {
			<-s.began
		}
	}
	l.Abandon()
	if err := l.Append(1, 2, payloads{nil}); err == nil {
		t.Error("an append to an abandoned log")
	}
	s.mu.Lock()
	before := s.count
	gate := s.gate
	s.gate = nil
	s.mu.Unlock()
	if err := <-results; err == nil {
		t.Error("the append that waited for the one before was acknowledged")
	}
	close(gate)
	if err := <-results; err != nil {
		t.Errorf("the append whose sync came to its end: %v", err)
	}
	shut(t, l)
	if s.count != before {
		t.Errorf("%d syncs after the log was abandoned", s.count-before)
	}
}

// readGate stops the first read after it was armed.
type readGate struct {
	armed       atomic.Bool
	began, open chan struct{}
}

func (g *readGate) MaybeError(op errorfs.Op) error {
	if op.Kind == errorfs.OpFileReadAt && g.armed.CompareAndSwap(true, false) {
		close(g.began)
		<-g.open
	}
	return nil
}

func (*readGate) String() string { return "read" }

// An entry that is replaced while it is carried forward stays replaced.
func TestCarryMeetsCut(t *testing.T) {
	mem := vfs.NewMem()
	g := &readGate{began: make(chan struct{}), open: make(chan struct{})}
	l := open(t, errorfs.Wrap(mem, g), small)
	put(t, l, 9, 1, 3, 700)
	g.armed.Store(true)
	carrying := func() bool {
		select {
		case <-g.began:
			return true
		default:
			return false
		}
	}
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		<-g.began
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changed.Broadcast()
	}()
	for next := uint64(1); !carrying(); next++ { // nothing else reads
		put(t, l, 1, next, 1, 3000)
		if err := l.CutFront(1, next); err != nil {
			t.Fatal(err)
		}
		// Appends wait for a cleaner that is behind, and it is to be held up.
		l.mu.Lock()
		for (l.cleanDue || l.cleaning) && !carrying() && l.err == nil {
			l.changed.Wait()
		}
		l.mu.Unlock()
	}
	<-woken
	if err := l.CutBack(9, 2); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(9, 2, payloads{[]byte("new")}); err != nil {
		t.Fatal(err)
	}
	close(g.open)
	l.mu.Lock()
	for (l.cleanDue || l.cleaning) && l.err == nil {
		l.changed.Wait()
	}
	if l.stats.CarriedBytes == 0 {
		t.Error("nothing was carried forward")
	}
	l.mu.Unlock()
	for range 2 {
		if b, err := l.Read(9, 2); err != nil || string(b) != "new" {
			t.Errorf("entry 2 is %.20q (%v)", b, err)
		}
		if _, err := l.Read(9, 3); !errors.Is(err, ErrNotFound) {
			t.Errorf("entry 3, which was cut off: %v", err)
		}
		if first, last := l.Bounds(9); first != 1 || last != 2 {
			t.Errorf("the group has %d to %d", first, last)
		}
		shut(t, l)
		l = open(t, mem, small)
	}
	shut(t, l)
}

// While the cleaner stands still the log takes no more than measureLocked lets
// it, however much is appended: entries wait, and go on when it does.
// Records do not wait.
func TestAppendsWaitForCleaner(t *testing.T) {
	g := &readGate{began: make(chan struct{}), open: make(chan struct{})}
	l := open(t, errorfs.Wrap(vfs.NewMem(), g), small)
	defer shut(t, l)
	g.armed.Store(true)
	const writers, total, updates = 4, 600, 20
	var appended atomic.Int64
	var wg sync.WaitGroup
	for w := range uint32(writers) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := uint64(1); i <= total/writers; i++ {
				// Every fourth entry stays, so that each segment has some of it.
				put(t, l, 10+w, i, 1, 700)
				put(t, l, w, i, 1, 3000)
				if err := l.CutFront(w, i); err != nil {
					t.Error(err)
				}
				appended.Add(1)
			}
		}()
	}
	<-g.began // the cleaner stands in a read
	l.mu.Lock()
	for !l.crowded && appended.Load() < total {
		l.changed.Wait()
	}
	l.mu.Unlock()
	over := func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		total, live := l.table.spread()
		// What was on its way when the log became crowded is in two segments at
		// most, the cuts behind it have lessened what lives, and records do not
		// wait.
		return total > 3*(live+writers*block)+(crowd+2)*small.MaxSegment+updates*block
	}
	for range updates { // each is written behind what was on its way
		if err := l.Update(Change{Key{1, 1}, []byte("not held up")}); err != nil {
			t.Fatal(err)
		}
		if over() {
			t.Errorf("the log takes too much: %+v", l.Metrics())
		}
	}
	if n := appended.Load(); n >= total {
		t.Errorf("all %d were appended although the cleaner stood still", n)
	}
	close(g.open)
	wg.Wait()
	if m := l.Metrics(); m.CrowdedSeconds == 0 || over() {
		t.Errorf("%+v: nobody waited, or the log takes too much", m)
	}
	for w := range uint32(writers) {
		has(t, l, 10+w, 1, total/writers, 700)
	}
}
