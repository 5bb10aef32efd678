package node

import (
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// TestLeftBehind: coordinators that vanish between any two of their messages.
// Nobody but the leaders and whoever meets the intents is left to settle it.
func TestLeftBehind(t *testing.T) {
	d := startDev(t, t.TempDir(), 3)
	defer stopDev(t, d)
	db := dial(t, d)
	ctx := t.Context()
	things := db.Collection("things")
	if _, err := things.Put(ctx, "seed", map[string]any{"n": 0}); err != nil {
		t.Fatal(err)
	}
	r := d.Nodes()[0].router
	v, coll, err := d.Nodes()[0].places.Lookup(ctx, "things")
	if err != nil {
		t.Fatal(err)
	}
	// Two documents in different groups.
	at := func(id string) placement.PartitionID {
		return placement.PartitionID(wire.Partition("things", "", id, v.Partitions()))
	}
	home, other := "h", ""
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g", "i", "j"} {
		if v.Owner(at(id)) != v.Owner(at(home)) {
			other = id
		}
	}
	body, err := doc.FromJSON([]byte(`{"n":1}`))
	if err != nil {
		t.Fatal(err)
	}
	part := func(id string) txn.Part {
		return txn.Part{Writes: []txn.Write{{Collection: coll.ID, ID: id, Ops: []txn.Op{{Op: wire.OpPut, Body: body}}}}}
	}
	step := func(x fsm.Txn) txn.Answer {
		t.Helper()
		a, err := r.Step(ctx, &x)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	begin := func(ttl time.Duration) (id txn.ID, p hlc.Timestamp, deadline time.Time) {
		id.Time = uint64(db.Now())
		_, _ = rand.Read(id.Random[:])
		deadline = time.Now().Add(ttl)
		a := step(fsm.Txn{ID: id, Partition: at(other), Prepare: &fsm.Prepare{
			Home: at(home), Deadline: d.Nodes()[0].clock.Now().Add(ttl), Born: d.Nodes()[0].clock.Now(), Part: part(other),
		}})
		if a.State != txn.Prepared {
			t.Fatalf("prepare: %+v", a)
		}
		return id, a.At, deadline
	}
	free := func(limit time.Time) {
		t.Helper()
		for {
			held := 0
			for _, n := range d.Nodes() {
				for _, g := range n.Host().Groups() {
					held += g.Machine().LocksHeld() + len(g.Machine().Unfinished(1<<63))
				}
			}
			if held == 0 {
				return
			}
			if time.Now().After(limit) {
				t.Fatalf("%d records are left after the deadline and two seconds", held)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}

	// Prepared, and gone: a reader is not held up, and sees nothing of it.
	_, _, deadline := begin(500 * time.Millisecond)
	began := time.Now()
	if _, err := things.Get(ctx, other); !errors.Is(err, client.ErrNotFound) {
		t.Fatalf("an intent that is not decided is read: %v", err)
	}
	if took := time.Since(began); took > 400*time.Millisecond {
		t.Errorf("the reader waited %v", took)
	}
	// A writer waits until it is aborted for it.
	if _, err := things.Put(ctx, other, map[string]any{"n": 7}); err != nil {
		t.Fatal(err)
	}
	free(deadline.Add(2 * time.Second))

	// Decided, and gone: the first reader sees it.
	id, p, _ := begin(time.Minute)
	a := step(fsm.Txn{ID: id, Partition: at(home), Decide: &fsm.Decide{MaxP: p, Participants: []placement.PartitionID{at(other)}, Part: part(home)}})
	if a.State != txn.Committed {
		t.Fatalf("decide: %+v", a)
	}
	for _, x := range []string{other, home} {
		got, err := things.Get(ctx, x)
		if err != nil || uint64(got.UpdatedAt) != uint64(a.At) {
			t.Fatalf("committed at %d and decided, %s is read as %+v, %v", a.At, x, got, err)
		}
	}
	free(time.Now().Add(finishWithin))

	// An intent that nobody meets is aborted by the leader, after a restart too.
	_, _, deadline = begin(300 * time.Millisecond)
	free(deadline.Add(2 * time.Second))
	if got, err := things.Get(ctx, other); err != nil || got.Version != 2 {
		t.Fatalf("%+v, %v", got, err)
	}

	// Clocks that were pushed ahead stand still until the wall has caught up:
	// deadlines pass all the same, and commits are seen to.
	for _, n := range d.Nodes() {
		n.clock.Observe(n.clock.Now().Add(time.Hour))
	}
	_, _, deadline = begin(300 * time.Millisecond)
	free(deadline.Add(2 * time.Second))
	id, p, _ = begin(time.Minute)
	if a := step(fsm.Txn{ID: id, Partition: at(home), Decide: &fsm.Decide{MaxP: p, Participants: []placement.PartitionID{at(other)}, Part: part(home)}}); a.State != txn.Committed {
		t.Fatalf("decide: %+v", a)
	}
	free(time.Now().Add(finishWithin))
}

// finishWithin is how soon home has seen to a commit that nobody resolves.
const finishWithin = 4 * time.Second

// TestCostOfCommit counts the log entries that a commit over two groups makes:
// prepare and resolve here, stage, confirm and forget there, and nothing else.
// The first of each come at once, and before the answer.
func TestCostOfCommit(t *testing.T) {
	d := startDev(t, t.TempDir(), 1)
	defer stopDev(t, d)
	db := dial(t, d)
	ctx := t.Context()
	if _, err := db.Collection("things").Put(ctx, "seed", map[string]any{}); err != nil {
		t.Fatal(err)
	}
	n := d.Nodes()[0]
	v := n.places.View()
	owner := func(id string) placement.GroupID {
		return v.Owner(placement.PartitionID(wire.Partition("things", "", id, v.Partitions())))
	}
	ids := map[placement.GroupID]string{}
	for i := 0; len(ids) < 2; i++ {
		id := string(rune('a' + i))
		if _, have := ids[owner(id)]; !have {
			ids[owner(id)] = id
		}
	}
	applied := func() (sum uint64) {
		for g := range ids {
			group, ok := n.Host().Group(g)
			if !ok {
				t.Fatal("no group")
			}
			sum += group.Machine().Applied()
		}
		return sum
	}
	least := uint64(1 << 63)
	for range 5 { // the groups' own entries may come between, seldom
		before := applied()
		tx := db.Begin()
		for _, id := range ids {
			if err := tx.Collection("things").Put(id, map[string]any{"n": 1}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			left := 0
			for g := range ids {
				group, _ := n.Host().Group(g)
				left += group.Machine().LocksHeld() + len(group.Machine().Unfinished(1<<63))
			}
			if left == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("it does not come to its end")
			}
		}
		least = min(least, applied()-before)
	}
	if least != 5 {
		t.Errorf("a commit over two groups made %d log entries, docs/transactions.md says 5", least)
	}
	// One group: one entry.
	least = 1 << 63
	for range 5 {
		before := applied()
		err := db.Transact(ctx, func(tx *client.Tx) error {
			for g, id := range ids {
				if g == owner(ids[g]) {
					return tx.Collection("things").Put(id, map[string]any{"n": 2})
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		least = min(least, applied()-before)
	}
	if least != 1 {
		t.Errorf("a commit within one group made %d log entries, docs/transactions.md says 1", least)
	}
}
