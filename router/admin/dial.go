package admin

import (
	"context"
	"fmt"
	"net"

	"github.com/impossibledb/idb/client/wire"
)

// StatusAt asks the node at a client address for its status, on a connection
// of its own. It is the usual Cluster.StatusAt: before init there is no
// topology to find a peer port in.
func StatusAt(ctx context.Context, dial func(ctx context.Context, addr string) (net.Conn, error), addr, client string) (wire.NodeStatus, error) {
	nc, err := dial(ctx, addr)
	if err != nil {
		return wire.NodeStatus{}, fmt.Errorf("cannot be reached: %w", err)
	}
	c := wire.NewConn(nc, wire.ConnOptions{})
	defer c.Close()
	if _, err := c.Handshake(ctx, wire.Hello{Client: client}); err != nil {
		return wire.NodeStatus{}, fmt.Errorf("does not answer as an idb node: %w", err)
	}
	var status wire.NodeStatus
	if err := c.Do(ctx, wire.KindNodeStatus, nil, &status); err != nil {
		return wire.NodeStatus{}, fmt.Errorf("does not tell its status: %w", err)
	}
	return status, nil
}
