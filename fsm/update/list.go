package update

import (
	"bytes"
	"slices"

	"github.com/impossibledb/idb/client/doc"
)

// pushSpec is the operand of $push or $addToSet.
type pushSpec struct {
	values doc.Raw // array of what is added
	single bool    // values is the one value itself, not an array
	depth  int     // nesting of the deepest value

	position  int64 // $push only
	hasPos    bool
	slice     int64
	hasSlice  bool
	sort      []sortField
	wholeSort int // 1 or -1: by the elements themselves
}

// sortField is one field of $sort.
type sortField struct {
	path       string
	descending bool
}

// count is how many values are added.
func (p *pushSpec) count() int {
	if p.single {
		return 1
	}
	return p.values.Len()
}

// encoded is the values, one behind the other.
func (p *pushSpec) encoded() []byte {
	if p.single {
		return p.values
	}
	return contents(p.values)
}

// contents is an array's elements, one behind the other.
func contents(array doc.Raw) []byte {
	it := array.Iter()
	return array[it.End():]
}

// hasOperator says whether a map has a name that begins with "$".
func hasOperator(r doc.Raw) bool {
	if r.Kind() != doc.KindMap {
		return false
	}
	for it := r.Iter(); it.Next(); {
		if k := it.Key(); len(k) > 0 && k[0] == '$' {
			return true
		}
	}
	return false
}

func parsePush(path []byte, operand doc.Raw) (*pushSpec, error) {
	const op = "$push"
	if !hasOperator(operand) {
		return &pushSpec{values: operand, single: true, depth: doc.Depth(operand)}, nil
	}
	spec := &pushSpec{}
	for it := operand.Iter(); it.Next(); {
		v := it.Value()
		switch modifier := string(it.Key()); modifier {
		case "$each":
			if v.Kind() != doc.KindArray {
				return nil, bad(op, string(path), "$each wants an array, not %s", v.Kind().Phrase())
			}
			spec.values, spec.depth = v, doc.Depth(v)-1
		case "$position":
			n, ok := number(v)
			if !ok {
				return nil, bad(op, string(path), "$position wants an integer")
			}
			spec.position, spec.hasPos = n, true
		case "$slice":
			n, ok := number(v)
			if !ok {
				return nil, bad(op, string(path), "$slice wants an integer")
			}
			spec.slice, spec.hasSlice = n, true
		case "$sort":
			if err := spec.parseSort(path, v); err != nil {
				return nil, err
			}
		default:
			return nil, bad(op, string(path), "unknown modifier %s; there are $each, $position, $slice, $sort", quote(modifier))
		}
	}
	if spec.values == nil {
		return nil, bad(op, string(path), "modifiers need $each, the array of values to push")
	}
	return spec, nil
}

// parseSort reads 1, -1, {"field": 1}, or [{"a": 1}, {"b": -1}]. A map of more
// than one field has no order of its own in the canonical encoding, so it is
// refused rather than guessed at.
func (p *pushSpec) parseSort(path []byte, v doc.Raw) error {
	const op = "$push"
	const wants = `$sort wants 1, -1, a map of one field such as {"score": -1}, or for several fields a list of such maps`
	direction := func(v doc.Raw) (int, error) {
		if n, ok := number(v); ok && (n == 1 || n == -1) {
			return int(n), nil
		}
		return 0, bad(op, string(path), wants)
	}
	field := func(v doc.Raw) error {
		it := v.Iter()
		if v.Kind() != doc.KindMap || v.Len() != 1 || !it.Next() {
			return bad(op, string(path), wants)
		}
		d, err := direction(it.Value())
		if err != nil {
			return err
		}
		by := it.Key()
		if len(by) == 0 || by[0] == '.' || by[len(by)-1] == '.' || bytes.Contains(by, []byte("..")) {
			return bad(op, string(path), "$sort: %s is not a path", quote(string(by)))
		}
		p.sort = append(p.sort, sortField{string(by), d < 0})
		return nil
	}
	switch v.Kind() {
	case doc.KindMap:
		return field(v)
	case doc.KindArray:
		if n := v.Len(); n == 0 || n > maxSortFields {
			return bad(op, string(path), "$sort wants 1 to %d fields", maxSortFields)
		}
		for it := v.Iter(); it.Next(); {
			if err := field(it.Value()); err != nil {
				return err
			}
		}
		return nil
	}
	d, err := direction(v)
	p.wholeSort = d
	return err
}

func parseAddToSet(path []byte, operand doc.Raw) (*pushSpec, error) {
	const op = "$addToSet"
	if !hasOperator(operand) {
		return &pushSpec{values: operand, single: true, depth: doc.Depth(operand)}, nil
	}
	v, ok := doc.Field(operand, "$each")
	if !ok || operand.Len() != 1 {
		return nil, bad(op, string(path), "the only modifier is $each")
	}
	if v.Kind() != doc.KindArray {
		return nil, bad(op, string(path), "$each wants an array, not %s", v.Kind().Phrase())
	}
	return &pushSpec{values: v, depth: doc.Depth(v) - 1}, nil
}

// list writes the result of an operator on arrays.
func (a *applier) list(act *action, old doc.Raw, depth int) (bool, error) {
	adds := act.op == opPush || act.op == opAddToSet
	switch k := old.Kind(); {
	case len(old) == 0 && !adds:
		return false, nil
	case len(old) == 0:
		old = emptyArray
	case k != doc.KindArray:
		return false, a.fail(act, "the field is %s, not an array", k.Phrase())
	}
	if adds && depth+1+max(act.depth, 0) > a.maxDepth {
		return false, a.tooDeep(act)
	}
	switch act.op {
	case opPop:
		a.pop(act, old)
	case opPull:
		a.remove(act.pull, old)
	case opAddToSet:
		a.addToSet(act.push, old)
	case opPush:
		if act.push.wholeSort != 0 || act.push.sort != nil {
			a.pushSorted(act.push, old)
		} else {
			a.pushPlain(act.push, old)
		}
	}
	return true, nil
}

var emptyArray = doc.AppendArrayHead(nil, 0)

func (a *applier) pop(act *action, old doc.Raw) {
	n := old.Len()
	if n == 0 {
		a.dst = append(a.dst, old...)
		return
	}
	a.dst = doc.AppendArrayHead(a.dst, n-1)
	it := old.Iter()
	begin := it.End()
	it.Next()
	if first, _ := number(act.value); first < 0 {
		a.dst = append(a.dst, old[it.End():]...)
		return
	}
	for it.Left() > 0 && it.Next() {
	}
	a.dst = append(a.dst, old[begin:it.Start()]...)
}

// remove writes the elements that do not match, copied in runs.
func (a *applier) remove(m *matcher, old doc.Raw) {
	head, was := len(a.dst), old.Len()
	it := old.Iter()
	copied := it.End()
	a.dst = append(a.dst, old[:copied]...)
	n := was
	for it.Next() {
		if m.matches(it.Value()) {
			a.dst = append(a.dst, old[copied:it.Start()]...)
			copied = it.End()
			n--
		}
	}
	a.dst = append(a.dst, old[copied:]...)
	a.setHead(head, was, n, false)
}

// fewPairs is up to how many comparisons $addToSet makes before a set of keys
// is cheaper.
const fewPairs = 256

// addToSet writes the array and those values that are not yet in it.
func (a *applier) addToSet(spec *pushSpec, old doc.Raw) {
	head, was := len(a.dst), old.Len()
	a.dst = append(a.dst, old...)
	n := was
	values := spec.values
	if spec.single {
		for it := old.Iter(); it.Next(); {
			if doc.Compare(it.Value(), values) == 0 {
				return
			}
		}
		a.dst = append(a.dst, values...)
		a.setHead(head, was, was+1, false)
		return
	}
	if values.Len()*(was+values.Len()) <= fewPairs {
		var added []doc.Raw
	next:
		for it := values.Iter(); it.Next(); {
			v := it.Value()
			for o := old.Iter(); o.Next(); {
				if doc.Compare(o.Value(), v) == 0 {
					continue next
				}
			}
			for _, o := range added {
				if doc.Compare(o, v) == 0 {
					continue next
				}
			}
			added = append(added, v)
			a.dst = append(a.dst, v...)
			n++
		}
	} else {
		// Equal keys are equal values; the set decides only membership, so its
		// order does not show.
		seen := make(map[string]struct{}, was)
		var key []byte
		for it := old.Iter(); it.Next(); {
			key = doc.AppendKey(key[:0], it.Value())
			seen[string(key)] = struct{}{}
		}
		for it := values.Iter(); it.Next(); {
			key = doc.AppendKey(key[:0], it.Value())
			if _, ok := seen[string(key)]; ok {
				continue
			}
			seen[string(key)] = struct{}{}
			a.dst = append(a.dst, it.Value()...)
			n++
		}
	}
	a.setHead(head, was, n, false)
}

// window is what $slice leaves of n elements: from..to.
func (p *pushSpec) window(n int) (from, to int) {
	switch {
	case !p.hasSlice:
		return 0, n
	case p.slice >= 0:
		return 0, int(min(p.slice, int64(n)))
	}
	return int(max(int64(n)+p.slice, 0)), n
}

// at is where $position puts new values among n old ones.
func (p *pushSpec) at(n int) int {
	switch {
	case !p.hasPos || p.position >= int64(n):
		return n
	case p.position >= 0:
		return int(p.position)
	}
	return int(max(int64(n)+p.position, 0))
}

// pushPlain writes old[:at], the new values, old[at:], cut to the window.
func (a *applier) pushPlain(spec *pushSpec, old doc.Raw) {
	was, added := old.Len(), spec.count()
	at := spec.at(was)
	from, to := spec.window(was + added)
	a.dst = doc.AppendArrayHead(a.dst, to-from)
	if at == was && from == 0 && to == was+added {
		a.dst = append(a.dst, contents(old)...)
		a.dst = append(a.dst, spec.encoded()...)
		return
	}
	old = contents(old)
	a.part(old, was, from, min(to, at))
	a.part(spec.encoded(), added, from-at, min(to-at, added))
	a.part(skipValues(old, at), was-at, from-at-added, to-at-added)
}

// part writes the values from..to of n that lie one behind the other in b.
func (a *applier) part(b []byte, n, from, to int) {
	from, to = max(from, 0), min(to, n)
	if from >= to {
		return
	}
	b = skipValues(b, from)
	a.dst = append(a.dst, b[:len(b)-len(skipValues(b, to-from))]...)
}

// skipValues is b behind its first n values.
func skipValues(b []byte, n int) []byte {
	for ; n > 0; n-- {
		b = b[doc.Size(b):]
	}
	return b
}

// sortElement is one element of an array that is sorted, as offsets into the
// values and into their keys.
type sortElement struct{ start, end, key, keyEnd uint32 }

// pushSorted writes the array with $sort, which comes before $slice.
func (a *applier) pushSorted(spec *pushSpec, old doc.Raw) {
	was, added := old.Len(), spec.count()
	at := spec.at(was)
	olds := contents(old)
	behind := skipValues(olds, at)
	values := make([]byte, 0, len(olds)+len(spec.values))
	values = append(values, olds[:len(olds)-len(behind)]...)
	values = append(values, spec.encoded()...)
	values = append(values, behind...)

	elements := make([]sortElement, 0, was+added)
	var keys []byte
	for i := 0; i < len(values); {
		e := sortElement{start: uint32(i), key: uint32(len(keys))}
		i += doc.Size(values[i:])
		e.end = uint32(i)
		keys = spec.appendSortKey(keys, values[e.start:e.end])
		e.keyEnd = uint32(len(keys))
		elements = append(elements, e)
	}
	slices.SortFunc(elements, func(x, y sortElement) int {
		if c := bytes.Compare(keys[x.key:x.keyEnd], keys[y.key:y.keyEnd]); c != 0 {
			return c
		}
		return int(x.start) - int(y.start) // equal elements keep their order
	})
	from, to := spec.window(len(elements))
	a.dst = doc.AppendArrayHead(a.dst, to-from)
	for _, e := range elements[from:to] {
		a.dst = append(a.dst, values[e.start:e.end]...)
	}
}

// appendSortKey appends bytes whose order is the order of $sort. A field that
// is missing counts as null.
func (p *pushSpec) appendSortKey(dst []byte, v doc.Raw) []byte {
	if p.wholeSort != 0 {
		return appendDirected(dst, v, p.wholeSort < 0)
	}
	for _, f := range p.sort {
		field, ok := doc.Get(v, f.path)
		if !ok {
			field = null
		}
		dst = appendDirected(dst, field, f.descending)
	}
	return dst
}

var null = doc.Raw(doc.AppendNull(nil))

func appendDirected(dst []byte, v doc.Raw, descending bool) []byte {
	start := len(dst)
	dst = doc.AppendKey(dst, v)
	if descending {
		// No key is a prefix of another, so inverted bits invert the order.
		for i := start; i < len(dst); i++ {
			dst[i] = ^dst[i]
		}
	}
	return dst
}
