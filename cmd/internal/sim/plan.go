package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/impossibledb/idb/cmd/internal/workload"
)

// Plan is a run as it is written down: a cluster, what clients do, and what
// goes wrong when. Everything is healed at the end, and then judged.
//
// As text, it is a scenario:
//
//	# Everybody loses power in the middle of an import.
//	nodes 3
//	shards 2
//	load bulk set
//	lasts 8s
//
//	2s   power off all, keep 30%
//	3s   start all
type Plan struct {
	About   []string // the comment at its head
	Nodes   int
	Shards  int
	Load    []string      // workloads
	Clients int           // of each workload
	Pace    time.Duration // that a client thinks between two operations
	Lasts   time.Duration // the load; everything is healed then
	// Snapshots is after how many entries a group's log is truncated, half of
	// them being kept, so that whoever was away is sent a snapshot. 0: as in
	// production, which is never within a run.
	Snapshots int

	unhealed bool    // nothing is healed at the end: for tests of the simulator
	Events   []Event // in order
}

// Bounds of a plan.
const (
	maxPlanNodes = 7
	maxPlanTime  = time.Hour
)

func (p *Plan) withDefaults() {
	if p.Nodes == 0 {
		p.Nodes = 3
	}
	if p.Shards == 0 {
		p.Shards = 1
	}
	if len(p.Load) == 0 {
		p.Load = []string{"register", "counter", "set"}
	}
	if p.Clients == 0 {
		p.Clients = 2
	}
	if p.Pace == 0 {
		p.Pace = 40 * time.Millisecond
	}
	if p.Lasts == 0 {
		p.Lasts = 10 * time.Second
		if n := len(p.Events); n > 0 {
			p.Lasts += p.Events[n-1].At
		}
	}
}

// ParsePlan reads a scenario.
func ParsePlan(text string) (*Plan, error) {
	p := &Plan{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if comment, ok := strings.CutPrefix(line, "#"); ok {
			if len(p.Events) == 0 && p.Nodes == 0 {
				p.About = append(p.About, strings.TrimSpace(comment))
			}
			continue
		}
		if line == "" {
			continue
		}
		if err := p.line(line); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	p.withDefaults()
	return p, p.validate()
}

func (p *Plan) line(line string) (err error) {
	key, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	number := func(to *int) error {
		n, err := strconv.Atoi(rest)
		if err != nil || n < 1 {
			return fmt.Errorf("%s %q: want a number", key, rest)
		}
		*to = n
		return nil
	}
	switch key {
	case "nodes":
		return number(&p.Nodes)
	case "shards":
		return number(&p.Shards)
	case "clients":
		return number(&p.Clients)
	case "snapshots":
		return number(&p.Snapshots)
	case "load":
		p.Load = strings.Fields(rest)
	case "pace":
		p.Pace, err = time.ParseDuration(rest)
	case "lasts":
		p.Lasts, err = time.ParseDuration(rest)
	default:
		e, err := ParseEvent(line)
		if err != nil {
			return err
		}
		if n := len(p.Events); n > 0 && e.At < p.Events[n-1].At {
			return fmt.Errorf("%q comes before the line above it", line)
		}
		p.Events = append(p.Events, e)
	}
	return err
}

func (p *Plan) validate() error {
	switch {
	case p.Nodes > maxPlanNodes:
		return fmt.Errorf("%d nodes: at most %d", p.Nodes, maxPlanNodes)
	case p.Lasts > maxPlanTime:
		return fmt.Errorf("it lasts %v: at most %v", p.Lasts, maxPlanTime)
	case p.Shards > 7:
		return fmt.Errorf("%d shard groups: at most 7", p.Shards)
	}
	for _, e := range p.Events {
		for _, w := range slices.Concat(e.Who, e.Whom) {
			if w == "clients" && verbs[e.Verb].sides != 2 {
				return fmt.Errorf("%s: clients have links only", e)
			}
			if n, ok := strings.CutPrefix(w, "n"); ok {
				if k, err := strconv.Atoi(n); err == nil && (k < 1 || k > p.Nodes) {
					return fmt.Errorf("%s: there is no machine %s", e, w)
				}
			}
		}
		if e.At > p.Lasts {
			return fmt.Errorf("%s: the load is over after %v", e, p.Lasts)
		}
	}
	return nil
}

// String is the plan as ParsePlan reads it.
func (p *Plan) String() string {
	var b strings.Builder
	for _, a := range p.About {
		fmt.Fprintln(&b, strings.TrimSpace("# "+a))
	}
	fmt.Fprintf(&b, "nodes %d\nshards %d\nload %s\nclients %d\npace %v\nlasts %s\n",
		p.Nodes, p.Shards, strings.Join(p.Load, " "), p.Clients, p.Pace, short(p.Lasts))
	if p.Snapshots > 0 {
		fmt.Fprintf(&b, "snapshots %d\n", p.Snapshots)
	}
	fmt.Fprintln(&b)
	for _, e := range p.Events {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}

// mayEndItself says that a process may end itself in this plan: its disk fails,
// or stands still for longer than it tolerates.
func (p *Plan) mayEndItself() bool {
	return p.has("pause", "hang disk", "slow disk", "fail disk", "fill disk")
}

// RandomPlan is the plan of a seed: a few episodes of trouble, which may
// overlap, beside a few workloads.
func RandomPlan(seed uint64, workloads []string) *Plan {
	rng := rand.New(rand.NewPCG(seed, 2))
	p := &Plan{
		About:   []string{fmt.Sprintf("seed %d", seed)},
		Nodes:   []int{3, 3, 3, 3, 3, 3, 1, 2, 5, 5}[rng.IntN(10)],
		Shards:  []int{1, 1, 1, 2}[rng.IntN(4)],
		Clients: 2,
		Pace:    40 * time.Millisecond,
		Lasts:   time.Duration(8+rng.IntN(5)) * time.Second,
	}
	names := slices.Clone(workloads)
	rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	p.Load = names[:min(len(names), 2+rng.IntN(2))]
	slices.Sort(p.Load)
	if rng.IntN(2) == 0 {
		p.Snapshots = 20 + rng.IntN(200)
	}
	n := nemesis{p: p, rng: rng}
	for range 2 + rng.IntN(5) {
		n.episode()
	}
	if slices.ContainsFunc(p.Load, workload.Transactional) && p.Shards < 3 && rng.IntN(4) > 0 {
		p.Shards = 2 + rng.IntN(2) // within one group there is not much to a transaction
	}
	if rng.IntN(4) == 0 {
		n.operator()
	}
	slices.SortStableFunc(p.Events, func(a, b Event) int { return int(a.At - b.At) })
	return p
}

// nemesis thinks of trouble.
type nemesis struct {
	p   *Plan
	rng *rand.Rand
}

// add puts a line into the plan, if the load still runs then.
func (n *nemesis) add(at time.Duration, format string, args ...any) {
	if at > n.p.Lasts {
		return // healing comes first
	}
	e, err := ParseEvent(short(at) + " " + fmt.Sprintf(format, args...))
	if err != nil {
		panic(err) // a line of this file
	}
	n.p.Events = append(n.p.Events, e)
}

func (n *nemesis) between(low, high time.Duration) time.Duration {
	return (low + time.Duration(n.rng.Int64N(int64(high-low)))).Truncate(10 * time.Millisecond)
}

func (n *nemesis) pick(of ...string) string { return of[n.rng.IntN(len(of))] }

// machine is one machine, by name, so that what is done can be undone; those
// that matter most are hit by their part when it happens.
func (n *nemesis) machine() string { return fmt.Sprintf("n%d", 1+n.rng.IntN(n.p.Nodes)) }

// machines are some, at least one.
func (n *nemesis) machines() string {
	var names []string
	for i := range n.p.Nodes {
		if n.rng.IntN(2) == 0 {
			names = append(names, fmt.Sprintf("n%d", i+1))
		}
	}
	if len(names) == 0 {
		return n.machine()
	}
	return strings.Join(names, " ")
}

// sides are two sides without a machine on both.
func (n *nemesis) sides() (string, string) {
	var a, b []string
	for i := range n.p.Nodes {
		if name := fmt.Sprintf("n%d", i+1); n.rng.IntN(2) == 0 {
			a = append(a, name)
		} else {
			b = append(b, name)
		}
	}
	if len(a) == 0 {
		a, b = b[:1], b[1:]
	}
	if len(b) == 0 {
		a, b = a[1:], a[:1]
	}
	if len(a) == 0 || len(b) == 0 {
		return "n1", "clients"
	}
	return strings.Join(a, " "), strings.Join(b, " ")
}

// operator changes his mind about where leaders should be.
func (n *nemesis) operator() {
	for range 1 + n.rng.IntN(4) {
		n.add(n.between(500*time.Millisecond, n.p.Lasts), "%s leaders", n.pick("gather", "spread"))
	}
}

// episode is something that goes wrong, and its end.
func (n *nemesis) episode() {
	at := n.between(500*time.Millisecond, n.p.Lasts-2*time.Second)
	end := at + n.between(50*time.Millisecond, 3*time.Second)
	one, some := n.machine(), n.machines()
	switch n.rng.IntN(18) {
	case 0:
		n.add(at, "kill %s", some)
		n.add(end, "start %s", some)
	case 1:
		n.add(at, "kill leader")
		n.add(end, "start all")
	case 2:
		n.add(at, "power off %s, keep %d%%", some, n.rng.IntN(101))
		n.add(end, "start %s", some)
	case 3:
		n.add(at, "power off all, keep %d%%", n.rng.IntN(101))
		n.add(end, "start all")
	case 4:
		n.add(at, "pause %s", n.pick("leader", one))
		n.add(end, "resume all")
	case 5:
		n.add(at, "pause %s", some)
		n.add(end, "resume all")
	case 6:
		a, b := n.sides()
		n.add(at, "cut %s | %s", a, b)
		n.add(end, "heal network")
	case 7:
		n.add(at, "cut %s %s others", n.pick("leader", one), n.pick(">", "|"))
		n.add(end, "heal network")
	case 8:
		a, b := n.sides()
		n.add(at, "cut %s > %s", a, b)
		n.add(end, "heal network")
	case 9:
		n.add(at, "bridge %s", one)
		n.add(end, "heal network")
	case 10: // a link that comes and goes
		a, b := n.sides()
		for t := at; t < end; t += n.between(100*time.Millisecond, 400*time.Millisecond) {
			n.add(t, "cut %s | %s", a, b)
			n.add(t+n.between(50*time.Millisecond, 300*time.Millisecond), "mend %s | %s", a, b)
		}
	case 11:
		a, b := n.sides()
		n.add(at, "link %s %s %s, latency %dms, loss %d%%, rate %dKB", a, n.pick(">", "|"), b, 1+n.rng.IntN(200), n.rng.IntN(20), 20+n.rng.IntN(1000))
		n.add(end, "heal network")
	case 12:
		for t := at; t < end; t += n.between(20*time.Millisecond, 500*time.Millisecond) {
			n.add(t, "reset %s | all clients", n.machines())
		}
	case 13:
		switch n.rng.IntN(3) {
		case 0:
			n.add(at, "hang disk %s", n.pick("leader", one))
		case 1:
			n.add(at, "slow disk %s, sync %dms", some, 1+n.rng.IntN(300))
		case 2:
			n.add(at, "fail disk %s", n.pick("leader", one))
		}
		n.add(end, "repair disk all")
	case 14:
		n.add(at, "fill disk %s, free %dKB", some, n.rng.IntN(5000))
		n.add(end, "repair disk all")
	case 16:
		n.add(at, "stop %s", n.pick("leader", one))
		n.add(end, "start all")
	case 17: // one that is away, comes back, and dies again
		n.add(at, "kill %s", one)
		n.add(end, "start %s", one)
		for range 1 + n.rng.IntN(3) {
			end += n.between(100*time.Millisecond, 1500*time.Millisecond)
			n.add(end, "%s %s", n.pick("kill", "power off"), one)
			end += n.between(10*time.Millisecond, 300*time.Millisecond)
			n.add(end, "start %s", one)
		}
	case 15:
		// One in three goes wrong slowly: by up to 1.2 s a second.
		if sign, by := n.pick("", "-"), 1+n.rng.IntN(3600); by%3 == 0 {
			n.add(at, "drift clock %s, gains %s%dms", some, sign, by/3)
		} else {
			n.add(at, "jump clock %s, by %s%ds", some, sign, by)
		}
		if n.rng.IntN(2) == 0 {
			n.add(end, "set clock %s", some)
		}
	}
}
