package update

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/txn/hlc"
)

// Apply answers the body as changed. A nil body is a document that does not
// exist yet: an upsert, for which $setOnInsert counts. The body must be
// canonical, and the answer is. now is what $currentDate writes. lim bounds the
// answer, also where the update makes a document smaller that is too large.
//
// The answer shares no memory with body or with the update.
func (u *Update) Apply(body doc.Raw, now hlc.Timestamp, lim doc.Limits) (doc.Raw, error) {
	if lim.MaxBytes <= 0 {
		lim.MaxBytes = doc.DefaultMaxBytes
	}
	if lim.MaxDepth <= 0 {
		lim.MaxDepth = doc.DefaultMaxDepth
	}
	a := applier{u: u, now: now, maxDepth: lim.MaxDepth, insert: body == nil}
	if body == nil {
		body = doc.EmptyMap()
	}
	if body.Kind() != doc.KindMap {
		return nil, &Error{Code: wire.CodeUpdateFailed, Text: "the stored document is not a map"}
	}
	a.body = body
	size := len(body) + 64
	for i := range u.actions {
		size += len(u.actions[i].path) + len(u.actions[i].value)
	}
	a.dst = make([]byte, 0, size)
	if len(u.actions) == 0 {
		a.dst = append(a.dst, body...)
	} else if err := a.mapping(0, len(u.actions), 0, body, 1, false); err != nil {
		return nil, err
	}
	if len(a.dst) > lim.MaxBytes {
		return nil, &Error{Code: wire.CodeDocumentTooLarge,
			Text: fmt.Sprintf("the document would have %d bytes, the limit is %d", len(a.dst), lim.MaxBytes)}
	}
	return a.dst, nil
}

// applier is one Apply under way. Its recursion is bounded by the length of
// the update's paths.
type applier struct {
	u        *Update
	body     doc.Raw // before the update
	now      hlc.Timestamp
	maxDepth int
	insert   bool
	dst      []byte // the new document so far
}

func (a *applier) fail(act *action, format string, args ...any) error {
	return &Error{Code: wire.CodeUpdateFailed, Op: act.op.String(), Path: string(act.path), Text: fmt.Sprintf(format, args...)}
}

// name is the component of a path that begins at off.
func name(path []byte, off int) []byte {
	if dot := bytes.IndexByte(path[off:], '.'); dot >= 0 {
		return path[off : off+dot]
	}
	return path[off:]
}

// group is the end of the run of actions, from lo on, that share the component
// at off.
func (a *applier) group(lo, hi, off int, name []byte) int {
	i := lo + 1
	for i < hi {
		p := a.u.actions[i].path
		if end := off + len(name); len(p) < end || string(p[off:end]) != string(name) || len(p) > end && p[end] != '.' {
			break
		}
		i++
	}
	return i
}

// value writes what becomes of a value. All actions lo..hi have the value's
// path in front of off; old is empty if there is no such value; depth is the
// number of maps and arrays around it, inArray whether any is an array. It
// answers whether there is a value afterwards: if not, dst is as before.
func (a *applier) value(lo, hi, off int, old doc.Raw, depth int, inArray bool) (bool, error) {
	act := &a.u.actions[lo]
	if off > len(act.path) {
		return a.leaf(act, old, depth, inArray)
	}
	switch old.Kind() {
	case doc.KindMap:
		return true, a.mapping(lo, hi, off, old, depth+1, inArray)
	case doc.KindArray:
		return true, a.array(lo, hi, off, old, depth+1)
	}
	if len(old) == 0 {
		return a.create(lo, hi, off, depth+1, inArray)
	}
	for i := lo; i < hi; i++ {
		act := &a.u.actions[i]
		if creates, err := a.creates(act); err != nil {
			return false, err
		} else if creates {
			return false, a.fail(act, "cannot make the field %s: %s is %s, not a map",
				quote(string(name(act.path, off))), quote(string(act.path[:off-1])), old.Kind().Phrase())
		}
	}
	a.dst = append(a.dst, old...)
	return true, nil
}

// creates says whether an action makes a value where there is none.
func (a *applier) creates(act *action) (bool, error) {
	switch act.op {
	case opUnset, opPop, opPull, opRenameFrom:
		return false, nil
	case opSetOnInsert:
		return a.insert, nil
	case opRenameTo:
		_, ok, err := a.renamed(act)
		return ok, err
	}
	return true, nil
}

// create writes a new map for actions whose path leads through nothing.
func (a *applier) create(lo, hi, off, depth int, inArray bool) (bool, error) {
	head := len(a.dst)
	a.dst = doc.AppendMapHead(a.dst, 0)
	n := 0
	for i := lo; i < hi; {
		part := name(a.u.actions[i].path, off)
		next := a.group(i, hi, off, part)
		before := len(a.dst)
		a.dst = doc.AppendText(a.dst, part)
		present, err := a.value(i, next, off+len(part)+1, nil, depth, inArray)
		if err != nil {
			return false, err
		}
		if present {
			n++
		} else {
			a.dst = a.dst[:before]
		}
		i = next
	}
	if n == 0 {
		a.dst = a.dst[:head]
		return false, nil
	}
	a.setHead(head, 0, n, true) // the depth was checked where a value was written
	return true, nil
}

func (a *applier) tooDeep(act *action) error {
	return &Error{Code: wire.CodeTooDeep, Op: act.op.String(), Path: string(act.path),
		Text: fmt.Sprintf("arrays and maps would be nested deeper than %d", a.maxDepth)}
}

// setHead corrects the count of the map or array that begins at head and was
// written with another count.
func (a *applier) setHead(head, was, is int, isMap bool) {
	if was == is {
		return
	}
	var buf [5]byte
	var h []byte
	size := headSize(was)
	if isMap {
		h = doc.AppendMapHead(buf[:0], is)
	} else {
		h = doc.AppendArrayHead(buf[:0], is)
	}
	if len(h) != size {
		a.dst = slices.Replace(a.dst, head, head+size, h...)
		return
	}
	copy(a.dst[head:], h)
}

func headSize(n int) int {
	switch {
	case n <= 15:
		return 1
	case n <= 0xffff:
		return 3
	}
	return 5
}

// mapping writes a map that exists. depth is its own nesting; inArray says that
// it lies in an array, however far up.
func (a *applier) mapping(lo, hi, off int, old doc.Raw, depth int, inArray bool) error {
	head, was := len(a.dst), old.Len()
	n := was
	it := old.Iter()
	copied := it.End() // old[:copied] is in dst, or was left out
	a.dst = append(a.dst, old[:copied]...)
	more := it.Next()
	for i := lo; i < hi; {
		part := name(a.u.actions[i].path, off)
		next := a.group(i, hi, off, part)
		c := 1
		for more {
			if c = bytes.Compare(it.Key(), part); c >= 0 {
				break
			}
			more = it.Next()
		}
		if !more {
			c = 1
		}
		// What lies before the field is copied, then the field is written.
		upTo := len(old)
		if more {
			upTo = it.Start()
		}
		a.dst = append(a.dst, old[copied:upTo]...)
		copied = upTo
		var value doc.Raw
		if c == 0 {
			value = it.Value()
			copied = it.End()
		}
		before := len(a.dst)
		a.dst = doc.AppendText(a.dst, part)
		present, err := a.value(i, next, off+len(part)+1, value, depth, inArray)
		if err != nil {
			return err
		}
		switch {
		case !present:
			a.dst = a.dst[:before]
			if c == 0 {
				n--
			}
		case c != 0:
			n++
		}
		if c == 0 {
			more = it.Next()
		}
		i = next
	}
	a.dst = append(a.dst, old[copied:]...)
	a.setHead(head, was, n, true)
	return nil
}

// element is a run of actions on one array element.
type element struct{ index, lo, hi, off int }

// array writes an array that exists, changed at some indexes.
func (a *applier) array(lo, hi, off int, old doc.Raw, depth int) error {
	var inline [8]element
	elements := inline[:0]
	for i := lo; i < hi; {
		part := name(a.u.actions[i].path, off)
		next := a.group(i, hi, off, part)
		index, ok := doc.ParseIndex(string(part))
		if ok {
			elements = append(elements, element{index, i, next, off + len(part) + 1})
		}
		for ; !ok && i < next; i++ {
			act := &a.u.actions[i]
			if creates, err := a.creates(act); err != nil {
				return err
			} else if creates {
				return a.fail(act, "%s is an array: a path into it must name an index, not %s",
					quote(string(act.path[:off-1])), quote(string(part)))
			}
		}
		i = next
	}
	slices.SortFunc(elements, func(x, y element) int { return x.index - y.index })

	head, was := len(a.dst), old.Len()
	it := old.Iter()
	copied := it.End()
	a.dst = append(a.dst, old[:copied]...)
	at := 0 // elements that it has passed
	for len(elements) > 0 && elements[0].index < was {
		e := elements[0]
		elements = elements[1:]
		for ; at <= e.index; at++ {
			if !it.Next() {
				return a.fail(&a.u.actions[e.lo], "the stored document is damaged")
			}
		}
		a.dst = append(a.dst, old[copied:it.Start()]...)
		copied = it.End()
		present, err := a.value(e.lo, e.hi, e.off, it.Value(), depth, true)
		if err != nil {
			return err
		}
		if !present {
			a.dst = doc.AppendNull(a.dst) // the others keep their indexes
		}
	}
	a.dst = append(a.dst, old[copied:]...)
	n := was
	for _, e := range elements {
		before := len(a.dst)
		if e.index-was > maxPadding {
			for i := e.lo; i < e.hi; i++ {
				act := &a.u.actions[i]
				if creates, err := a.creates(act); err != nil {
					return err
				} else if creates {
					return a.fail(act, "index %d lies more than %d beyond the array's %d elements", e.index, maxPadding, was)
				}
			}
			continue
		}
		for i := n; i < e.index; i++ {
			a.dst = doc.AppendNull(a.dst)
		}
		present, err := a.value(e.lo, e.hi, e.off, nil, depth, true)
		if err != nil {
			return err
		}
		if !present {
			a.dst = a.dst[:before]
			continue
		}
		n = e.index + 1
	}
	a.setHead(head, was, n, false)
	return nil
}

// renamed is the value that a $rename brings to its new path.
func (a *applier) renamed(act *action) (doc.Raw, bool, error) {
	v := a.body
	for off := 0; off <= len(act.other); {
		part := name(act.other, off)
		if v.Kind() == doc.KindArray {
			return nil, false, a.renameArray(act.other)
		}
		var ok bool
		if v, ok = doc.Field(v, string(part)); !ok {
			return nil, false, nil
		}
		off += len(part) + 1
	}
	return v, true, nil
}

func (a *applier) renameArray(path []byte) error {
	return &Error{Code: wire.CodeUpdateFailed, Op: "$rename", Path: string(path), Text: "a path of $rename must not lead through an array"}
}

// leaf writes what an action makes of a value.
func (a *applier) leaf(act *action, old doc.Raw, depth int, inArray bool) (bool, error) {
	value, nesting := act.value, act.depth
	switch act.op {
	case opUnset:
		return false, nil
	case opRenameFrom:
		if inArray {
			return false, a.renameArray(act.path)
		}
		return false, nil
	case opRenameTo:
		moved, ok, err := a.renamed(act)
		if err != nil || !ok {
			return a.keep(old), err
		}
		if inArray {
			return false, a.renameArray(act.path)
		}
		value, nesting = moved, doc.Depth(moved)
	case opSetOnInsert:
		if !a.insert {
			return a.keep(old), nil
		}
	case opSet:
	case opMin, opMax:
		if len(old) > 0 {
			c := doc.Compare(value, old)
			if act.op == opMin && c >= 0 || act.op == opMax && c <= 0 {
				return a.keep(old), nil
			}
		}
	case opInc, opMul:
		nesting = 0
		if err := a.arithmetic(act, old); err != nil {
			return false, err
		}
		value = nil
	case opCurrentDate:
		a.dst = doc.AppendTime(a.dst, a.now.Time())
		value, nesting = nil, 0
	case opPush, opAddToSet, opPop, opPull:
		return a.list(act, old, depth)
	}
	if depth+nesting > a.maxDepth {
		return false, a.tooDeep(act)
	}
	a.dst = append(a.dst, value...)
	return true, nil
}

// keep writes the old value, if there is one.
func (a *applier) keep(old doc.Raw) bool {
	a.dst = append(a.dst, old...)
	return len(old) > 0
}
