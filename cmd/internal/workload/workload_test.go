package workload

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/node"
)

// startDev is a cluster in this process: its addresses.
func startDev(t *testing.T, nodes int) []string {
	t.Helper()
	d, err := node.StartDev(t.Context(), node.DevConfig{Dir: t.TempDir(), Nodes: nodes}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := d.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return d.Addrs()
}

func dial(t *testing.T, url string) []*client.DB {
	t.Helper()
	var dbs []*client.DB
	for range 3 {
		db, err := client.Dial(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		dbs = append(dbs, db)
	}
	return dbs
}

// TestTransactions: nor with transactions under contention, some of whose
// clients die.
func TestTransactions(t *testing.T) {
	dbs := dial(t, "idb://"+strings.Join(startDev(t, 3), ","))
	ws, err := New(Options{Prefix: "tx", Documents: 3, PerDocument: 200}, "bank", "append", "skew", "unique")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	l, err := Start(ctx, dbs, LoadOptions{Clients: 4, Impatience: 0.03, Seed: 5}, ws...)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Stop()
	// Whether an impatient client loses its answer is a race with the answer,
	// so the load goes on until every workload has lost one.
	for !enough(l.Counts(), 240) {
		select {
		case <-ctx.Done():
			t.Fatalf("%v: %+v", ctx.Err(), l.Counts())
		case <-time.After(10 * time.Millisecond):
		}
	}
	l.Stop()
	verdicts := l.Judge(ctx, dbs[0])
	t.Log("\n" + Text(verdicts))
	if err := Err(verdicts); err != nil {
		t.Fatal(err)
	}
}

// enough: every workload has so many answers, and an unknown outcome.
func enough(all map[string]Counts, answers int64) bool {
	for _, c := range all {
		if c.Answered < answers || c.Unknown == 0 {
			return false
		}
	}
	return true
}

// TestHealthy: nothing is found wrong with a healthy cluster, some of whose
// answers nobody waits for, and its collections are gone afterwards.
func TestHealthy(t *testing.T) {
	dbs := dial(t, "idb://"+strings.Join(startDev(t, 3), ","))
	ws, err := New(Options{Prefix: "scratch", PerDocument: 200})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := Start(ctx, dbs, LoadOptions{Operations: 150, Impatience: 0.03, Seed: 3}, ws...)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Stop()
	if err := l.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	l.Stop()
	verdicts := l.Judge(ctx, dbs[0])
	if err := Err(verdicts); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + Text(verdicts))
	unknown := int64(0)
	for _, v := range verdicts {
		if v.Counts.Answered < 350 {
			t.Errorf("%s: only %d answers", v.Workload, v.Counts.Answered)
		}
		unknown += v.Counts.Unknown
	}
	if unknown == 0 {
		t.Error("impatient clients lost no answer")
	}
	if err := l.Cleanup(ctx, dbs[0]); err != nil {
		t.Fatal(err)
	}
	left, err := dbs[0].Collections(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range left {
		t.Errorf("%s is left behind", c.Name)
	}
}
