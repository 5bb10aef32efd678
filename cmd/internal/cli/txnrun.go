package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/txn/hlc"
)

// maxScriptOutput bounds the documents that a script prints, which are kept
// until it is committed.
const maxScriptOutput = 64 << 20

const txnHelp = `Runs operations as one transaction: all of them take effect at one instant, or
none does. One operation a line, or several with ";" between them:

  get COLLECTION ID...               read and print documents
  get-for-update COLLECTION ID...    the same, locked until the end
  scan COLLECTION [PREFIX] [limit N] [reverse]
  require COLLECTION ID exists       or absent, or version N
  require COLLECTION ID PATH >= 5    = != < <= > >=, or exists, or absent
  put COLLECTION [ID] DOCUMENT [if-version N | if-absent | if-present]
  insert COLLECTION [ID] DOCUMENT    update, upsert COLLECTION ID OPERATORS
  delete COLLECTION ID...            restore COLLECTION ID VERSION

Documents and operators are JSON and may go over several lines; an ID with white
space, ";" or a quote in it is written as a JSON string. "#" begins a comment.
Reads see what the script has written above them. A get of what is not there, or
a require that does not hold, ends the script, and nothing is done.

What a script reads is printed once it is committed, one document a line. Where
it meets another transaction it runs again. Every error names its line.

Examples:
  idb txn -e 'update accounts ada {"$inc":{"balance":-5}};
              require accounts ada balance >= 0;
              update accounts bob {"$inc":{"balance":5}}'
  idb txn --file transfer.txt
  idb txn --read-only -o json -e 'get accounts ada bob'
  idb txn --at 10m -e 'scan orders acme/'
  idb txn list`

func (a *app) txnCommands() []*cli.Command {
	return []*cli.Command{{
		Name: "txn", Category: transactions,
		Usage:       "run a transaction; list, show and abort those that run",
		UsageText:   "idb txn [flags] < SCRIPT\nidb txn list|show|abort",
		Description: txnHelp,
		Flags: clientFlags(
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "`FILE`: read the script from it (- is standard input)"},
			&cli.StringFlag{Name: "execute", Aliases: []string{"e"}, Usage: "`SCRIPT`: this is the script"},
			&cli.BoolFlag{Name: "read-only", Usage: "write nothing: takes no lock, and is in nobody's way"},
			atFlag(),
			&cli.BoolFlag{Name: "lock", Usage: "lock every document that is named before the first operation"},
			outputFlag("text"),
		),
		Action:      a.txnRun,
		Subcommands: []*cli.Command{a.txnList(), a.txnShow(), a.txnAbort()},
	}}
}

// scriptText is the script, and whether its operations are counted instead of
// its lines.
func (a *app) scriptText(c *cli.Context) (text string, numbered bool, err error) {
	file := c.String("file")
	switch {
	case c.IsSet("execute") && file != "":
		return "", false, usagef("idb txn: the script is given twice, as --execute and as --file")
	case c.IsSet("execute"):
		return c.String("execute"), !strings.Contains(strings.TrimSpace(c.String("execute")), "\n"), nil
	case file != "" && file != "-":
		f, err := os.Open(file)
		if err != nil {
			return "", false, refusedf("%s cannot be read: %w", file, bare(err))
		}
		defer f.Close()
		text, err = readScript(f)
		return text, false, wrapRefused(file, err)
	}
	if _, isTerminal := terminal(a.In); isTerminal && file == "" {
		return "", false, usagef("idb txn: the script is missing (give it with --execute, with --file, or on standard input; idb txn --help explains it)")
	}
	text, err = readScript(a.In)
	return text, false, wrapRefused("standard input", err)
}

func wrapRefused(name string, err error) error {
	if err == nil {
		return nil
	}
	return refusedf("%s: %w", name, bare(err))
}

func readScript(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxScript+1))
	if err == nil && len(b) > maxScript {
		err = fmt.Errorf("larger than %s", bytesText(maxScript))
	}
	return string(b), err
}

// txnRun runs a script.
func (a *app) txnRun(c *cli.Context) error {
	format, err := outputFormat(c, "text", "json")
	if err != nil {
		return err
	}
	at, past, err := readTime(c, time.Now())
	if err != nil {
		return err
	}
	text, numbered, err := a.scriptText(c)
	if err != nil {
		return err
	}
	ops, err := parseScript(text, numbered)
	if err != nil {
		return err
	}
	opts := []client.TxOption{}
	switch {
	case past:
		opts = append(opts, client.TxAt(hlc.EndOf(at)))
	case c.Bool("read-only"):
		opts = append(opts, client.ReadOnly())
	}
	if past || c.Bool("read-only") {
		if c.Bool("lock") {
			return usagef("idb txn: --lock goes with a transaction that writes")
		}
		for i := range ops {
			if op := &ops[i]; op.writes() || op.verb == "get-for-update" {
				return op.refusef("%s in a transaction that is read-only", op.verb)
			}
		}
	}
	limit, err := a.timeout(c, defaultTimeout)
	if err != nil {
		return err
	}
	opts = append(opts, client.TxTimeout(limit))
	return a.withDB(c, func(ctx context.Context, db *client.DB) error {
		var run *scriptRun
		attempts, id := 0, ""
		err := db.Transact(ctx, func(tx *client.Tx) error {
			attempts++
			id = tx.ID().String()
			run = &scriptRun{tx: tx}
			if c.Bool("lock") {
				if err := run.lock(ctx, ops); err != nil {
					return err
				}
			}
			for i := range ops {
				if err := run.do(ctx, &ops[i]); err != nil {
					return err
				}
			}
			return nil
		}, opts...)
		if err != nil {
			return placed(err, ops)
		}
		return a.writeScript(format, run, attempts, id)
	})
}

// placed gives an error of a commit the line of the operation that it is about,
// where it names a document that one writes.
func placed(err error, ops []scriptOp) error {
	if e := (*lineError)(nil); errors.As(err, &e) {
		return err
	}
	message := err.Error()
	for i := len(ops) - 1; i >= 0; i-- {
		for _, id := range ops[i].ids {
			if ops[i].writes() && strings.HasPrefix(message, ops[i].collection+"/"+id+":") {
				return &lineError{ops[i].where, err}
			}
		}
	}
	return err
}

// lineError is an error of an operation.
type lineError struct {
	where string
	err   error
}

func (e *lineError) Error() string { return e.where + ": " + e.err.Error() }
func (e *lineError) Unwrap() error { return e.err }

// scriptRun is one attempt at a script.
type scriptRun struct {
	tx      *client.Tx
	results []scriptResult
	bytes   int
}

// scriptResult is what an operation came to. It is also its JSON.
type scriptResult struct {
	Line       int                `json:"line"` // or number, of a script on the command line
	Op         string             `json:"op"`
	Collection string             `json:"collection"`
	IDs        []string           `json:"ids,omitempty"`
	Documents  []*client.Document `json:"documents,omitempty"`
}

// lock locks every document that is named, in order, so that scripts that name
// the same do not meet in a circle.
func (r *scriptRun) lock(ctx context.Context, ops []scriptOp) error {
	type target struct{ collection, id, where string }
	var all []target
	seen := map[[2]string]bool{}
	for i := range ops {
		for _, id := range ops[i].ids {
			if k := [2]string{ops[i].collection, id}; !seen[k] {
				seen[k] = true
				all = append(all, target{k[0], k[1], ops[i].where})
			}
		}
	}
	slices.SortFunc(all, func(a, b target) int {
		if c := strings.Compare(a.collection, b.collection); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	for _, t := range all {
		_, err := r.tx.Collection(t.collection).GetForUpdate(ctx, t.id)
		if err != nil && !errors.Is(err, client.ErrNotFound) && !errors.Is(err, client.ErrCollectionNotFound) {
			return &lineError{t.where, err}
		}
	}
	return nil
}

// do runs one operation.
func (r *scriptRun) do(ctx context.Context, op *scriptOp) error {
	res := scriptResult{Line: op.line, Op: op.verb, Collection: op.collection, IDs: op.ids}
	c := r.tx.Collection(op.collection)
	keep := func(d *client.Document) error {
		if r.bytes += len(d.Body()) + len(d.ID) + 100; r.bytes > maxScriptOutput {
			return withCode(exitLimit, fmt.Errorf("the script prints more than %s", bytesText(maxScriptOutput)))
		}
		res.Documents = append(res.Documents, d)
		return nil
	}
	var err error
	switch op.verb {
	case "get", "get-for-update":
		for _, id := range op.ids {
			var d *client.Document
			if op.verb == "get" {
				d, err = c.Get(ctx, id)
			} else {
				d, err = c.GetForUpdate(ctx, id)
			}
			if err == nil {
				err = keep(d)
			}
			if err != nil {
				break
			}
		}
	case "scan":
		opts := []client.ReadOption{client.Prefix(op.prefix)}
		if op.limit > 0 {
			opts = append(opts, client.Limit(op.limit))
		}
		if op.reverse {
			opts = append(opts, client.Reverse())
		}
		for d, e := range c.Scan(ctx, opts...) {
			if err = e; err == nil {
				err = keep(d)
			}
			if err != nil {
				break
			}
		}
	case "require":
		err = op.hold(ctx, c)
	case "put":
		var opts []client.WriteOption
		switch op.cond {
		case "if-version":
			opts = append(opts, client.IfVersion(op.version))
		case "if-absent":
			opts = append(opts, client.IfAbsent())
		case "if-present":
			opts = append(opts, client.IfPresent())
		}
		err = c.Put(op.ids[0], op.raw, opts...)
	case "insert":
		err = c.Insert(op.ids[0], op.raw)
	case "update", "upsert", "delete":
		var opts []client.WriteOption
		if op.cond == "if-version" {
			opts = append(opts, client.IfVersion(op.version))
		}
		for _, id := range op.ids {
			switch op.verb {
			case "update":
				err = c.Update(id, op.raw, opts...)
			case "upsert":
				err = c.Upsert(id, op.raw)
			default:
				err = c.Delete(id, opts...)
			}
			if err != nil {
				break
			}
		}
	case "restore":
		err = c.Restore(ctx, op.ids[0], op.version)
	}
	if err != nil {
		return &lineError{op.where, err}
	}
	r.results = append(r.results, res)
	return nil
}

// hold is an error if what is required of a document does not hold.
func (op *scriptOp) hold(ctx context.Context, c *client.TxCollection) error {
	d, err := c.Get(ctx, op.ids[0])
	missing := errors.Is(err, client.ErrNotFound) || errors.Is(err, client.ErrCollectionNotFound)
	if err != nil && !missing {
		return err
	}
	name := op.collection + "/" + op.ids[0]
	not := func(format string, args ...any) error {
		return withCode(exitConflict, fmt.Errorf("%s: %s (nothing was done)", name, fmt.Sprintf(format, args...)))
	}
	if op.path == "" {
		switch {
		case op.test == "absent" && !missing:
			return not("exists, and is required to be absent")
		case op.test != "absent" && missing:
			return not("does not exist, and is required to")
		case op.test == "version" && d.Version != op.version:
			return not("version is %d, and is required to be %d", d.Version, op.version)
		}
		return nil
	}
	if missing {
		return not("does not exist, %s is required of it", op.demand())
	}
	v, there := d.Get(op.path)
	switch {
	case op.test == "absent" && there:
		return not("has %s, and is required not to", op.path)
	case op.test == "absent":
		return nil
	case !there:
		return not("has no %s, %s is required", op.path, op.demand())
	case op.test == "exists":
		return nil
	}
	if !doc.SameClass(v, op.value) && op.test != "!=" {
		return not("%s is %s, %s is required", op.path, v.Kind().Phrase(), op.demand())
	}
	order, holds := doc.Compare(v, op.value), false
	switch op.test {
	case "=", "==":
		holds = order == 0
	case "!=":
		holds = order != 0
	case "<":
		holds = order < 0
	case "<=":
		holds = order <= 0
	case ">":
		holds = order > 0
	case ">=":
		holds = order >= 0
	}
	if !holds {
		return not("%s is %s, %s is required", op.path, firstLine(v.String()), op.demand())
	}
	return nil
}

// demand is what a require asks of a path.
func (op *scriptOp) demand() string {
	if op.value == nil {
		return op.path + " " + op.test
	}
	return op.path + " " + op.test + " " + firstLine(op.value.String())
}

// writeScript prints what a script came to.
func (a *app) writeScript(format string, run *scriptRun, attempts int, id string) error {
	res := run.tx.Result()
	if format == "json" {
		view := struct {
			Transaction string         `json:"transaction"`
			Committed   string         `json:"committed,omitempty"` // empty: nothing was written
			Timestamp   uint64         `json:"timestamp,omitempty"`
			ReadAt      uint64         `json:"readTimestamp,omitempty"`
			Attempts    int            `json:"attempts"`
			Results     []scriptResult `json:"results"`
		}{Transaction: id, Timestamp: uint64(res.Timestamp), ReadAt: uint64(run.tx.Timestamp()), Attempts: attempts, Results: run.results}
		if res.Timestamp != 0 {
			view.Committed = timeText(res.Timestamp)
		}
		return a.line(view)
	}
	for i := range run.results {
		for _, d := range run.results[i].Documents {
			if err := a.print(d); err != nil {
				return err
			}
		}
	}
	if err := a.out.Flush(); err != nil {
		return err
	}
	again := ""
	if attempts > 1 {
		again = fmt.Sprintf(", in %d attempts", attempts)
	}
	switch {
	case res.Timestamp != 0:
		a.say("committed at %s (timestamp %d)%s", timeText(res.Timestamp), uint64(res.Timestamp), again)
	case run.tx.Timestamp() != 0:
		a.say("read at %s (timestamp %d)%s", timeText(run.tx.Timestamp()), uint64(run.tx.Timestamp()), again)
	default:
		a.say("nothing was read or written")
	}
	return nil
}
