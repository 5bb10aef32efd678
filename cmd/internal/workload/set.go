package workload

import (
	"context"
	"fmt"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// set creates documents, each once, and never changes them.
type set struct {
	*scratch
	elements *history.Set
	there    []string // at rest
	read     bool
}

func newSet(o Options) Workload {
	return &set{scratch: newScratch("set", o, ""), elements: history.NewSet()}
}

func (w *set) Client(s Session) Step {
	c := s.DB.Collection(w.full(""))
	n := 0
	return func(ctx context.Context) history.Outcome {
		n++
		element := fmt.Sprintf("e%d-%06d", s.Number, n)
		in := history.Input{Key: element, Verb: history.Insert, Value: element}
		w.elements.Added(element, history.Unknown) // until there is an answer
		p := w.recorder.Begin(s.Number, in)
		out := w.do(ctx, c, in)
		p.End(out)
		w.elements.Added(element, out.Outcome)
		return asked(out.Outcome)
	}
}

func (w *set) Final(ctx context.Context, db *client.DB) error {
	there, err := w.scanWhole(ctx, db.Collection(w.full("")), func(doc *client.Document, b body) {
		if b.Value != doc.ID || doc.Version != 1 {
			w.report("%s is at version %d with value %q, want version 1 and its own name", doc.ID, doc.Version, b.Value)
		}
	})
	if err != nil {
		return err
	}
	w.there, w.read = there, true
	return nil
}

// scanWhole lists a collection at rest and compares the count with the list.
func (s *scratch) scanWhole(ctx context.Context, c *client.Collection, each func(doc *client.Document, b body)) ([]string, error) {
	var ids []string
	for doc, err := range c.Scan(ctx) {
		if err != nil {
			return nil, fmt.Errorf("workload %s: %w", s.name, err)
		}
		b, err := decode(doc)
		if err != nil {
			return nil, fmt.Errorf("workload %s: %w", s.name, err)
		}
		each(doc, b)
		ids = append(ids, doc.ID)
	}
	count, err := c.Count(ctx)
	if err != nil {
		return nil, fmt.Errorf("workload %s: %w", s.name, err)
	}
	if int(count) != len(ids) {
		s.report("the count of %s at rest is %d, and the scan has %d documents", c.Name(), count, len(ids))
	}
	return ids, nil
}

func (w *set) Judge() []history.Verdict {
	checks := []history.Verdict{w.answers()}
	if w.read {
		checks = append(checks, w.elements.Judge(w.there))
	}
	return checks
}
