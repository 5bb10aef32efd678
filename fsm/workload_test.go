package fsm

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// workload makes random entries over few documents, so that everything meets
// everything: conflicts, retries, late retries, restores, horizons, garbage,
// drops, commands of the wrong partition or epoch.
type workload struct {
	t     testing.TB
	rng   *rand.Rand
	index uint64
	now   hlc.Timestamp
	reqs  []Command // writes that may be retried
	drops int
	txns  []*workTxn
	big   bool // some bodies are larger than what the engine keeps in line
}

func newWorkload(t testing.TB, seed uint64) *workload {
	return &workload{t: t, rng: rand.New(rand.NewPCG(seed, 7)), now: 1000}
}

const workPartitions = 3

func (w *workload) key() ReadKey {
	ids := []string{"a", "a\x00", "a\x00b", "b", "bb", "c", "é", "a1", "a2", "b1", "b2", "long-" + strings.Repeat("x", 90)}
	n := w.rng.IntN(len(ids))
	return ReadKey{
		Partition:  placement.PartitionID(n % workPartitions),
		Epoch:      1,
		Collection: placement.CollectionID(1 + w.rng.IntN(3)),
		ID:         ids[n],
	}
}

func (w *workload) body() doc.Raw {
	text := ""
	if w.big && w.rng.IntN(2) == 0 {
		text = strings.Repeat("lorem ipsum ", 20+w.rng.IntN(200))
	}
	return body(w.t, fmt.Sprintf(`{"n":%d,"list":[%d],"text":%q}`, w.rng.IntN(100), w.rng.IntN(9), text))
}

var workUpdates = []string{`{"$inc":{"n":1}}`, `{"$push":{"list":7}}`, `{"$set":{"deep.er":true}}`, `{"$unset":{"n":1}}`, `{"$inc":{"list":1}}`, `{"$bogus":1}`}

// write is one write, sometimes one that was sent before.
func (w *workload) write() Command {
	if len(w.reqs) > 0 && w.rng.IntN(6) == 0 {
		c := w.reqs[w.rng.IntN(len(w.reqs))]
		c.Time = w.now
		return c
	}
	k := w.key()
	if w.rng.IntN(20) == 0 {
		k.Partition = 9
	}
	if w.rng.IntN(20) == 0 {
		k.Epoch = 0
	}
	item := wire.WriteItem{
		RequestID: request(uint64(w.now)-uint64(w.rng.IntN(30)), w.rng.Uint64()),
		Op:        wire.WriteOp(1 + w.rng.IntN(6)), ID: k.ID, ReturnDoc: w.rng.IntN(3) == 0,
	}
	switch item.Op {
	case wire.OpPut, wire.OpInsert:
		item.Body = w.body()
	case wire.OpUpdate, wire.OpUpsert:
		item.Body = body(w.t, workUpdates[w.rng.IntN(len(workUpdates))])
	case wire.OpRestore:
		item.RestoreVersion = uint64(1 + w.rng.IntN(12))
	}
	switch w.rng.IntN(10) {
	case 0:
		item.Cond = wire.CondAbsent
	case 1:
		item.Cond = wire.CondPresent
	case 2:
		item.IfVersion = uint64(1 + w.rng.IntN(8))
	}
	c := Command{Time: w.now, Write: &Write{Partition: k.Partition, Epoch: k.Epoch, Collection: k.Collection, Item: item}}
	w.reqs = append(w.reqs, c)
	if len(w.reqs) > 200 {
		w.reqs = w.reqs[50:]
	}
	return c
}

// entry is the next one for a replica in this state; it is only looked at.
func (w *workload) entry(r *replica) Entry {
	w.index++
	if w.index == 1 {
		return mustEntry(w.t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{0, 1, 2}}})
	}
	w.now += hlc.Timestamp(w.rng.IntN(4))
	switch w.rng.IntN(40) {
	case 0:
		return Entry{Index: w.index, Term: 1}
	case 1:
		return mustEntry(w.t, w.index, Command{Ceiling: &Ceiling{To: w.now + 50}})
	case 2:
		h := &Horizon{RequestIDs: w.now - 200, History: []HistoryHorizon{{Collection: placement.CollectionID(1 + w.rng.IntN(3)), At: w.now - hlc.Timestamp(w.rng.IntN(100))}}}
		return mustEntry(w.t, w.index, Command{Horizon: h}, w.write())
	case 3, 4, 5:
		kept := uint32(w.rng.IntN(2))
		keep := func(placement.CollectionID) uint32 { return kept }
		limits := SweepLimits{Visit: 100 + w.rng.IntN(200)} // a document's versions in one step
		g := sweepAll(w.t, r.Machine, limits, keep)
		// A machine that was just opened knows nothing of what to pass over.
		fresh, err := Open(Options{Group: testGroup, Engine: r.engine})
		if err != nil {
			w.t.Fatal(err)
		}
		if want := sweepAll(w.t, fresh, limits, keep); !slices.EqualFunc(g.keys(), want.keys(), bytes.Equal) {
			w.t.Fatalf("entry %d: found %d versions of garbage, a machine that reads everything finds %d", w.index, g.Versions, want.Versions)
		}
		if len(g.Collects) > 0 {
			return mustEntry(w.t, w.index, w.write(), Command{Collect: &g.Collects[0]}, w.write())
		}
	case 6:
		return mustEntry(w.t, w.index, r.DigestCommand(), w.write())
	case 7:
		if w.drops < 1 && w.index > 100 {
			w.drops++
			return mustEntry(w.t, w.index, w.write(), Command{Drop: &Drop{Collection: 3}}, w.write())
		}
	case 8:
		// A mistaken Collect: versions picked blindly.
		k := w.key()
		return mustEntry(w.t, w.index, Command{Collect: &Collect{Keys: [][]byte{versionKey(k, uint64(w.now)-uint64(w.rng.IntN(50)))}}})
	}
	commands := make([]Command, 1+w.rng.IntN(5))
	for i := range commands {
		if commands[i] = w.write(); w.rng.IntN(3) == 0 {
			commands[i] = w.txn(r)
		}
	}
	return mustEntry(w.t, w.index, commands...)
}

// workTxn is a transaction of the workload and what it has been answered.
type workTxn struct {
	id    txn.ID
	home  placement.PartitionID
	parts map[placement.PartitionID]txn.Part
}

// part reads and writes some documents of one partition, as they are or nearly.
func (w *workload) part(r *replica, p placement.PartitionID) (part txn.Part) {
	seen := map[ReadKey]bool{}
	for range 1 + w.rng.IntN(4) {
		k := w.key()
		if k.Partition != p || seen[k] {
			continue
		}
		seen[k] = true
		if w.rng.IntN(2) == 0 {
			d, err := r.Get(k, At{}, true)
			at := hlc.Timestamp(d.UpdatedAt)
			if w.rng.IntN(10) == 0 {
				at++
			}
			_ = err // not there: at is 0
			part.Reads = append(part.Reads, txn.Read{Collection: k.Collection, ID: k.ID, At: at})
		}
		if w.rng.IntN(8) == 0 {
			part.Ranges = append(part.Ranges, txn.Range{Collection: k.Collection, Prefix: k.ID[:1], To: k.ID, At: w.now - hlc.Timestamp(w.rng.IntN(40))})
		}
		if w.rng.IntN(2) == 0 {
			x := txn.Write{Collection: k.Collection, ID: k.ID}
			for range 1 + w.rng.IntN(2) {
				o := txn.Op{Op: []wire.WriteOp{wire.OpPut, wire.OpPut, wire.OpUpsert, wire.OpInsert, wire.OpDelete, wire.OpUpdate}[w.rng.IntN(6)]}
				switch o.Op {
				case wire.OpPut, wire.OpInsert:
					o.Body = w.body()
				case wire.OpUpdate, wire.OpUpsert:
					o.Body = body(w.t, workUpdates[0])
				}
				x.Ops = append(x.Ops, o)
			}
			part.Writes = append(part.Writes, x)
		}
	}
	return part
}

// txn is a step of some transaction, whether or not it is its turn.
func (w *workload) txn(r *replica) Command {
	if len(w.txns) == 0 || w.rng.IntN(4) == 0 {
		t := &workTxn{id: txn.ID(request(uint64(w.now)-uint64(w.rng.IntN(30)), w.rng.Uint64())), parts: map[placement.PartitionID]txn.Part{}}
		for _, p := range w.rng.Perm(workPartitions)[:1+w.rng.IntN(workPartitions)] {
			t.home = placement.PartitionID(p)
			t.parts[t.home] = w.part(r, t.home)
		}
		if w.txns = append(w.txns, t); len(w.txns) > 8 {
			w.txns = w.txns[1:]
		}
	}
	t := w.txns[w.rng.IntN(len(w.txns))]
	x := &Txn{ID: t.id, Partition: t.home, Epoch: 1}
	var others []placement.PartitionID
	for p := range placement.PartitionID(workPartitions) {
		if _, in := t.parts[p]; in && p != t.home {
			others = append(others, p)
		}
	}
	if w.rng.IntN(30) == 0 {
		x.Epoch = 0
	}
	var most hlc.Timestamp
	prepared := 0
	for _, h := range r.Holders() {
		if h.ID == t.id && h.Partition == t.home {
			most = max(most, h.At)
		} else if h.ID == t.id {
			most = max(most, h.At)
			prepared++
		}
	}
	answer, err := r.Decision(t.home, 1, t.id)
	if err != nil { // a partition that is not owned
		answer = txn.Answer{}
	}
	switch n := w.rng.IntN(9); {
	case answer.State == txn.Staged && n < 4:
		switch {
		case prepared == len(others):
			x.Confirm = &Confirm{At: most}
		case n == 0:
			x.Reject = &Reject{}
		default:
			x.Partition = others[w.rng.IntN(len(others))]
			x.Poll = &Poll{Deny: n == 1, Raise: w.now + hlc.Timestamp(w.rng.IntN(9))}
		}
	case n == 8 && len(others) > 0:
		x.Prepare = &Prepare{Participants: others, Home: t.home, Deadline: w.now + 20, Born: w.now, Part: t.parts[t.home]}
	case n < 3 && len(others) > 0:
		x.Partition = others[w.rng.IntN(len(others))]
		x.Prepare = &Prepare{Home: t.home, Deadline: w.now + 20, Born: w.now, Part: t.parts[x.Partition]}
	case n < 4 && len(others) == 0:
		x.Commit = &Commit{}
		x.Commit.Parts = append(x.Commit.Parts, PartitionPart{t.home, t.parts[t.home]})
	case n < 6 && answer.Decided() && len(others) > 0:
		x.Partition = others[w.rng.IntN(len(others))]
		x.Resolve = &Resolve{Commit: answer.State == txn.Committed, At: answer.At}
	case n < 6 && prepared == len(others):
		x.Decide = &Decide{MaxP: most, Participants: others, Part: t.parts[t.home]}
	case n == 6 && answer.State == txn.Committed && prepared == 0:
		x.Forget = &Forget{}
	default:
		x.Settle = &Settle{Abort: w.rng.IntN(3) == 0, Raise: w.now + hlc.Timestamp(w.rng.IntN(9))}
	}
	return Command{Time: w.now, Txn: x}
}

// TestSameLogSameState applies one log to machines that group it differently,
// restart and are copied in between: same answers, same bytes, same digest.
func TestSameLogSameState(t *testing.T) {
	met, locked := map[txn.State]int{}, 0
	for seed := range uint64(8) {
		w := newWorkload(t, seed)
		w.big = seed%2 == 1
		lead := newReplica(t, nil)
		var log []Entry
		var want [][]Result
		for range 600 {
			e := w.entry(lead)
			want = append(want, lead.mustApply(e)[0])
			log = append(log, e)
		}
		lead.verify()
		for _, results := range want {
			for _, r := range results {
				if r.Txn != nil {
					met[r.Txn.State]++
				}
				if r.Wire.Error != nil && r.Wire.Error.Code == wire.CodeLocked {
					locked++
				}
			}
		}
		rows := lead.rows()
		for follower := range 4 {
			rng := rand.New(rand.NewPCG(seed, uint64(follower)))
			r := newReplica(t, nil)
			for at := 0; at < len(log); {
				n := min(1+rng.IntN(1<<(2*follower+1)), len(log)-at)
				from := max(0, at-rng.IntN(5)) // some again: they are skipped
				got := r.mustApply(log[from : at+n]...)
				for i, results := range got {
					switch {
					case from+i < at && results != nil:
						t.Fatalf("seed %d: entry %d ran twice", seed, log[from+i].Index)
					case from+i >= at:
						if a, b := fmt.Sprintf("%+v", printable(results)), fmt.Sprintf("%+v", printable(want[from+i])); a != b {
							t.Fatalf("seed %d, follower %d: entry %d answered\n%s\nand first\n%s", seed, follower, log[from+i].Index, a, b)
						}
					}
				}
				at += n
				r = r.interrupted(rng.IntN(30))
			}
			r.verify()
			if got := r.rows(); got != rows {
				t.Fatalf("seed %d, follower %d: %s", seed, follower, diff(rows, got))
			}
			if r.Stats().Digest != lead.Stats().Digest {
				t.Fatalf("seed %d, follower %d: digests differ", seed, follower)
			}
		}
	}
	t.Logf("transactions' answers: %v, single writes that met a lock: %d", met, locked)
	for _, state := range []txn.State{txn.None, txn.Prepared, txn.Refused, txn.Done, txn.Committed, txn.Aborted} {
		if met[state] < 20 {
			t.Errorf("only %d answers were %s", met[state], state)
		}
	}
	if locked < 20 {
		t.Errorf("only %d writes met a lock", locked)
	}
}

// printable follows the pointers of results, so that they compare as text.
func printable(results []Result) (out []string) {
	for _, r := range results {
		s := fmt.Sprintf("%+v %q", r.Wire, r.Detail)
		if r.Wire.Error != nil {
			e := *r.Wire.Error
			r.Wire.Error = nil
			s = fmt.Sprintf("%+v %+v %q", r.Wire, e, r.Detail)
		}
		if r.Txn != nil {
			s += fmt.Sprintf(" %s %d %+v", r.Txn.State, r.Txn.At, r.Txn.Conflict != nil)
		}
		out = append(out, s)
	}
	return out
}

// model is what the machine should do, in the simplest way: all versions of
// all documents in memory, no horizons but the replicated ones.
type model struct {
	docs map[ReadKey][]wire.Document // oldest first
}

// TestReadsAgainstModel compares every kind of read with a model that is kept
// from the answers to writes alone.
func TestReadsAgainstModel(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 99))
		r := newReplica(t, nil)
		m := model{docs: map[ReadKey][]wire.Document{}}
		w := newWorkload(t, seed)
		w.big = true
		r.mustApply(w.entry(r))
		for range 400 {
			w.index++
			w.now++
			c := w.write()
			c.Write.Item.ReturnDoc = true
			res := r.mustApply(mustEntry(t, w.index, c))[0][0]
			k := ReadKey{Partition: c.Write.Partition, Epoch: 1, Collection: c.Write.Collection, ID: c.Write.Item.ID}
			if res.Wire.Error == nil && !res.Wire.Duplicate {
				d := wire.Document{ID: k.ID, Version: res.Wire.Version, CreatedAt: res.Wire.CreatedAt, UpdatedAt: res.Wire.Time, Deleted: c.Write.Item.Op == wire.OpDelete, Body: res.Wire.Doc}
				if n := uint64(len(m.docs[k])); d.Version != n+1 {
					t.Fatalf("seed %d: %+v: version %d follows %d", seed, k, d.Version, n)
				}
				m.docs[k] = append(m.docs[k], d)
			}
			if rng.IntN(10) == 0 {
				m.check(t, rng, r, w.now)
			}
			if rng.IntN(50) == 0 {
				if _, err := r.Flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func same(a, b *wire.Document) bool {
	return a.ID == b.ID && a.Version == b.Version && a.CreatedAt == b.CreatedAt && a.UpdatedAt == b.UpdatedAt && a.Deleted == b.Deleted && string(a.Body) == string(b.Body)
}

// visible is the version at a time, if the document exists then.
func visible(versions []wire.Document, at hlc.Timestamp) *wire.Document {
	for i := len(versions) - 1; i >= 0; i-- {
		if hlc.Timestamp(versions[i].UpdatedAt) <= at {
			if versions[i].Deleted {
				return nil
			}
			return &versions[i]
		}
	}
	return nil
}

func (m *model) check(t *testing.T, rng *rand.Rand, r *replica, now hlc.Timestamp) {
	t.Helper()
	at := hlc.Max
	if rng.IntN(2) == 0 {
		at = now - hlc.Timestamp(rng.IntN(300))
	}
	var asked hlc.Timestamp
	if at != hlc.Max {
		asked = at
	}
	for k, versions := range m.docs {
		got, err := r.Get(k, At{Time: asked}, false)
		want := visible(versions, at)
		if (err == nil) != (want != nil) || err == nil && !same(&got, want) {
			t.Fatalf("get %+v at %d: %+v, %v; want %+v", k, at, got, err, want)
		}
		v := uint64(1 + rng.IntN(len(versions)+1))
		got, err = r.Get(k, At{Version: v}, false)
		exists := v <= uint64(len(versions)) && !versions[v-1].Deleted
		if (err == nil) != exists || err == nil && !same(&got, &versions[v-1]) {
			t.Fatalf("get %+v version %d: %+v, %v", k, v, got, err)
		}
		var all []wire.Document
		for before, more := uint64(0), true; more; {
			var page []wire.Document
			if page, more, err = r.History(k, before, 1+rng.IntN(5), false); err != nil {
				t.Fatal(err)
			}
			all = append(all, page...)
			before = all[len(all)-1].Version
		}
		if len(all) != len(versions) {
			t.Fatalf("history %+v: %d versions of %d", k, len(all), len(versions))
		}
		for i := range all {
			if !same(&all[i], &versions[len(versions)-1-i]) {
				t.Fatalf("history %+v: %+v", k, all[i])
			}
		}
	}
	m.checkScans(t, rng, r, at, asked)
}

func (m *model) checkScans(t *testing.T, rng *rand.Rand, r *replica, at, asked hlc.Timestamp) {
	t.Helper()
	spec := ScanSpec{Collection: placement.CollectionID(1 + rng.IntN(3)), At: asked, Reverse: rng.IntN(2) == 0, Prefix: []string{"", "a", "a\x00", "b", "long", "zz"}[rng.IntN(6)]}
	if rng.IntN(3) == 0 {
		spec.Partitions = []placement.PartitionID{placement.PartitionID(rng.IntN(workPartitions))}
	}
	want := map[string]*wire.Document{}
	for k, versions := range m.docs {
		if k.Collection != spec.Collection || !strings.HasPrefix(k.ID, spec.Prefix) || spec.Partitions != nil && k.Partition != spec.Partitions[0] {
			continue
		}
		if d := visible(versions, at); d != nil {
			want[k.ID] = d
		}
	}
	count, _, err := r.CountPrefix(spec)
	if err != nil || count != uint64(len(want)) {
		t.Fatalf("count %+v: %d, %v; want %d", spec, count, err, len(want))
	}
	got := 0
	last := ""
	page := spec
	page.MaxBytes = 1 << rng.IntN(14)
	for more := true; more; {
		page.Limit = 1 + rng.IntN(20)
		var docs []wire.Document
		if docs, more, _, err = r.Scan(page); err != nil {
			t.Fatal(err)
		}
		for i := range docs {
			d := &docs[i]
			if spec.Reverse && last != "" && d.ID > last || !spec.Reverse && d.ID < last {
				t.Fatalf("scan %+v: %q after %q", spec, d.ID, last)
			}
			if w := want[d.ID]; w == nil || !same(d, w) {
				t.Fatalf("scan %+v: %+v", spec, d)
			}
			last = d.ID
			got++
		}
		if len(docs) > 0 {
			page.After = last
		}
	}
	if got != len(want) {
		t.Fatalf("scan %+v: %d documents of %d", spec, got, len(want))
	}
}

// sweepAll sweeps from the beginning to the end.
func sweepAll(t testing.TB, m *Machine, limits SweepLimits, keep func(placement.CollectionID) uint32) (all Garbage) {
	t.Helper()
	var s Sweep
	for range 10_000 {
		g, err := m.FindGarbage(&s, limits, keep)
		if err != nil {
			t.Fatal(err)
		}
		all.Collects = append(all.Collects, g.Collects...)
		all.Versions += g.Versions
		if g.Done {
			return all
		}
	}
	t.Fatal("the sweep does not end")
	return all
}

func (g Garbage) keys() (all [][]byte) {
	for _, c := range g.Collects {
		all = append(all, c.Keys...)
	}
	return all
}
