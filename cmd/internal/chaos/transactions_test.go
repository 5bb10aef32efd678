package chaos

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
)

// TestCoordinatorKilled kills nodes with kill -9 below transactions that they
// coordinate, and whose homes and participants they lead: what is left behind
// is settled within two seconds of its deadline, or of the moment from which
// all groups answer again, and no money is lost or made.
func TestCoordinatorKilled(t *testing.T) {
	rng := choices(t)
	c := start(t, Options{Shards: 6})
	db := dial(t, c)
	ctx := within(t, 3*time.Minute)
	load, err := StartLoad(ctx, c.URL(), LoadOptions{Clients: 48, Workloads: []string{"bank"}, Seed: rng.Uint64(), Patience: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer load.Stop()

	h := &holds{t: t, db: db, until: map[client.RequestID]time.Time{}}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				h.look(ctx)
				pause(ctx, 20*time.Millisecond)
			}
		}
	}()
	ended := false
	end := func() {
		if !ended {
			ended = true
			close(stop)
			<-done
		}
	}
	defer end()
	for turn := range 4 {
		if err := load.Progress(ctx, 100); err != nil {
			t.Fatal(err)
		}
		n := c.Nodes[(turn+rng.IntN(2))%len(c.Nodes)]
		leave := strangers(ctx, db)
		pause(ctx, 300*time.Millisecond)
		n.Kill()
		leave()
		pause(ctx, 3*time.Second) // the others serve, and have to settle what is left
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	load.Stop()
	end()
	// Clients have given up some commits on their way: at most ten seconds.
	for last := time.Now().Add(10*time.Second + settledWithin); !h.look(ctx) || len(h.until) > 0; pause(ctx, 20*time.Millisecond) {
		if time.Now().After(last) {
			t.Fatalf("%d transactions are left behind", len(h.until))
		}
	}
	if h.orphans == 0 {
		t.Error("no transaction was ever held past its deadline: nothing was left behind by the nodes that were killed")
	}
	report, err := load.Judge(ctx, t.ArtifactDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d transactions were seen on their way, %d past their deadlines, at most for %v of %d looks\n%s", h.met, h.orphans, h.longest.Round(time.Millisecond), h.looks, report)
}

// strangers commit transactions of two documents, until they leave: then nobody
// asks again for what was under way.
func strangers(ctx context.Context, db *client.DB) (leave func()) {
	ctx, cancel := context.WithCancel(ctx)
	var bg sync.WaitGroup
	for i := range 16 {
		bg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				tx := db.Begin(client.TxTimeout(1500 * time.Millisecond))
				docs := tx.Collection("strangers")
				err := errors.Join(docs.Put(fmt.Sprint(i, "a", n), client.D{"n": n}), docs.Put(fmt.Sprint(i, "b", n), client.D{"n": n}))
				if err == nil {
					_, err = tx.Commit(ctx)
				}
				if err != nil {
					pause(ctx, 10*time.Millisecond)
				}
			}
		})
	}
	return func() {
		cancel()
		bg.Wait()
	}
}

// settledWithin is how long after its deadline something may be held.
const settledWithin = 2 * time.Second

// holds are transactions that hold something, and until when they may, on this
// process's clock.
type holds struct {
	t  *testing.T
	db *client.DB

	until     map[client.RequestID]time.Time
	answering time.Time // since when all groups answer
	was       bool      // the last look was answered by all

	met, orphans, looks int
	late                int // complaints
	longest             time.Duration
}

// look compares what is held with its deadlines; it says whether all groups
// have answered.
func (h *holds) look(ctx context.Context) bool {
	bounded, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	asked := time.Now()
	list, err := h.db.Transactions(bounded)
	if err != nil || len(list.Missing) > 0 {
		h.was = false
		return false
	}
	if !h.was {
		h.was, h.answering = true, asked
	}
	h.looks++
	still := map[client.RequestID]time.Time{}
	for _, x := range list.Txns {
		if x.State == wire.TxnOpen {
			continue // locks taken up front expire
		}
		until, seen := h.until[x.ID]
		if !seen {
			h.met++
			until = asked
			if x.State != wire.TxnCommitted {
				until = asked.Add(client.Timestamp(x.Deadline).Time().Sub(client.Timestamp(list.Now).Time()))
			}
		}
		still[x.ID] = until
		over := min(asked.Sub(until), asked.Sub(h.answering))
		if over > 0 && x.State != wire.TxnCommitted {
			h.orphans++
		}
		if h.longest = max(h.longest, over); over > settledWithin && h.late < 10 {
			h.late++
			h.t.Errorf("transaction %s of home %d (state %d) is held %v past its deadline", x.ID, x.Home, x.State, over)
		}
	}
	h.until = still
	return true
}
