package router

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/client/workers"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// Peers carries requests to other nodes, client kinds included. A refusal is a
// *wire.Error; no answer is a *wire.ConnError.
type Peers interface {
	Call(ctx context.Context, node placement.NodeID, kind wire.Kind, body []byte) ([]byte, error)
}

// Options of a Router. Self, Placement, Groups, Peers, Clock and Status are
// needed.
type Options struct {
	Self      placement.NodeID
	Placement *placement.Service
	Groups    Groups
	Peers     Peers
	Clock     *hlc.Clock
	Logger    hclog.Logger // nil: none

	// Limits are those of a document. They must be what the machines apply
	// with, or a write is accepted here and refused there.
	Limits doc.Limits

	// Status is this node's own.
	Status func(ctx context.Context) wire.NodeStatus
	// Init forms a cluster (router/admin). nil refuses.
	Init func(ctx context.Context, req *wire.ClusterInitRequest) (*wire.ClusterInitReply, error)

	// Patience is how long a request without a deadline is routed again while
	// it is refused for passing reasons. Too short shows elections to clients;
	// too long keeps them waiting for a group that is gone. Zero means 10s.
	Patience time.Duration
	// AttemptTimeout bounds one request to another node, plus a millisecond per
	// item. Too short repeats work on a busy node; too long waits for a paused
	// one after another leads. Zero means 2s.
	AttemptTimeout time.Duration
	// StatusTimeout bounds the wait for each node in a cluster status. Zero means 1s.
	StatusTimeout time.Duration
	// AnswerMemory is how many bytes of documents the answers in the making may
	// hold, all requests together, and once more those of writes that return
	// documents; past it requests wait, or have documents left out. Too little makes large answers wait for each other. Zero means 64 MiB;
	// it is at least that of eight documents, and 8 MiB.
	AnswerMemory int64
	// ScanChunk is how many bytes of documents one group is asked for at a
	// time. Zero means 256 KiB.
	ScanChunk int
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Patience <= 0 {
		o.Patience = 10 * time.Second
	}
	if o.AttemptTimeout <= 0 {
		o.AttemptTimeout = 2 * time.Second
	}
	if o.StatusTimeout <= 0 {
		o.StatusTimeout = time.Second
	}
	if o.ScanChunk <= 0 {
		o.ScanChunk = 256 << 10
	}
	if o.Limits.MaxBytes <= 0 {
		o.Limits.MaxBytes = wire.DefaultDocumentSize
	}
	if o.Limits.MaxDepth <= 0 {
		o.Limits.MaxDepth = wire.MaxDepth
	}
	if o.AnswerMemory <= 0 {
		o.AnswerMemory = 64 << 20
	}
	// No request may need more than there is.
	o.AnswerMemory = max(o.AnswerMemory, 8*int64(o.Limits.MaxBytes), 2*historyBytes)
	return o
}

// Router answers client requests, from the client port and, forwarded, from
// other nodes. It holds no state that matters: what it remembers of leaders is
// a hint.
type Router struct {
	opts Options
	log  hclog.Logger

	room     *room // for documents that are read
	returned *room // for those that writes return: apart, as they wait for a log

	mu      sync.RWMutex
	leaders map[placement.GroupID]placement.NodeID // guarded by mu; of groups that have no replica here

	tasks  *workers.Pool[func()]
	txns   txnDrivers
	counts txnCounts
	cuts   cutter
}

// New makes a router. It starts nothing; coordinators of transactions outlive
// their requests, and Close ends them.
func New(o Options) *Router {
	o = o.withDefaults()
	r := &Router{opts: o, log: o.Logger, room: newRoom(o.AnswerMemory), returned: newRoom(o.AnswerMemory), leaders: make(map[placement.GroupID]placement.NodeID)}
	r.tasks = workers.New(func(f func()) { f() })
	r.txns.tasks = r.tasks
	r.txns.drivers = make(map[*txnDriver]struct{})
	r.cuts.lanes = make(map[string]*cutLane)
	r.txns.ctx, r.txns.cancel = context.WithCancel(context.Background())
	return r
}

// Send passes on one part of a streamed answer.
type Send func(part wire.Message) error

// Serve answers one request. Parts of a stream go to send, before the last
// one, which is returned; nil is an empty answer. An error is always a
// *wire.Error. body must not change while the answer is used.
func (r *Router) Serve(ctx context.Context, kind wire.Kind, body []byte, send Send) (wire.Message, error) {
	switch kind {
	case wire.KindWrite:
		var req wire.WriteRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.write(ctx, &req))
	case wire.KindGet:
		var req wire.GetRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.get(ctx, &req))
	case wire.KindScan:
		var req wire.ScanRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.scan(ctx, &req, send))
	case wire.KindCount:
		var req wire.CountRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.count(ctx, &req))
	case wire.KindHistory:
		var req wire.HistoryRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.history(ctx, &req))
	case wire.KindTopology:
		var req wire.TopologyRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.topology(ctx, &req))
	case wire.KindCreateCollection:
		var req wire.CreateCollectionRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.createCollection(ctx, &req))
	case wire.KindCollection:
		var req wire.CollectionRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.collectionInfo(ctx, &req))
	case wire.KindDropCollection:
		var req wire.DropCollectionRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.dropCollection(ctx, &req))
	case wire.KindSettings:
		var req wire.SettingsRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.settings(ctx, &req))
	case wire.KindLeaders:
		var req wire.LeadersRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.placeLeaders(ctx, &req))
	case wire.KindClusterInit:
		var req wire.ClusterInitRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.clusterInit(ctx, &req))
	case wire.KindCheck:
		var req wire.CheckRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.check(ctx, &req))
	case wire.KindCommit:
		var req wire.CommitRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.commit(ctx, &req))
	case wire.KindLock:
		var req wire.LockRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.lock(ctx, &req))
	case wire.KindUnlock:
		var req wire.UnlockRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		r.unlock(ctx, &req)
		return nil, nil
	case wire.KindEvaluate:
		var req wire.EvaluateRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.evaluate(&req))
	case wire.KindTxnList:
		var req wire.TxnListRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.listTxns(ctx, &req))
	case wire.KindTxnAbort:
		var req wire.TxnAbortRequest
		if err := wire.Decode(body, &req); err != nil {
			return nil, err
		}
		return answer(r.abortTxn(ctx, &req))
	case wire.KindClusterStatus:
		return answer(r.clusterStatus(ctx), nil)
	case wire.KindNodeStatus:
		status := r.opts.Status(ctx)
		return &status, nil
	case wire.KindPing:
		return nil, nil
	}
	return nil, refuse(wire.CodeUnsupported, "request kind %d is not known here (upgrade the server)", kind)
}

// ServeWire serves the client port, and what other nodes forward.
func (r *Router) ServeWire(ctx context.Context, req *wire.Request, resp *wire.Responder) {
	message, err := r.Serve(ctx, req.Kind, req.Body, func(part wire.Message) error { return resp.SendMessage(part) })
	if err != nil {
		_ = resp.Fail(r.refusal(err)) // a client that is gone needs no answer
		return
	}
	_ = resp.ReplyMessage(message)
}

// refusal is an error as a client gets it, with the time: what was in a
// transaction's way may be younger than the client's clock, and the next attempt
// reads at that.
func (r *Router) refusal(err error) *wire.Error {
	timed := *r.wireError(err, subject{}) // which may be shared
	timed.Now = uint64(r.opts.Clock.Now())
	return &timed
}

// answer makes a message and a refusal what Serve returns: a nil *wire.Error
// is no error.
func answer[M any, P interface {
	*M
	wire.Message
}](m *M, e *wire.Error) (wire.Message, error) {
	if e != nil {
		return nil, e
	}
	return P(m), nil
}

// ready refuses while this node knows no cluster.
func (r *Router) ready() (*placement.View, *wire.Error) {
	v := r.opts.Placement.View()
	if v.ClusterID == "" {
		return nil, refuse(wire.CodeNotInitialised, "node %s belongs to no cluster yet (run idb cluster init)", r.opts.Self)
	}
	return v, nil
}

// blindTurns is how many attempts trust a replica here that knows of no leader.
// By then (about 60 ms) most elections are not over, but a question to another
// replica costs little.
const blindTurns = 5

// locate finds who leads a group: its replica here, if this node leads it,
// else the node to ask. turn counts attempts: where no leader is known, each
// asks another replica.
func (r *Router) locate(v *placement.View, id placement.GroupID, turn int) (Group, placement.NodeID) {
	if g, ok := r.opts.Groups.Group(id); ok {
		leader, _, known := g.Leader()
		if known && leader == r.opts.Self {
			return g, leader
		}
		if known {
			return nil, leader
		}
		// A replica that knows no leader: there is none yet, or it has stopped
		// or is cut off, and then the others know better.
		if turn < blindTurns {
			return nil, ""
		}
	}
	r.mu.RLock()
	leader := r.leaders[id]
	r.mu.RUnlock()
	if leader != "" {
		return nil, leader
	}
	if g, ok := v.Group(id); ok && len(g.Replicas) > 0 {
		if turn == 0 && g.Preferred != "" {
			return nil, g.Preferred
		}
		return nil, g.Replicas[turn%len(g.Replicas)]
	}
	return nil, ""
}

// learn remembers who leads a group, for groups without a replica here.
// An empty node forgets.
func (r *Router) learn(id placement.GroupID, node placement.NodeID) {
	r.mu.RLock()
	known := r.leaders[id]
	r.mu.RUnlock()
	if known == node {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if node == "" {
		delete(r.leaders, id)
		return
	}
	r.leaders[id] = node
}

// patience says how long a request goes on being routed again, and spaces the
// attempts.
type patience struct {
	until time.Time // zero until the first wait
	delay time.Duration
}

// wait pauses before the next attempt and answers false when the time is up.
func (p *patience) wait(ctx context.Context, most time.Duration) bool {
	if p.until.IsZero() {
		p.until = time.Now().Add(most)
		if d, ok := ctx.Deadline(); ok {
			p.until = d
		}
	}
	p.delay = min(max(2*p.delay, 2*time.Millisecond), 100*time.Millisecond)
	if time.Until(p.until) < p.delay {
		return false
	}
	t := time.NewTimer(p.delay)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// call asks another node, for a time in which a healthy one answers: if its
// process is paused, another leads soon. items is how much is asked of it.
func (r *Router) call(ctx context.Context, node placement.NodeID, kind wire.Kind, body []byte, items int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.AttemptTimeout+time.Duration(items)*time.Millisecond)
	defer cancel()
	answer, err := r.opts.Peers.Call(ctx, node, kind, body)
	if err == nil {
		return answer, nil
	}
	var refusal *wire.Error
	var lost *wire.ConnError
	if !errors.As(err, &refusal) && !errors.As(err, &lost) {
		err = &wire.ConnError{Err: err} // there is no connection
	}
	return nil, fmt.Errorf("node %s: %w", node, err)
}

// collection finds a collection for reading.
func (r *Router) collection(ctx context.Context, name string) (*placement.View, *placement.Collection, *wire.Error) {
	if _, e := r.ready(); e != nil {
		return nil, nil, e
	}
	v, c, err := r.opts.Placement.Lookup(ctx, name)
	if err != nil {
		return nil, nil, r.wireReadError(err, subject{collection: name})
	}
	return v, c, nil
}

// readable is collection for what only reads: the entries of unique values can
// be read as a collection of their own, "users#", to be compared with what
// documents hold.
func (r *Router) readable(ctx context.Context, name string) (*placement.View, *placement.Collection, *wire.Error) {
	of, entries := unique.Named(name)
	v, c, e := r.collection(ctx, of)
	if e != nil || !entries {
		return v, c, e
	}
	if unique.SetOf(&c.Options) == nil {
		return nil, nil, refuse(wire.CodeCollectionNotFound, "%s: the collection %s has no unique fields", name, of)
	}
	return v, &placement.Collection{
		ID: unique.Entries(c.ID), Name: unique.Name(c.Name), Options: wire.CollectionOptions{RetentionSeconds: c.Options.RetentionSeconds},
	}, nil
}

// partitionOf is where a document lives.
func partitionOf(v *placement.View, c *placement.Collection, id string) placement.PartitionID {
	return placement.PartitionID(wire.Partition(c.Name, c.Options.Separator, id, v.Partitions()))
}

// parallel runs f for 0 … n-1 and returns when all are done. One is run in
// place, for it is the common case.
func (r *Router) parallel(n int, f func(i int)) {
	if n == 1 {
		f(0)
		return
	}
	var all sync.WaitGroup
	for i := 1; i < n; i++ {
		all.Add(1)
		r.tasks.Run(func() {
			defer all.Done()
			f(i)
		})
	}
	if n > 0 {
		f(0)
	}
	all.Wait()
}

// micros is the time since start, for costs.
func micros(start time.Time) uint64 { return uint64(time.Since(start).Microseconds()) }

// plural words a number of things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
