package seglog

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/impossibledb/idb/fsm/vfs"
)

// Open opens the log in dir, or begins one. It takes what an earlier life left
// for what it is only after syncing it: a process that was killed can leave a
// batch that the next one reads and a power cut would take away.
func Open(fs vfs.FS, dir string, o Options) (*Log, error) {
	l := &Log{
		o:     o.withDefaults(),
		store: store{fs: fs, dir: dir, salt: randomSalt},
		table: newTable(),
	}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Log) open() error {
	l.changed = sync.NewCond(&l.mu)
	l.came = sync.NewCond(&l.mu)
	l.enough = time.AfterFunc(gatherTime, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.came.Signal()
	})
	if err := vfs.MakeDir(l.store.fs, l.store.dir); err != nil {
		return fmt.Errorf("seglog: create %s: %w", l.store.dir, err)
	}
	r := recovery{l: l}
	if err := r.run(); err != nil {
		r.closeAll()
		return fmt.Errorf("seglog: open %s: %w", l.store.dir, err)
	}
	l.bg.Add(2)
	go l.prepare()
	go l.clean()
	// The first batch of the new segment. With it on disk, what was cut off
	// before it can never count again.
	if err := l.barrier(); err != nil {
		return errors.Join(err, l.Close())
	}
	return nil
}

// recovery finds out what is in a directory.
type recovery struct {
	l     *Log
	found []*segment       // by number
	bad   map[uint64]error // segments whose headers are
}

func (r *recovery) closeAll() {
	for _, s := range append(r.found, r.l.table.segs...) {
		_ = s.close() // nothing was written, or it was synced
	}
}

func (r *recovery) run() error {
	if err := r.list(); err != nil {
		return err
	}
	last, err := r.last()
	if err != nil {
		return err
	}
	l := r.l
	next, newest := uint64(1), uint64(0)
	if last >= 0 {
		newest = r.found[last].number
		if next, err = r.replay(last); err != nil {
			return err
		}
	} else if l.o.Existing {
		return fmt.Errorf("no batch is left of a log that was begun (%w)", ErrDamaged)
	}
	// Behind the last batch there are segments that were prepared, and what was
	// torn when it was written.
	var empty []*segment
	for _, s := range r.found {
		if s.number <= newest {
			continue
		}
		if err := r.bad[s.number]; err != nil {
			return err
		}
		if err := s.prove(s.window(), block, next); err != nil {
			return err
		}
		empty = append(empty, s)
	}
	l.number = next
	return r.begin(newest+1, empty)
}

// list opens every file.
func (r *recovery) list() error {
	fs, d := r.l.store.fs, &r.l.store
	names, err := fs.List(d.dir)
	if err != nil {
		return err
	}
	slices.Sort(names)
	r.bad = make(map[uint64]error)
	for _, name := range names {
		if name == tempName {
			if err := fs.Remove(d.path(name)); err != nil {
				return err
			}
			continue
		}
		number, ok := parseName(name)
		if !ok {
			if strings.HasPrefix(name, "MANIFEST-") || name == "CURRENT" || strings.HasPrefix(name, "marker.") {
				return errors.New("the log has the format of an earlier version, which this one does not read (use the version that wrote it)")
			}
			return fmt.Errorf("%s is no part of a log", name)
		}
		s, err := d.openSegment(number)
		if s != nil {
			r.found = append(r.found, s)
		}
		switch {
		case errors.Is(err, ErrDamaged) && s != nil:
			r.bad[number] = err
		case err != nil:
			return err
		}
	}
	return nil
}

// last is the newest segment that has a batch; -1 if none has.
func (r *recovery) last() (int, error) {
	for i := len(r.found) - 1; i >= 0; i-- {
		s := r.found[i]
		if r.bad[s.number] != nil {
			continue
		}
		_, _, ok, err := s.batchAt(s.window(), block)
		if err != nil {
			return 0, fmt.Errorf("log segment %s: %w", s.path, err)
		}
		if ok {
			return i, nil
		}
	}
	return -1, nil
}

// replay applies everything up to the end of the log, which is in segment
// found[last], and makes that end durable. It answers the number of the next
// batch.
func (r *recovery) replay(last int) (uint64, error) {
	t, w := r.l.table, r.found[last].window()
	var low uint64
	var lastAt int64
	tail := r.found[last]
	end, next, err := tail.scan(w, 0, math.MaxUint64, func(h header, at int64, _ []byte) error {
		low, lastAt = h.low, at
		return nil
	})
	if err != nil {
		return 0, err
	}
	if err := tail.prove(w, end, next); err != nil {
		return 0, err
	}
	if torn, err := w.bytes(end, batchHeader); err == nil {
		if _, ok, _ := decodeBatchHeader(torn, tail.seed); ok {
			r.l.o.Logger.Info("a batch that was being written is cut off", "segment", tail.number, "at", end)
		}
	}
	if low > tail.number {
		return 0, fmt.Errorf("log segment %s at %d: it needs segments from %d on only (%w)", tail.path, lastAt, low, ErrDamaged)
	}

	// What is older than low is known not to be needed.
	for len(r.found) > 0 && r.found[0].number < low {
		s := r.found[0]
		r.found = r.found[1:]
		last--
		if err := errors.Join(s.close(), r.l.store.fs.Remove(s.path)); err != nil {
			return 0, err
		}
	}
	t.segs = r.found[: last+1 : last+1]
	for i, s := range t.segs {
		if want := low + uint64(i); s.number != want {
			return 0, fmt.Errorf("log segment %s is missing (%w)", r.l.store.path(segmentName(want)), ErrDamaged)
		}
		if err := r.bad[s.number]; err != nil {
			return 0, err
		}
	}
	t.recovering = true
	number := uint64(0)
	for i, s := range t.segs {
		w := s.window()
		upto := uint64(math.MaxUint64)
		if i < last {
			h, _, ok, err := t.segs[i+1].batchAt(t.segs[i+1].window(), block)
			if err != nil {
				return 0, err
			}
			if !ok {
				return 0, fmt.Errorf("log segment %s: its first batch is %w", t.segs[i+1].path, ErrDamaged)
			}
			upto = h.number
		}
		s.end, number, err = s.scan(w, number, upto, func(_ header, at int64, body []byte) error {
			return t.apply(s, at+batchHeader, body)
		})
		if err != nil {
			return 0, err
		}
		if i < last && number != upto {
			return 0, fmt.Errorf("log segment %s at %d: batch %d is %w: the next segment begins with %d", s.path, s.end, number, ErrDamaged, upto)
		}
	}
	if err := t.finish(); err != nil {
		return 0, err
	}
	return next, r.settle(tail, lastAt, end)
}

// settle writes the last batch once more and syncs it: it may be in the
// system's memory only, and a sync that failed in an earlier life may have left
// it marked as written.
func (r *recovery) settle(s *segment, at, end int64) error {
	b := make([]byte, end-at)
	_, err := s.file.ReadAt(b[:min(end, s.bytes)-at], at)
	if err == nil {
		_, err = s.file.WriteAt(b, at)
	}
	if err == nil {
		err = s.file.SyncData()
	}
	if err != nil {
		return fmt.Errorf("log segment %s at %d: %w", s.path, at, err)
	}
	s.bytes = max(s.bytes, end)
	return nil
}

// begin makes the segment that is written from here on, of one that was
// prepared if there is any. Nothing is ever appended to a segment of an earlier
// life.
func (r *recovery) begin(number uint64, empty []*segment) (err error) {
	l := r.l
	if number > math.MaxUint32 {
		return errors.New("the log has no numbers left")
	}
	var s *segment
	if n := len(empty); n > 0 {
		for _, e := range empty[:n-1] {
			if err := errors.Join(e.close(), l.store.fs.Remove(e.path)); err != nil {
				return err
			}
		}
		old := empty[n-1]
		old.bytes = max(old.bytes, 2*block)
		s, err = l.store.reuse(old, number)
	} else {
		s, err = l.store.create(number, l.o.MinSegment, func() bool { return false })
	}
	if err != nil {
		return err
	}
	l.table.segs = append(l.table.segs, s)
	return nil
}
