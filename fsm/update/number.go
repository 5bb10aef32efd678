package update

import (
	"math"
	"math/bits"

	"github.com/impossibledb/idb/client/doc"
)

// arithmetic writes the result of $inc or $mul. Two ints make an int, or fail
// where it would overflow; with a float on either side the result is a float.
// A field that does not exist counts as the int or float 0 of the operand's kind.
func (a *applier) arithmetic(act *action, old doc.Raw) error {
	switch k := old.Kind(); {
	case len(old) == 0:
		if act.op == opInc {
			a.dst = append(a.dst, act.value...)
		} else if act.value.Kind() == doc.KindInt {
			a.dst = doc.AppendInt(a.dst, 0)
		} else {
			a.dst = doc.AppendFloat(a.dst, 0)
		}
		return nil
	case k != doc.KindInt && k != doc.KindFloat:
		return a.fail(act, "the field is %s, not a number", k.Phrase())
	}
	x, xInt := old.Int()
	y, yInt := act.value.Int()
	if xInt && yInt {
		var result int64
		var ok bool
		if act.op == opInc {
			result = x + y
			ok = (result > x) == (y > 0)
		} else {
			result, ok = multiply(x, y)
		}
		if !ok {
			return a.fail(act, "the result is beyond a 64-bit integer")
		}
		a.dst = doc.AppendInt(a.dst, result)
		return nil
	}
	fx, _ := old.Float()
	if xInt {
		fx = float64(x)
	}
	fy, _ := act.value.Float()
	if yInt {
		fy = float64(y)
	}
	// Each result is stored in a variable of its own: a product and a sum are
	// never fused, so that every processor computes the same bits.
	var result float64
	if act.op == opInc {
		result = fx + fy
	} else {
		result = fx * fy
	}
	a.dst = doc.AppendFloat(a.dst, result)
	return nil
}

// multiply is x*y; not ok if that is beyond an int64.
func multiply(x, y int64) (int64, bool) {
	hi, lo := bits.Mul64(magnitude(x), magnitude(y))
	if hi != 0 {
		return 0, false
	}
	if (x < 0) != (y < 0) {
		return -int64(lo), lo <= 1<<63
	}
	return int64(lo), lo <= math.MaxInt64
}

func magnitude(x int64) uint64 {
	if x < 0 {
		return -uint64(x)
	}
	return uint64(x)
}
