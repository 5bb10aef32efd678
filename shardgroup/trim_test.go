package shardgroup

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/seglog"
)

// The log of a node stays within its bound, whichever of its groups is written:
// one that is quiet is flushed and cut too. A follower that was away for longer
// than the log reaches is served by a snapshot, and keeps the bound as well.
func TestLogBytes(t *testing.T) {
	const room = 8 << 20
	c := seeded(t, 3, 2, func(_ placement.NodeID, cfg *Config) { cfg.LogBytes = room })
	small, large := raw(t, map[string]any{"v": 1}), raw(t, map[string]any{"pad": strings.Repeat("p", 20<<10)})
	for i := range 2 * maxAppendEntries {
		c.must(2, write(wire.OpPut, fmt.Sprintf("quiet-%d", i), small))
	}
	quiet := c.leader(2).raft.LastIndex()
	c.must(1, write(wire.OpPut, "a", small))
	c.equal(1)
	c.equal(2)
	away := c.stop("n3")
	missed := c.leader(1).raft.LastIndex()
	bounded := func(id placement.NodeID) {
		t.Helper()
		h := c.node(id).host
		c.wait("the log of "+string(id)+" to be trimmed", func() bool { return h.logs.Used() <= room })
	}
	var full, m seglog.Metrics // full: when the log had its size
	for round := range 4 {
		for i := range 400 {
			c.must(1, write(wire.OpPut, fmt.Sprintf("d-%d", (400*round+i)%100), large))
		}
		bounded("n1")
		bounded("n2")
		if m = c.node("n1").host.LogMetrics(); round == 0 {
			full = m
		}
	}
	// What is freed is used again: the steps are not larger than what is kept.
	if begun, again := m.Switches-full.Switches, m.Reused-full.Reused; again < begun/2 {
		t.Errorf("%d segments were begun when the log had its size, only %d of them used before", begun, again)
	}
	for _, id := range []placement.NodeID{"n1", "n2"} {
		for g, past := range map[placement.GroupID]uint64{1: missed, 2: quiet - 2*maxAppendEntries} {
			logs := c.group(id, g).logs
			first, _ := logs.FirstIndex()
			last, _ := logs.LastIndex()
			if first <= past || first > last {
				t.Errorf("%s: the log of %s is %d to %d, it should begin above %d", id, g, first, last, past)
			}
		}
		// What there is room for is kept for followers that are behind.
		if kept := c.node(id).host.LogMetrics().LiveBytes; kept < room/2 {
			t.Errorf("%s keeps only %d bytes of log", id, kept)
		}
	}
	c.restart(away)
	c.equal(1)
	c.equal(2)
	c.wait("n3 to have a snapshot of what it missed", func() bool { return c.group("n3", 1).snaps.marker().index > missed })
	bounded("n3")
}

// While a snapshot is sent, and for a while after, the log is kept from its end
// on, however long it gets, up to twice the bound.
func TestLogHeldForSnapshot(t *testing.T) {
	const room = 4 << 20
	c := seeded(t, 1, 1, func(_ placement.NodeID, cfg *Config) { cfg.LogBytes, cfg.SnapshotEntries = room, 20 })
	large := raw(t, map[string]any{"pad": strings.Repeat("p", 20<<10)})
	n := 0
	put := func() {
		n++
		c.must(1, write(wire.OpPut, fmt.Sprintf("d-%d", n%50), large))
	}
	g := c.leader(1)
	for range 30 {
		put()
	}
	c.wait("a marker", func() bool { return g.snaps.marker().index > 0 })
	list, err := g.snaps.List()
	if err != nil || len(list) != 1 {
		t.Fatalf("snapshots: %v %v", list, err)
	}
	meta, rd, err := g.snaps.Open(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	h := c.node("n1").host
	for h.logs.Used() < room+room/2 {
		put()
	}
	marker := g.snaps.marker().index
	c.wait("another marker", func() bool { h.trimOnce(); return g.snaps.marker().index > marker })
	if first, _ := g.logs.FirstIndex(); first > meta.Index {
		t.Errorf("the log begins at %d, a snapshot up to %d is being sent", first, meta.Index)
	}
	c.wait("the snapshot to be given up", func() bool {
		put()
		first, _ := g.logs.FirstIndex()
		return first > meta.Index
	})
	if err := rd.Close(); err != nil {
		t.Fatal(err)
	}
	// What is cut off is freed behind the cut.
	c.wait("the log to take no more than twice its bound", func() bool { h.trimOnce(); return h.logs.Used() <= 2*room })
}

// Groups whose markers are due are flushed together, whatever is written
// meanwhile, and one whose state cannot be taken holds up nobody.
func TestOneFlushForAll(t *testing.T) {
	const groups = 6
	c := seeded(t, 1, groups, nil)
	h := c.node("n1").host
	flushes := func() int64 {
		m, err := h.state.Metrics()
		if err != nil {
			t.Fatal(err)
		}
		return m.Flushes
	}
	small := raw(t, map[string]any{"v": 1})
	var all []*Group
	for id := placement.GroupID(1); id <= groups; id++ {
		c.must(id, write(wire.OpPut, "a", small))
		all = append(all, c.leader(id))
	}
	all[0].halted.Store(&HaltError{Err: errors.New("broken for the test")})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				c.must(placement.GroupID(2+n%(groups-1)), write(wire.OpPut, "b", small))
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 5 {
		before, marked := flushes(), all[1].snaps.marker().index
		c.wait("writes to go on", func() bool { return all[1].machine.Applied() > marked })
		h.takeSnapshots(all)
		if n := flushes() - before; n != 1 {
			t.Errorf("%d flushes for %d groups", n, groups)
		}
		for _, g := range all[1:] {
			if g.snaps.marker().index == 0 {
				t.Errorf("%s has no marker", g.id)
			}
		}
	}
}
