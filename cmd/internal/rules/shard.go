package rules

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/leader"
	"github.com/impossibledb/idb/txn/hlc"
)

// Shards steps shard groups' machines and their leaders' memory.
var Shards = ring{"shard", runShard}

// What the run is made of. Everything is small, so that everything meets
// everything.
const (
	shardSteps      = 500
	shardPartitions = 3 // the last one is owned from epoch 2 on
	shardRequestTTL = 40 * time.Millisecond
	shardLead       = 20 * time.Millisecond // how far a ceiling is set above a promise
	shardWindow     = 2                     // entries in flight
	collectionGone  = 2                     // the one that may be dropped
)

// shardKeys are the documents, with those whose keys are neighbours in storage.
var shardKeys = []docKey{
	{0, 1, "a"}, {0, 1, "a\x00"}, {0, 1, "counter"}, {1, 1, "b"}, {2, 1, "c"}, {0, 2, "a"},
}

// counterKey is only ever incremented.
var counterKey = shardKeys[2]

// shardRun is one group under load.
type shardRun struct {
	*Run
	net     Net
	g       *Group
	model   *model
	leaders map[*Node]*shardLeader
	want    []any // the model's answer to each committed entry, by index from 1
	wall    time.Time
	acked   uint64 // largest index of an entry that somebody was told of
	writes  []*write
	reads   int
	dropped bool
	stables []stable
}

// shardLeader is what shardgroup keeps in a leader's process: the batcher over
// package leader's memory.
type shardLeader struct {
	n       *Node
	clock   *hlc.Clock
	memory  leader.Memory
	queue   []proposal
	taken   []*batch // have timestamps, not yet given to Raft
	flying  int
	drained []drained
	sweep   fsm.Sweep
}

type proposal struct {
	cmd  fsm.Command
	done func(index uint64, r fsm.Result, err error)
}

type batch struct {
	term  uint64
	props []proposal
}

type drained struct {
	upto uint64
	done func(err error)
}

// write is a client's: one request ID, any number of attempts.
type write struct {
	number int
	cmd    fsm.Command
	sent   int
	first  *wire.WriteResult // the first definite answer
}

// stable is what a reader was promised: the document at that time, for ever.
type stable struct {
	key  docKey
	at   hlc.Timestamp
	time uint64 // of the version seen; 0: none
	by   string
}

func runShard(r *Run, pool *enginePool) {
	size := []int{1, 3, 3, 3, 5}[r.IntN(5)]
	engines, group, err := pool.take(size, 1)
	if !r.Must("engines", err) {
		return
	}
	machines := make([]Machine, size)
	for i := range machines {
		if machines[i], err = openShard(engines[i], group); !r.Must("open", err) {
			return
		}
	}
	s := &shardRun{Run: r, model: newModel(), leaders: map[*Node]*shardLeader{}, wall: time.UnixMilli(1_000_000)}
	s.net = Net{run: r, lose: 8, keep: 8}
	s.g = newGroup(r, &s.net, "g", machines)
	s.g.onCommit = s.committed
	s.g.check = s.answered
	s.g.onReady = s.lead
	s.g.onLost = s.follow
	for _, n := range s.g.nodes {
		skew := time.Duration(r.IntN(120)-60) * time.Millisecond
		if r.Once(8) {
			skew *= 1000
		}
		s.leaders[n] = &shardLeader{n: n, clock: hlc.NewClock(func() time.Time { return s.wall.Add(skew) })}
	}
	s.g.Elect(s.g.nodes[0], size)
	s.g.Settle()
	s.nextEpoch()
	faults := []int{0, 1, 2, 4}[r.IntN(4)]
	r.Play(shardSteps, []choice{
		{30, s.net.Step},
		{20, s.replicate},
		{40, func() { s.move(s.g.any()) }},
		{14, s.clientWrites},
		{3, s.clientReads},
		{2, s.clientReadsAt},
		{3, func() { s.own(s.towards()) }},
		{1, s.nextEpoch},
		{faults, s.elect},
		{faults, s.crash},
		{2 * faults, s.start},
		{3, func() { s.g.any().Flush() }},
		{faults, s.install},
		{3, func() { s.wall = s.wall.Add(time.Duration(r.IntN(6)) * time.Millisecond) }},
	})
	s.settle()
	s.judge()
}

// replicate sends the leaders' logs to some nodes.
func (s *shardRun) replicate() {
	for _, l := range s.g.nodes {
		if l.up && l.leads {
			s.g.Replicate(l, s.g.any())
			s.g.Replicate(l, s.g.any())
		}
	}
}

// move lets a node do some of what it can do.
func (s *shardRun) move(n *Node) {
	n.Notice()
	l := s.leaders[n]
	if !s.Once(3) {
		s.take(l)
	}
	if !s.Once(3) {
		s.hand(l)
	}
	if !s.Once(3) {
		s.apply(n, 6)
	}
}

func (s *shardRun) elect() {
	if !s.Once(3) {
		return
	}
	s.g.Elect(s.g.any(), 2+s.IntN(len(s.g.nodes)))
	// Leaders that have not noticed are whom to ask.
	for _, n := range s.g.nodes {
		if s.leaders[n].memory.Term() != 0 && s.Once(2) {
			s.readsAt(n)
		}
	}
}

// committed runs the model.
func (s *shardRun) committed(e *Entry) {
	answer, err := s.model.apply(e)
	if err != nil {
		s.Fail("the model: %w", err)
	}
	s.want = append(s.want, answer)
	if answer == errVoid {
		s.Met("void entries", 1)
	}
	results, _ := answer.([]fsm.Result)
	for i := range results {
		if results[i].Wire.Duplicate {
			s.Met("retries of what was done", 1)
		}
		if e := results[i].Wire.Error; e != nil {
			s.Met("refused: "+e.Code.String(), 1)
		} else if results[i].Wire.Version > 0 {
			s.Met("writes", 1)
		}
	}
}

// answered compares what a machine has answered.
func (s *shardRun) answered(e *Entry, answer any) {
	if d := differ(answer, s.want[e.Index-1]); d != "" {
		s.Fail("entry %d: %s", e.Index, d)
	}
	s.Met("answers compared", 1)
}

func (s *shardRun) machine(n *Node) *fsm.Machine { return n.m.(*shardMachine).m }

func (s *shardRun) apply(n *Node, most int) {
	n.Apply(most)
	m := s.machine(n)
	s.leaders[n].clock.Observe(m.Latest())
	// Else no clock has to be as far, and what is sent now is refused as expired.
	if requests, _ := m.Horizons(); requests > max(m.Clock(), hlc.Timestamp(m.Youngest())) {
		s.Fail("%s: the horizon of request IDs is %v, ahead of the clock, %v, and of every ID", n.name, requests, m.Clock())
	}
}

// lead is shardgroup's becomeLeader.
func (s *shardRun) lead(n *Node) {
	m := s.machine(n)
	s.leaders[n].memory.Open(n.term, m.Clock(), m.Ceiling())
}

// follow is shardgroup's loseLeadership; after a crash it loses everything.
func (s *shardRun) follow(n *Node) {
	l := s.leaders[n]
	queue, waits := l.queue, l.drained
	l.queue, l.drained = nil, nil
	if !n.up {
		l.memory, l.taken, l.flying = leader.Memory{}, nil, 0
		return
	}
	l.memory.Shut()
	for _, p := range queue {
		p.done(0, fsm.Result{}, errNotLeader)
	}
	for _, w := range waits {
		w.done(errNotLeader)
	}
}

// propose queues a command.
func (s *shardRun) propose(l *shardLeader, c fsm.Command, done func(index uint64, r fsm.Result, err error)) {
	if !l.n.up || l.memory.Term() == 0 {
		done(0, fsm.Result{}, errNotLeader)
		return
	}
	l.queue = append(l.queue, proposal{c, done})
}

// take makes a batch of what waits and assigns timestamps.
func (s *shardRun) take(l *shardLeader) {
	if !l.n.up || l.memory.Term() == 0 || len(l.queue) == 0 || l.flying >= shardWindow {
		return
	}
	n := 1 + s.IntN(min(len(l.queue), 4))
	b := &batch{term: l.memory.Term(), props: slices.Clone(l.queue[:n])}
	l.queue = l.queue[n:]
	for i := range b.props {
		b.props[i].cmd.Time = l.memory.Assign(l.clock.Now())
	}
	l.memory.Send()
	l.flying++
	l.taken = append(l.taken, b)
	s.Say("%s gives %d commands timestamps up to %d in term %d", l.n.name, n, l.memory.Floor(), b.term)
}

// hand gives the oldest batch to Raft, which may have gone on to another term.
func (s *shardRun) hand(l *shardLeader) {
	if !l.n.up || len(l.taken) == 0 {
		return
	}
	b := l.taken[0]
	l.taken = l.taken[1:]
	cmds := make([]fsm.Command, len(b.props))
	for i := range b.props {
		cmds[i] = b.props[i].cmd
	}
	data, err := fsm.AppendEntry(nil, cmds)
	if !s.Must("encode", err) {
		return
	}
	index := uint64(len(l.n.log) + 1)
	l.n.Propose(data, b.term, func(answer any, err error) { s.landed(l, b, index, answer, err) })
}

// landed is the batcher's.
func (s *shardRun) landed(l *shardLeader, b *batch, index uint64, answer any, err error) {
	l.flying--
	results, ok := answer.([]fsm.Result)
	var waits []drained
	var why error
	if err == nil && ok {
		l.memory.Land()
		kept := l.drained[:0]
		for _, w := range l.drained {
			if l.memory.Landed(w.upto) {
				waits = append(waits, w)
			} else {
				kept = append(kept, w)
			}
		}
		l.drained = kept
	} else {
		if err == errVoid || err == errNotLeader {
			l.memory.Land()
		} else {
			l.memory.Lose(b.term)
		}
		waits, l.drained = l.drained, nil
		why = errNotLeader
	}
	for _, w := range waits {
		w.done(why)
	}
	for i, p := range b.props {
		switch {
		case err != nil:
			p.done(0, fsm.Result{}, err)
		default:
			p.done(index, results[i], nil)
		}
	}
}

// clientWrites sends a new write, or an old one again.
func (s *shardRun) clientWrites() {
	if len(s.writes) > 0 && s.Once(3) {
		s.send(s.writes[s.IntN(len(s.writes))])
		return
	}
	k := shardKeys[s.IntN(len(shardKeys))]
	w := &write{number: len(s.writes) + 1}
	item := wire.WriteItem{
		RequestID: wire.RequestID{Time: uint64(hlc.FromTime(s.wall)), Random: [16]byte{byte(w.number), byte(w.number >> 8), 3: byte(s.IntN(256)), 7: byte(s.IntN(256)), 15: 1}},
		ID:        k.id, ReturnDoc: s.Once(3),
	}
	item.Op = []wire.WriteOp{wire.OpPut, wire.OpPut, wire.OpUpsert, wire.OpUpsert, wire.OpInsert, wire.OpDelete, wire.OpRestore}[s.IntN(7)]
	if k == counterKey {
		item.Op = wire.OpUpsert
	}
	switch item.Op {
	case wire.OpPut, wire.OpInsert:
		item.Body = bodies[s.IntN(100)]
	case wire.OpUpdate, wire.OpUpsert:
		item.Body = increment
	case wire.OpRestore:
		item.RestoreVersion = uint64(1 + s.IntN(4))
	}
	switch s.IntN(12) {
	case 0:
		item.Cond = wire.CondAbsent
	case 1:
		item.Cond = wire.CondPresent
	case 2, 3: // of late, or nearly
		if last := s.model.newest(s.model.docs[k]); last != nil {
			item.IfVersion = max(1, last.number-uint64(s.IntN(2)))
		}
	case 4:
		item.IfVersion = uint64(1 + s.IntN(4))
	}
	if k == counterKey {
		item.Cond, item.IfVersion = 0, 0
	}
	epoch := placement.Epoch(2)
	if s.Once(6) {
		epoch = 1
	}
	w.cmd = fsm.Command{Write: &fsm.Write{Partition: k.partition, Epoch: epoch, Collection: k.collection, Item: item}}
	s.writes = append(s.writes, w)
	s.send(w)
}

func (w *write) String() string {
	i := &w.cmd.Write.Item
	return fmt.Sprintf("write %d, attempt %d: op %d on %d/%d/%q, epoch %d, condition %d, if version %d", w.number, w.sent, i.Op,
		w.cmd.Write.Partition, w.cmd.Write.Collection, i.ID, w.cmd.Write.Epoch, i.Cond, i.IfVersion)
}

// send is one attempt, to some node; a copy in the bag is a late one.
func (s *shardRun) send(w *write) {
	w.sent++
	n := s.towards()
	s.net.Send("client", n.name, w, func() {
		s.propose(s.leaders[n], w.cmd, func(index uint64, r fsm.Result, err error) {
			s.net.Send(n.name, "client", reply{w, r, err}, func() { s.told(w, index, r, err) })
		})
	})
}

// towards is a node that may lead, mostly.
func (s *shardRun) towards() *Node {
	if l := s.g.anyLeader(); l != nil && !s.Once(6) {
		return l
	}
	return s.g.any()
}

type reply struct {
	w   *write
	r   fsm.Result
	err error
}

func (r reply) String() string {
	if r.err != nil {
		return fmt.Sprintf("write %d: %v", r.w.number, r.err)
	}
	return fmt.Sprintf("write %d: %s", r.w.number, tell(r.r.Wire))
}

// told is a client with an answer: it must be the one it got before.
func (s *shardRun) told(w *write, index uint64, r fsm.Result, err error) {
	if err != nil {
		return // it may try again
	}
	if e := r.Wire.Error; e != nil && (e.Code == wire.CodeStaleEpoch || e.Code == wire.CodeOutcomeExpired || e.Code == wire.CodeCollectionNotFound) {
		return // says nothing about other attempts
	}
	s.acked = max(s.acked, index)
	if w.first == nil {
		w.first = &r.Wire
		return
	}
	a, b := *w.first, r.Wire
	a.Duplicate, b.Duplicate = false, false
	if tell(a) != tell(b) {
		s.Fail("write %d was answered %s, and then %s", w.number, tell(*w.first), tell(r.Wire))
	}
}

// clientReads reads the newest version of a document at a node.
func (s *shardRun) clientReads() {
	k, n := shardKeys[s.IntN(len(shardKeys))], s.towards()
	s.reads++
	since := s.acked
	s.net.Send("client", n.name, "read", func() {
		if !n.up {
			return
		}
		n.Confirm(func(err error) {
			if err != nil {
				return
			}
			d, err := s.machine(n).Get(fsm.ReadKey{Partition: k.partition, Epoch: 2, Collection: k.collection, ID: k.id}, fsm.At{}, true)
			s.read(k, since, n, d, err)
		})
	})
}

// read judges an answer: it must be what the log said at some moment between
// question and answer.
func (s *shardRun) read(k docKey, since uint64, n *Node, d wire.Document, err error) {
	code, time := codeOf(err), uint64(0)
	switch code {
	case wire.CodeOK:
		time = d.UpdatedAt
	case wire.CodeNotFound, wire.CodeCollectionNotFound, wire.CodeStaleEpoch:
	default:
		s.Fail("%s: reading %v: %w", n.name, k, err)
		return
	}
	s.Met("reads", 1)
	s.Say("%s reads %v: written at %d, %v", n.name, k, time, code)
	for at := since; at <= uint64(len(s.g.log)); at++ {
		owned := s.model.ownedAt[k.partition]
		dropped := s.model.dropped[k.collection]
		want := wire.CodeOK
		v := s.model.after(k, at)
		switch {
		case dropped != 0 && at >= dropped:
			want = wire.CodeCollectionNotFound
		case owned == 0 || at < owned:
			want = wire.CodeStaleEpoch
		case v == nil:
			want = wire.CodeNotFound
		}
		if want == code && (code != wire.CodeOK || uint64(v.time) == time) {
			return
		}
	}
	s.Fail("stale read: %s answered %v as written at %d (%v); the client had been told of entry %d before it asked", n.name, k, time, code, since)
}

func codeOf(err error) wire.Code {
	var e *fsm.Error
	switch {
	case err == nil:
		return wire.CodeOK
	case errors.As(err, &e):
		return e.Code
	}
	return wire.CodeInternal
}

// clientReadsAt reads everything at one time, as ReadAt promises it.
func (s *shardRun) clientReadsAt() { s.readsAt(s.towards()) }

func (s *shardRun) readsAt(n *Node) {
	l := s.leaders[n]
	if !n.up || l.memory.Term() == 0 {
		return
	}
	at := s.machine(n).Clock()
	switch s.IntN(6) {
	case 0, 1:
		at = l.clock.Now()
	case 2: // the time of another group's leader, which is ahead or behind
		at = s.leaders[s.g.any()].clock.Now()
	case 3: // some time ago
		at = at.Add(-time.Duration(s.IntN(12)) * time.Millisecond)
	}
	if at == 0 {
		return
	}
	life := n.life
	s.readAt(l, at, func(err error) {
		if err != nil || n.life != life {
			return
		}
		s.lookAt(n, at)
	})
}

// readAt is shardgroup's ReadAt: a ceiling at or above ts in the log, the floor
// raised to it, and everything below it applied.
func (s *shardRun) readAt(l *shardLeader, ts hlc.Timestamp, done func(err error)) {
	if s.machine(l.n).Ceiling() < ts {
		to := max(ts, l.clock.Now()).Add(shardLead)
		s.propose(l, fsm.Command{Ceiling: &fsm.Ceiling{To: to}}, func(_ uint64, _ fsm.Result, err error) {
			if err != nil {
				done(err)
				return
			}
			s.readAt(l, ts, done)
		})
		return
	}
	upto, ok := l.memory.Promise(ts)
	if !ok {
		done(errNotLeader)
		return
	}
	if l.memory.Landed(upto) {
		done(nil)
		return
	}
	l.drained = append(l.drained, drained{upto, done})
}

// lookAt reads at a promised time, by keys and by a scan, which must agree.
func (s *shardRun) lookAt(n *Node, at hlc.Timestamp) {
	m := s.machine(n)
	found := map[string]uint64{}
	for _, k := range shardKeys {
		d, err := m.Get(fsm.ReadKey{Partition: k.partition, Epoch: 2, Collection: k.collection, ID: k.id}, fsm.At{Time: at}, true)
		switch code := codeOf(err); code {
		case wire.CodeOK, wire.CodeVersionNotFound:
			s.stables = append(s.stables, stable{k, at, d.UpdatedAt, n.name})
			if code == wire.CodeOK && k.collection == 1 {
				found[k.id] = d.UpdatedAt
			}
		case wire.CodeHistoryExpired, wire.CodeCollectionNotFound, wire.CodeStaleEpoch:
		default:
			s.Fail("%s: reading %v at %d: %w", n.name, k, at, err)
		}
	}
	s.Say("%s reads everything at %d", n.name, at)
	docs, more, _, err := m.Scan(fsm.ScanSpec{Collection: 1, At: at, NoBody: true, Reverse: s.Once(2)})
	if codeOf(err) == wire.CodeHistoryExpired {
		return
	}
	if err != nil || more || len(docs) != len(found) {
		s.Fail("%s: a scan at %d found %d documents (%v), gets %d", n.name, at, len(docs), err, len(found))
		return
	}
	for _, d := range docs {
		if found[d.ID] != d.UpdatedAt {
			s.Fail("%s: a scan at %d has %q as of %d, a get as of %d", n.name, at, d.ID, d.UpdatedAt, found[d.ID])
		}
	}
}

// own is what a leader proposes for the group itself, as shardgroup's keeper.
func (s *shardRun) own(n *Node) {
	l := s.leaders[n]
	if !n.up || l.memory.Term() == 0 {
		return
	}
	m := s.machine(n)
	var c fsm.Command
	switch s.IntN(5) {
	case 0:
		c = m.DigestCommand()
	case 1, 2:
		now := l.clock.Now()
		h := &fsm.Horizon{History: []fsm.HistoryHorizon{{Collection: placement.CollectionID(1 + s.IntN(2)), At: now.Add(-time.Duration(s.IntN(8)) * time.Millisecond)}}}
		if s.Once(3) {
			requests, _ := m.Horizons()
			if to, ok := leader.Forget(requests, m.Clock(), m.Youngest(), now, shardRequestTTL); ok {
				h.RequestIDs = to
			}
		}
		c.Horizon = h
	case 3:
		if s.Once(3) && !s.dropped {
			s.dropped = true
			c.Drop = &fsm.Drop{Collection: collectionGone}
			break
		}
		fallthrough
	default:
		g, err := m.FindGarbage(&l.sweep, fsm.SweepLimits{Visit: 1 + s.IntN(20), Find: 1 + s.IntN(5)}, nil)
		if !s.Must("looking for garbage", err) || len(g.Collects) == 0 {
			return
		}
		c.Collect = &g.Collects[0]
		if s.Once(4) { // a mistaken one: versions picked blindly
			k := shardKeys[s.IntN(len(shardKeys))]
			for _, v := range s.model.docs[k] {
				key := mvcc.AppendTime(mvcc.AppendDocument(nil, 1, k.partition, k.collection, k.id), v.time)
				c.Collect.Keys = append(c.Collect.Keys, key[4:])
			}
		}
	}
	s.propose(l, c, func(uint64, fsm.Result, error) {})
}

// nextEpoch gives the group its partitions: two of them, then all.
func (s *shardRun) nextEpoch() {
	l := s.leaders[s.towards()]
	o := &fsm.Own{Epoch: 1, Partitions: []placement.PartitionID{0, 1}}
	if !s.Once(3) {
		o = &fsm.Own{Epoch: 2, Partitions: []placement.PartitionID{0, 1, 2}}
	}
	s.propose(l, fsm.Command{Own: o}, func(uint64, fsm.Result, error) {})
}

func (s *shardRun) crash() {
	if !s.Once(3) {
		return
	}
	if s.Once(10) { // the power of all of them
		for _, n := range s.g.nodes {
			n.Crash(false)
		}
		return
	}
	s.g.any().Crash(s.Once(2))
}

func (s *shardRun) start() {
	s.g.any().Start()
	if l := s.g.anyLeader(); l == nil && s.Once(2) {
		s.g.Elect(s.g.any(), len(s.g.nodes))
	}
}

func (s *shardRun) install() {
	if l := s.g.anyLeader(); l != nil {
		s.g.Install(l, s.g.any())
	}
}

// settle ends the faults and lets everything come to rest.
func (s *shardRun) settle() {
	for range 50 {
		s.g.Settle()
		if s.fault != nil {
			return
		}
		busy := len(s.net.bag) > 0
		s.net.Drain()
		for _, n := range s.g.nodes {
			l := s.leaders[n]
			for range 20 {
				s.take(l)
				s.hand(l)
			}
			busy = busy || len(l.queue)+len(l.taken)+l.flying > 0
		}
		if !busy {
			s.collectAll()
			return
		}
	}
	s.Fail("the group does not come to rest")
}

// collectAll has the leader collect until it finds nothing.
func (s *shardRun) collectAll() {
	for range 50 {
		n := s.g.serving()
		if n == nil || s.fault != nil {
			return
		}
		l := s.leaders[n]
		var sweep fsm.Sweep
		g, err := s.machine(n).FindGarbage(&sweep, fsm.SweepLimits{}, nil)
		if !s.Must("looking for garbage", err) || len(g.Collects) == 0 {
			return
		}
		for i := range g.Collects {
			s.propose(l, fsm.Command{Collect: &g.Collects[i]}, func(uint64, fsm.Result, error) {})
		}
		for len(l.queue)+len(l.taken) > 0 && l.memory.Term() != 0 && s.fault == nil {
			s.take(l)
			s.hand(l)
			s.g.Settle()
		}
	}
	s.Fail("garbage has no end")
}

// judge looks at everything at rest.
func (s *shardRun) judge() {
	if s.fault != nil {
		return
	}
	first := s.g.nodes[0].m.(*shardMachine)
	rows, err := first.rows()
	if !s.Must("reading rows", err) {
		return
	}
	for _, n := range s.g.nodes[1:] {
		other, err := n.m.(*shardMachine).rows()
		if !s.Must("reading rows", err) {
			return
		}
		if d := sameRows(rows, other); d != "" {
			s.Fail("n1 and %s hold different rows: %s", n.name, d)
			return
		}
	}
	digest := first.m.Stats().Digest
	for _, n := range s.g.nodes {
		st := s.machine(n).Stats()
		docs, size, versions := s.model.stats()
		switch {
		case st.Digest != digest:
			s.Fail("digests differ: %s has %016x, n1 %016x", n.name, st.Digest, digest)
		case st.Documents != docs || st.Bytes != size || st.Rows != versions:
			s.Fail("%s counts %d documents, %d bytes, %d versions; there are %d, %d, %d", n.name, st.Documents, st.Bytes, st.Rows, docs, size, versions)
		case st.Clock != s.model.clock || st.Ceiling != s.model.ceiling || st.Epoch != s.model.epoch || st.Partitions != len(s.model.owned):
			s.Fail("%s has clock %d, ceiling %d, epoch %d, %d partitions; the model %d, %d, %d, %d", n.name, st.Clock, st.Ceiling, st.Epoch, st.Partitions,
				s.model.clock, s.model.ceiling, s.model.epoch, len(s.model.owned))
		}
	}
	for _, versions := range s.model.docs {
		for _, v := range versions {
			if v.gone != 0 {
				s.Met("versions collected", 1)
			}
		}
	}
	s.Met("drops", len(s.model.dropped))
	s.Met("promises", len(s.stables))
	s.judgeRows(rows)
	s.judgePromises()
	s.judgeOnce()
}

func sameRows(a, b []row) string {
	for i := range max(len(a), len(b)) {
		switch {
		case i >= len(a):
			return fmt.Sprintf("%x only in the second", b[i].key)
		case i >= len(b):
			return fmt.Sprintf("%x only in the first", a[i].key)
		case !bytes.Equal(a[i].key, b[i].key):
			return fmt.Sprintf("%x and %x", a[i].key, b[i].key)
		case !bytes.Equal(a[i].value, b[i].value):
			return fmt.Sprintf("%x: %x and %x", a[i].key, a[i].value, b[i].value)
		}
	}
	return ""
}

// judgeRows compares what is stored with what the model keeps: nothing is
// missing, and space was reclaimed.
func (s *shardRun) judgeRows(rows []row) {
	at := 0
	var kept []*version
	var keys []docKey
	for _, k := range s.model.keys() {
		list := s.model.kept(k)
		slices.Reverse(list)
		for i, v := range list {
			kept, keys = append(kept, v), append(keys, k)
			horizon := s.model.horizons[k.collection]
			if i > 0 && list[i-1].time <= horizon || i == 0 && v.deleted && v.time <= horizon && len(list) == 1 {
				s.Fail("%v: the version written at %d is garbage below %d and was never collected", k, v.time, horizon)
			}
		}
	}
	for _, r := range rows {
		switch mvcc.Kind(r.key[4]) {
		case mvcc.KindDocument:
			k, err := mvcc.DecodeDocument(r.key[4:])
			if !s.Must("stored key", err) {
				return
			}
			if at >= len(kept) {
				s.Fail("stored and not in the model: %+v", k)
				return
			}
			have := docKey{k.Partition, k.Collection, k.ID}
			if have != keys[at] || k.Time != kept[at].time {
				s.Fail("stored is %v at %d, the model has %v at %d", have, k.Time, keys[at], kept[at].time)
				return
			}
			row, err := mvcc.DecodeRow(r.value)
			if !s.Must("stored row", err) {
				return
			}
			v := kept[at]
			if row.Version != v.number || row.Deleted != v.deleted || row.Created != v.created || !v.deleted && !bytes.Equal(row.Body, bodies[v.n]) {
				s.Fail("stored of %v is %+v, the model has %+v", have, row, v)
				return
			}
			at++
		}
	}
	if at != len(kept) {
		s.Fail("lost: %v at %d", keys[at], kept[at].time)
	}
	answers, err := s.g.nodes[0].m.(*shardMachine).m.Remembered()
	if s.Must("counting answers", err) && answers != len(s.model.answers) {
		s.Fail("%d answers are stored, %d are to be remembered", answers, len(s.model.answers))
	}
}

// judgePromises compares what readers saw at a time with the whole history.
func (s *shardRun) judgePromises() {
	for _, p := range s.stables {
		want := uint64(0)
		if v := s.model.at(p.key, p.at); v != nil {
			want = uint64(v.time)
		}
		if want != p.time {
			s.Fail("broken promise: at %d %s read %v as written at %d, and it was written at %d", p.at, p.by, p.key, p.time, want)
			return
		}
	}
}

// judgeOnce counts effects without the model's own memory of requests.
func (s *shardRun) judgeOnce() {
	sure, maybe := 0, 0
	for _, w := range s.writes {
		if n := s.model.effects[w.cmd.Write.Item.RequestID]; n > 1 {
			s.Fail("write %d took effect %d times", w.number, n)
		}
		k := docKey{w.cmd.Write.Partition, w.cmd.Write.Collection, w.cmd.Write.Item.ID}
		if k != counterKey {
			continue
		}
		switch {
		case w.first != nil && w.first.Error == nil:
			sure++
		case w.first == nil:
			maybe++
		}
	}
	total := 0
	for _, n := range s.g.nodes[:1] {
		d, err := s.machine(n).Get(fsm.ReadKey{Partition: counterKey.partition, Epoch: 2, Collection: counterKey.collection, ID: counterKey.id}, fsm.At{}, false)
		if err == nil {
			total = numberOf(d.Body)
		}
	}
	if total < sure || total > sure+maybe {
		s.Fail("the counter is at %d: %d increments were acknowledged, %d more may have been made", total, sure, maybe)
	}
}
