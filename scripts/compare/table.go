package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
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

// table prints the goals from the results in file.
func table(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var all rows
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
	if err := all.write(os.Stdout); err != nil {
		return err
	}
	return conserved(all)
}

// rows are of several peers.
type rows []result

// isIdb says that a row is of idb, in one mode of it or another: the goals are
// for each of them.
func isIdb(label string) bool { return label == "idb" || strings.HasPrefix(label, "idb ") }

// peers are the labels of idb, and of the others, each in order.
func (all rows) peers() (ours, others []string) {
	for _, r := range all {
		list := &others
		if isIdb(r.Label) {
			list = &ours
		}
		if !slices.Contains(*list, r.Label) {
			*list = append(*list, r.Label)
		}
	}
	slices.Sort(ours)
	slices.Sort(others)
	return ours, others
}

// spread is a figure over the rounds: its mean, and the rounds' extremes. NaN:
// it was not measured.
type spread struct{ mean, low, high float64 }

func (all rows) figure(label string, g goal) spread {
	var v []float64
	for _, r := range all {
		if r.Label == label && r.Workload == g.workload && r.C == g.clients && r.Accounts == g.accounts {
			v = append(v, g.figure(r))
		}
	}
	if len(v) == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}
	}
	s := spread{low: slices.Min(v), high: slices.Max(v)}
	for _, x := range v {
		s.mean += x / float64(len(v))
	}
	return s
}

// write prints a line for each goal that idb was measured for: the figures of
// all, the ratios of each idb to each other peer, and what came of the goal. A
// figure is the mean over the rounds; the spread of the rounds stands beside it.
func (all rows) write(w io.Writer) error {
	ours, others := all.peers()
	head := []string{""}
	for _, p := range slices.Concat(others, ours) {
		head = append(head, peerTitle(p))
	}
	for _, i := range ours {
		for _, o := range others {
			head = append(head, peerTitle(i)+" / "+peerTitle(o))
		}
	}
	head = append(head, "goal", "")
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(head)
	fmt.Fprintln(&b, "|"+strings.Repeat("---|", len(head)))
	for _, g := range goals {
		var figures, ratios, verdicts []string
		measured := false
		for _, o := range others {
			figures = append(figures, all.figure(o, g).text(g.unit))
		}
		for _, i := range ours {
			mine := all.figure(i, g)
			figures = append(figures, mine.text(g.unit))
			measured = measured || !math.IsNaN(mine.mean)
			var met []string
			for _, o := range others {
				ratio := mine.mean / all.figure(o, g).mean
				if math.IsNaN(ratio) {
					ratios = append(ratios, "–")
					continue
				}
				ratios = append(ratios, fmt.Sprintf("%.2f", ratio))
				if verdict := g.verdict(o, ratio); verdict != "" {
					met = append(met, verdict)
				}
			}
			switch verdict := strings.Join(met, ", "); {
			case verdict == "":
			case len(ours) > 1:
				verdicts = append(verdicts, i+": "+verdict)
			default:
				verdicts = append(verdicts, verdict)
			}
		}
		if measured {
			line(slices.Concat([]string{g.name}, figures, ratios, []string{g.wanted(others), strings.Join(verdicts, "; ")}))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// wanted is what ratios are asked for, to the peers that there are.
func (g goal) wanted(others []string) string {
	var want []string
	for _, o := range others {
		if factor, ok := g.factor[o]; ok {
			sign := "≤"
			if g.more {
				sign = "≥"
			}
			text := fmt.Sprintf("%s %g", sign, factor)
			if len(g.factor) > 1 {
				text = peerTitle(o) + " " + text
			}
			want = append(want, text)
		}
	}
	return strings.Join(want, ", ")
}

// verdict is what a ratio to a peer means for the goal; empty: none is set.
func (g goal) verdict(other string, ratio float64) string {
	factor, ok := g.factor[other]
	switch {
	case !ok:
		return ""
	case g.more && ratio >= factor, !g.more && ratio <= factor:
		return "met"
	}
	return "missed"
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

// text is the figure in a cell.
func (s spread) text(unit string) string {
	mean, low, high := s.mean, s.low, s.high
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
