package client_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/txn/hlc"
)

// cluster is a scripted cluster for tests: real sockets and wire.Servers, over
// one store. Leaders, epochs and faults are what the test says.
type cluster struct {
	store *store
	nodes []*server

	mu          sync.Mutex
	id          string // empty: not initialised
	epoch       uint64
	catalog     uint64
	owners      []uint32
	leaders     map[uint32]string // by group; empty: an election
	believed    map[uint32]string // what other nodes tell, if it is not the leader
	collections []wire.CollectionInfo
	explicit    bool
	places      wire.Leaders
	changed     chan struct{}
	answers     map[wire.RequestID]wire.CollectionInfo // to requests to the catalog

	// fault, if set, is asked about each request before it is served.
	fault atomic.Pointer[func(n *server, r *wire.Request) fault]
	late  sync.WaitGroup

	wrong atomic.Int64 // how far the clock of the nodes' greeting is ahead of the groups'
	// itemwise: a collection that is gone is found out item by item, as by a
	// node whose catalog is old.
	itemwise atomic.Bool
	// lagging: no node has heard of any collection when it tells of the cluster.
	lagging atomic.Bool
	commits chan wire.CommitRequest // what was committed, if not nil

	// behind: nodes have not heard of the newest collection, unless they are
	// asked for what is there now.
	behind atomic.Bool

	room atomic.Int64 // bytes of documents in the answer to a get; 0: as many as there are
}

// fault is what goes wrong with a request.
type fault struct {
	refuse  *wire.Error
	effect  bool                // the request is carried out …
	cut     bool                // … the connection is cut instead of an answer
	hang    bool                // … there is no answer until the client gives up
	later   time.Duration       // … it is carried out after this time, and refuse or cut come now
	garbage bool                // … the answer cannot be read
	items   map[int]*wire.Error // … the answers to these items of a write are lost for these
}

// server is one node.
type server struct {
	c    *cluster
	id   string
	addr string
	l    *listener
	srv  *wire.Server

	requests atomic.Int64 // writes and reads served or refused
	cancels  atomic.Int64
	polls    atomic.Int64
}

const testPartitions = 7

func newCluster(t testing.TB, nodes, groups int) *cluster {
	t.Helper()
	c := &cluster{
		store: newStore(), id: "c1", epoch: 1, catalog: 1,
		leaders: make(map[uint32]string), believed: make(map[uint32]string), changed: make(chan struct{}),
		answers: make(map[wire.RequestID]wire.CollectionInfo),
	}
	for i := range nodes {
		n := &server{c: c, id: "n" + strconv.Itoa(i+1)}
		c.nodes = append(c.nodes, n)
		n.start(t, "127.0.0.1:0")
	}
	for p := range testPartitions {
		c.owners = append(c.owners, uint32(p%groups)+1)
	}
	for g := range groups {
		c.leaders[uint32(g)+1] = c.nodes[g%nodes].id
	}
	t.Cleanup(c.quiesce)
	return c
}

// quiesce ends the nodes and waits for everything that was still to happen.
// From then on only the store can be asked.
func (c *cluster) quiesce() {
	for _, n := range c.nodes {
		n.kill()
	}
	c.late.Wait()
}

// number is a field of a document in the store.
func (c *cluster) number(collection, id, field string) string {
	r := c.store.read(collection, id, 0, 0)
	if r.Error != nil {
		return "0"
	}
	v, _ := doc.Get(r.Doc.Body, field)
	return v.String()
}

func (n *server) start(t testing.TB, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	n.addr = l.Addr().String()
	n.l = &listener{Listener: l, conns: make(map[string]net.Conn)}
	n.srv = wire.NewServer(wire.ServerOptions{
		Handler: n,
		Hello: func(_ *wire.ConnInfo, h *wire.Hello) (wire.HelloReply, *wire.Error) {
			n.c.mu.Lock()
			defer n.c.mu.Unlock()
			if h.ClusterID != "" && n.c.id != "" && h.ClusterID != n.c.id {
				return wire.HelloReply{}, &wire.Error{Code: wire.CodeWrongCluster, Message: "node " + n.id + " belongs to cluster " + n.c.id + ", not " + h.ClusterID}
			}
			return wire.HelloReply{Server: "fake", NodeID: n.id, ClusterID: n.c.id, Now: n.c.store.now() + uint64(n.c.wrong.Load()), TopologyEpoch: n.c.epoch}, nil
		},
	})
	srv := n.srv
	go func() { _ = srv.Serve(n.l) }()
}

// kill closes the node's listener and every connection.
func (n *server) kill() {
	n.l.resume()
	_ = n.srv.Close()
	_ = n.l.Close()
}

func (n *server) restart(t testing.TB) { n.start(t, n.addr) }

// listener can cut its connections, and stop them all as SIGSTOP does.
type listener struct {
	net.Listener
	mu      sync.Mutex
	conns   map[string]net.Conn
	stopped chan struct{} // not nil: nothing is read or written until it is closed
}

type conn struct {
	net.Conn
	l *listener
}

func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[nc.RemoteAddr().String()] = nc
	return &conn{nc, l}, nil
}

func (l *listener) wait() {
	l.mu.Lock()
	stopped := l.stopped
	l.mu.Unlock()
	if stopped != nil {
		<-stopped
	}
}

func (l *listener) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = make(chan struct{})
}

func (l *listener) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped != nil {
		close(l.stopped)
		l.stopped = nil
	}
}

func (l *listener) cut(remote string) {
	l.mu.Lock()
	nc := l.conns[remote]
	l.mu.Unlock()
	if nc != nil {
		_ = nc.Close()
	}
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.l.wait()
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	c.l.wait()
	return c.Conn.Write(b)
}

// lead makes a node the leader of a group; nobody if it is empty.
func (c *cluster) lead(group uint32, node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaders[group] = node
}

// faults sets what goes wrong from now on.
func (c *cluster) faults(f func(n *server, r *wire.Request) fault) { c.fault.Store(&f) }

// url names all nodes.
func (c *cluster) url() string {
	s := "idb://"
	for i, n := range c.nodes {
		if i > 0 {
			s += ","
		}
		s += n.addr
	}
	return s
}

func (c *cluster) dial(t testing.TB, opts ...client.Option) *client.DB {
	t.Helper()
	db, err := client.Dial(t.Context(), c.url(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func (c *cluster) topology() wire.Topology {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := wire.Topology{ClusterID: c.id, Epoch: c.epoch, Catalog: c.catalog, Owners: slices.Clone(c.owners), Collections: slices.Clone(c.collections)}
	var ids []string
	for _, n := range c.nodes {
		ids = append(ids, n.id)
		t.Nodes = append(t.Nodes, wire.NodeInfo{ID: n.id, ClientAddr: n.addr})
	}
	for g := uint32(1); int(g) <= len(c.leaders); g++ {
		t.Groups = append(t.Groups, wire.GroupInfo{ID: g, Replicas: ids, Leader: c.leaders[g], Term: 1})
	}
	t.Settings.ExplicitCollections, t.Leaders = c.explicit, c.places
	if c.lagging.Load() {
		t.Catalog, t.Collections = 0, nil
	}
	return t
}

// change alters the map or the catalog and wakes the polls.
func (c *cluster) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

// ensure creates a collection.
func (c *cluster) ensure(name string, o wire.CollectionOptions) wire.CollectionInfo {
	c.mu.Lock()
	for _, info := range c.collections {
		if info.Name == name {
			c.mu.Unlock()
			return info
		}
	}
	c.mu.Unlock()
	info := wire.CollectionInfo{Name: name, Options: o}
	c.change(func() {
		c.catalog++
		info.ID = uint32(c.catalog)
		c.collections = append(c.collections, info)
	})
	return info
}

func (c *cluster) find(name string) (wire.CollectionInfo, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, info := range c.collections {
		if info.Name == name {
			return info, true
		}
	}
	return wire.CollectionInfo{}, false
}

// answered is what a request to the catalog was answered before; without an ID
// it was refused.
func (c *cluster) answered(id wire.RequestID) (wire.CollectionInfo, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, ok := c.answers[id]
	return info, ok
}

func (c *cluster) remember(id wire.RequestID, info wire.CollectionInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[id] = info
}

func (c *cluster) isExplicit() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.explicit
}

// admit is the routing rule of one item.
func (n *server) admit(info wire.CollectionInfo, id string, epoch uint64, direct bool) *wire.Error {
	c := n.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if epoch != 0 && epoch != c.epoch {
		return &wire.Error{Code: wire.CodeStaleEpoch, Epoch: c.epoch, Message: fmt.Sprintf("routed by epoch %d, it is %d", epoch, c.epoch)}
	}
	group := c.owners[wire.Partition(info.Name, info.Options.Separator, id, testPartitions)]
	leader := c.leaders[group]
	switch {
	case leader == n.id:
		return nil
	case !direct && leader != "":
		return nil // forwarded
	}
	hint := leader
	if told, ok := c.believed[group]; ok {
		hint = told
	}
	return &wire.Error{Code: wire.CodeNotLeader, Leader: hint, Message: fmt.Sprintf("%s does not lead g%d", n.id, group)}
}

// ServeWire answers as a node would, but for the faults.
func (n *server) ServeWire(ctx context.Context, r *wire.Request, w *wire.Responder) {
	if r.Kind == wire.KindTopology {
		n.topology(ctx, r, w)
		return
	}
	n.requests.Add(1)
	var f fault
	if p := n.c.fault.Load(); p != nil {
		f = (*p)(n, r)
	}
	var answer wire.Message
	var refusal *wire.Error
	switch {
	case f.later > 0:
		n.c.late.Go(func() {
			<-time.After(f.later)
			n.serve(r)
		})
	case f.effect || (f.refuse == nil && !f.cut && !f.hang):
		answer, refusal = n.serve(r)
	}
	if reply, ok := answer.(*wire.WriteReply); ok {
		for i, e := range f.items {
			reply.Results[i] = wire.WriteResult{Error: e}
		}
	}
	switch {
	case f.cut:
		n.l.cut(r.Conn.Remote)
		<-ctx.Done()
		_ = w.Fail(&wire.Error{Code: wire.CodeShuttingDown})
	case f.hang:
		<-ctx.Done()
		n.cancels.Add(1)
		_ = w.Fail(&wire.Error{Code: wire.CodeOutcomeUnknown, Message: "time is up"})
	case f.garbage:
		_ = w.Reply([]byte{0xc0})
	case f.refuse != nil:
		_ = w.Fail(f.refuse)
	case refusal != nil:
		_ = w.Fail(refusal)
	default:
		if pages, ok := answer.(pages); ok {
			for i, p := range pages.list {
				if i == len(pages.list)-1 {
					_ = w.ReplyMessage(p)
				} else if w.SendMessage(p) != nil {
					return
				}
			}
			return
		}
		_ = w.ReplyMessage(answer)
	}
}

func (n *server) topology(ctx context.Context, r *wire.Request, w *wire.Responder) {
	n.polls.Add(1)
	var ask wire.TopologyRequest
	if err := wire.Decode(r.Body, &ask); err != nil {
		panic(err)
	}
	for {
		n.c.mu.Lock()
		changed := n.c.changed
		n.c.mu.Unlock()
		t := n.c.topology()
		if t.ClusterID == "" {
			_ = w.Fail(&wire.Error{Code: wire.CodeNotInitialised, Message: "node " + n.id + " belongs to no cluster yet (run idb cluster init)"})
			return
		}
		if n.c.behind.Load() && !ask.Fresh && len(t.Collections) > 0 {
			t.Collections = t.Collections[:len(t.Collections)-1]
		}
		if t.Epoch > ask.HaveEpoch || t.Catalog > ask.HaveCatalog || ask.WaitMillis == 0 {
			_ = w.ReplyMessage(&t)
			return
		}
		select {
		case <-changed:
			continue
		case <-time.After(time.Duration(ask.WaitMillis) * time.Millisecond):
			ask.WaitMillis = 0
		case <-ctx.Done():
			_ = w.Fail(&wire.Error{Code: wire.CodeTimeout, Message: "cancelled"})
			return
		}
	}
}

// pages are a streamed answer.
type pages struct {
	*wire.ScanPage
	list []*wire.ScanPage
}

func (n *server) serve(r *wire.Request) (wire.Message, *wire.Error) {
	c := n.c
	c.mu.Lock()
	bare := c.id == ""
	c.mu.Unlock()
	if bare && r.Kind != wire.KindClusterInit {
		return nil, &wire.Error{Code: wire.CodeNotInitialised, Message: "node " + n.id + " belongs to no cluster yet (run idb cluster init)"}
	}
	missing := func(name string) *wire.Error {
		return &wire.Error{Code: wire.CodeCollectionNotFound, Message: name + ": no such collection"}
	}
	switch r.Kind {
	case wire.KindCommit:
		var q wire.CommitRequest
		if err := wire.Decode(slices.Clone(r.Body), &q); err != nil {
			panic(err)
		}
		c.commits <- q
		return &wire.CommitReply{Time: c.store.now()}, nil
	case wire.KindWrite:
		var q wire.WriteRequest
		if err := wire.Decode(r.Body, &q); err != nil {
			panic(err)
		}
		info, ok := c.find(q.Collection)
		gone := !ok || info.ID != q.Number
		if gone && !c.itemwise.Load() {
			return nil, missing(q.Collection)
		}
		reply := wire.WriteReply{Now: c.store.now(), Cost: wire.Cost{Groups: 1, Docs: uint64(len(q.Items))}}
		failed := false
		for i := range q.Items {
			var res wire.WriteResult
			switch e := n.admit(info, q.Items[i].ID, q.Epoch, q.Direct); {
			case failed && q.Ordered:
				res.Error = &wire.Error{Code: wire.CodeNotAttempted, Message: "not attempted"}
			case gone:
				res.Error = missing(q.Collection)
			case e != nil && len(q.Items) == 1:
				return nil, e
			case e != nil:
				res.Error = e
			default:
				res = c.store.write(q.Collection, &q.Items[i])
			}
			failed = failed || res.Error != nil
			reply.Results = append(reply.Results, res)
		}
		return &reply, nil
	case wire.KindGet:
		var q wire.GetRequest
		if err := wire.Decode(r.Body, &q); err != nil {
			panic(err)
		}
		info, ok := c.find(q.Collection)
		if !ok {
			return nil, missing(q.Collection)
		}
		if e := c.future(q.AtTime); e != nil {
			return nil, e
		}
		reply := wire.GetReply{Now: c.store.now(), Cost: wire.Cost{Groups: 1, Docs: uint64(len(q.IDs))}}
		got := 0
		for _, id := range q.IDs {
			if e := n.admit(info, id, q.Epoch, q.Direct); e != nil {
				reply.Results = append(reply.Results, wire.GetResult{Error: e})
				continue
			}
			res := c.store.read(q.Collection, id, q.AtVersion, q.AtTime)
			if q.NoBody {
				res.Doc.Body = nil
			}
			if got += len(res.Doc.Body); c.room.Load() > 0 && got > int(c.room.Load()) {
				res = wire.GetResult{Error: wire.Refuse(wire.CodeFrameTooLarge, "no room")}
			}
			reply.Results = append(reply.Results, res)
		}
		return &reply, nil
	case wire.KindScan:
		var q wire.ScanRequest
		if err := wire.Decode(r.Body, &q); err != nil {
			panic(err)
		}
		if _, ok := c.find(q.Collection); !ok {
			return nil, missing(q.Collection)
		}
		if e := c.future(q.AtTime); e != nil {
			return nil, e
		}
		return c.scan(&q), nil
	case wire.KindCount:
		var q wire.CountRequest
		if err := wire.Decode(r.Body, &q); err != nil {
			panic(err)
		}
		return &wire.CountReply{Count: uint64(len(c.store.ids(q.Collection, q.Prefix, 0))), Cost: wire.Cost{Groups: 2}}, nil
	case wire.KindHistory:
		var q wire.HistoryRequest
		if err := wire.Decode(r.Body, &q); err != nil {
			panic(err)
		}
		info, _ := c.find(q.Collection)
		if e := n.admit(info, q.ID, q.Epoch, q.Direct); e != nil {
			return nil, e
		}
		var reply wire.HistoryReply
		for _, d := range c.store.history(q.Collection, q.ID) {
			if q.Before != 0 && d.Version >= q.Before {
				continue
			}
			if q.Limit > 0 && len(reply.Versions) == int(q.Limit) {
				reply.More = true
				break
			}
			reply.Versions = append(reply.Versions, d)
		}
		return &reply, nil
	case wire.KindCreateCollection:
		var q wire.CreateCollectionRequest
		if err := wire.Decode(r.Body, &q); err != nil {
			panic(err)
		}
		if info, ok := c.answered(q.RequestID); ok {
			if info.ID == 0 {
				return nil, missing(q.Name)
			}
			return &info, nil
		}
		info, ok := c.find(q.Name)
		if !ok && q.Implicit && c.isExplicit() {
			c.remember(q.RequestID, wire.CollectionInfo{})
			return nil, missing(q.Name)
		}
		if !ok {
			info = c.ensure(q.Name, q.Options)
		}
		if !q.Implicit && !info.Options.Equal(q.Options) {
			return nil, &wire.Error{Code: wire.CodeCollectionExists, Message: q.Name + ": exists with other options"}
		}
		c.remember(q.RequestID, info)
		return &info, nil
	case wire.KindCollection:
		var q wire.CollectionRequest
		if err := wire.Decode(r.Body, &q); err != nil {
			panic(err)
		}
		info, ok := c.find(q.Name)
		if !ok {
			return nil, missing(q.Name)
		}
		return &info, nil
	case wire.KindDropCollection:
		var q wire.DropCollectionRequest
		if err := wire.Decode(r.Body, &q); err != nil {
			panic(err)
		}
		info, ok := c.answered(q.RequestID)
		if !ok {
			info, _ = c.find(q.Name)
			c.remember(q.RequestID, info)
		}
		if info.ID == 0 {
			return nil, missing(q.Name)
		}
		c.change(func() {
			c.catalog++
			c.collections = slices.DeleteFunc(c.collections, func(i wire.CollectionInfo) bool { return i.ID == info.ID })
		})
		return &info, nil
	case wire.KindSettings:
		var q wire.SettingsRequest
		if err := wire.Decode(r.Body, &q); err != nil {
			panic(err)
		}
		c.change(func() { c.catalog++; c.explicit = q.Settings.ExplicitCollections })
		return &q.Settings, nil
	case wire.KindLeaders:
		var q wire.LeadersRequest
		if err := wire.Decode(r.Body, &q); err != nil {
			panic(err)
		}
		c.change(func() { c.catalog++; c.places = q.Leaders })
		t := c.topology()
		return &t, nil
	case wire.KindClusterInit:
		if !bare {
			return nil, &wire.Error{Code: wire.CodeClusterExists, Message: "the nodes are cluster c1 already"}
		}
		c.change(func() { c.id = "c1" })
		return &wire.ClusterInitReply{ClusterID: "c1", Topology: c.topology()}, nil
	case wire.KindNodeStatus:
		return &wire.NodeStatus{Node: wire.NodeInfo{ID: n.id}, Ready: true}, nil
	case wire.KindClusterStatus:
		return &wire.ClusterStatus{Topology: c.topology()}, nil
	}
	return nil, &wire.Error{Code: wire.CodeUnsupported, Message: "kind " + strconv.Itoa(int(r.Kind)) + " is not known"}
}

// future refuses times that are minutes ahead.
func (c *cluster) future(at uint64) *wire.Error {
	now := c.store.now()
	if hlc.Timestamp(at) < hlc.Timestamp(now).Add(time.Minute) {
		return nil
	}
	return &wire.Error{Code: wire.CodeFutureTime, Version: now, Message: "that is in the future"}
}

// scan answers in pages of three. A cursor is the snapshot and the last ID.
func (c *cluster) scan(q *wire.ScanRequest) wire.Message {
	at, after := uint64(c.store.clock.Now()), ""
	if q.AtTime != 0 {
		at = q.AtTime
	}
	if len(q.Cursor) >= 8 {
		at, after = binary.BigEndian.Uint64(q.Cursor), string(q.Cursor[8:])
	}
	ids := c.store.ids(q.Collection, q.Prefix, at)
	if q.Reverse {
		slices.Reverse(ids)
	}
	if after != "" {
		ids = ids[slices.Index(ids, after)+1:]
	}
	var out pages
	page := &wire.ScanPage{Time: at}
	taken := 0
	for i, id := range ids {
		d := c.store.read(q.Collection, id, 0, at).Doc
		if q.NoBody {
			d.Body = nil
		}
		page.Docs = append(page.Docs, d)
		page.Cost.Docs++
		taken++
		if q.Limit > 0 && taken == int(q.Limit) {
			if i < len(ids)-1 {
				page.Cursor = append(binary.BigEndian.AppendUint64(nil, at), id...)
			}
			break
		}
		if len(page.Docs) == 3 {
			out.list = append(out.list, page)
			page = &wire.ScanPage{Time: at}
		}
	}
	out.list = append(out.list, page)
	return out
}
