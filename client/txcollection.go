package client

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/impossibledb/idb/client/route"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/txn/hlc"
)

// TxCollection is a collection in a transaction. Reads are at the transaction's
// timestamp and see what it has written; writes are kept for its commit.
type TxCollection struct {
	tx   *Tx
	name string
}

// Name is the collection's.
func (c *TxCollection) Name() string { return c.name }

// Get reads a document. One that does not exist is ErrNotFound, and that it did
// not exist is part of what the commit depends on.
func (c *TxCollection) Get(ctx context.Context, id string) (*Document, error) {
	if e := checkID("get", c.name, id); e != nil {
		return nil, e
	}
	c.tx.mu.Lock()
	defer c.tx.mu.Unlock()
	if e := c.tx.usableLocked("get", c.name, id); e != nil {
		return nil, e
	}
	if err := c.fetchLocked(ctx, []string{id}); err != nil {
		return nil, err
	}
	d, err := c.seenLocked(ctx, id)
	if err == nil && d == nil {
		err = refused(wire.CodeNotFound, "get", c.name, id, "does not exist")
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// GetInto reads a document and decodes it into v.
func (c *TxCollection) GetInto(ctx context.Context, id string, v any) error {
	d, err := c.Get(ctx, id)
	if err != nil {
		return err
	}
	return d.Decode(v)
}

// Exists says whether there is such a document.
func (c *TxCollection) Exists(ctx context.Context, id string) (bool, error) {
	_, err := c.Get(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// GetMany reads many documents; nil where there is none.
func (c *TxCollection) GetMany(ctx context.Context, ids []string) ([]*Document, error) {
	for _, id := range ids {
		if e := checkID("get", c.name, id); e != nil {
			return nil, e
		}
	}
	c.tx.mu.Lock()
	defer c.tx.mu.Unlock()
	if e := c.tx.usableLocked("get", c.name, ""); e != nil {
		return nil, e
	}
	if err := c.fetchLocked(ctx, ids); err != nil {
		return nil, err
	}
	docs := make([]*Document, len(ids))
	for i, id := range ids {
		var err error
		if docs[i], err = c.seenLocked(ctx, id); err != nil {
			return nil, err
		}
	}
	return docs, nil
}

// timeLocked fixes the timestamp that the transaction reads at.
func (tx *Tx) timeLocked() Timestamp {
	if tx.at == 0 {
		// The end of the millisecond: what this client was told of is below.
		tx.at = hlc.EndOf(tx.db.Now().Time())
	}
	return tx.at
}

// cutFrom is the attempt from which on a read-only transaction reads where
// nothing can change it.
const cutFrom = 3

// cutLocked has a read-only transaction that was overtaken twice read at a
// timestamp which the cluster finds for it. An older server knows of none.
func (tx *Tx) cutLocked(ctx context.Context) error {
	if tx.at != 0 || !tx.cfg.readOnly || tx.attempt < cutFrom {
		return nil
	}
	x := commitExchange{clock: tx.db.c.Clock(), req: wire.CommitRequest{ID: tx.id, Attempt: tx.attempt}}
	ctx, cancel := tx.db.bound(ctx)
	if cancel != nil {
		defer cancel()
	}
	if err := tx.db.c.Do(ctx, wire.KindCommit, route.Read, &x); err != nil {
		return ofFailure(err, "read", "", "")
	}
	tx.at, tx.atCut = Timestamp(x.reply.Time), x.reply.Time != 0
	return nil
}

// laterLocked answers a refusal of the transaction's time: this client has heard
// of a node whose clock is far ahead, and asks at the time of the one that
// refused, which is not below anything that was written. That it is a lower one
// does no harm while nothing was read: what has changed since is found when it
// commits.
func (tx *Tx) laterLocked(err error) bool {
	var e *Error
	if tx.began || tx.cfg.at != 0 || tx.atCut || !errors.As(err, &e) || e.Code != wire.CodeFutureTime || e.Version == 0 || Timestamp(e.Version) >= tx.at {
		return false
	}
	tx.db.c.Clock().Correct(Timestamp(e.Version))
	tx.at = hlc.EndOf(Timestamp(e.Version).Time())
	return true
}

// aheadLocked words a refusal of a time that something was read at already: by a
// node whose clock is far ahead, and another has refused it. The transaction ends
// for it, and the next one begins at the time of the one that refused.
func (tx *Tx) aheadLocked(op, collection string, err error) error {
	var e *Error
	if tx.cfg.at != 0 || !errors.As(err, &e) || e.Code != wire.CodeFutureTime || e.Version == 0 {
		return err
	}
	now := Timestamp(e.Version)
	tx.db.c.Clock().Correct(now)
	return refused(wire.CodeTxnAborted, op, collection, "", "the transaction reads at %s, by a node whose clock is ahead, and now is %s (run it again)",
		tx.at.Time().Format(time.RFC3339Nano), now.Time().Format(time.RFC3339Nano))
}

// fetchLocked reads documents that were not read yet, and whose value the
// transaction's own writes do not say.
func (c *TxCollection) fetchLocked(ctx context.Context, ids []string) error {
	tx := c.tx
	k := tx.collLocked(c.name)
	want := make([]string, 0, len(ids))
	for _, id := range ids {
		if p, wrote := k.writes.get(id); !k.reads.has(id) && (!wrote || !p.replaces()) && !slices.Contains(want, id) {
			want = append(want, id)
		}
	}
	want, err := c.lockRivalsLocked(ctx, want)
	if err != nil {
		return err
	}
	return tx.readLocked(ctx, k, want)
}

// replaces says that the value follows from the operations alone.
func (p *pendingDoc) replaces() bool {
	for i := range p.items {
		switch p.items[i].Op {
		case wire.OpPut, wire.OpInsert, wire.OpDelete:
			return true
		}
	}
	return false
}

// seenLocked is a document with the transaction's own writes; nil: none.
func (c *TxCollection) seenLocked(ctx context.Context, id string) (*Document, error) {
	k := c.tx.collLocked(c.name)
	base, _ := k.reads.get(id)
	p, wrote := k.writes.get(id)
	if !wrote {
		return base, nil
	}
	return c.valueLocked(ctx, p, base)
}

// valueLocked is what a pending document will be. Operators are evaluated by a
// server, which has the code for it.
func (c *TxCollection) valueLocked(ctx context.Context, p *pendingDoc, base *Document) (*Document, error) {
	if p.known {
		return p.value, nil
	}
	d := &Document{ID: p.id, CreatedAt: c.tx.at, UpdatedAt: c.tx.at}
	if base != nil {
		d.CreatedAt, d.Version = base.CreatedAt, base.Version
	}
	d.Version++
	last := &p.items[len(p.items)-1]
	switch last.Op {
	case wire.OpPut, wire.OpInsert:
		d.body = last.Body
	case wire.OpDelete:
		d = nil
	default:
		req := wire.EvaluateRequest{Collection: c.name, Document: wire.Document{ID: p.id}, Items: p.items}
		if base != nil {
			req.Document.Version, req.Document.Body = base.Version, base.body
		}
		var reply wire.EvaluateReply
		if err := c.tx.db.control(ctx, "evaluate", wire.KindEvaluate, &req, &reply); err != nil {
			return nil, err
		}
		if d.body = reply.Body; reply.Body == nil {
			d = nil
		}
	}
	p.known, p.value = true, d
	return d, nil
}

// GetForUpdate reads the newest version of a document and locks it until the
// transaction ends: others that want it wait, or step back if they are younger.
// It is for documents that many transactions write; the lock saves them from
// conflicts, and correctness does not rest on it. Call it before other reads: a
// version younger than the transaction's timestamp is an ErrTxConflict.
func (c *TxCollection) GetForUpdate(ctx context.Context, id string) (*Document, error) {
	if e := checkID("get for update", c.name, id); e != nil {
		return nil, e
	}
	tx := c.tx
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if e := tx.usableLocked("get for update", c.name, id); e != nil {
		return nil, e
	}
	if tx.cfg.readOnly {
		return nil, refused(wire.CodeBadRequest, "get for update", c.name, id, "the transaction is read-only")
	}
	if err := c.lockLocked(ctx, id, max(time.Until(tx.deadline), time.Second)); err != nil {
		return nil, err
	}
	d, err := c.seenLocked(ctx, id)
	if err == nil && d == nil {
		err = refused(wire.CodeNotFound, "get for update", c.name, id, "does not exist")
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// lockLocked locks a document for so long, and reads it.
func (c *TxCollection) lockLocked(ctx context.Context, id string, ttl time.Duration) error {
	tx := c.tx
	x := lockExchange{clock: tx.db.c.Clock(), req: wire.LockRequest{
		ID: tx.id, Born: uint64(tx.born), Collection: c.name, Document: id,
		First: tx.locksLocked() == 0, TTLMillis: uint32(ttl.Milliseconds()),
	}}
	bound, cancel := tx.db.bound(ctx)
	if cancel != nil {
		defer cancel()
	}
	k := tx.collLocked(c.name)
	k.locked = append(k.locked, id) // also if the answer is lost
	if err := tx.db.c.Do(bound, wire.KindLock, route.Read, &x); err != nil {
		return ofFailure(err, "get for update", c.name, id)
	}
	var d *Document
	if r := &x.reply.Result; r.Error == nil {
		d = documentOf(&r.Doc)
	}
	was, read := k.reads.get(id)
	switch {
	case read && (was == nil) != (d == nil), read && d != nil && was.UpdatedAt != d.UpdatedAt,
		!read && d != nil && tx.at != 0 && d.UpdatedAt > tx.at:
		return refused(wire.CodeTxnConflict, "get for update", c.name, id, "was written since the transaction began to read (lock first)")
	case !read:
		if e := tx.growLocked("get for update", c.name, id, len(id)+16); e != nil {
			return e
		}
		k.reads.add(id, d)
		if err := tx.holdLocked(ctx, k, id, Timestamp(x.reply.AsOf)); err != nil {
			// It is locked, and not read.
			k.reads.drop()
			delete(k.held, id)
			return err
		}
	}
	return nil
}

// lockExchange is the exchange of a lock.
type lockExchange struct {
	clock *route.Clock
	req   wire.LockRequest
	reply wire.LockReply
}

func (x *lockExchange) Place(v *route.View) (uint32, bool) {
	return v.Partition(x.req.Collection, x.req.Document)
}

func (x *lockExchange) Append(dst []byte, _ uint64, direct bool) []byte {
	x.req.Direct = direct
	return x.req.AppendTo(dst)
}

func (x *lockExchange) Read(body []byte, _ bool) error {
	if err := wire.Decode(body, &x.reply); err != nil {
		return route.BadAnswer(err)
	}
	x.clock.Observe(max(x.reply.Now, x.reply.AsOf)) // what it reads next is not older
	if e := x.reply.Result.Error; e != nil && e.Code != wire.CodeNotFound {
		return e
	}
	return nil
}

// Put creates the document or replaces it.
func (c *TxCollection) Put(id string, document any, opts ...WriteOption) error {
	return c.document(wire.OpPut, "put", id, document, opts)
}

// Insert creates the document; if it exists, the commit fails with ErrAlreadyExists.
func (c *TxCollection) Insert(id string, document any, opts ...WriteOption) error {
	return c.document(wire.OpInsert, "insert", id, document, opts)
}

// Update changes a document by operators; if there is none, the commit fails
// with ErrNotFound. What was not read is not depended on: increments of one
// document by many transactions do not conflict in what they read.
func (c *TxCollection) Update(id string, update any, opts ...WriteOption) error {
	return c.update(wire.OpUpdate, "update", id, update, opts)
}

// Upsert is Update, on an empty document if there is none.
func (c *TxCollection) Upsert(id string, update any, opts ...WriteOption) error {
	return c.update(wire.OpUpsert, "upsert", id, update, opts)
}

// Delete removes the document; if there is none, the commit fails with ErrNotFound.
func (c *TxCollection) Delete(id string, opts ...WriteOption) error {
	return c.write("delete", wire.WriteItem{Op: wire.OpDelete, ID: id}, opts)
}

// Restore writes an old version again.
func (c *TxCollection) Restore(ctx context.Context, id string, version uint64, opts ...WriteOption) error {
	d, err := c.tx.db.Collection(c.name).Get(ctx, id, AtVersion(version))
	if err != nil {
		return err
	}
	return c.write("restore", wire.WriteItem{Op: wire.OpPut, ID: id, Body: d.body}, opts)
}

func (c *TxCollection) document(kind wire.WriteOp, op, id string, document any, opts []WriteOption) error {
	raw, id, e := body(document, op, c.name, id)
	if e != nil {
		return e
	}
	return c.write(op, wire.WriteItem{Op: kind, ID: id, Body: raw}, opts)
}

func (c *TxCollection) update(kind wire.WriteOp, op, id string, update any, opts []WriteOption) error {
	raw, e := operators(update, op, c.name, id)
	if e != nil {
		return e
	}
	return c.write(op, wire.WriteItem{Op: kind, ID: id, Body: raw}, opts)
}

func (c *TxCollection) write(op string, item wire.WriteItem, opts []WriteOption) error {
	if e := checkID(op, c.name, item.ID); e != nil {
		return e
	}
	apply(&item, opts)
	item.RequestID, item.ReturnDoc = RequestID{}, false
	tx := c.tx
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if e := tx.usableLocked(op, c.name, item.ID); e != nil {
		return e
	}
	if tx.cfg.readOnly {
		return refused(wire.CodeBadRequest, op, c.name, item.ID, "the transaction is read-only")
	}
	if e := tx.growLocked(op, c.name, item.ID, len(item.ID)+len(item.Body)+32); e != nil {
		return e
	}
	k := tx.collLocked(c.name)
	p, wrote := k.writes.get(item.ID)
	if !wrote {
		p = &pendingDoc{id: item.ID}
		p.items = p.first[:0]
		k.writes.add(item.ID, p)
	}
	if tx.home == nil {
		tx.home = k
	}
	p.items = append(p.items, item)
	p.known = false
	return nil
}

// Count counts documents, with what the transaction has written. It scans: what
// was counted is part of what the commit depends on. Prefix narrows it.
func (c *TxCollection) Count(ctx context.Context, opts ...ReadOption) (n uint64, err error) {
	for _, err := range c.Scan(ctx, opts...) {
		if err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// Scan reads documents in order of their IDs, with what the transaction has
// written among them. What was scanned, up to where the iteration stopped, is
// part of what the commit depends on: nothing may have come into it. Prefix,
// Limit, Reverse and PageSize narrow it.
func (c *TxCollection) Scan(ctx context.Context, opts ...ReadOption) iter.Seq2[*Document, error] {
	return func(yield func(*Document, error) bool) {
		tx := c.tx
		r := readingOf(opts)
		tx.mu.Lock()
		e := tx.usableLocked("scan", c.name, "")
		if e == nil {
			e = tx.growLocked("scan", c.name, "", len(r.prefix)+64)
		}
		if e != nil {
			tx.mu.Unlock()
			yield(nil, e)
			return
		}
		k := tx.collLocked(c.name)
		own := make([]*pendingDoc, 0, k.writes.len())
		for p := range k.writes.values() {
			if strings.HasPrefix(p.id, r.prefix) {
				own = append(own, p)
			}
		}
		err := tx.cutLocked(ctx)
		if err == nil {
			err = tx.settleLocked(ctx)
		}
		if err != nil {
			tx.mu.Unlock()
			yield(nil, err)
			return
		}
		at := tx.timeLocked()
		tx.mu.Unlock()
		before := func(a, b string) bool { return a < b != r.reverse && a != b }
		slices.SortFunc(own, func(a, b *pendingDoc) int {
			if before(a.id, b.id) {
				return -1
			}
			return 1
		})

		last, whole := "", false
		defer func() {
			rg := wire.TxnRange{Prefix: r.prefix, At: uint64(at)}
			switch {
			case whole:
			case last == "":
				return // nothing was seen
			case r.reverse:
				rg.From = last
			default:
				rg.To = last
			}
			tx.mu.Lock()
			k.ranges = append(k.ranges, rg)
			tx.mu.Unlock()
		}()
		yielded := uint64(0)
		give := func(d *Document) bool {
			yielded++
			return yield(d, nil) && (r.limit == 0 || yielded < r.limit)
		}
		// mine yields the transaction's own documents before an ID ("": all).
		mine := func(id string, d *Document) (more bool, hit bool) {
			for len(own) > 0 && (id == "" || !before(id, own[0].id)) {
				p := own[0]
				own = own[1:]
				var base *Document
				if p.id == id {
					base, hit = d, true
				} else if !p.replaces() { // it is not there: the scan has passed its place
					base = nil
				}
				tx.mu.Lock()
				v, err := c.valueLocked(ctx, p, base)
				tx.mu.Unlock()
				last = p.id
				switch {
				case err != nil:
					yield(nil, err)
					return false, hit
				case v != nil && !give(v):
					return false, hit
				}
			}
			return true, hit
		}
		scan := []ReadOption{Prefix(r.prefix)}
		if r.reverse {
			scan = append(scan, Reverse())
		}
		if r.page > 0 {
			scan = append(scan, PageSize(int(r.page)))
		}
		began, later := false, true
		start := func() {
			if !began {
				began = true
				tx.mu.Lock()
				tx.began = true
				tx.mu.Unlock()
			}
		}
		for later {
			later = false
			for d, err := range tx.db.Collection(c.name).Scan(ctx, append(scan, AtTimestamp(at))...) {
				if err != nil {
					tx.mu.Lock()
					if later = tx.laterLocked(err); later {
						at = tx.at
					} else {
						err = tx.aheadLocked("scan", c.name, err)
					}
					tx.mu.Unlock()
					if later {
						break
					}
					yield(nil, err)
					return
				}
				start()
				more, hit := mine(d.ID, d)
				if !more {
					return
				}
				last = d.ID
				if !hit && !give(d) {
					return
				}
			}
		}
		start()
		if more, _ := mine("", nil); more {
			whole = true
		}
	}
}
