package shardgroup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
)

// ErrNoSurvey: this replica has passed the mark and has no findings: it was
// sent a snapshot beyond it, was started again since, or had too much to do.
// Another mark may fare better.
var ErrNoSurvey = errors.New("shardgroup: the replica has no findings of that mark")

const (
	// surveysWaiting is how many surveys a node keeps waiting. Each pins what
	// the engine had at its mark, so there are few, and the oldest gives way: a
	// replica that catches up meets marks that nobody asks about any more.
	surveysWaiting = 4
	// findingsKept is how many findings are kept for their coordinators.
	findingsKept = 32
	// surveyLimit is how long one survey may take, because of what it pins.
	surveyLimit = 5 * time.Minute
	// surveyRate is how many KiB a second are read unless the mark says.
	surveyRate = 32 << 10
	// surveyBurst is how much of that may be read at once.
	surveyBurst = 100 * time.Millisecond
)

// surveyor runs the surveys of all groups of this node, one at a time and
// paced, so that comparing replicas leaves the node to its clients.
type surveyor struct {
	h    *Host
	wake chan struct{}

	mu      sync.Mutex
	waiting []*survey              // guarded by mu; oldest first
	known   map[surveyName]*survey // guarded by mu; waiting, running and done
	order   []surveyName           // guarded by mu; of known, oldest first
	news    chan struct{}          // guarded by mu; closed when known grows
	closed  bool                   // guarded by mu
}

type surveyName struct {
	group placement.GroupID
	id    [16]byte
}

// survey is one mark that was applied here.
type survey struct {
	name   surveyName
	index  uint64
	pinned *fsm.Survey // nil once it is run or given up

	done     chan struct{} // closed when findings or err are set
	findings *fsm.Findings
	err      error
}

func newSurveyor(h *Host) *surveyor {
	return &surveyor{h: h, wake: make(chan struct{}, 1), known: map[surveyName]*survey{}, news: make(chan struct{})}
}

// applied is the machine's OnMark, called from Apply.
func (s *surveyor) applied(g placement.GroupID, index uint64, k fsm.Mark, pin func() (*fsm.Survey, error)) {
	v := &survey{name: surveyName{g, k.ID}, index: index, done: make(chan struct{})}
	v.pinned, v.err = pin()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.known[v.name] != nil { // nobody uses an ID twice
		v.end(nil, ErrStopped)
		return
	}
	s.known[v.name] = v
	s.order = append(s.order, v.name)
	if len(s.order) > findingsKept {
		s.forgetLocked()
	}
	close(s.news)
	s.news = make(chan struct{})
	if v.pinned == nil {
		v.end(nil, v.err)
		return
	}
	if len(s.waiting) == surveysWaiting {
		s.waiting[0].end(nil, ErrNoSurvey)
		s.waiting = append(s.waiting[:0], s.waiting[1:]...)
	}
	s.waiting = append(s.waiting, v)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// forgetLocked drops the oldest findings.
func (s *surveyor) forgetLocked() {
	for i, name := range s.order {
		select {
		case <-s.known[name].done:
			delete(s.known, name)
			s.order = append(s.order[:i], s.order[i+1:]...)
			return
		default: // it waits or runs
		}
	}
}

// end closes what was pinned and publishes the result. Whoever calls it has
// taken the survey from the queue.
func (v *survey) end(f *fsm.Findings, err error) {
	if v.pinned != nil {
		err = errors.Join(err, v.pinned.Close())
		v.pinned = nil
	}
	if err != nil {
		f = nil
	}
	v.findings, v.err = f, err
	close(v.done)
}

// run is the goroutine that does the work.
func (s *surveyor) run() {
	for {
		select {
		case <-s.wake:
		case <-s.h.stop:
			s.mu.Lock()
			s.closed = true
			waiting := s.waiting
			s.waiting = nil
			s.mu.Unlock()
			for _, v := range waiting {
				v.end(nil, ErrStopped)
			}
			return
		}
		for {
			s.mu.Lock()
			if len(s.waiting) == 0 {
				s.mu.Unlock()
				break
			}
			v := s.waiting[0]
			s.waiting = append(s.waiting[:0], s.waiting[1:]...)
			s.mu.Unlock()
			v.end(s.work(v))
		}
	}
}

func (s *surveyor) work(v *survey) (*fsm.Findings, error) {
	ctx, cancel := context.WithTimeout(s.h.ctx, surveyLimit)
	defer cancel()
	rate := float64(v.pinned.Mark.RateKiB)
	if rate == 0 {
		rate = surveyRate
	}
	f, err := v.pinned.Run(ctx, pacer(ctx, rate*1024))
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("shardgroup: the survey of %s took longer than %v (compare fewer partitions at once, or read faster)", v.name.group, surveyLimit)
	}
	return f, err
}

// pacer lets so many bytes a second through, with a small burst.
func pacer(ctx context.Context, bytesPerSecond float64) func(int) error {
	var due time.Time // when what was read so far should have been
	return func(n int) error {
		now := time.Now()
		if due.Before(now.Add(-surveyBurst)) {
			due = now.Add(-surveyBurst)
		}
		due = due.Add(time.Duration(float64(n) / bytesPerSecond * float64(time.Second)))
		wait := due.Sub(now)
		if wait <= 0 {
			return nil
		}
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Mark has every replica of the group keep its rows as they are at one entry
// and add them up. It is for the leader, and answers the entry's index; the
// findings of each replica come from its Findings.
func (g *Group) Mark(ctx context.Context, k fsm.Mark) (index uint64, err error) {
	if _, err := g.proposeOwn(ctx, fsm.Command{Mark: &k}); err != nil {
		return 0, err
	}
	s := g.host.surveys
	s.mu.Lock()
	v := s.known[surveyName{g.id, k.ID}]
	s.mu.Unlock()
	if v == nil {
		return 0, ErrNoSurvey
	}
	return v.index, nil
}

// Findings waits until this replica has applied the mark at index and added
// its rows up. It fails with ErrNoSurvey if it passed the mark without.
func (g *Group) Findings(ctx context.Context, id [16]byte, index uint64) (*fsm.Findings, error) {
	s, name := g.host.surveys, surveyName{g.id, id}
	reached := make(chan struct{})
	g.applied.when(index, func(bool) { close(reached) })
	for {
		s.mu.Lock()
		v, news := s.known[name], s.news
		s.mu.Unlock()
		switch {
		case v != nil:
			select {
			case <-v.done:
				return v.findings, v.err
			case <-ctx.Done():
				return nil, ErrTimeout
			case <-g.stop:
				return nil, g.stopError()
			}
		case g.applied.load() >= index:
			// The mark's survey is known before the index is told.
			s.mu.Lock()
			v = s.known[name]
			s.mu.Unlock()
			if v == nil {
				return nil, ErrNoSurvey
			}
			continue
		}
		select {
		case <-news:
		case <-reached:
		case <-ctx.Done():
			return nil, ErrTimeout
		case <-g.stop:
			return nil, g.stopError()
		}
	}
}
