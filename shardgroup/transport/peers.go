package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// Options of a node's Peers. NodeID, Listener, Dial and Resolve must be set.
type Options struct {
	NodeID placement.NodeID
	// Incarnation changes when the node's data is wiped.
	Incarnation string
	// ClusterID is the cluster that the node belongs to; empty while it belongs
	// to none. Nil: always empty. It may change once, from empty.
	ClusterID func() string
	// Listener is the peer port. Peers closes it.
	Listener net.Listener
	// Dial connects to an address. Nil: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Resolve tells where a node listens for its peers.
	Resolve func(placement.NodeID) (addr string, err error)
	Logger  hclog.Logger // nil: none

	// DialTimeout is how long a connection may take, its hello included. Too
	// short fails on a busy peer; too long holds up callers while a node is
	// down. Zero means 1 s.
	DialTimeout time.Duration
	// Observe is told of every answered request; may be nil.
	Observe func(wire.Observation)
}

// Handler answers a call of another node. An error that is a *wire.Error is
// sent as it is; any other as an internal error.
type Handler func(ctx context.Context, from placement.NodeID, body []byte) ([]byte, error)

// redialAfter is how long a failed dial is not repeated: callers that come
// meanwhile get its error at once.
const redialAfter = 100 * time.Millisecond

// maxPeerInFlight is how many requests one connection between nodes carries.
// It is far above a client's: every group and every forwarded client shares it.
const maxPeerInFlight = 16 << 10

// class is what a connection is for.
type class uint8

const (
	classCalls    class = 1 // calls of other packages, forwarded clients
	classControl  class = 2 // heartbeats, votes, confirmations: small, and urgent
	classEntries  class = 3 // log entries
	classSnapshot class = 4 // one snapshot
)

// Peers is a node's connection to the others. It is safe for concurrent use.
type Peers struct {
	o      Options
	log    hclog.Logger
	server *wire.Server
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	bg     sync.WaitGroup // the accept loop

	mu       sync.RWMutex
	handlers map[wire.Kind]Handler                // guarded by mu
	atOnce   [256]bool                            // guarded by mu; by kind: its handler does not wait
	client   wire.Handler                         // guarded by mu; of client kinds, nil: none
	groups   map[placement.GroupID]*RaftTransport // guarded by mu
	links    map[linkKey]*link                    // guarded by mu
	started  bool                                 // guarded by mu
	cut      bool                                 // guarded by mu; nothing goes out any more
}

// New makes the node's Peers. Nothing is served before Start.
func New(o Options) (*Peers, error) {
	switch {
	case o.NodeID == "" || len(o.NodeID) > 255:
		return nil, fmt.Errorf("transport: node ID %q must have 1 to 255 bytes", o.NodeID)
	case len(o.Incarnation) > 255:
		return nil, fmt.Errorf("transport: incarnation of %d bytes, at most 255", len(o.Incarnation))
	case o.Listener == nil:
		return nil, errors.New("transport: Options.Listener is nil")
	case o.Resolve == nil:
		return nil, errors.New("transport: Options.Resolve is nil")
	}
	if o.Dial == nil {
		var d net.Dialer
		o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	if o.ClusterID == nil {
		o.ClusterID = func() string { return "" }
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = time.Second
	}
	p := &Peers{
		o:        o,
		log:      o.Logger.Named("peers"),
		handlers: make(map[wire.Kind]Handler),
		groups:   make(map[placement.GroupID]*RaftTransport),
		links:    make(map[linkKey]*link),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.server = wire.NewServer(wire.ServerOptions{
		Handler:     requests{p},
		PeerHello:   p.hello,
		Logger:      p.log,
		MaxInFlight: maxPeerInFlight,
		Observe:     o.Observe,
	})
	return p, nil
}

// NodeID is this node.
func (p *Peers) NodeID() placement.NodeID { return p.o.NodeID }

// Incarnation is this node's.
func (p *Peers) Incarnation() string { return p.o.Incarnation }

// Handle registers the handler of a kind. It must be called once per kind.
func (p *Peers) Handle(kind wire.Kind, h Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handlers[kind] = h
}

// HandleAtOnce is Handle for a handler that does not wait: it runs on the
// goroutine that reads the connection.
func (p *Peers) HandleAtOnce(kind wire.Kind, h Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handlers[kind] = h
	p.atOnce[kind] = true
}

// HandleClient registers the handler of client kinds, which other nodes forward.
func (p *Peers) HandleClient(h wire.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.client = h
}

// Start serves the listener.
func (p *Peers) Start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.started {
		return
	}
	p.started = true
	p.bg.Add(1)
	go func() {
		defer p.bg.Done()
		if err := p.server.Serve(p.o.Listener); err != nil && !errors.Is(err, wire.ErrServerClosed) && !p.isCut() {
			p.log.Error("peer port failed", "error", err)
		}
	}()
}

// Close ends every connection and joins every goroutine.
func (p *Peers) Close() error {
	p.Cut()
	err := p.server.Close()
	_ = p.o.Listener.Close() // if it was never served
	p.mu.Lock()
	links := p.links
	p.links = nil
	p.mu.Unlock()
	for _, l := range links {
		l.close()
	}
	p.bg.Wait()
	return err
}

// Cut stops all traffic at once, in both directions, and does not wait: the
// node's disk cannot be trusted, so nothing it still decides may leave it.
func (p *Peers) Cut() {
	p.mu.Lock()
	p.cut = true
	p.mu.Unlock()
	p.cancel()
}

func (p *Peers) isCut() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.cut
}

// Stats are the peer port's numbers.
func (p *Peers) Stats() wire.ServerStats { return p.server.Stats() }

// Call asks another node and waits for its answer, which belongs to the
// caller. A refusal is a *wire.Error; without an answer the error is a
// *wire.ConnError, whose Sent tells whether the request may have arrived, or
// one of this package's that says why there is no connection.
func (p *Peers) Call(ctx context.Context, node placement.NodeID, kind wire.Kind, body []byte) ([]byte, error) {
	return p.call(ctx, classCalls, node, "", kind, body)
}

// Stream asks another node for a streaming answer and gives each part to each.
func (p *Peers) Stream(ctx context.Context, node placement.NodeID, kind wire.Kind, body []byte, each func([]byte) error) error {
	c, err := p.conn(ctx, classCalls, node, "")
	if err != nil {
		return err
	}
	return c.Stream(ctx, kind, body, each)
}

// CallIncarnation is Call for a caller that means one incarnation of the node
// and no other. It goes beside Raft's heartbeats and is for small bodies.
func (p *Peers) CallIncarnation(ctx context.Context, node placement.NodeID, incarnation string, kind wire.Kind, body []byte) ([]byte, error) {
	return p.call(ctx, classControl, node, incarnation, kind, body)
}

// Ask is CallIncarnation without waiting: answered is called once, by the
// goroutine that reads the connection, and must not wait. Nil: there is no
// connection now, or it is full; nothing was sent and answered is not called.
// What it gives otherwise takes the caller off the request.
func (p *Peers) Ask(node placement.NodeID, incarnation string, kind wire.Kind, body []byte, answered func([]byte, error)) (forget func()) {
	l, err := p.link(node, classControl)
	if err != nil {
		return nil
	}
	conn := l.ready()
	if conn == nil || incarnation != "" && conn.peer.Incarnation != incarnation {
		return nil
	}
	forget, ok := conn.Ask(kind, 0, body, func(b []byte, err error) {
		if err == nil && p.isCut() {
			b, err = nil, errCut
		}
		answered(b, err)
	})
	if !ok {
		return nil
	}
	return forget
}

func (p *Peers) call(ctx context.Context, c class, node placement.NodeID, incarnation string, kind wire.Kind, body []byte) ([]byte, error) {
	conn, err := p.conn(ctx, c, node, incarnation)
	if err != nil {
		return nil, err
	}
	b, err := conn.Call(ctx, kind, body)
	if err == nil && p.isCut() {
		return nil, errCut
	}
	return b, err
}

var errCut = errors.New("transport: this node is cut off")

// peerInfo is who is at the other end of a connection that it opened.
type peerInfo struct {
	Cluster     string
	Node        placement.NodeID
	Incarnation string
}

// The hello between nodes, and its answer:
//
//	| version u8 = 2 | cluster str8 | node str8 | incarnation str8 |
//
// str8 is a length byte and that many bytes.
func (p *Peers) appendHello(cluster string) []byte {
	b := []byte{bodyVersion}
	for _, s := range []string{cluster, string(p.o.NodeID), p.o.Incarnation} {
		b = append(append(b, byte(len(s))), s...)
	}
	return b
}

func decodeHello(b []byte) (*peerInfo, error) {
	if len(b) == 0 || b[0] != bodyVersion {
		return nil, bodyError("hello of another version (run the same version on all nodes)")
	}
	b = b[1:]
	var s [3]string
	for i := range s {
		if len(b) == 0 || int(b[0]) > len(b)-1 {
			return nil, bodyError("hello is cut off")
		}
		end := 1 + int(b[0])
		s[i] = string(b[1:end])
		b = b[end:]
	}
	if len(b) != 0 {
		return nil, bodyError("hello has %d bytes too many", len(b))
	}
	if s[1] == "" {
		return nil, bodyError("hello names no node")
	}
	return &peerInfo{Cluster: s[0], Node: placement.NodeID(s[1]), Incarnation: s[2]}, nil
}

// hello accepts a node of the same cluster, or of none.
func (p *Peers) hello(info *wire.ConnInfo, body []byte) ([]byte, *wire.Error) {
	from, err := decodeHello(body)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeBadRequest, Message: err.Error()}
	}
	own := p.o.ClusterID()
	if foreign(own, from.Cluster) {
		return nil, &wire.Error{Code: wire.CodeWrongCluster, Message: wrongCluster(p.o.NodeID, own, from.Node, from.Cluster)}
	}
	if from.Node == p.o.NodeID && from.Incarnation != p.o.Incarnation {
		return nil, &wire.Error{Code: wire.CodeBadRequest, Message: fmt.Sprintf("peer at %s calls itself %s, as this node does (give every node an ID of its own)", info.Remote, from.Node)}
	}
	info.Identity = from
	return p.appendHello(own), nil
}

func foreign(a, b string) bool { return a != "" && b != "" && a != b }

func wrongCluster(self placement.NodeID, own string, other placement.NodeID, theirs string) string {
	return fmt.Sprintf("node %s belongs to cluster %s, node %s to cluster %s (they cannot talk; check the addresses)", self, own, other, theirs)
}

// requests are those of other nodes.
type requests struct{ p *Peers }

// ServeWire answers one.
func (r requests) ServeWire(ctx context.Context, req *wire.Request, resp *wire.Responder) {
	r.p.serve(ctx, req, resp)
}

// StartWire has those answered at once that can be.
func (r requests) StartWire(_ context.Context, req *wire.Request, _ *wire.Responder) wire.Start {
	r.p.mu.RLock()
	defer r.p.mu.RUnlock()
	if r.p.atOnce[req.Kind] {
		return wire.StartHere
	}
	return wire.StartApart
}

// serve answers one request of another node.
func (p *Peers) serve(ctx context.Context, req *wire.Request, resp *wire.Responder) {
	from, ok := req.Conn.Identity.(*peerInfo)
	if !ok {
		_ = resp.Fail(&wire.Error{Code: wire.CodeBadRequest, Message: "no hello"})
		return
	}
	// A node that joined no cluster yet may ask what everybody may ask, and be
	// adopted; it takes no part in Raft. It says hello again once it is adopted.
	own := p.o.ClusterID()
	if foreign(own, from.Cluster) {
		_ = resp.Fail(&wire.Error{Code: wire.CodeWrongCluster, Message: wrongCluster(p.o.NodeID, own, from.Node, from.Cluster)})
		return
	}
	var h Handler
	p.mu.RLock()
	client, cut := p.client, p.cut
	if req.Kind > wire.KindPeerHello {
		h = p.handlers[req.Kind]
	}
	p.mu.RUnlock()
	switch {
	case cut:
		_ = resp.Fail(&wire.Error{Code: wire.CodeShuttingDown, Message: fmt.Sprintf("node %s is stopping", p.o.NodeID)})
		return
	case req.Kind < wire.KindPeerHello && client != nil:
		client.ServeWire(ctx, req, resp)
		return
	}
	var body []byte
	var err error
	switch {
	case isRaft(req.Kind):
		body, err = p.serveRaft(ctx, from, req.Kind, req.Body)
	case h != nil:
		body, err = h(ctx, from.Node, req.Body)
	default:
		err = &wire.Error{Code: wire.CodeUnsupported, Message: fmt.Sprintf("node %s does not serve requests of kind %d", p.o.NodeID, req.Kind)}
	}
	if p.isCut() {
		err = &wire.Error{Code: wire.CodeShuttingDown, Message: fmt.Sprintf("node %s is stopping", p.o.NodeID)}
	}
	if err != nil {
		_ = resp.Fail(asWire(err)) // the connection is gone: nobody to tell
		return
	}
	_ = resp.Reply(body)
}

func isRaft(k wire.Kind) bool {
	switch k {
	case wire.KindRaftAppend, wire.KindRaftVote, wire.KindRaftPreVote, wire.KindRaftTimeout, wire.KindRaftSnapshot:
		return true
	}
	return false
}

func (p *Peers) serveRaft(ctx context.Context, from *peerInfo, kind wire.Kind, body []byte) ([]byte, error) {
	g, rest, err := takeGroup(body)
	if err != nil {
		return nil, err
	}
	p.mu.RLock()
	t := p.groups[g]
	p.mu.RUnlock()
	if t == nil {
		return nil, &wire.Error{Code: wire.CodeUnavailable, Message: fmt.Sprintf("node %s runs no replica of %s", p.o.NodeID, g)}
	}
	return t.serve(ctx, from, kind, rest)
}

// asWire is an error as it is sent.
func asWire(err error) *wire.Error {
	var w *wire.Error
	if errors.As(err, &w) {
		return w
	}
	code := wire.CodeInternal
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		code = wire.CodeTimeout
	case errors.Is(err, errShut):
		code = wire.CodeUnavailable
	case errors.Is(err, errBody):
		code = wire.CodeBadRequest
	}
	return &wire.Error{Code: code, Message: err.Error()}
}
