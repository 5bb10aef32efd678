package update

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

// The model says what operators mean in the plainest way: on Go values, one
// operator after the other, in order of paths (array indexes by number: with
// an empty array, a.0.x and a.2.x make [{x}, null, {x}], not an error for the
// null at 0). TestModel holds Apply against it.

var errModel = errors.New("does not fit")

// modelStep is one operator on one path.
type modelStep struct {
	op, path string
	operand  any
}

// modelApply changes root, a map, by all steps.
func modelApply(root doc.D, insert bool, steps []modelStep) error {
	var plain []modelStep
	for _, s := range steps {
		switch s.op {
		case "$setOnInsert":
			if !insert {
				continue
			}
		case "$rename":
			value, found, err := modelFind(root, strings.Split(s.path, "."))
			if err != nil {
				return err
			}
			if !found {
				continue
			}
			to := strings.Split(s.operand.(string), ".")
			for i := range to {
				v, _, _ := modelFind(root, to[:i])
				if _, isArray := v.([]any); isArray {
					return errModel
				}
			}
			plain = append(plain, modelStep{"$unset", s.path, nil}, modelStep{"$set", s.operand.(string), value})
			continue
		}
		plain = append(plain, s)
	}
	slices.SortFunc(plain, func(a, b modelStep) int {
		return slices.CompareFunc(strings.Split(a.path, "."), strings.Split(b.path, "."), func(x, y string) int {
			i, errX := strconv.Atoi(x)
			j, errY := strconv.Atoi(y)
			if errX == nil && errY == nil {
				return i - j
			}
			return strings.Compare(x, y)
		})
	})
	for _, s := range plain {
		if _, err := modelWalk(root, strings.Split(s.path, "."), s.op, s.operand); err != nil {
			return err
		}
	}
	return nil
}

// modelFind looks a path up; leading through an array is an error.
func modelFind(v any, parts []string) (any, bool, error) {
	for _, p := range parts {
		switch c := v.(type) {
		case doc.D:
			var ok bool
			if v, ok = c[p]; !ok {
				return nil, false, nil
			}
		case []any:
			return nil, false, errModel
		default:
			return nil, false, nil
		}
	}
	return v, true, nil
}

type missing struct{}

// modelWalk answers what v becomes; missing{} is no value, before and after.
func modelWalk(v any, parts []string, op string, operand any) (any, error) {
	if len(parts) == 0 {
		return modelLeaf(v, op, operand)
	}
	creates := !slices.Contains([]string{"$unset", "$pop", "$pull"}, op)
	p := parts[0]
	switch c := v.(type) {
	case missing:
		if !creates {
			return v, nil
		}
		return modelWalk(doc.D{}, parts, op, operand)
	case doc.D:
		child, ok := c[p]
		if !ok {
			child = missing{}
		}
		child, err := modelWalk(child, parts[1:], op, operand)
		if err != nil {
			return nil, err
		}
		if child == (missing{}) {
			delete(c, p)
		} else {
			c[p] = child
		}
		return c, nil
	case []any:
		i, err := strconv.Atoi(p)
		if err != nil || i < 0 || strconv.Itoa(i) != p {
			if creates {
				return nil, errModel
			}
			return v, nil
		}
		var child any = missing{}
		if i < len(c) {
			child = c[i]
		}
		if child, err = modelWalk(child, parts[1:], op, operand); err != nil {
			return nil, err
		}
		if child == (missing{}) {
			if i < len(c) {
				c[i] = nil
			}
			return c, nil
		}
		for len(c) <= i {
			c = append(c, nil)
		}
		c[i] = child
		return c, nil
	}
	if creates {
		return nil, errModel
	}
	return v, nil
}

func modelLeaf(v any, op string, operand any) (any, error) {
	absent := v == any(missing{})
	list, isList := v.([]any)
	switch op {
	case "$set", "$setOnInsert":
		return operand, nil
	case "$unset":
		return missing{}, nil
	case "$currentDate":
		return testNow.Time(), nil
	case "$min", "$max":
		if absent || op == "$min" && modelCompare(operand, v) < 0 || op == "$max" && modelCompare(operand, v) > 0 {
			return operand, nil
		}
		return v, nil
	case "$inc", "$mul":
		if absent {
			if op == "$inc" {
				return operand, nil
			}
			if _, ok := operand.(int64); ok {
				return int64(0), nil
			}
			return 0.0, nil
		}
		x, xInt := v.(int64)
		y, yInt := operand.(int64)
		if xInt && yInt {
			result := big.NewInt(x)
			if op == "$inc" {
				result.Add(result, big.NewInt(y))
			} else {
				result.Mul(result, big.NewInt(y))
			}
			if !result.IsInt64() {
				return nil, errModel
			}
			return result.Int64(), nil
		}
		fx, ok := modelFloat(v)
		fy, _ := modelFloat(operand)
		if !ok {
			return nil, errModel
		}
		if op == "$inc" {
			return fx + fy, nil
		}
		return fx * fy, nil
	}
	// Operators on arrays.
	if absent && (op == "$pop" || op == "$pull") {
		return v, nil
	}
	if !absent && !isList {
		return nil, errModel
	}
	list = slices.Clone(list)
	spec, _ := operand.(doc.D)
	each, isEach := spec["$each"].([]any)
	if !isEach {
		each = []any{operand}
	}
	switch op {
	case "$pop":
		if len(list) == 0 {
			return list, nil
		}
		if operand.(int64) == 1 {
			return list[:len(list)-1], nil
		}
		return list[1:], nil
	case "$pull":
		var kept = []any{}
		for _, e := range list {
			if !modelMatches(e, operand) {
				kept = append(kept, e)
			}
		}
		return kept, nil
	case "$addToSet":
		for _, e := range each {
			if !slices.ContainsFunc(list, func(o any) bool { return modelCompare(o, e) == 0 }) {
				list = append(list, e)
			}
		}
	case "$push":
		at := len(list)
		if p, ok := spec["$position"].(int64); ok && isEach {
			switch {
			case p < 0:
				at = max(len(list)+int(p), 0)
			case int(p) < len(list):
				at = int(p)
			}
		}
		list = slices.Insert(list, at, each...)
		if isEach {
			switch by := spec["$sort"].(type) {
			case int64:
				slices.SortStableFunc(list, func(a, b any) int { return int(by) * modelCompare(a, b) })
			case doc.D:
				for field, direction := range by {
					get := func(v any) any {
						m, _ := v.(doc.D)
						return m[field] // nil if missing
					}
					slices.SortStableFunc(list, func(a, b any) int { return int(direction.(int64)) * modelCompare(get(a), get(b)) })
				}
			}
			if n, ok := spec["$slice"].(int64); ok {
				if n >= 0 {
					list = list[:min(int(n), len(list))]
				} else {
					list = list[max(len(list)+int(n), 0):]
				}
			}
		}
	}
	if list == nil {
		list = []any{}
	}
	return list, nil
}

func modelFloat(v any) (float64, bool) {
	switch v := v.(type) {
	case int64:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

func modelCompare(a, b any) int {
	x, errX := doc.Marshal(a)
	y, errY := doc.Marshal(b)
	if errX != nil || errY != nil {
		panic(fmt.Sprint(errX, errY))
	}
	return doc.Compare(x, y)
}

// modelMatches knows equality, one comparison, and fields.
func modelMatches(e, operand any) bool {
	want, ok := operand.(doc.D)
	if !ok {
		return modelCompare(e, operand) == 0
	}
	if limit, ok := want["$gte"]; ok {
		if modelOrdered(e, limit) {
			return true
		}
		list, _ := e.([]any)
		return slices.ContainsFunc(list, func(e any) bool { return modelOrdered(e, limit) })
	}
	fields, isMap := e.(doc.D)
	for k, w := range want {
		v := fields[k]
		list, _ := v.([]any)
		if modelCompare(v, w) != 0 && !slices.ContainsFunc(list, func(e any) bool { return modelCompare(e, w) == 0 }) {
			return false
		}
	}
	return isMap
}

// modelOrdered is v >= limit, which holds only between values of one class.
func modelOrdered(v, limit any) bool {
	_, aNumber := modelFloat(v)
	_, bNumber := modelFloat(limit)
	if aNumber != bNumber || !aNumber && reflect.TypeOf(v) != reflect.TypeOf(limit) {
		return false
	}
	return modelCompare(v, limit) >= 0
}

// generator makes small documents and updates that often meet.
type generator struct{ *rand.Rand }

func (g generator) value(depth int) any {
	n := 11
	if depth <= 0 {
		n = 8
	}
	switch g.IntN(n) {
	case 0:
		return nil
	case 1, 2:
		return int64(g.IntN(5) - 1)
	case 3:
		return float64(g.IntN(6)) / 2
	case 4:
		return []string{"", "a", "b"}[g.IntN(3)]
	case 5:
		return g.IntN(2) == 0
	case 6:
		return []byte{byte(g.IntN(2))}
	case 7:
		return int64(math.MaxInt64) / []int64{1, 100}[g.IntN(2)]
	case 8:
		return g.fields(depth - 1)
	}
	return g.list(depth-1, 5)
}

func (g generator) list(depth, most int) []any {
	list := make([]any, g.IntN(most))
	for i := range list {
		list[i] = g.value(depth)
	}
	return list
}

func (g generator) fields(depth int) doc.D {
	d := doc.D{}
	for range g.IntN(5) {
		d[g.name()] = g.value(depth)
	}
	return d
}

func (g generator) name() string { return []string{"a", "b", "c", "a-", "0", "1", "7"}[g.IntN(7)] }

func (g generator) path() string {
	p := g.name()
	for range g.IntN(3) {
		p += "." + g.name()
	}
	return p
}

func (g generator) operand(op string) any {
	switch op {
	case "$inc", "$mul":
		return []any{int64(1), int64(-3), 0.5, int64(1e17)}[g.IntN(4)]
	case "$rename":
		return g.path()
	case "$pop":
		return int64(g.IntN(2)*2 - 1)
	case "$currentDate":
		return true
	case "$pull":
		if g.IntN(3) == 0 {
			return doc.D{"$gte": g.value(0)}
		}
	case "$push", "$addToSet":
		if g.IntN(4) == 0 {
			break
		}
		spec := doc.D{"$each": g.list(1, 4)}
		if g.IntN(20) == 0 {
			spec["$each"] = g.list(1, 40) // beyond what is compared pair by pair
		}
		if op == "$push" {
			if g.IntN(2) == 0 {
				spec["$position"] = int64(g.IntN(9) - 4)
			}
			if g.IntN(2) == 0 {
				spec["$slice"] = int64(g.IntN(11) - 5)
			}
			switch g.IntN(4) {
			case 0:
				spec["$sort"] = int64(g.IntN(2)*2 - 1)
			case 1:
				spec["$sort"] = doc.D{"a": int64(g.IntN(2)*2 - 1)}
			}
		}
		return spec
	}
	return g.value(1)
}

func TestModel(t *testing.T) {
	var names []string
	for op := range operators {
		names = append(names, op)
	}
	slices.Sort(names)
	seed := rand.Uint64()
	if s := os.Getenv("IDB_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	runs := 60_000
	if testing.Short() {
		runs = 10_000
	}
	outcomes := map[string]int{}
	for run := range uint64(runs) {
		g := generator{rand.New(rand.NewPCG(seed, run))}
		before := g.fields(3)
		insert := g.IntN(10) == 0
		if insert {
			before = doc.D{}
		}
		update := doc.D{}
		var steps []modelStep
		for range 1 + g.IntN(4) {
			op, path := names[g.IntN(len(names))], g.path()
			operand := g.operand(op)
			if update[op] == nil {
				update[op] = doc.D{}
			}
			if _, twice := update[op].(doc.D)[path]; !twice {
				update[op].(doc.D)[path] = operand
				steps = append(steps, modelStep{op, path, clone(t, operand)})
			}
		}
		body, err := doc.Marshal(before)
		if err != nil {
			t.Fatal(err)
		}
		operators, err := doc.Marshal(update)
		if err != nil {
			t.Fatal(err)
		}
		where := func() string {
			return fmt.Sprintf("run %d (again with IDB_TEST_SEED=%d)\n  %s (insert %v)\n  %s", run, seed, body, insert, operators)
		}

		u, err := Parse(operators)
		if conflict := modelConflict(steps, func(s modelStep) []string {
			if s.op == "$rename" {
				return []string{s.path, s.operand.(string)}
			}
			return []string{s.path}
		}); conflict != (err != nil) {
			t.Fatalf("%s\n  conflict %v, Parse: %v", where(), conflict, err)
		}
		if err != nil {
			outcomes["conflict"]++
			continue
		}
		arg := body
		if insert {
			arg = nil
		}
		got, err := u.Apply(arg, testNow, doc.Limits{})

		var root doc.D
		if err := body.Decode(&root); err != nil {
			t.Fatal(err)
		}
		wantErr := modelApply(root, insert, steps)
		if wantErr != nil {
			var e *Error
			if !errors.As(err, &e) || e.Code != wire.CodeUpdateFailed {
				t.Fatalf("%s\n  the model refuses, Apply answers %s, %v", where(), got, err)
			}
			outcomes["refused"]++
			continue
		}
		want, merr := doc.Marshal(root)
		if merr != nil {
			t.Fatal(merr)
		}
		if err != nil || !got.Equal(want) {
			t.Fatalf("%s\n  got  %s, %v\n  want %s", where(), got, err, want)
		}
		if err := doc.CheckBody(got, doc.Limits{}); err != nil {
			t.Fatalf("%s\n  %v", where(), err)
		}
		if got.Equal(body) {
			outcomes["unchanged"]++
		} else {
			outcomes["changed"]++
		}
	}
	for _, o := range []string{"conflict", "refused", "unchanged", "changed"} {
		if outcomes[o] < runs/50 {
			t.Errorf("only %d of %d runs were %s: the generator no longer reaches enough", outcomes[o], runs, o)
		}
	}
}

func clone(t *testing.T, v any) any {
	r, err := doc.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := r.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

// modelConflict says whether any two paths are equal or one inside the other.
func modelConflict[S any](steps []S, paths func(S) []string) bool {
	var all []string
	for _, s := range steps {
		all = append(all, paths(s)...)
	}
	for i, p := range all {
		for _, q := range all[:i] {
			if p == q || strings.HasPrefix(p, q+".") || strings.HasPrefix(q, p+".") {
				return true
			}
		}
	}
	return false
}
