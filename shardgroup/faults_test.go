package shardgroup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/seglog"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// increment is one $inc, retried under one request ID until it is known to
// have been done.
func (c *cluster) increment(ctx context.Context, g placement.GroupID, id string) error {
	cmd := write(wire.OpUpsert, id, raw(c.t, map[string]any{"$inc": map[string]any{"n": 1}}))
	for {
		var l *Group
		for _, n := range c.order {
			if gr := c.group(n, g); gr != nil && gr.IsLeader() {
				l = gr
			}
		}
		if l != nil {
			try, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			r, err := l.Propose(try, cmd)
			cancel()
			if err == nil {
				if r.Wire.Error != nil {
					return r.Wire.Error
				}
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Leaders are killed under load; every acknowledged increment happened, once.
func TestExactlyOnceUnderLeaderKill(t *testing.T) {
	c := seeded(t, 3, 1, nil)
	ctx := ctxFor(t, 60*time.Second)
	const clients = 8
	var done [clients]atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := c.increment(ctx, 1, fmt.Sprintf("counter-%d", i%4)); err != nil {
					t.Errorf("increment: %v", err)
					return
				}
				done[i].Add(1)
			}
		}()
	}
	progress := func() {
		before := done[0].Load()
		c.wait("progress", func() bool { return done[0].Load() >= before+5 })
	}
	for range 3 {
		progress()
		l := c.leader(1)
		n := c.stop(l.host.cfg.NodeID)
		progress()
		c.restart(n)
	}
	progress()
	close(stop)
	wg.Wait()
	c.equal(1)
	l := c.leader(1)
	if err := l.ReadIndex(ctx); err != nil {
		t.Fatal(err)
	}
	for k := range 4 {
		want := int64(0)
		for i := range clients {
			if i%4 == k {
				want += done[i].Load()
			}
		}
		d, err := read(t, l.Machine(), fmt.Sprintf("counter-%d", k), fsm.At{})
		if err != nil {
			t.Fatal(err)
		}
		var v struct {
			N int64 `idb:"n"`
		}
		if err := doc.Raw(d.Body).Decode(&v); err != nil {
			t.Fatal(err)
		}
		if v.N != want || int64(d.Version) != want {
			t.Errorf("counter-%d is %d at version %d, %d increments were acknowledged", k, v.N, d.Version, want)
		}
	}
}

// smallSnapshots makes groups truncate their logs early.
func smallSnapshots(_ placement.NodeID, c *Config) {
	c.SnapshotEntries, c.TrailingEntries = 20, 5
}

// outgrow writes until the leader's log no longer reaches back to index.
func (c *cluster) outgrow(g placement.GroupID, index uint64) {
	c.t.Helper()
	body := raw(c.t, map[string]any{"pad": strings.Repeat("p", 2000)})
	i := 0
	c.wait("the log to be truncated", func() bool {
		for range 30 {
			i++
			c.must(g, write(wire.OpPut, fmt.Sprintf("fill-%d", i%500), body))
		}
		first, _ := c.leader(g).logs.FirstIndex()
		return first > index+1
	})
}

// A follower that was away for long gets a snapshot, while writes go on, and
// ends up equal; also when it crashes at each step of the install.
func TestSnapshotInstall(t *testing.T) {
	c := seeded(t, 3, 2, smallSnapshots)
	c.must(1, write(wire.OpPut, "a", raw(t, map[string]any{"v": 1})))
	c.must(2, write(wire.OpPut, "other", raw(t, map[string]any{"v": 1})))
	c.equal(1)
	away := c.stop("n3")
	c.outgrow(1, 60)
	last := c.leader(1).raft.LastIndex()
	c.restart(away)
	c.wait("the snapshot to be installed", func() bool {
		g := c.group("n3", 1)
		return g.snaps.marker().index >= last-25 && g.applied.load() >= last
	})
	c.equal(1)
	c.equal(2)
	g := c.group("n3", 1)
	if first, _ := g.logs.FirstIndex(); first != 0 && first <= 30 {
		t.Errorf("log of n3 still begins at %d, below the installed snapshot", first)
	}
	if names, err := g.host.cfg.FS.List(g.host.cfg.path("install")); err != nil || len(names) != 0 {
		t.Errorf("left after the install: %v %v", names, err)
	}
	// And again from disk.
	c.restart(c.stop("n3"))
	c.must(1, write(wire.OpPut, "after", raw(t, map[string]any{"v": 2})))
	c.equal(1)
}

var errKilled = errors.New("killed")

// TestSnapshotInstallCrash rebuilds by hand what a crash leaves on disk at
// each step of an install, and starts the replica from there.
func TestSnapshotInstallCrash(t *testing.T) {
	for _, step := range []string{"tables half written", "tables complete", "pending recorded", "log removed", "tables ingested"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			c := seeded(t, 3, 1, smallSnapshots)
			c.must(1, write(wire.OpPut, "a", raw(t, map[string]any{"v": 1})))
			c.equal(1)
			away := c.stop("n3")
			c.outgrow(1, 60)

			// The leader's snapshot, as it would be sent.
			l := c.leader(1)
			list, err := l.snaps.List()
			if err != nil || len(list) != 1 {
				t.Fatalf("snapshots of the leader: %v %v", list, err)
			}
			meta, rd, err := l.snaps.Open(list[0].ID)
			if err != nil {
				t.Fatal(err)
			}
			defer rd.Close()
			export := rd.(*exportReader).export

			// What the crashed process had done.
			logs := openTestLogAt(t, filepath.Join(away.dir, "log"))
			state, err := mvcc.OpenEngine(filepath.Join(away.dir, "state"), mvcc.EngineOptions{})
			if err != nil {
				t.Fatal(err)
			}
			m, err := fsm.Open(fsm.Options{Group: 1, Engine: state})
			if err != nil {
				t.Fatal(err)
			}
			before := m.Applied()
			const name = "g1-999-1"
			dir := filepath.Join(away.dir, "install", name)
			im, err := m.NewImporter(dir)
			if err != nil {
				t.Fatal(err)
			}
			mark := marker{index: meta.Index, term: meta.Term, applied: export.Applied, conf: meta.Configuration, confIndex: meta.ConfigurationIndex}
			steps := []func() error{
				func() error { // the stream breaks off
					if step != "tables half written" {
						return nil
					}
					_, err := export.WriteTo(&limited{w: im, left: 500})
					if err == nil {
						return errors.New("it did not break off")
					}
					return nil
				},
				func() error {
					if _, err := export.WriteTo(im); err != nil {
						return err
					}
					_, err := im.Finish()
					return err
				},
				func() error {
					return logs.Update(seglog.Change{Key: groupKey(keyPending, 1), Value: encodePending(pendingInstall{marker: mark, dir: name})})
				},
				func() error {
					s := testStore(t, logs, 1)
					return s.DeleteRange(1, s.last)
				},
				func() error {
					imported, err := mvcc.OpenImported(vfs.Default, dir)
					if err != nil {
						return err
					}
					return m.Install(imported)
				},
			}
			upto := map[string]int{"tables half written": 1, "tables complete": 2, "pending recorded": 3, "log removed": 4, "tables ingested": 5}[step]
			for _, s := range steps[:upto] {
				if err := s(); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(logs.Close(), state.Close()); err != nil {
				t.Fatal(err)
			}

			n := c.restart(away)
			g, _ := n.host.Group(1)
			if upto >= 3 && g.Machine().Applied() < export.Applied {
				t.Errorf("the recorded install was not completed: applied %d, snapshot %d", g.Machine().Applied(), export.Applied)
			}
			if upto < 3 && g.snaps.marker().index >= meta.Index && before < meta.Index {
				// It may have been sent again by now; the tables of before must be gone all the same.
				t.Log("installed again already")
			}
			c.equal(1)
			names, err := vfs.Default.List(filepath.Join(away.dir, "install"))
			if err != nil || strings.Contains(strings.Join(names, " "), name) {
				t.Errorf("left in install: %v %v", names, err)
			}
			c.must(1, write(wire.OpPut, "after", raw(t, map[string]any{"v": 2})))
			c.equal(1)
		})
	}
}

type limited struct {
	w    *fsm.Importer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if n, err := l.w.Write(p[:n]); err != nil || l.left > 0 {
		return n, err
	}
	return n, errKilled
}

func openTestLogAt(t *testing.T, dir string) *seglog.Log {
	t.Helper()
	e, err := openNodeLog(vfs.Default, dir, seglog.Options{}, testLogger(), func(err error) { t.Errorf("fatal: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// A full disk refuses writes, moves leadership to where there is space, keeps
// serving reads, and is left behind when space is back.
func TestDiskFull(t *testing.T) {
	var free [4]atomic.Uint64
	const reserve = 100 << 20
	c := seeded(t, 3, 1, func(id placement.NodeID, cfg *Config) {
		i := id[1] - '0'
		free[i].Store(10 * reserve)
		cfg.DiskReserve, cfg.SpaceInterval = reserve, 5*time.Millisecond
		cfg.FreeSpace = func() (uint64, error) { return free[i].Load(), nil }
	})
	body := raw(t, map[string]any{"v": 1})
	l := c.leadBy(1, "n1")
	free[1].Store(reserve / 2)
	c.wait("a refusal", func() bool {
		_, err := l.Propose(ctxFor(t, time.Second), write(wire.OpPut, "a", body))
		var nl *NotLeaderError
		return errors.Is(err, ErrDiskFull) || errors.As(err, &nl)
	})
	c.leader(1, "n1")
	c.must(1, write(wire.OpPut, "b", body))
	c.equal(1) // the full node still takes entries, from its reserve

	// Now there is no room for anybody.
	for i := 1; i <= 3; i++ {
		free[i].Store(reserve / 2)
	}
	l = c.leader(1)
	c.wait("everybody to refuse", func() bool {
		_, err := c.leader(1).Propose(ctxFor(t, time.Second), write(wire.OpPut, "c", body))
		return errors.Is(err, ErrDiskFull)
	})
	l = c.leader(1)
	if err := l.ReadIndex(ctxFor(t, time.Second)); err != nil {
		t.Errorf("reads on a full disk: %v", err)
	}
	term := l.raft.CurrentTerm()

	// One follower is nearly out of space: it takes no entries, and the others
	// go on without it.
	for i := 1; i <= 3; i++ {
		free[i].Store(10 * reserve)
	}
	behind := c.order[0]
	if behind == l.host.cfg.NodeID {
		behind = c.order[1]
	}
	free[behind[1]-'0'].Store(reserve / 8)
	c.wait("the follower to be critical", func() bool { return c.node(behind).host.critical.Load() })
	had, _, _ := c.group(behind, 1).Machine().Count(1)
	for i := range 10 {
		c.must(1, write(wire.OpPut, fmt.Sprintf("d%d", i), body))
	}
	if n, _, _ := c.group(behind, 1).Machine().Count(1); n > had+1 { // one may have been on its way
		t.Errorf("a node without space went from %d to %d documents", had, n)
	}
	free[behind[1]-'0'].Store(10 * reserve)
	c.equal(1)

	// The leader has space and the others do not: no majority could take an
	// entry, and saying so is better than an unknown outcome.
	l = c.leader(1)
	self := l.host.cfg.NodeID
	for i := 1; i <= 3; i++ {
		if i != int(self[1]-'0') {
			free[i].Store(reserve / 8)
		}
	}
	c.wait("the leader to refuse for the others", func() bool {
		_, err := c.leader(1).Propose(ctxFor(t, time.Second), write(wire.OpPut, "e", body))
		var full *DiskFullError
		return errors.As(err, &full) && len(full.Nodes) == 2 && !slices.Contains(full.Nodes, self)
	})
	for i := 1; i <= 3; i++ {
		free[i].Store(10 * reserve)
	}
	c.must(1, write(wire.OpPut, "f", body))
	c.equal(1)
	if now := c.leader(1).raft.CurrentTerm(); now != term {
		t.Logf("term went from %d to %d", term, now) // a handover at most
	}
	for _, id := range c.order {
		if err := c.node(id).host.Err(); err != nil {
			t.Errorf("%s ended: %v", id, err)
		}
	}
}

// blockingFS holds up every sync while it is told to.
type blockingFS struct {
	gate atomic.Pointer[chan struct{}]
}

func (f *blockingFS) MaybeError(op errorfs.Op) error {
	switch op.Kind {
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo, errorfs.OpFileWrite, errorfs.OpFileWriteAt:
		if g := f.gate.Load(); g != nil {
			<-*g
		}
	}
	return nil
}

func (f *blockingFS) String() string { return "block" }

// A leader whose disk hangs is ended by the watchdog and replaced, although
// its heartbeats would have gone on.
func TestWatchdogEndsStalledNode(t *testing.T) {
	var block blockingFS
	c := seeded(t, 3, 1, func(id placement.NodeID, cfg *Config) {
		cfg.StallLimit, cfg.ProbeInterval = 400*time.Millisecond, 20*time.Millisecond
		if id == "n1" {
			cfg.FS = errorfs.Wrap(vfs.Default, &block)
		}
	})
	l := c.leadBy(1, "n1")
	body := raw(t, map[string]any{"v": 1})
	c.must(1, write(wire.OpPut, "a", body))

	gate := make(chan struct{})
	block.gate.Store(&gate)
	result := make(chan error, 1)
	go func() {
		_, err := l.Propose(ctxFor(t, 10*time.Second), write(wire.OpPut, "stuck", body))
		result <- err
	}()
	select {
	case err := <-c.node("n1").fatal:
		if !strings.Contains(err.Error(), "stalls") {
			t.Errorf("fatal: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the watchdog did not notice")
	}
	if _, err := l.Propose(ctxFor(t, time.Second), write(wire.OpPut, "b", body)); !errors.Is(err, ErrStopped) {
		t.Errorf("propose after fatal: %v", err)
	}
	if err := l.ReadIndex(ctxFor(t, time.Second)); !errors.Is(err, ErrStopped) {
		t.Errorf("read after fatal: %v", err)
	}
	c.leader(1, "n1")
	c.must(1, write(wire.OpPut, "c", body))
	block.gate.Store(nil)
	close(gate)
	c.stop("n1")
	if err := <-result; !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("the proposal that was stuck: %v", err)
	}
}

// failingFS fails syncs when told to.
type failingFS struct{ fail atomic.Bool }

func (f *failingFS) MaybeError(op errorfs.Op) error {
	switch op.Kind {
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
		if f.fail.Load() {
			return errors.New("input/output error")
		}
	}
	return nil
}

func (f *failingFS) String() string { return "fail" }

// A sync that fails ends the node, and nothing of what it then believes gets
// out.
func TestSyncErrorEndsNode(t *testing.T) {
	var fail failingFS
	c := seeded(t, 3, 1, func(id placement.NodeID, cfg *Config) {
		if id == "n1" {
			cfg.FS = errorfs.Wrap(vfs.Default, &fail)
		}
	})
	l := c.leadBy(1, "n1")
	body := raw(t, map[string]any{"v": 1})
	fail.fail.Store(true)
	_, err := l.Propose(ctxFor(t, 2*time.Second), write(wire.OpPut, "a", body))
	if err == nil {
		t.Error("a write was acknowledged by a leader whose disk failed")
	}
	select {
	case <-c.node("n1").fatal:
	case <-time.After(5 * time.Second):
		t.Fatal("the node was not ended")
	}
	c.leader(1, "n1")
	c.must(1, write(wire.OpPut, "b", body))
}

// A replica whose state differs from the leader's halts, and the others go on.
func TestDigestMismatchHalts(t *testing.T) {
	c := seeded(t, 3, 1, func(_ placement.NodeID, cfg *Config) { cfg.DigestEvery = 5 })
	l := c.leadBy(1, "n1")
	body := raw(t, map[string]any{"v": 1})
	c.must(1, write(wire.OpPut, "a", body))
	c.equal(1)
	// The leader says that replicas had another digest than they had; n1 would
	// halt too, so only n3 is told: its machine gets an entry of its own.
	g := c.group("n3", 1)
	at := g.Machine().Applied()
	d := g.Machine().DigestCommand()
	d.Digest.Value++
	data, err := fsm.AppendEntry(nil, []fsm.Command{d})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Machine().Apply([]fsm.Entry{{Index: at + 1, Term: 1, Data: data}}); err == nil {
		t.Fatal("the machine took a wrong digest")
	}
	c.must(1, write(wire.OpPut, "b", body))
	select {
	case h := <-c.node("n3").halts:
		if h.Group != 1 {
			t.Errorf("halted: %v", h)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("n3 did not halt")
	}
	var h *HaltError
	if _, err := g.Propose(ctxFor(t, time.Second), write(wire.OpPut, "x", body)); !errors.As(err, &h) {
		t.Errorf("propose at the halted replica: %v", err)
	}
	if s := g.Status(); s.State != "stopped" || s.Error == "" {
		t.Errorf("status of the halted replica: %+v", s)
	}
	if c.node("n3").host.Err() != nil {
		t.Errorf("the node ended with its replica: %v", c.node("n3").host.Err())
	}
	c.must(1, write(wire.OpPut, "c", body))
	_ = l
}

// Digests are compared without anybody asking.
func TestDigestsAreCompared(t *testing.T) {
	c := seeded(t, 3, 1, func(_ placement.NodeID, cfg *Config) { cfg.DigestEvery = 5 })
	body := raw(t, map[string]any{"v": 1})
	for i := range 20 {
		c.must(1, write(wire.OpPut, fmt.Sprintf("d%d", i), body))
	}
	l := c.leader(1)
	c.wait("a digest entry", func() bool {
		return l.keeper.compared.Load() > 0
	})
	c.equal(1)
}

// What a leader promised to a reader its successor keeps.
func TestReadAtPromise(t *testing.T) {
	c := seeded(t, 3, 1, nil)
	l := c.leadBy(1, "n1")
	put := func(v int) fsm.Result {
		return c.must(1, write(wire.OpPut, "a", raw(t, map[string]any{"v": v})))
	}
	put(1)
	// A promise in the future of every clock.
	ts := l.host.cfg.Clock.Now().Add(time.Hour)
	if err := l.ReadAt(ctxFor(t, 2*time.Second), ts); err != nil {
		t.Fatal(err)
	}
	if r := put(2); hlc.Timestamp(r.Wire.Time) <= ts {
		t.Errorf("the leader itself wrote at %v after promising %v", hlc.Timestamp(r.Wire.Time), ts)
	}
	later := l.host.cfg.Clock.Now().Add(2 * time.Hour)
	if err := l.ReadAt(ctxFor(t, 2*time.Second), later); err != nil {
		t.Fatal(err)
	}
	first, err := read(t, l.Machine(), "a", fsm.At{Time: later})
	if err != nil {
		t.Fatal(err)
	}
	n := c.stop("n1")
	next := c.leader(1, "n1")
	if r := put(3); hlc.Timestamp(r.Wire.Time) <= later {
		t.Errorf("the new leader wrote at %v, the old one had promised %v", hlc.Timestamp(r.Wire.Time), later)
	}
	again, err := read(t, next.Machine(), "a", fsm.At{Time: later})
	if err != nil || again.Version != first.Version {
		t.Errorf("read at %v: version %d before, %d after the change of leaders (%v)", later, first.Version, again.Version, err)
	}
	c.restart(n)

	// Reads and writes race; a read at T sees the same whenever it looks.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for v := 10; ; v++ {
			select {
			case <-stop:
				return
			default:
			}
			_, _ = next.Propose(ctxFor(t, time.Second), write(wire.OpPut, "a", raw(t, map[string]any{"v": v}))) // some may fail
		}
	}()
	for range 30 {
		ts, err := next.Clock(ctxFor(t, 2*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		pending, err := next.BeginRead([]fsm.ReadKey{{Epoch: 1, Collection: 1, ID: "a"}}, ts.Add(time.Millisecond))
		if err == nil {
			err = pending.Wait(ctxFor(t, 2*time.Second))
		}
		if err != nil {
			t.Fatal(err)
		}
		ts = ts.Add(time.Millisecond)
		d1, err1 := read(t, next.Machine(), "a", fsm.At{Time: ts})
		if err := next.ReadIndex(ctxFor(t, 2*time.Second)); err != nil {
			t.Fatal(err)
		}
		d2, err2 := read(t, next.Machine(), "a", fsm.At{Time: ts})
		if err1 != nil || err2 != nil || d1.Version != d2.Version {
			t.Errorf("read at %v: version %d, then %d (%v %v)", ts, d1.Version, d2.Version, err1, err2)
		}
	}
	close(stop)
	wg.Wait()
}

// A read at a timestamp waits for what is on its way to the documents that it
// reads, and for nothing else.
func TestReadAtWaitsForItsDocuments(t *testing.T) {
	c := seeded(t, 1, 1, nil)
	l := c.leader(1)
	ts := l.host.cfg.Clock.Now().Add(time.Second)
	if err := l.ReadAt(ctxFor(t, 2*time.Second), ts); err != nil { // the ceiling
		t.Fatal(err)
	}
	ts = ts.Add(100 * time.Millisecond)
	docs := func(ids ...string) (keys []fsm.ReadKey) {
		for _, id := range ids {
			keys = append(keys, fsm.ReadKey{Epoch: 1, Collection: 1, ID: id})
		}
		return keys
	}
	part := func(id string) txn.Part { return txn.Part{Writes: []txn.Write{{Collection: 1, ID: id}}} }
	fly := func(at hlc.Timestamp, c fsm.Command) *batch {
		c.Time = at
		w := &waiter{done: make(chan struct{})}
		w.left.Store(1)
		bt := &batch{term: l.ready.Load(), since: time.Now(), props: []*proposal{{cmd: c, out: &Outcome{}, w: w}}}
		l.batcher.mu.Lock()
		defer l.batcher.mu.Unlock()
		l.batcher.flying = append(l.batcher.flying, bt)
		l.batcher.memory.Send()
		return bt
	}
	begin := func(keys []fsm.ReadKey, at hlc.Timestamp) Pending {
		t.Helper()
		p, err := l.BeginRead(keys, at)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for name, x := range map[string]struct {
		command fsm.Command
		waits   bool
	}{
		"write":     {write(wire.OpPut, "a", nil), true},
		"prepare":   {fsm.Command{Txn: &fsm.Txn{Prepare: &fsm.Prepare{Part: part("a")}}}, true},
		"decide":    {fsm.Command{Txn: &fsm.Txn{Decide: &fsm.Decide{Part: part("a")}}}, true},
		"commit":    {fsm.Command{Txn: &fsm.Txn{Commit: &fsm.Commit{Parts: []fsm.PartitionPart{{Part: part("z")}, {Part: part("a")}}}}}, true},
		"drop":      {fsm.Command{Drop: &fsm.Drop{Collection: 1}}, true},
		"own":       {fsm.Command{Own: &fsm.Own{Epoch: 2}}, true},
		"resolve":   {fsm.Command{Txn: &fsm.Txn{Resolve: &fsm.Resolve{Commit: true}}}, false},
		"ceiling":   {fsm.Command{Ceiling: &fsm.Ceiling{}}, false},
		"read":      {fsm.Command{Txn: &fsm.Txn{Prepare: &fsm.Prepare{Part: txn.Part{Reads: []txn.Read{{Collection: 1, ID: "a"}}}}}}, false},
		"elsewhere": {fsm.Command{Txn: &fsm.Txn{Partition: 1, Prepare: &fsm.Prepare{Part: part("a")}}}, false},
	} {
		first := fly(ts, x.command)
		second := fly(ts.Add(time.Millisecond), write(wire.OpPut, "b", nil))
		last := ts.Add(2 * time.Millisecond)
		if p := begin(docs("c"), last); !p.Ready() && name != "own" && name != "drop" {
			t.Errorf("%s: a read of another document waits", name)
		}
		if p := begin(docs("c", "a"), ts-1); !p.Ready() {
			t.Errorf("%s: a read below what is on its way waits", name)
		}
		p := begin(docs("c", "a"), last)
		if p.Ready() == x.waits {
			t.Errorf("%s: the read waits: %v", name, !p.Ready())
		}
		both := begin(docs("b"), last)
		late, done := context.WithTimeout(context.Background(), time.Millisecond)
		if err := both.Wait(late); !errors.Is(err, ErrTimeout) {
			t.Errorf("%s: a read of the second entry's document: %v", name, err)
		}
		done()
		l.batcher.landed(first, []fsm.Result{{}}, nil)
		if err := p.Wait(ctxFor(t, 10*time.Second)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		p = begin(docs("b"), last)
		l.batcher.landed(second, []fsm.Result{{}}, nil)
		if err := p.Wait(ctxFor(t, 10*time.Second)); err != nil {
			t.Errorf("%s: the second entry has landed: %v", name, err)
		}
	}
	// What nobody waits for any more is its caller's again, and not looked at.
	gone := fly(ts, write(wire.OpPut, "z", nil))
	l.batcher.expire(time.Now().Add(time.Hour), time.Second)
	p := begin(docs("c"), ts)
	if p.Ready() {
		t.Error("a read does not wait for an entry whose callers were told that its outcome is unknown")
	}
	l.batcher.landed(gone, nil, raft.ErrLeadershipLost)
	var nl *NotLeaderError
	if err := p.Wait(ctxFor(t, 10*time.Second)); !errors.As(err, &nl) {
		t.Errorf("promised beside an entry that may yet be applied: %v", err)
	}
	if _, err := l.BeginRead(docs("c"), ts); !errors.As(err, &nl) {
		t.Errorf("promised, of another document, after an entry was lost: %v", err)
	}
}

// A leader that has lost an entry is being deposed, though it has not noticed
// yet: the entry may still be committed, with a timestamp below the floor. A
// reader that was promised that time would not have seen it.
func TestNoPromiseBesideLostEntry(t *testing.T) {
	c := seeded(t, 3, 1, nil)
	l := c.leader(1)
	ts, err := l.Clock(ctxFor(t, 2*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.ReadAt(ctxFor(t, 2*time.Second), ts); err != nil {
		t.Fatal(err)
	}
	lost := &batch{term: l.ready.Load(), since: time.Now()}
	l.batcher.mu.Lock()
	l.batcher.memory.Send()
	l.batcher.mu.Unlock()
	l.batcher.landed(lost, nil, raft.ErrLeadershipLost)
	var nl *NotLeaderError
	if err := l.ReadAt(ctxFor(t, 2*time.Second), ts); !errors.As(err, &nl) {
		t.Errorf("promised beside an entry that may yet be applied: %v", err)
	}
}

// A queue that is full refuses; what was taken is done.
func TestOverload(t *testing.T) {
	c := seeded(t, 3, 1, func(_ placement.NodeID, cfg *Config) { cfg.QueueCommands = 50 })
	l := c.leader(1)
	body := raw(t, map[string]any{"v": 1})
	var cmds []fsm.Command
	for i := range 5000 {
		cmds = append(cmds, write(wire.OpPut, fmt.Sprintf("d%d", i), body))
	}
	ok, refused := 0, 0
	for _, o := range l.ProposeMany(ctxFor(t, 10*time.Second), cmds) {
		switch {
		case o.Err == nil && o.Result.Wire.Error == nil:
			ok++
		case errors.Is(o.Err, ErrOverloaded):
			refused++
		default:
			t.Fatalf("outcome: %+v", o)
		}
	}
	if ok < 50 || refused == 0 {
		t.Errorf("%d done, %d refused", ok, refused)
	}
	if err := l.ReadIndex(ctxFor(t, 2*time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := l.Machine().Count(1); n != uint64(ok) {
		t.Errorf("%d documents, %d were acknowledged", n, ok)
	}
	// A command that cannot be packed spoils no other.
	outs := l.ProposeMany(ctxFor(t, 2*time.Second), []fsm.Command{write(wire.OpPut, "fine", body), {}, write(wire.OpPut, "fine too", body)})
	if outs[0].Err != nil || outs[1].Err == nil || outs[2].Err != nil {
		t.Errorf("outcomes beside a bad command: %v %v %v", outs[0].Err, outs[1].Err, outs[2].Err)
	}
}

// Without a majority a proposal's outcome is unknown after a while, and a read
// is refused, never answered.
func TestNoMajority(t *testing.T) {
	c := seeded(t, 3, 1, func(_ placement.NodeID, cfg *Config) { cfg.ProposalTimeout = 300 * time.Millisecond })
	l := c.leadBy(1, "n1")
	c.stop("n2")
	c.stop("n3")
	_, err := l.Propose(ctxFor(t, 5*time.Second), write(wire.OpPut, "a", raw(t, map[string]any{"v": 1})))
	var nl *NotLeaderError
	if !errors.Is(err, ErrOutcomeUnknown) && !errors.As(err, &nl) {
		t.Errorf("propose: %v", err)
	}
	if err := l.ReadIndex(ctxFor(t, 2*time.Second)); err == nil {
		t.Error("a read was confirmed without a majority")
	}
}

// An entry that was proposed in another term than the one it got is dropped by
// every replica, and its proposer learns that nothing was done.
func TestEntryOfAnotherTermIsDropped(t *testing.T) {
	c := seeded(t, 3, 1, nil)
	l := c.leader(1)
	data, err := fsm.AppendEntry(nil, []fsm.Command{write(wire.OpPut, "ghost", raw(t, map[string]any{"v": 1}))})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan any, 1)
	if !l.propose(data, l.raft.CurrentTerm()-1, func(answer any, err error) {
		if err != nil {
			answer = err
		}
		done <- answer
	}) {
		t.Fatal("not proposed")
	}
	if a := <-done; a != errVoid {
		t.Errorf("answer: %v", a)
	}
	c.must(1, write(wire.OpPut, "real", raw(t, map[string]any{"v": 1})))
	c.equal(1)
	for _, id := range c.order {
		if n, _, _ := c.group(id, 1).Machine().Count(1); n != 1 {
			t.Errorf("%s has %d documents", id, n)
		}
	}
}

// Leadership goes to the preferred member, and back to it.
func TestPreferredLeader(t *testing.T) {
	c := newCluster(t, 3, 0, nil)
	s := GroupSpec{ID: 7, Preferred: "n2"}
	for _, id := range c.order {
		s.Members = append(s.Members, Member{Node: id, Incarnation: "1"})
	}
	for _, id := range c.order {
		if _, err := c.node(id).host.StartGroup(s); err != nil {
			t.Fatal(err)
		}
	}
	if l := c.leader(7); l.host.cfg.NodeID != "n2" {
		t.Errorf("%s was elected before the preferred n2 had its turn", l.host.cfg.NodeID)
	}
	ctx := ctxFor(t, 5*time.Second)
	if err := c.leader(7).TransferLeadership(ctx, "n3"); err != nil {
		t.Fatal(err)
	}
	l := c.leader(7, "n2")
	l.keeper.hurry.Store(true)
	c.wait("n2 to lead again", func() bool { return c.group("n2", 7).IsLeader() })
}

// Whom a group prefers can change while it runs, and is remembered.
func TestPreferAnother(t *testing.T) {
	c := newCluster(t, 3, 0, patient)
	for _, id := range c.order {
		if _, err := c.node(id).host.StartGroup(preferN2(c)); err != nil {
			t.Fatal(err)
		}
	}
	l := c.leader(7)
	for _, id := range c.order {
		for range 2 { // saying it again changes nothing
			if err := c.group(id, 7).Prefer("n3"); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.keeper.hurry.Store(true)
	c.wait("n3 to lead", func() bool { return c.group("n3", 7).IsLeader() })
	var stopped []*testNode
	for _, id := range c.order {
		stopped = append(stopped, c.stop(id))
	}
	for _, n := range stopped {
		c.restart(n)
	}
	if l := c.leader(7); l.host.cfg.NodeID != "n3" || l.Preferred() != "n3" {
		t.Errorf("after a restart %s leads and prefers %s; n3 is preferred", l.host.cfg.NodeID, l.Preferred())
	}
}

// Leadership that is offered again and again to a member that does not answer
// does not keep the leader from being one later.
func TestTransferToNobody(t *testing.T) {
	c := seeded(t, 3, 1, nil)
	body := raw(t, map[string]any{"v": 1})
	g := c.leadBy(1, "n1")
	c.must(1, write(wire.OpPut, "a", body))
	c.isolate("n3", true)
	large := raw(t, map[string]any{"pad": strings.Repeat("p", 64<<10)})
	for i := range 200 { // until nothing more is sent to it
		c.must(1, write(wire.OpPut, fmt.Sprint("d", i), large))
	}
	for range 4 {
		if err := g.TransferLeadership(ctxFor(t, 5*time.Second), "n3"); err == nil {
			t.Fatal("n3 took over, which cannot be reached")
		}
	}
	c.isolate("n1", true)
	c.wait("n1 to notice that it is alone", func() bool { return !g.IsLeader() })
	c.isolate("n3", false)
	c.isolate("n1", false)
	c.leadBy(1, "n1")
	if _, err := g.Propose(ctxFor(t, 5*time.Second), write(wire.OpPut, "b", body)); err != nil {
		t.Errorf("a write by n1, which leads again: %v", err)
	}
}
