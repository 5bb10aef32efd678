package fsm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/cespare/xxhash/v2"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// Bounds of a survey's findings.
const (
	// Buckets is how many sums a partition's rows are spread over, so that a
	// difference is found by listing a small part of them.
	Buckets = 256
	// MaxFaults is how many faults one survey names; it counts the others.
	MaxFaults = 16
	// MaxRowSums is how many rows a listing has at most.
	MaxRowSums = 50_000
	// maxSurveyCollections bounds the collections that are listed.
	maxSurveyCollections = 20_000
	// sampledGets is how many documents of a collection in a partition are also
	// read one by one.
	sampledGets = 64
	// countsHeld is how many kept counts are compared with their rows in one go.
	countsHeld = 64
)

// StatePartition stands for the rows that belong to no partition.
const StatePartition = placement.PartitionID(math.MaxUint32)

// Survey is a group's state at the end of one entry, kept to be added up while
// the machine goes on. It pins tables and memory tables, so it is run soon and
// closed. Run is called once, by one goroutine.
type Survey struct {
	Mark  Mark
	Index uint64

	m    *Machine
	meta meta
	view *view
	scan *mvcc.Reader // walks
	get  *mvcc.Reader // looks documents up, in the same state
}

// mark tells OnMark of an entry's marks.
func (m *Machine) mark(index uint64, commands []Command) {
	if m.onMark == nil {
		return
	}
	for i := range commands {
		if k := commands[i].Mark; k != nil {
			m.onMark(index, *k, func() (*Survey, error) { return m.survey(index, *k) })
		}
	}
}

// survey pins the state. Apply is under way, so nothing is written meanwhile.
func (m *Machine) survey(index uint64, k Mark) (*Survey, error) {
	scan, err := m.engine.NewReader(m.group, false)
	if err != nil {
		return nil, err
	}
	get, err := m.engine.NewReader(m.group, false)
	if err != nil {
		return nil, errors.Join(err, scan.Close())
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return &Survey{Mark: k, Index: index, m: m, meta: m.meta, view: m.view.Load(), scan: scan, get: get}, nil
}

// Close lets go of the state.
func (s *Survey) Close() error { return errors.Join(s.scan.Close(), s.get.Close()) }

// Findings are what a survey found. Between replicas everything but Faults
// must be equal.
type Findings struct {
	Index      uint64 // of the mark's entry
	Partitions []PartitionSum
	// Collections are what the partitions hold, added up over them, in order.
	Collections []CollectionStats
	Requests    uint64 // answers that are remembered
	Owned       []placement.PartitionID
	RequestsAt  hlc.Timestamp    // the horizon of request IDs
	HistoryAt   []HistoryHorizon // and of histories; with Mark.State

	// Rows are the bucket that Mark.Bucket asks for, in order of their keys.
	// Cut says that there were more than MaxRowSums.
	Rows []RowSum
	Cut  bool

	// Faults are what is wrong with this replica by itself.
	Faults      []Fault
	FaultsFound uint64 // those named included
}

// PartitionSum adds up one partition's rows.
type PartitionSum struct {
	Partition placement.PartitionID // or StatePartition
	Rows      uint64
	Sum       uint64          // of all rows in their order
	Buckets   [Buckets]uint64 // of the rows in each, whatever their order
}

// RowSum is one row of a listing.
type RowSum struct {
	Key []byte // without the group
	Sum uint64
}

// Fault is something that no correct replica has.
type Fault struct {
	Partition  placement.PartitionID // StatePartition: of none
	Collection placement.CollectionID
	ID         string
	Text       string
}

// run is the work of one Run.
type run struct {
	*Survey
	ctx  context.Context
	pace func(bytes int) error
	out  *Findings
	read int // bytes since pace was called

	part   *PartitionSum
	stats  map[placement.CollectionID]*CollectionStats
	byPart map[countKey]counts // of the partition that is walked
}

// paceBytes is how often pace is called, and rowCharge what a row counts for
// beside its bytes: with small rows it is the processor that is used up.
const (
	paceBytes = 256 << 10
	rowCharge = 512
)

// Run adds the rows up and checks what can be checked in one replica. pace is
// called with the bytes read since its last call; it may wait, and its error
// ends the run.
func (s *Survey) Run(ctx context.Context, pace func(bytes int) error) (*Findings, error) {
	r := &run{Survey: s, ctx: ctx, pace: pace, out: &Findings{Index: s.Index}, stats: map[placement.CollectionID]*CollectionStats{}}
	if s.Mark.State {
		if err := r.state(); err != nil {
			return nil, err
		}
	}
	r.out.RequestsAt = s.meta.requests
	inside := 0
	for _, p := range s.view.partitions {
		if p >= s.Mark.From && p < s.Mark.To {
			inside++
		}
	}
	if inside > MaxMarkPartitions {
		return nil, fmt.Errorf("fsm: a mark of %d partitions, at most %d can be compared at once", inside, MaxMarkPartitions)
	}
	for _, p := range s.view.partitions {
		if p < s.Mark.From || p >= s.Mark.To {
			continue
		}
		r.out.Owned = append(r.out.Owned, p)
		if err := r.partition(p); err != nil {
			return nil, err
		}
	}
	for _, c := range r.stats {
		r.out.Collections = append(r.out.Collections, *c)
	}
	sortCollections(r.out.Collections)
	if len(r.out.Collections) > maxSurveyCollections {
		r.out.Collections = r.out.Collections[:maxSurveyCollections]
	}
	return r.out, nil
}

// fault notes what is wrong.
func (r *run) fault(p placement.PartitionID, c placement.CollectionID, id, format string, args ...any) {
	r.out.FaultsFound++
	if len(r.out.Faults) < MaxFaults {
		r.out.Faults = append(r.out.Faults, Fault{Partition: p, Collection: c, ID: id, Text: fmt.Sprintf(format, args...)})
	}
}

// begin starts a partition's sum, end finishes it.
func (r *run) begin(p placement.PartitionID) { r.part = &PartitionSum{Partition: p} }

func (r *run) end() {
	r.out.Partitions = append(r.out.Partitions, *r.part)
	r.part = nil
}

// row takes one row in. Versions of one document share a bucket.
func (r *run) row(key, value []byte) error {
	if err := r.took(rowCharge + len(key) + len(value)); err != nil {
		return err
	}
	rest := key[groupBytes:]
	var d xxhash.Digest
	d.Reset()
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(len(rest)))
	_, _ = d.Write(n[:])
	_, _ = d.Write(rest)
	_, _ = d.Write(value)
	sum := d.Sum64()
	r.part.Rows++
	r.part.Sum = r.part.Sum*0x9e3779b185ebca87 + sum
	whole := rest
	if mvcc.Kind(rest[0]) == mvcc.KindDocument && len(rest) > 8 {
		whole = rest[:len(rest)-8]
	}
	bucket := xxhash.Sum64(whole) % Buckets
	r.part.Buckets[bucket] += sum
	if r.Mark.Bucket != 0 && uint64(r.Mark.Bucket-1) == bucket {
		if len(r.out.Rows) < MaxRowSums {
			r.out.Rows = append(r.out.Rows, RowSum{Key: bytes.Clone(rest), Sum: sum})
		} else {
			r.out.Cut = true
		}
	}
	return nil
}

// took counts what was read and waits if that is too much.
func (r *run) took(n int) error {
	if r.read += n; r.read < paceBytes {
		return nil
	}
	n, r.read = r.read, 0
	if err := r.ctx.Err(); err != nil {
		return err
	}
	return r.pace(n)
}

// state takes the rows that belong to no partition, compares them with the
// machine's memory, and looks for keys that belong to nobody.
func (r *run) state() error {
	r.begin(StatePartition)
	rows := newView()
	var stored meta
	var n uint32
	var v uint64
	for _, kind := range []mvcc.Kind{mvcc.KindTail, mvcc.KindOwned, mvcc.KindDropped, mvcc.KindHorizon} {
		start, end := mvcc.KindSpan(r.m.group, kind)
		err := r.scan.Each(start, end, func(key, value []byte) error {
			var err error
			switch kind {
			case mvcc.KindTail:
				var t tailRow
				if err = t.decode(value); err == nil && t.applied > stored.applied {
					stored = t.meta
				}
			case mvcc.KindOwned:
				err = errors.Join(mvcc.DecodeNumbered(key, &n), decodeSmall("ownership", value, &v))
				rows.own(placement.PartitionID(n), placement.Epoch(v))
			case mvcc.KindDropped:
				err = errors.Join(mvcc.DecodeNumbered(key, &n), decodeSmall("dropped", value))
				rows.dropped[placement.CollectionID(n)] = struct{}{}
			case mvcc.KindHorizon:
				err = errors.Join(mvcc.DecodeNumbered(key, &n), decodeSmall("horizon", value, &v))
				rows.horizons[placement.CollectionID(n)] = hlc.Timestamp(v)
			}
			if err != nil {
				r.fault(StatePartition, 0, "", "key %x cannot be read: %v", key[groupBytes:], err)
			}
			return r.row(key, value)
		})
		if err != nil {
			return err
		}
	}
	r.end()
	if stored != r.meta || !rows.equal(r.view) {
		r.fault(StatePartition, 0, "", "what the replica has in memory (ownership, horizons, dropped collections, applied index) is not what it has stored")
	}
	if r.meta.clock > r.meta.ceiling {
		r.fault(StatePartition, 0, "", "the clock %d is above the ceiling %d", r.meta.clock, r.meta.ceiling)
	}
	for c, at := range r.view.horizons {
		r.out.HistoryAt = append(r.out.HistoryAt, HistoryHorizon{Collection: c, At: at})
		if r.view.isDropped(c) {
			r.fault(StatePartition, c, "", "a history horizon of a dropped collection")
		}
	}
	sortHorizons(r.out.HistoryAt)
	return r.strangers()
}

// equal compares what rows say.
func (v *view) equal(o *view) bool {
	if len(v.since) != len(o.since) || len(v.dropped) != len(o.dropped) || len(v.horizons) != len(o.horizons) {
		return false
	}
	for p, e := range v.since {
		if at, ok := o.since[p]; !ok || at != e {
			return false
		}
	}
	for c := range v.dropped {
		if _, ok := o.dropped[c]; !ok {
			return false
		}
	}
	for c, at := range v.horizons {
		if o.horizons[c] != at {
			return false
		}
	}
	return true
}

// strangers jumps over the group's keys, and finds those of partitions that
// the group does not own and of kinds that are not known.
func (r *run) strangers() error {
	start, _ := mvcc.GroupSpan(r.m.group)
	for key := start; ; {
		found, err := r.scan.First(key)
		if err != nil || found == nil {
			return err
		}
		if err := r.took(len(found)); err != nil {
			return err
		}
		kind := mvcc.Kind(found[groupBytes])
		switch kind {
		case mvcc.KindTail, mvcc.KindOwned, mvcc.KindDropped, mvcc.KindHorizon:
			_, key = mvcc.KindSpan(r.m.group, kind)
		case mvcc.KindDocument, mvcc.KindRequest, mvcc.KindAnswers, mvcc.KindCounts, mvcc.KindTxn:
			if len(found) < groupBytes+1+4 {
				r.fault(StatePartition, 0, "", "malformed key %x", found[groupBytes:])
				key = append(bytes.Clone(found), 0)
				continue
			}
			p := placement.PartitionID(binary.BigEndian.Uint32(found[groupBytes+1:]))
			if _, owned := r.view.since[p]; !owned {
				k := DescribeKey(found[groupBytes:])
				r.fault(p, k.Collection, k.ID, "a row of a partition that %s does not own: %s", r.m.group, k.What)
			}
			if p == math.MaxUint32 {
				_, key = mvcc.KindSpan(r.m.group, kind)
			} else {
				key = mvcc.AppendNumbered(nil, r.m.group, kind, uint32(p)+1)
			}
		default:
			r.fault(StatePartition, 0, "", "rows of the unknown kind %#x (key %x)", byte(kind), found[groupBytes:])
			_, key = mvcc.KindSpan(r.m.group, kind)
		}
	}
}

// partition takes one partition's rows: counts, documents, requests. The mark
// has sealed the group's tail, so none of it is elsewhere.
func (r *run) partition(p placement.PartitionID) error {
	r.begin(p)
	r.byPart = map[countKey]counts{}
	g := r.m.group
	kept := map[countKey]counts{}
	span := func(k mvcc.Kind) (start, end []byte) {
		start = mvcc.AppendNumbered(nil, g, k, uint32(p))
		return start, mvcc.AppendEnd(nil, start)
	}
	start, end := span(mvcc.KindCounts)
	err := r.scan.Each(start, end, func(key, value []byte) error {
		var q, c uint32
		var n counts
		if err := errors.Join(mvcc.DecodeNumbered(key, &q, &c), n.decode(value)); err != nil {
			r.fault(p, 0, "", "kept counts %x cannot be read: %v", key[groupBytes:], err)
		}
		kept[countKey{p, placement.CollectionID(c)}] = n
		return r.row(key, value)
	})
	if err != nil {
		return err
	}
	if err := r.documents(p); err != nil {
		return err
	}
	start, end = span(mvcc.KindRequest)
	err = r.scan.Each(start, end, func(key, value []byte) error {
		r.request(p, key, value)
		return r.row(key, value)
	})
	if err != nil {
		return err
	}
	start, end = span(mvcc.KindAnswers)
	err = r.scan.Each(start, end, func(key, value []byte) error {
		r.answers(p, key, value)
		return r.row(key, value)
	})
	if err != nil {
		return err
	}
	start, end = span(mvcc.KindTxn)
	err = r.scan.Each(start, end, func(key, value []byte) error {
		r.txn(p, key, value)
		return r.row(key, value)
	})
	if err != nil {
		return err
	}
	for k, n := range r.byPart {
		if kept[k] != n {
			r.fault(p, k.collection, "", "kept counts are %s, stored are %s", kept[k], n)
		}
	}
	for k, n := range kept {
		if _, there := r.byPart[k]; !there {
			r.fault(p, k.collection, "", "kept counts are %s, stored is nothing", n)
		}
	}
	if err := r.walkAgain(p); err != nil {
		return err
	}
	r.end()
	return r.memory(p, kept)
}

// txn looks at one record of a transaction.
func (r *run) txn(p placement.PartitionID, key, value []byte) {
	_, role, time, random, err := mvcc.DecodeTxnKey(key)
	id := txn.ID{Time: time, Random: random}
	var at hlc.Timestamp
	if err == nil {
		switch role {
		case mvcc.RolePrepared:
			var rec txn.PreparedRecord
			err = rec.Decode(value)
			at = rec.At
		case mvcc.RoleCommitted:
			var rec txn.CommittedRecord
			err = rec.Decode(value)
			at = rec.At
		}
	}
	switch {
	case err != nil:
		r.fault(p, 0, "", "a transaction's record cannot be read: %v", err)
	case at > r.meta.clock:
		r.fault(p, 0, "", "the record of transaction %s is of %s, the clock is at %s", id, at, r.meta.clock)
	}
}

func (c counts) String() string {
	return fmt.Sprintf("%d documents of %d bytes in %d versions", c.docs, c.bytes, c.rows)
}

// documents takes the partition's documents with all their versions.
func (r *run) documents(p placement.PartitionID) error {
	start := mvcc.AppendNumbered(nil, r.m.group, mvcc.KindDocument, uint32(p))
	var (
		last  []byte // the document of the version before, as a key
		above mvcc.Row
		gets  = map[placement.CollectionID]int{}
	)
	return r.scan.Each(start, mvcc.AppendEnd(nil, start), func(key, value []byte) error {
		if err := r.row(key, value); err != nil {
			return err
		}
		k, err := mvcc.DecodeDocument(key[groupBytes:])
		if err != nil {
			r.fault(p, 0, "", "%v", err)
			return nil
		}
		row, err := mvcc.DecodeRow(value)
		if err != nil {
			r.fault(p, k.Collection, k.ID, "%v", err)
			return nil
		}
		row.Updated = k.Time
		doc := key[:len(key)-8]
		newest := !bytes.Equal(doc, last)
		r.version(p, &k, &row, newest, &above)
		above = row
		above.Body = nil
		if !newest {
			return nil
		}
		last = append(last[:0], doc...)
		if gets[k.Collection]++; gets[k.Collection] > sampledGets {
			return nil
		}
		return r.getAgain(p, &k, &row, last)
	})
}

// version checks one version of a document, and counts it.
func (r *run) version(p placement.PartitionID, k *mvcc.DocumentKey, row *mvcc.Row, newest bool, above *mvcc.Row) {
	if r.view.isDropped(k.Collection) {
		r.fault(p, k.Collection, k.ID, "version %d of a document of a dropped collection", row.Version)
	}
	if r.m.locate != nil {
		if home, known := r.m.locate(k.Collection, k.ID); known && home != p && newest {
			r.fault(p, k.Collection, k.ID, "the document belongs in partition %d", home)
		}
	}
	switch {
	case row.Updated > r.meta.clock:
		r.fault(p, k.Collection, k.ID, "version %d is of %d, above the group's clock %d", row.Version, row.Updated, r.meta.clock)
	case row.Created > row.Updated:
		r.fault(p, k.Collection, k.ID, "version %d was created after it was written", row.Version)
	case !newest && row.Version >= above.Version:
		r.fault(p, k.Collection, k.ID, "version %d lies under version %d", row.Version, above.Version)
	}
	if !row.Deleted {
		if err := doc.CheckBody(row.Body, doc.Limits{MaxBytes: wire.MaxDocumentBytes, MaxDepth: wire.MaxDepth}); err != nil {
			r.fault(p, k.Collection, k.ID, "version %d is no document: %v", row.Version, err)
		}
	}
	ck := countKey{p, k.Collection}
	n := r.byPart[ck]
	n.rows++
	st := r.stats[k.Collection]
	if st == nil {
		st = &CollectionStats{Collection: k.Collection}
		r.stats[k.Collection] = st
	}
	st.Rows++
	if newest && !row.Deleted {
		size := uint64(len(k.ID) + len(row.Body))
		n.docs++
		n.bytes += size
		st.Documents++
		st.Bytes += size
	}
	r.byPart[ck] = n
}

// getAgain reads a document the way a get does, and compares.
func (r *run) getAgain(p placement.PartitionID, k *mvcc.DocumentKey, walked *mvcc.Row, doc []byte) error {
	got, found, err := r.get.Newest(doc)
	switch {
	case errors.Is(err, ErrDamaged), errors.Is(err, ErrNewer):
		r.fault(p, k.Collection, k.ID, "a get fails: %v", err)
	case err != nil:
		return err
	case !found:
		r.fault(p, k.Collection, k.ID, "a walk finds version %d, a get finds nothing", walked.Version)
	case got.Version != walked.Version || got.Updated != walked.Updated || got.Deleted != walked.Deleted || !bytes.Equal(got.Body, walked.Body):
		r.fault(p, k.Collection, k.ID, "a walk finds version %d, a get finds version %d (or another content)", walked.Version, got.Version)
	}
	return nil
}

// walkAgain counts the partition's documents the way a scan does.
func (r *run) walkAgain(p placement.PartitionID) error {
	for k, n := range r.byPart {
		spec := mvcc.Scan{Group: r.m.group, Partitions: []placement.PartitionID{p}, Collection: k.collection}
		live, err := r.get.Count(&spec)
		switch {
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrNewer):
			r.fault(p, k.collection, "", "a scan fails: %v", err)
		case err != nil:
			return err
		case live != n.docs:
			r.fault(p, k.collection, "", "a scan finds %d documents, gets find %d", live, n.docs)
		}
		if err := r.took(int(min(n.bytes, paceBytes))); err != nil { // it was read a moment ago
			return err
		}
	}
	return nil
}

// request checks one answer that is remembered in a row of its own.
func (r *run) request(p placement.PartitionID, key, value []byte) {
	if len(key) != mvcc.RequestKeyLen {
		r.out.Requests++
		r.fault(p, 0, "", "malformed request ID %x", key[groupBytes:])
		return
	}
	k := requestKey(key[groupBytes+1:])
	if hlc.Timestamp(k.time()) < r.meta.requests {
		r.fault(p, 0, "", "the answer to request %x is remembered, though its time %d is below the horizon %d", k[4:], k.time(), r.meta.requests)
	}
	answer, err := aloneAnswer(value)
	if err != nil {
		r.fault(p, 0, "", "the answer to request %x: %v", k[4:], err)
	}
	r.answer(p, &k, answer)
}

// answers checks a row of sealed ones. Some of them may be below the horizon:
// the row goes when all are.
func (r *run) answers(p placement.PartitionID, key, value []byte) {
	_, last, first, index, err := mvcc.DecodeAnswersKey(key)
	switch {
	case err != nil:
		r.fault(p, 0, "", "malformed key %x", key[groupBytes:])
		return
	case hlc.Timestamp(last) < r.meta.requests:
		r.fault(p, 0, "", "answers are remembered though the last of them, of %d, is below the horizon %d", last, r.meta.requests)
	case index > r.meta.applied:
		r.fault(p, 0, "", "answers sealed by entry %d, which is not applied", index)
	}
	n := 0
	var lo, hi uint64
	err = eachAnswer(p, value, func(k requestKey, answer []byte) error {
		if n++; n == 1 {
			lo = k.time()
		}
		lo, hi = min(lo, k.time()), max(hi, k.time())
		r.answer(p, &k, answer)
		return nil
	})
	switch {
	case err != nil:
		r.fault(p, 0, "", "key %x: %v", key[groupBytes:], err)
	case n == 0 || lo != first || hi != last:
		r.fault(p, 0, "", "key %x: there are %d answers from %d to %d", key[groupBytes:], n, lo, hi)
	}
}

// answer checks one answer and counts it, if it is not below the horizon; or the
// end of a transaction, which does not count.
func (r *run) answer(p placement.PartitionID, k *requestKey, answer []byte) {
	request := subjectOf(answer) == ofRequest
	if hlc.Timestamp(k.time()) >= r.meta.requests && request {
		r.out.Requests++
	}
	if k.time() > r.meta.youngest {
		r.fault(p, 0, "", "the answer to request %x is remembered, though its time %d is above the youngest known, %d", k[4:], k.time(), r.meta.youngest)
	}
	var err error
	if request {
		var known Result
		err = decodeAnswer(answer, &known)
	} else {
		_, err = decodeEnd(answer)
	}
	if err != nil {
		r.fault(p, 0, "", "the answer to request %x: %v", k[4:], err)
	}
}

// memory compares the counts that reads are answered from with what is stored
// now. Apply waits for each step, which is short.
func (r *run) memory(p placement.PartitionID, kept map[countKey]counts) error {
	keys := make([]countKey, 0, len(kept))
	for k := range kept {
		keys = append(keys, k)
	}
	for len(keys) > 0 {
		n := min(len(keys), countsHeld)
		if err := r.memoryOf(p, keys[:n]); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

func (r *run) memoryOf(p placement.PartitionID, keys []countKey) (err error) {
	m := r.m
	m.applyMu.Lock()
	defer m.applyMu.Unlock()
	if m.Err() != nil {
		return nil // what a halted machine has in memory is of no use to anyone
	}
	now, err := m.reader()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, now.Close()) }()
	_, rows, err := readTail(now, m.group)
	if err != nil {
		return err
	}
	young := map[countKey]counts{} // not sealed
	for i := range rows {
		err := rows[i].each(func(k countKey, c counts) { young[k] = c }, func(requestKey, []byte) error { return nil }, func(txnRow, []byte) error { return nil })
		if err != nil {
			return err
		}
	}
	for _, k := range keys {
		if have, ok := young[k]; ok {
			if have != m.counts[k] {
				r.fault(p, k.collection, "", "counts in memory are %s, kept are %s", m.counts[k], have)
			}
			continue
		}
		b, found, err := now.Get(mvcc.AppendNumbered(nil, m.group, mvcc.KindCounts, uint32(k.partition), uint32(k.collection)))
		if err != nil {
			return err
		}
		var stored counts
		if found {
			if err := stored.decode(b); err != nil {
				r.fault(p, k.collection, "", "%v", err)
				continue
			}
		}
		if have := m.counts[k]; have != stored { // only Apply and Install change the map
			r.fault(p, k.collection, "", "counts in memory are %s, kept are %s", have, stored)
		}
	}
	return nil
}

// KeyNames is what a row's key says.
type KeyNames struct {
	Collection placement.CollectionID // 0: none
	ID         string                 // of a document
	What       string                 // for people
}

// DescribeKey takes a key without its group apart, whatever it is.
func DescribeKey(rest []byte) KeyNames {
	var p, c uint32
	if len(rest) == 0 {
		return KeyNames{What: "an empty key"}
	}
	whole := append(make([]byte, groupBytes, groupBytes+len(rest)), rest...)
	switch mvcc.Kind(rest[0]) {
	case mvcc.KindTail:
		return KeyNames{What: "what one of the last entries left: the group's clock, horizons and digest, counts, answers, transactions' records"}
	case mvcc.KindOwned:
		if mvcc.DecodeNumbered(whole, &p) == nil {
			return KeyNames{What: fmt.Sprintf("the ownership of partition %d", p)}
		}
	case mvcc.KindDropped:
		if mvcc.DecodeNumbered(whole, &c) == nil {
			return KeyNames{Collection: placement.CollectionID(c), What: "the note that the collection was dropped"}
		}
	case mvcc.KindHorizon:
		if mvcc.DecodeNumbered(whole, &c) == nil {
			return KeyNames{Collection: placement.CollectionID(c), What: "the collection's history horizon"}
		}
	case mvcc.KindCounts:
		if mvcc.DecodeNumbered(whole, &p, &c) == nil {
			return KeyNames{Collection: placement.CollectionID(c), What: "the kept counts"}
		}
	case mvcc.KindDocument:
		if k, err := mvcc.DecodeDocument(rest); err == nil {
			return KeyNames{Collection: k.Collection, ID: k.ID, What: "the version of " + k.Time.String()}
		}
	case mvcc.KindRequest:
		if len(whole) == mvcc.RequestKeyLen {
			return KeyNames{What: fmt.Sprintf("the answer to request %x of %s", rest[13:], hlc.Timestamp(binary.BigEndian.Uint64(rest[5:])))}
		}
	case mvcc.KindAnswers:
		if _, last, first, _, err := mvcc.DecodeAnswersKey(whole); err == nil {
			return KeyNames{What: fmt.Sprintf("the answers to requests, and ends of transactions, of %s to %s", hlc.Timestamp(first), hlc.Timestamp(last))}
		}
	case mvcc.KindTxn:
		if _, role, time, random, err := mvcc.DecodeTxnKey(whole); err == nil {
			what := [...]string{"", "what is prepared of", "the commit of"}
			return KeyNames{What: fmt.Sprintf("%s transaction %s", what[role], txn.ID{Time: time, Random: random})}
		}
	}
	return KeyNames{What: fmt.Sprintf("key %x", rest)}
}
