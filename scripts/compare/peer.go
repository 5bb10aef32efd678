package main

import (
	"context"
	"log"
	"math/rand"
	"sort"
)

// Config is what a peer needs to connect.
type Config struct {
	Endpoints []string
	C, Conns  int
	Mode      string
	N         int
}

// Peer is the least a database must offer. w is the client's number: a peer
// uses it to spread clients over its connections.
type Peer interface {
	Open(ctx context.Context, cfg Config) error
	Put(ctx context.Context, w int, key string, val []byte) error
	Get(ctx context.Context, w int, key string) ([]byte, error)
	Close()
}

// The rest is optional; a workload that needs it asserts for it.
type (
	Encoder interface { // values in the peer's own encoding instead of JSON
		AppendDoc(b []byte, i int, r *rand.Rand, size int) []byte
	}
	Placer interface { // peers with many leaders: the index in Endpoints of a key's
		LedBy(context.Context) (func(key string) int, error)
	}
	StaleGetter interface {
		GetStale(ctx context.Context, w int, key string) ([]byte, error)
	}
	Batcher interface {
		BatchSize() int
		PutBatch(ctx context.Context, w int, keys []string, vals [][]byte) error
	}
	Inserter interface {
		Insert(ctx context.Context, w int, key string, val []byte) error
	}
	CASer interface { // RMW retries until its compare-and-swap wins; it returns the lost rounds
		RMW(ctx context.Context, w int, key string, mutate func([]byte) []byte) (int, error)
	}
	Transferer interface {
		SetupAccounts(ctx context.Context, n int) error
		Transfer(ctx context.Context, w, from, to int, amount int64) (aborts int, err error)
		Total(ctx context.Context, n int) (int64, error)
	}
	Queryer interface { // kind: eq, range, agg; returns rows
		Query(ctx context.Context, w int, kind string, r *rand.Rand) (int, error)
	}
	Indexer  interface{ CreateIndexes(context.Context) error }
	Leaderer interface { // index of the leader in Endpoints
		Leader(context.Context) (int, error)
	}
)

// need is the peer as what the workload requires of it.
func need[T any](p Peer) T {
	t, ok := p.(T)
	if !ok {
		log.Fatalf("peer %s does not offer what workload %s needs", *fPeer, *fWork)
	}
	return t
}

// encoding is how values are made for a peer.
func encoding(p Peer) func(b []byte, i int, r *rand.Rand, size int) []byte {
	if e, ok := p.(Encoder); ok {
		return e.AppendDoc
	}
	return appendDoc
}

const initialBalance = 1000

var peers = map[string]func() Peer{}

func newPeer(name string) Peer {
	if f := peers[name]; f != nil {
		return f()
	}
	return nil
}

func peerNames() (s []string) {
	for k := range peers {
		s = append(s, k)
	}
	sort.Strings(s)
	return
}
