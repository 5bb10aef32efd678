package mvcc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// Reader reads one state of the engine: the one at its creation. It keeps the
// engine open and old tables on disk, so it is closed soon. Not safe for
// concurrent use.
//
// Bodies in the rows that it returns are the engine's memory, valid until the
// next call.
type Reader struct {
	e    *Engine
	it   *pebble.Iterator
	key  []byte // scratch
	span [2 * groupBytes]byte

	// Keys counts the rows looked at.
	Keys uint64
}

// readers are used again: point reads make one each.
var readers = sync.Pool{New: func() any { return new(Reader) }}

// NewReader reads everything of a group. The filters of the lowest level are
// used only if most looked-up keys are expected to be absent or new.
func (e *Engine) NewReader(g placement.GroupID, expectAbsent bool) (*Reader, error) {
	return e.newReader(g, &pebble.IterOptions{UseL6Filters: expectAbsent})
}

// newReader reads the group's span with these options.
func (e *Engine) newReader(g placement.GroupID, o *pebble.IterOptions) (*Reader, error) {
	if err := e.acquire(); err != nil {
		return nil, err
	}
	r := readers.Get().(*Reader)
	binary.BigEndian.PutUint32(r.span[:], uint32(g))
	binary.BigEndian.PutUint32(r.span[groupBytes:], uint32(g)+1)
	o.LowerBound, o.UpperBound = r.span[:groupBytes], r.span[groupBytes:]
	it, err := e.db.NewIter(o)
	if err != nil {
		e.release()
		return nil, err
	}
	r.e, r.it, r.Keys = e, it, 0
	return r, nil
}

// Close lets the engine go on. The reader must not be used any more.
func (r *Reader) Close() error {
	e, it := r.e, r.it
	r.e, r.it = nil, nil
	readers.Put(r)
	err := it.Close()
	e.release()
	return err
}

// Get reads a row that has no versions. The value is the engine's memory.
func (r *Reader) Get(key []byte) (value []byte, found bool, err error) {
	r.Keys++
	if !r.it.SeekPrefixGE(key) {
		return nil, false, r.it.Error()
	}
	value, err = r.it.ValueAndErr()
	return value, err == nil, err
}

// Each calls fn with every key and value of [start, end). Both are the
// engine's memory.
func (r *Reader) Each(start, end []byte, fn func(key, value []byte) error) error {
	for ok := r.it.SeekGE(start); ok && bytes.Compare(r.it.Key(), end) < 0; ok = r.it.Next() {
		r.Keys++
		v, err := r.it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := fn(r.it.Key(), v); err != nil {
			return err
		}
	}
	return r.it.Error()
}

// EachLazy calls fn with every key of [start, end), until it answers false.
// Values are read only if asked for.
func (r *Reader) EachLazy(start, end []byte, fn func(key []byte, value func() ([]byte, error)) (more bool, err error)) error {
	for ok := r.it.SeekGE(start); ok && bytes.Compare(r.it.Key(), end) < 0; ok = r.it.Next() {
		r.Keys++
		if more, err := fn(r.it.Key(), r.it.ValueAndErr); err != nil || !more {
			return err
		}
	}
	return r.it.Error()
}

// First is the first key at or above a key, the engine's memory; nil if none
// is left in the group.
func (r *Reader) First(key []byte) ([]byte, error) {
	r.Keys++
	if !r.it.SeekGE(key) {
		return nil, r.it.Error()
	}
	return r.it.Key(), nil
}

// Newest is the newest version of the document with this key (AppendDocument),
// a tombstone included.
func (r *Reader) Newest(doc []byte) (Row, bool, error) {
	r.Keys++
	if !r.it.SeekPrefixGE(doc) {
		return Row{}, false, r.it.Error()
	}
	row, err := r.row()
	return row, err == nil, err
}

// AtTime is the version that was current at ts.
func (r *Reader) AtTime(doc []byte, ts hlc.Timestamp) (Row, bool, error) {
	r.Keys++
	r.key = AppendTime(append(r.key[:0], doc...), ts)
	if !r.it.SeekPrefixGE(r.key) {
		return Row{}, false, r.it.Error()
	}
	row, err := r.row()
	return row, err == nil, err
}

// Versions calls fn with the document's versions, newest first, until fn
// answers false.
func (r *Reader) Versions(doc []byte, fn func(Row) (more bool, err error)) error {
	for ok := r.it.SeekPrefixGE(doc); ok; ok = r.it.Next() {
		r.Keys++
		row, err := r.row()
		if err != nil {
			return err
		}
		if more, err := fn(row); err != nil || !more {
			return err
		}
	}
	return r.it.Error()
}

// Neighbours says what lies around the document version with this full key:
// whether it exists, when it was superseded (0: it is the newest), and whether
// an older version lies under it, those that gone knows left out. The row is
// the version's own, without its body.
func (r *Reader) Neighbours(key []byte, gone func(key []byte) bool) (row Row, superseded hlc.Timestamp, older, found bool, err error) {
	n := split(key)
	doc := key[:n]
	if r.it.SeekLT(key) && bytes.HasPrefix(r.it.Key(), doc) {
		superseded = timeOf(r.it.Key())
	}
	if err := r.it.Error(); err != nil {
		return Row{}, 0, false, false, err
	}
	r.Keys += 2
	if !r.it.SeekGE(key) || !bytes.Equal(r.it.Key(), key) {
		return Row{}, 0, false, false, r.it.Error()
	}
	if row, err = r.row(); err != nil {
		return Row{}, 0, false, false, err
	}
	row.Body = nil
	for !older && r.it.Next() && bytes.HasPrefix(r.it.Key(), doc) {
		r.Keys++
		older = !gone(r.it.Key())
	}
	return row, superseded, older, true, r.it.Error()
}

// Younger finds a document of [start, end) whose newest version, a tombstone
// included, is younger than at; nil if there is none. Versions' values are not
// read, and older versions not looked at.
func (r *Reader) Younger(start, end []byte, at hlc.Timestamp) (doc []byte, err error) {
	for ok := r.it.SeekGE(start); ok && bytes.Compare(r.it.Key(), end) < 0; ok = r.it.NextPrefix() {
		r.Keys++
		if key := r.it.Key(); timeOf(key) > at {
			return bytes.Clone(key[:split(key)]), nil
		}
	}
	return nil, r.it.Error()
}

// Version is a step of EachVersion.
type Version struct {
	Doc    []byte // the document's key
	Time   hlc.Timestamp
	Newest bool
	r      *Reader
}

// Row reads the version itself.
func (v Version) Row() (Row, error) { return v.r.row() }

// EachVersion calls fn with every version in [start, end), newest first within
// a document, until fn answers false. Values are read only if asked for.
func (r *Reader) EachVersion(start, end []byte, fn func(Version) (more bool, err error)) error {
	var doc []byte
	for ok := r.it.SeekGE(start); ok && bytes.Compare(r.it.Key(), end) < 0; ok = r.it.Next() {
		r.Keys++
		key := r.it.Key()
		n := split(key)
		v := Version{Time: timeOf(key), Newest: !bytes.Equal(doc, key[:n]), r: r}
		if v.Newest {
			doc = append(doc[:0], key[:n]...)
		}
		v.Doc = doc
		if more, err := fn(v); err != nil || !more {
			return err
		}
	}
	return r.it.Error()
}

// row decodes the version that the iterator is at.
func (r *Reader) row() (Row, error) {
	v, err := r.it.ValueAndErr()
	if err != nil {
		return Row{}, err
	}
	row, err := DecodeRow(v)
	if err != nil {
		return Row{}, fmt.Errorf("key %x: %w", r.it.Key(), err)
	}
	row.Updated = timeOf(r.it.Key())
	return row, nil
}

// DurableReader reads what would be found after a crash now.
func (e *Engine) DurableReader(g placement.GroupID) (*Reader, error) {
	return e.newReader(g, &pebble.IterOptions{OnlyReadGuaranteedDurable: true})
}
