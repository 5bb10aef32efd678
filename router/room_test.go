package router

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
)

func TestRoom(t *testing.T) {
	m := newRoom(100)
	if !m.try(60) || m.try(50) || !m.try(40) {
		t.Fatal("what is taken is not counted")
	}
	turns := make(chan int, 3)
	var wg sync.WaitGroup
	waiting := func(n int) {
		t.Helper()
		until(t, fmt.Sprintf("%d to wait", n), func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			return len(m.waiting) == n
		})
	}
	impatient, cancel := context.WithCancel(context.Background())
	for i, ctx := range []context.Context{context.Background(), impatient, context.Background()} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if m.take(ctx, 50) {
				turns <- i
			}
		}()
		waiting(i + 1)
	}
	if m.give(40); m.try(1) {
		t.Error("40 of 50 are there, and somebody came first")
	}
	m.give(20)
	if got := <-turns; got != 0 {
		t.Errorf("%d came before the first", got)
	}
	waiting(2)
	cancel()
	waiting(1)
	m.give(40)
	if got := <-turns; got != 2 {
		t.Errorf("%d's turn came after it had gone", got)
	}
	wg.Wait()
	m.give(100)
	if m.free != 100 {
		t.Errorf("%d bytes of 100 are free in the end", m.free)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

// However requests share, wait, give up and leave out, the room is never
// overdrawn, nobody waits for ever, and in the end all of it is free.
func TestShares(t *testing.T) {
	const total = 1000
	m := newRoom(total)
	var wg sync.WaitGroup
	for n := range 32 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rnd := rand.New(rand.NewPCG(1, uint64(n)))
			for range 200 {
				s := &share{room: m, most: 300}
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rnd.IntN(3))*time.Second)
				var parts sync.WaitGroup
				for range 1 + rnd.IntN(3) {
					size, reserve := int64(1+rnd.IntN(90)), rnd.IntN(2) == 0
					parts.Add(1)
					go func() {
						defer parts.Done()
						if !s.begin(ctx, 100) {
							return
						}
						for range 5 {
							if !reserve {
								s.use(size)
							} else if got := s.reserve(size, size/2+1); got > 0 {
								s.unreserve(got / 2)
							}
						}
					}()
				}
				parts.Wait()
				cancel()
				s.mu.Lock()
				if s.used > s.held || s.used > s.most || s.open != 0 {
					t.Errorf("%d used of %d, %d held, %d reservations open", s.used, s.most, s.held, s.open)
				}
				s.mu.Unlock()
				m.mu.Lock()
				if m.free < 0 || m.free > total {
					t.Errorf("%d of %d are free", m.free, total)
				}
				m.mu.Unlock()
				s.release()
			}
		}()
	}
	wg.Wait()
	if m.free != total || len(m.waiting) != 0 {
		t.Errorf("%d of %d are free in the end, %d wait", m.free, total, len(m.waiting))
	}
}

// held is the heap that is in use, garbage left out.
func held() int64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

const (
	heavy       = 24       // requests at once
	heavyMemory = 16 << 20 // that they may take
	heavySlack  = 8 << 20
	heavyDoc    = 60_000 // the tests' limit is 64 KiB
	heavyDocs   = 120
)

// gated is a group whose readers and writers stop when they have their
// documents, until the gate is open.
type gated struct {
	testGroup
	gate    chan struct{}
	stopped *atomic.Int64
}

func (g gated) Machine() Reader { return gatedReader{g.testGroup.Machine(), g} }

type gatedReader struct {
	Reader
	g gated
}

func (r gatedReader) Visit(keys []fsm.ReadKey, at fsm.At, noBody bool, fn func(int, wire.Document, error)) error {
	err := r.Reader.Visit(keys, at, noBody, fn)
	r.g.stopped.Add(1)
	<-r.g.gate
	return err
}

func (r gatedReader) History(key fsm.ReadKey, before uint64, limit int, noBody bool) ([]wire.Document, bool, error) {
	docs, more, err := r.Reader.History(key, before, limit, noBody)
	r.g.stopped.Add(1)
	<-r.g.gate
	return docs, more, err
}

func (g gated) ProposeMany(_ context.Context, cs []fsm.Command) []shardgroup.Outcome {
	out := make([]shardgroup.Outcome, len(cs))
	for i, c := range cs {
		out[i].Result.Wire.Version = 1
		if c.Write.Item.ReturnDoc {
			out[i].Result.Wire.Doc = make([]byte, heavyDoc)
		}
	}
	g.stopped.Add(1)
	<-g.gate
	return out
}

func (g gated) Propose(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	out := g.ProposeMany(ctx, []fsm.Command{c})
	return out[0].Result, out[0].Err
}

// heavyCluster has 7 MB of documents, one with 5 MB of versions, and a router with little
// memory for answers over a gated group.
func heavyCluster(t *testing.T) (r *Router, ids []string, gate chan struct{}, stopped *atomic.Int64) {
	c := newTestCluster(t, 1, 1)
	for i := range heavyDocs {
		ids = append(ids, fmt.Sprintf("d%d", i))
	}
	fill(t, c, "docs", ids, heavyDoc)
	for range 80 {
		fill(t, c, "docs", []string{"often"}, heavyDoc)
	}
	n := c.nodes["n1"]
	gate, stopped = make(chan struct{}), new(atomic.Int64)
	o := n.router.opts
	o.AnswerMemory = heavyMemory
	o.Groups = groupsFunc(func() Group {
		g, _ := n.Group(1)
		return gated{g.(testGroup), gate, stopped}
	})
	return New(o), ids, gate, stopped
}

// What a node holds for answers is bounded, however many large ones are asked
// for at once. Without the bound the cases would hold 100 MiB and more.
func TestAnswerMemory(t *testing.T) {
	for name, x := range map[string]struct {
		kind wire.Kind
		req  func(r *Router, ids []string) wire.Message
	}{
		"get": {wire.KindGet, func(r *Router, ids []string) wire.Message {
			return &wire.GetRequest{Collection: "docs", IDs: ids}
		}},
		"get of one": {wire.KindGet, func(r *Router, ids []string) wire.Message {
			return &wire.GetRequest{Collection: "docs", IDs: ids[:1]}
		}},
		"history": {wire.KindHistory, func(*Router, []string) wire.Message {
			return &wire.HistoryRequest{Collection: "docs", ID: "often", Limit: 100}
		}},
		"write": {wire.KindWrite, func(r *Router, ids []string) wire.Message {
			q := &wire.WriteRequest{Collection: "docs", Number: 1}
			for i, id := range ids {
				q.Items = append(q.Items, wire.WriteItem{
					Op: wire.OpUpdate, ID: id, ReturnDoc: true, Body: []byte{0x81, 0xa4, '$', 's', 'e', 't', 0x81, 0xa1, 'n', 1},
					RequestID: wire.RequestID{Time: uint64(r.opts.Clock.Now()), Random: [16]byte{byte(i + 1)}},
				})
			}
			return q
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r, ids, gate, stopped := heavyCluster(t)
			body := wire.Append(nil, x.req(r, ids))
			before := held()
			var wg sync.WaitGroup
			var answered atomic.Int64
			for range heavy {
				wg.Add(1)
				go func() {
					defer wg.Done()
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
					defer cancel()
					reply, err := r.Serve(ctx, x.kind, append([]byte(nil), body...), nil)
					if err != nil {
						t.Error(err)
						return
					}
					if g, ok := reply.(*wire.GetReply); ok {
						came := 0
						for _, res := range g.Results {
							if res.Error == nil {
								came++
							} else if res.Error.Code != wire.CodeFrameTooLarge {
								t.Error(res.Error)
							}
						}
						if came == 0 {
							t.Error("an answer without any document")
						}
					}
					answered.Add(1)
				}()
			}
			until(t, "the room to be full", func() bool {
				room := r.room
				if x.kind == wire.KindWrite {
					room = r.returned
				}
				room.mu.Lock()
				defer room.mu.Unlock()
				return stopped.Load() > 0 && int(stopped.Load())+len(room.waiting) >= heavy
			})
			if took := held() - before; took > heavyMemory+heavySlack {
				t.Errorf("%d requests hold %d MiB, %d are granted", heavy, took>>20, heavyMemory>>20)
			}
			close(gate)
			wg.Wait()
			if answered.Load() != heavy {
				t.Errorf("%d of %d were answered", answered.Load(), heavy)
			}
			for _, room := range []*room{r.room, r.returned} {
				if room.free != heavyMemory {
					t.Errorf("%d of %d bytes are free in the end", room.free, heavyMemory)
				}
			}
		})
	}
}

// asking counts the bytes of documents that may be on their way from other
// nodes.
type asking struct {
	*testNode
	most, now *atomic.Int64
}

func (a asking) Call(ctx context.Context, to placement.NodeID, kind wire.Kind, body []byte) ([]byte, error) {
	if kind == wire.KindGet {
		var q wire.GetRequest
		if err := wire.Decode(body, &q); err != nil {
			return nil, err
		}
		now := a.now.Add(int64(q.MaxBytes))
		defer a.now.Add(-int64(q.MaxBytes))
		for old := a.most.Load(); now > old && !a.most.CompareAndSwap(old, now); old = a.most.Load() {
		}
		if q.MaxBytes == 0 {
			a.most.Store(1 << 40)
		}
	}
	return a.testNode.Call(ctx, to, kind, body)
}

// What other nodes are asked for is counted before it comes, and documents that
// had no room in one answer come with the next.
func TestForwardedAnswerMemory(t *testing.T) {
	c := newTestCluster(t, 2, 1)
	var ids []string
	for i := range 120 {
		ids = append(ids, fmt.Sprintf("d%d", i))
	}
	fill(t, c, "docs", ids, heavyDoc)
	c.groups[1].setLeader("n1")
	n := c.nodes["n2"]
	o := n.router.opts
	o.AnswerMemory = heavyMemory
	a := asking{n, new(atomic.Int64), new(atomic.Int64)}
	o.Peers = a
	r := New(o)
	body := wire.Append(nil, &wire.GetRequest{Collection: "docs", IDs: ids})
	var wg sync.WaitGroup
	for range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			reply, err := r.Serve(context.Background(), wire.KindGet, append([]byte(nil), body...), nil)
			if err != nil {
				t.Error(err)
				return
			}
			came := 0
			for _, res := range reply.(*wire.GetReply).Results {
				if res.Error == nil {
					came++
				} else if res.Error.Code != wire.CodeFrameTooLarge {
					t.Error(res.Error)
				}
			}
			if came == 0 {
				t.Error("no document came")
			}
		}()
	}
	wg.Wait()
	if got := a.most.Load(); got > heavyMemory || got < 4<<20 {
		t.Errorf("at most %d bytes were asked for at once, %d are granted", got, heavyMemory)
	}
	reply, err := r.Serve(context.Background(), wire.KindGet, body, nil)
	if err != nil {
		t.Fatal(err)
	}
	came := 0
	for _, res := range reply.(*wire.GetReply).Results {
		if res.Error == nil {
			came++
		}
	}
	if came != len(ids) {
		t.Errorf("%d of %d documents came to a request that was alone", came, len(ids))
	}
	if r.room.free != heavyMemory {
		t.Errorf("%d of %d bytes are free in the end", r.room.free, heavyMemory)
	}
}
