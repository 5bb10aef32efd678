package history

import (
	"fmt"
	"slices"
	"strings"
)

// StrictSerializability decides whether transactions over many documents can
// have taken effect one after the other, in an order that agrees with time.
// It builds the graph of what must come before what and looks for cycles,
// which is linear in the history, and names what it finds.
//
// The dependencies and the names G0, G1a, G1b, G1c and G2 are Adya's ("Weak
// consistency: a generalized theory and optimistic implementations for
// distributed transactions", 1999). How versions are recovered from lists that
// only grow, and G-single, internal and incompatible order, are those of Elle
// (Kingsbury and Alvaro, "Elle: inferring isolation anomalies from experimental
// observations", 2020). Documents also tell their versions, so for them the
// order is known and not inferred. Causal reverse is a later write seen without
// an earlier, acknowledged one.
type StrictSerializability struct {
	// AnyOrder leaves time and the clients' own order out: serializability.
	AnyOrder bool
	// Search bounds the edges that the search for short cycles looks at. The
	// verdict does not depend on it, only how short the cycle is that is shown.
	// Zero means 1 million.
	Search int
}

// Check judges the transactions.
func (c StrictSerializability) Check(txns []Transaction) Verdict {
	if c.Search == 0 {
		c.Search = 1_000_000
	}
	name := "strict serializability"
	if c.AnyOrder {
		name = "serializability"
	}
	var f found
	o := newOrders(txns, &f)
	g := newGraph(len(txns))
	o.edges(g)
	if !c.AnyOrder {
		o.processEdges(g)
		o.timeEdges(g)
	}
	s := cycles{o: o, g: g, budget: c.Search, f: &f, reported: map[int32]bool{}}
	s.search()
	edges, there := 0, 0
	for _, out := range g.out {
		edges += len(out)
	}
	for _, t := range o.there {
		if t {
			there++
		}
	}
	return Verdict{Checker: name, Judged: fmt.Sprintf("%d transactions on %d documents, %d of them took effect; %d edges",
		len(txns), len(o.keys), there, edges), Anomalies: f.ends()}
}

// cycles is one search.
type cycles struct {
	o        *orders
	g        *graph
	budget   int
	f        *found
	reported map[int32]bool // transactions of cycles that were reported
}

// search looks for cycles of ever more kinds of edges, so that each is named
// by the least that it takes.
func (c *cycles) search() {
	for _, level := range []kinds{
		setOf(WW),
		setOf(WW, WR),
		setOf(WW, WR, RW),
		setOf(WW, WR, RW, Process, RealTime),
	} {
		for _, component := range c.g.components(level) {
			if slices.ContainsFunc(component, func(v int32) bool { return c.reported[v] }) {
				continue // it has a worse cycle, which was reported
			}
			c.report(c.shortest(component, level), component)
		}
	}
}

// shortest is a short cycle in a component. One with a single anti-dependency
// says more than a shorter one with several.
func (c *cycles) shortest(component []int32, level kinds) []step {
	inside := make(map[int32]bool, len(component))
	for _, v := range component {
		inside[v] = true
	}
	var best []step
	try := func(first step, allowed kinds) {
		if back := c.g.path(first.to, first.from, allowed, inside, &c.budget); back != nil {
			cycle := c.g.collapse(append([]step{first}, back...))
			if len(cycle) < 2 {
				return
			}
			if best == nil || len(cycle) < len(best) {
				best = cycle
			}
		}
	}
	each := func(kind EdgeKind, allowed kinds) {
		for _, v := range component {
			if int(v) >= c.g.txns {
				continue
			}
			for _, a := range c.g.out[v] {
				if a.kind == kind && inside[a.to] && int(a.to) < c.g.txns && c.budget > 0 && (best == nil || len(best) > 2) {
					try(step{v, a}, allowed)
				}
			}
		}
	}
	if level.has(RW) {
		each(RW, level&^setOf(RW))
		if best == nil {
			each(RW, level)
		}
	}
	if best == nil {
		// Without anti-dependencies: every cycle has one of these.
		for _, kind := range []EdgeKind{WR, WW, Process} {
			if best == nil && level.has(kind) {
				each(kind, level)
			}
		}
	}
	if best == nil {
		// The budget is used up: any cycle will do.
		unbounded := 1 << 40
		for _, v := range component {
			if int(v) >= c.g.txns {
				continue
			}
			for _, a := range c.g.out[v] {
				if level.has(a.kind) && inside[a.to] {
					if back := c.g.path(a.to, v, level, inside, &unbounded); back != nil {
						return c.g.collapse(append([]step{{v, a}}, back...))
					}
				}
			}
		}
	}
	return best
}

// report names a cycle and says why each transaction comes before the next.
func (c *cycles) report(cycle []step, component []int32) {
	a := Anomaly{Name: c.name(cycle)}
	for i, s := range cycle {
		c.reported[s.from] = true
		a.Transactions = append(a.Transactions, c.o.txns[s.from])
		e := Edge{From: i, To: (i + 1) % len(cycle), Kind: s.kind, Why: c.why(s)}
		if s.key >= 0 {
			e.Key = c.o.keys[s.key].key
		}
		a.Cycle = append(a.Cycle, e)
	}
	txns := 0
	for _, v := range component {
		if int(v) < c.g.txns {
			txns++
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "no order explains these %d transactions", len(a.Transactions))
	if txns > len(a.Transactions) {
		fmt.Fprintf(&b, " (nor the %d that hang together with them)", txns)
	}
	b.WriteString(":")
	for i, t := range a.Transactions {
		fmt.Fprintf(&b, "\n  T%d: %s", i+1, t)
	}
	for _, e := range a.Cycle {
		fmt.Fprintf(&b, "\n  T%d before T%d (%s): %s", e.From+1, e.To+1, e.Kind, e.Why)
	}
	a.Text = b.String()
	c.f.add(a)
}

// why says in words how the edge is known.
func (c *cycles) why(s step) string {
	from, to := &c.o.txns[s.from], &c.o.txns[s.to]
	version := func(k *order, v int64) string {
		switch {
		case k.list && v == 0:
			return "the empty list"
		case k.list:
			if int(v) <= len(k.longest) {
				return fmt.Sprintf("element %q", k.longest[v-1])
			}
			return "an element that nobody read"
		case v == 0:
			return "no document"
		}
		return fmt.Sprintf("version %d", v)
	}
	switch s.kind {
	case Process:
		if from.Outcome == Done && from.Return <= to.Call {
			return fmt.Sprintf("client %d did one after the other", from.Client)
		}
		return fmt.Sprintf("client %d asked for this order", from.Client)
	case RealTime:
		return fmt.Sprintf("it had returned at %v, the other began at %v", from.Return, to.Call)
	}
	k := c.o.keys[s.key]
	a, b := version(k, s.old), version(k, s.new)
	switch s.kind {
	case WW:
		return fmt.Sprintf("it made %s of %s, the other %s", a, k.key, b)
	case WR:
		if k.list {
			return fmt.Sprintf("the other read its %s of %s", a, k.key)
		}
		if a == b {
			return fmt.Sprintf("the other read its %s of %s", a, k.key)
		}
		return fmt.Sprintf("it made %s of %s, the other read %s", a, k.key, b)
	default:
		if k.list {
			return fmt.Sprintf("it read %s before %s was there", k.key, b)
		}
		return fmt.Sprintf("it read %s of %s, the other made %s", a, k.key, b)
	}
}

// name is what the field calls the cycle.
func (c *cycles) name(cycle []step) string {
	count := map[EdgeKind]int{}
	keys := map[int32]bool{}
	for _, s := range cycle {
		count[s.kind]++
		if s.key >= 0 {
			keys[s.key] = true
		}
	}
	timed := count[RealTime] > 0
	suffix := ""
	switch {
	case timed:
		suffix = "-realtime"
	case count[Process] > 0:
		suffix = "-process"
	}
	switch {
	case count[RW] == 0 && count[WR] == 0:
		return "G0" + suffix
	case count[RW] == 0:
		return "G1c" + suffix
	case count[RW] == 1 && suffix == "" && len(keys) == 1 && count[WW] > 0:
		return "lost update"
	case count[RW] == 1 && len(cycle) == 2 && count[RealTime]+count[Process] == 1:
		return "stale read"
	case count[RW] == 1 && count[RealTime]+count[Process] == 1 && count[WR] > 0:
		return "causal reverse"
	case count[RW] == 1:
		return "G-single" + suffix
	}
	return "G2" + suffix
}
