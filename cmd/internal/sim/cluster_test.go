package sim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client"
)

func testLog() hclog.Logger {
	if os.Getenv("IDB_TEST_SIM_LOG") == "" {
		return nil
	}
	return hclog.New(&hclog.LoggerOptions{Level: hclog.LevelFromString(os.Getenv("IDB_TEST_SIM_LOG")), Output: os.Stderr,
		TimeFormat: "05.000", TimeFn: time.Now})
}

// TestCluster: three machines form a cluster, write, read, and end.
func TestCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := NewCluster(ClusterOptions{Log: testLog()})
		defer c.Close()
		if err := c.Form(ctx); err != nil {
			t.Fatal(err, c.Notes())
		}
		t.Log("formed after", c.since())
		db, err := c.Dial(ctx, "c1")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.CreateCollection(ctx, "things", client.CollectionOptions{}); err != nil {
			t.Fatal(err)
		}
		things := db.Collection("things")
		for i := range 20 {
			if _, err := things.Put(ctx, fmt.Sprintf("t%d", i), client.D{"n": i}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 20 {
			if _, err := things.Get(ctx, fmt.Sprintf("t%d", i)); err != nil {
				t.Fatal(err)
			}
		}
		// Nodes hear of changes one after the other; whoever asks is told all.
		for i := range 12 {
			made, err := db.CreateCollection(ctx, fmt.Sprintf("more%d", i), client.CollectionOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if list, err := db.Collections(ctx); err != nil || !slices.ContainsFunc(list, func(x client.CollectionInfo) bool { return x.ID == made.ID }) {
				t.Fatalf("%s was created and is not in the list: %v, %v", made.Name, list, err)
			}
			if err := db.DropCollection(ctx, made.Name); err != nil {
				t.Fatal(err)
			}
			if x, err := db.DescribeCollection(ctx, made.Name); !errors.Is(err, client.ErrCollectionNotFound) {
				t.Fatalf("%s was dropped, and is described: %+v, %v", made.Name, x, err)
			}
		}
		t.Log("done after", c.since())
	})
}
