package rules

import (
	"fmt"
	"slices"
	"time"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/history"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
)

// Cuts steps reads of several groups at once beside transactions and single
// writes: production coordinators of cuts, over leaders that keep writes back in
// package leader's memory, forget their holds when they change, and let them
// expire.
var Cuts = ring{"cuts", func(r *Run, pool *enginePool) { runTxns(r, pool, true, noMistake) }}

// cutHoldTime is how long a hold lasts: some are over before the promise comes.
const cutHoldTime = 30 * time.Millisecond

// keep keeps a command back, if a hold says so.
func (g *txnGroup) keep(c *fsm.Command, done func(fsm.Result)) bool {
	if !g.memory.Held(c) || g.run.mistake == cutUnheld {
		return false
	}
	g.held = append(g.held, &logged{*c, done})
	g.run.Met("writes kept back", 1)
	return true
}

// letGo proposes what no hold keeps back any more.
func (g *txnGroup) letGo() {
	g.memory.Expire(g.run.wall)
	held := g.held
	g.held = nil
	for _, e := range held {
		if g.memory.Held(&e.cmd) {
			g.held = append(g.held, e)
		} else {
			g.propose(e.cmd, e.done)
		}
	}
}

// holdDrained is shardgroup's Hold.
func (g *txnGroup) holdDrained(done func(txn.Held)) {
	g.letGo()
	token, upto, ok := g.memory.Hold(g.run.wall.Add(cutHoldTime), []placement.CollectionID{1})
	if !ok {
		return
	}
	h := txn.Held{Term: g.term, Token: token}
	answer := func(err error) {
		if err != nil {
			return
		}
		holders, clock := g.m.Undecided([]placement.CollectionID{1})
		h.Clock = clock
		for _, o := range holders {
			h.Undecided = append(h.Undecided, txn.Open{ID: o.ID, Home: o.Home})
		}
		if g.run.mistake == cutUnlisted {
			h.Undecided = nil
		}
		done(h)
	}
	if g.memory.Landed(upto) {
		answer(nil)
		return
	}
	g.waits = append(g.waits, drained{upto, answer})
}

// redeem is shardgroup's Redeem.
func (g *txnGroup) redeem(m txn.CutMessage, done func(ok bool)) {
	ok := g.memory.Redeem(m.Term, m.Token, g.run.wall, m.At)
	if !ok && g.run.mistake == cutUnbroken {
		_, ok = g.memory.Promise(m.At)
	}
	if !ok {
		g.run.Met("promises refused", 1)
		done(false)
		return
	}
	p := &fsm.Promise{To: m.At, Epoch: 1}
	_, p.Partitions = g.m.Owned()
	g.propose(fsm.Command{Promise: p}, func(r fsm.Result) { done(r.Wire.Error == nil) })
	g.letGo()
}

// cutDriver carries the messages of one cut.
type cutDriver struct {
	s     *txnRun
	c     *txn.Cut
	asked map[txn.ID]bool
	done  func()
	ended bool
}

func (d *cutDriver) send(ms []txn.CutMessage) {
	s := d.s
	for _, m := range ms {
		switch m.Step {
		case txn.CutHold:
			g := s.groups[m.Group]
			ask(s, g, m, func(answer func(txn.Held)) { g.holdDrained(answer) }, func(h txn.Held) { d.send(d.c.Held(m, h)) })
		case txn.CutAsk:
			again := d.asked[m.ID]
			d.asked[m.ID] = true
			if again && s.mistake == cutAskedOnce {
				d.send(d.c.Asked(m, txn.Answer{}))
				continue
			}
			raise := m.At
			if s.mistake == cutRaisesNothing {
				raise = 0
			}
			home := s.of(m.Home)
			ask(s, home, m, func(answer func(txn.Answer)) {
				home.propose(fsm.Command{Txn: &fsm.Txn{ID: m.ID, Partition: m.Home, Epoch: 1, Settle: &fsm.Settle{Raise: raise}}},
					func(r fsm.Result) { answer(*r.Txn) })
			}, func(a txn.Answer) {
				s.pollStaged(m.ID, m.Home, raise, a, func(a txn.Answer) { d.send(d.c.Asked(m, a)) })
			})
		case txn.CutPromise:
			g := s.groups[m.Group]
			// Once: what is sent again finds its hold redeemed.
			s.net.Send("reader", g.name, m, func() {
				g.redeem(m, func(ok bool) {
					s.net.Send(g.name, "reader", ok, func() {
						if ok {
							d.c.Promised(m)
						} else {
							d.send(d.c.Lost(m))
						}
						d.look()
					})
				})
			})
		case txn.CutRelease:
			g := s.groups[m.Group]
			s.net.Send("reader", g.name, m, func() {
				g.memory.Release(m.Term, m.Token)
				g.letGo()
			})
		}
	}
	d.look()
}

func (d *cutDriver) look() {
	if d.ended {
		return
	}
	s := d.s
	switch _, ok := d.c.Outcome(); {
	case ok:
		d.ended = true
		s.Met("cuts", 1)
		if d.c.Rounds() > 0 {
			s.Met("cuts that asked", 1)
		}
		if d.c.Rounds() > 1 {
			s.Met("cuts that asked again", 1)
		}
		s.Met("commits found by a cut", d.c.Late())
		d.done()
	case d.c.Failed():
		d.ended = true
		s.Met("cuts refused", 1)
	}
}

// cutRead reads documents of several groups at a cut.
func (s *txnRun) cutRead() {
	// Homes are mostly elsewhere: what is read in one or two groups is the hard part.
	groups := make([]placement.GroupID, 0, txnGroups)
	for _, g := range s.Perm(txnGroups)[:1+s.IntN(txnGroups)] {
		groups = append(groups, placement.GroupID(g))
	}
	var keys []docKey
	for _, k := range s.keys {
		if slices.Contains(groups, placement.GroupID(s.group(k.partition))) {
			keys = append(keys, k)
		}
	}
	c := s.begin()
	d := &cutDriver{s: s, c: txn.NewCut(groups), asked: map[txn.ID]bool{}}
	d.done = func() {
		c.at, _ = d.c.Outcome()
		read := func() {
			c.read(keys, func() {
				s.Met("cut reads", 1)
				c.end(history.Done, "")
			})
		}
		if s.Once(2) {
			read()
		} else {
			s.later = append(s.later, read)
		}
	}
	d.send(d.c.Begin())
}

// follow writes a document when a transaction has ended: one that another, which
// is not decided, is about to write too and has not locked yet. If that one
// commits, it comes after both.
func (s *txnRun) follow() {
	var next []docKey
	for _, d := range s.drivers {
		if part := d.parts[d.spec.Home]; part != nil && !d.told {
			for i := range part.Writes {
				next = append(next, docKey{d.spec.Home, 1, part.Writes[i].ID})
			}
		}
	}
	if len(next) == 0 {
		s.single()
		return
	}
	s.put(next[s.IntN(len(next))], func() {})
}

// comeToIt lets a reader that has a cut's timestamp begin to read at it.
func (s *txnRun) comeToIt() {
	if len(s.later) > 0 {
		i := s.IntN(len(s.later))
		read := s.later[i]
		s.later = slices.Delete(s.later, i, i+1)
		read()
	}
}

// pair is a client that writes one document and, as soon as it is told, another
// one of another group: who sees the second must see the first.
func (s *txnRun) pair() {
	first, second := s.keys[s.IntN(len(s.keys))], s.keys[s.IntN(len(s.keys))]
	s.put(first, func() { s.put(second, func() {}) })
}

// put writes one document without a transaction.
func (s *txnRun) put(k docKey, then func()) {
	c := s.begin()
	value := fmt.Sprintf("v%d", c.t.Client)
	body, err := doc.FromJSON(fmt.Appendf(nil, `{"v":%q}`, value))
	s.Must("body", err)
	c.t.Parts = []history.Part{{Input: history.Input{Key: k.id, Verb: history.Put, Value: value}}}
	c.save()
	g := s.of(k.partition)
	item := wire.WriteItem{RequestID: wire.RequestID{Time: uint64(c.at), Random: [16]byte{byte(c.t.Client), byte(c.t.Client >> 8), 15: 2}}, Op: wire.OpPut, ID: k.id, Body: body}
	ask(s, g, "write "+k.id, func(answer func(fsm.Result)) {
		g.propose(fsm.Command{Write: &fsm.Write{Partition: k.partition, Epoch: 1, Collection: 1, Item: item}}, func(r fsm.Result) {
			if r.Wire.Error != nil && r.Wire.Error.Code == wire.CodeLocked {
				s.Met("single writes at a lock", 1)
				return // it is sent again
			}
			answer(r)
		})
	}, func(r fsm.Result) {
		if r.Wire.Error != nil {
			c.end(history.Refused, r.Wire.Error.Code.String())
			return
		}
		c.end(history.Done, "")
		then()
	})
}
