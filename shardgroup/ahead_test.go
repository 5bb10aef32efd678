package shardgroup

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// heldLog holds up syncs of the log while it is told to.
type heldLog struct {
	gate atomic.Pointer[chan struct{}]
}

func (f *heldLog) MaybeError(op errorfs.Op) error {
	if op.Kind == errorfs.OpFileSyncData {
		if g := f.gate.Load(); g != nil {
			<-*g
		}
	}
	return nil
}

func (f *heldLog) String() string { return "hold" }

// The followers have an entry while the leader's own disk works on it, and it
// is committed when that has it too.
func TestLeaderWritesAhead(t *testing.T) {
	var held heldLog
	c := seeded(t, 3, 1, func(id placement.NodeID, cfg *Config) {
		if cfg.StallLimit = time.Minute; id == "n1" {
			cfg.FS = errorfs.Wrap(vfs.Default, &held)
		}
	})
	l := c.leadBy(1, "n1")
	body := raw(t, map[string]any{"v": 1})
	c.must(1, write(wire.OpPut, "a", body))
	c.wait("all to be equal", func() bool {
		return c.group("n2", 1).raft.LastIndex() == l.raft.LastIndex() && c.group("n3", 1).raft.LastIndex() == l.raft.LastIndex()
	})
	before := l.raft.LastIndex()

	gate := make(chan struct{})
	held.gate.Store(&gate)
	done := make(chan error, 1)
	go func() {
		res, err := l.Propose(ctxFor(t, 30*time.Second), write(wire.OpPut, "b", body))
		if err == nil && res.Wire.Error != nil {
			err = res.Wire.Error
		}
		done <- err
	}()
	c.wait("both followers to have the entry", func() bool {
		return c.group("n2", 1).raft.LastIndex() > before && c.group("n3", 1).raft.LastIndex() > before
	})
	// Nothing may come of it now. What would has, once the followers have answered
	// some more heartbeats, which tell them what is committed.
	for range 3 {
		now := time.Now()
		c.wait("the followers to answer", func() bool {
			return l.trans.Progress(c.group("n2", 1).self).At.After(now) && l.trans.Progress(c.group("n3", 1).self).At.After(now)
		})
	}
	for _, n := range []placement.NodeID{"n1", "n2", "n3"} {
		if at := c.group(n, 1).raft.CommitIndex(); at > before {
			t.Errorf("%s has committed entry %d, and the leader's disk has %d", n, at, before)
		}
	}
	select {
	case err := <-done:
		t.Errorf("a write that the leader's disk does not have was answered: %v", err)
		done <- nil
	default:
	}
	held.gate.Store(nil)
	close(gate)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A group that needs nobody else waits for its own disk.
func TestLoneLeaderWaits(t *testing.T) {
	c := seeded(t, 1, 1, nil)
	l := c.leader(1)
	if l.ahead(nil) {
		t.Error("a lone leader goes ahead of its disk")
	}
	three := seeded(t, 3, 1, nil)
	if l := three.leader(1); !l.ahead(nil) {
		t.Error("the leader of three does not go ahead")
	}
	for _, n := range []placement.NodeID{"n1", "n2", "n3"} {
		if g := three.group(n, 1); !g.IsLeader() && g.ahead(nil) {
			t.Error("a follower goes ahead of its disk")
		}
	}
}
