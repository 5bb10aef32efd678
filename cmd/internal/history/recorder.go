package history

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Recorder collects what many clients asked and were told. It is safe for
// concurrent use.
type Recorder struct {
	start time.Time // everything is timed from here, on the monotonic clock

	mu       sync.Mutex
	ops      []Operation           // guarded by mu
	txns     []Transaction         // guarded by mu
	spans    []Span                // guarded by mu; those that are neither
	open     map[*Pending]bool     // guarded by mu; calls that have not returned
	openTxns map[*PendingTxn]bool  // guarded by mu
	openSpan map[*PendingSpan]bool // guarded by mu
}

// NewRecorder starts an empty history now.
func NewRecorder() *Recorder { return NewRecorderAt(time.Now()) }

// NewRecorderAt starts an empty history on the clock of others that began at
// start.
func NewRecorderAt(start time.Time) *Recorder {
	return &Recorder{
		start: start, open: map[*Pending]bool{}, openTxns: map[*PendingTxn]bool{}, openSpan: map[*PendingSpan]bool{},
	}
}

// Start is the moment that operations are timed from.
func (r *Recorder) Start() time.Time { return r.start }

// Pending is an operation that has not returned.
type Pending struct {
	r  *Recorder
	op Operation
}

// Begin notes that a client is about to ask.
func (r *Recorder) Begin(client int, in Input) *Pending { return r.BeginSeq(client, 0, in) }

// BeginSeq is Begin for one of several operations in order of seq that the
// client asks for in one call.
func (r *Recorder) BeginSeq(client, seq int, in Input) *Pending {
	p := &Pending{r: r, op: Operation{Client: client, Input: in, Seq: seq}}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open[p] = true
	// Taken last: the request leaves after this moment.
	p.op.Call = time.Since(r.start)
	return p
}

// End notes the answer.
func (p *Pending) End(out Output) {
	at := time.Since(p.r.start) // taken first: the answer was here before this moment
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	delete(p.r.open, p)
	p.op.Return, p.op.Output = at, out
	p.r.ops = append(p.r.ops, p.op)
}

// PendingTxn is a transaction that has not returned.
type PendingTxn struct {
	r *Recorder
	t Transaction
}

// BeginTxn notes that a client is about to begin t, whose parts are as far as
// they are known: the writes that it may do, should nobody learn its outcome.
func (r *Recorder) BeginTxn(t Transaction) *PendingTxn {
	p := &PendingTxn{r: r, t: t}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.openTxns[p] = true
	p.t.Call = time.Since(r.start)
	return p
}

// End notes what the transaction did, or may have done: fill changes the
// transaction given at the beginning.
func (p *PendingTxn) End(fill func(t *Transaction)) {
	at := time.Since(p.r.start)
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	delete(p.r.openTxns, p)
	fill(&p.t)
	p.t.Return = at
	p.r.txns = append(p.r.txns, p.t)
}

// PendingSpan is a call that has not returned and that only the timeline shows.
type PendingSpan struct {
	r *Recorder
	s Span
}

// BeginSpan notes that a client is about to do something that no checker
// judges as an operation or transaction, such as creating a collection.
func (r *Recorder) BeginSpan(client int, what string) *PendingSpan {
	p := &PendingSpan{r: r, s: Span{Client: client, Name: what}}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.openSpan[p] = true
	p.s.Call = time.Since(r.start)
	return p
}

// End notes how it went.
func (p *PendingSpan) End(outcome Outcome, reason string) {
	at := time.Since(p.r.start)
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	delete(p.r.openSpan, p)
	p.s.Return, p.s.Outcome, p.s.Reason = at, outcome, reason
	p.r.spans = append(p.r.spans, p.s)
}

// Operations is the history of single operations so far. Calls that have not
// returned are in it with an unknown outcome.
func (r *Recorder) Operations() []Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops := slices.Clone(r.ops)
	for p := range r.open {
		op := p.op
		op.Output = Output{Outcome: Unknown, Reason: noAnswer}
		ops = append(ops, op)
	}
	slices.SortStableFunc(ops, func(a, b Operation) int { return cmp.Compare(a.Call, b.Call) })
	return ops
}

const noAnswer = "no answer yet"

// Transactions is the history of transactions so far, those that have not
// returned included.
func (r *Recorder) Transactions() []Transaction {
	r.mu.Lock()
	defer r.mu.Unlock()
	txns := slices.Clone(r.txns)
	for p := range r.openTxns {
		t := p.t
		t.Outcome, t.Reason = Unknown, noAnswer
		txns = append(txns, t)
	}
	slices.SortStableFunc(txns, func(a, b Transaction) int { return cmp.Compare(a.Call, b.Call) })
	return txns
}

// Span is a call on a timeline.
type Span struct {
	Client       int
	Name         string
	Call, Return time.Duration // Return is 0 if there was no answer
	Outcome      Outcome
	Reason       string
}

// Timeline is everything that was recorded, in order of call.
func (r *Recorder) Timeline() []Span {
	r.mu.Lock()
	all := slices.Clone(r.spans)
	for p := range r.openSpan {
		all = append(all, Span{Client: p.s.Client, Name: p.s.Name, Call: p.s.Call, Outcome: Unknown, Reason: noAnswer})
	}
	r.mu.Unlock()
	for _, op := range r.Operations() {
		all = append(all, Span{
			Client: op.Client, Name: op.Input.Verb.String() + " " + op.Input.Key,
			Call: op.Call, Return: op.Return, Outcome: op.Output.Outcome, Reason: op.Output.Reason,
		})
	}
	for _, t := range r.Transactions() {
		all = append(all, Span{
			Client: t.Client, Name: t.Name, Call: t.Call, Return: t.Return, Outcome: t.Outcome, Reason: t.Reason,
		})
	}
	slices.SortStableFunc(all, func(a, b Span) int { return cmp.Compare(a.Call, b.Call) })
	return all
}
