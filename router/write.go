package router

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn/hlc"
)

// batch is one write request on its way.
//
// Invariant: results[i] is written by whoever carries item i at the moment;
// an item is in one group's part only.
type batch struct {
	r       *Router
	req     *wire.WriteRequest
	view    *placement.View
	coll    *placement.Collection
	results []wire.WriteResult
	unknown []bool // items of which some attempt may have happened; nil: none
	groups  map[uint32]struct{}
	docs    atomic.Uint64
	bytes   atomic.Uint64
	most    atomic.Int64 // groups that one item was about

	share share // of documents returned
}

// write serves KindWrite.
func (r *Router) write(ctx context.Context, req *wire.WriteRequest) (*wire.WriteReply, *wire.Error) {
	start := time.Now()
	switch {
	case len(req.Items) == 0:
		return nil, refuse(wire.CodeBadRequest, "the write has no items")
	case len(req.Items) > wire.MaxItems:
		return nil, refuse(wire.CodeTooManyItems, "the write has %d items, at most %d are allowed (send several)", len(req.Items), wire.MaxItems)
	}
	if _, e := r.ready(); e != nil {
		return nil, e
	}
	b := &batch{r: r, req: req, results: make([]wire.WriteResult, len(req.Items)), share: share{room: r.returned, most: maxReturnedBytes}}
	defer b.share.release()
	todo := make([]int, 0, len(req.Items))
	for i := range req.Items {
		if e := r.checkItem(req.Collection, &req.Items[i]); e != nil {
			b.results[i].Error = e
			if req.Ordered {
				b.notAttempted(i)
				break
			}
			continue
		}
		todo = append(todo, i)
	}
	if len(todo) > 0 {
		if e := checkName(req.Collection); e != nil {
			return nil, e
		}
		if e := checkNumber(req.Collection, req.Number); e != nil {
			return nil, e
		}
		if e := b.resolve(ctx, false); e != nil {
			return nil, e
		}
		if req.Ordered {
			b.ordered(ctx, todo)
		} else {
			b.unordered(ctx, todo)
		}
	}
	return &wire.WriteReply{
		Results: b.results,
		Now:     uint64(r.opts.Clock.Now()),
		Cost: wire.Cost{
			Groups: uint32(max(len(b.groups), min(1, len(todo)), int(b.most.Load()))), Docs: b.docs.Load(), Bytes: b.bytes.Load(), WaitMicros: micros(start),
		},
	}, nil
}

// notAttempted marks what comes after a failed item of an ordered write. A
// refusal that says nothing of earlier attempts does not say either that those
// stopped at this item.
func (b *batch) notAttempted(failed int) {
	c := b.results[failed].Error.Code
	stopped := decided(c) && !c.Unknown()
	for i := failed + 1; i < len(b.results); i++ {
		if !stopped && b.unknown != nil && b.unknown[i] {
			b.results[i] = wire.WriteResult{Error: refuse(wire.CodeOutcomeUnknown,
				"%s: an attempt may have happened, and the later one stopped at item %d of this ordered write, of which nothing is known either (retry under the same request ID)", b.subject(i), failed+1)}
			continue
		}
		b.results[i] = wire.WriteResult{Error: refuse(wire.CodeNotAttempted,
			"%s: not attempted, because item %d of this ordered write failed", subject{b.req.Collection, b.req.Items[i].ID}, failed+1)}
	}
}

// resolve takes a view and finds the collection in it: the one that the request
// names by its number, and no other, in every attempt. fresh asks the placement
// leader first.
func (b *batch) resolve(ctx context.Context, fresh bool) *wire.Error {
	p := b.r.opts.Placement
	s := subject{collection: b.req.Collection}
	if fresh {
		if _, err := p.Refresh(ctx); err != nil {
			return b.r.wireReadError(err, s)
		}
	}
	v := p.View()
	c, ok := v.Numbered(b.req.Collection, placement.CollectionID(b.req.Number))
	if !ok {
		var err error
		v, c, err = p.LookupNumber(ctx, b.req.Collection, placement.CollectionID(b.req.Number))
		if err != nil {
			return b.r.wireReadError(err, s)
		}
	}
	b.view, b.coll = v, c
	return nil
}

// unordered carries all items, one part per group at a time in parallel, until
// each is done or refused for good.
func (b *batch) unordered(ctx context.Context, todo []int) {
	var p patience
	for turn := 0; ; turn++ {
		b.attempt(ctx, todo, turn)
		todo = b.unfinished(todo)
		if len(todo) == 0 {
			return
		}
		if b.req.Direct || !p.wait(ctx, b.r.opts.Patience) || !b.reroute(ctx, todo) {
			b.giveUp(todo)
			return
		}
	}
}

// ordered carries the items one after the other; those of one group in a row
// are one part, in which each still waits for the one before.
func (b *batch) ordered(ctx context.Context, todo []int) {
	for len(todo) > 0 {
		run := todo[:b.sameGroup(todo)]
		b.unordered(ctx, run)
		for _, i := range run {
			if b.results[i].Error != nil {
				b.notAttempted(i)
				return
			}
		}
		todo = todo[len(run):]
	}
}

// sameGroup is how many of the first items belong to one group.
func (b *batch) sameGroup(todo []int) int {
	first := b.owner(todo[0])
	for n, i := range todo {
		if b.owner(i) != first {
			return n
		}
	}
	return len(todo)
}

func (b *batch) owner(i int) placement.GroupID {
	return b.view.Owner(partitionOf(b.view, b.coll, b.req.Items[i].ID))
}

// attempt routes the items by the present view and carries each group's part.
func (b *batch) attempt(ctx context.Context, todo []int, turn int) {
	if len(todo) == 1 || b.sameGroup(todo) == len(todo) {
		b.touch(b.owner(todo[0]))
		b.carry(ctx, b.owner(todo[0]), todo, turn)
		return
	}
	parts := make(map[placement.GroupID][]int)
	var order []placement.GroupID
	for _, i := range todo {
		g := b.owner(i)
		if _, seen := parts[g]; !seen {
			order = append(order, g)
			b.touch(g)
		}
		parts[g] = append(parts[g], i)
	}
	b.r.parallel(len(order), func(n int) { b.carry(ctx, order[n], parts[order[n]], turn) })
}

// touch counts a group for the cost; one group needs no set.
func (b *batch) touch(g placement.GroupID) {
	if b.groups == nil {
		if len(b.req.Items) == 1 {
			return
		}
		b.groups = make(map[uint32]struct{})
	}
	b.groups[uint32(g)] = struct{}{}
}

// asked counts the groups of one item.
func (b *batch) asked(groups int) {
	for n := b.most.Load(); int64(groups) > n && !b.most.CompareAndSwap(n, int64(groups)); n = b.most.Load() {
	}
}

// carry takes one group's part to its leader: a few items at a time while they
// want documents back, for those are held until the answer is sent.
func (b *batch) carry(ctx context.Context, id placement.GroupID, items []int, turn int) {
	for len(items) > 0 {
		some, reserved := b.portion(ctx, items)
		if len(some) == 0 {
			return
		}
		b.carrySome(ctx, id, some, turn)
		if reserved > 0 {
			spare := reserved
			for _, i := range some {
				if size := int64(len(b.results[i].Doc)); size <= spare {
					spare -= size
				} else {
					b.results[i].Doc = nil // more than was asked for
				}
			}
			b.share.unreserve(spare)
		}
		items = items[len(some):]
		if b.req.Ordered && slices.ContainsFunc(some, func(i int) bool { return b.results[i].Error != nil }) {
			for _, i := range items {
				b.results[i] = wire.WriteResult{Error: &wire.Error{Code: wire.CodeNotAttempted}} // worded at the end
			}
			return
		}
	}
}

// portion is how many of the items are carried at once, and how many bytes
// their documents may have together. Without room for any document the items
// are carried without: the result still says what was done, and the document
// can be read. None: they are refused, for their time was up.
func (b *batch) portion(ctx context.Context, items []int) (some []int, reserved int64) {
	first := slices.IndexFunc(items, func(i int) bool { return b.returnable(i) > 0 })
	switch {
	case first < 0:
		return items, 0
	case first > 0:
		return items[:first], 0
	}
	document := int64(b.r.opts.Limits.MaxBytes)
	if !b.share.begin(ctx, document) {
		for _, i := range items {
			b.results[i] = wire.WriteResult{Error: refuse(wire.CodeOverloaded, "%s: this node holds as many documents for answers as it may (retry, or do not ask for the document)", b.subject(i))}
		}
		return nil, 0
	}
	some = items[:min(len(items), returnedAtOnce)]
	var want int64
	for _, i := range some {
		want += b.returnable(i)
	}
	least := b.returnable(some[0])
	reserved = b.share.reserve(min(want, max(maxReturnedBytes/4, least)), least)
	if reserved == 0 {
		for _, i := range items {
			b.req.Items[i].ReturnDoc = false
		}
		return items, 0
	}
	fit, bytes := 0, int64(0)
	for _, i := range some {
		if bytes += b.returnable(i); bytes > reserved {
			break
		}
		fit++
	}
	return some[:fit], reserved
}

// returnable is how large item i's document may come back.
func (b *batch) returnable(i int) int64 {
	it := &b.req.Items[i]
	switch {
	case !it.ReturnDoc:
		return 0
	case it.Op == wire.OpPut || it.Op == wire.OpInsert:
		return int64(len(it.Body))
	}
	return int64(b.r.opts.Limits.MaxBytes)
}

func (b *batch) carrySome(ctx context.Context, id placement.GroupID, items []int, turn int) {
	group, node := b.r.locate(b.view, id, turn)
	switch {
	case group != nil:
		b.propose(ctx, group, items)
	case b.req.Direct || node == "":
		for _, i := range items {
			b.results[i] = wire.WriteResult{Error: notLeaderHere(id, node, b.subject(i))}
		}
	default:
		b.forward(ctx, id, node, items)
	}
}

func (b *batch) subject(i int) subject { return subject{b.req.Collection, b.req.Items[i].ID} }

func (b *batch) command(i int) fsm.Command {
	it := &b.req.Items[i]
	return fsm.Command{Write: &fsm.Write{
		Partition: partitionOf(b.view, b.coll, it.ID), Epoch: b.view.Epoch, Collection: b.coll.ID, Item: *it,
	}}
}

// propose carries items to the group's log, here.
func (b *batch) propose(ctx context.Context, g Group, items []int) {
	set := unique.SetOf(&b.coll.Options)
	if len(items) == 1 {
		b.proposeOne(ctx, g, items[0], set)
		return
	}
	if b.req.Ordered {
		for n, i := range items {
			b.proposeOne(ctx, g, i, set)
			if b.results[i].Error == nil {
				continue
			}
			for _, later := range items[n+1:] {
				b.results[later] = wire.WriteResult{Error: &wire.Error{Code: wire.CodeNotAttempted}} // worded at the end
			}
			return
		}
		return
	}
	if set != nil {
		if items = b.proposeUnique(ctx, g, items, set); len(items) == 0 {
			return
		}
	}
	commands := make([]fsm.Command, len(items))
	for n, i := range items {
		commands[n] = b.command(i)
	}
	for n, o := range g.ProposeMany(ctx, commands) {
		b.settle(items[n], o)
	}
}

// proposeOne carries one item to the group's log, here.
func (b *batch) proposeOne(ctx context.Context, g Group, i int, set *unique.Set) {
	if !plain(&b.req.Items[i], set) {
		b.writeUnique(ctx, g, i, set)
		return
	}
	c := b.command(i)
	g.AwaitWrite(ctx, &c)
	result, err := g.Propose(ctx, c)
	b.settle(i, shardgroup.Outcome{Result: result, Err: err})
}

// returnedAtOnce is how many documents a group is asked to return at once.
const returnedAtOnce = 16

// maxReturnedBytes bounds the documents returned in one answer.
const maxReturnedBytes = wire.MaxFrameBytes - 4<<20

// settle words one item's outcome.
func (b *batch) settle(i int, o shardgroup.Outcome) {
	it := &b.req.Items[i]
	if o.Err != nil {
		b.results[i] = wire.WriteResult{Error: b.r.wireError(o.Err, b.subject(i))}
		return
	}
	res := o.Result.Wire
	if res.Error != nil {
		if res.Error.Code == wire.CodeLocked {
			o.Result.Detail = "is held by transaction " + o.Result.Rival.String() + " (wait, then retry)"
		}
		res.Error = b.r.wordWrite(res.Error, b.req.Collection, it, o.Result.Detail)
	} else {
		b.docs.Add(1)
		b.bytes.Add(uint64(len(it.Body)))
	}
	b.results[i] = res
}

// forward sends items to the node that leads their group. It is told not to
// forward again, so a request makes one hop.
func (b *batch) forward(ctx context.Context, id placement.GroupID, node placement.NodeID, items []int) {
	sub := wire.WriteRequest{
		Collection: b.req.Collection, Epoch: uint64(b.view.Epoch), Direct: true, Ordered: b.req.Ordered, Number: b.req.Number,
		Items: make([]wire.WriteItem, len(items)),
	}
	for n, i := range items {
		sub.Items[n] = b.req.Items[i]
	}
	body, err := b.r.call(ctx, node, wire.KindWrite, wire.Append(nil, &sub), len(items))
	var reply wire.WriteReply
	if err == nil {
		if err = wire.Decode(body, &reply); err == nil && len(reply.Results) != len(items) {
			err = refuse(wire.CodeInternal, "node %s answered %s to %d", node, plural(len(reply.Results), "result"), len(items))
		}
		if err != nil { // it did answer, so it may have done something
			err = &wire.ConnError{Sent: true, Err: err}
		}
	}
	if err != nil {
		b.r.learnFrom(id, err)
		for _, i := range items {
			b.results[i] = wire.WriteResult{Error: b.r.wireError(err, b.subject(i))}
		}
		return
	}
	b.r.learn(id, node)
	for n, i := range items {
		b.results[i] = reply.Results[n]
		switch e := reply.Results[n].Error; {
		case e == nil:
		case e.Code == wire.CodeNotLeader:
			b.r.learn(id, placement.NodeID(e.Leader))
		case e.Code == wire.CodeOutcomeExpired:
			// The group's clock is ahead of this node's, which the client will
			// make its next request ID by.
			b.r.opts.Clock.Observe(hlc.Timestamp(reply.Now))
		}
	}
	b.docs.Add(reply.Cost.Docs)
	b.bytes.Add(reply.Cost.Bytes)
	b.asked(int(reply.Cost.Groups))
}

// learnFrom takes what a failed call says about a group's leader.
func (r *Router) learnFrom(id placement.GroupID, err error) {
	var refusal *wire.Error
	if errors.As(err, &refusal) && refusal.Code == wire.CodeNotLeader {
		r.learn(id, placement.NodeID(refusal.Leader))
		return
	}
	r.learn(id, "")
}

// unfinished are the items to carry again: those refused for a passing reason,
// and those whose outcome is unknown, for their request ID makes that safe.
func (b *batch) unfinished(todo []int) []int {
	var again []int
	for _, i := range todo {
		e := b.results[i].Error
		if e == nil {
			continue
		}
		if e.Code.Unknown() {
			if b.unknown == nil {
				b.unknown = make([]bool, len(b.results))
			}
			b.unknown[i] = true
		}
		// In an ordered part, what follows the one to be carried again.
		follows := e.Code == wire.CodeNotAttempted && len(again) > 0
		if passing(e.Code) || e.Code.Unknown() || follows {
			again = append(again, i)
			continue
		}
		b.doubt(i)
	}
	return again
}

// doubt makes a refusal of item i an unknown outcome if an earlier attempt may
// have happened and the refusal says nothing about that.
func (b *batch) doubt(i int) {
	if e := b.results[i].Error; b.unknown != nil && b.unknown[i] && !decided(e.Code) {
		b.results[i].Error = refuse(wire.CodeOutcomeUnknown,
			"%s: an attempt may have happened and no later one got an answer: %s (retry under the same request ID)", b.subject(i), e.Message)
	}
}

// reroute takes a newer view before the next attempt, if the last one was
// refused for an old one. It answers false if the collection is gone.
func (b *batch) reroute(ctx context.Context, todo []int) bool {
	stale := slices.ContainsFunc(todo, func(i int) bool {
		return b.results[i].Error.Code == wire.CodeStaleEpoch
	})
	if e := b.resolve(ctx, stale); e != nil {
		if passing(e.Code) {
			return true // keep the view and try again
		}
		for _, i := range todo {
			if !b.results[i].Error.Code.Unknown() {
				b.results[i].Error = e
			}
		}
		return false
	}
	return true
}

// giveUp fixes what is said of the items that could not be finished in time.
func (b *batch) giveUp(todo []int) {
	for _, i := range todo {
		b.doubt(i)
	}
}
