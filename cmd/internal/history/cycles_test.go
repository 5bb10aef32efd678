package history

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTransactions(t *testing.T) {
	text, err := os.ReadFile("testdata/transactions.txt")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for block := range strings.SplitSeq(string(text), "\n\n") {
		lines := strings.Split(strings.TrimSpace(block), "\n")
		want, name, ok := strings.Cut(lines[0], ": ")
		if !ok || strings.HasPrefix(lines[0], "#") {
			continue
		}
		seen[want] = true
		t.Run(want+" "+name, func(t *testing.T) {
			var txns []Transaction
			for _, l := range lines[1:] {
				x, err := parseTransaction(l)
				if err != nil {
					t.Fatal(err)
				}
				txns = append(txns, x)
			}
			v := StrictSerializability{}.Check(txns)
			var names []string
			for _, a := range v.Anomalies {
				names = append(names, a.Name)
				checkCycle(t, a)
			}
			switch {
			case want == "serializable" && len(names) > 0:
				t.Errorf("want none, got %v:\n%v", names, v.Err())
			case want != "serializable" && !slices.Contains(names, want):
				t.Errorf("want %s, got %v:\n%v", want, names, v.Err())
			}
			inTime := strings.Contains(want, "realtime") || slices.Contains([]string{"stale read", "causal reverse"}, want)
			if v := (StrictSerializability{AnyOrder: true}).Check(txns); (len(v.Anomalies) > 0) != (want != "serializable" && !inTime) {
				t.Errorf("without time: %v", v.Err())
			}
		})
	}
	for _, name := range []string{"serializable", "G0", "G1a", "G1b", "G1c", "G-single", "G2", "lost update", "stale read", "causal reverse",
		"incompatible order", "duplicate", "phantom", "internal", "lost write", "version changed", "G0-realtime", "G1c-realtime", "G-single-realtime", "G2-realtime"} {
		if !seen[name] {
			t.Errorf("no history of %s", name)
		}
	}
}

// checkCycle: a cycle that is shown is one.
func checkCycle(t *testing.T, a Anomaly) {
	t.Helper()
	for i, e := range a.Cycle {
		if e.From != i || e.To != (i+1)%len(a.Cycle) || e.Why == "" {
			t.Errorf("%s: edge %d is %+v of %d", a.Name, i, e, len(a.Cycle))
		}
		from, to := a.Transactions[e.From], a.Transactions[e.To]
		if e.Kind == RealTime && (from.Outcome != Done || from.Return >= to.Call) {
			t.Errorf("%s: edge %d is not in time: %s before %s", a.Name, i, from, to)
		}
	}
	for i := range a.Transactions {
		if len(a.Cycle) > 0 && len(a.Cycle) != len(a.Transactions) {
			t.Errorf("%s: %d edges for %d transactions (%d)", a.Name, len(a.Cycle), len(a.Transactions), i)
		}
	}
}

// TestTransactionText keeps the printed form readable by parseTransaction.
func TestTransactionText(t *testing.T) {
	for _, line := range []string{
		"0..5 c1 transfer {append x 1 -> done v1; get y -> done list=2} done time=7",
		"0..- c1 {put x a if=2 -> done; put y b -> done} unknown # gone",
		"0..5 c1 put x a -> done v1",
	} {
		x, err := parseTransaction(line)
		if err != nil {
			t.Fatal(err)
		}
		if _, reason, ok := strings.Cut(line, " # "); ok {
			x.Reason = reason
		}
		if got := x.String(); got != line {
			t.Errorf("got  %s\nwant %s", got, line)
		}
	}
}

// TestManyTransactions: tens of thousands are judged in seconds, and one stale
// read among them is found and shown by itself.
func TestManyTransactions(t *testing.T) {
	const n, clients = 60_000, 40
	var txns []Transaction
	lists := map[string][]string{}
	at := time.Duration(0)
	for i := range n {
		at += time.Microsecond
		key := fmt.Sprint("k", i/2000, "-", i%7)
		other := fmt.Sprint("k", i/2000, "-", (i+3)%7)
		e := fmt.Sprint(i)
		read := Output{Outcome: Done, List: slices.Clone(lists[other])}
		if read.List == nil {
			read = Output{Outcome: Missing}
		} else {
			read.Document = true
		}
		x := Transaction{
			Client: i % clients, Call: at - clients/2*time.Microsecond, Return: at + clients/2*time.Microsecond,
			Parts: []Part{{Input{Key: other, Verb: Get}, read}},
		}
		if i%2 == 0 {
			lists[key] = append(lists[key], e)
			x.Parts = append(x.Parts, Part{Input{Key: key, Verb: Append, Value: e}, Output{Outcome: Done}})
		}
		txns = append(txns, x)
	}
	began := time.Now()
	if err := (StrictSerializability{}).Check(txns).Err(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("%d transactions in %v", n, took)
	if took > 20*time.Second {
		t.Errorf("%d transactions took %v", n, took)
	}
	victim := &txns[n/2+1001]
	list := victim.Parts[0].Output.List
	victim.Parts[0].Output.List = list[:len(list)-40]
	began = time.Now()
	v := StrictSerializability{}.Check(txns)
	t.Logf("with a stale read in %v", time.Since(began))
	if len(v.Anomalies) != 1 || v.Anomalies[0].Name != "stale read" || len(v.Anomalies[0].Cycle) != 2 {
		t.Fatalf("want one stale read of two transactions, got %v", v.Err())
	}
}
