package shardgroup

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/placement"
)

var testSpec = GroupSpec{ID: 3, Preferred: "n2", Members: []Member{{Node: "n1", Incarnation: "a"}, {Node: "n2", Incarnation: "b"}, {Node: "n3", Incarnation: "c", Learner: true}}}

func testMarker() marker {
	return marker{index: 1000, term: 7, applied: 998, confIndex: 1, conf: testSpec.configuration()}
}

// The records' bytes are part of the disk format: they are read for ever.
func TestRecordsGolden(t *testing.T) {
	records := []struct {
		name  string
		bytes []byte
	}{
		{"group", encodeGroup(testSpec)},
		{"marker", encodeMarker(testMarker())},
		{"pending", encodePending(pendingInstall{marker: testMarker(), dir: "g3-1000-1"})},
		{"entry", func() []byte {
			b := appendEntry(nil, entryOf(3, 6, 2))
			return b[:min(len(b), 64)]
		}()},
		{"placement snapshot", appendPlacementSnapshot(nil, 9, []byte("state"))},
	}
	var text strings.Builder
	for _, r := range records {
		text.WriteString(r.name + " " + hex.EncodeToString(r.bytes) + "\n")
	}
	path := filepath.Join("..", "testdata", "shardgroup", "records.golden")
	if os.Getenv("IDB_TEST_GOLDEN") == "write" {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("records are written as\n%swant\n%s", text.String(), want)
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	if s, err := decodeGroup(3, encodeGroup(testSpec)); err != nil || !reflect.DeepEqual(s, testSpec) {
		t.Errorf("group: %+v %v", s, err)
	}
	if m, err := decodeMarker(encodeMarker(testMarker())); err != nil || !reflect.DeepEqual(m, testMarker()) {
		t.Errorf("marker: %+v %v", m, err)
	}
	p := pendingInstall{marker: testMarker(), dir: "g3-1000-1"}
	if q, err := decodePending(encodePending(p)); err != nil || !reflect.DeepEqual(p, q) {
		t.Errorf("pending: %+v %v", q, err)
	}
	if i, s, err := decodePlacementSnapshot(appendPlacementSnapshot(nil, 9, []byte("state"))); err != nil || i != 9 || string(s) != "state" {
		t.Errorf("placement snapshot: %d %q %v", i, s, err)
	}
}

// Newer and damaged are told apart, and neither is taken for the other.
func TestRecordsRefused(t *testing.T) {
	for name, b := range map[string][]byte{"group": encodeGroup(testSpec), "marker": encodeMarker(testMarker()), "pending": encodePending(pendingInstall{marker: testMarker(), dir: "d"})} {
		decode := func(b []byte) error {
			var err error
			switch name {
			case "group":
				_, err = decodeGroup(3, b)
			case "marker":
				_, err = decodeMarker(b)
			case "pending":
				_, err = decodePending(b)
			}
			return err
		}
		newer := bytes.Clone(b)
		newer[0] = recordVersion + 1
		if err := decode(newer); !errors.Is(err, errRecordNewer) || errors.Is(err, errRecordDamaged) {
			t.Errorf("newer %s: %v", name, err)
		}
		if err := decode(make([]byte, len(b))); !errors.Is(err, errRecordDamaged) {
			t.Errorf("zeroed %s: %v", name, err)
		}
		for n := range b {
			if err := decode(b[:n]); !errors.Is(err, errRecordDamaged) {
				t.Errorf("%s cut to %d of %d bytes: %v", name, n, len(b), err)
			}
		}
		if err := decode(append(bytes.Clone(b), 0)); !errors.Is(err, errRecordDamaged) {
			t.Errorf("%s with a byte too many: %v", name, err)
		}
	}
}

func TestSpecValidate(t *testing.T) {
	m := func(ms ...Member) GroupSpec { return GroupSpec{ID: 1, Members: ms} }
	cases := []struct {
		spec GroupSpec
		want string // "": fine
	}{
		{m(Member{Node: "a"}), ""},
		{testSpec, ""},
		{m(), "has 0 members"},
		{m(Member{Node: "a"}, Member{Node: "a"}), "twice"},
		{m(Member{Node: ""}), "bad name"},
		{m(Member{Node: "a", Incarnation: "1"}, Member{Node: "b"}), "incarnations of some"},
		{m(Member{Node: "a", Learner: true}), "no member with a vote"},
		{m(Member{Node: placement.NodeID(strings.Repeat("x", 300))}), "bad name"},
	}
	for _, c := range cases {
		err := c.spec.validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.spec, err, c.want)
		}
	}
	if _, err := testSpec.self("n1", "other"); err == nil || !strings.Contains(err.Error(), "wiped") {
		t.Errorf("another incarnation: %v", err)
	}
	if _, err := testSpec.self("n9", "a"); err == nil {
		t.Error("a stranger is a member")
	}
}

func FuzzRecords(f *testing.F) {
	f.Add(encodeGroup(testSpec))
	f.Add(encodeMarker(testMarker()))
	f.Add(encodePending(pendingInstall{marker: testMarker(), dir: "g3-1000-1"}))
	f.Add([]byte{recordVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeGroup(3, b); err == nil {
			if again, err := decodeGroup(3, encodeGroup(s)); err != nil || !reflect.DeepEqual(again, s) {
				t.Errorf("group %+v becomes %+v (%v)", s, again, err)
			}
		}
		_, _ = decodeMarker(b) // must not panic
		_, _ = decodePending(b)
		_, _, _ = decodePlacementSnapshot(b)
		_, _ = voidEntry(&raft.Log{Data: []byte{1}, Extensions: b})
	})
}
