package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// Bounds of what one group holds for transactions that are not decided.
const (
	maxPrepared      = 20_000
	maxPreparedBytes = 256 << 20
)

// Txn is one step of a transaction, at one partition. Exactly one of the
// pointers is set.
type Txn struct {
	ID        txn.ID
	Partition placement.PartitionID // a participant, or home
	Epoch     placement.Epoch

	Prepare *Prepare
	Decide  *Decide
	Resolve *Resolve
	Settle  *Settle
	Commit  *Commit
	Forget  *Forget
	Confirm *Confirm
	Reject  *Reject
	Poll    *Poll

	// Request is the write that a Commit or a Decide carries out; nil: none.
	Request *Request
}

// Prepare asks a participant for its vote: Prepared, or for ever Refused. With
// participants it asks home for its own (Staged): when all of them have
// prepared, and home has, the transaction is committed. Home's no is Aborted.
type Prepare struct {
	Participants []placement.PartitionID

	Home     placement.PartitionID
	Deadline hlc.Timestamp
	Born     hlc.Timestamp
	Part     txn.Part
}

// Decide commits at home, if home's own part is valid: all participants have
// voted yes, and MaxP is the largest of their prepare timestamps.
type Decide struct {
	MaxP         hlc.Timestamp
	Participants []placement.PartitionID
	Part         txn.Part
}

// Resolve tells a participant home's decision; At is the commit timestamp.
type Resolve struct {
	Commit bool
	At     hlc.Timestamp
}

// Settle asks home. Undecided, the transaction is aborted if Abort is set; else
// home's clock is raised to Raise, so that it can only commit above.
type Settle struct {
	Abort bool
	Raise hlc.Timestamp
}

// Commit is a whole transaction whose partitions are all this group's; the
// command's own partition is home.
type Commit struct{ Parts []PartitionPart }

// PartitionPart is what a transaction asks of one partition.
type PartitionPart struct {
	Partition placement.PartitionID
	Part      txn.Part
}

// Forget drops home's record of a commit: every participant has resolved it.
type Forget struct{}

// Confirm tells home, which has staged it, that every participant has prepared:
// At is the largest prepare timestamp of all, home's included.
type Confirm struct{ At hlc.Timestamp }

// Reject tells home that a participant has refused: what is undecided or staged
// is aborted.
type Reject struct{}

// Poll asks a participant whether it has prepared: Prepared, Refused, Done or
// Expired. If it has not, it is to refuse from now on if Deny is set; else its
// clock is raised to Raise, so that it can only prepare above, and it says None.
type Poll struct {
	Deny  bool
	Raise hlc.Timestamp
}

// MessageTxn is the command of a message that carries no part: all but Prepare
// and Decide.
func MessageTxn(id txn.ID, m txn.Message) *Txn {
	x := &Txn{ID: id, Partition: m.To}
	switch m.Step {
	case txn.AbortIfUndecided:
		x.Settle = &Settle{Abort: true}
	case txn.Ask:
		x.Settle = &Settle{Raise: m.At}
	case txn.Confirm:
		x.Confirm = &Confirm{At: m.At}
	case txn.Reject:
		x.Reject = &Reject{}
	case txn.Poll:
		x.Poll = &Poll{Raise: m.At}
	case txn.Deny:
		x.Poll = &Poll{Deny: true}
	case txn.Resolve:
		x.Resolve = &Resolve{Commit: m.Commit, At: m.At}
	case txn.Forget:
		x.Forget = &Forget{}
	}
	return x
}

func (t *Txn) kind() commandKind {
	switch {
	case t.Prepare != nil && len(t.Prepare.Participants) > 0:
		return kindStage
	case t.Confirm != nil:
		return kindConfirm
	case t.Reject != nil:
		return kindReject
	case t.Poll != nil:
		return kindPoll
	case t.Prepare != nil:
		return kindPrepare
	case t.Decide != nil && t.Request != nil:
		return kindDecideWrite
	case t.Decide != nil:
		return kindDecide
	case t.Resolve != nil:
		return kindResolve
	case t.Settle != nil:
		return kindSettle
	case t.Commit != nil && t.Request != nil:
		return kindCommitWrite
	case t.Commit != nil:
		return kindCommit
	default:
		return kindForget
	}
}

func (t *Txn) check() error {
	set := 0
	for _, s := range [...]bool{t.Prepare != nil, t.Decide != nil, t.Resolve != nil, t.Settle != nil, t.Commit != nil, t.Forget != nil, t.Confirm != nil, t.Reject != nil, t.Poll != nil} {
		if s {
			set++
		}
	}
	switch {
	case set != 1:
		return fmt.Errorf("a transaction's command says %d things instead of one", set)
	case t.Commit != nil && (len(t.Commit.Parts) == 0 || len(t.Commit.Parts) > txn.MaxParticipants):
		return fmt.Errorf("a transaction of %d partitions", len(t.Commit.Parts))
	case t.Prepare != nil && len(t.Prepare.Participants) > 0 && t.Prepare.Home != t.Partition:
		return fmt.Errorf("partition %d is asked to stage a transaction whose home is partition %d", t.Partition, t.Prepare.Home)
	case t.Prepare != nil && len(t.Prepare.Participants) > txn.MaxParticipants:
		return fmt.Errorf("a transaction of %d participants", len(t.Prepare.Participants))
	case t.Decide != nil && len(t.Decide.Participants) > txn.MaxParticipants:
		return fmt.Errorf("a transaction of %d participants", len(t.Decide.Participants))
	}
	return t.checkRequest()
}

const txnHead = txn.IDLen + 5 + 10

func (t *Txn) encodedLen() int {
	n := txnHead + 3*10
	if t.Request != nil {
		n += t.Request.encodedLen()
	}
	switch {
	case t.Prepare != nil:
		return n + 3 + 5*len(t.Prepare.Participants) + txn.PartLen(&t.Prepare.Part)
	case t.Decide != nil:
		return n + 5*len(t.Decide.Participants) + txn.PartLen(&t.Decide.Part)
	case t.Commit != nil:
		size := n
		for i := range t.Commit.Parts {
			size += 5 + txn.PartLen(&t.Commit.Parts[i].Part)
		}
		return size
	}
	return n
}

func (t *Txn) append(dst []byte) []byte {
	dst = txn.AppendID(dst, t.ID)
	dst = binary.AppendUvarint(dst, uint64(t.Partition))
	dst = binary.AppendUvarint(dst, uint64(t.Epoch))
	if t.Request != nil {
		dst = t.Request.append(dst)
	}
	switch {
	case t.Prepare != nil:
		p := t.Prepare
		if len(p.Participants) > 0 {
			dst = txn.AppendPartitions(dst, p.Participants)
		}
		dst = binary.AppendUvarint(dst, uint64(p.Home))
		dst = binary.BigEndian.AppendUint64(dst, uint64(p.Deadline))
		dst = binary.BigEndian.AppendUint64(dst, uint64(p.Born))
		dst = txn.AppendPart(dst, &p.Part)
	case t.Decide != nil:
		dst = binary.BigEndian.AppendUint64(dst, uint64(t.Decide.MaxP))
		dst = txn.AppendPartitions(dst, t.Decide.Participants)
		dst = txn.AppendPart(dst, &t.Decide.Part)
	case t.Resolve != nil:
		dst = append(dst, bit(t.Resolve.Commit))
		dst = binary.BigEndian.AppendUint64(dst, uint64(t.Resolve.At))
	case t.Settle != nil:
		dst = append(dst, bit(t.Settle.Abort))
		dst = binary.BigEndian.AppendUint64(dst, uint64(t.Settle.Raise))
	case t.Confirm != nil:
		dst = binary.BigEndian.AppendUint64(dst, uint64(t.Confirm.At))
	case t.Poll != nil:
		dst = append(dst, bit(t.Poll.Deny))
		dst = binary.BigEndian.AppendUint64(dst, uint64(t.Poll.Raise))
	case t.Commit != nil:
		dst = binary.AppendUvarint(dst, uint64(len(t.Commit.Parts)))
		for i := range t.Commit.Parts {
			dst = binary.AppendUvarint(dst, uint64(t.Commit.Parts[i].Partition))
			dst = txn.AppendPart(dst, &t.Commit.Parts[i].Part)
		}
	}
	return dst
}

func bit(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// txnRoom is memory for a transaction's command, with the steps that are many.
type txnRoom struct {
	txn     Txn
	prepare Prepare
	confirm Confirm
	resolve Resolve
}

// txn reads a transaction's command. Its own decoder goes over the rest of the
// entry and gives back what it has not read.
func (d *entryDecoder) txn(kind commandKind) *Txn {
	r := txn.Reader{B: d.b}
	if len(d.txns) == cap(d.txns) {
		d.txns = make([]txnRoom, 0, cap(d.commands)) // commands point to the one before
	}
	d.txns = d.txns[:len(d.txns)+1]
	room := &d.txns[len(d.txns)-1]
	t := &room.txn
	t.ID, t.Partition, t.Epoch = r.ID(), placement.PartitionID(r.Uvarint32()), placement.Epoch(r.Uvarint())
	truth := func() bool {
		v := r.U8()
		if v > 1 {
			r.Fail(fmt.Errorf("%d where 0 or 1 should be", v))
		}
		return v == 1
	}
	switch kind {
	case kindPrepare, kindStage:
		t.Prepare = &room.prepare
		if kind == kindStage {
			if t.Prepare.Participants = r.Partitions(); len(t.Prepare.Participants) == 0 {
				r.Fail(errors.New("staged without participants"))
			}
		}
		p := t.Prepare
		p.Home, p.Deadline, p.Born, p.Part = placement.PartitionID(r.Uvarint32()), r.Time(), r.Time(), r.Part()
	case kindConfirm:
		t.Confirm = &room.confirm
		t.Confirm.At = r.Time()
	case kindReject:
		t.Reject = &Reject{}
	case kindPoll:
		t.Poll = &Poll{Deny: truth(), Raise: r.Time()}
	case kindDecide, kindDecideWrite:
		if kind == kindDecideWrite {
			t.Request = readRequest(&r)
		}
		t.Decide = &Decide{MaxP: r.Time(), Participants: r.Partitions(), Part: r.Part()}
	case kindResolve:
		t.Resolve = &room.resolve
		t.Resolve.Commit, t.Resolve.At = truth(), r.Time()
	case kindSettle:
		t.Settle = &Settle{Abort: truth(), Raise: r.Time()}
	case kindCommit, kindCommitWrite:
		if kind == kindCommitWrite {
			t.Request = readRequest(&r)
		}
		n := r.Count(1+3, txn.MaxParticipants)
		if n == 0 {
			r.Fail(errors.New("a commit of nothing"))
		}
		t.Commit = &Commit{Parts: make([]PartitionPart, 0, n)}
		for range n {
			t.Commit.Parts = append(t.Commit.Parts, PartitionPart{placement.PartitionID(r.Uvarint32()), r.Part()})
		}
	case kindForget:
		t.Forget = &Forget{}
	}
	left := r.B
	r.B = nil
	if err := t.checkRequest(); err != nil {
		r.Fail(err)
	}
	if err := r.Err(); err != nil {
		d.b = nil
		if d.bad == nil {
			d.bad = sameFault(err)
		}
		return t
	}
	d.b = left
	return t
}

// txnRow names a record.
type txnRow struct {
	txnKey
	role mvcc.Role
}

// txn runs one step of a transaction and folds its answer into the digest.
func (a *applier) txn(c *Command, r *Result) error {
	t := c.Txn
	refused := func(code wire.Code, detail string) error {
		r.Wire.Error, r.Detail = &wire.Error{Code: code, Epoch: uint64(a.meta.epoch)}, detail
		a.fold(opAnswer, nil, uint64(code))
		return nil
	}
	if !a.view.check(t.Partition, t.Epoch) {
		return refused(wire.CodeStaleEpoch, a.view.why(a.m.group, t.Partition, t.Epoch))
	}
	if t.Commit != nil {
		for i := range t.Commit.Parts {
			if p := t.Commit.Parts[i].Partition; !a.view.check(p, t.Epoch) {
				return refused(wire.CodeStaleEpoch, a.view.why(a.m.group, p, t.Epoch))
			}
		}
	}
	var answer txn.Answer
	var err error
	switch {
	case t.Prepare != nil:
		if a.m.held.prepared[txnKey{t.Partition, t.ID}] == nil && (len(a.m.held.prepared) >= maxPrepared || a.m.held.bytes >= maxPreparedBytes) {
			return refused(wire.CodeOverloaded, "too many transactions wait for their decision")
		}
		answer, err = a.prepare(c.Time, t)
	case t.Decide != nil:
		answer, err = a.decideTxn(c.Time, t)
	case t.Resolve != nil:
		if _, staged := a.staged(txnKey{t.Partition, t.ID}); staged {
			return refused(wire.CodeBadRequest, "it is staged here, and home decides")
		}
		if h := a.m.held.prepared[txnKey{t.Partition, t.ID}]; h != nil && t.Resolve.Commit && t.Resolve.At < h.rec.At {
			return refused(wire.CodeBadRequest, "a commit timestamp below the prepare timestamp")
		}
		answer, err = a.resolve(t)
	case t.Settle != nil:
		answer, err = a.settle(t)
	case t.Commit != nil:
		answer, err = a.commitTxn(c.Time, t)
	case t.Forget != nil:
		answer, err = a.forget(t)
	case t.Confirm != nil:
		if h := a.m.held.prepared[txnKey{t.Partition, t.ID}]; h != nil && (len(h.rec.Participants) == 0 || t.Confirm.At < h.rec.At) {
			return refused(wire.CodeBadRequest, "not staged here, or a commit timestamp below the prepare timestamp")
		}
		answer, err = a.confirm(t)
	case t.Reject != nil:
		answer, err = a.reject(t)
	case t.Poll != nil:
		answer, err = a.poll(t)
	}
	if err != nil {
		return err
	}
	if len(a.answers) == cap(a.answers) {
		a.answers = make([]txn.Answer, 0, len(a.m.decoder.commands))
	}
	a.answers = append(a.answers, answer)
	r.Txn = &a.answers[len(a.answers)-1]
	var code uint64
	if answer.Conflict != nil {
		code = uint64(answer.Conflict.Code)
	}
	a.fold(opAnswer, nil, uint64(answer.State), uint64(answer.At), code)
	return nil
}

// prepare is a participant's vote, or home's own.
func (a *applier) prepare(at hlc.Timestamp, t *Txn) (txn.Answer, error) {
	k := txnKey{t.Partition, t.ID}
	if h := a.m.held.prepared[k]; h != nil {
		return txn.Answer{State: txn.Prepared, At: h.rec.At, Duplicate: true}, nil
	}
	staged := len(t.Prepare.Participants) > 0
	no := txn.Refused
	if staged {
		no = txn.Aborted
		if answer, found, err := a.decided(k); found || err != nil {
			return answer, err
		}
	} else if state, found, err := a.endAt(k); found && !(mutant.On(mutant.LatePrepare) && state == txn.Done) || err != nil {
		return txn.Answer{State: state, Duplicate: true}, err
	}
	if a.expired(t.ID) {
		return txn.Answer{State: txn.Expired}, nil
	}
	ts := max(at, a.meta.clock+1)
	conflict, err := a.validate(t.Partition, &t.Prepare.Part, t.ID)
	var intents []txn.Intent
	if conflict == nil && err == nil {
		intents, conflict, err = a.intents(t.Partition, &t.Prepare.Part, ts)
	}
	switch {
	case err != nil:
		return txn.Answer{}, err
	case conflict != nil:
		a.end(k, no)
		return txn.Answer{State: no, Conflict: conflict}, nil
	}
	if ts, err = a.tick(at); err != nil {
		return txn.Answer{}, err
	}
	rec := txn.PreparedRecord{
		Participants: t.Prepare.Participants,
		Home:         t.Prepare.Home, At: ts, Deadline: t.Prepare.Deadline, Born: t.Prepare.Born,
		Reads: t.Prepare.Part.Reads, Ranges: t.Prepare.Part.Ranges, Intents: intents,
	}
	if mutant.On(mutant.ReadsUnlocked) {
		rec.Reads, rec.Ranges = nil, nil
	}
	// The table outlives the entry: it has memory of its own.
	a.row = rec.Append(a.row[:0])
	h, err := newHeld(k, bytes.Clone(a.row))
	if err != nil {
		return txn.Answer{}, err
	}
	a.change(lockChange{add: h})
	return txn.Answer{State: txn.Prepared, At: ts}, a.setRecord(k, mvcc.RolePrepared, a.row)
}

// staged is what home has said before of what it has staged.
func (a *applier) staged(k txnKey) (txn.Answer, bool) {
	if h := a.m.held.prepared[k]; h != nil && len(h.rec.Participants) > 0 {
		return h.staged(), true
	}
	return txn.Answer{}, false
}

// decided is what home has said before.
func (a *applier) decided(k txnKey) (txn.Answer, bool, error) {
	if rec := a.m.held.committed[k]; rec != nil {
		return txn.Answer{State: txn.Committed, At: rec.At, Duplicate: true}, true, nil
	}
	if a.expired(k.id) {
		return txn.Answer{}, false, nil // what is there still is as good as gone
	}
	id := wire.RequestID(k.id)
	b, found, err := a.firstAnswer(k.partition, &id, ofRequest|ofHome)
	if err != nil || !found {
		return txn.Answer{}, false, err
	}
	answer, err := decodeDecision(b)
	answer.Duplicate = true
	return answer, err == nil, err
}

// decideTxn is the commit point of a transaction over several groups.
func (a *applier) decideTxn(at hlc.Timestamp, t *Txn) (txn.Answer, error) {
	k := txnKey{t.Partition, t.ID}
	known, err := a.knownRequest(t)
	if err != nil {
		return txn.Answer{}, err
	}
	if answer, found, err := a.decided(k); found || err != nil {
		answer.Write = known
		return answer, err
	}
	if answer, found := a.staged(k); found {
		return answer, nil
	}
	switch {
	case a.expired(t.ID) || a.expiredRequest(t):
		return txn.Answer{State: txn.Expired}, nil
	case known != nil: // another attempt was first
		a.end(k, txn.Aborted)
		return txn.Answer{State: txn.Aborted, Duplicate: true, Write: known}, nil
	}
	at = max(at, t.Decide.MaxP)
	conflict, err := a.validate(t.Partition, &t.Decide.Part, t.ID)
	var intents []txn.Intent
	if conflict == nil && err == nil {
		intents, conflict, err = a.intents(t.Partition, &t.Decide.Part, max(at, a.meta.clock+1))
	}
	switch {
	case err != nil:
		return txn.Answer{}, err
	case conflict != nil:
		a.end(k, txn.Aborted)
		return txn.Answer{State: txn.Aborted, Conflict: conflict}, nil
	}
	c, err := a.tick(at)
	if err != nil {
		return txn.Answer{}, err
	}
	if err := a.realise(t.Partition, intents, c); err != nil {
		return txn.Answer{}, err
	}
	if err := a.recordDecision(k, c, t.Decide.Participants); err != nil {
		return txn.Answer{}, err
	}
	answer := txn.Answer{State: txn.Committed, At: c}
	if t.Request != nil {
		answer.Write, err = a.recordWrite(t, &intents[0], c)
	}
	return answer, err
}

// recordDecision makes a commit over several partitions known: to those who
// settle it, and under its request ID.
func (a *applier) recordDecision(k txnKey, c hlc.Timestamp, participants []placement.PartitionID) error {
	if len(participants) > 0 {
		rec := &txn.CommittedRecord{At: c, Participants: participants}
		a.change(lockChange{of: true, committed: k, record: rec})
		a.row = rec.Append(a.row[:0])
		if err := a.setRecord(k, mvcc.RoleCommitted, a.row); err != nil {
			return err
		}
	}
	return a.recordCommit(k, c)
}

// recordCommit remembers a commit under its request ID, in the entry of its effect.
func (a *applier) recordCommit(k txnKey, c hlc.Timestamp) error {
	if mutant.On(mutant.CommitUnrecorded) {
		return nil
	}
	id := wire.RequestID(k.id)
	return a.remember(&id, k.partition, &Result{Wire: wire.WriteResult{Time: uint64(c)}}, false)
}

// resolve makes home's decision true at a participant.
func (a *applier) resolve(t *Txn) (txn.Answer, error) {
	k := txnKey{t.Partition, t.ID}
	done := txn.Answer{State: txn.Done}
	h := a.m.held.prepared[k]
	if h == nil {
		_, found, err := a.endAt(k)
		if found || err != nil || a.expired(t.ID) {
			return done, err
		}
		a.end(k, txn.Done)
		return done, nil
	}
	if t.Resolve.Commit {
		// Nothing at or below C is written any more once the locks are gone.
		if !mutant.On(mutant.ClockUnraised) {
			a.raise(t.Resolve.At)
		}
		if err := a.realise(k.partition, h.rec.Intents, t.Resolve.At); err != nil {
			return done, err
		}
	}
	return done, a.release(h)
}

// release lets go of a prepared transaction, which has come to its end.
func (a *applier) release(h *held) error {
	a.change(lockChange{remove: h})
	if err := a.deleteRecord(h.txnKey, mvcc.RolePrepared); err != nil || a.expired(h.id) || len(h.rec.Participants) > 0 {
		return err
	}
	a.end(h.txnKey, txn.Done)
	return nil
}

// confirm is home's decision to commit what it has staged.
func (a *applier) confirm(t *Txn) (txn.Answer, error) {
	k := txnKey{t.Partition, t.ID}
	h := a.m.held.prepared[k]
	if h == nil {
		if answer, found, err := a.decided(k); found || err != nil {
			return answer, err
		}
		if a.expired(t.ID) {
			return txn.Answer{State: txn.Expired}, nil
		}
		return txn.Answer{}, nil
	}
	c := t.Confirm.At
	a.raise(c) // as of any participant
	if err := a.realise(k.partition, h.rec.Intents, c); err != nil {
		return txn.Answer{}, err
	}
	if err := a.release(h); err != nil {
		return txn.Answer{}, err
	}
	return txn.Answer{State: txn.Committed, At: c}, a.recordDecision(k, c, h.rec.Participants)
}

// reject is home's decision to abort what a participant has refused.
func (a *applier) reject(t *Txn) (txn.Answer, error) {
	k := txnKey{t.Partition, t.ID}
	if answer, found, err := a.decided(k); found || err != nil {
		return answer, err
	}
	if h := a.m.held.prepared[k]; h != nil {
		if err := a.release(h); err != nil {
			return txn.Answer{}, err
		}
	}
	if a.expired(t.ID) {
		return txn.Answer{State: txn.Expired}, nil
	}
	a.end(k, txn.Aborted)
	return txn.Answer{State: txn.Aborted}, nil
}

// poll is a participant's word to somebody who asks how it has voted.
func (a *applier) poll(t *Txn) (txn.Answer, error) {
	k := txnKey{t.Partition, t.ID}
	if h := a.m.held.prepared[k]; h != nil {
		return txn.Answer{State: txn.Prepared, At: h.rec.At, Duplicate: true}, nil
	}
	if state, found, err := a.endAt(k); found || err != nil {
		return txn.Answer{State: state, Duplicate: true}, err
	}
	switch {
	case a.expired(t.ID):
		return txn.Answer{State: txn.Expired}, nil
	case t.Poll.Deny && mutant.On(mutant.DenyUnwritten):
		return txn.Answer{State: txn.Refused}, nil
	case t.Poll.Deny:
		a.end(k, txn.Refused)
		return txn.Answer{State: txn.Refused}, nil
	}
	if !mutant.On(mutant.PollRaisesNothing) {
		a.raise(t.Poll.Raise)
	}
	return txn.Answer{State: txn.None}, nil
}

// raise moves the clock up without an effect.
func (a *applier) raise(to hlc.Timestamp) {
	if to > a.meta.clock {
		a.meta.clock = to
		a.meta.ceiling = max(a.meta.ceiling, to)
		a.dirtyB = true
	}
	a.fold(opState, nil, uint64(a.meta.clock))
}

// settle is home's word to somebody who asks.
func (a *applier) settle(t *Txn) (txn.Answer, error) {
	k := txnKey{t.Partition, t.ID}
	if answer, found, err := a.decided(k); found || err != nil {
		return answer, err
	}
	if answer, found := a.staged(k); found {
		if t.Settle.Abort && mutant.On(mutant.StagedAborted) {
			return a.reject(t)
		}
		return answer, nil
	}
	switch {
	case a.expired(t.ID): // it was not committed, and never will be
		return txn.Answer{State: txn.Expired}, nil
	case t.Settle.Abort && mutant.On(mutant.AbortUnwritten):
		return txn.Answer{State: txn.Aborted}, nil
	case t.Settle.Abort:
		a.end(k, txn.Aborted)
		return txn.Answer{State: txn.Aborted}, nil
	}
	if !mutant.On(mutant.AskRaisesNothing) {
		a.raise(t.Settle.Raise)
	}
	return txn.Answer{State: txn.None}, nil
}

// commitTxn is a whole transaction in one entry.
func (a *applier) commitTxn(at hlc.Timestamp, t *Txn) (txn.Answer, error) {
	home := txnKey{t.Partition, t.ID}
	known, err := a.knownRequest(t)
	if err != nil {
		return txn.Answer{}, err
	}
	if answer, found, err := a.decided(home); found || err != nil {
		answer.Write = known
		return answer, err
	}
	if answer, found := a.staged(home); found {
		return answer, nil // when its partitions lived elsewhere
	}
	switch {
	case a.expired(t.ID) || a.expiredRequest(t):
		return txn.Answer{State: txn.Expired}, nil
	case known != nil: // this attempt, or another one
		return txn.Answer{State: txn.Aborted, Duplicate: true, Write: known}, nil
	}
	abort := func(why *txn.Conflict) (txn.Answer, error) {
		a.end(home, txn.Aborted)
		return txn.Answer{State: txn.Aborted, Conflict: why}, nil
	}
	ts := max(at, a.meta.clock+1)
	all := make([][]txn.Intent, len(t.Commit.Parts))
	for i := range t.Commit.Parts {
		p := &t.Commit.Parts[i]
		if p.Partition != t.Partition {
			// When a partition lived elsewhere, another coordinator may have
			// come this way with the same transaction, and been refused.
			_, found, err := a.endAt(txnKey{p.Partition, t.ID})
			if err != nil {
				return txn.Answer{}, err
			}
			if found {
				return abort(nil)
			}
		}
		conflict, err := a.validate(p.Partition, &p.Part, t.ID)
		if conflict == nil && err == nil {
			all[i], conflict, err = a.intents(p.Partition, &p.Part, ts)
		}
		if err != nil {
			return txn.Answer{}, err
		}
		if conflict != nil {
			return abort(conflict)
		}
	}
	if t.Request != nil && t.Request.Refused != nil {
		row, err := a.recordRefusal(t)
		return txn.Answer{State: txn.Aborted, Write: row}, err
	}
	c, err := a.tick(at)
	if err != nil {
		return txn.Answer{}, err
	}
	for i := range t.Commit.Parts {
		k := txnKey{t.Commit.Parts[i].Partition, t.ID}
		err := a.realise(k.partition, all[i], c)
		switch h := a.m.held.prepared[k]; {
		case err != nil:
		case h != nil:
			err = a.release(h)
		case k != home:
			a.end(k, txn.Done)
		}
		if err != nil {
			return txn.Answer{}, err
		}
	}
	answer := txn.Answer{State: txn.Committed, At: c}
	if t.Request == nil {
		return answer, a.recordCommit(home, c)
	}
	// Nobody asks for this ID: nothing was prepared under it.
	answer.Write, err = a.recordWrite(t, &all[slices.IndexFunc(t.Commit.Parts, t.atHome)][0], c)
	return answer, err
}

// forget drops home's record. What was committed stays known by its request ID.
func (a *applier) forget(t *Txn) (txn.Answer, error) {
	k := txnKey{t.Partition, t.ID}
	rec := a.m.held.committed[k]
	if rec == nil {
		return txn.Answer{State: txn.None}, nil
	}
	a.change(lockChange{of: true, committed: k})
	return txn.Answer{State: txn.Committed, At: rec.At}, a.deleteRecord(k, mvcc.RoleCommitted)
}

// expired says that ends of this age are forgotten, so that nothing can be said
// for new.
func (a *applier) expired(id txn.ID) bool { return hlc.Timestamp(id.Time) < a.meta.requests }

// change changes the table, and later what readers see of it.
func (a *applier) change(c lockChange) {
	a.m.held.apply(&c)
	a.changes = append(a.changes, c)
}
