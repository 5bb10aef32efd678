package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/impossibledb/idb/fsm/mvcc"
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
// its tombstones, as long as they are kept.
func (m *Machine) TxnTraces(time uint64, random []byte) (out []TxnTrace, err error) {
	r, err := m.reader()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	// The keys of one ID prefix lie together: | header | time | random | .
	span := func(head []byte, fn func(random [16]byte, value []byte) error) error {
		start := append(binary.BigEndian.AppendUint64(slices.Clone(head), time), random...)
		end := append(slices.Clone(start), bytes.Repeat([]byte{0xff}, 17-len(random))...)
		return r.Each(start, end, func(key, value []byte) error {
			return fn([16]byte(key[len(key)-16:]), value)
		})
	}
	for _, p := range m.view.Load().partitions {
		head, _ := mvcc.RequestSpan(m.group, p, 0)
		err := span(head, func(random [16]byte, value []byte) error {
			answer, err := aloneAnswer(value)
			if err != nil {
				return err
			}
			var known Result
			if err := decodeAnswer(answer, &known); err != nil {
				return err
			}
			if known.Wire.Version != 0 || known.Wire.Error != nil {
				return nil // of a single write
			}
			out = append(out, TxnTrace{ID: txn.ID{Time: time, Random: random}, Partition: p, State: txn.Committed, At: hlc.Timestamp(known.Wire.Time)})
			return nil
		})
		for _, role := range [...]mvcc.Role{mvcc.RoleAborted, mvcc.RoleDone} {
			if err != nil {
				break
			}
			head, _ := mvcc.TxnSpan(m.group, p, role, hlc.Max)
			err = span(head, func(random [16]byte, value []byte) error {
				var t txn.Tombstone
				if err := t.Decode(value); err != nil {
					return sameFault(err)
				}
				out = append(out, TxnTrace{ID: txn.ID{Time: time, Random: random}, Partition: p, State: t.State})
				return nil
			})
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
