package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/check"
)

const checkPatience = time.Minute

const proof = "Proof"

func (a *app) proofCommands() []*cli.Command {
	return []*cli.Command{a.verifyCommand(), a.checkCommand()}
}

func (a *app) checkCommand() *cli.Command {
	return &cli.Command{
		Name: "check", Category: proof,
		Usage: "compare the replicas of a cluster, at rest or under load",
		Description: `Compares what the replicas of every shard group have stored, row by row, as of
one entry of the group's log, and names the first differences: group, partition,
collection, document, replica. Also: kept counts are what is stored, scans find
what gets find, documents lie in their partitions, every partition has exactly
one owner, nothing is left of dropped collections, request IDs and history are
within their horizons. Of all groups together: the entries of unique values are
what documents hold, at one timestamp.

It changes nothing and may run while clients work: replicas read at --rate, one
group at a time on each node. A replica that does not answer is not compared.

Exit code 0: all is well. 1: something is wrong. 9: nothing is wrong as far as
could be seen, but not everything could be compared.

Examples:
  idb check
  idb check --group g3 --rate 8MiB
  idb check -o json | jq '.groups[].findings'`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "group", Usage: "`GROUP,...`: only these, for example g1,g3", DefaultText: "all"},
			&cli.StringFlag{Name: "rate", Usage: "`SIZE`: what each replica may read a second; a row counts for 512 bytes more", DefaultText: "32MiB"},
			&cli.StringFlag{Name: "addr", Usage: "`HOST:PORT,...`: one or more nodes of the cluster (IDB_ADDR)", DefaultText: "127.0.0.1:7400"},
			&cli.DurationFlag{Name: "timeout", Usage: "`DURATION`: for one comparison, besides reading (IDB_TIMEOUT)", DefaultText: checkPatience.String()},
			outputFlag("table"),
		},
		Action: a.check,
	}
}

func (a *app) check(c *cli.Context) error {
	format, err := outputFormat(c, "table", "json")
	if err != nil {
		return err
	}
	var o check.Options
	if o.Groups, err = groupList(c.String("group")); err != nil {
		return usagef("idb check: --group %q: %w", c.String("group"), err)
	}
	if v := c.String("rate"); v != "" {
		n, err := parseSize(v)
		if err != nil || n < 64<<10 || n>>10 > 1<<31 {
			return usagef("idb check: --rate %q: choose 64KiB or more, for example 8MiB", v)
		}
		o.RateKiB = uint32(n >> 10)
	}
	if o.Patience, err = a.timeout(c, checkPatience); err != nil {
		return err
	}
	dialing, cancel := context.WithTimeout(c.Context, o.Patience)
	db, err := a.dial(dialing, c)
	cancel()
	if err != nil {
		return err
	}
	defer db.Close()
	report, err := a.runCheck(c.Context, db, o)
	if err != nil {
		if report == nil && !errors.Is(err, context.Canceled) && exitCode(err) == exitFault {
			return usagef("idb check: %w", err) // a group that there is not
		}
		return err
	}
	if format == "json" {
		err = a.printJSON(struct {
			*check.Report
			Verdict string `json:"verdict"`
		}{report, report.Verdict()})
	} else {
		err = writeCheck(a.out, report)
	}
	if err != nil {
		return err
	}
	return checkError(report)
}

// runCheck checks with a progress line.
func (a *app) runCheck(ctx context.Context, db *client.DB, o check.Options) (*check.Report, error) {
	var documents, bytes atomic.Int64
	o.Progress = func(d, b uint64) { documents.Add(int64(d)); bytes.Add(int64(b)) }
	total := int64(0)
	if status, err := db.Status(ctx); err == nil {
		for _, g := range newStatusView(*status).Groups {
			if len(o.Groups) == 0 || slices.Contains(o.Groups, g.ID) {
				total += int64(g.Bytes)
			}
		}
	}
	if _, onTerminal := terminal(a.Err); onTerminal || total > 1<<30 {
		bar := startProgress(a.Err, "checking", total, func() (int64, int64) { return bytes.Load(), documents.Load() })
		defer bar.Close()
	}
	return check.Run(ctx, db, o)
}

// checkError is the report's verdict as an exit code.
func checkError(r *check.Report) error {
	switch r.Verdict() {
	case check.Wrong:
		return withCode(exitFault, fmt.Errorf("check: the cluster's state is wrong: %s", firstOf(r)))
	case check.Incomplete:
		return withCode(exitIncomplete, errors.New("check: nothing wrong was found, but not everything could be compared"))
	}
	return nil
}

func firstOf(r *check.Report) string {
	for _, f := range r.All() {
		if !f.Warning {
			return f.String()
		}
	}
	return "more than is listed"
}

// groupList reads "g1,3".
func groupList(s string) (ids []uint32, err error) {
	for w := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == ',' || r == ' ' }) {
		n, err := strconv.ParseUint(strings.TrimPrefix(w, "g"), 10, 32)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is no group (for example g1; idb cluster status lists them)", w)
		}
		ids = append(ids, uint32(n))
	}
	return ids, nil
}

// writeCheck prints a report for eyes.
func writeCheck(w io.Writer, r *check.Report) error {
	var b strings.Builder
	t := table{head: []string{"GROUP", "AT", "PARTITIONS", "DOCUMENTS", "VERSIONS", "SIZE", "ANSWERS", "REPLICAS", "VERDICT"}, right: map[int]bool{1: true, 2: true, 3: true, 4: true, 5: true, 6: true}}
	for i := range r.Groups {
		g := &r.Groups[i]
		var replicas []string
		for _, x := range g.Replicas {
			if x.Error != "" {
				replicas = append(replicas, x.Node+"(?)")
			} else {
				replicas = append(replicas, x.Node)
			}
		}
		row := []string{fmt.Sprintf("g%d", g.ID), fmt.Sprint(g.Index), fmt.Sprint(g.Partitions), thousands(int64(g.Documents)), thousands(int64(g.Versions)),
			bytesText(g.Bytes), thousands(int64(g.Answers)), strings.Join(replicas, " "), g.Verdict()}
		if g.Error != "" {
			row = []string{row[0], "-", "-", "-", "-", "-", "-", orDash(row[7]), g.Verdict()}
		}
		t.rows = append(t.rows, row)
	}
	t.write(&b)
	section := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		fmt.Fprintf(&b, "\n%s:\n", title)
		for _, l := range lines {
			fmt.Fprintf(&b, "  %s\n", l)
		}
	}
	var wrong, warnings []string
	found, listed := uint64(len(r.Findings)), uint64(len(r.All()))
	for _, g := range r.Groups {
		found += g.Found
	}
	for _, u := range r.Unique {
		found += u.Found
	}
	for _, f := range r.All() {
		if f.Warning {
			warnings = append(warnings, f.String())
		} else {
			wrong = append(wrong, f.Kind+": "+f.String())
		}
	}
	if found > listed {
		wrong = append(wrong, fmt.Sprintf("and %s more", thousands(int64(found-listed))))
	}
	section("Wrong", wrong)
	section("Not compared", r.Incompletes())
	section("Warnings", warnings)
	fmt.Fprintf(&b, "\n%s (%.1f s)\n", verdictText(r), r.Seconds)
	_, err := io.WriteString(w, b.String())
	return err
}

func verdictText(r *check.Report) string {
	switch r.Verdict() {
	case check.Wrong:
		return "WRONG: see above"
	case check.Incomplete:
		return "INCOMPLETE: nothing wrong was found, but not everything could be compared"
	}
	return "OK: all replicas are equal, and all is as it should be"
}
