package wire

import (
	"strings"

	"github.com/cespare/xxhash/v2"
)

// PlacementKey is the part of an ID that decides its partition: up to the
// collection's separator, or the whole ID.
func PlacementKey(separator, id string) string {
	if separator == "" {
		return id
	}
	key, _, _ := strings.Cut(id, separator)
	return key
}

// Partition is where a document lives:
//
//	xxhash64(collection name, 0x00, PlacementKey) mod partitions
//
// The collection's name is hashed, not its number, so that a client can
// compute the partition from what it was given.
func Partition(collection, separator, id string, partitions uint32) uint32 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.WriteString(collection)
	_, _ = d.Write([]byte{0})
	_, _ = d.WriteString(PlacementKey(separator, id))
	return uint32(d.Sum64() % uint64(partitions))
}
