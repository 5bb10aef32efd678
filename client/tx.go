package client

import (
	"context"
	"errors"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/impossibledb/idb/client/route"
	"github.com/impossibledb/idb/client/wire"
)

// Bounds of a transaction: what it reads and writes is kept here until its
// commit, which is one request.
const (
	MaxTxItems = 10_000
	MaxTxBytes = 12 << 20
	// DefaultTxTimeout is how long a transaction may last from Begin.
	DefaultTxTimeout = 30 * time.Second
)

// TxOption is a wish of a transaction.
type TxOption func(*txConfig)

type txConfig struct {
	readOnly bool
	at       Timestamp
	timeout  time.Duration
	priority int
}

// ReadOnly promises that nothing is written. Such a transaction takes no lock
// and aborts nobody. It is strict: what it read was all current at one moment
// between its beginning and its end. If that changes before the end it is run
// again by Transact; the third attempt reads where nothing can change.
func ReadOnly() TxOption { return func(c *txConfig) { c.readOnly = true } }

// TxAt reads as of a timestamp, as far back as collections keep history. It
// implies ReadOnly, and there is nothing that could conflict.
func TxAt(ts Timestamp) TxOption {
	return func(c *txConfig) { c.readOnly, c.at = true, ts }
}

// TxTimeout is how long the transaction may last: an idle one gives up what it
// has locked when it is over, and its commit is refused. The default is 30s.
func TxTimeout(d time.Duration) TxOption { return func(c *txConfig) { c.timeout = d } }

// TxPriority makes the transaction older by so many seconds in the eyes of
// others that wait for the same documents; a negative one makes it younger.
func TxPriority(seconds int) TxOption { return func(c *txConfig) { c.priority = seconds } }

// Tx is a transaction. It reads at one timestamp and sees its own writes, which
// are kept here and sent with Commit: conditions of writes are looked at then.
// Everything takes effect at one instant if all that was read is still the
// newest, or not at all. It may be used by one goroutine at a time.
type Tx struct {
	db       *DB
	cfg      txConfig
	id       RequestID
	born     Timestamp
	attempt  uint32
	deadline time.Time
	careful  bool // documents that there were conflicts about are locked before they are read

	mu    sync.Mutex
	done  bool
	sent  bool           // a commit may have arrived: nothing can be added, and what became of it is asked
	atCut bool           // at is a cut's: nothing that is read there can have changed
	at    Timestamp      // what is read at; 0: nothing was yet
	began bool           // something was read at it
	colls keyed[*txColl] // by first use
	home  *txColl        // the first that was written
	items int
	bytes int
	// result is of the commit, once it was answered.
	result CommitResult
}

// txColl is what a transaction did in one collection.
type txColl struct {
	Collection
	reads  keyed[*Document] // nil: there was none
	ranges []wire.TxnRange
	writes keyed[*pendingDoc]
	locked []string
	// held are documents that were read when they were locked, before the
	// transaction had a timestamp, and until when they are known not to have
	// changed: a lock may be lost. See agreeLocked.
	held   map[string]Timestamp
	target *target // of the commit, the same in all its attempts
}

// pendingDoc is what a transaction does to a document.
type pendingDoc struct {
	id    string
	items []wire.WriteItem
	first [1]wire.WriteItem // the memory of items: most often there is one
	// value is what items make of the document, if it was asked for.
	known bool
	value *Document // nil: it does not exist then
}

// Begin starts a transaction that Commit or Rollback ends. Nobody is asked yet.
func (db *DB) Begin(opts ...TxOption) *Tx { return db.begin(0, 1, opts) }

func (db *DB) begin(born Timestamp, attempt uint32, opts []TxOption) *Tx {
	tx := &Tx{db: db, attempt: attempt}
	for _, o := range opts {
		o(&tx.cfg)
	}
	if tx.cfg.timeout <= 0 {
		tx.cfg.timeout = DefaultTxTimeout
	}
	tx.id = db.NewRequestID()
	tx.at = tx.cfg.at
	if tx.born = born; born == 0 {
		tx.born = Timestamp(tx.id.Time).Add(-time.Duration(tx.cfg.priority) * time.Second)
	}
	tx.deadline = time.Now().Add(tx.cfg.timeout)
	return tx
}

// Transact runs fn in a transaction and commits it. On a conflict (or because a
// node's clock is far ahead) it is rolled back and fn runs again, after a pause, until ctx ends (or, if ctx has no
// deadline, the client's timeout): fn must not keep anything of an earlier run.
// Documents that were in conflicts lately are locked when fn reads them, as
// GetForUpdate does, so that transactions that want the same take turns.
// An error of fn rolls back and is returned. ErrOutcomeUnknown is returned only
// if ctx ended while the commit was not decided.
func (db *DB) Transact(ctx context.Context, fn func(tx *Tx) error, opts ...TxOption) error {
	ctx, cancel := db.bound(ctx)
	if cancel != nil {
		defer cancel()
	}
	var born Timestamp
	var contested []rival
	renames := 0
	for attempt := uint32(1); ; attempt++ {
		tx := db.begin(born, attempt, opts)
		born, tx.careful = tx.born, true
		err := tx.lockAll(ctx, contested)
		ran := err == nil
		if ran {
			err = fn(tx)
		}
		late := false // the commit was refused for its ID, and not done
		if err == nil {
			if _, err = tx.Commit(ctx); errors.Is(err, ErrOutcomeExpired) && renames < maxRenames {
				renames++
				late = true
			}
		} else {
			tx.Rollback(ctx)
		}
		if err == nil || !errors.Is(err, ErrTxConflict) && !errors.Is(err, ErrTxAborted) && !late || errors.Is(err, ErrOutcomeUnknown) {
			return err
		}
		if ran {
			contested = tx.contested()
		}
		db.rivals.note(contested, time.Now())
		// Pauses grow, and differ, so that rivals do not meet again.
		most := time.Millisecond << min(attempt, 7)
		t := time.NewTimer(time.Duration(mathrand.Int64N(int64(most))) + time.Millisecond/4)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// ID names the transaction, as its rivals are told.
func (tx *Tx) ID() RequestID { return tx.id }

// Timestamp is what the transaction reads at; 0 before its first read.
func (tx *Tx) Timestamp() Timestamp {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	return tx.at
}

// Collection is a collection in the transaction.
func (tx *Tx) Collection(name string) *TxCollection { return &TxCollection{tx: tx, name: name} }

// collLocked finds or makes the record of a collection.
func (tx *Tx) collLocked(name string) *txColl {
	c, ok := tx.colls.get(name)
	if !ok {
		c = &txColl{Collection: Collection{db: tx.db, name: name}}
		tx.colls.add(name, c)
	}
	return c
}

// usableLocked refuses what comes after the end.
func (tx *Tx) usableLocked(op, collection, id string) *Error {
	switch {
	case tx.done || tx.sent && op != "commit":
		e := refused(wire.CodeBadRequest, op, collection, id, "the transaction was committed or rolled back before")
		e.causes = []error{ErrTxDone}
		return e
	case !tx.sent && time.Now().After(tx.deadline):
		return refused(wire.CodeTxnAborted, op, collection, id, "the transaction has lasted longer than %s (run it again, or give it more time with TxTimeout)", tx.cfg.timeout)
	}
	return nil
}

// growLocked counts what is added and refuses what is too much, which is then
// not part of the transaction.
func (tx *Tx) growLocked(op, collection, id string, bytes int) *Error {
	switch {
	case tx.items+1 > MaxTxItems:
		return refused(wire.CodeTooManyItems, op, collection, id, "the transaction has %d documents and ranges already, which is the most (split it)", MaxTxItems)
	case tx.bytes+bytes > MaxTxBytes:
		return refused(wire.CodeFrameTooLarge, op, collection, id, "the transaction would have %d bytes, at most %d are possible (split it)", tx.bytes+bytes, MaxTxBytes)
	}
	tx.items++
	tx.bytes += bytes
	return nil
}

// Size is how much the transaction has read and written, and how much it may:
// what would go past it is refused with ErrTooLarge, and the rest may still be
// committed.
func (tx *Tx) Size() (items, maxItems, bytes, maxBytes int) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	return tx.items, MaxTxItems, tx.bytes, MaxTxBytes
}

// CommitResult is what a commit did.
type CommitResult struct {
	// Timestamp is the instant of everything written; 0 if nothing was.
	Timestamp Timestamp
	// Duplicate: an earlier attempt of this commit, whose answer was lost, did it.
	Duplicate bool
	Cost      Cost
}

// Commit ends the transaction. ErrTxConflict and ErrTxAborted say that nothing
// was done and that the work may be done again from its beginning; another
// conflict, that a write's condition did not hold. ErrOutcomeUnknown comes only
// when ctx ends while the outcome is not known: Commit may be called again then
// and goes on asking.
func (tx *Tx) Commit(ctx context.Context) (CommitResult, error) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if e := tx.usableLocked("commit", "", ""); e != nil {
		tx.done = true
		tx.unlockLocked(ctx)
		return CommitResult{}, e
	}
	x := commitExchange{clock: tx.db.c.Clock(), req: tx.requestLocked()}
	if x.empty() || tx.cfg.at != 0 || tx.atCut {
		tx.done = true
		tx.unlockLocked(ctx)
		return CommitResult{}, nil
	}
	over := func(err error) (CommitResult, error) {
		e := ofFailure(err, "commit", "", "")
		e.RequestID = tx.id
		if tx.sent = e.Unknown(); !tx.sent {
			tx.done = true
			tx.unlockLocked(ctx)
		}
		return CommitResult{}, e
	}
	mode := route.Write
	switch {
	case tx.home == nil:
		mode = route.Read
	case tx.sent:
		mode = route.Repeat
	}
	ctx, cancel := tx.db.bound(ctx)
	if cancel != nil {
		defer cancel()
	}
	err := tx.bindLocked(ctx, &x.req)
	if err == nil {
		err = tx.readUniqueLocked(ctx, &x.req)
	}
	if err != nil {
		if mode == route.Repeat {
			err = doubtful(err)
		}
		return over(err)
	}
	if err := tx.db.c.Do(ctx, wire.KindCommit, mode, &x); err != nil {
		return over(tx.goneLocked(ctx, err))
	}
	tx.done = true
	if tx.home == nil {
		tx.unlockLocked(ctx)
	}
	tx.result = CommitResult{Timestamp: Timestamp(x.reply.Time), Duplicate: x.reply.Duplicate, Cost: x.reply.Cost}
	return tx.result, nil
}

// Result is what the commit did, also where Transact committed; zero before.
func (tx *Tx) Result() CommitResult {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	return tx.result
}

// readUniqueLocked reads what is written in collections with unique fields and
// was not read, and adds it to the request: what a document was decides which
// values it gives up, so the commit depends on it.
func (tx *Tx) readUniqueLocked(ctx context.Context, req *wire.CommitRequest) error {
	if tx.home == nil || tx.sent {
		return nil
	}
	missing := false
	for k := range tx.colls.values() {
		// The target knows: what the client has of the catalog may be older.
		if k.writes.len() == 0 || !k.target.unique {
			continue
		}
		var ids []string
		for p := range k.writes.values() {
			if !k.reads.has(p.id) {
				ids = append(ids, p.id)
			}
		}
		if err := tx.readLocked(ctx, k, ids); err != nil {
			return err
		}
		missing = missing || len(ids) > 0
	}
	if !missing {
		return nil
	}
	*req = tx.requestLocked()
	return tx.bindLocked(ctx, req)
}

// readLocked reads documents at the transaction's timestamp.
func (tx *Tx) readLocked(ctx context.Context, k *txColl, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	if err := tx.cutLocked(ctx); err != nil {
		return err
	}
	docs, err := tx.readAtLocked(ctx, k, ids)
	if err == nil {
		err = tx.settleLocked(ctx)
	}
	if err != nil {
		return err
	}
	for i, id := range ids {
		if e := tx.growLocked("get", k.name, id, len(id)+16); e != nil {
			return e
		}
		k.reads.add(id, docs[i])
	}
	return nil
}

// requestLocked is the commit as one request; the collection that was written
// first comes first, for it has the home.
func (tx *Tx) requestLocked() wire.CommitRequest {
	req := wire.CommitRequest{ID: tx.id, Born: uint64(tx.born), Attempt: tx.attempt, TimeoutMillis: uint32(min(max(time.Until(tx.deadline), time.Second), 10*time.Second).Milliseconds()), Locked: tx.locksLocked() > 0}
	add := func(c *txColl) {
		w := wire.TxnCollection{Name: c.name, Ranges: c.ranges, Reads: make([]wire.TxnRead, 0, c.reads.len())}
		for i := range c.reads.all {
			id := c.reads.all[i].key
			r := wire.TxnRead{ID: id}
			switch d := c.reads.all[i].value; {
			case d != nil:
				r.At = uint64(d.UpdatedAt)
			case tx.home == nil:
				// Nobody keeps it from coming and going before the question
				// whether it is there: that is asked of all the time since.
				w.Ranges = append(w.Ranges[:len(w.Ranges):len(w.Ranges)], wire.TxnRange{From: id, To: id, At: uint64(tx.at)})
				continue
			}
			w.Reads = append(w.Reads, r)
		}
		// A document that others wait for is home's if it can be: what is home's
		// is held only until the decision, and needs no message more.
		w.Writes = make([]wire.WriteItem, 0, c.writes.len())
		var first *pendingDoc
		for p := range c.writes.values() {
			if tx.careful && slices.Contains(c.locked, p.id) {
				first = p
				w.Writes = append(w.Writes, p.items...)
				break
			}
		}
		for p := range c.writes.values() {
			if p != first {
				w.Writes = append(w.Writes, p.items...)
			}
		}
		if len(w.Reads)+len(w.Ranges)+len(w.Writes) > 0 {
			req.Collections = append(req.Collections, w)
		}
	}
	if tx.home != nil {
		add(tx.home)
	}
	for c := range tx.colls.values() {
		if c != tx.home {
			add(c)
		}
	}
	return req
}

// bindLocked gives every collection of the request its number, and creates those
// that are written first.
func (tx *Tx) bindLocked(ctx context.Context, req *wire.CommitRequest) error {
	for i := range req.Collections {
		w := &req.Collections[i]
		c := tx.collLocked(w.Name)
		if c.target == nil {
			makes := slices.ContainsFunc(w.Writes, func(item wire.WriteItem) bool { return creating(item.Op) })
			c.target = &target{db: tx.db, name: w.Name, creates: makes, first: tx.id}
		}
		if err := c.target.bind(ctx); err != nil {
			return err
		}
		w.Number = c.target.number
	}
	return nil
}

// goneLocked is the error of a commit. One that was refused because a collection
// is gone is a conflict if its name can be used: the work is done again there.
func (tx *Tx) goneLocked(ctx context.Context, err error) error {
	var f *route.Failure
	if !isGone(err) || !errors.As(err, &f) {
		return err
	}
	for c := range tx.colls.values() {
		if c.target == nil {
			continue
		}
		t := target{db: tx.db, name: c.name, number: c.target.number}
		again := t.ask(ctx)
		if again == nil && t.number == c.target.number || again != nil && !(isGone(again) && c.target.creates) {
			continue
		}
		conflict := *f
		conflict.Refusal = wire.Refuse(wire.CodeTxnConflict, "commit: collection %s was dropped while the transaction was under way (run the transaction again)", c.name)
		return &conflict
	}
	return err
}

// Rollback ends the transaction without an effect. After Commit it does nothing.
func (tx *Tx) Rollback(ctx context.Context) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if !tx.done && !tx.sent {
		tx.done = true
		tx.unlockLocked(ctx)
	}
}

// locksLocked is how many documents are locked up front.
func (tx *Tx) locksLocked() (n int) {
	for c := range tx.colls.values() {
		n += len(c.locked)
	}
	return n
}

// unlockLocked lets go of what was locked up front, as well as it can: locks
// expire.
func (tx *Tx) unlockLocked(ctx context.Context) {
	req := wire.UnlockRequest{ID: tx.id}
	for c := range tx.colls.values() {
		if len(c.locked) == 0 {
			continue
		}
		w := wire.TxnCollection{Name: c.name}
		for _, id := range c.locked {
			w.Reads = append(w.Reads, wire.TxnRead{ID: id})
		}
		req.Collections = append(req.Collections, w)
	}
	if len(req.Collections) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = tx.db.c.Do(ctx, wire.KindUnlock, route.Read, &control{ask: &req})
}

// commitExchange is the exchange of a commit.
type commitExchange struct {
	clock *route.Clock
	req   wire.CommitRequest
	reply wire.CommitReply
}

func (x *commitExchange) empty() bool { return len(x.req.Collections) == 0 }

// Place is the home's: a commit that touches one group only is decided there.
func (x *commitExchange) Place(v *route.View) (uint32, bool) {
	if x.empty() {
		return 0, false
	}
	c := &x.req.Collections[0]
	if !v.Numbered(c.Name, c.Number) {
		return 0, false
	}
	switch {
	case len(c.Writes) > 0:
		return v.Partition(c.Name, c.Writes[0].ID)
	case len(c.Reads) > 0:
		return v.Partition(c.Name, c.Reads[0].ID)
	}
	return 0, false
}

func (x *commitExchange) Append(dst []byte, _ uint64, _ bool) []byte { return x.req.AppendTo(dst) }

func (x *commitExchange) Read(body []byte, _ bool) error {
	if err := wire.Decode(body, &x.reply); err != nil {
		return route.BadAnswer(err)
	}
	x.clock.Observe(x.reply.Now)
	return nil
}
