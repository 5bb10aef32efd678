package history

import (
	"cmp"
	"slices"
	"time"
)

// Shrink is the shortest part of items, in their order, that it finds still to
// fail: delta debugging (Zeller and Hildebrandt, "Simplifying and isolating
// failure-inducing input", 2002) until no single item can be left out or the
// budget is used up. fails must be true of items, and leaving an item out must
// be sound: a healthy history must not fail without it. It is told how much of
// the budget is left.
func Shrink[T any](items []T, budget time.Duration, fails func(part []T, left time.Duration) bool) []T {
	deadline := time.Now().Add(budget)
	current := slices.Clone(items)
	for parts := 2; len(current) > 1; {
		size := (len(current) + parts - 1) / parts
		reduced := false
		for from := 0; from < len(current); from += size {
			left := time.Until(deadline)
			if left <= 0 {
				return current
			}
			without := slices.Concat(current[:from], current[min(from+size, len(current)):])
			if len(without) > 0 && fails(without, left) {
				current, reduced = without, true
				break
			}
		}
		switch {
		case reduced:
			parts = max(parts-1, 2)
		case size == 1:
			return current
		default:
			parts = min(2*parts, len(current))
		}
	}
	return current
}

// shrink is the shortest history found, of the operations on one document,
// that is not linearizable, from what state on. An operation cannot simply be
// left out: a read would then lack the write that it saw, and fail for no
// fault of the database. Three things can be left out:
//
//   - what comes behind a moment: every prefix of a linearizable history is
//     linearizable, operations under way at its end having unknown outcomes;
//   - what comes before an acknowledged write whose effect is known, where
//     versions tell what is before and what is behind it;
//   - reads and refusals, which change nothing.
func (c Linearizability) shrink(ops []Operation) (start document, short []Operation) {
	deadline := time.Now().Add(c.Shrinking)
	illegal := func(from document, ops []Operation) bool {
		left := time.Until(deadline)
		return left > 0 && illegalFrom(from, ops, left)
	}

	// The shortest prefix, by binary search over the returns.
	ends := make([]time.Duration, 0, len(ops))
	for _, op := range ops {
		if op.Output.Outcome != Unknown {
			ends = append(ends, op.Return)
		}
	}
	slices.Sort(ends)
	low, high := 0, len(ends)-1 // the prefix up to ends[high] fails
	for low < high {
		middle := (low + high) / 2
		if illegal(document{}, prefix(ops, ends[middle])) {
			high = middle
		} else {
			low = middle + 1
		}
	}
	if high >= 0 {
		ops = prefix(ops, ends[high])
	}

	// The latest write that everything before can be replaced by.
	starts := slices.Clone(ops)
	slices.SortStableFunc(starts, func(a, b Operation) int { return cmp.Compare(b.Output.Version, a.Output.Version) })
	var first []Operation
	for _, w := range starts {
		state, rest, ok := behind(ops, w)
		if ok && illegal(state, rest) {
			start, ops, first = state, rest, []Operation{w}
			break
		}
	}

	// Reads and refusals, one by one.
	idle := func(op Operation) bool {
		return !op.Input.Writes() || op.Output.Outcome != Done && op.Output.Outcome != Unknown
	}
	var still []Operation
	for _, op := range ops {
		if idle(op) {
			still = append(still, op)
		}
	}
	without := func(keep []Operation) []Operation {
		k := 0
		return slices.DeleteFunc(slices.Clone(ops), func(op Operation) bool {
			if !idle(op) {
				return false
			}
			if k < len(keep) && equal(keep[k], op) {
				k++
				return false
			}
			return true
		})
	}
	if illegal(start, without(nil)) {
		ops = without(nil)
	} else {
		ops = without(Shrink(still, time.Until(deadline), func(part []Operation, _ time.Duration) bool {
			return illegal(start, without(part))
		}))
	}
	return start, append(first, ops...)
}

// prefix is the history up to a moment.
func prefix(ops []Operation, end time.Duration) []Operation {
	var part []Operation
	for _, op := range ops {
		if op.Call > end {
			continue
		}
		if op.Return > end && op.Output.Outcome != Unknown {
			if !op.Input.Writes() {
				continue
			}
			op.Output = Output{Outcome: Unknown, Reason: "under way"}
		}
		part = append(part, op)
	}
	return part
}

// behind is the document after an acknowledged write, and the operations that
// took effect behind it or may have.
func behind(ops []Operation, w Operation) (document, []Operation, bool) {
	if w.Output.Outcome != Done || !w.Input.Writes() || w.Output.Version == 0 {
		return document{}, nil, false
	}
	d := document{present: true, version: w.Output.Version, value: w.Input.Value}
	switch {
	case w.Input.Verb == Delete:
		d = document{version: w.Output.Version}
	case w.Output.Document && w.Output.List == nil:
		d.value, d.count = w.Output.Value, w.Output.Count
	case w.Input.Verb == Add, w.Input.Verb == AddOrCreate, w.Input.Verb == Append:
		return document{}, nil, false
	}
	var rest []Operation
	for _, op := range ops {
		open := op.Output.Outcome == Unknown
		switch {
		case equal(op, w):
		case !open && op.Return < w.Call:
			// Before it, whatever it was told: that is what real time says.
		case open, op.Call > w.Return:
			rest = append(rest, op)
		case op.Output.Version > w.Output.Version:
			rest = append(rest, op)
		case !op.Input.Writes(), op.Output.Outcome != Done:
			// Beside it, and it changed nothing: it may be left out.
		case op.Output.Version == 0:
			return document{}, nil, false // a write on an unknown side
		}
	}
	return d, rest, true
}

func equal(a, b Operation) bool {
	return a.Client == b.Client && a.Call == b.Call && a.Return == b.Return && a.Seq == b.Seq &&
		a.Input == b.Input && a.Output.Outcome == b.Output.Outcome && a.Output.Version == b.Output.Version
}
