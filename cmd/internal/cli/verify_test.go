package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/cmd/internal/verify"
)

// TestVerify runs against a cluster of one node: it passes, it leaves nothing
// behind, interrupted or not, and it finds and removes what others have left.
func TestVerify(t *testing.T) {
	db := start(t, "dev", "--data", t.TempDir(), "--port", "0")
	db.waitFor(t, "Ctrl-C ends it")
	_, addr, _ := strings.Cut(db.errOut.String(), "clients connect to ")
	addr, _, _ = strings.Cut(addr, "\n")
	env := []string{"IDB_ADDR=" + addr, "IDB_TIMEOUT=20s"}
	collections := func() string {
		t.Helper()
		code, out, errOut := runCLI(t, "", env, "collection", "list")
		if code != exitOK {
			t.Fatalf("exit code %d: %s", code, errOut)
		}
		return out
	}

	page := filepath.Join(t.TempDir(), "out.html")
	code, out, errOut := runCLI(t, "", env, "verify", "--duration", "1s", "--clients", "8", "--report", page, "-o", "json")
	var verdict struct {
		Passed    bool
		Workloads []struct {
			Name     string
			Answered int64
		}
	}
	if err := json.Unmarshal([]byte(out), &verdict); err != nil || code != exitOK || !verdict.Passed || len(verdict.Workloads) < 3 {
		t.Fatalf("exit code %d, %v, %s\n%s", code, err, errOut, out)
	}
	for _, w := range verdict.Workloads {
		if w.Answered == 0 {
			t.Errorf("workload %s did nothing", w.Name)
		}
	}
	html, err := os.ReadFile(page)
	if err != nil || !strings.Contains(string(html), "</html>") {
		t.Errorf("the page: %v", err)
	}
	if beside, err := os.ReadFile(strings.TrimSuffix(page, "html") + "json"); err != nil || string(beside) != out {
		t.Errorf("the file beside the page is not what was printed (%v)", err)
	}
	if left := collections(); strings.Contains(left, verify.ScratchPrefix) {
		t.Errorf("left behind:\n%s", left)
	}

	// Interrupted in the middle.
	r := start(t, "verify", "--duration", "1h", "--workload", "register,set", "--addr", addr, "--timeout", "5s")
	for late := time.Now().Add(30 * time.Second); !strings.Contains(collections(), verify.ScratchPrefix); {
		if time.Now().After(late) {
			t.Fatalf("it never began:\n%s", r.errOut)
		}
	}
	if code := r.end(t); code != exitInterrupted {
		t.Errorf("interrupted: exit code %d\n%s", code, r.errOut)
	}
	if left := collections(); strings.Contains(left, verify.ScratchPrefix) {
		t.Errorf("left behind:\n%s", left)
	}

	// What a crash would leave.
	for _, name := range []string{verify.ScratchPrefix + "t0-1-set", "users"} {
		if code, _, errOut := runCLI(t, "", env, "collection", "create", name); code != exitOK {
			t.Fatal(errOut)
		}
	}
	if code, _, errOut := runCLI(t, "", env, "verify", "--clean"); code != exitOK || !strings.Contains(errOut, "0 collections removed") || !strings.Contains(errOut, "--yes") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	if code, _, errOut := runCLI(t, "", env, "verify", "--clean", "--yes"); code != exitOK || !strings.Contains(errOut, "1 collection removed") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	if left := collections(); strings.Contains(left, verify.ScratchPrefix) || !strings.Contains(left, "users") {
		t.Errorf("left behind, or too much removed:\n%s", left)
	}
	if code := db.end(t); code != exitOK {
		t.Errorf("idb dev ended with exit code %d:\n%s", code, db.errOut)
	}
}
