package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	files "github.com/impossibledb/idb/fsm/vfs"
)

// image is a log's directory in memory.
type image map[string][]byte

// imageOf is what a killed process would leave now.
func imageOf(t testing.TB, mem *vfs.MemFS) image {
	t.Helper()
	fs := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	names, err := fs.List("log")
	if err != nil {
		t.Fatal(err)
	}
	m := image{}
	for _, name := range names {
		if name == tempName {
			continue
		}
		b, err := files.ReadFile(fs, "log/"+name, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		m[name] = b
	}
	return m
}

func (m image) fs(t testing.TB) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewCrashableMem()
	if err := fs.MkdirAll("log", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range m {
		f, err := fs.Create("log/"+name, files.Unspecified)
		if err == nil {
			_, err = f.Write(bytes.Clone(b))
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return fs
}

// with is a copy with a change in one file.
func (m image) with(name string, change func([]byte) []byte) image {
	c := image{}
	for n, b := range m {
		c[n] = b
	}
	if b := change(bytes.Clone(m[name])); b == nil {
		delete(c, name)
	} else {
		c[name] = b
	}
	return c
}

// found is a batch in an image.
type found struct {
	file   string
	at     int
	length int // of header and body
	number uint64
	low    uint64
}

func (m image) batches(t testing.TB) (all []found) {
	t.Helper()
	for n := uint64(1); n < 100; n++ {
		name := segmentName(n)
		b := m[name]
		if b == nil {
			continue
		}
		number, salt, err := decodeSegmentHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		for at := block; at < len(b); {
			h, ok, err := decodeBatchHeader(b[at:], seedOf(number, salt))
			if !ok || err != nil {
				break
			}
			all = append(all, found{name, at, batchHeader + int(h.length), h.number, h.low})
			at += int(h.size())
		}
	}
	return all
}

// built is a log of several segments. A crash ends it, so its last batch is one
// of entries.
func built(t testing.TB) image {
	fs := vfs.NewCrashableMem()
	l := open(t, fs, small)
	for i := uint64(1); i <= 40; i++ {
		put(t, l, uint32(i%3), 1+(i-1)/3, 1, int(i*397%6000))
	}
	m := imageOf(t, fs)
	shut(t, l)
	// What is known not to be needed may be damaged.
	all := m.batches(t)
	for n := uint64(1); n < all[len(all)-1].low; n++ {
		delete(m, segmentName(n))
	}
	return m
}

func tryOpen(fs vfs.FS) error {
	l, err := Open(fs, "log", small)
	if err != nil {
		return err
	}
	return l.Close()
}

// A flipped bit anywhere in what is on disk for sure is an error. In the last
// batch it cannot be told from one that was torn, and only that is lost.
func TestFlippedBits(t *testing.T) {
	m := built(t)
	all := m.batches(t)
	if all[len(all)-1].number != all[0].number+uint64(len(all)-1) || all[len(all)-1].file == all[0].file {
		t.Fatalf("%+v", all)
	}
	for i, f := range all {
		if testing.Short() && i%5 != 0 && i < len(all)-2 {
			continue
		}
		for _, at := range []int{0, 4, 5, 8, 11, 13, 17, 23, 31, 35, batchHeader, f.length / 2, f.length - 1} {
			if at >= f.length {
				continue
			}
			err := tryOpen(m.with(f.file, func(b []byte) []byte { b[f.at+at] ^= 0x10; return b }).fs(t))
			last := i == len(all)-1
			if last != (err == nil) || !last && !errors.Is(err, ErrDamaged) {
				t.Errorf("byte %d of batch %d in %s at %d: %v", at, f.number, f.file, f.at, err)
			}
		}
	}
	for name := range m {
		for at := range segmentHeader {
			if err := tryOpen(m.with(name, func(b []byte) []byte { b[at] ^= 1; return b }).fs(t)); !errors.Is(err, ErrDamaged) {
				t.Errorf("byte %d of the header of %s: %v", at, name, err)
			}
		}
	}
	// After an orderly end the last batch of entries is no exception.
	fs := m.fs(t)
	l := open(t, fs, small)
	put(t, l, 9, 1, 1, 10)
	shut(t, l)
	closed := imageOf(t, fs)
	all = closed.batches(t)
	f := all[len(all)-2]
	if err := tryOpen(closed.with(f.file, func(b []byte) []byte { b[f.at+50] ^= 1; return b }).fs(t)); !errors.Is(err, ErrDamaged) {
		t.Errorf("the last append before Close: %v", err)
	}
}

// What is missing is missed; what does not belong is refused.
func TestForeignFiles(t *testing.T) {
	m := built(t)
	all := m.batches(t)
	low, high := all[0].file, all[len(all)-1].file
	drop := func([]byte) []byte { return nil }
	newer := func(b []byte) []byte {
		binary.BigEndian.PutUint32(b[8:], formatVersion+1)
		binary.BigEndian.PutUint32(b[32:], crc32.Checksum(b[:32], castagnoli))
		return b
	}
	newerBatch := func(b []byte) []byte {
		number, salt, _ := decodeSegmentHeader(b)
		h := b[block:]
		h[4] = formatVersion + 1
		binary.BigEndian.PutUint32(h[32:], crc32.Update(seedOf(number, salt), castagnoli, h[:32]))
		return b
	}
	put := func([]byte) []byte { return []byte{} }
	for _, tc := range []struct {
		name string
		m    image
		is   error
		text string
	}{
		{"the oldest segment is gone", m.with(low, drop), ErrDamaged, low + " is missing"},
		{"one in the middle is gone", m.with(all[len(all)/2].file, drop), ErrDamaged, "is missing"},
		{"a segment is empty", m.with(low, func([]byte) []byte { return []byte{} }), ErrDamaged, "too short"},
		{"a segment is cut short", m.with(low, func(b []byte) []byte { return b[:block+10] }), ErrDamaged, "damaged"},
		{"a segment under another name", m.with(segmentName(77), func([]byte) []byte { return m[high] }), ErrDamaged, "of segment"},
		{"a newer segment", m.with(high, newer), ErrNewer, "version 2"},
		{"a newer batch", m.with(high, newerBatch), ErrNewer, "version 2"},
		{"a stranger", m.with("photo.jpg", put), nil, "photo.jpg is no part of a log"},
		{"the engine of before", m.with("MANIFEST-000001", put), nil, "format of an earlier version"},
		{"the engine of before, closed", image{"marker.manifest.000001.MANIFEST-000001": nil}, nil, "format of an earlier version"},
	} {
		err := tryOpen(tc.m.fs(t))
		if err == nil || tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.text)
		}
		if errors.Is(err, ErrNewer) && errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v is both", tc.name, err)
		}
	}
	if err := tryOpen(m.with(tempName, put).fs(t)); err != nil {
		t.Errorf("a file that was being made: %v", err)
	}
}

// A batch of which the middle did not reach the disk is cut off, and stays cut
// off when the disk shows the missing part after all.
func TestTornTailStaysCut(t *testing.T) {
	fs := vfs.NewCrashableMem()
	l := open(t, fs, Options{})
	put(t, l, 1, 1, 1, 100)
	put(t, l, 1, 2, 3, 3000) // three blocks
	m := imageOf(t, fs)
	shut(t, l)
	all := m.batches(t)
	tail := all[len(all)-1]
	for torn := range 3 {
		cut := m.with(tail.file, func(b []byte) []byte {
			clear(b[tail.at+torn*block:][:block])
			return b
		})
		fs := cut.fs(t)
		l := open(t, fs, small)
		has(t, l, 1, 1, 1, 100)
		after := imageOf(t, fs)
		shut(t, l)
		fs = after.with(tail.file, func([]byte) []byte { return m[tail.file] }).fs(t)
		l = open(t, fs, small)
		has(t, l, 1, 1, 1, 100)
		put(t, l, 1, 2, 1, 100)
		shut(t, l)
		l = open(t, fs, small)
		has(t, l, 1, 1, 2, 100)
		shut(t, l)
	}
}

// What an earlier life of a segment left in the file is not read, although its
// checksums were right once: not even if the numbers would fit.
func TestOldBytesAreNothing(t *testing.T) {
	m := built(t)
	all := m.batches(t)
	tail := all[len(all)-1]
	// The next batch, as the same segment under another salt would have it.
	number, salt, _ := decodeSegmentHeader(m[tail.file])
	b := beginEntry(make([]byte, batchHeader), recEntry, 1, 1000)
	finishEntry(b, batchHeader)
	place := func(seed uint32) image {
		c := bytes.Clone(b)
		sealBatch(c, seed, tail.number+1, 1)
		return m.with(tail.file, func(f []byte) []byte {
			f = append(f[:tail.at+int(blocks(int64(tail.length)))], c...)
			return append(f, make([]byte, block)...)
		})
	}
	if err := tryOpen(place(seedOf(number, salt+1)).fs(t)); err != nil {
		t.Errorf("bytes of another life: %v", err)
	}
	if err := tryOpen(place(seedOf(number, salt)).fs(t)); !errors.Is(err, ErrDamaged) {
		t.Errorf("the same bytes in this life, where they do not follow the log: %v", err)
	}
}

// An entry that goes bad while the log is open is found when it is read.
func TestReadFindsDamage(t *testing.T) {
	fs := vfs.NewMem()
	l := open(t, fs, small)
	defer shut(t, l)
	put(t, l, 1, 1, 1, 1000)
	seg, p, _ := l.table.find(1, 1)
	f, err := fs.OpenReadWrite(seg.path, files.Unspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff, 0xfe}, int64(p.off)+500); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Read(1, 1); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged entry: %v", err)
	}
}

const formatFile = "../../testdata/formats/seglog-v1.bin"

// writeV1 writes a log of one segment with every kind of record.
func writeV1(t *testing.T) []byte {
	fs := vfs.NewCrashableMem()
	l := &Log{
		o:     Options{MinSegment: 8 * block, MaxSegment: 8 * block}.withDefaults(),
		store: store{fs: fs, dir: "log", salt: func() uint64 { return 0x0123456789abcdef }},
		table: newTable(),
	}
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	put(t, l, 1, 5, 3, 40)
	l.mu.Lock()
	b, err := l.collectLocked(0)
	if err != nil {
		t.Fatal(err)
	}
	at := len(b.buf)
	b.buf = append(beginEntry(b.buf, recCarried, 1, 6), payloadOf(1, 6, 1, 40)...)
	finishEntry(b.buf, at)
	b.buf = appendSet(b.buf, Key{1, 1}, []byte("one"))
	b.buf = appendSet(b.buf, Key{2, 7}, []byte("two"))
	b.buf = appendDelete(b.buf, Key{2, 7})
	b.buf = appendCut(b.buf, recFront, 1, 5)
	b.buf = appendCut(b.buf, recBack, 1, 7)
	if err := l.waitLocked(b); err != nil {
		t.Fatal(err)
	}
	m := imageOf(t, fs)
	shut(t, l)
	return m[segmentName(1)][:4*block]
}

// Logs of every released version are read for ever, and this version writes
// what it wrote.
func TestFormatV1(t *testing.T) {
	written := writeV1(t)
	if os.Getenv("IDB_TEST_GOLDEN") == "write" {
		if err := os.WriteFile(filepath.FromSlash(formatFile), written, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(filepath.FromSlash(formatFile))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(written, want) {
		t.Errorf("the log is written in other bytes than those of format 1")
	}
	l := open(t, image{segmentName(1): want}.fs(t), small)
	defer shut(t, l)
	has(t, l, 1, 6, 6, 40)
	if got := fmt.Sprintf("%s %v %v", l.Get(Key{1, 1}), l.Groups(1), l.Groups(2)); got != "one [1] []" {
		t.Errorf("records are %s", got)
	}
}

// FuzzRecover opens logs whose batches have right checksums and any content.
func FuzzRecover(f *testing.F) {
	v1, err := os.ReadFile(filepath.FromSlash(formatFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(v1[2*block+batchHeader:][:200], []byte{}, uint64(1))
	b := beginEntry(nil, recEntry, 1, 1)
	finishEntry(b, 0)
	c := beginEntry(nil, recCarried, 1, 1)
	finishEntry(c, 0)
	f.Add(b, appendCut(appendCut(appendSet(nil, Key{1, 1}, []byte("v")), recFront, 1, 1), recBack, 1, 1), uint64(1))
	f.Add(c, appendDelete(bytes.Clone(b), Key{1, 1}), uint64(2))
	f.Fuzz(func(t *testing.T, one, two []byte, low uint64) {
		seg := appendSegmentHeader(nil, 1, 7)
		seg = append(seg, make([]byte, block-len(seg))...)
		for i, body := range [][]byte{one, two} {
			at := len(seg)
			seg = append(append(seg, make([]byte, batchHeader)...), body...)
			sealBatch(seg[at:], seedOf(1, 7), uint64(i+1), low)
			seg = append(seg, make([]byte, blocks(int64(len(seg)))-int64(len(seg)))...)
		}
		fs := image{segmentName(1): seg}.fs(t)
		l, err := Open(fs, "log", small)
		if err != nil {
			return
		}
		// What was accepted is the same the next time.
		state := stateOf(l)
		shut(t, l)
		l = open(t, fs, small)
		if again := stateOf(l); again != state {
			t.Errorf("opened twice:\n%s\n%s", state, again)
		}
		shut(t, l)
	})
}

// FuzzSegment opens any bytes.
func FuzzSegment(f *testing.F) {
	v1, err := os.ReadFile(filepath.FromSlash(formatFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(v1)
	f.Add(v1[:block+100])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = tryOpen(image{segmentName(1): b}.fs(t)) // must not panic
	})
}

func stateOf(l *Log) string {
	var s strings.Builder
	for id := range uint32(20) {
		first, last := l.Bounds(id)
		fmt.Fprintf(&s, "%d: %d-%d %q %q; ", id, first, last, l.Get(Key{1, id}), l.Get(Key{2, id}))
	}
	return s.String()
}
