package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/impossibledb/idb/fsm/vfs"
)

// Node is one idb process and what outlives it: its name, directory and
// addresses. Its methods are safe for concurrent use; a fault that meets a
// process in another state than it expects does nothing.
type Node struct {
	ID         string
	Dir        string
	ClientAddr string
	PeerAddr   string
	HTTPAddr   string

	command func(args ...string) *exec.Cmd // the idb command, where the node lives
	args    []string                       // beyond the addresses
	environ []string                       // beyond this process's
	log     string                         // file
	clock   string                         // file that its clock's offset is read from; empty: none
	disk    string                         // directory of a small disk of its own; empty: none
	http    *http.Client

	mu      sync.Mutex
	process *process // guarded by mu; nil while down
	paused  bool     // guarded by mu
	starts  int      // guarded by mu
}

// process is one start of a node.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and was waited for
	err  error         // how it ended; read after done
}

// Start starts the process; it is not ready yet. A running one is left alone.
func (n *Node) Start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil {
		return nil
	}
	log, err := os.OpenFile(n.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	n.starts++
	fmt.Fprintf(log, "--- start %d\n", n.starts)
	args := append([]string{"node", "--id", n.ID, "--data", n.Dir, "--client-addr", n.ClientAddr,
		"--peer-addr", n.PeerAddr, "--http-addr", n.HTTPAddr}, n.args...)
	cmd := n.command(args...)
	cmd.Env = append(environment(), n.environ...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", n.ID, err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	n.process, n.paused = p, false
	return nil
}

// environment is this process's without the settings of another idb; those of
// tests stay.
func environment() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "IDB_") || strings.HasPrefix(e, "IDB_TEST_") {
			env = append(env, e)
		}
	}
	return env
}

// Kill ends the process as kill -9 does and waits until it is gone.
func (n *Node) Kill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return
	}
	_ = n.process.cmd.Process.Kill()
	<-n.process.done
	n.process, n.paused = nil, false
}

// Stop asks the process to end (SIGTERM) and returns its error if it did not
// end well or not before ctx did; then it is killed.
func (n *Node) Stop(ctx context.Context) error {
	n.mu.Lock()
	p := n.process
	if p == nil {
		n.mu.Unlock()
		return nil
	}
	if n.paused {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	n.process, n.paused = nil, false
	n.mu.Unlock()
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s after SIGTERM: %w\n%s", n.ID, p.err, n.LogTail(20))
		}
		return nil
	case <-ctx.Done():
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not end after SIGTERM: %w\n%s", n.ID, ctx.Err(), n.LogTail(20))
	}
}

// Pause stops the process where it is (SIGSTOP): it keeps its sockets and
// answers nothing.
func (n *Node) Pause() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil && n.process.cmd.Process.Signal(syscall.SIGSTOP) == nil {
		n.paused = true
	}
}

// Resume lets a paused process go on.
func (n *Node) Resume() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil && n.paused && n.process.cmd.Process.Signal(syscall.SIGCONT) == nil {
		n.paused = false
	}
}

// Running says whether the process is there, and its error if it ended on its
// own: nodes end when they are told to, or because something failed.
func (n *Node) Running() (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return false, nil
	}
	select {
	case <-n.process.done:
		return false, fmt.Errorf("%s ended by itself (%v); its log ends with\n%s", n.ID, n.process.err, n.LogTail(20))
	default:
		return true, nil
	}
}

// SetClock moves the node's clock to so much before or after the right time.
func (n *Node) SetClock(offset time.Duration) error {
	if n.clock == "" {
		return nil
	}
	// Replaced in one step: the node may read at any moment.
	if err := os.WriteFile(n.clock+".new", []byte(offset.String()), 0o644); err != nil {
		return err
	}
	return os.Rename(n.clock+".new", n.clock)
}

// HasSmallDisk says whether Fill can do anything.
func (n *Node) HasSmallDisk() bool { return n.disk != "" }

// Fill takes the space of the node's small disk until about so much is left.
func (n *Node) Fill(leave uint64) error {
	if n.disk == "" {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(n.disk, ballast), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	for {
		space, err := vfs.SpaceOf(vfs.OS(), n.disk)
		if err != nil || space.FreeBytes <= leave {
			return err
		}
		if _, err := f.Write(chunk[:min(uint64(len(chunk)), space.FreeBytes-leave)]); err != nil {
			if errors.Is(err, syscall.ENOSPC) {
				return nil
			}
			return err
		}
	}
}

// Empty gives the space back.
func (n *Node) Empty() error {
	if n.disk == "" {
		return nil
	}
	if err := os.Remove(filepath.Join(n.disk, ballast)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// ballast is the file that fills a disk.
const ballast = "ballast"

// PID is the process's number; 0 while it is down.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return 0
	}
	return n.process.cmd.Process.Pid
}

// WaitReady waits until /readyz says so.
func (n *Node) WaitReady(ctx context.Context) error { return n.waitHTTP(ctx, "/readyz") }

// WaitAlive waits until the process answers at all, cluster or not.
func (n *Node) WaitAlive(ctx context.Context) error { return n.waitHTTP(ctx, "/healthz") }

func (n *Node) waitHTTP(ctx context.Context, path string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := n.Running(); err != nil {
			return err
		}
		_, err := n.fetch(ctx, path)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %s: %w (last answer: %v); its log ends with\n%s", n.ID, path, ctx.Err(), err, n.LogTail(20))
		}
	}
}

// fetch reads a page of the node's HTTP port; another status than 200 is an
// error with the page's text.
func (n *Node) fetch(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTPAddr+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := n.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(body)))
	}
	return body, err
}

// LogTail is the last lines that the node wrote.
func (n *Node) LogTail(lines int) string {
	b, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
