package history

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// Linearizability decides whether every document of a history behaved as one
// copy that changes at one instant between call and return. Documents are
// judged one by one, which is enough: the property is local (Herlihy and Wing,
// "Linearizability: a correctness condition for concurrent objects", 1990).
// The search is porcupine's. Its time grows fast with the operations on one
// document; keep below about a thousand. The zero value works.
type Linearizability struct {
	// Timeout bounds the search over one document. Too short turns a healthy
	// history into an undecided one, which is a failure. Zero means 30s.
	Timeout time.Duration
	// Shrinking bounds the search for the shortest history that still fails.
	// Zero means a tenth of Timeout, negative: none.
	Shrinking time.Duration
}

// Check judges the operations. Reads of the past say nothing of the present
// and are left out, and so is what was refused or never answered to a reader.
func (c Linearizability) Check(ops []Operation) Verdict {
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Shrinking == 0 {
		c.Shrinking = c.Timeout / 10
	}
	judged, unknown, refused := 0, 0, 0
	byKey := map[string][]Operation{}
	for _, op := range ops {
		switch {
		case op.Output.Outcome == Refused:
			refused++
			continue
		case op.Input.Past(), op.Output.Outcome == Unknown && !op.Input.Writes():
			continue
		case op.Output.Outcome == Unknown:
			unknown++
		}
		judged++
		byKey[op.Input.Key] = append(byKey[op.Input.Key], op)
	}
	v := Verdict{Checker: "linearizability", Judged: fmt.Sprintf("%d operations on %d documents (%d outcomes unknown, %d refused)",
		judged, len(byKey), unknown, refused)}
	var f found
	for _, k := range slices.Sorted(maps.Keys(byKey)) {
		c.document(&f, k, byKey[k])
	}
	v.Anomalies = f.ends()
	return v
}

func (c Linearizability) document(f *found, key string, ops []Operation) {
	slices.SortStableFunc(ops, func(a, b Operation) int { return cmp.Compare(a.Call, b.Call) })
	result, info := porcupine.CheckOperationsVerbose(model, porcupineHistory(ops), c.Timeout)
	if result == porcupine.Ok {
		return
	}
	a := Anomaly{Name: "not linearizable"}
	var b strings.Builder
	if result == porcupine.Unknown {
		a.Name = "undecided"
		fmt.Fprintf(&b, "%s: undecided after %v (%d operations): record fewer operations per document", key, c.Timeout, len(ops))
	} else {
		fmt.Fprintf(&b, "%s: not linearizable", key)
		explain(&b, ops, info)
		if c.Shrinking > 0 {
			var start document
			start, a.Operations = c.shrink(ops)
			fmt.Fprintf(&b, "\n  the shortest history found that shows it, from %v:", start)
			for _, op := range a.Operations[:min(len(a.Operations), 3*shown)] {
				fmt.Fprintf(&b, "\n  %s", op)
			}
		}
	}
	var page bytes.Buffer
	if err := porcupine.Visualize(model, info, &page); err == nil {
		a.Page = page.Bytes()
	}
	a.Text = b.String()
	f.add(a)
}

// illegalFrom says that no order explains the operations from a state on. What
// cannot be decided in time is not illegal.
func illegalFrom(start document, ops []Operation, timeout time.Duration) bool {
	m := model
	m.Init = func() any { return start }
	return porcupine.CheckOperationsTimeout(m, porcupineHistory(ops), timeout) == porcupine.Illegal
}

// porcupineHistory is ops, which are in order of call, for porcupine.
func porcupineHistory(ops []Operation) []porcupine.Operation {
	history := make([]porcupine.Operation, len(ops))
	for i, op := range ops {
		end := int64(op.Return)
		if op.Output.Outcome == Unknown {
			end = math.MaxInt64
		}
		history[i] = porcupine.Operation{
			ClientId: op.Client, Input: op.Input, Output: op.Output, Call: int64(op.Call), Return: end,
		}
	}
	return history
}

// shown is how many operations an explanation lists.
const shown = 8

// explain prints where the longest explanation of the history stops: its last
// steps, the document it led to, and what no longer fits.
func explain(b *strings.Builder, ops []Operation, info porcupine.LinearizationInfo) {
	var longest []porcupine.Operation
	for _, group := range info.PartialLinearizationsOperations() {
		for _, p := range group {
			if len(p) > len(longest) {
				longest = p
			}
		}
	}
	var d document
	used := map[string]int{}
	for _, op := range longest {
		_, d = d.step(op.Input.(Input), op.Output.(Output))
		used[describe(op.Input.(Input), op.Output.(Output))]++
	}
	fmt.Fprintf(b, "; an order explains %d of %d operations, ending with", len(longest), len(ops))
	for _, op := range longest[max(0, len(longest)-shown):] {
		fmt.Fprintf(b, "\n  %s", Operation{
			Client: op.ClientId, Input: op.Input.(Input), Output: op.Output.(Output),
			Call: time.Duration(op.Call), Return: time.Duration(op.Return),
		})
	}
	fmt.Fprintf(b, "\n  the document is then: %v\n  none of these can follow:", d)
	left := 0
	for _, op := range ops {
		text := describe(op.Input, op.Output)
		if used[text] > 0 {
			used[text]--
			continue
		}
		if left++; left <= shown {
			fmt.Fprintf(b, "\n  %s", op)
		}
	}
	if left > shown {
		fmt.Fprintf(b, "\n  … and %d more", left-shown)
	}
}
