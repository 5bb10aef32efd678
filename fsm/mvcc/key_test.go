package mvcc

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// someKey draws from a small space full of edge cases, so that equal parts and
// neighbours are common.
func someKey(rng *rand.Rand) DocumentKey {
	pick := func(of ...uint32) uint32 { return of[rng.IntN(len(of))] }
	parts := []string{"a", "b", "\x00", "\x01", "\xff", "\x00\x01", "\x00\xff", "é", "/"}
	var id strings.Builder
	for range 1 + rng.IntN(4) {
		id.WriteString(parts[rng.IntN(len(parts))])
	}
	return DocumentKey{
		Partition:  placement.PartitionID(pick(0, 1, 255, 256, math.MaxUint32)),
		Collection: placement.CollectionID(pick(0, 1, 1<<24, math.MaxUint32)),
		ID:         id.String(),
		Time:       []hlc.Timestamp{0, 1, 2, 1 << 16, 1 << 48, hlc.Max}[rng.IntN(6)],
	}
}

func (k DocumentKey) encode(g placement.GroupID) []byte {
	return AppendTime(AppendDocument(nil, g, k.Partition, k.Collection, k.ID), k.Time)
}

// order is the order that keys must have: time runs backwards.
func (k DocumentKey) order(o DocumentKey) int {
	for _, c := range []int{
		compare(uint64(k.Partition), uint64(o.Partition)),
		compare(uint64(k.Collection), uint64(o.Collection)),
		strings.Compare(k.ID, o.ID),
		compare(uint64(o.Time), uint64(k.Time)),
	} {
		if c != 0 {
			return c
		}
	}
	return 0
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func sign(c int) int { return compare(uint64(c+2), 2) }

func TestKeyOrderIsValueOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		a, b := someKey(rng), someKey(rng)
		if rng.IntN(2) == 0 {
			b.Partition, b.Collection = a.Partition, a.Collection
		}
		if rng.IntN(4) == 0 {
			b.ID = a.ID
		}
		ka, kb := a.encode(7), b.encode(7)
		if got, want := comparer.Compare(ka, kb), a.order(b); sign(got) != want {
			t.Fatalf("%+v and %+v compare as %d, their keys as %d", a, b, want, got)
		}
		if back, err := DecodeDocument(ka[groupBytes:]); err != nil || back != a {
			t.Fatalf("%+v came back as %+v, %v", a, back, err)
		}
	}
}

// TestComparer checks what the engine demands of Split, Separator, Successor
// and ImmediateSuccessor, on document keys, bounds and keys of other kinds.
func TestComparer(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var random [16]byte
	key := func() []byte {
		k := someKey(rng)
		switch rng.IntN(8) {
		case 0: // a bound: all documents with an ID prefix
			return AppendID(AppendCollection(nil, 7, k.Partition, k.Collection), k.ID)
		case 1:
			return AppendEnd(nil, AppendID(AppendCollection(nil, 7, k.Partition, k.Collection), k.ID))
		case 2: // the prefix of a document
			return AppendDocument(nil, 7, k.Partition, k.Collection, k.ID)
		case 3: // binary data where a document has its ID, made to look like one
			copy(random[:], []byte{0, 0, 0, 0, 0, 0, 0, 1, byte(rng.IntN(2))})
			return AppendRequestKey(nil, 7, k.Partition, uint64(k.Time), &random)
		case 4:
			return AppendNumbered(nil, 7, KindCounts, uint32(k.Partition), uint32(k.Collection))
		case 5:
			return immediateSuccessor(nil, AppendDocument(nil, 7, k.Partition, k.Collection, k.ID))
		default:
			return k.encode(7)
		}
	}
	prefix := func(k []byte) []byte { return k[:split(k)] }
	for range 300_000 {
		a, b := key(), key()
		c := bytes.Compare(a, b)
		if s := len(a) - split(a); s != 0 && s != suffixBytes {
			t.Fatalf("%x has a suffix of %d bytes", a, s)
		}
		if split(prefix(a)) != len(prefix(a)) {
			t.Fatalf("the prefix of %x has a suffix", a)
		}
		if pc := bytes.Compare(prefix(a), prefix(b)); c <= 0 && pc > 0 || pc < 0 && c >= 0 {
			t.Fatalf("%x and %x compare as %d, their prefixes as %d", a, b, c, pc)
		}
		if c < 0 {
			s := separator(nil, a, b)
			if bytes.Compare(a, s) > 0 || bytes.Compare(s, b) >= 0 {
				t.Fatalf("separator of %x and %x is %x", a, b, s)
			}
			if split(s) != len(s) && !bytes.Equal(s, a) {
				t.Fatalf("separator %x of %x and %x has a suffix of its own", s, a, b)
			}
		}
		if s := successor(nil, a); bytes.Compare(a, s) > 0 || split(s) != len(s) && !bytes.Equal(s, a) {
			t.Fatalf("successor of %x is %x", a, s)
		}
		p := prefix(a)
		next := immediateSuccessor(nil, p)
		if bytes.Compare(a, next) >= 0 || split(next) != len(next) {
			t.Fatalf("immediate successor of %x is %x, not above %x", p, next, a)
		}
		if bytes.Compare(p, prefix(b)) < 0 && bytes.Compare(prefix(b), next) < 0 {
			t.Fatalf("%x lies between %x and its immediate successor %x", prefix(b), p, next)
		}
	}
}

func TestSeparatorShortens(t *testing.T) {
	a := DocumentKey{Partition: 1, Collection: 1, ID: "a very long name", Time: 9}.encode(1)
	b := DocumentKey{Partition: 1, Collection: 1, ID: "b another", Time: 9}.encode(1)
	if s := separator(nil, a, b); len(s) >= len(a) {
		t.Errorf("nothing was shortened: %x", s)
	}
	older := DocumentKey{Partition: 1, Collection: 1, ID: "a very long name", Time: 8}.encode(1)
	if s := separator(nil, a, older); !bytes.Equal(s, a) {
		t.Errorf("two versions of a document are separated by %x", s)
	}
}

func TestAppendEnd(t *testing.T) {
	for _, c := range []struct{ prefix, want string }{{"a", "b"}, {"a\xff", "b"}, {"a\xff\xff", "b"}, {"\x00", "\x01"}, {"ab", "ac"}} {
		if got := string(AppendEnd(nil, []byte(c.prefix))); got != c.want {
			t.Errorf("the end of %q is %q, want %q", c.prefix, got, c.want)
		}
	}
}

func TestDecodeDocumentRefuses(t *testing.T) {
	good := DocumentKey{Partition: 1, Collection: 2, ID: "x\x00y", Time: 3}.encode(7)[groupBytes:]
	bad := map[string][]byte{
		"empty":           {},
		"other kind":      append([]byte{byte(KindIndex)}, good[1:]...),
		"without a time":  good[:len(good)-suffixBytes],
		"no terminator":   slices.Concat(good[:len(good)-10], []byte("zz"), good[len(good)-8:]),
		"dangling escape": slices.Concat(good[:9], []byte{'x', 0, 'y', 0, 1}, good[len(good)-8:]),
	}
	for name, b := range bad {
		if k, err := DecodeDocument(b); err == nil {
			t.Errorf("%s: decoded as %+v", name, k)
		}
	}
}

func FuzzDecodeDocument(f *testing.F) {
	f.Add(DocumentKey{Partition: 1, Collection: 2, ID: "x\x00y", Time: 3}.encode(7)[groupBytes:])
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := DecodeDocument(b)
		if err != nil {
			return
		}
		if again := k.encode(7)[groupBytes:]; !bytes.Equal(again, b) {
			t.Fatalf("%x decodes to %+v, which is %x", b, k, again)
		}
	})
}

func FuzzDecodeRow(f *testing.F) {
	f.Add(AppendRow(nil, &Row{Version: 1, Created: 2, Body: []byte{0x80}}))
	f.Add(AppendRow(nil, &Row{Version: 300, Created: 2, Deleted: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRow(b)
		if err != nil {
			return
		}
		if again := AppendRow(nil, &r); !bytes.Equal(again, b) {
			t.Fatalf("%x decodes to %+v, which is %x", b, r, again)
		}
	})
}
