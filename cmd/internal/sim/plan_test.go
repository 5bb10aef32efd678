package sim

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/cmd/internal/workload"
)

// What is printed of a plan is that plan: the plan of a seed that fails can be
// put into a file.
func TestPlansRoundTrip(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(500) {
		p := RandomPlan(seed, workload.Names())
		again, err := ParsePlan(p.String())
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, p)
		}
		if !reflect.DeepEqual(p, again) {
			t.Fatalf("seed %d:\n%s\nis read as\n%s", seed, p, again)
		}
		if !reflect.DeepEqual(p, RandomPlan(seed, workload.Names())) {
			t.Fatalf("seed %d makes two plans", seed)
		}
		for _, e := range p.Events {
			seen[e.Verb] = true
		}
	}
	for verb := range verbs {
		if !seen[verb] && verb != "lie disk" && verb != "heal" {
			t.Errorf("no seed has %q", verb)
		}
	}
}

func TestParsePlan(t *testing.T) {
	p, err := ParsePlan(`
# Two lines
# about it.
nodes 5
load set

1s    power off n1 n2, keep 30%   
# a comment
2.5s  link n1 > others, latency 20ms, loss 5%, rate 10KB
`)
	if err != nil {
		t.Fatal(err)
	}
	want := &Plan{
		About: []string{"Two lines", "about it."}, Nodes: 5, Shards: 1, Load: []string{"set"}, Clients: 2,
		Pace: 40 * time.Millisecond, Lasts: 12500 * time.Millisecond,
		Events: []Event{
			{At: time.Second, Verb: "power off", Who: []string{"n1", "n2"}, Set: map[string]string{"keep": "30%"}},
			{At: 2500 * time.Millisecond, Verb: "link", Who: []string{"n1"}, Whom: []string{"others"}, OneWay: true,
				Set: map[string]string{"latency": "20ms", "loss": "5%", "rate": "10KB"}},
		},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("%+v, want %+v", p, want)
	}
	for text, says := range map[string]string{
		"nodes 8":                           "at most 7",
		"nodes none":                        "want a number",
		"soon kill n1":                      "want a time first",
		"1s explode n1":                     "nothing is known",
		"1s kill":                           "sides",
		"1s cut n1":                         "sides",
		"1s heal n1":                        "sides",
		"1s kill n1 | n2":                   "sides",
		"1s kill n1, softly please":         "says nothing of",
		"1s power off n1, keep some":        "want a share",
		"1s fill disk n1, free 3 elephants": "want bytes",
		"1s kill n4":                        "no machine n4",
		"1s kill clients":                   "links only",
		"2s kill n1\n1s start n1":           "before the line above",
		"lasts 1s\n2s kill n1":              "is over",
		"lasts 2h":                          "at most",
	} {
		if _, err := ParsePlan(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}

func FuzzParsePlan(f *testing.F) {
	f.Add(RandomPlan(1, workload.Names()).String())
	f.Add("1s link n1 > n2, latency 1ms, loss 5%\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePlan(text)
		if err != nil {
			return
		}
		again, err := ParsePlan(p.String())
		if err != nil {
			t.Fatalf("%q is printed as %q: %v", text, p, err)
		}
		if p.String() != again.String() {
			t.Fatalf("%q and %q", p, again)
		}
	})
}
