package history

import (
	"sync"
	"time"
)

// Recorder collects the operations of many clients. It is safe for concurrent
// use.
type Recorder struct {
	start time.Time // operations are timed from here, on the monotonic clock

	mu   sync.Mutex
	done []Operation       // guarded by mu
	open map[*Pending]bool // guarded by mu; calls that have not returned
}

// NewRecorder starts an empty history.
func NewRecorder() *Recorder {
	return &Recorder{start: time.Now(), open: map[*Pending]bool{}}
}

// Pending is a call that has not returned.
type Pending struct {
	r  *Recorder
	op Operation
}

// Begin notes that a client is about to ask. A client has one call at a time.
func (r *Recorder) Begin(client int, in Input) *Pending {
	p := &Pending{r: r, op: Operation{Client: client, Input: in}}
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
	p.r.done = append(p.r.done, p.op)
}

// Operations is the history so far. Calls that have not returned are in it
// with an unknown outcome.
func (r *Recorder) Operations() []Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops := append([]Operation(nil), r.done...)
	for p := range r.open {
		op := p.op
		op.Output = Output{Outcome: Unknown, Reason: "no answer yet"}
		ops = append(ops, op)
	}
	return ops
}
