package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"time"

	"github.com/impossibledb/idb/cmd/internal/history"
)

//go:embed page.tmpl
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is what the template sees.
type page struct {
	Title, Verdict                            string
	Failed                                    bool
	Began, Took                               string
	Facts                                     []Fact
	Answered, Refused, Unknown, Rate          string
	Faults, Anomalies                         int
	Rates, Latencies, FaultLanes, ClientLanes template.HTML
	Workloads                                 []pageWorkload
	Checks                                    []pageCheck
	Found                                     []pageAnomaly
	Hidden                                    int // anomalies that are only in the text
}

type pageWorkload struct {
	Name, About                string
	Answered, Refused, Unknown string
	Failed                     bool
	Checks                     []pageCheck
}

type pageCheck struct {
	Checker, Judged string
	Failed          bool
	Names           []string
}

type pageAnomaly struct {
	ID             int
	Name, Workload string
	Checker        string
	Text           string
	Meaning        string
	Figure, Around template.HTML
	Reasons        []string
	Porcupine      string // a page of its own; empty: none
}

// What is drawn of the anomalies: the first ones tell as much as all.
const (
	mostAnomalies = 25
	mostPages     = 5
	mostPageBytes = 2 << 20
)

// WriteHTML writes the page. It needs nothing outside itself.
func (r *Report) WriteHTML(w io.Writer) error {
	end := r.end()
	cols := over(r, end)
	p := page{
		Title: r.Title, Facts: r.Facts, Faults: len(r.Faults), Anomalies: r.Anomalies(),
		Took:  r.Took.Round(time.Millisecond).String(),
		Rates: rates(r, cols, end), Latencies: latencies(r, cols, end), FaultLanes: faultLanes(r, end), ClientLanes: lanes(r, end),
		Checks: checksOf(r.Checks),
	}
	if !r.Began.IsZero() {
		p.Began = r.Began.UTC().Format("2006-01-02 15:04:05 UTC")
	}
	p.Failed = p.Anomalies > 0
	p.Verdict = "passed"
	if p.Failed {
		p.Verdict = "failed"
	}
	var answered, refused, unknown int64
	pages := 0
	add := func(workload string, checks []history.Verdict) {
		for _, c := range checks {
			for _, a := range c.Anomalies {
				if len(p.Found) == mostAnomalies {
					p.Hidden++
					continue
				}
				pa := pageAnomaly{
					ID: len(p.Found) + 1, Name: a.Name, Workload: workload, Checker: c.Checker, Text: a.Text,
					Meaning: meanings[a.Name], Figure: figure(r, a), Around: around(r, a),
				}
				for _, e := range a.Cycle {
					pa.Reasons = append(pa.Reasons, fmt.Sprintf("T%d before T%d (%s): %s", e.From+1, e.To+1, e.Kind, e.Why))
				}
				if len(a.Page) > 0 && len(a.Page) <= mostPageBytes && pages < mostPages {
					pa.Porcupine = string(a.Page)
					pages++
				}
				p.Found = append(p.Found, pa)
			}
		}
	}
	for _, w := range r.Workloads {
		v := w.Verdict
		answered, refused, unknown = answered+v.Counts.Answered, refused+v.Counts.Refused, unknown+v.Counts.Unknown
		p.Workloads = append(p.Workloads, pageWorkload{
			Name: v.Workload, About: w.About, Failed: len(v.Anomalies()) > 0, Checks: checksOf(v.Checks),
			Answered: grouped(v.Counts.Answered), Refused: grouped(v.Counts.Refused), Unknown: grouped(v.Counts.Unknown),
		})
		add(v.Workload, v.Checks)
	}
	add("", r.Checks)
	p.Answered, p.Refused, p.Unknown = grouped(answered), grouped(refused), grouped(unknown)
	if s := r.Took.Seconds(); s > 0 {
		p.Rate = grouped(int64(float64(answered) / s))
	}
	return pageTemplate.Execute(w, p)
}

func checksOf(checks []history.Verdict) []pageCheck {
	var all []pageCheck
	for _, c := range checks {
		pc := pageCheck{Checker: c.Checker, Judged: c.Judged, Failed: len(c.Anomalies) > 0}
		seen := map[string]bool{}
		for _, a := range c.Anomalies {
			if !seen[a.Name] {
				seen[a.Name] = true
				pc.Names = append(pc.Names, a.Name)
			}
		}
		all = append(all, pc)
	}
	return all
}

// grouped prints a number with spaces between thousands.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

// meanings say in one sentence what an anomaly's name means.
var meanings = map[string]string{
	"not linearizable":          "No order of these operations on one document, each between its call and its return, explains the answers.",
	"undecided":                 "The search did not end in time; that counts as a failure.",
	"G0":                        "Writes of two transactions are interleaved: each replaced something of the other.",
	"G1a":                       "A write that was refused was read.",
	"G1b":                       "A value was read that its own transaction had replaced.",
	"G1c":                       "Two transactions each read what the other wrote.",
	"G-single":                  "A transaction saw part of another's effect and missed another part.",
	"G2":                        "Transactions each overwrote what the others had read (write skew).",
	"lost update":               "Two writers started from the same version, and both were told that they won.",
	"lost write":                "A write was acknowledged and is gone.",
	"stale read":                "A read that began after a newer version had been told gave an older one.",
	"causal reverse":            "The later of two writes was seen without the earlier one, which had been acknowledged before.",
	"incompatible order":        "Two reads show the same writes in different orders.",
	"duplicate":                 "One element is there twice.",
	"applied twice":             "One write took effect more than once.",
	"refused write took effect": "The client was told that nothing was done, and it was done.",
	"version changed":           "One version of a document was seen with two contents.",
	"torn snapshot":             "A read of one instant mixes several.",
	"wrong past":                "A read of the past does not agree with the history.",
	"phantom":                   "Something is there that nobody wrote.",
	"unexpected answer":         "No fault of the run explains this answer.",
	"unreadable":                "The cluster could not be read at rest.",
}
