package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/history"
	"github.com/impossibledb/idb/cmd/internal/report"
	"github.com/impossibledb/idb/cmd/internal/workload"
)

// Breaker hurts a cluster while clients work.
type Breaker interface {
	// Break does one fault after the other until ctx ends, and calls note with
	// each when it is over. Times are since start. An error means that the
	// cluster did not come back, or that a node ended by itself.
	Break(ctx context.Context, load *workload.Load, start time.Time, note func(report.Fault)) error
	// Heal ends every fault and waits until the cluster is whole.
	Heal(ctx context.Context) error
	// Now says what is being done to the cluster, in a few words.
	Now() string
}

// Options of Run. Dial is required; the zero value of everything else works.
type Options struct {
	// Dial connects to the cluster.
	Dial func(ctx context.Context) (*client.DB, error)
	// Duration is how long clients work, in all rounds together. Zero means 60s.
	Duration time.Duration
	// Clients in all. Zero means 32.
	Clients int
	// Workloads by name; nil: all.
	Workloads []string
	// Pace is how long a client thinks between two operations. Zero: not at all.
	Pace time.Duration
	// Patience is how long one operation may take, retries included; also how
	// long an interrupted run may take to end. Zero means 10s.
	Patience time.Duration
	// Seed makes the clients' choices. Zero: from the clock.
	Seed uint64
	// Round and RoundOperations end a round, whichever is first. Longer rounds
	// see more at once and need more memory, some 300 bytes an operation. Zero
	// means 60s and 150,000.
	Round           time.Duration
	RoundOperations int64
	// Breaker hurts the cluster. Nil: nobody does.
	Breaker Breaker
	// AtRest judges the cluster as a whole, at the end of each round, when it is
	// healed and the clients' collections are still there. May be nil.
	AtRest func(ctx context.Context, db *client.DB) []history.Verdict
	// Tolerate are codes of refusals that the breaker explains.
	Tolerate []client.Code
	// Progress is told what is going on, from several goroutines. May be nil.
	Progress func(Progress)
}

func (o Options) withDefaults() Options {
	if o.Duration == 0 {
		o.Duration = time.Minute
	}
	if o.Clients == 0 {
		o.Clients = 32
	}
	if len(o.Workloads) == 0 {
		o.Workloads = workload.Names()
	}
	if o.Patience == 0 {
		o.Patience = 10 * time.Second
	}
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano())
	}
	if o.Round == 0 {
		o.Round = time.Minute
	}
	if o.RoundOperations == 0 {
		o.RoundOperations = 150_000
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	return o
}

// Progress is where a run stands.
type Progress struct {
	Phase    string        // "working", "healing", "judging", "comparing", "cleaning up"
	Worked   time.Duration // of Options.Duration
	Counts   workload.Counts
	Fault    string // what the breaker does
	Round    int
	Findings int // anomalies so far
}

// lateCreation is how long a creation that nobody waits for may take.
const lateCreation = 300 * time.Millisecond

// connections of a run: several, so that clients meet different nodes.
const connections = 3

// spansKept bounds what the report's timeline keeps: the last of a long run.
const spansKept = 400_000

// run is one Run.
type run struct {
	o      Options
	prefix string
	start  time.Time
	dbs    []*client.DB
	out    *report.Report
	sums   []*sum // by workload

	worked time.Duration // in rounds that have ended
	past   workload.Counts

	mu     sync.Mutex
	faults []report.Fault // guarded by mu
}

// sum is a workload over all rounds.
type sum struct {
	w       report.Workload
	rounds  int
	dropped bool // spans of early rounds are not kept
}

// Run works until the time is up and answers what was found. An error says
// that the run could not be done or was interrupted; what was made is removed
// in any case, or the error says what was not.
func Run(ctx context.Context, o Options) (*report.Report, error) {
	r := &run{o: o.withDefaults(), start: time.Now()}
	r.prefix = newPrefix(r.start)
	r.out = newReport(r.start)
	defer func() {
		for _, db := range r.dbs {
			_ = db.Close()
		}
	}()
	for range connections {
		db, err := r.o.Dial(ctx)
		if err != nil {
			return nil, err
		}
		r.dbs = append(r.dbs, db)
	}
	var err error
	for round := 1; err == nil && r.worked < r.o.Duration; round++ {
		err = r.round(ctx, round)
	}
	if err != nil {
		if left := r.clean(ctx); left != nil {
			return nil, errors.Join(left, err)
		}
		return nil, err
	}
	if err := r.clean(ctx); err != nil {
		return nil, err
	}
	return r.finish(), nil
}

func newReport(began time.Time) *report.Report {
	return &report.Report{Title: "idb verify", Began: began}
}

// LeftError says that collections could not be removed.
type LeftError struct {
	Prefix string // of their names
	Err    error
}

func (e *LeftError) Error() string {
	return fmt.Sprintf("the collections %s-… are left (idb verify --clean removes them): %v", e.Prefix, e.Err)
}

// Unwrap is why.
func (e *LeftError) Unwrap() error { return e.Err }

// clean removes what the run has made, also when ctx has ended.
func (r *run) clean(ctx context.Context) error {
	if r.o.Breaker != nil && ctx.Err() != nil {
		return nil // the cluster goes with it
	}
	r.o.Progress(Progress{Phase: "cleaning up", Worked: r.worked, Counts: r.past})
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.o.Patience)
	defer cancel()
	for {
		n, err := removeRun(bounded, r.dbs[0], r.prefix)
		if err != nil {
			return &LeftError{Prefix: r.prefix, Err: err}
		}
		if n == 0 {
			return nil
		}
		// A client may have given up a creation that comes to be in a moment.
		select {
		case <-time.After(lateCreation):
		case <-bounded.Done():
			return nil
		}
	}
}

// round is one load, judged.
func (r *run) round(ctx context.Context, n int) error {
	ws, err := workload.New(workload.Options{
		Prefix: fmt.Sprintf("%s-%d", r.prefix, n), Start: r.start, Tolerate: r.o.Tolerate,
	}, r.o.Workloads...)
	if err != nil {
		return err
	}
	// Collections are made whole or not at all: what an interrupt left on its way
	// would come to be after everything was removed.
	making, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.o.Patience)
	defer cancel()
	load, err := workload.Start(making, r.dbs, workload.LoadOptions{
		Share: share(r.o.Clients, r.o.Workloads), Patience: r.o.Patience, Impatience: 0.01, Pace: r.o.Pace, Seed: r.o.Seed + uint64(n),
	}, ws...)
	if err != nil {
		return err
	}
	began := time.Now()
	tell := func(phase string) {
		p := Progress{Phase: phase, Worked: r.worked, Counts: r.past, Round: n, Findings: r.out.Anomalies()}
		if phase == "working" {
			p.Worked += time.Since(began)
			for _, c := range load.Counts() {
				p.Counts = plus(p.Counts, c)
			}
			if r.o.Breaker != nil {
				p.Fault = r.o.Breaker.Now()
			}
		}
		r.o.Progress(p)
	}
	err = r.work(ctx, load, min(r.o.Round, r.o.Duration-r.worked), tell)
	if err == nil && ctx.Err() == nil && r.o.Breaker != nil {
		tell("healing")
		err = r.o.Breaker.Heal(ctx)
	}
	load.Stop()
	r.worked += time.Since(began)
	r.out.Took = r.worked
	for _, c := range load.Counts() {
		r.past = plus(r.past, c)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	tell("judging")
	bounded, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for i, v := range load.Judge(bounded, r.dbs[0]) {
		r.add(i, ws[i], v)
	}
	if r.o.AtRest != nil {
		tell("comparing")
		for _, v := range r.o.AtRest(bounded, r.dbs[0]) {
			r.out.Checks = addCheck(r.out.Checks, v, n)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	tell("cleaning up")
	return load.Cleanup(bounded, r.dbs[0])
}

// work lets clients and breaker work until the round is over.
func (r *run) work(ctx context.Context, load *workload.Load, length time.Duration, tell func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	broken := make(chan error, 1)
	if r.o.Breaker != nil {
		go func() { // joined below
			broken <- r.o.Breaker.Break(ctx, load, r.start, func(f report.Fault) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.faults = append(r.faults, f)
			})
		}()
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-broken:
			if err != nil || ctx.Err() != nil {
				return err
			}
			broken <- nil // it had nothing more to do
			<-ctx.Done()
		case <-tick.C:
			tell("working")
			if load.Answered() < r.o.RoundOperations {
				continue
			}
			cancel()
		case <-ctx.Done():
		}
		if ctx.Err() == nil {
			continue
		}
		if r.o.Breaker == nil {
			return nil
		}
		return <-broken
	}
}

// add takes one workload's part of a round into its sum.
func (r *run) add(i int, w workload.Workload, v workload.Verdict) {
	if len(r.sums) <= i {
		r.sums = append(r.sums, &sum{w: report.Workload{About: workload.About(w.Name()), Verdict: workload.Verdict{Workload: w.Name()}}})
	}
	s := r.sums[i]
	s.rounds++
	s.w.Verdict.Counts = plus(s.w.Verdict.Counts, v.Counts)
	for _, c := range v.Checks {
		s.w.Verdict.Checks = addCheck(s.w.Verdict.Checks, c, s.rounds)
	}
	timeline := append(s.w.Timeline, w.Recorder().Timeline()...)
	if most := spansKept / len(r.o.Workloads); len(timeline) > most {
		timeline, s.dropped = slices.Clone(timeline[len(timeline)-most:]), true
	}
	s.w.Timeline = timeline
	r.out.Workloads = r.out.Workloads[:0]
	for _, s := range r.sums {
		r.out.Workloads = append(r.out.Workloads, s.w)
	}
}

// addCheck takes what a checker found in a round to what it found before.
func addCheck(all []history.Verdict, c history.Verdict, rounds int) []history.Verdict {
	at := slices.IndexFunc(all, func(x history.Verdict) bool { return x.Checker == c.Checker })
	if at < 0 {
		return append(all, c)
	}
	all[at].Judged = fmt.Sprintf("%s (the last of %d rounds)", c.Judged, rounds)
	all[at].Anomalies = append(all[at].Anomalies, c.Anomalies...)
	return all
}

// finish makes the report whole.
func (r *run) finish() *report.Report {
	r.mu.Lock()
	r.out.Faults = r.faults
	r.mu.Unlock()
	var silent []history.Anomaly
	for _, w := range r.out.Workloads {
		if w.Verdict.Counts.Answered == 0 {
			silent = append(silent, history.Anomaly{Name: "no progress", Text: fmt.Sprintf("no operation of %s was answered: there is nothing to judge", w.Verdict.Workload)})
		}
	}
	r.out.Checks = append(r.out.Checks, history.Verdict{
		Checker: "progress", Judged: fmt.Sprintf("%d operations answered in %v", r.past.Answered, r.worked.Round(time.Second)), Anomalies: silent,
	})
	facts := []report.Fact{
		{Name: "Clients", Value: fmt.Sprint(r.o.Clients)},
		{Name: "Worked", Value: fmt.Sprintf("%v in rounds of at most %v and %d operations", r.worked.Round(time.Second), r.o.Round, r.o.RoundOperations)},
		{Name: "Seed", Value: fmt.Sprint(r.o.Seed)},
	}
	for _, s := range r.sums {
		if s.dropped {
			facts = append(facts, report.Fact{Name: "Timeline", Value: "the end of the run: earlier operations were judged and are not drawn"})
			break
		}
	}
	r.out.Facts = append(r.out.Facts, facts...)
	return r.out
}

func plus(a, b workload.Counts) workload.Counts {
	return workload.Counts{Answered: a.Answered + b.Answered, Refused: a.Refused + b.Refused, Unknown: a.Unknown + b.Unknown}
}

// share spreads clients over workloads: registers, which all kinds of
// operations meet in, get several times what the others get.
func share(clients int, names []string) map[string]int {
	weight := func(name string) int {
		if name == "register" {
			return 4
		}
		return 1
	}
	sum := 0
	for _, n := range names {
		sum += weight(n)
	}
	out := map[string]int{}
	left := clients
	for _, n := range names {
		out[n] = max(1, clients*weight(n)/sum)
		left -= out[n]
	}
	for i := 0; left > 0; i, left = i+1, left-1 {
		out[names[i%len(names)]]++
	}
	return out
}
