package router

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/client/workers"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

const (
	// defaultTxnTimeout is how long a commit may take to be decided, maxTxnTimeout
	// the longest that can be asked for. Past it others abort it.
	defaultTxnTimeout = 5 * time.Second
	maxTxnTimeout     = time.Minute
	// orderedFrom is the attempt from which on partitions are prepared in order.
	orderedFrom = 3
	// afterlife is how long a coordinator goes on, once its client has its
	// answer; what is left then is for the leaders to settle.
	afterlife = 5 * time.Second
	// maxStaged is how many partitions besides home may prepare beside it: so many
	// are asked when somebody meets what is staged.
	maxStaged = 16
	// maxCoordinators bounds the transactions that this node coordinates.
	maxCoordinators = 20_000
)

// txnDrivers are the coordinators at work, which outlive their requests.
type txnDrivers struct {
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  *workers.Pool[func()]

	mu      sync.Mutex
	closed  bool                    // guarded by mu
	count   int                     // guarded by mu; goroutines and drivers
	drivers map[*txnDriver]struct{} // guarded by mu; at work without a goroutine
	ticks   *time.Timer             // guarded by mu; runs while there are drivers
	bg      sync.WaitGroup
}

// driverTick is how often drivers look at the time, and send again what was lost.
const driverTick = 20 * time.Millisecond

// start runs a coordinator; false if the router is closed or has too many.
func (d *txnDrivers) start(f func(ctx context.Context)) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.count >= maxCoordinators {
		return false
	}
	d.count++
	d.bg.Add(1)
	d.tasks.Run(func() {
		defer d.bg.Done()
		f(d.ctx)
		d.mu.Lock()
		d.count--
		d.mu.Unlock()
	})
	return true
}

// enter is start for one that needs no goroutine, until leave.
func (d *txnDrivers) enter(x *txnDriver) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.count >= maxCoordinators {
		return false
	}
	d.count++
	d.drivers[x] = struct{}{}
	if d.ticks == nil {
		d.ticks = time.AfterFunc(driverTick, d.tick)
	} else if len(d.drivers) == 1 {
		d.ticks.Reset(driverTick)
	}
	return true
}

func (d *txnDrivers) leave(x *txnDriver) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.drivers, x)
	d.count--
}

// tick has the drivers look at the time.
func (d *txnDrivers) tick() {
	d.mu.Lock()
	if d.closed || len(d.drivers) == 0 {
		d.mu.Unlock()
		return
	}
	all := slices.Collect(maps.Keys(d.drivers))
	d.bg.Add(1)
	d.mu.Unlock()
	defer d.bg.Done()
	now := time.Now()
	for _, x := range all {
		x.tick(now)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed && len(d.drivers) > 0 {
		d.ticks.Reset(driverTick)
	}
}

// spawn runs f for a driver, unless the router is closed.
func (d *txnDrivers) spawn(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.bg.Add(1)
	d.tasks.Run(func() { defer d.bg.Done(); f() })
}

// Close stops the coordinators, and waits for them. What they leave behind is
// settled by the leaders.
func (r *Router) Close() {
	d := &r.txns
	d.mu.Lock()
	d.closed = true
	left := slices.Collect(maps.Keys(d.drivers))
	if d.ticks != nil {
		d.ticks.Stop()
	}
	d.mu.Unlock()
	d.cancel()
	for _, x := range left {
		x.stop()
	}
	d.bg.Wait()
	r.tasks.Close()
}

// transaction is one commit request on its way.
type transaction struct {
	r        *Router
	req      *wire.CommitRequest
	id       txn.ID
	born     hlc.Timestamp
	timeout  time.Duration
	began    time.Time
	deadline hlc.Timestamp // when timeout has passed since began, by this node's clock then
	ordered  bool
	front    bool         // it has locked something up front
	request  *fsm.Request // the write that it carries out; nil: none
	names    map[placement.CollectionID]string
	parts    map[placement.PartitionID]*txn.Part
	home     placement.PartitionID
	writes   int
	bytes    uint64
	groups   int

	items   int                    // documents and ranges read and written
	entries map[string]uniqueEntry // of unique values
	stale   bool                   // what it has read cannot be read any more
}

// commit serves KindCommit.
func (r *Router) commit(ctx context.Context, req *wire.CommitRequest) (*wire.CommitReply, *wire.Error) {
	start := time.Now()
	t := &transaction{
		r: r, req: req, id: txn.ID(req.ID), born: hlc.Timestamp(req.Born), ordered: req.Attempt >= orderedFrom,
		names: map[placement.CollectionID]string{}, parts: map[placement.PartitionID]*txn.Part{},
	}
	var a txn.Answer
	e := t.build(ctx)
	defer func() { t.count(e) }()
	switch {
	case e != nil:
	case len(t.parts) == 0:
		a.At, e = t.cut(ctx)
	case t.stale:
		a, e = t.outdated(ctx)
	case t.writes == 0:
		e = t.verify(ctx)
	default:
		a, e = t.run(ctx)
		if e == nil && a.Conflict != nil && a.Conflict.Code == wire.CodeDuplicateValue {
			// Of a document that has changed since it was read nothing follows: it
			// may hold the value itself.
			e = t.verify(ctx)
		}
	}
	if e == nil {
		if a.State == txn.Expired {
			t.hear(ctx)
		}
		e = t.word(a)
	}
	if e != nil {
		return nil, e
	}
	// A client reads at the largest time it was told, which is not to be below
	// what it has committed: home's clock may be ahead of this node's.
	r.opts.Clock.Observe(a.At)
	return &wire.CommitReply{
		Time: uint64(a.At), Duplicate: a.Duplicate, Now: uint64(r.opts.Clock.Now()),
		Cost: wire.Cost{Groups: uint32(t.groups), Docs: uint64(t.writes), Bytes: t.bytes, WaitMicros: micros(start)},
	}, nil
}

// cut answers a commit of nothing: a timestamp at which everything can be read
// strictly.
func (t *transaction) cut(ctx context.Context) (hlc.Timestamp, *wire.Error) {
	v := t.r.opts.Placement.View()
	groups := make([]placement.GroupID, len(v.Groups))
	for i := range v.Groups {
		groups[i] = v.Groups[i].ID
	}
	t.groups = len(groups)
	run, e := t.r.cut(ctx, v, groups, 0, false)
	if e != nil {
		return 0, e
	}
	return run.at, nil
}

// build checks the request and cuts it by partitions.
func (t *transaction) build(ctx context.Context) *wire.Error {
	r := t.r
	if _, e := r.ready(); e != nil {
		return e
	}
	if t.req.ID == (wire.RequestID{}) {
		return refuse(wire.CodeBadRequest, "the transaction has no ID")
	}
	timeout := time.Duration(t.req.TimeoutMillis) * time.Millisecond
	if timeout <= 0 {
		timeout = defaultTxnTimeout
	}
	t.timeout, t.began = min(timeout, maxTxnTimeout), time.Now()
	t.deadline = r.opts.Clock.Now().Add(t.timeout)
	items, size := 0, 0
	for i := range t.req.Collections {
		c := &t.req.Collections[i]
		items += len(c.Reads) + len(c.Ranges) + len(c.Writes)
		for j := range c.Reads {
			size += len(c.Reads[j].ID) + 16
		}
		for j := range c.Writes {
			size += len(c.Writes[j].ID) + len(c.Writes[j].Body) + 32
		}
	}
	switch {
	case items > txn.MaxItems:
		return refuse(wire.CodeTooManyItems, "the transaction reads and writes %d documents and ranges, at most %d are allowed (split it)", items, txn.MaxItems)
	case size > txn.MaxBytes:
		return refuse(wire.CodeFrameTooLarge, "the transaction has %d bytes, at most %d are allowed (split it)", size, txn.MaxBytes)
	}
	t.items = items
	homeless := true
	var docs []*uniqueDoc // with unique values
	for i := range t.req.Collections {
		c := &t.req.Collections[i]
		v, coll, e := t.collection(ctx, c)
		if e != nil {
			return e
		}
		t.names[coll.ID] = coll.Name
		for j := range c.Reads {
			if e := checkID(c.Name, c.Reads[j].ID); e != nil {
				return e
			}
			part := t.part(partitionOf(v, coll, c.Reads[j].ID))
			part.Reads = append(part.Reads, txn.Read{Collection: coll.ID, ID: c.Reads[j].ID, At: hlc.Timestamp(c.Reads[j].At)})
		}
		for j := range c.Ranges {
			g := &c.Ranges[j]
			if len(g.Prefix) > wire.MaxIDBytes || len(g.From) > wire.MaxIDBytes || len(g.To) > wire.MaxIDBytes || !utf8.ValidString(g.Prefix) {
				return refuse(wire.CodeBadID, "%s: a range's bounds are longer than %d bytes or not UTF-8", c.Name, wire.MaxIDBytes)
			}
			rg := txn.Range{Collection: coll.ID, Prefix: g.Prefix, From: g.From, To: g.To, At: hlc.Timestamp(g.At)}
			if g.From == g.To && g.From != "" { // one document, that was not there
				part := t.part(partitionOf(v, coll, g.From))
				part.Ranges = append(part.Ranges, rg)
				continue
			}
			if sep := coll.Options.Separator; sep != "" && strings.Contains(g.Prefix, sep) {
				part := t.part(partitionOf(v, coll, g.Prefix))
				part.Ranges = append(part.Ranges, rg)
				continue
			}
			for p := range v.Owners {
				part := t.part(placement.PartitionID(p))
				part.Ranges = append(part.Ranges, rg)
			}
		}
		at := map[string]int{} // where in its part a document's write is
		for j := range c.Writes {
			w := &c.Writes[j]
			check := *w
			check.RequestID = t.req.ID
			if e := r.checkItem(c.Name, &check); e != nil {
				return e
			}
			if w.Op == wire.OpRestore {
				return refuse(wire.CodeBadRequest, "%s: a transaction restores nothing (read the version, then put it)", subject{c.Name, w.ID})
			}
			p := partitionOf(v, coll, w.ID)
			if homeless {
				t.home, homeless = p, false
			}
			part := t.part(p)
			op := txn.Op{Op: w.Op, Cond: w.Cond, IfVersion: w.IfVersion, Body: w.Body}
			t.bytes += uint64(len(w.Body))
			if n, again := at[w.ID]; again {
				if part.Writes[n].Ops = append(part.Writes[n].Ops, op); len(part.Writes[n].Ops) > txn.MaxOps {
					return refuse(wire.CodeTooManyItems, "%s: more than %d operations in one transaction", subject{c.Name, w.ID}, txn.MaxOps)
				}
				continue
			}
			at[w.ID] = len(part.Writes)
			part.Writes = append(part.Writes, txn.Write{Collection: coll.ID, ID: w.ID, MaxBytes: uint32(r.opts.Limits.MaxBytes), Ops: []txn.Op{op}})
			t.writes++
		}
		more, e := t.uniqueDocs(v, coll, c)
		if e != nil {
			return e
		}
		docs = append(docs, more...)
	}
	return t.addEntries(ctx, docs)
}

// collection finds a collection by its number, so that a transaction has the
// same participants in every attempt.
func (t *transaction) collection(ctx context.Context, c *wire.TxnCollection) (*placement.View, *placement.Collection, *wire.Error) {
	if e := checkName(c.Name); e != nil {
		return nil, nil, e
	}
	if e := checkNumber(c.Name, c.Number); e != nil {
		return nil, nil, e
	}
	v, coll, err := t.r.opts.Placement.LookupNumber(ctx, c.Name, placement.CollectionID(c.Number))
	if err != nil {
		return nil, nil, t.r.wireReadError(err, subject{collection: c.Name})
	}
	return v, coll, nil
}

func (t *transaction) part(p placement.PartitionID) *txn.Part {
	if t.parts[p] == nil {
		t.parts[p] = &txn.Part{}
	}
	return t.parts[p]
}

// partitions are those that take part, in order.
func (t *transaction) partitions() []placement.PartitionID {
	ps := make([]placement.PartitionID, 0, len(t.parts))
	for p := range t.parts {
		ps = append(ps, p)
	}
	slices.Sort(ps)
	return ps
}

// hear moves this node's clock up to those of the groups that take part. One of
// them remembers no request as old as the transaction, and its clock may be far
// ahead: the client makes its next ID by this node's.
func (t *transaction) hear(ctx context.Context) {
	v := t.r.opts.Placement.View()
	var groups []placement.GroupID
	for p := range t.parts {
		if g := v.Owner(p); !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	if most, e := t.r.largestClock(ctx, v, groups, subject{}); e == nil {
		t.r.opts.Clock.Observe(most)
	}
}

// word says why a transaction was not committed; nil if it was.
func (t *transaction) word(a txn.Answer) *wire.Error {
	switch a.State {
	case txn.Committed, txn.None:
		return nil
	case txn.Expired:
		return refuse(wire.CodeOutcomeExpired, "transaction %s is older than what the cluster remembers, nothing was done now (read to see what was done then)", t.id)
	}
	c := a.Conflict
	if c == nil {
		return refuse(wire.CodeTxnAborted, "transaction %s was aborted: it was not decided in its time, or somebody aborted it (run it again)", t.id)
	}
	return t.conflict(c)
}

func (t *transaction) conflict(c *txn.Conflict) *wire.Error {
	if unique.IsEntries(c.Collection) {
		return t.entryConflict(c)
	}
	name := t.names[c.Collection]
	if name == "" {
		name = fmt.Sprintf("collection %d", c.Collection)
	}
	s := subject{name, c.ID}
	if c.Code != wire.CodeTxnConflict {
		return t.r.word(&wire.Error{Code: c.Code, Version: c.Version}, s, c.Detail)
	}
	why := c.Detail
	if c.Rival != (txn.ID{}) {
		why = fmt.Sprintf("is held by transaction %s", c.Rival)
	}
	if why == "" {
		why = "is needed by another transaction"
	}
	if c.Range && c.ID == "" {
		s.id = ""
	}
	return &wire.Error{Code: wire.CodeTxnConflict, Version: c.Version, Message: fmt.Sprintf("%s: %s (run the transaction again)", s, why)}
}

// txnEnd is how a transaction ended for its client.
type txnEnd struct {
	a txn.Answer
	e *wire.Error
}

// run commits, and answers when the outcome is known. What is left to be done
// then goes on without the client.
func (t *transaction) run(ctx context.Context) (txn.Answer, *wire.Error) {
	v := t.r.opts.Placement.View()
	ps := t.partitions()
	groups := map[placement.GroupID]struct{}{}
	for _, p := range ps {
		groups[v.Owner(p)] = struct{}{}
	}
	t.groups = len(groups)
	ended := make(chan txnEnd, 1)
	var started bool
	if len(groups) == 1 {
		started = t.r.txns.start(func(own context.Context) {
			a, e := t.oneGroup(own, ps)
			ended <- txnEnd{a, e}
		})
	} else {
		started = newTxnDriver(t, ps, ended).begin()
	}
	if !started {
		return txn.Answer{}, refuse(wire.CodeOverloaded, "node %s coordinates as many transactions as it can (wait, then retry)", t.r.opts.Self)
	}
	select {
	case x := <-ended:
		return x.a, x.e
	case <-ctx.Done():
	case <-t.r.txns.ctx.Done():
	}
	select {
	case x := <-ended:
		return x.a, x.e
	default:
		return txn.Answer{}, t.undecided()
	}
}

func (t *transaction) undecided() *wire.Error {
	return refuse(wire.CodeOutcomeUnknown, "transaction %s is not decided yet, and may yet be committed (send it again under the same ID)", t.id)
}

// oneGroup commits in one entry.
func (t *transaction) oneGroup(ctx context.Context, ps []placement.PartitionID) (txn.Answer, *wire.Error) {
	x := &fsm.Txn{ID: t.id, Partition: t.home, Commit: &fsm.Commit{}, Request: t.request}
	for _, p := range ps {
		x.Commit.Parts = append(x.Commit.Parts, fsm.PartitionPart{Partition: p, Part: *t.parts[p]})
	}
	ctx, cancel := context.WithTimeout(ctx, t.left()+time.Second)
	defer cancel()
	var p patience
	unknown := false
	for turn := 0; ; turn++ {
		s := step{x: x, born: t.born, free: !t.front}
		t.r.steps(ctx, t.r.opts.Placement.View(), []*step{&s}, turn)
		if s.err == nil {
			s.answer, s.err = shardgroup.Inquire(ctx, t.r, t.id, t.home, true, 0, s.answer)
		}
		if s.err == nil {
			return s.answer, nil
		}
		e := t.r.wireError(s.err, subject{})
		unknown = unknown || e.Code.Unknown()
		if !passing(e.Code) && !e.Code.Unknown() && e.Code != wire.CodeTimeout && e.Code != wire.CodeOverloaded || !p.wait(ctx, t.left()) {
			if unknown && e.Code != wire.CodeOutcomeExpired {
				e = refuse(wire.CodeOutcomeUnknown, "transaction %s: an attempt may have happened and no later one got an answer: %s (send it again under the same ID)", t.id, e.Message)
			}
			return txn.Answer{}, e
		}
		t.r.refreshFor(ctx, e)
	}
}

// locked says that its client has locked documents up front.
func (t *transaction) locked() bool { return t.req != nil && t.req.Locked }

// left is how long the transaction may still take. It is this process's own
// time that counts: a timestamp's clock can stand still, or jump.
func (t *transaction) left() time.Duration {
	return max(t.timeout-time.Since(t.began), 10*time.Millisecond)
}

// now is where the deadline's clock would be if it went evenly.
func (t *transaction) now() hlc.Timestamp { return t.deadline.Add(time.Since(t.began) - t.timeout) }

// refreshFor takes a newer view if a refusal says that it would help.
func (r *Router) refreshFor(ctx context.Context, e *wire.Error) {
	if e.Code == wire.CodeStaleEpoch {
		_, _ = r.opts.Placement.Refresh(ctx) // the next attempt tells
	}
}

// verify asks every group whether what was read is still the newest, when all
// of it has been read: then there was a moment at which all of it was.
func (t *transaction) verify(ctx context.Context) *wire.Error {
	var p patience
	for {
		v := t.r.opts.Placement.View()
		by := map[placement.GroupID][]fsm.PartitionPart{}
		var order []placement.GroupID
		for _, part := range t.partitions() {
			g := v.Owner(part)
			if by[g] == nil {
				order = append(order, g)
			}
			by[g] = append(by[g], fsm.PartitionPart{Partition: part, Part: *t.parts[part]})
		}
		t.groups = len(order)
		answers := make([]*txn.Conflict, len(order))
		errs := make([]*wire.Error, len(order))
		t.r.parallel(len(order), func(i int) {
			q := &txnRead{group: order[i], epoch: v.Epoch, verify: by[order[i]]}
			errs[i] = t.r.onLeader(ctx, v, order[i], false, subject{},
				func(ctx context.Context, g Group) (err error) {
					answers[i], err = verifyHere(ctx, g, q)
					return err
				},
				func(ctx context.Context, node placement.NodeID) error {
					a, err := t.r.askTxn(ctx, node, q)
					answers[i] = a.Conflict
					return err
				})
		})
		var e *wire.Error
		for i := range order {
			if answers[i] != nil {
				return t.conflict(answers[i])
			}
			if errs[i] != nil {
				e = errs[i]
			}
		}
		if e == nil {
			return nil
		}
		if !t.r.refreshStale(ctx, e, false, &p) {
			return e
		}
	}
}

// verifyHere is one group's answer.
func verifyHere(ctx context.Context, g Group, q *txnRead) (*txn.Conflict, error) {
	if err := g.ReadIndex(ctx); err != nil {
		return nil, err
	}
	for i := range q.verify {
		p := &q.verify[i]
		keys := make([]fsm.ReadKey, len(p.Part.Reads))
		for j := range keys {
			keys[j] = fsm.ReadKey{Partition: p.Partition, Epoch: q.epoch, Collection: p.Part.Reads[j].Collection, ID: p.Part.Reads[j].ID}
		}
		if err := g.ClearReads(ctx, keys, 0); err != nil {
			return nil, err
		}
		for j := range p.Part.Ranges {
			rg := &p.Part.Ranges[j]
			if err := g.ClearScan(ctx, &fsm.ScanSpec{Collection: rg.Collection, Prefix: rg.Prefix, Partitions: []placement.PartitionID{p.Partition}}, 0); err != nil {
				return nil, err
			}
		}
	}
	return g.Machine().Verify(q.verify, q.epoch)
}

// lock serves KindLock.
func (r *Router) lock(ctx context.Context, req *wire.LockRequest) (*wire.LockReply, *wire.Error) {
	start := time.Now()
	if e := checkID(req.Collection, req.Document); e != nil {
		return nil, e
	}
	ttl := time.Duration(req.TTLMillis) * time.Millisecond
	if ttl <= 0 {
		ttl = defaultTxnTimeout
	}
	ttl = min(ttl, maxTxnTimeout)
	s := subject{req.Collection, req.Document}
	reply := new(wire.LockReply)
	var p patience
	for {
		v, c, e := r.collection(ctx, req.Collection)
		if e != nil {
			return nil, e
		}
		key := fsm.ReadKey{Partition: partitionOf(v, c, req.Document), Epoch: v.Epoch, Collection: c.ID, ID: strings.Clone(req.Document)}
		e = r.onLeader(ctx, v, v.Owner(key.Partition), req.Direct, s,
			func(ctx context.Context, g Group) error {
				if err := g.Lock(ctx, txn.ID(req.ID), hlc.Timestamp(req.Born), key, ttl, req.First); err != nil {
					return err
				}
				// Whether this node still leads is not asked: if it does not, the
				// lock is lost, and the commit finds what has changed.
				asOf := r.opts.Clock.Now()
				if err := g.ReadAt(ctx, asOf); err != nil {
					return err
				}
				if err := g.ClearReads(ctx, []fsm.ReadKey{key}, 0); err != nil {
					return err
				}
				d, err := g.Machine().Get(key, fsm.At{}, false)
				var none *fsm.Error
				if errors.As(err, &none) && none.Code == wire.CodeNotFound {
					reply.Result, err = wire.GetResult{Error: r.wireReadError(err, s)}, nil
				} else {
					reply.Result = wire.GetResult{Doc: d}
				}
				reply.AsOf = max(uint64(asOf), d.UpdatedAt)
				return err
			},
			func(ctx context.Context, node placement.NodeID) error {
				sub := *req
				sub.Direct = true
				body, err := r.call(ctx, node, wire.KindLock, wire.Append(nil, &sub), 0)
				if err == nil {
					err = wire.Decode(body, reply)
				}
				return err
			})
		if e == nil {
			reply.Now = uint64(r.opts.Clock.Now())
			reply.Cost = wire.Cost{Groups: 1, Keys: 1, Docs: 1, WaitMicros: micros(start)}
			return reply, nil
		}
		if !r.refreshStale(ctx, e, req.Direct, &p) {
			return nil, e
		}
	}
}

// unlock serves KindUnlock: as well as it can, for locks expire.
func (r *Router) unlock(ctx context.Context, req *wire.UnlockRequest) {
	v, e := r.ready()
	if e != nil {
		return
	}
	groups := map[placement.GroupID]*wire.UnlockRequest{}
	for i := range req.Collections {
		c, ok := v.Collection(req.Collections[i].Name)
		if !ok {
			continue
		}
		for _, d := range req.Collections[i].Reads {
			g := v.Owner(partitionOf(v, c, d.ID))
			if groups[g] == nil {
				groups[g] = &wire.UnlockRequest{ID: req.ID, Direct: true}
			}
			groups[g].Collections = append(groups[g].Collections, wire.TxnCollection{Name: c.Name, Reads: []wire.TxnRead{d}})
		}
	}
	for id, sub := range groups {
		_ = r.unlockIn(ctx, v, id, sub, req.Direct) // its locks expire
	}
}

// unlockIn lets go in one group, once.
func (r *Router) unlockIn(ctx context.Context, v *placement.View, id placement.GroupID, sub *wire.UnlockRequest, direct bool) error {
	g, node := r.locate(v, id, blindTurns)
	switch {
	case g != nil:
		g.Unlock(txn.ID(sub.ID))
		return nil
	case node == "" || direct:
		return notLeaderHere(id, node, subject{})
	}
	_, err := r.call(ctx, node, wire.KindUnlock, wire.Append(nil, sub), 0)
	return err
}
