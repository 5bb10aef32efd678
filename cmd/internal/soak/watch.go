package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/impossibledb/idb/cmd/internal/chaos"
)

// watch follows what every node's process holds. Processes are killed and
// started all the time, which hides slow leaks, so one node is spared from the
// second third of the run on (see hurt), and medians of thirds are compared.
type watch struct {
	cluster *chaos.Cluster
	looks   []look
}

type look struct {
	at     time.Duration // since the run began
	node   string
	sample chaos.Sample
}

func newWatch(c *chaos.Cluster) *watch { return &watch{cluster: c} }

func (w *watch) look(ctx context.Context, at time.Duration) error {
	for _, n := range w.cluster.Nodes {
		s, err := n.Sample(ctx)
		if err != nil {
			return err
		}
		w.looks = append(w.looks, look{at, n.ID, s})
	}
	return nil
}

// The figures that must be flat: how much the last third of the run may be
// above the second, and what is noise whatever the ratio. A leak shows in the
// heap after a collection, or in what is resident beside Go's heap. What is free
// in the heap depends on when it was last collected and what was busy then;
// memory tables and cached blocks grow to their limits by design: they are taken
// out.
var flat = []struct {
	name  string
	of    func(chaos.Sample) int64
	ratio float64
	slack int64
}{
	{"goroutines", func(s chaos.Sample) int64 { return int64(s.Goroutines) }, 1.2, 30},
	{"heap MiB", func(s chaos.Sample) int64 { return s.HeapBytes >> 20 }, 1.3, 8},
	{"resident MiB in use", func(s chaos.Sample) int64 { return (s.MemoryBytes - s.CacheBytes - s.SpareBytes) >> 20 }, 1.3, 16},
	{"open files", func(s chaos.Sample) int64 { return int64(s.Files) }, 1.2, 15},
}

// third is the median of a figure over one third of the run.
func (w *watch) third(node string, i int, of func(chaos.Sample) int64) (int64, bool) {
	if len(w.looks) == 0 {
		return 0, false
	}
	end := w.looks[len(w.looks)-1].at
	var v []int64
	for _, l := range w.looks {
		if l.node == node && int(min(2, 3*l.at/max(1, end))) == i {
			v = append(v, of(l.sample))
		}
	}
	if len(v) == 0 {
		return 0, false
	}
	slices.Sort(v)
	return v[len(v)/2], true
}

// judge compares the last third with the second; the first is warming up.
func (w *watch) judge() error {
	var bad []error
	for _, n := range w.cluster.Nodes {
		for _, f := range flat {
			before, ok1 := w.third(n.ID, 1, f.of)
			after, ok2 := w.third(n.ID, 2, f.of)
			if ok1 && ok2 && float64(after) > f.ratio*float64(before) && after > before+f.slack {
				bad = append(bad, fmt.Errorf("%s of %s grow: %d in the second third of the run, %d in the last", f.name, n.ID, before, after))
			}
		}
	}
	return errors.Join(bad...)
}

// print shows the medians of each third.
func (w *watch) print() {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "node\tmedian of\tfirst third\tsecond\tlast\t")
	for _, n := range w.cluster.Nodes {
		for _, f := range flat {
			fmt.Fprintf(t, "%s\t%s\t", n.ID, f.name)
			for i := range 3 {
				if v, ok := w.third(n.ID, i, f.of); ok {
					fmt.Fprintf(t, "%d\t", v)
				} else {
					fmt.Fprint(t, "-\t")
				}
			}
			fmt.Fprintln(t)
		}
	}
	t.Flush()
}
