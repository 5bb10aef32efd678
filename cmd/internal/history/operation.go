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
	// Restore writes an old version again as the newest; Value is what that
	// version had.
	Restore
	// Append adds Value to the end of the document's list, which is created if
	// it is missing.
	Append
)

var verbNames = [...]string{"get", "put", "insert", "add", "addOrCreate", "delete", "restore", "append"}

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
	// AtVersion and AtTime make a Get one of the past; a Restore restores
	// AtVersion. AtTime is a timestamp of the database.
	AtVersion, AtTime uint64
}

// Past says that the operation reads the past, which says nothing of the
// present.
func (in Input) Past() bool { return in.Verb == Get && (in.AtVersion != 0 || in.AtTime != 0) }

// Writes says that the operation changes its document if it is done.
func (in Input) Writes() bool { return in.Verb != Get }

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
	// Time is the database's timestamp of that version; 0: not told.
	Time uint64
	// Document says that Value, Count and List were told.
	Document bool
	Value    string
	Count    int64
	List     []string // what Append made; nil for documents without a list
	// Reason is the error's text, for people.
	Reason string
}

// Operation is one call of one client. Call and Return are on one clock.
type Operation struct {
	Client       int
	Input        Input
	Output       Output
	Call, Return time.Duration
	// Seq, if not 0, orders operations that one client asked for in one call:
	// the one with the larger Seq takes effect after the one with the smaller.
	Seq int
}

// String prints the operation in the form that the tests' parse reads.
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
	if in.AtVersion != 0 {
		fmt.Fprintf(&b, " of=%d", in.AtVersion)
	}
	if in.AtTime != 0 {
		fmt.Fprintf(&b, " at=%d", in.AtTime)
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
	if out.Time != 0 {
		fmt.Fprintf(&b, " time=%d", out.Time)
	}
	switch {
	case out.Document && out.List != nil:
		fmt.Fprintf(&b, " list=%s", strings.Join(out.List, ","))
	case out.Document:
		fmt.Fprintf(&b, " %s count=%d", out.Value, out.Count)
	}
	if out.Reason != "" {
		fmt.Fprintf(&b, " # %s", out.Reason)
	}
	return b.String()
}
