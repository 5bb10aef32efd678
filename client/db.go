package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/impossibledb/idb/client/route"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/txn/hlc"
)

// DB is a connection to a cluster. It is safe for concurrent use; one per
// process is enough.
type DB struct {
	c       *route.Cluster
	timeout time.Duration
	rivals  rivals
}

// Dial connects to a cluster: "idb://host:port,host:port/?timeout=10s", or the
// bare list of addresses. Some of the nodes are enough, the rest is learned.
// Without a port it is 7400. The options of the URL are timeout,
// connect_timeout, silence, connections, cluster and name.
//
// Dial tries until one node answers or ctx ends (5s if it has no deadline). A
// node that belongs to no cluster yet is enough, so that InitCluster can be
// called; other operations then fail with ErrNotInitialised.
func Dial(ctx context.Context, target string, opts ...Option) (*DB, error) {
	cfg, err := parse(target)
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		o(&cfg)
	}
	if _, ok := ctx.Deadline(); !ok && cfg.connectTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cfg.connectTimeout)
		defer cancel()
	}
	c, err := route.Open(ctx, cfg.route)
	if err != nil {
		var refusal *wire.Error
		if errors.As(err, &refusal) {
			e := ofRefusal(refusal, "dial", "", "")
			e.Message = fmt.Sprintf("connect to %s: %v", strings.Join(cfg.route.Addrs, ", "), err)
			return nil, e
		}
		return nil, &Error{
			Code: wire.CodeUnavailable, Op: "dial",
			Message: fmt.Sprintf("connect to %s: %v", strings.Join(cfg.route.Addrs, ", "), err),
			causes:  []error{err},
		}
	}
	return &DB{c: c, timeout: cfg.timeout}, nil
}

// Close ends all connections and goroutines. Operations under way fail with
// ErrClosed; writes among them may also be ErrOutcomeUnknown.
func (db *DB) Close() error {
	db.c.Close()
	return nil
}

// Collection is a handle of a collection; it costs nothing and asks no server.
// The first write to a collection that does not exist creates it, unless the
// cluster's settings demand CreateCollection. It is there, and empty, if that
// write itself is then refused.
func (db *DB) Collection(name string) *Collection {
	return &Collection{db: db, name: name}
}

// NewRequestID is a fresh ID for WithRequestID. It carries the servers' time
// of now and is remembered by them for some minutes at least.
func (db *DB) NewRequestID() RequestID {
	id := RequestID{Time: uint64(db.c.Clock().Now())}
	_, _ = rand.Read(id.Random[:]) // never fails
	return id
}

// Now is the estimate of the servers' clock.
func (db *DB) Now() Timestamp { return db.c.Clock().Now() }

// Stats are what this client has done since Dial.
func (db *DB) Stats() route.Counts { return db.c.Counts() }

// Ping asks any node for a sign of life.
func (db *DB) Ping(ctx context.Context) error {
	return db.control(ctx, "ping", wire.KindPing, nil, nil)
}

// Topology fetches the placement map, the nodes and the catalog, as the node
// that answers knows them: also while nothing can be changed, and perhaps a
// moment old.
func (db *DB) Topology(ctx context.Context) (*Topology, error) {
	return db.topology(ctx, "topology", "", false)
}

// topology is Topology; fresh is what was changed before the call and all.
func (db *DB) topology(ctx context.Context, op, collection string, fresh bool) (*Topology, error) {
	var t Topology
	if err := db.controlNamed(ctx, op, collection, wire.KindTopology, &wire.TopologyRequest{Fresh: fresh}, &t); err != nil {
		return nil, err
	}
	return &t, nil
}

// Status asks one node to ask all of them. It answers also while nodes are
// down, and says which.
func (db *DB) Status(ctx context.Context) (*ClusterStatus, error) {
	var s ClusterStatus
	if err := db.control(ctx, "status", wire.KindClusterStatus, nil, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// Check compares the replicas of one shard group, or of some of its partitions,
// while the group works. It takes as long as the replicas take to read their
// rows: give ctx a deadline that suits it.
func (db *DB) Check(ctx context.Context, req CheckRequest) (*CheckReply, error) {
	var reply CheckReply
	if err := db.control(ctx, "check", wire.KindCheck, &req, &reply); err != nil {
		return nil, err
	}
	return &reply, nil
}

// NodeStatus is the status of whichever node answers: with one address, of that
// node also before it belongs to a cluster.
func (db *DB) NodeStatus(ctx context.Context) (*NodeStatus, error) {
	var s NodeStatus
	if err := db.control(ctx, "node status", wire.KindNodeStatus, nil, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// InitCluster forms a cluster of nodes. It can be repeated after any
// interruption, through any of the nodes.
func (db *DB) InitCluster(ctx context.Context, req InitRequest) (*InitReply, error) {
	var reply InitReply
	x := control{ask: &req, answer: &reply}
	ctx, cancel := db.bound(ctx)
	if cancel != nil {
		defer cancel()
	}
	err := db.c.Do(ctx, wire.KindClusterInit, route.Write, &x)
	if err != nil {
		// A cluster that exists after an answer of ours was lost is the one
		// that was asked for.
		var f *route.Failure
		if !errors.As(err, &f) || !f.Unknown || f.Ended != nil || f.Refusal == nil || f.Refusal.Code != wire.CodeClusterExists {
			return nil, ofFailure(err, "cluster init", "", "")
		}
		t, err := db.Topology(ctx)
		if err != nil {
			return nil, err
		}
		reply = InitReply{ClusterID: t.ClusterID, Topology: *t, Resumed: true}
	}
	// The map is fresh; have it here too before the first operation.
	_ = db.c.Refresh(ctx)
	return &reply, nil
}

// Settings reads the cluster's settings, as the last change left them.
func (db *DB) Settings(ctx context.Context) (Settings, error) {
	t, err := db.topology(ctx, "settings", "", true)
	if err != nil {
		return Settings{}, err
	}
	return t.Settings, nil
}

// SetSettings changes the cluster's settings and answers with all of them.
func (db *DB) SetSettings(ctx context.Context, s Settings) (Settings, error) {
	var out Settings
	err := db.control(ctx, "settings", wire.KindSettings, &wire.SettingsRequest{Settings: s, RequestID: db.NewRequestID()}, &out)
	return out, err
}

// SetLeaders changes where the leaders of shard groups should be, and answers
// when that is decided. Leaderships are handed over afterwards; Status shows
// them. Topology has what is wanted.
func (db *DB) SetLeaders(ctx context.Context, l Leaders) (*Topology, error) {
	var t Topology
	if err := db.control(ctx, "leaders", wire.KindLeaders, &wire.LeadersRequest{Leaders: l, RequestID: db.NewRequestID()}, &t); err != nil {
		return nil, err
	}
	return &t, nil
}

// Collections lists the catalog by name. Whatever was created or dropped before
// the call, by anybody, shows in it.
func (db *DB) Collections(ctx context.Context) ([]CollectionInfo, error) {
	return db.collections(ctx, "collections", "")
}

func (db *DB) collections(ctx context.Context, op, collection string) ([]CollectionInfo, error) {
	t, err := db.topology(ctx, op, collection, true)
	if err != nil {
		return nil, err
	}
	list := slices.DeleteFunc(t.Collections, func(c CollectionInfo) bool { return c.Dropping })
	slices.SortFunc(list, func(a, b CollectionInfo) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// DescribeCollection is one entry of the catalog, which is read as Collections
// does.
func (db *DB) DescribeCollection(ctx context.Context, name string) (CollectionInfo, error) {
	list, err := db.collections(ctx, "describe", name)
	if err != nil {
		return CollectionInfo{}, err
	}
	var names []string
	for _, c := range list {
		if c.Name == name {
			return c, nil
		}
		names = append(names, c.Name)
	}
	hint := "there are none yet"
	if len(names) > 0 {
		hint = "there are: " + strings.Join(names[:min(len(names), 10)], ", ")
		if len(names) > 10 {
			hint += ", …"
		}
	}
	return CollectionInfo{}, refused(wire.CodeCollectionNotFound, "describe", name, "", "no such collection; %s", hint)
}

// CreateCollection creates a collection. It is done as well if one with the
// same options exists; with other options it is an ErrConflict. However often
// it has to be sent, it is done once: if others drop the collection while an
// answer is on its way, it stays dropped.
func (db *DB) CreateCollection(ctx context.Context, name string, o CollectionOptions) (CollectionInfo, error) {
	var info CollectionInfo
	err := db.controlNamed(ctx, "create collection", name, wire.KindCreateCollection,
		&wire.CreateCollectionRequest{Name: name, Options: o, RequestID: db.NewRequestID()}, &info)
	if err != nil {
		return info, err
	}
	if v := db.c.View(); v == nil || v.Collection(name) == nil {
		_ = db.c.Refresh(ctx)
	}
	return info, nil
}

// DropCollection removes a collection, its documents and its history. The name
// is free at once; the space comes back in the background. However often it has
// to be sent, it is done once, and takes nothing that is made anew meanwhile.
func (db *DB) DropCollection(ctx context.Context, name string) error {
	var info CollectionInfo
	x := control{ask: &wire.DropCollectionRequest{Name: name, RequestID: db.NewRequestID()}, answer: &info}
	ctx, cancel := db.bound(ctx)
	if cancel != nil {
		defer cancel()
	}
	if err := decisive(db.c.Do(ctx, wire.KindDropCollection, route.Write, &x)); err != nil {
		return ofFailure(err, "drop collection", name, "")
	}
	return nil
}

// bound gives ctx the default timeout if it has none.
func (db *DB) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return db.c.Bound(ctx, db.timeout)
}

func (db *DB) control(ctx context.Context, op string, kind wire.Kind, ask, answer wire.Message) error {
	return db.controlNamed(ctx, op, "", kind, ask, answer)
}

// controlNamed is a request that any node answers and that may be repeated.
func (db *DB) controlNamed(ctx context.Context, op, collection string, kind wire.Kind, ask, answer wire.Message) error {
	x := control{ask: ask, answer: answer}
	ctx, cancel := db.bound(ctx)
	if cancel != nil {
		defer cancel()
	}
	mode := route.Read
	if kind == wire.KindCreateCollection || kind == wire.KindSettings || kind == wire.KindLeaders {
		mode = route.Write
	}
	if err := db.c.Do(ctx, kind, mode, &x); err != nil {
		return ofFailure(err, op, collection, "")
	}
	return nil
}

// control is the exchange of a message that any node answers.
type control struct{ ask, answer wire.Message }

func (x *control) Place(*route.View) (uint32, bool) { return 0, false }

func (x *control) Append(dst []byte, _ uint64, _ bool) []byte { return wire.Append(dst, x.ask) }

func (x *control) Read(body []byte, _ bool) error {
	if x.answer == nil {
		return nil
	}
	return route.BadAnswer(wire.Decode(body, x.answer))
}

func endOf(t time.Time) Timestamp { return hlc.EndOf(t) }

func asError(err error) (*Error, bool) {
	var e *Error
	ok := errors.As(err, &e)
	return e, ok
}
