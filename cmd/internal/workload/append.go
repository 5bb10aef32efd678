package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// appends reads lists and appends to them, several at a time in transactions,
// beside single reads and appends. Lists only grow, so every read names the
// transactions it comes after, and the whole history becomes a graph whose
// cycles name the anomaly.
type appends struct {
	*scratch
	slots *slots
}

// list is a document of this workload.
type list struct {
	List []string `idb:"l"`
}

// perList is after how many uses a list is left for a fresh one, at most: every
// read of it carries all of it.
const perList = 120

func newAppends(o Options) Workload {
	o.PerDocument = min(o.PerDocument, perList)
	return &appends{scratch: newScratch("append", o, ""), slots: newSlots(o)}
}

func (w *appends) Client(s Session) Step {
	n := 0
	return func(ctx context.Context) history.Outcome {
		n++
		switch k := s.Rng.IntN(100); {
		case k < 12:
			return w.single(ctx, s, fmt.Sprintf("%d-%d", s.Number, n))
		case k < 30:
			return w.cut(ctx, s)
		default:
			return w.mixed(ctx, s, fmt.Sprintf("%d-%d", s.Number, n))
		}
	}
}

// some picks documents, each once.
func (w *appends) some(s Session, most int) []string {
	var keys []string
	for _, i := range s.Rng.Perm(len(w.slots.uses))[:1+s.Rng.IntN(min(most, len(w.slots.uses)))] {
		keys = append(keys, w.slots.key(i))
	}
	return keys
}

// sawList notes what was read of a list; d is nil if there is none.
func (w *appends) sawList(key string, d *client.Document) (history.Output, []string) {
	if d == nil {
		return history.Output{Outcome: history.Missing}, nil
	}
	var b list
	if err := d.Decode(&b); err != nil || b.List == nil {
		w.report("%s: not a list: %v", key, err)
		return history.Output{Outcome: history.Unknown}, nil
	}
	return history.Output{Outcome: history.Done, Version: d.Version, Time: uint64(d.UpdatedAt), Document: true, List: b.List}, b.List
}

// mixed is a transaction of reads and appends.
func (w *appends) mixed(ctx context.Context, s Session, value string) history.Outcome {
	type op struct {
		key  string
		how  int
		many []string
	}
	var ops []op
	for _, key := range w.some(s, 4) {
		ops = append(ops, op{key: key, how: s.Rng.IntN(7)})
	}
	if len(ops) > 1 && s.Rng.IntN(3) == 0 {
		for i := range ops { // read all first, at once
			ops[0].many = append(ops[0].many, ops[i].key)
		}
	}
	c := w.full("")
	again := s.Rng.IntN(4) == 0
	run := w.transact(ctx, s, fateOf(s), "append", func(ctx context.Context, a *attempt) error {
		element := fmt.Sprintf("%s.%d", value, a.number)
		coll := a.tx.Collection(c)
		read := func(key string, d *client.Document) []string {
			out, l := w.sawList(key, d)
			a.note(history.Input{Key: key, Verb: history.Get}, out)
			return l
		}
		get := func(key string) ([]string, error) {
			if err := a.step(); err != nil {
				return nil, err
			}
			d, err := coll.Get(ctx, key)
			if err != nil && !errors.Is(err, client.ErrNotFound) {
				return nil, err
			}
			return read(key, d), nil
		}
		for _, o := range ops {
			if o.many != nil {
				if err := a.step(); err != nil {
					return err
				}
				docs, err := coll.GetMany(ctx, o.many)
				if err != nil {
					return err
				}
				for i, d := range docs {
					read(o.many[i], d)
				}
			}
			var err error
			appended := true
			switch o.how {
			case 0, 1: // read only
				_, err = get(o.key)
				appended = false
			case 2, 3: // without a look
				err = coll.Upsert(o.key, client.Push("l", element))
			case 4: // locked first
				if err = a.step(); err != nil {
					return err
				}
				var d *client.Document
				if d, err = coll.GetForUpdate(ctx, o.key); err == nil || errors.Is(err, client.ErrNotFound) {
					l := read(o.key, d)
					err = coll.Put(o.key, list{append(slices.Clone(l), element)})
				}
			default:
				var l []string
				if l, err = get(o.key); err == nil {
					err = coll.Put(o.key, list{append(slices.Clone(l), element)})
				}
			}
			if err != nil {
				return err
			}
			if appended {
				a.note(history.Input{Key: o.key, Verb: history.Append, Value: element}, history.Output{Outcome: history.Done})
				if again { // it sees its own
					if _, err := get(o.key); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
	return run.Outcome
}

// cut reads several lists in a read-only transaction.
func (w *appends) cut(ctx context.Context, s Session) history.Outcome {
	keys := w.some(s, len(w.slots.uses))
	each := s.Rng.IntN(3) == 0
	c := w.full("")
	run := w.transact(ctx, s, fate{begin: s.Rng.IntN(3) == 0}, "read", func(ctx context.Context, a *attempt) error {
		coll := a.tx.Collection(c)
		var docs []*client.Document
		var err error
		if each {
			for _, key := range keys {
				d, err := coll.Get(ctx, key)
				if err != nil && !errors.Is(err, client.ErrNotFound) {
					return err
				}
				docs = append(docs, d)
			}
		} else if docs, err = coll.GetMany(ctx, keys); err != nil {
			return err
		}
		for i, d := range docs {
			out, _ := w.sawList(keys[i], d)
			a.note(history.Input{Key: keys[i], Verb: history.Get}, out)
		}
		return nil
	}, client.ReadOnly())
	return run.Outcome
}

// single reads or appends without a transaction.
func (w *appends) single(ctx context.Context, s Session, value string) history.Outcome {
	in := history.Input{Key: w.slots.key(s.Rng.IntN(len(w.slots.uses))), Verb: history.Get}
	c := s.DB.Collection(w.full(""))
	if s.Rng.IntN(2) == 0 {
		in.Verb, in.Value = history.Append, value+".0"
	}
	p := w.recorder.Begin(s.Number, in)
	out := w.one(ctx, c, in)
	p.End(out)
	return asked(out.Outcome)
}

func (w *appends) one(ctx context.Context, c *client.Collection, in history.Input) history.Output {
	if in.Verb == history.Append {
		if _, err := c.Upsert(ctx, in.Key, client.Push("l", in.Value)); err != nil {
			return w.refusal(in, err)
		}
		return history.Output{Outcome: history.Done}
	}
	d, err := c.Get(ctx, in.Key)
	if err != nil {
		return w.refusal(in, err)
	}
	out, _ := w.sawList(in.Key, d)
	return out
}

func (w *appends) Final(ctx context.Context, db *client.DB) error {
	c := db.Collection(w.full(""))
	for _, key := range w.slots.used() {
		in := history.Input{Key: key, Verb: history.Get}
		p := w.recorder.Begin(finalReader, in)
		out := w.one(ctx, c, in)
		p.End(out)
		if out.Outcome != history.Done && out.Outcome != history.Missing {
			return fmt.Errorf("workload append: the last read of %s: %s", key, out.Reason)
		}
	}
	return nil
}

func (w *appends) Judge() []history.Verdict {
	return []history.Verdict{
		w.answers(),
		history.StrictSerializability{}.Check(append(history.Singles(w.recorder.Operations()), w.recorder.Transactions()...)),
	}
}
