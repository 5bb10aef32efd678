package history

import (
	"errors"
	"fmt"
	"strings"
)

// Anomaly is something that one correct database could not have answered.
type Anomaly struct {
	// Name is what the field calls it: "lost update", "stale read", "G-single".
	Name string
	// Text says what was seen, in a few lines.
	Text string
	// Operations is the shortest history found that still shows a violation of
	// single documents, Transactions one of many. Either may be empty.
	Operations   []Operation
	Transactions []Transaction
	// Cycle runs through Transactions; each edge ends where the next begins.
	Cycle []Edge
	// Page is an HTML page that draws the violation, if the checker has one.
	Page []byte
}

// Edge says that one transaction comes before another, and how that is known.
type Edge struct {
	From, To int // in Anomaly.Transactions
	Kind     EdgeKind
	Key      string // the document that tells; empty for time and process edges
	Why      string // "read version 3, which the other replaced"
}

// Err is the anomaly as an error.
func (a Anomaly) Err() error {
	text := a.Text
	if text == "" {
		text = "no details"
	}
	return fmt.Errorf("%s: %s", a.Name, text)
}

// Verdict is what one checker found.
type Verdict struct {
	Checker   string // "linearizability", "exactly once", …
	Judged    string // what was judged: "812 operations on 9 documents"
	Anomalies []Anomaly
}

// Err is nil if there was no anomaly.
func (v Verdict) Err() error {
	var bad []error
	for _, a := range v.Anomalies {
		bad = append(bad, a.Err())
	}
	return errors.Join(bad...)
}

func (v Verdict) String() string {
	if len(v.Anomalies) == 0 {
		return "ok    " + v.Checker + ": " + v.Judged
	}
	names := map[string]int{}
	var order []string
	for _, a := range v.Anomalies {
		if names[a.Name]++; names[a.Name] == 1 {
			order = append(order, a.Name)
		}
	}
	for i, n := range order {
		if names[n] > 1 {
			order[i] = fmt.Sprintf("%s (%d)", n, names[n])
		}
	}
	return "FAIL  " + v.Checker + ": " + strings.Join(order, ", ") + "; " + v.Judged
}

// found collects anomalies of a checker, up to a bound per name: the first few
// tell as much as all.
type found struct {
	all   []Anomaly
	count map[string]int
}

const mostPerName = 10

func (f *found) add(a Anomaly) {
	if f.count == nil {
		f.count = map[string]int{}
	}
	if f.count[a.Name]++; f.count[a.Name] <= mostPerName {
		f.all = append(f.all, a)
	}
}

func (f *found) addf(name, format string, args ...any) {
	f.add(Anomaly{Name: name, Text: fmt.Sprintf(format, args...)})
}

// ends are the anomalies, with the number of those that were left out.
func (f *found) ends() []Anomaly {
	for i := range f.all {
		a := &f.all[i]
		if more := f.count[a.Name] - mostPerName; more > 0 {
			a.Text += fmt.Sprintf("\n(and %d more of these)", more)
			f.count[a.Name] = 0
		}
	}
	return f.all
}
