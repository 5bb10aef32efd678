package doc

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/tinylib/msgp/msgp"
)

// The Append functions write one canonical value, or the head of one. A map's
// keys must follow in ascending byte order; Builder sorts where that is not
// known.

const canonicalNaN = 0x7ff8000000000000

// AppendNull appends null.
func AppendNull(dst []byte) []byte { return append(dst, tagNull) }

// AppendBool appends a bool.
func AppendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, tagTrue)
	}
	return append(dst, tagFalse)
}

// AppendInt appends an int.
func AppendInt(dst []byte, v int64) []byte {
	if v >= 0 {
		return msgp.AppendUint64(dst, uint64(v))
	}
	return msgp.AppendInt64(dst, v)
}

// AppendFloat appends a float; every NaN becomes the one NaN and -0 becomes 0.
func AppendFloat(dst []byte, v float64) []byte {
	bits := math.Float64bits(v)
	switch {
	case v != v:
		bits = canonicalNaN
	case v == 0:
		bits = 0
	}
	return binary.BigEndian.AppendUint64(append(dst, tagFloat64), bits)
}

// AppendString appends a string, which must be valid UTF-8.
func AppendString(dst []byte, v string) []byte { return msgp.AppendString(dst, v) }

// AppendText appends a string given as bytes, which must be valid UTF-8.
func AppendText(dst []byte, v []byte) []byte { return msgp.AppendStringFromBytes(dst, v) }

// AppendBytes appends bytes.
func AppendBytes(dst []byte, v []byte) []byte { return msgp.AppendBytes(dst, v) }

// AppendTime appends a timestamp. A time outside the years 1 to 9999 is cut to
// the nearest one that can be stored.
func AppendTime(dst []byte, t time.Time) []byte {
	sec, nsec := t.Unix(), uint32(t.Nanosecond())
	switch {
	case sec < minSeconds:
		sec, nsec = minSeconds, 0
	case sec > maxSeconds:
		sec, nsec = maxSeconds, 999_999_999
	}
	return appendTime(dst, sec, nsec)
}

func appendTime(dst []byte, sec int64, nsec uint32) []byte {
	dst = append(dst, tagExt8, 12, extTime)
	dst = binary.BigEndian.AppendUint32(dst, nsec)
	return binary.BigEndian.AppendUint64(dst, uint64(sec))
}

// AppendArrayHead begins an array of n elements, which must follow.
func AppendArrayHead(dst []byte, n int) []byte { return msgp.AppendArrayHeader(dst, uint32(n)) }

// AppendMapHead begins a map of n fields: n times a key (AppendString) and a
// value must follow, keys ascending.
func AppendMapHead(dst []byte, n int) []byte { return msgp.AppendMapHeader(dst, uint32(n)) }

// EmptyMap is the document without fields.
func EmptyMap() Raw { return Raw{fixMap} }
