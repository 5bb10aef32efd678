package chaos

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/check"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
)

// TestCheck compares the replicas of a cluster under load, with one node ended
// and started again, and finds nothing; then a row is changed in one replica's
// files behind the database's back, and the check names it.
func TestCheck(t *testing.T) {
	c := start(t, Options{Shards: 2})
	db := dial(t, c)
	ctx := within(t, 2*time.Minute)
	load, err := StartLoad(ctx, c.URL(), LoadOptions{Seed: 3, Pace: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer load.Stop()
	users := db.Collection("users")
	for i := range 200 {
		if _, err := users.Put(ctx, fmt.Sprintf("u%d", i), map[string]any{"n": i}); err != nil {
			t.Fatal(err)
		}
	}
	passes := func(when string) {
		t.Helper()
		report, err := check.Run(ctx, db, check.Options{RateKiB: 1 << 20})
		if err == nil {
			err = report.Err()
		}
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	for range 5 {
		passes("under load")
	}
	c.Nodes[1].Kill()
	report, err := check.Run(ctx, db, check.Options{})
	if err != nil || report.Verdict() != check.Incomplete || len(report.Incompletes()) != 2 {
		t.Errorf("with n2 dead: %s, %v, %v", report.Verdict(), report.Incompletes(), err)
	}
	if err := c.Nodes[1].Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes[1].WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	passes("after n2 came back")
	load.Stop()

	// Plant it.
	topology, err := db.Topology(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p := wire.Partition("users", "", "u7", uint32(len(topology.Owners)))
	group := topology.Owners[p]
	var collection uint32
	for _, x := range topology.Collections {
		if x.Name == "users" {
			collection = x.ID
		}
	}
	before, err := users.Get(ctx, "u7")
	if err != nil {
		t.Fatal(err)
	}
	stopping, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := c.Nodes[2].Stop(stopping); err != nil {
		t.Fatal(err)
	}
	engine, err := mvcc.OpenEngine(filepath.Join(c.Nodes[2].Dir, "state"), mvcc.EngineOptions{})
	if err != nil {
		t.Fatal(err)
	}
	key := mvcc.AppendDocument(nil, placement.GroupID(group), placement.PartitionID(p), placement.CollectionID(collection), "u7")
	changed, err := doc.Marshal(map[string]any{"n": 8})
	if err != nil {
		t.Fatal(err)
	}
	b := engine.NewBatch(0)
	err = b.Set(mvcc.AppendTime(key, before.UpdatedAt), mvcc.AppendRow(nil, &mvcc.Row{Version: 1, Created: before.CreatedAt, Body: changed}))
	if err = errors.Join(err, b.Commit(0), b.Close(), engine.Close()); err != nil {
		t.Fatal(err)
	}
	if err := c.Heal(ctx); err != nil {
		t.Fatal(err)
	}
	out, err := c.Command(ctx, "check")
	want := fmt.Sprintf("difference: g%d partition %d users/u7 on n3: the version of %s: is another on n3 than on n1 and n2\n", group, p, before.UpdatedAt)
	if err == nil || !strings.Contains(out, want) || strings.Count(out, "difference:") != 1 || !strings.Contains(out, "\nWRONG") {
		t.Errorf("idb check (%v) says\n%s\nwant %s", err, out, want)
	}
	t.Logf("idb check says\n%s", out)
}
