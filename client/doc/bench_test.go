package doc

import (
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/txn/hlc"
)

const cityJSON = `{"_id":"AD/00003","name":"Sant Julià de Lòria","country":"AD","admin1":"06","region":"Sant Julià de Loria","admin2":null,"location":{"type":"Point","coordinates":[1.49129,42.46372]}}`

// kilobyte is a document of 12 fields and about 1 KiB.
func kilobyte(t testing.TB) Raw {
	d := D{"active": true, "balance": 1234.5, "created": time.Unix(1.7e9, 0), "visits": 70_000, "age": 33,
		"name": "Ada Lovelace", "email": "ada@example.com", "tags": []any{"a", "b", "c"},
		"address": D{"city": "London", "zip": "E1"}, "note": nil, "score": -5}
	d["text"] = strings.Repeat("lorem ipsum dolor sit amet ", 29)
	r, err := Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

type benchDoc struct {
	ID      string    `idb:"_id"`
	Active  bool      `idb:"active"`
	Balance float64   `idb:"balance"`
	Created time.Time `idb:"created"`
	Visits  int       `idb:"visits"`
	Age     int       `idb:"age"`
	Name    string    `idb:"name"`
	Email   string    `idb:"email"`
	Tags    []string  `idb:"tags"`
	Address struct {
		City string `idb:"city"`
		Zip  string `idb:"zip"`
	} `idb:"address"`
	Note  *string `idb:"note"`
	Score int     `idb:"score"`
	Text  string  `idb:"text"`
}

func BenchmarkCheck(b *testing.B) {
	r := kilobyte(b)
	b.SetBytes(int64(len(r)))
	b.ReportAllocs()
	for b.Loop() {
		if err := CheckBody(r, Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckUnicode(b *testing.B) {
	r := raw(b, `{"text":"`+strings.Repeat("Sant Julià de Lòria ", 48)+`"}`)
	b.SetBytes(int64(len(r)))
	b.ReportAllocs()
	for b.Loop() {
		if err := CheckBody(r, Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFromJSONCity(b *testing.B) {
	src := []byte(cityJSON)
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := FromJSON(src); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkImportCity(b *testing.B) { // what the importer does with a line
	src := []byte(cityJSON)
	var buf Raw
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = AppendFromJSON(buf[:0], src); err != nil {
			b.Fatal(err)
		}
		if _, _, err := SplitMeta(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendJSONCity(b *testing.B) {
	r := raw(b, cityJSON)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendJSON(buf[:0], r)
	}
	b.SetBytes(int64(len(buf)))
}

func BenchmarkMarshalMap(b *testing.B) {
	var d D
	if err := kilobyte(b).Decode(&d); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Marshal(d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMarshalStruct(b *testing.B) {
	var d benchDoc
	if err := kilobyte(b).Decode(&d); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Marshal(&d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeMap(b *testing.B) {
	r := kilobyte(b)
	b.ReportAllocs()
	for b.Loop() {
		var d D
		if err := r.Decode(&d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeDocumentStruct(b *testing.B) {
	r := kilobyte(b)
	m := Meta{ID: "u1", Version: 7, Created: hlc.FromMillis(1.7e12), Updated: hlc.FromMillis(1.7e12)}
	b.ReportAllocs()
	for b.Loop() {
		var d benchDoc
		if err := DecodeDocument(m, r, &d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	r := kilobyte(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := Get(r, "tags.1"); !ok {
			b.Fatal("not found")
		}
	}
}

func BenchmarkCompare(b *testing.B) {
	x, y := kilobyte(b), kilobyte(b)
	b.ReportAllocs()
	for b.Loop() {
		if Compare(x, y) != 0 {
			b.Fatal("not equal")
		}
	}
}

func BenchmarkAppendKey(b *testing.B) {
	r := kilobyte(b)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendKey(buf[:0], r)
	}
}

func BenchmarkCanonicalize(b *testing.B) {
	// The fields of kilobyte in reverse.
	r := kilobyte(b)
	var fields [][]byte
	for it := r.Iter(); it.Next(); {
		fields = append(fields, r[it.Start():it.End()])
	}
	shuffled := AppendMapHead(nil, len(fields))
	for i := range fields {
		shuffled = append(shuffled, fields[len(fields)-1-i]...)
	}
	b.ReportAllocs()
	for b.Loop() {
		got, err := Canonicalize(shuffled, Limits{})
		if err != nil || !got.Equal(r) {
			b.Fatal(err)
		}
	}
}
