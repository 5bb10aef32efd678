package fsm

import (
	"bytes"
	"errors"
	"slices"
	"sync"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// ReadKey names a document and the map it was found by.
type ReadKey struct {
	Partition  placement.PartitionID
	Epoch      placement.Epoch
	Collection placement.CollectionID
	ID         string
}

// At says which version to read: the newest, if it is zero.
type At struct {
	Version uint64
	Time    hlc.Timestamp // as of then; whether that is stable is the caller's business
}

// readable refuses what this replica must not answer.
func (m *Machine) readable(c placement.CollectionID) error {
	if err := m.Err(); err != nil {
		return refuse(wire.CodeInternal, "the replica is halted")
	}
	if m.view.Load().isDropped(c) {
		return refuse(wire.CodeCollectionNotFound, "the collection was dropped")
	}
	return nil
}

// retained refuses times of which some history may be gone.
func (m *Machine) retained(c placement.CollectionID, at hlc.Timestamp) error {
	if at != 0 && !mutant.On(mutant.HorizonUnread) && at < m.view.Load().horizons[c] {
		return refuse(wire.CodeHistoryExpired, "that time is past the retention window")
	}
	return nil
}

// Get reads one document. A document that does not exist is a CodeNotFound; a
// version or time that it did not exist at, CodeVersionNotFound; one that is
// no longer kept, CodeHistoryExpired.
func (m *Machine) Get(k ReadKey, at At, noBody bool) (wire.Document, error) {
	var d wire.Document
	var answer error
	err := m.GetMany([]ReadKey{k}, at, noBody, func(_ int, doc wire.Document, err error) { d, answer = doc, err })
	return d, errors.Join(err, answer)
}

// GetMany reads documents and calls fn with each, in order. At a time they are
// of one state; the newest versions are each of a state that is no older than
// when GetMany was called.
func (m *Machine) GetMany(keys []ReadKey, at At, noBody bool, fn func(i int, d wire.Document, err error)) (err error) {
	return m.Visit(keys, at, noBody, func(i int, d wire.Document, err error) {
		d.Body = bytes.Clone(d.Body)
		fn(i, d, err)
	})
}

// Visit is GetMany without copies: a body is the engine's memory, or that of
// others who visit, and may be used only until fn returns. If the engine cannot
// be read fn is not called for those that are left.
func (m *Machine) Visit(keys []ReadKey, at At, noBody bool, fn func(i int, d wire.Document, err error)) error {
	v := visits.Get().(*visit)
	v.m, v.at, v.noBody = m, at, noBody
	var err error
	for i := range keys {
		var d wire.Document
		refusal := m.permits(&keys[i], at)
		if refusal == nil {
			if d, refusal, err = v.get(&keys[i]); err != nil {
				break
			}
		}
		fn(i, d, refusal)
	}
	return errors.Join(err, v.close())
}

// permits refuses a read that this replica must not answer, or not any more.
func (m *Machine) permits(k *ReadKey, at At) error {
	if err := m.readable(k.Collection); err != nil {
		return err
	}
	if err := m.check(k.Partition, k.Epoch); err != nil {
		return err
	}
	return m.retained(k.Collection, at.Time)
}

// visit is one call of Visit on its way. The engine is read only if memory does
// not have what is asked for.
type visit struct {
	m      *Machine
	at     At
	noBody bool
	reader *mvcc.Reader // nil: not needed yet
	key    []byte
	body   []byte
}

var visits = sync.Pool{New: func() any { return new(visit) }}

func (v *visit) close() (err error) {
	if v.reader != nil {
		err = v.reader.Close()
	}
	v.m, v.reader = nil, nil
	visits.Put(v)
	return err
}

// get reads one document; err means that the engine cannot be read at all.
func (v *visit) get(k *ReadKey) (d wire.Document, refusal, err error) {
	v.key = mvcc.AppendDocument(v.key[:0], v.m.group, k.Partition, k.Collection, k.ID)
	var row mvcc.Row
	found := false
	if v.at.Version == 0 {
		if row, found = v.m.newest.Get(v.key, v.at.Time, v.body); found {
			v.body = row.Body[:0]
		}
	}
	if !found {
		if v.reader == nil {
			if v.reader, err = v.m.reader(); err != nil {
				return d, nil, err
			}
		}
		switch {
		case v.at.Version != 0:
			d, refusal = v.m.getVersion(v.reader, k, v.key, v.at.Version, v.noBody)
			return d, refusal, nil
		case v.at.Time != 0:
			row, found, refusal = v.reader.AtTime(v.key, v.at.Time)
		default:
			row, found, refusal = v.reader.Newest(v.key)
		}
		if refusal != nil {
			return d, refusal, nil
		}
	}
	switch {
	case found && !row.Deleted:
		return borrowed(k.ID, &row, v.noBody), nil, nil
	case v.at.Time != 0:
		return d, refuse(wire.CodeVersionNotFound, ""), nil
	}
	return d, refuse(wire.CodeNotFound, ""), nil
}

func (m *Machine) getVersion(r *mvcc.Reader, k *ReadKey, key []byte, version uint64, noBody bool) (d wire.Document, err error) {
	newest, hit := uint64(0), false
	err = r.Versions(key, func(row mvcc.Row) (bool, error) {
		newest = max(newest, row.Version)
		if row.Version == version {
			d, hit = document(k.ID, &row, noBody), true
		}
		return row.Version > version, nil
	})
	switch {
	case err != nil:
		return wire.Document{}, err
	case newest == 0:
		return d, refuse(wire.CodeNotFound, "")
	case hit && d.Deleted:
		return wire.Document{}, &Error{Code: wire.CodeVersionNotFound, Version: newest, Detail: "that version is a deletion"}
	case hit:
		return d, nil
	case version > newest:
		return d, &Error{Code: wire.CodeVersionNotFound, Version: newest, Detail: "the document has not had that version yet"}
	default:
		return d, &Error{Code: wire.CodeHistoryExpired, Version: newest, Detail: "that version is no longer kept"}
	}
}

// document makes the answer, with a copy of the body.
func document(id string, row *mvcc.Row, noBody bool) wire.Document {
	d := borrowed(id, row, noBody)
	d.Body = bytes.Clone(d.Body)
	return d
}

// borrowed makes the answer, with the body where the row has it.
func borrowed(id string, row *mvcc.Row, noBody bool) wire.Document {
	d := wire.Document{ID: id, Version: row.Version, CreatedAt: uint64(row.Created), UpdatedAt: uint64(row.Updated), Deleted: row.Deleted}
	if !noBody && !row.Deleted {
		d.Body = row.Body
	}
	return d
}

// History lists a document's kept versions below before (0: all), newest
// first, deletions included; more says that older ones are left.
func (m *Machine) History(k ReadKey, before uint64, limit int, noBody bool) (docs []wire.Document, more bool, err error) {
	if err := m.readable(k.Collection); err != nil {
		return nil, false, err
	}
	if err := m.check(k.Partition, k.Epoch); err != nil {
		return nil, false, err
	}
	if limit <= 0 {
		limit = defaultPage
	}
	r, err := m.reader()
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	any, size := false, 0
	key := mvcc.AppendDocument(nil, m.group, k.Partition, k.Collection, k.ID)
	err = r.Versions(key, func(row mvcc.Row) (bool, error) {
		any = true
		if before != 0 && row.Version >= before {
			return true, nil
		}
		if len(docs) >= limit || size >= defaultPageBytes {
			more = true
			return false, nil
		}
		d := document(k.ID, &row, noBody)
		size += len(d.Body)
		docs = append(docs, d)
		return true, nil
	})
	if err == nil && !any {
		err = refuse(wire.CodeNotFound, "")
	}
	return docs, more, err
}

// What a page holds at most when the caller does not say.
const (
	defaultPage      = 1000
	defaultPageBytes = 4 << 20
)

// ScanSpec says what to scan.
type ScanSpec struct {
	Collection placement.CollectionID
	Prefix     string // of the IDs
	After      string // only IDs beyond this one (below it, in reverse)
	Reverse    bool
	Limit      int           // documents; 0: 1000
	MaxBytes   int           // of IDs and bodies, the last document may pass it; 0: 4 MiB
	At         hlc.Timestamp // 0: the newest versions
	NoBody     bool
	// Partitions to look in; nil: all that the group owns. One that it does
	// not own is a CodeStaleEpoch.
	Partitions []placement.PartitionID
	// Epoch is the map that the scan was routed by; 0: not checked.
	Epoch placement.Epoch
}

// partitions is where a scan looks.
func (m *Machine) partitions(s *ScanSpec) ([]placement.PartitionID, error) {
	v := m.view.Load()
	if s.Partitions == nil {
		return v.partitions, nil
	}
	for _, p := range s.Partitions {
		epoch := s.Epoch
		if epoch == 0 {
			epoch = v.since[p]
		}
		if err := m.check(p, epoch); err != nil {
			return nil, err
		}
	}
	ps := slices.Clone(s.Partitions)
	slices.Sort(ps)
	return slices.Compact(ps), nil
}

// Scan reads a page of documents in order of ID, merged over partitions; more
// says that there are others beyond the last one.
func (m *Machine) Scan(s ScanSpec) (docs []wire.Document, more bool, cost wire.Cost, err error) {
	if err := errors.Join(m.readable(s.Collection), m.retained(s.Collection, s.At)); err != nil {
		return nil, false, cost, err
	}
	ps, err := m.partitions(&s)
	if err != nil {
		return nil, false, cost, err
	}
	limit, maxBytes := s.Limit, s.MaxBytes
	if limit <= 0 {
		limit = defaultPage
	}
	if maxBytes <= 0 {
		maxBytes = defaultPageBytes
	}
	r, err := m.reader()
	if err != nil {
		return nil, false, cost, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	size := 0
	spec := m.scan(&s, ps)
	more, err = r.Merge(&spec, limit, s.NoBody, func(_ placement.PartitionID, id string, row mvcc.Row) bool {
		size += len(id) + len(row.Body)
		docs = append(docs, wire.Document{ID: id, Version: row.Version, CreatedAt: uint64(row.Created), UpdatedAt: uint64(row.Updated), Body: row.Body})
		return len(docs) < limit && size < maxBytes
	})
	cost = wire.Cost{Groups: 1, Keys: r.Keys, Docs: uint64(len(docs)), Bytes: uint64(size), ReadVersion: uint64(s.At)}
	return docs, more, cost, err
}

func (m *Machine) scan(s *ScanSpec, ps []placement.PartitionID) mvcc.Scan {
	return mvcc.Scan{Group: m.group, Partitions: ps, Collection: s.Collection, Prefix: s.Prefix, After: s.After, Reverse: s.Reverse, At: s.At}
}

// Count is the kept number of a collection's live documents, and their bytes.
func (m *Machine) Count(c placement.CollectionID) (docs, bytes uint64, err error) {
	if err := m.readable(c); err != nil {
		return 0, 0, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, p := range m.view.Load().partitions {
		n := m.counts[countKey{p, c}]
		docs += n.docs
		bytes += n.bytes
	}
	return docs, bytes, nil
}

// CountPrefix counts by reading: documents with an ID prefix, as the spec's
// Collection, Prefix, At and Partitions say.
func (m *Machine) CountPrefix(s ScanSpec) (n uint64, cost wire.Cost, err error) {
	if err := errors.Join(m.readable(s.Collection), m.retained(s.Collection, s.At)); err != nil {
		return 0, cost, err
	}
	ps, err := m.partitions(&s)
	if err != nil {
		return 0, cost, err
	}
	r, err := m.reader()
	if err != nil {
		return 0, cost, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	spec := m.scan(&s, ps)
	n, err = r.Count(&spec)
	return n, wire.Cost{Groups: 1, Keys: r.Keys, ReadVersion: uint64(s.At)}, err
}
