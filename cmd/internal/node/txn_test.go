package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/placement"
)

type account struct {
	Balance int `json:"balance"`
}

func total(ctx context.Context, db *client.DB, n int) (sum int, err error) {
	err = db.Transact(ctx, func(tx *client.Tx) error {
		sum = 0
		ids := make([]string, n)
		for i := range ids {
			ids[i] = fmt.Sprint("a", i)
		}
		docs, err := tx.Collection("accounts").GetMany(ctx, ids)
		if err != nil {
			return err
		}
		for _, d := range docs {
			var a account
			if err := d.Decode(&a); err != nil {
				return err
			}
			sum += a.Balance
		}
		return nil
	}, client.ReadOnly())
	return sum, err
}

// TestBank moves money between accounts of all groups while strict readers add
// it up, some by documents and some by scans.
func TestBank(t *testing.T) { bank(t, -1) }

// TestBankLosesNode is the same, and in its middle one of three nodes, which
// coordinates, leads and is asked, is gone from one moment to the next.
func TestBankLosesNode(t *testing.T) {
	bank(t, 1)
}

// bank closes the node with that number after a second; -1: none.
func bank(t *testing.T, lost int) {
	const accounts, each = 12, 100
	d := startDev(t, t.TempDir(), 3)
	defer stopDev(t, d)
	db := dial(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for i := range accounts {
		if _, err := db.Collection("accounts").Put(ctx, fmt.Sprint("a", i), account{each}); err != nil {
			t.Fatal(err)
		}
	}
	end := time.Now().Add(4 * time.Second)
	var moved, reads, scans, runs atomic.Int64
	var wg sync.WaitGroup
	for w := range 6 {
		rng := rand.New(rand.NewPCG(uint64(w), 1))
		wg.Go(func() {
			for time.Now().Before(end) {
				from, to := rng.IntN(accounts), rng.IntN(accounts)
				if from == to {
					continue
				}
				err := db.Transact(ctx, func(tx *client.Tx) error {
					runs.Add(1)
					c := tx.Collection("accounts")
					var a, b account
					if err := c.GetInto(ctx, fmt.Sprint("a", from), &a); err != nil {
						return err
					}
					if err := c.GetInto(ctx, fmt.Sprint("a", to), &b); err != nil {
						return err
					}
					if err := c.Put(fmt.Sprint("a", from), account{a.Balance - 1}); err != nil {
						return err
					}
					return c.Put(fmt.Sprint("a", to), account{b.Balance + 1})
				})
				if err != nil {
					t.Error("transfer: ", err)
					return
				}
				moved.Add(1)
			}
		})
	}
	wg.Go(func() {
		for time.Now().Before(end) {
			sum, err := total(ctx, db, accounts)
			if err != nil || sum != accounts*each {
				t.Errorf("%d in all accounts, %v", sum, err)
				return
			}
			reads.Add(1)
		}
	})
	wg.Go(func() {
		for time.Now().Before(end) {
			sum := 0
			for a, err := range client.Scan[account](ctx, db.Collection("accounts"), client.AtTimestamp(db.Now())) {
				if err != nil {
					t.Error("scan: ", err)
					return
				}
				sum += a.Balance
			}
			if sum != accounts*each {
				t.Errorf("a scan at one time found %d", sum)
				return
			}
			scans.Add(1)
		}
	})
	wg.Go(func() {
		<-time.After(time.Second)
		if lost >= 0 {
			if err := d.Nodes()[lost].Close(); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	t.Logf("%d transfers in %d runs, %d sums, %d scans", moved.Load(), runs.Load(), reads.Load(), scans.Load())
	if moved.Load() < 20 || reads.Load() == 0 || scans.Load() == 0 {
		t.Error("it did next to nothing")
	}
	if sum, err := total(ctx, db, accounts); err != nil || sum != accounts*each {
		t.Errorf("%d in all accounts at rest, %v", sum, err)
	}
	for i, n := range d.Nodes() {
		if i == lost {
			continue
		}
		for _, g := range n.Host().Groups() {
			deadline := time.Now().Add(5 * time.Second)
			for g.IsLeader() && (g.Machine().LocksHeld() > 0 || len(g.Machine().Unfinished(1<<63)) > 0) {
				if time.Now().After(deadline) {
					t.Fatalf("%s still holds %v, unfinished %v", g.ID(), g.Machine().Holders(), g.Machine().Unfinished(1<<63))
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
}

// TestTransactionSees: a transaction sees its own writes and one timestamp, and
// is refused for what has changed.
func TestTransactionSees(t *testing.T) {
	d := startDev(t, t.TempDir(), 1)
	defer stopDev(t, d)
	db := dial(t, d)
	ctx := t.Context()
	things := db.Collection("things")
	for i := range 6 {
		if _, err := things.Put(ctx, fmt.Sprint("t", i), map[string]any{"n": i}); err != nil {
			t.Fatal(err)
		}
	}
	ids := func(tx *client.Tx, opts ...client.ReadOption) (out []string) {
		t.Helper()
		for doc, err := range tx.Collection("things").Scan(ctx, opts...) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, doc.ID)
		}
		return out
	}

	// quiet waits until a refused commit has let go everywhere: its client was
	// answered before.
	quiet := func() {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			held := 0
			for _, g := range d.Nodes()[0].Host().Groups() {
				held += g.Machine().LocksHeld()
			}
			if held == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d transactions are still prepared", held)
			}
		}
	}

	tx := db.Begin()
	c := tx.Collection("things")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.Put("t1a", map[string]any{"n": 10}))
	must(c.Update("t2", client.Inc("n", 40)))
	must(c.Update("t2", client.Inc("n", 2)))
	must(c.Delete("t3"))
	var v struct {
		N int `json:"n"`
	}
	must(c.GetInto(ctx, "t2", &v))
	if v.N != 44 {
		t.Fatalf("after two increments n is %d", v.N)
	}
	if _, err := c.Get(ctx, "t3"); !errors.Is(err, client.ErrNotFound) {
		t.Fatalf("a document deleted in the transaction: %v", err)
	}
	if got := fmt.Sprint(ids(tx)); got != "[t0 t1 t1a t2 t4 t5]" {
		t.Fatalf("the scan found %s", got)
	}
	if got := fmt.Sprint(ids(tx, client.Reverse(), client.Limit(3))); got != "[t5 t4 t2]" {
		t.Fatalf("the reverse scan found %s", got)
	}
	if n, err := c.Count(ctx, client.Prefix("t1")); err != nil || n != 2 {
		t.Fatalf("counted %d, %v", n, err)
	}
	if _, err := things.Get(ctx, "t1a"); !errors.Is(err, client.ErrNotFound) {
		t.Fatalf("outside it is seen before its commit: %v", err)
	}
	res, err := tx.Commit(ctx)
	must(err)
	doc, err := things.Get(ctx, "t2")
	must(err)
	if doc.UpdatedAt != res.Timestamp || doc.Version != 2 {
		t.Fatalf("committed at %v, the document is version %d of %v", res.Timestamp, doc.Version, doc.UpdatedAt)
	}
	if _, err := tx.Commit(ctx); !errors.Is(err, client.ErrTxDone) {
		t.Fatalf("a second commit: %v", err)
	}

	// A phantom.
	tx = db.Begin()
	if n := len(ids(tx, client.Prefix("t"))); n != 6 {
		t.Fatalf("found %d", n)
	}
	must(tx.Collection("counts").Put("all", map[string]any{"n": 6}))
	_, err = things.Put(ctx, "t9", map[string]any{})
	must(err)
	if _, err := tx.Commit(ctx); !errors.Is(err, client.ErrTxConflict) {
		t.Fatalf("a phantom was let in: %v", err)
	} else {
		t.Log(err)
	}

	quiet()
	// Write skew: both read both, each writes one.
	one, two := db.Begin(), db.Begin()
	for _, x := range []*client.Tx{one, two} {
		for _, id := range []string{"t4", "t5"} {
			_, err := x.Collection("things").Get(ctx, id)
			must(err)
		}
	}
	must(one.Collection("things").Put("t4", map[string]any{}))
	must(two.Collection("things").Put("t5", map[string]any{}))
	_, err = one.Commit(ctx)
	must(err)
	if _, err = two.Commit(ctx); !errors.Is(err, client.ErrTxConflict) {
		t.Fatalf("write skew: %v", err)
	}

	quiet()
	// Read-only ones are strict: this one read before, and ends after.
	ro := db.Begin(client.ReadOnly())
	_, err = ro.Collection("things").Get(ctx, "t0")
	must(err)
	_, err = things.Put(ctx, "t0", map[string]any{})
	must(err)
	if _, err := ro.Commit(ctx); !errors.Is(err, client.ErrTxConflict) {
		t.Fatalf("a stale read-only transaction: %v", err)
	}
	if err := ro.Collection("things").Put("x", map[string]any{}); err == nil {
		t.Fatal("a read-only transaction wrote")
	}

	// A condition is looked at when it commits.
	tx = db.Begin()
	must(tx.Collection("things").Insert("t0", map[string]any{}))
	if _, err := tx.Commit(ctx); !errors.Is(err, client.ErrAlreadyExists) {
		t.Fatalf("an insert of what is there: %v", err)
	}
}

// TestLockUpFront: increments of one hot document, locked first, do not conflict.
func TestLockUpFront(t *testing.T) {
	d := startDev(t, t.TempDir(), 3)
	defer stopDev(t, d)
	db := dial(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if _, err := db.Collection("hot").Put(ctx, "h", map[string]any{"n": 0}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var runs atomic.Int64
	const workers, each = 6, 10
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				err := db.Transact(ctx, func(tx *client.Tx) error {
					runs.Add(1)
					var v struct {
						N int `json:"n"`
					}
					d, err := tx.Collection("hot").GetForUpdate(ctx, "h")
					if err != nil {
						return err
					}
					if err := d.Decode(&v); err != nil {
						return err
					}
					if err := tx.Collection("log").Put(fmt.Sprint(w, "-", i), map[string]any{"n": v.N}); err != nil {
						return err
					}
					return tx.Collection("hot").Put("h", map[string]any{"n": v.N + 1})
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	var v struct {
		N int `json:"n"`
	}
	if err := db.Collection("hot").GetInto(ctx, "h", &v); err != nil || v.N != workers*each {
		t.Fatalf("%d increments made it %d, %v", workers*each, v.N, err)
	}
	t.Logf("%d increments in %d runs", v.N, runs.Load())
}

// TestTransactionMeetsDrop: a collection that a transaction has used is dropped
// and made anew before its commit, by a client that the first has not heard of.
// What was read is of the old one, so the work is done again, in the new one.
func TestTransactionMeetsDrop(t *testing.T) {
	d := startDev(t, t.TempDir(), 1)
	defer stopDev(t, d)
	db, other := dial(t, d), dial(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for _, separator := range []string{"/", ""} {
		if _, err := db.Collection("things").Put(ctx, "a/b", client.D{"n": 1}); err != nil {
			t.Fatal(err)
		}
		runs := 0
		err := db.Transact(ctx, func(tx *client.Tx) error {
			runs++
			there, err := tx.Collection("things").Exists(ctx, "a/b")
			if err != nil {
				return err
			}
			if there != (runs == 1) {
				t.Errorf("run %d: there is %v", runs, there)
			}
			if err := tx.Collection("things").Put("a/c", client.D{"run": runs}); err != nil {
				return err
			}
			if runs > 1 {
				return nil
			}
			if err := other.DropCollection(ctx, "things"); err != nil {
				return err
			}
			_, err = other.CreateCollection(ctx, "things", client.CollectionOptions{Separator: separator})
			return err
		})
		if err != nil || runs != 2 {
			t.Errorf("%d runs, %v", runs, err)
		}
		if n, err := other.Collection("things").Count(ctx); err != nil || n != 1 {
			t.Errorf("%d documents, %v", n, err)
		}
		if err := other.DropCollection(ctx, "things"); err != nil {
			t.Fatal(err)
		}
	}
	// Nobody has made it anew: the transaction does.
	if _, err := db.Collection("things").Put(ctx, "a", client.D{}); err != nil {
		t.Fatal(err)
	}
	runs := 0
	err := db.Transact(ctx, func(tx *client.Tx) error {
		if runs++; runs == 1 {
			if err := other.DropCollection(ctx, "things"); err != nil {
				return err
			}
		}
		return tx.Collection("things").Put("b", client.D{})
	})
	if n, e := other.Collection("things").Count(ctx); err != nil || e != nil || n != 1 {
		t.Errorf("%d documents, %v, %v", n, err, e)
	}
}

// TestTransactLocks: increments of two hot documents, which nobody locks
// himself, conflict a few times, and then wait for their turns.
func TestTransactLocks(t *testing.T) {
	d := startDev(t, t.TempDir(), 3)
	defer stopDev(t, d)
	db := dial(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	hot := db.Collection("hot")
	for _, id := range []string{"a", "b"} {
		if _, err := hot.Put(ctx, id, map[string]any{"n": 0}); err != nil {
			t.Fatal(err)
		}
	}
	type counter struct {
		N int `json:"n"`
	}
	var wg sync.WaitGroup
	var runs atomic.Int64
	const workers, each = 6, 20
	for range workers {
		wg.Go(func() {
			for range each {
				err := db.Transact(ctx, func(tx *client.Tx) error {
					runs.Add(1)
					for _, id := range []string{"a", "b"} {
						var v counter
						if err := tx.Collection("hot").GetInto(ctx, id, &v); err != nil {
							return err
						}
						if err := tx.Collection("hot").Put(id, counter{v.N + 1}); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, id := range []string{"a", "b"} {
		var v counter
		if err := hot.GetInto(ctx, id, &v); err != nil || v.N != workers*each {
			t.Errorf("%s: %d increments made it %d, %v", id, workers*each, v.N, err)
		}
	}
	if n := runs.Load(); n > 2*workers*each {
		t.Errorf("%d transactions took %d runs", workers*each, n)
	} else {
		t.Logf("%d transactions in %d runs", workers*each, n)
	}
}

// loseLocks moves every shard group to another leader, which knows nothing of
// locks that were taken up front.
func loseLocks(t *testing.T, ctx context.Context, d *Dev) {
	t.Helper()
	for _, s := range d.Nodes()[0].groupStatus() {
		for moved := s.ID == 0; !moved; { // one that has no leader is looked at again
			for i, n := range d.Nodes() {
				g, ok := n.host.Group(placement.GroupID(s.ID))
				if ok && g.Status().State == "leader" && g.TransferLeadership(ctx, d.Nodes()[(i+1)%len(d.Nodes())].self) == nil {
					moved = true
					break
				}
			}
			if ctx.Err() != nil {
				t.Fatal(ctx.Err())
			}
			runtime.Gosched()
		}
	}
}

// A transaction whose locks are lost sees one instant, or a conflict: never what
// was before and what was after another.
func TestLostLockShowsOneInstant(t *testing.T) {
	d := startDev(t, t.TempDir(), 3)
	defer stopDev(t, d)
	db := dial(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	write := func(ids ...string) {
		t.Helper()
		var last *client.Tx
		err := db.Transact(ctx, func(tx *client.Tx) error {
			last = tx
			var errs []error
			for _, id := range ids {
				errs = append(errs, tx.Collection("things").Upsert(id, client.Inc("n", 1)))
			}
			return errors.Join(errs...)
		})
		if err != nil {
			t.Fatal(err)
		}
		// Clocks differ now: each leader has begun above what the one before promised.
		if at, now := last.Result().Timestamp, db.Now(); at.Millis() > now.Millis() {
			t.Errorf("committed at %v, and the client goes on at %v", at, now)
		}
	}
	ids := []string{"a", "b", "c", "d", "e"} // of several groups
	write(ids...)
	lock := func(id string) func(*client.TxCollection) error {
		return func(c *client.TxCollection) error { _, err := c.GetForUpdate(ctx, id); return err }
	}
	for name, then := range map[string]func(c *client.TxCollection) error{
		"locks another": lock("b"),
		"reads":         func(c *client.TxCollection) error { _, err := c.Get(ctx, "b"); return err },
		"reads many":    func(c *client.TxCollection) error { _, err := c.GetMany(ctx, ids); return err },
		"scans": func(c *client.TxCollection) error {
			for _, err := range c.Scan(ctx) {
				return err
			}
			return nil
		},
	} {
		for _, locked := range []string{"a", "none " + name} { // one that is there, one that is not
			tx := db.Begin()
			c := tx.Collection("things")
			if _, err := c.GetForUpdate(ctx, locked); err != nil && !errors.Is(err, client.ErrNotFound) {
				t.Fatal(err)
			}
			loseLocks(t, ctx, d)
			write(append(ids, locked)...)
			if err := then(c); !errors.Is(err, client.ErrTxConflict) {
				t.Errorf("%s, having locked %q, which has changed since: %v", name, locked, err)
			}
			tx.Rollback(ctx)
		}
	}
	// What is locked after a scan must have been there, or not, then too.
	tx := db.Begin()
	for _, err := range tx.Collection("things").Scan(ctx) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Collection("things").Delete(ctx, "e"); err != nil {
		t.Fatal(err)
	}
	if err := lock("e")(tx.Collection("things")); !errors.Is(err, client.ErrTxConflict) {
		t.Errorf("locks what was deleted after a scan: %v", err)
	}
	tx.Rollback(ctx)
}

// Locks that are kept cost nothing: others may write what is locked afterwards.
func TestLocksTakeWhatIsNewest(t *testing.T) {
	d := startDev(t, t.TempDir(), 1)
	defer stopDev(t, d)
	db := dial(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	c := db.Collection("things")
	for _, id := range []string{"a", "b", "c"} {
		if _, err := c.Put(ctx, id, map[string]any{"n": 0}); err != nil {
			t.Fatal(err)
		}
	}
	tx := db.Begin()
	k := tx.Collection("things")
	for i, id := range []string{"none", "a", "b", "c"} {
		if i > 0 {
			if _, err := c.Update(ctx, id, client.Inc("n", i)); err != nil {
				t.Fatal(err)
			}
		}
		doc, err := k.GetForUpdate(ctx, id)
		if i == 0 && errors.Is(err, client.ErrNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		var v struct {
			N int `json:"n"`
		}
		if err := doc.Decode(&v); err != nil || v.N != i {
			t.Errorf("%s has n %d, want %d (%v)", id, v.N, i, err)
		}
		if err := k.Update(id, client.Inc("n", 1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tx.Commit(ctx); err != nil {
		t.Error(err)
	}
}
