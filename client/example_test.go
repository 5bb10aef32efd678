package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
)

// exampleDB stands for client.Dial(ctx, "idb://127.0.0.1:7400").
func exampleDB() (*client.DB, func()) {
	t := &exampleT{}
	c := newCluster(t, 1, 1)
	db, err := client.Dial(context.Background(), c.url())
	if err != nil {
		log.Fatal(err)
	}
	return db, func() { _ = db.Close(); t.end() }
}

func Example() {
	ctx := context.Background()
	db, done := exampleDB()
	defer done()

	type City struct {
		ID         string `idb:"_id,omitempty"`
		Name       string `idb:"name"`
		Population int64  `idb:"population"`
	}
	cities := db.Collection("cities")
	for _, c := range []City{{"ch/zurich", "Zürich", 434_000}, {"ch/bern", "Bern", 134_000}, {"it/rome", "Roma", 2_761_000}} {
		if _, err := cities.Put(ctx, c.ID, c); err != nil {
			log.Fatal(err)
		}
	}
	bern, err := client.Get[City](ctx, cities, "ch/bern")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(bern.Name, bern.Population)

	for c, err := range client.Scan[City](ctx, cities, client.Prefix("ch/")) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(c.ID)
	}
	// Output:
	// Bern 134000
	// ch/bern
	// ch/zurich
}

// Read, change and write back, again and again until nobody was in between.
func ExampleIfVersion() {
	ctx := context.Background()
	db, done := exampleDB()
	defer done()
	accounts := db.Collection("accounts")
	if _, err := accounts.Put(ctx, "a1", client.D{"balance": 100}); err != nil {
		log.Fatal(err)
	}
	for {
		d, err := accounts.Get(ctx, "a1")
		if err != nil {
			log.Fatal(err)
		}
		var account struct {
			Balance int64 `idb:"balance"`
		}
		if err := d.Decode(&account); err != nil {
			log.Fatal(err)
		}
		account.Balance -= 30
		r, err := accounts.Put(ctx, "a1", account, client.IfVersion(d.Version))
		if errors.Is(err, client.ErrVersionConflict) {
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("balance", account.Balance, "version", r.Version)
		return
	}
	// Output: balance 70 version 2
}

func ExampleCollection_Update() {
	ctx := context.Background()
	db, done := exampleDB()
	defer done()
	users := db.Collection("users")
	r, err := users.Upsert(ctx, "u17", client.Set("name", "Ada").Inc("visits", 1), client.ReturnDoc())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(r.Created, r.Doc.Body())

	_, err = users.Update(ctx, "u18", client.Inc("visits", 1))
	fmt.Println(errors.Is(err, client.ErrNotFound))
	// Output:
	// true {"name":"Ada","visits":1}
	// true
}

// Every write of a bulk has a result of its own.
func ExampleBulk() {
	ctx := context.Background()
	db, done := exampleDB()
	defer done()
	users := db.Collection("users")
	b := db.Bulk()
	b.Insert(users, "u1", client.D{"name": "Ada"})
	b.Insert(users, "u2", client.D{"name": "Bob"})
	b.Delete(users, "u3")
	res, err := b.Do(ctx)
	fmt.Println(err)
	for _, item := range res.Items {
		fmt.Println(item.ID, item.Version, item.Err)
	}
	// Output:
	// bulk: 1 of 3 writes failed; the first is number 2: users/u3: not found
	// u1 1 <nil>
	// u2 1 <nil>
	// u3 0 users/u3: not found
}

// The time was up and nobody knows what became of the write: the same write
// under the same request ID finds out, and never does it twice.
func ExampleRetryOf() {
	ctx := context.Background()
	db, done := exampleDB()
	defer done()
	counters := db.Collection("counters")

	brief, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := counters.Upsert(brief, "c", client.Inc("n", 1))
	if errors.Is(err, client.ErrOutcomeUnknown) {
		_, err = counters.Upsert(ctx, "c", client.Inc("n", 1), client.RetryOf(err))
	}
	fmt.Println(err)
	// Output: <nil>
}

// A scan that another process goes on with.
func ExampleIterator() {
	ctx := context.Background()
	db, done := exampleDB()
	defer done()
	docs := db.Collection("docs")
	for _, id := range []string{"a", "b", "c", "d"} {
		if _, err := docs.Put(ctx, id, client.D{}); err != nil {
			log.Fatal(err)
		}
	}
	it := docs.Iterator(client.PageSize(2))
	for range 2 {
		it.Next(ctx)
		fmt.Println(it.Document().ID)
	}
	cursor := it.Cursor() // keep it anywhere

	rest := docs.Iterator(client.FromCursor(cursor))
	for rest.Next(ctx) {
		fmt.Println("later", rest.Document().ID)
	}
	fmt.Println(rest.Err())
	// Output:
	// a
	// b
	// later c
	// later d
	// <nil>
}

// exampleT lets examples use the tests' cluster.
type exampleT struct {
	testing.TB
	cleanups []func()
}

func (t *exampleT) Helper()           {}
func (t *exampleT) Fatal(args ...any) { log.Fatal(args...) }
func (t *exampleT) Cleanup(f func())  { t.cleanups = append(t.cleanups, f) }
func (t *exampleT) end() {
	for _, f := range t.cleanups {
		f()
	}
}
