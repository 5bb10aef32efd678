package main

import (
	"encoding/json"
	"testing"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

// TestDocuments: both encodings are valid, of the size asked for, and hold the
// same fields.
func TestDocuments(t *testing.T) {
	for _, size := range []int{300, 400, 600, 1024, 4096} {
		for _, i := range []int{0, 7, 99_999} {
			raw := (&idb{}).AppendDoc(nil, i, newRand(1), size)
			if err := doc.Check(raw, doc.Limits{MaxBytes: wire.DefaultDocumentSize, MaxDepth: wire.MaxDepth}); err != nil {
				t.Fatalf("%d bytes: not canonical: %v", size, err)
			}
			text := appendDoc(nil, i, newRand(1), size)
			if len(text) != size || len(raw) < size-2 || len(raw) > size {
				t.Errorf("asked for %d bytes, got %d of JSON and %d of canonical encoding", size, len(text), len(raw))
			}
			var a, b map[string]any
			if err := json.Unmarshal(text, &a); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(doc.AppendJSON(nil, raw), &b); err != nil {
				t.Fatal(err)
			}
			for k := range a {
				if _, ok := b[k]; !ok || len(a) != len(b) {
					t.Errorf("fields differ: %v and %v", a, b)
				}
			}
		}
	}
}
