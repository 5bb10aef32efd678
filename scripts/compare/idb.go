package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"strings"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/tinylib/msgp/msgp"
)

func init() { peers["idb"] = func() Peer { return &idb{} } }

const idbCollection = "docs"

// idb shares one DB between all clients, as an application would.
type idb struct {
	cfg  Config
	db   *client.DB
	docs *client.Collection
}

func (p *idb) Open(ctx context.Context, cfg Config) (err error) {
	p.cfg = cfg
	if p.db, err = client.Dial(ctx, "idb://"+strings.Join(cfg.Endpoints, ",")); err != nil {
		return err
	}
	p.docs = p.db.Collection(idbCollection)
	return nil
}

func (p *idb) Close() { p.db.Close() }

// AppendDoc is appendDoc's document in the encoding that the database stores:
// an application encodes its structs once, to that, as it would to JSON for
// the others.
func (p *idb) AppendDoc(b []byte, i int, r *rand.Rand, size int) []byte {
	n0 := len(b)
	str := func(k, v string) { b = msgp.AppendString(msgp.AppendString(b, k), v) }
	num := func(k string, v int) { b = msgp.AppendUint64(msgp.AppendString(b, k), uint64(v)) }
	b = msgp.AppendMapHeader(b, 12)
	b = msgp.AppendBool(msgp.AppendString(b, "active"), true)
	b = msgp.AppendMapHeader(msgp.AppendString(b, "addr"), 2)
	str("street", "Main St")
	str("zip", "12345")
	num("age", 18+i%70)
	str("city", fmt.Sprintf("city-%d", i%997))
	str("email", key(i)+"@example.org")
	str("grp", fmt.Sprintf("g%d", i%groups))
	str("id", key(i))
	str("owner", fmt.Sprintf("o%d", i/docsPerOwner))
	// What follows the pad is short; the pad makes the document size bytes long.
	tail := msgp.AppendUint64(msgp.AppendString(nil, "score"), uint64((i*7919)%scoreMax))
	tail = msgp.AppendArrayHeader(msgp.AppendString(tail, "tags"), 3)
	for _, t := range []string{"red", "green", "blue"} {
		tail = msgp.AppendString(tail, t)
	}
	tail = msgp.AppendUint64(msgp.AppendString(tail, "ver"), uint64(r.Intn(1<<30)))
	b = msgp.AppendString(b, "pad")
	pad := max(0, size-(len(b)-n0)-len(tail)-3)
	switch {
	case pad > 255:
		b = append(b, 0xda, byte(pad>>8), byte(pad))
	case pad > 31:
		b = append(b, 0xd9, byte(pad))
	default:
		b = append(b, 0xa0|byte(pad))
	}
	b = appendPad(b, pad, r)
	return append(b, tail...)
}

func (p *idb) Put(ctx context.Context, _ int, k string, v []byte) error {
	_, err := p.docs.Put(ctx, k, client.Raw(v))
	return err
}

func (p *idb) Insert(ctx context.Context, _ int, k string, v []byte) error {
	_, err := p.docs.Insert(ctx, k, client.Raw(v))
	return err
}

func (p *idb) Get(ctx context.Context, _ int, k string) ([]byte, error) {
	d, err := p.docs.Get(ctx, k)
	if err != nil {
		return nil, err
	}
	return d.Body(), nil
}

func (p *idb) BatchSize() int { return 500 }

func (p *idb) PutBatch(ctx context.Context, _ int, ks []string, vs [][]byte) error {
	b := p.db.Bulk()
	for i, k := range ks {
		b.Put(p.docs, k, client.Raw(vs[i]))
	}
	_, err := b.Do(ctx)
	return err
}

func (p *idb) RMW(ctx context.Context, _ int, k string, m func([]byte) []byte) (int, error) {
	for n := 0; ; n++ {
		d, err := p.docs.Get(ctx, k)
		if err != nil {
			return n, err
		}
		_, err = p.docs.Put(ctx, k, client.Raw(m(d.Body())), client.IfVersion(d.Version))
		if !errors.Is(err, client.ErrVersionConflict) {
			return n, err
		}
	}
}

// Leader is the node that leads most groups.
func (p *idb) Leader(ctx context.Context) (int, error) {
	led, err := p.leaders(ctx)
	if err != nil {
		return -1, err
	}
	counts := make([]int, len(p.cfg.Endpoints))
	best := -1
	for _, node := range led {
		if counts[node]++; best < 0 || counts[node] > counts[best] {
			best = node
		}
	}
	if best < 0 {
		return -1, errors.New("no leader")
	}
	return best, nil
}

// LedBy answers which endpoint leads the group of a key, as it is now.
func (p *idb) LedBy(ctx context.Context) (func(key string) int, error) {
	topology, err := p.db.Topology(ctx)
	if err != nil {
		return nil, err
	}
	led, err := p.leaders(ctx)
	if err != nil {
		return nil, err
	}
	return func(key string) int {
		node, ok := led[topology.Owners[wire.Partition(idbCollection, "", key, uint32(len(topology.Owners)))]]
		if !ok {
			return -1
		}
		return node
	}, nil
}

// leaders is the endpoint that leads each group.
func (p *idb) leaders(ctx context.Context) (map[uint32]int, error) {
	status, err := p.db.Status(ctx)
	if err != nil {
		return nil, err
	}
	led := map[uint32]int{}
	for _, n := range status.Nodes {
		for i, ep := range p.cfg.Endpoints {
			for _, g := range n.Status.Groups {
				if n.Status.Node.ClientAddr == ep && g.State == "leader" && g.ID != 0 {
					led[g.ID] = i
				}
			}
		}
	}
	return led, nil
}
