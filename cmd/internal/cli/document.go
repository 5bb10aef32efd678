package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

const documents = "Documents"

func (a *app) documentCommands() []*cli.Command {
	ifVersion := &cli.Uint64Flag{Name: "if-version", Usage: "`N`: write only if the document has this version"}
	returned := &cli.BoolFlag{Name: "return", Usage: "print the document as written, not only its version"}
	file := &cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "`FILE`: read the JSON from it (- is standard input)"}
	at := []cli.Flag{
		&cli.Uint64Flag{Name: "version", Usage: "`N`: read this version"},
		atFlag(),
	}
	noBody := &cli.BoolFlag{Name: "no-body", Usage: "print IDs, versions and times only"}
	return []*cli.Command{
		{
			Name: "put", Category: documents, ArgsUsage: "COLLECTION [ID] [DOCUMENT]",
			Usage: "create or replace a document",
			Description: `Writes a document, JSON, and prints its ID and version. The document is the last
word, or a file, or standard input; its ID is a word or its _id. Metadata that
was read along (_version, _createdAt, _updatedAt) is ignored.

Bytes are written as {"$bytes":"base64"} and timestamps as {"$date":"RFC 3339"}.

Examples:
  idb put users u17 '{"name":"Ada","langs":["go"]}'
  idb put users '{"_id":"u17","name":"Ada"}'
  jq -c .profile export.json | idb put users u17
  idb put users u17 '{"name":"Ada"}' --if-absent        # exit code 5 if it exists
  idb put users u17 '{"name":"Ada L."}' --if-version 3  # exit code 5 if it changed`,
			Flags: clientFlags(
				file, ifVersion,
				&cli.BoolFlag{Name: "if-absent", Usage: "write only if there is no such document"},
				&cli.BoolFlag{Name: "if-present", Usage: "write only if there is such a document"},
				returned,
			),
			Action: a.put,
		},
		{
			Name: "get", Category: documents, ArgsUsage: "COLLECTION ID...",
			Usage: "read documents",
			Description: `Prints documents, one a line, in the order asked for. Those that are not there
are named on standard error, and the exit code is 4.

Examples:
  idb get users u17
  idb get users u17 u18 u19
  idb get users u17 --version 2
  idb get users u17 --at 10m                    # as it was ten minutes ago
  idb get users u17 --at 2026-05-01T12:00:00Z
  idb get users u17 --no-body                   # is it there, which version?`,
			Flags:  clientFlags(append(at, noBody)...),
			Action: a.get,
		},
		{
			Name: "update", Category: documents, ArgsUsage: "COLLECTION ID [OPERATORS]",
			Usage: "change parts of a document",
			Description: `Applies update operators, JSON, to a document and prints its new version. The
operators are the last word, or a file, or standard input:

  $set $unset $inc $mul $min $max $rename $currentDate
  $push (with $each $position $slice $sort) $addToSet $pull $pop

Paths may be nested, "address.city", and name array elements, "tags.0".
docs/update-operators.md has all of them.

Examples:
  idb update users u17 '{"$set":{"address.city":"London"},"$inc":{"logins":1}}'
  idb update users u17 '{"$push":{"log":{"$each":["in"],"$slice":-10}}}'
  idb update counters hits '{"$inc":{"n":1}}' --upsert  # from nothing, if need be`,
			Flags: clientFlags(
				file, ifVersion,
				&cli.BoolFlag{Name: "upsert", Usage: "create the document if it is not there"},
				returned,
			),
			Action: a.update,
		},
		{
			Name: "delete", Category: documents, ArgsUsage: "COLLECTION ID...",
			Usage: "delete documents",
			Description: `Deletes documents. Deleting what is not there is an error, exit code 4; the
others are deleted all the same. Old versions stay readable for the retention.

Examples:
  idb delete users u17
  idb delete users u17 --if-version 3
  idb delete users u17 u18 u19`,
			Flags:  clientFlags(ifVersion),
			Action: a.delete,
		},
		{
			Name: "restore", Category: documents, ArgsUsage: "COLLECTION ID VERSION",
			Usage: "write an old version again, as the newest",
			Description: `Writes an old version of a document again, as its newest. It also brings a
deleted document back.

Examples:
  idb history users u17
  idb restore users u17 4`,
			Flags:  clientFlags(ifVersion, returned),
			Action: a.restore,
		},
		{
			Name: "history", Category: documents, ArgsUsage: "COLLECTION ID",
			Usage: "list the versions of a document, newest first",
			Description: `Prints the versions of a document that are still kept, newest first, one a line.
A deletion is a line with "_deleted":true.

Examples:
  idb history users u17
  idb history users u17 --limit 3 --no-body`,
			Flags:  clientFlags(limitFlag(), noBody, &cli.Uint64Flag{Name: "before", Usage: "`N`: only versions below this one"}),
			Action: a.history,
		},
		{
			Name: "scan", Category: documents, ArgsUsage: "COLLECTION",
			Usage: "print documents in the order of their IDs",
			Description: `Prints documents in the order of their IDs, as they were at one instant. When
--limit ends a scan early, a cursor is printed on standard error; the scan goes
on from it, over the same snapshot, also after restarts.

Examples:
  idb scan users
  idb scan cities --prefix NZ/ --limit 10
  idb scan cities --prefix NZ/ --limit 10 --cursor AQ...
  idb scan orders --reverse --limit 5
  idb scan users --at 1h | jq .name`,
			Flags: clientFlags(
				prefixFlag(), limitFlag(),
				&cli.StringFlag{Name: "cursor", Usage: "`CURSOR`: go on from it"},
				&cli.BoolFlag{Name: "reverse", Usage: "from the last ID to the first"},
				atFlag(), noBody,
			),
			Action: a.scan,
		},
		{
			Name: "count", Category: documents, ArgsUsage: "COLLECTION",
			Usage: "print the number of documents",
			Description: `Prints a bare number. The number of all documents is kept and costs nothing; with
--prefix they are counted.

Examples:
  idb count cities
  idb count cities --prefix NZ/`,
			Flags:  clientFlags(prefixFlag()),
			Action: a.count,
		},
	}
}

func atFlag() cli.Flag {
	return &cli.StringFlag{Name: "at", Usage: "`TIME`: read as of then: RFC 3339, or how long ago (90s, 2h)"}
}

func limitFlag() cli.Flag {
	return &cli.UintFlag{Name: "limit", Usage: "`N`: at most so many", DefaultText: "all"}
}

func prefixFlag() cli.Flag {
	return &cli.StringFlag{Name: "prefix", Usage: "`TEXT`: only IDs that begin so"}
}

// readTime reads --at: a time, or how long ago.
func readTime(c *cli.Context, now time.Time) (t time.Time, set bool, err error) {
	v := c.String("at")
	if v == "" {
		return t, false, nil
	}
	if ago, err := time.ParseDuration(strings.TrimPrefix(v, "-")); err == nil && ago >= 0 {
		return now.Add(-ago), true, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, v); err == nil {
		return t, true, nil
	}
	return t, false, usagef("%s: --at %q: want a time such as 2026-05-01T12:00:00Z, or how long ago, such as 10m", c.Command.HelpName, v)
}

// input reads the JSON of put and update: the word, the file, or standard
// input. word is empty where it was not given.
func (a *app) input(c *cli.Context, word string) (doc.Raw, error) {
	file := c.String("file")
	var text []byte
	var name string
	switch {
	case word != "" && file != "":
		return nil, usagef("%s: the JSON is given twice, as a word and as --file", c.Command.HelpName)
	case word != "" && word != "-":
		text, name = []byte(word), "the JSON"
	case file != "" && file != "-":
		f, err := os.Open(file)
		if err != nil {
			return nil, refusedf("%s cannot be read: %w", file, bare(err))
		}
		defer f.Close()
		if text, err = readAll(f); err != nil {
			return nil, refusedf("%s: %w", file, bare(err))
		}
		name = file
	default:
		if _, isTerminal := terminal(a.In); isTerminal && word == "" && file == "" {
			return nil, usagef("%s: the JSON is missing (give it as the last word, with --file, or on standard input; usage: %s %s)", c.Command.HelpName, c.Command.HelpName, c.Command.ArgsUsage)
		}
		var err error
		if text, err = readAll(a.In); err != nil {
			return nil, refusedf("standard input: %w", bare(err))
		}
		name = "standard input"
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, refusedf("%s is empty: want a JSON object", name)
	}
	raw, err := doc.FromJSON(text)
	if err != nil {
		return nil, withCode(docExit(err), fmt.Errorf("%s: %w", name, err))
	}
	return raw, nil
}

// readAll reads one document's text.
func readAll(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxLineBytes+1))
	if err == nil && len(b) > maxLineBytes {
		err = fmt.Errorf("larger than %s", bytesText(maxLineBytes))
	}
	return b, err
}

// conditions are the write options that flags ask for.
func conditions(c *cli.Context) (opts []client.WriteOption, err error) {
	if c.IsSet("if-version") {
		if c.Uint64("if-version") == 0 {
			return nil, usagef("%s: --if-version 0: versions begin at 1 (--if-absent asks for none)", c.Command.HelpName)
		}
		opts = append(opts, client.IfVersion(c.Uint64("if-version")))
	}
	if c.Bool("if-absent") && (c.Bool("if-present") || c.IsSet("if-version")) {
		return nil, usagef("%s: --if-absent goes with no other condition", c.Command.HelpName)
	}
	if c.Bool("if-absent") {
		opts = append(opts, client.IfAbsent())
	}
	if c.Bool("if-present") {
		opts = append(opts, client.IfPresent())
	}
	if c.Bool("return") {
		opts = append(opts, client.ReturnDoc())
	}
	return opts, nil
}

func (a *app) put(c *cli.Context) error {
	words := c.Args().Slice()[1:]
	var id, text string
	switch {
	case len(words) == 2:
		id, text = words[0], words[1]
	case len(words) == 1 && strings.HasPrefix(strings.TrimSpace(words[0]), "{"):
		text = words[0]
	case len(words) == 1:
		id = words[0]
	}
	opts, err := conditions(c)
	if err != nil {
		return err
	}
	raw, err := a.input(c, text)
	if err != nil {
		return err
	}
	own, _, err := doc.SplitMeta(raw)
	if err != nil {
		return withCode(docExit(err), fmt.Errorf("the document: %w", err))
	}
	switch {
	case id == "" && own == "":
		return usagef("idb put: the document has no ID (give it as a word before the document, or as _id in it)")
	case id == "":
		id = own
	case own != "" && own != id:
		return refusedf("the document's _id is %q and it is put as %q (leave one out, or make them equal)", own, id)
	}
	return a.withDB(c, func(ctx context.Context, db *client.DB) error {
		res, err := db.Collection(c.Args().First()).Put(ctx, id, raw, opts...)
		if err != nil {
			return err
		}
		return a.written(id, res)
	})
}

func (a *app) update(c *cli.Context) error {
	collection, id := c.Args().Get(0), c.Args().Get(1)
	opts, err := conditions(c)
	if err != nil {
		return err
	}
	ops, err := a.input(c, c.Args().Get(2))
	if err != nil {
		return err
	}
	return a.withDB(c, func(ctx context.Context, db *client.DB) error {
		do := db.Collection(collection).Update
		if c.Bool("upsert") {
			do = db.Collection(collection).Upsert
		}
		res, err := do(ctx, id, ops, opts...)
		if err != nil {
			return err
		}
		return a.written(id, res)
	})
}

func (a *app) restore(c *cli.Context) error {
	collection, id := c.Args().Get(0), c.Args().Get(1)
	version, err := strconv.ParseUint(c.Args().Get(2), 10, 64)
	if err != nil || version == 0 {
		return usagef("idb restore: version %q: want a number, 1 or above (idb history %s %s lists them)", c.Args().Get(2), collection, id)
	}
	opts, err := conditions(c)
	if err != nil {
		return err
	}
	return a.withDB(c, func(ctx context.Context, db *client.DB) error {
		res, err := db.Collection(collection).Restore(ctx, id, version, opts...)
		if err != nil {
			return err
		}
		return a.written(id, res)
	})
}

func (a *app) delete(c *cli.Context) error {
	ids := c.Args().Slice()[1:]
	opts, err := conditions(c)
	if err != nil {
		return err
	}
	if len(ids) > 1 && c.IsSet("if-version") {
		return usagef("idb delete: --if-version goes with one ID")
	}
	return a.withDB(c, func(ctx context.Context, db *client.DB) error {
		coll := db.Collection(c.Args().First())
		var failed many
		for _, id := range ids {
			res, err := coll.Delete(ctx, id, opts...)
			if err != nil {
				if err := failed.add(a, err, len(ids)); err != nil {
					return err
				}
				continue
			}
			if err := a.written(id, res); err != nil {
				return err
			}
		}
		return failed.result(len(ids))
	})
}

// many gathers the failures of a command on several documents.
type many struct{ errs []error }

// add notes a failure of one document. A failure that the next document would
// meet too is answered: the command ends.
func (m *many) add(a *app, err error, of int) error {
	switch exitCode(err) {
	case exitNotFound, exitConflict, exitRefused, exitLimit:
		m.errs = append(m.errs, err)
		if of > 1 {
			a.say("%s", withName(oneLine(err)))
		}
		return nil
	}
	return err
}

// result is the error of the whole: the one failure, or how many there were.
func (m *many) result(of int) error {
	switch {
	case len(m.errs) == 0:
		return nil
	case of == 1:
		return m.errs[0]
	}
	code := exitCode(m.errs[0])
	for _, err := range m.errs[1:] {
		if exitCode(err) != code {
			code = exitIncomplete
		}
	}
	return withCode(code, fmt.Errorf("%d of %d failed", len(m.errs), of))
}

func (a *app) get(c *cli.Context) error {
	collection, ids := c.Args().First(), c.Args().Slice()[1:]
	opts, err := readOptions(c)
	if err != nil {
		return err
	}
	return a.withDB(c, func(ctx context.Context, db *client.DB) error {
		var failed many
		for len(ids) > 0 {
			n := min(len(ids), wire.MaxItems)
			err := a.getSome(ctx, db.Collection(collection), ids[:n], opts, &failed, c.NArg()-1)
			if err != nil {
				return err
			}
			ids = ids[n:]
		}
		return failed.result(c.NArg() - 1)
	})
}

func readOptions(c *cli.Context) (opts []client.ReadOption, err error) {
	at, set, err := readTime(c, time.Now())
	if err != nil {
		return nil, err
	}
	if set {
		opts = append(opts, client.AtTime(at))
	}
	if c.IsSet("version") {
		if set {
			return nil, usagef("%s: --version and --at exclude each other", c.Command.HelpName)
		}
		if c.Uint64("version") == 0 {
			return nil, usagef("%s: --version 0: versions begin at 1", c.Command.HelpName)
		}
		opts = append(opts, client.AtVersion(c.Uint64("version")))
	}
	if c.Bool("no-body") {
		opts = append(opts, client.NoBody())
	}
	if c.IsSet("limit") {
		if c.Uint("limit") == 0 {
			return nil, usagef("%s: --limit 0: want 1 or more", c.Command.HelpName)
		}
		opts = append(opts, client.Limit(int(min(c.Uint("limit"), 1<<31-1))))
	}
	if v := c.String("prefix"); v != "" {
		opts = append(opts, client.Prefix(v))
	}
	if c.Bool("reverse") {
		opts = append(opts, client.Reverse())
	}
	if c.IsSet("before") {
		opts = append(opts, client.Before(c.Uint64("before")))
	}
	if v := c.String("cursor"); v != "" {
		raw, err := base64.RawURLEncoding.DecodeString(v)
		if err != nil {
			return nil, refusedf("--cursor: this is not a cursor (take the one that a scan printed, whole)")
		}
		opts = append(opts, client.FromCursor(raw))
	}
	return opts, nil
}

func (a *app) getSome(ctx context.Context, coll *client.Collection, ids []string, opts []client.ReadOption, failed *many, of int) error {
	if of == 1 { // its error says more than that it is not there
		d, err := coll.Get(ctx, ids[0], opts...)
		if err != nil {
			return err
		}
		return a.print(d)
	}
	docs, err := coll.GetMany(ctx, ids, opts...)
	if err != nil {
		return err
	}
	for i, d := range docs {
		if d == nil {
			missing := withCode(exitNotFound, fmt.Errorf("%s/%s: not found", coll.Name(), ids[i]))
			if err := failed.add(a, missing, of); err != nil {
				return err
			}
			continue
		}
		if err := a.print(d); err != nil {
			return err
		}
	}
	return nil
}

// print writes a document as one line of JSON.
func (a *app) print(d *client.Document) error {
	b := d.AppendJSON(a.out.AvailableBuffer())
	if d.Deleted {
		b = append(b[:len(b)-1], `,"_deleted":true}`...)
	}
	_, err := a.out.Write(append(b, '\n'))
	return err
}

// written prints what a write did: the document, if it was asked for, or its
// ID, version and times.
func (a *app) written(id string, res client.Result) error {
	if res.Doc != nil {
		return a.print(res.Doc)
	}
	view := struct {
		ID        string `json:"_id"`
		Version   uint64 `json:"_version"`
		CreatedAt string `json:"_createdAt,omitempty"`
		UpdatedAt string `json:"_updatedAt"`
		Created   bool   `json:"created,omitempty"`
	}{ID: id, Version: res.Version, UpdatedAt: timeText(res.Timestamp), Created: res.Created}
	if res.CreatedAt != 0 {
		view.CreatedAt = timeText(res.CreatedAt)
	}
	return a.line(view)
}

func (a *app) history(c *cli.Context) error {
	opts, err := readOptions(c)
	if err != nil {
		return err
	}
	return a.withDB(c, func(ctx context.Context, db *client.DB) error {
		for d, err := range db.Collection(c.Args().Get(0)).History(ctx, c.Args().Get(1), opts...) {
			if err != nil {
				return err
			}
			if err := a.print(d); err != nil {
				return err
			}
		}
		return nil
	})
}

func (a *app) count(c *cli.Context) error {
	opts, err := readOptions(c)
	if err != nil {
		return err
	}
	return a.withDB(c, func(ctx context.Context, db *client.DB) error {
		n, err := db.Collection(c.Args().First()).Count(ctx, opts...)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.out, n)
		return err
	})
}

func (a *app) scan(c *cli.Context) error {
	opts, err := readOptions(c)
	if err != nil {
		return err
	}
	return a.withStream(c, func(ctx context.Context, db *client.DB) error {
		it := db.Collection(c.Args().First()).Iterator(opts...)
		for it.Next(ctx) {
			if err := a.print(it.Document()); err != nil {
				return err
			}
		}
		if err := it.Err(); err != nil {
			return err
		}
		if cursor := it.Cursor(); len(cursor) > 0 {
			if err := a.out.Flush(); err != nil {
				return err
			}
			a.say("more: --cursor %s", base64.RawURLEncoding.EncodeToString(cursor))
		}
		return nil
	})
}
