package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// Judge reads everything back once the load has stopped and the cluster is
// whole, and decides whether what clients were told is true: every shared
// document is linearizable and its history has every acknowledged write, every
// document created once is there, the counter is exact, replicas are equal.
// pictures is a directory for pictures of what is not linearizable, or empty.
func (l *Load) Judge(ctx context.Context, pictures string) (string, error) {
	db, err := client.Dial(ctx, l.url)
	if err != nil {
		return "", err
	}
	defer db.Close()
	var bad []error
	fail := func(what string, err error) {
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", what, err))
		}
	}
	l.mu.Lock()
	fail("an operation", errors.Join(l.odd...))
	shared := slices.Sorted(maps.Keys(l.keys))
	l.mu.Unlock()

	reader := l.o.Clients + 1000 // a client of its own in the history
	for _, key := range shared {
		in := history.Input{Key: key, Verb: history.Get}
		p := l.recorder.Begin(reader, in)
		out := l.do(ctx, db.Collection(sharedCollection), in)
		p.End(out)
		if out.Outcome != history.Done && out.Outcome != history.Missing {
			fail("the last read of "+key, errors.New(out.Reason))
		}
	}
	ops := l.recorder.Operations()
	verdict, err := history.Judge(ops, history.Options{PicturesIn: pictures})
	fail("shared documents", err)
	fail("shared documents", l.compareHistories(ctx, db, ops))
	fail("documents created once", l.judgeSet(ctx, db))
	fail("the counter", l.judgeCounter(ctx, db))
	fail("replicas", CompareReplicas(ctx, db))
	return fmt.Sprintf("%v; %d created and %d increments acknowledged; all there, none twice; replicas equal",
		verdict, l.set.Acknowledged(), l.counter.Acknowledged()), errors.Join(bad...)
}

// compareHistories looks for every acknowledged write at the version that it
// was told it has.
func (l *Load) compareHistories(ctx context.Context, db *client.DB, ops []history.Operation) error {
	type stored struct {
		deleted bool
		body    body
	}
	c := db.Collection(sharedCollection)
	versions := map[string]map[uint64]stored{}
	var bad []error
	for _, op := range ops {
		in, out := op.Input, op.Output
		if out.Outcome != history.Done || in.Verb == history.Get {
			continue
		}
		if versions[in.Key] == nil {
			all := map[uint64]stored{}
			for v, err := range c.History(ctx, in.Key) {
				if err != nil {
					return fmt.Errorf("history of %s: %w", in.Key, err)
				}
				s := stored{deleted: v.Deleted}
				if !v.Deleted {
					if err := v.Decode(&s.body); err != nil {
						return fmt.Errorf("history of %s, version %d: %w", in.Key, v.Version, err)
					}
				}
				all[v.Version] = s
			}
			versions[in.Key] = all
		}
		s, ok := versions[in.Key][out.Version]
		switch {
		case !ok:
			bad = append(bad, fmt.Errorf("acknowledged and not in the history: %v", op))
		case s.deleted != (in.Verb == history.Delete) || !s.deleted && s.body.Value != in.Value:
			bad = append(bad, fmt.Errorf("acknowledged and another in the history (%+v): %v", s, op))
		}
		if len(bad) == 10 {
			break
		}
	}
	return errors.Join(bad...)
}

func (l *Load) judgeSet(ctx context.Context, db *client.DB) error {
	c := db.Collection(onceCollection)
	var found []string
	for doc, err := range c.Scan(ctx) {
		if err != nil {
			return err
		}
		var b body
		if err := doc.Decode(&b); err != nil || b.Value != doc.ID || doc.Version != 1 {
			return fmt.Errorf("%s is at version %d with value %q (%v), want version 1 and its own name", doc.ID, doc.Version, b.Value, err)
		}
		found = append(found, doc.ID)
	}
	count, err := c.Count(ctx)
	if err != nil {
		return err
	}
	if int(count) != len(found) {
		return fmt.Errorf("count says %d, the scan has %d", count, len(found))
	}
	return l.set.Judge(found)
}

func (l *Load) judgeCounter(ctx context.Context, db *client.DB) error {
	doc, err := db.Collection(counterCollection).Get(ctx, counterID)
	var e *client.Error
	if errors.As(err, &e) && (e.Code == wire.CodeNotFound || e.Code == wire.CodeCollectionNotFound) {
		return l.counter.Judge(0, 0)
	}
	if err != nil {
		return err
	}
	var b body
	if err := doc.Decode(&b); err != nil {
		return err
	}
	return l.counter.Judge(b.Count, doc.Version)
}
