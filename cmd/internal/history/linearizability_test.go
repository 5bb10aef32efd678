package history

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestHistories(t *testing.T) {
	text, err := os.ReadFile("testdata/histories.txt")
	if err != nil {
		t.Fatal(err)
	}
	cases := 0
	for block := range strings.SplitSeq(string(text), "\n\n") {
		lines := strings.Split(strings.TrimSpace(block), "\n")
		verdict, name, ok := strings.Cut(lines[0], ": ")
		if !ok || strings.HasPrefix(lines[0], "#") {
			continue
		}
		cases++
		t.Run(name, func(t *testing.T) {
			var ops []Operation
			for _, l := range lines[1:] {
				op, err := parse(l)
				if err != nil {
					t.Fatal(err)
				}
				ops = append(ops, op)
			}
			err := Linearizability{}.Check(ops).Err()
			switch {
			case verdict == "linearizable" && err != nil:
				t.Errorf("want linearizable, got: %v", err)
			case verdict == "not linearizable" && err == nil:
				t.Error("want a violation, got none")
			case verdict == "not linearizable" && !strings.Contains(err.Error(), "not linearizable"):
				t.Errorf("want a violation, got another failure: %v", err)
			}
		})
	}
	if cases < 20 {
		t.Fatalf("only %d histories were read", cases)
	}
}

// TestUndecidedFails gives the search a history that it cannot finish in time.
func TestUndecidedFails(t *testing.T) {
	var ops []Operation
	for i := range 40 {
		// All overlap and none tells its version, so every order must be tried.
		ops = append(ops, Operation{
			Client: i, Input: Input{Key: "k", Verb: AddOrCreate, Add: 1 << i, Value: "x"},
			Output: Output{Outcome: Done}, Call: 0, Return: time.Second,
		})
	}
	ops = append(ops, Operation{
		Client: 99, Input: Input{Key: "k"}, Call: 2 * time.Second, Return: 3 * time.Second,
		Output: Output{Outcome: Done, Document: true, Value: "x", Count: -1},
	})
	err := Linearizability{Timeout: 20 * time.Millisecond}.Check(ops).Err()
	if err == nil || !strings.Contains(err.Error(), "undecided") {
		t.Fatalf("want undecided, got %v", err)
	}
}

// TestFailureExplains looks at what a person gets to see.
func TestFailureExplains(t *testing.T) {
	var ops []Operation
	for _, l := range []string{
		"0..5 c1 put users/k a -> done v1",
		"6..9 c1 put users/k b -> done v2",
		"10..12 c2 get users/k -> done v1 a count=0",
	} {
		op, err := parse(l)
		if err != nil {
			t.Fatal(err)
		}
		ops = append(ops, op)
	}
	v := Linearizability{}.Check(ops)
	err := v.Err()
	if err == nil {
		t.Fatal("want a violation")
	}
	for _, want := range []string{
		"users/k: not linearizable; an order explains 2 of 3 operations",
		"the document is then: v2 b count=0",
		"10..12 c2 get users/k -> done v1 a count=0",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
	if page := string(v.Anomalies[0].Page); !strings.Contains(page, "<html") || !strings.Contains(page, "users/k") {
		t.Errorf("no picture of users/k, but %d bytes", len(page))
	}
}

func TestSet(t *testing.T) {
	for _, c := range []struct {
		name  string
		tried map[string]Outcome
		found []string
		want  string // in the error; empty: none
	}{
		{"all there", map[string]Outcome{"a": Done, "b": Done}, []string{"a", "b"}, ""},
		{"lost", map[string]Outcome{"a": Done, "b": Done}, []string{"a"}, "1 acknowledged and lost: [b]"},
		{"unknown may be there", map[string]Outcome{"a": Unknown}, []string{"a"}, ""},
		{"unknown may be missing", map[string]Outcome{"a": Unknown}, nil, ""},
		{"refused must be missing", map[string]Outcome{"a": Refused}, []string{"a"}, "1 refused and there all the same: [a]"},
		{"foreign", nil, []string{"a"}, "1 never written"},
		{"a first attempt cannot exist", map[string]Outcome{"a": Exists}, []string{"a"}, "[a (exists)]"},
		{"twice", map[string]Outcome{"a": Done}, []string{"a", "a"}, "1 listed twice: [a]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := NewSet()
			for e, o := range c.tried {
				s.Added(e, o)
			}
			checkError(t, s.Judge(c.found).Err(), c.want)
		})
	}
}

func TestCounter(t *testing.T) {
	type told struct {
		outcome Outcome
		count   int64
	}
	for _, c := range []struct {
		name    string
		told    []told
		count   int64
		version uint64
		want    string
	}{
		{"exact", []told{{Done, 1}, {Done, 2}}, 2, 2, ""},
		{"an unknown one happened", []told{{Done, 1}, {Unknown, 0}}, 2, 2, ""},
		{"an unknown one did not", []told{{Done, 1}, {Unknown, 0}}, 1, 1, ""},
		{"refused ones do not count", []told{{Done, 1}, {Refused, 0}}, 1, 1, ""},
		{"lost", []told{{Done, 1}, {Done, 2}}, 1, 1, "1 are lost"},
		{"applied twice", []told{{Done, 1}}, 2, 2, "1 were applied twice"},
		{"refused and applied", []told{{Done, 1}, {Refused, 0}}, 2, 2, "1 were applied twice"},
		{"one count told twice", []told{{Done, 2}, {Done, 2}}, 2, 2, "count 2 was returned to 2 increments"},
		{"a count past the end", []told{{Done, 3}, {Unknown, 0}}, 2, 2, "count 3 was returned, but the document ends at 2"},
		{"a version without an increment", []told{{Done, 1}}, 1, 2, "count is 1 at version 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := NewCounter()
			for _, x := range c.told {
				k.Incremented(x.outcome, x.count)
			}
			checkError(t, k.Judge(c.count, c.version).Err(), c.want)
		})
	}
}

func checkError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("unexpected: %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("want %q, got %v", want, err)
	}
}

func TestRecorder(t *testing.T) {
	r := NewRecorder()
	first := r.Begin(1, Input{Key: "k", Verb: Put, Value: "a"})
	r.Begin(2, Input{Key: "k", Verb: Get})
	first.End(Output{Outcome: Done, Version: 1})
	ops := r.Operations()
	if len(ops) != 2 || ops[0].Return < ops[0].Call || ops[0].Output.Version != 1 {
		t.Fatalf("recorded %v", ops)
	}
	if ops[1].Output.Outcome != Unknown {
		t.Errorf("a call without an answer is %v, want unknown", ops[1].Output.Outcome)
	}
}
