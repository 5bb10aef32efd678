package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

const transactions = "Transactions"

func (a *app) txnList() *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list the transactions that hold something or wait, and who waits for whom",
		Description: `Asks the leaders of all groups which transactions they know that are not over:

  open       not committing yet, or waiting to; it may hold locks taken up front
  prepared   its partitions have voted yes, and its home has not decided yet
  committed  decided, and not all partitions know it yet

and who waits for a lock, for whom, since when. The home is the partition that
decides. Past its deadline a transaction is aborted by whoever meets it. Single
operations hold nothing; they are listed where they wait.

It is a look: every leader is asked at another moment. Groups that do not answer
within two seconds are named, and the exit code is 9.

Examples:
  idb txn list
  idb txn list -o json | jq '.waits[] | {waiter, holder, document}'`,
		Flags: clientFlags(outputFlag("table")),
		Action: func(c *cli.Context) error {
			format, err := outputFormat(c, "table", "json")
			if err != nil {
				return err
			}
			return a.withDB(c, func(ctx context.Context, db *client.DB) error {
				list, err := db.Transactions(ctx)
				if err != nil {
					return err
				}
				v := newTxnListView(list)
				if format == "json" {
					err = a.printJSON(v)
				} else {
					err = v.writeTable(a.out)
				}
				if err != nil {
					return err
				}
				return v.incomplete()
			})
		},
	}
}

func (a *app) txnShow() *cli.Command {
	return &cli.Command{
		Name: "show", ArgsUsage: "ID",
		Usage: "show one transaction: its votes, what it holds, who waits for it",
		Description: `Shows what is known of one transaction, by the ID that errors and idb txn list
name: its home and what that has decided, the vote of every participant, what it
holds (at most 1,000 documents in a group), its deadline, and who waits for it.

What became of a transaction that is over is remembered for as long as request
IDs are, some minutes at least. Exit code 4: nobody knows it.

Examples:
  idb txn show 19a3de1230000-5f0c9a1b2c3d
  idb txn show 19a3de1230000-5f0c9a1b2c3d -o json | jq .state`,
		Flags: clientFlags(outputFlag("text")),
		Action: func(c *cli.Context) error {
			format, err := outputFormat(c, "text", "json")
			if err != nil {
				return err
			}
			id := c.Args().First()
			return a.withDB(c, func(ctx context.Context, db *client.DB) error {
				list, err := db.FindTransaction(ctx, id)
				if err != nil {
					return err
				}
				v := newTxnListView(list)
				if len(list.Txns) == 0 {
					if err := v.incomplete(); err != nil {
						return withCode(exitUnavailable, fmt.Errorf("transaction %s is not known, but %w", id, err))
					}
					return withCode(exitNotFound, fmt.Errorf("transaction %s is not known: it was never begun, has left nothing, or is over for longer than is remembered", id))
				}
				if format == "json" {
					err = a.printJSON(struct {
						*txnView
						Waits   []waitView    `json:"waits"`
						Missing []missingView `json:"missing"`
					}{&v.Transactions[0], v.Waits, v.Missing})
				} else {
					err = v.writeOne(a.out)
				}
				if err != nil {
					return err
				}
				return v.incomplete()
			})
		},
	}
}

func (a *app) txnAbort() *cli.Command {
	return &cli.Command{
		Name: "abort", ArgsUsage: "ID",
		Usage: "abort a transaction that is not decided, and let go of what it holds",
		Description: `Has the transaction's home abort it if it is not decided, and tells every
participant. The outcome is printed. Exit codes: 0 it is aborted, or was before;
5 it was committed before (what it still held is resolved); 4 nobody knows it.
Its client hears ErrTxAborted, and Transact runs it again.

A transaction that has only locked documents up front and not begun to commit is
known to no home: its locks are let go, and it may still be committed.

Examples:
  idb txn list
  idb txn abort 19a3de1230000-5f0c9a1b2c3d`,
		Flags: clientFlags(outputFlag("text")),
		Action: func(c *cli.Context) error {
			format, err := outputFormat(c, "text", "json")
			if err != nil {
				return err
			}
			return a.withDB(c, func(ctx context.Context, db *client.DB) error {
				reply, err := db.AbortTransaction(ctx, c.Args().First())
				if err != nil {
					return err
				}
				v := newAbortView(reply)
				if reply.State == wire.TxnUnknown {
					return withCode(exitNotFound, errors.New(v.sentence()))
				}
				if format == "json" {
					err = a.printJSON(v)
				} else {
					_, err = fmt.Fprintln(a.out, v.sentence())
				}
				if err == nil && reply.State == wire.TxnCommitted {
					err = &saidError{exitConflict}
				}
				return err
			})
		},
	}
}

// txnListView is what `idb txn list` shows. It is also its JSON.
type txnListView struct {
	Transactions []txnView     `json:"transactions"`
	Waits        []waitView    `json:"waits"`
	LeftOut      uint32        `json:"leftOut"`
	Missing      []missingView `json:"missing"`
}

type txnView struct {
	ID           string    `json:"id"`
	State        string    `json:"state"`
	Began        string    `json:"began"`
	AgeMillis    int64     `json:"ageMillis"`
	FirstAttempt string    `json:"firstAttempt,omitempty"`
	Home         *homeView `json:"home"` // null: not known yet
	Participants uint32    `json:"participants"`
	Reads        uint32    `json:"reads"`
	Writes       uint32    `json:"writes"`
	Locks        uint32    `json:"locks"`
	Deadline     string    `json:"deadline,omitempty"`
	// Left is how long it has until then; below 0 once it is over.
	Left      *int64     `json:"leftMillis,omitempty"`
	Committed string     `json:"committed,omitempty"` // time of its commit
	Timestamp uint64     `json:"timestamp,omitempty"` // the same, exactly
	WaitsFor  []string   `json:"waitsFor"`
	Parts     []partView `json:"parts"`
}

type homeView struct {
	Group     string `json:"group"`
	Partition uint32 `json:"partition"`
}

type partView struct {
	Group     string     `json:"group"`
	Partition uint32     `json:"partition"`
	State     string     `json:"state"`
	Timestamp uint64     `json:"timestamp,omitempty"`
	Reads     uint32     `json:"reads"`
	Writes    uint32     `json:"writes"`
	Locks     uint32     `json:"locks"`
	Documents []heldView `json:"documents,omitempty"`
}

type heldView struct {
	How        string `json:"how"` // write, read, range, lock
	Collection string `json:"collection"`
	ID         string `json:"id,omitempty"` // of a range: its prefix
	From       string `json:"from,omitempty"`
	To         string `json:"to,omitempty"`
	Left       uint64 `json:"leftMillis,omitempty"` // of a lock
}

type waitView struct {
	Waiter     string `json:"waiter,omitempty"` // empty: a single write
	Holder     string `json:"holder"`
	What       string `json:"what"` // write, lock, prepare, decide, commit
	Millis     int64  `json:"millis"`
	Group      string `json:"group"`
	Collection string `json:"collection"`
	Document   string `json:"document"`
}

type missingView struct {
	Group string `json:"group"`
	Error string `json:"error"`
}

var heldNames = map[uint8]string{wire.HoldWrite: "write", wire.HoldRead: "read", wire.HoldRange: "range", wire.HoldFront: "lock"}

var waitNames = map[uint8]string{wire.WaitWrite: "write", wire.WaitLock: "lock", wire.WaitPrepare: "prepare", wire.WaitDecide: "decide", wire.WaitCommit: "commit"}

func groupName(g uint32) string { return placement.GroupID(g).String() }

func newTxnListView(l *client.TransactionList) *txnListView {
	v := &txnListView{Transactions: []txnView{}, Waits: []waitView{}, LeftOut: l.LeftOut, Missing: missingViews(l.Missing)}
	now := hlc.Timestamp(l.Now).Time()
	waits := map[string][]string{}
	for i := range l.Waits {
		w := &l.Waits[i]
		x := waitView{
			Holder: w.For.String(), What: waitNames[w.What], Millis: int64(w.Micros / 1000), Group: groupName(w.Group),
			Collection: w.Collection, Document: w.Document,
		}
		if w.ID != (wire.RequestID{}) {
			x.Waiter = w.ID.String()
			waits[x.Waiter] = append(waits[x.Waiter], x.Holder)
		}
		v.Waits = append(v.Waits, x)
	}
	for i := range l.Txns {
		x := &l.Txns[i]
		began := hlc.Timestamp(x.ID.Time)
		t := txnView{
			ID: x.ID.String(), State: x.State.String(), Began: timeText(began), AgeMillis: max(now.Sub(began.Time()).Milliseconds(), 0),
			Participants: x.Participants, Reads: x.Reads, Writes: x.Writes, Locks: x.Locks, WaitsFor: waits[x.ID.String()], Parts: []partView{},
		}
		if t.WaitsFor == nil {
			t.WaitsFor = []string{}
		}
		if x.Born != 0 && x.Born != x.ID.Time {
			t.FirstAttempt = timeText(hlc.Timestamp(x.Born))
		}
		if x.Home != wire.NoPartition {
			t.Home = &homeView{groupName(x.HomeGroup), x.Home}
		}
		if x.Deadline != 0 {
			left := hlc.Timestamp(x.Deadline).Time().Sub(now).Milliseconds()
			t.Deadline, t.Left = timeText(hlc.Timestamp(x.Deadline)), &left
		}
		if x.State == wire.TxnCommitted {
			t.Committed, t.Timestamp = timeText(hlc.Timestamp(x.Time)), x.Time
		}
		for j := range x.Parts {
			p := &x.Parts[j]
			pv := partView{Group: groupName(p.Group), Partition: p.Partition, State: p.State.String(), Timestamp: p.Time, Reads: p.Reads, Writes: p.Writes, Locks: p.Locks}
			for k := range p.Documents {
				d := &p.Documents[k]
				pv.Documents = append(pv.Documents, heldView{heldNames[d.How], d.Collection, d.ID, d.From, d.To, d.Expires})
			}
			t.Parts = append(t.Parts, pv)
		}
		v.Transactions = append(v.Transactions, t)
	}
	return v
}

func missingViews(all []wire.TxnMissing) []missingView {
	out := []missingView{}
	for _, m := range all {
		out = append(out, missingView{groupName(m.Group), m.Error})
	}
	return out
}

// incomplete is an error if a group did not answer.
func (v *txnListView) incomplete() error {
	if len(v.Missing) == 0 {
		return nil
	}
	names := make([]string, len(v.Missing))
	for i := range names {
		names[i] = v.Missing[i].Group
	}
	return withCode(exitIncomplete, fmt.Errorf("%s did not answer, what is held there is not seen", strings.Join(names, ", ")))
}

// span is a duration in milliseconds, for eyes.
func span(millis int64) string {
	if millis < 1000 {
		return fmt.Sprintf("%dms", millis)
	}
	if millis < 60_000 {
		return fmt.Sprintf("%.1fs", float64(millis)/1000)
	}
	return upText(uint64(millis / 1000))
}

func (t *txnView) homeText() string {
	if t.Home == nil {
		return "-"
	}
	return fmt.Sprintf("%s partition %d", t.Home.Group, t.Home.Partition)
}

func (t *txnView) deadlineText() string {
	switch {
	case t.Left == nil:
		return "-"
	case *t.Left < 0:
		return span(-*t.Left) + " ago"
	}
	return "in " + span(*t.Left)
}

// holdsText is "2 writes, 1 read".
func holdsText(writes, reads, locks uint32) string {
	var out []string
	for _, x := range []struct {
		n    uint32
		what string
	}{{writes, "write"}, {reads, "read"}, {locks, "lock"}} {
		if x.n > 0 {
			out = append(out, plural(int(x.n), x.what))
		}
	}
	return orDash(strings.Join(out, ", "))
}

// writeTable prints the list for eyes.
func (v *txnListView) writeTable(w io.Writer) error {
	var b strings.Builder
	if len(v.Transactions) == 0 {
		b.WriteString("no transaction holds anything\n")
	} else {
		t := table{head: []string{"ID", "STATE", "AGE", "HOME", "PARTS", "HOLDS", "DEADLINE", "WAITS FOR"}, right: map[int]bool{2: true, 4: true}}
		for i := range v.Transactions {
			x := &v.Transactions[i]
			t.rows = append(t.rows, []string{
				x.ID, x.State, span(x.AgeMillis), x.homeText(), fmt.Sprint(x.Participants), holdsText(x.Writes, x.Reads, x.Locks),
				x.deadlineText(), orDash(strings.Join(x.WaitsFor, " ")),
			})
		}
		t.write(&b)
	}
	v.writeWaits(&b)
	if v.LeftOut > 0 {
		fmt.Fprintf(&b, "\nand %s more that are not listed\n", thousands(int64(v.LeftOut)))
	}
	v.writeMissing(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (v *txnListView) writeWaits(b *strings.Builder) {
	if len(v.Waits) == 0 {
		return
	}
	b.WriteString("\nWaits:\n")
	for i := range v.Waits {
		w := &v.Waits[i]
		who := "a single write"
		if w.Waiter != "" {
			who = fmt.Sprintf("%s (%s)", w.Waiter, w.What)
		}
		fmt.Fprintf(b, "  %s has waited %s for %s: %s/%s\n", who, span(w.Millis), w.Holder, w.Collection, w.Document)
	}
}

func (v *txnListView) writeMissing(b *strings.Builder) {
	if len(v.Missing) == 0 {
		return
	}
	b.WriteString("\nNot seen:\n")
	for _, m := range v.Missing {
		fmt.Fprintf(b, "  %s: %s\n", m.Group, m.Error)
	}
}

// stateText says more of a state than its name.
func (t *txnView) stateText() string {
	switch t.State {
	case "open":
		return "open: it is not committing yet, or waits to"
	case "prepared":
		return "prepared: its home has not decided"
	case "committed":
		return "committed at " + t.Committed + fmt.Sprintf(" (timestamp %d)", t.Timestamp)
	case "resolved":
		return "over: nothing is held, what it came to is not known here"
	case "expired":
		return "older than what is remembered: it was not committed since"
	}
	return t.State
}

// writeOne prints everything about the first transaction.
func (v *txnListView) writeOne(w io.Writer) error {
	var b strings.Builder
	x := &v.Transactions[0]
	fmt.Fprintf(&b, "transaction %s\n", x.ID)
	row := func(name, value string) { fmt.Fprintf(&b, "  %-14s %s\n", name, value) }
	row("state", x.stateText())
	row("began", fmt.Sprintf("%s, %s ago", x.Began, span(x.AgeMillis)))
	if x.FirstAttempt != "" {
		row("first attempt", x.FirstAttempt)
	}
	row("home", x.homeText())
	row("deadline", x.deadlineText())
	row("holds", holdsText(x.Writes, x.Reads, x.Locks))
	if len(x.Parts) > 0 {
		b.WriteByte('\n')
		t := table{head: []string{"GROUP", "PARTITION", "STATE", "HOLDS"}, right: map[int]bool{1: true}}
		for i := range x.Parts {
			p := &x.Parts[i]
			t.rows = append(t.rows, []string{p.Group, fmt.Sprint(p.Partition), p.State, holdsText(p.Writes, p.Reads, p.Locks)})
		}
		t.write(&b)
		if n := int(x.Participants) - len(x.Parts); n > 0 {
			fmt.Fprintf(&b, "and %d more\n", n)
		}
	}
	t := table{head: []string{"HOW", "DOCUMENT", "GROUP", "PARTITION"}, right: map[int]bool{3: true}}
	for i := range x.Parts {
		p := &x.Parts[i]
		for _, d := range p.Documents {
			t.rows = append(t.rows, []string{d.How, d.text(), p.Group, fmt.Sprint(p.Partition)})
		}
	}
	if len(t.rows) > 0 {
		b.WriteByte('\n')
		t.write(&b)
	}
	v.writeWaits(&b)
	v.writeMissing(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (d *heldView) text() string {
	switch d.How {
	case "range":
		s := d.Collection + "/" + d.ID + "*"
		if d.From != "" {
			s += " from " + d.From
		}
		if d.To != "" {
			s += " to " + d.To
		}
		return s
	case "lock":
		return fmt.Sprintf("%s/%s (%s left)", d.Collection, d.ID, span(int64(d.Left)))
	}
	return d.Collection + "/" + d.ID
}

// abortView is what `idb txn abort` shows.
type abortView struct {
	ID        string        `json:"id"`
	State     string        `json:"state"`
	Already   bool          `json:"already"` // it was decided before
	Timestamp uint64        `json:"timestamp,omitempty"`
	Committed string        `json:"committed,omitempty"`
	Resolved  uint32        `json:"resolved"`
	Unlocked  uint32        `json:"unlocked"`
	Missing   []missingView `json:"missing"`
}

func newAbortView(r *client.AbortReply) *abortView {
	v := &abortView{ID: r.ID.String(), State: r.State.String(), Already: r.Already, Resolved: r.Resolved, Unlocked: r.Unlocked, Missing: missingViews(r.Missing)}
	if r.State == wire.TxnCommitted {
		v.Timestamp, v.Committed = r.Time, timeText(hlc.Timestamp(r.Time))
	}
	return v
}

// sentence says what has become of the transaction.
func (v *abortView) sentence() string {
	s := "transaction " + v.ID
	switch v.State {
	case "aborted":
		if v.Already {
			s += " was aborted before"
		} else {
			s += " is aborted"
		}
	case "committed":
		s += " was committed before, at " + v.Committed
	case "expired":
		s += " is older than what is remembered; it was not committed since, and will not be"
	case "open":
		s += " has not begun to commit, and may still be"
	case "resolved":
		s += " is over, what it came to is not known here"
	default:
		return s + " is not known: it was never begun, has left nothing, or is over for longer than is remembered"
	}
	var more []string
	if v.Resolved > 0 {
		more = append(more, plural(int(v.Resolved), "partition")+" resolved")
	}
	if v.Unlocked > 0 {
		more = append(more, plural(int(v.Unlocked), "lock")+" let go")
	}
	for _, m := range v.Missing {
		more = append(more, m.Group+" did not answer")
	}
	if len(more) > 0 {
		s += ": " + strings.Join(more, ", ")
	}
	return s
}
