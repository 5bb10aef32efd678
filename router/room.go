package router

import (
	"context"
	"sync"
)

// room is the memory that answers in the making may take on this node, all of
// them together. Documents are counted from before they are copied out of the
// engine, or asked for at another node, until the answer is handed to its
// connection, which has bounds of its own.
//
// Nobody who holds room waits for more, so those who wait always get their turn.
type room struct {
	mu      sync.Mutex
	free    int64       // guarded by mu
	waiting []*roomWait // guarded by mu; first come, first served
}

type roomWait struct {
	bytes int64
	ready chan struct{} // closed when the bytes were given
}

func newRoom(bytes int64) *room { return &room{free: bytes} }

// try takes bytes if they are there and nobody waits.
func (m *room) try(bytes int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting) > 0 || m.free < bytes {
		return false
	}
	m.free -= bytes
	return true
}

// take waits for bytes; false: ctx has ended first.
func (m *room) take(ctx context.Context, bytes int64) bool {
	m.mu.Lock()
	if len(m.waiting) == 0 && m.free >= bytes {
		m.free -= bytes
		m.mu.Unlock()
		return true
	}
	w := &roomWait{bytes, make(chan struct{})}
	m.waiting = append(m.waiting, w)
	m.mu.Unlock()
	select {
	case <-w.ready:
		return true
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, other := range m.waiting {
		if other == w {
			m.waiting = append(m.waiting[:i], m.waiting[i+1:]...)
			m.serveLocked()
			return false
		}
	}
	m.free += bytes // given at the same moment
	m.serveLocked()
	return false
}

func (m *room) give(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free += bytes
	m.serveLocked()
}

func (m *room) serveLocked() {
	for len(m.waiting) > 0 && m.waiting[0].bytes <= m.free {
		w := m.waiting[0]
		m.waiting[0] = nil
		m.waiting = m.waiting[1:]
		m.free -= w.bytes
		close(w.ready)
	}
}

// share is what one request holds of the room, and of the frame that its answer
// is to be. It is safe for concurrent use: a request reads in several groups at
// once.
//
// Invariant: used ≤ held, and used ≤ most.
type share struct {
	room  *room
	most  int64      // bytes of documents in the answer
	first sync.Mutex // held by the part of the request that waits for all of them

	mu   sync.Mutex
	held int64      // guarded by mu; of the room
	used int64      // guarded by mu; by documents in the answer, or on their way to it
	open int        // guarded by mu; reservations
	less *sync.Cond // when open falls; nil: nobody has waited
}

// stepBytes is how much more is held at once when documents are many.
const stepBytes = 256 << 10

// begin waits until the request holds something, bytes to begin with. False:
// ctx has ended first.
func (s *share) begin(ctx context.Context, bytes int64) bool {
	s.first.Lock()
	defer s.first.Unlock()
	s.mu.Lock()
	holds := s.held > 0
	s.mu.Unlock()
	if holds {
		return true
	}
	if !s.room.take(ctx, bytes) {
		return false
	}
	s.mu.Lock()
	s.held += bytes
	s.mu.Unlock()
	return true
}

// use takes a document into the answer; false: it must be left out.
func (s *share) use(bytes int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used+bytes > s.most {
		return false
	}
	if lacks := s.used + bytes - s.held; lacks > 0 {
		more := max(lacks, min(stepBytes, s.most-s.used))
		if !s.room.try(more) {
			if more = lacks; !s.room.try(more) {
				return false
			}
		}
		s.held += more
	}
	s.used += bytes
	return true
}

// reserve is use for documents that are yet to come: as many bytes as there is
// room for, no more than want, and no less than least unless it is nothing.
// Other parts of the request may have reserved more than they need; it waits
// for those. unreserve ends it.
func (s *share) reserve(want, least int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		got := min(want, s.most-s.used)
		if lacks := s.used + got - s.held; lacks > 0 {
			if s.room.try(lacks) {
				s.held += lacks
			} else {
				got = s.held - s.used
			}
		}
		if got >= min(least, want) {
			s.used += got
			s.open++
			return got
		}
		if s.open == 0 {
			return 0
		}
		if s.less == nil {
			s.less = sync.NewCond(&s.mu)
		}
		s.less.Wait()
	}
}

// unreserve gives back what a reservation did not need.
func (s *share) unreserve(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= bytes
	s.open--
	if s.less != nil {
		s.less.Broadcast()
	}
}

// trim gives back what no document uses: the request is going to wait.
func (s *share) trim() {
	s.mu.Lock()
	spare := s.held - s.used
	s.held = s.used
	s.mu.Unlock()
	if spare > 0 {
		s.room.give(spare)
	}
}

// release gives back everything: the answer is its connection's affair now.
func (s *share) release() {
	s.mu.Lock()
	s.used = 0
	s.mu.Unlock()
	s.trim()
}
