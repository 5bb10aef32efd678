package leader

import (
	"time"

	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/txn/hlc"
)

// Forget says up to where a leader has request IDs forgotten: those that are
// older than ttl by its clock, now. Have is the present horizon; clock and
// youngest are the machine's: the largest timestamp of an effect, and the
// largest time of a request ID that it remembers. Not ok: it is not worth an
// entry.
//
// The horizon never passes what it is to forget. A wall clock that is an hour
// ahead for a moment would else put it where no clock of the cluster is once
// that one is right again, and whatever is sent then is refused as expired,
// for an hour. What was written at such a time is another matter: all who hold
// the group have its timestamp, and their clocks go on from there.
//
// The horizon is a whole millisecond, as the times of request IDs are: a client
// that has heard of the machine's clock makes none that are below.
func Forget(have, clock hlc.Timestamp, youngest uint64, now hlc.Timestamp, ttl time.Duration) (to hlc.Timestamp, ok bool) {
	all := hlc.FromMillis(max(clock, hlc.Timestamp(youngest)).Millis())
	to = hlc.FromMillis(now.Add(-ttl).Millis())
	if mutant.On(mutant.HorizonAhead) {
		return to, clock > have && to > have.Add(ttl/16)
	}
	if to >= all {
		return all, all > have
	}
	// Each step forgets at least a sixteenth of what is remembered.
	return to, to > have.Add(ttl/16)
}
