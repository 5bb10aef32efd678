package router

import (
	"context"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// Groups are the shard groups of this node.
type Groups interface {
	// Group is this node's replica, false if it has none.
	Group(id placement.GroupID) (Group, bool)
}

// Group is one replica of one shard group. Its errors are package shardgroup's
// and package fsm's.
type Group interface {
	// Leader is the leader as far as this replica knows.
	Leader() (node placement.NodeID, term uint64, known bool)

	// Propose and ProposeMany return when the commands are applied here.
	// ProposeMany has an outcome for each.
	Propose(ctx context.Context, c fsm.Command) (fsm.Result, error)
	ProposeMany(ctx context.Context, cs []fsm.Command) []shardgroup.Outcome

	// ReadIndex returns when a read of the replica is linearizable.
	ReadIndex(ctx context.Context) error
	// Join is ReadIndex for a read that waits in no goroutine: answer is called,
	// and must not wait, with all that joined together. False: this replica
	// does not serve as leader.
	Join(read any, answer func(reads []any, err error)) bool
	// BeginRead is ReadIndex or (at is not 0) ReadAt of documents, up to where it
	// waits: the answer's Wait does.
	BeginRead(keys []fsm.ReadKey, at hlc.Timestamp) (shardgroup.Pending, error)
	// ReadAt returns when reads at t are stable: nothing will be written at or
	// below t any more, and everything that was is applied.
	ReadAt(ctx context.Context, t hlc.Timestamp) error
	// Clock is the largest timestamp assigned, leadership confirmed.
	Clock(ctx context.Context) (hlc.Timestamp, error)

	// Mark has every replica add its rows up at one entry, whose index it
	// answers; Findings is what this replica found there.
	Mark(ctx context.Context, k fsm.Mark) (index uint64, err error)
	Findings(ctx context.Context, id [16]byte, index uint64) (*fsm.Findings, error)

	// ProposeTxn is Propose of a transaction's command, after it has waited for
	// the locks of others (shardgroup.Group); AwaitWrite only waits.
	ProposeTxn(ctx context.Context, c fsm.Command, born hlc.Timestamp, free bool) (fsm.Result, error)
	// StartTxn is ProposeTxn without a goroutine that waits: done is called once,
	// and must not wait. StartLater is for what nobody waits for: it goes with
	// others. False: it cannot be done so now, and done is not called.
	StartTxn(c fsm.Command, done func(fsm.Result, error)) bool
	StartLater(c fsm.Command, done func(fsm.Result, error)) bool
	AwaitWrite(ctx context.Context, c *fsm.Command)
	// ClearReads and ClearScan stand between ReadIndex or ReadAt and a read:
	// intents that are to be seen have become versions when they return.
	ClearReads(ctx context.Context, keys []fsm.ReadKey, at hlc.Timestamp) error
	ClearScan(ctx context.Context, s *fsm.ScanSpec, at hlc.Timestamp) error
	// Lock and Unlock are of locks taken up front, PassLocks gives them to another
	// transaction, FrontLocks lists them, Waits who waits.
	Lock(ctx context.Context, id txn.ID, born hlc.Timestamp, k fsm.ReadKey, ttl time.Duration, free bool) error
	Unlock(id txn.ID)
	PassLocks(from, to txn.ID)
	FrontLocks() []shardgroup.FrontLock
	Waits() []shardgroup.Waiting

	// AwaitConfirm waits a moment for the word on what is staged here.
	AwaitConfirm(ctx context.Context, home placement.PartitionID, id txn.ID)

	// Hold, Redeem and Release are a group's part in a cut (shardgroup.Group).
	Hold(ctx context.Context, collections, counts []placement.CollectionID) (txn.Held, []shardgroup.Kept, error)
	Redeem(ctx context.Context, term, token uint64, p fsm.Promise) error
	Release(term, token uint64)

	// Machine reads what is applied here.
	Machine() Reader
}

// Reader reads one group's machine: *fsm.Machine. It sees what is applied; that
// this is enough is for ReadIndex or ReadAt to say. Every read checks that the
// group owns what is read, and that the collection was not dropped.
type Reader interface {
	Get(key fsm.ReadKey, at fsm.At, noBody bool) (wire.Document, error)
	// GetMany calls fn for each key, in order, from one state.
	GetMany(keys []fsm.ReadKey, at fsm.At, noBody bool, fn func(i int, d wire.Document, err error)) error
	// Visit is GetMany with bodies that may be used only until fn returns.
	Visit(keys []fsm.ReadKey, at fsm.At, noBody bool, fn func(i int, d wire.Document, err error)) error
	History(key fsm.ReadKey, before uint64, limit int, noBody bool) (versions []wire.Document, more bool, err error)
	Scan(spec fsm.ScanSpec) (docs []wire.Document, more bool, cost wire.Cost, err error)
	Count(c placement.CollectionID) (documents, bytes uint64, err error)
	CountPrefix(spec fsm.ScanSpec) (documents uint64, cost wire.Cost, err error)

	// Clock is the largest timestamp of an effect.
	Clock() hlc.Timestamp
	// LocksHeld is how many transactions are prepared; IntentsOn, which of them
	// are about to write these documents.
	LocksHeld() int
	IntentsOn(keys []fsm.ReadKey) []fsm.Holder
	Undecided(collections []placement.CollectionID) ([]fsm.Holder, hlc.Timestamp)
	Holders() []fsm.Holder
	Unfinished(at hlc.Timestamp) []fsm.Unfinished
	// Held and TxnTraces are for those who look.
	Held(p placement.PartitionID, id txn.ID, most int) []fsm.HeldDocument
	TxnTraces(time uint64, random []byte) ([]fsm.TxnTrace, error)
	Decision(home placement.PartitionID, epoch placement.Epoch, id txn.ID) (txn.Answer, error)
	Verify(parts []fsm.PartitionPart, epoch placement.Epoch) (*txn.Conflict, error)
}

// hostGroups are the groups of this node's Host.
type hostGroups struct{ host *shardgroup.Host }

// FromHost makes a Host's groups the router's.
func FromHost(h *shardgroup.Host) Groups { return hostGroups{h} }

// Group is this node's replica.
func (h hostGroups) Group(id placement.GroupID) (Group, bool) {
	g, ok := h.host.Group(id)
	if !ok {
		return nil, false
	}
	return hostGroup{g}, true
}

// hostGroup is a shardgroup.Group whose machine is seen as a Reader.
type hostGroup struct{ *shardgroup.Group }

func (g hostGroup) Machine() Reader { return g.Group.Machine() }

var _ Reader = (*fsm.Machine)(nil)
