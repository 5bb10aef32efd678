package history

import (
	"fmt"
	"slices"
	"sync"
)

// Set follows documents that are created once and never changed: the plainest
// question to a database, whether what it acknowledged is there.
type Set struct {
	mu       sync.Mutex
	outcomes map[string]Outcome // guarded by mu; of each element that was tried
}

// NewSet starts an empty set.
func NewSet() *Set { return &Set{outcomes: map[string]Outcome{}} }

// Added notes what the client was told of the attempt to create an element.
// Each element is tried once, however often the client library retried it.
func (s *Set) Added(element string, outcome Outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcomes[element] = outcome
}

// Acknowledged is the number of elements that must be there.
func (s *Set) Acknowledged() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, o := range s.outcomes {
		if o == Done {
			n++
		}
	}
	return n
}

// Judge compares what was told with what is there at the end. Elements that
// were being tried without an answer may be there or not.
func (s *Set) Judge(there []string) Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := make(map[string]int, len(there))
	for _, e := range there {
		seen[e]++
	}
	var lost, refused, foreign, twice []string
	acknowledged := 0
	for element, outcome := range s.outcomes {
		n := seen[element]
		if outcome == Done {
			acknowledged++
		}
		switch {
		case outcome == Done && n == 0:
			lost = append(lost, element)
		case outcome == Refused && n > 0:
			refused = append(refused, element)
		case outcome != Done && outcome != Unknown && outcome != Refused:
			foreign = append(foreign, element+" ("+outcome.String()+")")
		}
	}
	for element, n := range seen {
		if _, tried := s.outcomes[element]; !tried {
			foreign = append(foreign, element)
		}
		if n > 1 {
			twice = append(twice, element)
		}
	}
	var f found
	complain := func(name, what string, elements []string) {
		if len(elements) > 0 {
			slices.Sort(elements)
			f.addf(name, "%d %s: %v", len(elements), what, elements[:min(10, len(elements))])
		}
	}
	complain("lost write", "acknowledged and lost", lost)
	complain("refused write took effect", "refused and there all the same", refused)
	complain("phantom", "never written, or answered as somebody else's", foreign)
	complain("duplicate", "listed twice", twice)
	return Verdict{
		Checker:   "nothing lost",
		Judged:    fmt.Sprintf("%d elements tried, %d acknowledged, %d there", len(s.outcomes), acknowledged, len(seen)),
		Anomalies: f.ends(),
	}
}
