// Command mutants proves that the tests catch what they are for: it breaks the
// product in every way of package fsm/mutant, one at a time, runs the test that
// has to notice, and prints who did and how soon. It fails if one mistake
// survives its budget, if a catcher fails without a mistake, or if a mistake
// has no row in the table.
//
//	go run ./cmd/internal/mutants [-only name,...] [-jobs 2]
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/impossibledb/idb/fsm/mutant"
)

func main() {
	only := flag.String("only", "", "mutants to run, separated by commas; empty: all")
	jobs := flag.Int("jobs", 2, "how many run at a time")
	flag.Parse()
	if err := run(*only, *jobs); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// outcome is what became of one run of the table.
type outcome struct {
	what   string
	c      catcher
	within int
	took   time.Duration
	needed string // seeds or runs
	err    error
}

func run(only string, jobs int) error {
	rows, err := choose(only)
	if err != nil {
		return err
	}
	root, err := rootDir()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := bench{root: root, dir: dir}
	if err := b.build(rows); err != nil {
		return err
	}

	// Without a mistake every catcher has to be content: the same tests, built
	// the same way. The longest first, so that the jobs end together.
	var work []func() outcome
	for _, c := range catchers(rows) {
		work = append(work, func() outcome { return b.control(c) })
	}
	for _, r := range rows {
		work = append(work, func() outcome { return b.break_(r) })
	}
	began := time.Now()
	results := do(work, jobs)

	failed := 0
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "MUTATION\tCAUGHT BY\tNEEDED\tBUDGET\tTOOK")
	for _, o := range results {
		if o.err != nil {
			failed++
			o.needed = "SURVIVED"
		}
		fmt.Fprintf(w, "%s\t%s: %s %s\t%s\t%s\t%s\n", o.what, o.c.ring, o.c.pkg, strings.NewReplacer("^", "", "$", "").Replace(o.c.run), o.needed, budget(o.c, o.within), o.took.Round(100*time.Millisecond))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Printf("%d mutants, %d catchers, %v\n", len(rows), len(results)-len(rows), time.Since(began).Round(time.Second))
	if failed == 0 {
		return nil
	}
	for _, o := range results {
		if o.err != nil {
			fmt.Fprintf(os.Stderr, "\n%s: %v\n", o.what, o.err)
		}
	}
	return fmt.Errorf("%d of %d are not as they have to be", failed, len(results))
}

// choose picks the rows to run, and checks that the table is whole.
func choose(only string) ([]row, error) {
	have := map[mutant.Name]row{}
	for _, r := range table {
		if _, twice := have[r.mutant]; twice {
			return nil, fmt.Errorf("%s has two rows", r.mutant)
		}
		have[r.mutant] = r
	}
	var errs error
	for _, n := range mutant.Names() {
		if _, ok := have[n]; !ok {
			errs = errors.Join(errs, fmt.Errorf("%s has no row in table.go: say who catches it", n))
		}
	}
	if errs != nil || only == "" {
		return table, errs
	}
	var rows []row
	for _, n := range strings.Split(only, ",") {
		r, ok := have[mutant.Name(n)]
		if !ok {
			return nil, fmt.Errorf("there is no mutant %q; there are %v", n, mutant.Names())
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// catchers are the different ones among the rows, with the largest budget.
func catchers(rows []row) []row {
	var list []row
	for _, r := range rows {
		i := slices.IndexFunc(list, func(have row) bool { return have.by.key() == r.by.key() })
		if i < 0 {
			list = append(list, r)
		} else {
			list[i].within = max(list[i].within, r.within)
		}
	}
	return list
}

func (c catcher) key() string { return c.pkg + " " + c.run + " " + strings.Join(c.args, " ") }

func budget(c catcher, within int) string {
	if c.seeds != "" {
		return strconv.Itoa(within) + " seeds"
	}
	return plural(within, "run")
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// do runs the work, so many at a time, and keeps its order.
func do(work []func() outcome, jobs int) []outcome {
	results := make([]outcome, len(work))
	next := make(chan int)
	var wg sync.WaitGroup
	for range max(1, jobs) {
		wg.Go(func() {
			for i := range next {
				results[i] = work[i]()
				state := results[i].needed
				if results[i].err != nil {
					state = "NOT AS IT HAS TO BE"
				}
				fmt.Fprintf(os.Stderr, "%s: %s, %v\n", results[i].what, state, results[i].took.Round(100*time.Millisecond))
			}
		})
	}
	for i := range work {
		next <- i
	}
	close(next)
	wg.Wait()
	return results
}

// bench has the tests, built with the tag.
type bench struct{ root, dir string }

func rootDir() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

func (b *bench) binary(c catcher) string {
	return filepath.Join(b.dir, strings.ReplaceAll(c.pkg, "/", "_")+".test")
}

func (b *bench) build(rows []row) error {
	done := map[string]bool{}
	for _, r := range rows {
		if done[r.by.pkg] {
			continue
		}
		done[r.by.pkg] = true
		cmd := exec.Command("go", "test", "-c", "-tags", "mutants", "-o", b.binary(r.by), "./"+r.by.pkg)
		cmd.Dir, cmd.Stderr = b.root, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("building the tests of %s: %w", r.by.pkg, err)
		}
	}
	return nil
}

// once runs a catcher; failed says that its test did, with what it printed.
func (b *bench) once(c catcher, m mutant.Name, within int) (output string, failed bool, err error) {
	limit := time.Duration(3*c.seconds+60) * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), limit+10*time.Second)
	defer cancel()
	args := append([]string{"-test.run", c.run, "-test.timeout", limit.String()}, c.args...)
	if c.seeds != "" {
		args = append(args, c.seeds, strconv.Itoa(within))
	}
	cmd := exec.CommandContext(ctx, b.binary(c), args...)
	cmd.Dir = filepath.Join(b.root, c.pkg)
	// What the tests build for themselves is built with the tag as well.
	cmd.Env = append(os.Environ(), "IDB_TEST_MUTANT="+string(m), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -tags=mutants"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		if strings.Contains(out.String(), "no tests to run") {
			return "", false, fmt.Errorf("%s has no test %s", c.pkg, c.run)
		}
		return out.String(), false, nil
	case errors.As(err, &exit):
		return out.String(), true, nil
	}
	return "", false, err
}

// control runs a catcher on the product as it is.
func (b *bench) control(r row) outcome {
	o := outcome{what: "(none)", c: r.by, within: r.within, needed: "content"}
	if r.by.seeds == "" {
		o.within = 1
	}
	began := time.Now()
	out, failed, err := b.once(r.by, "", r.within)
	o.took = time.Since(began)
	if err == nil && failed {
		err = fmt.Errorf("%s %s fails without a mutant:\n%s", r.by.pkg, r.by.run, tail(out))
	}
	o.err = err
	return o
}

var faultInRun = regexp.MustCompile(`(?:fault in run|TestSeeds/run/)(?: )?(\d+)(?:[: ]|$)`)

// break_ runs a row's catcher until it notices, or its budget is used up.
func (b *bench) break_(r row) (o outcome) {
	o = outcome{what: string(r.mutant) + ": " + r.what, c: r.by, within: r.within}
	says := regexp.MustCompile(r.says)
	began := time.Now()
	defer func() { o.took = time.Since(began) }()
	runs := r.within
	if r.by.seeds != "" {
		runs = 1
	}
	for n := 1; n <= runs; n++ {
		out, failed, err := b.once(r.by, r.mutant, r.within)
		switch {
		case err != nil:
			o.err = err
			return o
		case failed && says.MatchString(out) && !strings.Contains(out, "test timed out"):
			o.needed = plural(n, "run")
			if r.by.seeds != "" {
				needed := slices.Sorted(func(yield func(int) bool) {
					for _, m := range faultInRun.FindAllStringSubmatch(out, -1) {
						k, _ := strconv.Atoi(m[1]) // digits
						if !yield(k) {
							return
						}
					}
				})
				o.needed = plural(cmp.Or(needed[0], 1), "seed")
			}
			return o
		case failed:
			o.err = fmt.Errorf("%s %s fails, and does not say %q:\n%s", r.by.pkg, r.by.run, r.says, tail(out))
			return o
		}
	}
	o.err = fmt.Errorf("%s %s notices nothing within %s: a test is missing", r.by.pkg, r.by.run, budget(r.by, r.within))
	return o
}

// tail is the end of an output.
func tail(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}
