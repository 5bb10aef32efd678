package fsm

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// TestReadersBesideWriter reads in every way while entries are applied,
// flushed, exported and replaced. Two documents are written by every entry
// with the same number: a read at one timestamp must find them equal, and
// whoever has seen an applied index must find what it did. Short documents are
// read from memory, where they are remembered; the long ones are not.
func TestReadersBesideWriter(t *testing.T) {
	t.Run("long", func(t *testing.T) { readersBesideWriter(t, 1000, 300) })
	t.Run("short", func(t *testing.T) { readersBesideWriter(t, 10, 3000) })
}

func readersBesideWriter(t *testing.T, words int, last uint64) {
	r := newReplica(t, nil)
	twin := newReplica(t, nil) // gets the same entries; its snapshots are installed in r
	text := strings.Repeat("a commit takes its time ", words)
	key := func(id string) ReadKey { return ReadKey{Partition: 1, Epoch: 1, Collection: 1, ID: id} }
	entry := func(n uint64) Entry {
		if n == 1 {
			return mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{1}}})
		}
		var cs []Command
		for i, id := range []string{"a", "b"} {
			cs = append(cs, Command{Time: hlc.Timestamp(10*n + uint64(i)), Write: &Write{Partition: 1, Epoch: 1, Collection: 1, Item: wire.WriteItem{
				Op: wire.OpPut, ID: id, RequestID: request(n, 2*n+uint64(i)), Body: body(t, fmt.Sprintf(`{"n":%d,"text":%q}`, n, text)),
			}}})
		}
		return mustEntry(t, n, cs...)
	}
	for n := uint64(1); n <= 3; n++ {
		r.mustApply(entry(n))
		twin.mustApply(entry(n))
	}

	var stop atomic.Bool
	var bg sync.WaitGroup
	fail := make(chan error, 8)
	reader := func(read func() error) {
		bg.Go(func() {
			for !stop.Load() {
				if err := read(); err != nil {
					fail <- err
					return
				}
			}
		})
	}
	for range 2 {
		reader(func() error {
			seen := r.Applied()
			d, err := r.Get(key("b"), At{}, false)
			if err != nil {
				return err
			}
			if d.UpdatedAt < 10*seen { // b of entry n is at 10n+1
				return fmt.Errorf("applied %d was seen, then b of %d", seen, d.UpdatedAt/10)
			}
			return nil
		})
	}
	reader(func() error {
		at := r.Clock()
		var seen []uint64
		err := r.GetMany([]ReadKey{key("a"), key("b")}, At{Time: at}, true, func(i int, d wire.Document, err error) {
			if err == nil {
				seen = append(seen, d.UpdatedAt-uint64(i))
			}
		})
		if err != nil || len(seen) != 2 || seen[0] != seen[1] || seen[0]+1 != uint64(at) {
			return fmt.Errorf("at %d: written at %v, %v", at, seen, err)
		}
		return nil
	})
	reader(func() error {
		at := r.Clock()
		docs, _, _, err := r.Scan(ScanSpec{Collection: 1, At: at})
		if err != nil {
			return err
		}
		if len(docs) != 2 || string(docs[0].Body) != string(docs[1].Body) {
			return fmt.Errorf("at %d: %+v", at, docs)
		}
		if n, _, err := r.Count(1); err != nil || n != 2 {
			return fmt.Errorf("counted %d, %v", n, err)
		}
		s := r.Stats()
		if s.Documents != 2 || s.Rows != 2*(s.Applied-1) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	reader(func() error {
		seen := r.Applied()
		if on, err := r.Flush(); err != nil || on < seen {
			return fmt.Errorf("flushed %d after %d, %v", on, seen, err)
		}
		x, err := r.Snapshot()
		if err != nil {
			return err
		}
		size, err := x.Size()
		if err == nil {
			var n int64
			n, err = x.WriteTo(discard{})
			if n != size {
				err = errors.Join(err, fmt.Errorf("announced %d bytes, wrote %d", size, n))
			}
		}
		return errors.Join(err, x.Close())
	})

	for n := uint64(4); n <= last; n++ {
		twin.mustApply(entry(n))
		if n%(last/6) == 0 { // r is behind by one and gets a snapshot instead
			copyTo(t, twin, r)
		} else {
			r.mustApply(entry(n))
		}
	}
	stop.Store(true)
	bg.Wait()
	close(fail)
	for err := range fail {
		t.Error(err)
	}
	if a, b := r.rows(), twin.rows(); a != b {
		t.Error(diff(a, b))
	}
	if m, err := r.Engine().Metrics(); err != nil || (m.NewestHits > 0) != (words < 100) {
		t.Errorf("%d reads were answered from memory, %v", m.NewestHits, err)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// TestAnswersAreCopies: what a read answers is the caller's, and not a window
// into the engine's memory.
func TestAnswersAreCopies(t *testing.T) {
	r := newReplica(t, nil)
	k := ReadKey{Partition: 1, Epoch: 1, Collection: 1, ID: "a"}
	want := body(t, `{"text":"what was written"}`)
	r.mustApply(
		mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{1}}}),
		mustEntry(t, 2, Command{Write: &Write{Partition: 1, Epoch: 1, Collection: 1, Item: wire.WriteItem{Op: wire.OpPut, ID: "a", RequestID: request(1, 1), Body: want}}}),
	)
	spoil := func(d wire.Document, err error) {
		t.Helper()
		if err != nil || string(d.Body) != string(want) {
			t.Fatalf("%q, %v", d.Body, err)
		}
		clear(d.Body)
	}
	for range 2 { // from a memory table, then from a table
		for range 2 {
			spoil(r.Get(k, At{}, false))
			spoil(r.Get(k, At{Version: 1}, false))
			spoil(r.Get(k, At{Time: r.Clock()}, false))
			docs, _, err := r.History(k, 0, 0, false)
			spoil(docs[0], err)
			docs, _, _, err = r.Scan(ScanSpec{Collection: 1})
			spoil(docs[0], err)
		}
		if _, err := r.Flush(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEffectAndIndexAreOne looks at the rows themselves beside a writer. An
// effect and the applied index that says it was made lie in one storage batch:
// whatever state of the engine a flush or a snapshot catches, no document is
// newer than the clock beside the applied index. (A crash between two batches
// would leave an effect that the log makes again.)
func TestEffectAndIndexAreOne(t *testing.T) {
	r := newReplica(t, nil)
	r.mustApply(mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{1}}}))
	doc := mvcc.AppendDocument(nil, testGroup, 1, 1, "a")
	var stop atomic.Bool
	var bg sync.WaitGroup
	looks := 0
	look := func() error {
		rd, err := r.engine.NewReader(testGroup, false)
		if err != nil {
			return err
		}
		at, err := readMeta(rd, testGroup)
		if err != nil {
			return errors.Join(err, rd.Close())
		}
		row, found, err := rd.Newest(doc)
		if err == nil && found && row.Updated > at.clock {
			err = fmt.Errorf("a version written at %d lies beside applied index %d, whose clock is at %d: two batches", row.Updated, at.applied, at.clock)
		}
		return errors.Join(err, rd.Close())
	}
	bg.Go(func() {
		for !stop.Load() {
			if err := look(); err != nil {
				t.Error(err)
				return
			}
			looks++
		}
	})
	for n := uint64(2); n < 20_000 && !t.Failed(); n++ {
		r.mustApply(mustEntry(t, n, Command{Time: hlc.Timestamp(n), Write: &Write{Partition: 1, Epoch: 1, Collection: 1, Item: wire.WriteItem{
			Op: wire.OpPut, ID: "a", RequestID: request(n, n), Body: body(t, `{}`),
		}}}))
	}
	stop.Store(true)
	bg.Wait()
	if looks < 100 && !t.Failed() {
		t.Errorf("only %d looks beside 20,000 entries", looks)
	}
}
