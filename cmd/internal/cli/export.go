package cli

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

func (a *app) transferCommands() []*cli.Command {
	return []*cli.Command{a.importCommand(), a.exportCommand()}
}

func (a *app) exportCommand() *cli.Command {
	return &cli.Command{
		Name: "export", Category: "Collections", ArgsUsage: "COLLECTION",
		Usage: "write a collection as JSON documents, one a line",
		Description: `Writes all documents in the order of their IDs, as they were at one instant, to
standard output or to a file (packed, if it ends in .gz). A file appears under
its name when it is complete. idb import reads it back.

--metadata adds _version, _createdAt and _updatedAt; import ignores them.

Examples:
  idb export cities > cities.ndjson
  idb export cities --file cities.ndjson.gz
  idb export orders --prefix acme/ --at 24h --metadata`,
		Flags: clientFlags(
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "`FILE`: write to it"},
			prefixFlag(), atFlag(),
			&cli.BoolFlag{Name: "metadata", Usage: "write versions and times too"},
		),
		Action: a.export,
	}
}

func (a *app) export(c *cli.Context) error {
	collection := c.Args().First()
	opts, err := readOptions(c)
	if err != nil {
		return err
	}
	return a.withStream(c, func(ctx context.Context, db *client.DB) error {
		coll := db.Collection(collection)
		path := c.String("file")
		if path == "" || path == "-" {
			_, _, err := writeDocuments(ctx, coll, a.out, c.Bool("metadata"), opts, new(atomic.Int64))
			return err
		}
		var written atomic.Int64
		started := time.Now()
		bar := startProgress(a.Err, collection, 0, func() (int64, int64) { return 0, written.Load() })
		defer bar.Close()
		var docs, size int64
		err := replaceFile(path, func(w io.Writer) (err error) {
			docs, size, err = writeDocuments(ctx, coll, w, c.Bool("metadata"), opts, &written)
			return err
		})
		bar.Close()
		if err != nil {
			return err
		}
		a.say("%s: %s, %s of JSON, exported to %s in %.1f s", collection, plural(int(docs), "document"), bytesText(uint64(size)), path, time.Since(started).Seconds())
		return nil
	})
}

// writeDocuments writes a scan, a line per document.
func writeDocuments(ctx context.Context, coll *client.Collection, w io.Writer, metadata bool, opts []client.ReadOption, count *atomic.Int64) (docs, size int64, err error) {
	var line []byte
	for d, err := range coll.Scan(ctx, opts...) {
		if err != nil {
			return docs, size, err
		}
		if metadata {
			line = d.AppendJSON(line[:0])
		} else {
			line = appendPlain(line[:0], d)
		}
		line = append(line, '\n')
		n, err := w.Write(line)
		size += int64(n)
		if err != nil {
			return docs, size, bare(err)
		}
		docs++
		count.Store(docs)
	}
	return docs, size, nil
}

// appendPlain is a document as JSON with its _id and none of the other fields
// that the database keeps.
func appendPlain(dst []byte, d *client.Document) []byte {
	dst = doc.AppendJSON(append(dst, `{"_id":`...), doc.AppendString(nil, d.ID))
	fields := doc.AppendJSON(nil, d.Body())
	if len(fields) > 2 {
		dst = append(dst, ',')
	}
	return append(dst, fields[1:]...)
}

// replaceFile writes a file beside path and gives it the name when it is
// complete and on disk. A path that ends in .gz is packed.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return refusedf("%s cannot be written: %w", path, bare(err))
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	buffered := bufio.NewWriterSize(f, 256<<10)
	var w io.Writer = buffered
	var packer *gzip.Writer
	if strings.HasSuffix(path, ".gz") {
		packer = gzip.NewWriter(buffered)
		w = packer
	}
	if err := write(w); err != nil {
		return err
	}
	var pack error
	if packer != nil {
		pack = packer.Close()
	}
	for _, err := range []error{pack, buffered.Flush(), f.Chmod(0o644), f.Sync(), f.Close()} {
		if err != nil {
			return fmt.Errorf("%s: %w", path, bare(err))
		}
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("%s cannot be replaced: %w", path, linkCause(err))
	}
	return nil
}

func linkCause(err error) error {
	if le := (*os.LinkError)(nil); errors.As(err, &le) {
		return le.Err
	}
	return err
}

// clientStore is a collection of a cluster as import needs it.
type clientStore struct {
	db   *client.DB
	coll *client.Collection
}

func newClientStore(db *client.DB, collection string) *clientStore {
	return &clientStore{db: db, coll: db.Collection(collection)}
}

func (s *clientStore) insert(ctx context.Context, items []importItem) ([]error, error) {
	b := s.db.Bulk()
	for _, it := range items {
		b.Insert(s.coll, it.id, it.body)
	}
	return bulkErrors(b.Do(ctx))
}

func (s *clientStore) put(ctx context.Context, items []importItem) ([]error, error) {
	b := s.db.Bulk()
	for _, it := range items {
		b.Put(s.coll, it.id, it.body)
	}
	return bulkErrors(b.Do(ctx))
}

func bulkErrors(res *client.BulkResult, err error) ([]error, error) {
	if be := (*client.BulkError)(nil); err != nil && !errors.As(err, &be) {
		return nil, err
	}
	out := make([]error, len(res.Items))
	for i := range res.Items {
		out[i] = res.Items[i].Err
	}
	return out, nil
}

func (s *clientStore) read(ctx context.Context, items []importItem) ([]doc.Raw, error) {
	ids := make([]string, len(items))
	for i, it := range items {
		ids[i] = it.id
	}
	docs, err := s.coll.GetMany(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := make([]doc.Raw, len(items))
	for i, d := range docs {
		if d != nil {
			out[i] = d.Body()
		}
	}
	return out, nil
}

// hasCode says that err is a refusal with this code.
func hasCode(err error, code wire.Code) bool {
	if e := (*client.Error)(nil); errors.As(err, &e) {
		return e.Code == code
	}
	if e := (*wire.Error)(nil); errors.As(err, &e) {
		return e.Code == code
	}
	return false
}
