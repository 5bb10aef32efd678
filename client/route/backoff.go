package route

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// backoff grows from min to max by half each time. Every wait is drawn between
// half of the current step and the whole, so that clients that failed together
// do not come back together.
type backoff struct {
	min, max time.Duration
	step     time.Duration
}

func (b *backoff) next() time.Duration {
	if b.step == 0 {
		b.step = b.min
	}
	d := b.step/2 + rand.N(b.step/2+1)
	b.step = min(b.max, b.step+b.step/2+1)
	return d
}

func (b *backoff) reset() { b.step = 0 }

// sleep waits for d, the end of ctx, or the end of the cluster.
func (c *Cluster) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.base.Done():
		return ErrClosed
	}
}

// signal wakes everyone who waits for something to change.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait is closed at the next fire. Take it before looking at what may change.
func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
