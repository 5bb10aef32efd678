package placement

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cespare/xxhash/v2"

	"github.com/impossibledb/idb/fsm/vfs"
)

// The cache file is the last state this node saw, followed by a checksum:
//
//	state record | xxhash64 of it, big endian
//
// It lets a node that is no member start its groups before it has reached one.
// It is never the truth: losing it costs one question to a member.

// maxCacheBytes bounds what is read back: the limits of the state allow less.
const maxCacheBytes = 32 << 20

// cacheLoop writes the file whenever a state newer than the one written was
// published. Publications that come during a write are covered by the next one.
func (s *Service) cacheLoop(written uint64) {
	defer s.bg.Done()
	if s.opts.Path == "" {
		return
	}
	for {
		changed := s.Changed()
		if v := s.View(); v.Applied > written {
			if err := writeCache(s.opts.FS, s.opts.Path, v.State); err != nil {
				s.opts.Logger.Warn("placement cache not written", "path", s.opts.Path, "error", err)
			}
			written = v.Applied
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
			return
		}
	}
}

// readCache answers nil, nil when there is no file.
func readCache(fs vfs.FS, path string) (*State, error) {
	b, err := vfs.ReadFile(fs, path, maxCacheBytes)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b) < 8 {
		return nil, fmt.Errorf("%w: cache of %d bytes", ErrDamaged, len(b))
	}
	record, sum := b[:len(b)-8], binary.BigEndian.Uint64(b[len(b)-8:])
	if xxhash.Sum64(record) != sum {
		return nil, fmt.Errorf("%w: cache checksum", ErrDamaged)
	}
	return decodeState(record)
}

// writeCache replaces the file: all of it or nothing, also at a power loss.
func writeCache(fs vfs.FS, path string, s *State) error {
	b := encodeState(s)
	b = binary.BigEndian.AppendUint64(b, xxhash.Sum64(b))
	return vfs.WriteFile(fs, path, b)
}
