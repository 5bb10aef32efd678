package route

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// lifetimes gives operations without a deadline one, without a timer for each:
// all that start within the same second, or a sixteenth of a shorter lifetime,
// share a context.
type lifetimes struct {
	current atomic.Pointer[lifetime]
	mu      sync.Mutex
	all     []*lifetime // not yet past; guarded by mu
	closed  bool        // guarded by mu
}

type lifetime struct {
	ctx    context.Context
	cancel context.CancelFunc
	born   time.Time
	length time.Duration
}

// share is how long operations share a context.
func share(length time.Duration) time.Duration { return min(time.Second, length/16) }

// Bound gives ctx a deadline of d from now if it has none. A context that is
// never cancelled is replaced by one that many operations share, whose deadline
// is up to a second later (a sixteenth of d, if that is less); cancel is nil then. Without values and cancellation
// of its own nothing is lost by that.
func (c *Cluster) Bound(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok || d <= 0 {
		return ctx, nil
	}
	if ctx.Done() != nil {
		return context.WithTimeout(ctx, d)
	}
	now := time.Now()
	if l := c.life.current.Load(); l != nil && l.length == d && now.Sub(l.born) < share(d) {
		return l.ctx, nil
	}
	return c.life.renew(now, d), nil
}

func (s *lifetimes) renew(now time.Time, d time.Duration) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.current.Load(); l != nil && l.length == d && now.Sub(l.born) < share(d) {
		return l.ctx
	}
	l := &lifetime{born: now, length: d}
	l.ctx, l.cancel = context.WithDeadline(context.Background(), now.Add(d+share(d)))
	live := s.all[:0]
	for _, old := range s.all {
		if old.ctx.Err() == nil {
			live = append(live, old)
		} else {
			old.cancel()
		}
	}
	clear(s.all[len(live):])
	s.all = append(live, l)
	s.current.Store(l)
	if s.closed {
		l.cancel()
	}
	return l.ctx
}

func (s *lifetimes) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, l := range s.all {
		l.cancel()
	}
}
