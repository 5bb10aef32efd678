package client

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
)

// TestTxBounds: a transaction says what is too much, and when its time is up,
// and asks nobody for it.
func TestTxBounds(t *testing.T) {
	tx := &Tx{deadline: time.Now().Add(time.Hour)}
	c := tx.Collection("c")
	big := map[string]any{"text": string(make([]byte, 1<<20))}
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		err = c.Put("a", big)
	}
	if !errors.Is(err, ErrTooLarge) || n < 10 {
		t.Fatalf("after %d MiB: %v", n, err)
	}
	items, _, bytes, most := tx.Size()
	if items != n-1 || bytes > most || bytes+1<<20 < most {
		t.Errorf("after %d writes of which the last was refused: %d documents and %d of %d bytes", n, items, bytes, most)
	}
	// What was refused is not in it; something smaller still fits.
	if got := len(tx.requestLocked().Collections[0].Writes); got != n-1 {
		t.Errorf("%d writes would be sent, %d were taken", got, n-1)
	}
	if err := c.Put("b", map[string]any{}); err != nil {
		t.Errorf("a small write after one that was too large: %v", err)
	}
	many := &Tx{deadline: time.Now().Add(time.Hour)}
	for n, err = 0, nil; err == nil && n <= MaxTxItems; n++ {
		err = many.Collection("c").Delete("a")
	}
	if items, most, _, _ := many.Size(); !errors.Is(err, ErrTooLarge) || items != MaxTxItems || most != MaxTxItems {
		t.Errorf("%d of %d items: %v", items, most, err)
	}
	late := &Tx{deadline: time.Now().Add(-time.Second)}
	if err := late.Collection("c").Put("a", map[string]any{}); !errors.Is(err, ErrTxAborted) {
		t.Errorf("past its time: %v", err)
	}
	if _, err := late.Commit(context.Background()); !errors.Is(err, ErrTxAborted) {
		t.Errorf("its commit: %v", err)
	}
	// Once a commit may have arrived its time says nothing any more, and
	// nothing can be added to it.
	late = &Tx{deadline: time.Now().Add(-time.Second), sent: true}
	if e := late.usableLocked("commit", "", ""); e != nil {
		t.Errorf("a commit whose outcome is unknown cannot be asked for: %v", e)
	}
	if err := late.Collection("c").Put("a", map[string]any{}); !errors.Is(err, ErrTxDone) {
		t.Errorf("a write after it: %v", err)
	}
}

// TestTxHome: the first document written comes first in the request, whatever
// was read or written elsewhere, for the home is fixed by it.
func TestTxHome(t *testing.T) {
	tx := &Tx{deadline: time.Now().Add(time.Hour)}
	tx.collLocked("read").reads.add("r", nil)
	for _, w := range [][2]string{{"second", "x"}, {"third", "y"}, {"second", "a"}, {"second", "x"}} {
		if err := tx.Collection(w[0]).Put(w[1], map[string]any{}); err != nil {
			t.Fatal(err)
		}
	}
	req := tx.requestLocked()
	if len(req.Collections) != 3 || req.Collections[0].Name != "second" || req.Collections[0].Writes[0].ID != "x" {
		t.Fatalf("%+v", req.Collections)
	}
	if w := req.Collections[0].Writes; len(w) != 3 || w[1].ID != "x" || w[2].ID != "a" {
		t.Errorf("operations of one document are not together: %+v", w)
	}
	if r := req.Collections[1]; r.Name != "read" || len(r.Reads) != 1 || r.Reads[0] != (wire.TxnRead{ID: "r"}) {
		t.Errorf("%+v", r)
	}
}
