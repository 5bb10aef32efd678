package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNamespaces cuts one direction between two of three nodes, and sees that
// it is that one and no other. It runs in a process of its own.
func TestNamespaces(t *testing.T) {
	if !Isolated() {
		var out bytes.Buffer
		code, err := Isolate(within(t, time.Minute), []string{"-test.run=^TestNamespaces$", "-test.v", "-test.short"}, nil, &out, &out)
		if err != nil {
			t.Skipf("no namespaces here: %v", err)
		}
		if code != 0 || !strings.Contains(out.String(), "--- PASS: TestNamespaces") {
			t.Fatalf("inside: exit code %d\n%s", code, &out)
		}
		return
	}
	site, err := Namespaces(within(t, 30*time.Second), 3)
	if err != nil {
		t.Fatal(err)
	}
	defer site.Close()
	sockets := make([]net.PacketConn, 3)
	for i := range sockets {
		if sockets[i], err = socketAt(site, i); err != nil {
			t.Fatal(err)
		}
		defer sockets[i].Close()
	}
	sent := 0
	arrives := func(from, to int) bool {
		t.Helper()
		sent++
		want := strconv.Itoa(sent)
		if _, err := sockets[from].WriteTo([]byte(want), sockets[to].LocalAddr()); err != nil {
			t.Fatalf("from node %d to %d: %v", from+1, to+1, err) // it is to vanish, not to fail
		}
		_ = sockets[to].SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		b := make([]byte, 16)
		for {
			n, _, err := sockets[to].ReadFrom(b)
			if err != nil {
				return false
			}
			if string(b[:n]) == want {
				return true
			}
		}
	}
	look := func(when string, cut ...[2]int) {
		t.Helper()
		for from := range 3 {
			for to := range 3 {
				want := from != to
				for _, c := range cut {
					want = want && c != [2]int{from, to}
				}
				if from != to && arrives(from, to) != want {
					t.Errorf("%s: what node %d sends to node %d: arrives %v", when, from+1, to+1, !want)
				}
			}
		}
	}
	look("at first")
	if err := site.Cut(0, 1); err != nil {
		t.Fatal(err)
	}
	look("one direction cut", [2]int{0, 1})
	if err := errors.Join(site.Cut(1, 0), site.Cut(0, 1), site.Cut(2, 1)); err != nil {
		t.Fatal(err)
	}
	look("three cut", [2]int{0, 1}, [2]int{1, 0}, [2]int{2, 1})
	if err := site.Mend(); err != nil {
		t.Fatal(err)
	}
	look("mended")
	dir := t.TempDir()
	small, err := site.SmallDisk(0, filepath.Join(dir, "disk"), 1<<20)
	if err != nil || !small {
		t.Fatalf("no small disk: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "disk", "big"), make([]byte, 2<<20), 0o644); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("writing 2 MiB to a disk of 1 MiB: %v", err)
	}
}

// socketAt is a socket of this process in a node's network.
func socketAt(site Site, i int) (net.PacketConn, error) {
	type made struct {
		c   net.PacketConn
		err error
	}
	done := make(chan made)
	go func() {
		// The thread is in another network for ever. It must not end either: what
		// it has started would die with it.
		runtime.LockOSThread()
		defer func() { select {} }()
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", site.(*namespaces).holds[i].cmd.Process.Pid))
		if err != nil {
			done <- made{nil, err}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- made{nil, err}
			return
		}
		c, err := net.ListenPacket("udp4", address(i)+":9000")
		done <- made{c, err}
	}()
	m := <-done
	return m.c, m.err
}

// TestVerifyLocal runs idb verify --local with every fault that is possible
// here; then it interrupts one run and kills another. Nothing stays: no process,
// and no directory but the killed run's, which the next one removes.
func TestVerifyLocal(t *testing.T) {
	if testing.Short() {
		t.Skip("a cluster of processes takes its time")
	}
	tmp := t.TempDir()
	start := func(args ...string) (*exec.Cmd, *bytes.Buffer) {
		t.Helper()
		cmd := exec.Command(*command, append([]string{"verify", "--local", "--nodes", "3"}, args...)...)
		cmd.Env = append(environment(), "TMPDIR="+tmp)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = processAttributes()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd, &out
	}
	// left waits until the processes are gone and tells of the directories.
	left := func() []string {
		t.Helper()
		ctx := within(t, 20*time.Second)
		for processesOf(t, tmp) != "" {
			if ctx.Err() != nil {
				t.Fatalf("processes are left:\n%s", processesOf(t, tmp))
			}
			pause(ctx, 10*time.Millisecond)
		}
		dirs, err := filepath.Glob(filepath.Join(tmp, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return dirs
	}
	// running waits until there is a node.
	running := func() {
		t.Helper()
		ctx := within(t, 30*time.Second)
		for !strings.Contains(processesOf(t, tmp), "--id n3") {
			if ctx.Err() != nil {
				t.Fatal("no node was started")
			}
			pause(ctx, 10*time.Millisecond)
		}
	}

	page := filepath.Join(t.TempDir(), "out.html")
	cmd, out := start("--duration", "4s", "--clients", "8", "--report", page)
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "\nPASSED") || !strings.Contains(out.String(), "ok    replicas and invariants: 6 groups") {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := os.Stat(page); err != nil {
		t.Error(err)
	}
	if dirs := left(); len(dirs) > 0 {
		t.Errorf("left: %v", dirs)
	}
	t.Log(out.String())

	cmd, out = start("--duration", "1h")
	running()
	_ = cmd.Process.Signal(os.Interrupt)
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 130 {
		t.Errorf("interrupted: %v\n%s", err, out)
	}
	if dirs := left(); len(dirs) > 0 {
		t.Errorf("left after an interrupt: %v", dirs)
	}

	cmd, _ = start("--duration", "1h")
	running()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if dirs := left(); len(dirs) != 1 {
		t.Errorf("left after kill -9: %v", dirs)
	}
	cmd, out = start("--duration", "1s", "--clients", "8", "--faults", "none")
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if dirs := left(); len(dirs) > 0 {
		t.Errorf("left: %v", dirs)
	}
}

// processesOf lists processes with a word in their command line.
func processesOf(t *testing.T, word string) string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, path := range all {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(word)) {
			found = append(found, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return strings.Join(found, "\n")
}
