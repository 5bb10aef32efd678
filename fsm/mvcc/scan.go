package mvcc

import (
	"bytes"

	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// Scan says which documents of a collection to walk over.
type Scan struct {
	Group      placement.GroupID
	Partitions []placement.PartitionID
	Collection placement.CollectionID
	Prefix     string // of the ID
	After      string // only IDs beyond this one (below it, in reverse); empty: from the start
	Reverse    bool
	At         hlc.Timestamp // 0: the newest versions
}

// span is the scan's part of one partition: [lower, upper).
func (s *Scan) span(p placement.PartitionID) (lower, upper []byte) {
	lower = AppendID(AppendCollection(nil, s.Group, p, s.Collection), s.Prefix)
	upper = AppendEnd(nil, lower)
	if s.After == "" {
		return lower, upper
	}
	after := AppendDocument(nil, s.Group, p, s.Collection, s.After)
	if s.Reverse {
		if bytes.Compare(after, upper) < 0 {
			upper = after
		}
		return lower, upper
	}
	if after = immediateSuccessor(nil, after); bytes.Compare(after, lower) > 0 {
		lower = after
	}
	return lower, upper
}

// walk calls fn with the visible version of every live document of [lower,
// upper) until fn answers false. doc is the document's key; both are the
// engine's memory.
func (r *Reader) walk(lower, upper []byte, reverse bool, at hlc.Timestamp, fn func(doc []byte, row Row) (more bool, err error)) error {
	if at == 0 {
		at = hlc.Max
	}
	if reverse {
		return r.walkBack(lower, upper, at, fn)
	}
	ok := r.it.SeekGE(lower)
	for ok && bytes.Compare(r.it.Key(), upper) < 0 {
		r.Keys++
		key := r.it.Key()
		n := split(key)
		if timeOf(key) > at {
			// Newer than what is read. The one wanted is often right behind;
			// past a few, jump.
			r.key = AppendTime(append(r.key[:0], key[:n]...), at)
			ok = r.it.Next()
			for i := 0; ok && i < 3 && bytes.Compare(r.it.Key(), r.key) < 0; i++ {
				r.Keys++
				ok = r.it.Next()
			}
			if ok && bytes.Compare(r.it.Key(), r.key) < 0 {
				ok = r.it.SeekGE(r.key)
			}
			continue
		}
		row, err := r.row()
		if err != nil {
			return err
		}
		if !row.Deleted {
			if more, err := fn(key[:n], row); err != nil || !more {
				return err
			}
		}
		ok = r.it.NextPrefix()
	}
	return r.it.Error()
}

// walkBack meets a document's oldest version first, so it looks for the
// visible one from the document's front and then steps before the document.
func (r *Reader) walkBack(lower, upper []byte, at hlc.Timestamp, fn func(doc []byte, row Row) (more bool, err error)) error {
	var doc []byte
	for ok := r.it.SeekLT(upper); ok && bytes.Compare(r.it.Key(), lower) >= 0; ok = r.it.SeekLT(doc) {
		r.Keys++
		doc = append(doc[:0], r.it.Key()[:split(r.it.Key())]...)
		r.key = AppendTime(append(r.key[:0], doc...), at)
		if !r.it.SeekGE(r.key) || !bytes.HasPrefix(r.it.Key(), doc) {
			if err := r.it.Error(); err != nil {
				return err
			}
			continue // not there yet at that time
		}
		row, err := r.row()
		if err != nil {
			return err
		}
		if !row.Deleted {
			if more, err := fn(doc, row); err != nil || !more {
				return err
			}
		}
	}
	return r.it.Error()
}

// Count counts the documents of a scan.
func (r *Reader) Count(s *Scan) (n uint64, err error) {
	for _, p := range s.Partitions {
		lower, upper := s.span(p)
		err := r.walk(lower, upper, false, s.At, func([]byte, Row) (bool, error) {
			n++
			return true, nil
		})
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

// A merged scan keeps one lane per partition and fills it a few documents at a
// time with the one iterator: the number of open iterators does not grow with
// the number of partitions, and neither does what is kept of large documents.
const (
	laneRows      = 16
	laneBytes     = 16 << 10
	laneBodyBytes = 4 << 10 // larger bodies are fetched when their turn comes
)

type laneRow struct {
	id      string
	row     Row
	hasBody bool
}

type lane struct {
	partition    placement.PartitionID
	lower, upper []byte // what is not read yet
	rows         []laneRow
	next         int
	done         bool
}

// Merge walks over the scan's documents of all partitions in order of ID, and
// calls fn until it answers false; more says whether anything was left then.
// The bodies are fn's to keep. A hint of how many documents are wanted keeps
// lanes from reading ahead too far; 0 means many.
func (r *Reader) Merge(s *Scan, hint int, noBody bool, fn func(p placement.PartitionID, id string, row Row) (more bool)) (more bool, err error) {
	per := laneRows
	if hint > 0 && len(s.Partitions) > 0 {
		per = min(per, hint/len(s.Partitions)+1)
	}
	lanes := make([]lane, len(s.Partitions))
	h := laneHeap{reverse: s.Reverse}
	for i, p := range s.Partitions {
		l := &lanes[i]
		l.partition = p
		l.lower, l.upper = s.span(p)
		if err := r.fill(s, l, per, noBody); err != nil {
			return false, err
		}
		if len(l.rows) > 0 {
			h.push(l)
		}
	}
	for len(h.lanes) > 0 {
		l := h.lanes[0]
		lr := &l.rows[l.next]
		if !noBody && !lr.hasBody {
			if err := r.body(s, l, lr); err != nil {
				return false, err
			}
		}
		goOn := fn(l.partition, lr.id, lr.row)
		lr.row.Body = nil
		if l.next++; l.next == len(l.rows) {
			if err := r.fill(s, l, per, noBody); err != nil {
				return false, err
			}
		}
		if l.next < len(l.rows) {
			h.fix()
		} else {
			h.pop()
		}
		if !goOn {
			return len(h.lanes) > 0, nil
		}
	}
	return false, nil
}

// fill reads a lane's next documents.
func (r *Reader) fill(s *Scan, l *lane, rows int, noBody bool) error {
	l.rows, l.next = l.rows[:0], 0
	if l.done {
		return nil
	}
	l.done = true // unless it stops before the end
	size := 0
	return r.walk(l.lower, l.upper, s.Reverse, s.At, func(doc []byte, row Row) (bool, error) {
		id, err := decodeID(doc[docHeader : len(doc)-2])
		if err != nil {
			return false, err
		}
		lr := laneRow{id: id, row: row}
		switch {
		case noBody:
			lr.row.Body = nil
		case len(row.Body) <= laneBodyBytes:
			lr.row.Body = append(make([]byte, 0, len(row.Body)), row.Body...)
			lr.hasBody = true
			size += len(row.Body)
		default:
			lr.row.Body = nil
		}
		l.rows = append(l.rows, lr)
		if len(l.rows) < rows && size < laneBytes {
			return true, nil
		}
		l.done = false
		if s.Reverse {
			l.upper = append(l.upper[:0], doc...)
		} else {
			l.lower = immediateSuccessor(l.lower[:0], doc)
		}
		return false, nil
	})
}

// body fetches a large body.
func (r *Reader) body(s *Scan, l *lane, lr *laneRow) error {
	doc := AppendDocument(nil, s.Group, l.partition, s.Collection, lr.id)
	row, found, err := r.AtTime(doc, lr.row.Updated)
	if err != nil {
		return err
	}
	if !found || row.Updated != lr.row.Updated {
		return ErrDamaged // the iterator saw it a moment ago
	}
	lr.row.Body = append(make([]byte, 0, len(row.Body)), row.Body...)
	return nil
}

// laneHeap is a binary heap of lanes by their next ID. IDs are unique across
// partitions, so there are no ties to break.
type laneHeap struct {
	lanes   []*lane
	reverse bool
}

func (h *laneHeap) less(i, j int) bool {
	a, b := h.lanes[i], h.lanes[j]
	if h.reverse {
		a, b = b, a
	}
	return a.rows[a.next].id < b.rows[b.next].id
}

func (h *laneHeap) push(l *lane) {
	h.lanes = append(h.lanes, l)
	for i := len(h.lanes) - 1; i > 0; {
		up := (i - 1) / 2
		if !h.less(i, up) {
			return
		}
		h.lanes[i], h.lanes[up] = h.lanes[up], h.lanes[i]
		i = up
	}
}

// fix restores the order after the first lane moved on.
func (h *laneHeap) fix() {
	for i := 0; ; {
		best := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(h.lanes); c++ {
			if h.less(c, best) {
				best = c
			}
		}
		if best == i {
			return
		}
		h.lanes[i], h.lanes[best] = h.lanes[best], h.lanes[i]
		i = best
	}
}

// pop removes the first lane.
func (h *laneHeap) pop() {
	last := len(h.lanes) - 1
	h.lanes[0] = h.lanes[last]
	h.lanes = h.lanes[:last]
	if last > 0 {
		h.fix()
	}
}
