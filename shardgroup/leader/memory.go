package leader

import (
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/txn/hlc"
)

// Memory is what a leader knows that is not in the machine. It is lost with
// the process, and a later leader must do without it: what matters of it is
// covered by the machine's ceiling.
//
// Invariant: floor is the largest timestamp that was assigned in this term, or
// promised to a reader by this or an earlier leader. Timestamps are assigned
// in the order of the entries. The zero value leads nothing.
type Memory struct {
	term       uint64 // 0: this node does not serve as leader
	floor      hlc.Timestamp
	sent, done uint64 // batches that got timestamps, and those that are landed or lost
	doubt      bool   // a batch of this term was lost

	holds  []hold // of this term
	tokens uint64 // given out
}

// Open begins a term, once the machine has applied the term's first entry.
// Whatever earlier leaders assigned is at or below the machine's clock then,
// and whatever they promised at or below its ceiling.
func (m *Memory) Open(term uint64, clock, ceiling hlc.Timestamp) {
	m.term, m.doubt = term, false
	m.Break()
	if mutant.On(mutant.PromiseForgotten) {
		ceiling = 0
	}
	m.floor = max(m.floor, clock, ceiling)
}

// Shut ends the term. The floor stays: it can only be too high.
func (m *Memory) Shut() {
	m.term = 0
	m.Break()
}

// Term is the term that is served; 0: none.
func (m *Memory) Term() uint64 { return m.term }

// Floor is the largest timestamp assigned or promised.
func (m *Memory) Floor() hlc.Timestamp { return m.floor }

// Assign gives the next command its timestamp: above everything assigned or
// promised, and not below now.
func (m *Memory) Assign(now hlc.Timestamp) hlc.Timestamp {
	m.floor = max(m.floor+1, now)
	return m.floor
}

// Send counts a batch whose commands have their timestamps.
func (m *Memory) Send() { m.sent++ }

// Land counts a batch that was applied, or certainly never will be.
func (m *Memory) Land() { m.done++ }

// Lose counts a batch, made in a term, that nobody waits for any more and that
// may yet be applied. Its timestamps lie below the floor, so the term, which is
// about to end, can promise nothing any more: the batch would come to light
// below the promise. (A batch of an earlier term cannot: by Open it was
// applied, or is void.)
func (m *Memory) Lose(term uint64) {
	m.done++
	m.doubt = m.doubt || term == m.term && !mutant.On(mutant.PromiseBesideLost)
	if m.doubt {
		m.Break()
	}
}

// Promise sees to it that nothing is assigned at or below ts from now on. The
// machine's ceiling must be at or above ts already. What was assigned before
// may still be on its way: the promise holds once Landed(upto). Not ok: this
// node is not in a position to promise.
func (m *Memory) Promise(ts hlc.Timestamp) (upto uint64, ok bool) {
	if m.term == 0 || m.doubt {
		return 0, false
	}
	if !mutant.On(mutant.PromiseUnkept) {
		m.floor = max(m.floor, ts)
	}
	return m.sent, true
}

// Landed says whether the first n batches have landed, or were lost.
func (m *Memory) Landed(n uint64) bool { return n <= m.done || mutant.On(mutant.PromiseTooEarly) }
