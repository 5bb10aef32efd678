package sim

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
)

// calls are the requests between nodes that were answered, by kind, besides
// those of Raft and the map, which also come without cause.
func calls(t *testing.T, c *Cluster, port *Port) map[string]int {
	t.Helper()
	web := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return port.Dial(ctx, addr)
	}}}
	sums := map[string]int{}
	for _, n := range c.Nodes {
		answer, err := web.Get("http://" + httpAddr(n.ID) + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range peerCalls.FindAllStringSubmatch(string(text), -1) {
			count, err := strconv.Atoi(m[2])
			if err != nil {
				t.Fatal(err)
			}
			if kind := m[1]; !strings.HasPrefix(kind, "raft_") && !strings.HasPrefix(kind, "placement") && !strings.HasSuffix(kind, "hello") && !strings.HasSuffix(kind, "status") {
				sums[kind] += count
			}
		}
	}
	return sums
}

var peerCalls = regexp.MustCompile(`(?m)^idb_requests_total\{kind="([a-z_]+)",outcome="ok",port="peer"\} ([0-9]+)$`)

// TestCostInSeries measures what a client waits for, one thing after the other:
// in virtual time, with a network where only messages between nodes take time,
// an operation takes as many times a message's way as there are messages in
// series; and with a disk where only syncs do, as many times a sync as there are
// syncs in series, of the leader and of a majority. docs/transactions.md has the
// numbers ("What it costs").
func TestCostInSeries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		c := NewCluster(ClusterOptions{Shards: 2, Log: testLog()})
		defer c.Close()
		if err := c.Form(ctx); err != nil {
			t.Fatal(err, c.Notes())
		}
		db, err := c.Dial(ctx, "c1")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		things := db.Collection("things")
		if _, err := db.CreateCollection(ctx, "things", client.CollectionOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // leaderships are where they should be
		topology, err := db.Topology(ctx)
		if err != nil {
			t.Fatal(err)
		}
		ids := map[uint32]string{} // one document of each group
		for i := 0; len(ids) < 2; i++ {
			id := fmt.Sprint("t", i)
			g := topology.Owners[wire.Partition("things", "", id, uint32(len(topology.Owners)))]
			if ids[g] == "" {
				ids[g] = id
			}
		}
		a, b := ids[1], ids[2]
		for _, id := range []string{a, b} {
			if _, err := things.Put(ctx, id, client.D{"n": 0}); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range c.Nodes {
			if n.Leads(1) && n.Leads(2) {
				t.Fatal("one node leads both groups")
			}
		}

		// conditions: one thing takes time, all others none.
		const way, sync = 20 * time.Millisecond, 10 * time.Millisecond
		machines := []string{"c1", "n1", "n2", "n3"}
		conditions := func(message, disk time.Duration) {
			for _, from := range machines {
				for _, to := range machines {
					c.Net.Change(from, to, func(l *Link) {
						l.Latency, l.Jitter = 0, 0
						if from != "c1" && to != "c1" {
							l.Latency = message
						}
					})
				}
			}
			for _, n := range c.Nodes {
				n.Drive.Slow(disk, 0)
			}
			time.Sleep(5 * time.Second) // what was on its way has arrived
		}
		put := func(ids ...string) func() error {
			return func() error {
				tx := db.Begin()
				for _, id := range ids {
					if err := tx.Collection("things").Put(id, client.D{"n": 1}); err != nil {
						return err
					}
				}
				_, err := tx.Commit(ctx)
				return err
			}
		}
		// read measures the end of a read-only transaction alone, or all of it.
		read := func(whole bool, took *time.Duration) func() error {
			return func() error {
				began := time.Now()
				tx := db.Begin(client.ReadOnly())
				if _, err := tx.Collection("things").GetMany(ctx, []string{a, b}); err != nil {
					return err
				}
				if !whole {
					began = time.Now()
				}
				_, err := tx.Commit(ctx)
				*took = time.Since(began)
				return err
			}
		}
		port := c.Net.Join("watcher")
		// least counts what is least of several times, for the groups have
		// entries of their own.
		least := func(what string, do func() error) (syncs int64, called string) {
			syncs = 1 << 60
			var few map[string]int
			for range 8 {
				before, written := calls(t, c, port), int64(0)
				for _, n := range c.Nodes {
					written -= n.Drive.syncs.Load()
				}
				if err := do(); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				time.Sleep(1500 * time.Millisecond) // everything has come to its end
				for _, n := range c.Nodes {
					written += n.Drive.syncs.Load()
				}
				syncs = min(syncs, written)
				now := calls(t, c, port)
				for kind := range now {
					if now[kind] -= before[kind]; now[kind] == 0 {
						delete(now, kind)
					}
				}
				if few == nil || fmt.Sprint(now) < fmt.Sprint(few) {
					few = now
				}
			}
			return syncs, fmt.Sprint(few)
		}
		idle, _ := least("nothing", func() error { return nil })
		for _, x := range []struct {
			what string
			do   func() error
			// syncs are of all nodes: an entry is synced by the leader and two
			// followers. -1: not counted, for reads at a timestamp have their
			// groups raise a ceiling every few seconds.
			syncs int64
			calls string
		}{
			{"a commit within one group", put(a), 3, "map[]"},
			{"a commit over two groups", put(a, b), 5 * 3, "map[group_txn:2]"},                                                 // prepare and resolve
			{"a read-only transaction over two groups", read(true, new(time.Duration)), -1, "map[confirm:2 group_txn_read:1]"}, // each leader asks one follower
		} {
			syncs, called := least(x.what, x.do)
			if syncs -= idle; x.syncs >= 0 && syncs != x.syncs || called != x.calls {
				t.Errorf("%s: %d syncs of all nodes and calls %s, docs/transactions.md says %d and %s", x.what, syncs, called, x.syncs, x.calls)
			}
		}
		var took time.Duration
		for _, x := range []struct {
			what            string
			do              func() error
			took            *time.Duration // nil: all of do
			messages, syncs int
		}{
			{"a single write", func() error { _, err := things.Put(ctx, a, client.D{"n": 1}); return err }, nil, 2, 1},
			{"a commit within one group", put(a), nil, 2, 1},
			{"a commit over two groups", put(a, b), nil, 4, 2}, // each node's log has both entries
			{"a read-only transaction over two groups", read(true, &took), &took, 4, 0},
			{"the end of a read-only transaction over two groups", read(false, &took), &took, 4, 0},
		} {
			// The groups' own entries and heartbeats come between now and then:
			// what counts is the least, of moments that differ.
			least := func(unit time.Duration) float64 {
				best := time.Hour
				for i := range 12 {
					time.Sleep(time.Second + time.Duration(i)*7*time.Millisecond)
					began := time.Now()
					if err := x.do(); err != nil {
						t.Fatalf("%s: %v", x.what, err)
					}
					d := time.Since(began)
					if x.took != nil {
						d = *x.took
					}
					best = min(best, d)
				}
				return float64(best) / float64(unit)
			}
			conditions(way, 0)
			messages := least(way)
			conditions(0, sync)
			syncs := least(sync)
			t.Logf("%s: %.2f messages, %.2f syncs in series", x.what, messages, syncs)
			if off := messages - float64(x.messages); off < 0 || off > 0.5 {
				t.Errorf("%s: %.2f messages between nodes in series, docs/transactions.md says %d", x.what, messages, x.messages)
			}
			if off := syncs - float64(x.syncs); off < 0 || off > 0.5 {
				t.Errorf("%s: %.2f syncs in series, docs/transactions.md says %d", x.what, syncs, x.syncs)
			}
		}
	})
}
