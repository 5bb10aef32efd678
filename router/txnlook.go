package router

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// Looking at transactions, and aborting one that is in the way. Every group's
// leader is asked for what it knows; what they say is put together by ID.

const (
	// listedParts bounds the parts of each transaction where all are listed.
	listedParts = 64
	// lookPatience is how long a group may take to have a leader that answers.
	lookPatience = 2 * time.Second
)

// txnTable puts together what is said of transactions.
type txnTable struct {
	by     map[wire.RequestID]*txnEntry
	waits  []wire.TxnWait
	left   uint32
	filter *wire.TxnListRequest
}

type txnEntry struct {
	wire.TxnInfo
	parts    map[uint32]*wire.TxnPart
	unlisted uint32 // parts that a group has counted and not listed
	recorded uint32 // participants by home's record of the commit, home included
}

func newTxnTable(filter *wire.TxnListRequest) *txnTable {
	return &txnTable{by: map[wire.RequestID]*txnEntry{}, filter: filter}
}

// one says that one transaction was asked for.
func one(q *wire.TxnListRequest) bool { return len(q.Random) > 0 }

func (t *txnTable) wants(id txn.ID) bool {
	return !one(t.filter) || id.Time == t.filter.Time && bytes.HasPrefix(id.Random[:], t.filter.Random)
}

func (t *txnTable) entry(id wire.RequestID) *txnEntry {
	e := t.by[id]
	if e == nil {
		e = &txnEntry{TxnInfo: wire.TxnInfo{ID: id, Home: wire.NoPartition}, parts: map[uint32]*wire.TxnPart{}}
		t.by[id] = e
	}
	return e
}

// rank orders states by how much they say.
func rank(s wire.TxnState) int {
	return slices.Index([]wire.TxnState{wire.TxnUnknown, wire.TxnResolved, wire.TxnOpen, wire.TxnPrepared, wire.TxnExpired, wire.TxnAborted, wire.TxnCommitted}, s)
}

func (e *txnEntry) know(s wire.TxnState, at uint64) {
	switch {
	case rank(s) > rank(e.State):
		e.State, e.Time = s, at
	case s == e.State:
		e.Time = max(e.Time, at)
	}
}

// add adds a part, or to one.
func (e *txnEntry) add(p wire.TxnPart) {
	e.Reads += p.Reads
	e.Writes += p.Writes
	e.Locks += p.Locks
	have := e.parts[p.Partition]
	if have == nil {
		e.parts[p.Partition] = &p
		return
	}
	if rank(p.State) > rank(have.State) {
		have.State, have.Time = p.State, p.Time
	}
	have.Reads += p.Reads
	have.Writes += p.Writes
	have.Locks += p.Locks
	have.Documents = append(have.Documents, p.Documents...)
}

// merge takes another group's list.
func (t *txnTable) merge(l *wire.TxnList) {
	t.waits = append(t.waits, l.Waits...)
	t.left += l.LeftOut
	for i := range l.Txns {
		x := &l.Txns[i]
		e := t.entry(x.ID)
		e.know(x.State, x.Time)
		if x.Home != wire.NoPartition {
			e.Home = x.Home
		}
		e.Deadline, e.Born = max(e.Deadline, x.Deadline), max(e.Born, x.Born)
		listed := wire.TxnInfo{}
		for j := range x.Parts {
			e.add(x.Parts[j])
			listed.Reads += x.Parts[j].Reads
			listed.Writes += x.Parts[j].Writes
			listed.Locks += x.Parts[j].Locks
		}
		e.Reads += x.Reads - listed.Reads
		e.Writes += x.Writes - listed.Writes
		e.Locks += x.Locks - listed.Locks
		if x.State == wire.TxnCommitted {
			e.recorded = max(e.recorded, x.Participants)
		} else {
			e.unlisted += x.Participants - uint32(len(x.Parts))
		}
	}
}

// list is the whole of it, bounded.
func (t *txnTable) list() *wire.TxnList {
	out := &wire.TxnList{LeftOut: t.left, Waits: t.waits}
	most := listedParts
	if one(t.filter) {
		most = wire.MaxListedParts
	}
	for _, e := range t.by {
		x := e.TxnInfo
		for _, p := range e.parts {
			x.Parts = append(x.Parts, *p)
		}
		slices.SortFunc(x.Parts, func(a, b wire.TxnPart) int { return cmp.Compare(a.Partition, b.Partition) })
		x.Participants = max(uint32(len(x.Parts))+e.unlisted, e.recorded)
		x.Parts = x.Parts[:min(len(x.Parts), most)]
		out.Txns = append(out.Txns, x)
	}
	slices.SortFunc(out.Txns, func(a, b wire.TxnInfo) int {
		return cmp.Or(cmp.Compare(a.ID.Time, b.ID.Time), bytes.Compare(a.ID.Random[:], b.ID.Random[:]))
	})
	slices.SortStableFunc(out.Waits, func(a, b wire.TxnWait) int { return cmp.Compare(b.Micros, a.Micros) })
	if n := len(out.Txns) - wire.MaxListedTxns; n > 0 {
		out.Txns, out.LeftOut = out.Txns[:wire.MaxListedTxns], out.LeftOut+uint32(n)
	}
	if n := len(out.Waits) - wire.MaxListedTxns; n > 0 {
		out.Waits, out.LeftOut = out.Waits[:wire.MaxListedTxns], out.LeftOut+uint32(n)
	}
	return out
}

// listHere is what one group's leader knows. It is a look, not a read: nothing
// is confirmed.
func (r *Router) listHere(q *txnRead, g Group) (*wire.TxnList, error) {
	t := newTxnTable(q.list)
	single := one(q.list)
	names := map[placement.CollectionID]string{}
	for _, c := range r.opts.Placement.View().Collections {
		names[c.ID] = c.Name
	}
	name := func(c placement.CollectionID) string {
		if n, ok := names[c]; ok {
			return n
		}
		return fmt.Sprintf("collection %d", c)
	}
	documents := wire.MaxListedDocs
	m := g.Machine()
	for _, h := range m.Holders() {
		if !t.wants(h.ID) {
			continue
		}
		e := t.entry(wire.RequestID(h.ID))
		e.know(wire.TxnPrepared, uint64(h.At))
		e.Home, e.Deadline, e.Born = uint32(h.Home), uint64(h.Deadline), uint64(h.Born)
		p := wire.TxnPart{Group: uint32(q.group), Partition: uint32(h.Partition), State: wire.TxnPrepared, Time: uint64(h.At), Reads: uint32(h.Reads), Writes: uint32(h.Writes)}
		if single {
			for _, d := range m.Held(h.Partition, h.ID, documents) {
				x := wire.TxnDocument{How: wire.HoldRead, Collection: name(d.Collection), ID: d.ID, From: d.From, To: d.To}
				switch {
				case d.Write:
					x.How = wire.HoldWrite
				case d.Range:
					x.How = wire.HoldRange
				}
				p.Documents = append(p.Documents, x)
			}
			documents -= len(p.Documents)
		}
		e.add(p)
	}
	for _, u := range m.Unfinished(hlc.Max) {
		if !t.wants(u.ID) {
			continue
		}
		e := t.entry(wire.RequestID(u.ID))
		e.know(wire.TxnCommitted, uint64(u.Record.At))
		e.Home = uint32(u.Home)
		e.recorded = uint32(len(u.Record.Participants)) + 1
		e.add(wire.TxnPart{Group: uint32(q.group), Partition: uint32(u.Home), State: wire.TxnCommitted, Time: uint64(u.Record.At)})
		if single {
			for _, p := range u.Record.Participants { // what they say themselves says more
				e.add(wire.TxnPart{Partition: uint32(p)})
			}
		}
	}
	for _, l := range g.FrontLocks() {
		if !t.wants(l.ID) {
			continue
		}
		e := t.entry(wire.RequestID(l.ID))
		e.know(wire.TxnOpen, 0)
		e.Born = max(e.Born, uint64(l.Born))
		p := wire.TxnPart{Group: uint32(q.group), Partition: uint32(l.Partition), State: wire.TxnOpen, Locks: 1}
		if single && documents > 0 {
			documents--
			left := max(time.Until(l.Expires), 0)
			p.Documents = []wire.TxnDocument{{How: wire.HoldFront, Collection: name(l.Collection), ID: l.Document, Expires: uint64(left.Milliseconds())}}
		}
		e.add(p)
	}
	waits := g.Waits()
	for i := range waits {
		w := &waits[i]
		mine := w.ID != (txn.ID{}) && t.wants(w.ID)
		if mine {
			e := t.entry(wire.RequestID(w.ID))
			e.know(wire.TxnOpen, 0)
			e.Born = max(e.Born, uint64(w.Born))
			if w.HomeKnown {
				e.Home = uint32(w.Home)
			}
		}
		for _, f := range w.For {
			if mine || t.wants(f.ID) {
				t.waits = append(t.waits, wire.TxnWait{
					ID: wire.RequestID(w.ID), For: wire.RequestID(f.ID), Micros: uint64(time.Since(w.Since).Microseconds()), What: waitWhat[w.What],
					Group: uint32(q.group), Partition: uint32(f.Partition), Collection: name(f.Collection), Document: f.Document,
				})
			}
		}
	}
	if single {
		traces, err := m.TxnTraces(q.list.Time, q.list.Random)
		if err != nil {
			return nil, err
		}
		for _, x := range traces {
			e := t.entry(wire.RequestID(x.ID))
			p := wire.TxnPart{Group: uint32(q.group), Partition: uint32(x.Partition), State: wire.TxnResolved, Time: uint64(x.At)}
			switch x.State {
			case txn.Committed:
				p.State = wire.TxnCommitted
			case txn.Aborted:
				p.State = wire.TxnAborted
			}
			if p.State != wire.TxnResolved {
				e.Home = p.Partition
			}
			e.know(p.State, p.Time)
			e.add(p)
		}
	}
	return t.list(), nil
}

var waitWhat = [...]uint8{
	shardgroup.WaitWrite: wire.WaitWrite, shardgroup.WaitLock: wire.WaitLock, shardgroup.WaitPrepare: wire.WaitPrepare,
	shardgroup.WaitDecide: wire.WaitDecide, shardgroup.WaitCommit: wire.WaitCommit,
}

// listTxns serves KindTxnList. It answers also while groups have no leader,
// and says which.
func (r *Router) listTxns(ctx context.Context, req *wire.TxnListRequest) (*wire.TxnList, *wire.Error) {
	v, e := r.ready()
	if e != nil {
		return nil, e
	}
	if req.Time != 0 || one(req) {
		if err := wire.CheckIDPrefix(req.Time, req.Random); err != nil {
			return nil, r.wireError(err, subject{})
		}
	}
	looking, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	lists := make([]*wire.TxnList, len(v.Groups))
	missing := make([]*wire.Error, len(v.Groups))
	r.parallel(len(v.Groups), func(i int) {
		q := &txnRead{group: v.Groups[i].ID, epoch: v.Epoch, list: req}
		missing[i] = r.onLeader(looking, v, q.group, false, subject{},
			func(_ context.Context, g Group) (err error) { lists[i], err = r.listHere(q, g); return err },
			func(ctx context.Context, node placement.NodeID) error {
				body, err := r.call(ctx, node, wire.KindGroupTxnRead, q.encode(), 0)
				if err != nil {
					return err
				}
				lists[i] = &wire.TxnList{}
				return wire.Decode(body, lists[i])
			})
	})
	t := newTxnTable(req)
	for i := range lists {
		if missing[i] == nil {
			t.merge(lists[i])
		}
	}
	all := t.list()
	for i := range missing {
		if missing[i] != nil {
			all.Missing = append(all.Missing, wire.TxnMissing{Group: uint32(v.Groups[i].ID), Error: strings.TrimPrefix(missing[i].Message, subject{}.String()+": ")})
		}
	}
	for i := range all.Txns {
		x := &all.Txns[i]
		if x.Home != wire.NoPartition {
			x.HomeGroup = uint32(v.Owner(placement.PartitionID(x.Home)))
		}
		for j := range x.Parts {
			if p := &x.Parts[j]; p.Group == 0 { // named by home only
				p.Group = uint32(v.Owner(placement.PartitionID(p.Partition)))
			}
		}
		// Of one transaction home itself is asked: participants know less.
		if one(req) && x.Home != wire.NoPartition && x.State != wire.TxnCommitted && x.State != wire.TxnAborted {
			a, err := r.Decision(looking, placement.PartitionID(x.Home), txn.ID(x.ID))
			if s, decided := decidedState(a); err == nil && decided {
				x.State, x.Time = s, uint64(a.At)
			}
		}
	}
	all.Now = uint64(r.opts.Clock.Now())
	return all, nil
}

// decidedState is home's decision in the protocol's words.
func decidedState(a txn.Answer) (wire.TxnState, bool) {
	switch a.State {
	case txn.Committed:
		return wire.TxnCommitted, true
	case txn.Aborted:
		return wire.TxnAborted, true
	case txn.Expired:
		return wire.TxnExpired, true
	}
	return wire.TxnUnknown, false
}

// abortTxn serves KindTxnAbort: home aborts the transaction if it is undecided,
// and wherever it is known to hold something it is told what home has said.
// Where nobody answers, the leaders find out by themselves.
func (r *Router) abortTxn(ctx context.Context, req *wire.TxnAbortRequest) (*wire.TxnAbortReply, *wire.Error) {
	if err := wire.CheckIDPrefix(req.Time, req.Random); err != nil {
		return nil, r.wireError(err, subject{})
	}
	list, e := r.listTxns(ctx, &wire.TxnListRequest{Time: req.Time, Random: req.Random})
	if e != nil {
		return nil, e
	}
	reply := &wire.TxnAbortReply{Home: wire.NoPartition, Missing: list.Missing}
	switch len(list.Txns) {
	case 0:
		if len(list.Missing) > 0 {
			return nil, refuse(wire.CodeUnavailable, "the transaction is not known, but %s: %s", plural(len(list.Missing), "group")+" did not answer", list.Missing[0].Error)
		}
		reply.ID = wire.RequestID{Time: req.Time}
		copy(reply.ID.Random[:], req.Random)
		reply.Now = list.Now
		return reply, nil
	case 1:
	default:
		return nil, refuse(wire.CodeBadRequest, "%s have IDs that begin so (give more of it)", plural(len(list.Txns), "transaction"))
	}
	x := &list.Txns[0]
	reply.ID, reply.Home, reply.State = x.ID, x.Home, x.State
	if x.Home != wire.NoPartition {
		a, err := r.Step(ctx, &fsm.Txn{ID: txn.ID(x.ID), Partition: placement.PartitionID(x.Home), Settle: &fsm.Settle{Abort: true}})
		if err == nil {
			a, err = shardgroup.Inquire(ctx, r, txn.ID(x.ID), placement.PartitionID(x.Home), true, 0, a)
		}
		if err != nil {
			return nil, r.wireReadError(err, subject{collection: fmt.Sprintf("transaction %s, whose home is partition %d", x.ID, x.Home)})
		}
		state, decided := decidedState(a)
		if !decided {
			return nil, refuse(wire.CodeInternal, "transaction %s: its home neither aborts it nor says what became of it", x.ID)
		}
		reply.State, reply.Time, reply.Already = state, uint64(a.At), a.Duplicate || a.State == txn.Committed
		reply.Resolved = r.resolveParts(ctx, x, &a)
	}
	reply.Unlocked = r.unlockParts(ctx, x)
	reply.Now = uint64(r.opts.Clock.Now())
	return reply, nil
}

// resolveParts tells those that hold something what home has decided, and
// counts who has confirmed it.
func (r *Router) resolveParts(ctx context.Context, x *wire.TxnInfo, a *txn.Answer) (n uint32) {
	held := slices.DeleteFunc(slices.Clone(x.Parts), func(p wire.TxnPart) bool { return p.State != wire.TxnPrepared || p.Partition == x.Home })
	done := make([]bool, len(held))
	r.parallel(len(held), func(i int) {
		_, err := r.Step(ctx, &fsm.Txn{ID: txn.ID(x.ID), Partition: placement.PartitionID(held[i].Partition), Resolve: &fsm.Resolve{Commit: a.State == txn.Committed, At: a.At}})
		done[i] = err == nil
	})
	for _, ok := range done {
		if ok {
			n++
		}
	}
	return n
}

// unlockParts lets go of what was locked up front, in every group that has
// said so, and counts what is no longer locked.
func (r *Router) unlockParts(ctx context.Context, x *wire.TxnInfo) (n uint32) {
	groups := map[uint32]*wire.UnlockRequest{}
	locks := map[uint32]uint32{}
	for i := range x.Parts {
		p := &x.Parts[i]
		locks[p.Group] += p.Locks
		for j := range p.Documents {
			if d := &p.Documents[j]; d.How == wire.HoldFront && groups[p.Group] == nil { // one names the group
				groups[p.Group] = &wire.UnlockRequest{ID: x.ID, Direct: true, Collections: []wire.TxnCollection{{Name: d.Collection, Reads: []wire.TxnRead{{ID: d.ID}}}}}
			}
		}
	}
	for g, sub := range groups {
		var p patience
		for {
			if r.unlockIn(ctx, r.opts.Placement.View(), placement.GroupID(g), sub, false) == nil {
				n += locks[g]
				break
			}
			if !p.wait(ctx, r.opts.AttemptTimeout) {
				break
			}
		}
	}
	return n
}
