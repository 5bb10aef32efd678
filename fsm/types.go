package fsm

import (
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// Entry is one committed entry of the group's log.
type Entry struct {
	Index uint64
	Term  uint64
	Data  []byte // AppendEntry's bytes; empty entries only advance the index
}

// Command is one thing that a log entry asks of the machine. Exactly one of
// the pointers is set. AppendEntry packs up to MaxCommands of them.
type Command struct {
	// Time is assigned by the leader (hlc); Apply uses max(Time, clock+1) for
	// commands that write, so no two effects of a group share a timestamp.
	Time hlc.Timestamp

	Write   *Write
	Own     *Own
	Ceiling *Ceiling
	Horizon *Horizon
	Collect *Collect
	Drop    *Drop
	Digest  *Digest
	Mark    *Mark
	Promise *Promise
	Txn     *Txn
}

// Write changes one document.
type Write struct {
	Partition  placement.PartitionID
	Epoch      placement.Epoch
	Collection placement.CollectionID
	// MaxBytes is the largest body that may result, as the leader is configured;
	// it travels with the command because Apply must not look at a replica's own
	// settings. 0: wire.DefaultDocumentSize.
	MaxBytes uint32
	Item     wire.WriteItem // ID, operation, body, conditions, request ID
}

// Own gives the group partitions, from an epoch on. It is the group's first
// command; a group that never applied one owns nothing.
type Own struct {
	Epoch      placement.Epoch
	Partitions []placement.PartitionID
}

// Ceiling raises the timestamp below which the group may promise reads.
type Ceiling struct{ To hlc.Timestamp }

// Promise is Ceiling for the readers of a cut (package txn): what they read is in
// these partitions, and if the group does not own one of them at this epoch it
// is refused (wire.CodeStaleEpoch), for then another group may write there.
type Promise struct {
	To         hlc.Timestamp
	Epoch      placement.Epoch
	Partitions []placement.PartitionID
}

// Horizon forgets: request IDs with an older time are refused as expired and
// their records collected; reads of a collection's history below its horizon
// are refused. Both only move up.
type Horizon struct {
	RequestIDs hlc.Timestamp
	History    []HistoryHorizon
}

// HistoryHorizon is one collection's.
type HistoryHorizon struct {
	Collection placement.CollectionID
	At         hlc.Timestamp
}

// Collect removes superseded versions that lie below their collection's
// horizon. The leader found them; Apply checks each again and removes only
// what is superseded and below the horizon.
type Collect struct {
	Keys [][]byte // storage keys of document versions, without the group
}

// Drop removes a collection's documents, history and counts and refuses later
// writes to its ID.
type Drop struct{ Collection placement.CollectionID }

// Digest carries the leader's digest at an earlier index. A replica that had
// another digest there halts.
type Digest struct {
	At    uint64
	Value uint64
}

// Mark is a place in the log at which the replicas' rows are compared: each one
// that applies it keeps its rows as of the end of the entry and adds them up
// beside its work (Survey). It changes nothing but the digest.
type Mark struct {
	ID [16]byte // random; names the comparison

	// State takes the rows that belong to no partition and the order of the
	// whole group's keys; From and To take partitions, To not included.
	State    bool
	From, To placement.PartitionID

	// Bucket is 0 to add rows up; n lists those of bucket n-1 instead.
	Bucket uint32
	// RateKiB is how much each replica may read a second. 0 is up to it.
	RateKiB uint32
}

// Result is the answer to one command. For a Write, Wire is complete but for
// the text of its Error (Code and Version are set; the router words it).
type Result struct {
	Wire wire.WriteResult
	// Detail tells why, for codes with more than one reason.
	Detail string
	// Txn is the answer to a Txn, unless Wire.Error says why there is none: the
	// command did nothing and may be sent again, elsewhere or later.
	Txn *txn.Answer
	// Rival holds what a Write was refused for (wire.CodeLocked).
	Rival txn.ID
}
