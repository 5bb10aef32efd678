package node

import (
	"context"
	"fmt"
	"net"
	"regexp"
	"runtime"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/shardgroup"
)

// Config is what one node needs to know at start. The zero value of every
// field but ID and DataDir works.
type Config struct {
	// ID names the node in its cluster, for ever: 1 to 32 of [a-z0-9-].
	ID string
	// DataDir holds everything the node keeps. One process at a time.
	DataDir string

	// ClientAddr, PeerAddr and HTTPAddr are where to listen, host:port. Other
	// nodes and clients are told the same addresses, so a wildcard host needs
	// an Advertise* beside it. Zero: 127.0.0.1 and ports 7400, 7401, 7402.
	ClientAddr, PeerAddr, HTTPAddr string
	// AdvertiseClientAddr, AdvertisePeerAddr and AdvertiseHTTPAddr are what
	// others are told. Zero: where the node listens.
	AdvertiseClientAddr, AdvertisePeerAddr, AdvertiseHTTPAddr string

	// Region and Zone spread replicas: no two in a zone where it can be helped.
	Region, Zone string

	// MaxDocumentBytes is the largest document accepted, canonical encoding.
	// Larger documents cost every replica memory and time. Zero means 1 MiB; at
	// most 16 MiB.
	MaxDocumentBytes int
	// DiskReserveBytes is kept free on the data disk: below it the node refuses
	// writes and hands its leaderships over. Too small, and the engine may run
	// into a full disk and end the process. Zero means 256 MiB.
	DiskReserveBytes uint64
	// LogBytes is how much disk the log takes, all groups together. It is
	// kept for followers that are behind; those further behind get a snapshot. Zero means 512 MiB; at least 32 MiB.
	LogBytes int64
	// StateCacheBytes is the block cache of the state engine. Zero means 64 MiB.
	StateCacheBytes int64
	// NewestBytes is the memory of documents that were written lately, for gets.
	// Zero means 16 MiB, less than zero none.
	NewestBytes int64
	// MaxClientConns bounds connections on the client port. Zero means 4096.
	MaxClientConns int

	// ElectionTimeout is how long a follower waits for its leader. Shorter
	// fails over faster; below the worst pause of a busy machine it elects for
	// nothing. Zero means 500ms.
	ElectionTimeout time.Duration

	// peerAddr, if not nil, knows where other nodes listen, before the cluster
	// is asked: the nodes of one process may get new ports at every start.
	peerAddr func(id string) (addr string, ok bool)

	// The seams. Zero values are the real thing.
	FS        vfs.FS
	FreeSpace func(dir string) (free uint64, err error)
	Now       func() time.Time
	// Listen opens a port, and Dial connects to one: TCP.
	Listen func(addr string) (net.Listener, error)
	Dial   func(ctx context.Context, addr string) (net.Conn, error)
	// Host, if not nil, may change what the host of the groups is opened with.
	Host func(*shardgroup.Config)
}

// Defaults of the three ports.
const (
	DefaultClientAddr = "127.0.0.1:7400"
	DefaultPeerAddr   = "127.0.0.1:7401"
	DefaultHTTPAddr   = "127.0.0.1:7402"
)

func (c Config) withDefaults() Config {
	str := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	str(&c.ClientAddr, DefaultClientAddr)
	str(&c.PeerAddr, DefaultPeerAddr)
	str(&c.HTTPAddr, DefaultHTTPAddr)
	if c.MaxDocumentBytes == 0 {
		c.MaxDocumentBytes = wire.DefaultDocumentSize
	}
	if c.DiskReserveBytes == 0 {
		c.DiskReserveBytes = 256 << 20
	}
	if c.LogBytes == 0 {
		c.LogBytes = 512 << 20
	}
	if c.StateCacheBytes == 0 {
		c.StateCacheBytes = 64 << 20
	}
	if c.MaxClientConns == 0 {
		c.MaxClientConns = 4096
	}
	if c.ElectionTimeout == 0 {
		c.ElectionTimeout = 500 * time.Millisecond
	}
	if c.FS == nil {
		c.FS = vfs.OS()
	}
	if c.FreeSpace == nil {
		c.FreeSpace = func(dir string) (uint64, error) {
			s, err := vfs.SpaceOf(c.FS, dir)
			return s.FreeBytes, err
		}
	}
	if c.Listen == nil {
		c.Listen = func(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }
	}
	if c.Dial == nil {
		var d net.Dialer
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	return c
}

var nodeIDPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

func (c Config) validate() error {
	if c.ID == "" {
		return fmt.Errorf("a node needs a name: give --id, for example --id n1")
	}
	if !nodeIDPattern.MatchString(c.ID) {
		return fmt.Errorf("node ID %q: use 1 to 32 of a-z, 0-9 and -, starting with a letter or digit", c.ID)
	}
	if c.DataDir == "" {
		return fmt.Errorf("a node needs a data directory: give --data DIR")
	}
	for _, a := range []struct{ name, listen, advertise string }{
		{"client-addr", c.ClientAddr, c.AdvertiseClientAddr},
		{"peer-addr", c.PeerAddr, c.AdvertisePeerAddr},
		{"http-addr", c.HTTPAddr, c.AdvertiseHTTPAddr},
	} {
		host, _, err := net.SplitHostPort(a.listen)
		if err != nil {
			return fmt.Errorf("--%s %q: want HOST:PORT, for example 127.0.0.1:7400", a.name, a.listen)
		}
		if ip := net.ParseIP(host); a.advertise == "" && (host == "" || ip != nil && ip.IsUnspecified()) {
			return fmt.Errorf("--%s %q listens everywhere, and others cannot dial that: give --advertise-%s HOST:PORT too", a.name, a.listen, a.name)
		}
	}
	if c.MaxDocumentBytes < 1024 || c.MaxDocumentBytes > wire.MaxDocumentBytes {
		return fmt.Errorf("max document size %d bytes: choose 1024 to %d", c.MaxDocumentBytes, wire.MaxDocumentBytes)
	}
	if c.LogBytes < 32<<20 {
		return fmt.Errorf("log size %d bytes: choose 32MiB or more", c.LogBytes)
	}
	if c.ElectionTimeout < 50*time.Millisecond || c.ElectionTimeout > time.Minute {
		return fmt.Errorf("election timeout %v: choose 50ms to 1m", c.ElectionTimeout)
	}
	return nil
}

// Version is the release, set by the linker for a tagged build.
var Version = "0.1.0-dev"

// serverName is how the node presents itself on the wire.
func serverName() string { return "idb " + Version + " " + runtime.GOOS + "/" + runtime.GOARCH }
