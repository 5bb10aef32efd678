package doc

// Iter walks the fields of a map or the elements of an array without
// allocating. Its zero value is at the end.
//
//	for it := raw.Iter(); it.Next(); {
//		use(it.Key(), it.Value())
//	}
type Iter struct {
	b          []byte
	start      int // offset of the current field or element
	at         int // offset behind it
	left       int
	isMap      bool
	key, value []byte
}

// Iter begins a walk. Of a value that is neither map nor array it is at the end.
func (r Raw) Iter() Iter {
	kind, head, n := scan(r, 0)
	if kind != KindMap && kind != KindArray {
		return Iter{}
	}
	return Iter{b: r, start: head, at: head, left: n, isMap: kind == KindMap}
}

// Next moves to the next field or element and says whether there is one.
func (it *Iter) Next() bool {
	if it.left == 0 {
		return false
	}
	it.left--
	i := it.at
	it.start = i
	if it.isMap {
		kind, head, n := scan(it.b, i)
		if kind != KindString {
			return it.end()
		}
		i += head
		it.key = it.b[i : i+n : i+n]
		i += n
	}
	next := skip(it.b, i)
	if next < 0 {
		return it.end()
	}
	it.value = it.b[i:next:next]
	it.at = next
	return true
}

func (it *Iter) end() bool {
	it.left, it.key, it.value = 0, nil, nil
	return false
}

// Key is the name of the current field; nil in an array. It lies inside the
// document.
func (it *Iter) Key() []byte { return it.key }

// Value is the current value. It lies inside the document.
func (it *Iter) Value() Raw { return it.value }

// Left is how many fields or elements come after the current one.
func (it *Iter) Left() int { return it.left }

// Start is the offset of the current field (its name included) or element in
// the value that is walked, End the offset behind it.
func (it *Iter) Start() int { return it.start }

// End is the offset behind the current field or element; before the first
// Next, the offset of the first.
func (it *Iter) End() int { return it.at }
