package history

import (
	"fmt"
	"strings"
	"time"
)

// Verb is what an operation asks for.
type Verb uint8

// The verbs are the document operations. Add and AddOrCreate are updates that
// increment Count and set Value; the others replace or remove the document.
const (
	Get Verb = iota
	Put
	Insert
	Add
	AddOrCreate
	Delete
)

var verbNames = [...]string{"get", "put", "insert", "add", "addOrCreate", "delete"}

func (v Verb) String() string { return verbNames[v] }

// Input is what a client asked.
type Input struct {
	Key  string
	Verb Verb
	// Value is the value written; every write of a history has another one, so
	// that a read names the write it saw.
	Value string
	// Add is what Add and AddOrCreate increment Count by.
	Add int64
	// IfVersion is the version that the write insists on; 0: any.
	IfVersion uint64
	// IfAbsent and IfPresent are the other conditions of a write.
	IfAbsent, IfPresent bool
}

// Outcome is what the client was told.
type Outcome uint8

const (
	// Done: it took effect, or the document was found.
	Done Outcome = iota
	// Missing: there is no document; nothing was done.
	Missing
	// Conflict: the document has another version than IfVersion; nothing was done.
	Conflict
	// Exists: the document is there and must not be; nothing was done.
	Exists
	// Refused: nothing was done, for a reason that says nothing of the document
	// (no leader, overloaded, shutting down).
	Refused
	// Unknown: it may have taken effect, or will.
	Unknown
)

var outcomeNames = [...]string{"done", "missing", "conflict", "exists", "refused", "unknown"}

func (o Outcome) String() string { return outcomeNames[o] }

// Output is what the client was told.
type Output struct {
	Outcome Outcome
	// Version is the document's version after a write or as read, and the
	// version that stood in the way of a Conflict or an Exists; 0: not told.
	Version uint64
	// Document says that Value and Count were told.
	Document bool
	Value    string
	Count    int64
	// Reason is the error's text, for people.
	Reason string
}

// Operation is one call of one client. Call and Return are on one clock.
type Operation struct {
	Client       int
	Input        Input
	Output       Output
	Call, Return time.Duration
}

// String prints the operation in the form that Parse reads.
func (o Operation) String() string {
	var b strings.Builder
	end := fmt.Sprint(o.Return.Microseconds())
	if o.Output.Outcome == Unknown {
		end = "-"
	}
	fmt.Fprintf(&b, "%d..%s c%d %s", o.Call.Microseconds(), end, o.Client, describe(o.Input, o.Output))
	return b.String()
}

// describe prints an operation without its times.
func describe(in Input, out Output) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", in.Verb, in.Key)
	if in.Value != "" {
		fmt.Fprintf(&b, " %s", in.Value)
	}
	if in.Add != 0 {
		fmt.Fprintf(&b, " add=%d", in.Add)
	}
	if in.IfVersion != 0 {
		fmt.Fprintf(&b, " if=%d", in.IfVersion)
	}
	if in.IfAbsent {
		b.WriteString(" absent")
	}
	if in.IfPresent {
		b.WriteString(" present")
	}
	fmt.Fprintf(&b, " -> %s", out.Outcome)
	if out.Version != 0 {
		fmt.Fprintf(&b, " v%d", out.Version)
	}
	if out.Document {
		fmt.Fprintf(&b, " %s count=%d", out.Value, out.Count)
	}
	if out.Reason != "" {
		fmt.Fprintf(&b, " # %s", out.Reason)
	}
	return b.String()
}
