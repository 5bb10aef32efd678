package fsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// free lets a survey read as fast as it can.
func free(int) error { return nil }

// surveys makes a replica run every mark's survey and keep what it found.
func surveys(r *replica) *[]*Findings {
	found := &[]*Findings{}
	r.onMark = func(index uint64, k Mark, pin func() (*Survey, error)) {
		s, err := pin()
		if err != nil {
			r.t.Fatal(err)
		}
		// Apply's lock is held now, and a survey takes it for a moment.
		r.afterApply = append(r.afterApply, func() {
			f, err := s.Run(context.Background(), free)
			if err = errors.Join(err, s.Close()); err != nil {
				r.t.Fatal(err)
			}
			if f.Index != index {
				r.t.Fatalf("a survey of entry %d says it is of %d", index, f.Index)
			}
			*found = append(*found, f)
		})
	}
	return found
}

// TestSurveysAgree runs one log with marks in it on machines that group it
// differently, and one that goes on before its surveys run: they find the same
// and no fault.
func TestSurveysAgree(t *testing.T) {
	for seed := range uint64(30) {
		w := newWorkload(t, seed)
		together, apart := newReplica(t, nil), newReplica(t, nil)
		foundTogether, foundApart := surveys(together), surveys(apart)
		var waiting []Entry
		marks := 0
		for range 150 {
			e := w.entry(apart)
			if w.rng.IntN(10) == 0 {
				marks++
				k := Mark{ID: [16]byte{byte(marks)}, State: w.rng.IntN(2) == 0, From: placement.PartitionID(w.rng.IntN(2)), To: 3, Bucket: uint32(w.rng.IntN(3))}
				e = mustEntry(t, e.Index, w.write(), Command{Mark: &k}, w.write())
			}
			apart.mustApply(e)
			apart.runSurveys()
			if waiting = append(waiting, e); w.rng.IntN(20) == 0 {
				together.mustApply(waiting...)
				together.runSurveys()
				waiting = nil
			}
		}
		together.mustApply(waiting...)
		together.runSurveys()
		if len(*foundTogether) != marks || len(*foundApart) != marks || marks == 0 {
			t.Fatalf("seed %d: %d marks, surveys %d and %d", seed, marks, len(*foundTogether), len(*foundApart))
		}
		for i, f := range *foundApart {
			if !reflect.DeepEqual(f, (*foundTogether)[i]) {
				t.Fatalf("seed %d, mark %d: found\n%+v\nand\n%+v", seed, i, f, (*foundTogether)[i])
			}
			if f.FaultsFound != 0 {
				t.Fatalf("seed %d, mark %d: %+v", seed, i, f.Faults)
			}
		}
		together.verify()
	}
}

// planted is a replica with two documents of two versions, and one remembered
// answer per write.
func planted(t *testing.T) *replica {
	r := newReplica(t, nil)
	r.mustApply(mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{1, 2}}}))
	for i, id := range []string{"ada", "bob", "ada", "bob"} {
		w := &Write{Partition: placement.PartitionID(1 + i%2), Epoch: 1, Collection: 5, Item: wire.WriteItem{
			RequestID: request(100+uint64(i), uint64(i)), Op: wire.OpPut, ID: id, Body: body(t, fmt.Sprintf(`{"n":%d}`, i)),
		}}
		r.mustApply(mustEntry(t, uint64(2+i), Command{Time: hlc.Timestamp(100 + i), Write: w}))
	}
	r.mustApply(mustEntry(t, 6, Command{Horizon: &Horizon{RequestIDs: 50, History: []HistoryHorizon{{Collection: 5, At: 60}}}}))
	return r
}

// look is the survey of everything, now.
func (r *replica) look(index uint64, bucket uint32) *Findings {
	r.t.Helper()
	found := surveys(r)
	r.mustApply(mustEntry(r.t, index, Command{Mark: &Mark{State: true, To: 1 << 20, Bucket: bucket}}))
	r.runSurveys()
	if len(*found) != 1 {
		r.t.Fatalf("%d surveys", len(*found))
	}
	return (*found)[0]
}

// TestSurveyFaults plants what must never be and sees it named.
func TestSurveyFaults(t *testing.T) {
	doc := func(p placement.PartitionID, c placement.CollectionID, id string, ts hlc.Timestamp) []byte {
		return mvcc.AppendTime(mvcc.AppendDocument(nil, testGroup, p, c, id), ts)
	}
	row := func(version uint64, body ...byte) []byte {
		return mvcc.AppendRow(nil, &mvcc.Row{Version: version, Created: 100, Body: body})
	}
	var random [16]byte
	for _, tc := range []struct {
		name  string
		plant func(b *mvcc.Batch) error
		want  string // of the first fault
	}{
		{"nothing", func(*mvcc.Batch) error { return nil }, ""},
		{"a version too many", func(b *mvcc.Batch) error { return b.Set(doc(1, 5, "ada", 101), row(0x7f, 0x80)) }, `p1 c5 "ada": version 127 lies under version 2`},
		{"a document too many", func(b *mvcc.Batch) error { return b.Set(doc(1, 5, "eve", 103), row(1, 0x80)) }, `p1 c5 "": kept counts are 1 documents of 7 bytes in 2 versions, stored are 2 documents of 11 bytes in 3 versions`},
		{"a document lost", func(b *mvcc.Batch) error { return b.Delete(doc(1, 5, "ada", 102)) }, `p1 c5 "": kept counts are 1 documents of 7 bytes in 2 versions, stored are 1 documents of 7 bytes in 1 versions`},
		{"a version from the future", func(b *mvcc.Batch) error { return b.Set(doc(2, 5, "bob", 500), row(9, 0x80)) }, `p2 c5 "bob": version 9 is of 500, above the group's clock 103`},
		{"a body that is no document", func(b *mvcc.Batch) error { return b.Set(doc(2, 5, "bob", 103), row(2, 0x92, 1, 2)) }, `p2 c5 "bob": version 2 is no document`},
		{"a row that cannot be read", func(b *mvcc.Batch) error { return b.Set(doc(2, 5, "bob", 103), []byte{0}) }, `p2 c5 "bob": mvcc: row of 1 bytes: damaged`},
		{"another's partition", func(b *mvcc.Batch) error { return b.Set(doc(7, 5, "x", 100), row(1, 0x80)) }, `p7 c5 "x": a row of a partition that g3 does not own: the version of `},
		{"a document astray", func(b *mvcc.Batch) error { return b.Set(doc(1, 5, "astray", 103), row(1, 0x80)) }, `p1 c5 "astray": the document belongs in partition 2`},
		{"a dropped collection's", func(b *mvcc.Batch) error {
			return errors.Join(b.Set(mvcc.AppendNumbered(nil, testGroup, mvcc.KindDropped, 5), appendSmall(nil)))
		}, `state c0 "": what the replica has in memory (ownership, horizons, dropped collections, applied index) is not what it has stored`},
		{"an old answer", func(b *mvcc.Batch) error {
			return b.Set(mvcc.AppendRequestKey(nil, testGroup, 1, 40, &random), appendAnswer([]byte{smallFormat}, &Result{}, false))
		}, `p1 c0 "": the answer to request 000000000000002800000000000000000000000000000000 is remembered, though its time 40 is below the horizon 50`},
		{"an answer from the future", func(b *mvcc.Batch) error {
			return b.Set(mvcc.AppendRequestKey(nil, testGroup, 1, 400, &random), appendAnswer([]byte{smallFormat}, &Result{}, false))
		}, `is remembered, though its time 400 is above the youngest known, 103`},
		{"counts of nothing", func(b *mvcc.Batch) error {
			return b.Set(mvcc.AppendNumbered(nil, testGroup, mvcc.KindCounts, 1, 6), (&counts{docs: 1}).append(nil))
		}, `p1 c6 "": kept counts are 1 documents of 0 bytes in 0 versions, stored is nothing`},
		{"a kind that nobody knows", func(b *mvcc.Batch) error { return b.Set(mvcc.AppendNumbered(nil, testGroup, 0x77, 1), nil) }, `state c0 "": rows of the unknown kind 0x77`},
		{"ownership that memory does not have", func(b *mvcc.Batch) error {
			return b.Set(mvcc.AppendNumbered(nil, testGroup, mvcc.KindOwned, 8), appendSmall(nil, 1))
		}, "what the replica has in memory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := planted(t)
			r.locate = func(_ placement.CollectionID, id string) (placement.PartitionID, bool) {
				return map[bool]placement.PartitionID{true: 1, false: 2}[id == "ada" || id == "eve"], true
			}
			b := r.engine.NewBatch(0)
			if err := errors.Join(tc.plant(b), b.Commit(0), b.Close()); err != nil {
				t.Fatal(err)
			}
			f := r.look(7, 0)
			var got string
			for _, x := range f.Faults {
				p := fmt.Sprintf("p%d", x.Partition)
				if x.Partition == StatePartition {
					p = "state"
				}
				got += fmt.Sprintf("%s c%d %q: %s\n", p, x.Collection, x.ID, x.Text)
			}
			if (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) || uint64(len(f.Faults)) > f.FaultsFound {
				t.Errorf("found %d:\n%s\nwant %s", f.FaultsFound, got, tc.want)
			}
		})
	}
}

// TestSurveyFindsTheRow: two replicas that differ in one row differ in one
// partition and one bucket, whose listings differ in that row.
func TestSurveyFindsTheRow(t *testing.T) {
	good, bad := planted(t), planted(t)
	key := mvcc.AppendTime(mvcc.AppendDocument(nil, testGroup, 2, 5, "bob"), 103)
	b := bad.engine.NewBatch(0)
	err := b.Set(key, mvcc.AppendRow(nil, &mvcc.Row{Version: 2, Created: 101, Body: body(t, `{"n":4}`)}))
	if err = errors.Join(err, b.Commit(0), b.Close()); err != nil {
		t.Fatal(err)
	}
	x, y := good.look(7, 0), bad.look(7, 0)
	bucket := -1
	for i := range x.Partitions {
		p, q := &x.Partitions[i], &y.Partitions[i]
		if (p.Sum == q.Sum) != (p.Partition != 2) {
			t.Errorf("partition %d: equal %v", p.Partition, p.Sum == q.Sum)
		}
		for j := range p.Buckets {
			if p.Buckets[j] != q.Buckets[j] {
				if bucket >= 0 {
					t.Error("more than one bucket differs")
				}
				bucket = j
			}
		}
	}
	if bucket < 0 {
		t.Fatal("no bucket differs")
	}
	x, y = good.look(8, uint32(bucket)+1), bad.look(8, uint32(bucket)+1)
	if len(x.Rows) != len(y.Rows) {
		t.Fatalf("%d rows and %d", len(x.Rows), len(y.Rows))
	}
	differ := 0
	for i := range x.Rows {
		if !bytes.Equal(x.Rows[i].Key, y.Rows[i].Key) {
			t.Fatalf("keys %x and %x", x.Rows[i].Key, y.Rows[i].Key)
		}
		if x.Rows[i].Sum != y.Rows[i].Sum {
			if differ++; !bytes.Equal(x.Rows[i].Key, key[4:]) {
				t.Errorf("key %x differs", x.Rows[i].Key)
			}
		}
	}
	if differ != 1 {
		t.Errorf("%d rows differ", differ)
	}
}

// TestSurveyStops: a survey ends when it is told to, and one of too many
// partitions does not begin.
func TestSurveyStops(t *testing.T) {
	r := newReplica(t, nil)
	own := &Own{Epoch: 1}
	for p := range MaxMarkPartitions + 1 {
		own.Partitions = append(own.Partitions, placement.PartitionID(p))
	}
	r.mustApply(mustEntry(t, 1, Command{Own: own}))
	var s *Survey
	r.onMark = func(_ uint64, _ Mark, pin func() (*Survey, error)) {
		var err error
		if s, err = pin(); err != nil {
			t.Fatal(err)
		}
	}
	r.mustApply(mustEntry(t, 2, Command{Mark: &Mark{To: 1 << 20}}))
	if _, err := s.Run(t.Context(), free); err == nil || !strings.Contains(err.Error(), "2049 partitions") {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	big := &Write{Partition: 1, Epoch: 1, Collection: 5, Item: wire.WriteItem{
		RequestID: request(9, 9), Op: wire.OpPut, ID: "big", Body: body(t, `{"x":"`+strings.Repeat("y", paceBytes)+`"}`),
	}}
	r.mustApply(mustEntry(t, 3, Command{Time: 9, Write: big}), mustEntry(t, 4, Command{Mark: &Mark{From: 1, To: 2}}))
	stop := errors.New("stop")
	if _, err := s.Run(t.Context(), func(n int) error {
		if n < paceBytes {
			t.Errorf("paced at %d bytes", n)
		}
		return stop
	}); !errors.Is(err, stop) {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func everyFinding() *Findings {
	f := &Findings{
		Index:       9,
		Partitions:  []PartitionSum{{Partition: 3, Rows: 300, Sum: 1 << 63}, {Partition: StatePartition, Rows: 1}},
		Collections: []CollectionStats{{Collection: 5, Documents: 1, Bytes: 1 << 40, Rows: 3}},
		Requests:    7, Owned: []placement.PartitionID{3, 270}, RequestsAt: 50,
		HistoryAt: []HistoryHorizon{{Collection: 5, At: 60}},
		Rows:      []RowSum{{Key: []byte{1, 2, 3}, Sum: 4}}, Cut: true,
		Faults:      []Fault{{Partition: 3, Collection: 5, ID: "é", Text: "why"}},
		FaultsFound: 1000,
	}
	f.Partitions[0].Buckets[255] = 8
	return f
}

func TestFindingsRoundTrip(t *testing.T) {
	want := everyFinding()
	b := want.Append(nil)
	got, err := DecodeFindings(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	for n := range b {
		if _, err := DecodeFindings(b[:n]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("the first %d of %d bytes: %v", n, len(b), err)
		}
	}
	b[0] = 2
	if _, err := DecodeFindings(b); !errors.Is(err, ErrNewer) {
		t.Error(err)
	}
}

func FuzzDecodeFindings(f *testing.F) {
	f.Add(everyFinding().Append(nil))
	f.Add((&Findings{}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := DecodeFindings(b)
		if err != nil {
			return
		}
		again, err := DecodeFindings(x.Append(nil))
		if err != nil || !reflect.DeepEqual(x, again) {
			t.Fatalf("%+v came back as %+v, %v", x, again, err)
		}
	})
}
