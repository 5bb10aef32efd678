package client

import (
	"context"
	"crypto/rand"
	"sync"

	"github.com/impossibledb/idb/client/route"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
)

// Collection is a handle of a collection. Documents go in as structs, maps, Raw
// or json.RawMessage.
type Collection struct {
	db   *DB
	name string
}

// Name is the collection's.
func (c *Collection) Name() string { return c.name }

// Result is what a write did.
type Result struct {
	// Version is the document's after the write; of a delete, the version it
	// removed plus one.
	Version uint64
	// Timestamp is the commit's.
	Timestamp Timestamp
	// CreatedAt is when the document was created.
	CreatedAt Timestamp
	// Created: the document did not exist before.
	Created bool
	// Duplicate: the effect is of an earlier attempt under this request ID.
	Duplicate bool
	// Doc is the document as written, with ReturnDoc.
	Doc *Document
	// Cost is what the answer took; of a bulk, see BulkResult.
	Cost Cost
}

// Put creates the document or replaces it. With an empty id, the document's
// _id names it.
func (c *Collection) Put(ctx context.Context, id string, document any, opts ...WriteOption) (Result, error) {
	return c.writeDocument(ctx, wire.OpPut, "put", id, document, opts)
}

// Insert creates the document, or fails with ErrAlreadyExists.
func (c *Collection) Insert(ctx context.Context, id string, document any, opts ...WriteOption) (Result, error) {
	return c.writeDocument(ctx, wire.OpInsert, "insert", id, document, opts)
}

// Update changes an existing document by operators:
//
//	users.Update(ctx, "u17", client.Set("name", "Ada").Inc("visits", 1))
//	users.Update(ctx, "u17", client.D{"$set": client.D{"name": "Ada"}})
func (c *Collection) Update(ctx context.Context, id string, update any, opts ...WriteOption) (Result, error) {
	return c.writeUpdate(ctx, wire.OpUpdate, "update", id, update, opts)
}

// Upsert is Update, on an empty document if there is none.
func (c *Collection) Upsert(ctx context.Context, id string, update any, opts ...WriteOption) (Result, error) {
	return c.writeUpdate(ctx, wire.OpUpsert, "upsert", id, update, opts)
}

// Delete removes the document, or fails with ErrNotFound. Its history stays for
// as long as the collection keeps history.
func (c *Collection) Delete(ctx context.Context, id string, opts ...WriteOption) (Result, error) {
	if e := checkID("delete", c.name, id); e != nil {
		return Result{}, e
	}
	return c.write(ctx, "delete", wire.WriteItem{Op: wire.OpDelete, ID: id}, opts)
}

// Restore writes an old version again, as the newest. It also brings back a
// deleted document.
func (c *Collection) Restore(ctx context.Context, id string, version uint64, opts ...WriteOption) (Result, error) {
	if e := checkID("restore", c.name, id); e != nil {
		return Result{}, e
	}
	return c.write(ctx, "restore", wire.WriteItem{Op: wire.OpRestore, ID: id, RestoreVersion: version}, opts)
}

func (c *Collection) writeDocument(ctx context.Context, kind wire.WriteOp, op, id string, document any, opts []WriteOption) (Result, error) {
	raw, id, e := body(document, op, c.name, id)
	if e != nil {
		return Result{}, e
	}
	return c.write(ctx, op, wire.WriteItem{Op: kind, ID: id, Body: raw}, opts)
}

func (c *Collection) writeUpdate(ctx context.Context, kind wire.WriteOp, op, id string, update any, opts []WriteOption) (Result, error) {
	raw, e := operators(update, op, c.name, id)
	if e != nil {
		return Result{}, e
	}
	return c.write(ctx, op, wire.WriteItem{Op: kind, ID: id, Body: raw}, opts)
}

// apply sets what the options ask for. It answers whether the write may have
// been sent before.
func apply(item *wire.WriteItem, opts []WriteOption) (repeat bool) {
	for i := range opts {
		switch o := &opts[i]; o.kind {
		case optIfVersion:
			item.IfVersion = o.version
		case optIfAbsent:
			item.Cond |= wire.CondAbsent
		case optIfPresent:
			item.Cond |= wire.CondPresent
		case optReturnDoc:
			item.ReturnDoc = true
		case optRequestID:
			item.RequestID = o.id
		case optRepeat:
			item.RequestID, repeat = o.id, true
		}
	}
	return repeat
}

// numberOf is the collection that RetryOf's write was to; 0: not known.
func numberOf(opts []WriteOption) uint32 {
	for i := range opts {
		if opts[i].kind == optRepeat {
			return opts[i].number
		}
	}
	return 0
}

// name gives an item its request ID, if it has none, for all its attempts.
func name(item *wire.WriteItem, clock *route.Clock) {
	if item.RequestID != (RequestID{}) {
		return
	}
	item.RequestID.Time = uint64(clock.Now())
	_, _ = rand.Read(item.RequestID.Random[:]) // never fails
}

// write is the path of every single write.
func (c *Collection) write(ctx context.Context, op string, item wire.WriteItem, opts []WriteOption) (Result, error) {
	mode := route.Write
	if apply(&item, opts) {
		mode = route.Repeat
	}
	x := writes.Get().(*write)
	x.clock = c.db.c.Clock()
	renames := 0
	if item.RequestID != (RequestID{}) {
		renames = maxRenames // the caller knows it by this one
	}
	name(&item, x.clock)
	x.items[0] = item
	x.req.Collection = c.name
	x.req.Items = x.items[:]

	ctx, cancel := c.db.bound(ctx)
	t := target{db: c.db, name: c.name, creates: creating(item.Op), first: item.RequestID, number: numberOf(opts)}
	err := t.bind(ctx)
	if err != nil && mode == route.Repeat {
		err = doubtful(err)
	}
	for again := err == nil; again; {
		x.req.Number = t.number
		if err = c.db.c.Do(ctx, wire.KindWrite, mode, x); err == nil {
			break
		}
		if expired(err) && renames < maxRenames {
			renames++
			item.RequestID = RequestID{}
			name(&item, x.clock)
			x.items[0].RequestID = item.RequestID
			continue
		}
		again, err = t.moved(ctx, err)
	}
	if cancel != nil {
		cancel()
	}
	if err != nil {
		e := ofFailure(err, op, c.name, item.ID)
		e.RequestID, e.number = item.RequestID, t.number
		x.release()
		return Result{}, e
	}
	r := resultOf(&x.reply.Results[0], item.ID)
	r.Cost = x.reply.Cost
	x.release()
	return r, nil
}

func resultOf(w *wire.WriteResult, id string) Result {
	r := Result{
		Version: w.Version, Timestamp: Timestamp(w.Time), CreatedAt: Timestamp(w.CreatedAt),
		Created: w.Created, Duplicate: w.Duplicate,
	}
	if w.Doc != nil {
		r.Doc = &Document{ID: id, Version: w.Version, CreatedAt: r.CreatedAt, UpdatedAt: r.Timestamp, body: w.Doc}
	}
	return r
}

// write is the exchange of one write. It is pooled: everything that a write
// needs besides its document is in it.
type write struct {
	clock *route.Clock
	req   wire.WriteRequest
	items [1]wire.WriteItem
	reply wire.WriteReply
}

var writes = sync.Pool{New: func() any { return new(write) }}

// release forgets the documents, which must not be kept alive by the pool.
func (x *write) release() {
	x.items[0] = wire.WriteItem{}
	x.req = wire.WriteRequest{}
	clear(x.reply.Results)
	writes.Put(x)
}

func (x *write) Place(v *route.View) (uint32, bool) {
	if !v.Numbered(x.req.Collection, x.req.Number) {
		return 0, false
	}
	return v.Partition(x.req.Collection, x.items[0].ID)
}

func (x *write) Append(dst []byte, epoch uint64, direct bool) []byte {
	x.req.Epoch, x.req.Direct = epoch, direct
	if mutant.On(mutant.RetryUnderNewID) {
		_, _ = rand.Read(x.items[0].RequestID.Random[:]) // never fails
	}
	return x.req.AppendTo(dst)
}

func (x *write) Read(body []byte, _ bool) error {
	if err := wire.Decode(body, &x.reply); err != nil {
		return route.BadAnswer(err)
	}
	x.clock.Observe(x.reply.Now)
	if len(x.reply.Results) != 1 {
		return route.BadAnswer(errCount)
	}
	if e := x.reply.Results[0].Error; e != nil {
		return e
	}
	return nil
}
