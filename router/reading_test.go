package router

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn/hlc"
)

// noticing is the router as a handler, and counts who did not take the short
// way.
type noticing struct {
	*Router
	serves chan string
}

func (n noticing) ServeWire(ctx context.Context, req *wire.Request, resp *wire.Responder) {
	n.serves <- req.Kind.String()
	n.Router.ServeWire(ctx, req, resp)
}

// The short way answers what the long one answers, and takes what it should.
func TestShortWay(t *testing.T) {
	c := newTestCluster(t, 2, 2)
	for i := range 40 {
		c.put("n1", "users", fmt.Sprintf("u%d", i), m{"name": "x", "n": i})
	}
	c.put("n1", "users", "gone", m{"a": 1})
	c.one("n1", "users", wire.WriteItem{Op: wire.OpDelete, ID: "gone", RequestID: c.requestID()})
	n := c.nodes["n1"]
	serves := make(chan string, 100)
	s := wire.NewServer(wire.ServerOptions{
		Handler: noticing{Router: n.router, serves: serves},
		Hello:   func(*wire.ConnInfo, *wire.Hello) (wire.HelloReply, *wire.Error) { return wire.HelloReply{}, nil },
	})
	defer s.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }() // ends with Close
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := wire.NewConn(nc, wire.ConnOptions{})
	defer conn.Close()
	if _, err := conn.Handshake(context.Background(), wire.Hello{}); err != nil {
		t.Fatal(err)
	}

	leads := func(id string) bool {
		v := n.router.opts.Placement.View()
		coll, _ := v.Collection("users")
		g, ok := n.Group(v.Owner(partitionOf(v, coll, id)))
		if !ok {
			return false
		}
		leader, _, _ := g.Leader()
		return leader == "n1"
	}
	short := 0
	try := func(q *wire.GetRequest, fit bool) {
		t.Helper()
		var got, want wire.GetReply
		gotErr := conn.Do(context.Background(), wire.KindGet, q, &got)
		wantErr := c.serve("n1", wire.KindGet, q, &want)
		if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
			t.Errorf("%+v: %v, the long way says %v", q, gotErr, wantErr)
		}
		got.Now, want.Now, got.Cost.WaitMicros, want.Cost.WaitMicros = 0, 0, 0, 0
		if a, b := wire.Append(nil, &got), wire.Append(nil, &want); string(a) != string(b) {
			t.Errorf("%+v: %+v, the long way answers %+v", q, got, want)
		}
		select {
		case <-serves:
			if fit {
				t.Errorf("%+v took the long way", q)
			}
		default:
			short++
			if !fit {
				t.Errorf("%+v took the short way", q)
			}
		}
	}
	for i := range 40 {
		id := fmt.Sprintf("u%d", i)
		try(&wire.GetRequest{Collection: "users", IDs: []string{id}, Direct: true}, leads(id))
		try(&wire.GetRequest{Collection: "users", IDs: []string{id}, NoBody: true}, leads(id))
		try(&wire.GetRequest{Collection: "users", IDs: []string{"absent-" + id}}, leads("absent-"+id))
	}
	if short == 0 || short == 120 {
		t.Errorf("%d of 120 took the short way; the test needs groups that n1 leads, and others", short)
	}
	try(&wire.GetRequest{Collection: "users", IDs: []string{"gone"}}, leads("gone"))
	try(&wire.GetRequest{Collection: "users", IDs: []string{"u1", "u2"}}, false)
	try(&wire.GetRequest{Collection: "users", IDs: []string{"u1"}, AtVersion: 1}, false)
	try(&wire.GetRequest{Collection: "users", IDs: []string{"u1"}, AtVersion: 7}, false)
	try(&wire.GetRequest{Collection: "users", IDs: []string{"u1"}, MaxBytes: 1}, false)
	try(&wire.GetRequest{Collection: "users", IDs: []string{""}}, false)
	try(&wire.GetRequest{Collection: "users"}, false)
	try(&wire.GetRequest{Collection: "nobody", IDs: []string{"u1"}}, false)
}

// What was confirmed and cannot be answered is handed over: the long way knows
// what to do about a partition that has moved, or a leader that is another.
func TestShortWayHandsOver(t *testing.T) {
	c := newTestCluster(t, 1, 1)
	c.put("n1", "users", "u1", m{"name": "x"})
	n := c.nodes["n1"]
	for name, refusal := range map[string]error{"not confirmed": errNoMajority, "not readable": nil} {
		t.Run(name, func(t *testing.T) {
			var visited atomic.Bool
			visited.Store(refusal != nil)
			r := New(n.router.opts)
			r.opts.Groups = groupsFunc(func() Group {
				g, _ := n.Group(1)
				return failing{g.(testGroup), refusal, &visited}
			})
			serves := make(chan string, 10)
			s := wire.NewServer(wire.ServerOptions{
				Handler: noticing{Router: r, serves: serves},
				Hello:   func(*wire.ConnInfo, *wire.Hello) (wire.HelloReply, *wire.Error) { return wire.HelloReply{}, nil },
			})
			defer s.Close()
			near, far := net.Pipe()
			go func() { _ = s.ServeConn(far) }() // ends with Close
			conn := wire.NewConn(near, wire.ConnOptions{})
			defer conn.Close()
			if _, err := conn.Handshake(context.Background(), wire.Hello{}); err != nil {
				t.Fatal(err)
			}
			var reply wire.GetReply
			err := conn.Do(context.Background(), wire.KindGet, &wire.GetRequest{Collection: "users", IDs: []string{"u1"}}, &reply)
			if err != nil || reply.Results[0].Error != nil || reply.Results[0].Doc.ID != "u1" {
				t.Errorf("%+v, %v", reply, err)
			}
			if len(serves) != 1 {
				t.Errorf("%d requests took the long way", len(serves))
			}
		})
	}
}

var errNoMajority = errors.New("no majority")

// failing is a group that confirms no joined read, or whose machine cannot be
// visited.
type failing struct {
	testGroup
	refusal error
	visited *atomic.Bool
}

func (g failing) Join(read any, answer func([]any, error)) bool {
	answer([]any{read}, g.refusal)
	return true
}

func (g failing) Machine() Reader { return unvisited{g.testGroup.Machine(), g.visited} }

// unvisited fails the first time.
type unvisited struct {
	Reader
	visited *atomic.Bool
}

func (u unvisited) Visit(keys []fsm.ReadKey, at fsm.At, noBody bool, fn func(int, wire.Document, error)) error {
	if u.visited.CompareAndSwap(false, true) {
		return errors.New("closed")
	}
	return u.Reader.Visit(keys, at, noBody, fn)
}

// begins notes when its groups' reads are begun, and when their machines are read.
type begins struct {
	Groups
	mu    sync.Mutex
	noted []string // guarded by mu
}

func (b *begins) note(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noted = append(b.noted, fmt.Sprintf(format, args...))
}

func (b *begins) Group(id placement.GroupID) (Group, bool) {
	g, ok := b.Groups.Group(id)
	if !ok {
		return nil, false
	}
	return beginning{g, b, id}, true
}

type beginning struct {
	Group
	b  *begins
	id placement.GroupID
}

func (g beginning) BeginRead(keys []fsm.ReadKey, at hlc.Timestamp) (shardgroup.Pending, error) {
	g.b.note("begin %d", g.id)
	return g.Group.BeginRead(keys, at)
}

func (g beginning) Machine() Reader { return visiting{g.Group.Machine(), g} }

type visiting struct {
	Reader
	g beginning
}

func (v visiting) Visit(keys []fsm.ReadKey, at fsm.At, noBody bool, fn func(int, wire.Document, error)) error {
	v.g.b.note("visit %d", v.g.id)
	return v.Reader.Visit(keys, at, noBody, fn)
}

// Groups that this node leads confirm side by side, and are read in turn.
func TestGetBeginsAllGroupsFirst(t *testing.T) {
	c := newTestCluster(t, 1, 3)
	var ids []string
	for i := range 40 {
		ids = append(ids, fmt.Sprintf("u%d", i))
		c.put("n1", "users", ids[i], m{"n": i})
	}
	n := c.nodes["n1"]
	for _, at := range []uint64{0, uint64(n.router.opts.Clock.Now())} {
		b := &begins{Groups: n.router.opts.Groups}
		o := n.router.opts
		o.Groups = b
		r := New(o)
		var reply wire.GetReply
		answer, err := r.Serve(context.Background(), wire.KindGet, wire.Append(nil, &wire.GetRequest{Collection: "users", IDs: ids, AtTime: at}), nil)
		if err == nil {
			err = wire.Decode(wire.Append(nil, answer), &reply)
		}
		if err != nil || reply.Cost.Docs != uint64(len(ids)) || reply.Cost.Groups != 3 {
			t.Fatalf("%v, %+v", err, reply.Cost)
		}
		for i, got := range reply.Results {
			if got.Error != nil || got.Doc.ID != ids[i] {
				t.Errorf("%s: %+v", ids[i], got)
			}
		}
		if len(b.noted) != 6 {
			t.Fatalf("%d steps for three groups: %v", len(b.noted), b.noted)
		}
		for i, what := range b.noted {
			if strings.HasPrefix(what, "begin") != (i < 3) {
				t.Errorf("at %d: a group was read before all were begun: %v", at, b.noted)
			}
		}
	}
}
