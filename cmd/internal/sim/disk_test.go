package sim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/impossibledb/idb/fsm/vfs"

	pebble "github.com/cockroachdb/pebble/v2/vfs"
)

// TestDiskIsAFileSystem plays the same random operations on a drive and on the
// storage engine's own memory file system: both must answer the same.
func TestDiskIsAFileSystem(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 0))
		a, b := vfs.FS(NewDrive(rng).Mount()), vfs.FS(pebble.NewMem())
		both := func(what string, f func(vfs.FS) (string, error)) {
			t.Helper()
			x, xerr := f(a)
			y, yerr := f(b)
			if x != y || (xerr == nil) != (yerr == nil) || errors.Is(xerr, os.ErrNotExist) != errors.Is(yerr, os.ErrNotExist) {
				t.Fatalf("seed %d: %s: %q, %v on the drive, %q, %v in memory", seed, what, x, xerr, y, yerr)
			}
		}
		dirs := []string{"/", "/a", "/b", "/a/c"}
		path := func() string { return dirs[rng.IntN(len(dirs))] + "/" + string(rune('u'+rng.IntN(4))) }
		for _, d := range []string{"/a/c", "/b"} {
			both("mkdir "+d, func(fs vfs.FS) (string, error) { return "", fs.MkdirAll(d, 0o755) })
		}
		for range 200 {
			p, q := path(), path()
			data := bytes.Repeat([]byte{byte(rng.IntN(256))}, rng.IntN(3*pageSize))
			off := int64(rng.IntN(2 * pageSize))
			switch rng.IntN(8) {
			case 0:
				both("write "+p, func(fs vfs.FS) (string, error) {
					f, err := fs.Create(p, vfs.Unspecified)
					if err != nil {
						return "", err
					}
					_, err = f.Write(slices.Clone(data))
					_, err2 := f.Write([]byte("tail"))
					return "", errors.Join(err, err2, f.Sync(), f.Close())
				})
			case 1:
				both("write at "+p, func(fs vfs.FS) (string, error) {
					f, err := fs.OpenReadWrite(p, vfs.Unspecified)
					if err != nil {
						return "", err
					}
					_, err = f.WriteAt(data, off)
					return "", errors.Join(err, f.Close())
				})
			case 2:
				both("remove "+p, func(fs vfs.FS) (string, error) { return "", fs.Remove(p) })
			case 3:
				if p != q {
					both("rename "+p+" "+q, func(fs vfs.FS) (string, error) { return "", fs.Rename(p, q) })
				}
			case 4:
				// Not among the names that are renamed: two names of one file are
				// no case for a comparison, the memory file system loses one.
				l := fmt.Sprintf("/b/l%d", rng.IntN(4))
				both("link "+p+" "+l, func(fs vfs.FS) (string, error) { return "", fs.Link(p, l) })
				both("read "+l, content(l, off))
			case 5:
				both("list", func(fs vfs.FS) (string, error) {
					names, err := fs.List("/a")
					slices.Sort(names)
					return fmt.Sprint(names), err
				})
			default:
				both("read "+p, content(p, off))
			}
		}
	}
}

// content reads a file in every way and answers what it saw, in short.
func content(name string, off int64) func(vfs.FS) (string, error) {
	return func(fs vfs.FS) (string, error) {
		f, err := fs.Open(name)
		if err != nil {
			return "", err
		}
		defer f.Close()
		all, err := io.ReadAll(f)
		part := make([]byte, 100)
		n, _ := f.ReadAt(part, off)
		info, serr := f.Stat()
		return fmt.Sprintf("%x %x %d", checksum(all), part[:n], info.Size()), errors.Join(err, serr)
	}
}

func write(t *testing.T, fs vfs.FS, name, content string, sync bool) {
	t.Helper()
	f := must(fs.OpenReadWrite(name, vfs.Unspecified))(t)
	must(f.WriteAt([]byte(content), 0))(t)
	if sync {
		ok(t, f.Sync())
	}
	ok(t, f.Close())
}

func read(t *testing.T, fs vfs.FS, name string) string {
	t.Helper()
	b, err := vfs.ReadFile(fs, name, 1<<20)
	if errors.Is(err, os.ErrNotExist) {
		return "-"
	}
	ok(t, err)
	return string(b)
}

// TestPowerLoss: what was synced is there, what was not is not, or in part.
func TestPowerLoss(t *testing.T) {
	old, fresh := bytes.Repeat([]byte("o"), 2*pageSize), bytes.Repeat([]byte("n"), 2*pageSize)
	seen := map[string]bool{}
	for seed := range uint64(200) {
		d := NewDrive(rand.New(rand.NewPCG(seed, 0)))
		m := d.Mount()
		write(t, m, "/synced", string(old), true)
		write(t, m, "/unnamed", "x", true)
		ok(t, vfs.SyncDir(m, "/"))
		write(t, m, "/late", "late", true) // its name is not durable
		write(t, m, "/synced", string(fresh), false)
		ok(t, m.Remove("/unnamed"))
		keep := []float64{0, 0.5, 1}[seed%3]
		d.CutPower(keep)
		after := d.Mount()
		got := read(t, after, "/synced")
		var olds, news int
		for at := 0; at < len(got); at += sectorSize {
			sector := got[at : at+sectorSize]
			switch {
			case sector == string(old[:sectorSize]):
				olds++
			case sector == string(fresh[:sectorSize]):
				news++
			default:
				t.Fatalf("a sector is neither old nor new: %q", sector)
			}
		}
		switch {
		case len(got) != len(old):
			t.Fatalf("%d bytes are left of %d", len(got), len(old))
		case keep == 0 && (news > 0 || read(t, after, "/late") != "-" || read(t, after, "/unnamed") != "x"):
			t.Fatal("something survived that was not synced")
		case keep == 1 && (olds > 0 || read(t, after, "/late") != "late" || read(t, after, "/unnamed") != "-"):
			t.Fatal("something was lost although all was to be kept")
		case keep == 0.5 && olds > 0 && news > 0:
			seen["torn"] = true
		}
		seen[fmt.Sprint(keep, read(t, after, "/late"))] = true
		if got := read(t, m, "/synced"); got != string(fresh) {
			t.Fatal("the process that was cut off notices")
		}
		write(t, m, "/synced", "from the grave", true)
		if got2 := read(t, after, "/synced"); got2 != got {
			t.Fatal("a process that was cut off still writes")
		}
		// What is found after a power loss is durable.
		d.CutPower(0)
		if again := read(t, d.Mount(), "/synced"); again != got {
			t.Fatal("a second power loss takes more")
		}
	}
	for _, want := range []string{"torn", "0.5late", "0.5-"} {
		if !seen[want] {
			t.Errorf("never seen: %s", want)
		}
	}
}

// TestKill: a process's end loses nothing, and makes nothing durable either.
func TestKill(t *testing.T) {
	d := NewDrive(rand.New(rand.NewPCG(1, 0)))
	m := d.Mount()
	write(t, m, "/f", "old", true)
	ok(t, vfs.SyncDir(m, "/"))
	write(t, m, "/f", "new", false)
	lock := must(m.Lock("/LOCK"))(t)
	if _, err := m.Lock("/LOCK"); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("a second lock: %v", err)
	}
	d.Kill()
	m2 := d.Mount()
	if got := read(t, m2, "/f"); got != "new" {
		t.Errorf("after a kill the file is %q", got)
	}
	must(m2.Lock("/LOCK"))(t) // the dead hold no locks
	write(t, m, "/f", "from the grave", true)
	ok(t, lock.Close())
	if got := read(t, m2, "/f"); got != "new" {
		t.Errorf("the dead write %q", got)
	}
	d.CutPower(0)
	if got := read(t, d.Mount(), "/f"); got != "old" {
		t.Errorf("a kill has made %q durable", got)
	}
}

// TestDriveFaults: each fault does what it says, and ends.
func TestDriveFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDrive(rand.New(rand.NewPCG(1, 0)))
		m := d.Mount()
		f := must(m.Create("/f", vfs.Unspecified))(t)
		takes := func() time.Duration {
			begun := time.Now()
			ok(t, f.Sync())
			return time.Since(begun)
		}
		if took := takes(); took <= 0 || took > time.Millisecond {
			t.Errorf("a sync takes %v", took)
		}
		d.Slow(time.Second, 0)
		if took := takes(); took != time.Second {
			t.Errorf("a slow sync takes %v", took)
		}
		d.Repair()
		for _, hang := range []struct{ begin, end func() }{{d.Hang, d.Repair}, {d.Stop, d.Continue}} {
			hang.begin()
			time.AfterFunc(time.Minute, hang.end)
			if took := takes(); took < time.Minute {
				t.Errorf("a sync that hangs takes %v", took)
			}
		}
		d.Fail(syscall.EIO)
		if _, err := f.Write([]byte("x")); !errors.Is(err, syscall.EIO) {
			t.Errorf("a write to a broken drive: %v", err)
		}
		if err := f.Sync(); !errors.Is(err, syscall.EIO) {
			t.Errorf("a sync of a broken drive: %v", err)
		}
		d.Repair()
		d.Fill(100)
		if _, err := f.Write(make([]byte, 101)); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a write to a full drive: %v", err)
		}
		must(f.Write(make([]byte, 90)))(t)
		if u := must(m.GetDiskUsage("/"))(t); u.AvailBytes != 10 {
			t.Errorf("%d bytes are free", u.AvailBytes)
		}
		ok(t, m.Remove("/f"))
		if u := must(m.GetDiskUsage("/"))(t); u.AvailBytes != 100 {
			t.Errorf("%d bytes are free after the file is gone", u.AvailBytes)
		}
		d.Hang()
		g := must(m.OpenReadWrite("/g", vfs.Unspecified))(t)
		time.AfterFunc(time.Second, d.Kill)
		ok(t, g.Sync()) // the dead wait for nothing
	})
}

func TestFlip(t *testing.T) {
	d := NewDrive(rand.New(rand.NewPCG(1, 0)))
	m := d.Mount()
	write(t, m, "/f", "\x00\x00", true)
	ok(t, vfs.SyncDir(m, "/"))
	ok(t, d.Flip("/f", 9))
	d.CutPower(0)
	if got := read(t, d.Mount(), "/f"); got != "\x00\x02" {
		t.Errorf("%x", got)
	}
}
