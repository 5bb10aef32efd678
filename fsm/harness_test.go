package fsm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	pvfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/placement"
)

// replica is a machine on an engine in memory.
type replica struct {
	t      testing.TB
	fs     vfs.FS
	opts   mvcc.EngineOptions
	engine *mvcc.Engine
	*Machine

	onMark func(index uint64, k Mark, pin func() (*Survey, error)) // nil: marks are passed over
	locate func(c placement.CollectionID, id string) (placement.PartitionID, bool)

	afterApply []func() // what onMark leaves to be done when Apply has returned
}

// runSurveys does what marks have left to be done.
func (r *replica) runSurveys() {
	for _, f := range r.afterApply {
		f()
	}
	r.afterApply = nil
}

const testGroup placement.GroupID = 3

// newReplica opens a group on a file system; nil makes a new one.
func newReplica(t testing.TB, fs vfs.FS) *replica {
	t.Helper()
	if fs == nil {
		fs = pvfs.NewMem()
	}
	r := &replica{t: t, fs: fs, opts: mvcc.EngineOptions{MemTableBytes: 256 << 10, CacheBytes: 1 << 20}}
	r.open()
	t.Cleanup(r.shut)
	return r
}

// testTail is how many entries a tail has in tests: few, so that all of them
// meet seals.
const testTail = 7

func (r *replica) open() {
	r.t.Helper()
	r.opts.FS = r.fs
	e, err := mvcc.OpenEngine("state", r.opts)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := Open(Options{
		Group: testGroup, Engine: e, TailEntries: testTail,
		OnMark: func(index uint64, k Mark, pin func() (*Survey, error)) {
			if r.onMark != nil {
				r.onMark(index, k, pin)
			}
		},
		Locate: func(c placement.CollectionID, id string) (placement.PartitionID, bool) {
			if r.locate == nil {
				return 0, false
			}
			return r.locate(c, id)
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.engine, r.Machine = e, m
}

func (r *replica) shut() {
	if err := r.engine.Close(); err != nil {
		r.t.Error(err)
	}
}

// rows is everything the group has stored, one line a row.
func (r *replica) rows() string {
	r.t.Helper()
	var sb strings.Builder
	rd, err := r.engine.NewReader(testGroup, false)
	if err != nil {
		r.t.Fatal(err)
	}
	start, end := mvcc.GroupSpan(testGroup)
	err = rd.Each(start, end, func(k, v []byte) error {
		fmt.Fprintf(&sb, "%s %s\n", hex.EncodeToString(k[4:]), hex.EncodeToString(v))
		return nil
	})
	if err = errors.Join(err, rd.Close()); err != nil {
		r.t.Fatal(err)
	}
	return sb.String()
}

// remembers is what a machine has in memory of transactions and of its tail.
func (m *Machine) remembers() string { return describe(&m.tail, &m.held) }

func describe(t *tail, held *lockTable) string {
	var lines []string
	line := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for k, h := range held.prepared {
		line("prepared %d %s %x, of %d bytes", k.partition, k.id, h.rec.Append(nil), h.size)
	}
	for k, c := range held.committed {
		line("committed %d %s %x", k.partition, k.id, c.Append(nil))
	}
	for k := range held.excl {
		line("held %v", k)
	}
	for k, hs := range held.shared {
		line("shared %v by %d", k, 1+len(hs.more))
	}
	for k := range t.records {
		line("in the tail %d %d %s", k.partition, k.role, k.id)
	}
	for k := range t.counts {
		line("counts in the tail %v", k)
	}
	line("%d hold ranges, %d bytes in all; the tail has %d answers (%x) and %d bytes of records", len(held.ranged), held.bytes, t.count, t.answers, t.recordBytes)
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// verify recounts what is kept, and checks what must hold at any time.
func (r *replica) verify() {
	r.t.Helper()
	stored, err := loadMemory(r.engine, testGroup)
	if err != nil {
		r.t.Fatal(err)
	}
	if a, b := describe(&stored.tail, &stored.txns), r.remembers(); a != b {
		r.t.Fatalf("memory is not what is stored: %s", diff(a, b))
	}
	if a, b := r.remembers(), describe(&r.tail, &r.locks.table); a != b {
		r.t.Fatalf("readers see other locks: %s", diff(a, b))
	}
	got := map[countKey]counts{}
	rd, err := r.engine.NewReader(testGroup, false)
	if err != nil {
		r.t.Fatal(err)
	}
	_, parts := r.Owned()
	colls := map[placement.CollectionID]bool{}
	for _, c := range r.Stats().Collections {
		colls[c.Collection] = true
	}
	start, end := mvcc.KindSpan(testGroup, mvcc.KindDocument)
	var last mvcc.DocumentKey
	var above mvcc.Row
	err = rd.Each(start, end, func(k, v []byte) error {
		key, err := mvcc.DecodeDocument(k[4:])
		if err != nil {
			return err
		}
		row, err := mvcc.DecodeRow(v)
		if err != nil {
			return err
		}
		if !slices.Contains(parts, key.Partition) || !colls[key.Collection] {
			return fmt.Errorf("a row of a partition not owned or a collection not counted: %+v", key)
		}
		if key.Time > r.Clock() {
			return fmt.Errorf("%+v is above the clock %d", key, r.Clock())
		}
		newest := key.Partition != last.Partition || key.Collection != last.Collection || key.ID != last.ID
		if !newest && row.Version >= above.Version {
			return fmt.Errorf("%+v: version %d lies under version %d", key, row.Version, above.Version)
		}
		ck := countKey{key.Partition, key.Collection}
		c := got[ck]
		c.rows++
		if newest && !row.Deleted {
			c.docs++
			c.bytes += uint64(len(key.ID) + len(row.Body))
		}
		got[ck] = c
		last, above = key, row
		return nil
	})
	if err = errors.Join(err, rd.Close()); err != nil {
		r.t.Fatal(err)
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for k, c := range r.counts {
		if got[k] != c {
			r.t.Fatalf("%+v: kept %+v, there are %+v", k, c, got[k])
		}
	}
	if len(got) != len(r.counts) {
		r.t.Fatalf("kept counts of %d, there are %d", len(r.counts), len(got))
	}
	if r.meta.clock > r.meta.ceiling {
		r.t.Fatalf("the clock %d is above the ceiling %d", r.meta.clock, r.meta.ceiling)
	}
}

// mustApply applies entries.
func (r *replica) mustApply(entries ...Entry) [][]Result {
	r.t.Helper()
	res, err := r.Apply(entries)
	if err != nil {
		r.t.Fatal(err)
	}
	return res
}

func mustEntry(t testing.TB, index uint64, commands ...Command) Entry {
	t.Helper()
	data, err := AppendEntry(nil, commands)
	if err != nil {
		t.Fatal(err)
	}
	return Entry{Index: index, Term: 1, Data: data}
}

func body(t testing.TB, json string) doc.Raw {
	t.Helper()
	raw, err := doc.FromJSON([]byte(json))
	if err != nil {
		t.Fatalf("%s: %v", json, err)
	}
	return raw
}

// request makes a request ID out of a number.
func request(time uint64, n uint64) wire.RequestID {
	id := wire.RequestID{Time: time}
	for i := range 8 {
		id.Random[i] = byte(n >> (8 * i))
	}
	id.Random[15] = 1
	return id
}

// openWhole opens a machine beside the replica's own, with a tail as a node has.
func (r *replica) openWhole() *Machine {
	r.t.Helper()
	m, err := Open(Options{Group: testGroup, Engine: r.engine})
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// interrupted stops the replica and opens it again (0), or answers a copy of it
// (1), or does nothing.
func (r *replica) interrupted(what int) *replica {
	r.t.Helper()
	switch what {
	case 0:
		r.shut()
		r.open()
	case 1:
		to := newReplica(r.t, nil)
		copyTo(r.t, r, to)
		return to
	}
	return r
}

// copyTo streams a snapshot of from and installs it in to.
func copyTo(t testing.TB, from, to *replica) {
	t.Helper()
	var buf bytes.Buffer
	x, err := from.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	size, err := x.Size()
	if err != nil {
		t.Fatal(err)
	}
	n, err := x.WriteTo(&buf)
	if err = errors.Join(err, x.Close()); err != nil {
		t.Fatal(err)
	}
	if n != size || int64(buf.Len()) != size {
		t.Fatalf("announced %d bytes, wrote %d, %d arrived", size, n, buf.Len())
	}
	imp, err := to.NewImporter("import")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{imp}, struct{ io.Reader }{&buf}, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	im, err := imp.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Install(im); err != nil {
		t.Fatal(err)
	}
	if ok, err := vfs.Exists(to.fs, "import"); err != nil || ok {
		t.Fatalf("the import's directory is still there (%v)", err)
	}
}
