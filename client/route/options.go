package route

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"
)

// Options configure a Cluster. Addrs is required; zero means the default in
// every other field.
type Options struct {
	// Addrs are client addresses of some nodes of the cluster, host:port. The
	// other nodes are learned from them.
	Addrs []string
	// ClusterID is the cluster that is expected; empty: the one that answers.
	ClusterID string
	// Name tells the servers' logs who this is. Empty means "idb-go".
	Name string
	// Dial opens a connection. Nil means TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// ConnsPerNode is how many connections carry the requests to one node. One
	// is enough for most loads; more help when many cores send large documents.
	// Zero means 2.
	ConnsPerNode int
	// DialTimeout bounds one attempt to connect, hello included. Too short never
	// connects over a slow network; too long makes a vanished node cost more.
	// Zero means 2s.
	DialTimeout time.Duration
	// Silence is how long a node that owes answers may say nothing before it is
	// asked for a sign of life; without one after as long again its connection
	// is cut and its requests go elsewhere. Too short cuts busy nodes off; too
	// long makes a stopped node cost more. Zero means 1s.
	Silence time.Duration
	// Poll is how long a node may hold a request for a newer topology.
	// Zero means 30s.
	Poll time.Duration
	// Logger hears of connections and topologies at debug level. Nil is silent.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Name == "" {
		o.Name = "idb-go"
	}
	if o.Dial == nil {
		var d net.Dialer
		o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	if o.ConnsPerNode == 0 {
		o.ConnsPerNode = 2
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = 2 * time.Second
	}
	if o.Silence == 0 {
		o.Silence = time.Second
	}
	if o.Poll == 0 {
		o.Poll = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	if len(o.Addrs) == 0 {
		return errors.New("no address given: name at least one node as host:port")
	}
	for _, a := range o.Addrs {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return errors.New("address " + a + " is not host:port")
		}
	}
	if o.ConnsPerNode < 0 || o.ConnsPerNode > 64 {
		return errors.New("connections per node must be 1 to 64")
	}
	return nil
}
