package txn

import (
	"fmt"
	"slices"

	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// MaxUndecided is how many undecided transactions a cut asks about. With more
// it fails: the homes would have as many log commands to write.
const MaxUndecided = 20_000

// CutStep is what a message of a cut asks.
type CutStep uint8

const (
	CutHold    CutStep = iota + 1 // of a group's leader: keep writes back, and say how far you are
	CutAsk                        // of a home: is it committed? else keep it above At
	CutPromise                    // of a group's leader: what was held back comes above At
	CutRelease                    // of a group's leader: never mind; nobody waits for an answer
)

var cutSteps = [...]string{"", "hold", "ask", "promise", "release"}

func (s CutStep) String() string {
	if int(s) < len(cutSteps) {
		return cutSteps[s]
	}
	return fmt.Sprintf("step %d", uint8(s))
}

// CutMessage is one question of a cut. An ask may be sent any number of times;
// the others once: a hold that was answered and whose answer was lost ends by
// its time.
type CutMessage struct {
	Step  CutStep
	Group placement.GroupID // all but ask
	Term  uint64            // promise, release: of the hold
	Token uint64            // promise, release: of the hold
	ID    ID                // ask
	Home  placement.PartitionID
	At    hlc.Timestamp // ask, promise
}

func (m CutMessage) String() string {
	if m.Step == CutAsk {
		return fmt.Sprintf("ask partition %d of %s (raise to %d)", m.Home, m.ID, m.At)
	}
	return fmt.Sprintf("%s %s (term %d, token %d, at %d)", m.Step, m.Group, m.Term, m.Token, m.At)
}

// Open is a transaction that was prepared and not resolved.
type Open struct {
	ID   ID
	Home placement.PartitionID
}

// Held is a leader's answer to a hold: what is kept back from now on by this
// token, how far the machine is, and who is about to write into the read set.
type Held struct {
	Term, Token uint64
	Clock       hlc.Timestamp
	Undecided   []Open
}

// Cut finds a timestamp at which several groups can be read as if at one
// moment. Like Coordinator it is told the answers and says what to send; unlike
// it, it fails with the first message that gets none, and is begun again from
// nothing.
//
// Invariants: nothing is asked before all groups hold, nothing is promised
// before a whole round of asks has found no commit, and every transaction that
// was undecided in it was raised to the timestamp that is promised.
type Cut struct {
	groups []placement.GroupID
	phase  cutPhase
	wait   map[CutMessage]struct{} // of this round, without an answer
	holds  map[placement.GroupID]Held
	open   map[ID]placement.PartitionID // homes of those not known to be decided
	found  bool                         // a commit, in this round
	late   int                          // commits found in all rounds
	rounds int                          // of asks
	at     hlc.Timestamp
}

type cutPhase uint8

const (
	cutHolding cutPhase = iota
	cutAsking
	cutPromising
	cutDone
	cutFailed
)

// NewCut makes a cut through these groups, which are all different.
func NewCut(groups []placement.GroupID) *Cut {
	return &Cut{
		groups: groups, wait: map[CutMessage]struct{}{},
		holds: map[placement.GroupID]Held{}, open: map[ID]placement.PartitionID{},
		at: 1, // where nothing was ever written: 0 is no time to read at
	}
}

// Begin is the holds.
func (c *Cut) Begin() []CutMessage {
	out := make([]CutMessage, len(c.groups))
	for i, g := range c.groups {
		out[i] = CutMessage{Step: CutHold, Group: g}
	}
	return c.send(out)
}

func (c *Cut) send(ms []CutMessage) []CutMessage {
	for _, m := range ms {
		c.wait[m] = struct{}{}
	}
	return ms
}

// answered says whether a message was waited for.
func (c *Cut) answered(m CutMessage) bool {
	_, waited := c.wait[m]
	delete(c.wait, m)
	return waited
}

// Held takes the answer to a hold. One that comes twice, with another token,
// counts once: the other hold ends by its time.
func (c *Cut) Held(m CutMessage, h Held) []CutMessage {
	switch waited := c.answered(m); {
	case waited && c.phase == cutFailed: // it came too late to be released with the others
		return []CutMessage{{Step: CutRelease, Group: m.Group, Term: h.Term, Token: h.Token}}
	case !waited || c.phase != cutHolding:
		return nil
	}
	c.holds[m.Group] = h
	c.at = max(c.at, h.Clock)
	for _, o := range h.Undecided {
		c.open[o.ID] = o.Home
	}
	switch {
	case len(c.open) > MaxUndecided:
		return c.fail()
	case len(c.wait) > 0:
		return nil
	}
	return c.ask()
}

// ask begins a round, or the promises if there is nobody to ask about.
func (c *Cut) ask() []CutMessage {
	if len(c.open) == 0 {
		return c.promise()
	}
	c.phase, c.found = cutAsking, false
	c.rounds++
	out := make([]CutMessage, 0, len(c.open))
	for id, home := range c.open {
		m := CutMessage{Step: CutAsk, ID: id, Home: home, At: c.at}
		if mutant.On(mutant.CutRaisesNothing) {
			m.At = 0
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b CutMessage) int {
		if a.ID.Less(b.ID) {
			return -1
		}
		return 1
	})
	return c.send(out)
}

// Asked takes home's word.
func (c *Cut) Asked(m CutMessage, a Answer) []CutMessage {
	if !c.answered(m) || c.phase != cutAsking {
		return nil
	}
	if a.Decided() {
		delete(c.open, m.ID)
		if a.State == Committed {
			// It is part of the cut, and others may be that ended before it.
			c.found = true
			c.late++
			c.at = max(c.at, a.At)
		}
	}
	switch {
	case len(c.wait) > 0:
		return nil
	case c.found && !mutant.On(mutant.CutAskedOnce):
		return c.ask()
	}
	return c.promise()
}

func (c *Cut) promise() []CutMessage {
	c.phase = cutPromising
	out := make([]CutMessage, len(c.groups))
	for i, g := range c.groups {
		h := c.holds[g]
		out[i] = CutMessage{Step: CutPromise, Group: g, Term: h.Term, Token: h.Token, At: c.at}
	}
	return c.send(out)
}

// Promised says that a group's promise is in its log.
func (c *Cut) Promised(m CutMessage) {
	if !c.answered(m) || c.phase != cutPromising {
		return
	}
	delete(c.holds, m.Group)
	if len(c.wait) == 0 {
		c.phase = cutDone
	}
}

// Lost says that a message got no answer, or a refusal: the cut has failed.
func (c *Cut) Lost(m CutMessage) []CutMessage {
	if !c.answered(m) || c.phase == cutDone || c.phase == cutFailed {
		return nil
	}
	return c.fail()
}

// Abandon gives the cut up: its time is over.
func (c *Cut) Abandon() []CutMessage {
	if c.phase == cutDone || c.phase == cutFailed {
		return nil
	}
	return c.fail()
}

// fail lets writes go that are held back.
func (c *Cut) fail() []CutMessage {
	c.phase = cutFailed
	var out []CutMessage
	for _, g := range c.groups {
		if h, held := c.holds[g]; held {
			out = append(out, CutMessage{Step: CutRelease, Group: g, Term: h.Term, Token: h.Token})
		}
	}
	return out
}

// Outcome is the timestamp to read at, once it is known.
func (c *Cut) Outcome() (at hlc.Timestamp, ok bool) { return c.at, c.phase == cutDone }

// Failed says that there will be no outcome.
func (c *Cut) Failed() bool { return c.phase == cutFailed }

// Late is how many transactions were found committed that were not yet resolved
// when the groups held; Rounds is how often homes were asked.
func (c *Cut) Late() int   { return c.late }
func (c *Cut) Rounds() int { return c.rounds }
