package shardgroup

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/go-hclog"

	files "github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/seglog"
)

// Kinds of records that the node's log has under keys, one per group each.
const (
	keyGroup   = 2 // who is in the group
	keyMarker  = 3 // its last snapshot
	keyPending = 4 // a snapshot that is being installed
)

func groupKey(kind byte, g placement.GroupID) seglog.Key {
	return seglog.Key{Kind: kind, Group: uint32(g)}
}

// openNodeLog opens the log that all groups of the node share. A file beside
// its directory remembers that it was begun: without it, a directory that was
// emptied would be taken for that of a new node.
func openNodeLog(fs vfs.FS, dir string, o seglog.Options, log hclog.Logger, fatal func(error)) (*seglog.Log, error) {
	made := dir + madeSuffix
	known, err := files.Exists(fs, made)
	if err != nil {
		return nil, fmt.Errorf("shardgroup: open log: %w", err)
	}
	o.Existing, o.Logger = known, log.Named("log")
	o.Fatal = func(err error) { fatal(fmt.Errorf("shardgroup: log: %w", err)) }
	l, err := seglog.Open(fs, dir, o)
	switch {
	case errors.Is(err, seglog.ErrDamaged):
		return nil, fmt.Errorf("shardgroup: %w (the disk lost or changed what was synced; wipe this node's data and let it be copied again)", err)
	case errors.Is(err, seglog.ErrNewer):
		return nil, fmt.Errorf("shardgroup: %w (use the version that wrote it, or a newer one)", err)
	case err != nil:
		return nil, fmt.Errorf("shardgroup: %w", err)
	}
	if !known {
		if err := files.WriteFile(fs, made, nil); err != nil {
			return nil, errors.Join(fmt.Errorf("shardgroup: open log: %w", err), l.Close())
		}
	}
	return l, nil
}

const madeSuffix = ".made"

// openOnce opens an engine's directory, and cleans up after a power cut in the
// middle of its very first opening, which leaves what no engine can open. That
// the first opening came to its end is remembered in a file beside it; without
// that file nothing was ever stored in the directory.
func openOnce(fs vfs.FS, dir string, open func() error) error {
	made := dir + madeSuffix
	known, err := files.Exists(fs, made)
	if err != nil {
		return err
	}
	err = open()
	if err != nil && !known {
		if err := fs.RemoveAll(dir); err != nil {
			return err
		}
		if err := files.MakeDir(fs, dir); err != nil {
			return err
		}
		err = open()
	}
	if err != nil || known {
		return err
	}
	return files.WriteFile(fs, made, nil)
}
