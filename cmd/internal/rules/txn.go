package rules

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/history"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/leader"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// Transactions steps transactions over several groups: production machines and
// coordinators, over logs that lose what was not answered when leaders change,
// messages that are lost, doubled and late, and clients and coordinators that
// die at any step. What a group's replicas do with one log is runShard's.
var Transactions = ring{"transactions", func(r *Run, pool *enginePool) { runTxns(r, pool, false, noMistake) }}

// mistake is a rule of the protocol that a run breaks, to see that it is caught.
type mistake uint8

const (
	noMistake            mistake = iota
	decideEarly                  // decided with the first yes
	commitTooLow                 // the commit timestamp is not above the prepare timestamps
	abortAlone                   // past its deadline a participant aborts without asking home
	noTombstone                  // home answers "aborted" and does not write it down
	readsUnlocked                // what was read is not locked until the decision
	intentsIgnored               // readers at the newest pass intents over
	intentsIgnoredAt             // readers at a time pass intents over
	asksRaiseNothing             // an ask does not keep the commit above the time read at
	verifyNothing                // a read-only transaction is not verified
	forgottenEarly               // home's record is dropped with the first confirmation
	resolvedBeforeDecide         // participants are told "committed" before home has decided
	retriedAnew                  // a commit whose answer was lost is sent again as another
	rangesUnread                 // ranges are not validated
	firstCutMistake
)

// Mistakes with cuts.
const (
	cutUnheld        mistake = iota + firstCutMistake // a hold keeps nothing back
	cutUnlisted                                       // undecided transactions are not asked about
	lastMistake                                       // what follows is rare: scripts have it
	cutUnbroken                                       // promised with another term or token than the hold's
	cutRaisesNothing                                  // a cut's asks do not raise home's clock
	cutAskedOnce                                      // homes are not asked again after a commit was found
)

var mistakeNames = map[mistake]string{
	decideEarly: "decide with the first vote", commitTooLow: "C is not the maximum", abortAlone: "a yes-voter aborts alone",
	noTombstone: "abort without a tombstone", readsUnlocked: "reads are not locked", intentsIgnored: "latest reads ignore intents",
	intentsIgnoredAt: "reads at a time ignore intents", asksRaiseNothing: "asks do not raise the clock", verifyNothing: "read-only is not verified",
	forgottenEarly: "forgotten with the first confirmation", resolvedBeforeDecide: "resolve before decide", retriedAnew: "a retry under another ID",
	rangesUnread: "ranges are not validated",
	cutUnheld:    "a cut without holds", cutRaisesNothing: "a cut's asks do not raise the clock", cutAskedOnce: "a cut asks once",
	cutUnbroken: "a promise whose hold is broken", cutUnlisted: "a cut asks nobody",
}

const (
	txnGroups     = 3
	txnPartitions = 5
	txnSteps      = 700
	txnPatience   = 40 * time.Millisecond // until a deadline
)

// txnRun is several groups, and clients that use them.
type txnRun struct {
	*Run
	net     Net
	mistake mistake
	groups  []*txnGroup
	wall    time.Time
	number  int
	keys    []docKey

	open    []*call            // calls that have no answer yet
	drivers []*driver          // coordinators and recoveries
	busy    map[txn.ID]*driver // recoveries, one for a transaction and partition at most
	history []history.Transaction
	values  map[string]uint64 // versions by value, at the end
	stables []stable          // what was read at a time, for ever
	cuts    bool              // some read at cuts
	later   []func()          // what readers at cuts do when they come to it
}

// txnGroup is one shard group: a machine that is fed by a log.
type txnGroup struct {
	run    *txnRun
	name   string
	m      *fsm.Machine
	clock  *hlc.Clock
	skew   time.Duration
	memory leader.Memory
	term   uint64
	index  uint64
	log    []*logged // proposed, not applied
	waits  []drained
	held   []*logged // kept back by a hold
}

type logged struct {
	cmd  fsm.Command
	done func(fsm.Result) // nil: nobody is there any more
}

// call is a question that is asked again until it is answered.
type call struct {
	send func()
	done bool
}

// newTxnRun makes the groups, and nothing has happened yet; nil: it failed.
func newTxnRun(r *Run, pool *enginePool, cuts bool, m mistake) *txnRun {
	engines, first, err := pool.take(1, txnGroups)
	if !r.Must("engines", err) {
		return nil
	}
	s := &txnRun{Run: r, mistake: m, cuts: cuts, wall: time.UnixMilli(1_000_000), busy: map[txn.ID]*driver{}, values: map[string]uint64{}}
	s.net = Net{run: r, lose: 12, keep: 12}
	for i := range txnGroups {
		machine, err := openShard(engines[0], first+placement.GroupID(i))
		if !r.Must("open", err) {
			return nil
		}
		g := &txnGroup{run: s, name: fmt.Sprintf("g%d", i), m: machine.m, term: 1, skew: time.Duration(r.IntN(60)-30) * time.Millisecond}
		g.clock = hlc.NewClock(func() time.Time { return s.wall.Add(g.skew) })
		var owned []placement.PartitionID
		for p := range placement.PartitionID(txnPartitions) {
			if s.group(p) == i {
				owned = append(owned, p)
			}
		}
		g.memory.Open(1, 0, 0)
		s.groups = append(s.groups, g)
		g.propose(fsm.Command{Own: &fsm.Own{Epoch: 1, Partitions: owned}}, func(fsm.Result) {})
		g.apply(1)
	}
	for p := range placement.PartitionID(txnPartitions) {
		ids := []string{"a", "b"}[:1+int(p)%2]
		if cuts {
			ids = []string{"a", "b", "c"}
		}
		for _, id := range ids {
			s.keys = append(s.keys, docKey{p, 1, fmt.Sprintf("%s%d", id, p)})
		}
	}
	return s
}

func runTxns(r *Run, pool *enginePool, cuts bool, m mistake) {
	s := newTxnRun(r, pool, cuts, m)
	if s == nil {
		return
	}
	faults := []int{0, 1, 3}[r.IntN(3)]
	choices := []choice{
		{60, s.net.Step},
		{40, func() { s.groups[r.IntN(txnGroups)].apply(1 + r.IntN(3)) }},
		{5, s.transaction},
		{3, s.readOnly},
		{2, s.single},
		{3, s.latest},
		{3, s.past},
		{6, s.again},
		{8, s.tick},
		{3, s.recover},
		{faults, s.changeLeader},
		{faults, s.die},
		{10, func() { s.wall = s.wall.Add(time.Duration(r.IntN(4)) * time.Millisecond) }},
	}
	steps := txnSteps
	if cuts {
		// A cut is many messages: they must come to their end beside the others.
		steps = 2 * txnSteps
		choices = append(choices, choice{6, s.cutRead}, choice{12, s.transaction}, choice{2, s.pair}, choice{2, s.comeToIt}, choice{400, s.net.Step},
			choice{100, func() { s.groups[r.IntN(txnGroups)].apply(1 + r.IntN(3)) }})
	}
	r.Play(steps, choices)
	s.settle()
	s.judge()
}

func (s *txnRun) group(p placement.PartitionID) int    { return int(p) % txnGroups }
func (s *txnRun) of(p placement.PartitionID) *txnGroup { return s.groups[s.group(p)] }

// propose gives a command its timestamp and its place in the log.
func (g *txnGroup) propose(c fsm.Command, done func(fsm.Result)) {
	if g.keep(&c, done) {
		return
	}
	c.Time = g.memory.Assign(g.clock.Now())
	g.memory.Send()
	g.log = append(g.log, &logged{c, done})
}

// apply applies the next entries.
func (g *txnGroup) apply(n int) {
	for range min(n, len(g.log)) {
		e := g.log[0]
		g.log = g.log[1:]
		g.index++
		data, err := fsm.AppendEntry(nil, []fsm.Command{e.cmd})
		if !g.run.Must("encode", err) {
			return
		}
		results, err := g.m.Apply([]fsm.Entry{{Index: g.index, Term: g.term, Data: data}})
		if !g.run.Must(g.name+" applies", err) {
			return
		}
		g.clock.Observe(g.m.Clock())
		g.memory.Land()
		g.run.Say("%s applies %d at %d: %s", g.name, g.index, g.m.Clock(), describeTxn(&e.cmd, &results[0][0]))
		if e.done != nil {
			e.done(results[0][0])
		}
		waits := g.waits
		g.waits = nil
		for _, w := range waits {
			if g.memory.Landed(w.upto) {
				w.done(nil)
			} else {
				g.waits = append(g.waits, w)
			}
		}
	}
}

func describeTxn(c *fsm.Command, r *fsm.Result) string {
	what := "something"
	if t := c.Txn; t != nil {
		switch {
		case t.Prepare != nil:
			what = "prepare"
		case t.Decide != nil:
			what = fmt.Sprintf("decide at %d", t.Decide.MaxP)
		case t.Resolve != nil:
			what = fmt.Sprintf("resolve %v at %d", t.Resolve.Commit, t.Resolve.At)
		case t.Settle != nil:
			what = fmt.Sprintf("settle, abort %v, raise %d", t.Settle.Abort, t.Settle.Raise)
		case t.Commit != nil:
			what = "commit"
		case t.Forget != nil:
			what = "forget"
		case t.Confirm != nil:
			what = fmt.Sprintf("confirm at %d", t.Confirm.At)
		case t.Reject != nil:
			what = "reject"
		case t.Poll != nil:
			what = fmt.Sprintf("poll, deny %v, raise %d", t.Poll.Deny, t.Poll.Raise)
		}
		if t.Prepare != nil && len(t.Prepare.Participants) > 0 {
			what = "stage"
		}
		what = fmt.Sprintf("%s of %s at partition %d", what, t.ID, t.Partition)
	}
	if c.Write != nil {
		what = "write " + c.Write.Item.ID
	}
	if r.Txn != nil {
		return fmt.Sprintf("%s: %s at %d", what, r.Txn.State, r.Txn.At)
	}
	return what
}

// changeLeader forgets a leader's memory. Of what it had not been told is
// applied, some last part is lost; nobody hears of the rest.
func (s *txnRun) changeLeader() {
	if !s.Once(3) {
		return
	}
	g := s.groups[s.IntN(txnGroups)]
	g.log = g.log[:s.IntN(len(g.log)+1)]
	for _, e := range g.log {
		e.done = nil
	}
	waits := g.waits
	g.waits, g.held = nil, nil
	g.term++
	g.apply(len(g.log))
	g.memory = leader.Memory{}
	g.memory.Open(g.term, g.m.Clock(), g.m.Ceiling())
	g.skew = time.Duration(s.IntN(60)-30) * time.Millisecond
	for _, w := range waits {
		w.done(errNotLeader)
	}
	s.Say("%s changes its leader", g.name)
	s.Met("leader changes", 1)
}

// ask sends a question until it is answered once. at runs where it is asked,
// and may answer any number of times, or never.
func ask[T any](s *txnRun, to *txnGroup, what any, at func(answer func(T)), done func(T)) {
	c := &call{}
	c.send = func() {
		s.net.Send("somebody", to.name, what, func() {
			at(func(v T) {
				s.net.Send(to.name, "somebody", v, func() {
					if !c.done {
						c.done = true
						done(v)
					}
				})
			})
		})
	}
	s.open = append(s.open, c)
	c.send()
}

// again asks once more.
func (s *txnRun) again() {
	s.open = slices.DeleteFunc(s.open, func(c *call) bool { return c.done })
	if len(s.open) > 0 {
		s.open[s.IntN(len(s.open))].send()
	}
}

// die lets a client or a coordinator vanish: nobody waits for its answers.
func (s *txnRun) die() {
	switch {
	case s.Once(2) && len(s.open) > 0:
		i := s.IntN(len(s.open))
		s.open[i].done = true
		s.open = slices.Delete(s.open, i, i+1)
	case len(s.drivers) > 0:
		i := s.IntN(len(s.drivers))
		s.drivers[i].dead = true
		s.drivers = slices.Delete(s.drivers, i, i+1)
		s.Met("coordinators dead", 1)
	}
}

// command sends one command of a transaction to its group.
func (s *txnRun) command(x *fsm.Txn, done func(txn.Answer)) {
	g := s.of(x.Partition)
	x.Epoch = 1
	s.net.Send("coordinator", g.name, x.ID, func() {
		g.propose(fsm.Command{Txn: x}, func(r fsm.Result) {
			if r.Wire.Error != nil {
				s.Say("refused: %v %s", r.Wire.Error.Code, r.Detail)
				return
			}
			s.net.Send(g.name, "coordinator", r.Txn.State, func() { done(*r.Txn) })
		})
	})
}

// promise makes reads of documents at t stable, as shardgroup's BeginRead.
func (g *txnGroup) promise(keys []fsm.ReadKey, t hlc.Timestamp, done func(error)) {
	if g.m.Ceiling() < t {
		g.propose(fsm.Command{Ceiling: &fsm.Ceiling{To: t.Add(5 * time.Millisecond)}}, func(fsm.Result) { g.promise(keys, t, done) })
		return
	}
	upto, ok := g.memory.Promise(t)
	for _, e := range slices.Backward(g.log) {
		if e.cmd.Time <= t && e.cmd.Touches(keys) {
			g.run.Met("promises that wait for their documents", 1)
			break
		}
		g.run.Met("commands that a promise passes over", 1)
		upto--
	}
	switch {
	case !ok:
		done(errNotLeader)
	case g.memory.Landed(upto):
		done(nil)
	default:
		g.waits = append(g.waits, drained{upto, done})
	}
}

// clear settles, with their homes, the transactions that are about to write
// what is read: at a time t, or (0) now.
func (s *txnRun) clear(g *txnGroup, keys []fsm.ReadKey, t hlc.Timestamp, done func()) {
	var met []fsm.Holder
	for _, h := range g.m.IntentsOn(keys) {
		if t == 0 || h.At <= t {
			met = append(met, h)
		}
	}
	if t == 0 && s.mistake == intentsIgnored || t != 0 && s.mistake == intentsIgnoredAt {
		met = nil
	}
	left := len(met)
	if left == 0 {
		done()
		return
	}
	one := func() {
		if left--; left == 0 {
			done()
		}
	}
	for _, h := range met {
		s.Met("readers at an intent", 1)
		told := func(a txn.Answer) {
			if a.State == txn.None {
				one() // the old version is current, or stays so up to t
				return
			}
			g.propose(fsm.Command{Txn: &fsm.Txn{ID: h.ID, Partition: h.Partition, Epoch: 1,
				Resolve: &fsm.Resolve{Commit: a.State == txn.Committed, At: a.At}}}, func(fsm.Result) { one() })
		}
		home := s.of(h.Home)
		if t == 0 {
			ask(s, home, "what became of it?", func(answer func(txn.Answer)) {
				a, err := home.m.Decision(h.Home, 1, h.ID)
				s.Must("decision", err)
				answer(a)
			}, func(a txn.Answer) { s.pollStaged(h.ID, h.Home, 0, a, told) })
			continue
		}
		raise := t
		if s.mistake == asksRaiseNothing {
			raise = 0
		}
		ask(s, home, "keep it above", func(answer func(txn.Answer)) {
			home.propose(fsm.Command{Txn: &fsm.Txn{ID: h.ID, Partition: h.Home, Epoch: 1, Settle: &fsm.Settle{Raise: raise}}},
				func(r fsm.Result) { answer(*r.Txn) })
		}, func(a txn.Answer) { s.pollStaged(h.ID, h.Home, raise, a, told) })
	}
}

// pollStaged goes on with home's answer, and asks the participants if it is to.
func (s *txnRun) pollStaged(id txn.ID, home placement.PartitionID, above hlc.Timestamp, first txn.Answer, told func(txn.Answer)) {
	q := txn.NewInquiry(home, false, above)
	var send func(ms []txn.Message)
	look := func(ms []txn.Message) {
		if a, known := q.Outcome(); known {
			told(a)
			return
		}
		send(ms)
	}
	send = func(ms []txn.Message) {
		for _, m := range ms {
			s.Met("inquiries about what is staged", 1)
			g := s.of(m.To)
			x := fsm.MessageTxn(id, m)
			x.Epoch = 1
			ask(s, g, m, func(answer func(txn.Answer)) {
				g.propose(fsm.Command{Txn: x}, func(r fsm.Result) { answer(*r.Txn) })
			}, func(a txn.Answer) {
				if _, known := q.Outcome(); !known {
					look(q.Answer(m, a))
				}
			})
		}
	}
	look(q.Answer(q.Begin()[0], first))
}

// txnClient is one transaction of a client.
type txnClient struct {
	s     *txnRun
	t     history.Transaction
	at    hlc.Timestamp
	born  hlc.Timestamp
	parts map[placement.PartitionID]*txn.Part
	home  placement.PartitionID
	retry int
}

func (s *txnRun) begin() *txnClient {
	s.number++
	c := &txnClient{s: s, parts: map[placement.PartitionID]*txn.Part{}}
	c.t = history.Transaction{Client: s.number, Name: fmt.Sprintf("t%d", s.number), Call: time.Duration(s.steps) * time.Microsecond, Outcome: history.Unknown}
	c.at = s.groups[s.IntN(txnGroups)].clock.Now()
	c.born = c.at
	s.history = append(s.history, history.Transaction{})
	c.t.Seq = 0
	return c
}

func (c *txnClient) part(p placement.PartitionID) *txn.Part {
	if c.parts[p] == nil {
		c.parts[p] = &txn.Part{}
	}
	return c.parts[p]
}

// end tells the history what the client was told.
func (c *txnClient) end(o history.Outcome, why string) {
	c.t.Return, c.t.Outcome, c.t.Reason = time.Duration(c.s.steps)*time.Microsecond, o, why
	c.save()
	c.s.Say("t%d ends: %v %s", c.t.Client, o, why)
	c.s.Met("transactions "+o.String(), 1)
}

func (c *txnClient) save() { c.s.history[c.t.Client-1] = c.t }

// some picks some of the keys.
func (s *txnRun) some(most int) []docKey {
	all := s.Perm(len(s.keys))[:1+s.IntN(most)]
	keys := make([]docKey, len(all))
	for i, at := range all {
		keys[i] = s.keys[at]
	}
	return keys
}

// read reads documents at the transaction's time, group by group, and then goes on.
func (c *txnClient) read(keys []docKey, then func()) {
	s := c.s
	type seen struct {
		key docKey
		d   wire.Document
		ok  bool
	}
	left := len(keys)
	if left == 0 {
		then()
		return
	}
	for _, k := range keys {
		g := s.of(k.partition)
		rk := []fsm.ReadKey{{Partition: k.partition, Epoch: 1, Collection: 1, ID: k.id}}
		ask(s, g, "read "+k.id, func(answer func(seen)) {
			g.promise(rk, c.at, func(err error) {
				if err != nil {
					return
				}
				s.clear(g, rk, c.at, func() {
					d, err := g.m.Get(rk[0], fsm.At{Time: c.at}, false)
					if code := codeOf(err); code != wire.CodeOK && code != wire.CodeVersionNotFound {
						s.Fail("reading %v at %d: %w", k, c.at, err)
						return
					}
					answer(seen{k, d, err == nil})
				})
			})
		}, func(v seen) {
			p := history.Part{Input: history.Input{Key: v.key.id, Verb: history.Get}, Output: history.Output{Outcome: history.Missing}}
			at := hlc.Timestamp(0)
			if v.ok {
				at = hlc.Timestamp(v.d.UpdatedAt)
				p.Output = history.Output{Version: v.d.Version, Document: true, Value: valueOf(v.d.Body)}
			}
			c.t.Parts = append(c.t.Parts, p)
			part := c.part(v.key.partition)
			part.Reads = append(part.Reads, txn.Read{Collection: 1, ID: v.key.id, At: at})
			if left--; left == 0 {
				then()
			}
		})
	}
}

// transaction reads some documents, or a range of them, and writes some.
func (s *txnRun) transaction() {
	c := s.begin()
	keys := s.some(3)
	if s.Once(5) {
		keys = s.keys // all of them, as a range
	}
	c.read(keys, func() {
		if len(keys) == len(s.keys) {
			for p := range placement.PartitionID(txnPartitions) {
				part := c.part(p)
				part.Reads = nil
				if s.mistake != rangesUnread {
					part.Ranges = []txn.Range{{Collection: 1, At: c.at}}
				}
			}
		}
		for i, k := range s.some(3) {
			w := txn.Write{Collection: 1, ID: k.id}
			h := history.Part{Input: history.Input{Key: k.id, Value: fmt.Sprintf("v%d-%d", c.t.Client, i), Verb: history.Put}}
			body, err := doc.FromJSON(fmt.Appendf(nil, `{"v":%q}`, h.Input.Value))
			s.Must("body", err)
			w.Ops = []txn.Op{{Op: wire.OpPut, Body: body}}
			if i == 0 {
				c.home = k.partition
			}
			part := c.part(k.partition)
			part.Writes = append(part.Writes, w)
			c.t.Parts = append(c.t.Parts, h)
		}
		c.save()
		c.commit(txn.ID{Time: uint64(c.at), Random: [16]byte{byte(c.t.Client), byte(c.t.Client >> 8), 15: 1}})
	})
}

func valueOf(body []byte) string {
	var d struct {
		V string `idb:"v" json:"v"`
	}
	if doc.Raw(body).Decode(&d) != nil {
		return ""
	}
	return d.V
}

// driver carries a coordinator's messages.
type driver struct {
	s     *txnRun
	id    txn.ID
	c     *txn.Coordinator
	parts map[placement.PartitionID]*txn.Part
	spec  txn.Spec
	born  hlc.Timestamp
	out   map[txn.Message]bool // on their way
	dead  bool
	told  bool
	early bool
	done  func(txn.Answer)
}

// commit sends the transaction to a coordinator.
func (c *txnClient) commit(id txn.ID) {
	s := c.s
	spec := txn.Spec{ID: id, Home: c.home, Deadline: hlc.FromTime(s.wall.Add(txnPatience)), Ordered: s.Once(3), Parallel: s.Once(2)}
	for p := range c.parts {
		if p != c.home {
			spec.Participants = append(spec.Participants, p)
		}
	}
	slices.Sort(spec.Participants)
	told := func(a txn.Answer) {
		switch a.State {
		case txn.Committed:
			c.end(history.Done, "")
			if s.cuts {
				s.follow()
			}
		case txn.Aborted, txn.Expired:
			why := "aborted"
			if a.Conflict != nil {
				why = fmt.Sprintf("%s %s", a.Conflict.ID, a.Conflict.Detail)
			}
			c.end(history.Refused, why)
		}
	}
	one := true
	for _, p := range spec.Participants {
		one = one && s.group(p) == s.group(c.home)
	}
	if one {
		x := &fsm.Txn{ID: id, Partition: c.home, Commit: &fsm.Commit{}}
		for _, p := range slices.Sorted(maps.Keys(c.parts)) {
			x.Commit.Parts = append(x.Commit.Parts, fsm.PartitionPart{Partition: p, Part: *c.parts[p]})
		}
		s.Met("commits in one entry", 1)
		ended := false
		cl := &call{}
		cl.send = func() {
			if s.mistake == retriedAnew {
				c.retry++
				y := *x
				y.ID.Random[7] = byte(c.retry)
				x = &y
			}
			s.command(x, func(a txn.Answer) {
				cl.done = true
				if !ended {
					ended = true
					told(a)
				}
			})
		}
		s.open = append(s.open, cl)
		cl.send()
		return
	}
	s.Met("commits over several groups", 1)
	d := &driver{s: s, id: id, c: txn.NewCoordinator(spec), parts: c.parts, spec: spec, born: c.born, out: map[txn.Message]bool{}, done: told}
	s.drivers = append(s.drivers, d)
	d.send(d.c.Begin())
	if s.Once(6) { // the same commit, sent again through another node
		e := &driver{s: s, id: id, c: txn.NewCoordinator(spec), parts: c.parts, spec: spec, born: c.born, out: map[txn.Message]bool{}, done: told}
		s.drivers = append(s.drivers, e)
		e.send(e.c.Begin())
	}
}

func (d *driver) send(ms []txn.Message) {
	s := d.s
	for _, m := range ms {
		x := fsm.MessageTxn(d.id, m)
		switch m.Step {
		case txn.Prepare:
			part := *d.parts[m.To]
			if s.mistake == readsUnlocked {
				part.Reads = nil
			}
			x.Prepare = &fsm.Prepare{Home: d.spec.Home, Deadline: d.spec.Deadline, Born: d.born, Part: part}
			if m.To == d.spec.Home {
				s.Met("staged", 1)
				x.Prepare.Participants = d.spec.Participants
			}
		case txn.Decide:
			x.Decide = &fsm.Decide{MaxP: m.At, Participants: d.spec.Participants}
			if p := d.parts[m.To]; p != nil {
				x.Decide.Part = *p
			}
			if s.mistake == commitTooLow {
				x.Decide.MaxP = 0
			}
		case txn.AbortIfUndecided:
			if s.mistake == noTombstone {
				g := s.of(m.To)
				a, err := g.m.Decision(m.To, 1, d.id)
				if s.Must("decision", err); a.State == txn.None {
					s.net.Send(g.name, "coordinator", "aborted", func() { d.answered(m, txn.Answer{State: txn.Aborted}) })
					continue
				}
			}
		}
		d.out[m] = true
		s.command(x, func(a txn.Answer) { d.answered(m, a) })
	}
}

func (d *driver) answered(m txn.Message, a txn.Answer) {
	if d.dead {
		return
	}
	s := d.s
	delete(d.out, m)
	next := d.c.Answer(m, a)
	switch {
	case s.mistake == decideEarly && !d.spec.Parallel && m.Step == txn.Prepare && a.State == txn.Prepared && !d.early:
		d.early = true
		next = append(next, txn.Message{Step: txn.Decide, To: d.spec.Home, At: a.At})
	case s.mistake == resolvedBeforeDecide && m.Step == txn.Prepare && a.State == txn.Prepared:
		next = append(next, txn.Message{Step: txn.Resolve, To: m.To, At: a.At, Commit: true})
	case s.mistake == forgottenEarly && m.Step == txn.Resolve && m.Commit:
		// Forgotten, the request ID is what is left, and it expires.
		home := s.of(d.spec.Home)
		d.send([]txn.Message{{Step: txn.Forget, To: d.spec.Home}})
		home.propose(fsm.Command{Horizon: &fsm.Horizon{RequestIDs: hlc.Timestamp(d.id.Time) + 1}}, func(fsm.Result) {})
	}
	d.send(next)
	if o, known := d.c.Outcome(); known && !d.told {
		d.told = true
		d.done(o)
	}
}

// tick lets a coordinator look at its clock: what has no answer is lost.
func (s *txnRun) tick() {
	s.drivers = slices.DeleteFunc(s.drivers, func(d *driver) bool { return d.c.Ended() })
	if len(s.drivers) == 0 {
		return
	}
	d := s.drivers[s.IntN(len(s.drivers))]
	out := slices.SortedFunc(maps.Keys(d.out), func(a, b txn.Message) int {
		return cmp.Or(cmp.Compare(a.Step, b.Step), cmp.Compare(a.To, b.To), cmp.Compare(a.At, b.At))
	})
	for _, m := range out {
		d.c.Lost(m)
	}
	clear(d.out)
	d.send(d.c.Tick(hlc.FromTime(s.wall)))
}

// recover is a leader that looks for what was left behind.
func (s *txnRun) recover() { s.recoverAt(s.groups[s.IntN(txnGroups)], hlc.FromTime(s.wall)) }

func (s *txnRun) recoverAt(g *txnGroup, now hlc.Timestamp) {
	for _, h := range g.m.Holders() {
		if h.Deadline > now {
			continue
		}
		if s.mistake == abortAlone {
			s.command(&fsm.Txn{ID: h.ID, Partition: h.Partition, Resolve: &fsm.Resolve{}}, func(txn.Answer) {})
			continue
		}
		r, first := txn.NewRecovery(h.ID, h.Home, h.Partition)
		s.rescue(h.ID, h.Home, r, first)
	}
	for _, u := range g.m.Unfinished(now) {
		r, first := txn.NewFinish(u.ID, u.Home, u.Record)
		s.rescue(u.ID, u.Home, r, first)
	}
}

func (s *txnRun) rescue(id txn.ID, home placement.PartitionID, r txn.Recovery, first []txn.Message) {
	s.Met("recoveries", 1)
	d := &driver{s: s, id: id, c: r.Coordinator, spec: txn.Spec{Home: home}, out: map[txn.Message]bool{}, told: true}
	s.drivers = append(s.drivers, d)
	d.send(first)
}

// readOnly reads documents at one time, and then asks whether all of it is
// still the newest.
func (s *txnRun) readOnly() {
	c := s.begin()
	keys := s.some(len(s.keys))
	c.read(keys, func() {
		groups := map[int][]placement.PartitionID{}
		for _, p := range slices.Sorted(maps.Keys(c.parts)) {
			groups[s.group(p)] = append(groups[s.group(p)], p)
		}
		left, changed := len(groups), false
		if s.mistake == verifyNothing {
			c.end(history.Done, "")
			return
		}
		for _, i := range slices.Sorted(maps.Keys(groups)) {
			g := s.groups[i]
			var parts []fsm.PartitionPart
			var rks []fsm.ReadKey
			for _, p := range groups[i] {
				parts = append(parts, fsm.PartitionPart{Partition: p, Part: *c.parts[p]})
				for _, r := range c.parts[p].Reads {
					rks = append(rks, fsm.ReadKey{Partition: p, Epoch: 1, Collection: 1, ID: r.ID})
				}
			}
			ask(s, g, "is it the newest?", func(answer func(bool)) {
				s.clear(g, rks, 0, func() {
					no, err := g.m.Verify(parts, 1)
					s.Must("verify", err)
					answer(no == nil)
				})
			}, func(same bool) {
				changed = changed || !same
				if left--; left > 0 {
					return
				}
				if changed {
					c.end(history.Refused, "changed meanwhile")
					return
				}
				s.Met("read-only transactions", 1)
				c.end(history.Done, "")
			})
		}
	})
}

// single writes one document, without a transaction.
func (s *txnRun) single() { s.put(s.keys[s.IntN(len(s.keys))], func() {}) }

// latest reads the newest version of one document.
func (s *txnRun) latest() {
	c := s.begin()
	k := s.keys[s.IntN(len(s.keys))]
	g := s.of(k.partition)
	rk := []fsm.ReadKey{{Partition: k.partition, Epoch: 1, Collection: 1, ID: k.id}}
	ask(s, g, "read the newest "+k.id, func(answer func(wire.Document)) {
		s.clear(g, rk, 0, func() {
			d, err := g.m.Get(rk[0], fsm.At{}, false)
			if code := codeOf(err); code != wire.CodeOK && code != wire.CodeNotFound {
				s.Fail("reading %v: %w", k, err)
				return
			}
			answer(d)
		})
	}, func(d wire.Document) {
		p := history.Part{Input: history.Input{Key: k.id, Verb: history.Get}, Output: history.Output{Outcome: history.Missing}}
		if d.Version > 0 {
			p.Output = history.Output{Version: d.Version, Document: true, Value: valueOf(d.Body)}
		}
		c.t.Parts = []history.Part{p}
		c.end(history.Done, "")
	})
}

// past reads one document at a time that was just now, and is believed.
func (s *txnRun) past() {
	k := s.keys[s.IntN(len(s.keys))]
	g := s.of(k.partition)
	at := s.groups[s.IntN(txnGroups)].clock.Now()
	rk := []fsm.ReadKey{{Partition: k.partition, Epoch: 1, Collection: 1, ID: k.id}}
	ask(s, g, "read at a time "+k.id, func(answer func(stable)) {
		g.promise(rk, at, func(err error) {
			if err != nil {
				return
			}
			s.clear(g, rk, at, func() {
				d, err := g.m.Get(rk[0], fsm.At{Time: at}, true)
				if code := codeOf(err); code != wire.CodeOK && code != wire.CodeVersionNotFound {
					s.Fail("reading %v at %d: %w", k, at, err)
					return
				}
				answer(stable{k, at, d.UpdatedAt, g.name})
			})
		})
	}, func(v stable) { s.stables = append(s.stables, v) })
}

// judgePast compares what was read at a time with the whole history.
func (s *txnRun) judgePast() {
	for _, p := range s.stables {
		versions, _, err := s.of(p.key.partition).m.History(fsm.ReadKey{Partition: p.key.partition, Epoch: 1, Collection: 1, ID: p.key.id}, 0, 10_000, true)
		if codeOf(err) != wire.CodeNotFound && !s.Must("history", err) {
			return
		}
		want := uint64(0)
		for _, v := range versions {
			if v.UpdatedAt <= uint64(p.at) {
				want = v.UpdatedAt
				break
			}
		}
		if want != p.time {
			s.Fail("broken promise: at %d %s read %s as written at %d, and it was written at %d", p.at, p.by, p.key.id, p.time, want)
			return
		}
	}
	s.Met("reads at a time", len(s.stables))
}

// settle ends the faults: everything that is prepared is decided and resolved.
func (s *txnRun) settle() {
	s.net.lose, s.net.keep = 0, 0
	for range 60 {
		s.steps++
		s.net.Drain()
		for _, g := range s.groups {
			g.letGo()
			g.apply(len(g.log))
		}
		busy := len(s.net.bag) > 0
		s.wall = s.wall.Add(5 * time.Millisecond)
		s.open = slices.DeleteFunc(s.open, func(c *call) bool { return c.done })
		for _, c := range s.open {
			c.send()
			busy = true
		}
		for range s.drivers {
			s.tick()
		}
		busy = busy || len(s.drivers) > 0
		for _, g := range s.groups {
			held := len(g.m.Holders()) + len(g.m.Unfinished(hlc.Max))
			busy = busy || held > 0 || len(g.log)+len(g.held) > 0
			if held > 0 && len(s.drivers) == 0 {
				s.recoverAt(g, hlc.Max)
			}
		}
		if !busy || s.fault != nil {
			return
		}
	}
	for _, g := range s.groups {
		for _, h := range g.m.Holders() {
			s.Fail("a lock that nobody lets go of: %s at partition %d", h.ID, h.Partition)
		}
	}
	s.Fail("it does not come to rest: %d calls, %d coordinators", len(s.open), len(s.drivers))
}

// judge looks for an order in which all of it can have happened.
func (s *txnRun) judge() {
	if s.fault != nil {
		return
	}
	last := history.Transaction{Client: s.number + 1, Name: "at rest", Call: time.Duration(s.steps+1) * time.Microsecond, Return: time.Duration(s.steps+2) * time.Microsecond}
	for _, k := range s.keys {
		versions, _, err := s.of(k.partition).m.History(fsm.ReadKey{Partition: k.partition, Epoch: 1, Collection: 1, ID: k.id}, 0, 10_000, false)
		if codeOf(err) == wire.CodeNotFound {
			continue
		}
		if !s.Must("history", err) {
			return
		}
		for i, v := range versions {
			value := valueOf(v.Body)
			if old, twice := s.values[value]; twice {
				s.Fail("%s was written as version %d and as version %d", value, old, v.Version)
			}
			s.values[value] = v.Version
			if i > 0 && versions[i-1].UpdatedAt <= v.UpdatedAt {
				s.Fail("%s: version %d is not younger than version %d", k.id, versions[i-1].Version, v.Version)
			}
		}
		last.Parts = append(last.Parts, history.Part{Input: history.Input{Key: k.id, Verb: history.Get},
			Output: history.Output{Version: versions[0].Version, Document: true, Value: valueOf(versions[0].Body)}})
	}
	var all []history.Transaction
	for i := range s.history {
		t := &s.history[i]
		if t.Client == 0 {
			continue // it never came to write
		}
		done := 0
		writes := 0
		for j := range t.Parts {
			p := &t.Parts[j]
			if !p.Input.Writes() {
				continue
			}
			writes++
			if v := s.values[p.Input.Value]; v != 0 {
				done++
				p.Output.Version = v
			}
		}
		switch {
		case done != 0 && done != writes:
			s.Fail("t%d: %d of %d writes took effect", t.Client, done, writes)
		case t.Outcome == history.Refused && done > 0:
			s.Fail("t%d was refused (%s) and took effect", t.Client, t.Reason)
		case t.Outcome == history.Done && done != writes:
			s.Fail("t%d was committed and is lost", t.Client)
		case t.Outcome == history.Unknown && done > 0:
			t.Outcome, t.Return = history.Unknown, time.Duration(s.steps)*time.Microsecond
		case t.Outcome == history.Unknown:
			continue
		}
		all = append(all, *t)
	}
	all = append(all, last)
	s.judgePast()
	if err := (history.StrictSerializability{}).Check(all).Err(); err != nil {
		s.Fail("%w", errors.Join(err))
	}
}
