package fsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// ended is what a transaction of a test has come to at its partitions.
type ended struct {
	id   txn.ID
	home placement.PartitionID
	at   []TxnTrace // by partition
}

// askOfEnds asks for every way in which a machine can tell how these have ended:
// commands, and reads. Below the horizon all that it says is that it is over.
func askOfEnds(r *replica, now hlc.Timestamp, index uint64, horizon uint64, all ...ended) error {
	var cs []Command
	var want []txn.State
	for _, x := range all {
		expired := x.id.Time < horizon
		for _, e := range x.at {
			ask := &Txn{ID: x.id, Partition: e.Partition, Epoch: 1}
			if e.Partition == x.home {
				ask.Settle = &Settle{}
			} else {
				ask.Poll = &Poll{}
			}
			cs = append(cs, Command{Time: now, Txn: ask})
			state := e.State
			if expired {
				state = txn.Expired
			}
			want = append(want, state)
			if e.Partition != x.home {
				continue
			}
			if d, err := r.Decision(x.home, 1, x.id); err != nil || d.State != state || d.State == txn.Committed && d.At != e.At {
				return fmt.Errorf("the decision of %s is %s at %d (%v), want %s at %d", x.id, d.State, d.At, err, state, e.At)
			}
		}
		traces := x.at
		if expired {
			traces = nil
		}
		if got, err := r.TxnTraces(x.id.Time, x.id.Random[:]); err != nil || !slices.Equal(got, traces) {
			return fmt.Errorf("the traces of %s are %+v (%v), want %+v", x.id, got, err, traces)
		}
	}
	for i, res := range r.mustApply(mustEntry(r.t, index, cs...))[0] {
		if res.Txn == nil || res.Txn.State != want[i] {
			return fmt.Errorf("%s in partition %d: asked in the log, it is %+v, want %s", cs[i].Txn.ID, cs[i].Txn.Partition, res.Txn, want[i])
		}
	}
	return nil
}

// TestEndsSurvive asks again for how every transaction has ended: out of the
// tail and sealed; in the same machine, after a restart, and in a copy; before
// and after a horizon.
func TestEndsSurvive(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 13))
		r := newReplica(t, nil)
		index, clock, horizon := uint64(1), hlc.Timestamp(1000), uint64(0)
		r.mustApply(mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{0, 1, 2}}}))
		var all []ended
		n := uint64(0)
		step := func(x *ended, p placement.PartitionID, state txn.State, c Txn) {
			t.Helper()
			index++
			c.ID, c.Partition, c.Epoch = x.id, p, 1
			res := r.mustApply(mustEntry(t, index, Command{Time: clock, Txn: &c}))[0][0]
			if res.Txn == nil || res.Txn.State != state {
				t.Fatalf("seed %d: %+v was answered %+v, want %s", seed, c, res, state)
			}
			if state == txn.Prepared {
				clock = max(clock, res.Txn.At)
				return
			}
			e := TxnTrace{ID: x.id, Partition: p, State: state}
			if state == txn.Committed {
				e.At = res.Txn.At
			}
			if !slices.Contains(x.at, e) {
				x.at = append(x.at, e)
			}
		}
		for range 60 {
			n++
			clock++
			home := placement.PartitionID(rng.IntN(3))
			other := (home + 1 + placement.PartitionID(rng.IntN(2))) % 3
			// Times are about the clock: some are ahead, some long past.
			x := ended{id: txn.ID(request(max(horizon, uint64(clock)-uint64(rng.IntN(40)))+uint64(rng.IntN(10)), n)), home: home}
			mine, its := writes(t, fmt.Sprint("a", n), `{}`), writes(t, fmt.Sprint("b", n), `{}`)
			switch rng.IntN(5) {
			case 0:
				step(&x, home, txn.Aborted, Txn{Settle: &Settle{Abort: true}})
			case 1:
				step(&x, other, txn.Refused, Txn{Poll: &Poll{Deny: true}})
				step(&x, home, txn.Aborted, Txn{Reject: &Reject{}})
			case 2: // of one group: what it did at the other partition is not answered
				step(&x, home, txn.Committed, Txn{Commit: &Commit{Parts: []PartitionPart{{home, mine}, {other, its}}}})
				x.at = append(x.at, TxnTrace{ID: x.id, Partition: other, State: txn.Done})
			case 3:
				step(&x, other, txn.Prepared, Txn{Prepare: &Prepare{Home: home, Deadline: clock + 50, Born: clock, Part: its}})
				step(&x, other, txn.Done, Txn{Resolve: &Resolve{}})
				step(&x, home, txn.Aborted, Txn{Settle: &Settle{Abort: true}})
			case 4:
				step(&x, home, txn.Prepared, Txn{Prepare: &Prepare{Participants: []placement.PartitionID{other}, Home: home, Deadline: clock + 50, Born: clock, Part: mine}})
				step(&x, other, txn.Prepared, Txn{Prepare: &Prepare{Home: home, Deadline: clock + 50, Born: clock, Part: its}})
				step(&x, home, txn.Committed, Txn{Confirm: &Confirm{At: clock}})
				step(&x, other, txn.Done, Txn{Resolve: &Resolve{Commit: true, At: clock}})
				step(&x, home, txn.Committed, Txn{Forget: &Forget{}})
			}
			slices.SortFunc(x.at, func(a, b TxnTrace) int { return int(a.Partition) - int(b.Partition) })
			all = append(all, x)
			switch rng.IntN(12) {
			case 0, 1:
				r = r.interrupted(rng.IntN(2))
			case 2:
				index++
				r.mustApply(mustEntry(t, index, Command{Mark: &Mark{To: 9}}))
			case 3:
				horizon = max(horizon, uint64(clock)-uint64(rng.IntN(60)))
				index++
				r.mustApply(mustEntry(t, index, Command{Horizon: &Horizon{RequestIDs: hlc.Timestamp(horizon)}}))
			}
			index++
			if err := askOfEnds(r, clock, index, horizon, x, all[rng.IntN(len(all))]); err != nil {
				t.Fatalf("seed %d, entry %d: %v", seed, index, err)
			}
		}
		index++
		if err := askOfEnds(r, clock, index, horizon, all...); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if f := r.look(index+1, 0); f.FaultsFound != 0 {
			t.Fatalf("seed %d: %+v", seed, f.Faults)
		}
		r.verify()
	}
}

// TestDecisionsBesideWriter asks readers' way, beside a writer that aborts and
// commits, seals, and now and then is replaced by a copy: what was answered once
// is never unknown again, and nothing is shown that is not there.
func TestDecisionsBesideWriter(t *testing.T) {
	r, twin := newReplica(t, nil), newReplica(t, nil)
	own := mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{0, 1}}})
	r.mustApply(own)
	twin.mustApply(own)
	id := func(n uint64) txn.ID { return txn.ID(request(1000+n, n)) }
	state := func(n uint64) txn.State {
		if n%2 == 0 {
			return txn.Aborted
		}
		return txn.Committed
	}
	const last = 6000
	var done atomic.Uint64 // of these it is known how they have ended
	done.Store(1)
	var stop atomic.Bool
	var bg sync.WaitGroup
	var asked atomic.Uint64
	reader := func(seed uint64, ask func(n uint64) (txn.State, error)) {
		bg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 14))
			for !stop.Load() {
				known := done.Load()
				n := known + 1 // which may be under way
				if seed%2 == 0 {
					n = 2 + rng.Uint64N(known)
				}
				got, err := ask(n)
				if err != nil || got != state(n) && (n <= known || got != txn.None) {
					t.Errorf("asked for %d when %d was done: %s (%v), want %s", n, known, got, err, state(n))
					return
				}
				if got != txn.None { // from now on it is known
					if again, err := ask(n); err != nil || again != got {
						t.Errorf("%d was %s, and then %s (%v)", n, got, again, err)
						return
					}
				}
				asked.Add(1)
			}
		})
	}
	decision := func(n uint64) (txn.State, error) {
		d, err := r.Decision(0, 1, id(n))
		return d.State, err
	}
	reader(1, decision)
	reader(2, decision)
	reader(3, func(n uint64) (txn.State, error) {
		x := id(n)
		found, err := r.TxnTraces(x.Time, x.Random[:])
		if err != nil || len(found) == 0 {
			return txn.None, err
		}
		return found[0].State, nil
	})
	for n := uint64(2); n <= last && !t.Failed(); n++ {
		x := Txn{ID: id(n), Epoch: 1, Settle: &Settle{Abort: true}}
		if state(n) == txn.Committed {
			x.Settle, x.Commit = nil, &Commit{Parts: []PartitionPart{{0, writes(t, "a", `{}`)}, {1, writes(t, "b", `{}`)}}}
		}
		e := mustEntry(t, n, Command{Time: hlc.Timestamp(n), Txn: &x})
		twin.mustApply(e)
		if n%500 == 0 {
			copyTo(t, twin, r)
		} else {
			r.mustApply(e)
		}
		done.Store(n)
	}
	stop.Store(true)
	bg.Wait()
	if asked.Load() < 1000 && !t.Failed() {
		t.Errorf("readers asked only %d times", asked.Load())
	}
	if a, b := r.rows(), twin.rows(); a != b {
		t.Error(diff(a, b))
	}
}

// TestStagedIsNeverUndecided asks for what is staged while it is confirmed and
// forgotten: its client may know already that it is committed, so nobody is told
// that it is undecided, however long he is stopped on his way.
func TestStagedIsNeverUndecided(t *testing.T) {
	r := newReplica(t, nil)
	r.mustApply(mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{0, 1}}}))
	id := func(n uint64) txn.ID { return txn.ID(request(1000+n, n)) }
	const last = 1000
	var staged atomic.Uint64
	var stop atomic.Bool
	var bg sync.WaitGroup
	for range 6 { // more than there are processors, so that each is stopped often
		bg.Go(func() {
			for !stop.Load() {
				n := staged.Load()
				if n == 0 {
					continue
				}
				if d, err := r.Decision(0, 1, id(n)); err != nil || d.State != txn.Staged && d.State != txn.Committed {
					t.Errorf("%d was staged, and is %s (%v)", n, d.State, err)
					return
				}
			}
		})
	}
	index := uint64(1)
	step := func(n uint64, x Txn) hlc.Timestamp {
		index++
		x.ID, x.Epoch = id(n), 1
		return r.mustApply(mustEntry(t, index, Command{Time: hlc.Timestamp(index), Txn: &x}))[0][0].Txn.At
	}
	for n := uint64(1); n <= last && !t.Failed(); n++ {
		at := step(n, Txn{Prepare: &Prepare{Participants: []placement.PartitionID{1}, Deadline: hlc.Max, Part: writes(t, "a", `{}`)}})
		staged.Store(n)
		step(n, Txn{Confirm: &Confirm{At: at}})
		step(n, Txn{Forget: &Forget{}})
	}
	stop.Store(true)
	bg.Wait()
}

// TestTailShownUntilSealed stops between the steps of an entry that seals: what
// was decided before is told at each of them, what it decides itself when its
// batch is readable.
func TestTailShownUntilSealed(t *testing.T) {
	r := newReplica(t, nil)
	r.mustApply(mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{0}}}))
	abort := func(n uint64) Command {
		return Command{Time: 10, Txn: &Txn{ID: txnID(n), Epoch: 1, Settle: &Settle{Abort: true}}}
	}
	r.mustApply(mustEntry(t, 2, abort(1)))
	told := func(when string, first, second txn.State) {
		t.Helper()
		for i, want := range []txn.State{first, second} {
			id := txnID(uint64(i + 1))
			if d, err := r.Decision(0, 1, id); err != nil || d.State != want {
				t.Errorf("%s, transaction %d is %s (%v), want %s", when, i+1, d.State, err, want)
			}
			traces, err := r.TxnTraces(id.Time, id.Random[:])
			if err != nil || len(traces) != 0 != (want != txn.None) {
				t.Errorf("%s, of transaction %d there are %+v (%v)", when, i+1, traces, err)
			}
		}
	}
	told("before", txn.Aborted, txn.None)
	c := abort(2)
	a := r.newApplier(nil)
	a.beginDigest(3)
	if err := a.command(&c, &Result{}); err != nil {
		t.Fatal(err)
	}
	told("when it was run", txn.Aborted, txn.None)
	a.meta.before, a.meta.applied, a.dirtyB = 2, 3, true
	if sealed, err := a.endEntry(true); !sealed || err != nil {
		t.Fatal(sealed, err)
	}
	told("when it has ended", txn.Aborted, txn.None)
	if err := a.commit(); err != nil {
		t.Fatal(err)
	}
	told("when it was committed", txn.Aborted, txn.Aborted)
	if r.tail.count != 0 {
		t.Errorf("%d answers are left in the tail", r.tail.count)
	}
	r.verify()
}

// TestManyEndsInOneEntry: a commit leaves an end in each partition, so an entry
// may leave more than a tail usually has in all.
func TestManyEndsInOneEntry(t *testing.T) {
	r := newReplica(t, nil)
	m := r.openWhole()
	const parts, commits = 256, 80
	own := &Own{Epoch: 1}
	for p := range parts {
		own.Partitions = append(own.Partitions, placement.PartitionID(p))
	}
	apply := func(index uint64, cs ...Command) []Result {
		res, err := m.Apply([]Entry{mustEntry(t, index, cs...)})
		if err != nil {
			t.Fatal(err)
		}
		return res[0]
	}
	apply(1, Command{Own: own})
	commit := func(first uint64) (cs []Command) {
		for n := first; n < first+commits; n++ {
			x := &Txn{ID: txnID(n), Epoch: 1, Commit: &Commit{}}
			for p := range parts {
				x.Commit.Parts = append(x.Commit.Parts, PartitionPart{Partition: placement.PartitionID(p)})
			}
			cs = append(cs, Command{Time: 10, Txn: x})
		}
		return cs
	}
	apply(2, commit(1)...)
	if m.meta.sealed != 2 {
		t.Errorf("an entry that left %d ends sealed nothing", parts*commits)
	}
	// Within the entry itself they are found.
	for i, res := range apply(3, append(commit(1000), commit(1000)...)...) {
		if res.Txn.State != txn.Committed || res.Txn.Duplicate != (i >= commits) {
			t.Fatalf("%d: %+v", i, res.Txn)
		}
	}
	if n, err := m.Remembered(); err != nil || n != 2*commits {
		t.Errorf("%d answers are remembered (%v), want %d", n, err, 2*commits)
	}
	m = r.openWhole()
	id := wire.RequestID(txnID(1000 + commits - 1))
	for p := range placement.PartitionID(parts) {
		want := txn.Done
		if p == 0 {
			want = txn.Committed
		}
		if got, err := m.TxnTraces(id.Time, id.Random[:]); err != nil || len(got) != parts || got[p].State != want {
			t.Fatalf("%d traces, of partition %d %+v (%v)", len(got), p, got[p], err)
		}
	}
}
