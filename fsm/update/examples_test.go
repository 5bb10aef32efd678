package update

import (
	"os"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/doc"
)

// The examples of docs/update-operators.md do what it says.
func TestDocumentedExamples(t *testing.T) {
	text, err := os.ReadFile("../../docs/update-operators.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```update\n")[1:]
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "\n```")
		lines := strings.Split(block, "\n")
		if len(lines) != 3 {
			t.Errorf("not three lines: %s", block)
			continue
		}
		before := lines[0]
		if before == "(nothing)" {
			before = ""
		}
		got, want := apply(t, before, lines[1], doc.Limits{}), lines[2]
		if text, isError := strings.CutPrefix(want, "error "); isError {
			_, got, _ = strings.Cut(got, ": ")
			want = text
		} else {
			want = raw(t, want).String()
		}
		if got != want {
			t.Errorf("%s\n  got %s", block, got)
		}
	}
	if len(blocks) < 10 {
		t.Errorf("only %d examples found", len(blocks))
	}
}
