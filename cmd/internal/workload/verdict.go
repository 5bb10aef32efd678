package workload

import (
	"errors"
	"fmt"
	"strings"

	"github.com/impossibledb/idb/cmd/internal/history"
)

// Verdict is what was found of one workload.
type Verdict struct {
	Workload string
	Counts   Counts
	Checks   []history.Verdict
}

// Anomalies are those of all checks.
func (v Verdict) Anomalies() []history.Anomaly {
	var all []history.Anomaly
	for _, c := range v.Checks {
		all = append(all, c.Anomalies...)
	}
	return all
}

// Err is nil if the workload saw no anomaly.
func (v Verdict) Err() error {
	var bad []error
	for _, a := range v.Anomalies() {
		bad = append(bad, fmt.Errorf("%s: %w", v.Workload, a.Err()))
	}
	return errors.Join(bad...)
}

// String is a line for the workload and one for each check.
func (v Verdict) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d operations answered, %d refused, %d unknown", v.Workload, v.Counts.Answered, v.Counts.Refused, v.Counts.Unknown)
	for _, c := range v.Checks {
		fmt.Fprintf(&b, "\n  %v", c)
	}
	return b.String()
}

// Err joins the verdicts' errors: nil if nothing was wrong.
func Err(vs []Verdict) error {
	var bad []error
	for _, v := range vs {
		bad = append(bad, v.Err())
	}
	return errors.Join(bad...)
}

// Text is the verdicts, one below the other.
func Text(vs []Verdict) string {
	var lines []string
	for _, v := range vs {
		lines = append(lines, v.String())
	}
	return strings.Join(lines, "\n")
}
