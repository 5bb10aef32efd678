package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"
)

func nested(depth int) []byte {
	return append(bytes.Repeat([]byte{0x91}, depth), 0xc0)
}

func TestValidate(t *testing.T) {
	deepest := MaxDepth + envelopeDepth - 1
	for _, tc := range []struct {
		name string
		body []byte
		code Code // 0: accepted
		text string
	}{
		{"nothing", nil, CodeBadRequest, "ends at byte 0"},
		{"nil", []byte{0xc0}, 0, ""},
		{"an empty array", []byte{0x90}, 0, ""},
		{"every kind of value", []byte{
			0xdc, 0, 33, 0x7f, 0xff, 0x81, 0xa1, 'k', 0x91, 0x90, 0xa0, 0xc0, 0xc2, 0xc3,
			0xc4, 1, 9, 0xc5, 0, 1, 9, 0xc6, 0, 0, 0, 1, 9,
			0xc7, 1, 5, 9, 0xc8, 0, 1, 5, 9, 0xc9, 0, 0, 0, 1, 5, 9,
			0xca, 1, 2, 3, 4, 0xcb, 1, 2, 3, 4, 5, 6, 7, 8,
			0xcc, 1, 0xcd, 1, 2, 0xce, 1, 2, 3, 4, 0xcf, 1, 2, 3, 4, 5, 6, 7, 8,
			0xd0, 1, 0xd1, 1, 2, 0xd2, 1, 2, 3, 4, 0xd3, 1, 2, 3, 4, 5, 6, 7, 8,
			0xd4, 5, 1, 0xd5, 5, 1, 2, 0xd6, 5, 1, 2, 3, 4, 0xd7, 5, 1, 2, 3, 4, 5, 6, 7, 8,
			0xd8, 5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
			0xd9, 1, 'x', 0xda, 0, 1, 'x', 0xdb, 0, 0, 0, 1, 'x',
			0xdd, 0, 0, 0, 1, 0xde, 0, 1, 0xa1, 'k', 0xdf, 0, 0, 0, 0, 0xdc, 0, 0}, 0, ""},
		{"the byte that is never used", []byte{0xc1}, CodeBadRequest, "0xc1"},
		{"bytes behind the value", []byte{0xc0, 0xc0}, CodeBadRequest, "1 bytes after"},
		{"an array that ends early", []byte{0x92, 0xc0}, CodeBadRequest, "2 values"},
		{"a string that ends early", []byte{0xa5, 'x'}, CodeBadRequest, "is cut"},
		{"a length that ends early", []byte{0xdb, 0, 0}, CodeBadRequest, "is cut"},
		{"an extension that ends early", []byte{0xc7, 4, 1, 0}, CodeBadRequest, "is cut"},
		{"an array of 4 Gi values in 5 bytes", []byte{0xdd, 0xff, 0xff, 0xff, 0xff}, CodeBadRequest, "announces 4294967295"},
		{"a map of 4 Gi pairs in 5 bytes", []byte{0xdf, 0xff, 0xff, 0xff, 0xff}, CodeBadRequest, "announces 8589934590"},
		{"a string of 4 GiB in 5 bytes", []byte{0xdb, 0xff, 0xff, 0xff, 0xff}, CodeBadRequest, "is cut"},
		{"counts that only together are too much", append([]byte{0x92, 0xdc, 0, 9}, make([]byte, 9)...), CodeBadRequest, "announces 9"},
		{"the deepest that is taken", nested(deepest), 0, ""},
		{"one level deeper", nested(deepest + 1), CodeTooDeep, "deeper"},
		{"16 Mi levels", bytes.Repeat([]byte{0x91}, 16<<20), CodeTooDeep, "deeper"},
		{"16 Mi levels of maps", bytes.Repeat([]byte{0x81, 0xa0}, 8<<20), CodeTooDeep, "deeper"},
		{"the most values", manyNils(MaxElements - 1), 0, ""},
		{"one value more", manyNils(MaxElements), CodeTooManyItems, "values"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := Validate(tc.body)
			if tc.code == 0 {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				if got := skip(tc.body); got != len(tc.body) {
					t.Fatalf("skip sees %d bytes of %d", got, len(tc.body))
				}
				return
			}
			var refusal *Error
			if !errors.As(err, &refusal) || refusal.Code != tc.code || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("%v (code %v), want %q (code %v)", err, CodeOf(err), tc.text, tc.code)
			}
		})
	}
}

func manyNils(n int) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0xdd}, uint32(n))
	return append(b, bytes.Repeat([]byte{0xc0}, n)...)
}

// Bombs are refused without memory: no message may be made to allocate more
// than a small multiple of what was sent.
func TestBombsCostNothing(t *testing.T) {
	bombs := [][]byte{
		{0xdd, 0xff, 0xff, 0xff, 0xff},
		{0xdf, 0x7f, 0xff, 0xff, 0xff},
		{0x95, 0xa1, 'c', 0, 0xc2, 0xc2, 0xdd, 0x00, 0xff, 0xff, 0xff},
		bytes.Repeat([]byte{0x91}, 1<<20),
		bytes.Repeat([]byte{0xdc, 0xff, 0xff}, 1<<18),
		array("c", 0, false, false, many(MaxItems, 0x90)),
		array(many(maxListed, 0x90)),
		array("c", 1, 1, many(maxListed, 1), many(maxListed, 0x90), many(maxListed, 0x90), many(maxListed, 0x90)),
	}
	for _, bomb := range bombs {
		for _, m := range everyMessage() {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_ = Decode(bomb, m)
			runtime.ReadMemStats(&after)
			if got, most := after.TotalAlloc-before.TotalAlloc, uint64(300*len(bomb)+64<<10); got > most {
				t.Errorf("%s from % x… (%d bytes): %d bytes allocated, at most %d are fair", nameOf(m), bomb[:5], len(bomb), got, most)
			}
		}
	}
}
