package seglog

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/fsm/mutant"
)

// Key names a small record.
type Key struct {
	Kind  byte
	Group uint32
}

// Change sets the record under a key, or deletes it if Value is nil.
type Change struct {
	Key   Key
	Value []byte
}

// Entries are what Append takes: they write themselves into the batch.
type Entries interface {
	Len() int
	// Size is about how many bytes entry i has; it only avoids growing.
	Size(i int) int
	// AppendTo appends entry i to b.
	AppendTo(b []byte, i int) []byte
}

// Options of a Log. The zero value works.
type Options struct {
	// MinSegment and MaxSegment are the smallest and the largest size of a
	// segment file, in bytes; in between it is about an eighth of the log.
	// Small ones are freed sooner and cost more switches. Zero means 1 MiB and
	// 16 MiB.
	MinSegment, MaxSegment int64
	// Existing says that the log was opened before: an empty directory is then
	// damage, not a new log.
	Existing bool
	// Fatal is called once when a write or a sync failed. It must not call the
	// Log. May be nil: every later call answers the error anyway.
	Fatal  func(error)
	Logger hclog.Logger // nil: none
}

func (o Options) withDefaults() Options {
	if o.MinSegment == 0 {
		o.MinSegment = 1 << 20
	}
	if o.MaxSegment == 0 {
		o.MaxSegment = 16 << 20
	}
	o.MinSegment = max(blocks(o.MinSegment), 2*block)
	o.MaxSegment = max(blocks(o.MaxSegment), o.MinSegment)
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	return o
}

var (
	// ErrNotFound: the log holds no such entry.
	ErrNotFound = errors.New("seglog: no such entry")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("seglog: closed")
	// ErrGap: entries would not go on where the group's log ends.
	ErrGap = errors.New("seglog: entries do not follow the log")
	// ErrTooLarge: past a limit; nothing was written.
	ErrTooLarge = errors.New("seglog: too large")
)

const (
	// maxBatch is how much goes into one write if more than one append waits.
	maxBatch = 4 << 20
	// maxAppend bounds one call.
	maxAppend = 512 << 20
	// maxValue bounds a record under a key: they are kept in memory.
	maxValue = 1 << 20
	// keepBuffer is how large a batch's buffer may be to be used again.
	keepBuffer = 1 << 20
)

// Log is the log of a node.
//
// One of the goroutines that wait is the writer: it takes the oldest batch,
// writes and syncs it without mu, applies it, and hands the role on. Whoever
// comes while nobody writes takes the role itself.
//
// Invariant: a batch is written only when every batch before it is on disk.
type Log struct {
	o     Options
	store store

	mu        sync.Mutex
	changed   *sync.Cond // with mu: for the background goroutines and Close
	table     *table     // guarded by mu
	queue     []*batch   // guarded by mu; oldest first
	writing   bool       // guarded by mu; somebody has the writer's role
	number    uint64     // guarded by mu; of the next batch that is taken
	err       error      // guarded by mu; the log is broken
	closing   bool       // guarded by mu; nothing new is taken
	abandoned bool       // guarded by mu; err is no news
	stop      bool       // guarded by mu; the background goroutines end
	idle      []*waiter  // guarded by mu; to be used again
	spare     []*batch   // guarded by mu; to be used again

	// Segments beside those of the table.
	ready    *segment   // guarded by mu; prepared, the next one; nil: not yet
	hurry    bool       // guarded by mu; the writer waits for ready
	noSpace  bool       // guarded by mu; preparing failed for want of space
	released []*segment // guarded by mu; not needed any more, and the disk knows
	cleaning bool       // guarded by mu; clean is at work
	cleanDue bool       // guarded by mu
	crowded  bool       // guarded by mu; appends wait for clean

	expected int         // guarded by mu; appends that the next write waits for
	came     *sync.Cond  // with mu: for the writer that waits for them
	enough   *time.Timer // wakes it

	stats Metrics // guarded by mu

	bg    sync.WaitGroup
	later sync.WaitGroup // appends that nobody waits for
}

// batch is what is written at once.
type batch struct {
	buf     []byte // room for the header, then records
	waiters []*waiter
}

// waiter is a goroutine that waits for its batch.
type waiter struct {
	wake chan bool // true: take the writer's role; false: err tells
	err  error
}

// Append adds entries to a group's log, from index first on, and returns when
// they are on disk. They must follow the last one; an empty log begins
// anywhere.
func (l *Log) Append(group uint32, first uint64, e Entries) error {
	return l.AppendExpected(group, first, e, 0)
}

// gatherTime is how long a write waits for appends that are expected.
const gatherTime = time.Millisecond

// Expect says that n appends are about to come, so that they share one sync:
// the next write waits for them, a millisecond at most. Each comes by
// AppendExpected, or is taken back by Forgo.
func (l *Log) Expect(n int) {
	l.mu.Lock()
	l.expected += n
	l.mu.Unlock()
}

// Forgo says that n appends that were expected are not.
func (l *Log) Forgo(n int) {
	l.mu.Lock()
	l.arrivedLocked(n)
	l.mu.Unlock()
}

func (l *Log) arrivedLocked(n int) {
	if n == 0 || l.expected == 0 {
		return
	}
	if l.expected = max(l.expected-n, 0); l.expected == 0 {
		l.came.Signal()
	}
}

// gatherLocked waits for what is expected. Only the writer calls it.
func (l *Log) gatherLocked() {
	if l.expected == 0 {
		return
	}
	begun := time.Now()
	l.enough.Reset(gatherTime)
	for l.expected > 0 {
		if time.Since(begun) >= gatherTime { // they do not come
			l.expected = 0
			break
		}
		l.came.Wait()
	}
	l.enough.Stop()
	l.stats.GatherSeconds += time.Since(begun).Seconds()
}

// AppendExpected is Append of what Expect has announced, as so many appends.
func (l *Log) AppendExpected(group uint32, first uint64, e Entries, expected int) error {
	if e.Len() == 0 {
		return nil
	}
	b, err := l.enqueue(group, first, e, expected)
	if err != nil {
		return err
	}
	return l.waitLocked(b)
}

// AppendLater is AppendExpected that does not wait: done is called once, on a
// goroutine of its own, when the entries are on disk or never will be. Until
// then they are counted in Bounds, and Read does not find them. An error says
// that nothing was taken, and done is not called.
func (l *Log) AppendLater(group uint32, first uint64, e Entries, expected int, done func(error)) error {
	if e.Len() == 0 {
		return errors.New("seglog: nothing to append")
	}
	b, err := l.enqueue(group, first, e, expected)
	if err != nil {
		return err
	}
	w := l.joinLocked(b)
	l.later.Add(1)
	l.mu.Unlock()
	go func() {
		defer l.later.Done()
		done(l.wait(b, w))
	}()
	return nil
}

// enqueue encodes entries into a batch. Unless it fails it returns with mu.
func (l *Log) enqueue(group uint32, first uint64, e Entries, expected int) (*batch, error) {
	n, size := e.Len(), 0
	for i := range n {
		if size += entryHeader + e.Size(i); size > maxAppend {
			return nil, fmt.Errorf("%w: %d entries for group %d are more than %d bytes", ErrTooLarge, n, group, maxAppend)
		}
	}
	l.mu.Lock()
	l.awaitRoomLocked()
	g := l.table.group(group)
	if first == 0 || first > maxIndex-uint64(n) || g.last >= g.first && first != g.last+1 {
		defer l.mu.Unlock()
		return nil, fmt.Errorf("%w: group %d has %d to %d, cannot append %d", ErrGap, group, g.first, g.last, first)
	}
	b, err := l.collectLocked(size)
	if err != nil {
		l.mu.Unlock()
		return nil, err
	}
	if g.last < g.first {
		g.first = first
	}
	g.last = first + uint64(n) - 1
	for i := range n {
		at := len(b.buf)
		b.buf = e.AppendTo(beginEntry(b.buf, recEntry, group, first+uint64(i)), i)
		finishEntry(b.buf, at)
	}
	l.stats.Appends++
	l.arrivedLocked(expected)
	return b, nil
}

// awaitRoomLocked waits for the cleaner while it is too far behind. Only
// entries wait: everything else is small, and the cleaner's own way.
func (l *Log) awaitRoomLocked() {
	if !l.crowded {
		return
	}
	begun := time.Now()
	for l.crowded && l.err == nil && !l.closing {
		l.changed.Wait()
	}
	l.stats.CrowdedSeconds += time.Since(begun).Seconds()
}

// CutFront removes a group's entries up to last. It does not wait: after a
// crash they may be there again, until something that was asked for later is
// on disk.
func (l *Log) CutFront(group uint32, last uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.table.groups[group]
	if g == nil || last < g.first || g.last < g.first {
		return nil
	}
	b, err := l.collectLocked(cutRecord)
	if err != nil {
		return err
	}
	b.buf = appendCut(b.buf, recFront, group, last)
	g.cutting++
	if last >= g.last {
		g.first, g.last = 1, 0
	} else {
		g.first = last + 1
	}
	// So that the space comes back although nothing more may be written.
	l.cleanDue = true
	l.changed.Broadcast()
	return nil
}

// CutBack removes a group's entries from index first on, and returns when that
// is on disk.
func (l *Log) CutBack(group uint32, first uint64) error {
	l.mu.Lock()
	g := l.table.groups[group]
	if g == nil || first > g.last || g.last < g.first {
		l.mu.Unlock()
		return nil
	}
	b, err := l.collectLocked(cutRecord)
	if err != nil {
		l.mu.Unlock()
		return err
	}
	b.buf = appendCut(b.buf, recBack, group, first)
	g.cutting++
	if first <= g.first {
		g.first, g.last = 1, 0
	} else {
		g.last = first - 1
	}
	return l.waitLocked(b)
}

// Update changes records, all or none of them, and returns when that is on
// disk.
func (l *Log) Update(changes ...Change) error {
	size := 0
	for _, c := range changes {
		if len(c.Value) > maxValue {
			return fmt.Errorf("%w: a record of %d bytes, the limit is %d", ErrTooLarge, len(c.Value), maxValue)
		}
		size += setHeader + len(c.Value)
	}
	l.mu.Lock()
	b, err := l.collectLocked(size)
	if err != nil {
		l.mu.Unlock()
		return err
	}
	for _, c := range changes {
		l.changeLocked(b, c)
	}
	return l.waitLocked(b)
}

func (l *Log) changeLocked(b *batch, c Change) {
	k := l.table.keys[c.Key]
	if c.Value == nil {
		if k != nil && k.value != nil {
			k.value = nil
			b.buf = appendDelete(b.buf, c.Key)
		}
		return
	}
	if k == nil {
		k = &keyed{}
		l.table.keys[c.Key] = k
	}
	k.value = append(make([]byte, 0, len(c.Value)), c.Value...)
	b.buf = appendSet(b.buf, c.Key, c.Value)
}

// Get is the record under a key; nil if there is none. It must not be changed.
func (l *Log) Get(k Key) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.table.keys[k]; r != nil {
		return r.value
	}
	return nil
}

// Groups are the groups that have a record of a kind, in order.
func (l *Log) Groups(kind byte) []uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []uint32
	for k, r := range l.table.keys {
		if k.Kind == kind && r.value != nil {
			ids = append(ids, k.Group)
		}
	}
	slices.Sort(ids)
	return ids
}

// Bounds are the first and the last index of a group's log; 0 and 0 if it is
// empty.
func (l *Log) Bounds(group uint32) (first, last uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.table.groups[group]
	if g == nil || g.last < g.first {
		return 0, 0
	}
	return g.first, g.last
}

// Used is how much disk the segments take that hold something.
func (l *Log) Used() (bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.table.segs {
		bytes += s.bytes
	}
	return bytes
}

// Recent is the index from which on all entries of a group lie in the newest
// bytes of the log, as it lies on disk; one above the last if none does. What
// is below keeps older segments.
func (l *Log) Recent(group uint32, bytes int64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.recent(group, bytes)
}

// Short is the index from which on a group's entries have no more than bytes
// together; one above the last if the last has more.
func (l *Log) Short(group uint32, bytes int64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.short(group, bytes)
}

// Read reads an entry. The bytes are the caller's.
func (l *Log) Read(group uint32, index uint64) ([]byte, error) {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		return nil, ErrClosed
	}
	s, p, ok := l.table.find(group, index)
	l.mu.Unlock()
	if !ok {
		return nil, ErrNotFound
	}
	b, ok, err := s.read(group, index, p)
	if err != nil {
		return nil, err
	}
	if ok {
		return b, nil
	}
	// Its segment went. Either it was deleted, or it was carried forward.
	l.mu.Lock()
	again, _, ok := l.table.find(group, index)
	l.mu.Unlock()
	if !ok || again == s {
		return nil, ErrNotFound
	}
	return l.Read(group, index)
}

// collectLocked is the batch that collects, with room for size bytes.
func (l *Log) collectLocked(size int) (*batch, error) {
	if l.err != nil {
		return nil, l.err
	}
	if l.closing {
		return nil, ErrClosed
	}
	return l.batchLocked(size), nil
}

func (l *Log) batchLocked(size int) *batch {
	if n := len(l.queue); n > 0 {
		b := l.queue[n-1]
		if len(b.buf)+size <= maxBatch || len(b.buf) == batchHeader {
			b.buf = slices.Grow(b.buf, size)
			return b
		}
	}
	b := &batch{}
	if n := len(l.spare); n > 0 {
		b, l.spare = l.spare[n-1], l.spare[:n-1]
	}
	b.buf = slices.Grow(b.buf, batchHeader+size)[:batchHeader]
	l.queue = append(l.queue, b)
	return b
}

// waitLocked returns when b is on disk, without mu.
func (l *Log) waitLocked(b *batch) error {
	w := l.joinLocked(b)
	if w == nil {
		return l.writeLocked(b)
	}
	l.mu.Unlock()
	return l.wait(b, w)
}

// joinLocked makes somebody wait for b. Nil: who waits has the writer's role.
func (l *Log) joinLocked(b *batch) (w *waiter) {
	if !l.writing {
		l.writing = true
		return nil
	}
	if n := len(l.idle); n > 0 {
		w, l.idle = l.idle[n-1], l.idle[:n-1]
	} else {
		w = &waiter{wake: make(chan bool, 1)}
	}
	b.waiters = append(b.waiters, w)
	return w
}

// wait is the rest of waitLocked, for who has joined.
func (l *Log) wait(b *batch, w *waiter) error {
	if w == nil {
		l.mu.Lock()
		return l.writeLocked(b)
	}
	lead := <-w.wake
	err := w.err
	w.err = nil
	l.mu.Lock()
	l.idle = append(l.idle, w)
	if lead {
		return l.writeLocked(b)
	}
	l.mu.Unlock()
	return err
}

// writeLocked is the writer's role until own is on disk. It begins with mu and
// the role and ends without.
func (l *Log) writeLocked(own *batch) error {
	for {
		l.gatherLocked()
		if l.err != nil { // the batches were told
			err := l.err
			l.writing = false
			l.changed.Broadcast()
			l.mu.Unlock()
			return err
		}
		b := l.queue[0]
		l.queue = slices.Delete(l.queue, 0, 1)
		if err := l.writeBatchLocked(b); err != nil {
			l.queue = slices.Insert(l.queue, 0, b)
			l.writing = false
			l.failLocked(err)
			return err
		}
		for _, w := range b.waiters {
			w.wake <- false
		}
		done := b == own
		if cap(b.buf) <= keepBuffer && len(l.spare) < 2 { // one is written while one collects
			clear(b.waiters)
			b.waiters, b.buf = b.waiters[:0], b.buf[:0]
			l.spare = append(l.spare, b)
		}
		if done {
			break
		}
	}
	l.handOnLocked()
	l.mu.Unlock()
	return nil
}

// handOnLocked gives the writer's role to one who waits, the last to be woken
// and so the first to run.
func (l *Log) handOnLocked() {
	for _, b := range l.queue {
		if n := len(b.waiters); n > 0 {
			w := b.waiters[0]
			b.waiters = slices.Delete(b.waiters, 0, 1)
			w.wake <- true
			return
		}
	}
	l.writing = false
	if l.closing {
		l.changed.Broadcast()
	}
}

// writeBatchLocked writes, syncs and applies a batch. Only the writer calls
// it; mu is not held while the disk works.
func (l *Log) writeBatchLocked(b *batch) error {
	n := len(b.buf)
	size := blocks(int64(n))
	seg := l.table.segs[len(l.table.segs)-1]
	// A batch that is larger than a segment grows one that is empty.
	if seg.end+size > seg.bytes && seg.end > block {
		var err error
		if seg, err = l.switchLocked(); err != nil {
			return err
		}
	}
	number, low := l.number, l.table.segs[0].number
	l.number++
	l.mu.Unlock()

	begun := time.Now()
	sealBatch(b.buf, seg.seed, number, low)
	b.buf = append(b.buf, noBytes[:size-int64(n)]...)
	_, err := seg.file.WriteAt(b.buf, seg.end)
	if err == nil {
		if !mutant.On(mutant.LogUnsynced) {
			err = seg.file.SyncData()
		}
	}
	took := time.Since(begun)

	l.mu.Lock()
	if err != nil {
		return fmt.Errorf("seglog: write %s: %w", seg.path, err)
	}
	if err := l.table.apply(seg, seg.end+batchHeader, b.buf[batchHeader:n]); err != nil {
		return fmt.Errorf("seglog: %s at %d: %w", seg.path, seg.end, err)
	}
	seg.end += size
	seg.bytes = max(seg.bytes, seg.end)
	l.stats.Batches++
	l.stats.WrittenBytes += size
	l.stats.WriteSeconds += took.Seconds()
	l.stats.SlowestSeconds = max(l.stats.SlowestSeconds, took.Seconds())
	if s := l.table.segs[0]; s != seg && s.live == 0 {
		l.cleanDue = true
		l.changed.Broadcast()
	}
	return nil
}

var noBytes [block]byte

// switchLocked goes on to the next segment.
func (l *Log) switchLocked() (*segment, error) {
	begun := time.Now()
	for l.ready == nil && l.err == nil {
		l.hurry = true
		l.changed.Broadcast()
		l.changed.Wait()
	}
	l.hurry = false
	if l.err != nil {
		return nil, l.err
	}
	seg := l.ready
	l.ready = nil
	l.table.segs = append(l.table.segs, seg)
	l.stats.Switches++
	l.stats.SwitchSeconds += time.Since(begun).Seconds()
	l.cleanDue = true
	l.measureLocked() // also wakes who prepares the next
	return seg, nil
}

// failLocked breaks the log for good, wakes everybody, and lets go of mu.
func (l *Log) failLocked(err error) {
	first := l.err == nil
	if first {
		l.err = err
	}
	l.dropQueueLocked()
	l.mu.Unlock()
	if first && l.o.Fatal != nil {
		l.o.Fatal(err)
	}
}

// dropQueueLocked tells everybody that the log is broken.
func (l *Log) dropQueueLocked() {
	for _, b := range l.queue {
		for _, w := range b.waiters {
			w.err = l.err
			w.wake <- false
		}
	}
	l.queue = nil
	l.changed.Broadcast()
}

// barrier returns when everything that was asked for before is on disk.
func (l *Log) barrier() error {
	l.mu.Lock()
	b, err := l.collectLocked(0)
	if err != nil {
		l.mu.Unlock()
		return err
	}
	return l.waitLocked(b)
}

// Abandon breaks the log, so that nothing is written any more. Close may be
// called then.
func (l *Log) Abandon() {
	l.mu.Lock()
	l.abandoned = true
	if l.err == nil {
		l.err = errors.New("seglog: abandoned")
	}
	l.dropQueueLocked()
	l.mu.Unlock()
}

// Close ends the log. What was asked for is on disk when it returns.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		return ErrClosed
	}
	l.closing = true
	l.changed.Broadcast()
	for l.writing {
		l.changed.Wait()
	}
	// A last batch: with it, damage to any batch before is told from one that
	// was torn.
	err := l.err
	if err == nil {
		l.writing = true
		err = l.writeLocked(l.batchLocked(0))
		l.mu.Lock()
	}
	if l.abandoned {
		err = nil // everybody knows
	}
	l.stop = true
	l.changed.Broadcast()
	l.mu.Unlock()
	l.bg.Wait()
	l.later.Wait()
	l.enough.Stop()
	return errors.Join(err, l.closeFiles())
}

func (l *Log) closeFiles() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	all := append(slices.Clone(l.table.segs), l.released...)
	if l.ready != nil {
		all = append(all, l.ready)
	}
	for _, s := range all {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}
