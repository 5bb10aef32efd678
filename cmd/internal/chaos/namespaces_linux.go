package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A program that breaks a network starts itself again in namespaces of its own
// (Isolated): network, mounts, and without root a user namespace. In there it is
// the router between its nodes, each of which has a network namespace:
//
//	        this process: 10.93.1.1   10.93.2.1   …  (forwards)
//	                          │veth       │veth
//	node 0: 10.93.1.2 ────────┘   node 1: 10.93.2.2 …
//
// A cut is a rule of the router that drops what one address sends to another.
// Nothing is named or mounted outside, so when the processes are gone, whatever
// ended them, everything else is gone too.

// The words that make this program something else than a command line.
const (
	holdWord  = "__hold"  // keeps a network namespace until standard input ends
	enterWord = "__enter" // runs a command in the network namespace of a process
)

// isolatedVariable says that this is the process inside.
const isolatedVariable = "IDB_TEST_ISOLATED"

// Stub runs what this program is when it was started as one of its own helpers;
// false if it was not.
func Stub(args []string) (ran bool, err error) {
	switch {
	case len(args) == 1 && args[0] == holdWord:
		signal.Ignore(os.Interrupt) // Ctrl-C is for whoever started this
		_, err := io.Copy(io.Discard, os.Stdin)
		return true, err
	case len(args) >= 3 && args[0] == enterWord:
		return true, enter(args[1], args[2:])
	}
	return false, nil
}

// enter becomes another program in the network of a process.
func enter(pid string, command []string) error {
	runtime.LockOSThread() // for ever: the thread is in another network
	ns, err := os.Open("/proc/" + pid + "/ns/net")
	if err != nil {
		return err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the network of process %s: %w", pid, err)
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	// The death signal that the parent asked for is the first thread's; this one
	// takes its place.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	return syscall.Exec(path, command, os.Environ())
}

// Isolated says whether this process lives in namespaces of its own.
func Isolated() bool { return os.Getenv(isolatedVariable) != "" }

// Isolate runs this program again, with these arguments, in namespaces of its
// own and answers its exit code. An error says that it could not be begun: the
// caller may go on without. The end of ctx is passed on as an interrupt.
func Isolate(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) (code int, err error) {
	if _, err := exec.LookPath("ip"); err != nil {
		return 0, errors.New("the ip command is missing (iproute2)")
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), isolatedVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // the terminal's signals come here, and are passed on once
	}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}}
	}
	// The death signal is the thread's: it must outlive the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("namespaces are not permitted here: %w", err)
	}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ctx.Done():
			_ = cmd.Process.Signal(syscall.SIGTERM)
		case <-ended:
		}
	})
	err = cmd.Wait()
	close(ended)
	wg.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// namespaces is a site of network namespaces.
type namespaces struct {
	self  string // this program
	holds []*holder

	mu     sync.Mutex
	cuts   [][2]int // guarded by mu
	mounts []string // guarded by mu
}

// holder is a process that keeps a node's namespace while the node is down.
type holder struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

// Namespaces makes a site for so many nodes. It works only in a process that
// is Isolated, because it changes the network of the process that calls it.
func Namespaces(ctx context.Context, nodes int) (_ Site, err error) {
	if !Isolated() {
		return nil, errors.New("chaos: this process has no namespaces of its own")
	}
	n := &namespaces{}
	defer func() {
		if err != nil {
			_ = n.Close()
		}
	}()
	if n.self, err = os.Executable(); err != nil {
		return nil, err
	}
	// What is mounted here stays here.
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("making mounts private: %w", err)
	}
	if err := ip(ctx, "link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	for _, s := range []string{"net/ipv4/ip_forward=1", "net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0"} {
		name, value, _ := strings.Cut(s, "=")
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
			return nil, err
		}
	}
	for i := range nodes {
		if err := n.add(ctx, i); err != nil {
			return nil, fmt.Errorf("the network of node %d: %w", i+1, err)
		}
	}
	return n, nil
}

// add makes node i's namespace and its wire.
func (n *namespaces) add(ctx context.Context, i int) error {
	cmd := exec.Command(n.self, holdWord)
	cmd.Env = environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.holds = append(n.holds, &holder{cmd, stdin})
	pid, wire := strconv.Itoa(cmd.Process.Pid), "v"+strconv.Itoa(i+1)
	for _, args := range [][]string{
		{"link", "add", "name", wire, "type", "veth", "peer", "name", "eth0", "netns", pid},
		{"addr", "add", router(i) + "/24", "dev", wire},
		{"link", "set", wire, "up"},
	} {
		if err := ip(ctx, args...); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", address(i) + "/24", "dev", "eth0"},
		{"link", "set", "eth0", "up"},
		{"route", "add", "default", "via", router(i)},
	} {
		if err := run(exec.CommandContext(ctx, n.self, append([]string{enterWord, pid, "ip"}, args...)...)); err != nil {
			return err
		}
	}
	return nil
}

func address(i int) string { return fmt.Sprintf("10.93.%d.2", i+1) }
func router(i int) string  { return fmt.Sprintf("10.93.%d.1", i+1) }

func ip(ctx context.Context, args ...string) error {
	return run(exec.CommandContext(ctx, "ip", args...))
}

// run is a command whose error has what it said.
func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (n *namespaces) Addresses(i int) (client, peer, http string, err error) {
	at := address(i)
	return at + ":7400", at + ":7401", at + ":7402", nil
}

func (n *namespaces) Command(i int, path string, args ...string) *exec.Cmd {
	pid := strconv.Itoa(n.holds[i].cmd.Process.Pid)
	cmd := exec.Command(n.self, append([]string{enterWord, pid, path}, args...)...)
	cmd.SysProcAttr = processAttributes()
	return cmd
}

func (n *namespaces) Network() (bool, string) {
	return true, "a network namespace for each node, joined by veth pairs"
}

// cutContext bounds a change of rules.
func cutContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 5*time.Second)
}

func (n *namespaces) Cut(from, to int) error {
	ctx, cancel := cutContext()
	defer cancel()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.cuts {
		if c == [2]int{from, to} {
			return nil
		}
	}
	if err := ip(ctx, "rule", "add", "from", address(from), "to", address(to), "blackhole"); err != nil {
		return err
	}
	n.cuts = append(n.cuts, [2]int{from, to})
	return nil
}

func (n *namespaces) Mend() error {
	ctx, cancel := cutContext()
	defer cancel()
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(n.cuts) > 0 {
		c := n.cuts[len(n.cuts)-1]
		if err := ip(ctx, "rule", "del", "from", address(c[0]), "to", address(c[1]), "blackhole"); err != nil {
			return err
		}
		n.cuts = n.cuts[:len(n.cuts)-1]
	}
	return nil
}

func (n *namespaces) SmallDisk(_ int, dir string, bytes int64) (bool, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		return false, nil //nolint:nilerr // not permitted: the node has the disk of the others
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mounts = append(n.mounts, dir)
	return true, nil
}

func (n *namespaces) Close() error {
	for _, h := range n.holds {
		_ = h.stdin.Close()
		_ = h.cmd.Process.Kill()
		_ = h.cmd.Wait()
	}
	n.holds = nil
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, dir := range n.mounts {
		errs = append(errs, unix.Unmount(dir, unix.MNT_DETACH))
	}
	n.mounts = nil
	return errors.Join(errs...)
}
