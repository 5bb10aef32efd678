package doc

import "strings"

// Get finds the value at a dotted path: names of fields, and in arrays decimal
// indexes ("tags.0"). An empty path is the value itself. A field whose name
// contains a dot cannot be reached by a path. The answer lies inside r.
func Get(r Raw, path string) (Raw, bool) {
	if path == "" {
		return r, len(r) > 0
	}
	for {
		name, rest, more := strings.Cut(path, ".")
		var ok bool
		switch kind, _, _ := scan(r, 0); kind {
		case KindMap:
			r, ok = Field(r, name)
		case KindArray:
			var index int
			if index, ok = ParseIndex(name); ok {
				r, ok = Element(r, index)
			}
		}
		if !ok {
			return nil, false
		}
		if !more {
			return r, true
		}
		path = rest
	}
}

// Field finds a field of a map by its name, dots included.
func Field(r Raw, name string) (Raw, bool) {
	kind, i, n := scan(r, 0)
	if kind != KindMap {
		return nil, false
	}
	for ; n > 0; n-- {
		kind, head, size := scan(r, i)
		if kind != KindString {
			return nil, false
		}
		key := r[i+head : i+head+size]
		i += head + size
		next := skip(r, i)
		if next < 0 {
			return nil, false
		}
		if string(key) >= name {
			if string(key) == name {
				return r[i:next:next], true
			}
			return nil, false // keys ascend
		}
		i = next
	}
	return nil, false
}

// Element is an array's element by its index from 0.
func Element(r Raw, index int) (Raw, bool) {
	kind, i, n := scan(r, 0)
	if kind != KindArray || index < 0 || index >= n {
		return nil, false
	}
	for ; index > 0; index-- {
		if i = skip(r, i); i < 0 {
			return nil, false
		}
	}
	next := skip(r, i)
	if next < 0 {
		return nil, false
	}
	return r[i:next:next], true
}

// ParseIndex reads a path's name as an array index: decimal digits without a
// sign or leading zeros, below 2^31.
func ParseIndex(name string) (int, bool) {
	if name == "" || len(name) > 10 || name[0] == '0' && len(name) > 1 {
		return 0, false
	}
	v := 0
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + int(c-'0')
	}
	return v, v < 1<<31
}
