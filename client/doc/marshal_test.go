package doc

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

type (
	named    string
	base     struct{ A, B int }
	embedded struct {
		base          // not exported, its fields are
		*Pointed      // nil: its fields are left out
		C        int  `json:"c"`
		B        bool // hides base.B
		hidden   int
		Skipped  int `idb:"-"`
	}
	Pointed struct{ P int }
	tagged  struct {
		X     int       `json:"json,omitempty" idb:"idb"`
		Y     int       `json:"y,omitempty"`
		Z     []int     `json:"z,omitempty"`
		T     time.Time `idb:"t,omitzero"`
		M     *int      `idb:",omitempty"`
		Comma int       `idb:","`
	}
	tie1 struct{ Same int }
	tie2 struct{ Same int }
	ties struct {
		tie1
		tie2
		Own int
	}
	tree struct {
		Name string  `idb:"name"`
		Kids []*tree `idb:"kids,omitempty"`
	}
	custom   struct{ n int }
	pointers struct{ V byPointer }
	// byPointer has its methods on the pointer.
	byPointer struct{ s string }
	texty     struct{ s string }
)

func (c custom) MarshalDoc() (Raw, error) { return Raw{0xd1, 0, byte(c.n)}, nil } // not canonical
func (c *custom) UnmarshalDoc(r Raw) error {
	v, ok := r.Int()
	if !ok {
		return errors.New("wants an int")
	}
	c.n = int(v)
	return nil
}
func (b *byPointer) MarshalJSON() ([]byte, error) { return json.Marshal([]string{b.s}) }
func (b *byPointer) UnmarshalJSON(j []byte) error {
	var s []string
	if err := json.Unmarshal(j, &s); err != nil {
		return err
	}
	b.s = s[0]
	return nil
}
func (x texty) MarshalText() ([]byte, error) { return []byte("<" + x.s + ">"), nil }
func (x *texty) UnmarshalText(b []byte) error {
	x.s = strings.Trim(string(b), "<>")
	return nil
}

func TestMarshal(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))
	five := 5
	for _, c := range []struct {
		v    any
		want string
	}{
		{nil, `null`}, {true, `true`}, {5, `5`}, {int8(-5), `-5`}, {uint16(5), `5`}, {uint64(math.MaxInt64), `9223372036854775807`},
		{5.0, `5.0`}, {float32(0.5), `0.5`}, {math.Inf(1), `{"$float":"Infinity"}`}, {math.Copysign(0, -1), `0.0`},
		{"x", `"x"`}, {named("x"), `"x"`}, {[]byte("x"), `{"$bytes":"eA=="}`}, {[2]byte{1, 2}, `{"$bytes":"AQI="}`}, {[]byte(nil), `null`},
		{at, `{"$date":"2026-01-02T02:04:05.000000006Z"}`}, {time.Second, `1000000000`},
		{json.Number("5"), `5`}, {json.Number("5.0"), `5.0`}, {json.Number(""), `0`}, {json.RawMessage(`{"b":1,"a":{"$date":0}}`), `{"a":{"$date":"1970-01-01T00:00:00.000Z"},"b":1}`},
		{Raw{0xcc, 0x05}, `5`}, {Raw(nil), `null`},
		{[]any{1, "a", nil}, `[1,"a",null]`}, {[]int{1, 2}, `[1,2]`}, {[]int(nil), `null`}, {[0]int{}, `[]`}, {[]string{"a"}, `["a"]`}, {[]string(nil), `null`},
		{D{"b": 1, "a": D{}}, `{"a":{},"b":1}`}, {D(nil), `null`}, {map[named]int{"x": 1}, `{"x":1}`}, {map[int]bool{10: true, 9: false}, `{"10":true,"9":false}`},
		{map[netip.Addr]int{netip.MustParseAddr("::1"): 1}, `{"::1":1}`}, {map[string]int(nil), `null`},
		{&five, `5`}, {(*int)(nil), `null`}, {struct{}{}, `{}`}, {any(&five), `5`},
		{embedded{base: base{1, 2}, C: 3, hidden: 4, Skipped: 5}, `{"A":1,"B":false,"c":3}`},
		{embedded{Pointed: &Pointed{7}}, `{"A":0,"B":false,"P":7,"c":0}`},
		{tagged{}, `{"Comma":0,"idb":0}`}, {tagged{X: 1, Y: 2, Z: []int{3}, T: at, M: new(int)}, `{"Comma":0,"M":0,"idb":1,"t":{"$date":"2026-01-02T02:04:05.000000006Z"},"y":2,"z":[3]}`},
		{ties{Own: 1}, `{"Own":1}`},
		{tree{"a", []*tree{{"b", nil}, nil}}, `{"kids":[{"name":"b"},null],"name":"a"}`},
		{custom{7}, `7`}, {&custom{7}, `7`}, {texty{"q"}, `"<q>"`}, {[]texty{{"q"}}, `["<q>"]`},
		{pointers{byPointer{"s"}}, `{"V":["s"]}`}, {&pointers{byPointer{"s"}}, `{"V":["s"]}`}, {big.NewInt(12), `"12"`},
		{netip.MustParseAddr("10.0.0.1"), `"10.0.0.1"`},
	} {
		if got := mustMarshal(t, c.v).String(); got != c.want {
			t.Errorf("Marshal(%#v) = %s, want %s", c.v, got, c.want)
		}
	}
}

func TestMarshalRefuses(t *testing.T) {
	loop := &tree{Name: "x"}
	loop.Kids = []*tree{loop}
	type self *self
	var ring self
	ring = &ring
	cycle := D{}
	cycle["me"] = cycle
	for _, c := range []struct {
		v    any
		want string
	}{
		{make(chan int), `Go value of type chan int`},
		{D{"f": func() {}}, `field "f": a Go value of type func()`},
		{struct{ A complex128 }{}, `field "A": a Go value of type complex128`},
		{D{"a": []any{1, uint64(1 << 63)}}, `field "a.1": the integer 9223372036854775808 is above`},
		{"\xff", `not valid UTF-8`}, {D{"\xff": 1}, `not valid UTF-8`}, {[]string{"\xff"}, `not valid UTF-8`},
		{map[bool]int{true: 1}, `bool cannot name a field`},
		{time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), `years 1 to 9999`},
		{json.Number("x"), `bad JSON`}, {json.RawMessage(`{`), `bad JSON`}, {Raw{0xc1}, `begins no value`},
		{map[texty]int{{"a"}: 1, {"<a"}: 2}, ``},
		{loop, `nested deeper than 64`}, {cycle, `nested deeper than 64`}, {ring, `leads to itself`},
	} {
		_, err := Marshal(c.v)
		if c.want == "" {
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Marshal(%T) = %v, want %s", c.v, err, c.want)
		}
	}
	deep := raw(t, strings.Repeat("[", 64)+strings.Repeat("]", 64))
	if _, err := Marshal(deep); err != nil {
		t.Errorf("64 levels of Raw: %v", err)
	}
	if _, err := Marshal([]any{deep}); !errors.Is(err, ErrTooDeep) {
		t.Errorf("65 levels with Raw: %v", err)
	}
}

// decodeInto makes a new T, decodes into it and answers it.
func decodeInto[T any](r Raw) (any, error) {
	var v T
	err := r.Decode(&v)
	return v, err
}

func TestDecode(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	five := 5
	for _, c := range []struct {
		json   string
		decode func(Raw) (any, error)
		want   any
	}{
		{`null`, decodeInto[any], nil}, {`5`, decodeInto[any], int64(5)}, {`5.0`, decodeInto[any], 5.0}, {`"x"`, decodeInto[any], "x"},
		{`[1,{"a":true}]`, decodeInto[any], []any{int64(1), D{"a": true}}}, {`{"$bytes":"AQ=="}`, decodeInto[any], []byte{1}},
		{`{"$date":"2026-01-02T03:04:05.000000006Z"}`, decodeInto[any], at},
		{`{"a":null}`, decodeInto[D], D{"a": nil}}, {`null`, decodeInto[D], D(nil)},
		{`5`, decodeInto[int8], int8(5)}, {`5.0`, decodeInto[int], 5}, {`5`, decodeInto[float64], 5.0}, {`5`, decodeInto[float32], float32(5)},
		{`5`, decodeInto[uint], uint(5)}, {`5`, decodeInto[*int], &five}, {`null`, decodeInto[*int], (*int)(nil)}, {`null`, decodeInto[int], 0},
		{`"x"`, decodeInto[named], named("x")}, {`true`, decodeInto[bool], true}, {`{"$bytes":"AQI="}`, decodeInto[[2]byte], [2]byte{1, 2}},
		{`{"$bytes":"AQI="}`, decodeInto[[]byte], []byte{1, 2}}, {`[1,2]`, decodeInto[[]int], []int{1, 2}}, {`[]`, decodeInto[[]int], []int{}},
		{`[1]`, decodeInto[[2]int], [2]int{1, 0}}, {`{"a":1}`, decodeInto[map[string]int], map[string]int{"a": 1}},
		{`{"10":1,"9":2}`, decodeInto[map[int]int], map[int]int{10: 1, 9: 2}}, {`{"7":1}`, decodeInto[map[uint8]int], map[uint8]int{7: 1}},
		{`{"::1":1}`, decodeInto[map[netip.Addr]int], map[netip.Addr]int{netip.MustParseAddr("::1"): 1}},
		{`{"$date":"2026-01-02T03:04:05.000000006Z"}`, decodeInto[time.Time], at}, {`"2026-01-02T03:04:05.000000006Z"`, decodeInto[time.Time], at},
		{`5`, decodeInto[json.Number], json.Number("5")}, {`5.5`, decodeInto[json.Number], json.Number("5.5")},
		{`{"a":[1]}`, decodeInto[json.RawMessage], json.RawMessage(`{"a":[1]}`)}, {`null`, decodeInto[json.RawMessage], json.RawMessage(`null`)},
		{`{"a":1}`, decodeInto[Raw], Raw{0x81, 0xa1, 'a', 1}}, {`null`, decodeInto[Raw], Raw{0xc0}},
		{`{"A":1,"B":true,"P":7,"c":3,"Skipped":9,"hidden":8,"zzz":[{}]}`, decodeInto[embedded], embedded{base: base{A: 1}, Pointed: &Pointed{7}, C: 3, B: true}},
		{`{"kids":[{"name":"b"},null],"name":"a"}`, decodeInto[tree], tree{"a", []*tree{{Name: "b"}, nil}}},
		{`7`, decodeInto[custom], custom{7}}, {`[7,8]`, decodeInto[[]custom], []custom{{7}, {8}}}, {`"<q>"`, decodeInto[texty], texty{"q"}},
		{`{"V":["s"]}`, decodeInto[pointers], pointers{byPointer{"s"}}}, {`"12"`, decodeInto[*big.Int], big.NewInt(12)},
		{`{"idb":1,"y":2,"z":[3],"M":5}`, decodeInto[tagged], tagged{X: 1, Y: 2, Z: []int{3}, M: &five}},
	} {
		got, err := c.decode(raw(t, c.json))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s decodes as %#v, %v; want %#v", c.json, got, err, c.want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct {
		json   string
		decode func(Raw) (any, error)
		want   string
	}{
		{`300`, decodeInto[int8], `the integer 300 does not fit the Go type int8`},
		{`-1`, decodeInto[uint], `the integer -1 does not fit`},
		{`1.5`, decodeInto[int], `the float 1.5 does not fit the Go type int`},
		{`1e300`, decodeInto[int], `does not fit`}, {`1e300`, decodeInto[float32], `does not fit`}, {`{"$float":"NaN"}`, decodeInto[int], `does not fit`},
		{`9007199254740993`, decodeInto[float64], `has no exact float64`}, {`16777217`, decodeInto[float32], `has no exact float32`},
		{`"5"`, decodeInto[int], `a string does not fit the Go type int`}, {`5`, decodeInto[string], `an int does not fit the Go type string`},
		{`"x"`, decodeInto[[]byte], `a string does not fit`}, {`{"$bytes":"AQ=="}`, decodeInto[[2]byte], `bytes does not fit`},
		{`[1,2,3]`, decodeInto[[2]int], `an array of 3 does not fit`}, {`{}`, decodeInto[[]int], `a map does not fit`}, {`[]`, decodeInto[map[string]int], `an array does not fit`},
		{`"yesterday"`, decodeInto[time.Time], `not an RFC 3339 time`}, {`5`, decodeInto[time.Time], `an int does not fit`},
		{`{"$float":"NaN"}`, decodeInto[json.Number], `does not fit`}, {`"s"`, decodeInto[json.Number], `does not fit`},
		{`"s"`, decodeInto[custom], `wants an int`}, {`5`, decodeInto[texty], `an int does not fit`},
		{`{"kids":[{"name":"a"},{"name":5}]}`, decodeInto[tree], `field "kids.1.name": an int does not fit the Go type string`},
		{`{"a":{"b":"x"}}`, decodeInto[map[string]map[string]int], `field "a.b": a string does not fit`},
		{`{"x":1}`, decodeInto[map[int]int], `field "x": the field name does not fit`},
		{`5`, decodeInto[chan int], `does not fit`}, {`5`, decodeInto[fmt.Stringer], `does not fit`},
	} {
		got, err := c.decode(raw(t, c.json))
		if !errors.Is(err, ErrType) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s decodes as %#v, %v; want %s", c.json, got, err, c.want)
		}
	}
	for _, v := range []any{nil, 5, D{}, (*int)(nil)} {
		if err := raw(t, `5`).Decode(v); !errors.Is(err, ErrType) {
			t.Errorf("Decode into %#v: %v", v, err)
		}
	}
	for _, b := range []Raw{nil, {0xc1}, {0x81, 0xa1}, {0x92, 1}, {1, 2}, {0x81, 1, 1}, {0xd4, 5, 5}} {
		for name, v := range map[string]any{"any": new(any), "map": new(D), "struct": new(tree), "slice": new([]int), "raw": new(map[string]Raw)} {
			if err := b.Decode(v); err == nil {
				t.Errorf("% x decodes into %s", []byte(b), name)
			}
		}
	}
	bomb := Raw(strings.Repeat("\x91", 1<<20) + "\x90")
	var r [][]any
	if err := bomb.Decode(new(any)); !errors.Is(err, ErrTooDeep) {
		t.Errorf("a million nested arrays: %v", err)
	}
	if err := bomb.Decode(&r); !errors.Is(err, ErrTooDeep) {
		t.Errorf("a million nested arrays: %v", err)
	}
}

// What is decoded stays when the bytes it came from are used again.
func TestDecodeCopies(t *testing.T) {
	r := raw(t, `{"b":{"$bytes":"AQI="},"r":{"x":1},"s":"abc"}`)
	var v struct {
		B []byte `idb:"b"`
		R Raw    `idb:"r"`
		S string `idb:"s"`
	}
	var d D
	if r.Decode(&v) != nil || r.Decode(&d) != nil {
		t.Fatal("Decode failed")
	}
	for i := range r {
		r[i] = 0xff
	}
	if v.B[0] != 1 || v.R.String() != `{"x":1}` || v.S != "abc" || d["s"] != "abc" || d["b"].([]byte)[0] != 1 {
		t.Errorf("decoded values changed: %+v %v", v, d)
	}
}

func TestTypesAreLearnedOnceByMany(t *testing.T) {
	type leaf struct{ V int }
	type node struct {
		Leaf leaf
		Next *node
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				r, err := Marshal(node{leaf{1}, &node{leaf{2}, nil}})
				var back node
				if err != nil || r.Decode(&back) != nil || back.Next.Leaf.V != 2 {
					t.Errorf("%s, %v", r, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
