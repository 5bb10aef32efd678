package cli

import (
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func testTree() *cli.Command {
	a := &app{}
	root := a.root()
	return &cli.Command{Name: "idb", Subcommands: root.Commands, Flags: root.Flags}
}

func TestArrange(t *testing.T) {
	for _, tc := range []struct {
		name, args, want, err string
	}{
		{"flags last", "get users u1 --addr h:1", "idb get --addr=h:1 -- users u1", ""},
		{"flags first", "--addr h:1 get users u1", "idb get --addr=h:1 -- users u1", ""},
		{"flags between", "get users --addr=h:1 u1", "idb get --addr=h:1 -- users u1", ""},
		{"a switch takes no value", "import --stop-on-error users file", "idb import --stop-on-error -- users file", ""},
		{"a switch with a value", "import --replace=false users file", "idb import --replace=false -- users file", ""},
		{"a word after --", "get users -- --addr", "idb get -- users --addr", ""},
		{"- is a word", "import users -", "idb import -- users -", ""},
		{"a command's name as a word", "get users get", "idb get -- users get", ""},
		{"nested", "cluster status -o json", "idb cluster status --o=json", ""},
		{"empty value", "node --id= --data d", "idb node --id= --data=d", ""},
		{"a value that looks like a flag", "node --id --data", "idb node --id=--data", ""},

		{"unknown command", "gte users u1", "", `idb: unknown command "gte", did you mean idb get? (idb --help lists them)`},
		{"unknown command, nothing near", "frobnicate", "", `idb: unknown command "frobnicate" (idb --help lists them)`},
		{"unknown subcommand", "cluster statsu", "", `idb cluster: unknown command "statsu", did you mean idb cluster status? (idb cluster --help lists them)`},
		{"unknown flag", "get users u1 --adr h:1", "", `idb get: unknown flag --adr, did you mean --addr? (idb get --help lists them; a word that starts with - goes after --)`},
		{"a flag of another command", "--prefix x get users u1", "", `idb get: unknown flag --prefix (idb get --help lists them; a word that starts with - goes after --)`},
		{"no value", "get users u1 --addr", "", `idb get: flag --addr needs a value`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := arrange(testTree(), strings.Fields(tc.args))
			switch {
			case tc.err != "" && (err == nil || err.Error() != tc.err):
				t.Errorf("error\n got  %v\n want %v", err, tc.err)
			case tc.err != "" && exitCode(err) != exitUsage:
				t.Errorf("exit code %d, want %d", exitCode(err), exitUsage)
			case tc.err == "" && err != nil:
				t.Errorf("error %v", err)
			case tc.err == "" && strings.Join(l.argv(), " ") != tc.want:
				t.Errorf("argv\n got  %q\n want %q", strings.Join(l.argv(), " "), tc.want)
			}
		})
	}
}

func TestArrangeHelp(t *testing.T) {
	for args, want := range map[string]string{
		"help":                   "idb",
		"--help":                 "idb",
		"help get":               "idb get",
		"get --help":             "idb get",
		"get users -h":           "idb get",
		"help cluster init":      "idb cluster init",
		"cluster help init":      "idb cluster init",
		"cluster init -h --zork": "", // the wrong flag is reported
	} {
		l, err := arrange(testTree(), strings.Fields(args))
		switch {
		case want == "" && err == nil:
			t.Errorf("%q: no error", args)
		case want != "" && (err != nil || !l.help || l.name() != want):
			t.Errorf("%q: help %v of %q, error %v; want help of %q", args, l.help, l.name(), err, want)
		}
	}
}

// TestFlagsAgree keeps what arrange rests on: a flag's name takes a value
// everywhere or nowhere.
func TestFlagsAgree(t *testing.T) {
	first := map[string]bool{}
	seen := map[string]string{}
	var walk func(path string, c *cli.Command)
	walk = func(path string, c *cli.Command) {
		for _, f := range c.Flags {
			for _, n := range f.Names() {
				takes := f.(cli.DocGenerationFlag).TakesValue()
				if before, ok := first[n]; ok && before != takes {
					t.Errorf("--%s takes a value: %v in %s, %v in %s", n, before, seen[n], takes, path)
				}
				first[n], seen[n] = takes, path
			}
		}
		for _, sub := range c.Subcommands {
			walk(path+" "+sub.Name, sub)
		}
	}
	walk("idb", testTree())
	if len(first) < 20 {
		t.Errorf("only %d flags seen", len(first))
	}
}

func TestNearest(t *testing.T) {
	words := []string{"put", "get", "update", "delete", "count"}
	for word, want := range map[string]string{
		"gte": "get", "updaet": "update", "delet": "delete", "coutn": "count", "xyzzy": "", "remove": "",
	} {
		if got := nearest(word, words); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
}
