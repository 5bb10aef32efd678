package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/txn/hlc"
)

func (a *app) collectionCommands() []*cli.Command {
	return []*cli.Command{{
		Name: "collection", Category: "Collections",
		Usage: "create, list, show and drop collections",
		Description: `A collection is created by the first write to it, with default options, or
explicitly, with options of your own.

Examples:
  idb collection create orders --separator / --retention 720h
  idb collection list
  idb collection drop orders`,
		Subcommands: []*cli.Command{
			{
				Name: "create", ArgsUsage: "COLLECTION",
				Usage: "create a collection with options",
				Description: `Creates a collection. Options are fixed for its life. Creating one that exists
with the same options is done already; with other options it is a conflict.

With --separator a document is placed by the part of its ID before the
separator, so that acme/order-1 and acme/order-2 share a shard.

Superseded versions of documents are kept for the cluster's retention, or as
--retention and --keep-versions say: a version goes when neither keeps it.

With --unique no two documents of the collection have the same value in a field,
or, with commas, in all of several fields together. It may be given up to 8
times. A document without any of the fields is not concerned; null is a value.

Examples:
  idb collection create users
  idb collection create accounts --unique email --unique country,phone.number
  idb collection create orders --separator /
  idb collection create ledger --retention forever
  idb collection create drafts --retention 24h --keep-versions 10`,
				Flags: clientFlags(
					&cli.StringSliceFlag{Name: "unique", Usage: "`FIELDS`: no two documents have the same values in them (may be repeated)"},
					&cli.StringFlag{Name: "separator", Usage: "`TEXT`: ends the part of an ID that decides its shard"},
					&cli.StringFlag{Name: "retention", Usage: "`DURATION`: how long superseded versions are kept, or forever", DefaultText: "the cluster's"},
					&cli.UintFlag{Name: "keep-versions", Usage: "`N`: superseded versions that are kept, however old"},
				),
				Action: a.collectionCreate,
			},
			{
				Name:  "list",
				Usage: "list the collections",
				Description: `Prints one collection a line.

Examples:
  idb collection list
  idb collection list -o json | jq -r .name`,
				Flags:  clientFlags(outputFlag("table")),
				Action: a.collectionList,
			},
			{
				Name: "show", ArgsUsage: "COLLECTION",
				Usage: "describe a collection: options, documents, size",
				Description: `Prints a collection as JSON: its options, when it was created, how many documents
it has and how large they are.

Examples:
  idb collection show users`,
				Flags:  clientFlags(),
				Action: a.collectionShow,
			},
			{
				Name: "drop", ArgsUsage: "COLLECTION",
				Usage: "remove a collection with all its documents and history",
				Description: `Removes a collection, its documents and their history. It cannot be undone. On a
terminal it asks for the name again; --yes does not ask.

Examples:
  idb collection drop drafts
  idb collection drop drafts --yes`,
				Flags:  clientFlags(&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}),
				Action: a.collectionDrop,
			},
		},
	}}
}

func (a *app) collectionCreate(c *cli.Context) error {
	opts := client.CollectionOptions{Separator: c.String("separator"), RetentionVersions: uint32(min(c.Uint("keep-versions"), 1<<32-1))}
	for _, fields := range c.StringSlice("unique") {
		opts.Unique = append(opts.Unique, client.Unique{Fields: strings.Split(fields, ",")})
	}
	if v := c.String("retention"); v == "forever" {
		opts.RetentionSeconds = client.RetainForever
	} else if v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < time.Second {
			return usagef("idb collection create: --retention %q: want a duration of 1s or more, for example 720h, or forever", v)
		}
		opts.RetentionSeconds = uint64(d / time.Second)
	}
	return a.withDB(c, func(ctx context.Context, db *client.DB) error {
		info, err := db.CreateCollection(ctx, c.Args().First(), opts)
		if err != nil {
			return err
		}
		return a.line(newCollectionView(info))
	})
}

// collectionView is a collection as JSON.
type collectionView struct {
	Name          string   `json:"name"`
	ID            uint32   `json:"id"`
	Separator     string   `json:"separator,omitempty"`
	Retention     string   `json:"retention,omitempty"` // empty: the cluster's
	KeepVersions  uint32   `json:"keepVersions,omitempty"`
	Unique        []string `json:"unique,omitempty"`
	CreatedAt     string   `json:"createdAt"`
	Dropping      bool     `json:"dropping,omitempty"`
	Documents     *uint64  `json:"documents,omitempty"`
	DocumentBytes *uint64  `json:"documentBytes,omitempty"`
}

func newCollectionView(info client.CollectionInfo) collectionView {
	v := collectionView{
		Name: info.Name, ID: info.ID, Separator: info.Options.Separator, KeepVersions: info.Options.RetentionVersions,
		CreatedAt: timeText(hlc.Timestamp(info.CreatedAt)), Dropping: info.Dropping,
	}
	for _, u := range info.Options.Unique {
		v.Unique = append(v.Unique, u.Name())
	}
	switch s := info.Options.RetentionSeconds; s {
	case 0:
	case client.RetainForever:
		v.Retention = "forever"
	default:
		v.Retention = shortDuration(time.Duration(min(s, 1<<32)) * time.Second)
	}
	return v
}

// shortDuration writes 720h for 720h0m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// line prints v as one line of JSON.
func (a *app) line(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (a *app) collectionList(c *cli.Context) error {
	format, err := outputFormat(c, "table", "json")
	if err != nil {
		return err
	}
	return a.withDB(c, func(ctx context.Context, db *client.DB) error {
		infos, err := db.Collections(ctx)
		if err != nil {
			return err
		}
		if format == "json" {
			for _, info := range infos {
				if err := a.line(newCollectionView(info)); err != nil {
					return err
				}
			}
			return nil
		}
		t := table{head: []string{"NAME", "CREATED", "SEPARATOR", "RETENTION", "KEPT VERSIONS", "UNIQUE", "STATE"}}
		for _, info := range infos {
			v := newCollectionView(info)
			kept, state := "-", "ready"
			if v.KeepVersions > 0 {
				kept = fmt.Sprint(v.KeepVersions)
			}
			if v.Dropping {
				state = "being dropped"
			}
			t.rows = append(t.rows, []string{v.Name, v.CreatedAt, orDash(v.Separator), or(v.Retention, "the cluster's"), kept, orDash(strings.Join(v.Unique, " ")), state})
		}
		var b strings.Builder
		t.write(&b)
		_, err = a.out.WriteString(b.String())
		return err
	})
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func orDash(s string) string { return or(s, "-") }

func (a *app) collectionShow(c *cli.Context) error {
	return a.withDB(c, func(ctx context.Context, db *client.DB) error {
		info, err := db.DescribeCollection(ctx, c.Args().First())
		if err != nil {
			return err
		}
		v := newCollectionView(info)
		stats, err := db.Collection(info.Name).Stats(ctx)
		if err != nil {
			return err
		}
		v.Documents, v.DocumentBytes = &stats.Documents, &stats.Bytes
		return a.line(v)
	})
}

func (a *app) collectionDrop(c *cli.Context) error {
	name := c.Args().First()
	if _, asks := terminal(a.In); asks && !c.Bool("yes") {
		fmt.Fprintf(a.Err, "drop %s with all its documents and history? type its name: ", name)
		var typed string
		_, _ = fmt.Fscanln(a.In, &typed)
		if typed != name {
			return usagef("idb collection drop: %q is not %q; nothing was dropped", typed, name)
		}
	}
	return a.withDB(c, func(ctx context.Context, db *client.DB) error {
		if err := db.DropCollection(ctx, name); err != nil {
			return err
		}
		a.say("dropped %s", name)
		return nil
	})
}

// timeText is a timestamp's time, in UTC to the millisecond.
func timeText(t hlc.Timestamp) string { return t.Time().Format("2006-01-02T15:04:05.000Z") }
