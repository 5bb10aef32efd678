package mvcc

import (
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	pvfs "github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// A disk that breaks while the engine is closed ends the closing: the engine
// itself would try to flush for ever. Abandoned, it can be closed then.
func TestCloseOnBrokenDisk(t *testing.T) {
	for _, before := range []bool{true, false} { // it is noticed before Close
		var broken atomic.Bool
		fs := errorfs.Wrap(pvfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if broken.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
				return errors.New("input/output error")
			}
			return nil
		}))
		fatal := make(chan error, 1)
		e, err := OpenEngine("state", EngineOptions{FS: fs, OnFatal: func(err error) { fatal <- err }})
		if err != nil {
			t.Fatal(err)
		}
		fill(t, e, 1, 50, 1, 100, 1)
		if err := e.Flush(); err != nil {
			t.Fatal(err)
		}
		b := e.db.NewBatch()
		if err := errors.Join(b.Set([]byte("\x00\x00\x00\x01k"), nil, nil), b.Commit(pebble.NoSync)); err != nil {
			t.Fatal(err)
		}
		broken.Store(true)
		if before {
			if err := e.flushSoon(); err != nil {
				t.Fatal(err)
			}
			<-fatal
			e.Abandon()
		}
		closed := make(chan error, 1)
		go func() {
			err := e.Close()
			if !before && err != nil { // as the host does
				e.Abandon()
				_ = e.Close() // it says that the disk is broken
			}
			closed <- err
		}()
		select {
		case err := <-closed:
			if !before && !errors.Is(err, errBroken) {
				t.Errorf("closed with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("Close does not return")
		}
		if !before {
			select {
			case <-fatal:
			default:
				t.Error("the error is not reported")
			}
		}
	}
}

// The engine counts all of its files, also those of an earlier life and when
// they have been replaced.
func TestDiskBytes(t *testing.T) {
	fs := pvfs.NewMem()
	onDisk := func() (sum uint64) {
		names, err := fs.List("state")
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			info, err := fs.Stat(fs.PathJoin("state", n))
			if errors.Is(err, os.ErrNotExist) {
				continue // the engine has removed it meanwhile
			}
			if err != nil {
				t.Fatal(err)
			}
			sum += uint64(info.Size())
		}
		return sum
	}
	for life := range 3 {
		e, err := OpenEngine("state", EngineOptions{FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		look := func() {
			t.Helper()
			m, err := e.Metrics()
			if err != nil {
				t.Fatal(err)
			}
			if have := onDisk(); m.DiskBytes < have/2 || m.DiskBytes > 2*have {
				t.Errorf("life %d: %d bytes are counted, the files have %d", life, m.DiskBytes, have)
			}
		}
		if life > 0 {
			look()
		}
		fill(t, e, 1, 500, 2, 4<<10, uint64(life))
		look()
		if life == 2 {
			start, end := GroupSpan(1)
			if err := e.db.Excise(t.Context(), pebble.KeyRange{Start: start, End: end}); err != nil {
				t.Fatal(err)
			}
			fill(t, e, 2, 500, 2, 4<<10, 9)
			look()
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Ranges that are removed are flushed for the sake of their space once there is
// some: many small ones do not make as many files.
func TestReclaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := OpenEngine("state", EngineOptions{FS: pvfs.NewMem()})
		if err != nil {
			t.Fatal(err)
		}
		remove := func(bytes uint64) {
			b := e.NewBatch(100)
			start, end := GroupSpan(1)
			if err := errors.Join(b.DeleteRange(start, end), b.Commit(bytes), b.Close()); err != nil {
				t.Fatal(err)
			}
		}
		flushed := func(want int64) {
			t.Helper()
			synctest.Wait() // it is done in the background
			if m, err := e.Metrics(); err != nil || m.Flushes != want {
				t.Errorf("%d flushes, want %d (%v)", m.Flushes, want, err)
			}
		}
		fill(t, e, 1, 10, 1, 1000, 1)
		for range 1000 {
			remove(reclaimBytes / 1000)
		}
		flushed(0)
		remove(reclaimBytes)
		flushed(1)
		remove(reclaimBytes)
		flushed(2)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A disk that is full ends the opening with an error, at whatever step it is.
func TestOpenOnFullDisk(t *testing.T) {
	disk := pvfs.NewCrashableMem()
	e, err := OpenEngine("state", EngineOptions{FS: disk})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, e, 1, 50, 4, 100, 1)
	crashed := disk.CrashClone(pvfs.CrashCloneCfg{})
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	for _, fresh := range []bool{true, false} {
		for free, opened := int64(0), false; !opened; free++ {
			fs := pvfs.NewCrashableMem()
			if !fresh {
				fs = crashed.CrashClone(pvfs.CrashCloneCfg{})
			}
			var writes atomic.Int64
			full := errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
				switch op.Kind {
				case errorfs.OpCreate, errorfs.OpMkdirAll, errorfs.OpLink, errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFilePreallocate:
					if writes.Add(1) > free {
						return syscall.ENOSPC
					}
				}
				return nil
			}))
			done := make(chan error, 1)
			go func() {
				e, err := OpenEngine("state", EngineOptions{FS: full, OnFatal: func(error) {}})
				if err == nil {
					opened = true
					e.Abandon()
					_ = e.Close() // it says that the disk is full
				}
				done <- err
			}()
			select {
			case err := <-done:
				if err != nil && !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("with room for %d writes: %v", free, err)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("with room for %d writes the opening does not end", free)
			}
		}
	}
}
