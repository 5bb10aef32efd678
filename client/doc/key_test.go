package doc

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

// What AppendKey never makes is no key, even where its meaning could be guessed.
func TestDecodeKeyRefuses(t *testing.T) {
	for name, s := range map[string]string{
		"nothing":                             "",
		"a tag that is none":                  "0b",
		"a lone end":                          "00",
		"a lone field":                        "0161000102",
		"a number that ends":                  "03bff00000",
		"-0":                                  "037fffffffffffffff",
		"a NaN with a sign":                   "030007ffffffffffff",
		"a NaN":                               "03fff8000000000000",
		"2^53 without its residue":            "03c340000000000000",
		"2^53 with the next float's residue":  "03c3400000000000000002",
		"-2^63 with the next float's residue": "033c1fffffffffffff0400",
		"2^63 with a residue":                 "03c3e00000000000000001",
		"infinity with a residue":             "03fff00000000000000001",
		"a string without an end":             "0461",
		"a string that ends in 00":            "046100",
		"a string with a wrong escape":        "0461000200",
		"a string that is not UTF-8":          "04ff0001",
		"a name that is not UTF-8":            "0501ff00010200",
		"an array without an end":             "0602",
		"a map without an end":                "050161000102",
		"a name without a value":              "050161000100",
		"a value without a name":              "050200",
		"names descending":                    "0501620001020161000102" + "00",
		"a name twice":                        "0501610001020161000102" + "00",
		"a timestamp that ends":               "0a80000000000000000000",
		"a timestamp in year 10000":           "0a8000003afff4418000000000",
		"a timestamp of 10^9 ns":              "0a80000000000000003b9aca00",
	} {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(name, err)
		}
		if r, rest, err := DecodeKey(b); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %s, % x, %v", name, r, rest, err)
		}
	}
	deep := strings.Repeat("\x06", 1<<16)
	if n := allocated(func() { _, _, _ = DecodeKey([]byte(deep)) }); n > 400*uint64(len(deep)) {
		t.Errorf("a key of %d nested arrays allocates %d bytes", len(deep), n)
	}
}

func TestKeysFollowEachOther(t *testing.T) {
	want := []Raw{raw(t, `"a"`), raw(t, `[1,{"b":null}]`), raw(t, `-7`), raw(t, `""`)}
	var key []byte
	for _, r := range want {
		key = AppendKey(key, r)
	}
	for _, r := range want {
		got, rest, err := DecodeKey(key)
		if err != nil || !got.Equal(r) {
			t.Fatalf("%s, %v; want %s", got, err, r)
		}
		key = rest
	}
	if len(key) != 0 {
		t.Errorf("% x is left", key)
	}
}
