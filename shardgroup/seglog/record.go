package seglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A segment file:
//
//	| header, one block | batch | batch | … | old bytes or zeros |
//
// The header, which keeps this form in all versions:
//
//	| magic "IDBSEGMT" | version u32 | 0 u32 | segment u64 | salt u64 | crc u32 | 0… |
//
// A batch begins at a block and is padded to one with zeros:
//
//	| magic u32 | version u8 | 0 u24 | body length u32 | body crc u32 | number u64 | low u64 | header crc u32 | body… |
//
// number counts the batches of the whole log without a gap. low is the oldest
// segment that is still needed. Checksums are CRC32C. Those of a batch go on
// from the checksum of its segment's number and salt, so that what an earlier
// life of the file left, or what a client has written into a document, is no
// batch of this segment.
//
// A body is a sequence of records, which happen together or not at all:
//
//	| 1 entry   | group u32 | index u64 | length u32 | crc u32 | payload… |
//	| 2 carried | the same: an entry from an older segment              |
//	| 3 front   | group u32 | last u64 |    entries up to last are gone
//	| 4 back    | group u32 | first u64 |   entries from first on are gone
//	| 5 set     | kind u8 | group u32 | length u32 | value… |
//	| 6 delete  | kind u8 | group u32 |
//
// An entry's crc covers its group, index, length and payload, for reading it
// alone. All integers are big-endian.
const (
	block         = 4096
	segmentMagic  = "IDBSEGMT"
	batchMagic    = 0x1db0ba7c
	formatVersion = 1

	segmentHeader = 8 + 4 + 4 + 8 + 8 + 4
	batchHeader   = 4 + 4 + 4 + 4 + 8 + 8 + 4

	recEntry   = 1
	recCarried = 2
	recFront   = 3
	recBack    = 4
	recSet     = 5
	recDelete  = 6

	entryHeader  = 1 + 4 + 8 + 4 + 4
	cutRecord    = 1 + 4 + 8
	setHeader    = 1 + 1 + 4 + 4
	deleteRecord = 1 + 1 + 4

	// maxIndex keeps sums of indexes from overflowing.
	maxIndex = 1<<62 - 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	// ErrDamaged: bytes that were on disk for sure are not as they were
	// written. The node's copy is lost; another node has to give it a new one.
	ErrDamaged = errors.New("damaged")
	// ErrNewer: written by a newer version of the program.
	ErrNewer = errors.New("written by a newer version")
)

func appendSegmentHeader(b []byte, number, salt uint64) []byte {
	at := len(b)
	b = append(b, segmentMagic...)
	b = binary.BigEndian.AppendUint32(b, formatVersion)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint64(b, number)
	b = binary.BigEndian.AppendUint64(b, salt)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

func decodeSegmentHeader(b []byte) (number, salt uint64, err error) {
	if len(b) < segmentHeader || string(b[:8]) != segmentMagic ||
		binary.BigEndian.Uint32(b[32:]) != crc32.Checksum(b[:32], castagnoli) {
		return 0, 0, fmt.Errorf("its header is %w", ErrDamaged)
	}
	switch v := binary.BigEndian.Uint32(b[8:]); {
	case v == 0:
		return 0, 0, fmt.Errorf("its header has version 0 (%w)", ErrDamaged)
	case v > formatVersion:
		return 0, 0, fmt.Errorf("it has version %d, this program reads up to %d (%w)", v, formatVersion, ErrNewer)
	}
	return binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:]), nil
}

// seedOf is where the checksums of a segment's batches begin.
func seedOf(number, salt uint64) uint32 {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], number)
	binary.BigEndian.PutUint64(b[8:], salt)
	return crc32.Checksum(b[:], castagnoli)
}

// header is a batch's.
type header struct {
	length  uint32 // of the body
	bodyCRC uint32
	number  uint64
	low     uint64
}

// size is what the batch takes in the file.
func (h *header) size() int64 { return blocks(batchHeader + int64(h.length)) }

// blocks rounds up to whole blocks.
func blocks(n int64) int64 { return (n + block - 1) &^ (block - 1) }

// sealBatch fills in the header of a batch whose body begins at b[batchHeader].
func sealBatch(b []byte, seed uint32, number, low uint64) {
	body := b[batchHeader:]
	binary.BigEndian.PutUint32(b, batchMagic)
	binary.BigEndian.PutUint32(b[4:], formatVersion<<24)
	binary.BigEndian.PutUint32(b[8:], uint32(len(body)))
	binary.BigEndian.PutUint32(b[12:], crc32.Update(seed, castagnoli, body))
	binary.BigEndian.PutUint64(b[16:], number)
	binary.BigEndian.PutUint64(b[24:], low)
	binary.BigEndian.PutUint32(b[32:], crc32.Update(seed, castagnoli, b[:32]))
}

// decodeBatchHeader answers false for what is no header of a batch of this
// segment, which is ordinary at the end of a log.
func decodeBatchHeader(b []byte, seed uint32) (h header, ok bool, err error) {
	if len(b) < batchHeader || binary.BigEndian.Uint32(b) != batchMagic ||
		binary.BigEndian.Uint32(b[32:]) != crc32.Update(seed, castagnoli, b[:32]) {
		return h, false, nil
	}
	switch v := b[4]; {
	case v == 0:
		return h, false, fmt.Errorf("a batch has version 0 (%w)", ErrDamaged)
	case v > formatVersion:
		return h, false, fmt.Errorf("a batch has version %d, this program reads up to %d (%w)", v, formatVersion, ErrNewer)
	}
	return header{
		length:  binary.BigEndian.Uint32(b[8:]),
		bodyCRC: binary.BigEndian.Uint32(b[12:]),
		number:  binary.BigEndian.Uint64(b[16:]),
		low:     binary.BigEndian.Uint64(b[24:]),
	}, true, nil
}

// beginEntry appends the header of an entry whose payload the caller appends;
// finishEntry completes it. The entry began at at.
func beginEntry(b []byte, kind byte, group uint32, index uint64) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint32(b, group)
	b = binary.BigEndian.AppendUint64(b, index)
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0)
}

func finishEntry(b []byte, at int) {
	e := b[at:]
	binary.BigEndian.PutUint32(e[13:], uint32(len(e)-entryHeader))
	binary.BigEndian.PutUint32(e[17:], entryCRC(e))
}

// entryCRC is the checksum of an entry with its header.
func entryCRC(e []byte) uint32 {
	return crc32.Update(crc32.Checksum(e[1:17], castagnoli), castagnoli, e[entryHeader:])
}

// checkEntry says whether e, header and payload, is the entry it should be.
func checkEntry(e []byte, group uint32, index uint64) error {
	if (e[0] != recEntry && e[0] != recCarried) ||
		binary.BigEndian.Uint32(e[1:]) != group || binary.BigEndian.Uint64(e[5:]) != index ||
		binary.BigEndian.Uint32(e[13:]) != uint32(len(e)-entryHeader) || binary.BigEndian.Uint32(e[17:]) != entryCRC(e) {
		return fmt.Errorf("the entry on disk is %w", ErrDamaged)
	}
	return nil
}

func appendCut(b []byte, kind byte, group uint32, index uint64) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint32(b, group)
	return binary.BigEndian.AppendUint64(b, index)
}

func appendSet(b []byte, k Key, value []byte) []byte {
	b = append(b, recSet, k.Kind)
	b = binary.BigEndian.AppendUint32(b, k.Group)
	b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
	return append(b, value...)
}

func appendDelete(b []byte, k Key) []byte {
	return binary.BigEndian.AppendUint32(append(b, recDelete, k.Kind), k.Group)
}

// record is one record of a body.
type record struct {
	kind  byte
	group uint32
	index uint64
	key   Key
	value []byte // of a set; shares the body's bytes
	size  uint32 // of an entry's payload
	at    int    // where the record begins in the body
	len   int
}

var errBody = fmt.Errorf("a batch does not consist of records (%w)", ErrDamaged)

// decodeRecord takes the record at body[at:] apart.
func decodeRecord(body []byte, at int) (r record, err error) {
	b := body[at:]
	r = record{kind: b[0], at: at}
	switch r.kind {
	case recEntry, recCarried:
		if len(b) < entryHeader {
			return r, errBody
		}
		r.group, r.index, r.size = binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint64(b[5:]), binary.BigEndian.Uint32(b[13:])
		if uint64(r.size) > uint64(len(b)-entryHeader) {
			return r, errBody
		}
		r.len = entryHeader + int(r.size)
	case recFront, recBack:
		if len(b) < cutRecord {
			return r, errBody
		}
		r.group, r.index = binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint64(b[5:])
		r.len = cutRecord
	case recSet:
		if len(b) < setHeader {
			return r, errBody
		}
		r.key = Key{Kind: b[1], Group: binary.BigEndian.Uint32(b[2:])}
		n := binary.BigEndian.Uint32(b[6:])
		if uint64(n) > uint64(len(b)-setHeader) {
			return r, errBody
		}
		r.value = b[setHeader : setHeader+int(n)]
		r.len = setHeader + int(n)
	case recDelete:
		if len(b) < deleteRecord {
			return r, errBody
		}
		r.key = Key{Kind: b[1], Group: binary.BigEndian.Uint32(b[2:])}
		r.len = deleteRecord
	default:
		return r, errBody
	}
	return r, nil
}
