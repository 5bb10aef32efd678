package router

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/update"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// step is one command of a transaction on its way to the leader of its group.
type step struct {
	x      *fsm.Txn
	born   hlc.Timestamp
	free   bool
	later  bool // nobody waits for it
	answer txn.Answer
	err    error // no answer; it may have arrived, unless the error says otherwise
}

// steps carries commands of one group to its leader, here or there, once.
func (r *Router) steps(ctx context.Context, v *placement.View, steps []*step, turn int) {
	for _, s := range steps {
		s.x.Epoch = v.Epoch
	}
	id := v.Owner(steps[0].x.Partition)
	group, node := r.locate(v, id, turn)
	switch {
	case group != nil:
		r.proposeSteps(ctx, group, steps)
		return
	case node == "":
		for _, s := range steps {
			s.err = notLeaderHere(id, "", subject{})
		}
		return
	}
	commands := make([]fsm.Command, len(steps))
	for i, s := range steps {
		commands[i].Txn = s.x
	}
	body := stepsHead(id, steps[0], r.opts.Clock.Now())
	fail := func(err error) {
		for _, s := range steps {
			s.err = err
		}
	}
	body, err := fsm.AppendEntry(body, commands)
	if err != nil {
		fail(err)
		return
	}
	answer, err := r.call(ctx, node, wire.KindGroupTxn, body, len(steps))
	if err != nil {
		r.learnFrom(id, err)
		fail(err)
		return
	}
	if err := decodeSteps(answer, steps); err != nil {
		fail(&wire.ConnError{Sent: true, Err: fmt.Errorf("node %s: %w", node, err)})
		return
	}
	r.learn(id, node)
	for _, s := range steps {
		var no *wire.Error
		if errors.As(s.err, &no) && no.Code == wire.CodeNotLeader {
			r.learn(id, placement.NodeID(no.Leader))
		}
	}
}

// stepsHead stands before the entry of commands for another node:
//
//	| version u8 | group uvarint | flags u8 | born u64 | now u64 | entry |
func stepsHead(id placement.GroupID, first *step, now hlc.Timestamp) []byte {
	b := binary.AppendUvarint([]byte{peerVersion}, uint64(id))
	b = binary.BigEndian.AppendUint64(append(b, first.flags()), uint64(first.born))
	return binary.BigEndian.AppendUint64(b, uint64(now))
}

// proposeSteps has a group here apply them, side by side.
func (r *Router) proposeSteps(ctx context.Context, g Group, steps []*step) {
	// Those that can be started are on their way together, the others wait in a
	// goroutine each, one in this. Who is late when ctx ends writes to a step of
	// its own.
	type started struct {
		own  step
		done chan struct{}
	}
	flying := make([]*started, len(steps))
	var slow []*step
	for i, s := range steps {
		x := &started{own: *s, done: make(chan struct{})}
		if (s.later || len(steps) > 1) && x.own.start(g, func() { close(x.done) }) {
			flying[i] = x
		} else {
			slow = append(slow, s)
		}
	}
	r.parallel(len(slow), func(i int) {
		s := slow[i]
		s.take(g.ProposeTxn(ctx, fsm.Command{Txn: s.x}, s.born, s.free))
	})
	for i, x := range flying {
		if x == nil {
			continue
		}
		select {
		case <-x.done:
			*steps[i] = x.own
		case <-ctx.Done():
			steps[i].err = shardgroup.ErrOutcomeUnknown
		}
	}
}

// start has a group here apply the step; done is called when it has its answer,
// on a goroutine that must not wait. False: it has to wait for something first.
func (s *step) start(g Group, done func()) bool {
	begin := g.StartTxn
	if s.later {
		begin = g.StartLater
	}
	return begin(fsm.Command{Txn: s.x}, func(res fsm.Result, err error) {
		s.take(res, err)
		done()
	})
}

// take notes what became of a command.
func (s *step) take(res fsm.Result, err error) {
	switch {
	case err != nil:
		s.err = err
	case res.Wire.Error != nil:
		e := *res.Wire.Error
		e.Message = res.Detail
		s.err = &e
	case res.Txn == nil:
		s.err = shardgroup.ErrOutcomeUnknown
	default:
		s.answer = *res.Txn
	}
}

// The flags of a request, which are those of all its steps.
const (
	flagFree  = 1
	flagLater = 2
)

func (s *step) flags() (f byte) {
	if s.free {
		f |= flagFree
	}
	if s.later {
		f |= flagLater
	}
	return f
}

// serveSteps serves KindGroupTxn. The answers:
//
//	| version u8 | for each: kind u8 = 0 answer, 1 refusal (length uvarint, Error), 2 rival 24 |
func (r *Router) serveSteps(ctx context.Context, body []byte) ([]byte, error) {
	id, theirs, steps, e := decodeStepsBody(body)
	if e != nil {
		return nil, e
	}
	g, e := r.leading(id)
	if e != nil {
		return nil, e
	}
	for _, s := range steps {
		if p := s.x.Prepare; p != nil {
			// The deadline is looked at by this node, whose clock is another one.
			left := min(max(p.Deadline.Time().Sub(theirs.Time()), 0), maxTxnTimeout)
			p.Deadline = r.opts.Clock.Now().Add(left)
		}
	}
	r.proposeSteps(ctx, g, steps)
	return r.appendSteps([]byte{peerVersion}, steps), nil
}

// decodeStepsBody reads what steps has sent, and the sender's clock.
func decodeStepsBody(body []byte) (placement.GroupID, hlc.Timestamp, []*step, *wire.Error) {
	d := peerDecoder{b: body}
	d.version()
	id := placement.GroupID(d.number32())
	if d.bad || len(d.b) < 17 {
		return 0, 0, nil, refuse(wire.CodeBadRequest, "the commands from another node are malformed, or of another version")
	}
	flags, born := d.b[0], hlc.Timestamp(binary.BigEndian.Uint64(d.b[1:]))
	theirs := hlc.Timestamp(binary.BigEndian.Uint64(d.b[9:]))
	commands, err := fsm.DecodeEntry(d.b[17:])
	if err != nil || slices.ContainsFunc(commands, func(c fsm.Command) bool { return c.Txn == nil }) {
		return 0, 0, nil, refuse(wire.CodeBadRequest, "the commands from another node are not a transaction's: %v", err)
	}
	steps := make([]*step, len(commands))
	for i := range commands {
		steps[i] = &step{x: commands[i].Txn, born: born, free: flags&flagFree != 0, later: flags&flagLater != 0}
	}
	return id, theirs, steps, nil
}

// appendSteps writes what became of steps, for decodeSteps.
func (r *Router) appendSteps(out []byte, steps []*step) []byte {
	for _, s := range steps {
		var back *shardgroup.StepBack
		switch {
		case s.err == nil:
			out = s.answer.Append(append(out, 0))
		case errors.As(s.err, &back):
			out = txn.AppendID(append(out, 2), back.Rival)
		default:
			no := wire.Append(nil, r.wireError(s.err, subject{}))
			out = append(binary.AppendUvarint(append(out, 1), uint64(len(no))), no...)
		}
	}
	return out
}

func decodeSteps(b []byte, steps []*step) error {
	d := txn.Reader{B: b}
	if v := d.U8(); v != peerVersion {
		return fmt.Errorf("answers of version %d", v)
	}
	for _, s := range steps {
		switch k := d.U8(); k {
		case 0:
			s.answer.Decode(&d)
		case 1:
			var no wire.Error
			if err := wire.Decode(d.Bytes(64<<10), &no); err != nil {
				return err
			}
			s.err = &no
		case 2:
			s.err = &shardgroup.StepBack{Rival: d.ID()}
		default:
			d.Fail(fmt.Errorf("answer of kind %d", k))
		}
	}
	return d.Err()
}

// Step carries one command for a leader that settles transactions
// (shardgroup.Resolver).
func (r *Router) Step(ctx context.Context, x *fsm.Txn) (txn.Answer, error) {
	var p patience
	for turn := 0; ; turn++ {
		s := step{x: x}
		r.steps(ctx, r.opts.Placement.View(), []*step{&s}, turn)
		if s.err == nil {
			return s.answer, nil
		}
		e := r.wireError(s.err, subject{})
		if !passing(e.Code) && !e.Code.Unknown() || !p.wait(ctx, r.opts.AttemptTimeout) {
			return txn.Answer{}, s.err
		}
		r.refreshFor(ctx, e)
	}
}

// Decision asks home what it has decided (shardgroup.Resolver).
func (r *Router) Decision(ctx context.Context, home placement.PartitionID, id txn.ID) (a txn.Answer, err error) {
	v := r.opts.Placement.View()
	q := &txnRead{group: v.Owner(home), epoch: v.Epoch, home: home, id: id}
	e := r.onLeader(ctx, v, q.group, false, subject{},
		func(ctx context.Context, g Group) (err error) {
			a, err = decisionHere(ctx, g, q)
			return err
		},
		func(ctx context.Context, node placement.NodeID) (err error) {
			a, err = r.askTxn(ctx, node, q)
			return err
		})
	if e != nil {
		return txn.Answer{}, e
	}
	return a, nil
}

func decisionHere(ctx context.Context, g Group, q *txnRead) (txn.Answer, error) {
	g.AwaitConfirm(ctx, q.home, q.id)
	if err := g.ReadIndex(ctx); err != nil {
		return txn.Answer{}, err
	}
	return g.Machine().Decision(q.home, q.epoch, q.id)
}

// txnRead is a question to one group's leader: what home has decided, or
// whether what was read is still the newest, or what is held.
//
//	| version u8 | what u8 | group, epoch uvarint | home uvarint, id 24; or n uvarint, (partition uvarint, part) ...;
//	  or time u64, random (length uvarint, bytes) |
type txnRead struct {
	group  placement.GroupID
	epoch  placement.Epoch
	home   placement.PartitionID
	id     txn.ID
	verify []fsm.PartitionPart  // if not nil
	list   *wire.TxnListRequest // if not nil
}

const (
	askDecision = 0
	askVerify   = 1
	askList     = 2
)

func (q *txnRead) encode() []byte {
	what := byte(askDecision)
	switch {
	case q.list != nil:
		what = askList
	case q.verify != nil:
		what = askVerify
	}
	b := binary.AppendUvarint([]byte{peerVersion, what}, uint64(q.group))
	b = binary.AppendUvarint(b, uint64(q.epoch))
	switch what {
	case askDecision:
		return txn.AppendID(binary.AppendUvarint(b, uint64(q.home)), q.id)
	case askVerify:
		b = binary.AppendUvarint(b, uint64(len(q.verify)))
		for i := range q.verify {
			b = binary.AppendUvarint(b, uint64(q.verify[i].Partition))
			b = txn.AppendPart(b, &q.verify[i].Part)
		}
	case askList:
		b = binary.BigEndian.AppendUint64(b, q.list.Time)
		b = append(binary.AppendUvarint(b, uint64(len(q.list.Random))), q.list.Random...)
	}
	return b
}

func decodeTxnRead(b []byte) (*txnRead, error) {
	d := txn.Reader{B: b}
	if v := d.U8(); v != peerVersion {
		return nil, fmt.Errorf("version %d", v)
	}
	what := d.U8()
	q := &txnRead{group: placement.GroupID(d.Uvarint32()), epoch: placement.Epoch(d.Uvarint())}
	switch what {
	case askDecision:
		q.home, q.id = placement.PartitionID(d.Uvarint32()), d.ID()
	case askVerify:
		n := d.Count(4, txn.MaxParticipants)
		q.verify = make([]fsm.PartitionPart, 0, n)
		for range n {
			q.verify = append(q.verify, fsm.PartitionPart{Partition: placement.PartitionID(d.Uvarint32()), Part: d.Part()})
		}
	case askList:
		q.list = &wire.TxnListRequest{Time: uint64(d.Time()), Random: d.Bytes(len(wire.RequestID{}.Random))}
	default:
		d.Fail(fmt.Errorf("question %d", what))
	}
	return q, d.Err()
}

func (r *Router) askTxn(ctx context.Context, node placement.NodeID, q *txnRead) (a txn.Answer, err error) {
	body, err := r.call(ctx, node, wire.KindGroupTxnRead, q.encode(), 0)
	if err != nil {
		return a, err
	}
	d := txn.Reader{B: body}
	a.Decode(&d)
	return a, d.Err()
}

// serveTxnRead serves KindGroupTxnRead.
func (r *Router) serveTxnRead(ctx context.Context, body []byte) ([]byte, error) {
	q, err := decodeTxnRead(body)
	if err != nil {
		return nil, refuse(wire.CodeBadRequest, "the question from another node is malformed, or of another version: %v", err)
	}
	g, e := r.leading(q.group)
	if e != nil {
		return nil, e
	}
	var a txn.Answer
	switch {
	case q.list != nil:
		list, err := r.listHere(q, g)
		if err != nil {
			return nil, r.wireReadError(err, subject{})
		}
		return wire.Append(nil, list), nil
	case q.verify != nil:
		a.Conflict, err = verifyHere(ctx, g, q)
	default:
		a, err = decisionHere(ctx, g, q)
	}
	if err != nil {
		return nil, r.wireReadError(err, subject{})
	}
	return a.Append(nil), nil
}

// evaluate serves KindEvaluate.
func (r *Router) evaluate(req *wire.EvaluateRequest) (*wire.EvaluateReply, *wire.Error) {
	s := subject{req.Collection, req.Document.ID}
	live, body := req.Document.Version != 0, req.Document.Body
	for i := range req.Items {
		it := &req.Items[i]
		check := *it
		check.RequestID = wire.RequestID{Time: 1}
		if e := r.checkItem(req.Collection, &check); e != nil {
			return nil, e
		}
		switch it.Op {
		case wire.OpPut, wire.OpInsert:
			body, live = it.Body, true
		case wire.OpDelete:
			body, live = nil, false
		case wire.OpUpdate, wire.OpUpsert:
			if !live && it.Op == wire.OpUpdate {
				return nil, r.word(&wire.Error{Code: wire.CodeNotFound}, s, "")
			}
			if !live {
				body = nil
			}
			u, err := update.Parse(it.Body)
			var changed doc.Raw
			if err == nil {
				changed, err = u.Apply(body, r.opts.Clock.Now(), r.opts.Limits)
			}
			if err != nil {
				code := wire.CodeUpdateFailed
				var wrong *update.Error
				if errors.As(err, &wrong) {
					code = wrong.Code
				}
				return nil, refuse(code, "%s: %v", s, err)
			}
			body, live = changed, true
		default:
			return nil, refuse(wire.CodeBadRequest, "%s: operation %d cannot be evaluated", s, it.Op)
		}
	}
	reply := &wire.EvaluateReply{Now: uint64(r.opts.Clock.Now())}
	if live {
		reply.Body = body
	}
	return reply, nil
}
