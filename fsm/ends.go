package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// How a transaction has ended at a partition is kept among the answers to
// requests, under its ID, and is forgotten with them. Home's commit is an answer
// like any other, with a time and no version. A tombstone (a participant that is
// done or has refused, home that has aborted) is an end:
//
//	| flags u8 = 8 | tombstone, as package txn has it |
//
// So all of it begins in the tail of its entry, and an ID may have an answer, a
// participant's end and home's end in one partition.

// answerEnd are the flags of an end. No answer has this one.
const answerEnd = 1 << 3

// subject is what something that is kept under an ID is about; a set of them,
// what is looked for.
type subject byte

const (
	ofRequest     subject = 1 << iota // the answer to a request, or home's commit
	ofParticipant                     // Done or Refused
	ofHome                            // Aborted
)

func subjectOf(answer []byte) subject {
	switch {
	case len(answer) == 0 || answer[0] != answerEnd:
		return ofRequest
	case txn.State(answer[len(answer)-1]) == txn.Aborted:
		return ofHome
	default:
		return ofParticipant
	}
}

func appendEnd(dst []byte, state txn.State) []byte {
	return txn.Tombstone{State: state}.Append(append(dst, answerEnd))
}

func decodeEnd(b []byte) (txn.State, error) {
	if len(b) == 0 || b[0] != answerEnd {
		return 0, fmt.Errorf("fsm: the end of a transaction, of %d bytes: %w", len(b), ErrDamaged)
	}
	var t txn.Tombstone
	if err := t.Decode(b[1:]); err != nil {
		return 0, sameFault(err)
	}
	return t.State, nil
}

// decodeDecision is what home has said, by what is kept under the ID.
func decodeDecision(b []byte) (txn.Answer, error) {
	if subjectOf(b) != ofRequest {
		state, err := decodeEnd(b)
		return txn.Answer{State: state}, err
	}
	var known Result
	if err := decodeAnswer(b, &known); err != nil {
		return txn.Answer{}, err
	}
	return txn.Answer{State: txn.Committed, At: hlc.Timestamp(known.Wire.Time)}, nil
}

// end keeps how a transaction has ended at a partition: Aborted at home, Done
// or Refused at a participant.
func (a *applier) end(k txnKey, state txn.State) {
	id := wire.RequestID(k.id)
	a.m.requests.add(&id)
	a.meta.youngest = max(a.meta.youngest, id.Time)
	var room [8]byte
	b := appendEnd(room[:0], state)
	t := &a.m.tail
	start := len(t.answers)
	key := requestKeyOf(k.partition, &id)
	a.m.shown.Lock()
	t.begin(&key, len(b))
	t.answers = append(t.answers, b...)
	a.m.shown.Unlock()
	a.answered++
	a.foldAnswer(t.answers[start:])
}

// endAt looks for the end at a participant.
func (a *applier) endAt(k txnKey) (txn.State, bool, error) {
	if a.expired(k.id) {
		return 0, false, nil
	}
	id := wire.RequestID(k.id)
	b, found, err := a.firstAnswer(k.partition, &id, ofParticipant)
	if err != nil || !found {
		return 0, false, err
	}
	state, err := decodeEnd(b)
	return state, err == nil, err
}

// shownTail is how much of the tail readers may look at. What an entry leaves is
// shown when its batch is readable, and is taken off when the rows that an entry
// has sealed it into are: so who looks here first, and then into the rows, misses
// nothing.
//
// The lock also guards the tail's answers and their table: Apply changes them
// under it, and looks at them without.
type shownTail struct {
	sync.RWMutex
	answers  int           // so many bytes of them
	requests hlc.Timestamp // the horizon of request IDs; it moves after locks do
}

// showTail is called when the batch is readable.
func (a *applier) showTail() {
	if a.sealed {
		a.emptyTail()
	}
	a.m.shown.Lock()
	defer a.m.shown.Unlock()
	a.m.shown.answers, a.m.shown.requests = len(a.m.tail.answers), a.meta.requests
}

// emptyTail takes everything off that is sealed.
func (a *applier) emptyTail() {
	a.m.shown.Lock()
	defer a.m.shown.Unlock()
	a.m.tail.reset()
	a.m.shown.answers = 0
	a.tailStart = 0
}

// takeTail begins with what was stored.
func (m *Machine) takeTail(t *tail, at *meta) {
	m.shown.Lock()
	defer m.shown.Unlock()
	m.tail = *t
	m.shown.answers, m.shown.requests = len(t.answers), at.requests
}

// told is what the tail says of an ID to readers, and the horizon of request IDs.
func (m *Machine) told(k *requestKey, of subject) (answer []byte, found bool, requests hlc.Timestamp) {
	m.shown.RLock()
	defer m.shown.RUnlock()
	if !mutant.On(mutant.TailUntold) {
		answer, found = m.tail.find(k, of, m.shown.answers)
	}
	return bytes.Clone(answer), found, m.shown.requests
}

// toldAll is all that the tail says to readers, as its rows have it.
func (m *Machine) toldAll() (answers []byte, requests hlc.Timestamp) {
	m.shown.RLock()
	defer m.shown.RUnlock()
	return bytes.Clone(m.tail.answers[:m.shown.answers]), m.shown.requests
}

// Decision is what home knows of a transaction: Committed, Aborted, Expired,
// Staged, or None, which is undecided. That this replica knows all of it is for
// ReadIndex to say.
func (m *Machine) Decision(home placement.PartitionID, epoch placement.Epoch, id txn.ID) (answer txn.Answer, err error) {
	if err := m.check(home, epoch); err != nil {
		return answer, err
	}
	// The table before the tail, and the tail before the rows: what leaves the one
	// is in the next.
	if answer, found := m.unfinished(txnKey{home, id}); found {
		return answer, nil
	}
	request := wire.RequestID(id)
	k := requestKeyOf(home, &request)
	b, found, requests := m.told(&k, ofRequest|ofHome)
	switch {
	case hlc.Timestamp(id.Time) < requests:
		// What was decided meanwhile, and is below the horizon, is in the table or settled.
		if answer, found := m.unfinished(txnKey{home, id}); found {
			return answer, nil
		}
		return txn.Answer{State: txn.Expired}, nil
	case found:
		return decodeDecision(b)
	}
	r, err := m.reader()
	if err != nil {
		return answer, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	b, found, err = storedAnswer(r, m.group, home, &request, ofRequest|ofHome)
	switch {
	case err != nil:
		return answer, err
	case found:
		return decodeDecision(b)
	}
	if _, _, requests = m.told(&k, 0); hlc.Timestamp(id.Time) < requests {
		return m.Decision(home, epoch, id) // its row may have gone while it was looked for
	}
	return txn.Answer{}, nil
}

// unfinished is what home's table says of a transaction: Committed, as long as
// not all participants have resolved, or Staged.
func (m *Machine) unfinished(k txnKey) (answer txn.Answer, found bool) {
	m.locks.mu.RLock()
	defer m.locks.mu.RUnlock()
	if rec := m.locks.table.committed[k]; rec != nil {
		return txn.Answer{State: txn.Committed, At: rec.At}, true
	}
	if h := m.locks.table.prepared[k]; h != nil && len(h.rec.Participants) > 0 {
		return h.staged(), true
	}
	return txn.Answer{}, false
}
