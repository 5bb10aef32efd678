package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// LoadOptions shape a load. Zero means the default in every field.
type LoadOptions struct {
	// Clients work on shared documents with every operation; a quarter as many
	// create documents once and as many again increment one counter. Zero means 8.
	Clients int
	// Documents are shared at a time. Fewer mean more conflicts. Zero means 6.
	Documents int
	// PerDocument is after how many operations a shared document is left for a
	// fresh one: the judge's work grows fast with it. Zero means 400.
	PerDocument int
	// Patience is how long one operation may take, retries included. Shorter
	// leaves more outcomes unknown. Zero means 20s.
	Patience time.Duration
	// Pace is how long a client thinks between two operations. Zero: not at all.
	Pace time.Duration
	// Seed makes the choices; zero means 1.
	Seed uint64
}

func (o LoadOptions) withDefaults() LoadOptions {
	if o.Clients == 0 {
		o.Clients = 8
	}
	if o.Documents == 0 {
		o.Documents = 6
	}
	if o.PerDocument == 0 {
		o.PerDocument = 400
	}
	if o.Patience == 0 {
		o.Patience = 20 * time.Second
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	return o
}

// The collections of a load.
const (
	sharedCollection  = "shared"
	onceCollection    = "once"
	counterCollection = "counters"
	counterID         = "counter"
)

// body is a document of the load.
type body struct {
	Value string `idb:"v"`
	Count int64  `idb:"n"`
}

// Load is what the clients do and what they were told.
type Load struct {
	url  string
	o    LoadOptions
	dbs  []*client.DB
	ends chan struct{} // closed to end the clients
	wg   sync.WaitGroup

	recorder *history.Recorder
	set      *history.Set
	counter  *history.Counter
	acked    atomic.Int64 // operations that were answered, reads included
	slots    []slot

	mu   sync.Mutex
	odd  []error         // guarded by mu; errors that no fault explains
	keys map[string]bool // guarded by mu; shared documents that were used
}

// slot is a place for a shared document: which one it is changes with use.
type slot struct{ uses atomic.Int64 }

// StartLoad connects and starts the clients. Stop must be called.
func StartLoad(ctx context.Context, url string, o LoadOptions) (*Load, error) {
	l := &Load{
		url: url, o: o.withDefaults(), ends: make(chan struct{}),
		recorder: history.NewRecorder(), set: history.NewSet(), counter: history.NewCounter(),
		keys: map[string]bool{},
	}
	l.slots = make([]slot, l.o.Documents)
	// Several connections of their own, so that clients meet different nodes.
	for range 3 {
		db, err := client.Dial(ctx, url)
		if err != nil {
			l.closeAll()
			return nil, err
		}
		l.dbs = append(l.dbs, db)
	}
	side := max(1, l.o.Clients/4)
	for i := range l.o.Clients + 2*side {
		work := l.shared
		switch {
		case i >= l.o.Clients+side:
			work = l.increment
		case i >= l.o.Clients:
			work = l.create
		}
		rng := rand.New(rand.NewPCG(l.o.Seed, uint64(i)))
		db := l.dbs[i%len(l.dbs)]
		l.wg.Add(1)
		go func() {
			defer l.wg.Done()
			l.client(i, rng, work(i, db, rng))
		}()
	}
	return l, nil
}

// client runs one step after the other until the load ends.
func (l *Load) client(id int, rng *rand.Rand, step func(ctx context.Context) history.Outcome) {
	for {
		select {
		case <-l.ends:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), l.o.Patience)
		outcome := step(ctx)
		cancel()
		if outcome != history.Refused && outcome != history.Unknown {
			l.acked.Add(1)
		}
		if l.o.Pace > 0 {
			t := time.NewTimer(time.Duration(rng.Int64N(int64(2 * l.o.Pace))))
			select {
			case <-t.C:
			case <-l.ends:
				t.Stop()
			}
		}
	}
}

// Answered is how many operations were answered so far.
func (l *Load) Answered() int64 { return l.acked.Load() }

// Progress waits until that many more operations were answered.
func (l *Load) Progress(ctx context.Context, operations int) error {
	from := l.acked.Load()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		done := l.acked.Load() - from
		if done >= int64(operations) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d operations were answered: %w", done, operations, ctx.Err())
		}
	}
}

// Stop ends the clients after their operations under way and closes their
// connections.
func (l *Load) Stop() {
	close(l.ends)
	l.wg.Wait()
	l.closeAll()
}

func (l *Load) closeAll() {
	for _, db := range l.dbs {
		db.Close()
	}
	l.dbs = nil
}

// shared is one client on the shared documents.
func (l *Load) shared(id int, db *client.DB, rng *rand.Rand) func(context.Context) history.Outcome {
	c := db.Collection(sharedCollection)
	seen := map[string]uint64{} // versions this client saw last
	writes := 0
	return func(ctx context.Context) history.Outcome {
		in := history.Input{Key: l.document(rng.IntN(len(l.slots)))}
		known := seen[in.Key]
		if len(seen) > 4*len(l.slots) {
			clear(seen)
		}
		switch n := rng.IntN(100); {
		case n < 35:
			in.Verb = history.Get
		case n < 55:
			in.Verb = history.Put
		case n < 65:
			in.Verb = history.Insert
		case n < 80:
			in.Verb = history.Add
		case n < 92:
			in.Verb = history.AddOrCreate
		default:
			in.Verb = history.Delete
		}
		if in.Verb != history.Get && in.Verb != history.Delete {
			writes++
			in.Value = fmt.Sprintf("c%d-%d", id, writes)
		}
		if in.Verb == history.Add || in.Verb == history.AddOrCreate {
			in.Add = int64(rng.IntN(9)) - 4
		}
		switch in.Verb {
		case history.Put, history.Add, history.Delete:
			switch rng.IntN(5) {
			case 0, 1:
				in.IfVersion = known
			case 2:
				in.IfPresent = true
			}
		}
		if in.Verb == history.Put && in.IfVersion == 0 && !in.IfPresent {
			in.IfAbsent = rng.IntN(4) == 0
		}
		p := l.recorder.Begin(id, in)
		out := l.do(ctx, c, in)
		p.End(out)
		if out.Version != 0 {
			seen[in.Key] = out.Version
		}
		return out.Outcome
	}
}

// document is the shared document in a slot: a new one after enough uses.
func (l *Load) document(i int) string {
	use := l.slots[i].uses.Add(1) - 1
	key := fmt.Sprintf("d%d-%d", i, use/int64(l.o.PerDocument))
	if use%int64(l.o.PerDocument) == 0 {
		l.mu.Lock()
		l.keys[key] = true
		l.mu.Unlock()
	}
	return key
}

// do asks the database and puts its answer into the history's words.
func (l *Load) do(ctx context.Context, c *client.Collection, in history.Input, options ...client.WriteOption) history.Output {
	var r client.Result
	var err error
	if in.IfVersion != 0 {
		options = append(options, client.IfVersion(in.IfVersion))
	}
	if in.IfAbsent {
		options = append(options, client.IfAbsent())
	}
	if in.IfPresent {
		options = append(options, client.IfPresent())
	}
	change := map[string]any{
		"$set": map[string]any{"v": in.Value},
		"$inc": map[string]any{"n": in.Add},
	}
	switch in.Verb {
	case history.Get:
		doc, err := c.Get(ctx, in.Key)
		if err != nil {
			return l.refusal(in, err)
		}
		return l.read(in, doc)
	case history.Put:
		r, err = c.Put(ctx, in.Key, body{Value: in.Value}, options...)
	case history.Insert:
		r, err = c.Insert(ctx, in.Key, body{Value: in.Value}, options...)
	case history.Add:
		r, err = c.Update(ctx, in.Key, change, append(options, client.ReturnDoc())...)
	case history.AddOrCreate:
		r, err = c.Upsert(ctx, in.Key, change, append(options, client.ReturnDoc())...)
	case history.Delete:
		r, err = c.Delete(ctx, in.Key, options...)
	}
	if err != nil {
		return l.refusal(in, err)
	}
	out := history.Output{Outcome: history.Done, Version: r.Version}
	if in.Verb == history.Add || in.Verb == history.AddOrCreate {
		var b body
		if err := r.Doc.Decode(&b); err != nil {
			l.report(fmt.Errorf("%s %s: the returned document: %w", in.Verb, in.Key, err))
			return out
		}
		out.Document, out.Value, out.Count = true, b.Value, b.Count
	}
	return out
}

func (l *Load) read(in history.Input, doc *client.Document) history.Output {
	var b body
	if err := doc.Decode(&b); err != nil {
		l.report(fmt.Errorf("get %s: %w", in.Key, err))
		return history.Output{Outcome: history.Unknown}
	}
	return history.Output{Outcome: history.Done, Version: doc.Version, Document: true, Value: b.Value, Count: b.Count}
}

// refusal puts an error into the history's words. What the client calls a
// refusal is held against it: a refused operation must leave no trace.
func (l *Load) refusal(in history.Input, err error) history.Output {
	out := history.Output{Outcome: history.Unknown, Reason: err.Error()}
	var e *client.Error
	if !errors.As(err, &e) {
		l.report(fmt.Errorf("%s %s: %w", in.Verb, in.Key, err))
		return out
	}
	switch {
	case e.Code == wire.CodeNotFound:
		out.Outcome = history.Missing
	case e.Code == wire.CodeVersionConflict:
		out.Outcome, out.Version = history.Conflict, e.Version
	case e.Code == wire.CodeAlreadyExists:
		out.Outcome, out.Version = history.Exists, e.Version
	case e.Code == wire.CodeCollectionNotFound && (in.Verb == history.Get || in.Verb == history.Add || in.Verb == history.Delete):
		out.Outcome = history.Missing // nobody has created the collection yet
	case e.Code.Unknown():
	case e.Code.Retryable():
		out.Outcome = history.Refused
	default:
		// No fault of the run explains any other answer.
		l.report(fmt.Errorf("%s %s: %w (code %d)", in.Verb, in.Key, err, e.Code))
		if e.Code < 600 {
			out.Outcome = history.Refused
		}
	}
	return out
}

// report notes what should never happen, whatever the faults.
func (l *Load) report(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.odd) < 20 {
		l.odd = append(l.odd, err)
	}
}

// create is one client that creates documents, each once.
func (l *Load) create(id int, db *client.DB, rng *rand.Rand) func(context.Context) history.Outcome {
	c := db.Collection(onceCollection)
	n := 0
	return func(ctx context.Context) history.Outcome {
		n++
		element := fmt.Sprintf("e%d-%06d", id, n)
		in := history.Input{Key: element, Verb: history.Insert, Value: element}
		l.set.Added(element, history.Unknown) // until there is an answer
		outcome := l.do(ctx, c, in).Outcome
		l.set.Added(element, outcome)
		return outcome
	}
}

// increment is one client of the counter. It keeps its request IDs: an unknown
// outcome is asked for again under the same one, and so are some that are
// known, by another connection, which must get the first answer.
func (l *Load) increment(_ int, db *client.DB, rng *rand.Rand) func(context.Context) history.Outcome {
	in := history.Input{Key: counterID, Verb: history.AddOrCreate, Add: 1, Value: "counted"}
	return func(ctx context.Context) history.Outcome {
		id := client.WithRequestID(db.NewRequestID())
		out := l.do(ctx, db.Collection(counterCollection), in, id)
		if out.Outcome == history.Unknown || out.Outcome == history.Done && rng.IntN(4) == 0 {
			again, cancel := context.WithTimeout(context.Background(), l.o.Patience)
			defer cancel()
			other := l.dbs[rng.IntN(len(l.dbs))]
			second := l.do(again, other.Collection(counterCollection), in, id)
			switch {
			case out.Outcome == history.Unknown:
				// That the repeat was not done says nothing about the first.
				if second.Outcome != history.Refused {
					out = second
				}
			case second.Outcome == history.Done && second != out:
				l.report(fmt.Errorf("one increment, two answers: %+v, then %+v", out, second))
			case second.Outcome != history.Done && second.Outcome != history.Unknown && second.Outcome != history.Refused:
				l.report(fmt.Errorf("an increment that was done was refused when asked again: %+v", second))
			}
		}
		l.counter.Incremented(out.Outcome, out.Count)
		return out.Outcome
	}
}
