package report

import (
	"encoding/json"
	"io"
	"strings"
	"time"

	"github.com/impossibledb/idb/cmd/internal/history"
	"github.com/impossibledb/idb/cmd/internal/workload"
)

// Report is one run.
type Report struct {
	Title string // "idb verify"
	Facts []Fact // what was run, on what, and how to run it again
	Began time.Time
	// Took is how long the clients worked, on the histories' clock.
	Took      time.Duration
	Workloads []Workload
	Faults    []Fault
	// Checks are those of the whole cluster: replicas, invariants.
	Checks []history.Verdict
}

// Fact is a line of the head.
type Fact struct{ Name, Value string }

// Workload is one workload's part of the run.
type Workload struct {
	About    string // what it does, in a few words
	Verdict  workload.Verdict
	Timeline []history.Span // what its clients did
}

// Fault is what was done to the cluster, on the histories' clock. One that did
// not end has To 0.
type Fault struct {
	Name     string
	Target   string // "n2"
	From, To time.Duration
}

// Add takes a workload in.
func (r *Report) Add(w workload.Workload, v workload.Verdict) {
	r.Workloads = append(r.Workloads, Workload{About: workload.About(w.Name()), Verdict: v, Timeline: w.Recorder().Timeline()})
}

// Anomalies is how many were found.
func (r *Report) Anomalies() int {
	n := 0
	for _, w := range r.Workloads {
		n += len(w.Verdict.Anomalies())
	}
	for _, c := range r.Checks {
		n += len(c.Anomalies)
	}
	return n
}

// end is the end of the time axis.
func (r *Report) end() time.Duration {
	end := r.Took
	for _, w := range r.Workloads {
		for _, s := range w.Timeline {
			end = max(end, s.Call, s.Return)
		}
	}
	for _, f := range r.Faults {
		end = max(end, f.From, f.To)
	}
	return max(end, time.Millisecond)
}

// The JSON form. Fields are added, never changed; Format counts otherwise.
type (
	jsonReport struct {
		Format    int            `json:"format"`
		Title     string         `json:"title"`
		Passed    bool           `json:"passed"`
		Facts     []Fact         `json:"facts,omitempty"`
		Began     time.Time      `json:"began"`
		Seconds   float64        `json:"seconds"`
		Anomalies int            `json:"anomalies"`
		Workloads []jsonWorkload `json:"workloads"`
		Checks    []jsonCheck    `json:"checks,omitempty"`
		Faults    []jsonFault    `json:"faults,omitempty"`
	}
	jsonWorkload struct {
		Name     string      `json:"name"`
		Passed   bool        `json:"passed"`
		Answered int64       `json:"answered"`
		Refused  int64       `json:"refused"`
		Unknown  int64       `json:"unknown"`
		Checks   []jsonCheck `json:"checks"`
	}
	jsonCheck struct {
		Checker   string        `json:"checker"`
		Judged    string        `json:"judged"`
		Anomalies []jsonAnomaly `json:"anomalies,omitempty"`
	}
	jsonAnomaly struct {
		Name         string     `json:"name"`
		Text         string     `json:"text"`
		Operations   []string   `json:"operations,omitempty"`
		Transactions []string   `json:"transactions,omitempty"`
		Cycle        []jsonEdge `json:"cycle,omitempty"`
	}
	jsonEdge struct {
		From int    `json:"from"` // in transactions
		To   int    `json:"to"`
		Kind string `json:"kind"`
		Key  string `json:"key,omitempty"`
		Why  string `json:"why"`
	}
	jsonFault struct {
		Name   string  `json:"name"`
		Target string  `json:"target,omitempty"`
		From   float64 `json:"from"` // seconds
		To     float64 `json:"to,omitempty"`
	}
)

// Format is the version of the JSON form.
const Format = 1

// WriteJSON writes the verdict for programs.
func (r *Report) WriteJSON(w io.Writer) error {
	j := jsonReport{
		Format: Format, Title: r.Title, Passed: r.Anomalies() == 0, Facts: r.Facts, Began: r.Began,
		Seconds: r.Took.Seconds(), Anomalies: r.Anomalies(), Workloads: []jsonWorkload{}, Checks: jsonChecks(r.Checks),
	}
	for _, w := range r.Workloads {
		v := w.Verdict
		j.Workloads = append(j.Workloads, jsonWorkload{
			Name: v.Workload, Passed: len(v.Anomalies()) == 0,
			Answered: v.Counts.Answered, Refused: v.Counts.Refused, Unknown: v.Counts.Unknown, Checks: jsonChecks(v.Checks),
		})
	}
	for _, f := range r.Faults {
		j.Faults = append(j.Faults, jsonFault{f.Name, f.Target, f.From.Seconds(), f.To.Seconds()})
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(j)
}

func jsonChecks(checks []history.Verdict) []jsonCheck {
	all := []jsonCheck{}
	for _, c := range checks {
		jc := jsonCheck{Checker: c.Checker, Judged: c.Judged}
		for _, a := range c.Anomalies {
			ja := jsonAnomaly{Name: a.Name, Text: a.Text}
			for _, op := range a.Operations {
				ja.Operations = append(ja.Operations, op.String())
			}
			for _, t := range a.Transactions {
				ja.Transactions = append(ja.Transactions, t.String())
			}
			for _, e := range a.Cycle {
				ja.Cycle = append(ja.Cycle, jsonEdge{e.From, e.To, e.Kind.String(), e.Key, e.Why})
			}
			jc.Anomalies = append(jc.Anomalies, ja)
		}
		all = append(all, jc)
	}
	return all
}

// MarshalJSON writes a fact as a short object.
func (f Fact) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"name": strings.ToLower(f.Name), "value": f.Value})
}
