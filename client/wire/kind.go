package wire

import "strconv"

// Kind says what a frame asks for. An answer carries the kind of its request.
// Numbers are part of the protocol and never change meaning.
type Kind uint8

// Client kinds, 1 to 63. They are served on the client port, and on the peer
// port to other nodes of the same cluster.
const (
	KindHello            Kind = 1  // Hello → HelloReply; always the first frame
	KindPing             Kind = 2  // empty → empty
	KindTopology         Kind = 3  // TopologyRequest → Topology
	KindWrite            Kind = 4  // WriteRequest → WriteReply
	KindGet              Kind = 5  // GetRequest → GetReply
	KindScan             Kind = 6  // ScanRequest → stream of ScanPage
	KindCount            Kind = 7  // CountRequest → CountReply
	KindHistory          Kind = 8  // HistoryRequest → HistoryReply
	KindCreateCollection Kind = 9  // CreateCollectionRequest → CollectionInfo
	KindDropCollection   Kind = 10 // DropCollectionRequest → CollectionInfo
	KindClusterInit      Kind = 11 // ClusterInitRequest → ClusterInitReply
	KindClusterStatus    Kind = 12 // empty → ClusterStatus
	KindNodeStatus       Kind = 13 // empty → NodeStatus; this node only
	KindSettings         Kind = 14 // SettingsRequest → Settings; changes the cluster's settings
	KindCancel           Kind = 15 // empty; stops the request of the same request ID; no answer
	KindCheck            Kind = 16 // CheckRequest → CheckReply: compares a group's replicas
	KindCommit           Kind = 17 // CommitRequest → CommitReply: a transaction
	KindLock             Kind = 18 // LockRequest → LockReply: locks a document for a transaction, and reads it
	KindUnlock           Kind = 19 // UnlockRequest → empty
	KindEvaluate         Kind = 20 // EvaluateRequest → EvaluateReply: what operations make of a document
	KindTxnList          Kind = 21 // TxnListRequest → TxnList: transactions that hold something, or one
	KindTxnAbort         Kind = 22 // TxnAbortRequest → TxnAbortReply: aborts one that is not decided
	KindCollection       Kind = 23 // CollectionRequest → CollectionInfo: what a name stands for now
	KindLeaders          Kind = 24 // LeadersRequest → Topology: changes where the leaders of shard groups should be
)

// Peer kinds, 64 to 127, are refused on the client port. Their bodies belong
// to the packages that register them.
const (
	KindPeerHello     Kind = 64
	KindRaftAppend    Kind = 65 // group, AppendEntries
	KindRaftVote      Kind = 66
	KindRaftPreVote   Kind = 67
	KindRaftTimeout   Kind = 68 // TimeoutNow
	KindRaftSnapshot  Kind = 69 // InstallSnapshot: a connection of its own
	KindConfirm       Kind = 70 // leadership confirmation, all groups of a node pair
	KindPlacement     Kind = 71 // a placement command, to the placement leader
	KindPlacementWait Kind = 72 // long poll for placement state newer than mine
	KindAdopt         Kind = 73 // cluster init: take this cluster's identity
	KindGroupScan     Kind = 74 // one group's part of a scan
	KindGroupCount    Kind = 75 // one group's part of a count
	KindGroupClock    Kind = 76 // one group's clock, leadership confirmed
	KindGroupCommand  Kind = 77 // an administrative command for one group's leader
	KindGroupMark     Kind = 78 // has one group's replicas add their rows up at one entry
	KindGroupFindings Kind = 79 // what a replica found at such an entry
	KindGroupTxn      Kind = 80 // commands of a transaction, for one group's leader
	KindGroupTxnRead  Kind = 81 // what is decided, still newest, or held, at one group's leader
	KindGroupCut      Kind = 82 // hold, promise and release, of a cut through several groups
)

// lastClientKind ends the kinds of clients; firstPeerKind and lastKind bound
// those of nodes.
const (
	lastClientKind Kind = KindLeaders

	firstPeerKind Kind = 64
	lastKind      Kind = 127
)

// Peer says that only nodes send requests of this kind.
func (k Kind) Peer() bool { return k >= firstPeerKind && k <= lastKind }

// mutates says that a request of this kind may have changed something when its
// answer is lost.
func (k Kind) mutates() bool {
	switch k {
	case KindTopology, KindGet, KindScan, KindCount, KindHistory, KindClusterStatus, KindNodeStatus, KindCheck, KindEvaluate, KindLock, KindUnlock, KindTxnList, KindCollection:
		return false
	}
	return true
}

var kindNames = map[Kind]string{
	KindHello:            "hello",
	KindPing:             "ping",
	KindTopology:         "topology",
	KindWrite:            "write",
	KindGet:              "get",
	KindScan:             "scan",
	KindCount:            "count",
	KindHistory:          "history",
	KindCreateCollection: "create_collection",
	KindDropCollection:   "drop_collection",
	KindClusterInit:      "cluster_init",
	KindClusterStatus:    "cluster_status",
	KindNodeStatus:       "node_status",
	KindSettings:         "settings",
	KindCancel:           "cancel",
	KindCheck:            "check",
	KindCommit:           "commit",
	KindLock:             "lock",
	KindUnlock:           "unlock",
	KindEvaluate:         "evaluate",
	KindTxnList:          "txn_list",
	KindTxnAbort:         "txn_abort",
	KindCollection:       "collection",
	KindLeaders:          "leaders",
	KindPeerHello:        "peer_hello",
	KindRaftAppend:       "raft_append",
	KindRaftVote:         "raft_vote",
	KindRaftPreVote:      "raft_pre_vote",
	KindRaftTimeout:      "raft_timeout",
	KindRaftSnapshot:     "raft_snapshot",
	KindConfirm:          "confirm",
	KindPlacement:        "placement",
	KindPlacementWait:    "placement_wait",
	KindAdopt:            "adopt",
	KindGroupScan:        "group_scan",
	KindGroupCount:       "group_count",
	KindGroupClock:       "group_clock",
	KindGroupCommand:     "group_command",
	KindGroupMark:        "group_mark",
	KindGroupFindings:    "group_findings",
	KindGroupTxn:         "group_txn",
	KindGroupTxnRead:     "group_txn_read",
	KindGroupCut:         "group_cut",
}

// String is the kind's name, as in metrics, or its number.
func (k Kind) String() string {
	if name, ok := kindNames[k]; ok {
		return name
	}
	return strconv.Itoa(int(k))
}
