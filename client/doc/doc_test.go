package doc

import (
	"math"
	"strings"
	"testing"
)

func raw(t testing.TB, json string) Raw {
	t.Helper()
	r, err := FromJSON([]byte(json))
	if err != nil {
		t.Fatalf("FromJSON(%s): %v", json, err)
	}
	return r
}

// ordered are values in ascending order; those of one line are equal.
func ordered(t testing.TB) [][]Raw {
	lines := []string{
		`null`,
		`{"$float":"NaN"}`,
		`{"$float":"-Infinity"}`,
		`-1.7976931348623157e308`,
		`-9223372036854777856.0`,
		`-9223372036854775808|-9223372036854775808.0`,
		`-9223372036854775807`,
		`-9223372036854774785`,
		`-9223372036854774784|-9223372036854774784.0`,
		`-9007199254740993`,
		`-9007199254740992|-9007199254740992.0`,
		`-9007199254740991|-9007199254740991.0`,
		`-1.5`, `-1|-1.0`, `-5e-324`, `0|0.0|-0.0`, `5e-324`, `0.5`, `1|1.0|1e0`, `1.5`, `2`, `31`, `32`,
		`127`, `128`, `255`, `256`, `65535`, `65536`, `4294967295`, `4294967296`,
		`9007199254740991|9007199254740991.0`,
		`9007199254740992|9007199254740992.0`,
		`9007199254740993`,
		`9007199254740994|9007199254740994.0`,
		`9223372036854774783`,
		`9223372036854774784|9223372036854774784.0`,
		`9223372036854774785`,
		`9223372036854775806`,
		`9223372036854775807`,
		`9223372036854775808.0`,
		`1.7976931348623157e308`,
		`{"$float":"Infinity"}`,
		`""`, `"\u0000"`, `"\u0000\u0000"`, `"\u0000a"`, `"\u0001"`, `"a"`, `"a\u0000"`, `"a\u0000b"`, `"a\u0001"`, `"aa"`, `"b"`, `"é"`, `"\uffff"`, `"😀"`,
		`{}`, `{"":1}`, `{"\u0000":0}`, `{"a":null}`, `{"a":null,"b":null}`, `{"a":1}|{"a":1.0}`, `{"a":1,"b":0}`, `{"a":2}`, `{"a":{}}`, `{"aa":0}`, `{"b":0}`,
		`[]`, `[null]`, `[null,null]`, `[0]`, `[1]|[1.0]`, `[1,[]]`, `[[]]`, `[[],[]]`, `[[1]]`,
		`{"$bytes":""}`, `{"$bytes":"AA=="}`, `{"$bytes":"AAA="}`, `{"$bytes":"AAE="}`, `{"$bytes":"AQ=="}`, `{"$bytes":"/w=="}`, `{"$bytes":"//8="}`,
		`false`, `true`,
		`{"$date":"0001-01-01T00:00:00Z"}`, `{"$date":-1}`, `{"$date":0}|{"$date":"1970-01-01T01:00:00+01:00"}`,
		`{"$date":"1970-01-01T00:00:00.000000001Z"}`, `{"$date":1}`, `{"$date":"2026-01-02T03:04:05.678Z"}`, `{"$date":"9999-12-31T23:59:59.999999999Z"}`,
	}
	var out [][]Raw
	for _, line := range lines {
		var equal []Raw
		for text := range strings.SplitSeq(line, "|") {
			equal = append(equal, raw(t, text))
		}
		out = append(out, equal)
	}
	return out
}

func TestOrder(t *testing.T) {
	values := ordered(t)
	for i, xs := range values {
		for j, ys := range values {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			for _, x := range xs {
				for _, y := range ys {
					if got := sign(Compare(x, y)); got != want {
						t.Errorf("Compare(%s, %s) = %d, want %d", x, y, got, want)
					}
					kx, ky := string(AppendKey(nil, x)), string(AppendKey(nil, y))
					if got := sign(strings.Compare(kx, ky)); got != want {
						t.Errorf("keys of %s and %s compare as %d, want %d: %x %x", x, y, got, want, kx, ky)
					}
					if i != j && (strings.HasPrefix(kx, ky) || strings.HasPrefix(ky, kx)) {
						t.Errorf("one of the keys of %s and %s is a prefix of the other", x, y)
					}
				}
			}
		}
		for _, x := range xs {
			key := AppendKey(nil, x)
			back, rest, err := DecodeKey(append(key, "rest"...))
			if err != nil || string(rest) != "rest" || Compare(back, x) != 0 {
				t.Errorf("DecodeKey of %s = %s, %q, %v", x, back, rest, err)
			}
			if err := Check(back, Limits{}); err != nil {
				t.Errorf("DecodeKey of %s is not canonical: %v", x, err)
			}
			// What an int can hold comes back as an int, whatever it was.
			if f, ok := x.Float(); !ok && !back.Equal(x) && x.Kind() != KindMap && x.Kind() != KindArray {
				t.Errorf("DecodeKey of %s = %s", x, back)
			} else if ok && (f != math.Trunc(f) || math.Abs(f) > 1<<63) && !back.Equal(x) {
				t.Errorf("DecodeKey of %s = %s", x, back)
			}
		}
	}
}

func sign(c int) int {
	switch {
	case c < 0:
		return -1
	case c > 0:
		return 1
	}
	return 0
}

func TestGet(t *testing.T) {
	r := raw(t, `{"a":{"b":[10,{"c":"x"},[7]],"0":"zero"},"d.e":1,"":{"":5},"z":null}`)
	for _, c := range []struct{ path, want string }{
		{"a.b.0", `10`},
		{"a.b.1.c", `"x"`},
		{"a.b.2.0", `7`},
		{"a.0", `"zero"`},
		{"z", `null`},
		{".", `5`}, // two empty names
		{"a.b.3", ``},
		{"a.b.01", ``},
		{"a.b.-1", ``},
		{"a.b.99999999999999999999", ``},
		{"a.b.x", ``},
		{"a.x", ``},
		{"d.e", ``}, // a name with a dot has no path
		{"zz", ``},
		{"z.a", ``},
	} {
		got, ok := Get(r, c.path)
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("Get(%q) = %s, %v; want %s", c.path, got, ok, c.want)
		}
	}
	if v, ok := Field(r, "d.e"); !ok || v.String() != "1" {
		t.Errorf("Field with a dot = %s, %v", v, ok)
	}
	if v, ok := Get(r, ""); !ok || !v.Equal(r) {
		t.Errorf("the empty path is not the document")
	}
}

func TestIter(t *testing.T) {
	r := raw(t, `{"a":1,"b":[2,{"x":3}],"c":"d"}`)
	var got []string
	for it := r.Iter(); it.Next(); {
		got = append(got, string(it.Key())+"="+it.Value().String())
		if s := r[it.Start():it.End()]; !strings.HasSuffix(string(s), string(it.Value())) {
			t.Errorf("Start and End of %s are %x", it.Key(), s)
		}
	}
	if want := `a=1 b=[2,{"x":3}] c="d"`; strings.Join(got, " ") != want {
		t.Errorf("got %s, want %s", got, want)
	}
	array, _ := Field(r, "b")
	it := array.Iter()
	if !it.Next() || it.Left() != 1 || it.Key() != nil || it.Value().String() != "2" || !it.Next() || it.Next() {
		t.Errorf("walking %s went wrong", array)
	}
	for _, scalar := range []Raw{raw(t, `1`), raw(t, `"s"`), nil, {0xc1}} {
		if it := scalar.Iter(); it.Next() {
			t.Errorf("%x has an element", scalar)
		}
	}
}

func TestAccessors(t *testing.T) {
	for _, c := range []struct {
		json string
		kind Kind
		len  int
	}{
		{`null`, KindNull, 0}, {`1`, KindInt, 0}, {`1.0`, KindFloat, 0}, {`"s"`, KindString, 0},
		{`{"a":1}`, KindMap, 1}, {`[1,2]`, KindArray, 2}, {`{"$bytes":"AA=="}`, KindBytes, 0},
		{`true`, KindBool, 0}, {`{"$date":0}`, KindTime, 0},
	} {
		r := raw(t, c.json)
		if r.Kind() != c.kind || r.Len() != c.len {
			t.Errorf("%s: kind %s, length %d", c.json, r.Kind(), r.Len())
		}
		_, isInt := r.Int()
		_, isFloat := r.Float()
		_, isText := r.Text()
		_, isStr := r.Str()
		_, isBytes := r.Bytes()
		_, isBool := r.Bool()
		_, isTime := r.Time()
		for kind, is := range map[Kind]bool{KindNull: r.IsNull(), KindInt: isInt, KindFloat: isFloat, KindString: isText && isStr,
			KindBytes: isBytes, KindBool: isBool, KindTime: isTime} {
			if is != (kind == c.kind) {
				t.Errorf("%s taken as %s: %v", c.json, kind, is)
			}
		}
	}
	if k := Raw(nil).Kind(); k != KindInvalid {
		t.Errorf("nothing is %s", k)
	}
	if d := Depth(raw(t, `{"a":[{"b":[]}],"c":{}}`)); d != 4 {
		t.Errorf("depth %d, want 4", d)
	}
	if d := Depth(raw(t, `5`)); d != 0 {
		t.Errorf("depth of a scalar %d", d)
	}
}
