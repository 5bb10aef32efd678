package doc

import (
	"bytes"
	"encoding/json"
	"errors"
	"runtime/metrics"
	"testing"

	"github.com/impossibledb/idb/txn/hlc"
)

func seedBytes(f *testing.F, add func(b []byte)) {
	for _, c := range hostile {
		if b := unhex(f, c.name, c.hex); len(b) < 1<<10 {
			add(b)
		}
	}
	for _, line := range ordered(f) {
		add(line[0])
	}
	add(kilobyte(f))
	add(raw(f, cityJSON))
}

// FuzzBytes gives any bytes to everything that reads them: what is a value has
// one canonical form that survives each way out and back, what is not is
// refused, and neither costs much.
func FuzzBytes(f *testing.F) {
	seedBytes(f, func(b []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, b []byte) {
		kept := bytes.Clone(b)
		err := Check(b, Limits{})
		var r Raw
		var canonicalErr error
		before := heapAllocs()
		r, canonicalErr = Canonicalize(b, Limits{})
		if n := heapAllocs() - before; n > allowance(len(b))+1<<20 {
			// (The fuzzing engine itself allocates beside.)
			t.Fatalf("Canonicalize of %d bytes allocates %d", len(b), n)
		}
		if !bytes.Equal(b, kept) {
			t.Fatal("the argument was changed")
		}
		useUnchecked(b)
		switch {
		case err == nil && (canonicalErr != nil || !bytes.Equal(r, b)):
			t.Fatalf("Check accepts what Canonicalize turns into % x, %v", []byte(r), canonicalErr)
		case err != nil && canonicalErr == nil && !errors.Is(err, ErrNotCanonical):
			t.Fatalf("Canonicalize accepts what Check refuses: %v", err)
		case canonicalErr != nil:
			var e *Error
			if !errors.As(canonicalErr, &e) || e.Kind == nil || e.Text == "" {
				t.Fatalf("an error without a kind: %#v", canonicalErr)
			}
			return
		}
		roundTrip(t, r)
	})
}

// heapAllocs is what was allocated so far. Unlike allocated it stops nobody,
// and lags by what fits into the allocator's caches.
func heapAllocs() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// useUnchecked calls what expects checked bytes; it must return.
func useUnchecked(b Raw) {
	walk(b)
	Depth(b)
	Size(b)
	Compare(b, b[len(b)/2:])
	AppendKey(nil, b)
	Get(b, "a.0.b")
	Get(b, "0")
	_ = b.JSON()
	_ = b.Decode(new(any))
	_ = b.Decode(new(D))
	_ = b.Decode(new(benchDoc))
	_, _, _ = SplitMeta(b)
	m := Meta{ID: "x", Version: 1, Created: 1 << 30, Updated: 1 << 31}
	AppendDocument(nil, m, b)
	AppendDocumentJSON(nil, m, b)
	_ = DecodeDocument(m, b, new(benchDoc))
}

// roundTrip sends a canonical value out and back in every form.
func roundTrip(t *testing.T, r Raw) {
	if err := Check(r, Limits{}); err != nil {
		t.Fatalf("not canonical: %v", err)
	}
	if again, err := Canonicalize(r, Limits{}); err != nil || !again.Equal(r) {
		t.Fatalf("not a fixed point: %v", err)
	}
	if Compare(r, r) != 0 || Size(r) != len(r) || Depth(r) > DefaultMaxDepth {
		t.Fatalf("it differs from itself: size %d of %d, depth %d", Size(r), len(r), Depth(r))
	}

	text := r.JSON()
	if !json.Valid(text) {
		t.Fatalf("not JSON: %s", text)
	}
	if back, err := FromJSON(text); err != nil || !back.Equal(r) {
		t.Fatalf("% x printed as %s reads as % x, %v", []byte(r), text, []byte(back), err)
	}

	var x any
	if err := r.Decode(&x); err != nil {
		t.Fatalf("Decode: %v", err)
	}
	if back, err := Marshal(x); err != nil || !back.Equal(r) {
		t.Fatalf("% x decoded and marshalled is % x, %v", []byte(r), []byte(back), err)
	}

	key := AppendKey(nil, r)
	back, rest, err := DecodeKey(append(key, 0x05))
	if err != nil || len(rest) != 1 || Compare(back, r) != 0 || Check(back, Limits{MaxBytes: maxBuild}) != nil {
		t.Fatalf("%s from its key is %s, %v", r, back, err)
	}
	if !bytes.Equal(AppendKey(nil, back), key) {
		t.Fatalf("%s has another key after a round trip", r)
	}

	if CheckBody(r, Limits{}) == nil {
		m := Meta{ID: "é\"x", Version: 7, Created: hlc.FromMillis(1e12), Updated: hlc.FromMillis(2e12)}
		whole := AppendDocument(nil, m, r)
		if err := Check(whole, Limits{MaxBytes: maxBuild}); err != nil {
			t.Fatalf("the whole document is not canonical: %v", err)
		}
		asJSON, err := FromJSON(AppendDocumentJSON(nil, m, r))
		if err != nil {
			t.Fatalf("the whole document is no JSON: %v", err)
		}
		for _, whole := range []Raw{whole, asJSON} {
			if id, body, err := SplitMeta(whole); err != nil || id != m.ID || !body.Equal(r) {
				t.Fatalf("%s is taken apart into %q, %s, %v", whole, id, body, err)
			}
		}
	}
}

// FuzzOrder compares two values, and two pairs of them, directly and by key.
func FuzzOrder(f *testing.F) {
	var seeds [][]byte
	for _, line := range ordered(f) {
		for _, r := range line {
			seeds = append(seeds, r)
		}
	}
	for i := range seeds {
		f.Add(seeds[i], seeds[(i+1)%len(seeds)])
	}
	f.Fuzz(func(t *testing.T, x, y []byte) {
		a, errA := Canonicalize(x, Limits{})
		b, errB := Canonicalize(y, Limits{})
		if errA != nil || errB != nil {
			return
		}
		c := sign(Compare(a, b))
		if back := sign(Compare(b, a)); back != -c {
			t.Fatalf("%s against %s is %d, the other way round %d", a, b, c, back)
		}
		ka, kb := AppendKey(nil, a), AppendKey(nil, b)
		if k := bytes.Compare(ka, kb); k != c {
			t.Fatalf("%s against %s is %d, by key %d", a, b, c, k)
		}
		if c != 0 && (bytes.HasPrefix(ka, kb) || bytes.HasPrefix(kb, ka)) {
			t.Fatalf("the key of one of %s and %s is a prefix of the other's", a, b)
		}
		if c == 0 && !SameClass(a, b) {
			t.Fatalf("%s equals %s of another class", a, b)
		}
		// Inside an array, and inverted for descending order.
		list := func(a, b Raw) Raw { return append(append(AppendArrayHead(nil, 2), a...), b...) }
		if Depth(a) < DefaultMaxDepth && Depth(b) < DefaultMaxDepth {
			if got := sign(Compare(list(a, b), list(b, a))); got != c {
				t.Fatalf("[%s, %s] against the reverse is %d, want %d", a, b, got, c)
			}
		}
		for _, k := range [][]byte{ka, kb} {
			for i := range k {
				k[i] = ^k[i]
			}
		}
		if k := bytes.Compare(ka, kb); k != -c {
			t.Fatalf("%s against %s by inverted keys is %d, want %d", a, b, k, -c)
		}
	})
}

// FuzzFromJSON: what is accepted is JSON and means the same printed again;
// what encoding/json refuses is refused.
func FuzzFromJSON(f *testing.F) {
	for _, s := range []string{cityJSON, `{"$date":"2026-01-02T03:04:05.678Z"}`, `{"$literal":{"$literal":{"$date":1}}}`, `[1e5,-0.0,"\ud83d\ude00\u0000"]`,
		`{"$bytes":"AQI="}`, `{"$float":"NaN"}`, `{"b":{"z":1,"y":[]},"a":{}}`, ` { "a" : [ 1 , 2 ] } `, `{"a":1,"a":2}`, `9223372036854775807`, `"\/"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := FromJSON(b)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Kind == nil {
				t.Fatalf("an error without a kind: %#v", err)
			}
			return
		}
		if !json.Valid(b) {
			t.Fatalf("%q is no JSON and reads as %s", b, r)
		}
		if len(r) <= DefaultMaxBytes {
			roundTrip(t, r)
		}
	})
}

// FuzzDecodeKey: what is accepted is exactly what AppendKey makes.
func FuzzDecodeKey(f *testing.F) {
	for _, line := range ordered(f) {
		f.Add(AppendKey(nil, line[0]))
	}
	f.Fuzz(func(t *testing.T, key []byte) {
		r, rest, err := DecodeKey(key)
		if err != nil {
			return
		}
		if err := Check(r, Limits{MaxBytes: maxBuild, MaxDepth: len(key) + 1}); err != nil {
			t.Fatalf("% x decodes into something not canonical: %v", key, err)
		}
		if again := AppendKey(nil, r); !bytes.Equal(again, key[:len(key)-len(rest)]) {
			t.Fatalf("% x decodes into %s, whose key is % x", key[:len(key)-len(rest)], r, again)
		}
	})
}
