package client

import (
	"slices"
	"testing"
	"time"
)

// TestRivals: a document is locked for a while after a conflict, for longer if
// the next comes as soon as it is not, and the memory of it has a bound.
func TestRivals(t *testing.T) {
	var r rivals
	now := time.Now()
	at := func(d time.Duration) bool {
		return slices.Equal(r.known("c", []string{"a", "b"}, now.Add(d)), []string{"a"})
	}
	if at(0) {
		t.Fatal("known before any conflict")
	}
	one := []rival{{"c", "a"}, {"d", "b"}}
	r.note(one, now)
	if !at(0) || !at(rivalsFor) || at(rivalsFor+1) {
		t.Error("not locked for its time")
	}
	// Again at once: twice as long, up to a bound.
	for lasts := rivalsFor; lasts < 4*rivalsMost; lasts *= 2 {
		want := min(2*lasts, rivalsMost)
		now = now.Add(min(lasts, rivalsMost) + time.Millisecond)
		r.note(one, now)
		if !at(want) || at(want+time.Millisecond) {
			t.Errorf("after %s it is not locked for %s", lasts, want)
		}
		r.note(one, now) // another of the same time changes nothing
		if at(want + time.Millisecond) {
			t.Error("two conflicts at once count twice")
		}
	}
	// Long ago: as if never.
	now = now.Add(3 * rivalsMost)
	if at(0) || len(r.of) != 1 {
		t.Errorf("still known: %v", r.of)
	}
	r.note(one, now)
	if at(rivalsFor + 1) {
		t.Error("it remembers for ever")
	}
	for i := range maxRivals {
		r.note([]rival{{"c", string(rune(i + 1000))}}, now)
	}
	if len(r.of) > maxRivals {
		t.Errorf("%d documents", len(r.of))
	}
}

// TestTxCareful: what a transaction has locked is home's, and what it lost a
// conflict about is what it has read and written, or could not lock.
func TestTxCareful(t *testing.T) {
	tx := &Tx{deadline: time.Now().Add(time.Hour), careful: true}
	k := tx.collLocked("c")
	for _, id := range []string{"read", "both", "hot"} {
		k.reads.add(id, nil)
	}
	for _, id := range []string{"both", "blind", "hot"} {
		if err := tx.Collection("c").Put(id, map[string]any{}); err != nil {
			t.Fatal(err)
		}
	}
	k.locked = []string{"vain", "hot"}
	req := tx.requestLocked()
	var writes []string
	for _, w := range req.Collections[0].Writes {
		writes = append(writes, w.ID)
	}
	if want := []string{"hot", "both", "blind"}; !slices.Equal(writes, want) {
		t.Errorf("writes %q, not %q", writes, want)
	}
	got := tx.contested()
	if want := []rival{{"c", "both"}, {"c", "hot"}, {"c", "vain"}}; !slices.Equal(got, want) {
		t.Errorf("contested %v, not %v", got, want)
	}
}
