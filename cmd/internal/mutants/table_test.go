package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/impossibledb/idb/fsm/mutant"
)

// TestTable: every mutant has one row, every row a catcher that exists, and
// every mutant a line in the product.
func TestTable(t *testing.T) {
	rows, err := choose("")
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) < 20 {
		t.Errorf("only %d rows", len(rows))
	}
	root, err := rootDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if _, err := regexp.Compile(r.says); err != nil || r.says == "" || r.what == "" || r.within < 1 {
			t.Errorf("%s: the row is not complete (%v)", r.mutant, err)
		}
		test, _, _ := strings.Cut(strings.Trim(r.by.run, "^"), "$")
		if !inFolder(t, filepath.Join(root, r.by.pkg), "_test.go", "func "+test+"(t *testing.T)") {
			t.Errorf("%s: %s has no test %s", r.mutant, r.by.pkg, test)
		}
	}
	names, err := os.ReadFile(filepath.Join(root, "fsm/mutant/mutant.go"))
	if err != nil {
		t.Fatal(err)
	}
	consts := regexp.MustCompile(`(?m)^\t(\w+) +Name = "([a-z0-9-]+)"`).FindAllStringSubmatch(string(names), -1)
	if len(consts) != len(mutant.Names()) {
		t.Errorf("%d names are declared, Names has %d", len(consts), len(mutant.Names()))
	}
	for _, c := range consts {
		used := false
		for _, folder := range []string{"client", "txn", "fsm", "placement", "router", "shardgroup", "txn"} {
			used = used || inFolder(t, filepath.Join(root, folder), ".go", "mutant.On(mutant."+c[1]+")")
		}
		if !used {
			t.Errorf("%s (%s) is nowhere in the product", c[2], c[1])
		}
	}
}

// inFolder says whether a file below the folder holds the text.
func inFolder(t *testing.T, folder, suffix, text string) (found bool) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, suffix) {
			return err
		}
		b, err := os.ReadFile(path)
		found = found || strings.Contains(string(b), text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestOff: a program that was built without the tag cannot be broken.
func TestOff(t *testing.T) {
	if mutant.Enabled {
		t.Skip("built with -tags mutants")
	}
	t.Setenv("IDB_TEST_MUTANT", string(mutant.ReadUnconfirmed))
	for _, n := range mutant.Names() {
		if mutant.On(n) {
			t.Errorf("%s is on", n)
		}
	}
}
