package placement

import (
	"slices"
	"strings"

	"github.com/impossibledb/idb/client/wire"
)

// Limits of the state. They keep a snapshot within one frame.
const (
	MaxCollections = 10_000
	MaxNodes       = 256
	MaxShards      = 1024
	MaxPartitions  = 65_521 // the largest prime below 65,536
	MaxMembers     = 5      // voters of the placement group
	MaxReplicas    = 9

	// maxCollectionID leaves half of the IDs to what belongs to collections
	// (package fsm/unique).
	maxCollectionID = 1<<31 - 1
)

// DefaultRetentionSeconds is how long superseded versions are kept at first.
const DefaultRetentionSeconds = 3600

// Node is a registered node.
type Node struct {
	ID         NodeID
	ClientAddr string
	PeerAddr   string
	HTTPAddr   string
	Region     string
	Zone       string
	// Incarnation names the data directory: a node that was wiped and started
	// again under its old ID has forgotten its votes and is somebody else.
	Incarnation string
}

// Info is the node as clients see it.
func (n Node) Info() wire.NodeInfo {
	return wire.NodeInfo{
		ID: string(n.ID), ClientAddr: n.ClientAddr, PeerAddr: n.PeerAddr, HTTPAddr: n.HTTPAddr,
		Region: n.Region, Zone: n.Zone, Incarnation: n.Incarnation,
	}
}

// NodeFromInfo is the reverse of Info.
func NodeFromInfo(i wire.NodeInfo) Node {
	return Node{
		ID: NodeID(i.ID), ClientAddr: i.ClientAddr, PeerAddr: i.PeerAddr, HTTPAddr: i.HTTPAddr,
		Region: i.Region, Zone: i.Zone, Incarnation: i.Incarnation,
	}
}

// Group is a shard group: who holds it, and who should lead it when all is well.
type Group struct {
	ID        GroupID
	Replicas  []NodeID
	Preferred NodeID
}

// Has says whether the node holds a replica.
func (g Group) Has(n NodeID) bool { return slices.Contains(g.Replicas, n) }

// Collection is one incarnation of a collection.
type Collection struct {
	ID        CollectionID
	Name      string
	Options   wire.CollectionOptions
	CreatedAt uint64 // hlc timestamp, assigned by the proposer
	// Pending are the groups that have not yet confirmed the drop, ascending.
	// A collection with none is live; a dropped one is forgotten with its last.
	Pending []GroupID
}

// Dropping says that the collection was dropped and some group has not
// confirmed it.
func (c Collection) Dropping() bool { return len(c.Pending) > 0 }

// Info is the collection as clients see it.
func (c Collection) Info() wire.CollectionInfo {
	return wire.CollectionInfo{
		ID: uint32(c.ID), Name: c.Name, Options: c.Options, CreatedAt: c.CreatedAt, Dropping: c.Dropping(),
	}
}

// State is one version of everything the placement group knows.
//
// Invariants: a published State is never changed; Nodes are ordered by ID,
// Groups by ID from 1 without gaps, Collections by ID; every owner in Owners
// is a group; live names are unique, and a name that is still being dropped is
// not live.
type State struct {
	Applied uint64 // log index of the last command that changed anything

	ClusterID string   // empty until InitCluster
	Ready     bool     // init has seen every group lead and own its partitions
	Members   []NodeID // voters of the placement group

	Epoch  Epoch // version of the map: Groups, but for their Preferred, and Owners
	Groups []Group
	Owners []GroupID // partition → group

	Catalog        uint64 // version of everything below
	Nodes          []Node
	Collections    []Collection
	NextCollection CollectionID // the last ID given; IDs are never reused
	Settings       wire.Settings
	// Leaders is where the preferred leaders of Groups are planned to be. With
	// them it counts in Catalog: no request is routed by either.
	Leaders wire.Leaders
}

// Newer says whether s has something that a holder of epoch and catalog lacks.
func (s *State) Newer(epoch Epoch, catalog uint64) bool {
	return s.Epoch > epoch || s.Catalog > catalog
}

// Partitions is P, zero before init.
func (s *State) Partitions() uint32 { return uint32(len(s.Owners)) }

// Node is the registered node of that ID.
func (s *State) Node(id NodeID) (Node, bool) {
	i, ok := slices.BinarySearchFunc(s.Nodes, id, func(n Node, id NodeID) int {
		return strings.Compare(string(n.ID), string(id))
	})
	if !ok {
		return Node{}, false
	}
	return s.Nodes[i], true
}

// Group is the shard group of that ID.
func (s *State) Group(id GroupID) (Group, bool) {
	if id == 0 || int(id) > len(s.Groups) {
		return Group{}, false
	}
	return s.Groups[id-1], true
}

// CollectionByID is the collection of that ID, live or dropping.
func (s *State) CollectionByID(id CollectionID) (Collection, bool) {
	i, ok := slices.BinarySearchFunc(s.Collections, id, func(c Collection, id CollectionID) int {
		return int(int64(c.ID) - int64(id))
	})
	if !ok {
		return Collection{}, false
	}
	return s.Collections[i], true
}

// PartitionsOf lists what the map gives a group, ascending.
func (s *State) PartitionsOf(id GroupID) []PartitionID {
	var out []PartitionID
	for p, g := range s.Owners {
		if g == id {
			out = append(out, PartitionID(p))
		}
	}
	return out
}

// Topology is the state as clients see it. Leaders are not part of the state:
// whoever answers fills in what it knows.
func (s *State) Topology() wire.Topology {
	t := wire.Topology{
		ClusterID: s.ClusterID, Epoch: uint64(s.Epoch), Catalog: s.Catalog, Settings: s.Settings, Leaders: s.Leaders,
		Owners:      make([]uint32, len(s.Owners)),
		Groups:      make([]wire.GroupInfo, 0, len(s.Groups)),
		Nodes:       make([]wire.NodeInfo, 0, len(s.Nodes)),
		Collections: make([]wire.CollectionInfo, 0, len(s.Collections)),
	}
	for p, g := range s.Owners {
		t.Owners[p] = uint32(g)
	}
	for _, g := range s.Groups {
		info := wire.GroupInfo{ID: uint32(g.ID), Replicas: make([]string, len(g.Replicas)), Preferred: string(g.Preferred)}
		for i, n := range g.Replicas {
			info.Replicas[i] = string(n)
		}
		t.Groups = append(t.Groups, info)
	}
	for _, n := range s.Nodes {
		t.Nodes = append(t.Nodes, n.Info())
	}
	for _, c := range s.Collections {
		t.Collections = append(t.Collections, c.Info())
	}
	return t
}
