package seglog

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/impossibledb/idb/fsm/vfs"
)

// segment is one file.
type segment struct {
	number uint64
	seed   uint32
	path   string
	bytes  int64 // size of the file; batches begin below it
	end    int64 // behind the last batch; owned by who writes

	// The log's mu guards these. They count entries and sets with their headers.
	records int64 // written
	live    int64 // still needed

	mu   sync.RWMutex // held while the file is read or goes
	file vfs.File     // guarded by mu; nil: the segment is gone
}

const (
	segmentSuffix = ".seg"
	tempName      = "segment.tmp"
)

func segmentName(number uint64) string { return fmt.Sprintf("%010d%s", number, segmentSuffix) }

// parseName answers false for what is not the name of a segment.
func parseName(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 10 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return n, err == nil && n > 0 && segmentName(n) == name
}

// grow counts a record that was written.
func (s *segment) grow(n int) {
	s.records += int64(n)
	s.live += int64(n)
}

// read reads an entry. False: it was deleted meanwhile.
func (s *segment) read(group uint32, index uint64, p place) (payload []byte, ok bool, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.file == nil {
		return nil, false, nil
	}
	b := make([]byte, entryHeader+int(p.size))
	if _, err := s.file.ReadAt(b, int64(p.off)); err != nil {
		return nil, false, fmt.Errorf("%s at %d: %w", s.path, p.off, err)
	}
	if err := checkEntry(b, group, index); err != nil {
		return nil, false, fmt.Errorf("%s at %d: %w", s.path, p.off, err)
	}
	return b[entryHeader:], true, nil
}

func (s *segment) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	f := s.file
	s.file = nil
	return f.Close()
}

// store makes segment files.
//
// A segment has its name only when its header is on disk, and the name is on
// disk before anything is written into it: a named file with a bad header is
// damaged, never half made.
type store struct {
	fs   vfs.FS
	dir  string
	salt func() uint64
}

func (d *store) path(name string) string { return d.fs.PathJoin(d.dir, name) }

func randomSalt() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}

// zeros is what a new segment is filled with, a piece at a time.
const zeros = 256 << 10

// create makes a segment and writes it full of zeros, so that later writes
// change no metadata and cost a cheaper sync. hurry ends that early: what is
// not filled grows the file when it is written.
func (d *store) create(number uint64, bytes int64, hurry func() bool) (*segment, error) {
	tmp := d.path(tempName)
	f, err := d.fs.OpenReadWrite(tmp, vfs.Unspecified)
	if err != nil {
		return nil, err
	}
	empty := make([]byte, min(zeros, bytes))
	for at := int64(block); at < bytes && !hurry(); at += int64(len(empty)) {
		if _, err := f.WriteAt(empty[:min(int64(len(empty)), bytes-at)], at); err != nil {
			return nil, errors.Join(err, f.Close(), d.fs.Remove(tmp))
		}
		// In steps, so that there is never much to wait for.
		if at%(8*zeros) == block {
			if err := f.SyncData(); err != nil {
				return nil, errors.Join(err, f.Close())
			}
		}
	}
	return d.name(f, number, bytes)
}

// reuse makes a segment that is not needed any more a new one. Its old name
// must be gone for good before its header changes.
func (d *store) reuse(old *segment, number uint64) (*segment, error) {
	if err := old.close(); err != nil {
		return nil, err
	}
	tmp := d.path(tempName)
	if err := d.fs.Rename(old.path, tmp); err != nil {
		return nil, err
	}
	if err := vfs.SyncDir(d.fs, d.dir); err != nil {
		return nil, err
	}
	f, err := d.fs.OpenReadWrite(tmp, vfs.Unspecified)
	if err != nil {
		return nil, err
	}
	return d.name(f, number, old.bytes)
}

// name writes a file's header and gives it its name.
func (d *store) name(f vfs.File, number uint64, bytes int64) (*segment, error) {
	salt := d.salt()
	head := make([]byte, block)
	appendSegmentHeader(head[:0], number, salt)
	_, err := f.WriteAt(head, 0)
	if err == nil {
		err = f.Sync()
	}
	path := d.path(segmentName(number))
	if err == nil {
		err = d.fs.Rename(d.path(tempName), path)
	}
	if err == nil {
		err = vfs.SyncDir(d.fs, d.dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &segment{number: number, seed: seedOf(number, salt), path: path, bytes: bytes, end: block, file: f}, nil
}

// openSegment opens a file and reads its header. A segment comes back also
// with ErrDamaged.
func (d *store) openSegment(number uint64) (*segment, error) {
	s := &segment{number: number, path: d.path(segmentName(number)), end: block}
	f, err := d.fs.OpenReadWrite(s.path, vfs.Unspecified)
	if err != nil {
		return nil, err
	}
	s.file = f
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.bytes = info.Size()
	var b [segmentHeader]byte
	if n, err := f.ReadAt(b[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, f.Close())
	} else if n < len(b) {
		return s, fmt.Errorf("log segment %s: it is too short for a header (%w)", s.path, ErrDamaged)
	}
	have, salt, err := decodeSegmentHeader(b[:])
	if err == nil && have != number {
		err = fmt.Errorf("its header is of segment %d (%w)", have, ErrDamaged)
	}
	if err != nil {
		return s, fmt.Errorf("log segment %s: %w", s.path, err)
	}
	s.seed = seedOf(number, salt)
	return s, nil
}

// window reads a file from front to back.
type window struct {
	f    vfs.File
	size int64 // of the file
	at   int64 // of buf in the file
	buf  []byte
}

const windowBytes = 1 << 20

// bytes is n bytes at at, or fewer if the file ends. They are valid until the
// next call.
func (w *window) bytes(at, n int64) ([]byte, error) {
	if n = min(n, w.size-at); n <= 0 {
		return nil, nil
	}
	if at < w.at || at+n > w.at+int64(len(w.buf)) {
		want := min(max(n, windowBytes), w.size-at)
		if int64(cap(w.buf)) < want {
			w.buf = make([]byte, want)
		}
		w.buf = w.buf[:want]
		w.at = at
		got, err := w.f.ReadAt(w.buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		w.buf = w.buf[:got]
		n = min(n, int64(got))
	}
	return w.buf[at-w.at:][:n], nil
}

// batchAt reads the batch at at. False: there is no whole batch of this
// segment.
func (s *segment) batchAt(w *window, at int64) (h header, body []byte, ok bool, err error) {
	b, err := w.bytes(at, batchHeader)
	if err != nil {
		return h, nil, false, err
	}
	h, ok, err = decodeBatchHeader(b, s.seed)
	if !ok || err != nil {
		return h, nil, false, err
	}
	if int64(h.length) > w.size-at-batchHeader {
		return h, nil, false, nil
	}
	b, err = w.bytes(at, batchHeader+int64(h.length))
	if err != nil || len(b) < batchHeader+int(h.length) {
		return h, nil, false, err
	}
	body = b[batchHeader:]
	return h, body, crc32.Update(s.seed, castagnoli, body) == h.bodyCRC, nil
}

// scan reads batches until one is not whole or not the next, or is number
// upto. next is the number of the first; 0: any. It answers where and with
// which number the log would go on.
func (s *segment) scan(w *window, next, upto uint64, do func(h header, at int64, body []byte) error) (end int64, number uint64, err error) {
	at := int64(block)
	for next != upto {
		h, body, ok, err := s.batchAt(w, at)
		if err != nil {
			return at, next, fmt.Errorf("log segment %s at %d: %w", s.path, at, err)
		}
		if !ok || next != 0 && h.number != next || h.number == 0 {
			break
		}
		if err := do(h, at, body); err != nil {
			return at, next, fmt.Errorf("log segment %s at %d: %w", s.path, at, err)
		}
		next = h.number + 1
		at += h.size()
	}
	return at, next, nil
}

// prove looks for batches behind at, where batch next is missing or not whole.
// A batch is only written when the one before is on disk, so if there is a
// later one, what is at at was whole once.
func (s *segment) prove(w *window, at int64, next uint64) error {
	for i := at; i < w.size; i += block {
		b, err := w.bytes(i, batchHeader)
		if err != nil {
			return fmt.Errorf("log segment %s at %d: %w", s.path, i, err)
		}
		h, ok, err := decodeBatchHeader(b, s.seed)
		if err != nil {
			return fmt.Errorf("log segment %s at %d: %w", s.path, i, err)
		}
		if ok && (i > at || h.number != next) {
			return fmt.Errorf("log segment %s at %d: batch %d is %w: batch %d follows it at %d", s.path, at, next, ErrDamaged, h.number, i)
		}
	}
	return nil
}

func (s *segment) window() *window { return &window{f: s.file, size: s.bytes} }
