package shardgroup

import (
	"errors"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// unhurried is the leader of a new group whose riders wait until the test says.
func unhurried(t *testing.T, wait time.Duration) (*cluster, *Group) {
	t.Helper()
	c := seeded(t, 1, 1, nil)
	l := c.leader(1)
	l.batcher.mu.Lock()
	l.batcher.riders.wait = wait
	l.batcher.mu.Unlock()
	return c, l
}

// ride proposes a command that has time, and says when it is done.
func ride(t *testing.T, c *cluster, l *Group, x *fsm.Txn, boards bool) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	if !l.StartLater(fsm.Command{Txn: x}, func(_ fsm.Result, err error) { done <- err }) {
		t.Fatal("the leader takes no rider")
	}
	if boards {
		c.wait("the rider to wait", func() bool {
			l.batcher.mu.Lock()
			defer l.batcher.mu.Unlock()
			return len(l.batcher.riders.waiting) > 0
		})
	}
	return done
}

func ended(t *testing.T, what string, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(5 * time.Second):
		t.Fatalf("%s: it still waits", what)
		return nil
	}
}

func forget() *fsm.Txn {
	return &fsm.Txn{ID: txn.ID(newRequest(hlc.NewClock(nil).Now())), Epoch: 1, Forget: &fsm.Forget{}}
}

// prepared has a transaction prepare that writes a document.
func prepared(t *testing.T, l *Group, doc string) *fsm.Txn {
	t.Helper()
	now := hlc.NewClock(nil).Now()
	x := &fsm.Txn{ID: txn.ID(newRequest(now)), Epoch: 1, Prepare: &fsm.Prepare{
		Home: 5, Deadline: now.Add(time.Minute), Born: now,
		Part: txn.Part{Writes: []txn.Write{{Collection: 1, ID: doc, Ops: []txn.Op{{Op: wire.OpPut, Body: raw(t, map[string]any{"n": 1})}}}}},
	}}
	res, err := l.ProposeTxn(ctxFor(t, 5*time.Second), fsm.Command{Txn: x}, now, false)
	if err != nil || res.Txn == nil || res.Txn.State != txn.Prepared {
		t.Fatalf("prepare: %+v %v", res, err)
	}
	return &fsm.Txn{ID: x.ID, Epoch: 1, Resolve: &fsm.Resolve{Commit: true, At: res.Txn.At + 1}}
}

// What has time goes with what has none, in one entry.
func TestRiderGoesWithTheNext(t *testing.T) {
	c, l := unhurried(t, time.Hour)
	before := l.raft.LastIndex()
	first := ride(t, c, l, forget(), true)
	if got := l.raft.LastIndex(); got != before {
		t.Fatalf("it has made an entry: index %d after %d", got, before)
	}
	c.must(1, write(wire.OpPut, "a", raw(t, map[string]any{"n": 1})))
	if err := ended(t, "with a write", first); err != nil {
		t.Fatal(err)
	}
	if got := l.raft.LastIndex(); got != before+1 {
		t.Errorf("two commands made %d entries", got-before)
	}
	// The node's rhythm counts what is on its way.
	pace := &l.host.cadence
	pace.mu.Lock()
	defer pace.mu.Unlock()
	if pace.queued < 0 || pace.sent < 0 {
		t.Errorf("%d commands wait and %d fly", pace.queued, pace.sent)
	}
}

// It does not wait for ever.
func TestRiderGoesAlone(t *testing.T) {
	c, l := unhurried(t, time.Millisecond)
	for range 3 { // the timer is armed each time
		if err := ended(t, "alone", ride(t, c, l, forget(), false)); err != nil {
			t.Fatal(err)
		}
	}
}

// Who waits for locks does not wait for the entry that lets them go.
func TestRiderHurries(t *testing.T) {
	c, l := unhurried(t, time.Hour)
	put := func(doc string) {
		cmd := write(wire.OpPut, doc, raw(t, map[string]any{"n": 2}))
		l.AwaitWrite(ctxFor(t, 5*time.Second), &cmd)
		res, err := l.Propose(ctxFor(t, 5*time.Second), cmd)
		if err != nil || res.Wire.Error != nil {
			t.Errorf("put %s: %+v %v", doc, res.Wire.Error, err)
		}
	}
	// The lock waits to be let go, then somebody comes.
	done := ride(t, c, l, prepared(t, l, "a"), true)
	put("a")
	if err := ended(t, "for a writer", done); err != nil {
		t.Fatal(err)
	}
	// Somebody waits, then it comes.
	resolve := prepared(t, l, "b")
	wrote := make(chan struct{})
	go func() { defer close(wrote); put("b") }()
	c.wait("a writer to wait", func() bool { return len(l.Waits()) > 0 })
	if err := ended(t, "for who waits", ride(t, c, l, resolve, false)); err != nil {
		t.Fatal(err)
	}
	<-wrote
	// A younger transaction steps back, and will not meet the lock again.
	done = ride(t, c, l, prepared(t, l, "c"), true)
	young := &fsm.Txn{ID: txn.ID(newRequest(hlc.NewClock(nil).Now())), Epoch: 1, Prepare: &fsm.Prepare{
		Part: txn.Part{Writes: []txn.Write{{Collection: 1, ID: "c", Ops: []txn.Op{{Op: wire.OpDelete}}}}},
	}}
	var back *StepBack
	if _, err := l.ProposeTxn(ctxFor(t, 5*time.Second), fsm.Command{Txn: young}, hlc.Max, false); !errors.As(err, &back) {
		t.Fatalf("a younger one: %v", err)
	}
	if err := ended(t, "for who stepped back", done); err != nil {
		t.Fatal(err)
	}
	// A reader meets an intent.
	done = ride(t, c, l, prepared(t, l, "d"), true)
	_ = l.ClearReads(ctxFor(t, time.Second), []fsm.ReadKey{{Epoch: 1, Collection: 1, ID: "d"}}, hlc.Max) // nobody answers for home here
	if err := ended(t, "for a reader", done); err != nil {
		t.Fatal(err)
	}
}

// A group that stops leading tells those that wait.
func TestRiderIsRefused(t *testing.T) {
	c, l := unhurried(t, time.Hour)
	done := ride(t, c, l, forget(), true)
	l.batcher.shut(&NotLeaderError{Group: 1})
	var no *NotLeaderError
	if err := ended(t, "without a leader", done); !errors.As(err, &no) {
		t.Errorf("it was told %v", err)
	}
	if err := ended(t, "after", ride(t, c, l, forget(), false)); !errors.As(err, &no) {
		t.Errorf("the next was told %v", err)
	}
}
