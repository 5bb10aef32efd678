package txn

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

func spec(ps ...placement.PartitionID) Spec {
	return Spec{ID: testID, Home: 9, Participants: ps, Deadline: 1000}
}

func steps(ms []Message) (s []string) {
	for _, m := range ms {
		s = append(s, m.String())
	}
	return s
}

func same(t *testing.T, what string, got []Message, want ...Message) {
	t.Helper()
	if len(got) != len(want) || len(got) > 0 && !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: sends %v, want %v", what, steps(got), steps(want))
	}
}

func yes(p hlc.Timestamp) Answer { return Answer{State: Prepared, At: p} }

func TestCommit(t *testing.T) {
	c := NewCoordinator(spec(2, 1))
	p1, p2 := Message{Step: Prepare, To: 1}, Message{Step: Prepare, To: 2}
	same(t, "begin", c.Begin(), p1, p2)
	same(t, "one yes", c.Answer(p2, yes(70)))
	same(t, "the same yes again", c.Answer(p2, yes(70)))
	decide := Message{Step: Decide, To: 9, At: 70}
	same(t, "all yes", c.Answer(p1, yes(30)), decide)
	if _, known := c.Outcome(); known {
		t.Fatal("an outcome before the decision")
	}
	r1, r2 := Message{Step: Resolve, To: 1, At: 80, Commit: true}, Message{Step: Resolve, To: 2, At: 80, Commit: true}
	same(t, "committed", c.Answer(decide, Answer{State: Committed, At: 80}), r1, r2)
	if a, known := c.Outcome(); !known || a.State != Committed || a.At != 80 {
		t.Fatalf("the outcome is %+v, %v", a, known)
	}
	same(t, "one resolved", c.Answer(r1, Answer{State: Done}))
	same(t, "twice", c.Answer(r1, Answer{State: Done}))
	c.Lost(r2)
	same(t, "a lost resolve is sent again", c.Tick(5000), r2)
	forget := Message{Step: Forget, To: 9}
	same(t, "all resolved", c.Answer(r2, Answer{State: Done}), forget)
	c.Answer(forget, Answer{State: Committed, At: 80})
	if !c.Ended() {
		t.Fatal("it has not ended")
	}
}

func TestRefusedVote(t *testing.T) {
	c := NewCoordinator(spec(1, 2, 3))
	c.Begin()
	why := &Conflict{Code: wire.CodeVersionConflict, ID: "a"}
	abort := Message{Step: AbortIfUndecided, To: 9}
	same(t, "a no", c.Answer(Message{Step: Prepare, To: 2}, Answer{State: Refused, Conflict: why}), abort)
	if a, known := c.Outcome(); !known || a.State != Aborted || a.Conflict != why {
		t.Fatalf("the outcome is %+v, %v", a, known)
	}
	same(t, "a yes after it", c.Answer(Message{Step: Prepare, To: 1}, yes(5)))
	same(t, "another no", c.Answer(Message{Step: Prepare, To: 3}, Answer{State: Refused}))
	same(t, "aborted: only who may hold something is told", c.Answer(abort, Answer{State: Aborted}), Message{Step: Resolve, To: 1})
	c.Answer(Message{Step: Resolve, To: 1}, Answer{State: Done})
	if !c.Ended() {
		t.Fatal("an aborted transaction has nothing to forget")
	}
}

// TestBegunBefore: a commit that is sent again meets what its first coordinator
// left behind, and must not take "done" for "refused".
func TestBegunBefore(t *testing.T) {
	c := NewCoordinator(spec(1))
	c.Begin()
	abort := Message{Step: AbortIfUndecided, To: 9}
	same(t, "done", c.Answer(Message{Step: Prepare, To: 1}, Answer{State: Done}), abort)
	if _, known := c.Outcome(); known {
		t.Fatal("an outcome that only home knows")
	}
	c.Answer(abort, Answer{State: Committed, At: 50, Duplicate: true})
	if a, _ := c.Outcome(); a.State != Committed || a.At != 50 {
		t.Fatalf("the outcome is %+v", a)
	}
}

func TestDeadline(t *testing.T) {
	c := NewCoordinator(spec(1, 2))
	c.Begin()
	lost := Message{Step: Prepare, To: 1}
	c.Answer(Message{Step: Prepare, To: 2}, yes(5))
	c.Lost(lost)
	same(t, "before the deadline", c.Tick(999), lost)
	abort := Message{Step: AbortIfUndecided, To: 9}
	same(t, "at the deadline", c.Tick(1000), abort)
	same(t, "a vote that is late", c.Answer(lost, yes(8)))
	c.Lost(abort)
	same(t, "a lost abort", c.Tick(1001), abort)
	same(t, "an answer that is none", c.Answer(abort, Answer{State: None}))
	same(t, "is asked for again", c.Tick(1002), abort)
	same(t, "aborted", c.Answer(abort, Answer{State: Aborted}), Message{Step: Resolve, To: 1}, Message{Step: Resolve, To: 2})
	if a, known := c.Outcome(); !known || a.State != Aborted || a.Conflict != nil {
		t.Fatalf("the outcome is %+v, %v", a, known)
	}
}

// TestLostDecide: what became of a decision whose answer was lost is home's to say.
func TestLostDecide(t *testing.T) {
	c := NewCoordinator(spec(1))
	c.Begin()
	decide := Message{Step: Decide, To: 9, At: 5}
	same(t, "all yes", c.Answer(Message{Step: Prepare, To: 1}, yes(5)), decide)
	same(t, "a decide on its way has no deadline", c.Tick(2000))
	c.Lost(decide)
	abort := Message{Step: AbortIfUndecided, To: 9}
	same(t, "lost and late", c.Tick(2000), abort)
	same(t, "it had arrived", c.Answer(abort, Answer{State: Committed, At: 6}), Message{Step: Resolve, To: 1, At: 6, Commit: true})
}

func TestOrdered(t *testing.T) {
	s := spec(3, 1, 2)
	s.Ordered = true
	c := NewCoordinator(s)
	same(t, "begin", c.Begin(), Message{Step: Prepare, To: 1})
	same(t, "then", c.Answer(Message{Step: Prepare, To: 1}, yes(1)), Message{Step: Prepare, To: 2})
	same(t, "again", c.Answer(Message{Step: Prepare, To: 1}, yes(1)))
	same(t, "then", c.Answer(Message{Step: Prepare, To: 2}, yes(2)), Message{Step: Prepare, To: 3})
	same(t, "last", c.Answer(Message{Step: Prepare, To: 3}, yes(9)), Message{Step: Decide, To: 9, At: 9})
}

func parallelSpec(ps ...placement.PartitionID) Spec {
	s := spec(ps...)
	s.Parallel = true
	return s
}

// TestParallel: home prepares beside the others, and with the last yes it is
// committed.
func TestParallel(t *testing.T) {
	c := NewCoordinator(parallelSpec(1))
	p1, home := Message{Step: Prepare, To: 1}, Message{Step: Prepare, To: 9}
	same(t, "begin", c.Begin(), p1, home)
	same(t, "one yes", c.Answer(p1, yes(70)))
	if _, known := c.Outcome(); known {
		t.Fatal("an outcome without home")
	}
	confirm := Message{Step: Confirm, To: 9, At: 70}
	same(t, "both", c.Answer(home, yes(30)), confirm)
	if a, known := c.Outcome(); !known || a.State != Committed || a.At != 70 {
		t.Fatalf("the outcome is %+v, %v", a, known)
	}
	c.Lost(confirm)
	same(t, "a lost confirm is sent again, past the deadline too", c.Tick(5000), confirm)
	resolve := Message{Step: Resolve, To: 1, At: 70, Commit: true}
	same(t, "confirmed", c.Answer(confirm, Answer{State: Committed, At: 70}), resolve)
	forget := Message{Step: Forget, To: 9}
	same(t, "resolved", c.Answer(resolve, Answer{State: Done}), forget)
	c.Answer(forget, Answer{State: Committed, At: 70})
	if !c.Ended() {
		t.Fatal("it has not ended")
	}
}

func TestParallelRefused(t *testing.T) {
	c := NewCoordinator(parallelSpec(1, 2))
	c.Begin()
	why := &Conflict{Code: wire.CodeVersionConflict, ID: "a"}
	reject := Message{Step: Reject, To: 9}
	same(t, "a participant's no", c.Answer(Message{Step: Prepare, To: 1}, Answer{State: Refused, Conflict: why}), reject)
	if a, known := c.Outcome(); !known || a.State != Aborted || a.Conflict != why {
		t.Fatalf("the outcome is %+v, %v", a, known)
	}
	same(t, "home's yes is too late", c.Answer(Message{Step: Prepare, To: 9}, yes(5)))
	same(t, "rejected", c.Answer(reject, Answer{State: Aborted}), Message{Step: Resolve, To: 2})

	c = NewCoordinator(parallelSpec(1))
	c.Begin()
	same(t, "home's no", c.Answer(Message{Step: Prepare, To: 9}, Answer{State: Aborted, Conflict: why}), Message{Step: Resolve, To: 1})
	if a, known := c.Outcome(); !known || a.State != Aborted || a.Conflict != why {
		t.Fatalf("the outcome is %+v, %v", a, known)
	}
}

// TestParallelLate: past the deadline nobody knows who has prepared, so all are
// asked, and those who have not refuse.
func TestParallelLate(t *testing.T) {
	abort, confirm, reject := Message{Step: AbortIfUndecided, To: 9}, Message{Step: Confirm, To: 9, At: 8}, Message{Step: Reject, To: 9}
	deny1, deny2 := Message{Step: Deny, To: 1}, Message{Step: Deny, To: 2}
	staged := Answer{State: Staged, At: 3, Participants: []placement.PartitionID{1, 2}}
	begin := func() *Coordinator {
		c := NewCoordinator(parallelSpec(1, 2))
		c.Begin()
		c.Answer(Message{Step: Prepare, To: 9}, yes(3))
		same(t, "at the deadline", c.Tick(1000), abort)
		same(t, "staged", c.Answer(abort, staged), deny1, deny2)
		same(t, "one has", c.Answer(deny1, yes(8)))
		return c
	}
	c := begin()
	c.Lost(deny2)
	same(t, "lost", c.Tick(1001), deny2)
	same(t, "so has the other", c.Answer(deny2, yes(4)), confirm)
	if _, known := c.Outcome(); known {
		t.Fatal("home has not said it")
	}
	same(t, "confirmed", c.Answer(confirm, Answer{State: Committed, At: 8}),
		Message{Step: Resolve, To: 1, At: 8, Commit: true}, Message{Step: Resolve, To: 2, At: 8, Commit: true})

	c = begin()
	same(t, "the other has not", c.Answer(deny2, Answer{State: Refused}), reject)
	same(t, "rejected", c.Answer(reject, Answer{State: Aborted}), Message{Step: Resolve, To: 1}, Message{Step: Resolve, To: 2})

	c = begin()
	same(t, "the other is done: home has decided meanwhile", c.Answer(deny2, Answer{State: Done}), abort)
}

// TestInquiry is about those who only want to know.
func TestInquiry(t *testing.T) {
	staged := Answer{State: Staged, At: 3, Participants: []placement.PartitionID{1, 2}}
	poll1, poll2 := Message{Step: Poll, To: 1, At: 50}, Message{Step: Poll, To: 2, At: 50}
	ask := Message{Step: Ask, To: 9, At: 50}
	confirm := Message{Step: Confirm, To: 9, At: 8}
	done := Answer{State: Committed, At: 8}
	for name, tc := range map[string]struct {
		home, one, two Answer
		want           *Answer // nil: home is told or asked
	}{
		"undecided":             {home: Answer{}, want: &Answer{}},
		"decided":               {home: done, want: &done},
		"one has not prepared":  {home: staged, one: yes(8), two: Answer{}, want: &Answer{}},
		"one has refused":       {home: staged, one: yes(8), two: Answer{State: Refused}, want: &Answer{}},
		"one is too old for it": {home: staged, one: yes(8), two: Answer{State: Expired}, want: &Answer{}},
		"all have prepared":     {home: staged, one: yes(8), two: yes(4)},
		"one is done":           {home: staged, one: yes(8), two: Answer{State: Done}},
	} {
		t.Run(name, func(t *testing.T) {
			q := NewInquiry(9, false, 50)
			same(t, "begin", q.Begin(), ask)
			next := q.Answer(ask, tc.home)
			if tc.home.State == Staged {
				same(t, "staged", next, poll1, poll2)
				same(t, "one", q.Answer(poll1, tc.one))
				same(t, "the same again", q.Answer(poll1, tc.one))
				next = q.Answer(poll2, tc.two)
			}
			a, known := q.Outcome()
			switch {
			case tc.want != nil:
				if !known || a.State != tc.want.State || a.At != tc.want.At {
					t.Fatalf("%+v, %v", a, known)
				}
			case tc.two.State == Done:
				same(t, "home knows by now", next, ask)
			default:
				same(t, "home is told", next, confirm)
				q.Answer(confirm, done)
				if a, known := q.Outcome(); !known || a.State != Committed {
					t.Fatalf("%+v, %v", a, known)
				}
			}
		})
	}
}

func TestRecovery(t *testing.T) {
	r, ms := NewRecovery(testID, 9, 4)
	abort := Message{Step: AbortIfUndecided, To: 9}
	same(t, "begin", ms, abort)
	resolve := Message{Step: Resolve, To: 4, At: 8, Commit: true}
	same(t, "it was committed", r.Answer(abort, Answer{State: Committed, At: 8}), resolve)
	same(t, "others may not have resolved: nothing is forgotten", r.Answer(resolve, Answer{State: Done}))
	if !r.Ended() {
		t.Fatal("it has not ended")
	}

	f, ms := NewFinish(testID, 9, &CommittedRecord{At: 8, Participants: []placement.PartitionID{4, 5}})
	r5 := Message{Step: Resolve, To: 5, At: 8, Commit: true}
	same(t, "finish", ms, resolve, r5)
	same(t, "one", f.Answer(resolve, Answer{State: Done}))
	same(t, "both", f.Answer(r5, Answer{State: Done}), Message{Step: Forget, To: 9})

	// Found at home, staged: who takes part is learned from home.
	r, ms = NewRecovery(testID, 9, 9)
	same(t, "begin", ms, abort)
	deny := Message{Step: Deny, To: 4}
	same(t, "staged", r.Answer(abort, Answer{State: Staged, At: 3, Participants: []placement.PartitionID{4}}), deny)
	confirm := Message{Step: Confirm, To: 9, At: 8}
	same(t, "prepared", r.Answer(deny, yes(8)), confirm)
	same(t, "confirmed", r.Answer(confirm, Answer{State: Committed, At: 8}), resolve)
	same(t, "all of them are known", r.Answer(resolve, Answer{State: Done}), Message{Step: Forget, To: 9})
}

// TestAnyOrder answers in any order, loses and repeats, and checks the
// coordinator's invariants from outside.
func TestAnyOrder(t *testing.T) {
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		n := 1 + rng.IntN(4)
		s := Spec{ID: testID, Home: 9, Deadline: 100, Ordered: rng.IntN(3) == 0, Parallel: rng.IntN(2) == 0}
		for i := range n {
			s.Participants = append(s.Participants, placement.PartitionID(i))
		}
		c := NewCoordinator(s)
		bag := c.Begin()
		votes := map[placement.PartitionID]Answer{}
		resolved := map[placement.PartitionID]bool{}
		var decision *Answer
		now := hlc.Timestamp(0)
		for step := 0; !c.Ended(); step++ {
			if step > 2000 {
				t.Fatalf("seed %d: no end", seed)
			}
			now += hlc.Timestamp(rng.IntN(3))
			if len(bag) == 0 || rng.IntN(5) == 0 {
				bag = append(bag, c.Tick(now)...)
				continue
			}
			i := rng.IntN(len(bag))
			m := bag[i]
			if rng.IntN(6) > 0 {
				bag = append(bag[:i], bag[i+1:]...)
			}
			if rng.IntN(6) == 0 {
				c.Lost(m)
				continue
			}
			var a Answer
			switch m.Step {
			case Prepare:
				if m.To == s.Home && decision != nil {
					a = *decision
					break
				}
				if _, voted := votes[m.To]; !voted {
					votes[m.To] = yes(hlc.Timestamp(1 + rng.IntN(50)))
					if rng.IntN(8) == 0 {
						votes[m.To] = Answer{State: Refused}
						if m.To == s.Home {
							votes[m.To] = Answer{State: Aborted}
							decision = &Answer{State: Aborted}
						}
					}
				}
				a = votes[m.To]
			case Deny:
				if _, voted := votes[m.To]; !voted {
					votes[m.To] = Answer{State: Refused}
				}
				a = votes[m.To]
			case Confirm:
				most := votes[s.Home].At
				for _, p := range append(s.Participants, s.Home) {
					if votes[p].State != Prepared {
						t.Fatalf("seed %d: confirm without the yes of %d", seed, p)
					}
					most = max(most, votes[p].At)
				}
				if m.At != most {
					t.Fatalf("seed %d: confirm at %d, the votes' largest is %d", seed, m.At, most)
				}
				if decision == nil {
					decision = &Answer{State: Committed, At: most}
				}
				a = *decision
			case Reject:
				no := false
				for _, p := range s.Participants {
					no = no || votes[p].State == Refused
				}
				if !no {
					t.Fatalf("seed %d: rejected, and nobody has refused", seed)
				}
				if decision == nil {
					decision = &Answer{State: Aborted}
				}
				a = *decision
			case Decide:
				most := hlc.Timestamp(0)
				for _, p := range s.Participants {
					if votes[p].State != Prepared {
						t.Fatalf("seed %d: decide without the yes of %d", seed, p)
					}
					most = max(most, votes[p].At)
				}
				if m.At != most {
					t.Fatalf("seed %d: decide at %d, the votes' largest is %d", seed, m.At, most)
				}
				if decision == nil {
					decision = &Answer{State: Committed, At: most + 1}
				}
				a = *decision
			case AbortIfUndecided:
				if decision == nil && votes[s.Home].State == Prepared {
					a = Answer{State: Staged, At: votes[s.Home].At, Participants: s.Participants}
					break
				}
				if decision == nil {
					decision = &Answer{State: Aborted}
				}
				a = *decision
			case Resolve:
				if decision == nil || m.Commit != (decision.State == Committed) || m.Commit && m.At != decision.At {
					t.Fatalf("seed %d: %v, decided was %+v", seed, m, decision)
				}
				resolved[m.To] = true
				a = Answer{State: Done}
			case Forget:
				if len(resolved) < n || decision.State != Committed {
					t.Fatalf("seed %d: forgotten with %d of %d resolved", seed, len(resolved), n)
				}
			}
			bag = append(bag, c.Answer(m, a)...)
		}
		if o, known := c.Outcome(); !known || o.State != decision.State {
			t.Fatalf("seed %d: told %+v, decided %+v", seed, o, decision)
		}
	}
}
