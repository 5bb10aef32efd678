package router

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// cursor says where a scan goes on. To clients it is opaque:
//
//	version u8 = 1 | flags u8 | collection u32 | time u64 |
//	prefix length u16, prefix | last ID length u16, last ID |
//	first 4 bytes of xxhash64 of the above
//
// all big endian. The checksum is against mistakes, not malice: everything in
// a cursor is something its holder may ask for anyway.
type cursor struct {
	collection placement.CollectionID
	prefix     string
	after      string // the last ID answered
	reverse    bool
	time       hlc.Timestamp
}

const (
	cursorVersion = 1
	cursorReverse = 1 << 0

	cursorHead    = 1 + 1 + 4 + 8
	cursorSum     = 4
	maxCursorSize = cursorHead + 2 + wire.MaxIDBytes + 2 + wire.MaxIDBytes + cursorSum
)

func (c cursor) encode() []byte {
	b := make([]byte, 0, cursorHead+4+len(c.prefix)+len(c.after)+cursorSum)
	var flags byte
	if c.reverse {
		flags |= cursorReverse
	}
	b = append(b, cursorVersion, flags)
	b = binary.BigEndian.AppendUint32(b, uint32(c.collection))
	b = binary.BigEndian.AppendUint64(b, uint64(c.time))
	for _, s := range []string{c.prefix, c.after} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return binary.BigEndian.AppendUint32(b, uint32(xxhash.Sum64(b)>>32))
}

// decodeCursor refuses what encode did not make.
func decodeCursor(b []byte) (cursor, *wire.Error) {
	bad := func(why string) (cursor, *wire.Error) {
		return cursor{}, refuse(wire.CodeBadCursor, "the cursor %s (start the scan again without one)", why)
	}
	switch {
	case len(b) > maxCursorSize || len(b) < cursorHead+4+cursorSum:
		return bad("has an impossible length")
	case b[0] > cursorVersion:
		return bad("was made by a newer server")
	case b[0] == 0 || b[1]&^cursorReverse != 0:
		return bad("was not made by this cluster")
	}
	content, sum := b[:len(b)-cursorSum], binary.BigEndian.Uint32(b[len(b)-cursorSum:])
	if uint32(xxhash.Sum64(content)>>32) != sum {
		return bad("is damaged")
	}
	c := cursor{
		reverse:    b[1]&cursorReverse != 0,
		collection: placement.CollectionID(binary.BigEndian.Uint32(b[2:])),
		time:       hlc.Timestamp(binary.BigEndian.Uint64(b[6:])),
	}
	rest := content[cursorHead:]
	for _, field := range []*string{&c.prefix, &c.after} {
		if len(rest) < 2 {
			return bad("is cut")
		}
		n := int(binary.BigEndian.Uint16(rest))
		if n > wire.MaxIDBytes || n > len(rest)-2 || !utf8.Valid(rest[2:2+n]) {
			return bad("was not made by this cluster")
		}
		*field, rest = string(rest[2:2+n]), rest[2+n:]
	}
	if len(rest) != 0 || c.time == 0 || c.collection == 0 || c.after == "" || !strings.HasPrefix(c.after, c.prefix) {
		return bad("was not made by this cluster")
	}
	return c, nil
}
