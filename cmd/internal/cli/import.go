package cli

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

const (
	// A bulk write is spread over the shard groups, and each group's part
	// becomes about one log entry, which holds 256 documents or 512 KiB.
	importBatchDocs  = 2000
	importBatchBytes = 4 << 20
	importPatience   = time.Minute // for one bulk write, retries included
	importWorkers    = 4
	shownBadLines    = 50 // on the screen; the rest are counted, and in --rejects
)

// importItem is one document of the input, on its way into the collection.
type importItem struct {
	line int
	id   string
	body doc.Raw
}

// importStore is what import needs of a collection. The slices answered are
// as long as the items; the error beside them is one that ends the import.
type importStore interface {
	// insert writes what is absent. A nil error is written; an error with
	// CodeAlreadyExists is there already.
	insert(ctx context.Context, items []importItem) ([]error, error)
	// put creates or replaces.
	put(ctx context.Context, items []importItem) ([]error, error)
	// read answers the stored bodies, nil where there is none.
	read(ctx context.Context, items []importItem) ([]doc.Raw, error)
}

// importRun is one import.
//
// Invariant: every line of the input ends in exactly one of the counts, unless
// the run was stopped.
type importRun struct {
	store       importStore
	source      string // for messages: the file's name
	replace     bool
	stopOnError bool
	limits      doc.Limits
	patience    time.Duration
	report      func(format string, args ...any) // a line for eyes
	rejects     io.Writer                        // if not nil, gets every refused line

	// Counts of documents, and how far the source is done.
	inserted, replaced, unchanged, conflicts, bad atomic.Int64
	doneBytes                                     atomic.Int64

	mu    sync.Mutex
	shown int   // refused lines on the screen
	err   error // the first error that ends the run
}

// errStopped ends a run after a refused line with --stop-on-error.
var errStopped = errors.New("stopped at the first refused line (--stop-on-error)")

// run reads all of r with some workers. It answers an error that ended it
// early; refused lines are counted, not answered.
func (m *importRun) run(ctx context.Context, r *blockReader, workers int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fail := func(err error) {
		m.mu.Lock()
		if m.err == nil {
			m.err = err
		}
		m.mu.Unlock()
		cancel()
	}
	blocks := make(chan block, workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			w := importWorker{importRun: m}
			for b := range blocks {
				if ctx.Err() != nil {
					continue // drain
				}
				if err := w.block(ctx, b); err != nil {
					fail(err)
				}
			}
			if ctx.Err() == nil {
				if err := w.flush(ctx); err != nil {
					fail(err)
				}
			}
		})
	}
	for ctx.Err() == nil {
		b, err := r.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			fail(fmt.Errorf("%s: after line %d: %w", m.source, r.line, sourceError(err)))
			break
		}
		select {
		case blocks <- b:
		case <-ctx.Done():
		}
	}
	close(blocks)
	wg.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	return ctx.Err()
}

// sourceError words what can be wrong with the file itself.
func sourceError(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the packed file ends early (is the download complete?)")
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
		return errors.New("the packed file is damaged, or not gzip")
	}
	return bare(err)
}

// refuse counts a line that cannot be stored, and says so.
func (m *importRun) refuse(count *atomic.Int64, line int, text []byte, err error) error {
	count.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch m.shown++; {
	case m.shown <= shownBadLines:
		m.report("%s:%d: %s", m.source, line, oneLine(err))
	case m.shown == shownBadLines+1:
		m.report("%s: more refused lines are counted, not shown (--rejects FILE writes them all)", m.source)
	}
	if m.rejects != nil {
		r, _ := json.Marshal(map[string]any{"line": line, "error": oneLine(err), "text": string(text)})
		if _, err := m.rejects.Write(append(r, '\n')); err != nil {
			return fmt.Errorf("--rejects: %w", bare(err))
		}
	}
	if m.stopOnError {
		return errStopped
	}
	return nil
}

// importWorker turns lines into bulk writes. It belongs to one goroutine.
type importWorker struct {
	*importRun
	batch []importItem
	size  int
	// readFirst: most of the last batch was there already, so ask before writing.
	readFirst bool
}

func (w *importWorker) block(ctx context.Context, b block) error {
	if b.long {
		err := w.refuse(&w.bad, b.line, b.text, fmt.Errorf("the line is longer than %s", bytesText(maxLineBytes)))
		w.advance(b.done)
		return err
	}
	line := b.line
	for text := range bytes.Lines(b.text) {
		if line == 1 {
			text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // a byte order mark
		}
		text = bytes.TrimSpace(text)
		if len(text) > 0 {
			item, err := parseItem(line, text, w.limits)
			if err != nil {
				err = w.refuse(&w.bad, line, text, err)
			} else {
				err = w.add(ctx, item)
			}
			if err != nil {
				return err
			}
		}
		line++
	}
	w.advance(b.done)
	return nil
}

// advance moves the progress forward; blocks end in any order.
func (w *importWorker) advance(to int64) {
	for {
		at := w.doneBytes.Load()
		if at >= to || w.doneBytes.CompareAndSwap(at, to) {
			return
		}
	}
}

// parseItem reads one line. Without an _id the document gets one that depends
// on its place and content, so that the same file gives the same IDs.
func parseItem(line int, text []byte, limits doc.Limits) (importItem, error) {
	raw, err := doc.FromJSON(text)
	if err != nil {
		return importItem{}, err
	}
	id, body, err := doc.SplitMeta(raw)
	if err != nil {
		return importItem{}, err
	}
	if err := doc.CheckBody(body, limits); err != nil {
		return importItem{}, err
	}
	if id == "" {
		id = lineID(line, body)
	}
	return importItem{line: line, id: id, body: body}, nil
}

var lineIDEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// lineID is the ID of a document without one: the first 120 bits of
// sha256(line number, big-endian 64 bits | canonical document), in base 32.
func lineID(line int, body doc.Raw) string {
	h := sha256.New()
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(line)))
	_, _ = h.Write(body)
	return lineIDEncoding.EncodeToString(h.Sum(nil)[:15])
}

func (w *importWorker) add(ctx context.Context, item importItem) error {
	if len(w.batch) > 0 && w.size+len(item.body) > importBatchBytes {
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
	w.batch = append(w.batch, item)
	w.size += len(item.body)
	if len(w.batch) == importBatchDocs {
		return w.flush(ctx)
	}
	return nil
}

// flush writes the batch and settles every item of it.
func (w *importWorker) flush(ctx context.Context) error {
	batch := w.batch
	w.batch, w.size = w.batch[:0], 0
	if len(batch) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.patience)
	defer cancel()

	var there []importItem // exist, to be compared
	absent := batch
	total := len(batch)
	if w.readFirst {
		stored, err := w.store.read(ctx, batch)
		if err != nil {
			return err
		}
		absent = nil
		var differ []importItem
		found := 0
		for i, item := range batch {
			switch {
			case stored[i] == nil:
				absent = append(absent, item)
				continue
			case bytes.Equal(stored[i], item.body):
				w.unchanged.Add(1)
			default:
				differ = append(differ, item)
			}
			found++
		}
		w.readFirst = 2*found >= total
		if err := w.settleDiffering(ctx, differ); err != nil {
			return err
		}
	}
	if len(absent) > 0 {
		results, err := w.store.insert(ctx, absent)
		if err != nil {
			return err
		}
		for i, err := range results {
			switch {
			case err == nil:
				w.inserted.Add(1)
			case hasCode(err, wire.CodeAlreadyExists):
				there = append(there, absent[i])
			default:
				if err := w.settleError(absent[i], err); err != nil {
					return err
				}
			}
		}
	}
	if len(there) == 0 {
		return nil
	}
	if 2*len(there) >= total {
		w.readFirst = true
	}
	stored, err := w.store.read(ctx, there)
	if err != nil {
		return err
	}
	var differ []importItem
	for i, item := range there {
		if stored[i] != nil && bytes.Equal(stored[i], item.body) {
			w.unchanged.Add(1)
		} else {
			differ = append(differ, item)
		}
	}
	return w.settleDiffering(ctx, differ)
}

// settleDiffering deals with documents whose ID is taken by other content.
func (w *importWorker) settleDiffering(ctx context.Context, items []importItem) error {
	if len(items) == 0 {
		return nil
	}
	if !w.replace {
		for _, item := range items {
			err := fmt.Errorf("%s exists with other content (--replace overwrites it)", item.id)
			if err := w.refuse(&w.conflicts, item.line, doc.AppendJSON(nil, item.body), err); err != nil {
				return err
			}
		}
		return nil
	}
	results, err := w.store.put(ctx, items)
	if err != nil {
		return err
	}
	for i, err := range results {
		if err == nil {
			w.replaced.Add(1)
		} else if err := w.settleError(items[i], err); err != nil {
			return err
		}
	}
	return nil
}

// settleError tells an item that is at fault, which is counted, from a cluster
// that is, which ends the run.
func (w *importWorker) settleError(item importItem, err error) error {
	switch exitCode(err) {
	case exitRefused, exitConflict, exitLimit:
		if !hasCode(err, wire.CodeBadCollection) && !hasCode(err, wire.CodeDiskFull) {
			return w.refuse(&w.bad, item.line, doc.AppendJSON(nil, item.body), err)
		}
	}
	return err
}

// openSource opens FILE for reading: "-" is standard input, and packed files
// are unpacked (by the ending .gz, standard input by its first bytes). size is
// 0 where it is not known.
func (a *app) openSource(path string) (r *blockReader, size int64, close func(), err error) {
	var src io.Reader
	close = func() {}
	packed := strings.HasSuffix(path, ".gz")
	if path == "-" {
		head := make([]byte, 2)
		n, err := io.ReadFull(a.In, head)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return nil, 0, nil, fmt.Errorf("standard input: %w", bare(err))
		}
		packed = n == 2 && head[0] == 0x1f && head[1] == 0x8b
		src = io.MultiReader(bytes.NewReader(head[:n]), a.In)
	} else {
		f, err := os.Open(path)
		if err != nil {
			return nil, 0, nil, refusedf("%s cannot be read: %w", path, bare(err))
		}
		info, err := f.Stat()
		if err == nil && info.IsDir() {
			f.Close()
			return nil, 0, nil, refusedf("%s is a directory: name a file of one JSON document a line", path)
		}
		if err == nil && info.Mode().IsRegular() {
			size = info.Size()
		}
		src, close = f, func() { f.Close() }
	}
	counted := &countingReader{r: src}
	src = counted
	if packed {
		z, err := gzip.NewReader(counted)
		if err != nil {
			close()
			return nil, 0, nil, refusedf("%s: the packed file is damaged, or not gzip", sourceName(path))
		}
		src = z
	}
	return newBlockReader(src, func() int64 { return counted.n }), size, close, nil
}

func sourceName(path string) string {
	if path == "-" {
		return "standard input"
	}
	return path
}

// countingReader counts what was read through it. It belongs to one goroutine.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// importSummary is what `idb import -o json` prints.
type importSummary struct {
	Collection string  `json:"collection"`
	Inserted   int64   `json:"inserted"`
	Replaced   int64   `json:"replaced"`
	Unchanged  int64   `json:"unchanged"`
	Conflicts  int64   `json:"conflicts"`
	Bad        int64   `json:"bad"`
	Seconds    float64 `json:"seconds"`
}

func (m *importRun) summary(collection string, took time.Duration) importSummary {
	return importSummary{
		Collection: collection,
		Inserted:   m.inserted.Load(), Replaced: m.replaced.Load(), Unchanged: m.unchanged.Load(),
		Conflicts: m.conflicts.Load(), Bad: m.bad.Load(),
		Seconds: float64(took.Milliseconds()) / 1000,
	}
}

func (s importSummary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s imported", s.Collection, plural(int(s.Inserted), "document"))
	for _, n := range []struct {
		n    int64
		what string
	}{
		{s.Replaced, "replaced"}, {s.Unchanged, "already there"}, {s.Conflicts, "there with other content"}, {s.Bad, "refused"},
	} {
		if n.n > 0 {
			fmt.Fprintf(&b, ", %s %s", thousands(n.n), n.what)
		}
	}
	done := s.Inserted + s.Replaced + s.Unchanged
	fmt.Fprintf(&b, " in %.1f s", s.Seconds)
	if s.Seconds > 0 && done > 0 {
		fmt.Fprintf(&b, " (%s/s)", thousands(int64(float64(done)/s.Seconds)))
	}
	return b.String()
}

func (a *app) importCommand() *cli.Command {
	return &cli.Command{
		Name: "import", Category: "Collections", ArgsUsage: "COLLECTION FILE",
		Usage: "load a file of JSON documents, one a line",
		Description: `Reads FILE (- is standard input; .gz is unpacked), one JSON document a line,
and inserts every document that is not there yet. The collection is created if
it does not exist.

A document's _id is its ID. Without one it gets an ID made from its line number
and content, the same in every run.

Running the same import again resumes it: documents that are there with the
same content are left alone and counted, so an interrupted import may simply be
repeated. A document that is there with other content is reported and left
alone, or replaced with --replace.

A bad line is reported with its number and counted, and the others are loaded;
the exit code is then 9. --stop-on-error ends at the first one.

Examples:
  idb import cities testdata/cities.ndjson.gz
  zcat events.ndjson.gz | idb import events -
  idb import users users.ndjson --replace --rejects bad.ndjson`,
		Flags: clientFlags(
			&cli.BoolFlag{Name: "replace", Usage: "replace documents that exist with other content"},
			&cli.BoolFlag{Name: "stop-on-error", Usage: "end at the first line that is refused"},
			&cli.StringFlag{Name: "rejects", Usage: "`FILE`: gets every refused line, its number and the reason, as JSON"},
			&cli.IntFlag{Name: "parallel", Usage: "`N`: bulk writes at a time", Value: importWorkers},
			outputFlag("none"),
		),
		Action: a.importAction,
	}
}

func (a *app) importAction(c *cli.Context) (err error) {
	collection, path := c.Args().Get(0), c.Args().Get(1)
	workers := c.Int("parallel")
	if workers < 1 || workers > 64 {
		return usagef("idb import: --parallel %d: choose 1 to 64", workers)
	}
	format, err := outputFormat(c, "none", "json")
	if err != nil {
		return err
	}
	patience, err := a.timeout(c, importPatience)
	if err != nil {
		return err
	}
	source, size, closeSource, err := a.openSource(path)
	if err != nil {
		return err
	}
	defer closeSource()

	m := &importRun{
		source: sourceName(path), replace: c.Bool("replace"), stopOnError: c.Bool("stop-on-error"),
		limits: doc.Limits{MaxBytes: wire.MaxDocumentBytes, MaxDepth: wire.MaxDepth}, patience: patience,
	}
	if name := c.String("rejects"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			return refusedf("--rejects %s cannot be written: %w", name, bare(err))
		}
		defer func() {
			if closeErr := f.Close(); err == nil && closeErr != nil {
				err = fmt.Errorf("--rejects %s: %w", name, bare(closeErr))
			}
		}()
		m.rejects = f
	}
	dialCtx, cancel := context.WithTimeout(c.Context, min(patience, defaultTimeout))
	db, err := a.dial(dialCtx, c)
	cancel()
	if err != nil {
		return err
	}
	defer db.Close()
	m.store = newClientStore(db, collection)

	started := time.Now()
	bar := startProgress(a.Err, collection, size, func() (int64, int64) {
		return m.doneBytes.Load(), m.inserted.Load() + m.replaced.Load() + m.unchanged.Load()
	})
	m.report = bar.line
	runErr := m.run(c.Context, source, workers)
	bar.Close()

	sum := m.summary(collection, time.Since(started))
	a.say("%s", sum)
	if format == "json" {
		if err := json.NewEncoder(a.out).Encode(sum); err != nil {
			return err
		}
	}
	switch {
	case runErr != nil && c.Context.Err() != nil:
		// What was under way may have been written or not: the next run settles it.
		return withCode(exitInterrupted, errors.New("interrupted; run the same command again to go on"))
	case errors.Is(runErr, errStopped):
		return withCode(exitIncomplete, runErr)
	case runErr != nil:
		return fmt.Errorf("import of %s did not finish; run the same command again to go on: %w", m.source, runErr)
	case sum.Bad > 0 || sum.Conflicts > 0:
		return withCode(exitIncomplete, fmt.Errorf("%s: %s not imported", m.source, plural(int(sum.Bad+sum.Conflicts), "line")))
	}
	return nil
}
