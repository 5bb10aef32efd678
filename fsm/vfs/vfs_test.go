package vfs

import (
	"errors"
	"testing"

	pvfs "github.com/cockroachdb/pebble/v2/vfs"
)

// lost is what a power loss now would leave, without anything unsynced.
func lost(fs *pvfs.MemFS) FS { return fs.CrashClone(pvfs.CrashCloneCfg{}) }

func touch(t *testing.T, fs FS, path string) {
	t.Helper()
	f, err := fs.Create(path, Unspecified)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func there(t *testing.T, fs FS, path string) bool {
	t.Helper()
	ok, err := Exists(fs, path)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// TestOrdered: when a marker comes to be, what it names is there to stay.
func TestOrdered(t *testing.T) {
	mem := pvfs.NewCrashableMem()
	fs := Ordered(mem)
	if err := MakeDir(fs, "db"); err != nil {
		t.Fatal(err)
	}
	touch(t, fs, "db/MANIFEST-000007")
	if there(t, lost(mem), "db/MANIFEST-000007") {
		t.Fatal("the manifest's name is durable already: nothing is tested")
	}
	touch(t, fs, "db/marker.manifest.000002.MANIFEST-000007")
	if !there(t, lost(mem), "db/MANIFEST-000007") {
		t.Error("a power loss can keep the marker and lose the manifest")
	}
	if pvfs.Root(fs) != pvfs.FS(mem) {
		t.Error("the engine does not find the file system underneath")
	}
}

func TestWriteFile(t *testing.T) {
	mem := pvfs.NewCrashableMem()
	if err := MakeDir(mem, "d"); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"one", "another"} {
		if err := WriteFile(mem, "d/f", []byte(content)); err != nil {
			t.Fatal(err)
		}
		got, err := ReadFile(lost(mem), "d/f", 10)
		if err != nil || string(got) != content {
			t.Fatalf("after a power loss: %q, %v", got, err)
		}
	}
	if there(t, mem, "d/f.tmp") {
		t.Error("a temporary file is left")
	}
	if _, err := ReadFile(mem, "d/f", 3); err == nil {
		t.Error("a file longer than the limit was read")
	}
}

func TestSpaceOf(t *testing.T) {
	s, err := SpaceOf(OS(), t.TempDir())
	if err != nil || s.TotalBytes == 0 || s.FreeBytes > s.TotalBytes {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := SpaceOf(OS(), t.TempDir()+"/missing"); err == nil {
		t.Error("space of a missing directory")
	}
}

// A power loss after MakeDir loses no level of a new path.
func TestMakeDirIsDurable(t *testing.T) {
	mem := pvfs.NewCrashableMem()
	if err := MakeDir(mem, "a/b/c"); err != nil {
		t.Fatal(err)
	}
	if !there(t, lost(mem), "a/b/c") {
		t.Error("a power loss took a new directory")
	}
}
