package wire

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// noLeaks fails the test if goroutines of this package are left when all else
// is cleaned up. Call it first.
func noLeaks(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		deadline := time.After(5 * time.Second)
		for {
			left := ours()
			if len(left) == 0 {
				return
			}
			select {
			case <-deadline:
				t.Errorf("%d goroutines left:\n\n%s", len(left), strings.Join(left, "\n\n"))
				return
			default:
				runtime.Gosched() // a goroutine that is joined may have its last instruction left
			}
		}
	})
}

// ours lists the goroutines that run code of this package and are no test.
func ours() (left []string) {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	for _, g := range strings.Split(string(buf), "\n\n") {
		if strings.Contains(g, "client/wire.") && !strings.Contains(g, "testing.tRunner") && !strings.Contains(g, "testing.(*B).run") {
			left = append(left, g)
		}
	}
	return left
}
