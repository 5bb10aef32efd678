package verify

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/cmd/internal/history"
	"github.com/impossibledb/idb/cmd/internal/workload"
)

func TestShare(t *testing.T) {
	for _, tc := range []struct {
		clients int
		names   []string
		want    map[string]int
	}{
		{32, []string{"register", "counter", "set"}, map[string]int{"register": 22, "counter": 5, "set": 5}},
		{10, []string{"set"}, map[string]int{"set": 10}},
		{1, []string{"register", "set"}, map[string]int{"register": 1, "set": 1}}, // nobody is left out
	} {
		if got := share(tc.clients, tc.names); !maps.Equal(got, tc.want) {
			t.Errorf("%d clients over %v: %v, want %v", tc.clients, tc.names, got, tc.want)
		}
	}
}

func TestPrefix(t *testing.T) {
	a, b := newPrefix(time.Unix(1780000000, 0)), newPrefix(time.Unix(1780000000, 0))
	if a == b || !strings.HasPrefix(a, ScratchPrefix) || len(a) > 32 { // a collection's name has 64 bytes at most
		t.Errorf("%q and %q", a, b)
	}
}

// TestSum: anomalies of every round stay, and the timeline is bounded.
func TestSum(t *testing.T) {
	ws, err := workload.New(workload.Options{}, "set")
	if err != nil {
		t.Fatal(err)
	}
	r := &run{o: Options{Workloads: []string{"set"}}.withDefaults()}
	r.out = newReport(time.Now())
	for round := range 3 {
		var found []history.Anomaly
		if round == 1 {
			found = []history.Anomaly{{Name: "lost"}}
		}
		r.add(0, ws[0], workload.Verdict{Workload: "set", Counts: workload.Counts{Answered: 10}, Checks: []history.Verdict{{Checker: "nothing lost", Judged: "x", Anomalies: found}}})
	}
	out := r.finish()
	if out.Anomalies() != 1 || len(out.Workloads) != 1 || out.Workloads[0].Verdict.Counts.Answered != 30 {
		t.Errorf("%+v", out)
	}
	if got := out.Workloads[0].Verdict.Checks[0].Judged; got != "x (the last of 3 rounds)" {
		t.Error(got)
	}
	// A workload that nobody answered proves nothing.
	r.sums[0].w.Verdict.Counts = workload.Counts{Unknown: 5}
	r.out.Workloads[0].Verdict.Counts = workload.Counts{Unknown: 5}
	r.out.Checks = nil
	if out := r.finish(); !slices.ContainsFunc(out.Checks, func(c history.Verdict) bool {
		return len(c.Anomalies) == 1 && c.Anomalies[0].Name == "no progress"
	}) {
		t.Errorf("a silent cluster passes: %+v", out.Checks)
	}
}
