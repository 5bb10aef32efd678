package fsm

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// Findings go from node to node as
//
//	| version u8 = 1 | index |
//	| n | (partition, rows, sum u64, buckets 256 x u64) ... |
//	| n | (collection, documents, bytes, versions) ... |
//	| requests | n | owned partition ... |
//	| horizon of requests u64 | n | (collection, horizon u64) ... |
//	| n | (length, key, sum u64) ... | cut u8 |
//	| n | (partition, collection, length, id, length, text) ... | faults found |
//
// Numbers are uvarints, or big endian where a width is given.
const findingsVersion = 1

// MaxMarkPartitions is how many partitions one mark may take: their sums have
// to fit into one answer.
const MaxMarkPartitions = 2048

const (
	partitionSumBytes = 8 + 8*Buckets // and two numbers
	maxFaultText      = 4 << 10
)

// Append appends the findings' bytes.
func (f *Findings) Append(dst []byte) []byte {
	n := func(v uint64) { dst = binary.AppendUvarint(dst, v) }
	fixed := func(v uint64) { dst = binary.BigEndian.AppendUint64(dst, v) }
	text := func(s string) {
		s = s[:min(len(s), maxFaultText)]
		n(uint64(len(s)))
		dst = append(dst, s...)
	}
	dst = append(dst, findingsVersion)
	n(f.Index)
	n(uint64(len(f.Partitions)))
	for i := range f.Partitions {
		p := &f.Partitions[i]
		n(uint64(p.Partition))
		n(p.Rows)
		fixed(p.Sum)
		for _, b := range p.Buckets {
			fixed(b)
		}
	}
	n(uint64(len(f.Collections)))
	for _, c := range f.Collections {
		n(uint64(c.Collection))
		n(c.Documents)
		n(c.Bytes)
		n(c.Rows)
	}
	n(f.Requests)
	n(uint64(len(f.Owned)))
	for _, p := range f.Owned {
		n(uint64(p))
	}
	fixed(uint64(f.RequestsAt))
	n(uint64(len(f.HistoryAt)))
	for _, h := range f.HistoryAt {
		n(uint64(h.Collection))
		fixed(uint64(h.At))
	}
	n(uint64(len(f.Rows)))
	for _, r := range f.Rows {
		n(uint64(len(r.Key)))
		dst = append(dst, r.Key...)
		fixed(r.Sum)
	}
	if f.Cut {
		dst = append(dst, 1)
	} else {
		dst = append(dst, 0)
	}
	n(uint64(len(f.Faults)))
	for _, x := range f.Faults {
		n(uint64(x.Partition))
		n(uint64(x.Collection))
		text(x.ID)
		text(x.Text)
	}
	n(f.FaultsFound)
	return dst
}

// DecodeFindings reads them back. Keys are copied.
func DecodeFindings(b []byte) (*Findings, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("fsm: empty findings: %w", ErrDamaged)
	}
	if b[0] != findingsVersion {
		if b[0] > findingsVersion {
			return nil, fmt.Errorf("fsm: findings of version %d: %w", b[0], ErrNewer)
		}
		return nil, fmt.Errorf("fsm: findings of version %d: %w", b[0], ErrDamaged)
	}
	d := entryDecoder{b: b[1:]}
	f := &Findings{Index: d.uvarint()}
	f.Partitions = make([]PartitionSum, d.count(2+partitionSumBytes))
	for i := range f.Partitions {
		p := &f.Partitions[i]
		p.Partition, p.Rows, p.Sum = placement.PartitionID(d.uvarint32()), d.uvarint(), d.u64()
		for j := range p.Buckets {
			p.Buckets[j] = d.u64()
		}
	}
	f.Collections = make([]CollectionStats, d.count(4))
	for i := range f.Collections {
		f.Collections[i] = CollectionStats{
			Collection: placement.CollectionID(d.uvarint32()), Documents: d.uvarint(), Bytes: d.uvarint(), Rows: d.uvarint(),
		}
	}
	f.Requests = d.uvarint()
	f.Owned = make([]placement.PartitionID, d.count(1))
	for i := range f.Owned {
		f.Owned[i] = placement.PartitionID(d.uvarint32())
	}
	f.RequestsAt = hlc.Timestamp(d.u64())
	f.HistoryAt = make([]HistoryHorizon, d.count(9))
	for i := range f.HistoryAt {
		f.HistoryAt[i] = HistoryHorizon{Collection: placement.CollectionID(d.uvarint32()), At: hlc.Timestamp(d.u64())}
	}
	f.Rows = make([]RowSum, d.count(9))
	for i := range f.Rows {
		f.Rows[i] = RowSum{Key: slices.Clone(d.bytes(maxKeyLength)), Sum: d.u64()}
	}
	f.Cut = d.u8() == 1
	f.Faults = make([]Fault, d.count(4))
	for i := range f.Faults {
		f.Faults[i] = Fault{
			Partition: placement.PartitionID(d.uvarint32()), Collection: placement.CollectionID(d.uvarint32()),
			ID: string(d.bytes(maxFaultText)), Text: string(d.bytes(maxFaultText)),
		}
	}
	f.FaultsFound = d.uvarint()
	if d.bad == nil && len(d.b) != 0 {
		d.fail(fmt.Errorf("%d bytes after their end", len(d.b)))
	}
	if d.bad != nil {
		return nil, fmt.Errorf("fsm: findings of %d bytes: %w", len(b), d.bad)
	}
	return f, nil
}

func sortCollections(all []CollectionStats) {
	slices.SortFunc(all, func(a, b CollectionStats) int { return cmp.Compare(a.Collection, b.Collection) })
}

func sortHorizons(all []HistoryHorizon) {
	slices.SortFunc(all, func(a, b HistoryHorizon) int { return cmp.Compare(a.Collection, b.Collection) })
}
