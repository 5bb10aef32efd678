package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// book resolves nodes to listeners, and can be rewritten.
type book struct {
	mu    sync.Mutex
	addrs map[placement.NodeID]string
}

func (b *book) set(n placement.NodeID, addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addrs[n] = addr
}

func (b *book) resolve(n placement.NodeID) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.addrs[n]; a != "" {
		return a, nil
	}
	return "", fmt.Errorf("node %s is not known", n)
}

func (b *book) start(t testing.TB, n placement.NodeID, incarnation string, cluster func() string) *Peers {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.set(n, l.Addr().String())
	p, err := New(Options{NodeID: n, Incarnation: incarnation, ClusterID: cluster, Listener: l, Resolve: b.resolve})
	if err != nil {
		t.Fatal(err)
	}
	p.Handle(wire.KindPlacement, func(_ context.Context, from placement.NodeID, body []byte) ([]byte, error) {
		if string(body) == "fail" {
			return nil, errors.New("asked to fail")
		}
		return []byte(fmt.Sprintf("%s heard %q from %s", n, body, from)), nil
	})
	p.Start()
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func fixed(s string) func() string { return func() string { return s } }

func TestHello(t *testing.T) {
	b := &book{addrs: map[placement.NodeID]string{}}
	n1 := b.start(t, "n1", "1", fixed("east"))
	b.start(t, "n2", "1", fixed("east"))
	b.start(t, "n3", "1", fixed("west"))
	b.start(t, "n4", "1", fixed(""))
	b.set("n5", b.addrs["n2"]) // the address of another node
	b.set("n6", "127.0.0.1:1")

	cases := []struct {
		node        placement.NodeID
		incarnation string
		want        string // of the answer, or of the error
		code        wire.Code
	}{
		{"n2", "", `n2 heard "hi" from n1`, 0},
		{"n2", "1", `n2 heard "hi" from n1`, 0},
		{"n2", "2", "has incarnation 1, 2 is a member", 0},
		{"n3", "", "node n3 belongs to cluster west, node n1 to cluster east", wire.CodeWrongCluster},
		{"n4", "", `n4 heard "hi" from n1`, 0}, // a node of no cluster may be adopted
		{"n5", "", "the node there is n2", 0},
		{"n6", "", "connection refused", 0},
		{"n7", "", "node n7 is not known", 0},
	}
	for _, c := range cases {
		t.Run(string(c.node)+c.incarnation, func(t *testing.T) {
			got, err := n1.CallIncarnation(within(t, 5*time.Second), c.node, c.incarnation, wire.KindPlacement, []byte("hi"))
			text := string(got)
			if err != nil {
				text = err.Error()
			}
			if !strings.Contains(text, c.want) {
				t.Errorf("got %q, want %q", text, c.want)
			}
			var w *wire.Error
			if errors.As(err, &w); c.code != 0 && (w == nil || w.Code != c.code) {
				t.Errorf("error %v, want code %d", err, c.code)
			}
		})
	}
}

// A node that joins a cluster says hello again on its connections.
func TestAdoption(t *testing.T) {
	b := &book{addrs: map[placement.NodeID]string{}}
	var cluster atomic.Pointer[string]
	none, west := "", "west"
	cluster.Store(&none)
	n1 := b.start(t, "n1", "1", func() string { return *cluster.Load() })
	b.start(t, "n2", "1", fixed("east"))
	ctx := within(t, 5*time.Second)
	if _, err := n1.Call(ctx, "n2", wire.KindPlacement, nil); err != nil {
		t.Fatal(err)
	}
	cluster.Store(&west)
	if _, err := n1.Call(ctx, "n2", wire.KindPlacement, nil); err == nil || !strings.Contains(err.Error(), "belongs to cluster") {
		t.Errorf("a node of another cluster was served on an old connection: %v", err)
	}
}

func TestCalls(t *testing.T) {
	ps := testPeers(t, "n1", "n2")
	ps[1].Handle(wire.KindPlacement, func(_ context.Context, _ placement.NodeID, body []byte) ([]byte, error) {
		switch string(body) {
		case "plain":
			return nil, errors.New("a plain error")
		case "wire":
			return nil, &wire.Error{Code: wire.CodeStaleEpoch, Message: "old map", Epoch: 7}
		}
		return body, nil
	})
	ps[1].Handle(wire.KindAdopt, func(ctx context.Context, _ placement.NodeID, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	ctx := within(t, 10*time.Second)
	var w *wire.Error
	if _, err := ps[0].Call(ctx, "n2", wire.KindPlacement, []byte("plain")); !errors.As(err, &w) || w.Code != wire.CodeInternal || w.Message != "a plain error" {
		t.Errorf("plain error: %v", err)
	}
	if _, err := ps[0].Call(ctx, "n2", wire.KindPlacement, []byte("wire")); !errors.As(err, &w) || w.Code != wire.CodeStaleEpoch || w.Epoch != 7 {
		t.Errorf("wire error: %v", err)
	}
	if _, err := ps[0].Call(ctx, "n2", wire.KindPlacementWait, nil); !errors.As(err, &w) || w.Code != wire.CodeUnsupported {
		t.Errorf("kind without a handler: %v", err)
	}
	if _, err := ps[0].Call(ctx, "n2", wire.KindGet, nil); !errors.As(err, &w) || w.Code != wire.CodeUnsupported {
		t.Errorf("client kind without a handler: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel()
	if _, err := ps[0].Call(short, "n2", wire.KindAdopt, nil); err == nil {
		t.Error("a call outlived its context")
	}
	ps[1].HandleClient(wire.HandlerFunc(func(_ context.Context, req *wire.Request, resp *wire.Responder) {
		_ = resp.Reply([]byte("client"))
	}))
	if b, err := ps[0].Call(ctx, "n2", wire.KindGet, nil); err != nil || string(b) != "client" {
		t.Errorf("client kind: %q %v", b, err)
	}

	// Many at once, over one connection.
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			body := []byte(fmt.Sprint(i))
			if got, err := ps[0].Call(ctx, "n2", wire.KindPlacement, body); err != nil || !bytes.Equal(got, body) {
				t.Errorf("call %d: %q %v", i, got, err)
			}
		}()
	}
	wg.Wait()
	if n := ps[1].Stats().Conns; n != 1 {
		t.Errorf("%d connections, want 1", n)
	}

	ps[0].Cut()
	if _, err := ps[0].Call(ctx, "n2", wire.KindPlacement, nil); !errors.Is(err, errCut) {
		t.Errorf("a node that is cut off called: %v", err)
	}
	ps[1].Cut()
	if _, err := ps[1].Call(ctx, "n1", wire.KindPlacement, nil); !errors.Is(err, errCut) {
		t.Errorf("a node that is cut off called: %v", err)
	}
}

// fakeRaft answers messages as a raft instance would.
func fakeRaft(t testing.TB, rt *RaftTransport, answer func(raft.RPC) (any, error)) {
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		for {
			select {
			case rpc := <-rt.Consumer():
				rpc.Respond(answer(rpc))
			case <-done:
				return
			}
		}
	}()
}

func raftPair(t testing.TB, ro RaftOptions) (*RaftTransport, *RaftTransport) {
	t.Helper()
	ps := testPeers(t, "n1", "n2")
	a, err := ps[0].Raft(1, RaftOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := ps[1].Raft(1, ro)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ps[1].Raft(1, ro); err == nil {
		t.Error("a group has two transports")
	}
	return a, b
}

func TestRaftMessages(t *testing.T) {
	a, b := raftPair(t, RaftOptions{})
	var got any
	fakeRaft(t, b, func(rpc raft.RPC) (any, error) {
		got = rpc.Command
		switch c := rpc.Command.(type) {
		case *raft.AppendEntriesRequest:
			return &raft.AppendEntriesResponse{Term: c.Term, LastLog: 41, Success: true, NoRetryBackoff: len(c.Entries) == 0}, nil
		case *raft.RequestVoteRequest:
			return &raft.RequestVoteResponse{Term: c.Term + 1, Granted: c.LeadershipTransfer}, nil
		case *raft.RequestPreVoteRequest:
			return &raft.RequestPreVoteResponse{Term: c.Term, Granted: true}, nil
		case *raft.TimeoutNowRequest:
			return &raft.TimeoutNowResponse{}, nil
		}
		return nil, fmt.Errorf("unexpected %T", rpc.Command)
	})
	at := time.Unix(5, 6)
	req := &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 9, PrevLogTerm: 2, LeaderCommitIndex: 8, Entries: []*raft.Log{
		{Index: 10, Term: 3, Data: []byte("ten"), AppendedAt: at},
		{Index: 11, Term: 3, Type: raft.LogNoop, Extensions: []byte("x")},
	}}
	var resp raft.AppendEntriesResponse
	if err := a.AppendEntries("n2@1", "n2", req, &resp); err != nil {
		t.Fatal(err)
	}
	if resp.Term != 3 || resp.LastLog != 41 || !resp.Success || resp.NoRetryBackoff {
		t.Errorf("answer: %+v", resp)
	}
	c := got.(*raft.AppendEntriesRequest)
	if string(c.ID) != "n1@1" || string(c.Addr) != "n1" || c.PrevLogEntry != 9 || c.LeaderCommitIndex != 8 || len(c.Entries) != 2 ||
		c.Entries[0].Index != 10 || string(c.Entries[0].Data) != "ten" || !c.Entries[0].AppendedAt.Equal(at) ||
		c.Entries[1].Index != 11 || c.Entries[1].Type != raft.LogNoop || string(c.Entries[1].Extensions) != "x" {
		t.Errorf("arrived: %+v", c)
	}
	if p := a.Progress("n2@1"); p.LastIndex != 41 || !p.Success || p.Full || p.At.IsZero() {
		t.Errorf("progress: %+v", p)
	}
	b.SetFull(true)
	if err := a.AppendEntries("n2@1", "n2", &raft.AppendEntriesRequest{Term: 3}, &resp); err != nil || !resp.NoRetryBackoff {
		t.Errorf("heartbeat: %+v %v", resp, err)
	}
	if !a.Progress("n2@1").Full {
		t.Error("a full disk was not told")
	}

	// Refusing entries leaves heartbeats and votes alone.
	b.RefuseEntries(errors.New("no room"))
	if err := a.AppendEntries("n2@1", "n2", req, &resp); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("entries for a full disk: %v", err)
	}
	if err := a.AppendEntries("n2@1", "n2", &raft.AppendEntriesRequest{Term: 3}, &resp); err != nil {
		t.Errorf("heartbeat for a full disk: %v", err)
	}
	b.RefuseEntries(nil)

	var vote raft.RequestVoteResponse
	if err := a.RequestVote("n2@1", "n2", &raft.RequestVoteRequest{Term: 4, LastLogIndex: 5, LastLogTerm: 3, LeadershipTransfer: true}, &vote); err != nil || vote.Term != 5 || !vote.Granted {
		t.Errorf("vote: %+v %v", vote, err)
	}
	var pre raft.RequestPreVoteResponse
	if err := a.RequestPreVote("n2@1", "n2", &raft.RequestPreVoteRequest{Term: 4}, &pre); err != nil || pre.Term != 4 || !pre.Granted {
		t.Errorf("pre-vote: %+v %v", pre, err)
	}
	if err := a.TimeoutNow("n2@1", "n2", &raft.TimeoutNowRequest{}, &raft.TimeoutNowResponse{}); err != nil {
		t.Errorf("timeout now: %v", err)
	}
	if err := a.RequestVote("n2@9", "n2", &raft.RequestVoteRequest{}, &vote); err == nil {
		t.Error("a vote was asked of another incarnation")
	}
	b.Shut()
	if err := a.RequestVote("n2@1", "n2", &raft.RequestVoteRequest{}, &vote); err == nil {
		t.Error("a group that is shut answered")
	}
}

// An append is cut to what one message may hold, and raft is told by the
// shorter request.
func TestAppendIsCut(t *testing.T) {
	a, b := raftPair(t, RaftOptions{})
	fakeRaft(t, b, func(rpc raft.RPC) (any, error) {
		c := rpc.Command.(*raft.AppendEntriesRequest)
		return &raft.AppendEntriesResponse{Success: true, LastLog: c.PrevLogEntry + uint64(len(c.Entries))}, nil
	})
	var entries []*raft.Log
	for i := range 12 {
		entries = append(entries, &raft.Log{Index: uint64(i + 1), Term: 1, Data: make([]byte, 512<<10)})
	}
	entries[0].Data = make([]byte, 9<<20)
	for sent, sizes := 0, []int{}; sent < len(entries); {
		req := &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: uint64(sent), Entries: entries[sent:]}
		var resp raft.AppendEntriesResponse
		if err := a.AppendEntries("n2@1", "n2", req, &resp); err != nil {
			t.Fatal(err)
		}
		n := len(req.Entries)
		if n == 0 || resp.LastLog != uint64(sent+n) {
			t.Fatalf("%d entries are said to be sent, the other side has %d", n, resp.LastLog)
		}
		sent, sizes = sent+n, append(sizes, n)
		if sent == len(entries) && fmt.Sprint(sizes) != "[1 3 3 3 2]" {
			t.Errorf("messages of %v entries", sizes)
		}
	}
}

func TestSnapshotStream(t *testing.T) {
	a, b := raftPair(t, RaftOptions{})
	want := make([]byte, 2*pieceBytes+12345)
	for i := range want {
		want[i] = byte(i * 7)
	}
	conf := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "n1@1", Address: "n1"}}})
	fakeRaft(t, b, func(rpc raft.RPC) (any, error) {
		c := rpc.Command.(*raft.InstallSnapshotRequest)
		got, err := io.ReadAll(rpc.Reader)
		if err != nil || !bytes.Equal(got, want) {
			return nil, fmt.Errorf("%d bytes arrived, %d were sent: %v", len(got), len(want), err)
		}
		if c.LastLogIndex != 77 || c.LastLogTerm != 3 || c.ConfigurationIndex != 5 || !bytes.Equal(c.Configuration, conf) || c.Size != int64(len(want)) || string(c.ID) != "n1@1" {
			return nil, fmt.Errorf("meta: %+v", c)
		}
		return &raft.InstallSnapshotResponse{Term: 4, Success: true}, nil
	})
	req := func(size int) *raft.InstallSnapshotRequest {
		return &raft.InstallSnapshotRequest{SnapshotVersion: 1, Term: 4, LastLogIndex: 77, LastLogTerm: 3, Configuration: conf, ConfigurationIndex: 5, Size: int64(size)}
	}
	var resp raft.InstallSnapshotResponse
	if err := a.InstallSnapshot("n2@1", "n2", req(len(want)), &resp, bytes.NewReader(want)); err != nil || !resp.Success || resp.Term != 4 {
		t.Fatalf("install: %+v %v", resp, err)
	}
	// A stream that breaks off, or does not keep its word, is not installed.
	if err := a.InstallSnapshot("n2@1", "n2", req(len(want)), &resp, bytes.NewReader(want[:100])); err == nil {
		t.Error("a short snapshot was installed")
	}
	if err := a.InstallSnapshot("n2@1", "n2", req(100), &resp, bytes.NewReader(want)); err == nil {
		t.Error("a long snapshot was installed")
	}
	if err := a.InstallSnapshot("n2@1", "n2", req(len(want)), &resp, io.MultiReader(bytes.NewReader(want[:pieceBytes+1]), broken{})); err == nil {
		t.Error("a broken snapshot was installed")
	}
	if err := a.InstallSnapshot("n2@1", "n2", req(maxMemorySnapshot+1), &resp, bytes.NewReader(want)); err == nil {
		t.Error("a snapshot beyond the limit was received into memory")
	}
	b.RefuseEntries(errors.New("no room"))
	if err := a.InstallSnapshot("n2@1", "n2", req(len(want)), &resp, bytes.NewReader(want)); err == nil {
		t.Error("a full node received a snapshot")
	}
	b.RefuseEntries(nil)
	b.mu.Lock()
	left := len(b.streams)
	b.mu.Unlock()
	if left != 0 {
		t.Errorf("%d streams are left", left)
	}
	if err := a.InstallSnapshot("n2@1", "n2", req(len(want)), &resp, bytes.NewReader(want)); err != nil || !resp.Success {
		t.Errorf("install after failures: %+v %v", resp, err)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken") }

func TestServerID(t *testing.T) {
	for _, c := range []struct {
		node placement.NodeID
		inc  string
		id   raft.ServerID
	}{{"n1", "", "n1"}, {"n1", "abc", "n1@abc"}} {
		if id := ServerID(c.node, c.inc); id != c.id {
			t.Errorf("ServerID(%q, %q) = %q", c.node, c.inc, id)
		}
		if n, inc := SplitServerID(c.id); n != c.node || inc != c.inc {
			t.Errorf("SplitServerID(%q) = %q, %q", c.id, n, inc)
		}
	}
}

func FuzzDecodeAppend(f *testing.F) {
	b, _ := appendAppend(nil, &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 9, PrevLogTerm: 2, LeaderCommitIndex: 8, Entries: []*raft.Log{
		{Index: 10, Term: 3, Data: []byte("ten"), AppendedAt: time.Unix(1, 2)},
		{Index: 11, Term: 3, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "b"}}})},
	}}, Burst{Number: 7, Count: 3})
	f.Add(b)
	f.Add(b[:40])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var a raft.AppendEntriesRequest
		burst, err := decodeAppend(b, &a)
		if err != nil {
			return
		}
		again, n := appendAppend(nil, &a, burst)
		if n != len(a.Entries) && len(b) < maxAppendBytes {
			t.Fatalf("%d of %d entries", n, len(a.Entries))
		}
		if n == len(a.Entries) && !bytes.Equal(again, b) {
			t.Errorf("%x decodes to what encodes as %x", b, again)
		}
	})
}

func FuzzServe(f *testing.F) {
	f.Add(byte(wire.KindRaftVote), appendVote(nil, &raft.RequestVoteRequest{Term: 1}))
	f.Add(byte(wire.KindRaftPreVote), appendPreVote(nil, &raft.RequestPreVoteRequest{Term: 1}))
	f.Add(byte(wire.KindRaftTimeout), []byte{})
	f.Add(byte(wire.KindRaftSnapshot), append([]byte{stepBegin, 0, 0, 0, 0, 0, 0, 0, 1}, appendMeta(nil, &raft.InstallSnapshotRequest{Term: 1, Size: 3, Configuration: raft.EncodeConfiguration(raft.Configuration{})})...))
	f.Add(byte(wire.KindRaftSnapshot), []byte{stepData, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 'x'})
	f.Add(byte(wire.KindRaftSnapshot), []byte{stepEnd, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1})
	p := testPeers(f, "n1")[0]
	rt, err := p.Raft(1, RaftOptions{})
	if err != nil {
		f.Fatal(err)
	}
	fakeRaft(f, rt, func(rpc raft.RPC) (any, error) { return nil, errors.New("no") })
	from := &peerInfo{Node: "n2", Incarnation: "1"}
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		_, _ = rt.serve(within(t, time.Second), from, wire.Kind(kind), body) // must neither panic nor hang
	})
}

func FuzzDecodeHello(f *testing.F) {
	p := &Peers{o: Options{NodeID: "n1", Incarnation: "7"}}
	f.Add(p.appendHello("cluster"))
	f.Add([]byte{1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := decodeHello(b)
		if err != nil {
			return
		}
		q := &Peers{o: Options{NodeID: i.Node, Incarnation: i.Incarnation}}
		if again := q.appendHello(i.Cluster); !bytes.Equal(again, b) {
			t.Errorf("%x decodes to what encodes as %x", b, again)
		}
	})
}
