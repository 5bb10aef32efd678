package doc

import (
	"encoding/base64"
	"math"
	"strconv"
	"time"
	"unicode/utf8"
)

// AppendJSON appends a value as extended JSON, which FromJSON reads back to
// the same bytes. Of broken bytes it writes null.
func AppendJSON(dst []byte, r Raw) []byte { return appendJSON(dst, r, false) }

// JSON is the value as extended JSON.
func (r Raw) JSON() []byte { return AppendJSON(make([]byte, 0, len(r)+len(r)/2), r) }

// String is the value as extended JSON, for tests and messages.
func (r Raw) String() string { return string(r.JSON()) }

// MarshalJSON lets encoding/json print a Raw.
func (r Raw) MarshalJSON() ([]byte, error) {
	if len(r) == 0 {
		return []byte("null"), nil
	}
	return r.JSON(), nil
}

// UnmarshalJSON lets encoding/json read a Raw.
func (r *Raw) UnmarshalJSON(b []byte) error {
	v, err := FromJSON(b)
	if err != nil {
		return err
	}
	*r = v
	return nil
}

// appendJSON writes a value; with fieldsOnly, the fields of the map r without
// braces.
func appendJSON(dst []byte, r Raw, fieldsOnly bool) []byte {
	type frame struct {
		left   int
		isMap  bool
		first  bool
		closes string
	}
	var inline [16]frame
	stack := inline[:0]
	cur := frame{left: 1, first: true}
	i := 0
	if fieldsOnly {
		kind, head, n := scan(r, 0)
		if kind != KindMap {
			return dst
		}
		cur = frame{left: n, isMap: true, first: true}
		i = head
	}
	for {
		for cur.left == 0 {
			dst = append(dst, cur.closes...)
			if len(stack) == 0 {
				return dst
			}
			cur = stack[len(stack)-1]
			stack = stack[:len(stack)-1]
		}
		cur.left--
		if !cur.first {
			dst = append(dst, ',')
		}
		cur.first = false
		if cur.isMap {
			kind, head, n := scan(r, i)
			if kind != KindString {
				cur.left = 0
				dst = append(dst, `"":null`...)
				continue
			}
			dst = appendJSONString(dst, r[i+head:i+head+n])
			dst = append(dst, ':')
			i += head + n
		}
		kind, head, n := scan(r, i)
		switch kind {
		case KindNull:
			dst = append(dst, "null"...)
		case KindBool:
			dst = strconv.AppendBool(dst, r[i] == tagTrue)
		case KindInt:
			v, _ := intAt(r, i)
			dst = strconv.AppendInt(dst, v, 10)
		case KindFloat:
			dst = appendJSONFloat(dst, floatAt(r, i))
		case KindString:
			dst = appendJSONString(dst, r[i+head:i+head+n])
		case KindBytes:
			dst = append(dst, `{"$bytes":"`...)
			dst = base64.StdEncoding.AppendEncode(dst, r[i+head:i+head+n])
			dst = append(dst, `"}`...)
		case KindTime:
			sec, nsec := timeAt(r[i+head : i+head+n])
			dst = append(dst, `{"$date":`...)
			dst = appendJSONTime(dst, time.Unix(sec, int64(nsec)))
			dst = append(dst, '}')
		case KindMap, KindArray:
			stack = append(stack, cur)
			i += head
			cur = frame{left: n, isMap: kind == KindMap, first: true}
			switch {
			case kind == KindArray:
				dst = append(dst, '[')
				cur.closes = "]"
			case needsLiteral(r, i, n):
				dst = append(dst, `{"$literal":{`...)
				cur.closes = "}}"
			default:
				dst = append(dst, '{')
				cur.closes = "}"
			}
			continue
		default: // broken bytes
			dst = append(dst, "null"...)
			cur.left, i = 0, len(r)
			continue
		}
		i += head + n
	}
}

// needsLiteral says whether the map of n fields that begins (behind its head)
// at r[i:] has a name that extended JSON would take for its own.
func needsLiteral(r Raw, i, n int) bool {
	for ; n > 0; n-- {
		kind, head, size := scan(r, i)
		if kind != KindString {
			return false
		}
		key := r[i+head : i+head+size]
		if len(key) > 0 {
			if key[0] > '$' {
				return false // keys ascend
			}
			switch string(key) {
			case jsonDate, jsonBytes, jsonFloat, jsonLiteral:
				return true
			}
		}
		if i = skip(r, i+head+size); i < 0 {
			return false
		}
	}
	return false
}

func appendJSONFloat(dst []byte, v float64) []byte {
	switch {
	case v != v:
		return append(dst, `{"$float":"NaN"}`...)
	case v > math.MaxFloat64:
		return append(dst, `{"$float":"Infinity"}`...)
	case v < -math.MaxFloat64:
		return append(dst, `{"$float":"-Infinity"}`...)
	}
	if abs := math.Abs(v); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		return strconv.AppendFloat(dst, v, 'e', -1, 64)
	}
	start := len(dst)
	dst = strconv.AppendFloat(dst, v, 'f', -1, 64)
	for _, c := range dst[start:] {
		if c == '.' {
			return dst
		}
	}
	return append(dst, ".0"...) // so that it is read back as a float
}

// appendJSONTime writes milliseconds, or nanoseconds where they are needed.
func appendJSONTime(dst []byte, t time.Time) []byte {
	layout := `"2006-01-02T15:04:05.000Z"`
	if t.Nanosecond()%1e6 != 0 {
		layout = `"2006-01-02T15:04:05.000000000Z"`
	}
	return t.UTC().AppendFormat(dst, layout)
}

const hexDigits = "0123456789abcdef"

// jsonPlain has the bytes that stand for themselves in a JSON string.
var jsonPlain = func() (plain [256]bool) {
	for c := range plain {
		plain[c] = c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf
	}
	return plain
}()

func appendJSONString(dst, s []byte) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if jsonPlain[c] {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			// Canonical strings are valid; others must not make invalid JSON.
			r, size := utf8.DecodeRune(s[i:])
			if r == utf8.RuneError && size == 1 {
				dst = append(dst, s[start:i]...)
				dst = append(dst, `\ufffd`...)
				i++
				start = i
				continue
			}
			i += size
			continue
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
