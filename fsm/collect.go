package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// collect removes those of the named versions that are garbage in the state
// before this entry. The others (already gone, or never garbage) are passed
// over: the leader may have looked a moment too early, or be mistaken.
func (a *applier) collect(c *Collect) error {
	reader, err := a.read()
	if err != nil {
		return err
	}
	for _, rest := range c.Keys {
		k, err := mvcc.DecodeDocument(rest)
		if err != nil || !a.owns(k.Partition) {
			continue
		}
		horizon := a.view.horizons[k.Collection]
		if mutant.On(mutant.CollectAboveLine) {
			horizon = hlc.Max
		}
		a.key2 = append(binary.BigEndian.AppendUint32(a.key2[:0], uint32(a.m.group)), rest...)
		if _, gone := a.gone[string(a.key2)]; gone {
			continue
		}
		row, superseded, older, found, err := reader.Neighbours(a.key2, func(key []byte) bool {
			_, gone := a.gone[string(key)]
			return gone
		})
		if err != nil {
			return err
		}
		garbage := superseded != 0 && superseded <= horizon
		if superseded == 0 && row.Deleted {
			// Nothing was ever there, once nothing older can show through. A
			// write of this very entry may have gone on counting from it: fine.
			garbage = k.Time <= horizon && !older
		}
		if !found || !garbage {
			continue
		}
		if err := a.delete(a.key2); err != nil {
			return err
		}
		a.gone[string(a.key2)] = struct{}{}
		if superseded == 0 {
			a.m.heads.forget(a.key2[:len(a.key2)-8])
			a.m.newest.Forget(a.key2[:len(a.key2)-8])
		}
		ck := countKey{k.Partition, k.Collection}
		n := a.countsOf(ck)
		n.rows--
		a.setCounts(ck, n)
	}
	return nil
}

// SweepLimits bound one call of FindGarbage.
type SweepLimits struct {
	// Visit is how many rows to look at before returning. Zero means 10,000.
	Visit int
	// Find is how many garbage versions to return at most. Zero means 2,000.
	Find int
}

func (l SweepLimits) withDefaults() SweepLimits {
	if l.Visit == 0 {
		l.Visit = 10_000
	}
	if l.Find == 0 {
		l.Find = 2_000
	}
	return l
}

// One Collect stays a small part of an entry.
const (
	collectKeys  = 256
	collectBytes = 32 << 10
)

// Sweep is a walk over a group's history in search of garbage. The zero value
// is at the beginning; FindGarbage moves it on.
type Sweep struct {
	key countKey
	doc []byte // the last document that is done with; nil: none of key yet

	// ripe is when the first of what key's walk has left becomes garbage, at
	// the earliest.
	ripe hlc.Timestamp
}

// Garbage is what one call of FindGarbage found.
type Garbage struct {
	Collects []Collect
	Versions int  // in all of them
	Visited  int  // rows looked at
	Done     bool // the walk has come to the end; the sweep starts over
}

// FindGarbage goes on with a sweep: it looks for versions that were superseded
// at or below their collection's replicated horizon, and tombstones that are
// below it with nothing under them. Collections without superseded versions,
// or none old enough, are passed over unread. keep is how many superseded
// versions of a document to leave whatever their age; nil keeps none.
//
// It changes nothing. What it finds is garbage for ever, so it need not be
// proposed by the same leader, or at all.
func (m *Machine) FindGarbage(s *Sweep, limits SweepLimits, keep func(placement.CollectionID) uint32) (g Garbage, err error) {
	if err := m.Err(); err != nil {
		return g, err
	}
	limits = limits.withDefaults()
	v := m.view.Load()
	// In this order: what the reader does not see is superseded later than clock.
	m.mu.RLock()
	life := m.life
	m.mu.RUnlock()
	clock := m.Clock()
	var r *mvcc.Reader
	defer func() {
		if r != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	for _, k := range m.superseded(v, s.key) {
		if r == nil {
			if r, err = m.reader(); err != nil {
				return g, err
			}
		}
		if k != s.key || s.doc == nil {
			*s = Sweep{key: k, ripe: clock + 1}
		}
		kept := uint32(0)
		if keep != nil {
			kept = keep(k.collection)
		}
		full, err := m.sweepOne(r, s, limits, v.horizons[k.collection], kept, &g)
		if err != nil || full {
			return g, err
		}
		m.mu.Lock()
		if m.life == life {
			m.ripe[k] = s.ripe
		}
		m.mu.Unlock()
	}
	*s = Sweep{}
	g.Done = true
	return g, nil
}

// superseded lists where there may be garbage, from a key on.
func (m *Machine) superseded(v *view, from countKey) []countKey {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var keys []countKey
	for k, c := range m.counts {
		_, owned := v.since[k.partition]
		horizon := v.horizons[k.collection]
		if owned && c.rows > c.docs && horizon != 0 && m.ripe[k] <= horizon && k.compare(from) >= 0 {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, countKey.compare)
	return keys
}

// sweepOne sweeps one collection in one partition; full says that a limit was
// reached before its end. A document that is only partly done is met again
// from its front: by then what was found of it is collected.
func (m *Machine) sweepOne(r *mvcc.Reader, s *Sweep, limits SweepLimits, horizon hlc.Timestamp, keep uint32, g *Garbage) (full bool, err error) {
	start, end := mvcc.CollectionSpan(m.group, s.key.partition, s.key.collection)
	if s.doc != nil {
		start = mvcc.AppendEnd(nil, s.doc)
	}
	var (
		doc        []byte // the document being looked at
		newer      hlc.Timestamp
		nth        uint32 // versions of it met so far
		left       int    // versions of it that stay
		tombstone  hlc.Timestamp
		foundInDoc bool
	)
	found := func(doc []byte, ts hlc.Timestamp) {
		key := mvcc.AppendTime(bytes.Clone(doc[groupBytes:]), ts)
		last := len(g.Collects) - 1
		if last < 0 || len(g.Collects[last].Keys) >= collectKeys || len(g.Collects[last].Keys)*len(key) >= collectBytes {
			g.Collects = append(g.Collects, Collect{})
			last++
		}
		g.Collects[last].Keys = append(g.Collects[last].Keys, key)
		g.Versions++
		foundInDoc = true
		s.ripe = 0 // until it is seen to be gone
	}
	// endDoc decides about a tombstone on top, when all below it is known.
	endDoc := func() {
		if doc == nil {
			return
		}
		if tombstone != 0 && tombstone <= horizon && left == 0 {
			found(doc, tombstone)
		}
		s.doc = append(s.doc[:0], doc...)
	}
	err = r.EachVersion(start, end, func(v mvcc.Version) (bool, error) {
		if v.Newest {
			endDoc()
			if g.Visited >= limits.Visit || g.Versions >= limits.Find {
				full, doc = true, nil
				return false, nil
			}
			doc = append(doc[:0], v.Doc...)
			nth, left, tombstone, foundInDoc = 0, 0, 0, false
		} else if foundInDoc && (g.Visited >= 2*limits.Visit || g.Versions >= 2*limits.Find) {
			full, doc = true, nil
			return false, nil
		}
		g.Visited++
		switch {
		case nth == 0:
			row, err := v.Row()
			if err != nil {
				return false, err
			}
			if row.Deleted {
				tombstone = v.Time
			}
		case nth > keep && newer <= horizon:
			found(v.Doc, v.Time)
		default:
			left++
			s.ripe = min(s.ripe, newer)
		}
		newer = v.Time
		nth++
		return true, nil
	})
	if err == nil {
		endDoc()
	}
	return full, err
}
