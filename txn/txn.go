package txn

import (
	"encoding/hex"
	"fmt"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// Bounds of one transaction.
const (
	// MaxItems is how many documents and ranges it may read and write.
	MaxItems = 10_000
	// MaxBytes is what it may write and name, in all its partitions together.
	MaxBytes = 12 << 20
	// MaxParticipants is how many partitions it may touch.
	MaxParticipants = 1 << 16
	// MaxOps is how many operations on one document it may hold.
	MaxOps = 1_000
)

// ID names a transaction for ever. It is the request ID of its commit, so that
// a commit that is sent again takes part in the same transaction.
type ID wire.RequestID

// String is short enough for a sentence and long enough to be one of a kind.
func (id ID) String() string {
	return fmt.Sprintf("%x-%s", id.Time, hex.EncodeToString(id.Random[:6]))
}

// Less orders IDs by time, then by their random part.
func (id ID) Less(o ID) bool {
	if id.Time != o.Time {
		return id.Time < o.Time
	}
	return string(id.Random[:]) < string(o.Random[:])
}

// Read is a document that was read: At is its version's timestamp, 0 if there
// was none.
type Read struct {
	Collection placement.CollectionID
	ID         string
	At         hlc.Timestamp
}

// Range is a part of a collection that was read at At: the documents whose IDs
// begin with Prefix and lie between From and To, both included; an empty From
// or To is no bound.
type Range struct {
	Collection placement.CollectionID
	Prefix     string
	From, To   string
	At         hlc.Timestamp
}

// Contains says whether a document of the range's collection lies in it.
func (r *Range) Contains(id string) bool {
	return len(id) >= len(r.Prefix) && id[:len(r.Prefix)] == r.Prefix && id >= r.From && (r.To == "" || id <= r.To)
}

// Op is one operation on a document.
type Op struct {
	Op        wire.WriteOp // not OpRestore
	Cond      uint8
	IfVersion uint64
	Body      []byte
}

// Write is what is done to one document, one operation after the other.
// Together they make one version.
type Write struct {
	Collection placement.CollectionID
	ID         string
	MaxBytes   uint32 // largest body; 0: wire.DefaultDocumentSize
	Ops        []Op
}

// Part is what a transaction asks of one partition.
type Part struct {
	Reads  []Read
	Ranges []Range
	Writes []Write
}

// Empty says that nothing is asked.
func (p *Part) Empty() bool { return len(p.Reads)+len(p.Ranges)+len(p.Writes) == 0 }

// State is what is known of a transaction at one place.
type State uint8

const (
	None      State = iota // no record; of an Ask: undecided
	Prepared               // a participant's yes; At is p
	Refused                // a participant's no, for ever
	Done                   // a participant has resolved it
	Committed              // at home; At is C
	Aborted                // at home, for ever
	Expired                // older than what is remembered: it was not committed here, and will not be
	Staged                 // home has prepared, and all participants decide; At is home's p
)

var stateNames = [...]string{"undecided", "prepared", "refused", "done", "committed", "aborted", "expired", "staged"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Conflict is why a transaction was refused.
type Conflict struct {
	Code       wire.Code
	Collection placement.CollectionID
	ID         string // of the document, or the prefix of a range
	Range      bool
	Version    uint64 // that the document has, where one is known
	Rival      ID     // who holds it; zero: nobody, it was changed
	Detail     string
}

// Answer is what a machine says to a command of a transaction.
type Answer struct {
	State State
	// At is p of Prepared and Staged, C of Committed.
	At hlc.Timestamp
	// Participants, of Staged: if all of them have prepared, it is committed.
	Participants []placement.PartitionID
	// Duplicate: the answer was given before.
	Duplicate bool
	// Conflict is why Refused or Aborted, if it is known here.
	Conflict *Conflict
	// Write is the answer to the request that the transaction carries out, as
	// package fsm keeps it; nil: there is none. Then State says what became of
	// this transaction, and Write of the request, by whichever transaction.
	Write []byte
}

// Decided says that the answer is a decision of home.
func (a Answer) Decided() bool {
	return a.State == Committed || a.State == Aborted || a.State == Expired
}
