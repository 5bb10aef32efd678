package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/history"
	"github.com/impossibledb/idb/cmd/internal/report"
	"github.com/impossibledb/idb/cmd/internal/workload"
	"github.com/impossibledb/idb/shardgroup"
)

// Result is what a run has shown.
type Result struct {
	Virtual  time.Duration // that has passed in it
	Answered int64         // operations that clients got an answer to
	Events   int           // faults, and their ends, that the plan had
	Resumed  time.Duration // from the end of all faults to the first write in every group
	Replayed int           // groups whose log was replayed in full
	State    []error       // what was wrong with the cluster and its processes; empty: nothing
	Verdicts []workload.Verdict
	Notes    []string // what happened, in order

	workloads []workload.Workload
	counts    map[string]workload.Counts
	begun     time.Time // of the load, in virtual time
	worked    time.Duration
}

// Judge judges what the clients were told. It is called outside of the bubble:
// judges bound their work by time, which stands still in there while they work.
func (r *Result) Judge() {
	for _, w := range r.workloads {
		r.Verdicts = append(r.Verdicts, workload.Verdict{Workload: w.Name(), Counts: r.counts[w.Name()], Checks: w.Judge()})
	}
}

// Err is nil if the database kept its promises.
func (r *Result) Err() error {
	return errors.Join(append(slices.Clone(r.State), workload.Err(r.Verdicts))...)
}

// resumeWithin is how long after healing every group must take writes again.
const resumeWithin = 5 * time.Second

// patience is what a client's operation may take.
const patience = 8 * time.Second

// Run plays a plan inside a synctest bubble and judges it. The error says that
// the simulation could not be set up; what the database did wrong is in the
// result.
func Run(ctx context.Context, p *Plan, seed uint64, log hclog.Logger) (*Result, error) {
	begun := time.Now()
	c := NewCluster(ClusterOptions{Nodes: p.Nodes, Shards: p.Shards, Seed: seed, Log: log, Host: p.host})
	defer c.Close()
	res := &Result{}
	forming, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := c.Form(forming); err != nil {
		return nil, err
	}
	var dbs []*client.DB
	defer func() {
		for _, db := range dbs {
			db.Close()
		}
	}()
	for range 2 {
		db, err := c.Dial(forming, clientMachine)
		if err != nil {
			return nil, err
		}
		dbs = append(dbs, db)
	}
	ws, err := workload.New(workload.Options{
		Start: time.Now(), Documents: 4, PerDocument: 100, Timeout: 10 * time.Second, Tolerate: p.tolerated(),
	}, p.Load...)
	if err != nil {
		return nil, err
	}
	load, err := workload.Start(forming, dbs, workload.LoadOptions{
		Clients: p.Clients, Patience: patience, Impatience: 0.02, Pace: p.Pace, Seed: seed,
	}, ws...)
	if err != nil {
		return nil, err
	}
	defer load.Stop()
	c.note("the load begins")

	stage := &stage{c: c, db: dbs[0], rng: rand.New(rand.NewPCG(seed, 3))}
	defer stage.bg.Wait()
	loadBegun := time.Now()
	res.begun = loadBegun
	for i := range p.Events {
		time.Sleep(time.Until(loadBegun.Add(p.Events[i].At)))
		if err := stage.play(&p.Events[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Events[i], err)
		}
		res.Events++
	}
	time.Sleep(time.Until(loadBegun.Add(p.Lasts)))
	if !p.unhealed {
		c.note("everything is healed")
		c.Heal()
	}
	if res.Resumed, err = c.awaitWrites(ctx, dbs[0]); err != nil {
		res.State = append(res.State, err)
	}
	load.Stop()
	stage.bg.Wait()
	res.Answered, res.worked = load.Answered(), time.Since(loadBegun)
	ready, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	if err := c.AwaitReady(ready); err != nil {
		res.State = append(res.State, err)
	}
	res.State = append(res.State, c.CheckTransactions(ctx)...)
	res.State = append(res.State, c.CheckReplicas(ctx)...)
	reading, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, w := range ws {
		if err := w.Final(reading, dbs[0]); err != nil {
			res.State = append(res.State, fmt.Errorf("reads at rest: %w", err))
		}
	}
	res.workloads, res.counts = ws, load.Counts()
	res.State = append(res.State, CheckReads(reading, dbs[0])...)
	if err := c.CheckReclaimed(reading, dbs[0]); err != nil {
		res.State = append(res.State, err)
	}
	c.mu.Lock()
	for _, h := range c.halts {
		res.State = append(res.State, fmt.Errorf("a replica halted: %s", h))
	}
	if !p.mayEndItself() {
		for _, f := range c.fatals {
			res.State = append(res.State, fmt.Errorf("a process ended itself without a fault of its disk: %s", f))
		}
	}
	c.mu.Unlock()
	res.Replayed = c.replays
	res.Notes = c.Notes()
	res.Virtual = time.Since(begun)
	return res, nil
}

// host makes what takes long in a real cluster happen within a run.
func (p *Plan) host(c *shardgroup.Config) {
	c.DigestEvery = 64
	c.SweepInterval = time.Second
	if p.Snapshots > 0 {
		c.SnapshotEntries = uint64(p.Snapshots)
		c.TrailingEntries = uint64(p.Snapshots)/2 + 1
	}
}

// awaitWrites waits until every group has taken a write.
func (c *Cluster) awaitWrites(ctx context.Context, db *client.DB) (time.Duration, error) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 4*resumeWithin)
	defer cancel()
	var last error
	const name = "probes"
	for {
		_, err := db.CreateCollection(ctx, name, client.CollectionOptions{})
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("no collection could be made within %v after everything was healed: %w", 4*resumeWithin, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	// A document in every partition is one in every group.
	probes := db.Collection(name)
	for i := 0; i < 4*c.o.Partitions; i++ {
		for {
			attempt, stop := context.WithTimeout(ctx, time.Second)
			_, err := probes.Put(attempt, fmt.Sprintf("p%d", i), client.D{"n": i})
			stop()
			if err == nil {
				break
			}
			if ctx.Err() == nil || last == nil {
				last = err // the one that comes of the end says little
			}
			if ctx.Err() != nil {
				return 0, fmt.Errorf("writes do not go on within %v after everything was healed: %w", 4*resumeWithin, last)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	took := time.Since(begun)
	if took > resumeWithin {
		return took, fmt.Errorf("writes went on %v after everything was healed, the limit is %v: %v", took, resumeWithin, last)
	}
	return took, nil
}

// String is what a run has shown, for people.
func (r *Result) String() string {
	return fmt.Sprintf("%v virtual, %d operations answered, %d logs replayed, writes went on after %v\n%s",
		r.Virtual.Round(time.Millisecond), r.Answered, r.Replayed, r.Resumed.Round(time.Millisecond), strings.Join(r.Notes, "\n"))
}

// Report describes a failure for people: what was done, what happened, what
// was wrong.
func (r *Result) Report(p *Plan, again string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "the plan:\n%s\nwhat happened:\n", indent(p.String()))
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "  %s\n", n)
	}
	fmt.Fprintf(&b, "\nwhat was wrong:\n%s\n", indent(r.Err().Error()))
	for _, v := range r.Verdicts {
		for _, a := range v.Anomalies() {
			if len(a.Operations) > 0 {
				fmt.Fprintf(&b, "\nthe shortest history found that still shows %q:\n", a.Name)
				for _, op := range a.Operations {
					fmt.Fprintf(&b, "  %s\n", op)
				}
			}
		}
	}
	fmt.Fprintf(&b, "\nto run it again: %s\n", again)
	return b.String()
}

// ends says which events end another.
var ends = map[string][]string{
	"kill": {"start"}, "stop": {"start"}, "power off": {"start"}, "pause": {"resume"},
	"cut": {"mend", "heal network"}, "bridge": {"heal network"}, "link": {"mend", "heal network"},
	"hang disk": {"repair disk"}, "slow disk": {"repair disk"}, "fail disk": {"repair disk"}, "fill disk": {"repair disk"},
	"jump clock": {"set clock"}, "drift clock": {"set clock", "drift clock"},
}

// Page is the run as a report, which can be drawn.
func (r *Result) Page(p *Plan, title, again string) *report.Report {
	page := &report.Report{
		Title: title, Began: r.begun, Took: r.worked,
		Facts: []report.Fact{
			{Name: "plan", Value: p.String()}, {Name: "again", Value: again},
			{Name: "time", Value: "virtual"}, {Name: "what happened", Value: strings.Join(r.Notes, "\n")},
		},
	}
	for i, w := range r.workloads {
		page.Add(w, r.Verdicts[i])
	}
	for i, e := range p.Events {
		enders, lasts := ends[e.Verb]
		if !lasts {
			continue
		}
		f := report.Fault{Name: e.Verb, Target: strings.Join(e.Who, " "), From: e.At, To: p.Lasts}
		for _, later := range p.Events[i+1:] {
			if later.Verb == "heal" || slices.Contains(enders, later.Verb) {
				f.To = later.At
				break
			}
		}
		page.Faults = append(page.Faults, f)
	}
	state := history.Verdict{Checker: "cluster at rest", Judged: "replicas, logs and processes"}
	for _, err := range r.State {
		state.Anomalies = append(state.Anomalies, history.Anomaly{Name: "state", Text: err.Error()})
	}
	page.Checks = []history.Verdict{state}
	return page
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n  ")
}

// tolerated are refusals that a plan's faults explain.
func (p *Plan) tolerated() (codes []client.Code) {
	if p.has("fill disk") {
		codes = append(codes, wire.CodeDiskFull)
	}
	if p.has("jump clock") {
		// A clock that is far ahead ends the memory of request IDs early: a
		// retry is refused then, and never done twice.
		codes = append(codes, wire.CodeOutcomeExpired)
	}
	return codes
}

// has says whether the plan has such events.
func (p *Plan) has(verbs ...string) bool {
	return slices.ContainsFunc(p.Events, func(e Event) bool { return slices.Contains(verbs, e.Verb) })
}
