package wire

import (
	"os/exec"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// A process that rests is woken by a silent read, and what it does then takes all
// its processors: another goroutine that is ready must have its turn all the same.
func TestSilentCallsLeaveTheMonitorAwake(t *testing.T) {
	for name, script := range map[string]string{
		"after a rest":      "printf x; sleep 0.3; printf y",
		"after other calls": "for i in 1 2 3 4 5 6 7 8 9 10; do printf x; sleep 0.004; done; printf y",
	} {
		t.Run(name, func(t *testing.T) { wokenByAnother(t, script) })
	}
}

// wokenByAnother reads what the script writes up to y, and computes then.
func wokenByAnother(t *testing.T, script string) {
	t.Helper()
	ours, theirs := socketPair(t)
	file, err := theirs.File()
	if err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	// Another process wakes this one: nothing here may.
	writer := exec.Command("sh", "-c", script+"; exec sleep 60")
	writer.Stdout = file
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	defer func() {
		_ = writer.Process.Kill()
		_ = writer.Wait()
	}()

	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	s := testSocket(t, ours)
	b := make([]byte, 1)
	for b[0] != 'y' {
		if _, err := s.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	var turn atomic.Bool
	go turn.Store(true)
	began := time.Now()
	for !turn.Load() && time.Since(began) < 10*time.Second {
	}
	if !turn.Load() {
		t.Fatal("a goroutine that was ready had no turn for 10 s")
	}
	t.Logf("it had its turn after %s", time.Since(began))
}
