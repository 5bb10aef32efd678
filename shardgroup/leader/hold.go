package leader

import (
	"slices"
	"time"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// MaxHolds bounds the holds of one group. A cut needs one for as long as two
// round trips take, and a node makes few cuts at a time.
const MaxHolds = 1000

// hold keeps writes of some collections back, for a cut (txn/DESIGN.md).
type hold struct {
	token       uint64
	until       time.Time
	collections []placement.CollectionID // nil: all
}

// Hold begins a hold: from now on no command that writes into these collections
// (nil: into any) gets a timestamp. What has one may still be on its way: the
// machine's clock covers it once Landed(upto). The token names the hold in its
// term and is never given twice. Not ok: this node is not in a position to
// promise anything.
func (m *Memory) Hold(until time.Time, collections []placement.CollectionID) (token, upto uint64, ok bool) {
	if m.term == 0 || m.doubt || len(m.holds) >= MaxHolds {
		return 0, 0, false
	}
	m.tokens++
	m.holds = append(m.holds, hold{m.tokens, until, slices.Clone(collections)})
	return m.tokens, m.sent, true
}

// Held says whether a command is kept back.
func (m *Memory) Held(c *fsm.Command) bool {
	if len(m.holds) == 0 || mutant.On(mutant.CutUnheld) {
		return false
	}
	return slices.ContainsFunc(m.holds, func(h hold) bool { return c.Writes(h.collections) })
}

// Redeem ends a hold with a promise: what it kept back gets timestamps above ts.
// Not ok: it was broken before, by its time, its leader's end or a lost batch,
// and has kept nothing back since.
func (m *Memory) Redeem(term, token uint64, now time.Time, ts hlc.Timestamp) bool {
	m.Expire(now)
	if !m.release(term, token) && !mutant.On(mutant.CutUnbroken) || m.term == 0 || m.doubt {
		return false
	}
	m.floor = max(m.floor, ts)
	return true
}

// Release ends a hold without a promise, if it is still there.
func (m *Memory) Release(term, token uint64) { m.release(term, token) }

func (m *Memory) release(term, token uint64) bool {
	n := len(m.holds)
	if term == m.term {
		m.holds = slices.DeleteFunc(m.holds, func(h hold) bool { return h.token == token })
	}
	return len(m.holds) < n
}

// Expire ends the holds whose time is up.
func (m *Memory) Expire(now time.Time) {
	m.holds = slices.DeleteFunc(m.holds, func(h hold) bool { return !now.Before(h.until) })
}

// Break ends all holds.
func (m *Memory) Break() { m.holds = nil }

// Holds is how many there are.
func (m *Memory) Holds() int { return len(m.holds) }
