package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/router"
	"github.com/impossibledb/idb/router/admin"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/shardgroup/transport"
	"github.com/impossibledb/idb/txn/hlc"
)

// Node is one running node. It belongs to no cluster until it is adopted by
// one, and from then on to that one for ever.
type Node struct {
	cfg     Config
	self    placement.NodeID
	log     hclog.Logger
	started time.Time

	dir     *dataDir
	clock   *hlc.Clock
	metrics *metrics

	peers      *transport.Peers
	host       *shardgroup.Host
	places     *placement.Service
	router     *router.Router
	reconciler atomic.Pointer[admin.Reconciler] // nil until in a cluster
	adopter    *admin.Adopter
	init       *admin.Initialiser
	clients    *wire.Server
	http       *httpServer

	listeners ports
	identity  atomic.Pointer[admin.Identity] // of the cluster; nil until adopted

	mu        sync.Mutex
	strangers map[placement.NodeID]string // guarded by mu; peer addresses of nodes that are being adopted
	joined    bool                        // guarded by mu; part of the placement group, reconciling
	closed    bool                        // guarded by mu

	fatal    chan error // of capacity 1
	stopping atomic.Bool
	ending   sync.Once      // close
	ended    error          // of close; read after ending
	bg       sync.WaitGroup // the goroutine that serves clients
}

// ports are the three listeners, open from the start so that a port that is
// taken is known before anything else happens.
type ports struct{ client, peer, http net.Listener }

func listen(cfg Config) (p ports, err error) {
	for _, l := range []struct {
		to   *net.Listener
		name string
		addr string
	}{{&p.client, "client", cfg.ClientAddr}, {&p.peer, "peer", cfg.PeerAddr}, {&p.http, "http", cfg.HTTPAddr}} {
		*l.to, err = cfg.Listen(l.addr)
		if err == nil {
			continue
		}
		p.close()
		if errors.Is(err, syscall.EADDRINUSE) {
			return ports{}, fmt.Errorf("%s port %s is in use (stop what uses it, or choose another with --%s-addr)", l.name, l.addr, l.name)
		}
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return ports{}, fmt.Errorf("cannot listen on %s address %s: %w (choose another with --%s-addr)", l.name, l.addr, err, l.name)
	}
	return p, nil
}

func (p ports) close() {
	for _, l := range []net.Listener{p.client, p.peer, p.http} {
		if l != nil {
			_ = l.Close()
		}
	}
}

// Start opens the data directory and serves. A node that belongs to a cluster
// takes its place in it; a new one waits to be adopted. What it returns is
// listening but perhaps not ready: /readyz tells. A failure after Start comes
// out of Fatal.
func Start(_ context.Context, cfg Config, log hclog.Logger) (_ *Node, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if log == nil {
		log = hclog.NewNullLogger()
	}
	dir, err := openDataDir(cfg.FS, cfg.DataDir, cfg.ID)
	if err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, self: placement.NodeID(cfg.ID), log: log.Named("node").With("node", cfg.ID), started: time.Now(),
		dir: dir, clock: hlc.NewClock(cfg.Now), fatal: make(chan error, 1),
		strangers: make(map[placement.NodeID]string),
	}
	defer func() {
		if err != nil {
			n.close(context.Background())
		}
	}()

	if err := n.readIdentity(); err != nil {
		return nil, err
	}
	if n.listeners, err = listen(cfg); err != nil {
		return nil, err
	}
	n.metrics = newMetrics(n)
	if err := n.wire(log); err != nil {
		return nil, err
	}
	// The peers first: a group that starts while nobody hears its voters loses
	// its first election.
	n.peers.Start()
	if id := n.identity.Load(); id != nil {
		if err := n.host.Recover(); err != nil {
			return nil, err
		}
		if err := n.StartPlacement(id); err != nil {
			return nil, err
		}
	}
	n.serve()
	n.log.Info("started", "version", Version, "data", cfg.DataDir, "clients", n.info().ClientAddr, "peers", n.info().PeerAddr, "http", n.info().HTTPAddr)
	return n, nil
}

// wire makes the parts and introduces them to each other. Nothing is served yet.
func (n *Node) wire(log hclog.Logger) (err error) {
	n.peers, err = transport.New(transport.Options{
		NodeID: n.self, Incarnation: n.dir.id.Incarnation,
		ClusterID: n.clusterID,
		Listener:  n.listeners.peer,
		Dial:      n.cfg.Dial,
		Resolve:   n.resolve,
		Logger:    log,
		Observe:   n.metrics.observe,
	})
	if err != nil {
		return err
	}
	host := shardgroup.Config{
		NodeID: n.self, Incarnation: n.dir.id.Incarnation,
		Dir: n.cfg.DataDir, FS: n.cfg.FS,
		Peers: n.peers, Clock: n.clock, Logger: log,
		OnFatal: n.die,
		OnHalt: func(h *shardgroup.HaltError) {
			n.log.Error("a replica has stopped and does not serve any more", "error", h)
		},
		OnLeader:    func(placement.GroupID, placement.NodeID, uint64) { n.kick() },
		Timing:      shardgroup.Timing{Heartbeat: n.cfg.ElectionTimeout},
		CacheBytes:  n.cfg.StateCacheBytes,
		NewestBytes: n.cfg.NewestBytes,
		DiskReserve: n.cfg.DiskReserveBytes,
		LogBytes:    n.cfg.LogBytes,
		FreeSpace:   func() (uint64, error) { return n.cfg.FreeSpace(n.cfg.DataDir) },
		Retention:   n.retention,
		Locate:      n.locate,
	}
	if n.cfg.Host != nil {
		n.cfg.Host(&host)
	}
	if n.host, err = shardgroup.OpenHost(host); err != nil {
		return err
	}
	n.places = placement.NewService(placement.Options{
		Self: n.self, Peers: n.peers, Logger: log.Named("placement"),
		FS: n.cfg.FS, Path: filepath.Join(n.cfg.DataDir, fileTopology),
	})
	n.router = router.New(router.Options{
		Self: n.self, Placement: n.places, Groups: router.FromHost(n.host), Peers: n.peers,
		Clock: n.clock, Logger: log.Named("router"),
		Limits: doc.Limits{MaxBytes: n.cfg.MaxDocumentBytes, MaxDepth: wire.MaxDepth},
		Status: n.status,
		Init: func(ctx context.Context, req *wire.ClusterInitRequest) (*wire.ClusterInitReply, error) {
			return n.init.Init(ctx, req)
		},
	})
	n.host.SetResolver(n.router)
	n.adopter = admin.NewAdopter(n)
	n.init = admin.NewInitialiser(admin.InitOptions{
		Self: n.self, Cluster: reach{n}, Placement: n.places, Logger: log.Named("init"),
	})
	n.clients = wire.NewServer(wire.ServerOptions{
		Handler:  n.router,
		Hello:    n.hello,
		Logger:   log.Named("clients"),
		MaxConns: n.cfg.MaxClientConns,
		Observe:  n.metrics.observe,
	})

	n.peers.Handle(wire.KindPlacement, n.places.HandlePlacement)
	n.peers.Handle(wire.KindPlacementWait, n.places.HandleWait)
	n.peers.Handle(wire.KindAdopt, n.adopter.Handle)
	for _, kind := range router.PeerKinds {
		n.peers.Handle(kind, func(ctx context.Context, _ placement.NodeID, body []byte) ([]byte, error) {
			return n.router.HandlePeer(ctx, kind, body)
		})
	}
	n.peers.HandleClient(n.router)
	return nil
}

func (n *Node) serve() {
	n.bg.Go(func() {
		if err := n.clients.Serve(n.listeners.client); err != nil && !errors.Is(err, wire.ErrServerClosed) {
			n.die(fmt.Errorf("client port failed: %w", err))
		}
	})
	n.http = serveHTTP(n.listeners.http, n.metrics.registry, n.notReady)
}

// die reports the one error that ends the process.
func (n *Node) die(err error) {
	select {
	case n.fatal <- err:
	default:
	}
}

// Fatal gives the error after which the process must end: its disk failed or
// stalled, or a port did. Nothing is served any more, and there is no orderly
// end: what the disk still does cannot be trusted.
func (n *Node) Fatal() <-chan error { return n.fatal }

// Ready says why this node cannot do its part in the cluster; nil if it can.
func (n *Node) Ready() error { return n.notReady() }

// Host is what runs the node's groups, for checkers that compare replicas.
func (n *Node) Host() *shardgroup.Host { return n.host }

// Groups are this node's replicas, the placement group first.
func (n *Node) Groups() []wire.GroupStatus { return n.groupStatus() }

// Close ends the node at once, without handing anything over, and joins every
// goroutine.
func (n *Node) Close() error {
	n.stopping.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return n.close(ctx)
}

// ID is the node's name.
func (n *Node) ID() string { return n.cfg.ID }

// ClientAddr is where clients connect.
func (n *Node) ClientAddr() string { return n.info().ClientAddr }

// HTTPAddr is where /healthz, /readyz and /metrics are.
func (n *Node) HTTPAddr() string { return n.info().HTTPAddr }

// info is how the node presents itself.
func (n *Node) info() wire.NodeInfo {
	addr := func(advertise string, l net.Listener) string {
		if advertise != "" {
			return advertise
		}
		return l.Addr().String()
	}
	return wire.NodeInfo{
		ID:         n.cfg.ID,
		ClientAddr: addr(n.cfg.AdvertiseClientAddr, n.listeners.client),
		PeerAddr:   addr(n.cfg.AdvertisePeerAddr, n.listeners.peer),
		HTTPAddr:   addr(n.cfg.AdvertiseHTTPAddr, n.listeners.http),
		Region:     n.cfg.Region, Zone: n.cfg.Zone,
		Incarnation: n.dir.id.Incarnation,
	}
}

// hello accepts a client.
func (n *Node) hello(_ *wire.ConnInfo, h *wire.Hello) (wire.HelloReply, *wire.Error) {
	id := n.clusterID()
	if h.ClusterID != "" && id != "" && h.ClusterID != id {
		return wire.HelloReply{}, &wire.Error{Code: wire.CodeWrongCluster, Message: fmt.Sprintf(
			"node %s belongs to cluster %s, not %s (check the address)", n.self, id, h.ClusterID)}
	}
	return wire.HelloReply{
		Server: serverName(), NodeID: n.cfg.ID, ClusterID: id,
		Now:           uint64(n.clock.Now()),
		MaxDocument:   uint32(n.cfg.MaxDocumentBytes),
		TopologyEpoch: uint64(n.places.View().Epoch),
	}, nil
}

// locate is where a document belongs, if its collection is known here.
func (n *Node) locate(c placement.CollectionID, id string) (placement.PartitionID, bool) {
	v := n.places.View()
	known, ok := v.CollectionByID(unique.Of(c))
	if !ok {
		return 0, false
	}
	if unique.IsEntries(c) {
		return unique.Partition(known.Name, id, v.Partitions()), true
	}
	return placement.PartitionID(wire.Partition(known.Name, known.Options.Separator, id, v.Partitions())), true
}

// retention is how much history a collection keeps.
func (n *Node) retention(id placement.CollectionID) (shardgroup.Retention, bool) {
	v := n.places.View()
	c, ok := v.CollectionByID(unique.Of(id))
	if !ok {
		return shardgroup.Retention{}, false // perhaps newer than this view
	}
	seconds := c.Options.RetentionSeconds
	if seconds == 0 {
		seconds = v.Settings.RetentionSeconds
	}
	r := shardgroup.Retention{Versions: c.Options.RetentionVersions, Forever: seconds == wire.RetainForever}
	if !r.Forever {
		const most = 200 * 365 * 24 * 3600 // what a Duration holds, with room
		r.Age = time.Duration(min(seconds, most)) * time.Second
	}
	return r, true
}

// Shutdown hands leaderships over, lets what has begun end, and closes. When
// ctx ends first it closes at once, which is safe too.
func (n *Node) Shutdown(ctx context.Context) error {
	if n.stopping.Swap(true) {
		return errors.New("node: already stopping")
	}
	n.handOver(ctx)
	return n.close(ctx)
}

// handOver gives every leadership to somebody else, in parallel. A group that
// cannot be handed over elects a leader by itself.
func (n *Node) handOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	n.stopReconciler() // or it would hand them back
	n.host.HandOver(ctx)
}

// close ends what was started, in reverse. It is called with a half-made node
// too, and more than once: by whoever ends one node of a Dev, and by its
// Shutdown.
func (n *Node) close(ctx context.Context) error {
	n.ending.Do(func() { n.ended = n.closeOnce(ctx) })
	return n.ended
}

func (n *Node) closeOnce(ctx context.Context) (err error) {
	n.stopReconciler()
	if n.clients != nil {
		drain, cancel := context.WithTimeout(ctx, 2*time.Second)
		_ = n.clients.Drain(drain)
		cancel()
		err = errors.Join(err, n.clients.Close())
	}
	if n.http != nil {
		quick, cancel := context.WithTimeout(ctx, time.Second)
		n.http.close(quick)
		cancel()
	}
	if n.router != nil {
		n.router.Close()
	}
	n.bg.Wait()
	if n.places != nil {
		n.places.Close()
	}
	if n.host != nil {
		err = errors.Join(err, n.host.Close())
	}
	if n.peers != nil {
		err = errors.Join(err, n.peers.Close())
	}
	n.listeners.close()
	return errors.Join(err, n.dir.Close())
}
