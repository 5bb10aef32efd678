package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/cmd/internal/check"
)

// watched is standard error of a command that runs: readable while it writes.
type watched struct {
	mu    sync.Mutex
	b     bytes.Buffer
	wrote chan struct{}
}

func newWatched() *watched { return &watched{wrote: make(chan struct{}, 1)} }

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case w.wrote <- struct{}{}:
	default:
	}
	return w.b.Write(p)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// running is a command under way.
type running struct {
	errOut *watched
	stop   context.CancelFunc
	code   chan int
}

func start(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{errOut: newWatched(), stop: cancel, code: make(chan int, 1)}
	go func() {
		r.code <- Main(ctx, Process{Args: args, In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: r.errOut})
	}()
	t.Cleanup(cancel)
	return r
}

// waitFor waits until text is on standard error.
func (r *running) waitFor(t *testing.T, text string) {
	t.Helper()
	late := time.After(30 * time.Second)
	for !strings.Contains(r.errOut.String(), text) {
		select {
		case <-r.errOut.wrote:
		case code := <-r.code:
			t.Fatalf("it ended with exit code %d before it said %q:\n%s", code, text, r.errOut)
		case <-late:
			t.Fatalf("it never said %q:\n%s", text, r.errOut)
		}
	}
}

func (r *running) end(t *testing.T) int {
	t.Helper()
	r.stop()
	select {
	case code := <-r.code:
		return code
	case <-time.After(30 * time.Second):
		t.Fatalf("it did not end:\n%s", r.errOut)
		return -1
	}
}

// freePorts finds n ports in a row that nobody listens on.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for range 100 {
		first, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := first.Addr().(*net.TCPAddr).Port
		open := []net.Listener{first}
		for i := 1; i < n; i++ {
			l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port+i))
			if err != nil {
				break
			}
			open = append(open, l)
		}
		for _, l := range open {
			l.Close()
		}
		if len(open) == n {
			return port
		}
	}
	t.Fatalf("no %d free ports in a row", n)
	return 0
}

// changing is what differs from run to run.
var changing = []struct {
	find    *regexp.Regexp
	replace string
}{
	{regexp.MustCompile(`20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-9:.]+Z`), "TIME"},
	{regexp.MustCompile(`in [0-9.]+ s \([0-9,]+/s\)`), "in SECONDS"},
	{regexp.MustCompile(`in [0-9.]+ s`), "in SECONDS"},
	{regexp.MustCompile(`[0-9]+% +[0-9,]+ documents +[0-9,]+/s.*\n`), "PROGRESS\n"},
	{regexp.MustCompile(`"seconds":[0-9.]+`), `"seconds":SECONDS`},
	{regexp.MustCompile(`timestamp [0-9]{10,}`), "timestamp N"},
	{regexp.MustCompile(`(imestamp":)[0-9]{10,}`), "${1}N"},
	{regexp.MustCompile(`"attempts":[0-9]+`), `"attempts":N`}, // what is committed is let go of a moment later
	{regexp.MustCompile(`, in [0-9]+ attempts`), ""},
	{regexp.MustCompile(`"transaction":"[0-9a-f-]+"`), `"transaction":"ID"`},
	{regexp.MustCompile(`--cursor [A-Za-z0-9_-]{20,}`), "--cursor CURSOR"},
}

// TestSession is a whole session with a database of one node, as a transcript,
// and then again after a restart.
func TestSession(t *testing.T) {
	dir := t.TempDir()
	var env []string
	open := func() *running {
		db := start(t, "dev", "--data", dir, "--port", "0")
		db.waitFor(t, "Ctrl-C ends it")
		_, addr, _ := strings.Cut(db.errOut.String(), "clients connect to ")
		addr, _, _ = strings.Cut(addr, "\n")
		env = []string{"IDB_ADDR=" + addr, "IDB_TIMEOUT=20s"}
		return db
	}
	files := t.TempDir()
	for name, text := range map[string]string{
		"people.ndjson":  `{"_id":"p1","name":"Ada"}` + "\n" + `{"name":"no id"}` + "\nbroken\n" + `{"_id":"p2","name":"Bob"}` + "\n",
		"transfer.txt":   "# five from ada to bob\nget-for-update accounts ada\nrequire accounts ada balance >= 5\n\nupdate accounts ada {\n  \"$inc\": {\"balance\": -5}\n}\nupdate accounts bob {\"$inc\": {\"balance\": 5}}\nscan accounts\n",
		"changed.ndjson": `{"_id":"p1","name":"Ada L."}` + "\n",
		"big.json":       `{"x":"` + strings.Repeat("y", 1<<20) + `"}`,
		"deep.json":      strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100),
	} {
		if err := os.WriteFile(filepath.Join(files, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	db := open()

	var b strings.Builder
	cursor := ""
	step := func(args ...string) {
		t.Helper()
		shown := []string{"$ idb"}
		for i, a := range args {
			args[i] = strings.NewReplacer("FILES", files, "CURSOR", cursor).Replace(a)
			if strings.ContainsAny(a, ` "{}$|`) {
				a = "'" + a + "'"
			}
			shown = append(shown, a)
		}
		code, out, errOut := runCLI(t, "", env, args...)
		if _, c, ok := strings.Cut(errOut, "--cursor "); ok {
			cursor = strings.TrimSpace(c)
		}
		text := strings.ReplaceAll(out+errOut, files, "FILES")
		for _, c := range changing {
			text = c.find.ReplaceAllString(text, c.replace)
		}
		fmt.Fprintf(&b, "%s\n%s", strings.Join(shown, " "), text)
		if code != exitOK {
			fmt.Fprintf(&b, "(exit code %d)\n", code)
		}
		b.WriteByte('\n')
	}
	note := func(s string) { fmt.Fprintf(&b, "# %s\n\n", s) }

	note("documents")
	step("put", "users", "ada", `{"name":"Ada","langs":["go"],"logins":1}`)
	step("get", "users", "ada")
	step("update", "users", "ada", `{"$inc":{"logins":1},"$push":{"langs":"sql"}}`, "--return")
	step("put", "users", `{"_id":"bob","name":"Bob"}`, "--if-absent")
	step("put", "users", "bob", `{"name":"Bob"}`, "--if-absent")
	step("put", "users", "cy", `{"name":"Cy"}`, "--if-present")
	step("put", "users", "ada", `{"name":"Eve"}`, "--if-version", "1")
	step("update", "users", "nobody", `{"$set":{"a":1}}`)
	step("update", "users", "ada", `{"$inc":{"name":1}}`)
	step("update", "users", "ada", `{"$frob":{"name":1}}`)
	step("update", "counters", "hits", `{"$inc":{"n":1}}`, "--upsert")
	step("get", "users", "ada", "nobody", "bob")
	step("get", "users", "nobody")
	step("get", "users", "ada", "--version", "1")
	step("get", "users", "ada", "--version", "9")
	step("get", "users", "ada", "--no-body")
	step("get", "users", "ada", "--at", "24h")
	step("history", "users", "ada")
	step("delete", "users", "bob", "nobody")
	step("history", "users", "bob")
	step("restore", "users", "bob", "1")
	step("get", "users", "bob")

	note("limits and refusals")
	step("put", "users", "big", "--file", "FILES/big.json")
	step("put", "users", "deep", "--file", "FILES/deep.json")
	step("put", "users", strings.Repeat("i", 513), "{}")
	step("put", "_private", "a", "{}")
	step("count", "user")
	step("get", "no/such", "a")

	note("collections")
	step("collection", "create", "orders", "--separator", "/", "--retention", "720h")
	step("collection", "create", "orders", "--separator", "/", "--retention", "720h")
	step("collection", "create", "orders")
	step("put", "orders", "acme/1", `{"total":9.5}`)
	step("put", "orders", "acme/2", `{"total":1}`)
	step("put", "orders", "zeta/1", `{"total":3}`)
	step("scan", "orders", "--prefix", "acme/")
	step("scan", "orders", "--reverse", "--limit", "1")
	step("scan", "orders", "--limit", "2", "--no-body")
	step("scan", "orders", "--cursor", "CURSOR")
	step("count", "orders")
	step("count", "orders", "--prefix", "acme/")
	step("collection", "list")
	step("collection", "show", "orders")
	step("collection", "drop", "counters", "--yes")
	step("count", "counters")
	step("cluster", "settings", "--explicit-collections")
	step("put", "fresh", "a", "{}")
	step("cluster", "settings", "--explicit-collections=false")
	step("cluster", "leaders", "together", "--wait", "20s")
	step("cluster", "leaders", "spread", "-o", "json")
	step("cluster", "leaders", "apart")

	note("import and export")
	step("import", "people", "FILES/people.ndjson")
	step("import", "people", "FILES/people.ndjson")
	step("import", "people", "FILES/changed.ndjson")
	step("import", "people", "FILES/changed.ndjson", "--replace", "-o", "json")
	step("import", "other", "FILES/people.ndjson", "--stop-on-error")
	step("export", "people")
	step("export", "people", "--file", "FILES/out.ndjson.gz")
	step("import", "copy", "FILES/out.ndjson.gz")
	step("export", "copy")
	step("export", "nothing")

	note("transactions")
	step("txn", "list")
	step("txn", "list", "-o", "json")
	step("txn", "-e", `put accounts ada {"balance":10}; put accounts bob {"balance":0}`)
	step("txn", "-e", `update accounts ada {"$inc":{"balance":-4}}; require accounts ada balance >= 0; update accounts bob {"$inc":{"balance":4}}; get accounts ada bob`)
	step("txn", "-e", `update accounts ada {"$inc":{"balance":-7}}; require accounts ada balance >= 0; update accounts bob {"$inc":{"balance":7}}`)
	step("txn", "--file", "FILES/transfer.txt", "-o", "json", "--lock")
	step("txn", "--read-only", "-e", "scan accounts; require accounts cy absent; require accounts ada version 3")
	step("txn", "--at", "24h", "-e", "get accounts ada")
	step("txn", "--read-only", "-e", "get accounts ada; delete accounts ada")
	step("txn", "-e", "insert accounts eve {}; insert accounts ada {}")
	step("txn", "-e", "update accounts ada {\"$inc\":{\"balance\":1}}; get accounts nobody")
	step("txn", "-e", "get accounts ada; gte accounts bob")
	step("txn", "-e", "require accounts ada balance = many; require accounts ada version 9")
	step("txn", "-e", "require accounts ada owner exists")
	step("txn", "--fiel", "x")
	step("txn", "-e", "get a b", "--file", "x")
	step("txn", "--file", "FILES/missing.txt")
	step("txn")
	step("scan", "accounts")
	step("txn", "show", "1a0-000000000000")
	step("txn", "show", "nonsense")
	step("txn", "abort", "1a0-000000000000")
	step("txn", "lsit")

	note("completion")
	step("__complete", "--", "get", "o")

	if code := db.end(t); code != exitOK {
		t.Fatalf("idb dev ended with exit code %d:\n%s", code, db.errOut)
	}
	db = open()
	note("after a restart")
	step("count", "orders")
	step("get", "users", "ada")
	step("history", "users", "bob")
	if code := db.end(t); code != exitOK {
		t.Fatalf("idb dev ended with exit code %d:\n%s", code, db.errOut)
	}
	golden(t, "session", b.String())
}

// TestThreeNodes is a cluster in one process: its status, an import that is
// interrupted and run again, and a node that is asked alone.
func TestThreeNodes(t *testing.T) {
	db := start(t, "dev", "--nodes", "3", "--port", "0", "--data", t.TempDir())
	db.waitFor(t, "Ctrl-C ends it")
	_, addrs, _ := strings.Cut(db.errOut.String(), "IDB_ADDR=")
	addrs, _, _ = strings.Cut(addrs, "\n")
	if strings.Count(addrs, ",") != 2 {
		t.Fatalf("addresses %q, want three", addrs)
	}
	last := addrs[strings.LastIndexByte(addrs, ',')+1:]

	code, out, errOut := runCLI(t, "", []string{"IDB_ADDR=" + last, "IDB_TIMEOUT=20s"}, "cluster", "status", "--check", "--wait", "20s", "-o", "json")
	var v statusView
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != exitOK {
		t.Fatalf("cluster status: exit code %d, %v, %s", code, err, errOut)
	}
	if len(v.Nodes) != 3 || len(v.Groups) != 4 || v.Groups[1].Leader == "" || len(v.Groups[1].Replicas) != 3 {
		t.Errorf("status %+v", v)
	}
	// All leaders on one node, and back.
	for _, place := range []string{"together", "spread"} {
		env := []string{"IDB_ADDR=" + last, "IDB_TIMEOUT=20s"}
		code, out, errOut = runCLI(t, "", env, "cluster", "leaders", place, "--wait", "30s")
		if code != exitOK || !strings.HasPrefix(out, "leaders should be "+place+" now: ") {
			t.Errorf("cluster leaders %s: exit code %d, %q, %q", place, code, out, errOut)
		}
		_, out, _ = runCLI(t, "", env, "cluster", "status", "-o", "json")
		v = statusView{}
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			t.Fatalf("cluster status: %v: %s", err, out)
		}
		led := map[string]int{}
		for _, g := range v.Groups[1:] {
			led[g.Leader]++
		}
		if want := map[string]int{"together": 1, "spread": 3}[place]; v.Leaders.String() != place || len(led) != want {
			t.Errorf("leaders %s: the status has %s, and nodes lead %v", place, v.Leaders, led)
		}
	}

	const file, lines = "../../../testdata/earthquakes.ndjson", 1707
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	var e strings.Builder
	process := Process{Args: []string{"import", "quakes", file, "--addr", addrs}, Environ: []string{"IDB_TIMEOUT=20s"}, In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &e}
	if code := Main(ctx, process); code != exitInterrupted {
		t.Errorf("an interrupted import: exit code %d, %q", code, e.String())
	}
	for round := range 2 {
		code, out, errOut = runCLI(t, "", []string{"IDB_ADDR=" + addrs, "IDB_TIMEOUT=20s"}, "import", "quakes", file, "-o", "json", "--parallel", "2")
		var sum importSummary
		if err := json.Unmarshal([]byte(out), &sum); err != nil || code != exitOK {
			t.Fatalf("import: exit code %d, %v, %s", code, err, errOut)
		}
		if want := []int64{lines, 0}[round]; sum.Inserted != want || sum.Unchanged != lines-want {
			t.Errorf("round %d: %+v", round, sum)
		}
	}
	code, out, errOut = runCLI(t, "", []string{"IDB_ADDR=" + last, "IDB_TIMEOUT=20s"}, "check", "-o", "json")
	var found struct {
		check.Report
		Verdict string
	}
	if err := json.Unmarshal([]byte(out), &found); err != nil || code != exitOK || found.Verdict != check.Equal || len(found.Groups) != 3 {
		t.Errorf("check: exit code %d, %v, %s\n%s", code, err, errOut, out)
	}
	if code, out, errOut = runCLI(t, "", []string{"IDB_ADDR=" + last}, "check", "--group", "g2"); code != exitOK || strings.Contains(out, "\ng1") || !strings.Contains(out, "\ng2 ") || !strings.HasPrefix(out[strings.LastIndex(out, "\n\n")+2:], "OK: ") {
		t.Errorf("check of g2: exit code %d, %s\n%s", code, errOut, out)
	}
	if code, _, errOut = runCLI(t, "", []string{"IDB_ADDR=" + last}, "check", "--group", "9"); code != exitUsage || !strings.Contains(errOut, "there is no group g9") {
		t.Errorf("check of g9: exit code %d, %s", code, errOut)
	}
	if _, out, errOut := runCLI(t, "", []string{"IDB_ADDR=" + last, "IDB_TIMEOUT=20s"}, "count", "quakes"); strings.TrimSpace(out) != strconv.Itoa(lines) {
		t.Errorf("count %q, %s; want %d", out, errOut, lines)
	}
	if code := db.end(t); code != exitOK {
		t.Errorf("idb dev ended with exit code %d:\n%s", code, db.errOut)
	}
}

// TestNodeThatCannotStart: one clear line and exit code 10.
func TestNodeThatCannotStart(t *testing.T) {
	dir := t.TempDir()
	port := freePorts(t, 9)
	addrs := func(p int) []string {
		return []string{
			"--client-addr", fmt.Sprintf("127.0.0.1:%d", p), "--peer-addr", fmt.Sprintf("127.0.0.1:%d", p+1),
			"--http-addr", fmt.Sprintf("127.0.0.1:%d", p+2),
		}
	}
	first := start(t, append([]string{"node", "--id", "n1", "--data", filepath.Join(dir, "n1")}, addrs(port)...)...)
	waitListening(t, first, fmt.Sprintf("127.0.0.1:%d", port))

	write := func(name, file, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("foreign", "photos.zip", "x")
	write("newer", "IDENTITY", `{"format":99,"node":"n1","incarnation":"00"}`)
	write("damaged", "IDENTITY", `{"form`)
	write("other", "IDENTITY", `{"format":7,"node":"n7","incarnation":"00"}`)
	write("older", "IDENTITY", `{"format":6,"node":"n1","incarnation":"00"}`)
	write("file", "f", "")

	for _, tc := range []struct {
		name, dir string
		port      int
		want      string
	}{
		{"a second process", "n1", port + 3, "in use by another idb process"},
		{"a foreign directory", "foreign", port + 3, "not an idb directory"},
		{"a newer format", "newer", port + 3, "format 99"},
		{"an older format", "older", port + 3, "has format 6"},
		{"a damaged identity", "damaged", port + 3, "damaged"},
		{"another node's directory", "other", port + 3, `belongs to node "n7"`},
		{"a path through a file", "file/f/n1", port + 3, "cannot be made"},
		{"ports in use", "n2", port, fmt.Sprintf("127.0.0.1:%d", port)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, out, errOut := runCLI(t, "", nil, append([]string{"node", "--id", "n1", "--data", filepath.Join(dir, tc.dir)}, append(addrs(tc.port), "--log-level", "error")...)...)
			if code != exitStart || out != "" || strings.Count(errOut, "\n") != 1 || !strings.Contains(errOut, tc.want) {
				t.Errorf("exit code %d, %q, %q; want %d and one line with %q", code, out, errOut, exitStart, tc.want)
			}
		})
	}
	if code := first.end(t); code != exitOK {
		t.Errorf("the first node ended with exit code %d:\n%s", code, first.errOut)
	}
}

func waitListening(t *testing.T, r *running, addr string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-tick.C:
		case code := <-r.code:
			t.Fatalf("the node ended with exit code %d:\n%s", code, r.errOut)
		case <-late:
			t.Fatalf("nobody listens on %s:\n%s", addr, r.errOut)
		}
	}
}
