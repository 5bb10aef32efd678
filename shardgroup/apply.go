package shardgroup

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mutant"
)

// applier is raft's FSM over a group's machine. raft calls it from one
// goroutine, except Persist.
type applier struct {
	g       *Group
	entries []fsm.Entry

	mu        sync.Mutex
	confIndex uint64             // guarded by mu; index of conf
	conf      raft.Configuration // guarded by mu; the last one applied
	entriesIn uint64             // guarded by mu; entries since the last snapshot
}

var (
	_ raft.BatchingFSM  = (*applier)(nil)
	_ raft.FSMSnapshot  = (*flushed)(nil)
	_ raft.SnapshotSink = (*snapshotSink)(nil)
)

func newApplier(g *Group) *applier {
	m := g.snaps.marker()
	return &applier{g: g, confIndex: m.confIndex, conf: m.conf}
}

// Apply is ApplyBatch of one.
func (a *applier) Apply(l *raft.Log) any { return a.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies committed entries. The answer to an entry is its
// []fsm.Result, the term for an empty one, or an error if the replica halted
// or the entry was dropped.
func (a *applier) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	if h := a.g.halted.Load(); h != nil {
		for i := range answers {
			answers[i] = h
		}
		return answers
	}
	// What this node led and followed again in may be committed by others before
	// it is on disk here.
	if err := a.g.logs.Durable(logs[len(logs)-1].Index, nil, nil); err != nil {
		for i := range answers {
			answers[i] = err // nothing is applied any more: the log is broken or closed
		}
		return answers
	}
	a.entries = a.entries[:0]
	var failed error
	for i, l := range logs {
		e := fsm.Entry{Index: l.Index, Term: l.Term}
		switch l.Type {
		case raft.LogConfiguration:
			a.configured(l)
		case raft.LogCommand:
			void, err := voidEntry(l)
			if err != nil {
				failed = err
			}
			if void {
				answers[i] = errVoid
			} else {
				e.Data = l.Data
			}
		}
		a.entries = append(a.entries, e)
	}
	var results [][]fsm.Result
	if failed == nil {
		results, failed = a.g.machine.Apply(a.entries)
	}
	clear(a.entries)
	if failed == nil && len(results) != len(logs) {
		failed = fmt.Errorf("machine answered %d results to %d entries", len(results), len(logs))
	}
	if failed != nil {
		a.g.halt(failed)
		for i := range answers {
			answers[i] = failed
		}
		return answers
	}
	for i, l := range logs {
		switch {
		case answers[i] != nil:
		case l.Type != raft.LogCommand || len(l.Data) == 0:
			answers[i] = l.Term
		default:
			answers[i] = results[i]
		}
	}
	a.mu.Lock()
	a.entriesIn += uint64(len(logs))
	a.mu.Unlock()
	a.g.host.cfg.Clock.Observe(a.g.machine.Latest())
	a.g.applied.advance(logs[len(logs)-1].Index)
	return answers
}

func (a *applier) configured(l *raft.Log) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l.Index > a.confIndex {
		a.confIndex, a.conf = l.Index, raft.DecodeConfiguration(l.Data)
	}
}

// configuration is the last one applied.
func (a *applier) configuration() (uint64, raft.Configuration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.confIndex, a.conf
}

func (a *applier) sinceSnapshot() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.entriesIn
}

func (a *applier) snapshotTaken() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.entriesIn = 0
}

// Snapshot promises that the state as it is now will be on disk.
func (a *applier) Snapshot() (raft.FSMSnapshot, error) {
	if h := a.g.halted.Load(); h != nil {
		return nil, h
	}
	return &flushed{g: a.g, applied: a.g.machine.Applied()}, nil
}

// Restore takes over the snapshot that was received last. raft has opened it;
// the bytes lie in tables, not in the reader. A failure ends the node, because
// raft would only log it and go on.
func (a *applier) Restore(r io.ReadCloser) error {
	defer r.Close()
	m, err := a.g.snaps.install()
	if err != nil {
		err = fmt.Errorf("shardgroup: install snapshot of %s: %w", a.g.id, err)
		a.g.host.fatal(err)
		return err
	}
	a.mu.Lock()
	a.confIndex, a.conf, a.entriesIn = m.confIndex, m.conf, 0
	a.mu.Unlock()
	a.g.applied.advance(max(m.index, a.g.machine.Applied()))
	return nil
}

// flushed is a snapshot that consists of the state engine's own files.
type flushed struct {
	g       *Group
	applied uint64
}

// Persist makes the state durable up to where it was at Snapshot, and only
// then lets the sink write the marker.
func (f *flushed) Persist(sink raft.SnapshotSink) error {
	s, ok := sink.(*snapshotSink)
	if !ok {
		return errors.New("shardgroup: sink is of another store")
	}
	flush := func() error { _, err := f.g.machine.Flush(); return err }
	if shared := f.g.shared.Swap(nil); shared != nil {
		shared.arrive()
		flush = func() error { <-shared.done; return shared.err }
	}
	if mutant.On(mutant.MarkerUnflushed) {
		flush = func() error { return nil }
	}
	if err := flush(); err != nil {
		err = fmt.Errorf("shardgroup: flush the state of %s: %w", f.g.id, err)
		f.g.host.fatal(err)
		return err
	}
	s.local, s.mark.applied = true, f.applied
	return nil
}

// Release has nothing to release.
func (f *flushed) Release() {}
