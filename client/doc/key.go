package doc

import (
	"bytes"
	"encoding/binary"
	"math"
	"time"
	"unicode/utf8"
)

// Key encoding. bytes.Compare of two keys is Compare of their values; no key
// is a prefix of another, so keys can be concatenated, and inverted bit by bit
// for descending order.
//
//	null       02
//	number     03 | float64, order-preserving, 8 | residue, 2, if the float is beyond ±2^53
//	string     04 | bytes, 00 as 00 ff | 00 01
//	map        05 | (01 | name as a string without its 04 | value)… | 00
//	array      06 | value… | 00
//	bytes      07 | as a string
//	false      08
//	true       09
//	timestamp  0a | seconds, order-preserving, 8 | nanoseconds, 4
//
// The float of a number is the largest one that is not above it; the residue
// is what is left to an int between two floats. An int and a float of equal
// value have one key, so decoding yields an int wherever an int can hold it.
const (
	keyEnd    = 0x00
	keyField  = 0x01
	keyNull   = 0x02
	keyNumber = 0x03
	keyString = 0x04
	keyMap    = 0x05
	keyArray  = 0x06
	keyBytes  = 0x07
	keyFalse  = 0x08
	keyTrue   = 0x09
	keyTime   = 0x0a

	keyEscape     = 0xff // after 00: a zero byte
	keyTerminator = 0x01 // after 00: the end
)

const exactInts = 1 << 53 // floats up to here hold every int

// AppendKey appends the order-preserving encoding of a value.
func AppendKey(dst []byte, r Raw) []byte {
	type frame struct {
		left  int
		isMap bool
	}
	var inline [16]frame
	stack := inline[:0]
	cur := frame{left: 1}
	i := 0
	for {
		for cur.left == 0 {
			if len(stack) == 0 {
				return dst
			}
			dst = append(dst, keyEnd)
			cur = stack[len(stack)-1]
			stack = stack[:len(stack)-1]
		}
		cur.left--
		if cur.isMap {
			kind, head, n := scan(r, i)
			if kind != KindString {
				return dst // broken bytes
			}
			dst = appendEscaped(append(dst, keyField), r[i+head:i+head+n])
			i += head + n
		}
		kind, head, n := scan(r, i)
		payload := r[min(i+head, len(r)):]
		switch kind {
		case KindNull:
			dst = append(dst, keyNull)
		case KindBool:
			if r[i] == tagTrue {
				dst = append(dst, keyTrue)
			} else {
				dst = append(dst, keyFalse)
			}
		case KindInt:
			v, _ := intAt(r, i)
			dst = appendIntKey(dst, v)
		case KindFloat:
			dst = appendFloatKey(dst, floatAt(r, i), 0)
		case KindString:
			dst = appendEscaped(append(dst, keyString), payload[:n])
		case KindBytes:
			dst = appendEscaped(append(dst, keyBytes), payload[:n])
		case KindTime:
			sec, nsec := timeAt(payload[:n])
			dst = binary.BigEndian.AppendUint64(append(dst, keyTime), uint64(sec)^1<<63)
			dst = binary.BigEndian.AppendUint32(dst, nsec)
		case KindMap, KindArray:
			if kind == KindMap {
				dst = append(dst, keyMap)
			} else {
				dst = append(dst, keyArray)
			}
			stack = append(stack, cur)
			cur = frame{left: n, isMap: kind == KindMap}
			i += head
			continue
		default:
			return dst // broken bytes
		}
		i += head + n
	}
}

func appendEscaped(dst, p []byte) []byte {
	for {
		zero := bytes.IndexByte(p, 0)
		if zero < 0 {
			break
		}
		dst = append(dst, p[:zero+1]...)
		dst = append(dst, keyEscape)
		p = p[zero+1:]
	}
	dst = append(dst, p...)
	return append(dst, 0, keyTerminator)
}

func appendIntKey(dst []byte, v int64) []byte {
	if v >= -exactInts && v <= exactInts {
		return appendFloatKey(dst, float64(v), 0)
	}
	f := float64(v)
	if compareIntFloat(v, f) < 0 {
		f = math.Nextafter(f, math.Inf(-1))
	}
	return appendFloatKey(dst, f, uint16(v-int64(f)))
}

func appendFloatKey(dst []byte, f float64, residue uint16) []byte {
	var bits uint64 // NaN is 0, before -Inf
	switch {
	case f != f:
	case f == 0:
		bits = 1 << 63
	default:
		if bits = math.Float64bits(f); bits>>63 == 0 {
			bits |= 1 << 63
		} else {
			bits = ^bits
		}
	}
	dst = binary.BigEndian.AppendUint64(append(dst, keyNumber), bits)
	if math.Abs(f) >= exactInts {
		dst = binary.BigEndian.AppendUint16(dst, residue)
	}
	return dst
}

// DecodeKey reads one key from the front of key and answers a value that
// compares equal to the one it was made of, and the bytes behind. It accepts
// only keys that AppendKey makes, and is safe on any bytes.
func DecodeKey(key []byte) (Raw, []byte, error) {
	bd := builders.Get().(*Builder)
	defer putBuilder(bd)
	bd.Reset(make([]byte, 0, min(len(key)+16, 4<<10)), len(key)+1)
	rest, ok := bd.decodeKey(key)
	if bd.err != nil {
		return nil, nil, bd.err
	}
	if !ok {
		return nil, nil, errorf(ErrInvalid, "", "these bytes are not a key, or they are damaged")
	}
	out, err := bd.Finish()
	return out, rest, err
}

func (bd *Builder) decodeKey(key []byte) ([]byte, bool) {
	var inline [16]bool
	open := inline[:0] // whether each open container is a map
	for {
		if len(key) == 0 {
			return nil, false
		}
		if n := len(open); n > 0 {
			if key[0] == keyEnd {
				key = key[1:]
				open = open[:n-1]
				if bd.End(); len(open) == 0 {
					return key, true
				}
				continue
			}
			if open[n-1] {
				name, rest, ok := readEscaped(bd, key, keyField)
				if !ok || len(rest) == 0 {
					return nil, false
				}
				key = rest
				if bd.Key(name); bd.err != nil || bd.frames[len(bd.frames)-1].unsorted {
					return nil, false
				}
			}
		}
		tag := key[0]
		switch tag {
		case keyNull:
			bd.Null()
			key = key[1:]
		case keyFalse, keyTrue:
			bd.Bool(tag == keyTrue)
			key = key[1:]
		case keyNumber:
			rest, ok := bd.decodeNumberKey(key[1:])
			if !ok {
				return nil, false
			}
			key = rest
		case keyString, keyBytes:
			p, rest, ok := readEscaped(bd, key, tag)
			if !ok {
				return nil, false
			}
			if tag == keyBytes {
				bd.Bytes(p)
			} else if bd.Text(p); !utf8.Valid(p) {
				return nil, false
			}
			key = rest
		case keyTime:
			if len(key) < 13 {
				return nil, false
			}
			sec, nsec := int64(binary.BigEndian.Uint64(key[1:])^1<<63), binary.BigEndian.Uint32(key[9:])
			if !timeInRange(sec, nsec) {
				return nil, false
			}
			bd.Time(time.Unix(sec, int64(nsec)))
			key = key[13:]
		case keyMap, keyArray:
			if tag == keyMap {
				bd.BeginMap()
			} else {
				bd.BeginArray()
			}
			if bd.err != nil {
				return nil, false
			}
			open = append(open, tag == keyMap)
			key = key[1:]
			continue
		default:
			return nil, false
		}
		if len(open) == 0 {
			return key, true
		}
	}
}

func (bd *Builder) decodeNumberKey(key []byte) ([]byte, bool) {
	if len(key) < 8 {
		return nil, false
	}
	bits := binary.BigEndian.Uint64(key)
	key = key[8:]
	if bits == 0 {
		bd.Float(math.NaN())
		return key, true
	}
	raw := bits
	if bits>>63 == 1 {
		bits &^= 1 << 63
	} else {
		bits = ^bits
	}
	f := math.Float64frombits(bits)
	if f != f || f == 0 && raw != 1<<63 {
		return nil, false
	}
	var residue int64
	if math.Abs(f) >= exactInts {
		if len(key) < 2 {
			return nil, false
		}
		residue = int64(binary.BigEndian.Uint16(key))
		key = key[2:]
	}
	if f >= -1<<63 && f < 1<<63 && f == math.Trunc(f) {
		v := int64(f) + residue
		// The residue must be what AppendKey would write for v.
		if residue != 0 {
			next := math.Nextafter(f, math.Inf(1))
			if v < int64(f) || next < 1<<63 && v >= int64(next) {
				return nil, false
			}
		}
		bd.Int(v)
		return key, true
	}
	if residue != 0 {
		return nil, false
	}
	bd.Float(f)
	return key, true
}

// readEscaped reads a tag and the string behind it. The answer lies in key or
// in the builder's scratch.
func readEscaped(bd *Builder, key []byte, tag byte) (p, rest []byte, ok bool) {
	if key[0] != tag {
		return nil, nil, false
	}
	key = key[1:]
	scratch := bd.scratch[:0]
	for {
		zero := bytes.IndexByte(key, 0)
		if zero < 0 || zero+1 >= len(key) {
			return nil, nil, false
		}
		mark := key[zero+1]
		switch {
		case mark == keyTerminator && len(scratch) == 0:
			p, rest = key[:zero], key[zero+2:]
		case mark == keyTerminator:
			scratch = append(scratch, key[:zero]...)
			p, rest = scratch, key[zero+2:]
		case mark == keyEscape:
			scratch = append(scratch, key[:zero+1]...)
			key = key[zero+2:]
			continue
		default:
			return nil, nil, false
		}
		bd.scratch = scratch
		return p, rest, tag != keyField || utf8.Valid(p)
	}
}
