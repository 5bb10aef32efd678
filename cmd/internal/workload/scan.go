package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// scan changes documents of a known universe, a few tenants with a few
// documents each, and scans them. In one collection a tenant's documents share
// a shard group, in the other they are spread. All scans are strictly
// serializable, and so are the counts of a whole collection.
type scan struct {
	*scratch
	stored map[string][]history.Stored // of both, by collection and ID
}

const (
	tenants    = 3
	perTenant  = 6
	grouped    = "grouped"
	spread     = "spread"
	separator  = "/"
	wholeLists = "" // the prefix of everything
)

func newScan(o Options) Workload {
	w := &scan{scratch: newScratch("scan", o, grouped, spread)}
	w.collections[w.full(grouped)] = client.CollectionOptions{Separator: separator, RetentionSeconds: client.RetainForever}
	return w
}

// universe are all IDs with a prefix, in order.
func universe(prefix string) []string {
	var ids []string
	for t := range tenants {
		for k := range perTenant {
			if id := fmt.Sprintf("t%d%sk%02d", t, separator, k); strings.HasPrefix(id, prefix) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// keyed is an ID as a history's key: the two collections have the same IDs.
func keyed(collection, id string) string { return collection + ":" + id }

func (w *scan) Client(s Session) Step {
	all := universe(wholeLists)
	writes := 0
	var last history.Transaction // a scan of this client's, to be repeated in the past
	var lastOf string
	return func(ctx context.Context) history.Outcome {
		name := spread
		if s.Rng.IntN(2) == 0 {
			name = grouped
		}
		c := s.DB.Collection(w.full(name))
		if s.Rng.IntN(100) < 55 {
			id := all[s.Rng.IntN(len(all))]
			in := history.Input{Key: id}
			writes++
			switch n := s.Rng.IntN(10); {
			case n < 6:
				in.Verb, in.Value = history.Put, fmt.Sprintf("c%d-%d", s.Number, writes)
			case n < 8:
				in.Verb, in.Add, in.Value = history.AddOrCreate, 1, fmt.Sprintf("c%d-%d", s.Number, writes)
			case n < 9:
				in.Verb = history.Delete
			}
			kept := in
			kept.Key = keyed(name, id)
			p := w.recorder.Begin(s.Number, kept)
			out := w.do(ctx, c, in)
			p.End(out)
			return asked(out.Outcome)
		}
		prefix := fmt.Sprintf("t%d%s", s.Rng.IntN(tenants), separator)
		if name == spread && s.Rng.IntN(2) == 0 {
			prefix = wholeLists
		}
		how := scanning{prefix: prefix, reverse: s.Rng.IntN(4) == 0, page: 1 + s.Rng.IntN(perTenant+2), resume: s.Rng.IntN(4) == 0}
		if s.Rng.IntN(5) == 0 {
			how.limit = 1 + s.Rng.IntN(perTenant)
		}
		if last.Time != 0 && s.Rng.IntN(5) == 0 {
			// The past does not change: the same scan again.
			how, name = scanning{prefix: last.Parts[0].Input.Key[len(lastOf)+1:][:3], at: last.Time, page: how.page}, lastOf
			c = s.DB.Collection(w.full(name))
		}
		t, outcome := w.scan(ctx, s.Number, name, c, how)
		if outcome == history.Done && how.at == 0 && how.limit == 0 && prefix != wholeLists {
			last, lastOf = t, name
		}
		return outcome
	}
}

// scanning is how a scan is done.
type scanning struct {
	prefix  string
	reverse bool
	page    int
	limit   int
	resume  bool   // with a second iterator, from the first's cursor
	at      uint64 // 0: now
}

func (h scanning) String() string {
	text := "scan " + h.prefix
	if h.prefix == "" {
		text = "scan all"
	}
	if h.reverse {
		text += " reverse"
	}
	if h.at != 0 {
		text += " again"
	}
	return text
}

// scan reads once and records what was there of the universe, and what not.
func (w *scan) scan(ctx context.Context, number int, name string, c *client.Collection, how scanning) (history.Transaction, history.Outcome) {
	options := []client.ReadOption{client.Prefix(how.prefix), client.PageSize(how.page)}
	if how.reverse {
		options = append(options, client.Reverse())
	}
	if how.at != 0 {
		options = append(options, client.AtTimestamp(client.Timestamp(how.at)))
	}
	limited := options
	if how.limit != 0 {
		limited = append(slices.Clip(options), client.Limit(how.limit))
	}
	p := w.recorder.BeginTxn(history.Transaction{Client: number, Name: how.String() + " of " + name})
	it := c.Iterator(limited...)
	var docs []*client.Document
	for it.Next(ctx) {
		if n := len(docs); n > 0 && docs[n-1].ID == it.Document().ID && how.resume {
			continue // the page was begun again
		}
		docs = append(docs, it.Document())
		if cursor := it.Cursor(); how.resume && cursor != nil && how.limit == 0 && it.Err() == nil {
			// Forget the iterator; its cursor may repeat what this page gave.
			stamp := it.Timestamp()
			it = c.Iterator(append(slices.Clip(options), client.FromCursor(cursor))...)
			how.resume = false
			for it.Next(ctx) {
				if !slices.ContainsFunc(docs, func(d *client.Document) bool { return d.ID == it.Document().ID }) {
					docs = append(docs, it.Document())
				}
			}
			if it.Timestamp() != stamp && it.Err() == nil && it.Timestamp() != 0 {
				w.anomaly("torn snapshot", "a scan of %s at time %d went on from its cursor at time %d", name, stamp, it.Timestamp())
			}
			break
		}
	}
	err := it.Err()
	var result history.Transaction
	p.End(func(t *history.Transaction) {
		defer func() { result = *t }()
		if err != nil {
			t.Outcome, t.Reason = w.outcome(t.Name, err), err.Error()
			return
		}
		t.Time = uint64(it.Timestamp())
		t.Parts = w.membership(name, how, docs)
		if how.at != 0 && t.Time != how.at {
			w.anomaly("wrong past", "%s: asked for time %d, read at %d", t.Name, how.at, t.Time)
		}
		if how.at != 0 {
			t.Time = how.at
		}
	})
	return result, result.Outcome
}

// membership turns what a scan gave into parts: every document of the universe
// that it covered is there or is missing. What does not belong, comes twice or
// out of order is an anomaly by itself.
func (w *scan) membership(name string, how scanning, docs []*client.Document) []history.Part {
	ids := universe(how.prefix)
	if how.reverse {
		slices.Reverse(ids)
	}
	part := func(id string, out history.Output) history.Part {
		return history.Part{Input: history.Input{Key: keyed(name, id), Verb: history.Get, AtTime: how.at}, Output: out}
	}
	missing := history.Output{Outcome: history.Missing}
	var parts []history.Part
	next := 0
	for _, d := range docs {
		i := slices.Index(ids[next:], d.ID)
		if i < 0 {
			w.anomaly("phantom", "%s of %s gave %s, which does not belong there or came before (%d documents: %v)", how, name, d.ID, len(docs), idsOf(docs))
			return nil
		}
		for _, absent := range ids[next : next+i] {
			parts = append(parts, part(absent, missing))
		}
		next += i + 1
		parts = append(parts, part(d.ID, w.read(d.ID, d)))
	}
	if how.limit != 0 && len(docs) == how.limit {
		return parts
	}
	if how.limit != 0 && len(docs) > how.limit {
		w.anomaly("phantom", "%s of %s with limit %d gave %d documents", how, name, how.limit, len(docs))
	}
	for _, absent := range ids[next:] {
		parts = append(parts, part(absent, missing))
	}
	return parts
}

func idsOf(docs []*client.Document) []string {
	var ids []string
	for _, d := range docs {
		ids = append(ids, d.ID)
	}
	return ids
}

func (w *scan) Final(ctx context.Context, db *client.DB) error {
	stored := map[string][]history.Stored{}
	for _, name := range []string{grouped, spread} {
		c := db.Collection(w.full(name))
		all := universe(wholeLists)
		versions, err := w.scratch.stored(ctx, c, all)
		if err != nil {
			return err
		}
		for id, list := range versions {
			stored[keyed(name, id)] = list
		}
		// Scan, gets and counts agree at rest.
		listed := map[string]*client.Document{}
		if _, err := w.scanWhole(ctx, c, func(doc *client.Document, _ body) { listed[doc.ID] = doc }); err != nil {
			return err
		}
		for _, id := range all {
			d, err := c.Get(ctx, id)
			switch l := listed[id]; {
			case errors.Is(err, client.ErrNotFound) && l != nil:
				w.anomaly("scan disagrees with get", "%s of %s at rest: the scan has version %d, and there is no such document", id, name, l.Version)
			case errors.Is(err, client.ErrNotFound):
			case err != nil:
				return fmt.Errorf("workload scan: %w", err)
			case l == nil:
				w.anomaly("scan disagrees with get", "%s of %s at rest: the scan does not have it, get has version %d", id, name, d.Version)
			case l.Version != d.Version || !slices.Equal(l.Body(), d.Body()):
				w.anomaly("scan disagrees with get", "%s of %s at rest: version %d by the scan, version %d by get", id, name, l.Version, d.Version)
			}
		}
		for t := range tenants {
			prefix := fmt.Sprintf("t%d%s", t, separator)
			count, err := c.Count(ctx, client.Prefix(prefix))
			if err != nil {
				return fmt.Errorf("workload scan: %w", err)
			}
			there := 0
			for id := range listed {
				if strings.HasPrefix(id, prefix) {
					there++
				}
			}
			if int(count) != there {
				w.anomaly("count disagrees with scan", "%s of %s at rest: count %d, the scan has %d", prefix, name, count, there)
			}
		}
	}
	w.stored = stored
	return nil
}

func (w *scan) Judge() []history.Verdict {
	ops, scans := w.recorder.Operations(), w.recorder.Transactions()
	checks := []history.Verdict{w.answers(), history.Versions{Stored: w.stored, Complete: true}.Check(ops, scans)}
	for _, name := range []string{grouped, spread} {
		var txns []history.Transaction
		for _, t := range append(history.Singles(ops), scans...) {
			if len(t.Parts) == 0 || !strings.HasPrefix(t.Parts[0].Input.Key, name+":") {
				continue
			}
			txns = append(txns, t)
		}
		v := history.StrictSerializability{}.Check(txns)
		v.Checker += " (" + name + ")"
		checks = append(checks, v)
	}
	return checks
}
