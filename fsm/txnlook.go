package fsm

import (
	"bytes"
	"cmp"
	"errors"
	"slices"

	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// What this file answers is for those who look at transactions. It says what is
// applied here and no more.

// HeldDocument is something that a prepared transaction holds: a document it is
// about to write, one it has read, or a range.
type HeldDocument struct {
	Collection placement.CollectionID
	ID         string // of a range: its prefix
	From, To   string // of a range
	Write      bool
	Range      bool
}

// Held is what a prepared transaction holds at one partition, at most so much:
// first what it writes, then what it has read.
func (m *Machine) Held(p placement.PartitionID, id txn.ID, most int) []HeldDocument {
	m.locks.mu.RLock()
	h := m.locks.table.prepared[txnKey{p, id}]
	m.locks.mu.RUnlock()
	if h == nil {
		return nil
	}
	var out []HeldDocument
	for i := range h.rec.Intents {
		out = append(out, HeldDocument{Collection: h.rec.Intents[i].Collection, ID: h.rec.Intents[i].ID, Write: true})
	}
	for i := range h.rec.Reads {
		out = append(out, HeldDocument{Collection: h.rec.Reads[i].Collection, ID: h.rec.Reads[i].ID})
	}
	for i := range h.rec.Ranges {
		r := &h.rec.Ranges[i]
		out = append(out, HeldDocument{Collection: r.Collection, ID: r.Prefix, From: r.From, To: r.To, Range: true})
	}
	return out[:min(len(out), most)]
}

// TxnTrace is what is left of a transaction at one partition that holds nothing
// for it any more.
type TxnTrace struct {
	ID        txn.ID
	Partition placement.PartitionID
	// State is Committed (by the answer kept under its ID; this is its home),
	// Aborted (home too), Done or Refused (a participant).
	State txn.State
	At    hlc.Timestamp // of Committed
}

// TxnTraces finds what is left of the transaction whose ID has this time and
// whose random part begins so, in all partitions of this group: its answer and
// its ends, as long as they are kept.
func (m *Machine) TxnTraces(time uint64, random []byte) (out []TxnTrace, err error) {
	// The tail before the rows: what leaves the one is in the others.
	young, requests := m.toldAll()
	if hlc.Timestamp(time) < requests {
		return nil, nil
	}
	r, err := m.reader()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	note := func(k requestKey, answer []byte) bool {
		if err != nil || k.time() != time || !bytes.HasPrefix(k[12:], random) {
			return err == nil
		}
		x := TxnTrace{ID: txn.ID{Time: time, Random: [16]byte(k[12:])}, Partition: k.partition()}
		if subjectOf(answer) == ofRequest {
			var known Result
			if err = decodeAnswer(answer, &known); known.Wire.Version != 0 || known.Wire.Error != nil {
				return err == nil // of a single write
			}
			x.State, x.At = txn.Committed, hlc.Timestamp(known.Wire.Time)
		} else {
			x.State, err = decodeEnd(answer)
		}
		if err == nil && !slices.Contains(out, x) { // it may have been sealed meanwhile
			out = append(out, x)
		}
		return err == nil
	}
	for in := (tailReader{b: young}); len(in.b) > 0; {
		var k requestKey
		answer := in.answer(nil, &k)
		note(k, answer)
	}
	for _, p := range m.view.Load().partitions {
		err = errors.Join(err, sealedAnswers(r, m.group, p, time, note))
	}
	slices.SortFunc(out, func(a, b TxnTrace) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), -cmp.Compare(a.At, b.At), bytes.Compare(a.ID.Random[:], b.ID.Random[:]), cmp.Compare(a.State, b.State))
	})
	return out, err
}
