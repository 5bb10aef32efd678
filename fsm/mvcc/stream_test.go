package mvcc

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	pvfs "github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

var updateGolden = flag.Bool("update", false, "rewrite golden files")

func testEngine(t testing.TB, inline bool) *Engine {
	t.Helper()
	e, err := OpenEngine("state", EngineOptions{FS: pvfs.NewMem(), MemTableBytes: 256 << 10, CacheBytes: 1 << 20, InlineValues: inline})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// fill writes versions of documents of up to size bytes.
func fill(t testing.TB, e *Engine, g placement.GroupID, docs, versions, size int, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	for v := range versions {
		b := e.NewBatch(1 << 10)
		for d := range docs {
			body := make([]byte, rng.IntN(size+1))
			for i := range body {
				body[i] = byte(rng.Uint32())
			}
			key := AppendTime(AppendDocument(nil, g, placement.PartitionID(d%7), 1, fmt.Sprintf("doc%05d", d)), hlc.Timestamp(100+v))
			b.SetDocument(key, &Row{Version: uint64(v + 1), Created: 100, Body: body})
		}
		if err := errors.Join(b.Commit(0), b.Close()); err != nil {
			t.Fatal(err)
		}
		if v%3 == 1 {
			if err := e.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func dump(t testing.TB, e *Engine, g placement.GroupID) string {
	t.Helper()
	r, err := e.NewReader(g, false)
	if err != nil {
		t.Fatal(err)
	}
	h := xxhash.New()
	n := 0
	start, end := GroupSpan(g)
	err = r.Each(start, end, func(k, v []byte) error {
		fmt.Fprintf(h, "%x %x\n", k, v)
		n++
		return nil
	})
	if err = errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d rows, %016x", n, h.Sum64())
}

func stream(t testing.TB, e *Engine, g placement.GroupID, applied uint64) []byte {
	t.Helper()
	x, err := e.NewExport(g)
	if err != nil {
		t.Fatal(err)
	}
	x.Applied = applied
	size, err := x.Size()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	n, err := x.WriteTo(&b)
	if err = errors.Join(err, x.Close()); err != nil {
		t.Fatal(err)
	}
	if n != size || int64(b.Len()) != size {
		t.Fatalf("announced %d bytes, wrote %d, %d arrived", size, n, b.Len())
	}
	return b.Bytes()
}

// take imports a stream in pieces of n bytes.
func take(e *Engine, g placement.GroupID, data []byte, n int) (*Imported, error) {
	i, err := e.NewImporter("import", g)
	if err != nil {
		return nil, err
	}
	i.full = 1 << 20 // several tables without much data
	for len(data) > 0 && err == nil {
		n = min(n, len(data))
		_, err = i.Write(data[:n])
		data = data[n:]
	}
	var im *Imported
	if err == nil {
		im, err = i.Finish()
	}
	return im, errors.Join(err, i.Abort())
}

func TestStream(t *testing.T) {
	for _, c := range []struct {
		name                 string
		docs, versions, size int
		inline               bool
	}{
		{"empty", 0, 0, 0, false},
		{"one", 1, 1, 10, false},
		{"many small", 2000, 5, 100, false},
		{"several frames and tables", 100, 8, 15_000, false},
		{"larger than a frame", 3, 3, 400_000, false},
		{"inline values", 300, 8, 4000, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			from, to := testEngine(t, c.inline), testEngine(t, c.inline)
			fill(t, from, 3, c.docs, c.versions, c.size, 1)
			fill(t, from, 4, 50, 2, 100, 2) // another group, which must not be in it
			data := stream(t, from, 3, 77)

			fill(t, to, 2, 100, 3, 500, 3)
			fill(t, to, 3, 400, 9, 500, 4) // is replaced
			fill(t, to, 4, 100, 3, 500, 5)
			below, above := dump(t, to, 2), dump(t, to, 4)
			im, err := take(to, 3, data, 10_000)
			if err != nil {
				t.Fatal(err)
			}
			if c.name == "several frames and tables" && im.tables < 4 {
				t.Fatalf("only %d tables", im.tables)
			}
			if im.Applied != 77 || im.Group != 3 {
				t.Fatalf("%+v", im)
			}
			again, err := OpenImported(im.FS, im.Dir)
			if err != nil || again == nil || *again != *im {
				t.Fatalf("found again as %+v, %v", again, err)
			}
			if err := to.Install(im); err != nil {
				t.Fatal(err)
			}
			if got, want := dump(t, to, 3), dump(t, from, 3); got != want {
				t.Errorf("%s arrived, of %s", got, want)
			}
			if dump(t, to, 2) != below || dump(t, to, 4) != above {
				t.Error("a neighbour was changed")
			}
			if err := to.Check(); err != nil {
				t.Error(err)
			}
			if c.docs == 0 {
				return
			}
			// Readable, and writable on top.
			fill(t, to, 3, c.docs, c.versions+1, c.size, 6)
			if err := to.Flush(); err != nil {
				t.Fatal(err)
			}
			if err := to.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestStreamUndisturbed: an export shows one moment, whatever happens to the
// group meanwhile, its replacement and removal included.
func TestStreamUndisturbed(t *testing.T) {
	e := testEngine(t, false)
	fill(t, e, 3, 300, 4, 500, 1)
	want := stream(t, e, 3, 5)
	x, err := e.NewExport(3)
	if err != nil {
		t.Fatal(err)
	}
	x.Applied = 5
	fill(t, e, 3, 300, 9, 500, 2)
	if err := e.RemoveGroup(3); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, e, 3); got != "0 rows, ef46db3751d8e999" {
		t.Fatalf("after its removal: %s", got)
	}
	fill(t, e, 3, 10, 1, 500, 3)
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := x.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Error("the export shows what came after it")
	}
}

// TestStreamDamaged cuts a stream at every place, and changes every byte of
// it: nothing of that may be taken for a snapshot.
func TestStreamDamaged(t *testing.T) {
	e := testEngine(t, false)
	fill(t, e, 3, 3, 2, 40, 1)
	good := stream(t, e, 3, 77)
	check := func(what string, data []byte) {
		t.Helper()
		im, err := take(e, 3, data, len(data)+1)
		if err == nil {
			t.Fatalf("%s: taken as %+v", what, im)
		}
		if there, err := vfs.Exists(e.FS(), "import"); there || err != nil {
			t.Fatalf("%s: left its directory (%v)", what, err)
		}
	}
	for n := range good {
		check(fmt.Sprintf("%d of %d bytes", n, len(good)), good[:n])
		bad := bytes.Clone(good)
		bad[n] ^= 1 << (n % 8)
		check(fmt.Sprintf("bit flipped in byte %d", n), bad)
	}
	check("a byte more", append(bytes.Clone(good), 0))
	check("twice", append(bytes.Clone(good), good...))
	if _, err := take(e, 4, good, 100); err == nil {
		t.Error("taken for another group")
	}
	newer := bytes.Clone(good)
	newer[len(streamMagic)+3]++
	if _, err := take(e, 3, newer, 100); !errors.Is(err, ErrNewer) {
		t.Error(err)
	}
	if im, err := take(e, 3, good, 1); err != nil || im == nil {
		t.Errorf("the stream itself: %v", err)
	}
}

// frames makes a stream by hand: what sums cannot catch.
func frames(rows ...string) []byte {
	var out bytes.Buffer
	head := append([]byte{}, streamMagic...)
	head = binary.BigEndian.AppendUint32(head, streamVersion)
	head = binary.BigEndian.AppendUint32(head, 3)
	head = binary.BigEndian.AppendUint64(head, 9)
	out.Write(binary.BigEndian.AppendUint64(head, xxhash.Sum64(head)))
	fw := frameWriter{w: &out}
	fw.begin(frameRows)
	for _, r := range rows {
		fw.rows++
		fw.frame = append(fw.frame, r...)
	}
	_ = fw.end()
	n, b, c := fw.rows, fw.bytes, fw.chain
	fw.begin(frameEnd)
	fw.frame = binary.BigEndian.AppendUint64(fw.frame, n)
	fw.frame = binary.BigEndian.AppendUint64(fw.frame, b)
	fw.frame = binary.BigEndian.AppendUint64(fw.frame, c)
	_ = fw.end()
	return out.Bytes()
}

func TestStreamRows(t *testing.T) {
	e := testEngine(t, false)
	for name, c := range map[string]struct {
		rows []string
		ok   bool
	}{
		"in order":     {[]string{"\x01a\x01v", "\x01b\x01v"}, true},
		"out of order": {[]string{"\x01b\x01v", "\x01a\x01v"}, false},
		"twice":        {[]string{"\x01a\x01v", "\x01a\x01v"}, false},
		"empty key":    {[]string{"\x00\x01v"}, false},
		"value short":  {[]string{"\x01a\x05v"}, false},
		"key short":    {[]string{"\x09a"}, false},
		"endless":      {[]string{"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01a"}, false},
	} {
		if _, err := take(e, 3, frames(c.rows...), 1000); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStreamFormat compares with what a released version sends.
func TestStreamFormat(t *testing.T) {
	e := testEngine(t, false)
	b := e.NewBatch(100)
	b.SetDocument(AppendTime(AppendDocument(nil, 3, 1, 2, "a"), 5), &Row{Version: 1, Created: 5, Body: []byte{0x80}})
	if err := b.Set(AppendHeader(nil, 3, KindTail), []byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Commit(0), b.Close()); err != nil {
		t.Fatal(err)
	}
	got := stream(t, e, 3, 77)
	const path = "../../testdata/formats/snapshot-v1.bin"
	if *updateGolden {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the stream has changed; it needs a new version:\n%s", hex.Dump(got))
	}
	to := testEngine(t, false)
	im, err := take(to, 3, want, 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Install(im); err != nil {
		t.Fatal(err)
	}
	if got, want := dump(t, to, 3), dump(t, e, 3); got != want {
		t.Errorf("%s arrived, of %s", got, want)
	}
}

// TestImportCrashes loses power before every operation of an import's end. If
// what vouches for the import survived, so did all of it.
func TestImportCrashes(t *testing.T) {
	source := testEngine(t, false)
	fill(t, source, 3, 40, 2, 300, 1)
	data := stream(t, source, 3, 77)
	want := dump(t, source, 3)

	mem := pvfs.NewCrashableMem()
	var clones []*pvfs.MemFS
	armed := false
	rng := rand.New(rand.NewPCG(1, 2))
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if armed && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			for range 25 {
				clones = append(clones, mem.CrashClone(pvfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng}))
			}
		}
		return nil
	}))
	e, err := OpenEngine("state", EngineOptions{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	i, err := e.NewImporter("import", 3)
	if err != nil {
		t.Fatal(err)
	}
	i.full = 4 << 10
	if _, err := i.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := e.Flush(); err != nil { // nothing of the engine runs beside from here on
		t.Fatal(err)
	}
	armed = true
	if _, err := i.Finish(); err != nil {
		t.Fatal(err)
	}
	armed = false
	clones = append(clones, mem.CrashClone(pvfs.CrashCloneCfg{}))
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	whole := 0
	for n, fs := range clones {
		im, err := OpenImported(fs, "import")
		if err != nil {
			t.Fatalf("%d of %d: %v", n, len(clones), err)
		}
		if im == nil {
			continue
		}
		whole++
		e, err := OpenEngine("state", EngineOptions{FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Install(im); err != nil {
			t.Fatalf("%d of %d: %v", n, len(clones), err)
		}
		if got := dump(t, e, 3); got != want {
			t.Fatalf("%d of %d: %s, want %s", n, len(clones), got, want)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if whole < 2 || whole == len(clones) {
		t.Errorf("%d imports of %d survived: the test does not test", whole, len(clones))
	}
}

func FuzzImporter(f *testing.F) {
	f.Add(frames("\x01a\x01v", "\x01b\x01v"), 7)
	f.Add(frames(), 1)
	fs := pvfs.NewMem()
	e, err := OpenEngine("state", EngineOptions{FS: fs})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = e.Close() })
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		whole, err := take(e, 3, data, len(data)+1)
		pieces, err2 := take(e, 3, data, 1+n&63)
		if (err == nil) != (err2 == nil) || err == nil && *whole != *pieces {
			t.Fatalf("at once: %+v, %v; in pieces: %+v, %v", whole, err, pieces, err2)
		}
	})
}

// TestInstallIsDurable holds back the record of what tables there are: Install
// must not return before it is written.
func TestInstallIsDurable(t *testing.T) {
	source := testEngine(t, false)
	fill(t, source, 3, 40, 2, 300, 1)
	var installing atomic.Bool
	returned := make(chan struct{})
	early := make(chan struct{}, 1)
	mem := pvfs.NewCrashableMem()
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if installing.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && strings.Contains(op.Path, "MANIFEST") {
			select {
			case <-returned:
				select {
				case early <- struct{}{}:
				default:
				}
			case <-time.After(20 * time.Millisecond): // as long as a hasty Install gets to return
			}
		}
		return nil
	}))
	e, err := OpenEngine("state", EngineOptions{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	im, err := take(e, 3, stream(t, source, 3, 77), 1000)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, e, 3, 40, 1, 300, 2) // in the memory table, where it overlaps
	installing.Store(true)
	if err := e.Install(im); err != nil {
		t.Fatal(err)
	}
	installing.Store(false)
	close(returned)
	after := mem.CrashClone(pvfs.CrashCloneCfg{})
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-early:
		t.Error("Install returned before it was durable")
	default:
	}
	e, err = OpenEngine("state", EngineOptions{FS: after})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := dump(t, e, 3), dump(t, source, 3); got != want {
		t.Errorf("after a power loss: %s, want %s", got, want)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOpenCrashes loses power before every operation of creating the engine,
// and of opening it again: it can be opened after that, and has what it had.
func TestOpenCrashes(t *testing.T) {
	mem := pvfs.NewCrashableMem()
	rng := rand.New(rand.NewPCG(1, 2))
	var clones []*pvfs.MemFS
	var filled []bool
	written := false
	var mu sync.Mutex // the engine has goroutines
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			for range 6 {
				clones = append(clones, mem.CrashClone(pvfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng}))
				filled = append(filled, written)
			}
		}
		return nil
	}))
	var want string
	for range 3 {
		e, err := OpenEngine("state", EngineOptions{FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		if !written {
			fill(t, e, 3, 20, 1, 100, 1)
			if err := e.Flush(); err != nil {
				t.Fatal(err)
			}
			want = dump(t, e, 3)
			mu.Lock()
			written = true
			mu.Unlock()
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for n, fs := range clones {
		e, err := OpenEngine("state", EngineOptions{FS: fs})
		if err != nil {
			t.Fatalf("%d of %d: %v", n, len(clones), err)
		}
		if got := dump(t, e, 3); filled[n] && got != want {
			t.Fatalf("%d of %d: %s, want %s", n, len(clones), got, want)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(clones) < 100 {
		t.Errorf("only %d power losses", len(clones))
	}
}

// TestSharedFlush: everyone who asks finds his writes durable.
func TestSharedFlush(t *testing.T) {
	e := testEngine(t, false)
	const callers = 16
	errs := make(chan error, callers)
	for i := range callers {
		go func() {
			g := placement.GroupID(i + 1)
			for n := range 20 {
				b := e.NewBatch(10)
				err := errors.Join(b.Set(AppendTailKey(nil, g, 0), []byte{byte(n)}), b.Commit(0), b.Close(), e.Flush())
				r, err2 := e.DurableReader(g)
				if err2 != nil {
					errs <- err2
					return
				}
				v, found, err2 := r.Get(AppendTailKey(nil, g, 0))
				v = bytes.Clone(v)
				if err = errors.Join(err, err2, r.Close()); err == nil && (!found || v[0] != byte(n)) {
					err = fmt.Errorf("%s: flushed %d, durable is %v", g, n, v)
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range callers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := e.flushes.Load(); n >= callers*20 {
		t.Errorf("%d flushes for %d requests: none was shared", n, callers*20)
	}
}

// TestClosed: a closed engine answers with an error, not with a panic.
func TestClosed(t *testing.T) {
	e, err := OpenEngine("state", EngineOptions{FS: pvfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	b := e.NewBatch(10)
	if err := errors.Join(b.Set(AppendTailKey(nil, 1, 0), nil), e.Close(), e.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = e.NewReader(1, false)
	_, err2 := e.Metrics()
	_, err3 := e.NewExport(1)
	for i, err := range []error{err, err2, err3, b.Commit(0), e.Flush(), e.Check(), e.RemoveGroup(1)} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%d: %v", i, err)
		}
	}
}
