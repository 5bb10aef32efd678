package router

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/fsm/update"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// uniqueDoc is a document with unique values that a transaction writes. What it
// was is named by the request (the version that was read), and so everything
// that follows from it: whoever coordinates the transaction adds the same.
type uniqueDoc struct {
	set    *unique.Set
	view   *placement.View
	coll   *placement.Collection
	id     string
	at     hlc.Timestamp // of the version that was read; 0: there was none
	part   *txn.Part
	write  int // in part
	gives  []unique.Held
	takes  []unique.Held
	values []byte // the body that takes are of
	gone   bool   // the version that was read cannot be read any more
}

// uniqueEntry is what a transaction wants of an entry.
type uniqueEntry struct {
	id   string // of the document that takes it, or gives it up
	text string // the field and its value; empty if it is given up
}

// uniqueDocs lists the documents of one collection that may change unique
// values. Each has to have been read: then the commit demands that it is still
// the same.
func (t *transaction) uniqueDocs(v *placement.View, coll *placement.Collection, c *wire.TxnCollection) ([]*uniqueDoc, *wire.Error) {
	set := unique.SetOf(&coll.Options)
	if set == nil {
		return nil, nil
	}
	reads := make(map[string]hlc.Timestamp, len(c.Reads))
	for i := range c.Reads {
		reads[c.Reads[i].ID] = hlc.Timestamp(c.Reads[i].At)
	}
	var docs []*uniqueDoc
	seen := map[string]bool{}
	for i := range c.Writes {
		id := c.Writes[i].ID
		if seen[id] || plain(&c.Writes[i], set) {
			continue
		}
		seen[id] = true
		at, read := reads[id]
		if !read {
			return nil, refuse(wire.CodeBadRequest, "%s: the collection has unique fields, so a transaction has to read what it writes (the client library does it before the commit)", subject{c.Name, id})
		}
		part := t.part(partitionOf(v, coll, id))
		docs = append(docs, &uniqueDoc{
			set: set, view: v, coll: coll, id: id, at: at, part: part,
			write: slices.IndexFunc(part.Writes, func(w txn.Write) bool { return w.Collection == coll.ID && w.ID == id }),
		})
	}
	return docs, nil
}

// addEntries adds what a transaction takes and gives up to its parts. Values
// may go from one of its documents to another: what is given up comes first.
func (t *transaction) addEntries(ctx context.Context, docs []*uniqueDoc) *wire.Error {
	if len(docs) == 0 {
		return nil
	}
	errs := make([]*wire.Error, len(docs))
	var taken atomic.Int64
	t.r.parallel(min(len(docs), uniqueAtOnce), func(int) {
		for n := taken.Add(1); int(n) <= len(docs); n = taken.Add(1) {
			errs[n-1] = t.difference(ctx, docs[n-1])
		}
	})
	for i, e := range errs {
		if e != nil {
			return e
		}
		t.stale = t.stale || docs[i].gone
	}
	t.entries = map[string]uniqueEntry{}
	for _, d := range docs {
		t.names[unique.Entries(d.coll.ID)] = d.coll.Name
		for _, h := range d.gives {
			t.entries[entryName(d.coll.ID, h.Entry)] = uniqueEntry{id: d.id}
			t.entry(d.view, d.coll, h.Entry, txn.Op{Op: wire.OpDelete})
		}
	}
	for _, d := range docs {
		for _, h := range d.takes {
			name := entryName(d.coll.ID, h.Entry)
			if other := t.entries[name]; other.text != "" {
				return t.twice(ctx, d, h, other.id)
			}
			t.entries[name] = uniqueEntry{d.id, d.set.Text(h.Constraint, d.values)}
			t.entry(d.view, d.coll, h.Entry, txn.Op{Op: wire.OpInsert, Body: unique.Body(d.id)})
		}
	}
	if len(t.entries)+t.items > txn.MaxItems {
		return refuse(wire.CodeTooManyItems, "the transaction reads and writes %d documents, ranges and unique values, at most %d are allowed (split it)", len(t.entries)+t.items, txn.MaxItems)
	}
	return nil
}

func entryName(c placement.CollectionID, entry string) string {
	return fmt.Sprint(uint32(c), "/", entry)
}

// twice refuses a transaction that gives one value to two documents: if what it
// has read is the newest.
func (t *transaction) twice(ctx context.Context, d *uniqueDoc, h unique.Held, other string) *wire.Error {
	if e := t.verify(ctx); e != nil {
		return e
	}
	return refuse(wire.CodeDuplicateValue, "%s: %s is given to %s by the same transaction", subject{d.coll.Name, d.id}, d.set.Text(h.Constraint, d.values), showID(other))
}

// difference reads what a document was and finds what the transaction makes of
// its values.
func (t *transaction) difference(ctx context.Context, d *uniqueDoc) *wire.Error {
	var old wire.Document
	if d.at != 0 {
		reply, e := t.r.get(ctx, &wire.GetRequest{Collection: d.coll.Name, IDs: []string{d.id}, AtTime: uint64(d.at)})
		if e != nil {
			return e
		}
		switch no := reply.Results[0].Error; {
		case no != nil && (no.Code == wire.CodeHistoryExpired || no.Code == wire.CodeVersionNotFound || no.Code == wire.CodeNotFound):
			d.gone = true
			return nil
		case no != nil:
			return no
		}
		if old = reply.Results[0].Doc; hlc.Timestamp(old.UpdatedAt) != d.at {
			d.gone = true // no version is of that time
			return nil
		}
	}
	live, version, body := d.at != 0, old.Version, old.Body
	write := &d.part.Writes[d.write]
	timed := false
	for i := range write.Ops {
		o := &write.Ops[i]
		var no *fsm.Refused
		body, no = fsm.Evaluate(&wire.WriteItem{Op: o.Op, Cond: o.Cond, IfVersion: o.IfVersion, Body: o.Body}, live, version, body, hlc.Timestamp(t.id.Time), t.r.opts.Limits.MaxBytes)
		if no != nil {
			return nil // for the machine to say, when it has looked at what was read
		}
		if live, version = body != nil, old.Version+1; o.Op == wire.OpUpdate || o.Op == wire.OpUpsert {
			u, err := update.Parse(o.Body)
			timed = timed || err == nil && u.UsesTime() && d.set.Touches(u.Paths())
		}
	}
	if timed && live {
		// A value is the time: it has to be the one that is looked at here.
		write.Ops = []txn.Op{{Op: wire.OpPut, Body: body}}
	}
	d.gives, d.takes = difference(d.set.Values(old.Body), d.set.Values(body))
	if len(d.takes) > 0 {
		d.values = body
	}
	return nil
}

// outdated refuses a transaction that has read what is no more: another attempt
// of its own may be why, so home is asked.
func (t *transaction) outdated(ctx context.Context) (txn.Answer, *wire.Error) {
	a, err := t.r.Step(ctx, &fsm.Txn{ID: t.id, Partition: t.home, Settle: &fsm.Settle{Abort: true}})
	if err == nil {
		a, err = shardgroup.Inquire(ctx, t.r, t.id, t.home, true, 0, a)
	}
	switch {
	case err != nil:
		return a, t.r.wireError(err, subject{})
	case a.State == txn.Aborted:
		return a, refuse(wire.CodeTxnConflict, "transaction %s: a document was written since it was read, and the version that was read is not kept any more (run the transaction again)", t.id)
	}
	return a, nil
}

// entryConflict words a conflict about an entry.
func (t *transaction) entryConflict(c *txn.Conflict) *wire.Error {
	e := t.entries[entryName(unique.Of(c.Collection), c.ID)]
	s := subject{t.names[c.Collection], e.id}
	value := e.text
	if value == "" {
		value = "a unique value"
	}
	switch c.Code {
	case wire.CodeTxnConflict:
		return refuse(c.Code, "%s: %s is held by transaction %s (run the transaction again)", s, value, c.Rival)
	case wire.CodeDuplicateValue:
		return refuse(c.Code, "%s: %s is held by %s", s, value, showID(c.Detail))
	}
	return t.r.word(&wire.Error{Code: c.Code}, s, c.Detail)
}
