package txn

import (
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// Inquiry finds out what became of a transaction. Home knows, unless it has
// staged it: then it is committed if every participant has prepared, so they
// are asked, and home is told what their votes come to.
//
// An inquiry that aborts leaves nothing undecided. One that does not answers
// None if there was a moment since Begin at which the transaction was not
// committed; if it ever is, then above a timestamp.
type Inquiry struct {
	home         placement.PartitionID
	abort        bool
	above        hlc.Timestamp
	refused      bool // a participant is known to have refused
	participants []placement.PartitionID
	votes        map[placement.PartitionID]Answer
	waits        map[Message]struct{}
	maxP         hlc.Timestamp
	outcome      *Answer
}

// NewInquiry asks on behalf of somebody who wants the transaction aborted if it
// is undecided, or (abort is false) above a timestamp if it commits later.
func NewInquiry(home placement.PartitionID, abort bool, above hlc.Timestamp) *Inquiry {
	return &Inquiry{home: home, abort: abort, above: above, waits: map[Message]struct{}{}}
}

// Begin is the first message.
func (q *Inquiry) Begin() []Message {
	m := Message{Step: Ask, To: q.home, At: q.above}
	switch {
	case q.refused:
		m = Message{Step: Reject, To: q.home}
	case q.abort:
		m = Message{Step: AbortIfUndecided, To: q.home}
	}
	return q.send(m)
}

func (q *Inquiry) send(ms ...Message) []Message {
	clear(q.waits)
	for _, m := range ms {
		q.waits[m] = struct{}{}
	}
	return ms
}

// wants says that a message has no answer yet.
func (q *Inquiry) wants(m Message) bool {
	_, waits := q.waits[m]
	return waits && q.outcome == nil
}

// Answer takes the answer to a message, and says what to send next.
func (q *Inquiry) Answer(m Message, a Answer) []Message {
	if !q.wants(m) {
		return nil
	}
	switch m.Step {
	case Poll, Deny:
		delete(q.waits, m)
		q.votes[m.To] = a
		if len(q.waits) > 0 {
			return nil
		}
		return q.conclude()
	}
	switch {
	case a.Decided():
		q.outcome = &a
	case a.State == Staged:
		return q.poll(a)
	case m.Step == Ask:
		q.outcome = &Answer{}
	default:
		return q.send(m) // home would not say; ask again
	}
	return nil
}

// poll asks the participants.
func (q *Inquiry) poll(staged Answer) []Message {
	q.participants, q.maxP = staged.Participants, staged.At
	q.votes = make(map[placement.PartitionID]Answer, len(q.participants))
	ms := make([]Message, len(q.participants))
	for i, p := range q.participants {
		ms[i] = Message{Step: Poll, To: p, At: q.above}
		if q.abort {
			ms[i] = Message{Step: Deny, To: p}
		}
	}
	return q.send(ms...)
}

// conclude says what the votes come to.
func (q *Inquiry) conclude() []Message {
	all := true
	for _, p := range q.participants {
		switch a := q.votes[p]; a.State {
		case Prepared:
			q.maxP = max(q.maxP, a.At)
			continue
		case Done: // it was told what home has decided meanwhile
			return q.Begin()
		case Refused, Expired:
			q.refused = true
		}
		all = false
	}
	switch {
	case all:
		return q.send(Message{Step: Confirm, To: q.home, At: q.maxP})
	case q.refused && q.abort:
		return q.Begin()
	}
	q.outcome = &Answer{}
	return nil
}

// Outcome is what became of it, once it is known: a decision, or None.
func (q *Inquiry) Outcome() (Answer, bool) {
	if q.outcome == nil {
		return Answer{}, false
	}
	return *q.outcome, true
}
