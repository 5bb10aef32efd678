package shardgroup

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/impossibledb/idb/placement"
)

// StableStore keeps terms and votes, all groups of a node in one.
type StableStore interface {
	raft.StableStore
	io.Closer
}

// OpenBoltStable is the default factory: a raft-boltdb file at path.
func OpenBoltStable(path string) (StableStore, error) {
	s, err := openBolt(path)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func openBolt(path string) (*raftboltdb.BoltStore, error) {
	s, err := raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout:        2 * time.Second, // another process holds the file
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("shardgroup: open vote store %s: %w", path, err)
	}
	return s, nil
}

// errNotFound is what raft expects for a key that was never set: it compares
// the text.
var errNotFound = errors.New("not found")

// groupStable is one group's part of the node's StableStore.
//
// raft panics when it cannot save a term, and goes on when it cannot save a
// vote. Neither may happen on a broken disk: fatal cuts the node off first,
// and stop ends the goroutine that asked.
type groupStable struct {
	store  raft.StableStore
	prefix string
	fatal  func(error)
	stop   func()
	busy   busy // the write that runs now
}

func newGroupStable(s raft.StableStore, g placement.GroupID, clock *stopwatch, fatal func(error), stop func()) *groupStable {
	return &groupStable{store: s, prefix: fmt.Sprintf("%08x/", uint32(g)), fatal: fatal, stop: stop, busy: busy{clock: clock}}
}

func (s *groupStable) key(k []byte) []byte {
	return append(append(make([]byte, 0, len(s.prefix)+len(k)), s.prefix...), k...)
}

func (s *groupStable) failed(doing string, k []byte, err error) error {
	err = fmt.Errorf("shardgroup: %s %s%s in the vote store: %w", doing, s.prefix, k, err)
	s.fatal(err)
	s.stop()
	return err
}

// Set stores a value and returns when it is on disk.
func (s *groupStable) Set(k, v []byte) error {
	s.busy.begin()
	err := s.store.Set(s.key(k), v)
	s.busy.end()
	if err != nil {
		return s.failed("write", k, err)
	}
	return nil
}

// Get reads a value.
func (s *groupStable) Get(k []byte) ([]byte, error) {
	v, err := s.store.Get(s.key(k))
	if err != nil {
		if err.Error() == errNotFound.Error() {
			return nil, errNotFound
		}
		return nil, s.failed("read", k, err)
	}
	return v, nil
}

// SetUint64 stores a number and returns when it is on disk.
func (s *groupStable) SetUint64(k []byte, v uint64) error {
	s.busy.begin()
	err := s.store.SetUint64(s.key(k), v)
	s.busy.end()
	if err != nil {
		return s.failed("write", k, err)
	}
	return nil
}

// GetUint64 reads a number.
func (s *groupStable) GetUint64(k []byte) (uint64, error) {
	v, err := s.store.GetUint64(s.key(k))
	if err != nil {
		if err.Error() == errNotFound.Error() {
			return 0, errNotFound
		}
		return 0, s.failed("read", k, err)
	}
	return v, nil
}
