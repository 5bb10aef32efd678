package shardgroup

import (
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// quietEvery is how often raft may repeat one and the same complaint.
const quietEvery = 10 * time.Second

// raftLogger makes raft's log fit for people: what it calls info is debug
// here, and its warnings are info, for elections and peers that do not answer
// are its daily bread. A complaint that it would repeat for every failed dial
// or vote is let through once in a while, with the number of those left out.
type raftLogger struct {
	hclog.Logger
	seen *complaints
}

type complaints struct {
	mu   sync.Mutex
	last map[string]*complaint // guarded by mu; by message: raft has a few dozen
}

type complaint struct {
	at      time.Time
	dropped int
}

func newRaftLogger(l hclog.Logger) hclog.Logger {
	return raftLogger{Logger: l, seen: &complaints{last: make(map[string]*complaint)}}
}

// allow says whether a message may pass, and how many before it did not.
func (c *complaints) allow(msg string) (bool, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	s := c.last[msg]
	if s == nil {
		c.last[msg] = &complaint{at: now}
		return true, 0
	}
	if now.Sub(s.at) < quietEvery {
		s.dropped++
		return false, 0
	}
	n := s.dropped
	s.at, s.dropped = now, 0
	return true, n
}

func (l raftLogger) Info(msg string, args ...any) { l.Logger.Debug(msg, args...) }

func (l raftLogger) Warn(msg string, args ...any) {
	if !l.Logger.IsInfo() {
		return
	}
	if ok, n := l.seen.allow(msg); ok {
		l.Logger.Info(msg, repeated(args, n)...)
	}
}

func (l raftLogger) Error(msg string, args ...any) {
	if ok, n := l.seen.allow(msg); ok {
		// A peer that is down is an event, not an error of this node.
		l.Logger.Warn(msg, repeated(args, n)...)
	}
}

func repeated(args []any, n int) []any {
	if n == 0 {
		return args
	}
	return append(append([]any(nil), args...), "repeated", n)
}

func (l raftLogger) With(args ...any) hclog.Logger {
	return raftLogger{Logger: l.Logger.With(args...), seen: l.seen}
}

func (l raftLogger) Named(name string) hclog.Logger {
	return raftLogger{Logger: l.Logger.Named(name), seen: l.seen}
}

func (l raftLogger) ResetNamed(name string) hclog.Logger {
	return raftLogger{Logger: l.Logger.ResetNamed(name), seen: l.seen}
}
