package doc

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/txn/hlc"
)

func TestSplitMeta(t *testing.T) {
	for _, c := range []struct{ in, id, body, err string }{
		{`{}`, ``, `{}`, ``},
		{`{"a":1}`, ``, `{"a":1}`, ``},
		{`{"_id":"x"}`, `x`, `{}`, ``},
		{`{"_id":"x","A":1,"a":2}`, `x`, `{"A":1,"a":2}`, ``},
		{`{"_id":"x","_version":3,"_createdAt":"?","_updatedAt":null,"A":1,"a":2,"":3}`, `x`, `{"":3,"A":1,"a":2}`, ``},
		{`{"_version":{"deep":[1]},"b":{"_id":1,"_x":2,"$y":3}}`, ``, `{"b":{"$y":3,"_id":1,"_x":2}}`, ``},
		{`{"_id":"","a":1}`, ``, `{"a":1}`, ``},
		{`{"_id":5}`, ``, ``, `_id must be a string, not an int`},
		{`{"_id":null}`, ``, ``, `_id must be a string, not null`},
		{`{"_id":"` + strings.Repeat("x", 513) + `"}`, ``, ``, `513 bytes, the limit is 512`},
		{`{"_x":1}`, ``, ``, `field "_x": names beginning with "_" are reserved`},
		{`{"_":1}`, ``, ``, `field "_": names beginning with "_" are reserved`},
		{`{"_iD":1,"_id":"x"}`, ``, ``, `field "_iD"`},
		{`{"$set":1,"_id":"x"}`, ``, ``, `names beginning with "$" are operators`},
		{`{"$":1}`, ``, ``, `names beginning with "$" are operators`},
		{`[1]`, ``, ``, `must be a map of fields, not an array`},
		{`"x"`, ``, ``, `must be a map of fields, not a string`},
	} {
		id, body, err := SplitMeta(raw(t, c.in))
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%.60s: %v, want %s", c.in, err, c.err)
			}
		case err != nil || id != c.id || body.String() != c.body:
			t.Errorf("%.60s: %q, %s, %v", c.in, id, body, err)
		default:
			if err := CheckBody(body, Limits{}); err != nil {
				t.Errorf("%.60s: the body is not one: %v", c.in, err)
			}
		}
	}
	if _, _, err := SplitMeta(raw(t, `{"_id":7}`)); !errors.Is(err, ErrBadID) {
		t.Errorf("an int as _id: %v", err)
	}
}

func TestCheckID(t *testing.T) {
	for id, ok := range map[string]bool{"": false, "a": true, "é/😀 \x00": true, strings.Repeat("x", 512): true,
		strings.Repeat("x", 513): false, "\xff": false} {
		if err := CheckID(id); (err == nil) != ok || err != nil && !errors.Is(err, ErrBadID) {
			t.Errorf("CheckID(%.20q) = %v", id, err)
		}
	}
}

type person struct {
	ID      string        `idb:"_id"`
	Version int64         `idb:"_version"`
	Created time.Time     `idb:"_createdAt"`
	Updated hlc.Timestamp `idb:"_updatedAt"`
	Name    string        `idb:"name"`
}

func TestDecodeDocument(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	m := Meta{ID: "p1", Version: 9, Created: hlc.FromTime(at) + 5, Updated: hlc.FromTime(at) + 1<<16 + 7}
	body := raw(t, `{"name":"Ada","Age":36}`)

	var p person
	if err := DecodeDocument(m, body, &p); err != nil {
		t.Fatal(err)
	}
	if want := (person{"p1", 9, at, m.Updated, "Ada"}); p != want {
		t.Errorf("got %+v, want %+v", p, want)
	}

	// Other shapes of the same.
	var q struct {
		ID      *string        `json:"_id"`
		Version uint32         `json:"_version"`
		Created string         `json:"_createdAt"`
		Updated *hlc.Timestamp `json:"_updatedAt"`
	}
	if err := DecodeDocument(m, body, &q); err != nil {
		t.Fatal(err)
	}
	if *q.ID != "p1" || q.Version != 9 || q.Created != "2026-01-02T03:04:05.678Z" || *q.Updated != m.Updated {
		t.Errorf("got %+v", q)
	}

	want := D{"_id": "p1", "_version": int64(9), "_createdAt": at, "_updatedAt": at.Add(time.Millisecond), "name": "Ada", "Age": int64(36)}
	var d D
	if err := DecodeDocument(m, body, &d); err != nil || !reflect.DeepEqual(d, want) {
		t.Errorf("got %v, %v; want %v", d, err, want)
	}
	var x any
	if err := DecodeDocument(m, body, &x); err != nil || !reflect.DeepEqual(x, any(want)) {
		t.Errorf("got %v, %v; want %v", x, err, want)
	}
	var r Raw
	if err := DecodeDocument(m, body, &r); err != nil || Check(r, Limits{}) != nil {
		t.Errorf("got %s, %v", r, err)
	}
	if want := `{"Age":36,"_createdAt":{"$date":"2026-01-02T03:04:05.678Z"},"_id":"p1","_updatedAt":{"$date":"2026-01-02T03:04:05.679Z"},"_version":9,"name":"Ada"}`; r.String() != want {
		t.Errorf("got %s, want %s", r, want)
	}

	var narrow struct {
		Version int8 `idb:"_version"`
	}
	if err := DecodeDocument(Meta{ID: "p1", Version: 300}, body, &narrow); !errors.Is(err, ErrType) || !strings.Contains(err.Error(), "_version") {
		t.Errorf("version 300 into an int8: %v", err)
	}
	if err := DecodeDocument(m, body, p); !errors.Is(err, ErrType) {
		t.Errorf("decoding into no pointer: %v", err)
	}

	// What was read can be written back.
	id, back, err := SplitMeta(mustMarshal(t, p))
	if err != nil || id != "p1" || back.String() != `{"name":"Ada"}` {
		t.Errorf("written back: %q, %s, %v", id, back, err)
	}
}

func mustMarshal(t testing.TB, v any) Raw {
	t.Helper()
	r, err := Marshal(v)
	if err != nil {
		t.Fatalf("Marshal(%#v): %v", v, err)
	}
	if err := Check(r, Limits{}); err != nil {
		t.Fatalf("Marshal(%#v) is not canonical: %v", v, err)
	}
	return r
}
