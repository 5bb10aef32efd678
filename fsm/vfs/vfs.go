// Package vfs is the seam to the file system. Everything that stores state
// takes an FS, so that tests and the simulator can run on memory, lose unsynced
// data at a crash, fill the disk and return errors.
//
// It is the storage engine's own interface: one seam instead of two.
package vfs

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is a file system. Paths are joined with its PathJoin.
type FS = vfs.FS

// File is an open file of an FS.
type File = vfs.File

// WriteCategory is what a file is written for: a metric of the engine.
type WriteCategory = vfs.DiskWriteCategory

// Unspecified is the category of our own files.
const Unspecified = vfs.WriteCategoryUnspecified

// OS is the operating system's file system.
func OS() FS { return vfs.Default }

// Space says how full the volume of a directory is.
type Space struct {
	TotalBytes uint64
	FreeBytes  uint64 // that this process may use
}

// SpaceOf asks the file system that holds dir.
func SpaceOf(fs FS, dir string) (Space, error) {
	u, err := fs.GetDiskUsage(dir)
	if err != nil {
		return Space{}, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return Space{TotalBytes: u.TotalBytes, FreeBytes: u.AvailBytes}, nil
}

// WriteFile writes a file so that after a crash there is either the whole new
// content or what was there before: a temporary file, synced, renamed, and the
// directory synced.
func WriteFile(fs FS, path string, data []byte) (err error) {
	tmp := path + ".tmp"
	f, err := fs.Create(tmp, Unspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync())
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, fs.Remove(tmp))
	}
	if err := fs.Rename(tmp, path); err != nil {
		return err
	}
	return SyncDir(fs, fs.PathDir(path))
}

// ReadFile reads a file of at most limit bytes.
func ReadFile(fs FS, path string, limit int64) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, limit)
	}
	return data, nil
}

// SyncDir makes the names in a directory durable.
func SyncDir(fs FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// MakeDir creates a directory with its parents and makes the names of all of
// them durable.
func MakeDir(fs FS, dir string) error {
	parents := []string{fs.PathDir(dir)}
	for {
		last := parents[len(parents)-1]
		up := fs.PathDir(last)
		known, err := Exists(fs, last)
		if err != nil {
			return err
		}
		if known || up == last {
			break
		}
		parents = append(parents, up)
	}
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, parent := range parents {
		if err := SyncDir(fs, parent); err != nil {
			return err
		}
	}
	return nil
}

// Exists says whether there is a file or directory of that name.
func Exists(fs FS, path string) (bool, error) {
	_, err := fs.Stat(path)
	if err == nil {
		return true, nil
	}
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return false, err
}
