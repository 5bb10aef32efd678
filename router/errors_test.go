package router

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
)

// codesInSource reads the names and numbers of package wire's codes.
func codesInSource(t *testing.T) map[string]wire.Code {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../client/wire/code.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]wire.Code{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Code") {
			return true
		}
		number, ok := spec.Values[0].(*ast.BasicLit)
		if !ok {
			return true
		}
		n2, err := strconv.Atoi(number.Value)
		if err != nil {
			t.Fatal(err)
		}
		codes[strings.TrimPrefix(spec.Names[0].Name, "Code")] = wire.Code(n2)
		return true
	})
	if len(codes) < 30 {
		t.Fatalf("only %d codes found", len(codes))
	}
	return codes
}

// The table has every code once, in order, with its name and whole sentences.
func TestErrorTable(t *testing.T) {
	codes := codesInSource(t)
	seen := map[string]bool{}
	for i, row := range errorTable {
		if i > 0 && errorTable[i-1].code >= row.code {
			t.Errorf("%s is out of order", row.name)
		}
		if want, ok := codes[row.name]; !ok || want != row.code {
			t.Errorf("%s is %d in the table and %d in package wire", row.name, row.code, want)
		}
		seen[row.name] = true
		for _, s := range []string{row.what, row.do} {
			if !strings.HasSuffix(s, ".") || len(s) < 8 || strings.Contains(s, "|") {
				t.Errorf("%s: %q is no sentence for a table", row.name, s)
			}
		}
	}
	for name := range codes {
		if !seen[name] {
			t.Errorf("the table lacks %s", name)
		}
	}
}

// docs/errors.md is the table. IDB_TEST_GOLDEN=write writes it anew.
func TestErrorDocument(t *testing.T) {
	const path = "../docs/errors.md"
	want := errorDocument()
	if os.Getenv("IDB_TEST_GOLDEN") == "write" {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the error table says; run make golden and review the difference", path)
	}
}

func errorDocument() string {
	var b strings.Builder
	b.WriteString(`# Errors

Every refusal has a code, which programs decide by, and a message for people that says what was wrong, where, and what to do: ` + "`users/u17: version is 9, the write expected 8 (re-read and retry)`" + `. Codes are part of the protocol and never change meaning. The hundreds tell what may be done next:

| codes | class | the same request again |
|---|---|---|
| 1xx | refused: the request is wrong | will be refused again |
| 2xx | refused: what was asked for is not there | will be refused until it is |
| 3xx | conflict: it does not fit what is stored | read again, then decide |
| 4xx | refused by a limit | when the limit allows it |
| 5xx | not now, nothing was done | may be sent at once, but for 506 |
| 6xx | unknown: it may have happened | only under the same request ID |
| 7xx | a fault of the server | |

`)
	b.WriteString("| code | name | what happened | what to do |\n|---|---|---|---|\n")
	for _, row := range errorTable {
		fmt.Fprintf(&b, "| %d | %s | %s | %s |\n", row.code, row.name, row.what, row.do)
	}
	return b.String()
}

// Every error of the packages below has a code and a sentence that names what
// it is about.
func TestWireErrors(t *testing.T) {
	var logged strings.Builder
	r := New(Options{Self: "n1", Logger: hclog.New(&hclog.LoggerOptions{Output: &logged})})
	s := subject{"users", "u17"}
	for _, c := range []struct {
		err  error
		code wire.Code
		text string
	}{
		{&shardgroup.NotLeaderError{Group: 3, Leader: "n2"}, wire.CodeNotLeader, "g3 is led by n2"},
		{&shardgroup.NotLeaderError{Group: 3}, wire.CodeNotLeader, "g3 has no known leader"},
		{shardgroup.ErrOutcomeUnknown, wire.CodeOutcomeUnknown, "may yet happen"},
		{shardgroup.ErrOverloaded, wire.CodeOverloaded, "too many writes"},
		{shardgroup.ErrDiskFull, wire.CodeDiskFull, "n1 is full"},
		{&shardgroup.DiskFullError{Group: 1, Nodes: []placement.NodeID{"n2", "n3"}}, wire.CodeDiskFull, "nodes n2 and n3 are full"},
		{shardgroup.ErrStopped, wire.CodeUnavailable, "n1 does not serve"},
		{shardgroup.ErrNoGroup, wire.CodeUnavailable, "n1 does not serve"},
		{&shardgroup.HaltError{Group: 3, Err: errors.New("x")}, wire.CodeUnavailable, "n1 does not serve"},
		{shardgroup.ErrTimeout, wire.CodeTimeout, "time was up"},
		{context.DeadlineExceeded, wire.CodeTimeout, "time was up"},
		{fmt.Errorf("node n2: %w", &wire.ConnError{Sent: true, Err: context.DeadlineExceeded}), wire.CodeOutcomeUnknown, "no answer"},
		{&wire.ConnError{Err: errors.New("refused")}, wire.CodeUnavailable, "cannot be reached: refused"},
		{&wire.Error{Code: wire.CodeStaleEpoch}, wire.CodeStaleEpoch, "old placement map"},
		{&wire.Error{Code: wire.CodeNotFound, Message: "own words"}, wire.CodeNotFound, "own words"},
		{&fsm.Error{Code: wire.CodeNotFound}, wire.CodeNotFound, "users/u17: does not exist"},
		{&fsm.Error{Code: wire.CodeStaleEpoch, Epoch: 4}, wire.CodeStaleEpoch, "old placement map"},
		{errors.New("disk on fire"), wire.CodeInternal, "disk on fire"},
	} {
		e := r.wireError(fmt.Errorf("wrapped: %w", c.err), s)
		if e.Code != c.code || !strings.Contains(e.Message, c.text) {
			t.Errorf("%v: %d %q, want %d %q", c.err, e.Code, e.Message, c.code, c.text)
		}
		if c.text != "own words" && !strings.HasPrefix(e.Message, "users/u17: ") {
			t.Errorf("%v: %q does not say what it is about", c.err, e.Message)
		}
		if e := r.wireReadError(c.err, s); e.Code == wire.CodeOutcomeUnknown {
			t.Errorf("%v: a read is never unknown", c.err)
		}
	}
	if !strings.Contains(logged.String(), "disk on fire") || strings.Contains(logged.String(), "own words") {
		t.Errorf("exactly the unexpected is logged, not\n%s", &logged)
	}
	for _, row := range errorTable {
		if row.code == wire.CodeOK {
			continue
		}
		if e := r.word(&wire.Error{Code: row.code, Version: 7}, s, ""); !strings.Contains(e.Message, "u") || strings.HasSuffix(e.Message, ".") {
			t.Errorf("%s: %q", row.name, e.Message)
		}
	}
	if e := r.word(&wire.Error{Code: 777}, subject{}, ""); e.Message == "" {
		t.Error("an unknown code has no text")
	}
}

func TestShowID(t *testing.T) {
	for id, want := range map[string]string{
		"u17":                     "u17",
		"a/b c":                   "a/b c",
		"line\nbreak":             `"line\nbreak"`,
		"\x1b[2J":                 `"\x1b[2J"`,
		"Köln":                    "Köln",
		strings.Repeat("x", 200):  strings.Repeat("x", 80) + "…",
		strings.Repeat("ö", 100):  strings.Repeat("ö", 40) + "…",
		"\xff":                    `"\xff"`,
		strings.Repeat("\n", 100): `"` + strings.Repeat(`\n`, 80) + `…"`,
	} {
		if got := showID(id); got != want {
			t.Errorf("%q is shown as %s, want %s", id, got, want)
		}
	}
}

func TestPassing(t *testing.T) {
	var got []wire.Code
	for _, row := range errorTable {
		if passing(row.code) {
			got = append(got, row.code)
			if !row.code.Retryable() {
				t.Errorf("%s is routed again, but may not be sent again", row.name)
			}
		}
	}
	if want := []wire.Code{wire.CodeNotLeader, wire.CodeStaleEpoch, wire.CodeUnavailable, wire.CodeShuttingDown, wire.CodeLocked}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
