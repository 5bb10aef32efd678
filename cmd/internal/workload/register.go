package workload

import (
	"context"
	"fmt"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// register works on shared documents with every operation on one document.
type register struct {
	*scratch
	slots  *slots
	stored map[string][]history.Stored
}

func newRegister(o Options) Workload {
	return &register{scratch: newScratch("register", o, ""), slots: newSlots(o)}
}

func (w *register) Client(s Session) Step {
	c := s.DB.Collection(w.full(""))
	seen := map[string]uint64{} // versions this client saw last
	writes := 0
	return func(ctx context.Context) history.Outcome {
		in := history.Input{Key: w.slots.key(s.Rng.IntN(len(w.slots.uses)))}
		known := seen[in.Key]
		if len(seen) > 4*len(w.slots.uses) {
			clear(seen)
		}
		switch n := s.Rng.IntN(100); {
		case n < 35:
			in.Verb = history.Get
		case n < 55:
			in.Verb = history.Put
		case n < 65:
			in.Verb = history.Insert
		case n < 80:
			in.Verb = history.Add
		case n < 92:
			in.Verb = history.AddOrCreate
		default:
			in.Verb = history.Delete
		}
		if in.Verb != history.Get && in.Verb != history.Delete {
			writes++
			in.Value = fmt.Sprintf("c%d-%d", s.Number, writes)
		}
		if in.Verb == history.Add || in.Verb == history.AddOrCreate {
			in.Add = int64(s.Rng.IntN(9)) - 4
		}
		switch in.Verb {
		case history.Put, history.Add, history.Delete:
			switch s.Rng.IntN(5) {
			case 0, 1:
				in.IfVersion = known
			case 2:
				in.IfPresent = true
			}
		}
		if in.Verb == history.Put && in.IfVersion == 0 && !in.IfPresent {
			in.IfAbsent = s.Rng.IntN(4) == 0
		}
		p := w.recorder.Begin(s.Number, in)
		out := w.do(ctx, c, in)
		p.End(out)
		if out.Version != 0 {
			seen[in.Key] = out.Version
		}
		return asked(out.Outcome)
	}
}

func (w *register) Final(ctx context.Context, db *client.DB) (err error) {
	c := db.Collection(w.full(""))
	keys := w.slots.used()
	if err := w.lastReads(ctx, c, keys); err != nil {
		return err
	}
	w.stored, err = w.scratch.stored(ctx, c, keys)
	return err
}

func (w *register) Judge() []history.Verdict {
	ops := w.recorder.Operations()
	return []history.Verdict{
		w.answers(),
		history.Linearizability{Timeout: w.o.Timeout}.Check(ops),
		history.Versions{Stored: w.stored, Complete: true}.Check(ops, nil),
		history.StrictSerializability{}.Check(history.Singles(ops)),
	}
}
