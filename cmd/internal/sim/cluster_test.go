package sim

import (
	"context"
	"fmt"
	"os"
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
		t.Log("done after", c.since())
	})
}
