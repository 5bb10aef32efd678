package doc

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/txn/hlc"
)

func TestFromJSONRefuses(t *testing.T) {
	for _, c := range []struct{ json, want string }{
		{``, `byte 0: it is empty`},
		{`   `, `it ends where a value is expected`},
		{`{`, `it ends where a field name in quotes is expected`},
		{`{"a"`, `it ends where ":" is expected`},
		{`{"a":`, `field "a": bad JSON at byte 5: it ends where a value is expected`},
		{`{"a":1`, `it ends where "," or "}" is expected`},
		{`{"a":1,}`, `byte 7: found '}' where a field name`},
		{`{"a":1 "b":2}`, `found '"' where "," or "}"`},
		{`{a:1}`, `found 'a' where a field name in quotes`},
		{`{1:1}`, `found '1' where a field name in quotes`},
		{`[1,]`, `found ']' where a value`},
		{`[1`, `it ends where "," or "]"`},
		{`[1}`, `found '}' where "," or "]"`},
		{`[,1]`, `found ',' where a value`},
		{`{"a":1]`, `found ']' where "," or "}"`},
		{`]`, `found ']' where a value`},
		{`1 2`, `byte 2: something follows the value`},
		{`{}{}`, `something follows`},
		{`nul`, `did you mean null?`},
		{`True`, `found 'T' where a value`},
		{`tru e`, `did you mean true?`},
		{`"abc`, `a string has no end`},
		{`"abc\`, `a string has no end`},
		{`"a\x"`, `unknown escape`},
		{"\"a\nb\"", `control character`},
		{`"\u12g4"`, `four hexadecimal digits`},
		{`"\u12`, `four hexadecimal digits`},
		{`"\ud800"`, `half of a surrogate pair`},
		{`"\ud800x"`, `half of a surrogate pair`},
		{`"\ud800\u0041"`, `half of a surrogate pair`},
		{`"\udc00\ud800"`, `half of a surrogate pair`},
		{"\"\xff\"", `not valid UTF-8`},
		{"\"\\n\xff\"", `not valid UTF-8`},
		{`01`, `not a number`},
		{`-`, `not a number`},
		{`-a`, `not a number`},
		{`1.`, `digits behind its point`},
		{`.5`, `found '.' where a value`},
		{`+5`, `found '+' where a value`},
		{`1e`, `digits in its exponent`},
		{`1e+`, `digits in its exponent`},
		{`1e999`, `beyond a 64-bit float`},
		{`9223372036854775808`, `beyond 64 bits`},
		{`-9223372036854775809`, `beyond 64 bits`},
		{`99999999999999999999999`, `beyond 64 bits`},
		{`0x10`, `something follows the value`},
		{`NaN`, `found 'N' where a value`},
		{`{"a":1,"a":2}`, `"a" occurs twice`},
		{`{"b":1,"a":1,"b":2}`, `"b" occurs twice`},
		{`{"a":{"$date":"yesterday"}}`, `$date wants an RFC 3339 time`},
		{`{"$date":null}`, `$date wants an RFC 3339 time`},
		{`{"$date":1e3}`, `$date wants an RFC 3339 time`},
		{`{"$date":"0000-01-01T00:00:00Z"}`, `years 1 to 9999`},
		{`{"$date":999999999999999}`, `years 1 to 9999`},
		{`{"$date":1,"x":2}`, `$date must be alone in its object (wrap the object in $literal`},
		{`{"x":1,"$bytes":"AA=="}`, `$bytes must be alone`},
		{`{"$bytes":"AA"}`, `standard base64`},
		{`{"$bytes":"AB=="}`, `standard base64`}, // bits behind the end
		{`{"$bytes":5}`, `standard base64`},
		{`{"$float":"nan"}`, `"NaN", "Infinity" or "-Infinity"`},
		{`{"$float":1}`, `"NaN", "Infinity" or "-Infinity"`},
		{`{"$literal":5}`, `$literal wants an object`},
		{`{"$literal":[{"$date":1}]}`, `$literal wants an object`},
		{`{"$literal":{},"a":1}`, `$literal must be alone`},
		{`{"a":[1,{"b":tru}]}`, `field "a.1.b": bad JSON at byte 13`},
		{strings.Repeat(`[`, 100_000), `nested deeper than`},
		{strings.Repeat(`{"a":`, 100_000), `nested deeper than`},
	} {
		got, err := FromJSON([]byte(c.json))
		if err == nil || !strings.Contains(err.Error(), c.want) || len(got) != 0 {
			t.Errorf("%.80s\n  got  %s, %v\n  want %s", c.json, got, err, c.want)
		}
		if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooDeep) {
			t.Errorf("%.80s: the error is of no kind: %v", c.json, err)
		}
	}
}

// A value of full depth can be printed and read although the wrappers of
// extended JSON nest deeper.
func TestJSONDepth(t *testing.T) {
	open, end := strings.Repeat(`[`, 64), strings.Repeat(`]`, 64)
	for _, in := range []string{open + `{"$date":"2026-01-02T03:04:05.678Z"}` + end, open + `{"$bytes":"AA=="}` + end} {
		if got := raw(t, in).String(); got != in {
			t.Errorf("got %s, want %s", got, in)
		}
	}
	r := Raw(AppendInt(nil, 1))
	for range 64 {
		r = append(AppendString(AppendMapHead(nil, 1), "$date"), r...)
	}
	if got := raw(t, r.String()); !got.Equal(r) {
		t.Errorf("64 maps named $date come back as %s", got)
	}
	if _, err := FromJSON([]byte(`[` + open + end + `]`)); !errors.Is(err, ErrTooDeep) {
		t.Errorf("65 arrays: %v", err)
	}
}

func TestAppendJSONOfBrokenBytes(t *testing.T) {
	for _, b := range []Raw{nil, {0xc1}, {0x81}, {0x81, 0xa1}, {0x81, 0xa1, 'a'}, {0x92, 1}, {0xa1, 0xff}, {0x81, 1, 1}, {0xd4, 5, 5}} {
		if got := AppendJSON(nil, b); !json.Valid(got) {
			t.Errorf("% x prints as %s", []byte(b), got)
		}
	}
}

func TestAppendFromJSON(t *testing.T) {
	dst := []byte("before")
	got, err := AppendFromJSON(dst, []byte(`{"b":[1],"a":{"z":1,"y":2}}`))
	if err != nil || string(got[:6]) != "before" || Raw(got[6:]).String() != `{"a":{"y":2,"z":1},"b":[1]}` {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err = AppendFromJSON(dst, []byte(`{"b":[1],"a":`)); err == nil || string(got) != "before" {
		t.Errorf("after an error: %q, %v", got, err)
	}
}

func TestRawInEncodingJSON(t *testing.T) {
	type holder struct {
		A Raw `json:"a"`
		B Raw `json:"b"`
	}
	var h holder
	in := `{"a":{"x":[1,{"$date":"2026-01-02T03:04:05.678Z"}]},"b":null}`
	if err := json.Unmarshal([]byte(in), &h); err != nil {
		t.Fatal(err)
	}
	if out, err := json.Marshal(h); err != nil || string(out) != in {
		t.Errorf("got %s, %v", out, err)
	}
}

// Every city comes back from the canonical form as encoding/json reads it, and
// the canonical form is the same from the JSON that it prints.
func TestCities(t *testing.T) {
	f, err := os.Open("../../testdata/cities.ndjson.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(z)
	n := 0
	for lines.Scan() {
		n++
		if n%20 != 1 { // each 20th: the rest is alike, and time is short
			continue
		}
		r, err := FromJSON(lines.Bytes())
		if err != nil {
			t.Fatalf("line %d: %v", n, err)
		}
		if err := Check(r, Limits{}); err != nil {
			t.Fatalf("line %d: %v", n, err)
		}
		var want, got any
		if err := json.Unmarshal(lines.Bytes(), &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(r.JSON(), &got); err != nil {
			t.Fatal(err)
		}
		w, _ := json.Marshal(want)
		g, _ := json.Marshal(got)
		if !bytes.Equal(w, g) {
			t.Fatalf("line %d: %s became %s", n, w, g)
		}
		if again := raw(t, r.String()); !again.Equal(r) {
			t.Fatalf("line %d: %s became %s", n, r, again)
		}
		id, body, err := SplitMeta(r)
		if err != nil || id == "" || CheckBody(body, Limits{}) != nil {
			t.Fatalf("line %d: SplitMeta = %q, %s, %v", n, id, body, err)
		}
		if whole := AppendDocument(nil, Meta{ID: id}, body); !whole.Equal(r) {
			t.Fatalf("line %d: taken apart and joined: %s", n, whole)
		}
	}
	if n != 171_075 {
		t.Errorf("%d cities", n)
	}
}

func TestDocumentJSON(t *testing.T) {
	at := hlc.FromTime(time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC))
	body := raw(t, `{"Z":1,"a":{"$date":"2026-01-02T03:04:05.678Z"},"b":[1.0,2]}`)
	for _, c := range []struct {
		meta Meta
		body Raw
		want string
	}{
		{Meta{"u/1", 3, at, at + 1<<16}, body, `{"_id":"u/1","_version":3,"_createdAt":"2026-01-02T03:04:05.678Z","_updatedAt":"2026-01-02T03:04:05.679Z","Z":1,"a":{"$date":"2026-01-02T03:04:05.678Z"},"b":[1.0,2]}`},
		{Meta{ID: "\"", Version: 1}, EmptyMap(), `{"_id":"\"","_version":1}`},
		{Meta{ID: "x"}, nil, `{"_id":"x"}`},
		{Meta{}, raw(t, `{"a":1}`), `{"a":1}`},
		{Meta{}, EmptyMap(), `{}`},
	} {
		got := string(AppendDocumentJSON(nil, c.meta, c.body))
		if got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		id, back, err := SplitMeta(raw(t, got))
		if want := c.body; err != nil || id != c.meta.ID || len(want) > 0 && !back.Equal(want) {
			t.Errorf("%s is taken apart into %q, %s, %v", got, id, back, err)
		}
	}
}
