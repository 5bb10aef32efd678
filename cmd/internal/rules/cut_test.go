package rules

import (
	"fmt"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/history"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// stage plays a script: everything happens at once where it is called, one thing
// after the other. Partition p is group p's; its documents are ap, bp and cp.
type stage struct {
	t *testing.T
	*txnRun
	all []history.Transaction
}

func newStage(t *testing.T, pool *enginePool, m mistake) *stage {
	r := newRun(1, nil)
	s := &stage{t: t, txnRun: newTxnRun(r, pool, true, m)}
	if s.txnRun == nil {
		t.Fatal(r.fault)
	}
	for _, g := range s.groups {
		g.skew = 0
	}
	return s
}

func (s *stage) now() time.Duration {
	s.steps++
	return time.Duration(s.steps) * time.Microsecond
}

func (s *stage) run(g *txnGroup) {
	g.apply(len(g.log))
	if s.fault != nil {
		s.t.Fatal(s.fault)
	}
}

// do applies a command and answers its result; nil if it is kept back.
func (s *stage) do(p placement.PartitionID, c fsm.Command) *fsm.Result {
	g := s.of(p)
	var out *fsm.Result
	g.propose(c, func(r fsm.Result) { out = &r })
	s.run(g)
	return out
}

func (s *stage) body(v string) []byte {
	b, err := doc.FromJSON(fmt.Appendf(nil, `{"v":%q}`, v))
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// write writes a document, and is over when that is done; false: it is kept back.
func (s *stage) write(name, id string) bool {
	p := placement.PartitionID(id[1] - '0')
	t := history.Transaction{Client: len(s.all) + 1, Name: name, Call: s.now(), Outcome: history.Done}
	item := wire.WriteItem{RequestID: wire.RequestID{Time: uint64(s.of(p).clock.Now()), Random: [16]byte{byte(t.Client), 15: 2}}, Op: wire.OpPut, ID: id, Body: s.body(name)}
	r := s.do(p, fsm.Command{Write: &fsm.Write{Partition: p, Epoch: 1, Collection: 1, Item: item}})
	if r == nil {
		return false
	}
	if r.Wire.Error != nil {
		s.t.Fatalf("%s: %+v", name, r)
	}
	t.Return = s.now()
	t.Parts = []history.Part{{Input: history.Input{Key: id, Verb: history.Put, Value: name}, Output: history.Output{Version: r.Wire.Version}}}
	s.all = append(s.all, t)
	return true
}

// across is a transaction with an intent in group 0 and its home elsewhere.
type across struct {
	s            *stage
	t            history.Transaction
	id           txn.ID
	home         placement.PartitionID
	doc, homeDoc string
	p, at        hlc.Timestamp
}

func (s *stage) step(x *across, p placement.PartitionID, set func(*fsm.Txn)) txn.Answer {
	cmd := &fsm.Txn{ID: x.id, Partition: p, Epoch: 1}
	set(cmd)
	r := s.do(p, fsm.Command{Txn: cmd})
	if r == nil || r.Txn == nil {
		s.t.Fatalf("%s: %+v", x.t.Name, r)
	}
	return *r.Txn
}

func (s *stage) prepare(name, doc, homeDoc string) *across {
	x := &across{s: s, doc: doc, homeDoc: homeDoc, home: placement.PartitionID(homeDoc[1] - '0')}
	x.t = history.Transaction{Client: 100 + int(name[0]), Name: name, Call: s.now(), Outcome: history.Done}
	x.id = txn.ID{Time: uint64(s.of(0).clock.Now()), Random: [16]byte{name[0], 15: 1}}
	a := s.step(x, 0, func(c *fsm.Txn) {
		c.Prepare = &fsm.Prepare{Home: x.home, Deadline: hlc.Max, Part: x.part(doc)}
	})
	if a.State != txn.Prepared {
		s.t.Fatalf("%s: %v", name, a)
	}
	x.p = a.At
	return x
}

func (x *across) part(id string) txn.Part {
	return txn.Part{Writes: []txn.Write{{Collection: 1, ID: id, Ops: []txn.Op{{Op: wire.OpPut, Body: x.s.body(x.t.Name)}}}}}
}

// commit decides, and its client is told.
func (x *across) commit() {
	a := x.s.step(x, x.home, func(c *fsm.Txn) {
		c.Decide = &fsm.Decide{MaxP: x.p, Participants: []placement.PartitionID{0}, Part: x.part(x.homeDoc)}
	})
	if a.State != txn.Committed {
		x.s.t.Fatalf("%s: %v", x.t.Name, a)
	}
	x.at = a.At
	x.t.Return = x.s.now()
	x.s.all = append(x.s.all, x.t)
}

func (x *across) resolve() {
	x.s.step(x, 0, func(c *fsm.Txn) { c.Resolve = &fsm.Resolve{Commit: x.at != 0, At: x.at} })
}

// Messages of a cut.

func (s *stage) hold(c *txn.Cut, m txn.CutMessage) []txn.CutMessage {
	var out []txn.CutMessage
	answered := false
	s.groups[m.Group].holdDrained(func(h txn.Held) { answered, out = true, c.Held(m, h) })
	if !answered {
		s.t.Fatal("no answer to a hold")
	}
	return out
}

// ask asks home; asked before, and the mistake is to ask once, nobody is.
func (s *stage) ask(c *txn.Cut, m txn.CutMessage) []txn.CutMessage {
	if s.mistake == cutAskedOnce && c.Rounds() > 1 {
		return c.Asked(m, txn.Answer{})
	}
	raise := m.At
	if s.mistake == cutRaisesNothing {
		raise = 0
	}
	r := s.do(m.Home, fsm.Command{Txn: &fsm.Txn{ID: m.ID, Partition: m.Home, Epoch: 1, Settle: &fsm.Settle{Raise: raise}}})
	return c.Asked(m, *r.Txn)
}

func (s *stage) redeem(c *txn.Cut, m txn.CutMessage) bool {
	ok := false
	s.groups[m.Group].redeem(m, func(v bool) { ok = v })
	s.run(s.groups[m.Group])
	if ok {
		c.Promised(m)
	} else {
		c.Lost(m)
	}
	return ok
}

// read reads documents at a cut.
func (s *stage) read(call time.Duration, c *txn.Cut, ids ...string) {
	at, ok := c.Outcome()
	if !ok {
		return // refused: its reader begins again
	}
	t := history.Transaction{Client: 99, Name: "read", Call: call, Outcome: history.Done}
	for _, id := range ids {
		p := placement.PartitionID(id[1] - '0')
		d, err := s.of(p).m.Get(fsm.ReadKey{Partition: p, Epoch: 1, Collection: 1, ID: id}, fsm.At{Time: at}, false)
		part := history.Part{Input: history.Input{Key: id, Verb: history.Get}, Output: history.Output{Outcome: history.Missing}}
		if err == nil {
			part.Output = history.Output{Version: d.Version, Document: true, Value: valueOf(d.Body)}
		} else if code := codeOf(err); code != wire.CodeVersionNotFound {
			s.t.Fatal(err)
		}
		t.Parts = append(t.Parts, part)
	}
	t.Return = s.now()
	s.all = append(s.all, t)
}

// verdict is nil if there is an order for all of it.
func (s *stage) verdict() error {
	for i := range s.all {
		t := &s.all[i]
		if len(t.Parts) > 0 {
			continue
		}
		// A transaction: its versions are what is stored under its name.
		for p := range placement.PartitionID(txnGroups) {
			for _, id := range []string{"a", "b", "c"} {
				k := fsm.ReadKey{Partition: p, Epoch: 1, Collection: 1, ID: fmt.Sprint(id, p)}
				versions, _, err := s.of(p).m.History(k, 0, 100, false)
				if err != nil && codeOf(err) != wire.CodeNotFound {
					return err
				}
				for _, v := range versions {
					if valueOf(v.Body) == t.Name {
						t.Parts = append(t.Parts, history.Part{Input: history.Input{Key: k.ID, Verb: history.Put, Value: t.Name}, Output: history.Output{Version: v.Version}})
					}
				}
			}
		}
	}
	return history.StrictSerializability{}.Check(s.all).Err()
}

// TestCutScripts plays the histories that each rule of a cut is there for. With
// the rule they have an order; with the mistake they have none.
func TestCutScripts(t *testing.T) {
	// The clocks of two groups are far apart: what is written in the slow one
	// has smaller timestamps.
	heldApart := func(s *stage, broken func()) {
		s.groups[1].skew = time.Hour
		s.write("old", "a1")
		s.write("old too", "a0")
		call := s.now()
		c := txn.NewCut([]placement.GroupID{0, 1})
		holds := c.Begin()
		s.hold(c, holds[0])
		promises := s.hold(c, holds[1])
		broken()
		if s.redeem(c, promises[1]) {
			s.write("first", "b1")  // above T: its clock is
			s.write("second", "b0") // at or below T, but for the hold
			s.redeem(c, promises[0])
		}
		s.read(call, c, "a0", "b0", "a1", "b1")
	}
	for _, script := range []struct {
		name    string
		mistake mistake
		play    func(s *stage)
	}{
		{"without a hold a write slips below T after a later one went above", cutUnheld, func(s *stage) {
			heldApart(s, func() {})
		}},
		{"another leader has forgotten the hold", cutUnbroken, func(s *stage) {
			heldApart(s, func() {
				g := s.groups[0]
				g.term++
				g.memory.Open(g.term, g.m.Clock(), g.m.Ceiling())
			})
		}},
		{"the hold has expired", cutUnbroken, func(s *stage) {
			heldApart(s, func() {
				s.wall = s.wall.Add(cutHoldTime)
				s.groups[0].letGo()
			})
		}},
		{"undecided when asked, committed below T later", cutRaisesNothing, func(s *stage) {
			s.groups[0].skew = time.Hour
			s.write("old", "c0")
			x := s.prepare("x", "b0", "a2")
			s.groups[2].skew = time.Hour - time.Minute
			s.write("old too", "c0") // T is above p
			s.wall = s.wall.Add(time.Minute / 2)
			call := s.now()
			c := txn.NewCut([]placement.GroupID{0})
			s.write("oldest", "c0")
			asks := s.hold(c, c.Begin()[0])
			promises := s.ask(c, asks[0])
			s.redeem(c, promises[0])
			s.write("first", "a0") // above T
			s.write("next", "a2")
			x.commit() // after both: it replaces what was written next
			x.resolve()
			s.read(call, c, "a0", "b0")
		}},
		{"committed between two asks of one round", cutAskedOnce, func(s *stage) {
			s.groups[1].skew = time.Hour // home of w is far ahead, so w is above x
			w := s.prepare("w", "a0", "a1")
			x := s.prepare("x", "b0", "a2")
			call := s.now()
			c := txn.NewCut([]placement.GroupID{0})
			asks := s.hold(c, c.Begin()[0])
			var next []txn.CutMessage
			for _, m := range asks {
				if m.ID == w.id {
					s.ask(c, m) // undecided
				}
			}
			w.commit()
			s.write("next", "a2") // begins when w has ended
			x.commit()            // after that
			for _, m := range asks {
				if m.ID == x.id {
					next = s.ask(c, m) // committed
				}
			}
			if next[0].Step == txn.CutAsk {
				next = s.ask(c, next[0]) // and w is asked about again
			}
			if len(next) > 0 && next[0].Step == txn.CutPromise {
				s.redeem(c, next[0])
			}
			w.resolve()
			x.resolve()
			s.read(call, c, "a0", "b0")
		}},
	} {
		for _, m := range []mistake{noMistake, script.mistake} {
			t.Run(fmt.Sprintf("%s/%v", script.name, m != noMistake), func(t *testing.T) {
				pool := newEnginePool()
				defer func() {
					if err := pool.close(); err != nil {
						t.Error(err)
					}
				}()
				s := newStage(t, pool, m)
				script.play(s)
				switch err := s.verdict(); {
				case m == noMistake && err != nil:
					t.Errorf("no order: %v", err)
				case m != noMistake && err == nil:
					t.Error("the mistake was not caught")
				case m != noMistake:
					t.Logf("%.200v", err)
				}
			})
		}
	}
}
