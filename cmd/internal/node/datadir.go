package node

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/impossibledb/idb/fsm/vfs"
)

// formatVersion is the layout of the data directory that this build writes.
// Any other is refused: before 1.0 layouts change without a migration.
//
//	1  the log was a storage engine
//	2  the log is segment files (shardgroup/seglog)
//	3  the placement group remembers requests (placement/answers.go)
//	4  answers and counts are sealed in rows for many (fsm/tail.go)
//	5  home may stage a transaction (txn/DESIGN.md)
//	6  records of transactions begin in an entry's tail (fsm/tail.go)
//	7  how transactions have ended is kept as answers are (fsm/ends.go)
const formatVersion = 7

// Files and folders of a data directory:
//
//	LOCK        held while a process uses the directory
//	IDENTITY    whose it is: node name, incarnation, format
//	CLUSTER     the cluster it was adopted by; absent before
//	TOPOLOGY    the last placement map seen
//	raft.db     terms and votes of all groups
//	log/        the log of all groups   state/  the state engine
//	placement/  the placement group     install/ snapshots being received
const (
	fileLock     = "LOCK"
	fileIdentity = "IDENTITY"
	fileCluster  = "CLUSTER"
	fileTopology = "TOPOLOGY"
)

// identity is the IDENTITY file. Incarnation is random and made with the
// directory: a node that lost its disk is another voter, whatever its name.
type identity struct {
	Format      int    `json:"format"`
	Node        string `json:"node"`
	Incarnation string `json:"incarnation"`
}

// dataDir is an open, locked data directory.
type dataDir struct {
	fs   vfs.FS
	path string
	id   identity
	lock io.Closer
}

// openDataDir locks path and checks that it is this node's, or makes it so if
// it is empty. Every refusal is one line that says what to do.
func openDataDir(fs vfs.FS, path, node string) (_ *dataDir, err error) {
	if err := vfs.MakeDir(fs, path); err != nil {
		return nil, fmt.Errorf("data directory %s cannot be made: %w (check the path and its permissions)", path, cause(err))
	}
	lock, err := fs.Lock(filepath.Join(path, fileLock))
	if err != nil {
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) && canWrite(fs, path) || strings.Contains(err.Error(), "held by current process") {
			return nil, fmt.Errorf("data directory %s is in use by another idb process (stop it, or give this node a directory of its own)", path)
		}
		return nil, fmt.Errorf("data directory %s is not writable: %w (check permissions and free space)", path, cause(err))
	}
	d := &dataDir{fs: fs, path: path, lock: lock}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()

	err = d.readJSON(fileIdentity, &d.id)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return d, d.create(node)
	case err != nil:
		return nil, fmt.Errorf("data directory %s: its %s file is damaged: %w (restore it from a backup, or start with an empty directory)", path, fileIdentity, err)
	case d.id.Format > formatVersion:
		return nil, fmt.Errorf("data directory %s has format %d and this idb (%s) reads up to %d: use a newer idb", path, d.id.Format, Version, formatVersion)
	case d.id.Format >= 1 && d.id.Format < formatVersion:
		return nil, fmt.Errorf("data directory %s has format %d and this idb (%s) reads format %d only: export with the idb that wrote it, and import into an empty directory", path, d.id.Format, Version, formatVersion)
	case d.id.Format < 1 || d.id.Incarnation == "":
		return nil, fmt.Errorf("data directory %s: its %s file is damaged (restore it from a backup, or start with an empty directory)", path, fileIdentity)
	case d.id.Node != node:
		return nil, fmt.Errorf("data directory %s belongs to node %q, not %q (start with --id %s, or give another directory)", path, d.id.Node, node, d.id.Node)
	}
	return d, nil
}

// create makes an empty directory this node's.
func (d *dataDir) create(node string) error {
	names, err := d.fs.List(d.path)
	if err != nil {
		return fmt.Errorf("data directory %s cannot be read: %w", d.path, cause(err))
	}
	for _, n := range names {
		// lost+found is what a fresh file system has; a half-made identity is ours.
		if n != fileLock && n != "lost+found" && n != fileIdentity+".tmp" {
			return fmt.Errorf("data directory %s is not empty and not an idb directory (it holds %q): give an empty one", d.path, n)
		}
	}
	var raw [16]byte
	_, _ = rand.Read(raw[:])
	d.id = identity{Format: formatVersion, Node: node, Incarnation: hex.EncodeToString(raw[:])}
	if err := d.writeJSON(fileIdentity, d.id); err != nil {
		return fmt.Errorf("data directory %s is not writable: %w (check permissions and free space)", d.path, cause(err))
	}
	return nil
}

// Close releases the lock.
func (d *dataDir) Close() error { return d.lock.Close() }

func (d *dataDir) readJSON(name string, v any) error {
	b, err := vfs.ReadFile(d.fs, filepath.Join(d.path, name), 64<<20)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// writeJSON replaces a file so that after a crash it is the old or the new one.
func (d *dataDir) writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return vfs.WriteFile(d.fs, filepath.Join(d.path, name), append(b, '\n'))
}

func canWrite(fs vfs.FS, dir string) bool {
	name := filepath.Join(dir, ".probe")
	if err := vfs.WriteFile(fs, name, nil); err != nil {
		return false
	}
	return fs.Remove(name) == nil
}

// cause drops the "open /path:" that the message around it already says.
func cause(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
