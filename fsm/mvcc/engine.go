package mvcc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/placement"
)

// ErrClosed is returned by an engine that was closed.
var ErrClosed = errors.New("mvcc: the state engine is closed")

// engineFormat is the newest format that tables are written in. Raising it is
// an upgrade that an older program cannot open again.
const engineFormat = pebble.FormatValueSeparation

// maxReferenceDepth is how many value files the tables over one key may refer to
// before a compaction writes their values anew. Every flush adds one, and under
// random updates the compaction that reaches the bound rewrites everything: at
// 10, three quarters of what a node wrote were values written again. At 256 that
// costs as much again as the updates where a node has 4 GiB. Scans of documents
// in 30 value files were as fast as in 10.
const maxReferenceDepth = 256

// reclaimBytes is how much is removed in ranges before a flush is asked for so
// that the space comes back soon. Less waits for the next flush: each makes a
// table and a value file, however small.
const reclaimBytes = 4 << 20

// EngineOptions configure the state engine. The zero value works.
type EngineOptions struct {
	// FS holds the files. Nil means the operating system's.
	FS vfs.FS

	// MemTableBytes is the size of one memory table; up to three exist at a
	// time. Small ones cost more compaction, large ones memory and a longer
	// replay of the log after a crash. Zero means 16 MiB.
	MemTableBytes int

	// CacheBytes is the cache of blocks read from tables. Zero means 32 MiB.
	CacheBytes int64

	// NewestBytes is the memory of newest versions that were written lately, all
	// groups together; what is found there needs no search in tables. It is used
	// as far as groups are read here. Zero means 16 MiB, less than zero none.
	NewestBytes int64

	// InlineValues keeps all bodies beside their keys. Without it, those of a
	// quarter KiB and more have files of their own, so that compactions move
	// keys only; a read of one costs a second block. It can be turned on and off
	// at any opening.
	InlineValues bool

	// Logger receives the engine's events. Nil is silent.
	Logger hclog.Logger

	// OnFatal is called when the engine cannot go on (a failed write or sync of
	// its files, a damaged table). The process must end: what is not on disk
	// yet may never get there. Called once, from any goroutine. Nil panics.
	OnFatal func(error)
}

func (o EngineOptions) withDefaults() EngineOptions {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = 16 << 20
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 32 << 20
	}
	if o.NewestBytes == 0 {
		o.NewestBytes = 16 << 20
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.OnFatal == nil {
		o.OnFatal = func(err error) { panic(err) }
	}
	return o
}

// Engine is the node's one state engine, shared by all its groups. It has no
// write-ahead log: a crash takes it back to some earlier state, whole batches
// at a time and in their order, and the Raft log brings it forward again.
//
// Methods are safe for concurrent use; batches of one group must come from one
// goroutine at a time.
type Engine struct {
	dir  string
	opts EngineOptions
	db   *pebble.DB
	po   *pebble.Options // for writing tables to ingest

	fatal sync.Once
	// broken is closed by the first fatal error.
	broken chan struct{}
	// opened is set when the engine is: an error before that is the opening's.
	opened atomic.Bool
	// gone is closed by Abandon: who waits for the end of the process after a
	// fatal error waits no more.
	gone chan struct{}

	// open is held for reading while the engine is used; Close takes it for
	// writing, so that it waits for readers instead of pulling the files away.
	open   sync.RWMutex
	closed bool // guarded by open
	over   bool // the files are closed; guarded by open

	// flushMu is held during a flush. flushes counts started ones, so that
	// groups which ask at the same time share one.
	flushMu  sync.Mutex
	flushes  atomic.Uint64
	flushErr error // of the last flush; guarded by flushMu

	newest *newestMemory

	// freed is what was removed in ranges since the last flush for it.
	freed atomic.Uint64

	rows atomic.Uint64 // set and deleted by batches; ranges count one
}

// OpenEngine opens or creates the engine in dir.
func OpenEngine(dir string, opts EngineOptions) (*Engine, error) {
	e := &Engine{dir: dir, opts: opts.withDefaults(), broken: make(chan struct{}), gone: make(chan struct{})}
	if err := vfs.MakeDir(e.opts.FS, dir); err != nil {
		return nil, fmt.Errorf("state engine: %w", err)
	}
	e.newest = newNewestMemory(e.opts.NewestBytes)
	e.po = e.pebbleOptions()
	err := e.removeLogs()
	if err == nil {
		e.db, err = pebble.Open(dir, e.po)
	}
	if err != nil {
		return nil, fmt.Errorf("state engine in %s: %w", dir, err)
	}
	e.opened.Store(true)
	return e, nil
}

// removeLogs removes the write-ahead logs, in which nothing is ever written. For
// each that it finds Pebble flushes an empty memory table in the background and
// waits for that, on a full disk for ever.
func (e *Engine) removeLogs() error {
	names, err := e.opts.FS.List(e.dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasSuffix(n, ".log") {
			if err := e.opts.FS.Remove(e.opts.FS.PathJoin(e.dir, n)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *Engine) pebbleOptions() *pebble.Options {
	po := &pebble.Options{
		FS:                 vfs.Ordered(e.opts.FS),
		Comparer:           comparer,
		FormatMajorVersion: engineFormat,
		DisableWAL:         true,
		// The engine takes its memory tables out of the cache's share.
		CacheSize:                   e.opts.CacheBytes + 2*int64(e.opts.MemTableBytes),
		MemTableSize:                uint64(e.opts.MemTableBytes),
		MemTableStopWritesThreshold: 3,
		L0CompactionThreshold:       16,
		L0StopWritesThreshold:       48,
		LBaseMaxBytes:               128 << 20,
		MaxOpenFiles:                512,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		Logger:                      engineLogger{e},
		EventListener: &pebble.EventListener{
			BackgroundError: e.die,
			DataCorruption:  func(i pebble.DataCorruptionInfo) { e.die(fmt.Errorf("damaged table %s: %w", i.Path, i.Details)) },
			WriteStallBegin: func(i pebble.WriteStallBeginInfo) { e.opts.Logger.Warn("writes stalled", "reason", i.Reason) },
			WriteStallEnd:   func() { e.opts.Logger.Info("writes go on") },
		},
	}
	// Ingested tables would wait behind a memory table in a queue that only the
	// write-ahead log makes durable. Without one the ingest must flush first.
	po.Experimental.DisableIngestAsFlushable = func() bool { return true }
	// While a table is written the old versions in it wait in memory, in buffers
	// of four times their size: 64 MiB tables cost 250 MiB.
	for i := range po.TargetFileSizes {
		po.TargetFileSizes[i] = 8 << 20
	}
	for i := range po.Levels {
		l := &po.Levels[i]
		l.BlockSize = 8 << 10
		l.IndexBlockSize = 32 << 10
		l.FilterPolicy = bloom.FilterPolicy(10)
		l.Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
	}
	if !e.opts.InlineValues {
		po.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
			return pebble.ValueSeparationPolicy{
				Enabled:               true,
				MinimumSize:           256,
				MaxBlobReferenceDepth: maxReferenceDepth,
				RewriteMinimumAge:     time.Minute,
				TargetGarbageRatio:    0.3,
			}
		}
	}
	po.EnsureDefaults()
	return po
}

// Dir is the engine's directory.
func (e *Engine) Dir() string { return e.dir }

// FS is the engine's file system.
func (e *Engine) FS() vfs.FS { return e.opts.FS }

// Close flushes, waits for readers and closes the files. After a fatal error it
// must not be called, unless Abandon was: the process is to end. If the error
// comes while it flushes, it says so and leaves the files open, and may be
// called again after Abandon.
func (e *Engine) Close() error {
	e.open.Lock()
	defer e.open.Unlock()
	if e.over {
		return nil
	}
	abandoned := false
	select {
	case <-e.gone:
		abandoned = true
	default:
	}
	var err error
	if !e.closed && !abandoned {
		if err = e.lastFlush(); errors.Is(err, errBroken) {
			e.closed = true
			return err
		}
	}
	e.closed, e.over = true, true
	return errors.Join(err, e.db.Close())
}

var errBroken = errors.New("a fatal error came first")

// lastFlush is a flush that a broken disk ends: the engine itself tries again
// and again, at once and for ever.
func (e *Engine) lastFlush() error {
	flushed, err := e.db.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-flushed:
		return nil
	case <-e.broken:
	}
	return fmt.Errorf("state engine in %s: it was not flushed before it was closed: %w (the log has what is missing)", e.dir, errBroken)
}

// Abandon lets go of what has met a fatal error and waits for the end of the
// process, in a process that does not end; Close may be called then. The files
// must be out of reach: what goes on would write to them.
func (e *Engine) Abandon() { close(e.gone) }

// acquire keeps the engine open until release.
func (e *Engine) acquire() error {
	e.open.RLock()
	if e.closed {
		e.open.RUnlock()
		return ErrClosed
	}
	return nil
}

func (e *Engine) release() { e.open.RUnlock() }

// die reports the first fatal error.
func (e *Engine) die(err error) {
	e.fatal.Do(func() {
		e.opts.OnFatal(fmt.Errorf("state engine in %s: %w", e.dir, err))
		close(e.broken) // who waits for it finds it reported
	})
}

// Flush makes everything committed before the call durable. Callers that come
// while one flush runs share the next.
func (e *Engine) Flush() error {
	if err := e.acquire(); err != nil {
		return err
	}
	defer e.release()
	mine := e.flushes.Load() + 1 // the first that starts after this call
	e.flushMu.Lock()
	defer e.flushMu.Unlock()
	if e.flushes.Load() >= mine {
		return e.flushErr
	}
	e.flushes.Add(1)
	e.flushErr = e.db.Flush()
	return e.flushErr
}

// flushSoon starts a flush and does not wait for it.
func (e *Engine) flushSoon() error {
	e.freed.Store(0)
	_, err := e.db.AsyncFlush()
	return err
}

// EngineMetrics are what a node reports about a storage engine.
type EngineMetrics struct {
	DiskBytes          uint64 // tables, obsolete ones that wait for removal included
	MemTableBytes      uint64
	CacheBytes         int64
	CacheHits          int64
	CacheMisses        int64
	NewestBytes        int64 // memory of newest versions
	NewestHits         uint64
	NewestMisses       uint64 // that asked the engine while their group's were kept
	Rows               uint64 // set and deleted by batches since the engine was opened
	Flushes            int64
	FlushedBytes       uint64 // written by flushes
	CompactedBytes     uint64 // written by compactions
	CompactionDebt     uint64
	CompactionsRunning int64
	ReadAmplification  int
	Tables             int64
	ValueFiles         uint64 // what tables keep bodies in, see InlineValues
}

// Metrics are the engine's counters.
func (e *Engine) Metrics() (EngineMetrics, error) {
	if err := e.acquire(); err != nil {
		return EngineMetrics{}, err
	}
	defer e.release()
	m := e.db.Metrics()
	total := m.Total()
	return EngineMetrics{
		// Of the files of bodies Pebble 2.1.7 counts there only what came and went
		// since it was opened, below zero even; LiveSize has all of them.
		DiskBytes:          m.DiskSpaceUsage() - m.BlobFiles.Local.LiveSize + m.BlobFiles.LiveSize,
		MemTableBytes:      m.MemTable.Size,
		CacheBytes:         m.BlockCache.Size,
		CacheHits:          m.BlockCache.Hits,
		CacheMisses:        m.BlockCache.Misses,
		NewestBytes:        e.newest.bytes(),
		NewestHits:         e.newest.hits.Load(),
		NewestMisses:       e.newest.misses.Load(),
		Rows:               e.rows.Load(),
		Flushes:            m.Flush.Count,
		FlushedBytes:       m.Levels[0].TableBytesFlushed + m.Levels[0].BlobBytesFlushed,
		CompactedBytes:     total.TableBytesCompacted + total.BlobBytesCompacted,
		CompactionDebt:     m.Compact.EstimatedDebt,
		CompactionsRunning: m.Compact.NumInProgress,
		ReadAmplification:  m.ReadAmp(),
		Tables:             total.TablesCount,
		ValueFiles:         m.BlobFiles.LiveCount,
	}, nil
}

// Check reads the whole engine and verifies the order of its tables.
func (e *Engine) Check() error {
	if err := e.acquire(); err != nil {
		return err
	}
	defer e.release()
	return e.db.CheckLevels(nil)
}

// replace swaps a group's span for the tables at paths, in one durable step.
func (e *Engine) replace(g placement.GroupID, paths []string) error {
	if err := e.acquire(); err != nil {
		return err
	}
	defer e.release()
	start, end := GroupSpan(g)
	_, err := e.db.IngestAndExcise(context.Background(), paths, nil, nil, pebble.KeyRange{Start: start, End: end})
	return err
}

// RemoveGroup removes everything of a group, durably.
func (e *Engine) RemoveGroup(g placement.GroupID) error { return e.replace(g, nil) }

// engineLogger passes the engine's words on. Its Fatalf must not return; the
// process is about to end, so the goroutine waits for that. While the engine is
// opened it may: the error comes out of the opening then.
type engineLogger struct{ e *Engine }

func (l engineLogger) Infof(format string, args ...any) {
	if l.e.opts.Logger.IsTrace() {
		l.e.opts.Logger.Trace(fmt.Sprintf(format, args...))
	}
}

func (l engineLogger) Errorf(format string, args ...any) {
	l.e.opts.Logger.Error("state engine", "error", fmt.Sprintf(format, args...))
}

func (l engineLogger) Fatalf(format string, args ...any) {
	l.e.die(fmt.Errorf(format, args...))
	if l.e.opened.Load() {
		<-l.e.gone
	}
}

// isNotExist says that a file is missing.
func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }
