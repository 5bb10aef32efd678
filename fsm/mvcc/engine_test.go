package mvcc

import (
	"testing"

	"github.com/cockroachdb/pebble/v2"
	pvfs "github.com/cockroachdb/pebble/v2/vfs"
)

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
