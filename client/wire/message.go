package wire

import (
	"slices"
	"strings"
)

// Bodies are msgpack arrays of a message's fields in the order below. A reader
// takes missing trailing fields as zero and ignores extra ones, so a field can
// be added at the end without a new protocol version. A document is carried as
// its canonical bytes, spliced in as one msgpack value, never re-encoded.
//
// Timestamps are hybrid logical clock values (txn/hlc): milliseconds << 16 | counter.

// Limits of the protocol. A server may lower them and says so in HelloReply.
const (
	ProtocolVersion = 1

	MaxFrameBytes       = 20 << 20 // one frame, header included
	MaxDocumentBytes    = 16 << 20 // what a server may be configured to accept
	DefaultDocumentSize = 1 << 20  // what it accepts by default
	MaxDepth            = 64       // nesting of arrays and maps in a document
	MaxItems            = 10_000   // items of one bulk write or IDs of one get
	MaxElements         = 4 << 20  // values in one frame
	MaxIDBytes          = 512
	MaxCollectionBytes  = 64
	MaxInFlight         = 1024 // requests of one connection
)

// Hello opens a connection.
type Hello struct {
	Magic      string // "idb"
	MinVersion uint32
	MaxVersion uint32
	Client     string // name and version of the client, for logs
	ClusterID  string // expected cluster; empty: any
}

// HelloReply accepts it.
type HelloReply struct {
	Version       uint32
	Server        string // "idb 0.1.0"
	NodeID        string
	ClusterID     string // empty: not initialised
	Now           uint64 // server's timestamp: the base of request IDs
	MaxFrame      uint32
	MaxDocument   uint32
	MaxInFlight   uint32
	TopologyEpoch uint64
}

// RequestID names one write for ever: a retry under the same ID has the effect
// of the first. Time is the server's clock (HelloReply.Now plus the time that
// has passed since) when the write was first tried; Random is 128 random bits.
type RequestID struct {
	Time   uint64
	Random [16]byte // 16 bytes of msgpack bin
}

// WriteOp is what a write does.
type WriteOp uint8

const (
	OpPut     WriteOp = 1 // create or replace; Body is the document
	OpInsert  WriteOp = 2 // create; Body is the document
	OpUpdate  WriteOp = 3 // change an existing document; Body is a map of operators
	OpUpsert  WriteOp = 4 // change, or create from nothing and then change
	OpDelete  WriteOp = 5 // remove; deleting what is absent is NotFound
	OpRestore WriteOp = 6 // write an old version (RestoreVersion) again as the newest
)

// Conditions of a write. With both IfVersion and a flag, both must hold.
const (
	CondAbsent  uint8 = 1 << 0
	CondPresent uint8 = 1 << 1
)

// WriteItem is one write of one document.
type WriteItem struct {
	RequestID      RequestID
	Op             WriteOp
	ID             string
	Body           []byte // one canonical msgpack value, or nil
	IfVersion      uint64 // 0: any
	Cond           uint8
	RestoreVersion uint64
	ReturnDoc      bool // answer with the document as written
}

// WriteRequest is one or many writes to one collection. Each item stands
// alone: it has a result of its own and there is no atomicity across items.
// A write creates no collection: see CreateCollectionRequest.Implicit.
type WriteRequest struct {
	Collection string
	// Epoch is the map that the sender routed by; 0: the server routes.
	Epoch uint64
	// Direct refuses with NotLeader where the server would forward.
	Direct bool
	// Ordered runs the items one after the other and stops at the first failure.
	Ordered bool
	Items   []WriteItem
	// Number is the collection's, CollectionInfo.ID, the same in every attempt:
	// a name may be dropped and made anew between two of them, and they would
	// not know of each other. CollectionNotFound: the number is dropped.
	Number uint32
}

// WriteResult is what became of one item.
type WriteResult struct {
	Error     *Error // nil: done
	Version   uint64 // after the write; of a delete: the version it removed plus one
	Time      uint64 // commit timestamp
	CreatedAt uint64
	Created   bool // the document did not exist before
	Duplicate bool // the effect is of an earlier attempt with this request ID
	Doc       []byte
}

// WriteReply has one result per item, in order.
type WriteReply struct {
	Results []WriteResult
	Now     uint64
	Cost    Cost
}

// GetRequest reads many documents of one collection, each linearizable on its
// own. AtVersion and AtTime are exclusive; AtTime is a timestamp.
type GetRequest struct {
	Collection string
	Epoch      uint64
	Direct     bool
	IDs        []string
	AtVersion  uint64
	AtTime     uint64
	NoBody     bool // existence and version only
	// MaxBytes is how many bytes of documents the answer may hold; those that do
	// not fit are left out, with FrameTooLarge. 0: what a frame holds.
	MaxBytes uint32
}

// Document is one version of one document. Body has no _id, _version,
// _createdAt or _updatedAt: those are the fields beside it.
type Document struct {
	ID        string
	Version   uint64
	CreatedAt uint64
	UpdatedAt uint64
	Deleted   bool // history only: a tombstone
	Body      []byte
}

// GetResult is one document, or why not.
type GetResult struct {
	Error *Error
	Doc   Document
}

// GetReply has one result per ID, in order.
type GetReply struct {
	Results []GetResult
	Now     uint64
	Cost    Cost
}

// ScanRequest reads documents in order of ID. A scan reads one snapshot: the
// first page fixes its timestamp, the cursor carries it on.
type ScanRequest struct {
	Collection string
	Prefix     string
	Cursor     []byte // from the last page; empty: from the start
	Limit      uint32 // documents in all pages of this answer; 0: server's choice
	MaxBytes   uint32 // bytes in all pages of this answer; 0: server's choice
	NoBody     bool
	AtTime     uint64 // 0: now
	Reverse    bool
}

// ScanPage is a part of a scan's answer; the answer is a stream of pages, each
// with the Cursor that goes on behind it. The last one's is empty if the scan
// is complete.
type ScanPage struct {
	Docs   []Document
	Cursor []byte
	Time   uint64 // the snapshot's timestamp
	Cost   Cost
}

// CountRequest counts documents. Without a prefix the answer is kept, not scanned.
type CountRequest struct {
	Collection string
	Prefix     string
}

// CountReply is the number, at a linearizable instant per shard group.
type CountReply struct {
	Count uint64
	Bytes uint64 // of live documents; 0 with a prefix
	Cost  Cost
}

// HistoryRequest lists versions of a document, newest first.
type HistoryRequest struct {
	Collection string
	Epoch      uint64
	Direct     bool
	ID         string
	Before     uint64 // only versions below this one; 0: from the newest
	Limit      uint32 // 0: server's choice
	NoBody     bool
}

// HistoryReply has versions, newest first. More says that older ones are left.
type HistoryReply struct {
	Versions []Document
	More     bool
	Cost     Cost
}

// CommitRequest is a whole transaction: what was read, and what is to be
// written. It takes effect at one instant, if everything that was read is the
// newest still; or not at all. It may be sent again, to any node, as it was:
// the answer is the first one's. Its home is the first document written. A
// transaction without writes is only looked at: is what was read still the
// newest?
type CommitRequest struct {
	ID RequestID // of the transaction
	// Born is when the first attempt of this work began; older ones wait for
	// locks where younger ones step back. Attempt counts from 1.
	Born    uint64
	Attempt uint32
	// TimeoutMillis is how long it may take to be decided; then it is aborted.
	// 0: the server's choice.
	TimeoutMillis uint32
	Collections   []TxnCollection
	// Locked says that documents were locked up front, for which others wait:
	// home then decides, which lets go of its own soonest.
	Locked bool
}

// TxnCollection is a transaction's part in one collection.
type TxnCollection struct {
	Name   string
	Reads  []TxnRead
	Ranges []TxnRange
	// Writes have no request IDs of their own, and restore nothing. Several of
	// one document are done in their order and make one version.
	Writes []WriteItem
	// Number is the collection's, as WriteRequest.Number. A list of documents
	// to unlock has none.
	Number uint32
}

// TxnRead is a document that was read: At is its UpdatedAt, 0 if there was none.
type TxnRead struct {
	ID string
	At uint64
}

// TxnRange is what was scanned at At: IDs that begin with Prefix, from From to
// To, both included; empty is no bound.
type TxnRange struct {
	Prefix, From, To string
	At               uint64
}

// CommitReply is of a transaction that was committed (refused: an Error).
type CommitReply struct {
	Time      uint64 // commit timestamp; 0: nothing was written
	Duplicate bool   // an earlier attempt under this ID had committed it
	Now       uint64
	Cost      Cost
}

// LockRequest locks a document for a transaction that will be committed under
// ID, until then, or until TTLMillis have passed.
type LockRequest struct {
	ID         RequestID
	Born       uint64
	TTLMillis  uint32
	Collection string
	Document   string
	Direct     bool
	// First: the transaction has locked nothing yet, so that it may wait also
	// for an older one.
	First bool
}

// LockReply has the newest version of the document that was locked, and until
// when it is known to be that: the leader writes nothing at or below AsOf any
// more. The lock may be lost later, with its leader or when its time is up.
type LockReply struct {
	Result GetResult
	AsOf   uint64
	Now    uint64
	Cost   Cost
}

// UnlockRequest lets go of what a transaction has locked.
type UnlockRequest struct {
	ID          RequestID
	Collections []TxnCollection // Reads name the documents
	Direct      bool
}

// EvaluateRequest asks what operations make of a document. Nothing is stored.
type EvaluateRequest struct {
	Collection string
	Document   Document // Version 0: there is none
	Items      []WriteItem
}

// EvaluateReply has the body; without one the document does not exist then.
type EvaluateReply struct {
	Body []byte
	Now  uint64
}

// Bounds of a TxnList: it is a look, and the oldest are what one looks for.
const (
	MaxListedTxns  = 1000 // transactions, and as many waits
	MaxListedParts = 4096 // parts of one transaction that was asked for
	MaxListedDocs  = 1000 // its documents, in one group
	MinIDPrefix    = 6    // bytes of an ID's random part that name a transaction
)

// TxnListRequest asks what the leaders of all groups know of transactions: of
// all that hold something or wait, or of one, with its documents and with what
// has become of it.
type TxnListRequest struct {
	// Time and Random are those of an ID. Of Random its beginning is enough,
	// MinIDPrefix bytes. Empty: all transactions.
	Time   uint64
	Random []byte
}

// TxnList is what they know. It is a look and not a read: each leader was asked
// at another moment, and nothing is confirmed.
type TxnList struct {
	Txns []TxnInfo // oldest first
	// Waits are the edges of the graph of who waits for whom, longest first.
	Waits   []TxnWait
	LeftOut uint32 // transactions and waits that are not listed
	// Missing are the groups whose leader did not answer.
	Missing []TxnMissing
	Now     uint64
}

// TxnState is what is known of a transaction, as a whole or at one partition.
type TxnState uint8

const (
	TxnUnknown   TxnState = 0
	TxnOpen      TxnState = 1 // it is not committing yet, or waits to; it may hold locks taken up front
	TxnPrepared  TxnState = 2 // voted yes, and waits for home's decision
	TxnCommitted TxnState = 3
	TxnAborted   TxnState = 4
	TxnResolved  TxnState = 5 // at a participant: resolved or refused, nothing is held
	TxnExpired   TxnState = 6 // older than what is remembered; it was not committed since
)

// TxnInfo is one transaction.
type TxnInfo struct {
	ID    RequestID
	State TxnState
	// Home is the partition that decides; NoPartition: not known before its
	// commit has begun.
	Home uint32
	Time uint64 // commit timestamp, or the largest prepare timestamp that is known
	// Deadline is when others begin to abort it, Born when its first attempt
	// began, as far as that is known: timestamps.
	Deadline uint64
	Born     uint64
	// Participants is how many parts there are, Parts those that are listed.
	Participants uint32
	Parts        []TxnPart
	Reads        uint32 // documents and ranges held shared
	Writes       uint32 // documents that are to be written
	Locks        uint32 // documents locked up front
	HomeGroup    uint32 // the group that has Home; 0: not known
}

// TxnPart is a transaction's part at one partition.
type TxnPart struct {
	Group     uint32
	Partition uint32
	State     TxnState
	Time      uint64 // prepare or commit timestamp
	Reads     uint32
	Writes    uint32
	Locks     uint32
	Documents []TxnDocument // only of a transaction that was asked for
}

// How a transaction holds a document.
const (
	HoldWrite uint8 = 1 // an intent: it is to be written
	HoldRead  uint8 = 2 // shared: it was read
	HoldRange uint8 = 3 // shared: the IDs that begin with ID, from From to To
	HoldFront uint8 = 4 // locked up front, until Expires
)

// TxnDocument is something that a transaction holds.
type TxnDocument struct {
	How        uint8
	Collection string
	ID         string
	From, To   string
	Expires    uint64 // milliseconds that are left of a lock taken up front
}

// What somebody is about to do who waits.
const (
	WaitWrite   uint8 = 1 // a single write
	WaitLock    uint8 = 2 // a lock up front
	WaitPrepare uint8 = 3
	WaitDecide  uint8 = 4
	WaitCommit  uint8 = 5 // a commit within one group
)

// TxnWait is one edge: somebody waits for what a transaction holds.
type TxnWait struct {
	ID         RequestID // zero: a single write
	For        RequestID
	Micros     uint64 // since the wait began
	What       uint8
	Group      uint32
	Partition  uint32
	Collection string // what is waited for
	Document   string
}

// TxnMissing is a group whose leader did not answer.
type TxnMissing struct {
	Group uint32
	Error string
}

// TxnAbortRequest aborts a transaction that is not decided, and resolves it
// wherever it holds something. Time and Random as in TxnListRequest.
type TxnAbortRequest struct {
	Time   uint64
	Random []byte
}

// TxnAbortReply says what has become of it: TxnAborted, TxnCommitted,
// TxnExpired, TxnUnknown, or TxnOpen, if it has not begun to commit: then there
// is nothing to abort, and only its locks were let go.
type TxnAbortReply struct {
	ID       RequestID // the whole of it
	State    TxnState
	Already  bool   // it was decided before
	Time     uint64 // commit timestamp
	Home     uint32
	Resolved uint32 // partitions that hold nothing any more, because of this
	Unlocked uint32 // locks up front that were let go
	// Missing are the groups that were not reached: what it holds there is
	// resolved by their leaders.
	Missing []TxnMissing
	Now     uint64
}

// Cost is what an answer took.
type Cost struct {
	Groups      uint32 // shard groups asked
	Keys        uint64 // storage keys read
	Docs        uint64 // documents read or written
	Bytes       uint64 // document bytes read or written
	WaitMicros  uint64 // waited for consensus, confirmation and queues
	ReadVersion uint64 // timestamp read at; 0: latest
}

// CollectionOptions are fixed at creation.
type CollectionOptions struct {
	// Separator cuts a document's ID for placement: with "/" the ID
	// "acme/order-1" is placed as "acme". Empty: by the whole ID.
	Separator string
	// RetentionSeconds keeps superseded versions at least this long. 0: the
	// cluster's default; RetainForever: for ever.
	RetentionSeconds uint64
	// RetentionVersions keeps at least this many superseded versions; 0: by time only.
	RetentionVersions uint32
	// Unique are the constraints that no two documents may break: at most
	// MaxUnique.
	Unique []Unique
}

// Unique says that no two documents of a collection have the same values in
// all of these fields. A document that lacks all of them is not concerned; null
// is a value as any other, and of several fields a missing one counts as one.
type Unique struct {
	// Fields are 1 to MaxUniqueFields paths: "email", "address.country".
	Fields []string
}

// Bounds of unique constraints: how many a collection has, how many fields one
// has, and how long the paths of all of them are together.
const (
	MaxUnique           = 8
	MaxUniqueFields     = 4
	MaxUniquePathsBytes = 1024
)

// Name is the constraint's name: its fields, with commas.
func (u Unique) Name() string { return strings.Join(u.Fields, ",") }

// Equal says whether the options are the same.
func (o CollectionOptions) Equal(p CollectionOptions) bool {
	return o.Separator == p.Separator && o.RetentionSeconds == p.RetentionSeconds && o.RetentionVersions == p.RetentionVersions &&
		slices.EqualFunc(o.Unique, p.Unique, func(a, b Unique) bool { return slices.Equal(a.Fields, b.Fields) })
}

// RetainForever as RetentionSeconds keeps all history.
const RetainForever = 1<<64 - 1

// CollectionInfo describes a collection.
type CollectionInfo struct {
	ID        uint32
	Name      string
	Options   CollectionOptions
	CreatedAt uint64
	Dropping  bool // dropped, space not yet freed everywhere
}

// CollectionRequest asks what collection a name stands for, as of a moment after
// the request was sent.
type CollectionRequest struct{ Name string }

// CreateCollectionRequest creates a collection; it is done if one with the
// same options exists. Under one RequestID it is done once, and every attempt
// has the answer of the first, also when others have dropped the collection
// since.
type CreateCollectionRequest struct {
	Name      string
	Options   CollectionOptions
	RequestID RequestID
	// Implicit stands for a first write: any collection of that name will do,
	// and the setting ExplicitCollections refuses it where there is none.
	Implicit bool
}

// DropCollectionRequest removes a collection and all its documents and history;
// under one RequestID, once.
type DropCollectionRequest struct {
	Name      string
	RequestID RequestID
}

// SettingsRequest changes the cluster's settings; under one RequestID, once.
type SettingsRequest struct {
	Settings  Settings
	RequestID RequestID
}

// Settings are the cluster's.
type Settings struct {
	// ExplicitCollections: a write to an unknown collection is refused instead
	// of creating it.
	ExplicitCollections bool
	// RetentionSeconds is the default history retention; 0: unchanged (3600 at first).
	RetentionSeconds uint64
}

// LeadersRequest changes where the leaders of shard groups should be; under one
// RequestID, once. The answer comes when that is decided; leaderships are handed
// over afterwards.
type LeadersRequest struct {
	Leaders   Leaders
	RequestID RequestID
}

// TopologyRequest asks for the map and the catalog. With WaitMillis the answer
// is held until something is newer than what the client has, or the time is up.
type TopologyRequest struct {
	HaveEpoch   uint64 // Topology.Epoch that the client holds; 0: none
	HaveCatalog uint64 // Topology.Catalog that the client holds
	WaitMillis  uint32
	// Fresh: the answer has all that was changed before the request was sent. It
	// is refused while the placement group has no leader. Without it a node
	// answers with what it knows, which may be a moment behind.
	Fresh bool
}

// Topology is the placement map, the nodes and the catalog.
type Topology struct {
	ClusterID   string
	Epoch       uint64   // of the map
	Catalog     uint64   // version of everything but the map: nodes, collections, settings, leaders wanted
	Owners      []uint32 // partition → shard group; its length is the partition count
	Groups      []GroupInfo
	Nodes       []NodeInfo
	Collections []CollectionInfo
	Settings    Settings
	Leaders     Leaders
}

// GroupInfo is a shard group. Leader is a hint.
type GroupInfo struct {
	ID        uint32
	Replicas  []string // node IDs
	Leader    string
	Term      uint64
	Preferred string // who should lead when nothing speaks against it; empty: nobody in particular
}

// NodeInfo is a node and where it listens.
type NodeInfo struct {
	ID          string
	ClientAddr  string
	PeerAddr    string
	HTTPAddr    string
	Region      string
	Zone        string
	Incarnation string // changes when the node's data is wiped
}

// ClusterInitRequest forms a cluster. It may be sent again after any
// interruption, to any of the nodes.
type ClusterInitRequest struct {
	Nodes      []string // client addresses
	Shards     uint32   // shard groups
	Replicas   uint32   // per shard group
	Partitions uint32   // a prime
	Leaders    Leaders
}

// ClusterInitReply says what was formed.
type ClusterInitReply struct {
	ClusterID string
	Topology  Topology
	// Resumed: an interrupted init was completed.
	Resumed bool
}

// NodeStatus is what one node knows of itself.
type NodeStatus struct {
	Node          NodeInfo
	ClusterID     string
	Version       string
	UptimeSeconds uint64
	Ready         bool
	Reason        string // why not ready
	Epoch         uint64
	Now           uint64
	Groups        []GroupStatus // its replicas, the placement group (ID 0) included
	DiskFreeBytes uint64
	DiskUsedBytes uint64 // by the data directory
	MemoryBytes   uint64
	DiskFull      bool
}

// GroupStatus is one replica of one group.
type GroupStatus struct {
	ID         uint32
	State      string // leader, follower, candidate, stopped
	Leader     string // node ID
	Term       uint64
	Commit     uint64
	Applied    uint64
	LastIndex  uint64
	Flushed    uint64 // applied index that is on disk
	Partitions uint32
	Documents  uint64
	Bytes      uint64
	Clock      uint64
	Digest     uint64
	Error      string
}

// ClusterStatus is every node's answer, or why there is none.
type ClusterStatus struct {
	Topology Topology
	Nodes    []NodeAnswer
}

// NodeAnswer is one node's status; Error is set when it did not answer.
type NodeAnswer struct {
	ID     string
	Error  string
	Status NodeStatus
}

// CheckRequest compares the replicas of one group as of one entry of its log,
// while the group goes on. State takes what belongs to no partition; From and
// To take partitions, To not included.
type CheckRequest struct {
	Group   uint32
	State   bool
	From    uint32
	To      uint32
	RateKiB uint32 // what each replica may read a second, half a KiB counted for every row beside; 0: the server's choice
}

// CheckReply is what was found. The check is passed if every replica was
// compared and no finding is more than a warning.
type CheckReply struct {
	Group     uint32
	Index     uint64 // the log index that the replicas were compared at
	Replicas  []CheckReplica
	Findings  []CheckFinding
	Found     uint64 // findings, those not listed included
	Documents uint64
	Versions  uint64
	Bytes     uint64 // of live documents
	Requests  uint64 // answers that are remembered
	Owned     []uint32
}

// CheckReplica is one replica's part in it.
type CheckReplica struct {
	Node  string
	Error string // why it was not compared; empty: it was
}

// CheckFinding is something that is not as it should be.
type CheckFinding struct {
	Kind       string // difference, fault, placement, orphan, horizon or stopped
	Warning    bool   // it may be so in a correct cluster
	Partition  uint32 // NoPartition: of none
	Collection string
	ID         string
	Nodes      []string // those it was found on, or that differ from the others
	Text       string
}

// NoPartition stands where a finding is of no partition.
const NoPartition = 1<<32 - 1
