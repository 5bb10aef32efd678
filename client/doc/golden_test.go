package doc

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
)

// golden compares with a file under testdata/doc, or with
// IDB_TEST_GOLDEN=write (make golden) writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := "../../testdata/doc/" + name
	if os.Getenv("IDB_TEST_GOLDEN") == "write" {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		return
	}
	g, w := bufio.NewScanner(bytes.NewReader(got)), bufio.NewScanner(bytes.NewReader(want))
	for line := 1; ; line++ {
		g.Scan()
		w.Scan()
		if g.Text() != w.Text() {
			t.Fatalf("%s, line %d:\n got  %s\n want %s\n(stored data would no longer be read; if that is meant: make golden)", file, line, g.Text(), w.Text())
		}
	}
}

// The first column is JSON as a user writes it, the second the bytes that are
// stored, the third the order-preserving key, the fourth the JSON that is
// printed where it differs from the first.
func TestGoldenValues(t *testing.T) {
	long := func(n int) string { return `"` + strings.Repeat("x", n) + `"` }
	list := func(n int) string { return "[" + strings.TrimSuffix(strings.Repeat("0,", n), ",") + "]" }
	inputs := []string{`{"b":1,"a":2}`, `{"b":{"d":1,"c":[{"z":1,"y":2}]},"a":"x"}`,
		`{"_id":"AD/1","name":"Sant Julià","pos":[1.49129,42.46372],"x":null}`,
		`{"$literal":{"$date":1}}`, `{"$literal":{"$literal":{"$bytes":"AA=="}}}`, `{"a":{"$literal":{"$date":1,"b":2}}}`, `{"$oid":"x"}`,
		`1e2`, `1e300`, `1e21`, `1e-7`, `123456.789`, `"\u00e9\ud83d\ude00\n\"\\/\u0000"`,
		long(31), long(32), long(255), long(256), list(15), list(16)}
	for _, line := range ordered(t) {
		for _, r := range line {
			inputs = append(inputs, r.String())
		}
	}
	var out bytes.Buffer
	for _, in := range inputs {
		r := raw(t, in)
		if err := Check(r, Limits{}); err != nil {
			t.Errorf("%s is not canonical: %v", in, err)
		}
		printed := r.String()
		if !raw(t, printed).Equal(r) {
			t.Errorf("%s printed as %s reads as another value", in, printed)
		}
		if printed == in {
			printed = ""
		}
		fmt.Fprintf(&out, "%s\t%x\t%x\t%s\n", in, []byte(r), AppendKey(nil, r), printed)
	}
	golden(t, "values.tsv", out.Bytes())
}

// Every value in the golden file can be read back from its bytes alone.
func TestGoldenReadBack(t *testing.T) {
	b, err := os.ReadFile("../../testdata/doc/values.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		columns := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		bytes, err := hex.DecodeString(columns[1])
		if err != nil {
			t.Fatal(err)
		}
		want := columns[0]
		if columns[3] != "" {
			want = columns[3]
		}
		if got := Raw(bytes).String(); got != want {
			t.Errorf("%s reads as %s, want %s", columns[1], got, want)
		}
	}
}
