package chaos

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
)

// Deposed is what a leader did that slept through its deposition.
type Deposed struct {
	Group    uint32
	Node     string
	Answered int // reads that it answered with the present version
	Refused  int // reads that it refused, or whose connection ended
	Acked    int // writes that it acknowledged; each must be there
}

// ProbeDeposed stops the leader of a group, lets another node take over and
// acknowledge a write, then sends reads and inserts to the stopped one, which
// finds them when it goes on, and still thinks that it leads. A read that is
// answered with an older version than the acknowledged one is stale: an error.
// The inserts that it acknowledged are returned with their versions.
func (c *Cluster) ProbeDeposed(ctx context.Context, db *client.DB, group uint32, name string) (Deposed, map[string]uint64, error) {
	const requests = 200
	d := Deposed{Group: group}
	status, node, err := c.leader(ctx, db, group)
	if err != nil {
		return d, nil, err
	}
	d.Node = node.ID
	id := documentOf(status.Topology, probeCollection, group)
	docs := db.Collection(probeCollection)
	if _, err := docs.Put(ctx, id, client.D{"v": "before"}); err != nil {
		return d, nil, err
	}
	probe, err := db.DescribeCollection(ctx, probeCollection)
	if err != nil {
		return d, nil, err
	}
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "tcp", node.ClientAddr)
	if err != nil {
		return d, nil, err
	}
	conn := wire.NewConn(nc, wire.ConnOptions{KeepAlive: -1})
	defer conn.Close()
	hello, err := conn.Handshake(ctx, wire.Hello{Client: "chaos"})
	if err != nil {
		return d, nil, err
	}

	node.Pause()
	defer node.Resume()
	newest, err := docs.Put(ctx, id, client.D{"v": "after"})
	if err != nil {
		return d, nil, fmt.Errorf("with the leader %s paused: %w", node.ID, err)
	}
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		stale error
		acked = map[string]uint64{}
		epoch = status.Topology.Epoch
	)
	asked := make(chan struct{}, 2*requests)
	for i := range requests {
		wg.Add(2)
		go func() {
			defer wg.Done()
			asked <- struct{}{}
			var reply wire.GetReply
			err := conn.Do(ctx, wire.KindGet, &wire.GetRequest{
				Collection: probeCollection, Epoch: epoch, Direct: true, IDs: []string{id},
			}, &reply)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil || len(reply.Results) != 1 || reply.Results[0].Error != nil:
				d.Refused++
			case reply.Results[0].Doc.Version < newest.Version:
				stale = fmt.Errorf("stale read: %s answered version %d of %s after version %d was acknowledged",
					node.ID, reply.Results[0].Doc.Version, id, newest.Version)
			default:
				d.Answered++
			}
		}()
		go func() {
			defer wg.Done()
			asked <- struct{}{}
			element := elementOf(status.Topology, group, name, i)
			item := wire.WriteItem{RequestID: db.NewRequestID(), Op: wire.OpInsert, ID: element, Body: []byte{0x80}}
			var reply wire.WriteReply
			err := conn.Do(ctx, wire.KindWrite, &wire.WriteRequest{
				Collection: probeCollection, Number: probe.ID, Epoch: epoch, Direct: true, Items: []wire.WriteItem{item},
			}, &reply)
			mu.Lock()
			defer mu.Unlock()
			if err == nil && len(reply.Results) == 1 && reply.Results[0].Error == nil {
				d.Acked++
				acked[element] = reply.Results[0].Version
			}
		}()
	}
	for range 2 * requests {
		<-asked
	}
	pause(ctx, 20*time.Millisecond) // the last of them reach the sleeper's socket
	node.Resume()
	wg.Wait()
	if hello.NodeID != node.ID {
		return d, acked, fmt.Errorf("%s says that it is %q", node.ClientAddr, hello.NodeID)
	}
	return d, acked, stale
}

// leader waits until a group has one, and gives the status that says so.
func (c *Cluster) leader(ctx context.Context, db *client.DB, group uint32) (*client.ClusterStatus, *Node, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := db.Status(ctx)
		if err != nil {
			return nil, nil, err
		}
		id := Leaders(status)[group]
		for _, n := range c.Nodes {
			if n.ID == id {
				return status, n, nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("group %d has no leader: %w", group, ctx.Err())
		}
	}
}

// elementOf is the i-th ID with this name that is placed in a group.
func elementOf(t wire.Topology, group uint32, name string, i int) string {
	for salt := 0; ; salt++ {
		id := fmt.Sprintf("%s-%d-%d", name, i, salt)
		if t.Owners[wire.Partition(probeCollection, "", id, uint32(len(t.Owners)))] == group {
			return id
		}
	}
}
