package leader

import (
	"encoding/binary"
	"fmt"

	"github.com/impossibledb/idb/fsm/mutant"
)

// Stamp is what goes with an entry into the log: the term that the proposer
// believed to lead when it gave the entry's commands their timestamps.
func Stamp(term uint64) []byte { return binary.BigEndian.AppendUint64(nil, term) }

// Void says whether an entry that the log has under this term is to be dropped
// by every replica: it was made in another. A node that lost leadership and
// won it back before it noticed would otherwise write with timestamps from
// before what the leader in between has promised.
func Void(stamp []byte, term uint64) (bool, error) {
	if len(stamp) != 8 {
		return false, fmt.Errorf("its stamp has %d bytes instead of 8 (damaged, or written by another version)", len(stamp))
	}
	return binary.BigEndian.Uint64(stamp) != term && !mutant.On(mutant.VoidApplied), nil
}
