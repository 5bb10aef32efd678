package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/shardgroup"
)

// ClusterOptions shape a cluster. The zero value works.
type ClusterOptions struct {
	Nodes      int // 1 to 7; zero means 3
	Shards     int // shard groups; zero means 1
	Replicas   int // of each group; zero means all nodes, at most 5
	Partitions int // a prime; zero means 7
	// Host may change what every node's host is opened with.
	Host func(*shardgroup.Config)
	// Log hears what the nodes say. Nil: nobody does.
	Log hclog.Logger
	// Seed makes every choice of network and drives. Raft's are its own.
	Seed uint64
}

func (o ClusterOptions) withDefaults() ClusterOptions {
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Shards == 0 {
		o.Shards = 1
	}
	if o.Replicas == 0 {
		o.Replicas = min(o.Nodes, 5)
	}
	if o.Partitions == 0 {
		o.Partitions = 7
	}
	if o.Host == nil {
		o.Host = func(*shardgroup.Config) {}
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return o
}

// Cluster is machines, a network between them, and clients. It belongs to one
// synctest bubble.
type Cluster struct {
	o     ClusterOptions
	Net   *Network
	Nodes []*Node
	log   hclog.Logger
	begun time.Time

	mu      sync.Mutex
	closed  bool     // guarded by mu
	notes   []string // guarded by mu; what happened, for the report
	fatals  []string // guarded by mu; processes that ended themselves
	halts   []string // guarded by mu; replicas that stopped for good
	replays int      // groups whose log was replayed in full

	bg sync.WaitGroup // lives of processes
}

// NewCluster makes machines that are off.
func NewCluster(o ClusterOptions) *Cluster {
	o = o.withDefaults()
	c := &Cluster{
		o: o, log: o.Log, begun: time.Now(),
		Net: NewNetwork(rand.New(rand.NewPCG(o.Seed, 1))),
	}
	for i := range o.Nodes {
		c.Nodes = append(c.Nodes, &Node{
			c: c, ID: fmt.Sprintf("n%d", i+1), Drive: NewDrive(rand.New(rand.NewPCG(o.Seed, uint64(100+i)))),
		})
	}
	return c
}

// since is the virtual time that has passed.
func (c *Cluster) since() time.Duration { return time.Since(c.begun) }

// note remembers something for the report of a failure.
func (c *Cluster) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notes = append(c.notes, fmt.Sprintf("%8.3fs  %s", c.since().Seconds(), fmt.Sprintf(format, args...)))
}

func (c *Cluster) fatal(n *Node, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fatals = append(c.fatals, n.ID+": "+err.Error())
}

func (c *Cluster) halted(n *Node, h *shardgroup.HaltError) {
	c.note("%s halts a replica: %v", n.ID, h)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.halts = append(c.halts, n.ID+": "+h.Error())
}

// Notes are what happened, in order.
func (c *Cluster) Notes() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.notes)
}

func (c *Cluster) closing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Node is a machine by its name.
func (c *Cluster) Node(id string) *Node {
	for _, n := range c.Nodes {
		if n.ID == id {
			return n
		}
	}
	return nil
}

// Addrs are the client addresses.
func (c *Cluster) Addrs() []string {
	addrs := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		addrs[i] = clientAddr(n.ID)
	}
	return addrs
}

// Dial connects a client that runs on a machine of its own.
func (c *Cluster) Dial(ctx context.Context, name string, opts ...client.Option) (*client.DB, error) {
	port := c.Net.Join(name)
	return client.Dial(ctx, "idb://"+strings.Join(c.Addrs(), ","),
		append([]client.Option{client.WithDialer(port.Dial), client.WithName(name)}, opts...)...)
}

// Form starts every machine and makes a cluster of them.
func (c *Cluster) Form(ctx context.Context) error {
	for _, n := range c.Nodes {
		n.Start()
	}
	db, err := c.Dial(ctx, "admin")
	if err != nil {
		return err
	}
	defer db.Close()
	for {
		_, err = db.InitCluster(ctx, client.InitRequest{
			Nodes: c.Addrs(), Shards: uint32(c.o.Shards), Replicas: uint32(c.o.Replicas), Partitions: uint32(c.o.Partitions),
		})
		var e *client.Error
		if err == nil || errors.As(err, &e) && e.Code == wire.CodeClusterExists {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("form the cluster: %w", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return c.AwaitReady(ctx)
}

// AwaitReady waits until every machine that is up can do its part.
func (c *Cluster) AwaitReady(ctx context.Context) error {
	for {
		var why error
		for _, n := range c.Nodes {
			if why = n.Ready(); why != nil {
				break
			}
		}
		if why == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the cluster is not ready: %w", why)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Heal ends every fault and starts every machine.
func (c *Cluster) Heal() {
	c.Net.Heal()
	for _, n := range c.Nodes {
		n.Resume()
		n.Drive.Repair()
		n.SetClock()
		n.Start()
	}
}

// Close ends every process and joins what it has started.
func (c *Cluster) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	for _, n := range c.Nodes {
		n.Resume()
		n.Drive.Repair()
		n.Kill()
	}
	c.bg.Wait()
}
