package client_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

// echo answers every request with the same bytes, so that the client's own
// cost is most of what a benchmark shows.
func echo(b *testing.B) *client.DB {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	body, err := doc.Marshal(client.D{"name": "Ada", "text": strings.Repeat("x", 1000)})
	if err != nil {
		b.Fatal(err)
	}
	topology := wire.Topology{
		ClusterID: "c1", Epoch: 1, Catalog: 1, Owners: []uint32{1},
		Nodes:       []wire.NodeInfo{{ID: "n1", ClientAddr: l.Addr().String()}},
		Groups:      []wire.GroupInfo{{ID: 1, Replicas: []string{"n1"}, Leader: "n1", Term: 1}},
		Collections: []wire.CollectionInfo{{ID: 1, Name: "docs"}},
	}
	write := wire.WriteReply{Results: []wire.WriteResult{{Version: 2, Time: 1 << 40, CreatedAt: 1 << 39}}}
	one := wire.GetReply{Results: []wire.GetResult{{Doc: wire.Document{ID: "key-1", Version: 2, Body: body}}}}
	small, err := doc.Marshal(client.D{"balance": 7})
	if err != nil {
		b.Fatal(err)
	}
	two := wire.GetReply{Results: []wire.GetResult{
		{Doc: wire.Document{ID: "key-1", Version: 2, UpdatedAt: 1 << 39, Body: small}},
		{Doc: wire.Document{ID: "key-2", Version: 2, UpdatedAt: 1 << 39, Body: small}},
	}}
	commit := wire.CommitReply{Time: 1 << 40}
	answers := map[wire.Kind][]byte{
		wire.KindTopology: topology.AppendTo(nil),
		wire.KindWrite:    write.AppendTo(nil),
		wire.KindGet:      one.AppendTo(nil),
		wire.KindCommit:   commit.AppendTo(nil),
	}
	both := two.AppendTo(nil)
	srv := wire.NewServer(wire.ServerOptions{
		Handler: wire.HandlerFunc(func(ctx context.Context, r *wire.Request, w *wire.Responder) {
			if r.Kind == wire.KindTopology {
				var ask wire.TopologyRequest
				if wire.Decode(r.Body, &ask) == nil && ask.WaitMillis > 0 {
					<-ctx.Done()
				}
			}
			if len(r.Body) > 0 && r.Kind == wire.KindGet {
				var ask wire.GetRequest
				if wire.Decode(r.Body, &ask) == nil && len(ask.IDs) == 2 {
					_ = w.Reply(both)
					return
				}
			}
			_ = w.Reply(answers[r.Kind])
		}),
		Hello: func(*wire.ConnInfo, *wire.Hello) (wire.HelloReply, *wire.Error) {
			return wire.HelloReply{NodeID: "n1", ClusterID: "c1", Now: 1 << 40}, nil
		},
	})
	go func() { _ = srv.Serve(l) }()
	db, err := client.Dial(b.Context(), l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = db.Close()
		_ = srv.Close()
	})
	return db
}

// The server's half of the work is in these numbers too.
func BenchmarkOperations(b *testing.B) {
	db := echo(b)
	docs := db.Collection("docs")
	raw, err := doc.Marshal(client.D{"name": "Ada", "text": strings.Repeat("x", 1000)})
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	type small struct {
		Name string `idb:"name"`
		Text string `idb:"text"`
	}
	value := small{"Ada", strings.Repeat("x", 1000)}
	one, two := []string{"key-1"}, []string{"key-1", "key-2"}
	balance, err := doc.Marshal(client.D{"balance": 7})
	if err != nil {
		b.Fatal(err)
	}
	transfer := func() error {
		return db.Transact(ctx, func(tx *client.Tx) error {
			c := tx.Collection("docs")
			if _, err := c.GetMany(ctx, two); err != nil {
				return err
			}
			if err := c.Put("key-1", client.Raw(balance)); err != nil {
				return err
			}
			return c.Put("key-2", client.Raw(balance))
		})
	}
	ops := []struct {
		name string
		do   func() error
	}{
		{"put-raw", func() error { _, err := docs.Put(ctx, "key-1", raw); return err }},
		{"put-struct", func() error { _, err := docs.Put(ctx, "key-1", &value); return err }},
		{"get", func() error { _, err := docs.Get(ctx, "key-1"); return err }},
		{"get-many", func() error { _, err := docs.GetMany(ctx, one); return err }},
		{"get-struct", func() error { var v small; return docs.GetInto(ctx, "key-1", &v) }},
		{"update", func() error { _, err := docs.Update(ctx, "key-1", client.Inc("n", 1)); return err }},
		{"transfer", transfer},
	}
	for _, op := range ops {
		b.Run(op.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := op.do(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	for _, goroutines := range []int{64, 1024} {
		for _, op := range append(ops[:3:3], ops[len(ops)-1]) {
			b.Run(fmt.Sprintf("%s-%d", op.name, goroutines), func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism(goroutines / 2)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := op.do(); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}
