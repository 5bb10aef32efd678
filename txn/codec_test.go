package txn

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

var testID = ID{Time: 0x0102030405060708, Random: [16]byte{0: 0xaa, 15: 0xbb}}

func testPart() Part {
	return Part{
		Reads:  []Read{{Collection: 1, ID: "a", At: 7}, {Collection: 300, ID: "ü\x00", At: 0}},
		Ranges: []Range{{Collection: 1, Prefix: "p/", From: "p/1", To: "p/9", At: 9}, {Collection: 2, At: 1 << 60}},
		Writes: []Write{
			{Collection: 1, ID: "a", MaxBytes: 1 << 20, Ops: []Op{{Op: wire.OpPut, Body: []byte{0x80}}, {Op: wire.OpUpdate, Cond: wire.CondPresent, IfVersion: 300, Body: []byte{0x80}}}},
			{Collection: 1, ID: "b", Ops: []Op{{Op: wire.OpDelete}}},
		},
	}
}

func TestPartRoundTrip(t *testing.T) {
	p := testPart()
	b := AppendPart(nil, &p)
	if len(b) > PartLen(&p) {
		t.Errorf("%d bytes, PartLen promised at most %d", len(b), PartLen(&p))
	}
	r := Reader{B: b}
	if got := r.Part(); r.Err() != nil || !reflect.DeepEqual(got, p) {
		t.Fatalf("%+v came back as %+v, %v", p, got, r.Err())
	}
	for n := range b {
		r := Reader{B: b[:n]}
		r.Part()
		if err := r.Err(); !errors.Is(err, ErrDamaged) {
			t.Fatalf("the first %d of %d bytes: %v", n, len(b), err)
		}
	}
	const golden = "020101610000000000000007ac0203c3bc000000000000000000020102702f03702f3103702f390000000000000009020000001000000000000000020101618080400201000001800302ac020180010162000105000000"
	if h := hex.EncodeToString(b); h != golden {
		t.Errorf("a part is written as\n%s, was\n%s", h, golden)
	}
}

type record interface {
	Append(dst []byte) []byte
	Decode(b []byte) error
}

func records() map[string][2]record {
	p := testPart()
	return map[string][2]record{
		"prepared": {&PreparedRecord{Home: 7, At: 100, Deadline: 200, Born: 10, Reads: p.Reads, Ranges: p.Ranges, Intents: []Intent{
			{Collection: 1, ID: "a", Version: 3, Created: 5, Body: []byte{0x80}}, {Collection: 1, ID: "b", Nothing: true}, {Collection: 2, ID: "c", Version: 9, Deleted: true},
		}}, &PreparedRecord{}},
		"staged": {&PreparedRecord{Participants: []placement.PartitionID{3, 270}, Home: 7, At: 100, Deadline: 200, Born: 10, Intents: []Intent{
			{Collection: 1, ID: "a", Version: 3, Body: []byte{0x80}},
		}}, &PreparedRecord{}},
		"committed": {&CommittedRecord{At: 77, Participants: []placement.PartitionID{0, 270, 3}}, &CommittedRecord{}},
		"tombstone": {&Tombstone{State: Refused}, &Tombstone{}},
	}
}

var goldenRecords = map[string]string{
	"prepared":  "0107000000000000006400000000000000c8000000000000000a020101610000000000000007ac0203c3bc000000000000000000020102702f03702f3103702f3900000000000000090200000010000000000000000301016100030000000000000005018001016201000000000000000000000201630209000000000000000000",
	"staged":    "0202038e0207000000000000006400000000000000c8000000000000000a000001010161000300000000000000000180",
	"committed": "01000000000000004d03008e0203",
	"tombstone": "0102",
}

func TestRecords(t *testing.T) {
	for name, pair := range records() {
		b := pair[0].Append(nil)
		if err := pair[1].Decode(b); err != nil || !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s: %+v came back as %+v, %v", name, pair[0], pair[1], err)
		}
		if h := hex.EncodeToString(b); h != goldenRecords[name] {
			t.Errorf("%s is written as\n%s, was\n%s", name, h, goldenRecords[name])
		}
		for n := range b {
			if err := pair[1].Decode(b[:n]); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: the first %d of %d bytes: %v", name, n, len(b), err)
			}
		}
		newer := bytes.Clone(b)
		newer[0] = stagedFormat + 1
		if err := pair[1].Decode(newer); !errors.Is(err, ErrNewer) {
			t.Errorf("%s of a newer format: %v", name, err)
		}
	}
}

func TestAnswer(t *testing.T) {
	for _, a := range []Answer{
		{State: Committed, At: 9, Duplicate: true},
		{State: Staged, At: 9, Participants: []placement.PartitionID{3, 270}},
		{State: Aborted, At: 5, Duplicate: true, Write: []byte{1, 2, 3}},
		{State: Aborted, Conflict: &Conflict{Code: wire.CodeDuplicateValue, Detail: "a"}, Write: []byte{0}},
		{State: Refused, Conflict: &Conflict{Code: wire.CodeVersionConflict, Collection: 3, ID: "a", Range: true, Version: 4, Rival: testID, Detail: "why"}},
	} {
		b := a.Append(nil)
		var got Answer
		r := Reader{B: b}
		got.Decode(&r)
		if r.Err() != nil || !reflect.DeepEqual(got, a) {
			t.Errorf("%+v came back as %+v, %v", a, got, r.Err())
		}
		for n := range b {
			r := Reader{B: b[:n]}
			got.Decode(&r)
			if r.Err() == nil {
				t.Errorf("the first %d of %d bytes of an answer were taken", n, len(b))
			}
		}
	}
}

func FuzzRecords(f *testing.F) {
	for _, pair := range records() {
		f.Add(pair[0].Append(nil))
	}
	p := testPart()
	f.Add(AppendPart(nil, &p))
	for _, a := range []Answer{{State: Refused, Conflict: &Conflict{Rival: testID}}, {State: Staged, Participants: []placement.PartitionID{1}}} {
		f.Add(a.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range []record{&PreparedRecord{}, &CommittedRecord{}, &Tombstone{}} {
			if r.Decode(b) == nil && !bytes.Equal(r.Append(nil), b) {
				t.Errorf("%x was read as %+v, which is written otherwise", b, r)
			}
		}
		r := Reader{B: b}
		if p := r.Part(); r.Err() == nil && !bytes.Equal(AppendPart(nil, &p), b) {
			t.Errorf("%x was read as %+v, which is written otherwise", b, p)
		}
		r = Reader{B: b}
		var a Answer
		a.Decode(&r)
	})
}
