package workload

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// skew has transactions that read more than they write, and rules that hold
// only if nothing of what they read can change beside them.
//
//   - On call: a doctor may leave a shift if another stays. Two who leave at
//     once write different documents; at least one must always be there. Some
//     look at the shift's documents one by one, some scan for them.
//   - Rooms: whoever finds a room empty, by a scan or by asking for everybody,
//     takes it. Nobody sees two in it: what was not there must not have come.
//   - Fork: single writers of different shards, beside read-only transactions:
//     no two of these may disagree about which write came first.
type skew struct {
	*scratch
	began  uint64                      // when there was somebody on call
	stored map[string][]history.Stored // at rest
}

const (
	shifts  = 2
	doctors = 3
	rooms   = 2
	guests  = 4
	forks   = 3

	onCall = "oncall" // documents whose count is 1: on call
	duty   = "duty"   // documents that are there: on duty
	room   = "rooms"
	fork   = "forks"
)

func newSkew(o Options) Workload {
	return &skew{scratch: newScratch("skew", o, onCall, duty, room, fork)}
}

// members are the IDs of a place of one of the collections.
func members(collection string, place int) (ids []string) {
	n := doctors
	switch collection {
	case room:
		n = guests
	case fork:
		n = forks
	}
	for i := range n {
		ids = append(ids, fmt.Sprintf("%d%s%d", place, separator, i))
	}
	return ids
}

func places(collection string) int {
	switch collection {
	case room:
		return rooms
	case fork:
		return 1
	}
	return shifts
}

func (w *skew) Setup(ctx context.Context, db *client.DB) error {
	if err := w.scratch.Setup(ctx, db); err != nil {
		return err
	}
	t := history.Transaction{Client: finalReader, Name: "begin"}
	for _, c := range []string{onCall, duty} {
		for p := range places(c) {
			for _, id := range members(c, p) {
				t.Parts = append(t.Parts, history.Part{
					Input:  history.Input{Key: keyed(c, id), Verb: history.Insert, Value: opened},
					Output: history.Output{Outcome: history.Done, Version: 1, Document: true, Value: opened, Count: 1},
				})
			}
		}
	}
	p := w.recorder.BeginTxn(t)
	err := db.Transact(ctx, func(tx *client.Tx) error {
		for i := range t.Parts {
			c, id, _ := strings.Cut(t.Parts[i].Input.Key, ":")
			if err := tx.Collection(w.full(c)).Insert(id, body{Value: opened, Count: 1}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("workload skew: %w", err)
	}
	p.End(func(*history.Transaction) {})
	w.began, err = w.begun(ctx, db, w.full(onCall), members(onCall, 0)[0])
	return err
}

func (w *skew) Client(s Session) Step {
	n := 0
	return func(ctx context.Context) history.Outcome {
		n++
		value := fmt.Sprintf("%d-%d", s.Number, n)
		switch k := s.Rng.IntN(100); {
		case k < 30:
			return w.shift(ctx, s, []string{onCall, duty}[s.Rng.IntN(2)], value)
		case k < 50:
			return w.take(ctx, s, value)
		case k < 70:
			in := history.Input{Key: keyed(fork, members(fork, 0)[s.Rng.IntN(forks)]), Verb: history.Put, Value: value}
			_, id, _ := strings.Cut(in.Key, ":")
			plain := in
			plain.Key = id
			p := w.recorder.Begin(s.Number, in)
			out := w.do(ctx, s.DB.Collection(w.full(fork)), plain)
			p.End(out)
			return asked(out.Outcome)
		case k < 85:
			return w.look(ctx, s, fork, 0)
		default:
			c := []string{onCall, duty, room}[s.Rng.IntN(3)]
			return w.look(ctx, s, c, s.Rng.IntN(places(c)))
		}
	}
}

// whole reads all of a place, in one of the ways that depend on all of it.
func (w *skew) whole(ctx context.Context, a *attempt, s Session, collection string, place int) (map[string]*body, error) {
	ids := members(collection, place)
	key := func(id string) string { return keyed(collection, id) }
	switch s.Rng.IntN(3) {
	case 0:
		return a.scan(ctx, w.full(collection), fmt.Sprintf("%d%s", place, separator), ids, key)
	case 1:
		return a.getMany(ctx, w.full(collection), ids, key)
	}
	all := map[string]*body{}
	for _, i := range s.Rng.Perm(len(ids)) {
		b, err := a.get(ctx, w.full(collection), ids[i], key(ids[i]))
		if err != nil {
			return nil, err
		}
		if b != nil {
			all[ids[i]] = b
		}
	}
	return all, nil
}

// holds says whether what an attempt has read of a place, of one instant, is allowed.
func (w *skew) holds(a *attempt, collection string, place int, found map[string]*body, how string) {
	if uint64(a.tx.Timestamp()) < w.began {
		return
	}
	there := 0
	for _, b := range found {
		if collection != onCall || b.Count == 1 {
			there++
		}
	}
	switch {
	case (collection == onCall || collection == duty) && there == 0:
		w.anomaly("write skew", "%s: nobody is left in %s %d: %v", how, collection, place, slices.Sorted(maps.Keys(found)))
	case collection == room && there > 1:
		w.anomaly("write skew", "%s: room %d has %d guests: %v", how, place, there, slices.Sorted(maps.Keys(found)))
	}
}

// put and remove are writes of an attempt.
func (w *skew) put(a *attempt, collection, id, value string, count int64) error {
	a.wrote(history.Put, keyed(collection, id), value, count, true)
	return a.tx.Collection(w.full(collection)).Put(id, body{Value: value, Count: count})
}

func (w *skew) remove(a *attempt, collection, id, value string) error {
	a.wrote(history.Delete, keyed(collection, id), value, 0, false)
	return a.tx.Collection(w.full(collection)).Delete(id)
}

// shift lets a doctor leave, if another stays, or come back.
func (w *skew) shift(ctx context.Context, s Session, collection, value string) history.Outcome {
	place := s.Rng.IntN(shifts)
	me := members(collection, place)[s.Rng.IntN(doctors)]
	return w.transact(ctx, s, fateOf(s), "shift", func(ctx context.Context, a *attempt) error {
		all, err := w.whole(ctx, a, s, collection, place)
		if err != nil {
			return err
		}
		w.holds(a, collection, place, all, "before a change")
		v := fmt.Sprintf("%s.%d", value, a.number)
		on := 0
		for _, b := range all {
			if collection == duty || b.Count == 1 {
				on++
			}
		}
		mine := all[me] != nil && (collection == duty || all[me].Count == 1)
		switch {
		case mine && on < 2:
			return errDeclined
		case mine && collection == onCall:
			return w.put(a, collection, me, v, 0)
		case mine:
			return w.remove(a, collection, me, v)
		}
		return w.put(a, collection, me, v, 1)
	}).Outcome
}

// take takes a room that is empty, or leaves it.
func (w *skew) take(ctx context.Context, s Session, value string) history.Outcome {
	place := s.Rng.IntN(rooms)
	me := members(room, place)[s.Rng.IntN(guests)]
	return w.transact(ctx, s, fateOf(s), "room", func(ctx context.Context, a *attempt) error {
		all, err := w.whole(ctx, a, s, room, place)
		if err != nil {
			return err
		}
		w.holds(a, room, place, all, "before a change")
		v := fmt.Sprintf("%s.%d", value, a.number)
		switch {
		case len(all) == 0:
			return w.put(a, room, me, v, 1)
		case s.Rng.IntN(3) > 0:
			for id := range all {
				return w.remove(a, room, id, v)
			}
		}
		return errDeclined
	}).Outcome
}

// look reads a place in a read-only transaction.
func (w *skew) look(ctx context.Context, s Session, collection string, place int) history.Outcome {
	return w.transact(ctx, s, fate{begin: s.Rng.IntN(3) == 0}, "look", func(ctx context.Context, a *attempt) error {
		all, err := w.whole(ctx, a, s, collection, place)
		if err == nil {
			w.holds(a, collection, place, all, "a read-only transaction")
		}
		return err
	}, client.ReadOnly()).Outcome
}

func (w *skew) Final(ctx context.Context, db *client.DB) error {
	stored := map[string][]history.Stored{}
	for _, c := range []string{onCall, duty, room, fork} {
		for p := range places(c) {
			versions, err := w.scratch.stored(ctx, db.Collection(w.full(c)), members(c, p))
			if err != nil {
				return err
			}
			for id, list := range versions {
				stored[keyed(c, id)] = list
			}
		}
	}
	w.stored = stored
	return nil
}

func (w *skew) Judge() []history.Verdict {
	ops, txns := w.recorder.Operations(), w.recorder.Transactions()
	checks := []history.Verdict{w.answers()}
	if w.stored == nil {
		return checks
	}
	txns = settle(w.stored, nil).transactions(txns)
	var snapshots []history.Transaction
	for _, t := range txns {
		if t.Time != 0 {
			snapshots = append(snapshots, t)
		}
	}
	return append(checks, w.instants(),
		history.StrictSerializability{}.Check(append(history.Singles(ops), txns...)),
		history.Versions{Stored: w.stored}.Check(append(ops, operations(txns)...), snapshots))
}

// instants looks at every place at every time that anything of it changed.
func (w *skew) instants() history.Verdict {
	v := history.Verdict{Checker: "rules at every instant"}
	times := 0
	for _, c := range []string{onCall, duty, room} {
		for p := range places(c) {
			ids := members(c, p)
			var at []uint64
			for _, id := range ids {
				for _, s := range w.stored[keyed(c, id)] {
					at = append(at, s.Time)
				}
			}
			slices.Sort(at)
			for _, t := range slices.Compact(at) {
				times++
				there := 0
				for _, id := range ids {
					var newest history.Stored
					for _, s := range w.stored[keyed(c, id)] {
						if s.Time <= t && s.Version > newest.Version {
							newest = s
						}
					}
					if newest.Version > 0 && !newest.Deleted && (c != onCall || newest.Count == 1) {
						there++
					}
				}
				if (c == room && there > 1 || c != room && there == 0) && len(v.Anomalies) < 10 {
					v.Anomalies = append(v.Anomalies, history.Anomaly{Name: "write skew", Text: fmt.Sprintf("at %d there were %d in %s %d", t, there, c, p)})
				}
			}
		}
	}
	v.Judged = fmt.Sprintf("%d instants of %d places", times, 2*shifts+rooms)
	return v
}
