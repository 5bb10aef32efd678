package txn

import (
	"fmt"
	"slices"

	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// Step is what a message asks.
type Step uint8

const (
	Prepare          Step = iota + 1 // of a participant, and of home: stage it
	Decide                           // of home
	AbortIfUndecided                 // of home
	Resolve                          // of a participant
	Forget                           // of home, when every participant has resolved
	Confirm                          // of home, which has staged it: all participants have prepared
	Reject                           // of home: a participant has refused, so abort it, staged or not
	Ask                              // of home: what became of it? undecided, it commits above At
	Poll                             // of a participant: has it prepared? if not, it will above At
	Deny                             // of a participant: has it prepared? if not, it never will
)

var stepNames = [...]string{"", "prepare", "decide", "abort-if-undecided", "resolve", "forget", "confirm", "reject", "ask", "poll", "deny"}

func (s Step) String() string {
	if int(s) < len(stepNames) {
		return stepNames[s]
	}
	return fmt.Sprintf("step %d", uint8(s))
}

// Message is one question to one partition. It may be sent any number of times:
// the answer is the same.
type Message struct {
	Step Step
	To   placement.PartitionID
	// At is the largest prepare timestamp, of Decide; C, of Resolve and Confirm;
	// what it is to commit above, of Ask and Poll.
	At hlc.Timestamp
	// Commit is Resolve's.
	Commit bool
}

func (m Message) String() string {
	return fmt.Sprintf("%s to partition %d (at %d, commit %v)", m.Step, m.To, m.At, m.Commit)
}

// Spec is what a coordinator works on.
type Spec struct {
	ID           ID
	Home         placement.PartitionID
	Participants []placement.PartitionID // home left out
	Deadline     hlc.Timestamp
	// Ordered prepares the participants one after the other, in order: who has
	// lost several times waits for its turn instead of refusing others theirs.
	Ordered bool
	// Parallel has home prepare beside the participants (staged), instead of
	// deciding after them: when all have said yes it is committed. What is
	// ordered is decided.
	Parallel bool
}

type phase uint8

const (
	preparing phase = iota
	deciding
	confirming // it is committed, and home is told
	aborting
	resolving
	forgetting
	ended
)

// Coordinator carries one transaction from its first Prepare to its last
// Forget. It is told the answers, and what was lost; it says what to send.
//
// Invariants: Decide and Confirm are sent only with every vote a yes, and their
// timestamp is the largest of them. Resolve is sent only with home's decision.
// Forget is sent only when every participant has confirmed its Resolve. Reject
// is sent only when a participant has refused.
type Coordinator struct {
	spec    Spec
	phase   phase
	next    int                                // ordered: the participant whose turn it is
	votes   map[placement.PartitionID]bool     // yes votes
	refused map[placement.PartitionID]struct{} // no votes: nothing to resolve there
	left    map[placement.PartitionID]struct{} // participants that have not confirmed Resolve
	lost    map[Message]struct{}               // to be sent again
	maxP    hlc.Timestamp
	partial bool      // not all participants are known: there is nothing to forget
	inquiry *Inquiry  // aborting
	why     *Conflict // of a participant that stepped back
	outcome *Answer
	decided Answer
}

// NewCoordinator makes one. It has nothing to do for a transaction that has no
// participant but home.
func NewCoordinator(s Spec) *Coordinator {
	slices.Sort(s.Participants)
	return &Coordinator{
		spec: s, votes: map[placement.PartitionID]bool{}, refused: map[placement.PartitionID]struct{}{},
		lost: map[Message]struct{}{},
	}
}

// Begin is the first messages.
func (c *Coordinator) Begin() []Message {
	if len(c.spec.Participants) == 0 {
		return c.decide()
	}
	if c.spec.Ordered {
		return []Message{{Step: Prepare, To: c.spec.Participants[0]}}
	}
	var out []Message
	for _, p := range c.spec.Participants {
		out = append(out, Message{Step: Prepare, To: p})
	}
	if c.parallel() {
		out = append(out, Message{Step: Prepare, To: c.spec.Home})
	}
	return out
}

// parallel says that home prepares beside the others.
func (c *Coordinator) parallel() bool { return c.spec.Parallel && !c.spec.Ordered }

// Answer takes the answer to a message, and says what to send next.
func (c *Coordinator) Answer(m Message, a Answer) []Message {
	delete(c.lost, m)
	switch m.Step {
	case Prepare:
		return c.vote(m.To, a)
	case Decide:
		if c.phase == deciding {
			return c.decision(m, a)
		}
	case AbortIfUndecided, Reject, Deny, Confirm:
		switch {
		case c.phase == aborting:
			return c.asked(m, a)
		case c.phase == confirming && m.Step == Confirm:
			return c.decision(m, a)
		}
	case Resolve:
		if c.phase != resolving {
			return nil
		}
		delete(c.left, m.To)
		return c.resolved()
	case Forget:
		if c.phase == forgetting {
			c.phase = ended
		}
	}
	return nil
}

// Lost says that a message got no answer: it may have arrived. Tick sends it
// again.
func (c *Coordinator) Lost(m Message) { c.lost[m] = struct{}{} }

// Tick sends again what was lost, or gives up: past the deadline it is home's
// to say what became of the transaction.
func (c *Coordinator) Tick(now hlc.Timestamp) []Message {
	if now >= c.spec.Deadline && (c.phase == preparing || c.phase == deciding && len(c.lost) > 0) {
		return c.abort()
	}
	var out []Message
	for m := range c.lost {
		if c.current(m) {
			out = append(out, m)
		}
	}
	clear(c.lost)
	slices.SortFunc(out, func(a, b Message) int { return int(a.To) - int(b.To) })
	return out
}

// current says that a message still has a purpose.
func (c *Coordinator) current(m Message) bool {
	switch m.Step {
	case Prepare:
		return c.phase == preparing && !c.votes[m.To]
	case Decide:
		return c.phase == deciding
	case Confirm:
		return c.phase == confirming || c.phase == aborting && c.inquiry.wants(m)
	case AbortIfUndecided, Reject, Deny:
		return c.phase == aborting && c.inquiry.wants(m)
	case Resolve:
		_, left := c.left[m.To]
		return c.phase == resolving && left
	case Forget:
		return c.phase == forgetting
	}
	return false
}

// Outcome is what the client is to be told, once it is known: Committed or
// Aborted. It is known before the transaction has ended.
func (c *Coordinator) Outcome() (Answer, bool) {
	if c.outcome == nil {
		return Answer{}, false
	}
	return *c.outcome, true
}

// Ended says that nothing is left to be done.
func (c *Coordinator) Ended() bool { return c.phase == ended }

func (c *Coordinator) vote(p placement.PartitionID, a Answer) []Message {
	if a.State == Refused {
		c.refused[p] = struct{}{}
	}
	if c.phase != preparing {
		return nil
	}
	if a.State == Refused {
		// The refusal is for ever: nobody can gather all votes any more.
		c.outcome = &Answer{State: Aborted, Conflict: a.Conflict}
	}
	if p == c.spec.Home && a.Decided() {
		return c.decision(Message{Step: Decide, To: p}, a)
	}
	if a.State != Prepared {
		c.why = a.Conflict
		// Otherwise somebody was here before, and home knows what came of it.
		return c.abort()
	}
	c.votes[p] = true
	c.maxP = max(c.maxP, a.At)
	if c.spec.Ordered && p == c.spec.Participants[c.next] && c.next+1 < len(c.spec.Participants) {
		c.next++
		return []Message{{Step: Prepare, To: c.spec.Participants[c.next]}}
	}
	switch {
	case c.unvoted() > 0 && !mutant.On(mutant.DecidedEarly):
		return nil
	case c.parallel():
		c.phase = confirming
		c.outcome = &Answer{State: Committed, At: c.maxP}
		return []Message{{Step: Confirm, To: c.spec.Home, At: c.maxP}}
	}
	return c.decide()
}

// unvoted is how many yes votes are missing.
func (c *Coordinator) unvoted() int {
	n := len(c.spec.Participants) - len(c.votes)
	if c.parallel() && !mutant.On(mutant.StageUncounted) {
		n++
	}
	return n
}

func (c *Coordinator) decide() []Message {
	c.phase = deciding
	if mutant.On(mutant.CommitTooLow) {
		c.maxP = 0
	}
	out := []Message{{Step: Decide, To: c.spec.Home, At: c.maxP}}
	if mutant.On(mutant.ResolvedEarly) {
		for p := range c.votes {
			out = append(out, Message{Step: Resolve, To: p, At: c.maxP, Commit: true})
		}
	}
	return out
}

func (c *Coordinator) abort() []Message {
	clear(c.lost)
	c.phase = aborting
	c.inquiry = NewInquiry(c.spec.Home, true, 0)
	c.inquiry.refused = c.parallel() && len(c.refused) > 0
	return c.inquiry.Begin()
}

// asked goes on with the question what became of it.
func (c *Coordinator) asked(m Message, a Answer) []Message {
	if c.partial && a.State == Staged {
		c.spec.Participants, c.partial = a.Participants, false
	}
	next := c.inquiry.Answer(m, a)
	if o, known := c.inquiry.Outcome(); known {
		return c.decision(m, o)
	}
	if len(next) == 1 && next[0] == m {
		c.Lost(m) // it is asked again, but not at once
		return nil
	}
	return next
}

// decision takes home's word.
func (c *Coordinator) decision(m Message, a Answer) []Message {
	if !a.Decided() {
		c.Lost(m) // home would not say; ask again
		return nil
	}
	c.decided = a
	if c.outcome == nil {
		if a.State == Aborted && a.Conflict == nil {
			a.Conflict = c.why
		}
		c.outcome = &a
	}
	c.phase = resolving
	c.left = map[placement.PartitionID]struct{}{}
	commit := a.State == Committed
	var out []Message
	for _, p := range c.spec.Participants {
		if _, no := c.refused[p]; no && !commit {
			continue // it holds nothing, and has its tombstone
		}
		c.left[p] = struct{}{}
		out = append(out, Message{Step: Resolve, To: p, At: a.At, Commit: commit})
	}
	if len(out) == 0 {
		return c.resolved()
	}
	return out
}

// resolved goes on when all participants have confirmed.
func (c *Coordinator) resolved() []Message {
	if len(c.left) > 0 && !mutant.On(mutant.ForgottenEarly) {
		return nil
	}
	if c.decided.State != Committed || c.partial || len(c.spec.Participants) == 0 {
		c.phase = ended
		return nil
	}
	c.phase = forgetting
	return []Message{{Step: Forget, To: c.spec.Home}}
}

// Recovery settles a transaction that somebody left behind. It is a coordinator
// that begins late, and never decides to commit.
type Recovery struct{ *Coordinator }

// NewRecovery settles what was found prepared at a participant, or staged at
// home: home is asked to abort it if it is undecided, and the participant is
// told what home says. Whether other participants were told is not its to know,
// unless home has staged it: it forgets nothing.
func NewRecovery(id ID, home, at placement.PartitionID) (Recovery, []Message) {
	s := Spec{ID: id, Home: home, Deadline: hlc.Max}
	if at != home {
		s.Participants = []placement.PartitionID{at}
	}
	c := NewCoordinator(s)
	c.partial = true
	if mutant.On(mutant.AbortedAlone) {
		return Recovery{c}, append(c.abort(), c.decision(Message{Step: AbortIfUndecided, To: home}, Answer{State: Aborted})...)[1:]
	}
	return Recovery{c}, c.abort()
}

// NewFinish settles what was found committed at home: every participant is told,
// then the record is dropped.
func NewFinish(id ID, home placement.PartitionID, rec *CommittedRecord) (Recovery, []Message) {
	c := NewCoordinator(Spec{ID: id, Home: home, Participants: slices.Clone(rec.Participants), Deadline: hlc.Max})
	c.phase = deciding
	return Recovery{c}, c.decision(Message{Step: Decide, To: home}, Answer{State: Committed, At: rec.At})
}
