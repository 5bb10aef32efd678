package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// validate says why a part of a transaction cannot be: something that it read
// is not the newest any more, or another holds what it needs.
func (a *applier) validate(p placement.PartitionID, part *txn.Part, self txn.ID) (*txn.Conflict, error) {
	for i := range part.Reads {
		r := &part.Reads[i]
		if h := a.m.held.intentOn(p, r.Collection, r.ID, self); h != nil {
			return heldBy(h, r.Collection, r.ID), nil
		}
		if no := a.notDropped(r.Collection); no != nil {
			return no, nil
		}
		row, live, err := a.newest(p, r.Collection, r.ID)
		if err != nil {
			return nil, err
		}
		if no := differs(r, &row, live); no != nil {
			return no, nil
		}
	}
	for i := range part.Ranges {
		r := &part.Ranges[i]
		if h, id := a.m.held.intentIn(p, r, self); h != nil {
			return heldBy(h, r.Collection, id), nil
		}
		if no := a.notDropped(r.Collection); no != nil {
			return no, nil
		}
		if r.At < a.view.horizons[r.Collection] {
			return tooOld(r), nil
		}
		id, found, err := a.youngerIn(p, r)
		if err != nil {
			return nil, err
		}
		if found && !mutant.On(mutant.RangesUnvalidated) {
			return &txn.Conflict{Code: wire.CodeTxnConflict, Collection: r.Collection, ID: id, Detail: "was written since the range around it was read"}, nil
		}
	}
	for i := range part.Writes {
		w := &part.Writes[i]
		if h := a.m.held.blocksOther(p, w.Collection, w.ID, self); h != nil && !mutant.On(mutant.LocksUnlooked) {
			return heldBy(h, w.Collection, w.ID), nil
		}
		if no := a.notDropped(w.Collection); no != nil {
			return no, nil
		}
	}
	return nil, nil
}

func heldBy(h *held, c placement.CollectionID, id string) *txn.Conflict {
	return &txn.Conflict{Code: wire.CodeTxnConflict, Collection: c, ID: id, Rival: h.id}
}

// differs says that a document that was read is another now.
func differs(r *txn.Read, row *mvcc.Row, live bool) *txn.Conflict {
	var detail string
	switch {
	case !live && r.At == 0 || live && row.Updated == r.At:
		return nil
	case mutant.On(mutant.ReadsUnvalidated) && r.At != 0, mutant.On(mutant.AbsenceUnvalidated) && r.At == 0:
		return nil
	case !live:
		detail = "was deleted since it was read"
	case r.At == 0:
		detail = "was created since it was not found"
	default:
		detail = "was written since it was read"
	}
	return &txn.Conflict{Code: wire.CodeTxnConflict, Collection: r.Collection, ID: r.ID, Version: row.Version, Detail: detail}
}

func tooOld(r *txn.Range) *txn.Conflict {
	return &txn.Conflict{Code: wire.CodeTxnConflict, Collection: r.Collection, ID: r.Prefix, Range: true, Detail: "was read longer ago than the retention window"}
}

func (a *applier) notDropped(c placement.CollectionID) *txn.Conflict {
	if a.view.isDropped(c) {
		return &txn.Conflict{Code: wire.CodeCollectionNotFound, Collection: c}
	}
	return nil
}

// newest is the head of a document's newest version, and whether it is live.
func (a *applier) newest(p placement.PartitionID, c placement.CollectionID, id string) (mvcc.Row, bool, error) {
	a.key = mvcc.AppendDocument(a.key[:0], a.m.group, p, c, id)
	before, inBatch := a.docs[string(a.key)]
	row, found, _, err := a.current(wire.OpPut, before, inBatch)
	return row, found && !row.Deleted, err
}

// rangeSpan is the keys of a range: [start, end).
func rangeSpan(g placement.GroupID, p placement.PartitionID, r *txn.Range) (start, end []byte) {
	start = mvcc.AppendID(mvcc.AppendCollection(nil, g, p, r.Collection), r.Prefix)
	end = mvcc.AppendEnd(nil, start)
	if from := mvcc.AppendDocument(nil, g, p, r.Collection, r.From); r.From != "" && bytes.Compare(from, start) > 0 {
		start = from
	}
	if r.To != "" {
		// The terminator ends an ID, and is below the escape: so this is behind
		// all versions of To and before the next ID.
		to := mvcc.AppendDocument(nil, g, p, r.Collection, r.To)
		to[len(to)-1]++
		if bytes.Compare(to, end) < 0 {
			end = to
		}
	}
	return start, end
}

// youngerIn finds a document of the range that was written after the range was
// read, in what is stored and in what the batch has written.
func (a *applier) youngerIn(p placement.PartitionID, r *txn.Range) (id string, found bool, err error) {
	start, end := rangeSpan(a.m.group, p, r)
	var first []byte
	for key, doc := range a.docs {
		k := []byte(key)
		if doc.newest.Updated > r.At && bytes.Compare(k, start) >= 0 && bytes.Compare(k, end) < 0 && (first == nil || bytes.Compare(k, first) < 0) {
			first = k
		}
	}
	reader, err := a.read()
	if err != nil {
		return "", false, err
	}
	stored, err := reader.Younger(start, end, r.At)
	if err != nil {
		return "", false, err
	}
	if first == nil || stored != nil && bytes.Compare(stored, first) < 0 {
		first = stored
	}
	if first == nil {
		return "", false, nil
	}
	k, err := mvcc.DecodeDocument(mvcc.AppendTime(first, 0)[groupBytes:])
	return k.ID, true, err
}

// intents makes the versions that a part will write, as of ts; or says which
// operation does not fit.
func (a *applier) intents(p placement.PartitionID, part *txn.Part, ts hlc.Timestamp) ([]txn.Intent, *txn.Conflict, error) {
	if len(part.Writes) == 0 {
		return nil, nil, nil
	}
	out := make([]txn.Intent, 0, len(part.Writes))
	var seen map[docRef]struct{}
	if len(part.Writes) > 1 {
		seen = make(map[docRef]struct{}, len(part.Writes))
	}
	for i := range part.Writes {
		w := &part.Writes[i]
		if _, twice := seen[docRef{p, w.Collection, w.ID}]; twice {
			return nil, &txn.Conflict{Code: wire.CodeBadRequest, Collection: w.Collection, ID: w.ID, Detail: "is named twice"}, nil
		}
		if seen != nil {
			seen[docRef{p, w.Collection, w.ID}] = struct{}{}
		}
		n, no, err := a.intent(p, w, ts)
		if no != nil || err != nil {
			return nil, no, err
		}
		out = append(out, n)
	}
	return out, nil, nil
}

func (a *applier) intent(p placement.PartitionID, w *txn.Write, ts hlc.Timestamp) (txn.Intent, *txn.Conflict, error) {
	n := txn.Intent{Collection: w.Collection, ID: w.ID}
	refuse := func(code wire.Code, version uint64, detail string) (txn.Intent, *txn.Conflict, error) {
		if len(detail) > maxAnswerDetail {
			detail = strings.ToValidUTF8(detail[:maxAnswerDetail], "")
		}
		return n, &txn.Conflict{Code: code, Collection: w.Collection, ID: w.ID, Version: version, Detail: detail}, nil
	}
	if w.ID == "" || !utf8.ValidString(w.ID) {
		return refuse(wire.CodeBadID, 0, fmt.Sprintf("an ID is 1 to %d bytes of UTF-8", wire.MaxIDBytes))
	}
	look := wire.OpPut
	for i := range w.Ops {
		if op := w.Ops[i].Op; op == wire.OpUpdate || op == wire.OpUpsert {
			look = op
		}
	}
	a.key = mvcc.AppendDocument(a.key[:0], a.m.group, p, w.Collection, w.ID)
	before, inBatch := a.docs[string(a.key)]
	current, found, _, err := a.current(look, before, inBatch)
	if err != nil {
		return n, nil, err
	}
	limit := int(w.MaxBytes)
	if limit == 0 {
		limit = wire.DefaultDocumentSize
	}
	limit = min(limit, wire.MaxDocumentBytes)
	was := found && !current.Deleted
	live, version, body := was, current.Version, []byte(nil)
	if was {
		n.Created = current.Created
		body = bytes.Clone(current.Body) // the engine's memory
	}
	for i := range w.Ops {
		o := &w.Ops[i]
		if no := conditions(&wire.WriteItem{Op: o.Op, Cond: o.Cond, IfVersion: o.IfVersion}, live, version); no != nil {
			if unique.IsEntries(w.Collection) {
				no, err := a.notUnique(p, w, no)
				return n, no, err
			}
			return refuse(no.code, no.version, no.detail)
		}
		switch o.Op {
		case wire.OpPut, wire.OpInsert:
			if len(o.Body) == 0 {
				return refuse(wire.CodeBadDocument, 0, "a write without a document")
			}
			body = o.Body
		case wire.OpUpdate, wire.OpUpsert:
			old := body
			if !live {
				old = nil
			}
			changed, no := evaluate(old, o.Body, ts, limit)
			if no != nil {
				return refuse(no.code, no.version, no.detail)
			}
			body = changed
		}
		if live = o.Op != wire.OpDelete; !live {
			body, n.Created = nil, 0
		}
		version = current.Version + 1
		if len(body) > limit {
			return refuse(wire.CodeDocumentTooLarge, 0, oversize(body, limit).detail)
		}
	}
	n.Version, n.Body = current.Version+1, body
	n.Deleted = !live
	if n.Nothing = !live && !was; n.Nothing {
		n.Version, n.Deleted = 0, false
	}
	return n, nil, nil
}

// notUnique says of a write of an entry, which was refused, what that means.
func (a *applier) notUnique(p placement.PartitionID, w *txn.Write, no *refusal) (*txn.Conflict, error) {
	c := &txn.Conflict{Code: wire.CodeDuplicateValue, Collection: w.Collection, ID: w.ID}
	if no.code != wire.CodeAlreadyExists {
		c.Code, c.Detail = wire.CodeInternal, "a unique value of the document has no entry (run idb check)"
		return c, nil
	}
	a.key = mvcc.AppendDocument(a.key[:0], a.m.group, p, w.Collection, w.ID)
	before, inBatch := a.docs[string(a.key)]
	row, _, _, err := a.current(wire.OpUpdate, before, inBatch) // with its body
	if err != nil {
		return nil, err
	}
	c.Detail, _ = unique.Holder(row.Body)
	return c, nil
}

// realise turns intents into versions at c. Nobody can have written between
// the making of an intent and this: it was locked, or it is the same entry.
func (a *applier) realise(p placement.PartitionID, intents []txn.Intent, c hlc.Timestamp) error {
	for i := range intents {
		n := &intents[i]
		if n.Nothing {
			continue
		}
		if a.view.isDropped(n.Collection) {
			continue // since it was prepared; its documents are gone
		}
		a.key = mvcc.AppendDocument(a.key[:0], a.m.group, p, n.Collection, n.ID)
		before, inBatch := a.docs[string(a.key)]
		current, found, size, err := a.current(wire.OpPut, before, inBatch)
		if err != nil {
			return err
		}
		if found && current.Updated >= c {
			return fmt.Errorf("transaction at %d: partition %d holds a version of %q at %d that its lock should have kept out: %w", c, p, n.ID, current.Updated, ErrDamaged)
		}
		next := mvcc.Row{Version: n.Version, Created: n.Created, Updated: c, Deleted: n.Deleted, Body: n.Body}
		if next.Created == 0 {
			next.Created = c
		}
		a.install(countKey{p, n.Collection}, n.ID, &next, prior{found: found, live: found && !current.Deleted, size: size, pending: before, inBatch: inBatch, late: c < a.meta.clock})
	}
	return nil
}

// Verify says whether everything that was read in these partitions is still
// the newest; nil if it is. What prepared transactions are about to change is
// for the caller to ask about first (IntentsOn, IntentsIn).
func (m *Machine) Verify(parts []PartitionPart, epoch placement.Epoch) (no *txn.Conflict, err error) {
	if mutant.On(mutant.NewestUnverified) {
		return nil, nil
	}
	r, err := m.reader()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	v := m.view.Load()
	for i := range parts {
		p := &parts[i]
		if err := m.check(p.Partition, epoch); err != nil {
			return nil, err
		}
		for j := range p.Part.Reads {
			read := &p.Part.Reads[j]
			if err := m.readable(read.Collection); err != nil {
				return nil, err
			}
			row, found, err := r.Newest(mvcc.AppendDocument(nil, m.group, p.Partition, read.Collection, read.ID))
			if err != nil {
				return nil, err
			}
			if no := differs(read, &row, found && !row.Deleted); no != nil {
				return no, nil
			}
		}
		for j := range p.Part.Ranges {
			rg := &p.Part.Ranges[j]
			if err := m.readable(rg.Collection); err != nil {
				return nil, err
			}
			if rg.At < v.horizons[rg.Collection] {
				return tooOld(rg), nil
			}
			start, end := rangeSpan(m.group, p.Partition, rg)
			doc, err := r.Younger(start, end, rg.At)
			if err != nil {
				return nil, err
			}
			if doc != nil {
				k, err := mvcc.DecodeDocument(mvcc.AppendTime(doc, 0)[groupBytes:])
				return &txn.Conflict{Code: wire.CodeTxnConflict, Collection: rg.Collection, ID: k.ID, Detail: "was written since the range around it was read"}, err
			}
		}
	}
	return nil, nil
}
