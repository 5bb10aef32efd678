package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/placement"
)

// createUnique creates a collection with unique constraints: "email", "a,b".
func createUnique(t *testing.T, db *client.DB, name string, constraints ...string) {
	t.Helper()
	var o client.CollectionOptions
	for _, c := range constraints {
		o.Unique = append(o.Unique, client.Unique{Fields: strings.Split(c, ",")})
	}
	if _, err := db.CreateCollection(t.Context(), name, o); err != nil {
		t.Fatal(err)
	}
}

// wantDuplicate says that a write was refused for a value that a document holds.
func wantDuplicate(t *testing.T, err error, texts ...string) {
	t.Helper()
	if !errors.Is(err, client.ErrDuplicate) || !errors.Is(err, client.ErrConflict) {
		t.Errorf("want a duplicate value, got %v", err)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q does not say %q", err, text)
		}
	}
}

// checkEntries compares the entries of a collection's unique values with what
// its documents hold, in what the leaders have, when nothing is in flight.
func checkEntries(t *testing.T, nodes []*Node, name string) (entries int) {
	t.Helper()
	v, c, err := nodes[0].places.Lookup(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	set := unique.SetOf(&c.Options)
	held, kept := map[string]string{}, map[string]string{}
	deadline := time.Now().Add(20 * time.Second)
	for _, g := range v.Groups {
		var m *fsm.Machine
		for m == nil {
			for _, n := range nodes {
				if group, ok := n.Host().Group(g.ID); ok {
					if leader, _, known := group.Leader(); known && string(leader) == n.cfg.ID && group.ReadIndex(t.Context()) == nil && group.Machine().LocksHeld() == 0 {
						m = group.Machine()
					}
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not come to rest", g.ID)
			}
			time.Sleep(time.Millisecond)
		}
		all := func(c placement.CollectionID, f func(id string, body []byte)) {
			for after, more := "", true; more; {
				docs, left, _, err := m.Scan(fsm.ScanSpec{Collection: c, After: after})
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range docs {
					f(d.ID, d.Body)
					after = d.ID
				}
				more = left
			}
		}
		all(c.ID, func(id string, body []byte) {
			for _, h := range set.Values(body) {
				if other, twice := held[h.Entry]; twice {
					t.Errorf("%s and %s hold one value: %s", other, id, set.Text(h.Constraint, body))
				}
				held[h.Entry] = id
			}
		})
		all(unique.Entries(c.ID), func(id string, body []byte) {
			kept[id], _ = unique.Holder(body)
		})
	}
	for e, id := range held {
		if kept[e] != id {
			t.Errorf("%s holds a value whose entry %s names %q", id, e, kept[e])
		}
	}
	for e, id := range kept {
		if held[e] != id {
			t.Errorf("entry %s names %s, which does not hold it", e, id)
		}
	}
	return len(kept)
}

// The rules, one write after the other.
func TestUnique(t *testing.T) {
	d := startDev(t, t.TempDir(), 3)
	defer stopDev(t, d)
	db := dial(t, d)
	ctx := t.Context()
	createUnique(t, db, "users", "email", "address.country,code")
	users := db.Collection("users")
	must := func(_ client.Result, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dup := func(texts ...string) func(_ client.Result, err error) {
		return func(_ client.Result, err error) { t.Helper(); wantDuplicate(t, err, texts...) }
	}
	type D = client.D

	must(users.Insert(ctx, "ada", D{"email": "ada@x", "n": 1}))
	dup("users/bob", `email "ada@x"`, "held by ada")(users.Insert(ctx, "bob", D{"email": "ada@x"}))
	dup("held by ada")(users.Put(ctx, "bob", D{"email": "ada@x"}))
	dup("held by ada")(users.Upsert(ctx, "bob", client.Set("email", "ada@x")))
	if n, err := users.Count(ctx); err != nil || n != 1 {
		t.Errorf("%d documents, %v", n, err)
	}
	// Itself: nothing is taken, nothing given up.
	must(users.Put(ctx, "ada", D{"email": "ada@x", "n": 2}))
	must(users.Update(ctx, "ada", client.Inc("n", 1)))
	must(users.Update(ctx, "ada", client.Set("email", "ada@x")))
	// A value moves, and is free.
	must(users.Update(ctx, "ada", client.Set("email", "ada@y")))
	must(users.Insert(ctx, "bob", D{"email": "ada@x"}))
	dup("users/ada", "held by bob")(users.Restore(ctx, "ada", 1))
	must(users.Delete(ctx, "bob"))
	must(users.Restore(ctx, "ada", 1))
	must(users.Insert(ctx, "bob", D{"email": "ada@y"}))
	// Several fields together; a missing one is not null.
	must(users.Insert(ctx, "c1", D{"address": D{"country": "de"}, "code": 7}))
	must(users.Insert(ctx, "c2", D{"address": D{"country": "de"}, "code": 8}))
	dup(`address.country "de", code 7`, "held by c1")(users.Update(ctx, "c2", client.Set("code", 7)))
	dup("held by c1")(users.Update(ctx, "c2", client.Set("code", 7.0)))
	dup("held by c1")(users.Update(ctx, "c2", client.Inc("code", -1)))
	must(users.Insert(ctx, "c3", D{"address": D{"country": "de"}}))
	dup("code (missing)", "held by c3")(users.Insert(ctx, "c4", D{"address": D{"country": "de"}}))
	must(users.Insert(ctx, "c4", D{"address": D{"country": "de"}, "code": nil}))
	must(users.Insert(ctx, "c5", D{"code": 7}))
	must(users.Insert(ctx, "c6", D{"address": D{}}))
	must(users.Insert(ctx, "c7", D{"address": D{}}))
	dup("held by c3")(users.Update(ctx, "c4", client.Unset("code")))
	// A change of what contains the field is a change of the field.
	dup("held by c1")(users.Update(ctx, "c5", client.Set("address", D{"country": "de"})))
	checkEntries(t, d.Nodes(), "users")

	t.Run("values", func(t *testing.T) {
		createUnique(t, db, "values", "v")
		c := db.Collection("values")
		long := strings.Repeat("long ", 50_000)
		nested := any("deep")
		for range 30 {
			nested = []any{D{"a": nested}}
		}
		for i, v := range []any{
			nil, true, false, 0, 1, -1, 0.5, math.NaN(), math.Inf(1), int64(math.MaxInt64), float64(1 << 62), "", "1", "x\x00y", long, long + "x",
			[]any{}, []any{1}, []any{1, 2}, D{}, D{"a": 1}, nested, []byte("x"), []byte{}, time.Unix(0, 0),
		} {
			must(c.Insert(ctx, fmt.Sprint("a", i), D{"v": v}))
			_, err := c.Insert(ctx, fmt.Sprint("b", i), D{"v": v})
			wantDuplicate(t, err, fmt.Sprintf("held by a%d", i))
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("a message of %d bytes: %s", len(err.Error()), err)
			}
		}
		for v, holder := range map[any]string{1.0: "a4", math.Copysign(0, -1): "a3", float32(0.5): "a6", int64(1 << 62): "a10"} {
			_, err := c.Insert(ctx, "c", D{"v": v})
			wantDuplicate(t, err, "held by "+holder)
		}
		if n := checkEntries(t, d.Nodes(), "values"); n != 25 {
			t.Errorf("%d entries", n)
		}
	})

	t.Run("bulk", func(t *testing.T) {
		createUnique(t, db, "bulk", "v")
		c := db.Collection("bulk")
		b := db.Bulk()
		for i := range 300 {
			b.Insert(c, fmt.Sprint("d", i), D{"v": i / 2})
		}
		res, err := b.Do(ctx)
		if err == nil {
			t.Error("a bulk with duplicates succeeded")
		}
		won := map[int]int{}
		for i, it := range res.Items {
			if it.Err == nil {
				won[i/2]++
			} else {
				wantDuplicate(t, it.Err, fmt.Sprintf("v %d is held by d%d", i/2, i^1))
			}
		}
		for v := range 150 {
			if won[v] != 1 {
				t.Errorf("value %d was given to %d documents", v, won[v])
			}
		}
		if n := checkEntries(t, d.Nodes(), "bulk"); n != 150 {
			t.Errorf("%d entries", n)
		}
		if err := db.DropCollection(ctx, "bulk"); err != nil {
			t.Fatal(err)
		}
		createUnique(t, db, "bulk", "v")
		if n := checkEntries(t, d.Nodes(), "bulk"); n != 0 {
			t.Errorf("%d entries of a new collection", n)
		}
		must(c.Insert(ctx, "d", D{"v": 1}))
	})
}

// TestUniqueRefusedAtOnce: a write that has lost to another locks its document,
// and a refusal then is a commit of its own about that document. It does not
// wait for the lock of the write that it refuses, which took a second.
func TestUniqueRefusedAtOnce(t *testing.T) {
	d := startDev(t, t.TempDir(), 3)
	defer stopDev(t, d)
	db := dial(t, d)
	ctx := t.Context()
	createUnique(t, db, "users", "email")
	users := db.Collection("users")
	if _, err := users.Put(ctx, "ada", client.D{"email": "ada@x"}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	refused := 0
	for range 3 {
		b := db.Bulk() // of one document, so that they lose to each other
		for i := range 12 {
			b.Put(users, "bob", client.D{"email": fmt.Sprint(i)})
			b.Put(users, "bob", client.D{"email": "ada@x"})
		}
		res, err := b.Do(ctx)
		if err == nil {
			t.Fatal("nobody was refused")
		}
		for i, it := range res.Items {
			if i%2 == 0 && it.Err != nil {
				t.Errorf("write %d: %v", i, it.Err)
			} else if i%2 == 1 {
				wantDuplicate(t, it.Err, "held by ada")
				refused++
			}
		}
	}
	if took := time.Since(began); took > time.Duration(refused)*time.Second/4 {
		t.Errorf("%d refusals took %v", refused, took)
	}
	checkEntries(t, d.Nodes(), "users")
}

// In a transaction the commit as a whole is judged.
func TestUniqueTransactions(t *testing.T) {
	d := startDev(t, t.TempDir(), 3)
	defer stopDev(t, d)
	db := dial(t, d)
	ctx := t.Context()
	type D = client.D
	createUnique(t, db, "users", "email")
	users := db.Collection("users")
	put := func(id, email string) {
		t.Helper()
		if _, err := users.Put(ctx, id, D{"email": email}); err != nil {
			t.Fatal(err)
		}
	}
	email := func(id, want string) {
		t.Helper()
		var got struct {
			Email string `json:"email"`
		}
		if err := users.GetInto(ctx, id, &got); err != nil || got.Email != want {
			t.Errorf("%s has %q, %v; want %q", id, got.Email, err, want)
		}
	}
	put("a", "1")
	put("b", "2")
	put("c", "3")
	// Two swap, blindly, and a third is created and deleted.
	err := db.Transact(ctx, func(tx *client.Tx) error {
		c := tx.Collection("users")
		return errors.Join(
			c.Update("a", client.Set("email", "2")), c.Put("b", D{"email": "1"}),
			c.Insert("x", D{"email": "3"}), c.Delete("x"))
	})
	if err != nil {
		t.Fatal(err)
	}
	email("a", "2")
	email("b", "1")
	// A value goes from a deleted document to a new one.
	err = db.Transact(ctx, func(tx *client.Tx) error {
		c := tx.Collection("users")
		return errors.Join(c.Insert("d", D{"email": "3"}), c.Delete("c"))
	})
	if err != nil {
		t.Fatal(err)
	}
	email("d", "3")
	// One value for two, and one that another holds.
	err = db.Transact(ctx, func(tx *client.Tx) error {
		c := tx.Collection("users")
		return errors.Join(c.Insert("e", D{"email": "9"}), c.Insert("f", D{"email": "9"}))
	})
	wantDuplicate(t, err, `users/f: email "9" is given to e by the same transaction`)
	err = db.Transact(ctx, func(tx *client.Tx) error {
		c := tx.Collection("users")
		return errors.Join(c.Insert("e", D{"email": "9"}), c.Insert("f", D{"email": "3"}))
	})
	wantDuplicate(t, err, `users/f: email "3" is held by d`)
	// What does not touch the field needs no read; what fails, fails as ever.
	err = db.Transact(ctx, func(tx *client.Tx) error { return tx.Collection("users").Insert("a", D{"email": "7"}) })
	if !errors.Is(err, client.ErrAlreadyExists) {
		t.Errorf("an insert of what exists: %v", err)
	}
	err = db.Transact(ctx, func(tx *client.Tx) error {
		return tx.Collection("users").Update("d", client.D{})
	})
	if err == nil {
		t.Error("an update without operators")
	}
	if n := checkEntries(t, d.Nodes(), "users"); n != 3 {
		t.Errorf("%d entries", n)
	}
}

// Many clients, through all nodes, want few values for few documents, by single
// writes and by transactions, and some of them under one request ID twice.
func TestUniqueConcurrently(t *testing.T) {
	d := startDev(t, t.TempDir(), 3)
	defer stopDev(t, d)
	db := dial(t, d)
	createUnique(t, db, "users", "email", "team,nr")
	type D = client.D
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()

	t.Run("insert", func(t *testing.T) {
		for round := range 10 {
			var wg sync.WaitGroup
			errs := make([]error, 9)
			for i := range errs {
				node, err := client.Dial(ctx, "idb://"+d.Addrs()[i%3])
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { node.Close() })
				wg.Go(func() {
					_, errs[i] = node.Collection("users").Insert(ctx, fmt.Sprintf("r%d-%d", round, i), D{"email": round})
				})
			}
			wg.Wait()
			winner := -1
			for i, err := range errs {
				if err == nil && winner >= 0 {
					t.Errorf("round %d: %d and %d both have it", round, winner, i)
				} else if err == nil {
					winner = i
				}
			}
			for i, err := range errs {
				if i != winner {
					wantDuplicate(t, err, fmt.Sprintf("held by r%d-%d", round, winner))
				}
			}
		}
	})

	uniqueWorkers(ctx, t, db)
	if n := checkEntries(t, d.Nodes(), "users"); n == 0 {
		t.Error("nothing was held at the end")
	}
}

// TestUniqueLosesNode: in its middle one of three nodes, which leads,
// coordinates and is asked, is gone from one moment to the next.
func TestUniqueLosesNode(t *testing.T) {
	d := startDev(t, t.TempDir(), 3)
	lost, left := d.Nodes()[1], []*Node{d.Nodes()[0], d.Nodes()[2]}
	defer func() {
		for _, n := range left {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
	}()
	db := dial(t, d)
	createUnique(t, db, "users", "email", "team,nr")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	closed := make(chan error, 1)
	go func() {
		<-time.After(time.Second)
		closed <- lost.Close()
	}()
	uniqueWorkers(ctx, t, db)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if n := checkEntries(t, left, "users"); n == 0 {
		t.Error("nothing was held at the end")
	}
}

// uniqueWorkers write users for a while.
func uniqueWorkers(ctx context.Context, t *testing.T, db *client.DB) {
	t.Helper()
	type D = client.D
	end := time.Now().Add(4 * time.Second)
	var wg sync.WaitGroup
	for w := range 8 {
		rng := rand.New(rand.NewPCG(uint64(w), 2))
		c := db.Collection("users")
		wg.Go(func() {
			for time.Now().Before(end) {
				id := func() string { return fmt.Sprint("d", rng.IntN(8)) }
				value := func() D {
					return D{"email": fmt.Sprint("e", rng.IntN(6)), "team": rng.IntN(2), "nr": rng.IntN(3)}
				}
				var err error
				switch rng.IntN(6) {
				case 0:
					_, err = c.Put(ctx, id(), value())
				case 1:
					_, err = c.Upsert(ctx, id(), client.Set("email", fmt.Sprint("e", rng.IntN(6))))
				case 2:
					_, err = c.Delete(ctx, id())
				case 3:
					_, err = c.Restore(ctx, id(), uint64(1+rng.IntN(20)))
				case 4:
					// The same write twice at once: one effect, one answer.
					request, target, v := db.NewRequestID(), id(), value()
					var again client.Result
					var errAgain error
					done := make(chan struct{})
					go func() {
						defer close(done)
						again, errAgain = c.Put(ctx, target, v, client.WithRequestID(request))
					}()
					first, errFirst := c.Put(ctx, target, v, client.WithRequestID(request))
					<-done
					if err = errFirst; fmt.Sprint(errFirst) != fmt.Sprint(errAgain) || first.Version != again.Version || err == nil && first.Duplicate == again.Duplicate {
						t.Errorf("one write, two answers: %+v, %v and %+v, %v", first, errFirst, again, errAgain)
					}
				case 5:
					a, b := id(), id()
					if a == b {
						continue
					}
					err = db.Transact(ctx, func(tx *client.Tx) error {
						return errors.Join(tx.Collection("users").Put(a, value()), tx.Collection("users").Upsert(b, client.Set("email", fmt.Sprint("e", rng.IntN(6)))))
					})
				}
				switch {
				case err == nil, errors.Is(err, client.ErrDuplicate), errors.Is(err, client.ErrNotFound), errors.Is(err, client.ErrVersionNotFound):
				default:
					t.Errorf("worker %d: %v", w, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
