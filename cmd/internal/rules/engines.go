package rules

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	pvfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/leader"
)

// enginePool lends storage engines in memory to one run after the other: one
// engine for each node, and a group ID of its own for each run. Opening an
// engine costs as much as a short run; rows of other groups cost a run nothing,
// so engines are only made anew when much has gathered in them.
type enginePool struct {
	engines []*mvcc.Engine
	group   placement.GroupID
}

const runsPerEngine = 256

// tailEntries is how often machines seal what entries have left: a run has few
// entries.
const tailEntries = 6

func newEnginePool() *enginePool { return &enginePool{} }

// take answers engines for so many nodes, and groups group IDs from the one
// answered on.
func (p *enginePool) take(nodes, groups int) ([]*mvcc.Engine, placement.GroupID, error) {
	if p.group+placement.GroupID(groups) > runsPerEngine {
		if err := p.close(); err != nil {
			return nil, 0, err
		}
	}
	for len(p.engines) < nodes {
		e, err := mvcc.OpenEngine("state", mvcc.EngineOptions{FS: pvfs.NewMem(), MemTableBytes: 4 << 20, CacheBytes: 1 << 20})
		if err != nil {
			return nil, 0, err
		}
		p.engines = append(p.engines, e)
	}
	first := p.group + 1
	p.group += placement.GroupID(groups)
	return p.engines[:nodes], first, nil
}

func (p *enginePool) close() error {
	var err error
	for _, e := range p.engines {
		err = errors.Join(err, e.Close())
	}
	*p = enginePool{}
	return err
}

// shardMachine is fsm.Machine as a Group steps it.
//
// A crash takes the machine's rows back to those of the last flush, as a power
// loss would the whole engine; that real files lose no more than that is shown
// by package fsm's own crash tests.
type shardMachine struct {
	engine  *mvcc.Engine
	group   placement.GroupID
	m       *fsm.Machine
	durable []row
	dir     int // of the next import
}

type row struct{ key, value []byte }

func openShard(e *mvcc.Engine, g placement.GroupID) (*shardMachine, error) {
	s := &shardMachine{engine: e, group: g}
	var err error
	s.m, err = fsm.Open(fsm.Options{Group: g, Engine: e, TailEntries: tailEntries})
	return s, err
}

// Apply is what shardgroup's applier does with Raft's entries.
func (s *shardMachine) Apply(entries []*Entry) ([]any, error) {
	answers := make([]any, len(entries))
	list := make([]fsm.Entry, len(entries))
	for i, e := range entries {
		list[i] = fsm.Entry{Index: e.Index, Term: e.Term}
		if len(e.Data) == 0 {
			continue
		}
		void, err := leader.Void(e.Stamp, e.Term)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", e.Index, err)
		}
		if void {
			answers[i] = errVoid
		} else {
			list[i].Data = e.Data
		}
	}
	was := s.m.Applied()
	results, err := s.m.Apply(list)
	if err != nil {
		return nil, err
	}
	for i, e := range entries {
		switch {
		case e.Index <= was:
			answers[i] = nil
			if results[i] != nil {
				return nil, fmt.Errorf("entry %d ran again: the machine was at %d", e.Index, was)
			}
		case answers[i] != nil:
		case len(e.Data) == 0:
			answers[i] = e.Term
		default:
			answers[i] = results[i]
		}
	}
	return answers, nil
}

func (s *shardMachine) Applied() uint64 { return s.m.Applied() }

// rows is everything that the group has stored.
func (s *shardMachine) rows() (rows []row, err error) {
	r, err := s.engine.NewReader(s.group, false)
	if err != nil {
		return nil, err
	}
	start, end := mvcc.GroupSpan(s.group)
	err = r.Each(start, end, func(k, v []byte) error {
		rows = append(rows, row{bytes.Clone(k), bytes.Clone(v)})
		return nil
	})
	return rows, errors.Join(err, r.Close())
}

func (s *shardMachine) Flush() (err error) {
	s.durable, err = s.rows()
	return err
}

func (s *shardMachine) Crash(spare bool) error {
	if !spare {
		b := s.engine.NewBatch(4 << 10)
		start, end := mvcc.GroupSpan(s.group)
		err := b.DeleteRange(start, end)
		for _, r := range s.durable {
			err = errors.Join(err, b.Set(r.key, r.value))
		}
		if err = errors.Join(err, b.Commit(0), b.Close()); err != nil {
			return err
		}
	}
	var err error
	s.m, err = fsm.Open(fsm.Options{Group: s.group, Engine: s.engine, TailEntries: tailEntries})
	return err
}

func (s *shardMachine) Install(from Machine) error {
	x, err := from.(*shardMachine).m.Snapshot()
	if err != nil {
		return err
	}
	s.dir++
	im, err := s.m.NewImporter(fmt.Sprintf("import-%d-%d", s.group, s.dir))
	if err != nil {
		return errors.Join(err, x.Close())
	}
	_, err = x.WriteTo(struct{ io.Writer }{im})
	if err = errors.Join(err, x.Close()); err != nil {
		return err
	}
	imported, err := im.Finish()
	if err != nil {
		return err
	}
	if err := s.m.Install(imported); err != nil {
		return err
	}
	return s.Flush()
}
