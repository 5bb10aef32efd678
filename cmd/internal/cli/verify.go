package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/chaos"
	"github.com/impossibledb/idb/cmd/internal/node"
	"github.com/impossibledb/idb/cmd/internal/report"
	"github.com/impossibledb/idb/cmd/internal/verify"
	"github.com/impossibledb/idb/cmd/internal/workload"
)

const (
	verifyDuration = time.Minute
	verifyPatience = 10 * time.Second
	verifyClients  = 32
	mostClients    = 1024
)

func (a *app) verifyCommand() *cli.Command {
	return &cli.Command{
		Name: "verify", Category: proof,
		Usage: "work on a cluster and judge every answer",
		Description: `Runs clients against a cluster, records everything they ask and are told, and
judges it: every document behaved as one copy that changes at one instant
(linearizability), every write had its effect once, nothing acknowledged is
lost, versions and history are true, scans and counts agree, collections come
and go as told. docs/verify.md explains the verdicts.

It works in collections of its own, called idb-verify-…, and removes them, also
after Ctrl-C. Should some be left, the next run says so, and --clean removes
them. It works as fast as it is answered: give --pace beside production.

Workloads:
` + workloadHelp() + `
With --local it starts a cluster of its own, real processes of this program, and
breaks it on purpose while clients work: kill -9, pauses, partitions, full disks,
clocks that jump. In network namespaces where the system permits them, else on
plain loopback without partitions and full disks; it says which. At the end
replicas are compared as idb check does, and everything is removed.

Exit code 0: no anomaly. 1: anomalies, named.

Examples:
  idb verify
  idb verify --local --nodes 5 --duration 60s --report verify.html
  idb verify --local --faults kill,partition
  idb verify --addr h1:7400 --duration 10m --pace 5ms --report verify.html
  idb verify --workload register,counter -o json
  idb verify --clean`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "addr", Usage: "`HOST:PORT,...`: one or more nodes of the cluster (IDB_ADDR)", DefaultText: node.DefaultClientAddr},
			&cli.DurationFlag{Name: "duration", Usage: "`DURATION`: how long clients work", Value: verifyDuration},
			&cli.IntFlag{Name: "clients", Usage: "`N`: clients in all", Value: verifyClients},
			&cli.StringFlag{Name: "workload", Usage: "`NAME,...`: only these", DefaultText: "all"},
			&cli.DurationFlag{Name: "pace", Usage: "`DURATION`: what a client waits between two operations, on average", DefaultText: "nothing"},
			&cli.BoolFlag{Name: "local", Usage: "start a throw-away cluster and break it"},
			&cli.IntFlag{Name: "nodes", Usage: "`N`: of the throw-away cluster, 3 to 9", DefaultText: "5"},
			&cli.StringFlag{Name: "faults", Usage: "`KIND,...`: " + strings.Join(chaos.Kinds, ", ") + ", all or none", DefaultText: "all"},
			&cli.StringFlag{Name: "report", Usage: "`FILE.html`: a page with the timeline and every anomaly; FILE.json is written beside it"},
			&cli.Uint64Flag{Name: "seed", Usage: "`N`: choices of the clients", DefaultText: "from the clock"},
			&cli.BoolFlag{Name: "clean", Usage: "only remove what interrupted runs have left"},
			&cli.BoolFlag{Name: "yes", Usage: "with --clean: also what a run that still goes on may be using"},
			&cli.DurationFlag{Name: "timeout", Usage: "`DURATION`: for one operation, retries included (IDB_TIMEOUT)", DefaultText: verifyPatience.String()},
			outputFlag("text"),
		},
		Action: a.verify,
	}
}

func workloadHelp() string {
	var b strings.Builder
	for _, name := range workload.Names() {
		fmt.Fprintf(&b, "  %-9s %s\n", name, workload.About(name))
	}
	return b.String()
}

// verifyFlags are what the command line asks for.
type verifyFlags struct {
	verify.Options
	format string
	html   string // where the report goes; empty: nowhere

	nodes  int      // of a throw-away cluster
	faults []string // kinds
	asked  bool     // for these and no others
}

func (a *app) verifyFlags(c *cli.Context) (f verifyFlags, err error) {
	usage := func(format string, args ...any) (verifyFlags, error) {
		return f, usagef("idb verify: "+format, args...)
	}
	if f.format, err = outputFormat(c, "text", "json"); err != nil {
		return f, err
	}
	f.Duration, f.Clients, f.Pace, f.Seed = c.Duration("duration"), c.Int("clients"), c.Duration("pace"), c.Uint64("seed")
	switch {
	case f.Duration < time.Second:
		return usage("--duration %v: want 1s or more", f.Duration)
	case f.Clients < 1 || f.Clients > mostClients:
		return usage("--clients %d: choose 1 to %d", f.Clients, mostClients)
	case f.Pace < 0:
		return usage("--pace %v: want 0 or more", f.Pace)
	}
	for name := range strings.FieldsFuncSeq(c.String("workload"), func(r rune) bool { return r == ',' || r == ' ' }) {
		if !slices.Contains(workload.Names(), name) {
			hint := ""
			if best := nearest(name, workload.Names()); best != "" {
				hint = ", did you mean " + best + "?"
			}
			return usage("--workload: there is no workload %q%s (there are %s)", name, hint, strings.Join(workload.Names(), ", "))
		}
		if !slices.Contains(f.Workloads, name) {
			f.Workloads = append(f.Workloads, name)
		}
	}
	if f.html = c.String("report"); f.html != "" {
		if ext := filepath.Ext(f.html); ext != ".html" && ext != ".htm" {
			return usage("--report %q: want a name that ends with .html", f.html)
		}
		// Known before an hour of work, not after.
		if info, err := os.Stat(filepath.Dir(f.html)); err != nil || !info.IsDir() {
			return usage("--report %q: there is no directory %s", f.html, filepath.Dir(f.html))
		}
	}
	if err := f.local(c); err != nil {
		return f, err
	}
	if c.Bool("yes") && !c.Bool("clean") {
		return usage("--yes goes with --clean")
	}
	f.Patience, err = a.timeout(c, verifyPatience)
	return f, err
}

func (a *app) verify(c *cli.Context) error {
	f, err := a.verifyFlags(c)
	if err != nil {
		return err
	}
	if c.Bool("local") {
		return a.verifyLocal(c.Context, f)
	}
	f.Dial = func(ctx context.Context) (*client.DB, error) {
		ctx, cancel := context.WithTimeout(ctx, f.Patience)
		defer cancel()
		return a.dial(ctx, c, client.WithTimeout(f.Patience))
	}
	db, err := f.Dial(c.Context)
	if err != nil {
		return err
	}
	defer db.Close()
	left, err := verify.Leftovers(c.Context, db)
	if err != nil {
		return err
	}
	if c.Bool("clean") {
		return a.removeLeftovers(c.Context, db, left, c.Bool("yes"))
	}
	a.mentionLeftovers(left)
	a.say("verify: %s for %v", plural(f.Clients, "client"), f.Duration)
	status, err := db.Status(c.Context)
	if err != nil {
		return err
	}
	out, err := a.runVerify(c.Context, f.Options)
	if err != nil {
		return err
	}
	out.Facts = append([]report.Fact{
		{Name: "Cluster", Value: fmt.Sprintf("%s, %s, %s", status.Topology.ClusterID, plural(len(status.Topology.Nodes), "node"), plural(len(status.Topology.Groups), "shard group"))},
		{Name: "Program", Value: "idb " + node.Version},
	}, out.Facts...)
	return a.tellVerdict(f, out)
}

// runVerify runs with a progress line.
func (a *app) runVerify(ctx context.Context, o verify.Options) (*report.Report, error) {
	var mu sync.Mutex
	var now verify.Progress
	o.Progress = func(p verify.Progress) {
		mu.Lock()
		defer mu.Unlock()
		now = p
	}
	bar := startLine(a.Err, func(int) string {
		mu.Lock()
		defer mu.Unlock()
		return verifyLine(now, o.Duration)
	})
	defer bar.Close()
	out, err := verify.Run(ctx, o)
	if left := (*verify.LeftError)(nil); ctx.Err() != nil && !errors.As(err, &left) {
		return nil, errInterrupted
	}
	return out, err
}

// verifyLine is where a run stands:
//
//	verify  23s of 1m0s  working    81,213 operations  3,531/s  12 unknown  pause n2
func verifyLine(p verify.Progress, of time.Duration) string {
	rate := 0.0
	if s := p.Worked.Seconds(); s > 0 {
		rate = float64(p.Counts.Answered) / s
	}
	line := fmt.Sprintf("verify  %v of %v  %-11s  %s operations  %s/s  %s unknown", p.Worked.Truncate(time.Second), of, p.Phase,
		thousands(p.Counts.Answered), thousands(int64(rate)), thousands(p.Counts.Unknown))
	if p.Findings > 0 {
		line += "  " + strings.ToUpper(plural(p.Findings, "anomaly found"))
	}
	if p.Fault != "" {
		line += "  " + p.Fault
	}
	return line
}

// tellVerdict writes the report and the verdict; anomalies are exit code 1.
func (a *app) tellVerdict(f verifyFlags, out *report.Report) error {
	if f.html != "" {
		if err := writeReport(f.html, out); err != nil {
			return err
		}
	}
	if f.format == "json" {
		if err := out.WriteJSON(a.out); err != nil {
			return err
		}
	} else if err := writeVerdict(a.out, out, f.html); err != nil {
		return err
	}
	if n := out.Anomalies(); n > 0 {
		return withCode(exitFault, fmt.Errorf("verify: %s; the first: %s", anomaliesText(n), firstAnomaly(out)))
	}
	return nil
}

func anomaliesText(n int) string {
	if n == 1 {
		return "1 anomaly"
	}
	return thousands(int64(n)) + " anomalies"
}

// writeReport writes the page, and the JSON beside it.
func writeReport(path string, out *report.Report) error {
	for _, w := range []struct {
		path  string
		write func(io.Writer) error
	}{
		{path, out.WriteHTML},
		{strings.TrimSuffix(path, filepath.Ext(path)) + ".json", out.WriteJSON},
	} {
		var b bytes.Buffer
		if err := w.write(&b); err != nil {
			return fmt.Errorf("the report: %w", err)
		}
		if err := os.WriteFile(w.path, b.Bytes(), 0o644); err != nil {
			return fmt.Errorf("the report %s: %w", w.path, bare(err))
		}
	}
	return nil
}

func firstAnomaly(out *report.Report) string {
	for _, w := range out.Workloads {
		for _, x := range w.Verdict.Anomalies() {
			return w.Verdict.Workload + ": " + x.Name
		}
	}
	for _, c := range out.Checks {
		for _, x := range c.Anomalies {
			return x.Name
		}
	}
	return "none"
}

// writeVerdict prints the verdict for eyes.
func writeVerdict(w io.Writer, out *report.Report, html string) error {
	var b strings.Builder
	for _, x := range out.Workloads {
		fmt.Fprintln(&b, x.Verdict.String())
	}
	for _, c := range out.Checks {
		fmt.Fprintln(&b, c.String())
	}
	if len(out.Faults) > 0 {
		fmt.Fprintf(&b, "faults: %s\n", faultsText(out.Faults))
	}
	if n := out.Anomalies(); n == 0 {
		fmt.Fprintf(&b, "\nPASSED: no anomaly\n")
	} else {
		fmt.Fprintf(&b, "\nFAILED: %s\n", anomaliesText(n))
	}
	if html != "" {
		fmt.Fprintf(&b, "report: %s\n", html)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// faultsText counts faults by name.
func faultsText(faults []report.Fault) string {
	var names []string
	counts := map[string]int{}
	for _, f := range faults {
		if counts[f.Name]++; counts[f.Name] == 1 {
			names = append(names, f.Name)
		}
	}
	slices.Sort(names)
	for i, n := range names {
		names[i] = fmt.Sprintf("%d %s", counts[n], n)
	}
	return strings.Join(names, ", ")
}

// mentionLeftovers says what earlier runs have left.
func (a *app) mentionLeftovers(left []verify.Leftover) {
	old := slices.DeleteFunc(slices.Clone(left), func(l verify.Leftover) bool { return l.InUse })
	if len(old) > 0 {
		a.say("an interrupted run has left %s (%s, …): idb verify --clean removes them", plural(len(old), "collection"), old[0].Name)
	}
}

// removeLeftovers drops what interrupted runs have left.
func (a *app) removeLeftovers(ctx context.Context, db *client.DB, left []verify.Leftover, all bool) error {
	var names []string
	kept := 0
	for _, l := range left {
		if l.InUse && !all {
			kept++
			continue
		}
		names = append(names, l.Name)
		a.say("removing %s", l.Name)
	}
	err := verify.Remove(ctx, db, names)
	if err != nil {
		var e *client.Error
		if !errors.As(err, &e) {
			return err
		}
		return fmt.Errorf("not everything was removed: %w", err)
	}
	a.say("%s removed", plural(len(names), "collection"))
	if kept > 0 {
		a.say("%s younger than a quarter of an hour may belong to a run that still goes on; --yes removes them too", plural(kept, "collection"))
	}
	return nil
}
