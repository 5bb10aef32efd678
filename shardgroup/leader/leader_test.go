package leader

import "testing"

func TestMemory(t *testing.T) {
	var m Memory
	m.Open(3, 100, 250)
	if ts := m.Assign(40); ts != 251 {
		t.Fatalf("the first timestamp of a term is %d: the ceiling was 250", ts)
	}
	if ts := m.Assign(400); ts != 400 {
		t.Fatalf("a clock that is ahead says 400, assigned was %d", ts)
	}
	m.Send()
	upto, ok := m.Promise(500)
	if !ok || m.Landed(upto) {
		t.Fatal("a promise holds before what was assigned below it has landed")
	}
	m.Send() // later batches are above the promise
	m.Land()
	if !m.Landed(upto) {
		t.Fatal("the promise waits for batches made after it")
	}
	if ts := m.Assign(0); ts != 501 {
		t.Fatalf("assigned %d at or below a promise of 500", ts)
	}
	m.Shut()
	if m.Term() != 0 {
		t.Fatal("shut, and still leading")
	}
	m.Open(5, 90, 80)
	if ts := m.Assign(0); ts <= 501 {
		t.Fatalf("the floor went back to %d", ts)
	}
	var other Memory
	other.Open(6, 600, 0)
	if ts := other.Assign(0); ts != 601 {
		t.Fatalf("assigned %d with the machine's clock at 600", ts)
	}
}

// TestLostBatch: an entry of a leader that was deposed may be committed by the
// next one. Until the deposed leader notices, it must promise nothing: it would
// answer a reader without the entry.
func TestLostBatch(t *testing.T) {
	var m Memory
	m.Open(3, 0, 100)
	m.Assign(0)
	m.Send()
	m.Lose(3)
	if _, ok := m.Promise(100); ok {
		t.Fatal("promised beside a batch that may yet be applied")
	}
	m.Open(5, 200, 200)
	if upto, ok := m.Promise(200); !ok || !m.Landed(upto) {
		t.Fatal("a term cannot promise because of an earlier one")
	}
	m.Assign(0)
	m.Send()
	m.Lose(3) // made in term 3, given to the log in 5: it is void there
	if _, ok := m.Promise(200); !ok {
		t.Fatal("a void batch ends a term's promises")
	}
	m.Shut()
	if _, ok := m.Promise(200); ok {
		t.Fatal("promised without leading")
	}
}

func TestRound(t *testing.T) {
	for _, tc := range []struct {
		name    string
		voters  int
		self    bool
		answers string
		want    Verdict
	}{
		{"alone", 1, true, "", Won},
		{"one of two others", 3, true, "y", Won},
		{"no majority yet", 5, true, "yn", Open},
		{"a majority", 5, true, "yny", Won},
		{"all but the leader say no", 3, true, "nn", Lost},
		{"one no of four is not the end", 5, true, "nn", Open},
		{"three are", 5, true, "nnn", Lost},
		{"a leader without a vote needs all the others' majority", 2, false, "y", Open},
		{"and gets it", 2, false, "yy", Won},
		{"an answer after the end changes nothing", 3, true, "yn", Over},
		{"and none makes up for a lost round", 3, true, "nny", Over},
	} {
		r, got := NewRound(tc.voters, tc.self)
		for _, a := range tc.answers {
			got = r.Vote(a == 'y')
		}
		if got != tc.want {
			t.Errorf("%s: verdict %d, want %d", tc.name, got, tc.want)
		}
		if r.Decided() != (tc.want != Open) {
			t.Errorf("%s: decided is %v", tc.name, r.Decided())
		}
	}
}

func TestVoid(t *testing.T) {
	if void, err := Void(Stamp(7), 7); void || err != nil {
		t.Fatalf("an entry of its own term: %v, %v", void, err)
	}
	for _, term := range []uint64{6, 8, 0} {
		if void, err := Void(Stamp(7), term); !void || err != nil {
			t.Fatalf("stamped 7 and in the log under %d: %v, %v", term, void, err)
		}
	}
	for _, stamp := range [][]byte{nil, make([]byte, 7), make([]byte, 9)} {
		if _, err := Void(stamp, 7); err == nil {
			t.Fatalf("a stamp of %d bytes passed", len(stamp))
		}
	}
}
