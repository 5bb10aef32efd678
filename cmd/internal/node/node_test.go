package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
)

func startDev(t *testing.T, dir string, nodes int) *Dev {
	t.Helper()
	d, err := StartDev(t.Context(), DevConfig{Dir: dir, Nodes: nodes}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func stopDev(t *testing.T, d *Dev) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := d.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
}

func dial(t *testing.T, d *Dev) *client.DB {
	t.Helper()
	db, err := client.Dial(t.Context(), "idb://"+strings.Join(d.Addrs(), ","))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// A cluster of three nodes in one process is formed, serves, stops, starts
// again from its directories, and leaves no goroutine behind.
func TestDevClusterKeepsDocuments(t *testing.T) {
	before := runtime.NumGoroutine()
	dir := t.TempDir()
	const docs = 200

	d := startDev(t, dir, 3)
	db := dial(t, d)
	for i := range docs {
		if _, err := db.Collection("things").Put(t.Context(), fmt.Sprint("thing-", i), map[string]any{"n": i}); err != nil {
			t.Fatal(err)
		}
	}
	db.Close()
	stopDev(t, d)

	d = startDev(t, dir, 3)
	db = dial(t, d)
	n, err := db.Collection("things").Count(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n != docs {
		t.Fatalf("%d documents after a restart, want %d", n, docs)
	}
	var thing struct {
		N int `json:"n"`
	}
	doc, err := db.Collection("things").Get(t.Context(), "thing-17")
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Decode(&thing); err != nil || thing.N != 17 {
		t.Fatalf("thing-17 is %+v, %v", thing, err)
	}
	db.Close()
	stopDev(t, d)

	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for runtime.NumGoroutine() > before+2 { // the runtime's own come and go
		select {
		case <-tick.C:
		case <-deadline:
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Start(t.Context(), Config{ID: "n1", DataDir: t.TempDir(), ClientAddr: "127.0.0.1:0", PeerAddr: l.Addr().String(), HTTPAddr: "127.0.0.1:0"}, nil)
	want := fmt.Sprintf("peer port %s is in use (stop what uses it, or choose another with --peer-addr)", l.Addr())
	if err == nil || err.Error() != want {
		t.Fatalf("error is %v, want %q", err, want)
	}
}

// A node that belongs to no cluster says so, and is alive.
func TestNodeWithoutCluster(t *testing.T) {
	n, err := Start(t.Context(), Config{ID: "n1", DataDir: t.TempDir(), ClientAddr: "127.0.0.1:0", PeerAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Shutdown(context.Background())
	for path, want := range map[string]struct {
		code int
		text string
	}{
		"/healthz": {200, "ok\n"},
		"/readyz":  {503, "node n1 belongs to no cluster yet (run idb cluster init)\n"},
	} {
		code, text := get(t, "http://"+n.HTTPAddr()+path)
		if code != want.code || text != want.text {
			t.Errorf("%s: %d %q, want %d %q", path, code, text, want.code, want.text)
		}
	}
}

// Every family of metrics that the documentation names is there.
func TestMetrics(t *testing.T) {
	d := startDev(t, t.TempDir(), 1)
	defer stopDev(t, d)
	db := dial(t, d)
	if _, err := db.Collection("things").Put(t.Context(), "a", map[string]any{"n": 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Collection("things").Get(t.Context(), "nope"); err == nil {
		t.Fatal("a document that was never written is found")
	}
	_, text := get(t, "http://"+d.Nodes()[0].HTTPAddr()+"/metrics")
	for _, want := range []string{
		`idb_requests_total{kind="write",outcome="ok",port="client"} `,
		`idb_request_seconds_bucket{kind="write",port="client",le="`,
		`idb_group_leader{group="placement"} 1`, `idb_group_leader{group="g1"} 1`,
		`idb_group_applied_index{group="g1"}`, `idb_group_queue_commands{group="g1"} 0`,
		`idb_engine_bytes{engine="log",use="disk"}`, `idb_engine_total{engine="state",what="flushed_bytes"}`,
		`idb_engine_files{engine="state",kind="values"}`, `idb_engine_total{engine="state",what="flushes"}`, `idb_engine_total{engine="state",what="rows"}`,
		`idb_ready 1`, `idb_disk_full 0`, `go_goroutines `, `process_open_fds `,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// Raft's loops tell of new leaders while the disk may hold up a start: what
// they call must not wait for it.
func TestKickWaitsForNothing(t *testing.T) {
	n := new(Node)
	n.mu.Lock() // as StartPlacement has it while it opens its store
	defer n.mu.Unlock()
	n.kick()
}
