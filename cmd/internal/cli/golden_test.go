package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// rewrite is set by `make golden`.
var rewrite = os.Getenv("IDB_TEST_GOLDEN") == "write"

// golden compares with testdata/NAME.golden, or writes it anew.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if rewrite {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make golden writes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs; make golden writes it anew\n%s", path, firstDifference(got, string(want)))
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		a, b := "(end)", "(end)"
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			return fmt.Sprintf("line %d\n got  %s\n want %s", i+1, a, b)
		}
	}
	return "no difference"
}

// runCLI is one command line without a cluster.
func runCLI(t *testing.T, stdin string, env []string, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e strings.Builder
	code = Main(t.Context(), Process{Args: args, Environ: env, In: strings.NewReader(stdin), Out: &o, Err: &e})
	return code, o.String(), e.String()
}

// everyCommand visits the tree, parents first.
func everyCommand(visit func(path []string, c *cli.Command)) {
	var walk func(path []string, c *cli.Command)
	walk = func(path []string, c *cli.Command) {
		if !c.Hidden {
			visit(path, c)
		}
		for _, sub := range c.Subcommands {
			walk(append(path[:len(path):len(path)], sub.Name), sub)
		}
	}
	walk(nil, testTree())
}

func TestHelp(t *testing.T) {
	var all strings.Builder
	everyCommand(func(path []string, c *cli.Command) {
		code, out, errOut := runCLI(t, "", nil, append(path, "--help")...)
		if code != exitOK || errOut != "" {
			t.Errorf("%v --help: exit code %d, %q", path, code, errOut)
		}
		if len(path) > 0 && !strings.Contains(out, "Examples:\n  ") {
			t.Errorf("%v --help teaches nothing: it has no examples", path)
		}
		for i, line := range strings.Split(out, "\n") {
			if n := len([]rune(line)); n > 110 {
				t.Errorf("%v --help: line %d has %d characters", path, i+1, n)
			}
		}
		fmt.Fprintf(&all, "## idb %s\n\n%s\n", strings.Join(path, " "), out)
	})
	golden(t, "help", all.String())
}

// TestReference keeps docs/cli.md and docs/configuration.md in step with the
// program: what lies between their markers is written from it.
func TestReference(t *testing.T) {
	var commands, codes, settings strings.Builder
	everyCommand(func(path []string, c *cli.Command) {
		if len(path) == 0 || len(c.Subcommands) > 0 && c.Action == nil {
			return
		}
		_, out, _ := runCLI(t, "", nil, append(path, "--help")...)
		title, body, _ := strings.Cut(out, "\n")
		fmt.Fprintf(&commands, "### %s\n\n```\n%s\n```\n\n", strings.Replace(title, " - ", ": ", 1), strings.TrimSpace(body))
	})
	for _, e := range exitTable {
		fmt.Fprintf(&codes, "| %d | %s |\n", e.code, e.text)
	}
	for _, k := range nodeSettingsTable {
		fmt.Fprintf(&settings, "| `%s` %s | `%s` | %s | %s |\n", k.key, k.arg, variableName(k.key), orDash(k.def), k.usage)
	}
	section(t, "cli.md", "commands", commands.String())
	section(t, "cli.md", "codes", codes.String())
	section(t, "configuration.md", "settings", settings.String())
}

// section compares, or writes, what lies between <!-- NAME --> and <!-- /NAME -->.
func section(t *testing.T, file, name, got string) {
	t.Helper()
	path := filepath.Join("..", "..", "..", "docs", file)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	open, closing := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
	before, rest, ok := strings.Cut(string(b), open)
	want, after, ok2 := strings.Cut(rest, closing)
	if !ok || !ok2 {
		t.Fatalf("%s has no section %s", file, name)
	}
	if rewrite {
		if err := os.WriteFile(path, []byte(before+open+got+closing+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != want {
		t.Errorf("docs/%s, section %s, differs; make golden writes it anew\n%s", file, name, firstDifference(got, want))
	}
}
