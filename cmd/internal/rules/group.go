package rules

import (
	"errors"
	"fmt"
	"slices"

	"github.com/impossibledb/idb/shardgroup/leader"
)

// Machine is one replica of a state machine, as a Group steps it.
type Machine interface {
	// Apply takes committed entries in order, some of which it may have seen,
	// and answers each; nil for those it had.
	Apply(entries []*Entry) ([]any, error)
	Applied() uint64
	// Flush makes durable what is applied.
	Flush() error
	// Crash forgets what is not durable (or, if spare, loses only memory) and
	// opens the machine again.
	Crash(spare bool) error
	// Install takes the other machine's state, which is ahead, durably.
	Install(from Machine) error
}

// Entry is an entry of a group's log.
type Entry struct {
	Index, Term uint64
	Stamp       []byte // leader.Stamp of the proposer's term
	Data        []byte // empty: a term's first entry, or the proposer's barrier
	believed    uint64 // the proposer's term, for checks that trust no stamp
}

// What becomes of a proposal that is not answered by the machine.
var (
	errNotLeader = errors.New("not the leader; nothing was done")
	errLost      = errors.New("leadership was lost; the outcome is unknown")
	errVoid      = errors.New("void: proposed in another term")
)

// Group is a log and the nodes that agree on it, by the rules of Raft in their
// shortest form: a leader has a majority's votes for its term, a voter votes
// for logs as good as its own, an entry of the leader's term that a majority
// holds is committed with all before it. Logs and terms are on disk; what else
// a node knows is lost in a crash.
//
// The rules of a shard group's leader are package leader's, and what package
// shardgroup does with them is done here in its order.
type Group struct {
	run   *Run
	net   *Net
	name  string
	nodes []*Node

	log      []*Entry              // committed by somebody, in order
	onCommit func(e *Entry)        // called once for each, in order
	onReady  func(n *Node)         // n begins to serve as leader
	onLost   func(n *Node)         // n's leadership ends, or n has crashed
	check    func(e *Entry, a any) // called with each answer of each machine
}

// Node is one member.
type Node struct {
	g    *Group
	name string
	m    Machine

	// On disk.
	log    []*Entry // log[i].Index is i+1
	term   uint64   // largest heard of
	marker uint64   // the machine has been flushed up to here; Raft starts behind it

	// In memory.
	up      bool
	life    int
	leads   bool // Raft leads in term
	commit  uint64
	next    uint64   // of the log, for the machine
	match   []uint64 // how much of the leader's log each node holds
	futures []future
	notices []bool // of leadership, not yet looked at
	opening bool   // the barrier is on its way; notices wait
	ready   uint64 // the term that is served
	waits   []wait // for the machine to be at an index
}

type future struct {
	index uint64
	done  func(answer any, err error)
}

type wait struct {
	index uint64
	then  func()
}

func newGroup(run *Run, net *Net, name string, machines []Machine) *Group {
	g := &Group{run: run, net: net, name: name}
	for i, m := range machines {
		g.nodes = append(g.nodes, &Node{g: g, name: fmt.Sprintf("%s/n%d", name, i+1), m: m, up: true, next: 1})
	}
	return g
}

func (g *Group) majority() int { return len(g.nodes)/2 + 1 }

// any is a random node.
func (g *Group) any() *Node { return g.nodes[g.run.IntN(len(g.nodes))] }

// anyLeader is a random node that believes to lead, or nil.
func (g *Group) anyLeader() *Node {
	at := g.run.IntN(len(g.nodes))
	for i := range g.nodes {
		if n := g.nodes[(at+i)%len(g.nodes)]; n.up && n.leads {
			return n
		}
	}
	return nil
}

// Elect lets a node ask some of the others for their votes.
func (g *Group) Elect(c *Node, reach int) {
	if !c.up {
		return
	}
	c.stepDown()
	c.term++
	term, votes := c.term, 1
	asked := g.run.Perm(len(g.nodes))
	for _, i := range asked[:min(reach, len(asked))] {
		v := g.nodes[i]
		if v == c || !v.up {
			continue
		}
		if v.term >= term { // it has voted, or follows a later leader
			c.term = max(c.term, v.term)
			continue
		}
		v.stepDown()
		v.term = term
		if c.asGoodAs(v) {
			votes++
		}
	}
	if c.term != term {
		votes = 0
	}
	if votes < g.majority() {
		g.run.Say("%s is not elected in term %d", c.name, c.term)
		return
	}
	g.run.Met("terms", 1)
	c.leads = true
	c.match = make([]uint64, len(g.nodes))
	g.run.Say("%s is elected in term %d", c.name, c.term)
	c.append(nil, nil, 0) // Raft's own first entry
	c.notices = append(c.notices, true)
}

func (c *Node) asGoodAs(v *Node) bool {
	a, b := c.lastTerm(), v.lastTerm()
	return a > b || a == b && len(c.log) >= len(v.log)
}

func (n *Node) lastTerm() uint64 {
	if len(n.log) == 0 {
		return 0
	}
	return n.log[len(n.log)-1].Term
}

// stepDown ends Raft's leadership. Entries that it knows to be committed will
// be answered by the machine, the others not at all.
func (n *Node) stepDown() {
	if !n.leads {
		return
	}
	n.leads = false
	n.notices = append(n.notices, false)
	kept := n.futures[:0]
	var lost []future
	for _, f := range n.futures {
		if f.index <= n.commit {
			kept = append(kept, f)
		} else {
			lost = append(lost, f)
		}
	}
	n.futures = kept
	for _, f := range lost {
		f.done(nil, errLost)
	}
}

// append puts an entry at the end of a leader's log.
func (n *Node) append(data, stamp []byte, believed uint64) uint64 {
	e := &Entry{Index: uint64(len(n.log) + 1), Term: n.term, Data: data, Stamp: stamp, believed: believed}
	n.log = append(n.log, e)
	n.advance()
	return e.Index
}

// Propose hands an entry to the node's Raft. Whatever the proposer believes,
// it gets the term in which Raft leads.
func (n *Node) Propose(data []byte, believed uint64, done func(answer any, err error)) {
	if !n.leads {
		done(nil, errNotLeader)
		return
	}
	var stamp []byte
	if len(data) > 0 {
		stamp = leader.Stamp(believed)
	}
	n.g.run.Say("%s appends entry %d of term %d", n.name, len(n.log)+1, n.term)
	index := uint64(len(n.log) + 1)
	n.futures = append(n.futures, future{index, done})
	n.append(data, stamp, believed)
}

// Replicate sends some of a leader's log to one node, or tells the leader that
// it is none any more.
func (g *Group) Replicate(l, f *Node) {
	if !l.leads || !f.up || l == f {
		return
	}
	if f.term > l.term {
		g.run.Say("%s hears of term %d", l.name, f.term)
		l.stepDown()
		l.term = f.term
		return
	}
	f.follow(l.term)
	same := 0
	for same < len(f.log) && same < len(l.log) && f.log[same] == l.log[same] {
		same++
	}
	upto := same
	if len(l.log) > same {
		upto += 1 + g.run.IntN(len(l.log)-same)
	}
	if upto > same {
		f.log = append(f.log[:same:same], l.log[same:upto]...)
	}
	f.commit = max(f.commit, min(l.commit, uint64(upto)))
	for i, n := range g.nodes {
		if n == f {
			l.match[i] = max(l.match[i], uint64(upto))
		}
	}
	if upto > same {
		g.run.Say("%s has %d entries of %s, %d committed", f.name, upto, l.name, f.commit)
	}
	l.advance()
}

// follow accepts a leader of a term that is not below the node's.
func (n *Node) follow(term uint64) {
	if term > n.term || n.leads {
		n.stepDown()
		n.term = term
	}
}

// advance commits what a majority holds.
func (n *Node) advance() {
	held := make([]uint64, 0, 8)
	for i, o := range n.g.nodes {
		if o == n {
			held = append(held, uint64(len(n.log)))
		} else {
			held = append(held, n.match[i])
		}
	}
	slices.Sort(held)
	k := held[len(held)-n.g.majority()]
	if k <= n.commit || n.log[k-1].Term != n.term {
		return
	}
	n.commit = k
	for i := uint64(1); i <= k; i++ {
		e := n.log[i-1]
		if i <= uint64(len(n.g.log)) {
			if n.g.log[i-1] != e {
				n.g.run.Fail("the model of Raft is wrong: entry %d was committed twice", i)
				return
			}
			continue
		}
		n.g.log = append(n.g.log, e)
		n.g.run.Met("entries", 1)
		n.g.onCommit(e)
	}
}

// Notice lets a node look at what Raft has said about its leadership, as
// shardgroup's watchLeadership does.
func (n *Node) Notice() {
	if !n.up || n.opening || len(n.notices) == 0 {
		return
	}
	leads := n.notices[0]
	n.notices = n.notices[1:]
	if !leads {
		n.lose()
		return
	}
	n.opening = true
	n.Propose(nil, 0, func(answer any, err error) {
		n.opening = false
		term, ok := answer.(uint64)
		if err != nil || !ok || !n.leads || n.term != term {
			return // the next notice says so
		}
		n.g.run.Say("%s serves term %d", n.name, term)
		n.g.run.Met("terms served", 1)
		n.g.onReady(n)
		n.ready = term
	})
}

func (n *Node) lose() {
	if n.ready != 0 {
		n.g.run.Say("%s serves no more", n.name)
	}
	n.ready = 0
	n.g.onLost(n)
}

// Apply hands some committed entries to the machine.
func (n *Node) Apply(most int) {
	if !n.up || n.next > n.commit {
		return
	}
	upto := min(n.commit, n.next+uint64(n.g.run.IntN(most)))
	entries := n.log[n.next-1 : upto]
	n.g.run.Say("%s applies %d to %d", n.name, n.next, upto)
	answers, err := n.m.Apply(entries)
	if err != nil {
		n.g.run.Fail("%s: entries %d to %d: %w", n.name, n.next, upto, err)
		return
	}
	for i, e := range entries {
		if answers[i] != nil {
			n.g.check(e, answers[i])
		}
	}
	n.next = upto + 1
	var done []func()
	kept := n.futures[:0]
	for _, f := range n.futures {
		if f.index > upto {
			kept = append(kept, f)
			continue
		}
		answer := answers[f.index-entries[0].Index]
		if answer == errVoid {
			done = append(done, func() { f.done(nil, errVoid) })
		} else {
			done = append(done, func() { f.done(answer, nil) })
		}
	}
	n.futures = kept
	waits := n.waits
	n.waits = nil
	for _, w := range waits {
		if w.index <= n.m.Applied() {
			done = append(done, w.then)
		} else {
			n.waits = append(n.waits, w)
		}
	}
	for _, f := range done {
		f()
	}
}

// Flush makes the machine's state durable; Raft's marker may still be an older
// one when the power goes.
func (n *Node) Flush() {
	if !n.up {
		return
	}
	at := n.m.Applied()
	n.g.run.Must("flush", n.m.Flush())
	if n.g.run.Once(4) {
		at = n.marker
	}
	n.marker = max(n.marker, at)
	n.g.run.Say("%s is flushed up to %d, marker %d", n.name, n.m.Applied(), n.marker)
}

// Crash takes a node down. Nobody gets an answer.
func (n *Node) Crash(spare bool) {
	if !n.up {
		return
	}
	n.g.run.Say("%s crashes, applied %d, marker %d, memory tables spared: %v", n.name, n.m.Applied(), n.marker, spare)
	n.g.run.Met("crashes", 1)
	n.up, n.leads, n.ready, n.opening = false, false, 0, false
	n.life++
	n.futures, n.notices, n.waits = nil, nil, nil
	n.g.onLost(n)
	n.g.run.Must("opening after a crash", n.m.Crash(spare))
}

// Start brings a node up again: its log is whole, its state what was flushed.
func (n *Node) Start() {
	if n.up {
		return
	}
	n.up = true
	n.commit, n.next = n.marker, n.marker+1
	n.g.run.Say("%s starts behind %d with its state at %d", n.name, n.marker, n.m.Applied())
	if n.m.Applied() < n.marker {
		n.g.run.Fail("%s has its state at %d, flushed was %d", n.name, n.m.Applied(), n.marker)
	}
}

// Install sends a leader's state to a node that is behind.
func (g *Group) Install(l, f *Node) {
	at := l.m.Applied()
	if !l.leads || !f.up || l == f || f.term > l.term || f.m.Applied() >= at {
		return
	}
	f.follow(l.term)
	if len(f.futures) > 0 {
		return // Raft first hands the machine what it knows to be committed
	}
	g.run.Say("%s installs the state of %s at %d", f.name, l.name, at)
	if !g.run.Must("install", f.m.Install(l.m)) {
		return
	}
	g.run.Met("installs", 1)
	if uint64(len(f.log)) < at || f.log[at-1] != l.log[at-1] {
		f.log = slices.Clone(l.log[:at])
	}
	f.commit, f.next, f.marker = max(f.commit, at), max(f.next, at+1), max(f.marker, at)
}

// Confirm proves that a node still leads the term it serves, and that its
// machine holds everything acknowledged before the call: shardgroup's
// ReadIndex, with a round of its own for every read.
func (n *Node) Confirm(done func(err error)) {
	if n.ready == 0 {
		done(errNotLeader)
		return
	}
	term, commit, life := n.ready, n.commit, n.life
	round, verdict := leader.NewRound(len(n.g.nodes), true)
	decide := func(v leader.Verdict) {
		switch {
		case v != leader.Won && v != leader.Lost:
			return
		case v == leader.Lost || !n.leads || n.term != term || n.ready != term:
			done(errNotLeader)
		case n.m.Applied() >= commit:
			done(nil)
		default:
			n.waits = append(n.waits, wait{commit, func() { done(nil) }})
		}
	}
	if verdict == leader.Won {
		decide(verdict)
		return
	}
	for _, v := range n.g.nodes {
		if v == n {
			continue
		}
		asked := false // an answer counts once, however often it arrives
		n.g.net.Send(n.name, v.name, "who leads?", func() {
			if !v.up {
				return
			}
			yes := v.term <= term
			n.g.net.Send(v.name, n.name, confirmation{term, yes}, func() {
				if !n.up || n.life != life || asked {
					return
				}
				asked = true
				decide(round.Vote(yes))
			})
		})
	}
}

type confirmation struct {
	term uint64
	yes  bool
}

func (c confirmation) String() string { return fmt.Sprintf("term %d confirmed: %v", c.term, c.yes) }

// Settle ends all faults: every node is up, one leads and serves, all hold and
// have applied everything that was committed.
func (g *Group) Settle() {
	for _, n := range g.nodes {
		n.Start()
	}
	for range 100 {
		if g.run.fault != nil {
			return
		}
		l := g.serving()
		if l == nil {
			for _, n := range g.nodes {
				if n.leads {
					l = n
				}
			}
		}
		if l == nil {
			g.Elect(g.any(), len(g.nodes))
		}
		g.pump()
		if l = g.serving(); l != nil && l.commit == uint64(len(l.log)) && g.level(l) {
			return
		}
	}
	g.run.Fail("%s does not settle", g.name)
}

// serving is the leader, if it serves and nobody knows better.
func (g *Group) serving() *Node {
	for _, n := range g.nodes {
		if n.leads && n.ready == n.term && n.ready != 0 {
			for _, o := range g.nodes {
				if o.term > n.term {
					return nil
				}
			}
			return n
		}
	}
	return nil
}

func (g *Group) level(l *Node) bool {
	for _, n := range g.nodes {
		if n.next != l.commit+1 || len(n.notices) > 0 || n.opening {
			return false
		}
	}
	return true
}

// pump lets logs, machines and notices move on everywhere.
func (g *Group) pump() {
	for range 4 {
		for _, l := range g.nodes {
			for _, f := range g.nodes {
				g.Replicate(l, f)
			}
		}
		for _, n := range g.nodes {
			n.Notice()
			n.Apply(64)
		}
	}
}
