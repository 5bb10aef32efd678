package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// This file runs transactions of clients, some of which die on the way.

// txPatience is how long a transaction of a workload lasts at most. What a dead
// client has locked up front is let go then.
const txPatience = 4 * time.Second

var (
	// errDead ends a transaction whose client died before its commit: nothing
	// more comes of it, not even a rollback.
	errDead = errors.New("the client died")
	// errDeclined ends one that found nothing to do.
	errDeclined = errors.New("there was nothing to do")
)

// fate is what becomes of a client while it runs a transaction.
type fate struct {
	// begin: it uses Begin and Commit itself, and not Transact, which knows of
	// earlier attempts.
	begin bool
	// dies is the number of its step that it does not come to; 0: it lives.
	dies int
	// hears is how long it waits for the answer to its commit; 0: to its end.
	hears time.Duration
	// asks says that it asks again for an answer that did not come.
	asks bool
}

// fateOf draws one.
func fateOf(s Session) fate {
	f := fate{begin: s.Rng.IntN(3) == 0, asks: s.Rng.IntN(2) == 0}
	switch n := s.Rng.IntN(100); {
	case n < 8:
		f.begin, f.dies = true, 1+s.Rng.IntN(6)
	case n < 18:
		f.hears = time.Duration(s.Rng.Int64N(int64(30 * time.Millisecond)))
	}
	return f
}

// attempt is one run of a transaction, as the history has it.
type attempt struct {
	w      *scratch
	tx     *client.Tx
	number int // of the attempts of this transaction
	steps  int // done so far
	dies   int
	parts  []history.Part
	p      *history.PendingTxn
}

// ran is how a transaction ended.
type ran struct {
	Outcome  history.Outcome
	Attempt  int    // the number of the last one, from 1
	Time     uint64 // of its commit, if that was told
	Err      error  // why it is not done
	Parts    []history.Part
	ReadTime uint64 // what it read at
}

// transact runs fn in a transaction, perhaps several times, and records every
// attempt as a transaction of its own: what was refused must leave no trace.
// fn is called with the number of the attempt, which is to be part of what it
// writes.
func (s *scratch) transact(ctx context.Context, sess Session, f fate, name string, fn func(ctx context.Context, a *attempt) error, opts ...client.TxOption) ran {
	work, hangUp := context.WithCancel(ctx)
	defer hangUp()
	opts = append([]client.TxOption{client.TxTimeout(txPatience)}, opts...)
	var last *attempt
	var hears *time.Timer
	defer func() {
		if hears != nil {
			hears.Stop()
		}
	}()
	number := 0
	one := func(tx *client.Tx) error {
		if last != nil {
			last.end(history.Refused, "another was in the way", 0)
		}
		number++
		last = &attempt{w: s, tx: tx, number: number, dies: f.dies}
		last.p = s.recorder.BeginTxn(history.Transaction{Client: sess.Number, Name: name})
		if err := fn(work, last); err != nil {
			return err
		}
		if err := last.step(); err != nil {
			return err
		}
		if f.hears > 0 && hears == nil {
			hears = time.AfterFunc(f.hears, hangUp)
		}
		return nil
	}
	var stamp client.Timestamp
	var err error
	if !f.begin {
		err = sess.DB.Transact(work, one, opts...)
	} else {
		for range 1 + sess.Rng.IntN(4) {
			tx := sess.DB.Begin(opts...)
			if err = one(tx); err == nil {
				var r client.CommitResult
				r, err = tx.Commit(work)
				stamp = r.Timestamp
			} else if !errors.Is(err, errDead) {
				tx.Rollback(work)
			}
			if !again(err) || work.Err() != nil {
				break
			}
		}
	}
	if last == nil { // the context had ended
		return ran{Outcome: history.Refused, Err: err}
	}
	for range 2 {
		if !errors.Is(err, client.ErrOutcomeUnknown) || !f.asks {
			break
		}
		anew, cancel := context.WithTimeout(context.WithoutCancel(ctx), sess.Again)
		var r client.CommitResult
		r, err = last.tx.Commit(anew)
		stamp = r.Timestamp
		cancel()
	}
	o, why := history.Done, ""
	if err != nil {
		o, why = s.ended(name, err), err.Error()
	} else {
		stamp = max(stamp, last.tx.Result().Timestamp)
	}
	last.end(o, why, uint64(stamp))
	return ran{Outcome: o, Attempt: number, Time: uint64(stamp), Err: err, Parts: last.parts, ReadTime: uint64(last.tx.Timestamp())}
}

// again says that nothing was done and that the same may succeed at once.
func again(err error) bool {
	return (errors.Is(err, client.ErrTxConflict) || errors.Is(err, client.ErrTxAborted)) && !errors.Is(err, client.ErrOutcomeUnknown)
}

// ended is what the error of a transaction says.
func (s *scratch) ended(name string, err error) history.Outcome {
	var e *client.Error
	switch {
	case errors.Is(err, errDead), errors.Is(err, errDeclined):
		return history.Refused
	case errors.As(err, &e) && (e.Code == wire.CodeTxnConflict || e.Code == wire.CodeTxnAborted || e.Code == wire.CodeAlreadyExists):
		// Whether a document may exist is the workload's to know.
		return history.Refused
	}
	return s.outcome(name, err)
}

// end tells the history how the attempt ended.
func (a *attempt) end(o history.Outcome, why string, stamp uint64) {
	a.p.End(func(t *history.Transaction) {
		t.Outcome, t.Reason, t.Parts = o, why, a.parts
		if !slices.ContainsFunc(a.parts, func(p history.Part) bool { return p.Input.Writes() }) {
			t.Time = uint64(a.tx.Timestamp())
		}
		if stamp != 0 {
			t.Name = fmt.Sprintf("%s at %d", t.Name, stamp)
		}
	})
}

// step is between two things that the client does, and it may die there.
func (a *attempt) step() error {
	if a.steps++; a.steps == a.dies {
		return errDead
	}
	return nil
}

// note puts a part into the history.
func (a *attempt) note(in history.Input, out history.Output) {
	a.parts = append(a.parts, history.Part{Input: in, Output: out})
}

// wrote notes a write, whose effect is known if document says so.
func (a *attempt) wrote(verb history.Verb, key, value string, count int64, document bool) {
	a.note(history.Input{Key: key, Verb: verb, Value: value},
		history.Output{Outcome: history.Done, Document: document, Value: value, Count: count})
}

// bodyAs is what an attempt has read of a document; missing is said by nil.
func (a *attempt) saw(key string, d *client.Document) (*body, error) {
	in := history.Input{Key: key, Verb: history.Get}
	if d == nil {
		a.note(in, history.Output{Outcome: history.Missing})
		return nil, nil
	}
	b, err := decode(d)
	if err != nil {
		a.w.report("get %s in a transaction: %v", key, err)
		return nil, err
	}
	a.note(in, history.Output{
		Outcome: history.Done, Version: d.Version, Time: uint64(d.UpdatedAt), Document: true, Value: b.Value, Count: b.Count,
	})
	return &b, nil
}

// get reads one document; its key in the history is key.
func (a *attempt) get(ctx context.Context, c, id, key string) (*body, error) {
	if err := a.step(); err != nil {
		return nil, err
	}
	d, err := a.tx.Collection(c).Get(ctx, id)
	if err != nil && !errors.Is(err, client.ErrNotFound) {
		return nil, err
	}
	return a.saw(key, d)
}

// lock reads one document and locks it up front.
func (a *attempt) lock(ctx context.Context, c, id, key string) (*body, error) {
	if err := a.step(); err != nil {
		return nil, err
	}
	d, err := a.tx.Collection(c).GetForUpdate(ctx, id)
	if err != nil && !errors.Is(err, client.ErrNotFound) {
		return nil, err
	}
	return a.saw(key, d)
}

// getMany reads many documents at once.
func (a *attempt) getMany(ctx context.Context, c string, ids []string, key func(id string) string) (map[string]*body, error) {
	if err := a.step(); err != nil {
		return nil, err
	}
	docs, err := a.tx.Collection(c).GetMany(ctx, ids)
	if err != nil {
		return nil, err
	}
	all := map[string]*body{}
	for i, id := range ids {
		b, err := a.saw(key(id), docs[i])
		if err != nil {
			return nil, err
		}
		if b != nil {
			all[id] = b
		}
	}
	return all, nil
}

// scan reads all documents with a prefix; universe are the IDs that may be
// there, in order.
func (a *attempt) scan(ctx context.Context, c, prefix string, universe []string, key func(id string) string, opts ...client.ReadOption) (map[string]*body, error) {
	if err := a.step(); err != nil {
		return nil, err
	}
	found := map[string]*client.Document{}
	for d, err := range a.tx.Collection(c).Scan(ctx, append([]client.ReadOption{client.Prefix(prefix)}, opts...)...) {
		if err != nil {
			return nil, err
		}
		if _, twice := found[d.ID]; twice || !slices.Contains(universe, d.ID) {
			a.w.anomaly("phantom", "a scan of %s in a transaction gave %s, which does not belong there or came before", c, d.ID)
		}
		found[d.ID] = d
	}
	all := map[string]*body{}
	for _, id := range universe {
		b, err := a.saw(key(id), found[id])
		if err != nil {
			return nil, err
		}
		if b != nil {
			all[id] = b
		}
	}
	return all, nil
}

// begun is the time of a document that was written before clients began: what a
// transaction has read below it, and would be refused for at its commit, is of
// no time that a rule speaks of.
func (s *scratch) begun(ctx context.Context, db *client.DB, collection, id string) (uint64, error) {
	d, err := db.Collection(collection).Get(ctx, id)
	if err != nil {
		return 0, fmt.Errorf("workload %s: %w", s.name, err)
	}
	return uint64(d.UpdatedAt), nil
}

// settled are transactions and single writes after the fact: what of it took
// effect is known from the histories read at rest, which name for every version
// the write that made it. Versions that writes have made are filled in, and
// what took effect and was never answered becomes done, without an end.
type settled struct {
	byValue map[string]map[string]history.Stored // by key and value
	byTime  map[string]map[uint64]history.Stored // by key and time
	times   map[string]uint64                    // of transactions, by the value that they write
}

func settle(stored map[string][]history.Stored, times map[string]uint64) settled {
	s := settled{byValue: map[string]map[string]history.Stored{}, byTime: map[string]map[uint64]history.Stored{}, times: times}
	for key, list := range stored {
		s.byValue[key], s.byTime[key] = map[string]history.Stored{}, map[uint64]history.Stored{}
		for _, v := range list {
			s.byTime[key][v.Time] = v
			// A restored version has the value of the one that it restores.
			if first, ok := s.byValue[key][v.Value]; !v.Deleted && (!ok || v.Version < first.Version) {
				s.byValue[key][v.Value] = v
			}
		}
	}
	return s
}

// transactions are those with what is known of them by now.
func (s settled) transactions(txns []history.Transaction) []history.Transaction {
	end := time.Duration(0)
	for i := range txns {
		end = max(end, txns[i].Call, txns[i].Return)
	}
	out := slices.Clone(txns)
	for i := range out {
		t := &out[i]
		if t.Outcome == history.Refused {
			continue
		}
		t.Parts = slices.Clone(t.Parts)
		effects := 0
		for j := range t.Parts {
			p := &t.Parts[j]
			if !p.Input.Writes() {
				continue
			}
			v, ok := s.byValue[p.Input.Key][p.Input.Value]
			if at := s.times[p.Input.Value]; at != 0 && (!ok || p.Input.Verb == history.Delete) {
				v, ok = s.byTime[p.Input.Key][at]
			}
			if ok {
				p.Output.Version, p.Output.Time = v.Version, v.Time
				effects++
			}
		}
		if t.Outcome == history.Unknown && effects > 0 {
			t.Outcome, t.Return = history.Done, end+1
		}
	}
	return out
}

// operations are the writes of transactions as writes of single documents,
// which is how a document's own history sees them.
func operations(txns []history.Transaction) (ops []history.Operation) {
	for i := range txns {
		t := &txns[i]
		for _, p := range t.Parts {
			if !p.Input.Writes() {
				continue
			}
			if t.Outcome != history.Done {
				p.Output = history.Output{Outcome: t.Outcome, Reason: t.Reason}
			}
			ops = append(ops, history.Operation{Client: t.Client, Input: p.Input, Output: p.Output, Call: t.Call, Return: t.Return})
		}
	}
	return ops
}
