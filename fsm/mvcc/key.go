package mvcc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// Kind is a key's second part. Numbers are on disk and never change meaning.
type Kind uint8

const (
	KindTail     Kind = 0x01 // slot
	KindOwned    Kind = 0x02 // partition
	KindCounts   Kind = 0x03 // partition, collection
	KindDropped  Kind = 0x04 // collection
	KindHorizon  Kind = 0x05 // collection
	KindDocument Kind = 0x10 // partition, collection, id, ^ts
	KindIndex    Kind = 0x11 // reserved: index entries
	KindIntent   Kind = 0x20 // reserved
	KindLock     Kind = 0x21 // reserved
	KindTxn      Kind = 0x22 // partition, role, time, random
	KindRequest  Kind = 0x30 // partition, time, random
	KindAnswers  Kind = 0x31 // partition, last time, first time, index
	KindMove     Kind = 0x40 // reserved: partition moves
)

// MaxGroup is the largest group ID: the span of a group ends where the next
// one begins, so the very last number cannot be used.
const MaxGroup = placement.GroupID(math.MaxUint32 - 1)

const (
	groupBytes    = 4
	headerBytes   = groupBytes + 1              // group, kind
	docHeader     = headerBytes + 4 + 4         // and partition, collection
	suffixBytes   = 8                           // ^ts
	minDocKey     = docHeader + 2 + suffixBytes // an empty ID
	escape        = 0x00
	escapedZero   = 0xff
	terminator    = 0x01
	RequestKeyLen = headerBytes + 4 + 8 + 16
	AnswersKeyLen = headerBytes + 4 + 8 + 8 + 8
	TxnKeyLen     = headerBytes + 4 + 1 + 8 + 16
)

var errKey = errors.New("mvcc: malformed key")

// AppendHeader appends the group and the kind.
func AppendHeader(dst []byte, g placement.GroupID, k Kind) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(g))
	return append(dst, byte(k))
}

// GroupSpan is everything of a group: [start, end).
func GroupSpan(g placement.GroupID) (start, end []byte) {
	return binary.BigEndian.AppendUint32(nil, uint32(g)), binary.BigEndian.AppendUint32(nil, uint32(g)+1)
}

// KindSpan is everything of one kind of a group.
func KindSpan(g placement.GroupID, k Kind) (start, end []byte) {
	return AppendHeader(nil, g, k), AppendHeader(nil, g, k+1)
}

// TailSlots is how many rows a group's tail has at most.
const TailSlots = 1024

// AppendTailKey appends the key of what an entry left: a slot of a ring.
func AppendTailKey(dst []byte, g placement.GroupID, index uint64) []byte {
	return binary.BigEndian.AppendUint16(AppendHeader(dst, g, KindTail), uint16(index%TailSlots))
}

// AppendNumbered appends a key of up to two numbers after the header.
func AppendNumbered(dst []byte, g placement.GroupID, k Kind, numbers ...uint32) []byte {
	dst = AppendHeader(dst, g, k)
	for _, n := range numbers {
		dst = binary.BigEndian.AppendUint32(dst, n)
	}
	return dst
}

// DecodeNumbered reads the numbers of such a key back.
func DecodeNumbered(key []byte, numbers ...*uint32) error {
	if len(key) != headerBytes+4*len(numbers) {
		return fmt.Errorf("%w: %x", errKey, key)
	}
	for i, n := range numbers {
		*n = binary.BigEndian.Uint32(key[headerBytes+4*i:])
	}
	return nil
}

// AppendRequestKey appends the key of a request's record.
func AppendRequestKey(dst []byte, g placement.GroupID, p placement.PartitionID, time uint64, random *[16]byte) []byte {
	dst = AppendHeader(dst, g, KindRequest)
	dst = binary.BigEndian.AppendUint32(dst, uint32(p))
	dst = binary.BigEndian.AppendUint64(dst, time)
	return append(dst, random[:]...)
}

// AppendAnswersKey appends the key of a partition's answers that an entry
// sealed: the largest time of a request in it and the smallest.
func AppendAnswersKey(dst []byte, g placement.GroupID, p placement.PartitionID, last, first, index uint64) []byte {
	dst = AppendNumbered(dst, g, KindAnswers, uint32(p))
	dst = binary.BigEndian.AppendUint64(dst, last)
	dst = binary.BigEndian.AppendUint64(dst, first)
	return binary.BigEndian.AppendUint64(dst, index)
}

// DecodeAnswersKey takes such a key apart.
func DecodeAnswersKey(key []byte) (p placement.PartitionID, last, first, index uint64, err error) {
	if len(key) != AnswersKeyLen || Kind(key[groupBytes]) != KindAnswers {
		return 0, 0, 0, 0, fmt.Errorf("%w: not of answers: %x", errKey, key)
	}
	rest := key[headerBytes:]
	return placement.PartitionID(binary.BigEndian.Uint32(rest)), binary.BigEndian.Uint64(rest[4:]), binary.BigEndian.Uint64(rest[12:]), binary.BigEndian.Uint64(rest[20:]), nil
}

// AnswersFrom is a partition's sealed answers, those left out whose largest
// time is below from.
func AnswersFrom(g placement.GroupID, p placement.PartitionID, from uint64) (start, end []byte) {
	start = AppendNumbered(nil, g, KindAnswers, uint32(p))
	end = AppendEnd(nil, start)
	return binary.BigEndian.AppendUint64(start, from), end
}

// AnswersSpan is a partition's sealed answers whose largest time is below the
// horizon.
func AnswersSpan(g placement.GroupID, p placement.PartitionID, below hlc.Timestamp) (start, end []byte) {
	start = AppendNumbered(nil, g, KindAnswers, uint32(p))
	end = AppendNumbered(nil, g, KindAnswers, uint32(p))
	return start, binary.BigEndian.AppendUint64(end, uint64(below))
}

// RequestSpan is a partition's request records with a time below the horizon.
func RequestSpan(g placement.GroupID, p placement.PartitionID, below hlc.Timestamp) (start, end []byte) {
	start = AppendNumbered(nil, g, KindRequest, uint32(p))
	end = AppendNumbered(nil, g, KindRequest, uint32(p))
	return start, binary.BigEndian.AppendUint64(end, uint64(below))
}

// Role is what a transaction's record is, in its key. Numbers are on disk.
type Role uint8

const (
	RolePrepared  Role = 1 // of a participant that voted yes
	RoleCommitted Role = 2 // of home, until all participants have resolved
)

// AppendTxnKey appends the key of a transaction's record.
func AppendTxnKey(dst []byte, g placement.GroupID, p placement.PartitionID, r Role, time uint64, random *[16]byte) []byte {
	dst = append(AppendNumbered(dst, g, KindTxn, uint32(p)), byte(r))
	dst = binary.BigEndian.AppendUint64(dst, time)
	return append(dst, random[:]...)
}

// TxnSpan is a partition's records in a role.
func TxnSpan(g placement.GroupID, p placement.PartitionID, r Role) (start, end []byte) {
	start = append(AppendNumbered(nil, g, KindTxn, uint32(p)), byte(r))
	return start, append(AppendNumbered(nil, g, KindTxn, uint32(p)), byte(r)+1)
}

// DecodeTxnKey takes the key of a transaction's record apart.
func DecodeTxnKey(key []byte) (p placement.PartitionID, r Role, time uint64, random [16]byte, err error) {
	if len(key) != TxnKeyLen || Kind(key[groupBytes]) != KindTxn {
		return 0, 0, 0, random, fmt.Errorf("%w: not a transaction's: %x", errKey, key)
	}
	rest := key[headerBytes:]
	p, r = placement.PartitionID(binary.BigEndian.Uint32(rest)), Role(rest[4])
	if r < RolePrepared || r > RoleCommitted {
		return 0, 0, 0, random, fmt.Errorf("%w: role %d of a transaction: %x", errKey, r, key)
	}
	time = binary.BigEndian.Uint64(rest[5:])
	copy(random[:], rest[13:])
	return p, r, time, random, nil
}

// AppendID appends an ID escaped but not ended: what all keys of IDs with this
// prefix begin with.
func AppendID(dst []byte, id string) []byte {
	for i := range len(id) {
		dst = append(dst, id[i])
		if id[i] == escape {
			dst = append(dst, escapedZero)
		}
	}
	return dst
}

// AppendCollection appends what all document keys of a collection in a
// partition begin with.
func AppendCollection(dst []byte, g placement.GroupID, p placement.PartitionID, c placement.CollectionID) []byte {
	dst = AppendHeader(dst, g, KindDocument)
	dst = binary.BigEndian.AppendUint32(dst, uint32(p))
	return binary.BigEndian.AppendUint32(dst, uint32(c))
}

// CollectionSpan is all versions of all documents of a collection in a partition.
func CollectionSpan(g placement.GroupID, p placement.PartitionID, c placement.CollectionID) (start, end []byte) {
	start = AppendCollection(nil, g, p, c)
	return start, AppendEnd(nil, start)
}

// AppendDocument appends a document's key without a timestamp: the prefix of
// all its versions.
func AppendDocument(dst []byte, g placement.GroupID, p placement.PartitionID, c placement.CollectionID, id string) []byte {
	dst = AppendCollection(dst, g, p, c)
	dst = AppendID(dst, id)
	return append(dst, escape, terminator)
}

// AppendTime appends a version's timestamp to a document's key. Newer versions
// come first.
func AppendTime(dst []byte, ts hlc.Timestamp) []byte {
	return binary.BigEndian.AppendUint64(dst, ^uint64(ts))
}

// AppendEnd appends the smallest key that is larger than every key with this
// prefix. The prefix must not be all 0xff.
func AppendEnd(dst, prefix []byte) []byte {
	n := len(prefix)
	for n > 0 && prefix[n-1] == 0xff {
		n--
	}
	if n == 0 {
		panic("mvcc: a prefix of 0xff has no end")
	}
	dst = append(dst, prefix[:n]...)
	dst[len(dst)-1]++
	return dst
}

// DocumentKey is a document version's key, taken apart.
type DocumentKey struct {
	Partition  placement.PartitionID
	Collection placement.CollectionID
	ID         string
	Time       hlc.Timestamp
}

// DecodeDocument takes a document version's key apart, the group left out of
// both: rest is the key after the group.
func DecodeDocument(rest []byte) (DocumentKey, error) {
	if len(rest) < minDocKey-groupBytes || Kind(rest[0]) != KindDocument {
		return DocumentKey{}, fmt.Errorf("%w: not a document version: %x", errKey, rest)
	}
	k := DocumentKey{
		Partition:  placement.PartitionID(binary.BigEndian.Uint32(rest[1:])),
		Collection: placement.CollectionID(binary.BigEndian.Uint32(rest[5:])),
		Time:       hlc.Timestamp(^binary.BigEndian.Uint64(rest[len(rest)-suffixBytes:])),
	}
	id := rest[docHeader-groupBytes : len(rest)-suffixBytes]
	if id[len(id)-2] != escape || id[len(id)-1] != terminator {
		return DocumentKey{}, fmt.Errorf("%w: ID without an end: %x", errKey, rest)
	}
	var err error
	k.ID, err = decodeID(id[:len(id)-2])
	return k, err
}

// decodeID undoes AppendID.
func decodeID(b []byte) (string, error) {
	if bytes.IndexByte(b, escape) < 0 {
		return string(b), nil
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		out = append(out, b[i])
		if b[i] == escape {
			if i++; i == len(b) || b[i] != escapedZero {
				return "", fmt.Errorf("%w: escape in ID: %x", errKey, b)
			}
		}
	}
	return string(out), nil
}

// timeOf is the timestamp of a document version's full key.
func timeOf(key []byte) hlc.Timestamp {
	return hlc.Timestamp(^binary.BigEndian.Uint64(key[len(key)-suffixBytes:]))
}
