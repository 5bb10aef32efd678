package fsm

import (
	"errors"
	"fmt"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// txnRig steps one machine that owns partitions 0, 1 and 2, by hand.
type txnRig struct {
	*replica
	index uint64
}

func newTxnRig(t *testing.T) *txnRig {
	r := &txnRig{replica: newReplica(t, nil)}
	r.do(0, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{0, 1, 2}}})
	return r
}

func (r *txnRig) do(at hlc.Timestamp, c Command) Result {
	r.t.Helper()
	r.index++
	c.Time = at
	return r.mustApply(mustEntry(r.t, r.index, c))[0][0]
}

func (r *txnRig) step(at hlc.Timestamp, x Txn) txn.Answer {
	r.t.Helper()
	if x.Epoch == 0 {
		x.Epoch = 1
	}
	res := r.do(at, Command{Txn: &x})
	if res.Wire.Error != nil {
		r.t.Fatalf("%+v was refused with %v: %s", x, res.Wire.Error.Code, res.Detail)
	}
	return *res.Txn
}

func (r *txnRig) put(at hlc.Timestamp, p placement.PartitionID, id, json string) Result {
	r.t.Helper()
	return r.do(at, Command{Write: &Write{Partition: p, Epoch: 1, Collection: 1, Item: wire.WriteItem{
		RequestID: request(uint64(at), uint64(at)<<8|uint64(p)), Op: wire.OpPut, ID: id, Body: body(r.t, json),
	}}})
}

func (r *txnRig) get(p placement.PartitionID, id string) (string, uint64, hlc.Timestamp) {
	r.t.Helper()
	d, err := r.Get(ReadKey{Partition: p, Epoch: 1, Collection: 1, ID: id}, At{}, false)
	var no *Error
	if errors.As(err, &no) && no.Code == wire.CodeNotFound {
		return "", 0, 0
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprintf("%x", d.Body), d.Version, hlc.Timestamp(d.UpdatedAt)
}

func txnID(n uint64) txn.ID { return txn.ID(request(50, n)) }

func writes(t testing.TB, id, json string) txn.Part {
	return txn.Part{Writes: []txn.Write{{Collection: 1, ID: id, Ops: []txn.Op{{Op: wire.OpPut, Body: body(t, json)}}}}}
}

func prepare(n uint64, p placement.PartitionID, part txn.Part) Txn {
	return Txn{ID: txnID(n), Partition: p, Prepare: &Prepare{Home: 0, Deadline: 500, Born: 40, Part: part}}
}

func expect(t *testing.T, what string, got txn.Answer, state txn.State, at hlc.Timestamp) {
	t.Helper()
	if got.State != state || at != 0 && got.At != at {
		t.Fatalf("%s: %s at %d (%+v), want %s at %d", what, got.State, got.At, got.Conflict, state, at)
	}
}

// TestTwoGroups walks a transaction from prepare to forget, over restarts.
func TestTwoGroups(t *testing.T) {
	r := newTxnRig(t)
	r.put(100, 1, "b", `{"n":1}`)
	reopen := func() { r.shut(); r.open() }
	part := writes(t, "b", `{"n":2}`)
	part.Reads = []txn.Read{{Collection: 1, ID: "b", At: 100}, {Collection: 1, ID: "nothing"}}
	expect(t, "prepare", r.step(110, prepare(1, 1, part)), txn.Prepared, 110)
	reopen()
	expect(t, "prepare again", r.step(120, prepare(1, 1, part)), txn.Prepared, 110)
	if _, v, _ := r.get(1, "b"); v != 1 {
		t.Fatalf("an intent shows as version %d", v)
	}
	if hs := r.IntentsOn([]ReadKey{{Partition: 1, Collection: 1, ID: "b"}}); len(hs) != 1 || hs[0].ID != txnID(1) || hs[0].At != 110 {
		t.Fatalf("the intent is seen as %+v", hs)
	}
	// Single writes meet the intent, the shared lock, and nothing else.
	for _, id := range []string{"b", "nothing"} {
		if res := r.put(130, 1, id, `{}`); res.Wire.Error == nil || res.Wire.Error.Code != wire.CodeLocked || res.Rival != txnID(1) {
			t.Fatalf("writing %s beside a prepared transaction: %+v", id, res)
		}
	}
	if res := r.put(131, 1, "free", `{}`); res.Wire.Error != nil {
		t.Fatal(res.Wire.Error)
	}
	decide := Txn{ID: txnID(1), Decide: &Decide{MaxP: 400, Participants: []placement.PartitionID{1}, Part: writes(t, "a", `{"n":2}`)}}
	expect(t, "decide", r.step(200, decide), txn.Committed, 400)
	expect(t, "decide again", r.step(500, decide), txn.Committed, 400)
	expect(t, "abort comes too late", r.step(501, Txn{ID: txnID(1), Settle: &Settle{Abort: true}}), txn.Committed, 400)
	reopen()
	if a, err := r.Decision(0, 1, txnID(1)); err != nil || a.State != txn.Committed || a.At != 400 {
		t.Fatalf("home says %+v, %v", a, err)
	}
	if u := r.Unfinished(400); len(u) != 1 || u[0].Record.Participants[0] != 1 {
		t.Fatalf("unfinished is %+v", u)
	}
	resolve := Txn{ID: txnID(1), Partition: 1, Resolve: &Resolve{Commit: true, At: 400}}
	expect(t, "resolve", r.step(300, resolve), txn.Done, 0)
	expect(t, "resolve again", r.step(300, resolve), txn.Done, 0)
	expect(t, "a late prepare", r.step(300, prepare(1, 1, part)), txn.Done, 0)
	reopen()
	expect(t, "a later prepare", r.step(300, prepare(1, 1, part)), txn.Done, 0)
	for p, id := range []string{"a", "b"} {
		if _, v, at := r.get(placement.PartitionID(p), id); at != 400 || v != uint64(1+p) {
			t.Fatalf("%s is version %d of %d", id, v, at)
		}
	}
	if r.Clock() < 400 {
		t.Fatalf("the clock is at %d below the commit", r.Clock())
	}
	expect(t, "forget", r.step(600, Txn{ID: txnID(1), Forget: &Forget{}}), txn.Committed, 400)
	expect(t, "forgotten is not unknown", r.step(600, Txn{ID: txnID(1), Settle: &Settle{Abort: true}}), txn.Committed, 400)
	expect(t, "nor to be decided again", r.step(600, decide), txn.Committed, 400)
	if r.LocksHeld() != 0 || len(r.Unfinished(hlc.Max)) != 0 {
		t.Fatal("something is left")
	}
	r.verify()
	// Past the horizon nothing is known, and nothing can be begun.
	r.do(700, Command{Horizon: &Horizon{RequestIDs: 60}})
	expect(t, "expired", r.step(701, decide), txn.Expired, 0)
	expect(t, "expired", r.step(701, prepare(1, 1, part)), txn.Expired, 0)
	if a, err := r.Decision(0, 1, txnID(1)); err != nil || a.State != txn.Expired {
		t.Fatalf("home says %+v, %v", a, err)
	}
}

// TestConflicts: what a prepare is refused for, and that a refusal is for ever.
func TestConflicts(t *testing.T) {
	read := func(id string, at hlc.Timestamp) txn.Part {
		return txn.Part{Reads: []txn.Read{{Collection: 1, ID: id, At: at}}}
	}
	within := func(prefix, from, to string, at hlc.Timestamp) txn.Part {
		return txn.Part{Ranges: []txn.Range{{Collection: 1, Prefix: prefix, From: from, To: to, At: at}}}
	}
	insert := writes(t, "b", `{}`)
	insert.Writes[0].Ops[0].Op = wire.OpInsert
	remove := func(id string) txn.Part {
		return txn.Part{Writes: []txn.Write{{Collection: 1, ID: id, Ops: []txn.Op{{Op: wire.OpDelete}}}}}
	}
	for _, tc := range []struct {
		name string
		part txn.Part
		code wire.Code // 0: no conflict
	}{
		{"the version that is there", read("b", 100), 0},
		{"an older one", read("b", 90), wire.CodeTxnConflict},
		{"it was absent", read("b", 0), wire.CodeTxnConflict},
		{"it is absent", read("none", 0), 0},
		{"it was deleted", read("gone", 101), wire.CodeTxnConflict},
		{"it was absent and is deleted", read("gone", 0), 0},
		{"a range with nothing younger", within("", "", "gz", 103), 0},
		{"a range with a younger deletion", within("", "", "gz", 102), wire.CodeTxnConflict},
		{"a range beside it", within("a", "", "", 50), 0},
		{"a range that ends before it", within("", "", "aa", 50), 0},
		{"a range that ends with it", within("", "", "b", 50), wire.CodeTxnConflict},
		{"a range that begins behind it", within("", "b\x00", "c", 50), 0},
		{"a range that begins with it", within("", "b", "c", 50), wire.CodeTxnConflict},
		{"a range older than the horizon", within("zz", "", "", 20), wire.CodeTxnConflict},
		{"a range around an intent", within("h", "", "", 400), wire.CodeTxnConflict},
		{"insert what is there", insert, wire.CodeAlreadyExists},
		{"delete what is not", remove("none"), wire.CodeNotFound},
		{"delete what is", remove("b"), 0},
		{"write under an intent", writes(t, "held", `{}`), wire.CodeTxnConflict},
		{"read under an intent", read("held", 0), wire.CodeTxnConflict},
		{"write what another has read", writes(t, "seen", `{}`), wire.CodeTxnConflict},
		{"read what another has read", read("seen", 0), 0},
		{"write into a range another has read", writes(t, "r/5", `{}`), wire.CodeTxnConflict},
		{"write beside it", writes(t, "r/9", `{}`), 0},
		{"read in it", read("r/5", 0), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newTxnRig(t)
			r.put(100, 1, "b", `{}`)
			r.put(101, 1, "gone", `{}`)
			r.do(103, Command{Write: &Write{Partition: 1, Epoch: 1, Collection: 1, Item: wire.WriteItem{RequestID: request(103, 9), Op: wire.OpDelete, ID: "gone"}}})
			r.do(104, Command{Horizon: &Horizon{History: []HistoryHorizon{{Collection: 1, At: 40}}}})
			rival := writes(t, "held", `{}`)
			rival.Reads = []txn.Read{{Collection: 1, ID: "seen"}}
			rival.Ranges = []txn.Range{{Collection: 1, Prefix: "r/", To: "r/8", At: 104}}
			expect(t, "the rival", r.step(110, prepare(7, 1, rival)), txn.Prepared, 110)
			got := r.step(120, prepare(1, 1, tc.part))
			if tc.code == 0 {
				expect(t, "prepare", got, txn.Prepared, 120)
				return
			}
			expect(t, "prepare", got, txn.Refused, 0)
			if got.Conflict == nil || got.Conflict.Code != tc.code {
				t.Fatalf("refused for %+v, want code %v", got.Conflict, tc.code)
			}
			r.step(130, Txn{ID: txnID(7), Partition: 1, Resolve: &Resolve{}})
			expect(t, "prepare again", r.step(140, prepare(1, 1, tc.part)), txn.Refused, 0)
			expect(t, "resolve", r.step(150, Txn{ID: txnID(1), Partition: 1, Resolve: &Resolve{}}), txn.Done, 0)
			r.verify()
		})
	}
}

// TestAbort: an abort leaves nothing, and nothing late comes through.
func TestAbort(t *testing.T) {
	r := newTxnRig(t)
	part := writes(t, "b", `{}`)
	expect(t, "prepare", r.step(110, prepare(1, 1, part)), txn.Prepared, 110)
	ask := Txn{ID: txnID(1), Settle: &Settle{Raise: 300}}
	expect(t, "ask", r.step(111, ask), txn.None, 0)
	if r.Clock() < 300 {
		t.Fatal("the ask did not raise the clock: it may be committed below what was read")
	}
	expect(t, "abort", r.step(112, Txn{ID: txnID(1), Settle: &Settle{Abort: true}}), txn.Aborted, 0)
	decide := Txn{ID: txnID(1), Decide: &Decide{MaxP: 110, Participants: []placement.PartitionID{1}}}
	expect(t, "a late decide", r.step(400, decide), txn.Aborted, 0)
	expect(t, "resolve", r.step(401, Txn{ID: txnID(1), Partition: 1, Resolve: &Resolve{}}), txn.Done, 0)
	if _, v, _ := r.get(1, "b"); v != 0 || r.LocksHeld() != 0 {
		t.Fatal("an aborted transaction left something")
	}
	if res := r.put(402, 1, "b", `{}`); res.Wire.Error != nil {
		t.Fatal(res.Wire.Error)
	}
	expect(t, "a resolve before its prepare", r.step(403, Txn{ID: txnID(2), Partition: 1, Resolve: &Resolve{}}), txn.Done, 0)
	expect(t, "and the prepare", r.step(404, prepare(2, 1, part)), txn.Done, 0)
	// Raised by the ask, a commit is above.
	expect(t, "prepare", r.step(405, prepare(3, 1, writes(t, "c", `{}`))), txn.Prepared, 405)
	r.step(406, Txn{ID: txnID(3), Settle: &Settle{Raise: 900}})
	if a := r.step(407, Txn{ID: txnID(3), Decide: &Decide{MaxP: 405, Participants: []placement.PartitionID{1}}}); a.State != txn.Committed || a.At <= 900 {
		t.Fatalf("asked with 900, and committed %s at %d", a.State, a.At)
	}
}

func stage(n uint64, part txn.Part, participants ...placement.PartitionID) Txn {
	return Txn{ID: txnID(n), Partition: 0, Prepare: &Prepare{Participants: participants, Home: 0, Deadline: 500, Born: 40, Part: part}}
}

// TestStaged walks a transaction that home prepares beside its participant, over
// restarts.
func TestStaged(t *testing.T) {
	r := newTxnRig(t)
	r.put(100, 0, "a", `{"n":1}`)
	reopen := func() { r.shut(); r.open() }
	part := writes(t, "a", `{"n":2}`)
	part.Reads = []txn.Read{{Collection: 1, ID: "a", At: 100}}
	expect(t, "stage", r.step(110, stage(1, part, 1)), txn.Prepared, 110)
	expect(t, "prepare", r.step(400, prepare(1, 1, writes(t, "b", `{}`))), txn.Prepared, 400)
	reopen()
	expect(t, "stage again", r.step(120, stage(1, part, 1)), txn.Prepared, 110)
	settle := func(s Settle) Txn { return Txn{ID: txnID(1), Settle: &s} }
	for _, s := range []Settle{{Abort: true}, {Raise: 900}} {
		a := r.step(121, settle(s))
		if expect(t, "home alone cannot say", a, txn.Staged, 110); len(a.Participants) != 1 || a.Participants[0] != 1 {
			t.Fatalf("participants %v", a.Participants)
		}
	}
	a, err := r.Decision(0, 1, txnID(1))
	if expect(t, "nor to a reader", a, txn.Staged, 110); err != nil || len(a.Participants) != 1 || !r.Staged(0, txnID(1)) || r.Staged(1, txnID(1)) {
		t.Fatalf("%+v %v", a, err)
	}
	for what, x := range map[string]Txn{
		"a decide":  {ID: txnID(1), Decide: &Decide{Participants: []placement.PartitionID{1}, Part: part}},
		"one entry": {ID: txnID(1), Commit: &Commit{Parts: []PartitionPart{{0, part}}}},
	} {
		expect(t, what, r.step(122, x), txn.Staged, 110)
	}
	for what, x := range map[string]Txn{
		"resolved":            {ID: txnID(1), Epoch: 1, Resolve: &Resolve{Commit: true, At: 400}},
		"confirmed too low":   {ID: txnID(1), Epoch: 1, Confirm: &Confirm{At: 109}},
		"confirmed elsewhere": {ID: txnID(1), Partition: 1, Epoch: 1, Confirm: &Confirm{At: 400}},
	} {
		if res := r.do(123, Command{Txn: &x}); res.Wire.Error == nil || res.Wire.Error.Code != wire.CodeBadRequest {
			t.Fatalf("%s: %+v", what, res)
		}
	}
	if res := r.put(124, 0, "a", `{}`); res.Wire.Error == nil || res.Wire.Error.Code != wire.CodeLocked {
		t.Fatalf("writing what is staged: %+v", res)
	}
	confirm := Txn{ID: txnID(1), Confirm: &Confirm{At: 400}}
	expect(t, "confirm", r.step(130, confirm), txn.Committed, 400)
	if _, v, at := r.get(0, "a"); v != 2 || at != 400 {
		t.Fatalf("version %d at %d", v, at)
	}
	reopen()
	expect(t, "confirm again", r.step(131, confirm), txn.Committed, 400)
	expect(t, "rejected too late", r.step(132, Txn{ID: txnID(1), Reject: &Reject{}}), txn.Committed, 400)
	expect(t, "staged again", r.step(133, stage(1, part, 1)), txn.Committed, 400)
	if u := r.Unfinished(hlc.Max); len(u) != 1 || u[0].Record.At != 400 || len(u[0].Record.Participants) != 1 {
		t.Fatalf("%+v", u)
	}
	expect(t, "resolve", r.step(134, Txn{ID: txnID(1), Partition: 1, Resolve: &Resolve{Commit: true, At: 400}}), txn.Done, 0)
	expect(t, "forget", r.step(135, Txn{ID: txnID(1), Forget: &Forget{}}), txn.Committed, 400)
	expect(t, "forgotten is not unknown", r.step(136, confirm), txn.Committed, 400)
	if r.LocksHeld() != 0 {
		t.Fatal("locks are left")
	}
	r.verify()
}

// TestStagedAborted: what is staged ends with a participant's no, and nothing
// late comes through.
func TestStagedAborted(t *testing.T) {
	r := newTxnRig(t)
	expect(t, "stage", r.step(110, stage(1, writes(t, "a", `{}`), 1)), txn.Prepared, 110)
	poll := func(n uint64, p Poll) Txn { return Txn{ID: txnID(n), Partition: 1, Poll: &p} }
	expect(t, "not prepared yet", r.step(111, poll(1, Poll{Raise: 300})), txn.None, 0)
	if r.Clock() < 300 {
		t.Fatal("the clock was not raised: it may be committed below what was read")
	}
	expect(t, "nor ever", r.step(112, poll(1, Poll{Deny: true})), txn.Refused, 0)
	expect(t, "a late prepare", r.step(113, prepare(1, 1, writes(t, "b", `{}`))), txn.Refused, 0)
	expect(t, "asked again", r.step(114, poll(1, Poll{})), txn.Refused, 0)
	reject := Txn{ID: txnID(1), Reject: &Reject{}}
	expect(t, "reject", r.step(115, reject), txn.Aborted, 0)
	expect(t, "reject again", r.step(116, reject), txn.Aborted, 0)
	expect(t, "a late stage", r.step(117, stage(1, writes(t, "a", `{}`), 1)), txn.Aborted, 0)
	expect(t, "confirmed in spite of it", r.step(118, Txn{ID: txnID(1), Confirm: &Confirm{At: 400}}), txn.Aborted, 0)
	// Home's own no is a decision.
	stale := writes(t, "c", `{}`)
	stale.Reads = []txn.Read{{Collection: 1, ID: "c", At: 5}}
	if a := r.step(120, stage(2, stale, 1)); a.State != txn.Aborted || a.Conflict == nil {
		t.Fatalf("%+v", a)
	}
	// And so is a rejection that comes before it is staged.
	expect(t, "reject", r.step(121, Txn{ID: txnID(3), Reject: &Reject{}}), txn.Aborted, 0)
	expect(t, "stage", r.step(122, stage(3, writes(t, "a", `{}`), 1)), txn.Aborted, 0)
	// Who has prepared, or is done, says so.
	expect(t, "prepare", r.step(130, prepare(4, 1, writes(t, "d", `{}`))), txn.Prepared, 0)
	at := r.step(131, poll(4, Poll{Deny: true}))
	expect(t, "prepared", at, txn.Prepared, 0)
	expect(t, "resolve", r.step(132, Txn{ID: txnID(4), Partition: 1, Resolve: &Resolve{}}), txn.Done, 0)
	expect(t, "done", r.step(133, poll(4, Poll{Deny: true})), txn.Done, 0)
	for _, d := range []struct {
		p  placement.PartitionID
		id string
	}{{0, "a"}, {1, "b"}, {1, "d"}} {
		if _, v, _ := r.get(d.p, d.id); v != 0 {
			t.Fatalf("%s was written", d.id)
		}
	}
	if r.LocksHeld() != 0 {
		t.Fatal("locks are left")
	}
	r.verify()
}

// TestOneEntry: a transaction of one group is one entry, all of it or nothing.
func TestOneEntry(t *testing.T) {
	r := newTxnRig(t)
	r.put(100, 1, "b", `{"n":1}`)
	commit := func(n uint64, parts ...PartitionPart) Txn { return Txn{ID: txnID(n), Commit: &Commit{Parts: parts}} }
	stale := writes(t, "b", `{"n":9}`)
	stale.Reads = []txn.Read{{Collection: 1, ID: "b", At: 99}}
	no := r.step(110, commit(1, PartitionPart{0, writes(t, "a", `{}`)}, PartitionPart{1, stale}))
	expect(t, "one part is stale", no, txn.Aborted, 0)
	if no.Conflict == nil || no.Conflict.ID != "b" {
		t.Fatalf("refused for %+v", no.Conflict)
	}
	if _, v, _ := r.get(0, "a"); v != 0 {
		t.Fatal("half of it was done")
	}
	stale.Reads[0].At = 100
	expect(t, "the same again is refused for ever", r.step(111, commit(1, PartitionPart{0, writes(t, "a", `{}`)}, PartitionPart{1, stale})), txn.Aborted, 0)
	fine := commit(2, PartitionPart{0, writes(t, "a", `{}`)}, PartitionPart{1, stale})
	expect(t, "commit", r.step(120, fine), txn.Committed, 120)
	expect(t, "commit again", r.step(130, fine), txn.Committed, 120)
	// Another coordinator, with another map, comes the long way.
	expect(t, "a prepare of what is done", r.step(140, prepare(2, 1, stale)), txn.Done, 0)
	for p, id := range []string{"a", "b"} {
		if _, v, at := r.get(placement.PartitionID(p), id); at != 120 || v != uint64(1+p) {
			t.Fatalf("%s is version %d of %d", id, v, at)
		}
	}
	r.verify()
}

// TestOperations: the operations on one document make one version.
func TestOperations(t *testing.T) {
	r := newTxnRig(t)
	r.put(100, 0, "a", `{"n":1}`)
	inc := txn.Op{Op: wire.OpUpdate, Body: body(t, `{"$inc":{"n":1}}`)}
	put := func(json string) txn.Op { return txn.Op{Op: wire.OpPut, Body: body(t, json)} }
	for i, tc := range []struct {
		id      string
		ops     []txn.Op
		want    string // "" is absent
		version uint64
	}{
		{"a", []txn.Op{inc, inc}, `{"n":3}`, 2},
		{"a", []txn.Op{{Op: wire.OpDelete, IfVersion: 2}, put(`{"n":7}`), inc}, `{"n":8}`, 3},
		{"new", []txn.Op{put(`{}`), {Op: wire.OpDelete}}, "", 0},
		{"a", []txn.Op{put(`{}`), {Op: wire.OpDelete}}, "", 0},
		{"a", []txn.Op{{Op: wire.OpInsert, Body: body(t, `{"n":0}`)}, inc}, `{"n":1}`, 5},
	} {
		part := txn.Part{Writes: []txn.Write{{Collection: 1, ID: tc.id, Ops: tc.ops}}}
		at := hlc.Timestamp(110 + i)
		expect(t, tc.id, r.step(at, Txn{ID: txnID(uint64(i + 1)), Commit: &Commit{Parts: []PartitionPart{{0, part}}}}), txn.Committed, at)
		want := ""
		if tc.want != "" {
			want = fmt.Sprintf("%x", []byte(body(t, tc.want)))
		}
		if got, v, _ := r.get(0, tc.id); got != want || v != tc.version {
			t.Errorf("case %d: version %d is %s, want version %d, %s", i, v, got, tc.version, want)
		}
	}
	r.verify()
}
