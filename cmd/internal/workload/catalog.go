package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// catalog makes, uses and drops collections. Each client has a name of its own,
// of which it knows what must be there, and all of them share one that comes
// and goes under their hands.
//
// A name is left for a fresh one once an answer about it was lost: what is
// still under way may create the collection again by writing to it.
type catalog struct {
	*scratch

	mu      sync.Mutex
	ids     map[uint32]string // guarded by mu; which name a collection's number stood for
	present map[string]bool   // guarded by mu; names that are surely there, or surely not
	unsure  map[string]bool   // guarded by mu; names of which nothing is known any more
}

func newCatalog(o Options) Workload {
	return &catalog{
		scratch: newScratch("catalog", o), ids: map[uint32]string{}, present: map[string]bool{}, unsure: map[string]bool{},
	}
}

// own is what one client knows of its collection.
type own struct {
	name     string
	names    int // how many this client has used
	there    bool
	implicit bool   // made by a write
	id       uint32 // of this life of the name; 0: not told
	dropped  uint32 // the number of the life before
	options  client.CollectionOptions
	elements map[string]history.Outcome // documents of this life
	docs     int
}

func (w *catalog) Client(s Session) Step {
	o := &own{}
	w.fresh(s, o)
	return func(ctx context.Context) history.Outcome {
		if s.Rng.IntN(4) == 0 {
			return w.stir(ctx, s)
		}
		if !o.there {
			return w.create(ctx, s, o)
		}
		switch n := s.Rng.IntN(100); {
		case n < 50:
			return w.insert(ctx, s, o)
		case n < 65:
			return w.get(ctx, s, o)
		case n < 80:
			return w.list(ctx, s, o)
		case n < 88:
			return w.createAgain(ctx, s, o)
		default:
			return w.drop(ctx, s, o)
		}
	}
}

// fresh takes a name that nobody has used.
func (w *catalog) fresh(s Session, o *own) {
	if o.name != "" {
		w.mu.Lock()
		w.unsure[o.name] = true
		w.mu.Unlock()
	}
	*o = own{names: o.names + 1}
	o.name = fmt.Sprintf("%s-%d-%d", w.full(""), s.Number, o.names)
}

func (w *catalog) note(name string, there bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.present[name] = there
}

// numbered notes a collection's number, which is never given out twice.
func (w *catalog) numbered(id uint32, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if other, ok := w.ids[id]; ok && other != name {
		w.anomaly("number used twice", "collection number %d is %s and was %s", id, name, other)
	}
	w.ids[id] = name
}

// create makes the collection, or lets the first document do so.
func (w *catalog) create(ctx context.Context, s Session, o *own) history.Outcome {
	o.implicit = s.Rng.IntN(3) == 0
	o.elements, o.options, o.id = map[string]history.Outcome{}, client.CollectionOptions{}, 0
	if o.implicit {
		outcome := w.insert(ctx, s, o)
		switch outcome {
		case history.Done:
			o.there = true
			w.note(o.name, true)
		case history.Refused:
			// The document was not written; whether its collection was made
			// before that the refusal does not say.
			w.fresh(s, o)
		}
		return outcome
	}
	if s.Rng.IntN(2) == 0 {
		o.options.Separator = separator
	}
	p := w.recorder.BeginSpan(s.Number, "create "+o.name)
	info, err := s.DB.CreateCollection(ctx, o.name, o.options)
	outcome := w.ended(p, "create "+o.name, err)
	switch {
	case outcome == history.Unknown:
		w.fresh(s, o)
	case outcome == history.Done:
		if info.ID == o.dropped && o.dropped != 0 {
			w.anomaly("collection came back", "%s was created as number %d, which was dropped", o.name, info.ID)
		}
		o.there, o.id = true, info.ID
		w.numbered(info.ID, o.name)
		w.note(o.name, true)
	}
	return outcome
}

// ended puts the end of a catalog operation into the history.
func (w *catalog) ended(p *history.PendingSpan, what string, err error) history.Outcome {
	if err == nil {
		p.End(history.Done, "")
		return history.Done
	}
	outcome := w.outcome(what, err)
	p.End(outcome, err.Error())
	return outcome
}

// createAgain is done with the same options and refused with others.
func (w *catalog) createAgain(ctx context.Context, s Session, o *own) history.Outcome {
	options := o.options
	same := s.Rng.IntN(2) == 0
	if !same {
		options.Separator += "#"
	}
	p := w.recorder.BeginSpan(s.Number, "create "+o.name+" again")
	info, err := s.DB.CreateCollection(ctx, o.name, options)
	var e *client.Error
	switch {
	case !same && errors.As(err, &e) && e.Code == wire.CodeCollectionExists:
		p.End(history.Exists, "")
		return history.Done
	case !same && err == nil:
		w.anomaly("lost collection", "%s was created with separator %q although it is there with %q", o.name, options.Separator, o.options.Separator)
	case same && err == nil && o.id != 0 && info.ID != o.id:
		w.anomaly("lost collection", "%s is number %d, and was number %d", o.name, info.ID, o.id)
	}
	return w.ended(p, "create "+o.name+" again", err)
}

func (w *catalog) insert(ctx context.Context, s Session, o *own) history.Outcome {
	o.docs++
	in := history.Input{Key: fmt.Sprintf("e%06d", o.docs), Verb: history.Insert}
	in.Value = in.Key
	o.elements[in.Key] = history.Unknown
	p := w.recorder.BeginSpan(s.Number, "insert "+o.name+" "+in.Key)
	out := w.do(ctx, s.other().Collection(o.name), in)
	p.End(out.Outcome, out.Reason)
	o.elements[in.Key] = out.Outcome
	switch out.Outcome {
	case history.Exists:
		w.anomaly("phantom", "%s/%s was there before it was inserted", o.name, in.Key)
	case history.Unknown:
		w.fresh(s, o)
	}
	return asked(out.Outcome)
}

// get reads a document that must be there, or one that must not.
func (w *catalog) get(ctx context.Context, s Session, o *own) history.Outcome {
	in := history.Input{Key: fmt.Sprintf("e%06d", 1+s.Rng.IntN(o.docs+1)), Verb: history.Get}
	p := w.recorder.BeginSpan(s.Number, "get "+o.name+" "+in.Key)
	out := w.do(ctx, s.other().Collection(o.name), in)
	p.End(out.Outcome, out.Reason)
	wrote, mine := o.elements[in.Key]
	switch {
	case out.Outcome == history.Missing && wrote == history.Done && mine:
		w.anomaly("lost write", "%s/%s was acknowledged and is not there", o.name, in.Key)
	case out.Outcome == history.Done && (!mine || wrote != history.Done):
		w.anomaly("phantom", "%s/%s is there, and was never written to this collection (an earlier one of the name was dropped)", o.name, in.Key)
	}
	return asked(out.Outcome)
}

// list scans the collection: it has what was acknowledged and nothing else.
func (w *catalog) list(ctx context.Context, s Session, o *own) history.Outcome {
	p := w.recorder.BeginSpan(s.Number, "scan "+o.name)
	docs, err := client.Collect(s.other().Collection(o.name).Scan(ctx, client.NoBody()))
	outcome := w.ended(p, "scan "+o.name, err)
	if outcome != history.Done {
		return outcome
	}
	found := idsOf(docs)
	for id, wrote := range o.elements {
		if wrote == history.Done && !slices.Contains(found, id) {
			w.anomaly("lost write", "%s/%s was acknowledged and is not in the scan", o.name, id)
		}
	}
	for _, id := range found {
		if o.elements[id] != history.Done || !hasKey(o.elements, id) {
			w.anomaly("phantom", "%s/%s is in the scan, and was never written to this collection", o.name, id)
		}
	}
	return history.Done
}

func hasKey[V any](m map[string]V, k string) bool {
	_, ok := m[k]
	return ok
}

// drop removes the collection. Nothing of it can be read any more, whoever is
// asked.
func (w *catalog) drop(ctx context.Context, s Session, o *own) history.Outcome {
	p := w.recorder.BeginSpan(s.Number, "drop "+o.name)
	err := s.DB.DropCollection(ctx, o.name)
	outcome := w.ended(p, "drop "+o.name, err)
	switch outcome {
	case history.Unknown:
		w.fresh(s, o)
	case history.Done:
		was := o.id // 0: made by its first write
		o.there, o.dropped = false, o.id
		w.note(o.name, false)
		p := w.recorder.BeginSpan(s.Number, "get "+o.name+" e000001")
		_, err := s.other().Collection(o.name).Get(ctx, "e000001")
		p.End(history.Missing, "") // or worse, which the switch says
		switch {
		case err == nil:
			w.anomaly("dropped collection read", "%s was dropped, and e000001 is still there", o.name)
		case errors.Is(err, client.ErrNotFound):
			now, _ := s.other().DescribeCollection(ctx, o.name) // 0: gone by now
			w.anomaly("dropped collection read", "%s was dropped as number %d, and is still a collection, number %d", o.name, was, now.ID)
		case !errors.Is(err, client.ErrCollectionNotFound):
			w.outcome("get of "+o.name+", which was dropped", err)
		}
	}
	return outcome
}

// stir does anything to the collection that all clients share: no answer is
// wrong, as long as it is one of those that the operation may have.
func (w *catalog) stir(ctx context.Context, s Session) history.Outcome {
	name := w.full("shared")
	var err error
	what := [...]string{"create ", "drop ", "scan ", "insert ", "insert "}[s.Rng.IntN(5)] + name
	expected := []error{client.ErrCollectionNotFound}
	p := w.recorder.BeginSpan(s.Number, what)
	switch what {
	case "create " + name:
		var info client.CollectionInfo
		if info, err = s.DB.CreateCollection(ctx, name, client.CollectionOptions{}); err == nil {
			w.numbered(info.ID, name)
		}
	case "drop " + name:
		err = s.DB.DropCollection(ctx, name)
	case "scan " + name:
		// Its collection may be dropped between two pages.
		_, err = client.Collect(s.DB.Collection(name).Scan(ctx, client.PageSize(3)))
		expected = append(expected, client.ErrBadRequest)
	default:
		_, err = s.DB.Collection(name).Insert(ctx, fmt.Sprintf("s%d-%d", s.Number, s.Rng.Uint64()), body{Value: "s"})
	}
	for _, e := range expected {
		if errors.Is(err, e) {
			p.End(history.Missing, "")
			return history.Done
		}
	}
	return w.ended(p, what, err)
}

// Final compares the catalog at rest with what clients were told.
func (w *catalog) Final(ctx context.Context, db *client.DB) error {
	list, err := db.Collections(ctx)
	if err != nil {
		return fmt.Errorf("workload catalog: %w", err)
	}
	for _, a := range w.compare(list) {
		w.anomaly(a.Name, "%s", a.Text)
	}
	return nil
}

func (w *catalog) compare(list []client.CollectionInfo) []history.Anomaly {
	w.mu.Lock()
	defer w.mu.Unlock()
	there := map[string]bool{}
	for _, c := range list {
		there[c.Name] = true
	}
	var wrong []history.Anomaly
	for name, expected := range w.present {
		switch {
		case w.unsure[name] || there[name] == expected:
		case expected:
			wrong = append(wrong, history.Anomaly{Name: "lost collection", Text: name + " was created and is not in the catalog"})
		default:
			wrong = append(wrong, history.Anomaly{Name: "collection came back", Text: name + " was dropped and is in the catalog"})
		}
	}
	return wrong
}

func (w *catalog) Judge() []history.Verdict { return []history.Verdict{w.answers()} }
