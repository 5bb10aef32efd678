package update

import (
	"bytes"

	"github.com/impossibledb/idb/client/doc"
)

// matcher is the operand of $pull: which elements are removed.
//
//	5, "a", null, […]             elements equal to it (1 equals 1.0)
//	{"$gte": 3, "$lt": 7}         elements for which every comparison holds
//	{"a.b": 1, "c": {"$ne": 2}}   elements that are maps, for whose fields all hold
type matcher struct {
	equal      doc.Raw // if set, the only condition
	mapsOnly   bool
	conditions []condition
}

// condition is one comparison of one field, or of the element itself.
type condition struct {
	path  string // empty: the element itself
	op    comparison
	value doc.Raw
	set   map[string]struct{} // $in, $nin: keys of the values
}

type comparison uint8

const (
	cmpEqual comparison = iota + 1
	cmpNotEqual
	cmpLess
	cmpLessEqual
	cmpGreater
	cmpGreaterEqual
	cmpIn
	cmpNotIn
	cmpExists
)

var comparisons = map[string]comparison{
	"$eq":     cmpEqual,
	"$ne":     cmpNotEqual,
	"$lt":     cmpLess,
	"$lte":    cmpLessEqual,
	"$gt":     cmpGreater,
	"$gte":    cmpGreaterEqual,
	"$in":     cmpIn,
	"$nin":    cmpNotIn,
	"$exists": cmpExists,
}

const comparisonList = "$eq, $exists, $gt, $gte, $in, $lt, $lte, $ne, $nin"

func parsePull(path []byte, operand doc.Raw) (*matcher, error) {
	if operand.Kind() != doc.KindMap {
		return &matcher{equal: operand}, nil
	}
	m := &matcher{}
	if hasOperator(operand) {
		return m, m.compare(path, "", operand)
	}
	m.mapsOnly = true
	for it := operand.Iter(); it.Next(); {
		field := string(it.Key())
		if field == "" || field[0] == '.' || field[len(field)-1] == '.' || bytes.Contains(it.Key(), []byte("..")) {
			return nil, bad("$pull", string(path), "%s is not a path", quote(field))
		}
		if hasOperator(it.Value()) {
			if err := m.compare(path, field, it.Value()); err != nil {
				return nil, err
			}
			continue
		}
		m.conditions = append(m.conditions, condition{path: field, op: cmpEqual, value: it.Value()})
	}
	if len(m.conditions) > maxConditions {
		return nil, bad("$pull", string(path), "more than %d conditions", maxConditions)
	}
	return m, nil
}

// compare reads a map of comparisons for one field.
func (m *matcher) compare(path []byte, field string, operand doc.Raw) error {
	for it := operand.Iter(); it.Next(); {
		op, ok := comparisons[string(it.Key())]
		if !ok {
			return bad("$pull", string(path), "unknown comparison %s; there are %s", quote(string(it.Key())), comparisonList)
		}
		c := condition{path: field, op: op, value: it.Value()}
		switch op {
		case cmpIn, cmpNotIn:
			if c.value.Kind() != doc.KindArray {
				return bad("$pull", string(path), "%s wants an array, not %s", it.Key(), c.value.Kind().Phrase())
			}
			c.set = make(map[string]struct{}, c.value.Len())
			var key []byte
			for v := c.value.Iter(); v.Next(); {
				key = doc.AppendKey(key[:0], v.Value())
				c.set[string(key)] = struct{}{}
			}
		case cmpExists:
			if c.value.Kind() != doc.KindBool {
				return bad("$pull", string(path), "$exists wants true or false, not %s", c.value.Kind().Phrase())
			}
			if field == "" {
				return bad("$pull", string(path), "$exists needs a field: an element always exists")
			}
		}
		m.conditions = append(m.conditions, c)
	}
	return nil
}

// matches says whether an element is to be removed.
func (m *matcher) matches(element doc.Raw) bool {
	if m.equal != nil {
		return doc.Compare(element, m.equal) == 0
	}
	if m.mapsOnly && element.Kind() != doc.KindMap {
		return false
	}
	for i := range m.conditions {
		if !m.conditions[i].holds(element) {
			return false
		}
	}
	return true
}

func (c *condition) holds(element doc.Raw) bool {
	v, ok := doc.Get(element, c.path)
	switch c.op {
	case cmpExists:
		want, _ := c.value.Bool()
		return ok == want
	case cmpNotEqual, cmpNotIn:
		return !c.any(v)
	}
	return c.any(v)
}

// any says whether the value, or if it is an array one of its elements, fits
// the comparison ($ne and $nin: the comparison that they negate). A value that
// is missing counts as null.
func (c *condition) any(v doc.Raw) bool {
	if len(v) == 0 {
		v = null
	}
	if c.one(v) {
		return true
	}
	if v.Kind() == doc.KindArray {
		for it := v.Iter(); it.Next(); {
			if c.one(it.Value()) {
				return true
			}
		}
	}
	return false
}

func (c *condition) one(v doc.Raw) bool {
	switch c.op {
	case cmpEqual, cmpNotEqual:
		return doc.Compare(v, c.value) == 0
	case cmpIn, cmpNotIn:
		var buf [64]byte
		_, ok := c.set[string(doc.AppendKey(buf[:0], v))]
		return ok
	}
	// An order holds only between values of one class, and NaN has none.
	if !doc.SameClass(v, c.value) || isNaN(v) != isNaN(c.value) {
		return false
	}
	order := doc.Compare(v, c.value)
	switch c.op {
	case cmpLess:
		return order < 0
	case cmpLessEqual:
		return order <= 0
	case cmpGreater:
		return order > 0
	}
	return order >= 0
}

func isNaN(v doc.Raw) bool {
	f, ok := v.Float()
	return ok && f != f
}
