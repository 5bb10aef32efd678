package doc

import (
	"bytes"
	"cmp"
	"math"
)

// class is a value's place in the total order of kinds:
//
//	null < numbers < strings < maps < arrays < bytes < bool < timestamps
//
// Broken bytes sort before everything.
func class(k Kind) int {
	switch k {
	case KindNull:
		return 1
	case KindInt, KindFloat:
		return 2
	case KindString:
		return 3
	case KindMap:
		return 4
	case KindArray:
		return 5
	case KindBytes:
		return 6
	case KindBool:
		return 7
	case KindTime:
		return 8
	}
	return 0
}

// SameClass says whether two values are of one class of the order: equal
// kinds, or both numbers.
func SameClass(a, b Raw) bool { return class(a.Kind()) == class(b.Kind()) }

// Compare is the one total order over values. Between kinds it is the order of
// classes; within one:
//
//   - numbers by their exact value, NaN before all others; the int 1 and the
//     float 1.0 are equal
//   - strings and bytes bytewise; false before true; timestamps by time
//   - arrays element by element, a prefix first
//   - maps field by field in order of names: name, then value; a prefix first
//
// It uses no recursion.
func Compare(a, b Raw) int {
	type frame struct {
		leftA, leftB int
		isMap        bool
	}
	var inline [16]frame
	stack := inline[:0]
	cur := frame{leftA: 1, leftB: 1}
	i, j := 0, 0
	for {
		for cur.leftA == 0 || cur.leftB == 0 {
			if cur.leftA != cur.leftB {
				return cmp.Compare(cur.leftA, cur.leftB)
			}
			if len(stack) == 0 {
				return 0
			}
			cur = stack[len(stack)-1]
			stack = stack[:len(stack)-1]
		}
		cur.leftA--
		cur.leftB--
		if cur.isMap {
			ka, ha, na := scan(a, i)
			kb, hb, nb := scan(b, j)
			if ka != KindString || kb != KindString {
				return bytes.Compare(a, b) // broken bytes
			}
			if c := bytes.Compare(a[i+ha:i+ha+na], b[j+hb:j+hb+nb]); c != 0 {
				return c
			}
			i += ha + na
			j += hb + nb
		}
		ka, ha, na := scan(a, i)
		kb, hb, nb := scan(b, j)
		ca, cb := class(ka), class(kb)
		if ca != cb {
			return cmp.Compare(ca, cb)
		}
		c := 0
		switch ca {
		case 0:
			return bytes.Compare(a, b) // broken bytes
		case 2:
			c = compareNumbers(ka, a, i, kb, b, j)
		case 3, 6:
			c = bytes.Compare(a[i+ha:i+ha+na], b[j+hb:j+hb+nb])
		case 4, 5:
			stack = append(stack, cur)
			cur = frame{leftA: na, leftB: nb, isMap: ca == 4}
			i += ha
			j += hb
			continue
		case 7:
			c = cmp.Compare(a[i], b[j])
		case 8:
			sa, nsa := timeAt(a[i+ha : i+ha+na])
			sb, nsb := timeAt(b[j+hb : j+hb+nb])
			if c = cmp.Compare(sa, sb); c == 0 {
				c = cmp.Compare(nsa, nsb)
			}
		}
		if c != 0 {
			return c
		}
		i += ha + na
		j += hb + nb
	}
}

func compareNumbers(ka Kind, a []byte, i int, kb Kind, b []byte, j int) int {
	switch {
	case ka == KindInt && kb == KindInt:
		x, _ := intAt(a, i)
		y, _ := intAt(b, j)
		return cmp.Compare(x, y)
	case ka == KindFloat && kb == KindFloat:
		return cmp.Compare(floatAt(a, i), floatAt(b, j)) // NaN first, equal to itself
	case ka == KindInt:
		x, _ := intAt(a, i)
		return compareIntFloat(x, floatAt(b, j))
	default:
		y, _ := intAt(b, j)
		return -compareIntFloat(y, floatAt(a, i))
	}
}

// compareIntFloat compares exactly. float64(x) would round above 2^53.
func compareIntFloat(x int64, f float64) int {
	switch {
	case f != f:
		return 1
	case f >= 1<<63:
		return -1
	case f < -1<<63:
		return 1
	}
	whole := math.Floor(f)
	if c := cmp.Compare(x, int64(whole)); c != 0 {
		return c
	}
	if f > whole {
		return -1
	}
	return 0
}
