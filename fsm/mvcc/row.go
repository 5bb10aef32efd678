package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/impossibledb/idb/txn/hlc"
)

// A document row:
//
//	| format u8 | flags u8 | created u64 | version uvarint | body |
//
// The format is 1. A tombstone has no body. When it was written is in the key.
const (
	rowFormat    = 1
	flagDeleted  = 1 << 0
	knownFlags   = flagDeleted
	rowFixed     = 10
	MaxRowHeader = rowFixed + binary.MaxVarintLen64
)

// ErrNewer is returned for what a newer version of the program wrote: nothing
// is damaged, but this program must not touch it.
var ErrNewer = errors.New("written by a newer version")

// ErrDamaged is returned for bytes that no version wrote.
var ErrDamaged = errors.New("damaged")

// Row is one version of one document.
type Row struct {
	Version uint64
	Created hlc.Timestamp
	Updated hlc.Timestamp // from the key
	Deleted bool
	Body    []byte // may be the engine's memory: see who returned it
}

// AppendRow appends the row's bytes.
func AppendRow(dst []byte, r *Row) []byte {
	var flags byte
	if r.Deleted {
		flags |= flagDeleted
	}
	dst = append(dst, rowFormat, flags)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Created))
	dst = binary.AppendUvarint(dst, r.Version)
	return append(dst, r.Body...)
}

// DecodeRow reads a row. Body is a part of b.
func DecodeRow(b []byte) (Row, error) {
	if len(b) > 0 && b[0] > rowFormat {
		return Row{}, fmt.Errorf("mvcc: row of format %d: %w", b[0], ErrNewer)
	}
	if len(b) < rowFixed+1 || b[0] != rowFormat {
		return Row{}, fmt.Errorf("mvcc: row of %d bytes: %w", len(b), ErrDamaged)
	}
	if b[1]&^knownFlags != 0 {
		return Row{}, fmt.Errorf("mvcc: row with flags %#x: %w", b[1], ErrNewer)
	}
	version, n := binary.Uvarint(b[rowFixed:])
	if n <= 0 || version == 0 || n > 1 && b[rowFixed+n-1] == 0 {
		return Row{}, fmt.Errorf("mvcc: row without a version: %w", ErrDamaged)
	}
	r := Row{
		Version: version,
		Created: hlc.Timestamp(binary.BigEndian.Uint64(b[2:])),
		Deleted: b[1]&flagDeleted != 0,
		Body:    b[rowFixed+n:],
	}
	if r.Deleted && len(r.Body) != 0 {
		return Row{}, fmt.Errorf("mvcc: tombstone with a body: %w", ErrDamaged)
	}
	return r, nil
}
