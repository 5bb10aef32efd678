package shardgroup

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mvcc"
)

// ErrLogTruncated: the log does not reach back to the group's first entry.
var ErrLogTruncated = errors.New("shardgroup: the log does not reach back to the first entry")

// Replay applies the group's log once more, to a machine of its own over an
// empty engine, up to the entry that this replica has applied. A checker
// compares the two: state that does not follow from the log is a fault of
// Apply, of recovery, or of a snapshot.
func (g *Group) Replay(engine *mvcc.Engine) (*fsm.Machine, error) {
	applied := g.machine.Applied()
	first, err := g.logs.FirstIndex()
	if err != nil {
		return nil, err
	}
	if first != 1 {
		return nil, ErrLogTruncated
	}
	m, err := fsm.Open(fsm.Options{Group: g.id, Engine: engine, Logger: g.host.cfg.Logger})
	if err != nil {
		return nil, err
	}
	var batch []fsm.Entry
	for i := uint64(1); i <= applied; i++ {
		var l raft.Log
		if err := g.logs.GetLog(i, &l); err != nil {
			return nil, fmt.Errorf("shardgroup: replay %s: entry %d: %w", g.id, i, err)
		}
		if l.Type != raft.LogCommand && l.Type != raft.LogConfiguration {
			continue // raft keeps it from the machine
		}
		e := fsm.Entry{Index: l.Index, Term: l.Term}
		if l.Type == raft.LogCommand {
			void, err := voidEntry(&l)
			if err != nil {
				return nil, err
			}
			if !void {
				e.Data = l.Data
			}
		}
		if batch = append(batch, e); len(batch) == maxAppendEntries || i == applied { // which is no such entry
			if _, err := m.Apply(batch); err != nil {
				return nil, fmt.Errorf("shardgroup: replay %s up to entry %d: %w", g.id, i, err)
			}
			batch = batch[:0]
		}
	}
	return m, nil
}
