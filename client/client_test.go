package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

type user struct {
	ID      string `idb:"_id,omitempty"`
	Name    string `idb:"name"`
	Visits  int64  `idb:"visits"`
	Version uint64 `idb:"_version,omitempty"`
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestWriteAndRead(t *testing.T) {
	c := newCluster(t, 3, 2)
	db := c.dial(t)
	users := db.Collection("users")
	ctx := t.Context()

	r := must(users.Put(ctx, "u1", user{Name: "Ada"}))(t)
	if !r.Created || r.Version != 1 || r.Timestamp == 0 || r.CreatedAt != r.Timestamp || r.Cost.Docs != 1 {
		t.Fatalf("put: %+v", r)
	}
	// Every form of input is the same document.
	raw := must(doc.Marshal(client.D{"name": "Bob", "visits": 2}))(t)
	for id, in := range map[string]any{
		"map": client.D{"name": "Bob", "visits": 2}, "raw": raw,
		"json": json.RawMessage(`{"visits":2,"name":"Bob"}`), "struct": &user{Name: "Bob", Visits: 2},
	} {
		must(users.Insert(ctx, id, in))(t)
		d := must(users.Get(ctx, id))(t)
		if !d.Body().Equal(raw) {
			t.Errorf("%s: stored %s", id, d.Body())
		}
	}
	// What was read can be written back under its own ID.
	d := must(users.Get(ctx, "u1"))(t)
	must(users.Put(ctx, "", json.RawMessage(d.JSON())))(t)
	got := must(client.Get[user](ctx, users, "u1"))(t)
	if got != (user{ID: "u1", Name: "Ada", Version: 2}) {
		t.Errorf("decoded %+v", got)
	}
	m := must(must(users.Get(ctx, "u1"))(t).Map())(t)
	if m["_id"] != "u1" || m["name"] != "Ada" {
		t.Errorf("map %v", m)
	}
}

func TestConditions(t *testing.T) {
	c := newCluster(t, 3, 2)
	db := c.dial(t)
	users := db.Collection("users")
	ctx := t.Context()
	must(users.Put(ctx, "u1", client.D{"n": 1}))(t)
	must(users.Put(ctx, "u1", client.D{"n": 2}))(t)
	must(users.Put(ctx, "text", client.D{"n": "one"}))(t)

	for _, tc := range []struct {
		name    string
		do      func() error
		want    error
		version uint64
		message string
	}{
		{"insert of what exists", func() error { _, err := users.Insert(ctx, "u1", client.D{}); return err }, client.ErrAlreadyExists, 2, "users/u1"},
		{"if absent", func() error { _, err := users.Put(ctx, "u1", client.D{}, client.IfAbsent()); return err }, client.ErrConflict, 2, "users/u1"},
		{"if version", func() error { _, err := users.Put(ctx, "u1", client.D{}, client.IfVersion(1)); return err }, client.ErrVersionConflict, 2, "version is 2, the write expected 1"},
		{"update of nothing", func() error { _, err := users.Update(ctx, "no", client.Inc("n", 1)); return err }, client.ErrNotFound, 0, "users/no"},
		{"if present", func() error { _, err := users.Put(ctx, "no", client.D{}, client.IfPresent()); return err }, client.ErrNotFound, 0, ""},
		{"delete of nothing", func() error { _, err := users.Delete(ctx, "no"); return err }, client.ErrNotFound, 0, ""},
		{"get of nothing", func() error { _, err := users.Get(ctx, "no"); return err }, client.ErrNotFound, 0, ""},
		{"get of no version", func() error { _, err := users.Get(ctx, "u1", client.AtVersion(9)); return err }, client.ErrVersionNotFound, 0, ""},
		{"get of no collection", func() error { _, err := db.Collection("usres").Get(ctx, "u1"); return err }, client.ErrCollectionNotFound, 0, "usres"},
		{"inc of a text", func() error { _, err := users.Update(ctx, "text", client.Inc("n", 1)); return err }, client.ErrUpdateFailed, 1, ""},
		{"restore of no version", func() error { _, err := users.Restore(ctx, "u1", 7); return err }, client.ErrVersionNotFound, 2, ""},
		{"empty ID", func() error { _, err := users.Put(ctx, "", client.D{}); return err }, client.ErrBadRequest, 0, "give one"},
		{"long ID", func() error { _, err := users.Get(ctx, strings.Repeat("x", 513)); return err }, client.ErrBadRequest, 0, "512"},
		{"ID that is not text", func() error { _, err := users.Get(ctx, "\xff"); return err }, client.ErrBadRequest, 0, "UTF-8"},
		{"two IDs", func() error { _, err := users.Put(ctx, "a", client.D{"_id": "b"}); return err }, client.ErrBadRequest, 0, `"b"`},
		{"reserved name", func() error { _, err := users.Put(ctx, "a", client.D{"_x": 1}); return err }, client.ErrBadRequest, 0, "users/a"},
		{"not a document", func() error { _, err := users.Put(ctx, "a", 7); return err }, client.ErrBadRequest, 0, "users/a"},
		{"not a value", func() error { _, err := users.Put(ctx, "a", client.D{"f": func() {}}); return err }, client.ErrBadRequest, 0, "users/a"},
		{"bad JSON", func() error { _, err := users.Put(ctx, "a", json.RawMessage(`{"a":`)); return err }, client.ErrBadRequest, 0, "users/a"},
		{"bytes", func() error { _, err := users.Put(ctx, "a", []byte(`{}`)); return err }, client.ErrBadRequest, 0, "json.RawMessage"},
		{"no operators", func() error { _, err := users.Update(ctx, "a", 7); return err }, client.ErrBadRequest, 0, "$set"},
		{"no collection name", func() error { _, err := db.Collection("").Get(ctx, "a"); return err }, client.ErrBadRequest, 0, "name"},
	} {
		err := tc.do()
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v is not %v", tc.name, err, tc.want)
			continue
		}
		var e *client.Error
		if !errors.As(err, &e) || e.Version != tc.version || !strings.Contains(err.Error(), tc.message) {
			t.Errorf("%s: %+v", tc.name, e)
		}
		if errors.Is(err, client.ErrOutcomeUnknown) || errors.Is(err, client.ErrUnavailable) {
			t.Errorf("%s: %v claims more than it should", tc.name, err)
		}
	}
	if r := must(users.Upsert(ctx, "new", client.Inc("n", 5).Set("a", "b"), client.ReturnDoc()))(t); !r.Created || r.Doc.String() == "" || string(r.Doc.Body().JSON()) != `{"a":"b","n":5}` {
		t.Errorf("upsert: %+v %s", r, r.Doc)
	}
	if r := must(users.Delete(ctx, "u1", client.IfVersion(2)))(t); r.Version != 3 {
		t.Errorf("delete: %+v", r)
	}
	if ok := must(users.Exists(ctx, "u1"))(t); ok {
		t.Error("exists after delete")
	}
	if r := must(users.Restore(ctx, "u1", 1))(t); r.Version != 4 {
		t.Errorf("restore: %+v", r)
	}
	if ok := must(users.Exists(ctx, "u1"))(t); !ok {
		t.Error("gone after restore")
	}
	versions := must(client.Collect(users.History(ctx, "u1", client.PageSize(2))))(t)
	var seen []string
	for _, v := range versions {
		seen = append(seen, fmt.Sprintf("%d%t", v.Version, v.Deleted))
	}
	if got := strings.Join(seen, " "); got != "4false 3true 2false 1false" {
		t.Errorf("history: %s", got)
	}
	if versions = must(client.Collect(users.History(ctx, "u1", client.Limit(1), client.Before(3))))(t); len(versions) != 1 || versions[0].Version != 2 {
		t.Errorf("limited history: %v", versions)
	}
	if d := must(users.Get(ctx, "u1", client.AtTimestamp(versions[0].UpdatedAt)))(t); d.Version != 2 {
		t.Errorf("at time: %v", d)
	}
}

func TestGetMany(t *testing.T) {
	c := newCluster(t, 3, 3)
	db := c.dial(t)
	users := db.Collection("users")
	var ids []string
	for i := range 700 {
		id := fmt.Sprintf("u%03d", i)
		ids = append(ids, id)
		if i%10 != 3 {
			must(users.Put(t.Context(), id, client.D{"i": i}))(t)
		}
	}
	var cost client.Cost
	docs := must(users.GetMany(t.Context(), ids, client.CostTo(&cost)))(t)
	for i, d := range docs {
		if (d == nil) != (i%10 == 3) || d != nil && d.ID != ids[i] {
			t.Fatalf("%s: %v", ids[i], d)
		}
	}
	if cost.Docs != 700 {
		t.Errorf("cost %+v", cost)
	}
	// What has no room in an answer comes with another; what has none at all is
	// an error.
	c.room.Store(100)
	for i, d := range must(users.GetMany(t.Context(), ids))(t) {
		if (d == nil) != (i%10 == 3) || d != nil && d.ID != ids[i] {
			t.Fatalf("little room: %s: %v", ids[i], d)
		}
	}
	c.room.Store(1)
	if _, err := users.GetMany(t.Context(), ids); !errors.Is(err, client.ErrTooLarge) {
		t.Errorf("no room: %v", err)
	}
	c.room.Store(0)
	if docs := must(users.GetMany(t.Context(), nil))(t); len(docs) != 0 {
		t.Errorf("nothing asked: %v", docs)
	}
	if _, err := db.Collection("none").GetMany(t.Context(), ids); !errors.Is(err, client.ErrCollectionNotFound) {
		t.Errorf("no collection: %v", err)
	}
}

// What one node leads is asked for in one request, however many groups it is of;
// after one of the groups has moved, only what is its is asked for again.
func TestGetManyByNode(t *testing.T) {
	c := newCluster(t, 2, 4) // n1 leads g1 and g3
	db := c.dial(t)
	docs := db.Collection("docs")
	var ids []string
	byGroup := make(map[uint32]int)
	for i := range 28 {
		ids = append(ids, fmt.Sprintf("d%02d", i))
		byGroup[c.owners[wire.Partition("docs", "", ids[i], testPartitions)]]++
		must(docs.Put(t.Context(), ids[i], client.D{"i": i}))(t)
	}
	var mu sync.Mutex
	var asked []string // node and how many IDs
	var refusal *wire.Error
	c.faults(func(n *server, r *wire.Request) fault {
		var q wire.GetRequest
		if err := wire.Decode(slices.Clone(r.Body), &q); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, fmt.Sprintf("%s %d", n.id, len(q.IDs)))
		e := refusal
		refusal = nil
		return fault{refuse: e}
	})
	get := func(what string, want ...string) {
		t.Helper()
		asked = nil
		for i, d := range must(docs.GetMany(t.Context(), ids))(t) {
			if d == nil || d.ID != ids[i] {
				t.Errorf("%s: %s: %v", what, ids[i], d)
			}
		}
		slices.Sort(asked)
		slices.Sort(want)
		if !slices.Equal(asked, want) {
			t.Errorf("%s: requests %q, want %q", what, asked, want)
		}
	}
	of := func(node string, groups ...uint32) string {
		n := 0
		for _, g := range groups {
			n += byGroup[g]
		}
		return fmt.Sprintf("%s %d", node, n)
	}
	get("two leaders", of("n1", 1, 3), of("n2", 2, 4))
	// Asked group by group, the old leader is asked for it alone, and names the new one.
	c.lead(3, "n2")
	get("g3 has moved", of("n1", 1, 3), of("n2", 2, 4), of("n1", 3), of("n2", 3))
	get("and is known to have", of("n1", 1), of("n2", 2, 3, 4))
	c.lead(1, "n2")
	get("g1 has moved", of("n1", 1), of("n2", 2, 3, 4), of("n2", 1))
	get("all at one node", of("n2", 1, 2, 3, 4))
	mu.Lock()
	refusal = &wire.Error{Code: wire.CodeOverloaded, Message: "too much to do"}
	mu.Unlock()
	get("too much to do", of("n2", 1, 2, 3, 4), of("n2", 1, 2, 3, 4))
	// The map is another.
	c.mu.Lock()
	c.epoch++
	for p, g := range c.owners {
		c.owners[p] = 5 - g
	}
	c.mu.Unlock()
	for i, d := range must(docs.GetMany(t.Context(), ids))(t) {
		if d == nil || d.ID != ids[i] {
			t.Errorf("new map: %s: %v", ids[i], d)
		}
	}
	get("new map", of("n2", 1, 2, 3, 4))
}

func TestScan(t *testing.T) {
	c := newCluster(t, 3, 2)
	db := c.dial(t)
	users := db.Collection("users")
	ctx := t.Context()
	var all []string
	for i := range 25 {
		id := fmt.Sprintf("a/%02d", i)
		all = append(all, id)
		must(users.Put(ctx, id, client.D{"i": i}))(t)
	}
	must(users.Put(ctx, "b/1", client.D{}))(t)
	ids := func(opts ...client.ReadOption) []string {
		t.Helper()
		var ids []string
		for d, err := range users.Scan(ctx, opts...) {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, d.ID)
		}
		return ids
	}
	backwards := slices.Clone(all)
	slices.Reverse(backwards)
	for _, tc := range []struct {
		name string
		opts []client.ReadOption
		want []string
	}{
		{"all", nil, append(slices.Clone(all), "b/1")},
		{"prefix", []client.ReadOption{client.Prefix("a/")}, all},
		{"pages", []client.ReadOption{client.Prefix("a/"), client.PageSize(4)}, all},
		{"limit", []client.ReadOption{client.PageSize(4), client.Limit(10)}, all[:10]},
		{"limit of a whole page", []client.ReadOption{client.PageSize(5), client.Limit(5)}, all[:5]},
		{"reverse", []client.ReadOption{client.Prefix("a/"), client.Reverse(), client.PageSize(7)}, backwards},
		{"nothing", []client.ReadOption{client.Prefix("zz")}, nil},
	} {
		if got := ids(tc.opts...); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v", tc.name, got)
		}
	}

	// The cursor goes on with the snapshot it began with, in another client.
	it := users.Iterator(client.PageSize(10))
	for range 10 {
		if !it.Next(ctx) {
			t.Fatal(it.Err())
		}
	}
	cursor := it.Cursor()
	must(users.Put(ctx, "a/10x", client.D{}))(t)
	var rest []string
	other := c.dial(t).Collection("users").Iterator(client.FromCursor(cursor), client.PageSize(4))
	for other.Next(ctx) {
		rest = append(rest, other.Document().ID)
	}
	if want := append(slices.Clone(all[10:]), "b/1"); other.Err() != nil || !slices.Equal(rest, want) || !other.Done() || other.Timestamp() != it.Timestamp() {
		t.Errorf("rest: %v, %v", rest, other.Err())
	}
	// In the middle of a page, the cursor is the page's beginning.
	it = users.Iterator(client.PageSize(10))
	for range 13 {
		it.Next(ctx)
	}
	again := users.Iterator(client.FromCursor(it.Cursor()), client.Limit(1))
	if again.Next(ctx); again.Document().ID != all[10] {
		t.Errorf("cursor of a page in use begins at %v", again.Document())
	}
	// A loop that is left early leaves nothing behind (see also TestNoLeak).
	for d, err := range client.Scan[user](ctx, users, client.PageSize(2)) {
		if err != nil || d.ID != "a/00" {
			t.Errorf("typed scan: %v %v", d, err)
		}
		break
	}
	if n := must(users.Count(ctx))(t); n != 27 {
		t.Errorf("count %d", n)
	}
	if n := must(users.Count(ctx, client.Prefix("a/1")))(t); n != 11 {
		t.Errorf("count of a prefix %d", n)
	}
	for _, err := range db.Collection("none").Scan(ctx) {
		if !errors.Is(err, client.ErrCollectionNotFound) {
			t.Errorf("scan of no collection: %v", err)
		}
	}
}

func TestBulk(t *testing.T) {
	c := newCluster(t, 3, 3)
	db := c.dial(t)
	users, orders := db.Collection("users"), db.Collection("orders")
	ctx := t.Context()
	b := db.Bulk()
	for i := range 1000 {
		b.Put(users, fmt.Sprintf("u%d", i), client.D{"i": i})
	}
	b.Insert(orders, "o1", client.D{"n": 1})
	res := must(b.Do(ctx))(t)
	if len(res.Items) != 1001 || res.Cost.Docs != 1001 || res.Items[7].ID != "u7" || !res.Items[1000].Created {
		t.Fatalf("bulk: %d items, cost %+v", len(res.Items), res.Cost)
	}

	mixed := func(b *client.Bulk) *client.Bulk {
		b.Update(users, "u1", client.Inc("i", 1))
		b.Insert(orders, "o1", client.D{})       // exists
		b.Put(users, "u2", client.D{"_id": "x"}) // cannot be sent
		b.Delete(users, "u3")
		b.Restore(users, "u1", 1)
		return b
	}
	want := func(name string, res *client.BulkResult, err error, errs ...error) {
		t.Helper()
		var be *client.BulkError
		if !errors.As(err, &be) || be.First != 1 || be.Unknown != 0 {
			t.Fatalf("%s: %v", name, err)
		}
		failed := 0
		for i, e := range errs {
			if got := res.Items[i].Err; !errors.Is(got, e) {
				t.Errorf("%s: item %d: %v is not %v", name, i, got, e)
			}
			if e != nil {
				failed++
			}
		}
		if be.Failed != failed || !errors.Is(err, client.ErrAlreadyExists) {
			t.Errorf("%s: %v", name, err)
		}
	}
	res, err := mixed(db.Bulk()).Do(ctx)
	want("unordered", res, err, nil, client.ErrAlreadyExists, client.ErrBadRequest, nil, nil)
	must(users.Put(ctx, "u3", client.D{}))(t)
	res, err = mixed(db.OrderedBulk()).Do(ctx)
	want("ordered", res, err, nil, client.ErrAlreadyExists, client.ErrNotAttempted, client.ErrNotAttempted, client.ErrNotAttempted)
	if ok := must(users.Exists(ctx, "u3"))(t); !ok {
		t.Error("an ordered bulk went on after a failure")
	}
	if res, err := db.Bulk().Do(ctx); err != nil || len(res.Items) != 0 {
		t.Errorf("empty bulk: %v %v", res, err)
	}
	// Ordered means ordered, also for one document.
	o := db.OrderedBulk()
	for i := range 600 {
		o.Upsert(users, fmt.Sprintf("chain%d", i%3), client.Set("last", i))
	}
	must(o.Do(ctx))(t)
	for i := range 3 {
		d := must(users.Get(ctx, fmt.Sprintf("chain%d", i)))(t)
		if last, _ := d.Get("last"); last.String() != fmt.Sprint(597+i) {
			t.Errorf("chain%d ends with %s", i, last)
		}
	}
}

func TestCatalog(t *testing.T) {
	c := newCluster(t, 3, 2)
	db := c.dial(t)
	ctx := t.Context()
	sep := client.CollectionOptions{Separator: "/"}
	info := must(db.CreateCollection(ctx, "orders", sep))(t)
	if !info.Options.Equal(sep) {
		t.Errorf("%+v", info)
	}
	must(db.CreateCollection(ctx, "orders", sep))(t)
	if _, err := db.CreateCollection(ctx, "orders", client.CollectionOptions{}); !errors.Is(err, client.ErrConflict) {
		t.Errorf("other options: %v", err)
	}
	must(db.Collection("users").Put(ctx, "u", client.D{}))(t)
	c.behind.Store(true)
	list := must(db.Collections(ctx))(t)
	if len(list) != 2 || list[0].Name != "orders" || list[1].Name != "users" {
		t.Errorf("%+v", list)
	}
	must(db.DescribeCollection(ctx, "users"))(t)
	c.behind.Store(false)
	must(db.DescribeCollection(ctx, "orders"))(t)
	if _, err := db.DescribeCollection(ctx, "nope"); !errors.Is(err, client.ErrCollectionNotFound) || !strings.Contains(err.Error(), "orders, users") {
		t.Errorf("describe: %v", err)
	}
	if err := db.DropCollection(ctx, "orders"); err != nil {
		t.Error(err)
	}
	if err := db.DropCollection(ctx, "orders"); !errors.Is(err, client.ErrCollectionNotFound) {
		t.Errorf("dropped twice: %v", err)
	}
	must(db.SetSettings(ctx, client.Settings{ExplicitCollections: true}))(t)
	if s := must(db.Settings(ctx))(t); !s.ExplicitCollections {
		t.Error("setting is lost")
	}
	if placed := must(db.SetLeaders(ctx, client.LeadersTogether))(t); placed.Leaders != client.LeadersTogether {
		t.Errorf("leaders should be %s", placed.Leaders)
	}
	if _, err := db.Collection("implicit").Put(ctx, "a", client.D{}); !errors.Is(err, client.ErrCollectionNotFound) {
		t.Errorf("explicit collections: %v", err)
	}
	if err := db.Ping(ctx); err == nil {
		must(db.Status(ctx))(t)
		must(db.NodeStatus(ctx))(t)
	} else {
		t.Error(err)
	}
}

// A request goes straight to its leader: after the first to each group no
// server refuses any.
func TestRouting(t *testing.T) {
	c := newCluster(t, 3, 3)
	db := c.dial(t)
	users := db.Collection("users")
	must(users.Put(t.Context(), "first", client.D{}))(t)
	waitFor(t, "the catalog", func() bool {
		_, err := users.Put(t.Context(), "first", client.D{})
		return err == nil
	})
	for i := range 50 {
		must(users.Put(t.Context(), fmt.Sprint(i), client.D{}))(t)
	}
	before := db.Stats()
	for i := range 200 {
		must(users.Get(t.Context(), fmt.Sprint(i%50)))(t)
	}
	after := db.Stats()
	if sent := after.Attempts - before.Attempts; sent != 200 {
		t.Errorf("%d attempts for 200 reads", sent)
	}
	if after.Nodes != 3 || after.Connected != 3 {
		t.Errorf("%+v", after)
	}
}

// waitFor waits until a condition holds.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("no sign of " + what)
		}
	}
}

// renumber is another client that has dropped a collection and made it anew; the
// first client has not heard of it yet.
func renumber(c *cluster, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.collections {
		if c.collections[i].Name == name {
			c.collections[i].ID += 1000
		}
	}
}

// A write follows the name to a collection that was made anew, unless an attempt
// may have arrived at the old one.
func TestNumberGone(t *testing.T) {
	c := newCluster(t, 3, 2)
	db := c.dial(t)
	ctx := t.Context()
	users := db.Collection("users")
	must(users.Put(ctx, "a", client.D{}))(t)

	renumber(c, "users")
	must(users.Insert(ctx, "b", client.D{}))(t)
	for i := range 4 {
		ordered := i%2 == 1
		c.itemwise.Store(i >= 2)
		renumber(c, "users")
		b := db.Bulk()
		if ordered {
			b = db.OrderedBulk()
		}
		for i := range 40 {
			b.Put(users, fmt.Sprint("k", i), client.D{"ordered": ordered})
		}
		if res, err := b.Do(ctx); err != nil {
			t.Errorf("ordered %v: %v, %+v", ordered, err, res)
		}
	}
	c.itemwise.Store(false)

	var cuts atomic.Int64
	cuts.Store(1)
	c.faults(func(n *server, r *wire.Request) fault {
		if r.Kind == wire.KindWrite && cuts.Add(-1) >= 0 {
			renumber(c, "users")
			return fault{cut: true}
		}
		return fault{}
	})
	_, err := users.Insert(ctx, "lost", client.D{})
	if !errors.Is(err, client.ErrOutcomeUnknown) {
		t.Errorf("an attempt was lost and the collection is gone: %v", err)
	}
	if _, err := users.Get(ctx, "lost"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("a write came to the collection that was made anew: %v", err)
	}
	if _, err := users.Insert(ctx, "lost", client.D{}, client.RetryOf(err)); err != nil && !errors.Is(err, client.ErrOutcomeUnknown) {
		t.Error(err)
	}
	cuts.Store(1)
	b := db.Bulk()
	b.Put(users, "lost2", client.D{})
	res, err := b.Do(ctx)
	if !errors.Is(err, client.ErrOutcomeUnknown) {
		t.Errorf("in a bulk: %v, %+v", err, res)
	}

	// Somebody drops it whenever it was looked up.
	c.faults(func(n *server, r *wire.Request) fault {
		if r.Kind == wire.KindWrite {
			renumber(c, "users")
		}
		return fault{}
	})
	if _, err := users.Insert(ctx, "never", client.D{}); !errors.Is(err, client.ErrCollectionNotFound) {
		t.Errorf("a collection that is always made anew: %v", err)
	}
	for _, itemwise := range []bool{false, true} {
		c.itemwise.Store(itemwise)
		b = db.OrderedBulk()
		b.Put(users, "never", client.D{})
		b.Put(users, "never2", client.D{})
		if _, err := b.Do(ctx); !errors.Is(err, client.ErrCollectionNotFound) {
			t.Errorf("in a bulk: %v", err)
		}
	}
}

// The creation by a first write is one request, however often it is sent, and
// another one once it was answered and the collection is gone again.
func TestFirstWriteCreatesOnce(t *testing.T) {
	c := newCluster(t, 3, 2)
	db := c.dial(t)
	ctx := t.Context()
	ids := map[wire.RequestID]int{}
	var mu sync.Mutex
	var lose, drop atomic.Int64
	c.faults(func(n *server, r *wire.Request) fault {
		switch r.Kind {
		case wire.KindCreateCollection:
			var q wire.CreateCollectionRequest
			if err := wire.Decode(r.Body, &q); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			ids[q.RequestID]++
			if lose.Add(-1) >= 0 {
				return fault{cut: true, effect: true}
			}
		case wire.KindWrite:
			if drop.Add(-1) >= 0 {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.collections = nil
			}
		}
		return fault{}
	})
	sent := func() (n []int) {
		mu.Lock()
		defer mu.Unlock()
		for _, k := range ids {
			n = append(n, k)
		}
		clear(ids)
		slices.Sort(n)
		return n
	}
	lose.Store(2)
	must(db.Collection("a").Put(ctx, "x", client.D{}))(t)
	if got := sent(); !slices.Equal(got, []int{3}) {
		t.Errorf("with two lost answers the creation was sent %v times", got)
	}
	drop.Store(2)
	must(db.Collection("b").Put(ctx, "x", client.D{}))(t)
	if got := sent(); !slices.Equal(got, []int{1, 1, 1}) {
		t.Errorf("dropped twice before the write came, the creations were sent %v times", got)
	}
	id := db.NewRequestID()
	must(db.Collection("c").Put(ctx, "x", client.D{}, client.WithRequestID(id)))(t)
	c.mu.Lock()
	c.collections = nil
	c.mu.Unlock()
	other := c.dial(t)
	if _, err := other.Collection("c").Put(ctx, "x", client.D{}, client.Repeat(id)); !errors.Is(err, client.ErrOutcomeUnknown) {
		t.Errorf("a repeat of what created a collection that is gone: %v", err)
	}
	if got := sent(); !slices.Equal(got, []int{2}) {
		t.Errorf("the creations of a write and its repeat were sent %v times", got)
	}
	if _, ok := c.find("c"); ok {
		t.Error("the repeat has created the collection again")
	}
	must(db.SetSettings(ctx, client.Settings{ExplicitCollections: true}))(t)
	lose.Store(1)
	if _, err := db.Collection("d").Put(ctx, "x", client.D{}); !errors.Is(err, client.ErrCollectionNotFound) {
		t.Errorf("refused by the settings, after a lost answer: %v", err)
	}
	if _, err := db.Collection("d").Update(ctx, "x", client.Set("a", 1), client.Repeat(db.NewRequestID())); !errors.Is(err, client.ErrOutcomeUnknown) {
		t.Errorf("a repeat in a collection that does not exist: %v", err)
	}
}

// TestTxBesideAWrongClock: a node whose clock is an hour ahead greets the
// client. Transactions read at the time of the others.
func TestTxBesideAWrongClock(t *testing.T) {
	for _, scans := range []bool{false, true} {
		c := newCluster(t, 3, 2)
		c.wrong.Store(int64(time.Hour.Milliseconds()) << 16)
		db := c.dial(t)
		ctx := t.Context()
		must(db.Collection("users").Put(ctx, "u1", user{Name: "Ada"}))(t)
		tx := db.Begin(client.ReadOnly())
		n := 0
		if scans {
			for _, err := range tx.Collection("users").Scan(ctx) {
				if n++; err != nil {
					t.Fatal(err)
				}
			}
		} else if _, err := tx.Collection("users").Get(ctx, "u1"); err != nil {
			t.Fatal(err)
		} else {
			n++
		}
		now := client.Timestamp(c.store.now())
		if d := tx.Timestamp().Time().Sub(now.Time()); n != 1 || d > time.Second {
			t.Errorf("%d documents were read at a time %v ahead", n, d)
		}
		if d := db.Now().Time().Sub(now.Time()); d > time.Second {
			t.Errorf("the client still believes the wrong clock: %v ahead", d)
		}
		// A time that somebody asked for is what is read, or refused.
		var e *client.Error
		_, err := db.Begin(client.TxAt(now.Add(time.Hour))).Collection("users").Get(ctx, "u1")
		if !errors.As(err, &e) || e.Code != 109 || !errors.Is(err, client.ErrBadRequest) {
			t.Errorf("a time in the future: %v", err)
		}
	}
}

// TestTxAtAWrongTime: what a transaction has read was served by a node whose
// clock is ahead; another refuses to read at that time. The transaction is to be
// run again, by Transact or by whoever began it.
func TestTxAtAWrongTime(t *testing.T) {
	c := newCluster(t, 3, 2)
	db := c.dial(t)
	ctx := t.Context()
	must(db.Collection("users").Put(ctx, "u1", user{Name: "Ada"}))(t)
	must(db.Collection("users").Put(ctx, "u2", user{Name: "Eve"}))(t)
	scan := func(tx *client.Tx) (err error) {
		for _, err = range tx.Collection("users").Scan(ctx) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	get := func(tx *client.Tx) error {
		_, err := tx.Collection("users").Get(ctx, "u2")
		return err
	}
	enough := errors.New("enough") // the nodes of this test commit nothing
	for name, second := range map[string]func(*client.Tx) error{"get": get, "scan": scan} {
		var refusals atomic.Int64
		c.faults(func(_ *server, r *wire.Request) fault {
			if (r.Kind == wire.KindGet || r.Kind == wire.KindScan) && refusals.Add(-1) >= 0 {
				return fault{refuse: &wire.Error{Code: wire.CodeFutureTime, Message: "in the future", Version: uint64(c.store.now())}}
			}
			return fault{}
		})
		tx := db.Begin(client.ReadOnly())
		must(tx.Collection("users").Get(ctx, "u1"))(t)
		refusals.Store(1)
		if err := second(tx); !errors.Is(err, client.ErrTxAborted) || errors.Is(err, client.ErrBadRequest) || !strings.Contains(err.Error(), "run it again") {
			t.Errorf("%s: %v", name, err)
		}
		runs := 0
		err := db.Transact(ctx, func(tx *client.Tx) error {
			if _, err := tx.Collection("users").Get(ctx, "u1"); err != nil {
				return err
			}
			if runs++; runs == 1 {
				refusals.Store(1)
				return second(tx)
			}
			return enough
		})
		if runs != 2 || !errors.Is(err, enough) {
			t.Errorf("%s: run %d times: %v", name, runs, err)
		}
	}
}

// The clock follows refusals too.
func TestRefusalMovesClock(t *testing.T) {
	c := newCluster(t, 1, 1)
	db := c.dial(t)
	ctx := t.Context()
	must(db.Collection("users").Put(ctx, "a", client.D{}))(t)
	ahead := db.Now().Add(time.Hour)
	c.faults(func(n *server, r *wire.Request) fault {
		return fault{refuse: &wire.Error{Code: wire.CodeVersionConflict, Message: "no", Now: uint64(ahead)}}
	})
	if _, err := db.Collection("users").Put(ctx, "a", client.D{}); !errors.Is(err, client.ErrVersionConflict) {
		t.Error(err)
	}
	if now := db.Now(); now < ahead {
		t.Errorf("the clock is at %v, the refusal was at %v", now, ahead)
	}
}

// TestTxReadsWhatItsCollectionDemands: whether a collection has unique fields
// is asked with its number. A node whose catalog is older than the collection
// does not make a transaction one that the servers refuse.
func TestTxReadsWhatItsCollectionDemands(t *testing.T) {
	for _, lagging := range []bool{false, true} {
		t.Run(fmt.Sprint("lagging ", lagging), func(t *testing.T) {
			c := newCluster(t, 2, 2)
			c.commits = make(chan wire.CommitRequest, 1)
			c.lagging.Store(lagging)
			db := c.dial(t)
			c.ensure("users", wire.CollectionOptions{Unique: []wire.Unique{{Fields: []string{"email"}}}})
			tx := db.Begin()
			if err := tx.Collection("users").Put("ada", client.D{"email": "ada@x"}); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			q := <-c.commits
			if len(q.Collections) != 1 || len(q.Collections[0].Reads) != 1 || q.Collections[0].Reads[0].ID != "ada" {
				t.Errorf("it does not say what it depends on: %+v", q.Collections)
			}
		})
	}
}
