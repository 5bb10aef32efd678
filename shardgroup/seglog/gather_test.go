package seglog

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// expectedAppend appends an entry that was expected, and says when it is on disk.
func expectedAppend(t *testing.T, l *Log, group uint32, index uint64) <-chan struct{} {
	done := make(chan struct{})
	go func() { // joined by who receives
		defer close(done)
		if err := l.AppendExpected(group, index, payloads{payloadOf(group, index, 1, 100)}, 1); err != nil {
			t.Error(err)
		}
	}()
	synctest.Wait()
	return done
}

func written(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Appends that are expected share one write, and nobody waits for a timer.
func TestExpectedAppendsShareAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, vfs.NewMem(), Options{})
		defer shut(t, l)
		before, begun := l.Metrics().Batches, time.Now()
		l.Expect(4)
		first, second := expectedAppend(t, l, 1, 1), expectedAppend(t, l, 2, 1)
		if written(first) || written(second) {
			t.Fatal("an append did not wait for the others")
		}
		third := expectedAppend(t, l, 3, 1)
		l.Forgo(1) // the fourth will not come
		<-first
		<-second
		<-third
		if n := l.Metrics().Batches - before; n != 1 {
			t.Errorf("three appends that were expected made %d writes", n)
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("they waited for %v", took)
		}
		put(t, l, 1, 2, 1, 100)
		if took := time.Since(begun); took != 0 {
			t.Errorf("an append after them waited for %v", took)
		}
	})
}

// What is expected and does not come holds up one write, and that for little.
func TestExpectedDoNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, vfs.NewMem(), Options{})
		defer shut(t, l)
		begun := time.Now()
		l.Expect(3)
		<-expectedAppend(t, l, 1, 1)
		if took := time.Since(begun); took != gatherTime {
			t.Errorf("it waited %v for appends that did not come, want %v", took, gatherTime)
		}
		put(t, l, 1, 2, 1, 100)
		l.Forgo(2) // late
		l.Expect(1)
		<-expectedAppend(t, l, 1, 3)
		if took := time.Since(begun); took != gatherTime {
			t.Errorf("appends after it waited for %v", took-gatherTime)
		}
		if s := l.Metrics().GatherSeconds; s != gatherTime.Seconds() {
			t.Errorf("the metric says %v s", s)
		}
	})
}
