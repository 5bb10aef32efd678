package workload

import (
	"context"
	"errors"
	"fmt"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// bulk writes to shared documents and creates others once, many at a time,
// beside readers of the shared ones. Every write of a bulk stands alone; those
// of an ordered one take effect in order and stop at the first failure.
type bulk struct {
	*scratch
	slots    *slots
	elements *history.Set
	stored   map[string][]history.Stored
	there    []string
	read     bool
}

func newBulk(o Options) Workload {
	return &bulk{scratch: newScratch("bulk", o, "", "once"), slots: newSlots(o), elements: history.NewSet()}
}

func (w *bulk) Client(s Session) Step {
	shared, once := s.DB.Collection(w.full("")), s.DB.Collection(w.full("once"))
	seen := map[string]uint64{}
	writes := 0
	item := func() history.Input {
		writes++
		in := history.Input{Key: w.slots.key(s.Rng.IntN(len(w.slots.uses))), Value: fmt.Sprintf("c%d-%d", s.Number, writes)}
		switch n := s.Rng.IntN(100); {
		case n < 45:
			in.Verb = history.Put
			if s.Rng.IntN(4) == 0 {
				in.IfVersion = seen[in.Key]
			}
		case n < 55:
			in.Verb = history.Insert
		case n < 90:
			in.Verb, in.Add = history.AddOrCreate, int64(1+s.Rng.IntN(9))
		default:
			in.Verb, in.Value = history.Delete, ""
		}
		return in
	}
	return func(ctx context.Context) history.Outcome {
		if len(seen) > 4*len(w.slots.uses) {
			clear(seen)
		}
		if s.Rng.IntN(3) == 0 {
			in := history.Input{Key: w.slots.key(s.Rng.IntN(len(w.slots.uses))), Verb: history.Get}
			p := w.recorder.Begin(s.Number, in)
			out := w.do(ctx, shared, in)
			p.End(out)
			if out.Version != 0 {
				seen[in.Key] = out.Version
			}
			return asked(out.Outcome)
		}
		ordered := s.Rng.IntN(2) == 0
		b := s.DB.Bulk()
		if ordered {
			b = s.DB.OrderedBulk()
		}
		var items []history.Input
		var created []bool
		for range 2 + s.Rng.IntN(8) {
			in, create := item(), s.Rng.IntN(3) == 0
			if create {
				in = history.Input{Key: fmt.Sprintf("e%d-%06d", s.Number, writes), Verb: history.Insert}
				in.Value = in.Key
				w.elements.Added(in.Key, history.Unknown)
			}
			items, created = append(items, in), append(created, create)
		}
		pending := make([]*history.Pending, len(items))
		for i, in := range items {
			c := shared
			if created[i] {
				c = once
			}
			addTo(b, c, in)
			// The number keeps the order; without one the client's writes
			// of this call are in none.
			seq := 0
			if ordered {
				seq = i + 1
			}
			if !created[i] {
				pending[i] = w.recorder.BeginSeq(s.Number, seq, in)
			}
		}
		res, err := b.Do(ctx)
		var failed *client.BulkError
		if err != nil && !errors.As(err, &failed) {
			w.report("bulk: %v", err)
			return history.Unknown
		}
		worst := history.Done
		outcomes := make([]history.Outcome, len(items))
		for i, in := range items {
			out := w.wrote(in, res.Items[i].Result, res.Items[i].Err)
			outcomes[i] = out.Outcome
			if pending[i] != nil {
				pending[i].End(out)
			} else {
				w.elements.Added(in.Key, out.Outcome)
			}
			if out.Version != 0 {
				seen[in.Key] = out.Version
			}
			if out.Outcome == history.Unknown {
				worst = history.Unknown
			}
		}
		if ordered {
			w.inOrder(items, outcomes)
		}
		return worst
	}
}

// addTo adds a write to a bulk.
func addTo(b *client.Bulk, c *client.Collection, in history.Input) {
	options := conditions(in)
	switch in.Verb {
	case history.Put:
		b.Put(c, in.Key, body{Value: in.Value}, options...)
	case history.Insert:
		b.Insert(c, in.Key, body{Value: in.Value}, options...)
	case history.AddOrCreate:
		b.Upsert(c, in.Key, change(in), append(options, client.ReturnDoc())...)
	case history.Delete:
		b.Delete(c, in.Key, options...)
	}
}

// inOrder: nothing is done behind the first write that was not.
func (w *bulk) inOrder(items []history.Input, outcomes []history.Outcome) {
	stopped := -1
	for i, o := range outcomes {
		switch {
		case o != history.Done && stopped < 0:
			stopped = i
		case o == history.Done && stopped >= 0:
			w.report("an ordered bulk did write %d (%s %s) though write %d (%s %s) was %s",
				i, items[i].Verb, items[i].Key, stopped, items[stopped].Verb, items[stopped].Key, outcomes[stopped])
			return
		}
	}
}

func (w *bulk) Final(ctx context.Context, db *client.DB) (err error) {
	c := db.Collection(w.full(""))
	keys := w.slots.used()
	if err := w.lastReads(ctx, c, keys); err != nil {
		return err
	}
	if w.stored, err = w.scratch.stored(ctx, c, keys); err != nil {
		return err
	}
	w.there, err = w.scanWhole(ctx, db.Collection(w.full("once")), func(doc *client.Document, b body) {
		if b.Value != doc.ID || doc.Version != 1 {
			w.report("%s is at version %d with value %q, want version 1 and its own name", doc.ID, doc.Version, b.Value)
		}
	})
	w.read = err == nil
	return err
}

func (w *bulk) Judge() []history.Verdict {
	ops := w.recorder.Operations()
	checks := []history.Verdict{
		w.answers(),
		history.Linearizability{Timeout: w.o.Timeout}.Check(ops),
		history.Versions{Stored: w.stored, Complete: true}.Check(ops, nil),
		history.StrictSerializability{}.Check(history.Singles(ops)), // with the order inside of ordered bulks
	}
	if w.read {
		checks = append(checks, w.elements.Judge(w.there))
	}
	return checks
}
