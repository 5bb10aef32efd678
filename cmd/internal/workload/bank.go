package workload

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// bank moves money between accounts in transactions, and adds it up. Accounts
// are opened and closed on the way, and each transfer writes an entry of a
// ledger in the same transaction, so that what was done can be told from what
// was not, whoever died.
//
// What is owed: every read of one instant sees the same sum; no account is ever
// below zero; an acknowledged transfer is in the ledger once, a refused one
// never; and the accounts' own histories show, at one timestamp, all of a
// transfer that the ledger has, and nothing of any other.
type bank struct {
	*scratch
	accounts []string
	began    uint64 // when they were opened

	mu        sync.Mutex
	transfers map[string]*transfer // guarded by mu; by ID
	past      []summed             // guarded by mu; sums that clients have read, to be read again

	stored map[string][]history.Stored // at rest, by account
	ledger map[string]entry            // at rest, by transfer
	when   map[string]uint64           // the timestamps of the ledger's entries
}

// opening is what every account begins with.
const opening = 100

// transfer is what a client wants to be done once, however often it tries.
type transfer struct {
	attempts map[string]history.Outcome // by the value that they write
	there    bool                       // a client was told that its entry is there
}

// entry is a document of the ledger.
type entry struct {
	Value    string   `idb:"v"`
	Accounts []string `idb:"accounts"`
	Changes  []int64  `idb:"changes"`
}

// summed is what accounts had at a time.
type summed struct {
	at       uint64
	balances string
}

func newBank(o Options) Workload {
	w := &bank{scratch: newScratch("bank", o, "", "ledger"), transfers: map[string]*transfer{}}
	for i := range max(2, 2*o.Documents) {
		w.accounts = append(w.accounts, fmt.Sprintf("a%02d", i))
	}
	return w
}

func itself(id string) string { return id }

// opened is the value of the transaction that opened all accounts.
const opened = "opened"

func (w *bank) Setup(ctx context.Context, db *client.DB) error {
	if err := w.scratch.Setup(ctx, db); err != nil {
		return err
	}
	t := history.Transaction{Client: finalReader, Name: "open"}
	for _, id := range w.accounts {
		t.Parts = append(t.Parts, history.Part{
			Input:  history.Input{Key: id, Verb: history.Insert, Value: opened},
			Output: history.Output{Outcome: history.Done, Version: 1, Document: true, Value: opened, Count: opening},
		})
	}
	p := w.recorder.BeginTxn(t)
	err := db.Transact(ctx, func(tx *client.Tx) error {
		for _, id := range w.accounts {
			if err := tx.Collection(w.full("")).Insert(id, body{Value: opened, Count: opening}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("workload bank: opening the accounts: %w", err)
	}
	p.End(func(*history.Transaction) {})
	w.began, err = w.begun(ctx, db, w.full(""), w.accounts[0])
	return err
}

func (w *bank) total() int64 { return int64(len(w.accounts)) * opening }

func (w *bank) Client(s Session) Step {
	n := 0
	return func(ctx context.Context) history.Outcome {
		n++
		switch k := s.Rng.IntN(100); {
		case k < 55:
			return w.transfer(ctx, s, fmt.Sprintf("t%d-%06d", s.Number, n))
		case k < 75:
			return w.sum(ctx, s)
		case k < 83:
			return w.scanned(ctx, s)
		case k < 88:
			return w.again(ctx, s)
		case k < 94:
			// A single write beside them changes no balance.
			in := history.Input{Key: w.any(s), Verb: history.Add, Value: fmt.Sprintf("w%d-%06d", s.Number, n)}
			p := w.recorder.Begin(s.Number, in)
			out := w.do(ctx, s.DB.Collection(w.full("")), in)
			p.End(out)
			return asked(out.Outcome)
		default:
			in := history.Input{Key: w.any(s), Verb: history.Get}
			p := w.recorder.Begin(s.Number, in)
			out := w.do(ctx, s.other().Collection(w.full("")), in)
			p.End(out)
			if out.Outcome == history.Done && out.Count < 0 {
				w.anomaly("overdrawn", "%s has %d", in.Key, out.Count)
			}
			return asked(out.Outcome)
		}
	}
}

func (w *bank) any(s Session) string { return w.accounts[s.Rng.IntN(len(w.accounts))] }

// transfer moves money from one account to one or two others.
func (w *bank) transfer(ctx context.Context, s Session, id string) history.Outcome {
	t := &transfer{attempts: map[string]history.Outcome{}}
	w.mu.Lock()
	w.transfers[id] = t
	w.mu.Unlock()
	run := w.try(ctx, s, id, "", t)
	if run.Outcome == history.Unknown && s.Rng.IntN(2) == 0 {
		// The client comes back and does not know what became of it: the ledger
		// has one place for it, so that it can be begun anew.
		anew, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Again)
		defer cancel()
		if run = w.try(anew, s, id, "again-", t); errors.Is(run.Err, client.ErrAlreadyExists) {
			w.mu.Lock()
			t.there = true
			w.mu.Unlock()
		}
	} else if errors.Is(run.Err, client.ErrAlreadyExists) {
		w.report("transfer %s: %v, and no earlier attempt could have been done", id, run.Err)
	}
	if run.Outcome == history.Done && s.Rng.IntN(8) == 0 {
		var e entry
		switch err := s.other().Collection(w.full("ledger")).GetInto(ctx, id, &e); {
		case errors.Is(err, client.ErrNotFound):
			w.anomaly("lost write", "transfer %s was acknowledged, and its entry is not there", id)
		case err != nil: // no answer
		case t.attempts[e.Value] != history.Done:
			w.anomaly("refused write took effect", "transfer %s: its entry is of attempt %s, which was not the one that was acknowledged", id, e.Value)
		}
	}
	return run.Outcome
}

// try runs a transfer's transaction; prefix makes its attempts' values differ
// from those of an earlier run.
func (w *bank) try(ctx context.Context, s Session, id, prefix string, t *transfer) ran {
	pick := s.Rng.Perm(len(w.accounts))
	from, to := w.accounts[pick[0]], []string{w.accounts[pick[1]]}
	if len(pick) > 2 && s.Rng.IntN(4) == 0 {
		to = append(to, w.accounts[pick[2]])
	}
	lock, all, blind, early := s.Rng.IntN(6) == 0, s.Rng.IntN(5) == 0, s.Rng.IntN(4) == 0, s.Rng.IntN(2) == 0
	c, ledger := w.full(""), w.full("ledger")
	last := ""
	told := func(value string, o history.Outcome) {
		w.mu.Lock()
		t.attempts[value] = o
		w.mu.Unlock()
	}
	run := w.transact(ctx, s, fateOf(s), "transfer "+id, func(ctx context.Context, a *attempt) error {
		if last != "" {
			told(last, history.Refused)
		}
		last = fmt.Sprintf("%s%s.%d", prefix, id, a.number)
		told(last, history.Unknown)
		var source *body
		var err error
		if lock {
			source, err = a.lock(ctx, c, from, from)
		} else {
			source, err = a.get(ctx, c, from, from)
		}
		if err != nil {
			return err
		}
		if source == nil || source.Count < int64(len(to)) {
			return errDeclined
		}
		amount := int64(len(to)) + s.Rng.Int64N(source.Count-int64(len(to))+1)
		if all {
			amount = source.Count
		}
		targets := map[string]*body{}
		if !blind {
			if targets, err = a.getMany(ctx, c, to, itself); err != nil {
				return err
			}
		}
		legs := map[string]int64{}
		e := entry{Value: last, Accounts: []string{from}, Changes: []int64{-amount}}
		for i, id := range to {
			part := amount / int64(len(to))
			if i == 0 {
				part = amount - part*int64(len(to)-1)
			}
			legs[id] = part
			e.Accounts, e.Changes = append(e.Accounts, id), append(e.Changes, part)
		}
		if err := a.step(); err != nil {
			return err
		}
		accounts := a.tx.Collection(c)
		enter := func() error { return a.tx.Collection(ledger).Insert(id, e) }
		if early { // the entry has the transaction's home
			if err := enter(); err != nil {
				return err
			}
		}
		if left := source.Count - amount; left == 0 && s.Rng.IntN(2) == 0 {
			err = accounts.Delete(from)
			a.wrote(history.Delete, from, last, 0, false)
		} else {
			err = accounts.Put(from, body{Value: last, Count: left})
			a.wrote(history.Put, from, last, left, true)
		}
		if err != nil {
			return err
		}
		for _, id := range to {
			switch had := targets[id]; {
			case blind:
				err = accounts.Upsert(id, client.Set("v", last).Inc("n", legs[id]))
				a.wrote(history.AddOrCreate, id, last, 0, false)
			case had == nil:
				err = accounts.Insert(id, body{Value: last, Count: legs[id]})
				a.wrote(history.Insert, id, last, legs[id], true)
			case s.Rng.IntN(3) == 0:
				err = accounts.Update(id, client.Set("v", last).Inc("n", legs[id]))
				a.wrote(history.Add, id, last, had.Count+legs[id], true)
			default:
				err = accounts.Put(id, body{Value: last, Count: had.Count + legs[id]})
				a.wrote(history.Put, id, last, had.Count+legs[id], true)
			}
			if err != nil {
				return err
			}
		}
		if !early {
			return enter()
		}
		return nil
	})
	if last != "" {
		told(last, run.Outcome)
	}
	return run
}

// check looks at what was read of one instant.
func (w *bank) check(what string, balances map[string]*body) (text string, ok bool) {
	sum, below := int64(0), ""
	for _, id := range slices.Sorted(maps.Keys(balances)) {
		sum += balances[id].Count
		text += fmt.Sprintf(" %s=%d", id, balances[id].Count)
		if balances[id].Count < 0 {
			below = id
		}
	}
	if sum != w.total() {
		w.anomaly("wrong total", "%s: %d in all accounts, there are %d:%s", what, sum, w.total(), text)
	}
	if below != "" {
		w.anomaly("overdrawn", "%s: %s is below zero:%s", what, below, text)
	}
	return text, sum == w.total()
}

// remember keeps what was read at a time, to be read again.
func (w *bank) remember(at uint64, text string) {
	if at == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.past) < 50 {
		w.past = append(w.past, summed{at, text})
	} else {
		w.past[int(at>>16)%len(w.past)] = summed{at, text}
	}
}

// sum adds everything up in a read-only transaction.
func (w *bank) sum(ctx context.Context, s Session) history.Outcome {
	how := s.Rng.IntN(3)
	var all map[string]*body
	f := fate{begin: s.Rng.IntN(2) == 0}
	run := w.transact(ctx, s, f, "sum", func(ctx context.Context, a *attempt) (err error) {
		switch how {
		case 0:
			all, err = a.scan(ctx, w.full(""), "", w.accounts, itself, client.PageSize(1+s.Rng.IntN(5)))
		case 1:
			all, err = a.getMany(ctx, w.full(""), w.accounts, itself)
		default: // one after the other
			all = map[string]*body{}
			for _, i := range s.Rng.Perm(len(w.accounts)) {
				b, err := a.get(ctx, w.full(""), w.accounts[i], w.accounts[i])
				if err != nil {
					return err
				}
				if b != nil {
					all[w.accounts[i]] = b
				}
			}
		}
		if err == nil && uint64(a.tx.Timestamp()) >= w.began { // one instant, whether it is confirmed to be the newest or not
			w.check(fmt.Sprintf("read in a transaction at %d", a.tx.Timestamp()), all)
		}
		return err
	}, client.ReadOnly())
	if run.Outcome == history.Done {
		text, _ := w.check("sum", all)
		w.remember(run.ReadTime, text)
	}
	return run.Outcome
}

// scanned adds everything up with a plain scan, which is of one instant.
func (w *bank) scanned(ctx context.Context, s Session) history.Outcome {
	options := []client.ReadOption{client.PageSize(1 + s.Rng.IntN(6))}
	if s.Rng.IntN(4) == 0 {
		options = append(options, client.Reverse())
	}
	p := w.recorder.BeginTxn(history.Transaction{Client: s.Number, Name: "scan"})
	all, parts, at, err := w.readAll(ctx, s.DB, options...)
	o, why := history.Done, ""
	if err != nil {
		o, why = w.outcome("scan", err), err.Error()
	}
	p.End(func(t *history.Transaction) {
		t.Outcome, t.Reason, t.Time, t.Parts = o, why, at, parts
	})
	if o == history.Done {
		text, _ := w.check(fmt.Sprintf("a scan at %d", at), all)
		w.remember(at, text)
	}
	return o
}

// readAll scans the accounts.
func (w *bank) readAll(ctx context.Context, db *client.DB, options ...client.ReadOption) (map[string]*body, []history.Part, uint64, error) {
	it := db.Collection(w.full("")).Iterator(options...)
	all, docs := map[string]*body{}, map[string]*client.Document{}
	for it.Next(ctx) {
		d := it.Document()
		b, err := decode(d)
		if err != nil {
			return nil, nil, 0, err
		}
		if _, twice := docs[d.ID]; twice || !slices.Contains(w.accounts, d.ID) {
			w.anomaly("phantom", "a scan of the accounts gave %s, which does not belong there or came before", d.ID)
		}
		all[d.ID], docs[d.ID] = &b, d
	}
	if err := it.Err(); err != nil {
		return nil, nil, 0, err
	}
	var parts []history.Part
	for _, id := range w.accounts {
		out := history.Output{Outcome: history.Missing}
		if d := docs[id]; d != nil {
			out = w.read(id, d)
		}
		parts = append(parts, history.Part{Input: history.Input{Key: id, Verb: history.Get}, Output: out})
	}
	return all, parts, uint64(it.Timestamp()), nil
}

// again reads the past again, by a scan or in a transaction.
func (w *bank) again(ctx context.Context, s Session) history.Outcome {
	w.mu.Lock()
	if len(w.past) == 0 {
		w.mu.Unlock()
		return w.sum(ctx, s)
	}
	was := w.past[s.Rng.IntN(len(w.past))]
	w.mu.Unlock()
	at := client.Timestamp(was.at)
	var all map[string]*body
	var err error
	if s.Rng.IntN(2) == 0 {
		all, _, _, err = w.readAll(ctx, s.DB, client.AtTimestamp(at))
	} else {
		tx := s.DB.Begin(client.TxAt(at))
		var docs []*client.Document
		if docs, err = tx.Collection(w.full("")).GetMany(ctx, w.accounts); err == nil {
			_, err = tx.Commit(ctx)
		}
		all = map[string]*body{}
		for i, d := range docs {
			if d == nil {
				continue
			}
			b, bad := decode(d)
			if bad != nil {
				w.report("%s at %d: %v", w.accounts[i], at, bad)
			}
			all[w.accounts[i]] = &b
		}
	}
	if err != nil {
		return w.outcome("read of the past", err)
	}
	if text, _ := w.check(fmt.Sprintf("read again at %d", at), all); text != was.balances {
		w.anomaly("wrong past", "at %d the accounts had%s, and now they had%s", at, was.balances, text)
	}
	return history.Done
}

func (w *bank) Final(ctx context.Context, db *client.DB) error {
	// One instant of the ledger: a transaction that is still on its way commits
	// above it, and what accounts have above it is left out too.
	ledger, when := map[string]entry{}, map[string]uint64{}
	it := db.Collection(w.full("ledger")).Iterator()
	for it.Next(ctx) {
		d := it.Document()
		var e entry
		if err := d.Decode(&e); err != nil {
			return fmt.Errorf("workload bank: entry %s: %w", d.ID, err)
		}
		ledger[d.ID], when[e.Value] = e, uint64(d.UpdatedAt)
		if d.Version != 1 {
			w.anomaly("applied twice", "entry %s is at version %d", d.ID, d.Version)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("workload bank: %w", err)
	}
	if err := w.lastReads(ctx, db.Collection(w.full("")), w.accounts); err != nil {
		return err
	}
	stored, err := w.scratch.stored(ctx, db.Collection(w.full("")), w.accounts)
	if err != nil {
		return err
	}
	limit := uint64(it.Timestamp())
	for id := range stored {
		stored[id] = slices.DeleteFunc(stored[id], func(v history.Stored) bool { return v.Time > limit })
		slices.SortFunc(stored[id], func(a, b history.Stored) int { return int(a.Version) - int(b.Version) })
	}
	w.stored, w.ledger, w.when = stored, ledger, when
	return nil
}

func (w *bank) Judge() []history.Verdict {
	ops, txns := w.recorder.Operations(), w.recorder.Transactions()
	if w.ledger == nil {
		return []history.Verdict{w.answers()}
	}
	s := settle(w.stored, w.when)
	txns = s.transactions(txns)
	var snapshots []history.Transaction
	for _, t := range txns {
		if t.Time != 0 {
			snapshots = append(snapshots, t)
		}
	}
	books := w.books()
	return []history.Verdict{
		w.answers(), books,
		history.StrictSerializability{}.Check(append(history.Singles(ops), txns...)),
		history.Versions{Stored: w.stored, Complete: true}.Check(append(ops, operations(txns)...), snapshots),
	}
}

// books compares the ledger with what clients were told, and with the
// histories of the accounts.
func (w *bank) books() history.Verdict {
	v := history.Verdict{Checker: "books"}
	found := func(name, format string, args ...any) {
		if len(v.Anomalies) < 20 {
			v.Anomalies = append(v.Anomalies, history.Anomaly{Name: name, Text: fmt.Sprintf(format, args...)})
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	acknowledged := 0
	owner := map[string]string{} // transfers, by value
	for _, id := range slices.Sorted(maps.Keys(w.transfers)) {
		e, there := w.ledger[id]
		if w.transfers[id].there && !there {
			found("lost write", "transfer %s was in the way of itself, and is not in the ledger", id)
		}
		for value, o := range w.transfers[id].attempts {
			owner[value] = id
			switch {
			case o == history.Done && !there:
				found("lost write", "transfer %s was acknowledged as %s, and is not in the ledger", id, value)
			case o == history.Done && e.Value != value:
				found("lost write", "transfer %s was acknowledged as %s, and the ledger has it as %s", id, value, e.Value)
			case o == history.Refused && there && e.Value == value:
				found("refused write took effect", "transfer %s was refused as %s, and is in the ledger", id, value)
			}
			if o == history.Done {
				acknowledged++
			}
		}
	}
	// What each transfer of the ledger did, by account and time.
	type place struct {
		account string
		time    uint64
	}
	done := map[place]entry{}
	for _, id := range slices.Sorted(maps.Keys(w.ledger)) {
		e := w.ledger[id]
		if owner[e.Value] != id {
			found("phantom", "the ledger has %s as %q, which nobody wrote", id, e.Value)
		}
		for _, account := range e.Accounts {
			done[place{account, w.when[e.Value]}] = e
		}
	}
	// Every version of an account is a transfer's, the opening's or a single
	// write's that changes nothing; and every leg of a transfer is a version.
	changes := map[uint64]int64{} // sums, by time
	versions := 0
	for _, account := range w.accounts {
		balance := int64(0)
		for _, s := range w.stored[account] {
			versions++
			change := s.Count - balance
			if s.Deleted {
				change = -balance
			}
			balance += change
			if balance < 0 {
				found("overdrawn", "%s version %d has %d", account, s.Version, balance)
			}
			changes[s.Time] += change
			e, ok := done[place{account, s.Time}]
			switch i := slices.Index(e.Accounts, account); {
			case ok && (s.Deleted || s.Value == e.Value):
				if e.Changes[i] != change {
					found("lost update", "%s version %d, of transfer %s, changes it by %d instead of %d", account, s.Version, e.Value, change, e.Changes[i])
				}
				delete(done, place{account, s.Time})
			case s.Value == opened && change == opening:
			case owner[s.Value] != "":
				found("torn transaction", "%s version %d is of transfer %s, which is not in the ledger at its time %d", account, s.Version, s.Value, s.Time)
			case change != 0:
				found("lost update", "%s version %d (%q, deleted: %v) changes it by %d, and is no transfer's", account, s.Version, s.Value, s.Deleted, change)
			}
		}
	}
	for p, e := range done {
		found("torn transaction", "transfer %s is in the ledger at %d, and %s has no version of it", e.Value, p.time, p.account)
	}
	sum := int64(0)
	for _, at := range slices.Sorted(maps.Keys(changes)) {
		if sum += changes[at]; sum != w.total() {
			found("wrong total", "at %d there were %d in all accounts, there are %d", at, sum, w.total())
			break
		}
	}
	v.Judged = fmt.Sprintf("%d transfers tried, %d acknowledged, %d in the ledger; %d versions of %d accounts, summed up at %d times",
		len(w.transfers), acknowledged, len(w.ledger), versions, len(w.accounts), len(changes))
	return v
}
