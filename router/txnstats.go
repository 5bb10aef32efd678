package router

import (
	"sync/atomic"

	"github.com/impossibledb/idb/client/wire"
)

// TxnOutcome is what a commit that this node coordinated came to. Names are
// those of metrics.
type TxnOutcome uint8

const (
	TxnReadOnly    TxnOutcome = iota // nothing was written, and what was read is the newest
	TxnOneGroup                      // committed in one entry
	TxnSeveral                       // committed over several groups
	TxnConflict                      // it met another, or something read has changed
	TxnCondition                     // a condition of a write did not hold
	TxnAborted                       // not decided in its time, or aborted by somebody
	TxnRefused                       // wrong, too large, or older than what is remembered
	TxnUnavailable                   // a group could not be reached; nothing was done
	TxnNotKnown                      // the client was told that the outcome is not known
	txnOutcomes
)

var txnOutcomeNames = [txnOutcomes]string{
	"read_only", "one_group", "several_groups", "conflict", "condition", "aborted", "refused", "unavailable", "unknown",
}

// String is the outcome's name.
func (o TxnOutcome) String() string { return txnOutcomeNames[o] }

// TxnStats counts the commits that this node coordinated.
type TxnStats struct {
	Outcomes [txnOutcomes]uint64 // by TxnOutcome
	Retries  uint64              // commits that were not the first attempt at their work
	Running  int                 // coordinators at work now, those whose client was answered included
}

type txnCounts struct {
	outcomes [txnOutcomes]atomic.Uint64
	retries  atomic.Uint64
}

// TxnStats reads the counts.
func (r *Router) TxnStats() TxnStats {
	s := TxnStats{Retries: r.counts.retries.Load()}
	for i := range s.Outcomes {
		s.Outcomes[i] = r.counts.outcomes[i].Load()
	}
	r.txns.mu.Lock()
	s.Running = r.txns.count
	r.txns.mu.Unlock()
	return s
}

// count notes what a commit came to; e is what the client is told.
func (t *transaction) count(e *wire.Error) {
	o := TxnRefused
	switch {
	case e == nil && t.writes == 0:
		o = TxnReadOnly
	case e == nil && t.groups == 1:
		o = TxnOneGroup
	case e == nil:
		o = TxnSeveral
	case e.Code == wire.CodeTxnConflict:
		o = TxnConflict
	case e.Code == wire.CodeTxnAborted:
		o = TxnAborted
	case e.Code.Unknown():
		o = TxnNotKnown
	case e.Code.Retryable():
		o = TxnUnavailable
	case e.Code >= 200 && e.Code < 400:
		o = TxnCondition
	}
	t.r.counts.outcomes[o].Add(1)
	if t.req.Attempt > 1 {
		t.r.counts.retries.Add(1)
	}
}
