package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
)

// liar stands between clients and a healthy node, as if it were the node, and
// does one thing wrong: what a broken database looks like from outside.
type liar struct {
	lie  string
	real *wire.Conn // to the node
	addr string

	mu     sync.Mutex
	rng    *rand.Rand               // guarded by mu
	told   int                      // guarded by mu; how often it lied
	answer map[string]wire.Document // guarded by mu; the first answer about a document
	time   map[string]uint64        // guarded by mu; of the first scan of a collection
}

func startLiar(t *testing.T, node, lie string, seed uint64) *liar {
	t.Helper()
	nc, err := net.Dial("tcp", node)
	if err != nil {
		t.Fatal(err)
	}
	l := &liar{
		lie: lie, real: wire.NewConn(nc, wire.ConnOptions{}), rng: rand.New(rand.NewPCG(seed, 0)),
		answer: map[string]wire.Document{}, time: map[string]uint64{},
	}
	t.Cleanup(func() { l.real.Close() })
	hello, err := l.real.Handshake(t.Context(), wire.Hello{Client: "liar"})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.addr = listener.Addr().String()
	server := wire.NewServer(wire.ServerOptions{
		Handler: l,
		Hello: func(*wire.ConnInfo, *wire.Hello) (wire.HelloReply, *wire.Error) {
			return wire.HelloReply{Server: "liar", NodeID: hello.NodeID, ClusterID: hello.ClusterID, Now: hello.Now, TopologyEpoch: hello.TopologyEpoch}, nil
		},
	})
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return l
}

// lies says whether to lie now: about one time in n.
func (l *liar) lies(lie string, n int) bool {
	if l.lie != lie {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rng.IntN(n) != 0 {
		return false
	}
	l.told++
	return true
}

// untold takes back a lie that nobody has heard.
func (l *liar) untold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told--
}

// heard is how many lies somebody has heard.
func (l *liar) heard() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told
}

func (l *liar) ServeWire(ctx context.Context, r *wire.Request, w *wire.Responder) {
	var answer wire.Message
	var err error
	switch r.Kind {
	case wire.KindWrite:
		answer, err = l.write(ctx, r.Body)
	case wire.KindGet:
		answer, err = l.get(ctx, r.Body)
	case wire.KindScan:
		answer, err = l.scan(ctx, r.Body)
	case wire.KindCommit:
		answer, err = l.commit(ctx, r.Body)
	case wire.KindTopology:
		var t wire.Topology
		var body []byte
		if body, err = l.real.Call(ctx, r.Kind, r.Body); err == nil {
			err = wire.Decode(body, &t)
		}
		for i := range t.Nodes {
			t.Nodes[i].ClientAddr = l.addr
		}
		answer = &t
	case wire.KindCreateCollection:
		var c wire.CreateCollectionRequest
		if err = wire.Decode(r.Body, &c); err == nil && len(c.Options.Unique) > 0 && l.lies("unique fields that are none", 1) {
			c.Options.Unique = nil
			var info wire.CollectionInfo
			err = l.real.Do(ctx, r.Kind, &c, &info)
			answer = &info
			break
		}
		body, err := l.real.Call(ctx, r.Kind, r.Body)
		if err != nil {
			_ = w.Fail(refusalOf(err))
			return
		}
		_ = w.Reply(body)
		return
	case wire.KindDropCollection:
		var d wire.DropCollectionRequest
		if err = wire.Decode(r.Body, &d); err == nil && l.lies("a drop that drops nothing", 2) {
			_ = w.ReplyMessage(&wire.CollectionInfo{Name: d.Name})
			return
		}
		fallthrough
	default:
		body, err := l.real.Call(ctx, r.Kind, r.Body)
		if err != nil {
			_ = w.Fail(refusalOf(err))
			return
		}
		_ = w.Reply(body)
		return
	}
	if err != nil {
		_ = w.Fail(refusalOf(err))
		return
	}
	_ = w.ReplyMessage(answer)
}

func refusalOf(err error) *wire.Error {
	var e *wire.Error
	if errors.As(err, &e) {
		return e
	}
	return wire.Refuse(wire.CodeOutcomeUnknown, "%v", err)
}

func (l *liar) write(ctx context.Context, body []byte) (wire.Message, error) {
	var q wire.WriteRequest
	if err := wire.Decode(body, &q); err != nil {
		return nil, err
	}
	dropped := -1
	for i := range q.Items {
		it := &q.Items[i]
		switch {
		case it.IfVersion != 0 && l.lies("a condition that is ignored", 3):
			it.IfVersion = 0
		case l.lies("a repeat that is not known", 3):
			it.RequestID.Random[0] ^= byte(1 + l.rng.IntN(200))
		case it.Op == wire.OpInsert && l.lies("an acknowledgement before the commit", 10):
			dropped = i
		}
	}
	if q.Ordered && l.lies("an order that is ignored", 1) {
		q.Ordered = false
	}
	if dropped >= 0 {
		q.Items[dropped].Op = wire.OpDelete // of what is not there
		q.Items[dropped].Body = nil
	}
	var reply wire.WriteReply
	if err := l.real.Do(ctx, wire.KindWrite, &q, &reply); err != nil {
		return nil, err
	}
	if dropped >= 0 {
		reply.Results[dropped] = wire.WriteResult{Version: 1, Time: reply.Now, CreatedAt: reply.Now, Created: true}
	}
	if len(q.Items) == 1 && reply.Results[0].Error == nil {
		it := q.Items[0]
		switch {
		case l.lies("applied twice", 5):
			it.RequestID.Random[1] ^= 0x5a
			q.Items[0] = it
			var again wire.WriteReply
			_ = l.real.Do(ctx, wire.KindWrite, &q, &again)
		case it.Op == wire.OpInsert && l.lies("a duplicate that is none", 1):
			reply.Results[0] = wire.WriteResult{Error: wire.Refuse(wire.CodeDuplicateValue, `%s: handle "nobody's" is held by p00`, it.ID)}
		case l.lies("done and refused", 10):
			reply.Results[0] = wire.WriteResult{Error: wire.Refuse(wire.CodeDiskFull, "no space")}
		}
	}
	return &reply, nil
}

// commit is the liar's way with a transaction.
func (l *liar) commit(ctx context.Context, body []byte) (wire.Message, error) {
	var q wire.CommitRequest
	if err := wire.Decode(body, &q); err != nil {
		return nil, err
	}
	writes := 0
	for i := range q.Collections {
		c := &q.Collections[i]
		writes += len(c.Writes)
		if len(c.Reads) > 0 && l.lies("reads that are not validated", 1) {
			c.Reads = nil
		}
		if len(c.Ranges) > 0 && l.lies("ranges that are not validated", 1) {
			c.Ranges = nil
		}
	}
	halved := false
	for i := range q.Collections {
		if c := &q.Collections[i]; writes > 1 && len(c.Writes) > 0 && l.lies("half a transaction", 20) {
			c.Writes = c.Writes[:len(c.Writes)-1]
			halved = true
			break
		}
	}
	q.Collections = slices.DeleteFunc(q.Collections, func(c wire.TxnCollection) bool { return len(c.Reads)+len(c.Ranges)+len(c.Writes) == 0 })
	if len(q.Collections) == 0 {
		return &wire.CommitReply{}, nil
	}
	if writes > 0 && l.lies("a commit that is none", 20) {
		return &wire.CommitReply{Time: q.ID.Time}, nil
	}
	var reply wire.CommitReply
	if err := l.real.Do(ctx, wire.KindCommit, &q, &reply); err != nil {
		if halved {
			l.untold() // a conflict, and all of it is done again
		}
		return nil, err
	}
	if writes > 0 && l.lies("a commit that was refused", 20) {
		return nil, wire.Refuse(wire.CodeTxnConflict, "something was in the way")
	}
	return &reply, nil
}

func (l *liar) get(ctx context.Context, body []byte) (wire.Message, error) {
	var q wire.GetRequest
	if err := wire.Decode(body, &q); err != nil {
		return nil, err
	}
	asked := q.AtVersion
	if q.AtVersion > 1 && l.lies("a version that changes", 4) {
		q.AtVersion--
	}
	if q.AtTime != 0 && l.lies("a time that is not kept", 2) {
		q.AtTime += 3 << 16
	}
	var reply wire.GetReply
	if err := l.real.Do(ctx, wire.KindGet, &q, &reply); err != nil {
		return nil, err
	}
	for i := range reply.Results {
		r := &reply.Results[i]
		if r.Error != nil {
			continue
		}
		if asked != q.AtVersion {
			r.Doc.Version = asked
		}
		if q.AtVersion != 0 || q.AtTime != 0 {
			continue
		}
		key := q.Collection + "/" + q.IDs[i]
		l.mu.Lock()
		first, ok := l.answer[key]
		if !ok {
			l.answer[strings.Clone(key)] = wire.Document{
				ID: strings.Clone(r.Doc.ID), Version: r.Doc.Version, CreatedAt: r.Doc.CreatedAt, UpdatedAt: r.Doc.UpdatedAt, Body: slices.Clone(r.Doc.Body),
			}
		}
		l.mu.Unlock()
		if ok && first.Version != r.Doc.Version && l.lies("a stale read", 4) {
			r.Doc = first
		}
	}
	return &reply, nil
}

// scan answers with one page; the workloads' collections are small.
func (l *liar) scan(ctx context.Context, body []byte) (wire.Message, error) {
	var q wire.ScanRequest
	if err := wire.Decode(body, &q); err != nil {
		return nil, err
	}
	l.mu.Lock()
	first := l.time[q.Collection]
	l.mu.Unlock()
	if first != 0 && q.AtTime == 0 && len(q.Cursor) == 0 && l.lies("a scan of yesterday", 3) {
		q.AtTime = first
	}
	var whole wire.ScanPage
	err := l.real.Stream(ctx, wire.KindScan, wire.Append(nil, &q), func(part []byte) error {
		var page wire.ScanPage
		if err := wire.Decode(slices.Clone(part), &page); err != nil {
			return err
		}
		whole.Docs = append(whole.Docs, page.Docs...)
		whole.Cursor, whole.Time = page.Cursor, page.Time
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	if first == 0 {
		l.time[strings.Clone(q.Collection)] = whole.Time
	}
	l.mu.Unlock()
	if n := len(whole.Docs); n > 0 && (l.lies("a scan that loses a document", 3) || l.lies("scans that lose a document", 1)) {
		whole.Docs = append(whole.Docs[:n/2:n/2], whole.Docs[n/2+1:]...)
	}
	return &whole, nil
}

// TestLies: every lie is caught by the workload that it is told to, and called
// by its name; an honest go-between is not.
func TestLies(t *testing.T) {
	addr := startDev(t, 1)[0]
	for i, c := range []struct {
		lie, workload string
		names         []string // one of these must be found
	}{
		{"", "", nil},
		{"an acknowledgement before the commit", "set", []string{"lost write"}},
		{"an acknowledgement before the commit", "bulk", []string{"lost write"}},
		{"applied twice", "counter", []string{"applied twice"}},
		{"a repeat that is not known", "counter", []string{"applied twice", "unexpected answer"}},
		{"done and refused", "set", []string{"refused write took effect"}},
		{"done and refused", "register", []string{"refused write took effect"}},
		{"a condition that is ignored", "register", []string{"not linearizable"}},
		{"a stale read", "register", []string{"stale read"}},
		{"a scan of yesterday", "scan", []string{"stale read", "causal reverse"}},
		{"a scan that loses a document", "scan", []string{"torn snapshot"}},
		{"scans that lose a document", "set", []string{"lost write"}},
		{"a version that changes", "history", []string{"version changed"}},
		{"a time that is not kept", "history", []string{"wrong past"}},
		{"an order that is ignored", "bulk", []string{"unexpected answer", "causal reverse"}},
		{"half a transaction", "bank", []string{"wrong total", "torn transaction"}},
		{"reads that are not validated", "bank", []string{"wrong total", "lost update", "stale read"}},
		{"a commit that is none", "bank", []string{"lost write"}},
		{"a commit that was refused", "bank", []string{"refused write took effect", "unexpected answer"}},
		{"half a transaction", "append", []string{"lost write"}},
		{"reads that are not validated", "append", []string{"lost update", "incompatible order", "lost write", "G2", "G-single", "G1c"}},
		{"a commit that is none", "append", []string{"lost write"}},
		{"a commit that was refused", "append", []string{"G1a"}},
		{"reads that are not validated", "skew", []string{"write skew"}},
		{"ranges that are not validated", "skew", []string{"write skew"}},
		{"unique fields that are none", "unique", []string{"duplicate value"}},
		{"a duplicate that is none", "unique", []string{"refused for nothing", "refused write took effect"}},
		{"a drop that drops nothing", "catalog", []string{"dropped collection read"}},
	} {
		t.Run(c.lie+" to "+c.workload, func(t *testing.T) {
			l := startLiar(t, addr, c.lie, uint64(i))
			dbs := dial(t, "idb://"+l.addr)
			var names []string
			if c.workload != "" {
				names = []string{c.workload}
			}
			load := func(n int) (found []string, err error) {
				ws, err := New(Options{Prefix: fmt.Sprintf("lie%d-%d", i, n), Documents: 3}, names...)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				load, err := Start(ctx, dbs, LoadOptions{Operations: 60, Seed: uint64(100*i + n)}, ws...)
				if err != nil {
					t.Fatal(err)
				}
				defer load.Stop()
				if err := load.Wait(ctx); err != nil {
					t.Fatal(err)
				}
				load.Stop()
				verdicts := load.Judge(ctx, dbs[0])
				for _, v := range verdicts {
					for _, a := range v.Anomalies() {
						found = append(found, a.Name)
					}
				}
				return found, Err(verdicts)
			}
			found, err := load(1)
			if c.lie == "" {
				if err != nil {
					t.Errorf("an honest go-between was condemned: %v", err)
				}
				return
			}
			caught := func(n string) bool { return slices.Contains(c.names, n) }
			// What is not validated does harm only if two clients meet, and half a
			// transaction none if it is refused.
			harmless := func() bool {
				return strings.HasSuffix(c.lie, "that are not validated") || c.lie == "half a transaction" && l.heard() == 0
			}
			for n := 2; n <= 20 && harmless() && !slices.ContainsFunc(found, caught); n++ {
				found, _ = load(n)
			}
			told := l.heard()
			if told == 0 {
				t.Error("it was never told")
			}
			if !slices.ContainsFunc(found, caught) {
				t.Errorf("told %d times, want one of %v, found %v", told, c.names, found)
			}
			t.Logf("told %d times: %v", told, slices.Compact(slices.Sorted(slices.Values(found))))
		})
	}
}
