// Package workers keeps goroutines for the next task: their stacks have grown
// to what a task needs, and a new goroutine's would grow, and be copied, anew.
package workers

import (
	"slices"
	"sync"
	"time"
)

const (
	// maxIdle is how many are kept at most.
	maxIdle = 256
	// trimEvery is how often those that nobody needs are looked for.
	trimEvery = time.Second
)

// Pool runs tasks, each at once on a goroutine of its own. The one that rested
// last works next: its stack is the one in the processor's cache. Half of those
// that nobody has needed for a second end, so that what a burst has left is
// gone after some seconds, and a steady load keeps what it needs.
type Pool[T any] struct {
	do func(T)

	mu    sync.Mutex
	idle  []chan T    // guarded by mu; the last to finish is the next to work
	low   int         // guarded by mu; the fewest that were idle since the last trim
	timer *time.Timer // guarded by mu; trims; nil: none was idle at the last trim
	over  bool        // guarded by mu
	bg    sync.WaitGroup
}

// New makes a pool; do does a task. It must be closed.
func New[T any](do func(T)) *Pool[T] { return &Pool[T]{do: do} }

// Run has a task done. After Close nobody keeps its goroutine, or waits for it.
func (p *Pool[T]) Run(t T) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		next := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.low = min(p.low, n-1)
		p.mu.Unlock()
		next <- t
		return
	}
	if p.over {
		p.mu.Unlock()
		go p.do(t)
		return
	}
	p.bg.Add(1)
	p.mu.Unlock()
	go p.work(t)
}

func (p *Pool[T]) work(t T) {
	defer p.bg.Done()
	next := make(chan T, 1)
	for ok := true; ok; t, ok = <-next {
		p.do(t)
		p.mu.Lock()
		if p.over || len(p.idle) >= maxIdle {
			p.mu.Unlock()
			return
		}
		p.idle = append(p.idle, next)
		if p.timer == nil {
			p.low = 0
			p.timer = time.AfterFunc(trimEvery, p.trim)
		}
		p.mu.Unlock()
	}
}

func (p *Pool[T]) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	n := (p.low + 1) / 2
	for _, next := range p.idle[:n] {
		close(next)
	}
	p.idle = slices.Delete(p.idle, 0, n)
	p.low = len(p.idle)
	if p.low == 0 {
		p.timer = nil
		return
	}
	p.timer.Reset(trimEvery)
}

// Close ends the idle goroutines and waits for all.
func (p *Pool[T]) Close() {
	p.mu.Lock()
	p.over = true
	for _, next := range p.idle {
		close(next)
	}
	p.idle = nil
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()
	p.bg.Wait()
}
