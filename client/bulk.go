package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/impossibledb/idb/client/route"
	"github.com/impossibledb/idb/client/wire"
)

// What one request of a bulk carries at most: what one entry of a group's log
// holds, so that a request is one group commit.
const (
	bulkItems = 256
	bulkBytes = 512 << 10
)

// Bulk gathers writes and sends them together. Every write stands alone and has
// a result of its own. It is not safe for concurrent use; Do may be called once.
//
//	b := db.Bulk()
//	b.Put(users, "u1", ada)
//	b.Update(users, "u2", client.Inc("visits", 1))
//	b.Delete(orders, "o9", client.IfVersion(3))
//	res, err := b.Do(ctx)
type Bulk struct {
	db      *DB
	ordered bool
	ops     []bulkOp

	mu      sync.Mutex
	targets map[string]*target // of Do, by collection; what they point to is guarded by mu
}

// bulkOp is one write of a bulk.
type bulkOp struct {
	name   string // of the operation
	c      *Collection
	item   wire.WriteItem
	result BulkItem
	over   bool // it has its result
	doubt  bool // an attempt of it may have taken effect
	named  int  // how often its ID was refused as expired and made anew
	last   *wire.Error
}

// BulkItem is what became of one write. Err is nil or an *Error.
type BulkItem struct {
	Result
	ID  string
	Err error
}

// BulkResult has one item per write, in the order they were added.
type BulkResult struct {
	Items []BulkItem
	Cost  Cost
}

// BulkError says that some writes of a bulk failed; their items tell why.
type BulkError struct {
	Failed int   // how many
	First  int   // index of the first
	Err    error // its error
	// Unknown is how many of the failed have an unknown outcome.
	Unknown int
	Total   int
}

func (e *BulkError) Error() string {
	text := fmt.Sprintf("bulk: %d of %d writes failed", e.Failed, e.Total)
	if e.Unknown > 0 {
		text += fmt.Sprintf(" (%d of them with an unknown outcome)", e.Unknown)
	}
	return fmt.Sprintf("%s; the first is number %d: %v", text, e.First, e.Err)
}

// Unwrap is the first failure.
func (e *BulkError) Unwrap() error { return e.Err }

// Bulk starts an unordered bulk: writes run in parallel, in no order, and a
// failure stops none of the others.
func (db *DB) Bulk() *Bulk { return &Bulk{db: db} }

// OrderedBulk starts an ordered bulk: writes run one after the other and the
// first failure ends it; what comes after is ErrNotAttempted.
func (db *DB) OrderedBulk() *Bulk { return &Bulk{db: db, ordered: true} }

// Len is the number of writes.
func (b *Bulk) Len() int { return len(b.ops) }

// Put adds a Collection.Put.
func (b *Bulk) Put(c *Collection, id string, document any, opts ...WriteOption) {
	b.document(c, wire.OpPut, "put", id, document, opts)
}

// Insert adds a Collection.Insert.
func (b *Bulk) Insert(c *Collection, id string, document any, opts ...WriteOption) {
	b.document(c, wire.OpInsert, "insert", id, document, opts)
}

// Update adds a Collection.Update.
func (b *Bulk) Update(c *Collection, id string, update any, opts ...WriteOption) {
	b.update(c, wire.OpUpdate, "update", id, update, opts)
}

// Upsert adds a Collection.Upsert.
func (b *Bulk) Upsert(c *Collection, id string, update any, opts ...WriteOption) {
	b.update(c, wire.OpUpsert, "upsert", id, update, opts)
}

// Delete adds a Collection.Delete.
func (b *Bulk) Delete(c *Collection, id string, opts ...WriteOption) {
	b.add(c, "delete", wire.WriteItem{Op: wire.OpDelete, ID: id}, checkID("delete", c.name, id), opts)
}

// Restore adds a Collection.Restore.
func (b *Bulk) Restore(c *Collection, id string, version uint64, opts ...WriteOption) {
	b.add(c, "restore", wire.WriteItem{Op: wire.OpRestore, ID: id, RestoreVersion: version}, checkID("restore", c.name, id), opts)
}

func (b *Bulk) document(c *Collection, kind wire.WriteOp, op, id string, document any, opts []WriteOption) {
	raw, id, e := body(document, op, c.name, id)
	b.add(c, op, wire.WriteItem{Op: kind, ID: id, Body: raw}, e, opts)
}

func (b *Bulk) update(c *Collection, kind wire.WriteOp, op, id string, update any, opts []WriteOption) {
	raw, e := operators(update, op, c.name, id)
	b.add(c, op, wire.WriteItem{Op: kind, ID: id, Body: raw}, e, opts)
}

// add takes a write; one that cannot be sent has its result already.
func (b *Bulk) add(c *Collection, op string, item wire.WriteItem, e *Error, opts []WriteOption) {
	repeat := apply(&item, opts)
	o := bulkOp{name: op, c: c, item: item, result: BulkItem{ID: item.ID}, doubt: repeat}
	if e != nil {
		o.result.Err, o.over = e, true
	}
	b.ops = append(b.ops, o)
}

// Do sends the writes and waits for all results. The error is nil only if every
// write was done; otherwise it is a *BulkError and the result is complete too.
// Each write is retried under its own request ID until ctx ends, as a single
// one is.
func (b *Bulk) Do(ctx context.Context) (*BulkResult, error) {
	ctx, cancel := b.db.bound(ctx)
	if cancel != nil {
		defer cancel()
	}
	clock := b.db.c.Clock()
	b.targets = make(map[string]*target)
	for i := range b.ops {
		o := &b.ops[i]
		if o.item.RequestID != (RequestID{}) {
			o.named = maxRenames // the caller knows it by this one
		}
		name(&o.item, clock)
		t := b.targets[o.c.name]
		if creates := creating(o.item.Op); t == nil || creates && !t.creates {
			b.targets[o.c.name] = &target{db: b.db, name: o.c.name, creates: creates, first: o.item.RequestID}
		}
	}
	res := &BulkResult{Items: make([]BulkItem, len(b.ops))}
	if b.ordered {
		b.inOrder(ctx, res)
	} else {
		b.inParallel(ctx, res)
	}
	failed := BulkError{Total: len(b.ops)}
	for i := range b.ops {
		o := &b.ops[i]
		res.Items[i] = o.result
		if o.result.Err == nil {
			continue
		}
		if failed.Failed == 0 {
			failed.First, failed.Err = i, o.result.Err
		}
		failed.Failed++
		if errors.Is(o.result.Err, ErrOutcomeUnknown) {
			failed.Unknown++
		}
	}
	if failed.Failed > 0 {
		return res, &failed
	}
	return res, nil
}

func (b *Bulk) inParallel(ctx context.Context, res *BulkResult) {
	// By collection, in order of first appearance.
	var collections []*Collection
	byName := make(map[string][]*bulkOp)
	for i := range b.ops {
		o := &b.ops[i]
		if o.over {
			continue
		}
		if byName[o.c.name] == nil {
			collections = append(collections, o.c)
		}
		byName[o.c.name] = append(byName[o.c.name], o)
	}
	var batches []*batch
	for _, c := range collections {
		ops := byName[c.name]
		number, err := b.number(ctx, c.name, 0) // before the cut, which goes by its separator
		if err != nil {
			(&batch{b: b, collection: c.name, left: ops}).fail(err)
			continue
		}
		sizes := make(map[int]int) // of a part, by its first item
		fits := func(part []int, i int) bool {
			size := sizes[part[0]]
			if size == 0 {
				size = ops[part[0]].size()
			}
			size += ops[i].size()
			sizes[part[0]] = size
			return size <= bulkBytes
		}
		for _, part := range c.split(len(ops), func(i int) string { return ops[i].item.ID }, fits, bulkItems) {
			x := &batch{b: b, collection: c.name, number: number}
			for _, i := range part {
				x.left = append(x.left, ops[i])
			}
			batches = append(batches, x)
		}
	}
	_ = each(len(batches), func(k int) error {
		batches[k].do(ctx)
		return nil
	})
	for _, x := range batches {
		addCost(&res.Cost, &x.cost)
	}
}

// inOrder sends runs of writes to the same collection one after the other; a
// node runs the writes of a run in order.
func (b *Bulk) inOrder(ctx context.Context, res *BulkResult) {
	for i := 0; i < len(b.ops); {
		x := &batch{b: b, ordered: true, collection: b.ops[i].c.name}
		size := 0
		for i < len(b.ops) && !b.ops[i].over && b.ops[i].c.name == x.collection && len(x.left) < bulkItems {
			if size += b.ops[i].size(); size > bulkBytes && len(x.left) > 0 {
				break
			}
			x.left = append(x.left, &b.ops[i])
			i++
		}
		stop := false
		if len(x.left) > 0 {
			sent := x.left
			x.left = append([]*bulkOp(nil), sent...)
			x.do(ctx)
			addCost(&res.Cost, &x.cost)
			for _, o := range sent {
				stop = stop || o.result.Err != nil
			}
		}
		if !stop && i < len(b.ops) && b.ops[i].over {
			stop = true // a write that could not even be sent
			i++
		}
		if stop {
			for ; i < len(b.ops); i++ {
				o := &b.ops[i]
				o.result.Err = refused(wire.CodeNotAttempted, o.name, o.c.name, o.item.ID, "not attempted, an earlier write of the ordered bulk failed")
			}
		}
	}
}

// number is the number of a collection that is not was: the same for all parts
// of the bulk until one of them was told that it is gone.
func (b *Bulk) number(ctx context.Context, name string, was uint32) (uint32, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.targets[name]
	if was != 0 && t.number == was {
		if err := t.ask(ctx); err != nil {
			return 0, err
		}
	}
	err := t.bind(ctx)
	return t.number, err
}

// size is about what the write takes in a frame.
func (o *bulkOp) size() int { return len(o.item.Body) + len(o.item.ID) + 48 }

// finish gives the write its result.
func (o *bulkOp) finish(e *Error) {
	o.over = true
	if e != nil {
		e.RequestID = o.item.RequestID
		o.result.Err = e
	}
}

// batch is the exchange of a part of a bulk. What has its result leaves left,
// and only what is left is sent again.
type batch struct {
	b          *Bulk
	collection string
	number     uint32 // of the collection; 0: not known yet
	turns      int    // how often it was looked up again
	ordered    bool
	left       []*bulkOp
	// gone are writes of which nothing was done, because the collection's
	// number is dropped, and what follows them in an ordered bulk.
	gone   []*bulkOp
	absent *wire.Error // that refusal
	req    wire.WriteRequest
	cost   Cost
	faults int
}

// do sends the part until every write has a result or the time is up.
func (x *batch) do(ctx context.Context) {
	for {
		if err := x.bind(ctx); err != nil {
			x.fail(err)
			return
		}
		err := x.b.db.c.Do(ctx, wire.KindWrite, route.Write, x)
		if err != nil && !x.setAside(err) {
			x.fail(err)
		}
		if len(x.gone) == 0 {
			return
		}
	}
}

// bind finds the collection's number: at first, and after writes were refused
// because it is gone.
func (x *batch) bind(ctx context.Context) error {
	if x.number != 0 && len(x.gone) == 0 {
		return nil
	}
	was := x.number
	x.left, x.gone = append(x.left, x.gone...), nil
	number, err := x.b.number(ctx, x.collection, was)
	if err == nil && number == was {
		err = &route.Failure{Refusal: x.absent, Attempts: 1}
	}
	x.number = number
	return err
}

// missing says that a refusal of a write that is not in doubt means that the
// collection has another number now.
func (x *batch) missing(refusal *wire.Error) bool {
	if refusal.Code != wire.CodeCollectionNotFound || x.turns >= maxTurns {
		return false
	}
	x.absent = refusal
	return true
}

// setAside keeps what was refused as a whole because the collection is gone.
func (x *batch) setAside(err error) bool {
	var f *route.Failure
	doubt := slices.ContainsFunc(x.left, func(o *bulkOp) bool { return o.doubt })
	if doubt || !isGone(err) || !errors.As(err, &f) || !x.missing(f.Refusal) {
		return false
	}
	x.turns++
	x.gone, x.left = append(x.gone, x.left...), nil
	return true
}

// fail gives the writes that are left the failure of their request.
func (x *batch) fail(err error) {
	var f *route.Failure
	if !errors.As(err, &f) {
		f = &route.Failure{Err: err, Unknown: true}
	}
	left := x.left
	x.left = nil
	for i, o := range left {
		mine := *f
		if o.last != nil && !isGone(f) {
			mine.Refusal = o.last
		}
		if o.doubt {
			// A refusal of the whole request is believed only if it speaks for
			// the attempts before it.
			mine.Unknown = !f.Final() || !route.Decisive(f.Refusal.Code)
		}
		if x.ordered && i > 0 && !mine.Unknown {
			o.finish(refused(wire.CodeNotAttempted, o.name, x.collection, o.item.ID, "not attempted, an earlier write of the ordered bulk failed"))
			continue
		}
		o.finish(ofFailure(&mine, o.name, x.collection, o.item.ID))
	}
}

func (x *batch) Place(v *route.View) (uint32, bool) {
	if !v.Numbered(x.collection, x.number) {
		return 0, false
	}
	return samePlace(v, x.collection, len(x.left), func(i int) string { return x.left[i].item.ID })
}

func (x *batch) Append(dst []byte, epoch uint64, direct bool) []byte {
	x.req.Collection, x.req.Number, x.req.Ordered = x.collection, x.number, x.ordered
	x.req.Epoch, x.req.Direct = epoch, direct
	x.req.Items = x.req.Items[:0]
	for _, o := range x.left {
		x.req.Items = append(x.req.Items, o.item)
	}
	return x.req.AppendTo(dst)
}

func (x *batch) Read(body []byte, lost bool) error {
	var reply wire.WriteReply
	if err := wire.Decode(body, &reply); err != nil {
		return route.BadAnswer(err)
	}
	x.b.db.c.Clock().Observe(reply.Now)
	if len(reply.Results) != len(x.left) {
		return route.BadAnswer(errCount)
	}
	addCost(&x.cost, &reply.Cost)
	var wait *wire.Error // of the first write that is to be sent again
	left := x.left[:0:len(x.left)]
	aside := len(x.gone)
	vague := false // a write ended without it being known what earlier attempts did
	for i, o := range x.left {
		r := &reply.Results[i]
		if r.Error == nil {
			o.result.Result = resultOf(r, o.item.ID)
			o.finish(nil)
			continue
		}
		if x.ordered && wait != nil && r.Error.Code == wire.CodeNotAttempted {
			o.doubt = o.doubt || lost
			left = append(left, o) // its turn comes when the one before is settled
			continue
		}
		if x.ordered && len(x.gone) > aside && r.Error.Code == wire.CodeNotAttempted || !lost && !o.doubt && x.missing(r.Error) {
			x.gone = append(x.gone, o)
			continue
		}
		pending, doubtful := route.Pending(r.Error, lost || o.doubt)
		if r.Error.Code == wire.CodeNotAttempted {
			doubtful = vague && (lost || o.doubt) // an earlier attempt need not have stopped there
		}
		if pending && r.Error.Code == wire.CodeInternal {
			if x.faults++; x.faults > serverFaults {
				pending = false
			}
		}
		switch {
		case pending:
			o.doubt, o.last = doubtful, r.Error
			left = append(left, o)
			if wait == nil {
				wait = r.Error
			}
		case r.Error.Code == wire.CodeOutcomeExpired && !doubtful && o.named < maxRenames:
			o.named++
			o.item.RequestID = RequestID{}
			name(&o.item, x.b.db.c.Clock())
			left = append(left, o)
			if wait == nil {
				wait = r.Error
			}
		case doubtful:
			vague = true
			o.finish(ofFailure(&route.Failure{Refusal: r.Error, Unknown: true, Attempts: 1}, o.name, x.collection, o.item.ID))
		default:
			o.finish(ofRefusal(r.Error, o.name, x.collection, o.item.ID))
		}
	}
	x.left = left
	if len(x.gone) > aside {
		x.turns++
	}
	if wait == nil {
		return nil
	}
	if !wait.Code.Retryable() {
		// Doubt about one write is kept with it; it says nothing of the others.
		softer := *wait
		softer.Code = wire.CodeUnavailable
		return &softer
	}
	return wait
}

// serverFaults is how many faults of servers a part of a bulk puts up with.
const serverFaults = 16
