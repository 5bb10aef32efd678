package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/impossibledb/idb/fsm/vfs"
)

// journal is a map on a file: every change is appended as one record and
// synced before it counts. It stands in for bbolt, whose memory map has no
// place in a simulated file system.
//
//	| length u32 | crc32c u32 | change… |
//
// A record that was cut off by a crash ends the file: nothing after it was
// ever acknowledged. Once most of the file is history it is written anew.
//
// One writer at a time holds the turn, a channel and no mutex: a sync may take
// virtual time, and that stands still while anybody waits for a mutex.
type journal struct {
	fs   vfs.FS
	path string
	turn chan struct{} // of capacity 1: full while somebody writes
	file vfs.File      // holder of the turn only
	size int64         // holder of the turn only
	base int64         // of it, what was there when the file was written anew
	live func() []byte // the whole content as changes, for writing anew

	mu sync.RWMutex // guards what apply changes; never held during a sync
}

const (
	journalHeader = 8
	// maxChange bounds a record before it is read.
	maxChange = 64 << 20
	// journalSlack is how much history may gather at least.
	journalSlack = 256 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openJournal reads the file at path, or makes it, giving every change to
// apply. Live gives the whole content as changes.
func openJournal(fs vfs.FS, path string, apply func([]byte) error, live func() []byte) (*journal, error) {
	j := &journal{fs: fs, path: path, turn: make(chan struct{}, 1), live: live}
	known, err := vfs.Exists(fs, path)
	if err != nil {
		return nil, err
	}
	if known {
		content, err := vfs.ReadFile(fs, path, 1<<30)
		if err != nil {
			return nil, err
		}
		for len(content) >= journalHeader {
			n := binary.BigEndian.Uint32(content)
			if n > maxChange || int(n) > len(content)-journalHeader {
				break
			}
			change := content[journalHeader : journalHeader+n]
			if checksum(change) != binary.BigEndian.Uint32(content[4:]) {
				break
			}
			if err := apply(change); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			content = content[journalHeader+n:]
		}
	}
	// What was read may not be durable, and a cut-off record may be in the way.
	return j, j.rewrite()
}

// rewrite replaces the file by one without history.
func (j *journal) rewrite() error {
	if j.file != nil {
		if err := j.file.Close(); err != nil {
			return err
		}
		j.file = nil
	}
	j.mu.RLock()
	content := j.live()
	j.mu.RUnlock()
	if err := vfs.WriteFile(j.fs, j.path, content); err != nil {
		return err
	}
	f, err := j.fs.OpenReadWrite(j.path, vfs.Unspecified)
	if err != nil {
		return err
	}
	j.file, j.size, j.base = f, int64(len(content)), int64(len(content))
	return nil
}

// appendRecord frames a change.
func appendRecord(b, change []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(change)))
	b = binary.BigEndian.AppendUint32(b, checksum(change))
	return append(b, change...)
}

// write makes a change durable, then applies it. After a failure the journal
// takes nothing more: what is on the file is not known.
func (j *journal) write(change []byte, apply func()) error {
	j.turn <- struct{}{}
	defer func() { <-j.turn }()
	if j.file == nil {
		return errJournalClosed
	}
	record := appendRecord(nil, change)
	_, err := j.file.WriteAt(record, j.size)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		_ = j.file.Close() // the error that counts is err
		j.file = nil
		return err
	}
	j.size += int64(len(record))
	j.mu.Lock()
	apply()
	j.mu.Unlock()
	if j.size > 4*j.base+journalSlack {
		return j.rewrite()
	}
	return nil
}

var errJournalClosed = errors.New("journal is closed")

func (j *journal) close() error {
	j.turn <- struct{}{}
	defer func() { <-j.turn }()
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}

// changeReader takes a change apart.
type changeReader struct {
	b   []byte
	err error
}

func (r *changeReader) fail() {
	if r.err == nil {
		r.err = io.ErrUnexpectedEOF
	}
	r.b = nil
}

func (r *changeReader) u8() byte {
	if len(r.b) < 1 {
		r.fail()
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *changeReader) u64() uint64 {
	if len(r.b) < 8 {
		r.fail()
		return 0
	}
	v := binary.BigEndian.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

func (r *changeReader) bytes() []byte {
	if len(r.b) < 4 {
		r.fail()
		return nil
	}
	n := binary.BigEndian.Uint32(r.b)
	if uint64(n) > uint64(len(r.b)-4) {
		r.fail()
		return nil
	}
	v := r.b[4 : 4+n]
	r.b = r.b[4+n:]
	return v
}

func appendBytes(b, v []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
