package workload

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// uniques has people who want handles and seats of which there is one each: a
// few documents of a collection with two constraints, one field and two fields
// together. Values are taken, given up, moved and swapped, by single writes,
// bulks and transactions, and there are fewer handles than people.
//
// What is owed: no two documents hold one value at any timestamp; whoever is
// refused for a value names a document that held it, or may have, at some
// moment of the call; at rest every value that no document holds can be taken,
// and of every other the holder is named.
type uniques struct {
	*scratch
	people  []string // the documents
	handles []string
	teams   []string
	seats   int

	mu     sync.Mutex
	bodies map[string]string // guarded by mu; what whole documents hold, by ID and the value that they were written with
	times  map[string]uint64 // guarded by mu; when transactions were committed, by the value that they write

	stored map[string][]history.Stored    // at rest, by document, ascending
	held   map[string]map[uint64][]string // at rest: the values of a document's versions
	probes int                            // values that were asked for at rest
}

// Paths of the unique fields, and how a refusal begins to name their values.
const (
	handleField = "handle"
	teamField   = "place.team"
	seatField   = "place.seat"
)

func newUniques(o Options) Workload {
	// A duplicate is an answer, and whether it was right is judged at the end. A
	// transaction may delete somebody without a look.
	o.Tolerate = append(slices.Clip(o.Tolerate), wire.CodeDuplicateValue, wire.CodeNotFound)
	w := &uniques{
		scratch: newScratch("unique", o, ""), teams: []string{"red", "blue"}, seats: 2,
		bodies: map[string]string{}, times: map[string]uint64{},
	}
	for i := range max(4, o.Documents+2) {
		w.people = append(w.people, fmt.Sprintf("p%02d", i))
	}
	for i := range max(2, o.Documents) {
		w.handles = append(w.handles, fmt.Sprintf("h%d", i))
	}
	c := w.collections[w.full("")]
	c.Unique = []client.Unique{{Fields: []string{handleField}}, {Fields: []string{teamField, seatField}}}
	w.collections[w.full("")] = c
	return w
}

// person is what a document says beside its value; empty and negative: not there.
type person struct {
	handle, team string
	seat         int
	float        bool // the seat is written as 1.0, which is the same as 1
}

var nobody = person{seat: -1}

// any draws one.
func (w *uniques) any(rng *rand.Rand) person {
	p := person{seat: rng.IntN(w.seats+1) - 1, float: rng.IntN(3) == 0}
	if rng.IntN(5) > 0 {
		p.handle = w.handles[rng.IntN(len(w.handles))]
	}
	if i := rng.IntN(len(w.teams) + 1); i < len(w.teams) {
		p.team = w.teams[i]
	}
	return p
}

func (p person) number() any {
	if p.float {
		return float64(p.seat)
	}
	return p.seat
}

// document is a person's, as a write.
func (p person) document(value string) client.D {
	d, place := client.D{"v": value, "n": 0}, client.D{}
	if p.handle != "" {
		d["handle"] = p.handle
	}
	if p.team != "" {
		place["team"] = p.team
	}
	if p.seat >= 0 {
		place["seat"] = p.number()
	}
	if len(place) > 0 {
		d["place"] = place
	}
	return d
}

// values are what a person holds, in the words of a refusal.
func (p person) values() (all []string) {
	if p.handle != "" {
		all = append(all, handleField+" "+strconv.Quote(p.handle))
	}
	if p.team != "" || p.seat >= 0 {
		team, seat := "(missing)", "(missing)"
		if p.team != "" {
			team = strconv.Quote(p.team)
		}
		if p.seat >= 0 {
			seat = strconv.Itoa(p.seat)
		}
		all = append(all, teamField+" "+team+", "+seatField+" "+seat)
	}
	return all
}

// personOf reads a document.
func (w *uniques) personOf(d *client.Document) person {
	p := nobody
	text := func(path string) string {
		v, ok := d.Get(path)
		if !ok {
			return ""
		}
		s, ok := v.Str()
		if !ok || s == "" {
			w.report("%s version %d has %s %s", d.ID, d.Version, path, v)
		}
		return s
	}
	p.handle, p.team = text(handleField), text(teamField)
	if v, ok := d.Get(seatField); ok {
		var err error
		number, isFloat := strings.CutSuffix(v.String(), ".0")
		if p.seat, err = strconv.Atoi(number); err != nil {
			w.report("%s version %d has %s %s", d.ID, d.Version, seatField, v)
		}
		p.float = isFloat
	}
	return p
}

// wish is a write that a client wants.
type wish struct {
	in     history.Input
	doc    client.D      // of Put and Insert
	update client.Update // of Add and AddOrCreate
}

// put is a wish for a whole document.
func (w *uniques) put(verb history.Verb, id, value string, p person) wish {
	w.mu.Lock()
	w.bodies[id+" "+value] = fmt.Sprint(p.values())
	w.mu.Unlock()
	return wish{in: history.Input{Key: id, Verb: verb, Value: value}, doc: p.document(value)}
}

// set is a wish for a change of a value.
func (w *uniques) set(rng *rand.Rand, verb history.Verb, id, value string) wish {
	x := wish{in: history.Input{Key: id, Verb: verb, Value: value, Add: 1}}
	x.update = change(x.in)
	p := w.any(rng)
	switch n := rng.IntN(8); {
	case n < 4 && p.handle != "":
		x.update = x.update.Set(handleField, p.handle)
	case n < 4:
		x.update = x.update.Unset(handleField)
	case n == 4 && p.seat >= 0:
		x.update = x.update.Set(seatField, p.number())
	case n == 5 && p.team != "":
		x.update = x.update.Set(teamField, p.team)
	case n == 6:
		x.update = x.update.Set("place", client.D{"team": w.teams[rng.IntN(len(w.teams))], "seat": max(p.seat, 0)})
	case n == 7:
		x.update = x.update.Unset("place")
	} // else nothing that is unique
	return x
}

// one draws a write of one document.
func (w *uniques) one(rng *rand.Rand, value string) wish {
	id := w.someone(rng)
	switch n := rng.IntN(20); {
	case n < 6:
		return w.put(history.Put, id, value, w.any(rng))
	case n < 10:
		return w.put(history.Insert, id, value, w.any(rng))
	case n < 14:
		return w.set(rng, history.Add, id, value)
	case n < 16:
		return w.set(rng, history.AddOrCreate, id, value)
	}
	return wish{in: history.Input{Key: id, Verb: history.Delete}}
}

func (w *uniques) someone(rng *rand.Rand) string { return w.people[rng.IntN(len(w.people))] }

// restorable are documents whose versions are restored: of them a value may be
// written more than once, which makes their judge see less.
func (w *uniques) restorable(id string) bool { return slices.Index(w.people, id)%3 == 0 }

// send asks the database for a write.
func (w *uniques) send(ctx context.Context, c *client.Collection, x wish, options ...client.WriteOption) history.Output {
	var r client.Result
	var err error
	switch x.in.Verb {
	case history.Put:
		r, err = c.Put(ctx, x.in.Key, x.doc, options...)
	case history.Insert:
		r, err = c.Insert(ctx, x.in.Key, x.doc, options...)
	case history.Add:
		r, err = c.Update(ctx, x.in.Key, x.update, append(options, client.ReturnDoc())...)
	case history.AddOrCreate:
		r, err = c.Upsert(ctx, x.in.Key, x.update, append(options, client.ReturnDoc())...)
	default:
		return w.do(ctx, c, x.in, options...)
	}
	return w.told(x.in, r, err)
}

// told is what a write was told.
func (w *uniques) told(in history.Input, r client.Result, err error) history.Output {
	if _, _, ok := refusedFor(fmt.Sprint(err)); errors.Is(err, client.ErrDuplicate) != ok {
		w.report("%s %s: a duplicate names the value and its holder, and nothing else does: %v", in.Verb, in.Key, err)
	}
	return w.wrote(in, r, err)
}

// duplicate is how a refusal names the value and who holds it. Transactions
// that hold one are no documents.
var duplicate = regexp.MustCompile(`: ((?:handle|place\.team) .+) is (held by|given to) (p\S+|probe\S+)`)

// refusedFor reads a refusal: the value, and the document that is said to hold it.
func refusedFor(reason string) (value, holder string, ok bool) {
	m := duplicate.FindStringSubmatch(reason)
	if m == nil {
		return "", "", false
	}
	return strings.TrimSuffix(m[1], ".0"), m[3], true
}

func (w *uniques) Client(s Session) Step {
	n := 0
	seen := map[string]history.Output{} // of restorable documents
	c := w.full("")
	return func(ctx context.Context) history.Outcome {
		n++
		value := fmt.Sprintf("%d-%d", s.Number, n)
		switch k := s.Rng.IntN(100); {
		case k < 26:
			return w.single(ctx, s, w.one(s.Rng, value))
		case k < 36:
			return w.repeated(ctx, s, w.one(s.Rng, value))
		case k < 46:
			return w.bulk(ctx, s, value)
		case k < 74:
			return w.transaction(ctx, s, value)
		case k < 80:
			return w.look(ctx, s)
		case k < 88:
			return w.scanned(ctx, s)
		case k < 92 && len(seen) > 0:
			ids := slices.Sorted(maps.Keys(seen))
			id := ids[s.Rng.IntN(len(ids))]
			return w.single(ctx, s, wish{in: history.Input{Key: id, Verb: history.Restore, AtVersion: seen[id].Version, Value: seen[id].Value}})
		default:
			in := history.Input{Key: w.someone(s.Rng), Verb: history.Get}
			p := w.recorder.Begin(s.Number, in)
			out := w.do(ctx, s.other().Collection(c), in)
			p.End(out)
			if out.Document && w.restorable(in.Key) && (seen[in.Key].Version == 0 || s.Rng.IntN(2) == 0) {
				seen[in.Key] = out
			}
			return asked(out.Outcome)
		}
	}
}

// single is one write.
func (w *uniques) single(ctx context.Context, s Session, x wish) history.Outcome {
	p := w.recorder.Begin(s.Number, x.in)
	out := w.send(ctx, s.DB.Collection(w.full("")), x)
	p.End(out)
	return asked(out.Outcome)
}

// repeated is one write that is asked for twice under one request ID: it has
// one effect and one answer, and a duplicate is an answer.
func (w *uniques) repeated(ctx context.Context, s Session, x wish) history.Outcome {
	id := s.DB.NewRequestID()
	p := w.recorder.Begin(s.Number, x.in)
	out := w.send(ctx, s.DB.Collection(w.full("")), x, client.WithRequestID(id))
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Again)
	defer cancel()
	second := w.send(again, s.other().Collection(w.full("")), x, client.Repeat(id))
	firm := func(o history.Output) bool {
		_, _, dup := refusedFor(o.Reason)
		return dup || asked(o.Outcome) == history.Done
	}
	switch {
	case firm(out) && firm(second):
		first, holder, _ := refusedFor(out.Reason)
		then, other, _ := refusedFor(second.Reason)
		if !sameAnswer(out, second) || first != then || holder != other {
			w.report("%s %s: one write, two answers: %+v, then %+v", x.in.Verb, x.in.Key, out, second)
		}
	case firm(second):
		out = second
	case out.Outcome == history.Refused && second.Outcome == history.Unknown:
		out = second
	}
	p.End(out)
	return asked(out.Outcome)
}

// bulk is many writes at once, each by itself.
func (w *uniques) bulk(ctx context.Context, s Session, value string) history.Outcome {
	c := s.DB.Collection(w.full(""))
	ordered := s.Rng.IntN(3) == 0
	b := s.DB.Bulk()
	if ordered {
		b = s.DB.OrderedBulk()
	}
	var items []wish
	var pending []*history.Pending
	for i := range 2 + s.Rng.IntN(4) {
		x, seq := w.one(s.Rng, fmt.Sprint(value, "-", i)), 0
		if ordered {
			seq = i + 1
		}
		switch x.in.Verb {
		case history.Put:
			b.Put(c, x.in.Key, x.doc)
		case history.Insert:
			b.Insert(c, x.in.Key, x.doc)
		case history.Add:
			b.Update(c, x.in.Key, x.update, client.ReturnDoc())
		case history.AddOrCreate:
			b.Upsert(c, x.in.Key, x.update, client.ReturnDoc())
		case history.Delete:
			b.Delete(c, x.in.Key)
		}
		items, pending = append(items, x), append(pending, w.recorder.BeginSeq(s.Number, seq, x.in))
	}
	res, err := b.Do(ctx)
	var failed *client.BulkError
	if err != nil && !errors.As(err, &failed) {
		w.report("bulk: %v", err)
		return history.Unknown
	}
	worst := history.Done
	for i, x := range items {
		out := w.told(x.in, res.Items[i].Result, res.Items[i].Err)
		pending[i].End(out)
		if out.Outcome == history.Unknown {
			worst = history.Unknown
		}
	}
	return worst
}

// twice looks for a value that two documents of one instant hold.
func (w *uniques) twice(what string, docs []*client.Document) {
	holder := map[string]string{}
	for _, d := range docs {
		if d == nil {
			continue
		}
		for _, v := range w.personOf(d).values() {
			if other := holder[v]; other != "" {
				w.anomaly("duplicate value", "%s: %s and %s both hold %s", what, other, d.ID, v)
			}
			holder[v] = d.ID
		}
	}
}

// attemptUnique is a run of a transaction of this workload.
type attemptUnique struct {
	*attempt
	w     *uniques
	c     *client.TxCollection
	value string
}

// read reads people, at one instant, and says what they hold.
func (a *attemptUnique) read(ctx context.Context, ids ...string) ([]person, error) {
	if err := a.step(); err != nil {
		return nil, err
	}
	docs, err := a.c.GetMany(ctx, ids)
	if err != nil {
		return nil, err
	}
	return a.found(ids, docs)
}

// found notes what was read.
func (a *attemptUnique) found(ids []string, docs []*client.Document) ([]person, error) {
	what := "locked in a transaction" // and of no timestamp yet
	if at := a.tx.Timestamp(); at != 0 {
		what = fmt.Sprintf("read in a transaction at %d", at)
	}
	a.w.twice(what, docs)
	people := make([]person, len(ids))
	for i, id := range ids {
		if _, err := a.saw(id, docs[i]); err != nil {
			return nil, err
		}
		people[i] = nobody
		if docs[i] != nil {
			people[i] = a.w.personOf(docs[i])
		}
	}
	return people, nil
}

// give writes a person, in one of two ways.
func (a *attemptUnique) give(s Session, id string, p person) error {
	if s.Rng.IntN(3) > 0 {
		a.wrote(history.Put, id, a.value, 0, true)
		return a.c.Put(id, a.w.put(history.Put, id, a.value, p).doc)
	}
	u := client.Set("v", a.value).Inc("n", 1)
	if p.handle != "" {
		u = u.Set(handleField, p.handle)
	} else {
		u = u.Unset(handleField)
	}
	place, _ := p.document("")["place"].(client.D)
	if place != nil {
		u = u.Set("place", place)
	} else {
		u = u.Unset("place")
	}
	a.wrote(history.AddOrCreate, id, a.value, 0, false)
	return a.c.Upsert(id, u)
}

// transaction moves values between two or three people, or wants them blindly.
func (w *uniques) transaction(ctx context.Context, s Session, value string) history.Outcome {
	pick := s.Rng.Perm(len(w.people))
	x, y, z := w.people[pick[0]], w.people[pick[1]], w.people[pick[2]]
	kind := s.Rng.IntN(12)
	names := []string{"swap", "swap", "swap", "swap", "move", "move", "replace", "rotate", "blind", "blind", "twice", "free"}
	last := ""
	run := w.transact(ctx, s, fateOf(s), names[kind], func(ctx context.Context, tried *attempt) error {
		a := &attemptUnique{attempt: tried, w: w, c: tried.tx.Collection(w.full("")), value: fmt.Sprintf("%s.%d", value, tried.number)}
		last = a.value
		switch names[kind] {
		case "swap": // handles, or all that they have
			ps, err := a.read(ctx, x, y)
			if err != nil {
				return err
			}
			if s.Rng.IntN(2) == 0 {
				ps[0].handle, ps[1].handle = ps[1].handle, ps[0].handle
			} else {
				ps[0], ps[1] = ps[1], ps[0]
			}
			return errors.Join(a.give(s, x, ps[0]), a.step(), a.give(s, y, ps[1]))
		case "move":
			ps, err := a.read(ctx, x, y)
			if err != nil {
				return err
			}
			if ps[0].handle == "" {
				return errDeclined
			}
			ps[1].handle, ps[0].handle = ps[0].handle, ""
			return errors.Join(a.give(s, y, ps[1]), a.step(), a.give(s, x, ps[0]))
		case "replace": // one goes, another has what it held
			ps, err := a.read(ctx, x, y)
			if err != nil {
				return err
			}
			if len(ps[0].values()) == 0 {
				return errDeclined
			}
			a.wrote(history.Delete, x, a.value, 0, false)
			return errors.Join(a.give(s, y, ps[0]), a.step(), a.c.Delete(x))
		case "rotate":
			ps, err := a.read(ctx, x, y, z)
			if err != nil {
				return err
			}
			return errors.Join(a.give(s, x, ps[1]), a.give(s, y, ps[2]), a.step(), a.give(s, z, ps[0]))
		case "blind":
			if s.Rng.IntN(2) == 0 {
				a.wrote(history.Delete, z, a.value, 0, false)
				if err := a.c.Delete(z); err != nil {
					return err
				}
			}
			return errors.Join(a.give(s, x, w.any(s.Rng)), a.step(), a.give(s, y, w.any(s.Rng)))
		case "twice": // nobody may be told that this was done
			p := person{handle: w.handles[s.Rng.IntN(len(w.handles))], seat: -1}
			return errors.Join(a.give(s, x, p), a.give(s, y, p))
		}
		// What a scan says is free, nobody may have taken when it is committed.
		if err := a.step(); err != nil {
			return err
		}
		docs := make([]*client.Document, len(w.people))
		for d, err := range a.c.Scan(ctx) {
			if err != nil {
				return err
			}
			i := slices.Index(w.people, d.ID)
			if i < 0 || docs[i] != nil {
				a.w.anomaly("phantom", "a scan of the people in a transaction gave %s, which does not belong there or came before", d.ID)
				continue
			}
			docs[i] = d
		}
		ps, err := a.found(w.people, docs)
		if err != nil {
			return err
		}
		free := slices.DeleteFunc(slices.Clone(w.handles), func(h string) bool {
			return slices.ContainsFunc(ps, func(p person) bool { return p.handle == h })
		})
		if len(free) == 0 {
			return errDeclined
		}
		p := ps[pick[0]]
		p.handle = free[s.Rng.IntN(len(free))]
		return a.give(s, x, p)
	})
	if run.Time != 0 {
		w.mu.Lock()
		w.times[last] = run.Time
		w.mu.Unlock()
	}
	if _, _, ok := refusedFor(fmt.Sprint(run.Err)); errors.Is(run.Err, client.ErrDuplicate) != ok {
		w.report("transaction %s: a duplicate names the value and its holder, and nothing else does: %v", value, run.Err)
	}
	return run.Outcome
}

// look reads everybody in a read-only transaction.
func (w *uniques) look(ctx context.Context, s Session) history.Outcome {
	return w.transact(ctx, s, fate{begin: s.Rng.IntN(2) == 0}, "look", func(ctx context.Context, tried *attempt) error {
		a := &attemptUnique{attempt: tried, w: w, c: tried.tx.Collection(w.full(""))}
		_, err := a.read(ctx, w.people...)
		return err
	}, client.ReadOnly()).Outcome
}

// scanned lists everybody at one instant.
func (w *uniques) scanned(ctx context.Context, s Session) history.Outcome {
	options := []client.ReadOption{client.PageSize(1 + s.Rng.IntN(6))}
	if s.Rng.IntN(4) == 0 {
		options = append(options, client.Reverse())
	}
	p := w.recorder.BeginTxn(history.Transaction{Client: s.Number, Name: "scan"})
	docs, at, err := w.everybody(ctx, s.DB.Collection(w.full("")), options...)
	o, why := history.Done, ""
	var parts []history.Part
	if err != nil {
		o, why = w.outcome("scan", err), err.Error()
	} else {
		w.twice(fmt.Sprintf("a scan at %d", at), slices.Collect(maps.Values(docs)))
		for _, id := range w.people {
			out := history.Output{Outcome: history.Missing}
			if d := docs[id]; d != nil {
				out = w.read(id, d)
			}
			parts = append(parts, history.Part{Input: history.Input{Key: id, Verb: history.Get}, Output: out})
		}
	}
	p.End(func(t *history.Transaction) { t.Outcome, t.Reason, t.Time, t.Parts = o, why, at, parts })
	return o
}

// everybody scans the collection, and says as of when.
func (w *uniques) everybody(ctx context.Context, c *client.Collection, options ...client.ReadOption) (map[string]*client.Document, uint64, error) {
	docs := map[string]*client.Document{}
	it := c.Iterator(options...)
	for it.Next(ctx) {
		d := it.Document()
		if docs[d.ID] != nil || !slices.Contains(w.people, d.ID) && !strings.HasPrefix(d.ID, probePrefix) {
			w.anomaly("phantom", "a scan of the people gave %s, which does not belong there or came before", d.ID)
		}
		docs[d.ID] = d
	}
	return docs, uint64(it.Timestamp()), it.Err()
}

const (
	probePrefix = "probe"
	probeWithin = 10 * time.Second // of a value that is free or whose holder can be named
)

// everything is a person for each value that there is.
func (w *uniques) everything() (all []person) {
	for _, h := range w.handles {
		all = append(all, person{handle: h, seat: -1})
	}
	for _, team := range append(slices.Clip(w.teams), "") {
		for seat := -1; seat < w.seats; seat++ {
			if p := (person{team: team, seat: seat}); len(p.values()) > 0 {
				all = append(all, p)
			}
		}
	}
	return all
}

// Final asks for every value: it is free, or a document is named that holds it.
// So what the database keeps of values is what its documents hold.
func (w *uniques) Final(ctx context.Context, db *client.DB) error {
	c := db.Collection(w.full(""))
	keys := slices.Clone(w.people)
	probes := 0
	for i, p := range w.everything() {
		id := fmt.Sprintf("%s%02d", probePrefix, i)
		keys = append(keys, id)
		probes++
		// One that cannot be had is enough to know, and takes long.
		if ok, err := w.probe(ctx, c, id, p); err != nil {
			return err
		} else if !ok {
			break
		}
	}
	if err := w.lastReads(ctx, c, keys); err != nil {
		return err
	}
	// One instant: a transaction that is still on its way commits above it.
	docs, limit, err := w.everybody(ctx, c)
	if err != nil {
		return fmt.Errorf("workload unique: %w", err)
	}
	w.twice("a scan at rest", slices.Collect(maps.Values(docs)))
	stored, held := map[string][]history.Stored{}, map[string]map[uint64][]string{}
	for _, id := range keys {
		list := []history.Stored{}
		held[id] = map[uint64][]string{}
		for d, err := range c.History(ctx, id) {
			if errors.Is(err, client.ErrNotFound) {
				break // it never came to be
			}
			if err != nil {
				return fmt.Errorf("workload unique: the history of %s: %w", id, err)
			}
			if uint64(d.UpdatedAt) > limit {
				continue
			}
			v := history.Stored{Version: d.Version, Time: uint64(d.UpdatedAt), Deleted: d.Deleted}
			if !d.Deleted {
				b, err := decode(d)
				if err != nil {
					return fmt.Errorf("workload unique: the history of %s, version %d: %w", id, d.Version, err)
				}
				v.Value, v.Count = b.Value, b.Count
				held[id][d.Version] = w.personOf(d).values()
				w.mu.Lock()
				whole, ok := w.bodies[id+" "+b.Value]
				w.mu.Unlock()
				if ok && whole != fmt.Sprint(held[id][d.Version]) {
					w.anomaly("wrong body", "%s version %d (%s) holds %v, and was written with %s", id, d.Version, b.Value, held[id][d.Version], whole)
				}
			}
			list = append(list, v)
		}
		slices.SortFunc(list, func(a, b history.Stored) int { return cmp.Compare(a.Version, b.Version) })
		stored[id] = list
	}
	w.stored, w.held, w.probes = stored, held, probes
	return nil
}

// probe takes a value that nobody has, and gives it back.
func (w *uniques) probe(ctx context.Context, c *client.Collection, id string, p person) (ok bool, err error) {
	value := p.values()[0]
	bounded, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	do := func(x wish) history.Output {
		pending := w.recorder.Begin(finalReader, x.in)
		out := w.send(bounded, c, x)
		pending.End(out)
		return out
	}
	taken, why := false, ""
	for attempt := 1; attempt == 1 || bounded.Err() == nil; attempt++ {
		if attempt > 1 {
			time.Sleep(20 * time.Millisecond)
		}
		if taken {
			out := do(wish{in: history.Input{Key: id, Verb: history.Delete}})
			if asked(out.Outcome) == history.Done {
				return true, nil
			}
			if bounded.Err() == nil {
				why = out.Reason
			}
			continue
		}
		out := do(w.put(history.Insert, id, fmt.Sprint(id, ".", attempt), p))
		// An attempt that was not answered may have been done after all.
		if taken = asked(out.Outcome) == history.Done; bounded.Err() == nil {
			why = out.Reason
		}
		if _, holder, dup := refusedFor(out.Reason); dup {
			d, err := c.Get(ctx, holder)
			if err == nil && slices.Contains(w.personOf(d).values(), value) {
				return true, nil
			}
			// What was committed and was not done everywhere yet is done soon.
			why = fmt.Sprintf("%s is said to hold it, and does not", holder)
		}
	}
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("workload unique: asking for %s: %w: %s", value, err, why)
	}
	w.anomaly("value not freed", "%s cannot be taken and given back within %v after the last client: %s", value, probeWithin, why)
	return false, nil
}

func (w *uniques) Judge() []history.Verdict {
	ops, txns := w.recorder.Operations(), w.recorder.Transactions()
	if w.stored == nil {
		return []history.Verdict{w.answers()}
	}
	refused := slices.Clone(txns)
	txns = settle(w.stored, w.times).transactions(txns)
	var snapshots []history.Transaction
	for _, t := range txns {
		if t.Time != 0 {
			snapshots = append(snapshots, t)
		}
	}
	writes := append(slices.Clip(ops), operations(txns)...)
	return []history.Verdict{
		w.answers(), w.instants(), w.refusals(append(history.Singles(ops), refused...), writes),
		history.StrictSerializability{}.Check(append(history.Singles(ops), txns...)),
		history.Versions{Stored: w.stored, Complete: true}.Check(writes, snapshots),
	}
}

// instants: at no timestamp do two documents hold one value.
func (w *uniques) instants() history.Verdict {
	type hold struct {
		id       string
		version  uint64
		from, to uint64
	}
	v := history.Verdict{Checker: "one holder"}
	by := map[string][]hold{}
	versions := 0
	for id, list := range w.stored {
		versions += len(list)
		for i, s := range list {
			to := uint64(math.MaxUint64)
			if i+1 < len(list) {
				to = list[i+1].Time
			}
			for _, value := range w.held[id][s.Version] {
				by[value] = append(by[value], hold{id, s.Version, s.Time, to})
			}
		}
	}
	holds := 0
	for _, value := range slices.Sorted(maps.Keys(by)) {
		all := by[value]
		holds += len(all)
		slices.SortFunc(all, func(a, b hold) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) })
		last := hold{}
		for _, h := range all {
			if h.from < last.to && h.id != last.id && len(v.Anomalies) < 10 {
				v.Anomalies = append(v.Anomalies, history.Anomaly{Name: "duplicate value", Text: fmt.Sprintf(
					"%s is held by %s (version %d, from %d on) and by %s (version %d, from %d on) at one time", value, last.id, last.version, last.from, h.id, h.version, h.from)})
			}
			if h.to > last.to {
				last = h
			}
		}
	}
	v.Judged = fmt.Sprintf("%d versions of %d documents, in which %d values were held %d times; %d values asked for at rest", versions, len(w.stored), len(by), holds, w.probes)
	return v
}

// span is when something may have been so, on the clients' clock.
type span struct{ from, to time.Duration }

const forever = time.Duration(math.MaxInt64)

// refusals: whoever is said to hold a value held it at some moment of the call:
// from when its write may have been done to when what replaced it surely was.
func (w *uniques) refusals(asked []history.Transaction, writes []history.Operation) history.Verdict {
	v := history.Verdict{Checker: "refused for a reason"}
	found := func(t *history.Transaction, format string, args ...any) {
		if len(v.Anomalies) < 10 {
			v.Anomalies = append(v.Anomalies, history.Anomaly{Name: "refused for nothing", Transactions: []history.Transaction{*t}, Text: fmt.Sprintf(format, args...) + "\n  " + t.String()})
		}
	}
	// Who made which version, and when.
	type version struct {
		id     string
		number uint64
	}
	type made struct{ id, value string }
	told, maybe := map[version]span{}, map[made]span{}
	for i := range writes {
		op := &writes[i]
		switch {
		case !op.Input.Writes() || op.Output.Outcome != history.Done && op.Output.Outcome != history.Unknown:
		case op.Output.Outcome == history.Done && op.Output.Version != 0:
			told[version{op.Input.Key, op.Output.Version}] = span{op.Call, op.Return}
		default:
			m := made{op.Input.Key, op.Input.Value}
			at, ok := maybe[m]
			if !ok || op.Call < at.from {
				at.from = op.Call
			}
			maybe[m] = span{at.from, forever}
		}
	}
	type place struct{ id, value string }
	may := map[place][]span{}
	for id, list := range w.stored {
		spans := make([]span, len(list))
		for i, s := range list {
			at, ok := told[version{id, s.Version}]
			if !ok && !s.Deleted {
				at, ok = maybe[made{id, s.Value}]
			}
			if !ok {
				at = span{0, forever}
			}
			spans[i] = at
		}
		for i, s := range list {
			to := forever
			if i+1 < len(list) {
				to = spans[i+1].to
			}
			for _, value := range w.held[id][s.Version] {
				p := place{id, value}
				may[p] = append(may[p], span{spans[i].from, to})
			}
		}
	}
	for p, spans := range may {
		slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
		for i := 1; i < len(spans); i++ { // of those that begin so early, the latest end
			spans[i].to = max(spans[i].to, spans[i-1].to)
		}
		may[p] = spans
	}
	duplicates := 0
	for i := range asked {
		t := &asked[i]
		value, holder, ok := refusedFor(t.Reason)
		if !ok || t.Outcome == history.Unknown {
			continue
		}
		duplicates++
		written := slices.IndexFunc(t.Parts, func(p history.Part) bool { return p.Input.Writes() && p.Input.Key == holder }) >= 0
		if len(t.Parts) == 1 && written {
			found(t, "%s was refused for what it holds itself", holder)
			continue
		}
		if strings.Contains(t.Reason, " is given to ") {
			if !written {
				found(t, "%s is not of the transaction", holder)
			}
			continue
		}
		spans := may[place{holder, value}]
		n, _ := slices.BinarySearchFunc(spans, t.Return, func(s span, at time.Duration) int {
			if s.from <= at {
				return -1
			}
			return 1
		})
		if n == 0 || spans[n-1].to < t.Call {
			found(t, "%s did not hold %s at any moment of the call", holder, value)
		}
	}
	v.Judged = fmt.Sprintf("%d writes and transactions refused for a value", duplicates)
	return v
}
