package seglog

import (
	"errors"
	"fmt"
	"math/bits"
	"syscall"
)

const (
	// keepFree is how many free segments wait to be used again, beside the one
	// that is prepared.
	keepFree = 4
	// carryBytes is how much is carried forward at once, so that appends which
	// come meanwhile wait for little.
	carryBytes = 256 << 10
	// cheap is what part of the oldest segment may live for it to be moved at
	// once.
	cheap = 16
	// slack is how many segments of what is not needed are no waste.
	slack = 4
	// crowd is how many make appends wait for the cleaner, beside three times
	// what lives; see measureLocked.
	crowd = 2 * slack
)

// segmentBytesLocked is how large the next segment should be: large enough
// that there are few, small enough that they are freed one by one.
func (l *Log) segmentBytesLocked() int64 {
	var total int64
	for _, s := range l.table.segs {
		total += s.bytes
	}
	n := int64(1) << bits.Len64(uint64(total/16))
	return blocks(min(max(n, l.o.MinSegment), l.o.MaxSegment))
}

// measureLocked finds out whether appends have to wait for the cleaner. It
// always has something to free then, for what it calls waste is less.
func (l *Log) measureLocked() {
	total, live := l.table.spread()
	l.crowded = total > 3*live+crowd*l.segmentBytesLocked()
	l.changed.Broadcast()
}

// prepare makes segments ahead and disposes of those that are free.
func (l *Log) prepare() {
	defer l.bg.Done()
	l.mu.Lock()
	for {
		if l.stop || l.err != nil {
			l.mu.Unlock()
			return
		}
		var err error
		switch {
		case l.ready == nil && (!l.noSpace || l.hurry || len(l.released) > 0):
			err = l.prepareNextLocked()
		case len(l.released) > keepFree:
			s := l.released[0]
			l.released = l.released[1:]
			l.mu.Unlock()
			// The name may come back after a crash: it is known to be old.
			err = errors.Join(s.close(), l.store.fs.Remove(s.path))
			l.mu.Lock()
			l.changed.Broadcast()
		default:
			l.changed.Wait()
		}
		if err != nil {
			l.failLocked(fmt.Errorf("seglog: %w", err))
			return
		}
	}
}

// prepareNextLocked makes the segment that is written next.
func (l *Log) prepareNextLocked() error {
	want := l.segmentBytesLocked()
	number := l.table.segs[len(l.table.segs)-1].number + 1
	if number > 1<<32-1 {
		return errors.New("the log has no numbers left")
	}
	var old *segment
	for i, s := range l.released {
		if s.bytes >= want && s.bytes <= 2*want || l.noSpace {
			old = s
			l.released = append(l.released[:i:i], l.released[i+1:]...)
			break
		}
	}
	hurried := l.hurry
	l.mu.Unlock()
	var s *segment
	var err error
	if old != nil {
		s, err = l.store.reuse(old, number)
	} else {
		s, err = l.store.create(number, want, func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.hurry || l.stop
		})
	}
	l.mu.Lock()
	if err != nil {
		// The segment that is being written still has room: appends go on
		// until it is full, and space may be back by then.
		if l.noSpace = errors.Is(err, syscall.ENOSPC); l.noSpace && !hurried {
			l.o.Logger.Warn("no space to prepare a log segment", "error", err)
			return nil
		}
		return fmt.Errorf("prepare log segment %d: %w", number, err)
	}
	if old != nil {
		l.stats.Reused++
	}
	l.noSpace = false
	l.ready = s
	l.changed.Broadcast()
	return nil
}

// clean frees segments, oldest first.
func (l *Log) clean() {
	defer l.bg.Done()
	for {
		l.mu.Lock()
		l.cleaning = false
		l.measureLocked()
		for !l.cleanDue && !l.crowded && !l.closing && l.err == nil {
			l.changed.Wait()
		}
		if l.closing || l.err != nil {
			l.mu.Unlock()
			return
		}
		l.cleanDue, l.cleaning = false, true
		// A cut may be on its way, in what is being written or behind it, and
		// nothing may come after it: what it takes is not carried, but freed.
		pending := len(l.queue) > 0 || l.writing || l.crowded
		l.mu.Unlock()
		var err error
		if pending {
			err = l.barrier()
		}
		for more := true; more && err == nil; {
			if err = l.release(); err == nil {
				more, err = l.carry()
			}
		}
		if err != nil && !errors.Is(err, ErrClosed) {
			l.mu.Lock()
			l.failLocked(err) // or has failed already
			return
		}
	}
}

// release takes the oldest segments out of the log if nothing in them is
// needed. That they are not is on disk before anything happens to them.
func (l *Log) release() error {
	l.mu.Lock()
	var gone []*segment
	for len(l.table.segs) > 1 && l.table.segs[0].live == 0 {
		gone = append(gone, l.table.segs[0])
		l.table.segs = l.table.segs[1:]
	}
	if l.crowded {
		l.measureLocked()
	}
	l.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	if err := l.barrier(); err != nil {
		return err
	}
	l.mu.Lock()
	l.released = append(l.released, gone...)
	l.changed.Broadcast()
	l.mu.Unlock()
	return nil
}

// carry moves some of what lives in the oldest segment into the newest, if the
// log takes more disk than what lives justifies, or if it is hardly anything.
// Each byte is moved for at least one that becomes free, so the work is bounded
// by what is appended.
func (l *Log) carry() (more bool, err error) {
	type item struct {
		group uint32
		index uint64
		place place
	}
	var items []item
	l.mu.Lock()
	oldest := l.table.segs[0]
	total, live := l.table.spread()
	wasteful := total > 2*live+slack*l.segmentBytesLocked() || oldest.live <= oldest.records/cheap
	if len(l.table.segs) < 2 || oldest.live == 0 || !wasteful {
		defer l.mu.Unlock()
		return len(l.table.segs) > 1 && oldest.live == 0, nil
	}
	number, size := uint32(oldest.number), 0
	for id, g := range l.table.groups {
		if g.cutting > 0 {
			continue
		}
		for i, p := range g.places {
			if p.seg == number && size < carryBytes {
				items = append(items, item{id, g.base + uint64(i), p})
				size += entryHeader + int(p.size)
			}
		}
	}
	l.mu.Unlock()

	payloads := make([][]byte, len(items))
	for i, it := range items {
		b, ok, err := oldest.read(it.group, it.index, it.place)
		if err != nil {
			return false, err
		}
		if ok {
			payloads[i] = b
		}
	}

	l.mu.Lock()
	b, err := l.collectLocked(size)
	if err != nil {
		l.mu.Unlock()
		return false, err
	}
	moved := len(b.buf)
	for i, it := range items {
		// It may have been deleted while it was read, and written again. What is
		// still to be deleted stays: behind a cut that is on its way it would
		// come back.
		g := l.table.group(it.group)
		_, p, ok := l.table.find(it.group, it.index)
		if !ok || p != it.place || g.cutting > 0 || payloads[i] == nil {
			continue
		}
		at := len(b.buf)
		b.buf = append(beginEntry(b.buf, recCarried, it.group, it.index), payloads[i]...)
		finishEntry(b.buf, at)
	}
	for k, r := range l.table.keys {
		// The newest value, which may be on its way already.
		if r.size != 0 && r.seg == number && r.value != nil {
			b.buf = appendSet(b.buf, k, r.value)
		}
	}
	moved = len(b.buf) - moved
	l.stats.CarriedBytes += int64(moved)
	if err := l.waitLocked(b); err != nil {
		return false, err
	}
	return moved > 0, nil
}
