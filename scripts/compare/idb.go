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

	accts string // the collection of accounts
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

func (p *idb) accounts(n int) string { return fmt.Sprintf("accounts%d", n) }

func (p *idb) SetupAccounts(ctx context.Context, n int) error {
	p.accts = p.accounts(n)
	c := p.db.Collection(p.accts)
	for i := 0; i < n; i += p.BatchSize() {
		b := p.db.Bulk()
		for j := i; j < min(i+p.BatchSize(), n); j++ {
			b.Put(c, acct(j), balance(initialBalance))
		}
		if _, err := b.Do(ctx); err != nil {
			return err
		}
	}
	return nil
}

// balance is an account's document, encoded as AppendDoc says.
func balance(v int64) client.Raw {
	b := msgp.AppendString(msgp.AppendMapHeader(make([]byte, 0, 24), 1), "balance")
	if v < 0 {
		return msgp.AppendInt64(b, v)
	}
	return msgp.AppendUint64(b, uint64(v)) // the shortest form
}

func balanceOf(d *client.Document) (int64, error) {
	if d == nil {
		return 0, errors.New("the account does not exist")
	}
	raw, ok := d.Get("balance")
	if !ok {
		return 0, fmt.Errorf("%s: no balance", d.ID)
	}
	v, _, err := msgp.ReadInt64Bytes(raw)
	return v, err
}

// Transfer: the client library's Transact; both accounts come with one request.
func (p *idb) Transfer(ctx context.Context, _, a, b int, x int64) (int, error) {
	runs := 0
	ka, kb := acct(a), acct(b)
	err := p.db.Transact(ctx, func(tx *client.Tx) error {
		runs++
		c := tx.Collection(p.accts)
		docs, err := c.GetMany(ctx, []string{ka, kb})
		if err != nil {
			return err
		}
		va, err := balanceOf(docs[0])
		if err != nil {
			return err
		}
		vb, err := balanceOf(docs[1])
		if err != nil {
			return err
		}
		if err := c.Put(ka, balance(va-x)); err != nil {
			return err
		}
		return c.Put(kb, balance(vb+x))
	})
	return runs - 1, err
}

func (p *idb) Total(ctx context.Context, n int) (s int64, err error) {
	for d, err := range p.db.Collection(p.accounts(n)).Scan(ctx) {
		if err != nil {
			return 0, err
		}
		v, err := balanceOf(d)
		if err != nil {
			return 0, err
		}
		s += v
	}
	return s, nil
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
