package history

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		name, history string
		want          string // the anomaly; empty: none
	}{
		{"what was written is read and stored", `
			0..5 c1 put k a -> done v1 time=10
			6..9 c1 put k b -> done v2 time=20
			10..12 c2 get k of=1 -> done v1 time=10 a count=0
			10..12 c2 get k at=15 -> done v1 time=10 a count=0
			10..12 c2 get k at=20 -> done v2 time=20 b count=0
			10..12 c2 get k at=9 -> missing
			stored k v1 10 a
			stored k v2 20 b`, ""},
		{"a version read twice differs", `
			0..5 c1 get k of=1 -> done v1 a count=0
			6..9 c1 get k of=1 -> done v1 b count=0`, "version changed"},
		{"a version read differs in its count", `
			0..5 c1 get k -> done v1 a count=1
			6..9 c1 get k of=1 -> done v1 a count=2`, "version changed"},
		{"a version has another time", `
			0..5 c1 get k -> done v1 time=5 a count=0
			6..9 c1 get k -> done v1 time=6 a count=0`, "version changed"},
		{"the stored version is another", `
			0..- c1 put k a -> unknown
			0..5 c2 get k -> done v1 a count=0
			0..- c3 put k b -> unknown
			stored k v1 10 b`, "version changed"},
		{"another version than asked for", `
			0..5 c1 get k of=2 -> done v1 a count=0`, "wrong version"},
		{"a reader goes back", `
			0..5 c1 get k -> done v2 b count=0
			6..9 c2 get k -> done v1 a count=0`, "stale read"},
		{"readers beside each other may differ", `
			0..7 c1 get k -> done v2 b count=0
			6..9 c2 get k -> done v1 a count=0`, ""},
		{"a write makes an old version", `
			0..5 c1 put k a -> done v2
			6..9 c2 put k b -> done v2`, "lost update"},
		{"time goes back", `
			0..5 c1 put k a -> done v1 time=20
			6..9 c2 put k b -> done v2 time=20`, "time went back"},
		{"an acknowledged write is not stored", `
			0..5 c1 put k a -> done v1 time=10
			stored k`, "lost write"},
		{"another write has its version", `
			0..5 c1 put k a -> done v1
			0..- c2 put k b -> unknown
			stored k v1 10 b`, "lost write"},
		{"a removal is stored as a document", `
			0..5 c1 delete k -> done v1
			0..- c2 put k b -> unknown
			stored k v1 10 b`, "lost write"},
		{"an unknown write may be stored", `
			0..- c2 put k b -> unknown
			stored k v1 10 b`, ""},
		{"or not", `
			0..- c2 put k b -> unknown
			stored k`, ""},
		{"but not twice", `
			0..- c2 put k b -> unknown
			stored k v1 10 b
			stored k v2 11 b`, "applied twice"},
		{"an acknowledged write is stored once more", `
			0..5 c2 put k b -> done v1
			stored k v1 10 b
			stored k v2 11 b`, "applied twice"},
		{"a refused write is stored", `
			0..5 c2 put k b -> refused
			stored k v1 10 b`, "refused write took effect"},
		{"a conflict is stored", `
			0..5 c2 put k b if=7 -> conflict v1
			0..5 c1 put k a -> done v1
			stored k v1 10 a
			stored k v2 11 b`, "refused write took effect"},
		{"nobody wrote it", `
			stored k v1 10 z`, "phantom"},
		{"a version is missing in between", `
			0..- c2 put k a -> unknown
			0..- c2 put k b -> unknown
			stored k v1 10 a
			stored k v3 11 b`, "gap in history"},
		{"a version is listed twice", `
			0..- c2 put k a -> unknown
			stored k v1 10 a
			stored k v1 10 a`, "version listed twice"},
		{"a known version is not found", `
			0..5 c1 put k a -> done v1
			6..9 c1 get k of=1 -> missing`, "lost version"},
		{"a deletion is not found, of course", `
			0..5 c1 delete k -> done v2
			6..9 c1 get k of=2 -> missing`, ""},
		{"a restore brings another body", `
			0..5 c1 put k a -> done v1
			6..9 c1 restore k a of=1 -> done v2 b count=0`, "wrong restore"},
		{"a restore repeats a value", `
			0..5 c1 put k a -> done v1 time=10
			6..9 c1 restore k a of=1 -> done v2 time=11 a count=0
			stored k v1 10 a
			stored k v2 11 a`, ""},
		{"a read of a time gets a later version", `
			0..5 c1 put k a -> done v1 time=10
			6..9 c1 get k at=9 -> done v1 time=10 a count=0`, "wrong past"},
		{"a read of a time gets an earlier version", `
			0..5 c1 put k a -> done v1 time=10
			0..5 c1 put k b -> done v2 time=20
			6..9 c1 get k at=25 -> done v1 time=10 a count=0`, "wrong past"},
		{"a read of a time finds nothing", `
			0..5 c1 put k a -> done v1 time=10
			0..5 c1 put k b -> done v2 time=20
			6..9 c1 get k at=15 -> missing`, "wrong past"},
		{"a read of a time after a removal finds a document", `
			0..5 c1 put k a -> done v1 time=10
			0..5 c1 delete k -> done v2 time=20
			6..9 c1 get k at=25 -> done v1 time=10 a count=0`, "wrong past"},
		{"and should find nothing", `
			0..5 c1 put k a -> done v1 time=10
			0..5 c1 delete k -> done v2 time=20
			6..9 c1 get k at=25 -> missing
			stored k v1 10 a
			stored k v2 20 -`, ""},
		{"a version that nobody told of may be in between", `
			0..5 c1 put k a -> done v1 time=10
			6..9 c1 get k at=25 -> done v3 time=22 c count=0`, ""},
		{"a snapshot of one instant", `
			0..5 c1 put k a -> done v1 time=10
			0..5 c1 put l b -> done v1 time=20
			6..9 c2 scan {get k -> done v1 time=10 a count=0; get l -> missing} done time=15
			6..9 c2 scan {get k -> done v1 time=10 a count=0; get l -> done v1 time=20 b count=0} done time=20
			stored k v1 10 a
			stored l v1 20 b`, ""},
		{"a snapshot that is torn", `
			0..5 c1 put k a -> done v1 time=10
			0..5 c1 put l b -> done v1 time=20
			6..9 c2 scan {get k -> missing; get l -> done v1 time=20 b count=0} done time=20
			stored k v1 10 a
			stored l v1 20 b`, "torn snapshot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var ops []Operation
			var txns []Transaction
			v := Versions{Stored: map[string][]Stored{}, Complete: true}
			for line := range strings.SplitSeq(strings.TrimSpace(c.history), "\n") {
				line = strings.TrimSpace(line)
				if stored, ok := strings.CutPrefix(line, "stored "); ok {
					var key, value string
					var s Stored
					if n, _ := fmt.Sscanf(stored, "%s v%d %d %s", &key, &s.Version, &s.Time, &value); n == 4 {
						s.Deleted, s.Value = value == "-", value
						v.Stored[key] = append(v.Stored[key], s)
					} else {
						v.Stored[stored] = []Stored{}
					}
					continue
				}
				if strings.Contains(line, "{") {
					x, err := parseTransaction(line)
					if err != nil {
						t.Fatal(err)
					}
					txns = append(txns, x)
					continue
				}
				op, err := parse(line)
				if err != nil {
					t.Fatal(err)
				}
				ops = append(ops, op)
			}
			got := v.Check(ops, txns)
			var names []string
			for _, a := range got.Anomalies {
				names = append(names, a.Name)
			}
			if c.want == "" && len(names) > 0 || c.want != "" && !slices.Contains(names, c.want) {
				t.Errorf("want %q, got %v", c.want, got.Err())
			}
		})
	}
}

// TestShrunk: of a long history that fails, a few operations are shown, and
// they fail by themselves, from the state that is named.
func TestShrunk(t *testing.T) {
	for _, bug := range []string{"stale read", "lost write", "double apply", "late write", "lost compare-and-swap", "unknown told as refused"} {
		total, short, n := 0, 0, 0
		for seed := range int64(20) {
			ops := run(seed, bug)
			byKey := map[string][]Operation{}
			for _, op := range ops {
				if op.Output.Outcome != Refused && (op.Output.Outcome != Unknown || op.Input.Writes()) {
					byKey[op.Input.Key] = append(byKey[op.Input.Key], op)
				}
			}
			for _, a := range (Linearizability{}).Check(ops).Anomalies {
				if len(a.Operations) == 0 {
					t.Fatalf("%s, seed %d: nothing to show", bug, seed)
				}
				total += len(byKey[a.Operations[0].Input.Key])
				short += len(a.Operations)
				n++
			}
		}
		t.Logf("%s: %d histories of %d operations, shown by %d", bug, n, total/max(1, n), short/max(1, n))
		if short*4 > total {
			t.Errorf("%s: %d operations were shrunk to %d only", bug, total, short)
		}
	}
}

// TestShrinkIsSound: no part of a healthy history that shrinking tries is
// condemned.
func TestShrinkIsSound(t *testing.T) {
	for seed := range int64(15) {
		byKey := map[string][]Operation{}
		for _, op := range run(seed, "") {
			if op.Output.Outcome != Refused && (op.Output.Outcome != Unknown || op.Input.Writes()) {
				byKey[op.Input.Key] = append(byKey[op.Input.Key], op)
			}
		}
		for key, ops := range byKey {
			slices.SortStableFunc(ops, func(a, b Operation) int { return int(a.Call - b.Call) })
			for i := 0; i < len(ops); i += 7 {
				part := prefix(ops, ops[i].Return)
				if illegalFrom(document{}, part, 5e9) {
					t.Fatalf("seed %d, %s: the prefix up to %s is condemned", seed, key, ops[i])
				}
				if state, rest, ok := behind(part, ops[i/2]); ok && illegalFrom(state, rest, 5e9) {
					t.Fatalf("seed %d, %s: what is behind %s is condemned", seed, key, ops[i/2])
				}
			}
		}
	}
}

func TestShrink(t *testing.T) {
	items := make([]int, 100)
	for i := range items {
		items[i] = i
	}
	tries := 0
	got := Shrink(items, 1e10, func(part []int, _ time.Duration) bool {
		tries++
		return slices.Contains(part, 17) && slices.Contains(part, 18) && slices.Contains(part, 93)
	})
	if !slices.Equal(got, []int{17, 18, 93}) {
		t.Errorf("got %v after %d tries", got, tries)
	}
	if got := Shrink(items, 0, func([]int, time.Duration) bool { return true }); len(got) != 100 {
		t.Errorf("without a budget %d are left", len(got))
	}
}
