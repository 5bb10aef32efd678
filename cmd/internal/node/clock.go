package node

import (
	"os"
	"strings"
	"sync"
	"time"
)

// ClockVariable names a file that holds how far the node's clock is to be off,
// for example 1h or -30s. It is for tests: `idb verify --local` moves clocks by
// it, because nothing may depend on them.
const ClockVariable = "IDB_TEST_CLOCK"

// clockLook is how often the file is read at most.
const clockLook = 50 * time.Millisecond

// ClockFile is a clock that is off by what a file says; a file that is missing
// or says nothing sensible changes nothing.
func ClockFile(path string) func() time.Time {
	c := &clockFile{path: path}
	return c.now
}

type clockFile struct {
	path string

	mu     sync.Mutex
	looked time.Time     // guarded by mu
	offset time.Duration // guarded by mu
}

func (c *clockFile) now() time.Time {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.looked) >= clockLook {
		c.looked = now
		if b, err := os.ReadFile(c.path); err == nil {
			if d, err := time.ParseDuration(strings.TrimSpace(string(b))); err == nil {
				c.offset = d
			}
		}
	}
	return now.Add(c.offset)
}
