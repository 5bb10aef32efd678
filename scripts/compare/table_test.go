package main

import (
	"strings"
	"testing"
)

// transfer is a row of 16 clients between 10,000 accounts.
func transfer(label string, rate, p50 float64) result {
	r := result{Label: label, Workload: "T", C: 16, Accounts: manyAccounts, OpsPerSec: rate, Conserved: true, RSSMiB: []int64{100, 100, 100}}
	r.P50 = p50
	return r
}

// cells are those of the line of that name.
func cells(t *testing.T, all rows, name string) []string {
	t.Helper()
	var b strings.Builder
	if err := all.write(&b); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		c := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range c {
			c[i] = strings.TrimSpace(c[i])
		}
		if c[0] == name {
			return c
		}
	}
	t.Fatalf("no line %q in\n%s", name, b.String())
	return nil
}

// TestTable: every idb of a run has its columns, its ratios to each other peer
// and its verdict.
func TestTable(t *testing.T) {
	one := rows{
		transfer("etcd", 1000, 10), transfer("pg", 2000, 5), transfer("idb", 1500, 8),
		transfer("idb", 1700, 8), transfer("pg", 2000, 5), transfer("etcd", 1000, 10),
	}
	both := append(one[:len(one):len(one)], transfer("idb together", 2000, 4), transfer("idb together", 2200, 4))
	const rate, p50 = "transfers, 10000 accounts, 16 clients", "p50, 10000 accounts, 16 clients"
	for _, c := range []struct {
		name string
		all  rows
		line string
		want string
	}{
		{"one idb", one, "", ",etcd,PostgreSQL,idb,idb / etcd,idb / PostgreSQL,goal,"},
		{"one idb", one, rate, rate + ",1000 /s,2000 /s,1600 /s (1500–1700),1.60,0.80,≥ 1,missed"},
		{"two", both, "", ",etcd,PostgreSQL,idb,idb together,idb / etcd,idb / PostgreSQL,idb together / etcd,idb together / PostgreSQL,goal,"},
		{"two", both, rate, rate + ",1000 /s,2000 /s,1600 /s (1500–1700),2100 /s (2000–2200),1.60,0.80,2.10,1.05,≥ 1,idb: missed; idb together: met"},
		{"two, no goal set", both, p50, p50 + ",10.00 ms,5.00 ms,8.00 ms,4.00 ms,0.80,1.60,0.40,0.80,,"},
		{"together alone", rows{transfer("pg", 2000, 5), transfer("idb together", 3000, 4)}, rate, rate + ",2000 /s,3000 /s,1.50,≥ 1,met"},
		{"idb alone", rows{transfer("idb", 3000, 4)}, rate, rate + ",3000 /s,,"},
	} {
		if got := strings.Join(cells(t, c.all, c.line), ","); got != c.want {
			t.Errorf("%s:\n got  %s\n want %s", c.name, got, c.want)
		}
	}
	other := transfer("idb together", 5000, 1)
	other.C = 64 // the same goal was not measured with the other
	if got := strings.Join(cells(t, append(one[:len(one):len(one)], other), rate), ","); got != rate+",1000 /s,2000 /s,1600 /s (1500–1700),–,1.60,0.80,–,–,≥ 1,idb: missed" {
		t.Errorf("half measured: %s", got)
	}
}
