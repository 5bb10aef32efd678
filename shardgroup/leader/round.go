package leader

// Round counts the voters' answers to one question: is your term above mine?
//
// The argument: let the round begin at the moment it notes term T and the
// commit index C, and let a majority of the voters answer, to requests sent
// after that moment, that their term is not above T. A leader of a later term
// needs the votes of a majority, one of which is in ours; that voter had not
// voted when it answered. So when the round began no later leader existed,
// and every entry acknowledged by then is at or below C.
type Round struct {
	need    int // yes votes still missing
	open    int // answers still missing, of voters not asked too
	decided bool
}

// Verdict is how a round stands.
type Verdict uint8

const (
	Open Verdict = iota // more answers are needed
	Won                 // decided by this answer: a majority confirmed
	Lost                // decided by this answer: there can be no majority any more
	Over                // was decided before
)

// NewRound begins a round among this many voters, of which the leader itself
// may be one. It is won at once if the leader is a majority.
func NewRound(voters int, self bool) (Round, Verdict) {
	r := Round{need: voters/2 + 1, open: voters}
	if self {
		r.need--
		r.open--
	}
	if r.need <= 0 {
		r.decided = true
		return r, Won
	}
	return r, Open
}

// Need is how many yes votes are missing.
func (r *Round) Need() int { return r.need }

// Decided says whether the round is over.
func (r *Round) Decided() bool { return r.decided }

// Vote counts one voter's answer; no answer is a no.
func (r *Round) Vote(yes bool) Verdict {
	r.open--
	if yes {
		r.need--
	}
	switch {
	case r.decided:
		return Over
	case r.need <= 0:
		r.decided = true
		return Won
	case r.need > r.open:
		r.decided = true
		return Lost
	}
	return Open
}
