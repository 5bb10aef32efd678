package client

import (
	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/txn/hlc"
)

// The types that callers meet, by the name they use.
type (
	// D is a document as a map.
	D = doc.D
	// Raw is a value in canonical encoding: what is stored and sent. Taken as
	// input it is not encoded again, asked for as output it is not decoded.
	Raw = doc.Raw
	// Timestamp orders versions and reads as a wall time.
	Timestamp = hlc.Timestamp
	// RequestID names one write for ever.
	RequestID = wire.RequestID
	// Cost is what an answer took.
	Cost = wire.Cost
	// Code is the stable number of an outcome.
	Code = wire.Code

	// CollectionOptions are fixed when a collection is created.
	CollectionOptions = wire.CollectionOptions
	// Unique is a constraint of a collection: fields whose values no two of its
	// documents have in common.
	Unique = wire.Unique
	// CollectionInfo describes a collection.
	CollectionInfo = wire.CollectionInfo
	// Settings are the cluster's.
	Settings = wire.Settings
	// Leaders says where the leaders of shard groups should be.
	Leaders = wire.Leaders
	// Topology is the placement map, the nodes and the catalog.
	Topology = wire.Topology
	// CheckRequest says what of a shard group to compare.
	CheckRequest = wire.CheckRequest
	// CheckReply is what was found.
	CheckReply = wire.CheckReply
	// CheckFinding is something that is not as it should be.
	CheckFinding = wire.CheckFinding
	// ClusterStatus is every node's answer, or why there is none.
	ClusterStatus = wire.ClusterStatus
	// NodeStatus is what one node knows of itself.
	NodeStatus = wire.NodeStatus
	// TransactionList is what the cluster knows of transactions now.
	TransactionList = wire.TxnList
	// TransactionInfo is one transaction.
	TransactionInfo = wire.TxnInfo
	// AbortReply says what became of a transaction that was to be aborted.
	AbortReply = wire.TxnAbortReply
	// InitRequest forms a cluster.
	InitRequest = wire.ClusterInitRequest
	// InitReply says what was formed.
	InitReply = wire.ClusterInitReply
)

// Where leaders should be.
const (
	LeadersSpread   = wire.LeadersSpread
	LeadersTogether = wire.LeadersTogether
)

// RetainForever as CollectionOptions.RetentionSeconds keeps all history.
const RetainForever = wire.RetainForever
