package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/doc"
)

// describe is an operation in one line, for the tables below.
func describe(op *scriptOp) string {
	s := fmt.Sprintf("%s| %s %s %q", op.where, op.verb, op.collection, op.ids)
	if op.raw != nil {
		s += " " + op.raw.String()
	}
	if op.version != 0 {
		s += fmt.Sprintf(" v%d", op.version)
	}
	if op.cond != "" {
		s += " " + op.cond
	}
	if op.prefix != "" || op.limit != 0 || op.reverse {
		s += fmt.Sprintf(" %q %d %v", op.prefix, op.limit, op.reverse)
	}
	if op.test != "" {
		s += fmt.Sprintf(" (%s %s", op.path, op.test)
		if op.value != nil {
			s += " " + op.value.String()
		}
		s += ")"
	}
	return s
}

func TestScript(t *testing.T) {
	for _, tc := range []struct {
		script string
		counts bool
		want   string
	}{
		{"get accounts ada", false, `line 1| get accounts ["ada"]`},
		{"\n # a comment; get x y\nget accounts ada bob # both\n\n\tscan orders acme/ limit 3 reverse\r\nscan orders limit 3", false,
			`line 3| get accounts ["ada" "bob"]` + "\n" + `line 5| scan orders [] "acme/" 3 true` + "\n" + `line 6| scan orders [] "" 3 false`},
		{`update a x {"$inc": {"n": -5}}; require a x n >= 0 ;; delete a y`, true,
			`operation 1| update a ["x"] {"$inc":{"n":-5}}` + "\n" + `operation 2| require a ["x"] (n >= 0)` + "\n" + `operation 3| delete a ["y"]`},
		{"put a x {\n  \"text\": \"a;b # } \\\" c\",\n  \"n\": [1]\n} if-version 3\nget a x", false,
			`line 1| put a ["x"] {"n":[1],"text":"a;b # } \" c"} v3 if-version` + "\n" + `line 5| get a ["x"]`},
		{`put a {"_id":"x;y","n":1} if-absent` + "\n" + `get a "x;y" "\u00fc" "if-version"` + "\n" + `scan a "limit"`, false,
			`line 1| put a ["x;y"] {"_id":"x;y","n":1} if-absent` + "\n" + `line 2| get a ["x;y" "ü" "if-version"]` + "\n" + `line 3| scan a [] "limit" 0 false`},
		{"insert a x {}\nupsert a x {}\nrestore a x 4\nget-for-update a x\ndelete a x if-version 2", false,
			`line 1| insert a ["x"] {}` + "\n" + `line 2| upsert a ["x"] {}` + "\n" + `line 3| restore a ["x"] v4` + "\n" + `line 4| get-for-update a ["x"]` + "\n" + `line 5| delete a ["x"] v2 if-version`},
		{"require a x exists\nrequire a x absent\nrequire a x version 3\nrequire a x p.q exists\nrequire a x exists absent", false,
			`line 1| require a ["x"] ( exists)` + "\n" + `line 2| require a ["x"] ( absent)` + "\n" + `line 3| require a ["x"] v3 ( version)` + "\n" +
				`line 4| require a ["x"] (p.q exists)` + "\n" + `line 5| require a ["x"] (exists absent)`},
		{`require a x n = 5; require a x n = "5"; require a x name != Ada; require a x on == true; require a x l = [1,2]; require a x version < 3; require a x n > -1.5e3`, true,
			`operation 1| require a ["x"] (n = 5)` + "\n" + `operation 2| require a ["x"] (n = "5")` + "\n" + `operation 3| require a ["x"] (name != "Ada")` + "\n" +
				`operation 4| require a ["x"] (on == true)` + "\n" + `operation 5| require a ["x"] (l = [1,2])` + "\n" + `operation 6| require a ["x"] (version < 3)` + "\n" + `operation 7| require a ["x"] (n > -1500.0)`},
	} {
		ops, err := parseScript(tc.script, tc.counts)
		if err != nil {
			t.Errorf("%q: %v", tc.script, err)
			continue
		}
		var got []string
		for i := range ops {
			got = append(got, describe(&ops[i]))
		}
		if g := strings.Join(got, "\n"); g != tc.want {
			t.Errorf("%q is read as\n%s\nwant\n%s", tc.script, g, tc.want)
		}
	}
}

func TestScriptIsRefused(t *testing.T) {
	for _, tc := range []struct{ script, want string }{
		{"", "the script has no operation (for example: get accounts ada)"},
		{"# nothing\n;;\n", "the script has no operation (for example: get accounts ada)"},
		{"get a x\ngte a x", `line 2: unknown operation "gte", did you mean get?`},
		{"frobnicate a x", `line 1: unknown operation "frobnicate" (there are get, get-for-update, scan, require, put, insert, update, upsert, delete, restore)`},
		{"get", "line 1: get names no collection (usage: get COLLECTION ID...)"},
		{"get a", "line 1: get names no document (usage: get COLLECTION ID...)"},
		{"get a x {}", `line 1: "{}" is one word too many (usage: get COLLECTION ID...)`},
		{"put a x", "line 1: the document of put is missing: a JSON object (usage: put COLLECTION [ID] DOCUMENT [if-version N|if-absent|if-present])"},
		{"put a x [1]", "line 1: the document of put is missing: a JSON object (usage: put COLLECTION [ID] DOCUMENT [if-version N|if-absent|if-present])"},
		{"put a {}", "line 1: the document has no ID (give it as a word before the document, or as _id in it)"},
		{`put a x {"_id":"y"}`, `line 1: the document's _id is "y" and it is to be "x" (leave one out, or make them equal)`},
		{"update a {}", "line 1: update names no document (usage: update COLLECTION ID OPERATORS [if-version N])"},
		{"update a x {} if-absent", "line 1: update has no condition if-absent (usage: update COLLECTION ID OPERATORS [if-version N])"},
		{"put a x {} if-version none", `line 1: if-version "none": want a number, 1 or above (usage: put COLLECTION [ID] DOCUMENT [if-version N|if-absent|if-present])`},
		{"delete a x y if-version 3", "line 1: if-version goes with one ID (usage: delete COLLECTION ID... [if-version N])"},
		{"\n\nput a x {\n\"n\": 1", `line 3: a brace is not closed: {`},
		{`get a "x`, `line 1: a quote is not closed: "x`},
		{"get a \"x\ny\"", `line 1: a quote is not closed: "x`},
		{"require a x balance", "line 1: what is required of balance is missing"},
		{"require a x balance ~ 5", `line 1: "~" is no comparison (there are = == != < <= > >=, exists and absent)`},
		{"require a x balance >=", "line 1: the value that balance is compared with is missing"},
		{"require a x", "line 1: what is required of the document is missing"},
		{"require a x n = 1 2", `line 1: "2" is one word too many`},
		{"scan a p 7", `line 1: "7" has no meaning after a scan's prefix`},
		{"scan a limit 0", `line 1: limit "0": want a number, 1 or above`},
		{"restore a x zero", `line 1: version "zero": want a number, 1 or above`},
		{"get a \xff", "the script is not UTF-8"},
	} {
		_, err := parseScript(tc.script, false)
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) || exitCode(err) != exitRefused {
			t.Errorf("%q: %v (exit code %d), want %q", tc.script, err, exitCode(err), tc.want)
		}
	}
	_, err := parseScript(`put a x {"n":}`, false)
	if err == nil || !strings.HasPrefix(err.Error(), "line 1: the document: ") || exitCode(err) != exitRefused {
		t.Errorf("broken JSON: %v", err)
	}
	_, err = parseScript("get a x;"+strings.Repeat("get a x;", maxScriptOps), true)
	if err == nil || exitCode(err) != exitLimit {
		t.Errorf("too many operations: %v", err)
	}
	if _, err := parseScript("put a x "+strings.Repeat(`{"a":`, 100)+"1"+strings.Repeat("}", 100), false); !errors.Is(err, doc.ErrTooDeep) || exitCode(err) != exitLimit {
		t.Errorf("too deep: %v", err)
	}
}

// FuzzScript: no script makes the reader panic, and an error says where.
func FuzzScript(f *testing.F) {
	f.Add("get a x; require a x n >= 0", true)
	f.Add("put a {\"_id\":\"x\"} if-absent\nscan a \"p\" limit 3 reverse # end", false)
	f.Add("update a x {\"$inc\":{\"n\":[1,{\"b\":\"}\"}]}}\ndelete a \"\\u00fc\"", false)
	f.Fuzz(func(t *testing.T, script string, counts bool) {
		ops, err := parseScript(script, counts)
		if err != nil {
			if err.Error() == "" || exitCode(err) != exitRefused && exitCode(err) != exitLimit {
				t.Fatalf("%v, exit code %d", err, exitCode(err))
			}
			return
		}
		for i := range ops {
			if op := &ops[i]; op.collection == "" && !strings.Contains(script, `""`) || op.where == "" || op.verb != "scan" && len(op.ids) == 0 {
				t.Fatalf("operation %+v", op)
			}
		}
	})
}
