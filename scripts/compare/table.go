package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
)

// goal is one line of the comparison: a figure of idb beside the same of etcd.
type goal struct {
	name     string
	workload string
	clients  int
	unit     string
	figure   func(result) float64
	more     bool    // more is better
	factor   float64 // idb must reach this ratio (more) or stay within it (less)
}

var goals = []goal{
	{"updates, 64 clients", "W", 64, "/s", func(r result) float64 { return r.OpsPerSec }, true, 3},
	{"linearizable reads, 64 clients", "R", 64, "/s", func(r result) float64 { return r.OpsPerSec }, true, 3},
	{"update, 1 client, p50", "W", 1, "ms", func(r result) float64 { return r.P50 }, false, 1},
	{"memory per node, after all", "R", 64, "MiB", func(r result) float64 { return mean(r.RSSMiB) }, false, 1},
	{"update, 64 clients, p99", "W", 64, "ms", func(r result) float64 { return r.P99 }, false, 0},
	{"read, 64 clients, p99", "R", 64, "ms", func(r result) float64 { return r.P99 }, false, 0},
	{"servers' CPU per 1,000 updates", "W", 64, "s", func(r result) float64 { return r.SrvCPUPerK }, false, 0},
	{"disk written per update, all nodes", "W", 64, "KiB", func(r result) float64 { return r.WriteKiBPerOp }, false, 0},
	{"disk per node, after all", "R", 64, "MiB", func(r result) float64 { return mean(r.DiskMiB) }, false, 0},
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
			if r.Label == label && r.Workload == g.workload && r.C == g.clients {
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
	fmt.Println("| | etcd | idb | idb / etcd | goal | |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, g := range goals {
		em, el, eh := figures("etcd", g)
		im, il, ih := figures("idb", g)
		ratio := im / em
		want, verdict := "", ""
		if g.factor > 0 {
			ok := ratio <= g.factor
			want = fmt.Sprintf("≤ %g", g.factor)
			if g.more {
				ok = ratio >= g.factor
				want = fmt.Sprintf("≥ %g", g.factor)
			}
			verdict = "missed"
			if ok {
				verdict = "met"
			}
		}
		fmt.Printf("| %s | %s | %s | %.2f | %s | %s |\n", g.name, figure(em, el, eh, g.unit), figure(im, il, ih, g.unit), ratio, want, verdict)
	}
	return nil
}

func figure(mean, low, high float64, unit string) string {
	digits := 0
	switch {
	case math.Abs(mean) < 1:
		digits = 3
	case math.Abs(mean) < 100:
		digits = 2
	}
	return fmt.Sprintf("%.*f %s (%.*f–%.*f)", digits, mean, unit, digits, low, digits, high)
}
