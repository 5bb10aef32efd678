package check

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/node"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/placement"
)

// TestUniqueValues: entries of unique values that do not fit the documents are
// found and named, also if the entries are read in parts, and nothing else is.
func TestUniqueValues(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, err := node.StartDev(ctx, node.DevConfig{Dir: t.TempDir(), Nodes: 3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := d.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}()
	db, err := client.Dial(ctx, "idb://"+strings.Join(d.Addrs(), ","))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	info, err := db.CreateCollection(ctx, "users", client.CollectionOptions{Unique: []client.Unique{{Fields: []string{"email"}}, {Fields: []string{"team", "nr"}}}})
	if err != nil {
		t.Fatal(err)
	}
	users := db.Collection("users")
	for i := range 40 {
		if _, err := users.Put(ctx, fmt.Sprintf("u%02d", i), client.D{"email": fmt.Sprint(i), "team": "red", "nr": i}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := users.Delete(ctx, "u39"); err != nil {
		t.Fatal(err)
	}
	run := func() *Report {
		t.Helper()
		r, err := Run(ctx, db, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := run()
	if err := r.Err(); err != nil || len(r.Unique) != 1 || r.Unique[0].Documents != 39 || r.Unique[0].Entries != 78 {
		t.Fatalf("a healthy cluster: %v, %+v", err, r.Unique)
	}

	// Entries are changed as no write changes them.
	status, err := db.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	set := unique.SetOf(&info.Options)
	entry := func(i int) string {
		body, err := users.Get(ctx, fmt.Sprintf("u%02d", i))
		if err != nil {
			t.Fatal(err)
		}
		return set.Values(body.Body())[0].Entry
	}
	spoil := func(item wire.WriteItem) {
		t.Helper()
		p := unique.Partition("users", item.ID, uint32(len(status.Topology.Owners)))
		item.RequestID = db.NewRequestID()
		c := fsm.Command{Write: &fsm.Write{Partition: p, Epoch: placement.Epoch(status.Topology.Epoch), Collection: unique.Entries(placement.CollectionID(info.ID)), Item: item}}
		for _, n := range d.Nodes() {
			g, ok := n.Host().Group(placement.GroupID(status.Topology.Owners[p]))
			if !ok {
				continue
			}
			if res, err := g.Propose(ctx, c); err == nil && res.Wire.Error == nil {
				return
			}
		}
		t.Fatalf("entry %s could not be spoilt", item.ID)
	}
	missing, wrong, strange := entry(3), entry(4), "1:"+strings.Repeat("x", 43)
	spoil(wire.WriteItem{Op: wire.OpDelete, ID: missing})
	spoil(wire.WriteItem{Op: wire.OpPut, ID: wrong, Body: unique.Body("u05")})
	spoil(wire.WriteItem{Op: wire.OpInsert, ID: strange, Body: unique.Body("nobody")})
	want := []string{
		"users/nobody: the entry " + strange + " of a unique value names the document, and no document holds it: it cannot be taken",
		"users/u03: the document holds a unique value, and its entry " + missing + " is missing: another may take it",
		"users/u04: the document holds a unique value whose entry " + wrong + " names u05",
	}
	r = run()
	var got []string
	for _, f := range r.All() {
		got = append(got, f.String())
	}
	if slices.Sort(got); !slices.Equal(got, want) || r.Verdict() != Wrong || r.Unique[0].Found != 3 {
		t.Errorf("found %s: %s", r.Verdict(), strings.Join(got, "\n"))
	}
	// In parts.
	parts := Unique{Collection: "users"}
	c := comparison{u: &parts, set: set, db: db, bytesPerSecond: 1 << 30, began: time.Now(), progress: func(uint64, uint64) {}}
	for i := 0; i < len(base64); i += 16 {
		if err := c.part(ctx, base64[i:i+16], i == 0, true); err != nil {
			t.Fatal(err)
		}
	}
	if parts.Documents != 39 || parts.Entries != 78 || parts.Found != 3 {
		t.Errorf("in parts: %+v", parts)
	}
	// One that nobody can write to.
	if _, err := db.Collection("users#").Put(ctx, "x", client.D{}); err == nil {
		t.Error("an entry was written by a client")
	}
}
