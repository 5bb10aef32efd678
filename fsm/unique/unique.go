package unique

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// entriesBit makes a collection's number that of its entries. The catalog gives
// out numbers below it.
const entriesBit placement.CollectionID = 1 << 31

// Entries is the collection that holds a collection's entries.
func Entries(c placement.CollectionID) placement.CollectionID { return c | entriesBit }

// IsEntries says that a collection holds entries.
func IsEntries(c placement.CollectionID) bool { return c&entriesBit != 0 }

// Of is the collection whose entries c holds, or c itself.
func Of(c placement.CollectionID) placement.CollectionID { return c &^ entriesBit }

// suffix makes a collection's name that of its entries. No collection's name
// has a '#'.
const suffix = "#"

// Name is what the entries of a collection are called where they are read.
func Name(collection string) string { return collection + suffix }

// Named is the collection whose entries have a name, if it is one of entries.
func Named(name string) (collection string, entries bool) { return strings.CutSuffix(name, suffix) }

// Partition is where an entry lives, by the collection's name.
func Partition(collection, entry string, partitions uint32) placement.PartitionID {
	return placement.PartitionID(wire.Partition(Name(collection), "", entry, partitions))
}

// Set is a collection's constraints; nil: none.
type Set struct{ constraints []wire.Unique }

// SetOf is the constraints of a collection's options.
func SetOf(o *wire.CollectionOptions) *Set {
	if len(o.Unique) == 0 {
		return nil
	}
	return &Set{o.Unique}
}

// Constraints is how many there are.
func (s *Set) Constraints() int { return len(s.constraints) }

// Touches says whether a change of one of the paths can change a value.
func (s *Set) Touches(paths []string) bool {
	for i := range s.constraints {
		for _, field := range s.constraints[i].Fields {
			for _, path := range paths {
				if within(path, field) || within(field, path) {
					return true
				}
			}
		}
	}
	return false
}

// within says that a path is another, or leads into it.
func within(path, of string) bool {
	return strings.HasPrefix(path, of) && (len(path) == len(of) || path[len(of)] == '.')
}

// Held is a value that a document holds.
type Held struct {
	Constraint int    // by its place in the collection's options
	Entry      string // the ID of its entry
}

// Values are what a document holds, in order of the constraints. A nil body is
// no document.
func (s *Set) Values(body doc.Raw) []Held {
	if len(body) == 0 {
		return nil
	}
	var held []Held
	for i := range s.constraints {
		if entry, holds := s.entry(i, body); holds {
			held = append(held, Held{i, entry})
		}
	}
	return held
}

// missing stands for a field that is not there. No key of a value begins so.
const missing = 0x01

// entry is the ID of a value's entry:
//
//	constraint, decimal | ':' | SHA-256 of (key of the value, or 01) ..., base64
//
// Keys say where they end, so the fields cannot run into each other, and equal
// values have equal keys, whatever their types and sizes.
func (s *Set) entry(constraint int, body doc.Raw) (string, bool) {
	var space [128]byte
	key, holds := space[:0], false
	for _, path := range s.constraints[constraint].Fields {
		v, ok := doc.Get(body, path)
		if !ok {
			key = append(key, missing)
			continue
		}
		holds = true
		key = doc.AppendKey(key, v)
	}
	sum := sha256.Sum256(key)
	return strconv.Itoa(constraint) + ":" + base64.RawURLEncoding.EncodeToString(sum[:]), holds
}

// Sentences end up in answers that are kept.
const (
	textField = 40
	textValue = 40
)

// Text names a constraint and a document's value of it: `email "ada@x.org"`.
func (s *Set) Text(constraint int, body doc.Raw) string {
	var b strings.Builder
	for i, path := range s.constraints[constraint].Fields {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(cut(path, textField))
		b.WriteByte(' ')
		if v, ok := doc.Get(body, path); ok {
			b.WriteString(text(v))
		} else {
			b.WriteString("(missing)")
		}
		if b.Len() > 2*(textField+textValue) {
			b.WriteString(", …")
			break
		}
	}
	return b.String()
}

// text is a value as JSON, or what it is if it is too large for a sentence.
func text(v doc.Raw) string {
	if s, ok := v.Str(); ok {
		return strconv.Quote(cut(s, textValue-2))
	}
	if len(v) > 4*textValue {
		return fmt.Sprintf("(%s of %d bytes)", strings.TrimPrefix(strings.TrimPrefix(v.Kind().Phrase(), "a "), "an "), len(v))
	}
	return cut(v.String(), textValue)
}

// cut keeps a text to so many bytes.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	s = s[:most]
	for len(s) > 0 && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}

// holderField is the one field of an entry.
const holderField = "holder"

// Body is an entry: a document that names another.
//
//	{"holder": "u17"}
func Body(holder string) doc.Raw {
	raw, err := doc.Marshal(doc.D{holderField: holder})
	if err != nil {
		panic(fmt.Sprintf("unique: an entry for %q: %v", holder, err)) // IDs are checked UTF-8
	}
	return raw
}

// Holder is the document that an entry names.
func Holder(body doc.Raw) (string, bool) {
	v, ok := doc.Field(body, holderField)
	if !ok || body.Len() != 1 {
		return "", false
	}
	return v.Str()
}
