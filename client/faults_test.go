package client_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
)

// mischief is a source of random faults.
type mischief struct {
	mu  sync.Mutex
	rng *rand.Rand
	c   *cluster
}

func (m *mischief) fault(_ *server, r *wire.Request) fault {
	m.mu.Lock()
	defer m.mu.Unlock()
	refuse := func(code wire.Code) *wire.Error {
		return &wire.Error{Code: code, Message: fmt.Sprintf("mischief %d", code), RetryAfterMillis: uint32(m.rng.IntN(5))}
	}
	later := time.Duration(1+m.rng.IntN(30)) * time.Millisecond
	switch m.rng.IntN(120) {
	case 0:
		e := refuse(wire.CodeNotLeader)
		e.Leader = "n" + strconv.Itoa(m.rng.IntN(5)) // some do not exist
		return fault{refuse: e}
	case 1:
		e := refuse(wire.CodeStaleEpoch)
		e.Epoch = uint64(m.rng.IntN(3))
		return fault{refuse: e}
	case 2:
		codes := []wire.Code{wire.CodeUnavailable, wire.CodeOverloaded, wire.CodeTimeout, wire.CodeShuttingDown, wire.CodeTooManyRequests}
		return fault{refuse: refuse(codes[m.rng.IntN(len(codes))])}
	case 3:
		return fault{refuse: refuse(wire.CodeOutcomeUnknown)}
	case 4:
		return fault{refuse: refuse(wire.CodeOutcomeUnknown), effect: true}
	case 5:
		return fault{refuse: refuse(wire.CodeOutcomeUnknown), later: later}
	case 6:
		return fault{cut: true}
	case 7:
		return fault{cut: true, effect: true}
	case 8:
		return fault{cut: true, later: later}
	case 9:
		return fault{garbage: true}
	case 10:
		return fault{refuse: refuse(wire.CodeInternal), effect: true}
	case 11:
		return fault{refuse: refuse(wire.CodeDiskFull)}
	case 12:
		if m.rng.IntN(3) == 0 {
			return fault{hang: true, effect: true}
		}
	case 13:
		// The map moves.
		m.c.change(func() {
			m.c.epoch++
			for i := range m.c.owners {
				m.c.owners[i] = uint32(m.rng.IntN(len(m.c.leaders))) + 1
			}
		})
	case 14:
		m.c.lead(uint32(m.rng.IntN(3))+1, "n"+strconv.Itoa(m.rng.IntN(3)+1))
	}
	return fault{}
}

// Whatever goes wrong, a write takes effect at most once, one that was
// acknowledged did, and one that is said not to have been done was not.
func TestExactlyOnce(t *testing.T) {
	seeds := []uint64{1, 2, 3}
	if s := os.Getenv("IDB_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{n}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			c := newCluster(t, 3, 3)
			db := c.dial(t)
			counters := db.Collection("counters")
			m := &mischief{rng: rand.New(rand.NewPCG(seed, 7)), c: c}
			c.faults(m.fault)

			const workers, rounds, keys = 24, 60, 8
			var mu sync.Mutex
			acked := make(map[string]int)
			var failed []*client.Error // of single increments and of bulk items
			ids := make(map[wire.RequestID]string)
			unknowns := 0
			note := func(key string, err error) {
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					acked[key]++
					return
				}
				var e *client.Error
				if !errors.As(err, &e) {
					t.Errorf("%T is no *client.Error: %v", err, err)
					return
				}
				failed = append(failed, e)
				ids[e.RequestID] = key
				if e.Unknown() {
					unknowns++
				}
			}
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() {
					for i := range rounds {
						ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
						key := "k" + strconv.Itoa((w+i)%keys)
						switch {
						case i%8 == 7:
							b := db.Bulk()
							if i%16 == 15 {
								b = db.OrderedBulk()
							}
							for k := range keys {
								b.Upsert(counters, "k"+strconv.Itoa(k), client.Inc("n", 1))
							}
							res, _ := b.Do(ctx)
							for k, item := range res.Items {
								note("k"+strconv.Itoa(k), item.Err)
							}
						case i%8 == 3:
							if _, err := counters.Get(ctx, key); errors.Is(err, client.ErrOutcomeUnknown) {
								t.Errorf("a read has no unknown outcome: %v", err)
							}
						default:
							_, err := counters.Upsert(ctx, key, client.Inc("n", 1))
							if err != nil && errors.Is(err, client.ErrOutcomeUnknown) && i%2 == 0 {
								// The caller goes on with it under the same ID.
								more, cancel := context.WithTimeout(t.Context(), 5*time.Second)
								_, err = counters.Upsert(more, key, client.Inc("n", 1), client.RetryOf(err))
								cancel()
							}
							note(key, err)
						}
						cancel()
					}
				})
			}
			wg.Wait()
			stats := db.Stats()
			c.quiesce()

			want := acked
			for _, e := range failed {
				switch done := c.store.changed(e.RequestID); {
				case done && !e.Unknown():
					t.Errorf("said not to be done, but it was: %v", e)
				case done:
					want[ids[e.RequestID]]++
				}
			}
			for k := range keys {
				key := "k" + strconv.Itoa(k)
				if n := c.number("counters", key, "n"); n != strconv.Itoa(want[key]) {
					t.Errorf("%s is %s, acknowledged and found done are %d (run with IDB_TEST_SEED=%d)", key, n, want[key], seed)
				}
			}
			t.Logf("%d requests, %d attempts, %d failed, %d of them unknown", stats.Requests, stats.Attempts, len(failed), unknowns)
			if stats.Attempts < stats.Requests*11/10 || len(failed) == 0 {
				t.Error("the faults did not bite")
			}
		})
	}
}

// One fault at the first attempt, and what the caller sees.
func TestFaults(t *testing.T) {
	refuse := func(code wire.Code) fault { return fault{refuse: &wire.Error{Code: code, Message: "scripted"}} }
	with := func(f fault, effect bool) fault { f.effect = effect; return f }
	for _, tc := range []struct {
		name   string
		script []fault // of the first attempts; then everything works
		want   error   // of the increment; nil: done
		value  int     // of the counter in the end
		tries  int     // attempts of a refused one; a successful one may ask other nodes too
	}{
		{"nothing", nil, nil, 1, 1},
		{"unavailable", []fault{refuse(wire.CodeUnavailable)}, nil, 1, 2},
		{"not the leader, no hint", []fault{refuse(wire.CodeNotLeader)}, nil, 1, 0},
		{"overloaded twice", []fault{refuse(wire.CodeOverloaded), refuse(wire.CodeOverloaded)}, nil, 1, 3},
		{"unknown, not done", []fault{refuse(wire.CodeOutcomeUnknown)}, nil, 1, 2},
		{"unknown, done", []fault{with(refuse(wire.CodeOutcomeUnknown), true)}, nil, 1, 2},
		{"cut, not done", []fault{{cut: true}}, nil, 1, 2},
		{"cut, done", []fault{{cut: true, effect: true}}, nil, 1, 2},
		{"cut, done later", []fault{{cut: true, later: 20 * time.Millisecond}}, nil, 1, 2},
		{"unreadable, done", []fault{{garbage: true}}, nil, 1, 2},
		{"disk full", []fault{refuse(wire.CodeDiskFull)}, client.ErrDiskFull, 0, 1},
		{"disk full after a lost answer", []fault{{cut: true, effect: true}, refuse(wire.CodeDiskFull), refuse(wire.CodeDiskFull)}, nil, 1, 4},
		{"no collection after a lost answer", []fault{{cut: true, effect: true}, refuse(wire.CodeCollectionNotFound)}, client.ErrOutcomeUnknown, 1, 2},
		{"expired", []fault{refuse(wire.CodeOutcomeExpired)}, nil, 1, 2},
		{"expired again and again", slices.Repeat([]fault{refuse(wire.CodeOutcomeExpired)}, 9), client.ErrOutcomeExpired, 0, 4},
		{"expired after a lost answer", []fault{{cut: true, effect: true}, refuse(wire.CodeOutcomeExpired)}, client.ErrOutcomeUnknown, 1, 2},
		{"faults of the server", []fault{refuse(wire.CodeInternal), refuse(wire.CodeInternal), refuse(wire.CodeInternal)}, client.ErrOutcomeUnknown, 0, 3},
		{"bad request", []fault{refuse(wire.CodeBadUpdate)}, client.ErrBadRequest, 0, 1},
		{"refused in doubt", []fault{{cut: true}, refuse(wire.CodeVersionConflict)}, client.ErrVersionConflict, 0, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t, 3, 1)
			db := c.dial(t)
			docs := db.Collection("docs")
			must(docs.Put(t.Context(), "warm", client.D{}))(t)
			waitFor(t, "a direct way", func() bool {
				before := db.Stats().Attempts
				must(docs.Put(t.Context(), "warm", client.D{}))(t)
				return db.Stats().Attempts == before+1
			})
			var n atomic.Int64
			c.faults(func(*server, *wire.Request) fault {
				if k := int(n.Add(1)); k <= len(tc.script) {
					return tc.script[k-1]
				}
				return fault{}
			})
			before := db.Stats()
			_, err := docs.Upsert(t.Context(), "x", client.Inc("n", 1))
			tries := int(db.Stats().Attempts - before.Attempts)
			if (tc.want == nil) != (err == nil) || !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			if tries < tc.tries || tc.want != nil && tries != tc.tries || tries > 10 {
				t.Errorf("%d attempts, want %d", tries, tc.tries)
			}
			c.quiesce()
			value := c.number("docs", "x", "n")
			if value != strconv.Itoa(tc.value) {
				t.Errorf("the counter is %s, want %d", value, tc.value)
			}
		})
	}
}

// A write whose outcome is unknown can be repeated, and a refusal of the repeat
// that says nothing about the first time is not taken for its answer.
func TestRepeat(t *testing.T) {
	c := newCluster(t, 3, 1)
	db := c.dial(t)
	docs := db.Collection("docs")
	must(docs.Put(t.Context(), "x", client.D{}))(t)
	full := fault{refuse: &wire.Error{Code: wire.CodeDiskFull, Message: "disk full"}}
	brief := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 80*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	inc := func(ctx context.Context, opts ...client.WriteOption) (client.Result, error) {
		return docs.Upsert(ctx, "n", client.Inc("n", 1), opts...)
	}

	c.faults(func(*server, *wire.Request) fault { return fault{hang: true, effect: true} })
	_, first := inc(brief())
	if !errors.Is(first, client.ErrOutcomeUnknown) {
		t.Fatal(first)
	}
	c.faults(func(*server, *wire.Request) fault { return full })
	if _, err := inc(brief(), client.RetryOf(first)); !errors.Is(err, client.ErrOutcomeUnknown) || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("repeated on a full disk: %v", err)
	}
	if _, err := inc(brief()); !errors.Is(err, client.ErrDiskFull) {
		t.Errorf("a new write on a full disk: %v", err)
	}
	if _, err := inc(brief(), client.WithRequestID(db.NewRequestID())); !errors.Is(err, client.ErrDiskFull) {
		t.Errorf("a new write under an ID of the caller: %v", err)
	}
	b := db.Bulk()
	b.Upsert(docs, "n", client.Inc("n", 1), client.RetryOf(first))
	b.Upsert(docs, "m", client.Inc("n", 1))
	res, err := b.Do(brief())
	if err == nil || !errors.Is(res.Items[0].Err, client.ErrOutcomeUnknown) || !errors.Is(res.Items[1].Err, client.ErrDiskFull) {
		t.Errorf("in a bulk on a full disk: %v, %v", res.Items[0].Err, res.Items[1].Err)
	}

	c.faults(func(*server, *wire.Request) fault { return fault{} })
	if r, err := inc(t.Context(), client.RetryOf(first)); err != nil || !r.Duplicate || r.Version != 1 {
		t.Errorf("repeated: %+v, %v", r, err)
	}
	// An error that is no doubt is no reason to repeat anything.
	if r, err := inc(t.Context(), client.RetryOf(client.ErrNotFound)); err != nil || r.Duplicate || r.Version != 2 {
		t.Errorf("a new write: %+v, %v", r, err)
	}
}

// In a bulk, doubt about one write is that one's: the others have their answers.
func TestBulkInDoubt(t *testing.T) {
	for name, start := range map[string]func(*client.DB) *client.Bulk{"parallel": (*client.DB).Bulk, "ordered": (*client.DB).OrderedBulk} {
		c := newCluster(t, 1, 1)
		db := c.dial(t)
		docs := db.Collection("docs")
		must(docs.Put(t.Context(), "x", client.D{}))(t)
		lost := &wire.Error{Code: wire.CodeOutcomeUnknown, Message: "leadership was lost"}
		down := &wire.Error{Code: wire.CodeUnavailable, Message: "no majority"}
		skipped := &wire.Error{Code: wire.CodeNotAttempted, Message: "not attempted"}
		var n atomic.Int64
		c.faults(func(*server, *wire.Request) fault {
			switch n.Add(1) {
			case 1:
				if name == "ordered" {
					return fault{items: map[int]*wire.Error{1: lost, 2: skipped, 3: skipped}}
				}
				return fault{items: map[int]*wire.Error{1: lost}}
			default:
				return fault{refuse: down}
			}
		})
		b := start(db)
		for i := range 4 {
			b.Upsert(docs, strconv.Itoa(i), client.Inc("n", 1))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		res, err := b.Do(ctx)
		cancel()
		var be *client.BulkError
		if !errors.As(err, &be) || be.First != 1 || be.Unknown != 1 {
			t.Errorf("%s: %v", name, err)
		}
		for i, item := range res.Items {
			var want error
			switch {
			case i == 1:
				want = client.ErrOutcomeUnknown
			case i > 1 && name == "ordered":
				want = client.ErrNotAttempted
			}
			if (want == nil) != (item.Err == nil) || !errors.Is(item.Err, want) {
				t.Errorf("%s: item %d: %v", name, i, item.Err)
			}
		}
	}
}

// An ordered bulk whose first answer is lost, and which stops the second time
// where it need not have stopped before: what follows is in doubt too.
func TestOrderedBulkInDoubt(t *testing.T) {
	for _, tc := range []struct {
		stop wire.Code
		want error
	}{
		{wire.CodeOutcomeExpired, client.ErrOutcomeUnknown},
		{wire.CodeAlreadyExists, client.ErrNotAttempted},
	} {
		c := newCluster(t, 1, 1)
		db := c.dial(t)
		docs := db.Collection("docs")
		must(docs.Put(t.Context(), "x", client.D{}))(t)
		skipped := &wire.Error{Code: wire.CodeNotAttempted, Message: "not attempted"}
		var n atomic.Int64
		c.faults(func(_ *server, r *wire.Request) fault {
			switch {
			case r.Kind != wire.KindWrite:
				return fault{}
			case n.Add(1) == 1:
				return fault{effect: true, cut: true}
			}
			return fault{items: map[int]*wire.Error{0: {Code: tc.stop, Message: "stop"}, 1: skipped}}
		})
		b := db.OrderedBulk()
		b.Insert(docs, "0", client.D{})
		b.Insert(docs, "1", client.D{})
		res, err := b.Do(t.Context())
		if n.Load() != 2 || !errors.Is(res.Items[1].Err, tc.want) {
			t.Errorf("stopped by %d: after %d requests item 1 is %v (%v), want %v", tc.stop, n.Load(), res.Items[1].Err, err, tc.want)
		}
	}
}

// A group remembers no request IDs as old as those that this client makes: the
// group's clock is ahead of all that the client has heard of. Its refusals have
// the time, and the writes are done under IDs of that time; one whose ID is the
// caller's is refused.
func TestExpiredID(t *testing.T) {
	c := newCluster(t, 1, 1)
	db := c.dial(t)
	docs := db.Collection("docs")
	must(docs.Put(t.Context(), "x", client.D{}))(t)
	var ahead atomic.Uint64
	c.faults(func(_ *server, r *wire.Request) (f fault) {
		var req wire.WriteRequest
		if r.Kind != wire.KindWrite || wire.Decode(r.Body, &req) != nil {
			return f
		}
		for i := range req.Items {
			if req.Items[i].RequestID.Time < ahead.Load() {
				f.refuse = &wire.Error{Code: wire.CodeOutcomeExpired, Message: "older than what is remembered", Now: ahead.Load()}
				if len(req.Items) == 1 {
					return f
				}
				if f.items == nil {
					f.items = map[int]*wire.Error{}
				}
				f.items[i] = f.refuse
			}
		}
		f.refuse = nil
		return f
	})
	further := func() {
		ahead.Store(uint64(db.Now().Add(time.Hour)))
	}
	further()
	old := db.NewRequestID()
	if r, err := docs.Upsert(t.Context(), "n", client.Inc("n", 1)); err != nil || r.Version != 1 || r.Duplicate {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := docs.Upsert(t.Context(), "n", client.Inc("n", 1), client.WithRequestID(old)); !errors.Is(err, client.ErrOutcomeExpired) {
		t.Errorf("an ID of the caller's: %v", err)
	}
	if _, err := docs.Upsert(t.Context(), "n", client.Inc("n", 1), client.Repeat(old)); !errors.Is(err, client.ErrOutcomeUnknown) {
		t.Errorf("a repeat: %v", err)
	}
	must(docs.Upsert(t.Context(), "n", client.Inc("n", 1), client.WithRequestID(db.NewRequestID())))(t)
	if n := c.number("docs", "n", "n"); n != "2" {
		t.Errorf("two increments were done, the counter is %s", n)
	}
}

// What took the time is said, and where.
func TestWhereTheTimeWent(t *testing.T) {
	c := newCluster(t, 1, 1)
	db := c.dial(t)
	for _, tc := range []struct {
		name string
		slow wire.Kind
		time time.Duration
		want string
	}{
		{"look-up", wire.KindCollection, 60 * time.Millisecond, "put docs/x: not done; the time was up while its collection was looked up, after 1 attempt and "},
		{"creation", wire.KindCreateCollection, 60 * time.Millisecond, "the time was up while its collection was created, after 1 attempt and "},
		{"no time", 0, 0, "put docs/x: not done; the time was up while its collection was looked up, before anything was sent (safe to repeat)"},
	} {
		c.faults(func(_ *server, r *wire.Request) fault { return fault{hang: r.Kind == tc.slow} })
		ctx, cancel := context.WithTimeout(t.Context(), tc.time)
		_, err := db.Collection("docs").Put(ctx, "x", client.D{})
		cancel()
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	for _, n := range c.nodes {
		n.kill()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	_, err := db.Collection("docs").Put(ctx, "x", client.D{})
	if err == nil || !strings.Contains(err.Error(), "while its collection was looked up, ") || !strings.Contains(err.Error(), "; last: ") {
		t.Errorf("nobody there: %v", err)
	}
	t.Log(err)
}

// The same in a bulk, where some are done under their first ID.
func TestExpiredIDInBulk(t *testing.T) {
	for name, start := range map[string]func(*client.DB) *client.Bulk{"parallel": (*client.DB).Bulk, "ordered": (*client.DB).OrderedBulk} {
		c := newCluster(t, 1, 1)
		db := c.dial(t)
		docs := db.Collection("docs")
		must(docs.Put(t.Context(), "x", client.D{}))(t)
		old := &wire.Error{Code: wire.CodeOutcomeExpired, Message: "older than what is remembered"}
		skipped := &wire.Error{Code: wire.CodeNotAttempted, Message: "not attempted"}
		ids := map[string][]wire.RequestID{}
		var mu sync.Mutex
		c.faults(func(_ *server, r *wire.Request) fault {
			mu.Lock()
			defer mu.Unlock()
			var req wire.WriteRequest
			if r.Kind != wire.KindWrite || wire.Decode(r.Body, &req) != nil {
				return fault{}
			}
			first := len(ids) == 0
			for i := range req.Items {
				ids[req.Items[i].ID] = append(ids[req.Items[i].ID], req.Items[i].RequestID)
			}
			switch {
			case first && name == "ordered":
				return fault{items: map[int]*wire.Error{1: old, 2: skipped, 3: skipped}}
			case first:
				return fault{items: map[int]*wire.Error{1: old, 2: old}}
			}
			return fault{}
		})
		b := start(db)
		mine := db.NewRequestID()
		b.Upsert(docs, "0", client.Inc("n", 1))
		b.Upsert(docs, "1", client.Inc("n", 1))
		if name == "ordered" {
			b.Upsert(docs, "2", client.Inc("n", 1))
		} else {
			b.Upsert(docs, "2", client.Inc("n", 1), client.WithRequestID(mine))
		}
		b.Upsert(docs, "3", client.Inc("n", 1))
		res, err := b.Do(t.Context())
		mu.Lock()
		defer mu.Unlock()
		for i := range 4 {
			sent := ids[strconv.Itoa(i)]
			switch renamed := len(sent) == 2 && sent[0] != sent[1]; {
			case i == 1 && !renamed:
				t.Errorf("%s: it was refused for its ID, and sent under %v", name, sent)
			case i != 1 && renamed:
				t.Errorf("%s: item %d was sent under %v", name, i, sent)
			case i == 2 && name == "parallel":
				if !errors.Is(res.Items[i].Err, client.ErrOutcomeExpired) {
					t.Errorf("an ID of the caller's: %v", res.Items[i].Err)
				}
			case res.Items[i].Err != nil:
				t.Errorf("%s: item %d: %v (%v)", name, i, res.Items[i].Err, err)
			}
		}
	}
}

func TestCancel(t *testing.T) {
	c := newCluster(t, 3, 1)
	db := c.dial(t)
	docs := db.Collection("docs")
	must(docs.Put(t.Context(), "x", client.D{}))(t)
	arrived := make(chan struct{}, 10)
	c.faults(func(*server, *wire.Request) fault {
		arrived <- struct{}{}
		return fault{hang: true}
	})
	cancels := func() (n int64) {
		for _, s := range c.nodes {
			n += s.cancels.Load()
		}
		return n
	}
	for name, tc := range map[string]struct {
		do      func(ctx context.Context) error
		unknown bool
	}{
		"write": {func(ctx context.Context) error { _, err := docs.Put(ctx, "x", client.D{}); return err }, true},
		"read":  {func(ctx context.Context) error { _, err := docs.Get(ctx, "x"); return err }, false},
		"scan": {func(ctx context.Context) error {
			_, err := client.Collect(docs.Scan(ctx))
			return err
		}, false},
	} {
		before := cancels()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tc.do(ctx) }()
		<-arrived
		cancel()
		var err error
		select {
		case err = <-done:
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: does not end with its context", name)
		}
		if !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrOutcomeUnknown) != tc.unknown || errors.Is(err, client.ErrUnavailable) == tc.unknown {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.Contains(err.Error(), name[:3]) && name != "read" && name != "write" {
			t.Errorf("%s: message %v", name, err)
		}
		waitFor(t, "the cancellation at the server", func() bool { return cancels() > before })
	}
	// A context that has ended sends nothing.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := docs.Put(ctx, "x", client.D{}); errors.Is(err, client.ErrOutcomeUnknown) || !errors.Is(err, client.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
}

// An operation without a deadline ends all the same.
func TestDefaultTimeout(t *testing.T) {
	c := newCluster(t, 1, 1)
	db := c.dial(t, client.WithTimeout(100*time.Millisecond))
	docs := db.Collection("docs")
	must(docs.Put(context.Background(), "x", client.D{}))(t)
	c.faults(func(*server, *wire.Request) fault { return fault{hang: true} })
	began := time.Now()
	_, err := docs.Put(context.Background(), "x", client.D{})
	if !errors.Is(err, client.ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if _, err := docs.Get(ctx, "x"); !errors.Is(err, client.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a cancellable context: %v", err)
	}
}

// The leader dies; the first write follows the election at once, and the wait
// for it costs the living few requests, however many callers there are.
func TestDeadLeader(t *testing.T) {
	c := newCluster(t, 3, 1)
	db := c.dial(t)
	docs := db.Collection("docs")
	must(docs.Put(t.Context(), "x", client.D{}))(t)
	waitFor(t, "the leader's way", func() bool {
		must(docs.Put(t.Context(), "x", client.D{}))(t)
		return c.nodes[0].requests.Load() > 2
	})

	const callers = 300
	var writes atomic.Int64
	var elected atomic.Int64 // nanoseconds since the epoch
	var first atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range callers {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := docs.Upsert(t.Context(), "k"+strconv.Itoa(w), client.Inc("n", 1)); err != nil {
					t.Error(err)
					return
				}
				writes.Add(1)
				if elected.Load() != 0 {
					first.CompareAndSwap(0, time.Now().UnixNano())
				}
			}
		})
	}
	waitFor(t, "load", func() bool { return writes.Load() > callers })
	c.mu.Lock()
	c.leaders[1] = ""
	c.believed[1] = "n1"
	c.mu.Unlock()
	c.nodes[0].kill()
	before := c.nodes[1].requests.Load() + c.nodes[2].requests.Load()
	const election = 500 * time.Millisecond
	<-time.After(election)
	during := c.nodes[1].requests.Load() + c.nodes[2].requests.Load() - before
	c.mu.Lock()
	delete(c.believed, 1)
	elected.Store(time.Now().UnixNano())
	c.leaders[1] = "n3"
	c.mu.Unlock()
	waitFor(t, "a write after the election", func() bool { return first.Load() != 0 })
	gap := time.Duration(first.Load() - elected.Load())
	close(stop)
	wg.Wait()
	t.Logf("%d requests during an election of %s, the first write %s after it", during, election, gap)
	if during > 40 {
		t.Errorf("%d requests during an election", during)
	}
	if gap > 500*time.Millisecond {
		t.Errorf("the first write came %s after the election", gap)
	}
}

// A stopped leader keeps its sockets open. Its requests go elsewhere after a
// while of silence, and it is used again when it wakes up.
func TestStoppedLeader(t *testing.T) {
	c := newCluster(t, 3, 1)
	db := c.dial(t, client.WithSilence(100*time.Millisecond))
	docs := db.Collection("docs")
	must(docs.Put(t.Context(), "x", client.D{}))(t)
	waitFor(t, "the leader's way", func() bool {
		must(docs.Put(t.Context(), "x", client.D{}))(t)
		return c.nodes[0].requests.Load() > 2
	})
	c.nodes[0].l.pause()
	c.lead(1, "n2")
	began := time.Now()
	must(docs.Upsert(t.Context(), "x", client.Inc("n", 1)))(t)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("a stopped leader cost %s", took)
	}
	began = time.Now()
	for range 20 {
		must(docs.Upsert(t.Context(), "x", client.Inc("n", 1)))(t)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("a stopped node went on costing: %s", took)
	}
	c.nodes[0].l.resume()
	c.lead(1, "n1")
	before := c.nodes[0].requests.Load()
	waitFor(t, "the leader's return", func() bool {
		must(docs.Put(t.Context(), "y", client.D{}))(t)
		return c.nodes[0].requests.Load() > before+3
	})
	d := must(docs.Get(t.Context(), "x"))(t)
	if n, _ := d.Get("n"); n.String() != "21" {
		t.Errorf("21 increments made %s", n)
	}
}

// A leader that this client cannot reach is reached through another node.
func TestDetour(t *testing.T) {
	c := newCluster(t, 3, 1)
	var closed atomic.Bool
	closed.Store(true)
	db := c.dial(t, client.WithDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		if closed.Load() && addr == c.nodes[0].addr {
			return nil, errors.New("no route to host")
		}
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}))
	docs := db.Collection("docs")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for i := range 50 {
		must(docs.Put(ctx, strconv.Itoa(i), client.D{}))(t)
	}
	if n := c.nodes[0].requests.Load(); n != 0 {
		t.Errorf("%d requests reached the leader", n)
	}
	closed.Store(false)
	waitFor(t, "the direct way", func() bool {
		must(docs.Put(ctx, "x", client.D{}))(t)
		return c.nodes[0].requests.Load() > 0
	})
}

// All nodes die and come back.
func TestRestart(t *testing.T) {
	c := newCluster(t, 3, 2)
	db := c.dial(t)
	docs := db.Collection("docs")
	must(docs.Put(t.Context(), "x", client.D{}))(t)
	for _, n := range c.nodes {
		n.kill()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	_, err := docs.Get(ctx, "x")
	cancel()
	if !errors.Is(err, client.ErrUnavailable) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("%v", err)
	}
	for _, n := range c.nodes {
		n.restart(t)
	}
	began := time.Now()
	must(docs.Get(t.Context(), "x"))(t)
	must(docs.Put(t.Context(), "x", client.D{}))(t)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the first requests after the restart took %s", took)
	}
}

// The map moves: the first refusal brings the new one, for all.
func TestStaleEpoch(t *testing.T) {
	c := newCluster(t, 3, 2)
	db := c.dial(t)
	docs := db.Collection("docs")
	for i := range 50 {
		must(docs.Put(t.Context(), strconv.Itoa(i), client.D{}))(t)
	}
	c.mu.Lock() // not change: no poll is woken
	c.epoch++
	for i := range c.owners {
		c.owners[i] = 3 - c.owners[i]
	}
	c.mu.Unlock()
	before := db.Stats().Attempts
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if _, err := docs.Put(t.Context(), strconv.Itoa(i), client.D{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if extra := db.Stats().Attempts - before - 50; extra > 50 {
		t.Errorf("%d attempts too many", extra)
	}
	before = db.Stats().Attempts
	for i := range 50 {
		must(docs.Put(t.Context(), strconv.Itoa(i), client.D{}))(t)
	}
	if extra := db.Stats().Attempts - before - 50; extra != 0 {
		t.Errorf("%d refusals after the map was learned", extra)
	}
}

func TestNotInitialised(t *testing.T) {
	c := newCluster(t, 3, 2)
	c.mu.Lock()
	c.id = ""
	c.mu.Unlock()
	db := c.dial(t)
	began := time.Now()
	_, err := db.Collection("docs").Put(t.Context(), "x", client.D{})
	if !errors.Is(err, client.ErrNotInitialised) || errors.Is(err, client.ErrOutcomeUnknown) || time.Since(began) > 3*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	// The answer to the first attempt is lost; the second finds the cluster formed.
	var n atomic.Int64
	c.faults(func(*server, *wire.Request) fault { return fault{cut: n.Add(1) == 1, effect: true} })
	if s := must(db.InitCluster(t.Context(), client.InitRequest{}))(t); s.ClusterID != "c1" || !s.Resumed {
		t.Errorf("%+v", s)
	}
	if _, err := db.InitCluster(t.Context(), client.InitRequest{}); !errors.Is(err, client.ErrConflict) {
		t.Errorf("formed twice: %v", err)
	}
	must(db.Collection("docs").Put(t.Context(), "x", client.D{}))(t)
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	began := time.Now()
	_, err = client.Dial(t.Context(), addr, client.WithConnectTimeout(150*time.Millisecond))
	if !errors.Is(err, client.ErrUnavailable) || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
	c := newCluster(t, 1, 1)
	_, err = client.Dial(t.Context(), c.url()+"/?cluster=other")
	if !errors.Is(err, client.ErrWrongCluster) || !strings.Contains(err.Error(), "belongs to cluster c1") {
		t.Errorf("wrong cluster: %v", err)
	}
	// One dead address among the given is no matter.
	db := must(client.Dial(t.Context(), addr+","+c.nodes[0].addr))(t)
	must(db.Collection("docs").Put(t.Context(), "x", client.D{}))(t)
	_ = db.Close()
}

// After Close nothing of the client is left, whatever was under way.
func TestNoLeak(t *testing.T) {
	before := runtime.NumGoroutine()
	c := newCluster(t, 3, 2)
	for round := range 3 {
		db := must(client.Dial(t.Context(), c.url(), client.WithTimeout(time.Minute)))(t)
		docs := db.Collection("docs")
		for i := range 20 {
			must(docs.Put(context.Background(), strconv.Itoa(i), client.D{}))(t)
		}
		for range docs.Scan(context.Background(), client.PageSize(2)) {
			break
		}
		// A server begins four requests of each kind whatever it thinks of their
		// answers; more might wait for these.
		const each = 4
		hanging := make(chan struct{}, 100)
		c.faults(func(*server, *wire.Request) fault {
			hanging <- struct{}{}
			return fault{hang: true}
		})
		errs := make(chan error, 3*each)
		for i := range each {
			go func() { _, err := docs.Put(context.Background(), strconv.Itoa(i), client.D{}); errs <- err }()
			go func() { _, err := docs.Get(t.Context(), strconv.Itoa(i)); errs <- err }()
			go func() {
				_, err := client.Collect(docs.Scan(context.Background()))
				errs <- err
			}()
		}
		for range 3 * each {
			<-hanging
		}
		if round == 2 {
			c.nodes[0].kill() // keepers that dial in vain end as well
		}
		_ = db.Close()
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for _, f := range []string{"route.(*node).keeper", "route.(*Cluster).watch(", "route.(*Cluster).seek.func", "route.(*Cluster).hurry.func"} {
			if strings.Contains(string(stacks), f) {
				t.Errorf("%s runs on after Close", f)
			}
		}
		for range 3 * each {
			if err := <-errs; !errors.Is(err, client.ErrClosed) {
				t.Fatalf("after Close: %v", err)
			}
		}
		c.faults(func(*server, *wire.Request) fault { return fault{} })
		if _, err := docs.Get(t.Context(), "x"); !errors.Is(err, client.ErrClosed) {
			t.Errorf("used after Close: %v", err)
		}
		_ = db.Close()
	}
	for _, n := range c.nodes {
		n.kill()
	}
	defer func() {
		if t.Failed() {
			buf := make([]byte, 1<<20)
			t.Logf("%d goroutines before, now:\n%s", before, buf[:runtime.Stack(buf, true)])
		}
	}()
	waitFor(t, "the end of all goroutines", func() bool { return runtime.NumGoroutine() <= before })
}
