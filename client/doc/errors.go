package doc

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// What was wrong, in kinds that a caller can act on. Every error of this
// package is an *Error around one of them.
var (
	// ErrInvalid: not a value that can be stored, whatever the form.
	ErrInvalid = errors.New("invalid document")
	// ErrNotCanonical: a value in another than its canonical form. Canonicalize
	// may be able to repair it.
	ErrNotCanonical = errors.New("document is not in canonical form")
	// ErrTooLarge: more bytes than Limits.MaxBytes.
	ErrTooLarge = errors.New("document too large")
	// ErrTooDeep: arrays and maps nested beyond Limits.MaxDepth.
	ErrTooDeep = errors.New("document nested too deep")
	// ErrBadID: an _id that is not a string of 1 to 512 bytes of UTF-8.
	ErrBadID = errors.New("bad document ID")
	// ErrType: a value that does not fit the Go type it should be decoded into.
	ErrType = errors.New("value does not fit the type")
)

// Error says what was wrong and where.
type Error struct {
	Kind error  // one of the sentinels above
	Path string // dotted path of the value; empty: the document itself
	Text string // a sentence without the path
}

// Error is the path, if there is one, and the text.
func (e *Error) Error() string {
	if e.Path == "" {
		return e.Text
	}
	return "field " + quotePath(e.Path) + ": " + e.Text
}

// Unwrap is the kind, for errors.Is.
func (e *Error) Unwrap() error { return e.Kind }

func errorf(kind error, path, format string, args ...any) *Error {
	return &Error{Kind: kind, Path: path, Text: fmt.Sprintf(format, args...)}
}

// quotePath quotes a path, cut to a length that fits a log line.
func quotePath(p string) string {
	const most = 200
	if len(p) > most {
		p = strings.ToValidUTF8(p[:most], "") + "…"
	}
	return strconv.Quote(p)
}

// pathAt names the value that contains offset at, by walking b from the start.
// It is called only to word an error, so its speed does not matter; it stops
// where b stops making sense.
func pathAt(b []byte, at int) string {
	type level struct {
		left  int
		index int
		isMap bool
		key   []byte
	}
	const maxNames = 64
	var stack []level
	cur := level{left: 1, index: -1}
	i := 0
	for i < len(b) {
		for cur.left == 0 {
			if len(stack) == 0 {
				return ""
			}
			cur = stack[len(stack)-1]
			stack = stack[:len(stack)-1]
		}
		cur.left--
		cur.index++
		if cur.isMap {
			cur.key = nil
			kind, head, n := scan(b, i)
			if kind != KindString || i+head+n > at {
				break // the key itself is wrong: name the map
			}
			cur.key = b[i+head : i+head+n]
			i += head + n
		}
		kind, head, n := scan(b, i)
		if kind == KindInvalid {
			break
		}
		if kind != KindMap && kind != KindArray {
			if i+head+n > at {
				break
			}
			i += head + n
			continue
		}
		if i+head > at {
			break
		}
		i += head
		stack = append(stack, cur)
		cur = level{left: n, index: -1, isMap: kind == KindMap}
		if len(stack) > maxNames {
			break
		}
	}
	var sb strings.Builder
	for i, l := range append(stack, cur) {
		var name string
		switch {
		case i == 0: // around the one value
			continue
		case l.isMap && l.key == nil:
			continue
		case l.isMap:
			name = strings.ToValidUTF8(string(l.key), "\uFFFD")
		default:
			name = strconv.Itoa(max(l.index, 0))
		}
		if sb.Len() > 0 {
			sb.WriteByte('.')
		}
		sb.WriteString(name)
	}
	return sb.String()
}
