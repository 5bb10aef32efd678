package shardgroup

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/go-hclog"

	files "github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/placement"
)

// Keys of the log engine. All integers are big-endian, so that they order.
//
//	| 0x00 "format" |                       -> u32
//	| 0x01 | group u32 | index u64 |        -> log entry
//	| 0x02 | group u32 |                    -> group record
//	| 0x03 | group u32 |                    -> snapshot marker
//	| 0x04 | group u32 |                    -> pending install
const (
	keyFormat  = 0x00
	keyEntry   = 0x01
	keyGroup   = 0x02
	keyMarker  = 0x03
	keyPending = 0x04
)

// logFormat is the version of everything in the log engine.
const logFormat = 1

var formatKey = append([]byte{keyFormat}, "format"...)

// logEngine is the node's one synced store. Every group's entries are in it,
// so that groups which commit at the same moment share one fsync.
type logEngine struct {
	db *pebble.DB
}

// logMemTable is how much of the log is in memory before it is flushed to a
// table. Entries live until the next snapshot and a little longer, so most are
// flushed once and deleted before they would be compacted again.
const logMemTable = 16 << 20

// openLogEngine opens or creates the engine in dir.
func openLogEngine(fs vfs.FS, dir string, memTable uint64, log hclog.Logger, fatal func(error)) (*logEngine, error) {
	if err := files.MakeDir(fs, dir); err != nil {
		return nil, fmt.Errorf("shardgroup: create log directory %s: %w", dir, err)
	}
	cache := pebble.NewCache(8 << 20)
	defer cache.Unref()
	opts := &pebble.Options{
		FS:                          files.Ordered(fs),
		FormatMajorVersion:          pebble.FormatNewest,
		Logger:                      engineLogger{log: log, fatal: fatal},
		Cache:                       cache,
		MemTableSize:                memTable,
		MemTableStopWritesThreshold: 4,
		// Compacting early would rewrite entries that the next truncation
		// deletes; point reads of a log are few.
		L0CompactionThreshold: 32,
		L0StopWritesThreshold: 256,
		LBaseMaxBytes:         256 << 20,
		WALBytesPerSync:       0,
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) {
				if !errors.Is(err, pebble.ErrClosed) {
					fatal(fmt.Errorf("shardgroup: log engine: %w", err))
				}
			},
			WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
				log.Warn("log engine stalls writes", "reason", i.Reason)
			},
		},
	}
	// A log is written once and read seldom: no time is spent on compression.
	opts.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	e := &logEngine{}
	if err := openOnce(fs, dir, func() (err error) { e.db, err = pebble.Open(dir, opts); return err }); err != nil {
		return nil, fmt.Errorf("shardgroup: open log engine in %s: %w", dir, err)
	}
	if err := e.checkFormat(); err != nil {
		return nil, errors.Join(err, e.db.Close())
	}
	return e, nil
}

// openOnce opens an engine's directory, and cleans up after a power cut in the
// middle of its very first opening, which leaves what no engine can open. That
// the first opening came to its end is remembered in a file beside it; without
// that file nothing was ever stored in the directory.
func openOnce(fs vfs.FS, dir string, open func() error) error {
	made := dir + ".made"
	known, err := files.Exists(fs, made)
	if err != nil {
		return err
	}
	err = open()
	if err != nil && !known {
		if err := fs.RemoveAll(dir); err != nil {
			return err
		}
		if err := files.MakeDir(fs, dir); err != nil {
			return err
		}
		err = open()
	}
	if err != nil || known {
		return err
	}
	return files.WriteFile(fs, made, nil)
}

// checkFormat refuses a directory that a newer version has written.
func (e *logEngine) checkFormat() error {
	v, err := e.get(formatKey)
	if err != nil {
		return err
	}
	if v == nil {
		return e.db.Set(formatKey, binary.BigEndian.AppendUint32(nil, logFormat), pebble.Sync)
	}
	if len(v) != 4 {
		return fmt.Errorf("shardgroup: log format record is damaged (%d bytes)", len(v))
	}
	if f := binary.BigEndian.Uint32(v); f != logFormat {
		return fmt.Errorf("shardgroup: the log has format %d, this version reads format %d (use the version that wrote it, or a newer one)", f, logFormat)
	}
	return nil
}

// get copies the value of key; nil if there is none.
func (e *logEngine) get(key []byte) ([]byte, error) {
	v, closer, err := e.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("shardgroup: read log engine: %w", err)
	}
	defer closer.Close()
	return append(make([]byte, 0, len(v)), v...), nil
}

// groups lists the groups that have a group record.
func (e *logEngine) groups() ([]placement.GroupID, error) {
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyGroup}, UpperBound: []byte{keyGroup + 1}})
	if err != nil {
		return nil, fmt.Errorf("shardgroup: list groups: %w", err)
	}
	defer it.Close()
	var ids []placement.GroupID
	for it.First(); it.Valid(); it.Next() {
		if k := it.Key(); len(k) == 5 {
			ids = append(ids, placement.GroupID(binary.BigEndian.Uint32(k[1:])))
		}
	}
	return ids, it.Error()
}

func (e *logEngine) close() error { return e.db.Close() }

func groupKey(kind byte, g placement.GroupID) []byte {
	return binary.BigEndian.AppendUint32([]byte{kind}, uint32(g))
}

func entryKey(g placement.GroupID, index uint64) []byte {
	k := make([]byte, entryKeyLen)
	putEntryKey(k, g, index)
	return k
}

const entryKeyLen = 13

func putEntryKey(k []byte, g placement.GroupID, index uint64) {
	k[0] = keyEntry
	binary.BigEndian.PutUint32(k[1:], uint32(g))
	binary.BigEndian.PutUint64(k[5:], index)
}
