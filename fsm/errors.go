package fsm

import (
	"errors"
	"fmt"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
)

var (
	// ErrNewer: an entry, a row or a stream was written by a newer version of
	// the program. Nothing is damaged. Run the newer version again.
	ErrNewer = mvcc.ErrNewer
	// ErrDamaged: bytes that no version wrote. The replica must not go on with
	// them; wipe it and let it be rebuilt from the others.
	ErrDamaged = mvcc.ErrDamaged
	// ErrDiverged: this replica's state is not the leader's. It must not serve;
	// wipe it and let it be rebuilt.
	ErrDiverged = errors.New("fsm: this replica's state differs from the leader's")
	// ErrHalted: Apply failed before, and the machine does nothing since.
	ErrHalted = errors.New("fsm: the machine is halted")
)

// Error is a refused read. The code says what the caller may do next; the
// router words it.
type Error struct {
	Code    wire.Code
	Version uint64          // of the document, where one is known
	Epoch   placement.Epoch // of the group, for CodeStaleEpoch
	Detail  string
}

func (e *Error) Error() string {
	if e.Detail != "" {
		return "fsm: " + e.Detail
	}
	return fmt.Sprintf("fsm: refused with code %d", e.Code)
}

func refuse(code wire.Code, detail string) *Error { return &Error{Code: code, Detail: detail} }
