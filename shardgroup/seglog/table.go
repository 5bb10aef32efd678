package seglog

import (
	"fmt"
	"maps"
	"slices"
)

// table says where everything that lives is. It is changed only by applying
// bodies in the order in which they are in the log, the same way while the log
// runs and when it is recovered.
//
// Recovery begins at the oldest segment that is needed, not at the beginning
// of time. What it sees of a group is a true end of its log, to which entries
// that were carried forward are added at the front.
type table struct {
	segs   []*segment // numbered without a gap, oldest first; the last is written
	groups map[uint32]*group
	keys   map[Key]*keyed

	recovering bool
}

// place is where an entry is.
type place struct {
	seg  uint32 // number of the segment
	off  uint32 // of the record
	size uint32 // of the payload
}

// group is one group's entries.
type group struct {
	// first and last are those of the log with what is on its way to the disk;
	// first is last+1 if there are none.
	first, last uint64

	base    uint64  // index of places[0]
	places  []place // on disk
	cutting int     // cuts on their way

	early map[uint64]place // carried, below base; while recovering
}

// keyed is the record under a key.
type keyed struct {
	value []byte // with what is on its way; nil: deleted
	seg   uint32
	size  uint32 // of the record; 0: none is on disk
}

func newTable() *table {
	return &table{groups: make(map[uint32]*group), keys: make(map[Key]*keyed)}
}

func (t *table) segment(number uint32) *segment { return t.segs[number-uint32(t.segs[0].number)] }

func (t *table) group(id uint32) *group {
	g := t.groups[id]
	if g == nil {
		g = &group{first: 1}
		t.groups[id] = g
	}
	return g
}

// apply takes in a body that is on disk, at off in seg.
func (t *table) apply(seg *segment, off int64, body []byte) error {
	for at := 0; at < len(body); {
		r, err := decodeRecord(body, at)
		if err != nil {
			return err
		}
		if err := t.applyRecord(seg, off, &r); err != nil {
			return err
		}
		at += r.len
	}
	return nil
}

func (t *table) applyRecord(seg *segment, off int64, r *record) error {
	switch r.kind {
	case recEntry, recCarried:
		if r.index == 0 || r.index > maxIndex {
			return fmt.Errorf("an entry of group %d has index %d (%w)", r.group, r.index, ErrDamaged)
		}
		p := place{seg: uint32(seg.number), off: uint32(off + int64(r.at)), size: r.size}
		seg.grow(r.len)
		g := t.group(r.group)
		if r.kind == recEntry {
			return t.addEntry(r.group, g, r.index, p)
		}
		return t.moveEntry(r.group, g, r.index, p)
	case recFront:
		g := t.group(r.group)
		g.settle()
		n := 0
		for ; n < len(g.places) && g.base+uint64(n) <= r.index; n++ {
			t.release(g.places[n])
		}
		g.base += uint64(n)
		g.places = g.places[n:]
		t.dropEarly(g, func(i uint64) bool { return i <= r.index })
	case recBack:
		g := t.group(r.group)
		g.settle()
		n := len(g.places)
		for ; n > 0 && g.base+uint64(n-1) >= r.index; n-- {
			t.release(g.places[n-1])
		}
		g.places = g.places[:n]
		t.dropEarly(g, func(i uint64) bool { return i >= r.index })
	case recSet:
		k := t.keys[r.key]
		if k == nil {
			k = &keyed{}
			t.keys[r.key] = k
		}
		t.unplace(k)
		k.seg, k.size = uint32(seg.number), uint32(r.len)
		seg.grow(r.len)
		if t.recovering {
			k.value = append(make([]byte, 0, len(r.value)), r.value...)
		}
	case recDelete:
		k := t.keys[r.key]
		if k == nil {
			return nil // what it deleted was in a segment that is gone
		}
		t.unplace(k)
		if t.recovering || k.value == nil {
			delete(t.keys, r.key)
		}
	}
	return nil
}

func (t *table) addEntry(id uint32, g *group, index uint64, p place) error {
	if len(g.places) == 0 {
		g.base, g.places = index, nil
	}
	if index != g.base+uint64(len(g.places)) {
		return fmt.Errorf("entry %d of group %d follows %d (%w)", index, id, g.base+uint64(len(g.places))-1, ErrDamaged)
	}
	g.places = append(g.places, p)
	return nil
}

// moveEntry takes in an entry that was carried forward.
func (t *table) moveEntry(id uint32, g *group, index uint64, p place) error {
	n := uint64(len(g.places))
	switch {
	case n > 0 && index >= g.base+n || n == 0 && !t.recovering || index < g.base && !t.recovering:
		return fmt.Errorf("entry %d of group %d was carried forward, the log has %d to %d (%w)", index, id, g.base, g.base+n-1, ErrDamaged)
	case n > 0 && index >= g.base:
		t.release(g.places[index-g.base])
		g.places[index-g.base] = p
	default:
		if g.early == nil {
			g.early = make(map[uint64]place)
		}
		if old, ok := g.early[index]; ok {
			t.release(old)
		}
		g.early[index] = p
	}
	return nil
}

// settle notes that a cut has arrived on disk.
func (g *group) settle() {
	if g.cutting > 0 {
		g.cutting--
	}
}

func (t *table) dropEarly(g *group, gone func(uint64) bool) {
	for i, p := range g.early {
		if gone(i) {
			t.release(p)
			delete(g.early, i)
		}
	}
}

func (t *table) release(p place) { t.segment(p.seg).live -= int64(entryHeader) + int64(p.size) }
func (t *table) unplace(k *keyed) {
	if k.size != 0 {
		t.segment(k.seg).live -= int64(k.size)
		k.size = 0
	}
}

// finish ends a recovery: carried entries take their places, and no log may
// have a hole.
func (t *table) finish() error {
	t.recovering = false
	for id, g := range t.groups {
		if len(g.early) > 0 {
			order := slices.Sorted(maps.Keys(g.early))
			if len(g.places) == 0 {
				g.base = order[len(order)-1] + 1
			}
			if order[0]+uint64(len(order)) != g.base {
				return fmt.Errorf("the log of group %d has a hole between %d and %d (%w)", id, order[0], g.base, ErrDamaged)
			}
			all := make([]place, 0, len(order)+len(g.places))
			for _, i := range order {
				all = append(all, g.early[i])
			}
			g.base, g.places, g.early = order[0], append(all, g.places...), nil
		}
		g.first, g.last, g.cutting = 1, 0, 0
		if n := uint64(len(g.places)); n > 0 {
			g.first, g.last = g.base, g.base+n-1
		}
	}
	return nil
}

// find is where an entry is.
func (t *table) find(id uint32, index uint64) (*segment, place, bool) {
	g := t.groups[id]
	if g == nil || index < g.first || index > g.last || index < g.base || index-g.base >= uint64(len(g.places)) {
		return nil, place{}, false
	}
	p := g.places[index-g.base]
	return t.segment(p.seg), p, true
}

// spread is how much disk the old segments take, all but the one that is
// written, and how much of that is by what lives: padding and the like count in
// proportion.
func (t *table) spread() (total, live int64) {
	for _, s := range t.segs[:len(t.segs)-1] {
		total += s.bytes
		if s.records > 0 {
			live += int64(float64(s.end) * float64(s.live) / float64(s.records))
		}
	}
	return total, live
}

// recent: see Log.Recent. Segments are freed whole, so they count whole.
func (t *table) recent(id uint32, bytes int64) uint64 {
	n := len(t.segs) - 1
	for bytes -= t.segs[n].bytes; n > 0 && t.segs[n-1].bytes <= bytes; n-- {
		bytes -= t.segs[n-1].bytes
	}
	oldest := uint32(t.segs[n].number)
	return t.from(id, func(p place) bool { return p.seg >= oldest })
}

// short: see Log.Short.
func (t *table) short(id uint32, bytes int64) uint64 {
	return t.from(id, func(p place) bool { bytes -= int64(p.size); return bytes >= 0 })
}

// from is the index from which on all entries of a group are as wanted; what is
// on its way to the disk is.
func (t *table) from(id uint32, wanted func(place) bool) uint64 {
	g := t.groups[id]
	if g == nil {
		return 1
	}
	n := len(g.places)
	for n > 0 && g.base+uint64(n-1) >= g.first && wanted(g.places[n-1]) {
		n--
	}
	return min(max(g.base+uint64(n), g.first), g.last+1)
}
