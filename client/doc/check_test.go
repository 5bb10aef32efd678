package doc

import (
	"bytes"
	"encoding/hex"
	"errors"
	"runtime"
	"strings"
	"testing"
)

// hostile are bytes that Check refuses. canonical is what Canonicalize makes
// of them; empty: it refuses too.
var hostile = []struct {
	name      string
	hex       string
	kind      error
	text      string
	canonical string
}{
	{"nothing", "", ErrInvalid, "empty", ""},
	{"two values", "c0c0", ErrInvalid, "1 bytes follow", ""},
	{"c1 is no value", "c1", ErrInvalid, "begins no value", ""},
	{"c1 in an array", "92c0c1", ErrInvalid, `field "1"`, ""},
	{"a string that ends", "a3 6161", ErrInvalid, "end inside a value", ""},
	{"a string of 4 GiB", "dbffffffff 61", ErrInvalid, "runs past", ""},
	{"bytes of 4 GiB", "c6ffffffff 61", ErrInvalid, "runs past", ""},
	{"an array of 4 Gi", "ddffffffff c0", ErrInvalid, "runs past", ""},
	{"a map of 4 Gi", "dfffffffff a161c0", ErrInvalid, "runs past", ""},
	{"an extension of 4 GiB", "c9ffffffff05", ErrInvalid, "end inside", ""},
	{"a head that ends", "dc00", ErrInvalid, "end inside", ""},
	{"an int that ends", "d30000", ErrInvalid, "end inside", ""},
	{"a map without values", "81a161", ErrInvalid, `field "a"`, ""},
	{"a map without keys", "82a161c0", ErrInvalid, "end inside", ""},
	{"nil as a key", "81c0c0", ErrInvalid, "not a string", ""},
	{"bytes as a key", "81c40161c0", ErrInvalid, "not a string", ""},
	{"a map as a key", "8181c0c0c0", ErrInvalid, "not a string", ""},
	{"keys twice", "82a16101a16102", ErrInvalid, "occurs twice", ""},
	{"keys twice, far apart", "83a16101a16202a16103", ErrNotCanonical, "ascending", ""},
	{"keys descending", "82a16201a16102", ErrNotCanonical, "ascending", "82a16102a16201"},
	{"keys descending inside", "81a17882a16201a16102", ErrNotCanonical, `field "x`, "81a17882a16102a16201"},
	{"broken UTF-8", "a2c328", ErrInvalid, "UTF-8", ""},
	{"broken UTF-8 in a key", "81a1ffc0", ErrInvalid, "UTF-8", ""},
	{"an encoded surrogate", "a3eda080", ErrInvalid, "UTF-8", ""},
	{"uint8 for 127", "cc7f", ErrNotCanonical, "shortest", "7f"},
	{"uint16 for 255", "cd00ff", ErrNotCanonical, "shortest", "ccff"},
	{"uint32 for 65535", "ce0000ffff", ErrNotCanonical, "shortest", "cdffff"},
	{"uint64 for 0", "cf0000000000000000", ErrNotCanonical, "shortest", "00"},
	{"uint64 above int64", "cf8000000000000000", ErrInvalid, "above 9223372036854775807", ""},
	{"int8 for 5", "d005", ErrNotCanonical, "shortest", "05"},
	{"int8 for -32", "d0e0", ErrNotCanonical, "shortest", "e0"},
	{"int16 for 300", "d1012c", ErrNotCanonical, "shortest", "cd012c"},
	{"int16 for -128", "d1ff80", ErrNotCanonical, "shortest", "d080"},
	{"int32 for -1", "d2ffffffff", ErrNotCanonical, "shortest", "ff"},
	{"int64 for -2^31", "d3ffffffff80000000", ErrNotCanonical, "shortest", "d280000000"},
	{"int64 for 2^40", "d30000010000000000", ErrNotCanonical, "shortest", "cf0000010000000000"},
	{"float32", "ca3fc00000", ErrNotCanonical, "shortest", "cb3ff8000000000000"},
	{"-0", "cb8000000000000000", ErrNotCanonical, "-0", "cb0000000000000000"},
	{"another NaN", "cb7ff8000000000001", ErrNotCanonical, "NaN", "cb7ff8000000000000"},
	{"a negative NaN", "cbfff8000000000000", ErrNotCanonical, "NaN", "cb7ff8000000000000"},
	{"str8 for 1", "d90161", ErrNotCanonical, "shortest", "a161"},
	{"str16 for 1", "da000161", ErrNotCanonical, "shortest", "a161"},
	{"str32 for 1", "db0000000161", ErrNotCanonical, "shortest", "a161"},
	{"str8 as a key", "81d90161c0", ErrNotCanonical, "shortest", "81a161c0"},
	{"bin16 for 1", "c5000161", ErrNotCanonical, "shortest", "c40161"},
	{"bin32 for 1", "c60000000161", ErrNotCanonical, "shortest", "c40161"},
	{"array16 for 1", "dc0001c0", ErrNotCanonical, "shortest", "91c0"},
	{"array32 for 1", "dd00000001c0", ErrNotCanonical, "shortest", "91c0"},
	{"array16 for 15", "dc000f" + strings.Repeat("c0", 15), ErrNotCanonical, "shortest", "9f" + strings.Repeat("c0", 15)},
	{"array32 for 16", "dd00000010" + strings.Repeat("c0", 16), ErrNotCanonical, "shortest", "dc0010" + strings.Repeat("c0", 16)},
	{"bin16 for 255", "c500ff" + strings.Repeat("00", 255), ErrNotCanonical, "shortest", "c4ff" + strings.Repeat("00", 255)},
	{"str16 for 255", "da00ff" + strings.Repeat("61", 255), ErrNotCanonical, "shortest", "d9ff" + strings.Repeat("61", 255)},
	{"map16 for 1", "de0001a161c0", ErrNotCanonical, "shortest", "81a161c0"},
	{"map32 for 1", "df00000001a161c0", ErrNotCanonical, "shortest", "81a161c0"},
	{"timestamp 32", "d6ff00000001", ErrNotCanonical, "shortest", "c70cff000000000000000000000001"},
	{"timestamp 64", "d7ff0000000400000001", ErrNotCanonical, "shortest", "c70cff000000010000000000000001"},
	{"timestamp in a longer head", "c8000cff000000000000000000000001", ErrNotCanonical, "shortest", "c70cff000000000000000000000001"},
	{"timestamp with 10^9 ns", "c70cff3b9aca000000000000000001", ErrInvalid, "years 1 to 9999", ""},
	{"timestamp in year 10000", "c70cff000000000000003afff44180", ErrInvalid, "years 1 to 9999", ""},
	{"timestamp of 5 bytes", "c705ff0000000000", ErrInvalid, "extension -1", ""},
	{"decimal, reserved", "d40100", ErrInvalid, "extension 1 is reserved", ""},
	{"object ID, reserved", "c70c02000000000000000000000000", ErrInvalid, "extension 2 is reserved", ""},
	{"binary subtype, reserved", "c70203ff00", ErrInvalid, "extension 3 is reserved", ""},
	{"hybrid timestamp, reserved", "d7040000000000000000", ErrInvalid, "extension 4 is reserved", ""},
	{"an unknown extension", "81a161d40500", ErrInvalid, `field "a": msgpack extension 5 cannot`, ""},
	{"65 arrays", strings.Repeat("91", 64) + "90", ErrTooDeep, "deeper than 64", ""},
	{"16 MiB of nested arrays", "", ErrTooLarge, "limit is 1048576", ""},
	{"1 MiB of nested arrays", "", ErrTooDeep, "deeper than 64", ""},
	{"1 MiB of nested maps", "", ErrTooDeep, "deeper than 64", ""},
}

// unhex reads hex, or makes the cases that are too long to write down.
func unhex(t testing.TB, name, s string) []byte {
	switch name {
	case "16 MiB of nested arrays":
		return bytes.Repeat([]byte{0x91}, 16<<20)
	case "1 MiB of nested arrays":
		return bytes.Repeat([]byte{0x91}, 1<<20)
	case "1 MiB of nested maps":
		return bytes.Repeat([]byte{0x81, 0xa0}, 1<<19)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCheckRefuses(t *testing.T) {
	for _, c := range hostile {
		b := unhex(t, c.name, c.hex)
		err := Check(b, Limits{})
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: Check = %v, want %v with %q", c.name, err, c.kind, c.text)
		}
		got, err := Canonicalize(b, Limits{})
		switch {
		case c.canonical == "" && err == nil:
			t.Errorf("%s: Canonicalize = %x, want an error", c.name, got)
		case c.canonical != "" && (err != nil || hex.EncodeToString(got) != c.canonical):
			t.Errorf("%s: Canonicalize = %x, %v; want %s", c.name, got, err, c.canonical)
		}
	}
}

func TestCheckBody(t *testing.T) {
	for _, c := range []struct{ json, want string }{
		{`{}`, ``},
		{`{"a":{"_id":1,"$x":2},"":1,"A_":1,"a$":1}`, ``},
		{`[]`, `must be a map of fields, not an array`},
		{`5`, `must be a map of fields, not an int`},
		{`{"_id":"x"}`, `field "_id": names beginning with "_" are reserved`},
		{`{"A":1,"_x":1,"a":1}`, `field "_x": names beginning with "_" are reserved`},
		{`{"$set":{"a":1}}`, `field "$set": names beginning with "$" are operators`},
	} {
		err := CheckBody(raw(t, c.json), Limits{})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.json, err, c.want)
		}
	}
	if err := CheckBody(nil, Limits{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("an empty body: %v", err)
	}
}

func TestLimits(t *testing.T) {
	r := raw(t, `{"a":[[1,2,3]]}`)
	n := len(r)
	for _, c := range []struct {
		lim  Limits
		want error
	}{
		{Limits{}, nil},
		{Limits{MaxBytes: n}, nil},
		{Limits{MaxBytes: n - 1}, ErrTooLarge},
		{Limits{MaxDepth: 3}, nil},
		{Limits{MaxDepth: 2}, ErrTooDeep},
		{Limits{MaxDepth: 1}, ErrTooDeep},
	} {
		for name, err := range map[string]error{"Check": Check(r, c.lim), "CheckBody": CheckBody(r, c.lim)} {
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("%s with %+v: %v, want %v", name, c.lim, err, c.want)
			}
		}
	}
	// Depth holds for 64 maps as it does for arrays, and beyond the inline stack.
	deep := raw(t, strings.Repeat(`{"a":`, 64)+`1`+strings.Repeat(`}`, 64))
	if err := CheckBody(deep, Limits{}); err != nil {
		t.Errorf("64 maps: %v", err)
	}
	if _, err := FromJSON([]byte(strings.Repeat(`{"a":`, 65) + `1` + strings.Repeat(`}`, 65))); !errors.Is(err, ErrTooDeep) {
		t.Errorf("65 maps: %v", err)
	}
	// The limit holds for what a value becomes, too.
	if _, err := Canonicalize([]byte{0x91, 0xca, 0, 0, 0, 0}, Limits{MaxBytes: 6}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a float32 that grows: %v", err)
	}
}

func TestErrorPath(t *testing.T) {
	b, err := hex.DecodeString("82" + "a161" + "93" + "01" + "81a162" + "92c0c1" + "02" + "a16301")
	if err != nil {
		t.Fatal(err)
	}
	err = Check(b, Limits{})
	var e *Error
	if !errors.As(err, &e) || e.Path != "a.1.b.1" {
		t.Errorf("path in %v", err)
	}
}

func TestCheckDoesNotAllocate(t *testing.T) {
	for name, b := range map[string]Raw{"a kilobyte": kilobyte(t), "a city": raw(t, cityJSON),
		"16 levels": raw(t, strings.Repeat(`[`, 16)+strings.Repeat(`]`, 16))} {
		if n := testing.AllocsPerRun(100, func() { _ = Check(b, Limits{}) }); n != 0 {
			t.Errorf("Check of %s allocates %v times", name, n)
		}
	}
	b := kilobyte(t)
	for name, f := range map[string]func(){
		"Get":     func() { Get(b, "address.city") },
		"Iter":    func() { walk(b) },
		"Compare": func() { Compare(b, b) },
		"Depth":   func() { Depth(b) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func walk(r Raw) (n int) {
	for it := r.Iter(); it.Next(); {
		n += len(it.Key()) + len(it.Value())
	}
	return n
}

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// allowance is what n hostile bytes may make this package allocate.
func allowance(n int) uint64 { return 32*uint64(n) + 64<<10 }

func TestHostileBytesAllocateLittle(t *testing.T) {
	bombs := map[string][]byte{}
	for _, c := range hostile {
		bombs[c.name] = unhex(t, c.name, c.hex)
	}
	bombs["a map of 170,000 descending keys"] = descendingMap(170_000)
	bombs["a million nulls"] = append(AppendArrayHead(nil, 1<<20-8), bytes.Repeat([]byte{0xc0}, 1<<20-8)...)
	bombs["half a million empty names"] = append(AppendMapHead(nil, 1<<19-4), bytes.Repeat([]byte{0xa0, 0xc0}, 1<<19-4)...)
	nested := []byte{}
	for range 1000 { // each array claims all bytes behind it
		nested = append(nested, 0xdd, 0, 0, 0xff, 0xff)
	}
	bombs["arrays that claim the same bytes"] = append(nested, make([]byte, 0xffff)...)
	for name, b := range bombs {
		if n := allocated(func() { _ = Raw(b).Decode(new(any)) }); n > 80*uint64(len(b))+64<<10 {
			t.Errorf("Decode of %s (%d bytes) allocates %d bytes", name, len(b), n)
		}
		if n := allocated(func() { _ = Check(b, Limits{}) }); n > 64<<10 {
			t.Errorf("Check of %s allocates %d bytes", name, n)
		}
		if n := allocated(func() { _, _ = Canonicalize(b, Limits{}) }); n > allowance(len(b)) {
			t.Errorf("Canonicalize of %s (%d bytes) allocates %d bytes", name, len(b), n)
		}
		if n := allocated(func() { _, _, _ = SplitMeta(b) }); n > allowance(len(b)) {
			t.Errorf("SplitMeta of %s allocates %d bytes", name, n)
		}
	}
}

// descendingMap has n keys of 4 digits of base 64, the last first.
func descendingMap(n int) []byte {
	b := AppendMapHead(nil, n)
	for i := n; i > 0; i-- {
		key := []byte{byte('0' + i>>18&63), byte('0' + i>>12&63), byte('0' + i>>6&63), byte('0' + i&63)}
		b = append(AppendText(b, key), 0xc0)
	}
	return b
}

func TestCanonicalizeSortsManyFields(t *testing.T) {
	b := descendingMap(150_000)
	got, err := Canonicalize(b, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckBody(got, Limits{}); err != nil || got.Len() != 150_000 {
		t.Fatalf("%v, %d fields", err, got.Len())
	}
	if twice, err := Canonicalize(append(AppendMapHead(nil, 3), 0xa1, 'b', 1, 0xa1, 'a', 1, 0xa1, 'b', 2), Limits{}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), `"b" occurs twice`) {
		t.Errorf("a name twice in unsorted order: %s, %v", twice, err)
	}
}
