// Command load drives one workload against one database on loopback, prints a
// row and appends a JSON line to -out. It is a module of its own, so that the
// clients of other databases stay out of the product.
//
//	load -peer etcd -endpoints 127.0.0.1:12379,127.0.0.1:22379 -workload W -c 64
//	load -workload table -out results.jsonl
//
// Workloads: preload, W (update), R (linearizable read), RS (stale read), A
// (50/50), B (95/5), F (read-modify-write by compare-and-swap), I (insert), T
// (transfers of one unit between two of -accounts, which -dist chooses), Qeq, Qrange, Qagg (queries), accounts, index, leader, failover,
// ready, probe (limits of the machine), table (what compare.sh measured).
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"strings"
	"time"
)

var (
	fPeer   = flag.String("peer", "", "peer name: "+strings.Join(peerNames(), ", "))
	fEps    = flag.String("endpoints", "", "comma separated host:port (or URLs)")
	fWork   = flag.String("workload", "W", "workload")
	fDist   = flag.String("dist", "uniform", "key choice: uniform or zipf (theta 0.99, scrambled)")
	fC      = flag.Int("c", 64, "client goroutines")
	fConns  = flag.Int("conns", 0, "connections (0: min(c,24) or the peer's own rule)")
	fN      = flag.Int("n", 100000, "keys")
	fAcct   = flag.Int("accounts", 10000, "accounts for T")
	fSize   = flag.Int("size", 1024, "value bytes")
	fDur    = flag.Duration("dur", 10*time.Second, "measured time")
	fWarm   = flag.Duration("warm", 3*time.Second, "warm-up time")
	fMode   = flag.String("mode", "", "peer specific mode (read level, queue, sync…)")
	fPidDir = flag.String("rundir", "", "directory with N.pid files and dataN directories")
	fOut    = flag.String("out", "results.jsonl", "append the JSON result here")
	fLabel  = flag.String("label", "", "label for the result row (default: peer)")
	fMaxOps = flag.Int64("maxops", 50_000_000, "hard bound on operations")
	fSince  = flag.Int64("since", 0, "ready: unix milliseconds of the start")
	fKill   = flag.Bool("kill", true, "failover: kill -9 the leader ourselves")
)

func main() {
	flag.Parse()
	log.SetFlags(0)
	switch *fWork {
	case "probe":
		probe()
		return
	case "table":
		if err := table(*fOut); err != nil {
			log.Fatal(err)
		}
		return
	}
	p := newPeer(*fPeer)
	if p == nil {
		log.Fatalf("unknown peer %q: one of %s", *fPeer, strings.Join(peerNames(), ", "))
	}
	cfg := Config{Endpoints: strings.Split(*fEps, ","), C: *fC, Conns: *fConns, Mode: *fMode, N: *fN}
	if cfg.Conns == 0 {
		cfg.Conns = min(*fC, 24)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 230*time.Second)
	defer cancel()
	if *fWork == "ready" {
		cfg.Conns = min(cfg.Conns, 3)
		ready(ctx, cfg)
		return
	}
	if err := p.Open(ctx, cfg); err != nil {
		log.Fatalf("open: %v", err)
	}
	defer p.Close()
	switch *fWork {
	case "open": // connect only; a peer may set its schema up by mode
	case "preload":
		preload(ctx, p)
	case "accounts":
		if err := need[Transferer](p).SetupAccounts(ctx, *fAcct); err != nil {
			log.Fatal(err)
		}
	case "index":
		t := time.Now()
		if err := need[Indexer](p).CreateIndexes(ctx); err != nil {
			log.Fatal(err)
		}
		fmt.Printf("index %s built in %.1fs\n", *fPeer, time.Since(t).Seconds())
	case "leader":
		i, err := need[Leaderer](p).Leader(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(i)
	case "failover":
		failover(ctx, p, cfg)
	default:
		drive(ctx, p)
	}
}
