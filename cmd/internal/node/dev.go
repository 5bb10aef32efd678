package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client/wire"
)

// DevConfig of a cluster in one process.
type DevConfig struct {
	// Dir holds one data directory per node.
	Dir string
	// Nodes is 1 or 3. Zero means 1.
	Nodes int
	// Port is the first node's client port; its peer and HTTP ports follow, and
	// the next node is ten further. Zero: ports that the system chooses.
	Port int
	// Shards is how many shard groups to form. Zero means 3.
	Shards int
	// Partitions is a prime. Zero means 271.
	Partitions int
	// Node is what every node starts from; its ID, directory and addresses are
	// set here.
	Node Config

	now func(node int) func() time.Time // a clock for each node; for tests
}

// Dev is a whole cluster in one process: real nodes with directories, logs and
// ports of their own, formed and ready.
type Dev struct {
	nodes []*Node
	fatal chan error
	done  chan struct{}
	bg    sync.WaitGroup
	addrs sync.Map // node ID → peer address, both strings
}

func (d *Dev) peerAddr(id string) (string, bool) {
	if addr, ok := d.addrs.Load(id); ok {
		return addr.(string), true
	}
	return "", false
}

// StartDev starts the nodes and forms the cluster if it is new.
func StartDev(ctx context.Context, cfg DevConfig, log hclog.Logger) (_ *Dev, err error) {
	if cfg.Nodes == 0 {
		cfg.Nodes = 1
	}
	if cfg.Shards == 0 {
		cfg.Shards = 3
	}
	if cfg.Partitions == 0 {
		cfg.Partitions = 271
	}
	d := &Dev{fatal: make(chan error, 1), done: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Shutdown(context.WithoutCancel(ctx)))
		}
	}()
	var addrs []string
	for i := range cfg.Nodes {
		c := cfg.Node
		c.ID = "n" + strconv.Itoa(i+1)
		c.DataDir = filepath.Join(cfg.Dir, c.ID)
		addr := func(offset int) string {
			if cfg.Port == 0 {
				return "127.0.0.1:0"
			}
			return net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.Port+10*i+offset))
		}
		c.ClientAddr, c.PeerAddr, c.HTTPAddr = addr(0), addr(1), addr(2)
		c.peerAddr = d.peerAddr
		if cfg.now != nil {
			c.Now = cfg.now(i)
		}
		n, err := Start(ctx, c, log)
		if err != nil {
			return nil, err
		}
		d.nodes = append(d.nodes, n)
		d.addrs.Store(c.ID, n.info().PeerAddr)
		addrs = append(addrs, n.ClientAddr())
	}
	for _, n := range d.nodes {
		d.bg.Go(func() {
			select {
			case err := <-n.Fatal():
				select {
				case d.fatal <- fmt.Errorf("node %s: %w", n.ID(), err):
				default:
				}
			case <-d.done:
			}
		})
	}
	_, err = d.nodes[0].init.Init(ctx, &wire.ClusterInitRequest{
		Nodes: addrs, Shards: uint32(cfg.Shards), Replicas: uint32(cfg.Nodes), Partitions: uint32(cfg.Partitions),
	})
	var refusal *wire.Error
	if err != nil && !(errors.As(err, &refusal) && refusal.Code == wire.CodeClusterExists) {
		return nil, err
	}
	return d, d.awaitReady(ctx)
}

// awaitReady waits until every node says that it is.
func (d *Dev) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var why error
		for _, n := range d.nodes {
			if why = n.notReady(); why != nil {
				break
			}
			if known, _ := n.places.View().Node(n.self); known != n.Self() {
				why = fmt.Errorf("node %s has not registered its addresses", n.ID())
				break
			}
		}
		if why == nil {
			return nil
		}
		select {
		case <-tick.C:
		case err := <-d.fatal:
			return err
		case <-ctx.Done():
			return fmt.Errorf("the cluster is not ready: %w", why)
		}
	}
}

// Addrs are the nodes' client addresses.
func (d *Dev) Addrs() []string {
	addrs := make([]string, len(d.nodes))
	for i, n := range d.nodes {
		addrs[i] = n.ClientAddr()
	}
	return addrs
}

// Nodes are the cluster's nodes.
func (d *Dev) Nodes() []*Node { return d.nodes }

// Fatal gives the error after which the cluster must end.
func (d *Dev) Fatal() <-chan error { return d.fatal }

// Shutdown ends all nodes at once: there is nobody left to hand leaderships to.
func (d *Dev) Shutdown(ctx context.Context) error {
	close(d.done)
	d.bg.Wait()
	errs := make([]error, len(d.nodes))
	var all sync.WaitGroup
	for i, n := range d.nodes {
		n.stopping.Store(true)
		all.Go(func() { errs[i] = n.close(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}
