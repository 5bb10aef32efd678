package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
)

// goal is one line of the comparison: a figure of idb beside the same of others.
type goal struct {
	name     string
	workload string
	clients  int
	accounts int // of transfers
	unit     string
	figure   func(result) float64
	more     bool               // more is better
	factor   map[string]float64 // by peer: idb must reach this ratio (more) or stay within it (less)
}

func etcdFactor(f float64) map[string]float64 { return map[string]float64{"etcd": f} }

var goals = slices.Concat([]goal{
	{"updates, 64 clients", "W", 64, 0, "/s", func(r result) float64 { return r.OpsPerSec }, true, etcdFactor(3)},
	{"linearizable reads, 64 clients", "R", 64, 0, "/s", func(r result) float64 { return r.OpsPerSec }, true, etcdFactor(3)},
	{"update, 1 client, p50", "W", 1, 0, "ms", func(r result) float64 { return r.P50 }, false, etcdFactor(1)},
	{"memory per node, after all", "R", 64, 0, "MiB", func(r result) float64 { return mean(r.RSSMiB) }, false, etcdFactor(1)},
	{"update, 64 clients, p99", "W", 64, 0, "ms", func(r result) float64 { return r.P99 }, false, nil},
	{"read, 64 clients, p99", "R", 64, 0, "ms", func(r result) float64 { return r.P99 }, false, nil},
	{"servers' CPU per 1,000 updates", "W", 64, 0, "s", func(r result) float64 { return r.SrvCPUPerK }, false, nil},
	{"disk written per update, all nodes", "W", 64, 0, "KiB", func(r result) float64 { return r.WriteKiBPerOp }, false, nil},
	{"disk per node, after all", "R", 64, 0, "MiB", func(r result) float64 { return mean(r.DiskMiB) }, false, nil},
},
	transferGoals(manyAccounts, 16, map[string]float64{"pg": 1}),
	transferGoals(manyAccounts, 64, map[string]float64{"pg": 1.5, "etcd": 2}),
	transferGoals(fewAccounts, 16, nil),
	transferGoals(fewAccounts, 64, nil),
)

// How many accounts compare.sh makes transfers between; few of them are chosen
// by zipf.
const (
	manyAccounts = 10_000
	fewAccounts  = 100
)

func transferGoals(accounts, clients int, rate map[string]float64) []goal {
	of := fmt.Sprintf(", %d accounts", accounts)
	if accounts == fewAccounts {
		of += " (zipf)"
	}
	of += fmt.Sprintf(", %d clients", clients)
	return []goal{
		{"transfers" + of, "T", clients, accounts, "/s", func(r result) float64 { return r.OpsPerSec }, true, rate},
		{"p50" + of, "T", clients, accounts, "ms", func(r result) float64 { return r.P50 }, false, nil},
		{"p99" + of, "T", clients, accounts, "ms", func(r result) float64 { return r.P99 }, false, nil},
		{"longest" + of, "T", clients, accounts, "ms", func(r result) float64 { return r.Longest }, false, nil},
		{"runs aborted" + of, "T", clients, accounts, "%", func(r result) float64 { return 100 * r.abortRate() }, false, nil},
		{"servers' CPU per 1,000" + of, "T", clients, accounts, "s", func(r result) float64 { return r.SrvCPUPerK }, false, nil},
		{"servers' memory, all nodes" + of, "T", clients, accounts, "MiB", func(r result) float64 { return mean(r.RSSMiB) * float64(len(r.RSSMiB)) }, false, nil},
	}
}

func mean(v []int64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	var s int64
	for _, x := range v {
		s += x
	}
	return float64(s) / float64(len(v))
}

// table prints the goals from the results in file. A figure is the mean over
// the rounds; the spread of the rounds stands beside it.
func table(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var all []result
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var r result
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if r.Errs > 0 {
			fmt.Printf("note: %s %s %d clients: %d errors (%s)\n", r.Label, r.Workload, r.C, r.Errs, r.Note)
		}
		all = append(all, r)
	}
	figures := func(label string, g goal) (mean, low, high float64) {
		var v []float64
		for _, r := range all {
			if r.Label == label && r.Workload == g.workload && r.C == g.clients && r.Accounts == g.accounts {
				v = append(v, g.figure(r))
			}
		}
		if len(v) == 0 {
			return math.NaN(), math.NaN(), math.NaN()
		}
		for _, x := range v {
			mean += x / float64(len(v))
		}
		return mean, slices.Min(v), slices.Max(v)
	}
	var others []string
	for _, r := range all {
		if r.Label != "idb" && !slices.Contains(others, r.Label) {
			others = append(others, r.Label)
		}
	}
	slices.Sort(others)
	fmt.Printf("| |")
	for _, o := range others {
		fmt.Printf(" %s |", peerTitle(o))
	}
	fmt.Printf(" idb |")
	for _, o := range others {
		fmt.Printf(" idb / %s |", peerTitle(o))
	}
	fmt.Println(" goal | |")
	fmt.Println("|" + strings.Repeat("---|", 2*len(others)+4))
	for _, g := range goals {
		im, il, ih := figures("idb", g)
		if math.IsNaN(im) {
			continue // not run
		}
		line, ratios := "", ""
		var want, verdict []string
		for _, o := range others {
			m, l, h := figures(o, g)
			line += " " + figure(m, l, h, g.unit) + " |"
			ratio := im / m
			ratios += fmt.Sprintf(" %.2f |", ratio)
			factor, ok := g.factor[o]
			if !ok {
				continue
			}
			met, sign := ratio <= factor, "≤"
			if g.more {
				met, sign = ratio >= factor, "≥"
			}
			goal := fmt.Sprintf("%s %g", sign, factor)
			if len(g.factor) > 1 {
				goal = peerTitle(o) + " " + goal
			}
			want = append(want, goal)
			if met {
				verdict = append(verdict, "met")
			} else {
				verdict = append(verdict, "missed")
			}
		}
		fmt.Printf("| %s |%s %s |%s %s | %s |\n", g.name, line, figure(im, il, ih, g.unit), ratios, strings.Join(want, ", "), strings.Join(verdict, ", "))
	}
	return conserved(all)
}

// peerTitle is how a peer is called in the table.
func peerTitle(label string) string {
	if rest, ok := strings.CutPrefix(label, "pg"); ok {
		return "PostgreSQL" + rest
	}
	return label
}

// conserved says whether every run of transfers has kept the total.
func conserved(all []result) error {
	n := 0
	for _, r := range all {
		if r.Workload != "T" {
			continue
		}
		if n++; !r.Conserved {
			return fmt.Errorf("%s, %d accounts, %d clients: the total was not conserved: %s", r.Label, r.Accounts, r.C, r.Note)
		}
	}
	if n > 0 {
		fmt.Printf("\nThe total was conserved in all %d runs.\n", n)
	}
	return nil
}

func figure(mean, low, high float64, unit string) string {
	if math.IsNaN(mean) {
		return "–"
	}
	digits := 0
	switch {
	case math.Abs(mean) < 1:
		digits = 3
	case math.Abs(mean) < 100:
		digits = 2
	}
	if low == high { // one round
		return fmt.Sprintf("%.*f %s", digits, mean, unit)
	}
	return fmt.Sprintf("%.*f %s (%.*f–%.*f)", digits, mean, unit, digits, low, digits, high)
}
