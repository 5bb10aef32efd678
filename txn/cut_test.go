package txn

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/impossibledb/idb/placement"
)

// cutScript drives a cut by hand and writes down what it sends.
type cutScript struct {
	t    *testing.T
	c    *Cut
	sent []CutMessage
}

func newCutScript(t *testing.T, groups ...placement.GroupID) *cutScript {
	s := &cutScript{t: t, c: NewCut(groups)}
	s.sent = s.c.Begin()
	return s
}

// expect checks what was sent since, and forgets it.
func (s *cutScript) expect(want ...string) []CutMessage {
	s.t.Helper()
	var got []string
	for _, m := range s.sent {
		switch m.Step {
		case CutAsk:
			got = append(got, fmt.Sprintf("ask %d at %d", m.ID.Time, m.At))
		case CutHold:
			got = append(got, fmt.Sprintf("hold %d", m.Group))
		default:
			got = append(got, fmt.Sprintf("%s %d by %d/%d at %d", m.Step, m.Group, m.Term, m.Token, m.At))
		}
	}
	if !slices.Equal(got, want) {
		s.t.Fatalf("sent %q, want %q", got, want)
	}
	out := s.sent
	s.sent = nil
	return out
}

func open(ids ...uint64) (out []Open) {
	for _, n := range ids {
		out = append(out, Open{ID: ID{Time: n}, Home: placement.PartitionID(n)})
	}
	return out
}

func TestCut(t *testing.T) {
	t.Run("nobody is undecided", func(t *testing.T) {
		s := newCutScript(t, 1, 2)
		holds := s.expect("hold 1", "hold 2")
		s.sent = s.c.Held(holds[0], Held{Term: 3, Token: 7, Clock: 50})
		s.expect() // nothing before all hold
		s.sent = s.c.Held(holds[1], Held{Term: 4, Token: 9, Clock: 80})
		promises := s.expect("promise 1 by 3/7 at 80", "promise 2 by 4/9 at 80")
		s.c.Promised(promises[0])
		if _, ok := s.c.Outcome(); ok {
			t.Fatal("an outcome with one of two promises")
		}
		s.c.Promised(promises[0]) // twice
		s.c.Promised(promises[1])
		if at, ok := s.c.Outcome(); !ok || at != 80 {
			t.Fatalf("outcome %d, %v", at, ok)
		}
	})
	t.Run("asks go on until a whole round finds no commit", func(t *testing.T) {
		s := newCutScript(t, 1, 2)
		holds := s.expect("hold 1", "hold 2")
		s.c.Held(holds[0], Held{Term: 3, Token: 7, Clock: 50, Undecided: open(11, 12, 13)})
		s.sent = s.c.Held(holds[1], Held{Term: 4, Token: 9, Clock: 60, Undecided: open(12)})
		asks := s.expect("ask 11 at 60", "ask 12 at 60", "ask 13 at 60")
		s.c.Asked(asks[1], Answer{State: Committed, At: 90})
		s.c.Asked(asks[1], Answer{}) // twice: the first counts
		s.c.Asked(asks[0], Answer{})
		s.sent = s.c.Asked(asks[2], Answer{State: Aborted})
		again := s.expect("ask 11 at 90")
		s.c.Asked(asks[0], Answer{State: Committed, At: 200}) // of the round before
		s.sent = s.c.Asked(again[0], Answer{})
		s.expect("promise 1 by 3/7 at 90", "promise 2 by 4/9 at 90")
		if s.c.Rounds() != 2 || s.c.Late() != 1 {
			t.Fatalf("%d rounds, %d commits found", s.c.Rounds(), s.c.Late())
		}
	})
	t.Run("a commit below T is asked after too", func(t *testing.T) {
		s := newCutScript(t, 1)
		holds := s.expect("hold 1")
		s.sent = s.c.Held(holds[0], Held{Term: 3, Token: 7, Clock: 50, Undecided: open(11, 12)})
		asks := s.expect("ask 11 at 50", "ask 12 at 50")
		s.c.Asked(asks[0], Answer{State: Committed, At: 40})
		s.sent = s.c.Asked(asks[1], Answer{})
		s.expect("ask 12 at 50")
	})
	for _, at := range []string{"hold", "ask", "promise"} {
		t.Run("a lost "+at, func(t *testing.T) {
			s := newCutScript(t, 1, 2)
			holds := s.expect("hold 1", "hold 2")
			s.c.Held(holds[0], Held{Term: 3, Token: 7, Clock: 50, Undecided: open(11)})
			if at == "hold" {
				s.sent = s.c.Lost(holds[1])
				s.expect("release 1 by 3/7 at 0")
				return
			}
			s.sent = s.c.Held(holds[1], Held{Term: 4, Token: 9, Clock: 60})
			asks := s.expect("ask 11 at 60")
			if at == "ask" {
				s.sent = s.c.Lost(asks[0])
				s.expect("release 1 by 3/7 at 0", "release 2 by 4/9 at 0")
				return
			}
			s.sent = s.c.Asked(asks[0], Answer{})
			promises := s.expect("promise 1 by 3/7 at 60", "promise 2 by 4/9 at 60")
			s.c.Promised(promises[0])
			s.sent = s.c.Lost(promises[1])
			s.expect("release 2 by 4/9 at 0")
			if _, ok := s.c.Outcome(); ok || !s.c.Failed() {
				t.Fatal("it did not fail")
			}
		})
	}
	t.Run("a hold that comes too late is released", func(t *testing.T) {
		s := newCutScript(t, 1, 2)
		holds := s.expect("hold 1", "hold 2")
		s.sent = s.c.Lost(holds[0])
		s.expect()
		s.sent = s.c.Held(holds[1], Held{Term: 4, Token: 9, Clock: 60})
		s.expect("release 2 by 4/9 at 0")
	})
	t.Run("too many are undecided", func(t *testing.T) {
		s := newCutScript(t, 1)
		holds := s.expect("hold 1")
		many := make([]Open, MaxUndecided+1)
		for i := range many {
			many[i].ID.Time = uint64(i)
		}
		s.sent = s.c.Held(holds[0], Held{Term: 3, Token: 7, Undecided: many})
		s.expect("release 1 by 3/7 at 0")
	})
	t.Run("nothing was ever written", func(t *testing.T) {
		s := newCutScript(t, 1)
		holds := s.expect("hold 1")
		s.sent = s.c.Held(holds[0], Held{Term: 3, Token: 7})
		s.expect("promise 1 by 3/7 at 1") // 0 would be the newest of each document
	})
	t.Run("abandoned", func(t *testing.T) {
		s := newCutScript(t, 1)
		holds := s.expect("hold 1")
		s.c.Held(holds[0], Held{Term: 3, Token: 7})
		s.sent = s.c.Abandon()
		if len(s.sent) != 1 || !strings.HasPrefix(s.sent[0].String(), "release g") {
			t.Fatalf("sent %v", s.sent)
		}
	})
}
