package placement

import "strconv"

// GroupID names a shard group for ever. Group 0 is the placement group itself.
type GroupID uint32

// String is how people see the group: "g3"; the placement group is "placement".
func (g GroupID) String() string {
	if g == 0 {
		return "placement"
	}
	return "g" + strconv.FormatUint(uint64(g), 10)
}

// PartitionID is 0 … P-1.
type PartitionID uint32

// CollectionID names one incarnation of a collection; a dropped and recreated
// name has a new ID, and IDs are never reused.
type CollectionID uint32

// NodeID is the name given with `idb node --id`.
type NodeID string

// Epoch counts versions of the placement map; zero is none.
type Epoch uint64
