package mvcc

import (
	"bytes"

	"github.com/cockroachdb/pebble/v2"
)

// comparerName is written into every table; it must change if the order does.
const comparerName = "idb.v1"

// comparer orders keys by their bytes. Split cuts a document version's key
// after the ID's terminator, so that the engine's filters know documents, not
// versions, and older versions are stored away from the newest.
//
// In the ID part 0x00 is followed by 0xff, or by 0x01 at its end and only
// there; that makes Split a look at fixed places: a document key has a suffix
// if and only if the ten bytes at its end begin with the terminator.
var comparer = &pebble.Comparer{
	Name:                 comparerName,
	Compare:              bytes.Compare,
	Equal:                bytes.Equal,
	ComparePointSuffixes: bytes.Compare,
	CompareRangeSuffixes: bytes.Compare,
	AbbreviatedKey:       pebble.DefaultComparer.AbbreviatedKey,
	FormatKey:            pebble.DefaultComparer.FormatKey,
	Split:                split,
	Separator:            separator,
	Successor:            successor,
	ImmediateSuccessor:   immediateSuccessor,
}

func split(key []byte) int {
	n := len(key) - suffixBytes
	if len(key) >= minDocKey && Kind(key[groupBytes]) == KindDocument && key[n-2] == escape && key[n-1] == terminator {
		return n
	}
	return len(key)
}

// separator shortens between documents, never between versions of one: half a
// timestamp would not be a suffix.
func separator(dst, a, b []byte) []byte {
	an, bn := split(a), split(b)
	if bytes.Equal(a[:an], b[:bn]) {
		return append(dst, a...)
	}
	n := len(dst)
	dst = pebble.DefaultComparer.Separator(dst, a[:an], b[:bn])
	if bytes.Equal(dst[n:], a[:an]) {
		return append(dst[:n], a...)
	}
	return dst
}

func successor(dst, a []byte) []byte {
	an := split(a)
	n := len(dst)
	dst = pebble.DefaultComparer.Successor(dst, a[:an])
	if bytes.Equal(dst[n:], a[:an]) {
		return append(dst[:n], a...)
	}
	return dst
}

// immediateSuccessor of a document is its terminator plus one: appending a
// byte would sort before the document's own versions.
func immediateSuccessor(dst, a []byte) []byte {
	dst = append(dst, a...)
	if n := len(a); n >= docHeader+2 && Kind(a[groupBytes]) == KindDocument && a[n-2] == escape && a[n-1] == terminator {
		dst[len(dst)-1]++
		return dst
	}
	return append(dst, 0)
}
