package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/impossibledb/idb/cmd/internal/node"
)

// Options of a cluster. Binary and Dir are required; zero means the default in
// every other field.
type Options struct {
	// Binary is the idb command, see Build.
	Binary string
	// Dir holds the nodes' directories and logs; it must be empty.
	Dir string
	// Nodes, Shards and Replicas are the cluster's. Zero means 3, 4 and 3.
	Nodes, Shards, Replicas int
	// Site is where the nodes live; the cluster closes it. Nil: Loopback.
	Site Site
	// SmallDisks is how many nodes have a disk of their own that can be filled,
	// where the site can make one.
	SmallDisks int
	// Clocks lets SetClock move the nodes' clocks.
	Clocks bool
	// NodeArgs are further arguments of idb node.
	NodeArgs []string
}

// Cluster is a formed cluster of processes on loopback.
type Cluster struct {
	Nodes []*Node
	// Spared, if not nil, is not ended by faults (KillAll apart), so that what
	// its process holds can be followed for long.
	Spared *Node

	options Options
	site    Site
	http    *http.Transport
}

// Start starts the nodes, forms the cluster with idb cluster init and waits
// until every node is ready. Close must be called unless it fails.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.Nodes, 3)
	def(&o.Shards, 4)
	def(&o.Replicas, 3)
	if o.Site == nil {
		o.Site = Loopback()
	}
	c := &Cluster{options: o, site: o.Site, http: &http.Transport{DisableKeepAlives: true}}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	for i := range o.Nodes {
		n, err := c.newNode(i)
		if err != nil {
			return nil, err
		}
		c.Nodes = append(c.Nodes, n)
	}
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return nil, err
		}
	}
	for _, n := range c.Nodes {
		if err := n.WaitAlive(ctx); err != nil {
			return nil, err
		}
	}
	if _, err := c.Command(ctx, "cluster", "init", "--nodes", c.Addrs(),
		"--shards", strconv.Itoa(o.Shards), "--replicas", strconv.Itoa(o.Replicas)); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, c.LogTails(20))
	}
	return c, c.WaitReady(ctx)
}

// smallDiskBytes is the size of a disk that can be filled, and smallReserve the
// free space below which its node refuses writes.
const (
	smallDiskBytes = 384 << 20
	smallReserve   = 64 << 20
)

// newNode is node i, not started yet.
func (c *Cluster) newNode(i int) (_ *Node, err error) {
	o := &c.options
	id := "n" + strconv.Itoa(i+1)
	n := &Node{
		ID: id, Dir: filepath.Join(o.Dir, id), log: filepath.Join(o.Dir, id+".log"),
		args: o.NodeArgs, http: &http.Client{Transport: c.http},
		command: func(args ...string) *exec.Cmd { return c.site.Command(i, o.Binary, args...) },
	}
	if n.ClientAddr, n.PeerAddr, n.HTTPAddr, err = c.site.Addresses(i); err != nil {
		return nil, err
	}
	if i < o.SmallDisks {
		small, err := c.site.SmallDisk(i, n.Dir, smallDiskBytes)
		if err != nil {
			return nil, err
		}
		if small {
			n.disk, n.Dir = n.Dir, filepath.Join(n.Dir, "data")
			n.args = append(slices.Clone(n.args), "--disk-reserve", strconv.Itoa(smallReserve))
		}
	}
	if o.Clocks {
		n.clock = filepath.Join(o.Dir, id+".clock")
		n.environ = append(n.environ, node.ClockVariable+"="+n.clock)
	}
	return n, nil
}

// Index is a node's number at the site.
func (c *Cluster) Index(n *Node) int { return slices.Index(c.Nodes, n) }

// Site is where the nodes live.
func (c *Cluster) Site() Site { return c.site }

// Addrs are the client addresses of all nodes, comma separated.
func (c *Cluster) Addrs() string {
	var all []string
	for _, n := range c.Nodes {
		all = append(all, n.ClientAddr)
	}
	return strings.Join(all, ",")
}

// URL is what client.Dial takes.
func (c *Cluster) URL() string { return "idb://" + c.Addrs() }

// Command runs the idb command against the cluster and returns what it wrote
// to standard output; its error has what it wrote to standard error.
func (c *Cluster) Command(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.options.Binary, args...)
	cmd.Env = append(environment(), "IDB_ADDR="+c.Addrs())
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return string(out), fmt.Errorf("idb %s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

// WaitReady waits until every node is ready.
func (c *Cluster) WaitReady(ctx context.Context) error {
	for _, n := range c.Nodes {
		if err := n.WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Heal ends every fault: the network is whole, disks have space, clocks are
// right, paused nodes go on, dead ones start, all are ready.
func (c *Cluster) Heal(ctx context.Context) error {
	if err := c.site.Mend(); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := errors.Join(n.Empty(), n.SetClock(0)); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		n.Resume()
		if err := n.Start(); err != nil {
			return err
		}
	}
	return c.WaitReady(ctx)
}

// KillAll ends all nodes at once, as a power cut does to their processes.
func (c *Cluster) KillAll() {
	// Every process is gone before the first is waited for, so that none sees
	// the others go for long.
	for _, n := range c.Nodes {
		n.Pause()
	}
	for _, n := range c.Nodes {
		n.Kill()
	}
}

// Died is the error of a node that ended without being told to.
func (c *Cluster) Died() error {
	var died []error
	for _, n := range c.Nodes {
		if _, err := n.Running(); err != nil {
			died = append(died, err)
		}
	}
	return errors.Join(died...)
}

// Close ends every process and what the site has made. The directories stay.
func (c *Cluster) Close() {
	for _, n := range c.Nodes {
		n.Kill()
	}
	_ = c.site.Close() // it says nothing that helps by now
	c.http.CloseIdleConnections()
}

// LogTails are the last lines of every node's log, for a failure's report.
func (c *Cluster) LogTails(lines int) string {
	var b strings.Builder
	for _, n := range c.Nodes {
		fmt.Fprintf(&b, "--- %s\n%s\n", n.ID, n.LogTail(lines))
	}
	return b.String()
}
