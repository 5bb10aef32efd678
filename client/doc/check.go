package doc

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"
)

// Default limits, also those of FromJSON and Marshal for nesting.
const (
	DefaultMaxBytes = 1 << 20
	DefaultMaxDepth = 64
)

// Limits bound a document. Zero values mean the defaults.
type Limits struct {
	MaxBytes int // of canonical encoding
	MaxDepth int // arrays and maps open at once; the document itself is 1
}

func (l Limits) withDefaults() Limits {
	if l.MaxBytes <= 0 {
		l.MaxBytes = DefaultMaxBytes
	}
	if l.MaxDepth <= 0 {
		l.MaxDepth = DefaultMaxDepth
	}
	return l
}

// Check accepts exactly one value in canonical encoding, within the limits.
// It is safe on any bytes, uses no recursion, and allocates only for an error
// (and for nesting beyond 16 levels).
func Check(b []byte, lim Limits) error {
	if code, at := check(b, lim.withDefaults(), false); code != checkOK {
		return checkError(b, lim.withDefaults(), code, at)
	}
	return nil
}

// CheckBody is Check for a stored body: a map none of whose names begins with
// "_" or "$".
func CheckBody(b []byte, lim Limits) error {
	if code, at := check(b, lim.withDefaults(), true); code != checkOK {
		return checkError(b, lim.withDefaults(), code, at)
	}
	return nil
}

type checkCode uint8

const (
	checkOK checkCode = iota
	checkTooLarge
	checkTooDeep
	checkShort     // the bytes end inside a value, or a length runs past them
	checkTrailing  // bytes behind the value
	checkForm      // a longer form than necessary, or a float32
	checkKeyKind   // a map key that is not a string
	checkKeyOrder  // keys not ascending
	checkKeyTwice  // two equal keys
	checkUTF8      // a string that is not UTF-8
	checkExt       // an extension that cannot be stored
	checkTimeRange // a timestamp out of range
	checkIntRange  // an integer above MaxInt64
	checkNumber    // -0, or another NaN
	checkUnused    // c1
	checkNotMap    // a body that is not a map
	checkName      // a body's name that is reserved
)

// checkFrame is a map or array that waits while one inside it is checked.
type checkFrame struct {
	left     int   // values or pairs still to come
	key, end int32 // last key is b[key:end]; key < 0: none yet
	isMap    bool
}

// check is the loop behind Check. It reports the offset of what was wrong.
func check(b []byte, lim Limits, body bool) (checkCode, int) {
	if len(b) > lim.MaxBytes {
		return checkTooLarge, 0
	}
	if len(b) > 1<<30 { // offsets are int32
		return checkTooLarge, 0
	}
	if body && (len(b) == 0 || b[0]&0xf0 != fixMap && b[0] != tagMap16 && b[0] != tagMap32) {
		return checkNotMap, 0
	}
	var inline [16]checkFrame
	stack := inline[:0]
	cur := checkFrame{left: 1}
	i := 0
	for {
		for cur.left == 0 {
			if len(stack) == 0 {
				if i != len(b) {
					return checkTrailing, i
				}
				return checkOK, 0
			}
			cur = stack[len(stack)-1]
			stack = stack[:len(stack)-1]
		}
		cur.left--

		if cur.isMap {
			if i >= len(b) {
				return checkShort, i
			}
			start, n := i+1, int(b[i]&0x1f)
			if b[i]&0xe0 != fixStr {
				var code checkCode
				if start, n, code = checkStringHead(b, i); code != checkOK {
					return code, i
				}
			}
			if n > len(b)-start {
				return checkShort, i
			}
			key := b[start : start+n]
			if cur.key >= 0 {
				if c := bytes.Compare(b[cur.key:cur.end], key); c >= 0 {
					if c == 0 {
						return checkKeyTwice, i
					}
					return checkKeyOrder, i
				}
			}
			if !validUTF8(key) {
				return checkUTF8, i
			}
			if body && len(stack) == 1 && n > 0 && (key[0] == '_' || key[0] == '$') {
				return checkName, i
			}
			cur.key, cur.end = int32(start), int32(start+n)
			i = start + n
		}

		if i >= len(b) {
			return checkShort, i
		}
		c := b[i]
		var next checkFrame
		switch {
		case c < fixMap || c >= 0xe0:
			i++
			continue
		case c < fixArray:
			next.left, next.isMap = int(c&0x0f), true
			i++
		case c < fixStr:
			next.left = int(c & 0x0f)
			i++
		case c < tagNull:
			n := int(c & 0x1f)
			if n > len(b)-i-1 {
				return checkShort, i
			}
			if !validUTF8(b[i+1 : i+1+n]) {
				return checkUTF8, i
			}
			i += 1 + n
			continue
		default:
			switch c {
			case tagNull, tagFalse, tagTrue:
				i++
				continue
			case tagStr8, tagStr16, tagStr32:
				start, n, code := checkStringHead(b, i)
				if code != checkOK {
					return code, i
				}
				if n > len(b)-start {
					return checkShort, i
				}
				if !validUTF8(b[start : start+n]) {
					return checkUTF8, i
				}
				i = start + n
				continue
			case tagArray16, tagArray32, tagMap16, tagMap32:
				kind, head, n := scan(b, i)
				if kind == KindInvalid {
					return checkShort, i
				}
				if n <= 15 || head == 5 && n <= 0xffff {
					return checkForm, i
				}
				next.left, next.isMap = n, kind == KindMap
				i += head
			default:
				size, code := checkScalar(b, i)
				if code != checkOK {
					return code, i
				}
				i += size
				continue
			}
		}
		// An array or a map. A count that lies is found where the bytes end.
		if len(stack) >= lim.MaxDepth {
			return checkTooDeep, i
		}
		stack = append(stack, cur)
		cur = next
		cur.key = -1
	}
}

// checkStringHead reads a string head that is not the shortest kind of all.
func checkStringHead(b []byte, i int) (start, n int, code checkCode) {
	rest := len(b) - i
	switch c := b[i]; c {
	case tagStr8:
		if rest < 2 {
			return 0, 0, checkShort
		}
		if n = int(b[i+1]); n <= 31 {
			return 0, 0, checkForm
		}
		return i + 2, n, checkOK
	case tagStr16:
		if rest < 3 {
			return 0, 0, checkShort
		}
		if n = int(binary.BigEndian.Uint16(b[i+1:])); n <= 0xff {
			return 0, 0, checkForm
		}
		return i + 3, n, checkOK
	case tagStr32:
		if rest < 5 {
			return 0, 0, checkShort
		}
		if n = int(binary.BigEndian.Uint32(b[i+1:])); n <= 0xffff {
			return 0, 0, checkForm
		}
		return i + 5, n, checkOK
	}
	return 0, 0, checkKeyKind
}

// checkScalar accepts a number, bytes or a timestamp and returns its size.
func checkScalar(b []byte, i int) (int, checkCode) {
	c := b[i]
	kind, head, n := scan(b, i)
	switch kind {
	case KindFloat:
		if c == tagFloat32 {
			return 0, checkForm
		}
		bits := binary.BigEndian.Uint64(b[i+1:])
		if bits == 1<<63 || bits&^(1<<63) > 0x7ff<<52 && bits != canonicalNaN {
			return 0, checkNumber
		}
	case KindInt:
		v, ok := intAt(b, i)
		if !ok {
			return 0, checkIntRange
		}
		shortest := true
		switch c {
		case tagUint8:
			shortest = v > 0x7f
		case tagUint16:
			shortest = v > 0xff
		case tagUint32:
			shortest = v > 0xffff
		case tagUint64:
			shortest = v > 0xffffffff
		case tagInt8:
			shortest = v < -32
		case tagInt16:
			shortest = v < -1<<7
		case tagInt32:
			shortest = v < -1<<15
		case tagInt64:
			shortest = v < -1<<31
		}
		if !shortest {
			return 0, checkForm
		}
	case KindBytes:
		if c == tagBin16 && n <= 0xff || c == tagBin32 && n <= 0xffff {
			return 0, checkForm
		}
	case KindTime:
		if n != 12 || c != tagExt8 {
			return 0, checkForm
		}
		if sec, nsec := timeAt(b[i+head : i+head+n]); !timeInRange(sec, nsec) {
			return 0, checkTimeRange
		}
	case kindExt:
		return 0, checkExt
	default:
		if c == 0xc1 {
			return 0, checkUnused
		}
		return 0, checkShort
	}
	return head + n, checkOK
}

// validUTF8 is utf8.Valid with a short path for the short ASCII strings that
// most names are.
func validUTF8(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p)&0x8080808080808080 != 0 {
			return utf8.Valid(p)
		}
		p = p[8:]
	}
	for _, c := range p {
		if c >= utf8.RuneSelf {
			return utf8.Valid(p)
		}
	}
	return true
}

// checkError words what check found at an offset.
func checkError(b []byte, lim Limits, code checkCode, at int) *Error {
	path := ""
	if at > 0 {
		path = pathAt(b, at)
	}
	switch code {
	case checkTooLarge:
		return errorf(ErrTooLarge, "", "the document has %d bytes, the limit is %d", len(b), lim.MaxBytes)
	case checkTooDeep:
		return errorf(ErrTooDeep, path, "arrays and maps are nested deeper than %d", lim.MaxDepth)
	case checkShort:
		if len(b) == 0 {
			return errorf(ErrInvalid, "", "the document is empty: not even an empty map")
		}
		return errorf(ErrInvalid, path, "the bytes end inside a value, or a length at byte %d runs past their end", at)
	case checkTrailing:
		return errorf(ErrInvalid, "", "%d bytes follow the document", len(b)-at)
	case checkForm:
		return errorf(ErrNotCanonical, path, "byte %d begins a value that is not in its shortest form", at)
	case checkKeyKind:
		return errorf(ErrInvalid, path, "a field name is not a string")
	case checkKeyOrder:
		return errorf(ErrNotCanonical, path, "field names are not in ascending order at byte %d", at)
	case checkKeyTwice:
		return errorf(ErrInvalid, path, "a field name occurs twice")
	case checkUTF8:
		return errorf(ErrInvalid, path, "a string is not valid UTF-8 (store it as bytes)")
	case checkExt:
		if _, head, _ := scan(b, at); head > 0 {
			ext := int8(b[at+head-1])
			if ext >= 1 && ext <= 4 {
				return errorf(ErrInvalid, path, "msgpack extension %d is reserved and cannot be stored yet", ext)
			}
			return errorf(ErrInvalid, path, "msgpack extension %d cannot be stored", ext)
		}
		return errorf(ErrInvalid, path, "a msgpack extension cannot be stored")
	case checkTimeRange:
		return errorf(ErrInvalid, path, "a timestamp lies outside the years 1 to 9999")
	case checkIntRange:
		return errorf(ErrInvalid, path, "an integer is above 9223372036854775807 (store it as a float or a string)")
	case checkNumber:
		return errorf(ErrNotCanonical, path, "a float is -0 or a NaN with another bit pattern than 7ff8000000000000")
	case checkNotMap:
		return errorf(ErrInvalid, "", "a document must be a map of fields, not %s", Raw(b).Kind().Phrase())
	case checkName:
		name := ""
		if kind, head, n := scan(b, at); kind == KindString {
			name = string(b[at+head : at+head+n])
		}
		return nameError(name)
	}
	return errorf(ErrInvalid, path, "byte %d (%#02x) begins no value", at, b[at])
}

// nameError refuses a top-level name.
func nameError(name string) *Error {
	if len(name) > 0 && name[0] == '$' {
		return errorf(ErrInvalid, "", "field %s: names beginning with \"$\" are operators, not fields; change documents with update", quotePath(name))
	}
	return errorf(ErrInvalid, "", "field %s: names beginning with \"_\" are reserved", quotePath(name))
}
