package history

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// parse reads operations in the form that Operation.String prints:
//
//	CALL..RETURN cCLIENT VERB KEY [VALUE] [add=N] [if=V] [of=V] [at=T] [absent] [present] -> OUTCOME [vN] [time=T] [VALUE count=N | list=A,B] [# reason]
//
// RETURN is "-" for an outcome that nobody knows.
func parse(line string) (op Operation, err error) {
	line, reason, _ := strings.Cut(line, " # ")
	asked, told, ok := strings.Cut(line, " -> ")
	f, g := strings.Fields(asked), strings.Fields(told)
	if !ok || len(f) < 4 || len(g) < 1 {
		return op, fmt.Errorf("%q: want CALL..RETURN cN VERB KEY … -> OUTCOME …", line)
	}
	call, end, _ := strings.Cut(f[0], "..")
	if op.Call, err = micros(call); err != nil {
		return op, err
	}
	if end != "-" {
		if op.Return, err = micros(end); err != nil {
			return op, err
		}
	}
	if op.Client, err = strconv.Atoi(strings.TrimPrefix(f[1], "c")); err != nil {
		return op, err
	}
	verb := slices.Index(verbNames[:], f[2])
	outcome := slices.Index(outcomeNames[:], g[0])
	if verb < 0 || outcome < 0 {
		return op, fmt.Errorf("%q: no such verb or outcome", line)
	}
	op.Input = Input{Key: f[3], Verb: Verb(verb)}
	for _, w := range f[4:] {
		name, number, isNumber := strings.Cut(w, "=")
		n, _ := strconv.ParseInt(number, 10, 64)
		switch {
		case isNumber && name == "add":
			op.Input.Add = n
		case isNumber && name == "if":
			op.Input.IfVersion = uint64(n)
		case isNumber && name == "of":
			op.Input.AtVersion = uint64(n)
		case isNumber && name == "at":
			op.Input.AtTime = uint64(n)
		case w == "absent":
			op.Input.IfAbsent = true
		case w == "present":
			op.Input.IfPresent = true
		default:
			op.Input.Value = w
		}
	}
	op.Output = Output{Outcome: Outcome(outcome), Reason: reason}
	for _, w := range g[1:] {
		switch {
		case strings.HasPrefix(w, "count="):
			op.Output.Count, err = strconv.ParseInt(w[len("count="):], 10, 64)
			op.Output.Document = true
		case strings.HasPrefix(w, "time="):
			op.Output.Time, err = strconv.ParseUint(w[len("time="):], 10, 64)
		case strings.HasPrefix(w, "list="):
			op.Output.Document, op.Output.List = true, []string{}
			if w != "list=" {
				op.Output.List = strings.Split(w[len("list="):], ",")
			}
		case op.Output.Version == 0 && strings.HasPrefix(w, "v"):
			op.Output.Version, err = strconv.ParseUint(w[1:], 10, 64)
		default:
			op.Output.Value = w
		}
	}
	return op, err
}

func micros(s string) (time.Duration, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	return time.Duration(n) * time.Microsecond, err
}

// TestParse keeps the printed form and the parsed form the same, so that a
// failure's operations can be pasted into testdata.
func TestParse(t *testing.T) {
	for _, line := range []string{
		"0..5 c1 put k a -> done v1",
		"5..9 c2 get k -> done v1 a count=0",
		"5..- c2 add k b add=3 if=1 -> unknown # connection closed",
		"5..7 c2 insert k b absent present -> exists v1",
		"5..7 c2 get k of=3 -> done v3 time=77 b count=0",
		"5..7 c2 get k at=80 -> done v3 time=77 list=a,b",
		"5..7 c2 get k -> done list=",
	} {
		op, err := parse(line)
		if err != nil {
			t.Fatal(err)
		}
		if got := op.String(); got != line {
			t.Errorf("got  %s\nwant %s", got, line)
		}
	}
}

// parseTransaction reads a transaction in the form that Transaction.String
// prints, with "seq=N" behind:
//
//	CALL..RETURN cCLIENT [NAME] {PART; PART} OUTCOME [time=T] [seq=N]
//	CALL..RETURN cCLIENT VERB KEY … -> OUTCOME …
//
// A part is what parse reads behind the client; without "->" it is done.
func parseTransaction(line string) (t Transaction, err error) {
	head, rest, many := strings.Cut(line, "{")
	if !many {
		op, err := parse(line)
		return Single(op), err
	}
	body, tail, _ := strings.Cut(rest, "}")
	f := strings.Fields(head)
	op, err := parse(strings.Join(f[:2], " ") + " get k -> done")
	if err != nil {
		return t, err
	}
	t = Transaction{Client: op.Client, Call: op.Call, Return: op.Return, Name: strings.Join(f[2:], " ")}
	for part := range strings.SplitSeq(body, ";") {
		part = strings.TrimSpace(part)
		if !strings.Contains(part, "->") {
			part += " -> done"
		}
		op, err := parse("0..0 c0 " + part)
		if err != nil {
			return t, err
		}
		t.Parts = append(t.Parts, Part{op.Input, op.Output})
	}
	for i, w := range strings.Fields(tail) {
		name, number, _ := strings.Cut(w, "=")
		n, _ := strconv.ParseUint(number, 10, 64)
		switch {
		case i == 0:
			o := slices.Index(outcomeNames[:], w)
			if o < 0 {
				return t, fmt.Errorf("%q: no such outcome", line)
			}
			t.Outcome = Outcome(o)
		case name == "seq":
			t.Seq = int(n)
		case name == "time":
			t.Time = n
		}
	}
	return t, nil
}
