package history

import (
	"fmt"
	"strings"
	"time"
)

// Part is what a transaction did to, or read of, one document.
type Part struct {
	Input  Input
	Output Output
}

// Transaction is a call of one client over any number of documents, which is
// to take effect at one instant or not at all. A scan is one that only reads.
type Transaction struct {
	Client       int
	Name         string // for people: "scan t3/", "transfer"
	Call, Return time.Duration
	// Outcome is Done, Refused (nothing was done) or Unknown.
	Outcome Outcome
	Reason  string
	Parts   []Part
	// Time, if not 0, is the database's timestamp that the transaction read at.
	Time uint64
	// Seq is as an Operation's.
	Seq int
}

// Single is an operation as a transaction of one part.
func Single(op Operation) Transaction {
	t := Transaction{
		Client: op.Client, Call: op.Call, Return: op.Return, Seq: op.Seq,
		Reason: op.Output.Reason, Parts: []Part{{op.Input, op.Output}},
	}
	switch op.Output.Outcome {
	case Refused, Unknown:
		t.Outcome = op.Output.Outcome
	}
	return t
}

// Singles are operations as transactions.
func Singles(ops []Operation) []Transaction {
	all := make([]Transaction, len(ops))
	for i, op := range ops {
		all[i] = Single(op)
	}
	return all
}

// String prints the transaction on one line.
func (t Transaction) String() string {
	var b strings.Builder
	end := fmt.Sprint(t.Return.Microseconds())
	if t.Outcome == Unknown {
		end = "-"
	}
	fmt.Fprintf(&b, "%d..%s c%d ", t.Call.Microseconds(), end, t.Client)
	if len(t.Parts) == 1 && t.Name == "" {
		b.WriteString(describe(t.Parts[0].Input, t.Parts[0].Output))
		return b.String()
	}
	if t.Name != "" {
		b.WriteString(t.Name + " ")
	}
	b.WriteString("{")
	const shown = 12
	for i, p := range t.Parts {
		if i == shown {
			fmt.Fprintf(&b, "; … %d more", len(t.Parts)-shown)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(describe(p.Input, p.Output))
	}
	fmt.Fprintf(&b, "} %s", t.Outcome)
	if t.Time != 0 {
		fmt.Fprintf(&b, " time=%d", t.Time)
	}
	if t.Reason != "" {
		fmt.Fprintf(&b, " # %s", t.Reason)
	}
	return b.String()
}
