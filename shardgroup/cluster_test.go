package shardgroup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/transport"
	"github.com/impossibledb/idb/txn/hlc"
)

// cluster is a few nodes in this process, on loopback, with real disks.
type cluster struct {
	t     testing.TB
	specs []GroupSpec
	tweak func(n placement.NodeID, c *Config)

	mu    sync.Mutex
	nodes map[placement.NodeID]*testNode
	addrs map[placement.NodeID]string
	order []placement.NodeID
}

type testNode struct {
	id    placement.NodeID
	dir   string
	host  *Host
	peers *transport.Peers
	net   *testNet
	fatal chan error
	halts chan *HaltError
}

// testNet is a node's network: it can be cut off from some nodes, both ways,
// without closing connections.
type testNet struct {
	c    *cluster
	self placement.NodeID

	mu  sync.Mutex
	cut map[placement.NodeID]bool
	all []*gatedConn
}

// gatedConn holds back everything while its peer is cut off.
type gatedConn struct {
	net.Conn
	n    *testNet
	peer placement.NodeID

	mu     sync.Mutex
	open   chan struct{} // closed: pass
	inward chan struct{} // nil: as open
}

func (g *gatedConn) gate() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// in is the gate of what arrives; it can be set by itself.
func (g *gatedConn) in() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inward != nil {
		return g.inward
	}
	return g.open
}

// setIn holds what arrives, or lets it in, or makes it follow the other
// direction again (nil).
func (g *gatedConn) setIn(pass *bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inward != nil {
		select {
		case <-g.inward:
		default:
			close(g.inward) // those who wait at it
		}
	}
	g.inward = nil
	if pass != nil {
		g.inward = make(chan struct{})
		if *pass {
			close(g.inward)
		}
	}
}

// setIn does it for all of a node's own connections.
func (n *testNet) setIn(pass *bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, g := range n.all {
		g.setIn(pass)
	}
}

func (g *gatedConn) Write(b []byte) (int, error) {
	<-g.gate()
	return g.Conn.Write(b)
}

func (g *gatedConn) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	<-g.in()
	return n, err
}

func (g *gatedConn) Close() error {
	g.set(false)
	g.setIn(nil)
	return g.Conn.Close()
}

func (g *gatedConn) set(cut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
		if cut {
			g.open = make(chan struct{})
		}
	default:
		if !cut {
			close(g.open)
		}
	}
}

func (n *testNet) dial(ctx context.Context, addr string) (net.Conn, error) {
	peer := n.c.owner(addr)
	n.mu.Lock()
	cut := n.cut[peer]
	n.mu.Unlock()
	if cut {
		return nil, errors.New("cut off")
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	g := &gatedConn{Conn: nc, n: n, peer: peer, open: make(chan struct{})}
	close(g.open)
	n.mu.Lock()
	defer n.mu.Unlock()
	g.set(n.cut[peer])
	n.all = append(n.all, g)
	return g, nil
}

// setCut cuts a node's own connections to peer, or mends them.
func (n *testNet) setCut(peer placement.NodeID, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[peer] = cut
	for _, g := range n.all {
		if g.peer == peer {
			g.set(cut)
		}
	}
}

// isolate cuts a node off from the others in both directions.
func (c *cluster) isolate(id placement.NodeID, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if n.id != id {
			n.net.setCut(id, cut)
			c.nodes[id].net.setCut(n.id, cut)
		}
	}
}

func (c *cluster) owner(addr string) placement.NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, a := range c.addrs {
		if a == addr {
			return id
		}
	}
	return ""
}

func (c *cluster) resolve(id placement.NodeID) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.addrs[id]; a != "" {
		return a, nil
	}
	return "", fmt.Errorf("no node %s", id)
}

// quick is timing for tests: far above a loopback round trip and an fsync.
var quick = Timing{Heartbeat: 150 * time.Millisecond, Commit: 20 * time.Millisecond}

func newCluster(t testing.TB, nodes int, groups int, tweak func(placement.NodeID, *Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, tweak: tweak, nodes: map[placement.NodeID]*testNode{}, addrs: map[placement.NodeID]string{}}
	var members []Member
	for i := range nodes {
		id := placement.NodeID(fmt.Sprintf("n%d", i+1))
		c.order = append(c.order, id)
		members = append(members, Member{Node: id, Incarnation: "1"})
	}
	for i := range members {
		members[i].Learner = i >= 3 // the fourth and fifth have no vote
	}
	for g := range groups {
		c.specs = append(c.specs, GroupSpec{ID: placement.GroupID(g + 1), Members: members})
	}
	for _, id := range c.order {
		c.start(id, filepath.Join(t.TempDir(), string(id)))
	}
	for _, id := range c.order {
		c.startGroups(id)
	}
	t.Cleanup(c.close)
	return c
}

func testLogger() hclog.Logger {
	if os.Getenv("SHARDGROUP_LOG") == "" {
		return hclog.NewNullLogger()
	}
	return hclog.New(&hclog.LoggerOptions{Level: hclog.LevelFromString(os.Getenv("SHARDGROUP_LOG")), Output: os.Stderr, TimeFormat: "05.000"})
}

// start opens a node's host without groups.
func (c *cluster) start(id placement.NodeID, dir string) *testNode {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	n := &testNode{id: id, dir: dir, fatal: make(chan error, 1), halts: make(chan *HaltError, 16)}
	n.net = &testNet{c: c, self: id, cut: map[placement.NodeID]bool{}}
	log := testLogger().Named(string(id))
	n.peers, err = transport.New(transport.Options{
		NodeID: id, Incarnation: "1", ClusterID: func() string { return "test" },
		Listener: l, Dial: n.net.dial, Resolve: c.resolve, Logger: log,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	cfg := Config{
		NodeID: id, Incarnation: "1", Dir: dir, Peers: n.peers, Clock: hlc.NewClock(nil), Logger: log,
		Timing:  quick,
		OnFatal: func(err error) { n.fatal <- err },
		OnHalt:  func(h *HaltError) { n.halts <- h },
	}
	if c.tweak != nil {
		c.tweak(id, &cfg)
	}
	n.host, err = OpenHost(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	n.peers.Start()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[id] = n
	c.addrs[id] = l.Addr().String()
	return n
}

func (c *cluster) startGroups(id placement.NodeID) {
	c.t.Helper()
	for _, s := range c.specs {
		if _, err := c.node(id).host.StartGroup(s); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *cluster) node(id placement.NodeID) *testNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id]
}

// stop closes a node.
func (c *cluster) stop(id placement.NodeID) *testNode {
	c.mu.Lock()
	n := c.nodes[id]
	delete(c.nodes, id)
	delete(c.addrs, id)
	c.mu.Unlock()
	if n == nil {
		return nil
	}
	// As a kill would: nothing gets out any more, nothing is handed over.
	n.peers.Cut()
	if err := n.host.Close(); err != nil && n.host.Err() == nil {
		c.t.Errorf("close %s: %v", id, err)
	}
	if err := n.peers.Close(); err != nil {
		c.t.Errorf("close peers of %s: %v", id, err)
	}
	return n
}

// restart starts a stopped node again from its directory.
func (c *cluster) restart(n *testNode) *testNode {
	c.t.Helper()
	m := c.start(n.id, n.dir)
	if err := m.host.Recover(); err != nil {
		c.t.Fatal(err)
	}
	return m
}

func (c *cluster) close() {
	var wg sync.WaitGroup
	for _, id := range c.order {
		wg.Add(1)
		go func() { defer wg.Done(); c.stop(id) }()
	}
	wg.Wait()
}

func (c *cluster) group(id placement.NodeID, g placement.GroupID) *Group {
	n := c.node(id)
	if n == nil {
		return nil
	}
	gr, _ := n.host.Group(g)
	return gr
}

// leader waits for a group to have a leader that serves, other than those named.
func (c *cluster) leader(g placement.GroupID, not ...placement.NodeID) *Group {
	c.t.Helper()
	var found *Group
	c.wait("a leader of "+g.String(), func() bool {
		for _, id := range c.order {
			skip := false
			for _, n := range not {
				skip = skip || n == id
			}
			if gr := c.group(id, g); !skip && gr != nil && gr.IsLeader() {
				found = gr
				return true
			}
		}
		return false
	})
	return found
}

// wait polls a condition.
func (c *cluster) wait(what string, ok func() bool) {
	c.t.Helper()
	eventually(c.t, what, ok)
}

// within waits for a condition that does not tell. Its limit is counted in
// ticks that this process sees: ones that it misses because the machine stands
// still, or has no time for it, are dropped and do not count. What is waited
// for had no time either.
func within(limit time.Duration, ok func() bool) bool {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for left := limit / time.Millisecond; !ok(); left-- {
		if left == 0 {
			return false
		}
		<-tick.C
	}
	return true
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !within(15*time.Second, ok) {
		buf := make([]byte, 1<<20)
		t.Fatalf("gave up waiting for %s\n%s", what, buf[:min(runtime.Stack(buf, true), 60000)])
	}
}

// Commands.

var reqSerial struct {
	sync.Mutex
	n uint64
}

func newRequest(at hlc.Timestamp) wire.RequestID {
	reqSerial.Lock()
	defer reqSerial.Unlock()
	reqSerial.n++
	r := wire.RequestID{Time: uint64(at)}
	binary.BigEndian.PutUint64(r.Random[:], reqSerial.n)
	return r
}

func raw(t testing.TB, v any) []byte {
	t.Helper()
	b, err := doc.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func own(parts ...placement.PartitionID) fsm.Command {
	if parts == nil {
		parts = []placement.PartitionID{0}
	}
	return fsm.Command{Own: &fsm.Own{Epoch: 1, Partitions: parts}}
}

func write(op wire.WriteOp, id string, body []byte) fsm.Command {
	return fsm.Command{Write: &fsm.Write{
		Epoch: 1, Collection: 1,
		Item: wire.WriteItem{RequestID: newRequest(hlc.NewClock(nil).Now()), Op: op, ID: id, Body: body},
	}}
}

func read(t testing.TB, m *fsm.Machine, id string, at fsm.At) (wire.Document, error) {
	t.Helper()
	return m.Get(fsm.ReadKey{Epoch: 1, Collection: 1, ID: id}, at, false)
}

// ctxFor ends after d, or with the test. As in within, a machine that stands
// still does not count: of each pause no more than an eighth of d.
func ctxFor(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var step func(left int)
	step = func(left int) {
		if left == 0 {
			cancel()
			return
		}
		timer := time.AfterFunc(d/8, func() { step(left - 1) })
		context.AfterFunc(ctx, func() { timer.Stop() })
	}
	step(8)
	return ctx
}

// seeded is a cluster whose groups own partition 0.
func seeded(t testing.TB, nodes, groups int, tweak func(placement.NodeID, *Config)) *cluster {
	t.Helper()
	c := newCluster(t, nodes, groups, tweak)
	for _, s := range c.specs {
		c.must(s.ID, own())
	}
	return c
}

// must proposes until it is done, under one request ID. An attempt ends by
// itself, when leadership is lost or at the ProposalTimeout: to give it up
// sooner and propose the same again would be the more work, the less the machine
// gets done.
func (c *cluster) must(g placement.GroupID, cmd fsm.Command) fsm.Result {
	c.t.Helper()
	ctx := ctxFor(c.t, 15*time.Second)
	var last error
	for ctx.Err() == nil {
		r, err := c.leader(g).Propose(ctx, cmd)
		if err == nil {
			return r
		}
		last = err
	}
	c.t.Fatalf("propose: %v", last)
	return fsm.Result{}
}

// equal waits until all replicas of a group have applied the same and agree.
func (c *cluster) equal(g placement.GroupID) {
	c.t.Helper()
	var last string
	ok := within(15*time.Second, func() bool {
		var ref fsm.Stats
		last = ""
		for i, id := range c.order {
			gr := c.group(id, g)
			if gr == nil {
				return false
			}
			s := gr.Machine().Stats()
			last += fmt.Sprintf(" %s: applied %d digest %016x docs %d;", id, s.Applied, s.Digest, s.Documents)
			if i == 0 {
				ref = s
			} else if s.Applied != ref.Applied || s.Digest != ref.Digest || s.Documents != ref.Documents {
				return false
			}
		}
		return true
	})
	if !ok {
		c.t.Fatalf("replicas of %s differ:%s", g, last)
	}
}

// ours are the goroutines of this module, of raft and of the engines, by their
// first lines.
func ours() map[string]string {
	buf := make([]byte, 8<<20)
	buf = buf[:runtime.Stack(buf, true)]
	list := map[string]string{}
	for _, g := range bytes.Split(buf, []byte("\n\n")) {
		s := string(g)
		id, _, _ := strings.Cut(s, "[")
		if strings.Contains(s, "testing.tRunner") || strings.Contains(s, "shardgroup.ours") {
			continue
		}
		if strings.Contains(s, "impossibledb") || strings.Contains(s, "hashicorp/raft") || strings.Contains(s, "cockroachdb/pebble") {
			list[id] = s
		}
	}
	return list
}

// noLeaks gives a check that no goroutine has stayed since the call. Nodes that
// other tests ended by a fatal error keep theirs.
func noLeaks(t testing.TB) func() {
	before := ours()
	return func() {
		t.Helper()
		var left string
		ok := within(5*time.Second, func() bool {
			left = ""
			for id, s := range ours() {
				if before[id] == "" {
					left += s + "\n\n"
				}
			}
			return left == ""
		})
		if !ok {
			t.Fatalf("goroutines left:\n%s", left)
		}
	}
}

var _ io.Closer = (*gatedConn)(nil)

// leadBy makes a node the leader of a group.
func (c *cluster) leadBy(g placement.GroupID, id placement.NodeID) *Group {
	c.t.Helper()
	c.wait(string(id)+" to lead "+g.String(), func() bool {
		l := c.leader(g)
		if c.group(id, g).IsLeader() {
			return true
		}
		_ = l.TransferLeadership(ctxFor(c.t, time.Second), id) // tried again
		return false
	})
	return c.group(id, g)
}
