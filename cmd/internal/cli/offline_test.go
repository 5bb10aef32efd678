package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
)

// TestMain lets the test binary be idb, for what needs a process.
func TestMain(m *testing.M) {
	if os.Getenv("IDB_TEST_MAIN") == "1" {
		os.Exit(Main(context.Background(), Process{Args: os.Args[1:], Environ: os.Environ(), In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
	}
	os.Exit(m.Run())
}

// TestWrongCommandLines shows every refusal that needs no cluster, as a
// transcript.
func TestWrongCommandLines(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"bad.yaml": "id: n1\nclient-adr: x\n", "bad.json": `{"a":`, "empty.json": " \n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	for _, c := range []struct {
		stdin string
		args  string // split at spaces; DIR is a directory
	}{
		{"", "gett users u1"},
		{"", "cluster"},
		{"", "cluster staus"},
		{"", "collection drop"},
		{"", "get users"},
		{"", "get users u1 --adress x"},
		{"", "get users u1 --version"},
		{"", "get users u1 --version x"},
		{"", "get users u1 --version 0"},
		{"", "get users u1 --version 99999999999999999999"},
		{"", "get users u1 --version 2 --at 1h"},
		{"", "get users u1 --at yesterday"},
		{"", "get users u1 --timeout 5"},
		{"", "get users u1 --timeout 0s"},
		{"", "count users extra"},
		{"", "put users u1 {a:1}"},
		{"", "put users u1 [1]"},
		{"", "put users {\"a\":1}"},
		{"", "put users u1 {\"_id\":\"u2\"}"},
		{"", "put users u1 {\"_x\":1}"},
		{"", "put users u1 {} --if-version 0"},
		{"", "put users u1 {} --if-absent --if-version 3"},
		{"", "put users u1 {} --file DIR/bad.json"},
		{"", "put users u1 --file DIR/bad.json"},
		{"", "put users u1 --file DIR/empty.json"},
		{"", "put users u1 --file DIR/none.json"},
		{"", "put users u1"},
		{"nonsense", "put users u1"},
		{"", "update users u1 {\"$set\""},
		{"", "delete users u1 u2 --if-version 3"},
		{"", "restore users u1 zero"},
		{"", "scan users --cursor %%%"},
		{"", "scan users --limit 0"},
		{"", "scan users --limit -1"},
		{"", "import users DIR/none.ndjson"},
		{"", "import users DIR"},
		{"", "import users DIR/bad.json --parallel 0"},
		{"", "import users DIR/bad.json -o table"},
		{"", "cluster init"},
		{"", "cluster init --nodes h1"},
		{"", "cluster init --nodes h1:1,h1:1"},
		{"", "cluster init --nodes h1:1 --shards many"},
		{"", "cluster init --nodes h1:1 --leaders apart"},
		{"", "cluster leaders"},
		{"", "cluster leaders apart"},
		{"", "cluster leaders together spread"},
		{"", "cluster leaders together -o table"},
		{"", "cluster status -o xml"},
		{"", "cluster settings --retention 1ms"},
		{"", "collection create users --retention long"},
		{"", "completion tcsh"},
		{"", "get users u1 --addr h:1:2"},
		{"", "get users u1 --addr http://h:1"},
		{"", "dev --nodes 2"},
		{"", "verify --duration soon"},
		{"", "verify --duration 1ms"},
		{"", "verify --clients 0"},
		{"", "verify --workload registr"},
		{"", "verify --workload banks"},
		{"", "verify --report out.txt"},
		{"", "verify --report DIR/none/out.html"},
		{"", "verify --yes"},
		{"", "verify --nodes 5"},
		{"", "verify --local --nodes 2"},
		{"", "verify --local --faults kil"},
		{"", "verify --local --addr h:1"},
		{"", "verify --durration 1s"},
		{"", "check --group x"},
		{"", "check --group g0"},
		{"", "check --rate fast"},
		{"", "check --rate 1KiB"},
		{"", "check --grop g1"},
		{"", "chek"},
		{"", "dev --port 70000"},
		{"", "node"},
		{"", "node --id n1"},
		{"", "node --id n1 --data DIR --zome a"},
		{"", "node --config DIR/bad.yaml"},
		{"", "node --config DIR/none.yaml"},
		{"", "node --id n1 --data DIR --max-document lots"},
	} {
		args := strings.Fields(strings.ReplaceAll(c.args, "DIR", dir))
		code, out, errOut := runCLI(t, c.stdin, nil, args...)
		fmt.Fprintf(&b, "$ idb %s\n%s%s(exit code %d)\n\n", c.args, out, strings.ReplaceAll(errOut, dir, "DIR"), code)
		if code == exitOK || out != "" || strings.Count(errOut, "\n") != 1 {
			t.Errorf("idb %s: exit code %d, %q on standard output, %q on standard error; want an error of one line", c.args, code, out, errOut)
		}
	}
	golden(t, "wrong", b.String())
}

// TestUnreachable: nobody listens, or somebody who never answers.
func TestUnreachable(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for _, addr := range []string{gone.Addr().String(), silent.Addr().String()} {
		for _, args := range []string{"get users u1", "put users u1 {}", "cluster status", "count users", "scan users", "export users", "collection list", "check", "verify", "import users ../../../testdata/earthquakes.ndjson", "cluster init --nodes " + addr} {
			started := time.Now()
			code, out, errOut := runCLI(t, "", []string{"IDB_ADDR=" + addr, "IDB_TIMEOUT=120ms"}, strings.Fields(args)...)
			if code != exitUnavailable || out != "" || !strings.Contains(errOut, addr) {
				t.Errorf("idb %s: exit code %d, %q, %q; want %d and the address %s", args, code, out, errOut, exitUnavailable, addr)
			}
			if took := time.Since(started); took > 5*time.Second {
				t.Errorf("idb %s took %v with a timeout of 120ms", args, took)
			}
		}
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errOut strings.Builder
	code := Main(ctx, Process{Args: []string{"get", "users", "u1", "--addr", "127.0.0.1:1"}, In: strings.NewReader(""), Out: &out, Err: &errOut})
	if code != exitInterrupted || errOut.String() != "idb: interrupted\n" {
		t.Errorf("exit code %d, %q; want %d and one word", code, errOut.String(), exitInterrupted)
	}
}

func TestExitCodes(t *testing.T) {
	for code, want := range map[wire.Code]int{
		wire.CodeBadRequest: exitRefused, wire.CodeBadDocument: exitRefused, wire.CodeBadClusterRequest: exitRefused,
		wire.CodeNotFound: exitNotFound, wire.CodeCollectionNotFound: exitNotFound, wire.CodeHistoryExpired: exitNotFound,
		wire.CodeVersionConflict: exitConflict, wire.CodeAlreadyExists: exitConflict, wire.CodeClusterExists: exitConflict,
		wire.CodeDocumentTooLarge: exitLimit, wire.CodeDiskFull: exitLimit,
		wire.CodeUnavailable: exitUnavailable, wire.CodeTimeout: exitUnavailable, wire.CodeNotInitialised: exitUnavailable, wire.CodeWrongCluster: exitUnavailable,
		wire.CodeOutcomeUnknown: exitUnknown, wire.CodeOutcomeExpired: exitUnknown,
		wire.CodeInternal: exitFault,
	} {
		for _, err := range []error{&client.Error{Code: code}, &wire.Error{Code: code}, fmt.Errorf("around: %w", &client.Error{Code: code})} {
			if got := exitCode(err); got != want {
				t.Errorf("code %d (%T): exit code %d, want %d", code, err, got, want)
			}
		}
	}
	for err, want := range map[error]int{
		nil: exitOK, errors.New("x"): exitFault, usagef("x"): exitUsage, context.DeadlineExceeded: exitUnavailable,
		withCode(exitIncomplete, &client.Error{Code: wire.CodeNotFound}): exitIncomplete,
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%v: exit code %d, want %d", err, got, want)
		}
	}
	seen := map[int]bool{}
	for _, e := range exitTable {
		if seen[e.code] || e.text == "" {
			t.Errorf("exit code %d is listed twice or has no meaning", e.code)
		}
		seen[e.code] = true
	}
}

func TestComplete(t *testing.T) {
	var b strings.Builder
	for _, words := range [][]string{
		{""}, {"c"}, {"cluster", ""}, {"cluster", "init", "--"}, {"cluster", "init", "--leaders", ""}, {"cluster", "leaders", ""}, {"get", "--a"}, {"cluster", "status", "-o", ""}, {"cluster", "status", "-o", "j"},
		{"node", "--log-level", ""}, {"completion", ""}, {"help", "col"}, {"get", "users", ""}, {"put", "--", "--"}, {"nonsense", ""},
	} {
		code, out, errOut := runCLI(t, "", []string{"IDB_ADDR=127.0.0.1:1"}, append([]string{completeCommand, "--"}, words...)...)
		if code != exitOK || errOut != "" {
			t.Errorf("%q: exit code %d, %q", words, code, errOut)
		}
		fmt.Fprintf(&b, "%q\n%s\n", words, out)
	}
	golden(t, "complete", b.String())
}

// TestBashCompletion runs the script in a real bash, which splits words at ":".
func TestBashCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash here")
	}
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "idb")); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ words, want string }{
		{`idb cl`, "cluster"},
		{`idb cluster st`, "status"},
		{`idb --addr 127.0.0.1 : 1 cluster s`, "status settings"},
		{`idb cluster status --output = j`, ""}, // one word, --output=j: no candidates
		{`idb cluster status --output j`, "json"},
	} {
		script := `source <(idb completion bash); COMP_WORDS=(` + tc.words + `); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _idb; echo "${COMPREPLY[*]}"`
		cmd := exec.CommandContext(t.Context(), bash, "--norc", "-c", script)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "IDB_TEST_MAIN=1")
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.words, got, err, tc.want)
		}
	}
}
