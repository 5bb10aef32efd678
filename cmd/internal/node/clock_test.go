package node

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestClockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	for _, tc := range []struct {
		text string
		off  time.Duration
	}{{"", 0}, {"1h\n", time.Hour}, {"-30s", -30 * time.Second}, {"nonsense", 0}} {
		now := ClockFile(path) // reads at its first call
		if tc.text != "" {
			if err := os.WriteFile(path, []byte(tc.text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := time.Until(now()); (got - tc.off).Abs() > time.Minute {
			t.Errorf("%q: off by %v", tc.text, got)
		}
	}
	// A change is seen a moment later.
	now := ClockFile(path)
	_ = now()
	if err := os.WriteFile(path, []byte("2h"), 0o644); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(10 * time.Second); time.Until(now()) < time.Hour; {
		if time.Now().After(until) {
			t.Fatal("the change was never seen")
		}
		time.Sleep(time.Millisecond) // polls: the clock has nothing to wait on
	}
}
