package history

import (
	"fmt"
	"strings"

	"github.com/anishathalye/porcupine"
)

// document is the state of the model: what one document must look like.
//
// Invariant: version counts every change, removals included, so it never
// repeats. A document that is created again after a removal goes on from the
// removal's version.
type document struct {
	present bool
	version uint64
	value   string
	count   int64
	list    string // the elements of Append, each before a separator
}

// separator ends an element in a document's list. Values do not have it.
const separator = "\x1f"

func (d document) String() string {
	if !d.present {
		return fmt.Sprintf("absent (last v%d)", d.version)
	}
	if d.list != "" {
		return fmt.Sprintf("v%d [%s]", d.version, strings.ReplaceAll(strings.TrimSuffix(d.list, separator), separator, " "))
	}
	return fmt.Sprintf("v%d %s count=%d", d.version, d.value, d.count)
}

// refusal is why the document refuses the operation; Done if it does not.
func (d document) refusal(in Input) Outcome {
	switch in.Verb {
	case Get, Delete, Add:
		if !d.present {
			return Missing
		}
	case Insert:
		if d.present {
			return Exists
		}
	}
	switch {
	case in.IfAbsent && d.present:
		return Exists
	case in.IfPresent && !d.present:
		return Missing
	case in.IfVersion != 0 && (!d.present || d.version != in.IfVersion):
		return Conflict
	}
	return Done
}

// after is the document once the operation took effect.
func (d document) after(in Input) document {
	switch in.Verb {
	case Get:
		return d
	case Delete:
		return document{version: d.version + 1}
	case Add, AddOrCreate:
		if !d.present {
			d.count = 0
		}
		return document{present: true, version: d.version + 1, value: in.Value, count: d.count + in.Add}
	case Append:
		if !d.present {
			d.list = ""
		}
		return document{present: true, version: d.version + 1, list: d.list + in.Value + separator}
	default:
		return document{present: true, version: d.version + 1, value: in.Value}
	}
}

// step says whether the document can answer out to in, and what it is then.
func (d document) step(in Input, out Output) (bool, document) {
	refusal := d.refusal(in)
	switch out.Outcome {
	case Refused:
		return true, d
	case Unknown:
		// A condition that does not hold at this point leaves the document as
		// it was; the search is free to try another point.
		if refusal != Done {
			return true, d
		}
		return true, d.after(in)
	case Done:
		if refusal != Done {
			return false, d
		}
	default:
		if !d.refuses(in, refusal, out.Outcome) {
			return false, d
		}
		// The version in the way, where it was told, is the document's.
		return out.Version == 0 || (d.present && out.Version == d.version), d
	}
	next := d.after(in)
	if out.Version != 0 && out.Version != next.version {
		return false, d
	}
	if out.Document && !next.shows(out) {
		return false, d
	}
	return true, next
}

// shows says whether the document is the one that was told.
func (d document) shows(out Output) bool {
	if out.List == nil && d.list == "" {
		return out.Value == d.value && out.Count == d.count
	}
	rest := d.list
	for _, e := range out.List {
		var ok bool
		if rest, ok = strings.CutPrefix(rest, e+separator); !ok {
			return false
		}
	}
	return rest == ""
}

// refuses says whether told is a true account of refusal. Two accounts are
// true of a write that insists on a version of an absent document: it is
// missing, and it does not have that version.
func (d document) refuses(in Input, refusal, told Outcome) bool {
	if refusal == Done {
		return false
	}
	if !d.present && in.IfVersion != 0 {
		return told == Missing || told == Conflict
	}
	if d.present && in.IfVersion != 0 && d.version != in.IfVersion && told == Conflict {
		return true
	}
	return refusal == told
}

// model is document for porcupine. Documents are judged one by one: the
// guarantee is per document, and the search is exponential in what overlaps.
var model = porcupine.Model{
	Init: func() any { return document{} },
	Step: func(state, in, out any) (bool, any) {
		return state.(document).step(in.(Input), out.(Output))
	},
	DescribeOperation: func(in, out any) string { return describe(in.(Input), out.(Output)) },
	DescribeState:     func(state any) string { return state.(document).String() },
}
