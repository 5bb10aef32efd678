package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/cmd/internal/history"
	"github.com/impossibledb/idb/cmd/internal/workload"
)

// sample is a report of a run of a minute with faults. With anomalies it has
// a stale read, a causal reverse and a document that is not linearizable, found
// by the checkers themselves.
func sample(t testing.TB, operations int, anomalies bool) *Report {
	rng := rand.New(rand.NewSource(1))
	const second = time.Second
	r := &Report{
		Title: "idb verify", Began: time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC), Took: 60 * second,
		Facts: []Fact{{"Cluster", "127.0.0.1:7400, 127.0.0.1:7410, 127.0.0.1:7420"}, {"Again", "idb verify --local --duration 60s --seed 17"}},
		Faults: []Fault{
			{"kill", "n1", 8 * second, 12 * second}, {"pause", "n2", 20 * second, 23 * second},
			{"partition", "n1 n2 | n3", 31 * second, 38 * second}, {"clock", "n3", 45 * second, 0}, {"kill", "n1", 50 * second, 52 * second},
		},
		Checks: []history.Verdict{{Checker: "replicas", Judged: "8 groups on 3 nodes have equal digests"}},
	}
	calm := func(at time.Duration) bool {
		for _, f := range r.Faults[:3] {
			if at > f.From && at < f.From+second {
				return false
			}
		}
		return true
	}
	for i, name := range []string{"register", "scan", "set"} {
		w := Workload{About: workload.About(name), Verdict: workload.Verdict{Workload: name}}
		const clients = 10
		for c := range clients {
			at := time.Duration(rng.Intn(1000)) * time.Microsecond
			gap := 60 * second * 3 * clients / time.Duration(operations)
			for at < 60*second {
				s := history.Span{Client: i*clients + c, Name: "get <k>", Call: at}
				took := time.Duration(float64(gap) * (0.2 + rng.Float64()*0.8))
				if !calm(at) {
					took += time.Duration(rng.Intn(900)) * time.Millisecond
					switch rng.Intn(6) {
					case 0:
						s.Outcome = history.Unknown
					case 1:
						s.Outcome = history.Refused
					}
				}
				s.Return = at + took
				at = s.Return + gap/10
				w.Timeline = append(w.Timeline, s)
				switch s.Outcome {
				case history.Unknown:
					w.Verdict.Counts.Unknown++
				case history.Refused:
					w.Verdict.Counts.Refused++
				default:
					w.Verdict.Counts.Answered++
				}
			}
		}
		w.Verdict.Checks = []history.Verdict{{Checker: "answers", Judged: "0 that nothing explains"}, {Checker: "linearizability", Judged: "4812 operations on 36 documents"}}
		r.Workloads = append(r.Workloads, w)
	}
	if anomalies {
		ms := time.Millisecond
		doc := func(c int, call, ret time.Duration, in history.Input, out history.Output) history.Operation {
			return history.Operation{Client: c, Call: call, Return: ret, Input: in, Output: out}
		}
		ops := []history.Operation{
			doc(1, 31000*ms, 31020*ms, history.Input{Key: "d0-1", Verb: history.Put, Value: "c1-7"}, history.Output{Version: 7}),
			doc(1, 31200*ms, 31260*ms, history.Input{Key: "d0-1", Verb: history.Put, Value: "c1-8"}, history.Output{Version: 8}),
			doc(4, 31300*ms, 31340*ms, history.Input{Key: "d0-1", Verb: history.Get}, history.Output{Version: 7, Document: true, Value: "c1-7"}),
		}
		for v := range uint64(6) {
			at := time.Duration(v) * 10 * ms
			ops = append(ops, doc(2, at, at+5*ms, history.Input{Key: "d0-1", Verb: history.Put, Value: fmt.Sprint("c2-", v)}, history.Output{Version: v + 1}))
		}
		for _, op := range ops {
			r.Workloads[0].Timeline = append(r.Workloads[0].Timeline, history.Span{Client: op.Client, Name: op.Input.Key, Call: op.Call, Return: op.Return})
		}
		reg := &r.Workloads[0].Verdict
		reg.Checks = append(reg.Checks, history.Linearizability{}.Check(ops), history.StrictSerializability{}.Check(history.Singles(ops)))
		txn := func(c int, call, ret time.Duration, parts ...history.Part) history.Transaction {
			return history.Transaction{Client: c, Name: "scan </script>", Call: call, Return: ret, Parts: parts}
		}
		get := func(key string, list ...string) history.Part {
			if list == nil {
				return history.Part{Input: history.Input{Key: key}, Output: history.Output{Outcome: history.Missing}}
			}
			return history.Part{Input: history.Input{Key: key}, Output: history.Output{Document: true, List: list}}
		}
		push := func(key, v string) history.Part {
			return history.Part{Input: history.Input{Key: key, Verb: history.Append, Value: v}}
		}
		sc := &r.Workloads[1].Verdict
		sc.Checks = append(sc.Checks, history.StrictSerializability{}.Check([]history.Transaction{
			txn(11, 40000*ms, 40020*ms, push("x", "1")),
			txn(12, 40025*ms, 40045*ms, push("y", "1")),
			txn(13, 40010*ms, 40060*ms, get("x"), get("y", "1")),
			txn(13, 41000*ms, 41010*ms, get("x", "1"), get("y", "1")),
		}))
		if n := r.Anomalies(); n < 3 {
			t.Fatalf("the sample has %d anomalies only", n)
		}
	}
	return r
}

func htmlOf(t testing.TB, r *Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestPage: the page is self-contained, says what was found, draws it, and
// stays small whatever the length of the run.
func TestPage(t *testing.T) {
	for _, c := range []struct {
		name       string
		operations int
		anomalies  bool
		most       int // bytes
		want       []string
	}{
		{"passed", 1500, false, 1 << 20, []string{"✓ passed", "kill n1, 8s to 12s", "replicas", "8 groups on 3 nodes"}},
		{"failed", 1500, true, 4 << 20, []string{
			"✗ failed", "not linearizable", "stale read", "causal reverse", "T1 before T2", "real time", "The whole history of the document", `class="bad"`,
		}},
		{"long", 100_000, true, 5 << 20, []string{"✗ failed", "stale read"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			page := htmlOf(t, sample(t, c.operations, c.anomalies))
			t.Logf("%d KiB in %v", len(page)>>10, time.Since(began))
			if err := os.WriteFile(filepath.Join(t.ArtifactDir(), "report.html"), []byte(page), 0o644); err != nil {
				t.Fatal(err)
			}
			if len(page) > c.most {
				t.Errorf("%d bytes, want at most %d", len(page), c.most)
			}
			for _, w := range c.want {
				if !strings.Contains(page, w) {
					t.Errorf("no %q on the page", w)
				}
			}
			own := regexp.MustCompile(`srcdoc="[^"]*"`).ReplaceAllString(page, "")
			for _, outside := range []string{"src=", "href=", "url(", "@import", "<script"} {
				if strings.Contains(own, outside) {
					t.Errorf("the page has %q", outside)
				}
			}
			if strings.Contains(page, "get <k>") || strings.Contains(page, "scan </script>") {
				t.Error("a name is on the page as it is, and not escaped")
			}
			if strings.Contains(own, "NaN") || strings.Contains(own, "Inf") {
				t.Error("a coordinate is no number")
			}
		})
	}
}

// TestEmpty: a run in which nothing happened has a page too.
func TestEmpty(t *testing.T) {
	page := htmlOf(t, &Report{Title: "nothing"})
	if !strings.Contains(page, "✓ passed") || strings.Contains(page, "NaN") {
		t.Error(page)
	}
	one := &Report{Title: "one", Workloads: []Workload{{Timeline: []history.Span{{Name: "get", Outcome: history.Unknown}}}}}
	if page := htmlOf(t, one); strings.Contains(page, "NaN") {
		t.Error(page)
	}
}

func TestJSON(t *testing.T) {
	for _, anomalies := range []bool{false, true} {
		r := sample(t, 1500, anomalies)
		var b bytes.Buffer
		if err := r.WriteJSON(&b); err != nil {
			t.Fatal(err)
		}
		var got struct {
			Format    int
			Passed    bool
			Anomalies int
			Seconds   float64
			Faults    []struct{ Name, Target string }
			Workloads []struct {
				Name     string
				Passed   bool
				Answered int64
				Checks   []struct {
					Checker   string
					Anomalies []struct {
						Name         string
						Transactions []string
						Cycle        []struct{ From, To int }
					}
				}
			}
		}
		if err := json.Unmarshal(b.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got.Format != Format || got.Passed == anomalies || (got.Anomalies > 0) != anomalies || got.Seconds != 60 || len(got.Faults) != 5 || len(got.Workloads) != 3 {
			t.Errorf("got %+v", got)
		}
		found := 0
		for _, w := range got.Workloads {
			mine := 0
			for _, c := range w.Checks {
				for _, a := range c.Anomalies {
					mine++
					if len(a.Cycle) != 0 && len(a.Cycle) != len(a.Transactions) {
						t.Errorf("%s: %d edges for %d transactions", a.Name, len(a.Cycle), len(a.Transactions))
					}
				}
			}
			if w.Passed != (mine == 0) {
				t.Errorf("%s passed is %v with %d anomalies", w.Name, w.Passed, mine)
			}
			found += mine
		}
		if found != got.Anomalies {
			t.Errorf("%d anomalies are said, %d are there", got.Anomalies, found)
		}
	}
}

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		from, to time.Duration
		want     string
	}{
		{0, time.Minute, "[0s 10s 20s 30s 40s 50s 1m0s]"},
		{0, 10 * time.Second, "[0s 1s 2s 3s 4s 5s 6s 7s 8s 9s 10s]"},
		{31 * time.Millisecond, 32 * time.Millisecond, "[31ms 31.1ms 31.2ms 31.3ms 31.4ms 31.5ms 31.6ms 31.7ms 31.8ms 31.9ms 32ms]"},
		{0, 0, "[0s]"},
	} {
		if got := fmt.Sprint(axis{from: c.from, to: c.to}.ticks(10)); got != c.want {
			t.Errorf("%v to %v: got %s, want %s", c.from, c.to, got, c.want)
		}
	}
}
