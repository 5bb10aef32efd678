package history

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// Options of Judge. The zero value works.
type Options struct {
	// Timeout bounds the search over one document. Too short turns a healthy
	// history into an undecided one, which is a failure. Zero means 30s.
	Timeout time.Duration
	// PicturesIn is a directory for a page per document that failed; empty: none.
	PicturesIn string
}

// Verdict is what Judge found in a history that is linearizable.
type Verdict struct {
	Documents  int
	Operations int // all that were judged
	Unknown    int // of these, writes whose outcome nobody knows
	Refused    int // left out: nothing was done, nothing was told
}

func (v Verdict) String() string {
	return fmt.Sprintf("%d operations on %d documents are linearizable (%d outcomes unknown, %d refused)",
		v.Operations, v.Documents, v.Unknown, v.Refused)
}

// Judge decides whether every document of the history behaved as one copy that
// changes at one instant between call and return. The error describes each
// document that did not, or that could not be decided in time.
func Judge(ops []Operation, o Options) (Verdict, error) {
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	var v Verdict
	byKey := map[string][]Operation{}
	for _, op := range ops {
		switch {
		case op.Output.Outcome == Refused:
			v.Refused++
			continue
		case op.Output.Outcome == Unknown && op.Input.Verb == Get:
			continue // says nothing, changes nothing
		case op.Output.Outcome == Unknown:
			v.Unknown++
		}
		v.Operations++
		byKey[op.Input.Key] = append(byKey[op.Input.Key], op)
	}
	v.Documents = len(byKey)
	keys := make([]string, 0, len(byKey))
	for k := range byKey {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var failed []error
	for _, k := range keys {
		if err := judgeDocument(k, byKey[k], o); err != nil {
			failed = append(failed, err)
		}
	}
	return v, errors.Join(failed...)
}

func judgeDocument(key string, ops []Operation, o Options) error {
	slices.SortStableFunc(ops, func(a, b Operation) int { return cmp.Compare(a.Call, b.Call) })
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
	result, info := porcupine.CheckOperationsVerbose(model, history, o.Timeout)
	if result == porcupine.Ok {
		return nil
	}
	var b strings.Builder
	if result == porcupine.Unknown {
		fmt.Fprintf(&b, "%s: undecided after %v (%d operations): record fewer operations per document", key, o.Timeout, len(ops))
	} else {
		fmt.Fprintf(&b, "%s: not linearizable", key)
		explain(&b, ops, info)
	}
	if o.PicturesIn != "" {
		path := filepath.Join(o.PicturesIn, strings.Map(fileRune, key)+".html")
		if err := porcupine.VisualizePath(model, info, path); err == nil {
			fmt.Fprintf(&b, "\n  picture: %s", path)
		}
	}
	return errors.New(b.String())
}

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
	const shown = 8
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

// fileRune keeps a key usable as a file name.
func fileRune(r rune) rune {
	if r == '-' || r == '_' || r == '.' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
		return r
	}
	return '_'
}
