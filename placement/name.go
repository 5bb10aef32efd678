package placement

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/impossibledb/idb/client/wire"
)

// CheckCollectionName refuses a name that is not
//
//	[A-Za-z0-9][A-Za-z0-9_.-]{0,63}
//
// Names that start with an underscore are the system's.
func CheckCollectionName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("the collection name is empty; use 1 to %d letters, digits, '_', '.' or '-'", wire.MaxCollectionBytes)
	case len(name) > wire.MaxCollectionBytes:
		return fmt.Errorf("the collection name %.20q… has %d bytes; at most %d are allowed", name, len(name), wire.MaxCollectionBytes)
	case name[0] == '_':
		return fmt.Errorf("the collection name %q starts with '_', which is reserved for the system", name)
	}
	for i := range len(name) {
		c := name[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if letter || i > 0 && (c == '_' || c == '.' || c == '-') {
			continue
		}
		return fmt.Errorf("the collection name %q has %q at position %d; use letters, digits, '_', '.' and '-', and start with a letter or digit", name, c, i+1)
	}
	return nil
}

// MaxSeparatorBytes bounds CollectionOptions.Separator.
const MaxSeparatorBytes = 16

// CheckCollectionOptions refuses options that cannot be kept.
func CheckCollectionOptions(o wire.CollectionOptions) error {
	if len(o.Separator) > MaxSeparatorBytes {
		return fmt.Errorf("the ID separator has %d bytes; at most %d are allowed", len(o.Separator), MaxSeparatorBytes)
	}
	if o.RetentionSeconds != wire.RetainForever && o.RetentionSeconds > maxRetentionSeconds {
		return fmt.Errorf("the retention of %d seconds is above the largest, %d (100 years); use for ever instead", o.RetentionSeconds, maxRetentionSeconds)
	}
	return checkUnique(o.Unique)
}

// checkUnique refuses unique constraints that cannot be kept.
func checkUnique(us []wire.Unique) error {
	if len(us) > wire.MaxUnique {
		return fmt.Errorf("%d unique constraints; at most %d are allowed", len(us), wire.MaxUnique)
	}
	size := 0
	for i, u := range us {
		if len(u.Fields) == 0 || len(u.Fields) > wire.MaxUniqueFields {
			return fmt.Errorf("unique constraint %d has %d fields; 1 to %d are allowed", i+1, len(u.Fields), wire.MaxUniqueFields)
		}
		for j, path := range u.Fields {
			size += len(path)
			if err := checkUniquePath(path); err != nil {
				return err
			}
			if slices.Contains(u.Fields[:j], path) {
				return fmt.Errorf("unique constraint %s names a field twice", u.Name())
			}
		}
		if slices.ContainsFunc(us[:i], func(o wire.Unique) bool { return slices.Equal(o.Fields, u.Fields) }) {
			return fmt.Errorf("unique constraint %s is there twice", u.Name())
		}
	}
	if size > wire.MaxUniquePathsBytes {
		return fmt.Errorf("the paths of the unique fields have %d bytes together; at most %d are allowed", size, wire.MaxUniquePathsBytes)
	}
	return nil
}

func checkUniquePath(path string) error {
	switch {
	case !utf8.ValidString(path) || strings.ContainsAny(path, ",\x00"):
		return fmt.Errorf("the unique field %.40q cannot be: a path is UTF-8 without commas", path)
	case strings.HasPrefix(path, "_") || strings.HasPrefix(path, "$"):
		return fmt.Errorf("the unique field %.40q cannot be: documents have no fields of their own that begin with '_' or '$' (IDs are unique anyway)", path)
	case slices.Contains(strings.Split(path, "."), ""):
		return fmt.Errorf("the unique field %.40q cannot be: use the name of a field, or names with dots between them", path)
	case strings.Count(path, ".") >= wire.MaxDepth:
		return fmt.Errorf("the unique field %.40q is deeper than any document", path)
	}
	return nil
}

const maxRetentionSeconds = 100 * 366 * 24 * 3600

// nearest is the name closest to the one given by edits (insert, remove,
// replace, swap of neighbours), if it is close enough to be a likely typo.
func nearest(name string, names iter.Seq[string]) string {
	limit := 1 + len(name)/4
	best, bestDistance := "", limit+1
	for candidate := range names {
		if d := len(candidate) - len(name); d > limit || -d > limit {
			continue
		}
		d := 1 // however many letters differ in case alone
		if name == candidate || lower(name) != lower(candidate) {
			d = Edits(name, candidate)
		}
		if d < bestDistance || d == bestDistance && candidate < best {
			best, bestDistance = candidate, d
		}
	}
	if bestDistance > limit {
		return ""
	}
	return best
}

// Edits is how many edits make b of a: the restricted Damerau-Levenshtein
// distance (optimal string alignment), in bytes.
func Edits(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
