package update

import (
	"bytes"
	"slices"

	"github.com/impossibledb/idb/client/doc"
)

// parseLimits bound the update itself. Its result is bounded by Apply's limits.
var parseLimits = doc.Limits{MaxBytes: 64 << 20, MaxDepth: 256}

// Parse reads an update: one canonical map of operators. It is safe on any
// bytes. The Update refers to raw, which must not change.
func Parse(raw doc.Raw) (*Update, error) {
	if err := doc.Check(raw, parseLimits); err != nil {
		return nil, bad("", "", "the update is not a canonical document: %v", err)
	}
	if raw.Kind() != doc.KindMap {
		return nil, bad("", "", `an update is a map of operators, such as {"$set": {"name": "value"}}`)
	}
	if raw.Len() == 0 {
		return nil, bad("", "", "an update needs at least one operator: %s", operatorList)
	}
	u := &Update{}
	u.actions = u.inline[:0]
	for it := raw.Iter(); it.Next(); {
		name := it.Key()
		op, known := operators[string(name)]
		if !known {
			if len(name) > 0 && name[0] == '$' {
				return nil, bad("", "", "unknown operator %s; there are %s", quote(string(name)), operatorList)
			}
			return nil, bad("", string(name), `an update is made of operators, such as {"$set": {%s: …}}; to replace the whole document, put it`, quote(string(name)))
		}
		if it.Value().Kind() != doc.KindMap {
			return nil, bad(op.String(), "", "wants a map from paths to operands, not %s", it.Value().Kind().Phrase())
		}
		for field := it.Value().Iter(); field.Next(); {
			if err := u.add(op, field.Key(), field.Value()); err != nil {
				return nil, err
			}
		}
	}
	if err := u.order(); err != nil {
		return nil, err
	}
	return u, nil
}

// add parses one operand.
func (u *Update) add(op operator, path []byte, operand doc.Raw) error {
	if err := checkPath(op, path); err != nil {
		return err
	}
	a := action{op: op, path: path, value: operand}
	switch op {
	case opSet, opSetOnInsert, opMin, opMax:
		a.depth = doc.Depth(operand)
	case opUnset:
		// The operand means nothing, as in {"$unset": {"a": ""}}.
	case opInc, opMul:
		if k := operand.Kind(); k != doc.KindInt && k != doc.KindFloat {
			return bad(op.String(), string(path), "wants a number, not %s", k.Phrase())
		}
	case opRenameFrom:
		to, ok := operand.Text()
		if !ok {
			return bad(op.String(), string(path), "wants the new path as a string, not %s", operand.Kind().Phrase())
		}
		if err := checkPath(op, to); err != nil {
			return err
		}
		a.other = to
		u.actions = append(u.actions, action{op: opRenameTo, path: to, other: path})
	case opPush:
		spec, err := parsePush(path, operand)
		if err != nil {
			return err
		}
		a.push, a.depth = spec, spec.depth
	case opAddToSet:
		spec, err := parseAddToSet(path, operand)
		if err != nil {
			return err
		}
		a.push, a.depth = spec, spec.depth
	case opPull:
		m, err := parsePull(path, operand)
		if err != nil {
			return err
		}
		a.pull = m
	case opPop:
		if v, ok := number(operand); !ok || v != 1 && v != -1 {
			return bad(op.String(), string(path), "wants 1 (remove the last element) or -1 (the first)")
		}
	case opCurrentDate:
		if !isCurrentDate(operand) {
			return bad(op.String(), string(path), `wants true or {"$type": "date"}`)
		}
	}
	u.actions = append(u.actions, a)
	return nil
}

func isCurrentDate(operand doc.Raw) bool {
	if v, ok := operand.Bool(); ok {
		return v
	}
	typ, ok := doc.Field(operand, "$type")
	text, _ := typ.Text()
	return ok && operand.Len() == 1 && string(text) == "date"
}

// number is an int, or a float without a fraction.
func number(r doc.Raw) (int64, bool) {
	if v, ok := r.Int(); ok {
		return v, true
	}
	f, ok := r.Float()
	if v := int64(f); ok && f > -1<<53 && f < 1<<53 && float64(v) == f {
		return v, true
	}
	return 0, false
}

// checkPath refuses a path that no update may have.
func checkPath(op operator, path []byte) error {
	if len(path) == 0 {
		return bad(op.String(), "", "a path is empty")
	}
	if path[0] == '_' {
		return bad(op.String(), string(path), `fields beginning with "_" are kept by the database and cannot be changed`)
	}
	rest := path
	for parts := 1; ; parts++ {
		name, more, found := bytes.Cut(rest, []byte{'.'})
		switch {
		case len(name) == 0:
			return bad(op.String(), string(path), "a path must not begin or end with a dot, nor have two in a row")
		case name[0] == '$':
			return bad(op.String(), string(path), `a path's names must not begin with "$" (positional operators are not supported)`)
		case parts > maxPathParts:
			return bad(op.String(), string(path), "a path has more than %d names", maxPathParts)
		}
		if !found {
			return nil
		}
		rest = more
	}
}

// order sorts the actions and refuses paths that conflict.
func (u *Update) order() error {
	if len(u.actions) < 2 {
		return nil
	}
	slices.SortStableFunc(u.actions, func(a, b action) int { return comparePaths(a.path, b.path) })
	for i := 1; i < len(u.actions); i++ {
		// If any path lies inside p, the one behind p does: everything that
		// lies inside p is in one run behind it.
		p, q := u.actions[i-1].path, u.actions[i].path
		if !bytes.HasPrefix(q, p) || len(q) > len(p) && q[len(p)] != '.' {
			continue
		}
		if len(p) == len(q) {
			return bad("", string(p), "the update changes this field twice")
		}
		return bad("", string(q), "the update changes this field and %s around it", quote(string(p)))
	}
	return nil
}

// comparePaths orders by components: a dot comes before every other byte.
func comparePaths(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '.':
			return -1
		case b[i] == '.':
			return 1
		case a[i] < b[i]:
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}
