package router

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

const (
	// cutTime is how long one attempt at a cut may take: its holds end then.
	cutTime = 500 * time.Millisecond
	// askBatch is how many homes' commands go into one message.
	askBatch = 256
	// maxCutCollections bounds the collections of one hold; with more, all are held.
	maxCutCollections = 256
)

// cutter makes cuts (package txn). Those who want one while one is under way
// share the next: it begins after all of them have come.
type cutter struct {
	mu    sync.Mutex
	lanes map[string]*cutLane // by the groups
}

// cutLane makes one cut after the other through the same groups.
type cutLane struct {
	busy bool    // guarded by cutter.mu
	next *cutRun // guarded by cutter.mu; not begun, nil: nobody waits
}

// cutRun is one cut, and what all that share it want of it.
type cutRun struct {
	view   *placement.View // of the first of them; nobody else joins
	groups []placement.GroupID
	all    bool // of all collections
	colls  []placement.CollectionID
	counts []placement.CollectionID

	done chan struct{}
	// Valid after done.
	at    hlc.Timestamp
	kept  map[placement.CollectionID]shardgroup.Kept
	exact bool // kept is as of at: nothing of the cut was resolved later than it was counted
	err   *wire.Error
}

// cut finds a timestamp at which these groups can be read strictly, what this
// collection (0: any) is concerned. counted wants the kept counts too.
func (r *Router) cut(ctx context.Context, v *placement.View, groups []placement.GroupID, c placement.CollectionID, counted bool) (*cutRun, *wire.Error) {
	groups = slices.Clone(groups)
	slices.Sort(groups)
	name := fmt.Sprint(v.Epoch, groups)
	k := &r.cuts
	k.mu.Lock()
	lane := k.lanes[name]
	if lane == nil {
		lane = &cutLane{}
		k.lanes[name] = lane
	}
	run := lane.next
	if run == nil {
		run = &cutRun{view: v, groups: groups, done: make(chan struct{})}
		lane.next = run
	}
	if run.all = run.all || c == 0 || len(run.colls) >= maxCutCollections; !run.all && !slices.Contains(run.colls, c) {
		run.colls = append(run.colls, c)
	}
	if counted && !slices.Contains(run.counts, c) && len(run.counts) < maxCutCollections {
		run.counts = append(run.counts, c)
	}
	started := lane.busy
	if !lane.busy {
		lane.busy = true
		started = r.txns.start(func(ctx context.Context) { r.makeCuts(ctx, name, lane) })
		if !started {
			lane.busy, lane.next = false, nil
			delete(k.lanes, name)
		}
	}
	k.mu.Unlock()
	if !started {
		return nil, refuse(wire.CodeOverloaded, "node %s works for as many transactions and queries as it can (wait, then retry)", r.opts.Self)
	}
	select {
	case <-run.done:
		return run, run.err
	case <-ctx.Done():
		return nil, refuse(wire.CodeTimeout, "the time was up before a moment was found to read at (retry, with more time)")
	}
}

// makeCuts makes a lane's cuts until nobody waits.
func (r *Router) makeCuts(ctx context.Context, name string, lane *cutLane) {
	for {
		r.cuts.mu.Lock()
		run := lane.next
		lane.next = nil
		if run == nil {
			lane.busy = false
			delete(r.cuts.lanes, name)
			r.cuts.mu.Unlock()
			return
		}
		r.cuts.mu.Unlock()
		r.makeCut(ctx, run)
		close(run.done)
	}
}

// makeCut tries until a cut succeeds, or the router's patience is over.
func (r *Router) makeCut(ctx context.Context, run *cutRun) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.Patience)
	defer cancel()
	var p patience
	for {
		var e *wire.Error
		if e = r.tryCut(ctx, run); e == nil {
			return
		}
		run.err = e
		if e.Code == wire.CodeStaleEpoch || !passing(e.Code) && e.Code != wire.CodeTimeout || !p.wait(ctx, r.opts.Patience) {
			return
		}
		// Nobody is to be kept back while a group has no leader.
		if _, e := r.largestClock(ctx, run.view, run.groups, subject{}); e != nil {
			run.err = e
			return
		}
		run.err = nil
	}
}

// cutReply is the answer to some messages of a cut.
type cutReply struct {
	ms      []txn.CutMessage
	held    txn.Held
	kept    []shardgroup.Kept
	answers []txn.Answer
	errs    []error
}

// tryCut makes one attempt.
func (r *Router) tryCut(ctx context.Context, run *cutRun) *wire.Error {
	attempt, cancel := context.WithTimeout(ctx, cutTime)
	defer cancel()
	c := txn.NewCut(run.groups)
	kept := make(map[placement.CollectionID]shardgroup.Kept, len(run.counts))
	arrived := make(chan cutReply)
	flying := 0
	send := func(ms []txn.CutMessage) {
		for _, batch := range r.cutBatches(run.view, ms) {
			if batch[0].Step == txn.CutRelease {
				// Whether it arrives does not matter to anybody here.
				r.txns.start(func(ctx context.Context) {
					ctx, cancel := context.WithTimeout(ctx, cutTime)
					defer cancel()
					r.carryCut(ctx, run, batch)
				})
				continue
			}
			flying++
			go func() { arrived <- r.carryCut(attempt, run, batch) }() // joined: see the loop
		}
	}
	send(c.Begin())
	var first error
	for flying > 0 {
		x := <-arrived
		flying--
		for i, m := range x.ms {
			switch {
			case x.errs[i] != nil:
				if first == nil {
					first = x.errs[i]
				}
				send(c.Lost(m))
			case m.Step == txn.CutHold:
				for i, id := range run.counts {
					sum := kept[id]
					sum.Documents += x.kept[i].Documents
					sum.Bytes += x.kept[i].Bytes
					kept[id] = sum
				}
				send(c.Held(m, x.held))
			case m.Step == txn.CutAsk:
				send(c.Asked(m, x.answers[i]))
			case m.Step == txn.CutPromise:
				c.Promised(m)
			}
		}
	}
	at, ok := c.Outcome()
	if !ok {
		if first == nil {
			return refuse(wire.CodeUnavailable, "more than %d transactions are undecided (retry)", txn.MaxUndecided)
		}
		e := r.wireReadError(first, subject{})
		if e.Code == wire.CodeTimeout && ctx.Err() == nil {
			e = refuse(wire.CodeUnavailable, "a shard group did not answer in time (retry)")
		}
		return e
	}
	run.at, run.kept, run.exact = at, kept, c.Late() == 0
	r.opts.Clock.Observe(at)
	return nil
}

// cutBatches puts messages together that go to one node in one request.
func (r *Router) cutBatches(v *placement.View, ms []txn.CutMessage) [][]txn.CutMessage {
	var out [][]txn.CutMessage
	open := map[placement.GroupID]int{} // asks, by home's group: which of out
	for _, m := range ms {
		if m.Step != txn.CutAsk {
			out = append(out, []txn.CutMessage{m})
			continue
		}
		g := v.Owner(m.Home)
		if i, ok := open[g]; ok && len(out[i]) < askBatch {
			out[i] = append(out[i], m)
			continue
		}
		open[g] = len(out)
		out = append(out, []txn.CutMessage{m})
	}
	return out
}

// carryCut carries messages for one group.
func (r *Router) carryCut(ctx context.Context, run *cutRun, ms []txn.CutMessage) cutReply {
	x := cutReply{ms: ms, errs: make([]error, len(ms))}
	if ms[0].Step == txn.CutAsk {
		x.answers = make([]txn.Answer, len(ms))
		steps := make([]*step, len(ms))
		for i, m := range ms {
			steps[i] = &step{x: &fsm.Txn{ID: m.ID, Partition: m.Home, Settle: &fsm.Settle{Raise: m.At}}}
		}
		r.steps(ctx, run.view, steps, 0)
		r.parallel(len(steps), func(i int) {
			s, m := steps[i], ms[i]
			if x.errs[i] = s.err; s.err == nil {
				x.answers[i], x.errs[i] = shardgroup.Inquire(ctx, r, m.ID, m.Home, false, m.At, s.answer)
			}
		})
		return x
	}
	m := ms[0]
	q := &groupCut{step: m.Step, group: m.Group, term: m.Term, token: m.Token}
	switch m.Step {
	case txn.CutHold:
		q.all, q.collections, q.counts = run.all, run.colls, run.counts
	case txn.CutPromise:
		q.promise = fsm.Promise{To: m.At, Epoch: run.view.Epoch, Partitions: run.view.PartitionsOf(m.Group)}
	}
	var answer groupCutAnswer
	answer, x.errs[0] = r.askCut(ctx, run.view, q)
	x.held, x.kept = answer.held, answer.kept
	return x
}

// moment is a timestamp at which these groups can be read strictly, what one
// collection is concerned: of one group that no transaction is about to write
// to, its clock; else a cut's.
func (r *Router) moment(ctx context.Context, v *placement.View, groups []placement.GroupID, c placement.CollectionID, s subject) (hlc.Timestamp, *wire.Error) {
	if len(groups) == 1 {
		q := &groupCut{step: lookStep, group: groups[0], collections: []placement.CollectionID{c}}
		var a groupCutAnswer
		e := r.onLeader(ctx, v, groups[0], false, s,
			func(ctx context.Context, g Group) (err error) { a, err = cutHere(ctx, g, q); return err },
			func(ctx context.Context, node placement.NodeID) (err error) {
				a, err = r.callCut(ctx, node, q)
				return err
			})
		if e != nil {
			return 0, e
		}
		if len(a.held.Undecided) == 0 {
			if a.held.Clock == 0 { // nothing was ever written: any time will do
				return r.opts.Clock.Now(), nil
			}
			return a.held.Clock, nil
		}
	}
	run, e := r.cut(ctx, v, groups, c, false)
	if e != nil {
		return 0, e
	}
	return run.at, nil
}

// lookStep asks one group alone: its clock, leadership confirmed, and who is
// undecided. Nothing is held.
const lookStep txn.CutStep = 0

// groupCut is a message of a cut to one group's leader:
//
//	| version u8 | step u8 | group uvarint |
//	look, hold: | all u8 | n uvarint, collection uvarint ... | n uvarint, counted collection uvarint ... |
//	promise:    | term, token uvarint | to u64 | epoch uvarint | n uvarint, partition uvarint ... |
//	release:    | term, token uvarint |
type groupCut struct {
	step  txn.CutStep
	group placement.GroupID

	all                 bool
	collections, counts []placement.CollectionID

	term, token uint64
	promise     fsm.Promise
}

// groupCutAnswer is the answer to a look or a hold:
//
//	| version u8 | term, token uvarint | clock u64 | n uvarint, (id 24, home uvarint) ... | n uvarint, (documents, bytes uvarint) ... |
//
// The others are answered with the version alone.
type groupCutAnswer struct {
	held txn.Held
	kept []shardgroup.Kept
}

func (q *groupCut) encode() []byte {
	b := binary.AppendUvarint([]byte{peerVersion, byte(q.step)}, uint64(q.group))
	switch q.step {
	case lookStep, txn.CutHold:
		var all byte
		if q.all {
			all = 1
		}
		b = append(b, all)
		for _, list := range [...][]placement.CollectionID{q.collections, q.counts} {
			b = binary.AppendUvarint(b, uint64(len(list)))
			for _, c := range list {
				b = binary.AppendUvarint(b, uint64(c))
			}
		}
	case txn.CutPromise, txn.CutRelease:
		b = binary.AppendUvarint(binary.AppendUvarint(b, q.term), q.token)
	}
	if q.step == txn.CutPromise {
		b = binary.BigEndian.AppendUint64(b, uint64(q.promise.To))
		b = binary.AppendUvarint(b, uint64(q.promise.Epoch))
		b = binary.AppendUvarint(b, uint64(len(q.promise.Partitions)))
		for _, p := range q.promise.Partitions {
			b = binary.AppendUvarint(b, uint64(p))
		}
	}
	return b
}

func decodeGroupCut(b []byte) (*groupCut, error) {
	d := txn.Reader{B: b}
	if v := d.U8(); v != peerVersion {
		return nil, fmt.Errorf("version %d", v)
	}
	q := &groupCut{step: txn.CutStep(d.U8()), group: placement.GroupID(d.Uvarint32())}
	switch q.step {
	case lookStep, txn.CutHold:
		switch d.U8() {
		case 0:
		case 1:
			q.all = true
		default:
			d.Fail(fmt.Errorf("not a truth value"))
		}
		for _, list := range [...]*[]placement.CollectionID{&q.collections, &q.counts} {
			n := d.Count(1, maxCutCollections)
			*list = make([]placement.CollectionID, 0, n)
			for range n {
				*list = append(*list, placement.CollectionID(d.Uvarint32()))
			}
		}
	case txn.CutPromise, txn.CutRelease:
		q.term, q.token = d.Uvarint(), d.Uvarint()
	default:
		d.Fail(fmt.Errorf("step %d", q.step))
	}
	if q.step == txn.CutPromise {
		q.promise.To, q.promise.Epoch = d.Time(), placement.Epoch(d.Uvarint())
		n := d.Count(1, txn.MaxParticipants)
		q.promise.Partitions = make([]placement.PartitionID, 0, n)
		for range n {
			q.promise.Partitions = append(q.promise.Partitions, placement.PartitionID(d.Uvarint32()))
		}
	}
	return q, d.Err()
}

func (a *groupCutAnswer) append(b []byte) []byte {
	b = binary.AppendUvarint(binary.AppendUvarint(b, a.held.Term), a.held.Token)
	b = binary.BigEndian.AppendUint64(b, uint64(a.held.Clock))
	b = binary.AppendUvarint(b, uint64(len(a.held.Undecided)))
	for _, o := range a.held.Undecided {
		b = binary.AppendUvarint(txn.AppendID(b, o.ID), uint64(o.Home))
	}
	b = binary.AppendUvarint(b, uint64(len(a.kept)))
	for _, k := range a.kept {
		b = binary.AppendUvarint(binary.AppendUvarint(b, k.Documents), k.Bytes)
	}
	return b
}

func decodeGroupCutAnswer(b []byte, q *groupCut) (a groupCutAnswer, err error) {
	d := txn.Reader{B: b}
	if v := d.U8(); v != peerVersion {
		return a, fmt.Errorf("answer of version %d", v)
	}
	if q.step == lookStep || q.step == txn.CutHold {
		a.held.Term, a.held.Token, a.held.Clock = d.Uvarint(), d.Uvarint(), d.Time()
		n := d.Count(txn.IDLen+1, txn.MaxUndecided)
		a.held.Undecided = make([]txn.Open, 0, n)
		for range n {
			a.held.Undecided = append(a.held.Undecided, txn.Open{ID: d.ID(), Home: placement.PartitionID(d.Uvarint32())})
		}
		n = d.Count(2, maxCutCollections)
		if n != len(q.counts) {
			d.Fail(fmt.Errorf("%d counts instead of %d", n, len(q.counts)))
		}
		a.kept = make([]shardgroup.Kept, 0, n)
		for range n {
			a.kept = append(a.kept, shardgroup.Kept{Documents: d.Uvarint(), Bytes: d.Uvarint()})
		}
	}
	return a, d.Err()
}

// askCut asks a group's leader, here or there, once.
func (r *Router) askCut(ctx context.Context, v *placement.View, q *groupCut) (a groupCutAnswer, err error) {
	group, node := r.locate(v, q.group, 0)
	switch {
	case group != nil:
		return cutHere(ctx, group, q)
	case node == "":
		return a, notLeaderHere(q.group, "", subject{})
	}
	if a, err = r.callCut(ctx, node, q); err != nil {
		r.learnFrom(q.group, err)
		return a, err
	}
	r.learn(q.group, node)
	return a, nil
}

func (r *Router) callCut(ctx context.Context, node placement.NodeID, q *groupCut) (a groupCutAnswer, err error) {
	body, err := r.call(ctx, node, wire.KindGroupCut, q.encode(), 0)
	if err != nil {
		return a, err
	}
	if a, err = decodeGroupCutAnswer(body, q); err != nil {
		return a, refuse(wire.CodeInternal, "node %s: the answer to a message of a cut is damaged: %v", node, err)
	}
	return a, nil
}

// cutHere is one group's leader's part.
func cutHere(ctx context.Context, g Group, q *groupCut) (a groupCutAnswer, err error) {
	collections := q.collections
	if q.all {
		collections = nil
	}
	switch q.step {
	case lookStep:
		if err = g.ReadIndex(ctx); err != nil {
			return a, err
		}
		holders, clock := g.Machine().Undecided(collections)
		a.held.Clock = clock
		for _, h := range holders[:min(len(holders), 1)] { // that there are some is all that is asked
			a.held.Undecided = append(a.held.Undecided, txn.Open{ID: h.ID, Home: h.Home})
		}
	case txn.CutHold:
		a.held, a.kept, err = g.Hold(ctx, collections, q.counts)
	case txn.CutPromise:
		err = g.Redeem(ctx, q.term, q.token, q.promise)
	case txn.CutRelease:
		g.Release(q.term, q.token)
	}
	return a, err
}

// serveCut serves KindGroupCut.
func (r *Router) serveCut(ctx context.Context, body []byte) ([]byte, error) {
	q, err := decodeGroupCut(body)
	if err != nil {
		return nil, refuse(wire.CodeBadRequest, "the message of a cut from another node is malformed, or of another version: %v", err)
	}
	g, e := r.leading(q.group)
	if e != nil {
		return nil, e
	}
	a, err := cutHere(ctx, g, q)
	if err != nil {
		return nil, r.wireReadError(err, subject{})
	}
	out := []byte{peerVersion}
	if q.step == lookStep || q.step == txn.CutHold {
		out = a.append(out)
	}
	return out, nil
}
