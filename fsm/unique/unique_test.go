package unique

import (
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

func raw(t testing.TB, v any) doc.Raw {
	t.Helper()
	r, err := doc.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestValues(t *testing.T) {
	set := SetOf(&wire.CollectionOptions{Unique: []wire.Unique{{Fields: []string{"a"}}, {Fields: []string{"b.c", "d"}}}})
	type D = doc.D
	for _, tc := range []struct {
		name string
		x, y D
		same string // the constraints under which x and y hold one value
	}{
		{"equal", D{"a": "x"}, D{"a": "x", "z": 1}, "0"},
		{"different", D{"a": "x"}, D{"a": "X"}, ""},
		{"int and float", D{"a": 1}, D{"a": 1.0}, "0"},
		{"large int and float", D{"a": int64(1) << 53}, D{"a": float64(1 << 53)}, "0"},
		{"an int between floats", D{"a": int64(1)<<53 + 1}, D{"a": float64(1 << 53)}, ""},
		{"NaN", D{"a": math.NaN()}, D{"a": math.NaN()}, "0"},
		{"null", D{"a": nil}, D{"a": nil}, "0"},
		{"null is not nothing", D{"a": nil}, D{}, ""},
		{"nothing", D{}, D{}, ""},
		{"nothing in a map", D{"b": D{"x": 1}}, D{"b": D{"x": 1}}, ""},
		{"two fields", D{"b": D{"c": 1}, "d": 2}, D{"b": D{"c": 1}, "d": 2}, "1"},
		{"two fields, one differs", D{"b": D{"c": 1}, "d": 2}, D{"b": D{"c": 1}, "d": 3}, ""},
		{"one missing", D{"d": 2}, D{"d": 2}, "1"},
		{"one missing, one null", D{"d": 2}, D{"d": 2, "b": D{"c": nil}}, ""},
		{"the other missing", D{"d": 2}, D{"b": D{"c": 2}}, ""},
		{"fields do not run into each other", D{"b": D{"c": "x"}, "d": "yz"}, D{"b": D{"c": "xy"}, "d": "z"}, ""},
		{"zero bytes", D{"b": D{"c": "x\x00"}, "d": "y"}, D{"b": D{"c": "x"}, "d": "\x00y"}, ""},
		{"constraints do not meet", D{"a": 1}, D{"b": D{"c": 1}}, ""},
		{"maps whatever their order", D{"a": D{"p": 1, "q": 2}}, D{"a": D{"q": 2, "p": 1}}, "0"},
		{"bytes are no string", D{"a": []byte("x")}, D{"a": "x"}, ""},
	} {
		same := ""
		for _, x := range set.Values(raw(t, tc.x)) {
			if len(x.Entry) > 64 || !utf8.ValidString(x.Entry) {
				t.Errorf("%s: entry %q", tc.name, x.Entry)
			}
			for _, y := range set.Values(raw(t, tc.y)) {
				if x.Entry == y.Entry {
					same += string(rune('0' + x.Constraint))
				}
			}
		}
		if same != tc.same {
			t.Errorf("%s: one value under %q, want %q", tc.name, same, tc.same)
		}
	}
	if held := set.Values(nil); held != nil {
		t.Errorf("no document holds %v", held)
	}
}

func TestTouches(t *testing.T) {
	set := SetOf(&wire.CollectionOptions{Unique: []wire.Unique{{Fields: []string{"a"}}, {Fields: []string{"b.c", "d"}}}})
	for path, want := range map[string]bool{"a": true, "a.x": true, "ab": false, "b": true, "b.c": true, "b.c.0": true, "b.cc": false, "b.x": false, "d": true, "e": false} {
		if got := set.Touches([]string{"zz", path}); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []placement.CollectionID{1, 1<<31 - 1} {
		if e := Entries(c); IsEntries(c) || !IsEntries(e) || Of(e) != c || Of(c) != c || e == c {
			t.Errorf("collection %d, its entries %d", c, e)
		}
	}
	if SetOf(&wire.CollectionOptions{}) != nil {
		t.Error("constraints of a collection that has none")
	}
}

// An entry is a document as any other, and names its holder whatever the ID.
func TestBody(t *testing.T) {
	for _, id := range []string{"u1", strings.Repeat("x", 512), "\x00", "ä"} {
		b := Body(id)
		if err := doc.CheckBody(b, doc.Limits{MaxBytes: wire.DefaultDocumentSize, MaxDepth: wire.MaxDepth}); err != nil {
			t.Error(err)
		}
		if holder, ok := Holder(b); !ok || holder != id {
			t.Errorf("%q came back as %q, %v", id, holder, ok)
		}
	}
	for _, b := range []doc.Raw{nil, raw(t, doc.D{}), raw(t, doc.D{"holder": 1}), raw(t, doc.D{"holder": "x", "y": 1})} {
		if holder, ok := Holder(b); ok {
			t.Errorf("% x names %q", b, holder)
		}
	}
}

// What is said of a value is short, whatever it is.
func TestText(t *testing.T) {
	long := strings.Repeat("ä", 300)
	path := strings.Repeat("p", 200)
	set := SetOf(&wire.CollectionOptions{Unique: []wire.Unique{{Fields: []string{"a", "b"}}, {Fields: []string{path, "x", "y", "z"}}}})
	for want, d := range map[string]doc.D{
		`a "x", b 1`:                   {"a": "x", "b": 1},
		`a (missing), b null`:          {"b": nil},
		`a {"$bytes":"eA=="}, b "1\n"`: {"a": []byte("x"), "b": "1\n"},
	} {
		if got := set.Text(0, raw(t, d)); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for _, d := range []doc.D{{"a": long, "b": long}, {path: long, "x": long, "y": []any{long}, "z": long}, {path: make([]byte, 1000)}} {
		for n := range 2 {
			if got := set.Text(n, raw(t, d)); len(got) > 240 || !utf8.ValidString(got) {
				t.Errorf("%d bytes: %s", len(got), got)
			}
		}
	}
}
