package router

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/fsm/update"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// uniqueWrite is a write of a document whose collection has unique fields, on
// its way: it is read, what the write makes of it is found, and then one commit
// demands that it is still the version that was read, takes the entries of new
// values, gives up those of old ones, and writes the document. Whatever had
// changed meanwhile, it begins again.
//
//	| read | commit: refused, entry held by another | read still the newest: refusal kept |
//	       |         conflict | wait, begin again
//	       |         done
//
// It runs where the document's group is led. Each attempt is a transaction of
// its own; what they have in common is the request, whose answer is kept with
// the document (fsm.Request): one attempt at most has an effect, whoever makes
// it, and a refusal is kept as well before it is told.
type uniqueWrite struct {
	b    *batch
	g    Group
	i    int
	item *wire.WriteItem
	set  *unique.Set
	key  fsm.ReadKey
}

// uniqueAtOnce is how many such writes of one request are carried at once: each
// holds two versions of its document.
const uniqueAtOnce = 16

// plain says that a write cannot change a unique value, whatever it finds: it
// is a write as any other.
func plain(item *wire.WriteItem, set *unique.Set) bool {
	if set == nil {
		return true
	}
	if item.Op != wire.OpUpdate && item.Op != wire.OpUpsert {
		return false
	}
	u, err := update.Parse(item.Body)
	return err == nil && !set.Touches(u.Paths())
}

// proposeUnique carries those items that may change unique values, side by
// side, and returns the others.
func (b *batch) proposeUnique(ctx context.Context, g Group, items []int, set *unique.Set) (others []int) {
	var mine []int
	for _, i := range items {
		if plain(&b.req.Items[i], set) {
			others = append(others, i)
		} else {
			mine = append(mine, i)
		}
	}
	var taken atomic.Int64
	b.r.parallel(min(len(mine), uniqueAtOnce), func(int) {
		for n := taken.Add(1); int(n) <= len(mine); n = taken.Add(1) {
			b.writeUnique(ctx, g, mine[n-1], set)
		}
	})
	return others
}

// writeUnique carries one item until it is done, refused for good, or its time
// is up.
func (b *batch) writeUnique(ctx context.Context, g Group, i int, set *unique.Set) {
	item := &b.req.Items[i]
	w := &uniqueWrite{b: b, g: g, i: i, item: item, set: set, key: fsm.ReadKey{
		Partition: partitionOf(b.view, b.coll, item.ID), Epoch: b.view.Epoch, Collection: b.coll.ID, ID: item.ID,
	}}
	var p patience
	for first := true; ; first = false {
		o, again := w.attempt(ctx, first)
		if !again {
			b.settle(i, o)
			return
		}
		if !p.wait(ctx, b.r.opts.Patience) {
			b.settle(i, shardgroup.Outcome{Err: refuse(wire.CodeLocked, "%s: others write it, or want its unique values, all the time (retry)", b.subject(i))})
			return
		}
	}
}

// attempt is one transaction. again says that it met another, or found that the
// document had changed: nothing was done.
func (w *uniqueWrite) attempt(ctx context.Context, first bool) (o shardgroup.Outcome, again bool) {
	fail := func(err error) (shardgroup.Outcome, bool) { return shardgroup.Outcome{Err: err}, false }
	t := w.transaction()
	if !first {
		// It has lost once: now others wait for it, as long as this takes.
		t.front = true
		defer w.g.Unlock(t.id)
		err := w.g.Lock(ctx, t.id, t.born, w.key, defaultTxnTimeout, true)
		var back *shardgroup.StepBack
		if errors.As(err, &back) {
			return o, true
		}
		if err != nil {
			return fail(err)
		}
	}
	old, live, since, err := w.read(ctx)
	if err != nil {
		return fail(err)
	}
	read := txn.Read{Collection: w.key.Collection, ID: w.key.ID, At: hlc.Timestamp(old.UpdatedAt)}
	still := w.still(read.At, since)
	body, no, err := w.evaluate(&old, live)
	if err != nil {
		return fail(err)
	}
	if no != nil {
		return w.refuse(ctx, t, &still, no)
	}

	home := t.part(t.home)
	home.Reads = append(home.Reads, read)
	op := txn.Op{Op: wire.OpPut, Body: body}
	if body == nil {
		op = txn.Op{Op: wire.OpDelete}
	}
	home.Writes = append(home.Writes, txn.Write{Collection: w.key.Collection, ID: w.key.ID, MaxBytes: uint32(w.b.r.opts.Limits.MaxBytes), Ops: []txn.Op{op}})
	gives, takes := difference(w.set.Values(old.Body), w.set.Values(body))
	if mutant.On(mutant.UniqueGivenEarly) && len(gives) > 0 {
		early := w.transaction()
		for _, h := range gives {
			early.entry(w.b.view, w.b.coll, h.Entry, txn.Op{Op: wire.OpDelete})
			early.home = unique.Partition(w.b.coll.Name, h.Entry, w.b.view.Partitions())
		}
		early.request = nil
		if _, e := early.run(ctx); e == nil {
			gives = nil
		}
	}
	for _, h := range gives {
		if !mutant.On(mutant.UniqueKept) {
			t.entry(w.b.view, w.b.coll, h.Entry, txn.Op{Op: wire.OpDelete})
		}
	}
	for _, h := range takes {
		if !mutant.On(mutant.UniqueUntaken) {
			t.entry(w.b.view, w.b.coll, h.Entry, txn.Op{Op: wire.OpInsert, Body: unique.Body(w.key.ID)})
		}
	}
	// Who wants one thing elsewhere, and holds nothing yet, may wait for it.
	t.ordered = !t.front && len(t.parts) <= 2
	a, e := t.run(ctx)
	w.b.asked(t.groups)
	if e != nil && e.Code == wire.CodeTxnConflict { // it stepped back
		return o, true
	}
	if e != nil {
		return fail(e)
	}
	if a.Write != nil || a.State == txn.Expired || a.Conflict == nil {
		if a.State == txn.Expired {
			t.hear(ctx)
		}
		return w.answer(&a)
	}
	switch c := a.Conflict; c.Code {
	case wire.CodeTxnConflict:
		return o, true
	case wire.CodeDuplicateValue:
		return w.refuse(ctx, t, &still, &fsm.Refused{Code: c.Code, Detail: w.duplicate(c, takes, body)})
	case wire.CodeCollectionNotFound, wire.CodeInternal:
		return fail(w.b.r.word(&wire.Error{Code: c.Code}, w.b.subject(w.i), c.Detail))
	default:
		return w.refuse(ctx, t, &still, &fsm.Refused{Code: c.Code, Version: c.Version, Detail: c.Detail})
	}
}

// transaction makes an empty one for the request.
func (w *uniqueWrite) transaction() *transaction {
	r := w.b.r
	now := r.opts.Clock.Now()
	t := &transaction{
		r: r, id: txn.ID{Time: uint64(now)}, born: hlc.Timestamp(w.item.RequestID.Time), deadline: now.Add(defaultTxnTimeout),
		parts: map[placement.PartitionID]*txn.Part{}, home: w.key.Partition,
		request: &fsm.Request{ID: w.item.RequestID, KeepDoc: w.item.ReturnDoc && w.item.Op != wire.OpPut && w.item.Op != wire.OpInsert},
	}
	_, _ = rand.Read(t.id.Random[:]) // never fails
	return t
}

// read is the newest version as this replica has it. Nobody is asked whether it
// is: the commit is, and so is a refusal that rests on it. What is written after
// this has a time above since.
func (w *uniqueWrite) read(ctx context.Context) (d wire.Document, live bool, since hlc.Timestamp, err error) {
	if err := w.g.ClearReads(ctx, []fsm.ReadKey{w.key}, 0); err != nil {
		return d, false, 0, err
	}
	since = w.g.Machine().Clock()
	d, err = w.g.Machine().Get(w.key, fsm.At{}, false)
	var none *fsm.Error
	if errors.As(err, &none) && none.Code == wire.CodeNotFound {
		return wire.Document{}, false, since, nil
	}
	return d, err == nil, since, err
}

// still demands that the document is the version that was read, or has not been
// there since (at is 0).
func (w *uniqueWrite) still(at, since hlc.Timestamp) txn.Part {
	if at == 0 {
		return txn.Part{Ranges: []txn.Range{{Collection: w.key.Collection, From: w.key.ID, To: w.key.ID, At: since}}}
	}
	return txn.Part{Reads: []txn.Read{{Collection: w.key.Collection, ID: w.key.ID, At: at}}}
}

// evaluate is what the write makes of a document; nil: it is deleted.
func (w *uniqueWrite) evaluate(old *wire.Document, live bool) ([]byte, *fsm.Refused, error) {
	r := w.b.r
	item := *w.item
	if item.Op == wire.OpRestore {
		item.Op = wire.OpPut
	}
	body, no := fsm.Evaluate(&item, live, old.Version, old.Body, r.opts.Clock.Now(), r.opts.Limits.MaxBytes)
	if no != nil || w.item.Op != wire.OpRestore {
		return body, no, nil
	}
	restored, err := w.g.Machine().Get(w.key, fsm.At{Version: w.item.RestoreVersion}, false)
	var gone *fsm.Error
	if errors.As(err, &gone) {
		switch gone.Code {
		case wire.CodeNotFound, wire.CodeVersionNotFound, wire.CodeHistoryExpired:
			return nil, &fsm.Refused{Code: gone.Code, Version: gone.Version, Detail: gone.Detail}, nil
		}
	}
	return restored.Body, nil, err
}

// refuse keeps a refusal under the request's ID, if the document is still the
// one that was read: so it was at the moment of whatever it is refused for. One
// that was not there must not have come and gone since: it would have held the
// value itself. What the attempt has locked is the refusal's, for it depends on
// the same document.
func (w *uniqueWrite) refuse(ctx context.Context, of *transaction, still *txn.Part, no *fsm.Refused) (shardgroup.Outcome, bool) {
	t := w.transaction()
	if t.front = of.front; t.front {
		w.g.PassLocks(of.id, t.id)
		defer w.g.Unlock(t.id)
	}
	t.request.Refused = no
	*t.part(t.home) = *still
	a, e := t.run(ctx)
	if e != nil && e.Code == wire.CodeTxnConflict { // it stepped back
		return shardgroup.Outcome{}, true
	}
	if e != nil {
		return shardgroup.Outcome{Err: e}, false
	}
	return w.answer(&a)
}

// answer is what the request was answered, by this attempt or another.
func (w *uniqueWrite) answer(a *txn.Answer) (o shardgroup.Outcome, again bool) {
	switch {
	case a.Write != nil:
		o.Result, o.Err = fsm.RequestAnswer(a)
		if res := &o.Result.Wire; res.Error == nil && w.item.ReturnDoc && res.Doc == nil && (w.item.Op == wire.OpPut || w.item.Op == wire.OpInsert) {
			res.Doc = w.item.Body
		}
		return o, false
	case a.State == txn.Expired:
		o.Result.Wire.Error = &wire.Error{Code: wire.CodeOutcomeExpired}
		return o, false
	}
	return o, true // it was not decided in its time, or met another
}

// duplicate words why an entry could not be taken.
func (w *uniqueWrite) duplicate(c *txn.Conflict, takes []unique.Held, body []byte) string {
	for _, h := range takes {
		if h.Entry == c.ID {
			return heldBy(w.set, h.Constraint, body, c.Detail)
		}
	}
	return "a unique value is held by " + showID(c.Detail)
}

// heldBy words that another document holds a value.
func heldBy(set *unique.Set, constraint int, body []byte, holder string) string {
	return fmt.Sprintf("%s is held by %s", set.Text(constraint, body), showID(holder))
}

// difference is which values a document gives up and which it takes.
func difference(old, now []unique.Held) (gives, takes []unique.Held) {
	has := make(map[string]bool, len(old)+len(now))
	for _, h := range now {
		has[h.Entry] = true
	}
	for _, h := range old {
		if !has[h.Entry] {
			gives = append(gives, h)
		}
	}
	clear(has)
	for _, h := range old {
		has[h.Entry] = true
	}
	for _, h := range now {
		if !has[h.Entry] {
			takes = append(takes, h)
		}
	}
	return gives, takes
}

// entry adds an operation on an entry to the part of its partition. Of one
// entry, what gives it up has to come before what takes it.
func (t *transaction) entry(v *placement.View, c *placement.Collection, id string, op txn.Op) {
	part := t.part(unique.Partition(c.Name, id, v.Partitions()))
	entries := unique.Entries(c.ID)
	for i := range part.Writes {
		if w := &part.Writes[i]; w.Collection == entries && w.ID == id {
			w.Ops = append(w.Ops, op)
			return
		}
	}
	part.Writes = append(part.Writes, txn.Write{Collection: entries, ID: id, Ops: []txn.Op{op}})
}
