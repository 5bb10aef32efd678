package doc

import (
	"encoding/binary"
	"math"
	"time"
)

// Raw is one value in canonical encoding; a document is a Raw that is a map.
// Methods expect checked bytes (see the package comment).
type Raw []byte

// D is a document as a Go map.
type D = map[string]any

// Kind is the type of a value. Kinds are not in the order of values: an int
// and a float are two kinds of one class, numbers (see Compare).
type Kind uint8

// Kinds of values.
const (
	KindInvalid Kind = iota // not a value, or bytes that end too soon
	KindNull
	KindInt
	KindFloat
	KindString
	KindMap
	KindArray
	KindBytes
	KindBool
	KindTime
)

var kindNames = [...]string{"invalid", "null", "int", "float", "string", "map", "array", "bytes", "bool", "timestamp"}

// String is the kind's name as documented for users.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "invalid"
}

// Phrase is the kind's name for the middle of a sentence: "a string", "null".
func (k Kind) Phrase() string {
	switch k {
	case KindInt, KindArray:
		return "an " + k.String()
	case KindNull, KindBytes:
		return k.String()
	case KindFloat, KindString, KindMap, KindBool, KindTime:
		return "a " + k.String()
	}
	return "broken bytes"
}

// Bytes of msgpack that the package looks at directly.
const (
	tagNull    = 0xc0
	tagFalse   = 0xc2
	tagTrue    = 0xc3
	tagBin8    = 0xc4
	tagBin16   = 0xc5
	tagBin32   = 0xc6
	tagExt8    = 0xc7
	tagExt16   = 0xc8
	tagExt32   = 0xc9
	tagFloat32 = 0xca
	tagFloat64 = 0xcb
	tagUint8   = 0xcc
	tagUint16  = 0xcd
	tagUint32  = 0xce
	tagUint64  = 0xcf
	tagInt8    = 0xd0
	tagInt16   = 0xd1
	tagInt32   = 0xd2
	tagInt64   = 0xd3
	tagFixExt1 = 0xd4
	tagStr8    = 0xd9
	tagStr16   = 0xda
	tagStr32   = 0xdb
	tagArray16 = 0xdc
	tagArray32 = 0xdd
	tagMap16   = 0xde
	tagMap32   = 0xdf

	fixMap   = 0x80
	fixArray = 0x90
	fixStr   = 0xa0

	extTime = 0xff // -1
)

// kindExt is an extension other than a timestamp. It never leaves the package:
// outside it is KindInvalid.
const kindExt Kind = 100

// scan reads the head of the value at b[i:], in any form that msgpack has.
// For arrays and maps n is the number of elements or pairs; for the rest it is
// the number of payload bytes after the head, all of which are within b. The
// type byte of an extension is the last byte of its head.
func scan(b []byte, i int) (kind Kind, head, n int) {
	if uint(i) >= uint(len(b)) {
		return KindInvalid, 0, 0
	}
	rest := len(b) - i
	c := b[i]
	switch {
	case c < fixMap || c >= 0xe0:
		return KindInt, 1, 0
	case c < fixArray:
		return KindMap, 1, int(c & 0x0f)
	case c < fixStr:
		return KindArray, 1, int(c & 0x0f)
	case c < tagNull:
		kind, head, n = KindString, 1, int(c&0x1f)
	default:
		var lengthBytes int
		switch c {
		case tagNull:
			return KindNull, 1, 0
		case tagFalse, tagTrue:
			return KindBool, 1, 0
		case tagBin8, tagBin16, tagBin32:
			kind, lengthBytes = KindBytes, 1<<(c-tagBin8)
		case tagExt8, tagExt16, tagExt32:
			kind, lengthBytes = kindExt, 1<<(c-tagExt8)
		case tagFloat32, tagFloat64:
			kind, head, n = KindFloat, 1, 4<<(c-tagFloat32)
		case tagUint8, tagUint16, tagUint32, tagUint64:
			kind, head, n = KindInt, 1, 1<<(c-tagUint8)
		case tagInt8, tagInt16, tagInt32, tagInt64:
			kind, head, n = KindInt, 1, 1<<(c-tagInt8)
		case tagFixExt1, tagFixExt1 + 1, tagFixExt1 + 2, tagFixExt1 + 3, tagFixExt1 + 4:
			kind, head, n = kindExt, 1, 1<<(c-tagFixExt1)
		case tagStr8, tagStr16, tagStr32:
			kind, lengthBytes = KindString, 1<<(c-tagStr8)
		case tagArray16, tagArray32:
			kind, lengthBytes = KindArray, 2<<(c-tagArray16)
		case tagMap16, tagMap32:
			kind, lengthBytes = KindMap, 2<<(c-tagMap16)
		default: // c1 is not used
			return KindInvalid, 0, 0
		}
		if lengthBytes > 0 {
			head = 1 + lengthBytes
			if rest < head {
				return KindInvalid, 0, 0
			}
			switch lengthBytes {
			case 1:
				n = int(b[i+1])
			case 2:
				n = int(binary.BigEndian.Uint16(b[i+1:]))
			default:
				n = int(binary.BigEndian.Uint32(b[i+1:]))
			}
		}
		switch kind {
		case KindArray:
			if n > rest-head {
				return KindInvalid, 0, 0
			}
			return kind, head, n
		case KindMap:
			if n > (rest-head)/2 {
				return KindInvalid, 0, 0
			}
			return kind, head, n
		case kindExt:
			if rest <= head {
				return KindInvalid, 0, 0
			}
			head++
			if b[i+head-1] == extTime && (n == 4 || n == 8 || n == 12) {
				kind = KindTime
			}
		}
	}
	if n > rest-head {
		return KindInvalid, 0, 0
	}
	return kind, head, n
}

// skip is the offset behind the value at b[i:], or -1.
func skip(b []byte, i int) int {
	pending := 1
	for pending > 0 {
		kind, head, n := scan(b, i)
		switch kind {
		case KindInvalid:
			return -1
		case KindArray:
			pending += n
			i += head
		case KindMap:
			pending += 2 * n
			i += head
		default:
			i += head + n
		}
		pending--
		if pending > len(b)-i {
			return -1
		}
	}
	return i
}

// intAt reads the integer at b[i:], whose head scan has accepted. ok is false
// if it is above MaxInt64.
func intAt(b []byte, i int) (v int64, ok bool) {
	p := b[i+1:]
	switch c := b[i]; c {
	case tagUint8:
		return int64(p[0]), true
	case tagUint16:
		return int64(binary.BigEndian.Uint16(p)), true
	case tagUint32:
		return int64(binary.BigEndian.Uint32(p)), true
	case tagUint64:
		u := binary.BigEndian.Uint64(p)
		return int64(u), u <= math.MaxInt64
	case tagInt8:
		return int64(int8(p[0])), true
	case tagInt16:
		return int64(int16(binary.BigEndian.Uint16(p))), true
	case tagInt32:
		return int64(int32(binary.BigEndian.Uint32(p))), true
	case tagInt64:
		return int64(binary.BigEndian.Uint64(p)), true
	default:
		return int64(int8(c)), true
	}
}

// floatAt reads the float at b[i:], whose head scan has accepted.
func floatAt(b []byte, i int) float64 {
	if b[i] == tagFloat32 {
		return float64(math.Float32frombits(binary.BigEndian.Uint32(b[i+1:])))
	}
	return math.Float64frombits(binary.BigEndian.Uint64(b[i+1:]))
}

// timeAt reads the payload of a timestamp: seconds and nanoseconds.
func timeAt(p []byte) (sec int64, nsec uint32) {
	switch len(p) {
	case 4:
		return int64(binary.BigEndian.Uint32(p)), 0
	case 8:
		v := binary.BigEndian.Uint64(p)
		return int64(v & (1<<34 - 1)), uint32(v >> 34)
	default:
		return int64(binary.BigEndian.Uint64(p[4:])), binary.BigEndian.Uint32(p)
	}
}

// Bounds of timestamps: the years that RFC 3339 can write and Go's zero time.
const (
	minSeconds = -62135596800 // 0001-01-01T00:00:00Z
	maxSeconds = 253402300799 // 9999-12-31T23:59:59Z
)

func timeInRange(sec int64, nsec uint32) bool {
	return sec >= minSeconds && sec <= maxSeconds && nsec < 1e9
}

// Kind is the type of the value.
func (r Raw) Kind() Kind {
	kind, _, _ := scan(r, 0)
	if kind == kindExt {
		return KindInvalid
	}
	return kind
}

// IsNull says whether the value is null.
func (r Raw) IsNull() bool { return len(r) > 0 && r[0] == tagNull }

// Int is the value of an int.
func (r Raw) Int() (int64, bool) {
	if kind, _, _ := scan(r, 0); kind != KindInt {
		return 0, false
	}
	return intAt(r, 0)
}

// Float is the value of a float. An int is not a float.
func (r Raw) Float() (float64, bool) {
	if kind, _, _ := scan(r, 0); kind != KindFloat {
		return 0, false
	}
	return floatAt(r, 0), true
}

// Text is the bytes of a string, inside r.
func (r Raw) Text() ([]byte, bool) { return r.payload(KindString) }

// Str is a string's value; it allocates.
func (r Raw) Str() (string, bool) {
	p, ok := r.payload(KindString)
	return string(p), ok
}

// Bytes is the value of bytes, inside r.
func (r Raw) Bytes() ([]byte, bool) { return r.payload(KindBytes) }

// Bool is the value of a bool.
func (r Raw) Bool() (value, ok bool) {
	if len(r) == 0 || r[0] != tagTrue && r[0] != tagFalse {
		return false, false
	}
	return r[0] == tagTrue, true
}

// Time is the value of a timestamp, in UTC.
func (r Raw) Time() (time.Time, bool) {
	p, ok := r.payload(KindTime)
	if !ok {
		return time.Time{}, false
	}
	sec, nsec := timeAt(p)
	return time.Unix(sec, int64(nsec)).UTC(), true
}

// Len is the number of elements of an array or of fields of a map, else 0.
func (r Raw) Len() int {
	if kind, _, n := scan(r, 0); kind == KindArray || kind == KindMap {
		return n
	}
	return 0
}

// Depth is how many arrays and maps are open at once at most: 0 of a scalar, 1
// of a flat map.
func Depth(r Raw) int {
	var inline [16]int // values still to come at each level
	left := append(inline[:0], 1)
	deepest := 0
	for i := 0; ; {
		for left[len(left)-1] == 0 {
			if left = left[:len(left)-1]; len(left) == 0 {
				return deepest
			}
		}
		left[len(left)-1]--
		kind, head, n := scan(r, i)
		switch kind {
		case KindInvalid:
			return deepest
		case KindMap, KindArray:
			if kind == KindMap {
				n *= 2
			}
			left = append(left, n)
			deepest = max(deepest, len(left)-1)
			i += head
		default:
			i += head + n
		}
	}
}

// Equal says whether two canonical values are the same value of the same kind.
// (Compare treats the int 1 and the float 1.0 as equal, Equal does not.)
func (r Raw) Equal(o Raw) bool { return string(r) == string(o) }

func (r Raw) payload(want Kind) ([]byte, bool) {
	kind, head, n := scan(r, 0)
	if kind != want {
		return nil, false
	}
	return r[head : head+n : head+n], true
}

// Size is the number of bytes of the first value in b, which may have others
// behind it; len(b) if b is broken.
func Size(b []byte) int {
	if n := skip(b, 0); n > 0 {
		return n
	}
	return len(b)
}
