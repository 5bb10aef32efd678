package vfs

import "strings"

// Ordered makes the storage engine safe on file systems that make the names in
// a directory durable in any order until it is synced, as POSIX allows.
//
// The engine switches to a new manifest by creating a marker file that names
// it, and syncs the directory only then: a power loss in between may keep the
// marker and lose the manifest, and the store cannot be opened again (the
// crash tests found it). So the directory is synced before a marker is
// created, too. Markers are rare: at every opening, and when a manifest is full.
func Ordered(fs FS) FS { return ordered{fs} }

type ordered struct{ FS }

func (o ordered) Create(name string, c WriteCategory) (File, error) {
	if strings.HasPrefix(o.PathBase(name), "marker.") {
		if err := SyncDir(o.FS, o.PathDir(name)); err != nil {
			return nil, err
		}
	}
	return o.FS.Create(name, c)
}

// Unwrap is how the engine finds what is underneath.
func (o ordered) Unwrap() FS { return o.FS }
