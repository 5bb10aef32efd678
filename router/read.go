package router

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn/hlc"
)

// maxAhead is how far a read's time may be ahead of this node's clock. A read
// at a time pushes the group's clock there, so it is kept to what clocks may
// reasonably differ by.
const maxAhead = 5 * time.Second

// checkTime refuses times that lie in the future. The time may come from an
// answer of nodes whose clocks are far ahead of this one's, so the groups are
// asked for theirs before it is refused.
func (r *Router) checkTime(ctx context.Context, v *placement.View, at uint64, s subject) *wire.Error {
	now := r.opts.Clock.Now()
	if hlc.Timestamp(at) <= now.Add(maxAhead) {
		return nil
	}
	groups := make([]placement.GroupID, len(v.Groups))
	for i, g := range v.Groups {
		groups[i] = g.ID
	}
	most, e := r.largestClock(ctx, v, groups, s)
	if e != nil {
		return e
	}
	r.opts.Clock.Observe(most)
	if now = r.opts.Clock.Now(); hlc.Timestamp(at) <= now.Add(maxAhead) {
		return nil
	}
	future := refuse(wire.CodeFutureTime, "%s: the time %s is in the future, now is %s (read at a time that has passed)",
		s, hlc.Timestamp(at).Time().Format(time.RFC3339Nano), now.Time().Format(time.RFC3339Nano))
	future.Version = uint64(now)
	return future
}

// largestClock asks the groups' leaders for their clocks. Nothing that was
// acknowledged before the call has a later timestamp; 0: nothing was written.
func (r *Router) largestClock(ctx context.Context, v *placement.View, groups []placement.GroupID, s subject) (hlc.Timestamp, *wire.Error) {
	clocks := make([]hlc.Timestamp, len(groups))
	errs := make([]*wire.Error, len(groups))
	r.parallel(len(groups), func(i int) {
		errs[i] = r.onLeader(ctx, v, groups[i], false, s,
			func(ctx context.Context, g Group) (err error) {
				clocks[i], err = g.Clock(ctx)
				return err
			},
			func(ctx context.Context, node placement.NodeID) (err error) {
				clocks[i], err = r.askClock(ctx, node, groups[i])
				return err
			})
	})
	var most hlc.Timestamp
	for i := range clocks {
		if errs[i] != nil {
			return 0, errs[i]
		}
		most = max(most, clocks[i])
	}
	return most, nil
}

// lookup is one get request on its way; the counterpart of batch.
type lookup struct {
	r       *Router
	req     *wire.GetRequest
	view    *placement.View
	coll    *placement.Collection
	results []wire.GetResult
	share   share
}

// maxGetBytes bounds the documents of one answer, which is one frame, and
// askedBytes those that another node is asked for at once.
const (
	maxGetBytes = wire.MaxFrameBytes - 2<<20
	askedBytes  = 4 << 20
)

// get serves KindGet.
func (r *Router) get(ctx context.Context, req *wire.GetRequest) (*wire.GetReply, *wire.Error) {
	start := time.Now()
	switch {
	case len(req.IDs) == 0:
		return nil, refuse(wire.CodeBadRequest, "%s: no IDs to get", req.Collection)
	case len(req.IDs) > wire.MaxItems:
		return nil, refuse(wire.CodeTooManyItems, "%s: %d IDs to get, at most %d are allowed (send several requests)", req.Collection, len(req.IDs), wire.MaxItems)
	case req.AtVersion != 0 && req.AtTime != 0:
		return nil, refuse(wire.CodeBadRequest, "%s: a get is at a version or at a time, not both", req.Collection)
	}
	v, c, e := r.readable(ctx, req.Collection)
	if e != nil {
		return nil, e
	}
	if req.AtTime != 0 {
		if e := r.checkTime(ctx, v, req.AtTime, subject{collection: req.Collection}); e != nil {
			return nil, e
		}
	}
	most := int64(maxGetBytes)
	if req.MaxBytes != 0 {
		most = min(most, int64(req.MaxBytes))
	}
	l := &lookup{r: r, req: req, view: v, coll: c, results: make([]wire.GetResult, len(req.IDs)), share: share{room: r.room, most: most}}
	defer l.share.release()
	todo := make([]int, 0, len(req.IDs))
	for i, id := range req.IDs {
		if e := checkID(req.Collection, id); e != nil {
			l.results[i].Error = e
			continue
		}
		todo = append(todo, i)
	}
	groups := l.run(ctx, todo)
	reply := &wire.GetReply{Results: l.results, Now: uint64(r.opts.Clock.Now())}
	reply.Cost = wire.Cost{Groups: uint32(groups), WaitMicros: micros(start), ReadVersion: req.AtTime}
	for i := range l.results {
		if l.results[i].Error == nil {
			reply.Cost.Docs++
			reply.Cost.Bytes += uint64(len(l.results[i].Doc.Body))
		}
	}
	reply.Cost.Keys = uint64(len(todo))
	return reply, nil
}

// run carries the lookups until each is answered or refused for good.
func (l *lookup) run(ctx context.Context, todo []int) (groups int) {
	var p patience
	for turn := 0; len(todo) > 0; turn++ {
		groups = max(groups, l.attempt(ctx, todo, turn))
		again := todo[:0:0]
		stale, gone := false, false
		for _, i := range todo {
			if e := l.results[i].Error; e != nil && (passing(e.Code) || e.Code == wire.CodeCollectionNotFound) {
				again = append(again, i)
				stale = stale || e.Code == wire.CodeStaleEpoch
				gone = gone || e.Code == wire.CodeCollectionNotFound
			}
		}
		todo = again
		l.share.trim()
		if len(todo) == 0 || l.req.Direct && !gone || !p.wait(ctx, l.r.opts.Patience) {
			break
		}
		if e := l.reroute(ctx, stale || gone); e != nil && !passing(e.Code) {
			for _, i := range todo {
				l.results[i].Error = e
			}
			break
		}
	}
	return groups
}

// reroute takes a newer view.
func (l *lookup) reroute(ctx context.Context, stale bool) *wire.Error {
	if stale {
		if _, err := l.r.opts.Placement.Refresh(ctx); err != nil {
			return l.r.wireReadError(err, subject{collection: l.req.Collection})
		}
	}
	v, c, e := l.r.readable(ctx, l.req.Collection)
	if e == nil {
		l.view, l.coll = v, c
	}
	return e
}

func (l *lookup) owner(i int) placement.GroupID {
	return l.view.Owner(partitionOf(l.view, l.coll, l.req.IDs[i]))
}

// lookupPart is what is asked of one group.
type lookupPart struct {
	id    placement.GroupID
	items []int
	group Group            // of this node, which leads it; nil: it does not
	node  placement.NodeID // the leader, elsewhere; "": none is known

	keys    []fsm.ReadKey
	pending shardgroup.Pending
	err     error // of beginning
}

// readAlone is how many documents of groups that this node leads are read on the
// request's own goroutine, one group after the other. With more, other
// processors help.
const readAlone = 64

// attempt asks each group for its part and says how many groups there are.
// Groups that this node leads are begun side by side and then read in turn: it
// is one wait, and it costs less than a goroutine for each.
func (l *lookup) attempt(ctx context.Context, todo []int, turn int) int {
	parts := l.divide(todo)
	here, read := 0, 0
	for i := range parts {
		p := &parts[i]
		if p.group, p.node = l.r.locate(l.view, p.id, turn); p.group != nil {
			read += len(p.items)
			parts[i], parts[here] = parts[here], parts[i]
			here++
		}
	}
	if here == 0 || here > 1 && read > readAlone {
		l.r.parallel(len(parts), func(n int) { l.carry(ctx, &parts[n]) })
		return len(parts)
	}
	mine, theirs := parts[:here], parts[here:]
	l.r.parallel(1+len(theirs), func(n int) {
		if n > 0 {
			l.carry(ctx, &theirs[n-1])
			return
		}
		for i := range mine {
			l.begin(&mine[i])
		}
		for i := range mine {
			l.read(ctx, &mine[i])
		}
	})
	return len(parts)
}

// divide groups documents by who owns them.
func (l *lookup) divide(todo []int) []lookupPart {
	parts := make([]lookupPart, 0, min(len(todo), len(l.view.Groups)))
	for _, i := range todo {
		g := l.owner(i)
		n := slices.IndexFunc(parts, func(p lookupPart) bool { return p.id == g })
		if n < 0 {
			n = len(parts)
			parts = append(parts, lookupPart{id: g})
		}
		parts[n].items = append(parts[n].items, i)
	}
	return parts
}

func (l *lookup) carry(ctx context.Context, p *lookupPart) {
	switch {
	case p.group != nil:
		l.begin(p)
		l.read(ctx, p)
	case l.req.Direct || p.node == "":
		for _, i := range p.items {
			l.results[i] = wire.GetResult{Error: notLeaderHere(p.id, p.node, l.subject(i))}
		}
	default:
		l.forward(ctx, p.id, p.node, p.items)
	}
}

func (l *lookup) subject(i int) subject { return subject{l.req.Collection, l.req.IDs[i]} }

// begin has the replica here confirm that it may be read.
func (l *lookup) begin(p *lookupPart) {
	p.keys = make([]fsm.ReadKey, len(p.items))
	for n, i := range p.items {
		p.keys[n] = l.key(i)
	}
	p.pending, p.err = p.group.BeginRead(p.keys, hlc.Timestamp(l.req.AtTime))
}

// read answers what was begun from the replica here.
func (l *lookup) read(ctx context.Context, p *lookupPart) {
	at := fsm.At{Version: l.req.AtVersion, Time: hlc.Timestamp(l.req.AtTime)}
	err := p.err
	if err == nil {
		err = p.pending.Wait(ctx)
	}
	if err == nil && at.Version == 0 && p.group.Machine().LocksHeld() > 0 {
		err = p.group.ClearReads(ctx, p.keys, at.Time)
	}
	if err == nil && !l.room(ctx) {
		err = shardgroup.ErrTimeout
	}
	if err == nil {
		err = p.group.Machine().Visit(p.keys, at, l.req.NoBody, func(n int, d wire.Document, err error) { l.settle(p.items[n], d, err) })
	}
	if err != nil {
		for _, i := range p.items {
			l.settle(i, wire.Document{}, err)
		}
	}
}

// room waits until the request may hold a document. False: its time is up.
func (l *lookup) room(ctx context.Context) bool {
	return l.req.NoBody || l.share.begin(ctx, min(int64(l.r.opts.Limits.MaxBytes), l.share.most))
}

func (l *lookup) key(i int) fsm.ReadKey {
	id := l.req.IDs[i]
	return fsm.ReadKey{Partition: partitionOf(l.view, l.coll, id), Epoch: l.view.Epoch, Collection: l.coll.ID, ID: id}
}

func (l *lookup) settle(i int, d wire.Document, err error) {
	if err != nil {
		l.results[i] = wire.GetResult{Error: l.wordGet(l.r.wireReadError(err, l.subject(i)), i)}
		return
	}
	if n := int64(len(d.Body)); n > 0 && !l.share.use(n) {
		l.results[i] = wire.GetResult{Error: l.leftOut(i)}
		return
	}
	d.Body = bytes.Clone(d.Body) // it was the engine's
	l.results[i] = wire.GetResult{Doc: d}
}

// leftOut refuses a document for which the answer, or this node, has no room.
func (l *lookup) leftOut(i int) *wire.Error {
	return refuse(wire.CodeFrameTooLarge, "%s: the answer has no room for this document (get it again, with fewer others)", l.subject(i))
}

// wordGet adds which version or time was asked for.
func (l *lookup) wordGet(e *wire.Error, i int) *wire.Error {
	worded := *e
	switch {
	case e.Code == wire.CodeVersionNotFound && l.req.AtVersion != 0:
		worded.Message = refuse(e.Code, "%s: has no version %d (list its history)", l.subject(i), l.req.AtVersion).Message
	case e.Code == wire.CodeHistoryExpired && l.req.AtVersion != 0:
		worded.Message = refuse(e.Code, "%s: version %d is past the retention window and was collected", l.subject(i), l.req.AtVersion).Message
	case (e.Code == wire.CodeVersionNotFound || e.Code == wire.CodeNotFound) && l.req.AtTime != 0:
		worded.Message = refuse(e.Code, "%s: did not exist at %s", l.subject(i), hlc.Timestamp(l.req.AtTime).Time().Format(time.RFC3339Nano)).Message
	case e.Code == wire.CodeHistoryExpired && l.req.AtTime != 0:
		worded.Message = refuse(e.Code, "%s: %s is past the retention window", l.subject(i), hlc.Timestamp(l.req.AtTime).Time().Format(time.RFC3339Nano)).Message
	}
	return &worded
}

// forward asks the group's leader, which does not forward again: for as many
// bytes of documents as there is room for, as often as that brings more. One
// document is asked for without: a node that does not answer would keep the
// room from those that have something to put there.
func (l *lookup) forward(ctx context.Context, id placement.GroupID, node placement.NodeID, items []int) {
	if l.req.NoBody || len(l.req.IDs) == 1 {
		l.ask(ctx, id, node, items, 0)
		return
	}
	for len(items) > 0 {
		var most int64
		if l.room(ctx) {
			document := min(int64(l.r.opts.Limits.MaxBytes), l.share.most)
			most = l.share.reserve(max(askedBytes, document), document)
		}
		if most <= 0 {
			for _, i := range items {
				l.results[i] = wire.GetResult{Error: l.leftOut(i)}
			}
			return
		}
		left, used := l.ask(ctx, id, node, items, most)
		l.share.unreserve(most - used)
		if used == 0 {
			return
		}
		items = left
	}
}

// ask makes one request to another node, and says what it has left out and how
// many bytes of documents it has brought. most is how many it may bring; 0: one
// document.
func (l *lookup) ask(ctx context.Context, id placement.GroupID, node placement.NodeID, items []int, most int64) (left []int, used int64) {
	sub := wire.GetRequest{
		Collection: l.req.Collection, Epoch: uint64(l.view.Epoch), Direct: true,
		AtVersion: l.req.AtVersion, AtTime: l.req.AtTime, NoBody: l.req.NoBody, MaxBytes: uint32(most),
		IDs: make([]string, len(items)),
	}
	for n, i := range items {
		sub.IDs[n] = l.req.IDs[i]
	}
	body, err := l.r.call(ctx, node, wire.KindGet, wire.Append(nil, &sub), len(items))
	var reply wire.GetReply
	if err == nil {
		if err = wire.Decode(body, &reply); err == nil && len(reply.Results) != len(items) {
			err = refuse(wire.CodeInternal, "node %s answered %s to %d", node, plural(len(reply.Results), "result"), len(items))
		}
	}
	if err != nil {
		l.r.learnFrom(id, err)
		for _, i := range items {
			l.results[i] = wire.GetResult{Error: l.r.wireReadError(err, l.subject(i))}
		}
		return nil, 0
	}
	l.r.learn(id, node)
	for n, i := range items {
		r := reply.Results[n]
		if size := int64(len(r.Doc.Body)); most > 0 && size > 0 {
			if used += size; used > most {
				// An older node knows no MaxBytes.
				used -= size
				r = wire.GetResult{Error: l.leftOut(i)}
			}
		}
		l.results[i] = r
		switch e := r.Error; {
		case e == nil:
		case e.Code == wire.CodeNotLeader:
			l.r.learn(id, placement.NodeID(e.Leader))
		case e.Code == wire.CodeFrameTooLarge:
			left = append(left, i)
		}
	}
	return left, used
}

// onLeader runs f at the leader of a group, here or there, and again while it
// is refused for a passing reason. It is for reads: an attempt may be repeated.
func (r *Router) onLeader(ctx context.Context, v *placement.View, id placement.GroupID, direct bool, s subject,
	here func(context.Context, Group) error, there func(context.Context, placement.NodeID) error) *wire.Error {
	var p patience
	for turn := 0; ; turn++ {
		var e *wire.Error
		group, node := r.locate(v, id, turn)
		switch {
		case group != nil:
			if err := here(ctx, group); err != nil {
				e = r.wireReadError(err, s)
			}
		case direct || node == "":
			e = notLeaderHere(id, node, s)
		default:
			err := there(ctx, node)
			if err != nil {
				r.learnFrom(id, err)
				e = r.wireReadError(err, s)
				if e.Code == wire.CodeTimeout && ctx.Err() == nil {
					e = refuse(wire.CodeUnavailable, "%s: node %s did not answer in time (retry)", s, node)
				}
			} else {
				r.learn(id, node)
			}
		}
		if e == nil || direct || e.Code == wire.CodeStaleEpoch || !passing(e.Code) || !p.wait(ctx, r.opts.Patience) {
			return e
		}
	}
}

// defaultVersions is how many versions a history answers with if the request
// does not say; maxVersions is the most.
const (
	defaultVersions = 100
	maxVersions     = 10_000

	historyBytes = 4 << 20 // of documents, after which the machine ends a page
)

// history serves KindHistory.
func (r *Router) history(ctx context.Context, req *wire.HistoryRequest) (*wire.HistoryReply, *wire.Error) {
	start := time.Now()
	if e := checkID(req.Collection, req.ID); e != nil {
		return nil, e
	}
	limit := min(int(req.Limit), maxVersions)
	if limit == 0 {
		limit = defaultVersions
	}
	s := subject{req.Collection, req.ID}
	mine := share{room: r.room, most: historyBytes + int64(r.opts.Limits.MaxBytes)}
	defer mine.release()
	var p patience
	for {
		v, c, e := r.readable(ctx, req.Collection)
		if e != nil {
			return nil, e
		}
		reply := &wire.HistoryReply{}
		partition := partitionOf(v, c, req.ID)
		id := v.Owner(partition)
		e = r.onLeader(ctx, v, id, req.Direct, s,
			func(ctx context.Context, g Group) error {
				if err := g.ReadIndex(ctx); err != nil {
					return err
				}
				key := fsm.ReadKey{Partition: partition, Epoch: v.Epoch, Collection: c.ID, ID: req.ID}
				if err := g.ClearReads(ctx, []fsm.ReadKey{key}, 0); err != nil {
					return err
				}
				if !mine.begin(ctx, mine.most) {
					return shardgroup.ErrTimeout
				}
				var err error
				reply.Versions, reply.More, err = g.Machine().History(fsm.ReadKey{
					Partition: partition, Epoch: v.Epoch, Collection: c.ID, ID: req.ID,
				}, req.Before, limit, req.NoBody)
				return err
			},
			func(ctx context.Context, node placement.NodeID) error {
				sub := *req
				sub.Direct, sub.Limit = true, uint32(limit)
				body, err := r.call(ctx, node, wire.KindHistory, wire.Append(nil, &sub), 0)
				if err == nil {
					err = wire.Decode(body, reply)
				}
				return err
			})
		if e == nil {
			reply.Cost = wire.Cost{Groups: 1, Docs: uint64(len(reply.Versions)), Keys: uint64(len(reply.Versions)), WaitMicros: micros(start)}
			for i := range reply.Versions {
				reply.Cost.Bytes += uint64(len(reply.Versions[i].Body))
			}
			return reply, nil
		}
		mine.release()
		if !r.refreshStale(ctx, e, req.Direct, &p) {
			return nil, e
		}
	}
}

// refreshStale takes a newer view if that can help against e.
func (r *Router) refreshStale(ctx context.Context, e *wire.Error, direct bool, p *patience) bool {
	if e.Code != wire.CodeCollectionNotFound && (e.Code != wire.CodeStaleEpoch || direct) {
		return false
	}
	if !p.wait(ctx, r.opts.Patience) {
		return false
	}
	_, err := r.opts.Placement.Refresh(ctx)
	return err == nil
}
