package mvcc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"

	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/placement"
)

// importFile lists what a complete import consists of. Its presence says that
// the stream arrived whole and is on disk:
//
//	| "idbsnap\n" | version u32 | group u32 | applied u64 | tables u32 | sum u64 |
const (
	importFile      = "IMPORT"
	importFileBytes = len(streamMagic) + 4 + 4 + 8 + 4 + 8
	tableBytes      = 32 << 20 // a table is closed when it has passed this
	maxTables       = 1 << 20
)

// Imported is a snapshot that arrived whole and lies in a directory as sorted
// tables, ready for Install.
type Imported struct {
	FS      vfs.FS
	Dir     string
	Group   placement.GroupID
	Applied uint64
	tables  int
}

func (i *Imported) paths() []string {
	paths := make([]string, i.tables)
	for n := range paths {
		paths[n] = tablePath(i.FS, i.Dir, n)
	}
	return paths
}

// Remove deletes the directory and what is left in it.
func (i *Imported) Remove() error { return i.FS.RemoveAll(i.Dir) }

func tablePath(fs vfs.FS, dir string, n int) string {
	return fs.PathJoin(dir, fmt.Sprintf("%06d.sst", n))
}

// OpenImported finds a complete import in dir: one that was finished and not
// yet removed when the process ended. Nil without an error: there is none, and
// what lies there can be removed.
func OpenImported(fs vfs.FS, dir string) (*Imported, error) {
	path := fs.PathJoin(dir, importFile)
	b, err := vfs.ReadFile(fs, path, int64(importFileBytes))
	if isNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b) != importFileBytes || string(b[:len(streamMagic)]) != streamMagic ||
		binary.BigEndian.Uint64(b[len(b)-8:]) != xxhash.Sum64(b[:len(b)-8]) {
		return nil, fmt.Errorf("%s: %w", path, ErrDamaged)
	}
	b = b[len(streamMagic):]
	if v := binary.BigEndian.Uint32(b); v != streamVersion {
		return nil, fmt.Errorf("%s: version %d: %w", path, v, ErrNewer)
	}
	return &Imported{
		FS:      fs,
		Dir:     dir,
		Group:   placement.GroupID(binary.BigEndian.Uint32(b[4:])),
		Applied: binary.BigEndian.Uint64(b[8:]),
		tables:  int(binary.BigEndian.Uint32(b[16:])),
	}, nil
}

// Importer takes a snapshot stream as it arrives (Write) and turns it into
// sorted tables. It holds at most one frame in memory. After an error, or
// without Finish, nothing of it counts.
type Importer struct {
	e     *Engine
	dir   string
	group placement.GroupID

	buf     []byte // of the stream, not yet understood
	begun   bool   // the header was read
	ended   bool   // the end was read
	done    bool   // Finish succeeded
	applied uint64
	rows    uint64
	bytes   uint64
	chain   uint64
	last    []byte // key
	err     error

	table  *sstable.Writer // the open table, or nil
	size   int             // bytes put into it
	full   int             // the size at which it is closed
	tables int             // tables begun
}

// NewImporter starts an import of a group's rows in dir, which it empties.
func (e *Engine) NewImporter(dir string, g placement.GroupID) (*Importer, error) {
	fs := e.opts.FS
	if err := fs.RemoveAll(dir); err != nil && !isNotExist(err) {
		return nil, fmt.Errorf("import: %w", err)
	}
	if err := vfs.MakeDir(fs, dir); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return &Importer{e: e, dir: dir, group: g, full: tableBytes}, nil
}

// Applied is the applied index of the snapshot, once its header has arrived.
func (i *Importer) Applied() (uint64, bool) { return i.applied, i.begun }

// Write takes the next bytes of the stream. An error is final.
func (i *Importer) Write(p []byte) (int, error) {
	if i.err != nil {
		return 0, i.err
	}
	i.buf = append(i.buf, p...)
	used, err := i.consume()
	i.buf = append(i.buf[:0], i.buf[used:]...)
	if err != nil {
		i.err = fmt.Errorf("snapshot of %s: %w", i.group, err)
		return 0, i.err
	}
	return len(p), nil
}

// consume takes what is complete from the buffer and says how much that was.
func (i *Importer) consume() (used int, err error) {
	for {
		b := i.buf[used:]
		switch {
		case len(b) == 0:
			return used, nil
		case i.ended:
			return used, fmt.Errorf("bytes after its end: %w", ErrDamaged)
		case !i.begun:
			if len(b) < streamHeader {
				return used, nil
			}
			if err := i.header(b[:streamHeader]); err != nil {
				return used, err
			}
			used += streamHeader
		default:
			if len(b) < frameHead {
				return used, nil
			}
			n := int(binary.BigEndian.Uint32(b[1:]))
			if n > maxFrameLength {
				return used, fmt.Errorf("frame of %d bytes: %w", n, ErrDamaged)
			}
			if len(b) < frameOverhead+n {
				return used, nil
			}
			if err := i.frame(b[:frameOverhead+n]); err != nil {
				return used, err
			}
			used += frameOverhead + n
		}
	}
}

func (i *Importer) header(b []byte) error {
	body, sum := b[:len(b)-8], binary.BigEndian.Uint64(b[len(b)-8:])
	if string(b[:len(streamMagic)]) != streamMagic {
		return fmt.Errorf("not a snapshot: %w", ErrDamaged)
	}
	b = b[len(streamMagic):]
	if v := binary.BigEndian.Uint32(b); v != streamVersion {
		return fmt.Errorf("version %d: %w", v, ErrNewer)
	}
	if xxhash.Sum64(body) != sum {
		return fmt.Errorf("header: %w", ErrDamaged)
	}
	if g := placement.GroupID(binary.BigEndian.Uint32(b[4:])); g != i.group {
		return fmt.Errorf("it is of %s", g)
	}
	i.applied, i.begun = binary.BigEndian.Uint64(b[8:]), true
	return nil
}

func (i *Importer) frame(b []byte) error {
	body, sum := b[:len(b)-8], binary.BigEndian.Uint64(b[len(b)-8:])
	if xxhash.Sum64(body) != sum {
		return fmt.Errorf("frame after %d rows: %w", i.rows, ErrDamaged)
	}
	payload := body[frameHead:]
	switch kind := body[0]; kind {
	case frameRows:
		i.bytes += uint64(len(payload))
		i.chain = chainSum(i.chain, sum)
		return i.takeRows(payload)
	case frameEnd:
		if len(payload) != endPayload {
			return fmt.Errorf("end: %w", ErrDamaged)
		}
		rows, total, chain := binary.BigEndian.Uint64(payload), binary.BigEndian.Uint64(payload[8:]), binary.BigEndian.Uint64(payload[16:])
		if rows != i.rows || total != i.bytes || chain != i.chain {
			return fmt.Errorf("%d rows of %d arrived: %w", i.rows, rows, ErrDamaged)
		}
		i.ended = true
		return nil
	default:
		return fmt.Errorf("frame of kind %d: %w", kind, ErrNewer)
	}
}

func (i *Importer) takeRows(b []byte) error {
	field := func() ([]byte, bool) {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return nil, false
		}
		f := b[w : w+int(n)]
		b = b[w+int(n):]
		return f, true
	}
	key := binary.BigEndian.AppendUint32(nil, uint32(i.group))
	for len(b) > 0 {
		k, ok := field()
		v, ok2 := field()
		if !ok || !ok2 || len(k) == 0 {
			return fmt.Errorf("row %d: %w", i.rows, ErrDamaged)
		}
		key = append(key[:groupBytes], k...)
		if bytes.Compare(i.last, key) >= 0 {
			return fmt.Errorf("row %d is out of order: %w", i.rows, ErrDamaged)
		}
		i.last = append(i.last[:0], key...)
		if mutant.On(mutant.RequestsLost) && (Kind(key[groupBytes]) == KindRequest || Kind(key[groupBytes]) == KindAnswers) {
			i.rows++
			continue
		}
		if err := i.add(key, v); err != nil {
			return err
		}
		i.rows++
	}
	return nil
}

func (i *Importer) add(key, value []byte) error {
	if i.table == nil {
		if i.tables == maxTables {
			return errors.New("too many tables")
		}
		f, err := i.e.opts.FS.Create(tablePath(i.e.opts.FS, i.dir, i.tables), vfs.Unspecified)
		if err != nil {
			return err
		}
		i.tables++
		i.size = 0
		i.table = sstable.NewWriter(objstorageprovider.NewFileWritable(f), i.e.po.MakeWriterOptions(0, engineFormat.MaxTableFormat()))
	}
	if err := i.table.Set(key, value); err != nil {
		return err
	}
	if i.size += len(key) + len(value); i.size > i.full {
		return i.closeTable()
	}
	return nil
}

// closeTable finishes the open table and syncs it.
func (i *Importer) closeTable() error {
	if i.table == nil {
		return nil
	}
	t := i.table
	i.table = nil
	return t.Close()
}

// Finish says whether the whole stream arrived, and makes it durable.
func (i *Importer) Finish() (*Imported, error) {
	if i.err != nil {
		return nil, i.err
	}
	if !i.ended {
		i.err = fmt.Errorf("snapshot of %s: it ends after %d rows, before its end: %w", i.group, i.rows, ErrDamaged)
		return nil, i.err
	}
	if err := i.closeTable(); err != nil {
		i.err = err
		return nil, err
	}
	fs := i.e.opts.FS
	b := append(make([]byte, 0, importFileBytes), streamMagic...)
	b = binary.BigEndian.AppendUint32(b, streamVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(i.group))
	b = binary.BigEndian.AppendUint64(b, i.applied)
	b = binary.BigEndian.AppendUint32(b, uint32(i.tables))
	b = binary.BigEndian.AppendUint64(b, xxhash.Sum64(b))
	// The tables' names must be durable before the file that vouches for them.
	if err := vfs.SyncDir(fs, i.dir); err != nil {
		return nil, err
	}
	if err := vfs.WriteFile(fs, fs.PathJoin(i.dir, importFile), b); err != nil {
		return nil, err
	}
	i.done = true
	return &Imported{FS: fs, Dir: i.dir, Group: i.group, Applied: i.applied, tables: i.tables}, nil
}

// Abort gives up and removes what was written. It does nothing after Finish.
func (i *Importer) Abort() error {
	if i.done {
		return nil
	}
	i.err = errors.New("import: aborted")
	err := i.closeTable()
	return errors.Join(err, i.e.opts.FS.RemoveAll(i.dir))
}

// Install replaces everything of the group with the imported rows, in one
// step that is durable when Install returns. The import's tables are gone
// then; its directory is left to the caller.
func (e *Engine) Install(i *Imported) error {
	if err := e.replace(i.Group, i.paths()); err != nil {
		return fmt.Errorf("installing the snapshot of %s: %w", i.Group, err)
	}
	return nil
}
