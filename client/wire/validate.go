package wire

import "encoding/binary"

// envelopeDepth is how deep a message's own arrays go around a document:
// message, items, item; some room is left for messages to come.
const envelopeDepth = 8

// Validate walks the one msgpack value that a body is, without recursion and
// without allocating, and refuses what a decoder must never see:
//
//   - a length or count that the bytes left cannot hold. Counts are held
//     against the bytes left cumulatively: every value announced and not yet
//     seen needs one byte, so nested counts cannot promise more than is there;
//   - arrays and maps nested deeper than MaxDepth and the envelope around it;
//   - more than MaxElements values;
//   - a byte that msgpack does not use, a cut value, bytes after the value.
//
// After it, what a decoder allocates is bounded by the frame's size. Decode
// calls it; a handler with bodies of its own calls it before any decoder.
func Validate(body []byte) error {
	var left [MaxDepth + envelopeDepth]uint32 // values still to come, per open array or map
	depth := 0
	left[0] = 1
	pending, total := uint64(1), uint64(1)
	b := body
	for {
		if left[depth] == 0 {
			if depth == 0 {
				break
			}
			depth--
			continue
		}
		left[depth]--
		pending--
		size, kids := head(b)
		if size == 0 || size > uint64(len(b)) {
			return badValue(body, b, size)
		}
		b = b[size:]
		if kids == 0 {
			continue
		}
		pending += kids
		total += kids
		if pending > uint64(len(b)) {
			return Refuse(CodeBadRequest, "message: byte %d announces %d values, only %d bytes are left", len(body)-len(b), kids, len(b))
		}
		if total > MaxElements {
			return Refuse(CodeTooManyItems, "message: more than %d values in one frame (send several smaller requests)", MaxElements)
		}
		if depth++; depth == len(left) {
			return Refuse(CodeTooDeep, "message: nested deeper than %d (flatten the document)", MaxDepth)
		}
		left[depth] = uint32(kids)
	}
	if len(b) != 0 {
		return Refuse(CodeBadRequest, "message: %d bytes after its end", len(b))
	}
	return nil
}

func badValue(body, rest []byte, size uint64) error {
	at := len(body) - len(rest)
	switch {
	case len(rest) == 0:
		return Refuse(CodeBadRequest, "message: ends at byte %d where a value should be", at)
	case size == 0:
		return Refuse(CodeBadRequest, "message: byte %d is 0x%02x, which begins no msgpack value", at, rest[0])
	}
	return Refuse(CodeBadRequest, "message: the value at byte %d is cut: it needs %d bytes, %d are left", at, size, len(rest))
}

// head measures the value at the start of b: its size without the values
// inside it, and how many of those follow. A size of 0 says that b is empty
// or begins with a byte that msgpack does not use. The size may be larger
// than b; the caller compares.
func head(b []byte) (size, kids uint64) {
	if len(b) == 0 {
		return 0, 0
	}
	switch c := b[0]; {
	case c < 0x80 || c >= 0xe0: // small integers
		return 1, 0
	case c < 0x90:
		return 1, 2 * uint64(c&0x0f) // fixmap
	case c < 0xa0:
		return 1, uint64(c & 0x0f) // fixarray
	case c < 0xc0:
		return 1 + uint64(c&0x1f), 0 // fixstr
	default:
		return longHead(c, b)
	}
}

func longHead(c byte, b []byte) (size, kids uint64) {
	form := heads[c-0xc0]
	size = uint64(form.fixed)
	if form.length == 0 {
		return size, 0
	}
	if uint64(len(b)) < size {
		return size, 0 // cut: the caller sees that size is more than there is
	}
	var n uint64
	switch form.length {
	case 1:
		n = uint64(b[1])
	case 2:
		n = uint64(binary.BigEndian.Uint16(b[1:]))
	case 4:
		n = uint64(binary.BigEndian.Uint32(b[1:]))
	}
	if form.kids != 0 {
		return size, n * uint64(form.kids)
	}
	return size + n, 0
}

// heads says for each first byte from 0xc0 to 0xdf: the bytes it always has,
// the width of its length, and how many values one unit of that length
// counts (0: the length counts bytes).
var heads = [32]struct{ fixed, length, kids uint8 }{
	0x00: {fixed: 1}, // nil
	0x01: {},         // never used
	0x02: {fixed: 1}, // false
	0x03: {fixed: 1}, // true
	0x04: {fixed: 2, length: 1},
	0x05: {fixed: 3, length: 2},
	0x06: {fixed: 5, length: 4}, // bin
	0x07: {fixed: 3, length: 1},
	0x08: {fixed: 4, length: 2},
	0x09: {fixed: 6, length: 4}, // ext
	0x0a: {fixed: 5},
	0x0b: {fixed: 9}, // float
	0x0c: {fixed: 2},
	0x0d: {fixed: 3},
	0x0e: {fixed: 5},
	0x0f: {fixed: 9}, // uint
	0x10: {fixed: 2},
	0x11: {fixed: 3},
	0x12: {fixed: 5},
	0x13: {fixed: 9}, // int
	0x14: {fixed: 3},
	0x15: {fixed: 4},
	0x16: {fixed: 6},
	0x17: {fixed: 10},
	0x18: {fixed: 18}, // fixext
	0x19: {fixed: 2, length: 1},
	0x1a: {fixed: 3, length: 2},
	0x1b: {fixed: 5, length: 4}, // str
	0x1c: {fixed: 3, length: 2, kids: 1},
	0x1d: {fixed: 5, length: 4, kids: 1}, // array
	0x1e: {fixed: 3, length: 2, kids: 2},
	0x1f: {fixed: 5, length: 4, kids: 2}, // map
}

// skip is the size of the first value of b, with everything in it, or -1 if b
// does not hold one whole value.
func skip(b []byte) int {
	pending, at := uint64(1), uint64(0)
	for pending > 0 {
		size, kids := head(b[at:])
		if size == 0 || size > uint64(len(b))-at {
			return -1
		}
		at += size
		pending += kids - 1
		if pending > uint64(len(b))-at {
			return -1
		}
	}
	return int(at)
}
