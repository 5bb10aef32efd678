package fsm

import (
	"errors"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

const entries = placement.CollectionID(1<<31 | 1) // of collection 1

// writing is a part that writes a document at a version that was read, and
// takes and gives up entries of its own partition.
func writing(t testing.TB, id, json string, at uint64, takes, gives string) txn.Part {
	part := writes(t, id, json)
	part.Reads = []txn.Read{{Collection: 1, ID: id, At: hlc.Timestamp(at)}}
	if gives != "" {
		part.Writes = append(part.Writes, txn.Write{Collection: entries, ID: gives, Ops: []txn.Op{{Op: wire.OpDelete}}})
	}
	if takes != "" {
		part.Writes = append(part.Writes, txn.Write{Collection: entries, ID: takes, Ops: []txn.Op{{Op: wire.OpInsert, Body: unique.Body(id)}}})
	}
	return part
}

// attempt is a commit in one entry, in partition 0, under a request.
func attempt(n uint64, q *Request, part txn.Part) Txn {
	return Txn{ID: txnID(n), Request: q, Commit: &Commit{Parts: []PartitionPart{{0, part}}}}
}

func (r *txnRig) answer(what string, a txn.Answer) Result {
	r.t.Helper()
	if a.Write == nil {
		r.t.Fatalf("%s: no answer to the request: %+v (%+v)", what, a, a.Conflict)
	}
	res, err := RequestAnswer(&a)
	if err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
	return res
}

// Of the attempts of one request one has an effect; every other, before or
// after a restart, is told its answer.
func TestRequestOnce(t *testing.T) {
	r := newTxnRig(t)
	q := &Request{ID: request(50, 100)}
	first := r.answer("first", r.step(100, attempt(1, q, writing(t, "a", `{"v":1}`, 0, "0:x", ""))))
	if first.Wire.Version != 1 || first.Wire.Time != 100 || !first.Wire.Created || first.Wire.CreatedAt != 100 || first.Wire.Duplicate {
		t.Fatalf("first: %+v", first.Wire)
	}
	for range 2 {
		for name, x := range map[string]Txn{
			"the same attempt": attempt(1, q, writing(t, "a", `{"v":1}`, 0, "0:x", "")),
			"another":          attempt(2, q, writing(t, "a", `{"v":2}`, 100, "0:y", "0:x")),
			"a refusal":        attempt(3, &Request{ID: q.ID, Refused: &Refused{Code: wire.CodeDuplicateValue}}, txn.Part{Reads: []txn.Read{{Collection: 1, ID: "a", At: 100}}}),
			"in two phases":    {ID: txnID(4), Request: q, Decide: &Decide{MaxP: 90, Participants: []placement.PartitionID{1}, Part: writing(t, "a", `{"v":3}`, 100, "", "")}},
		} {
			a := r.step(200, x)
			again := r.answer(name, a)
			if again.Wire.Version != 1 || again.Wire.Time != 100 || !again.Wire.Duplicate || a.State == txn.Committed {
				t.Errorf("%s: %+v, %s", name, again.Wire, a.State)
			}
		}
		if _, v, at := r.get(0, "a"); v != 1 || at != 100 {
			t.Fatalf("the document has version %d of %d", v, at)
		}
		r.shut()
		r.open()
	}
	// A single write under the ID is the same request.
	res := r.do(300, Command{Write: &Write{Epoch: 1, Collection: 1, Item: wire.WriteItem{RequestID: q.ID, Op: wire.OpPut, ID: "a", Body: body(t, `{}`)}}})
	if res.Wire.Version != 1 || !res.Wire.Duplicate {
		t.Errorf("a single write: %+v", res.Wire)
	}
	// An attempt in two phases that commits is known by both IDs.
	q2 := &Request{ID: request(50, 101), KeepDoc: true}
	decide := Txn{ID: txnID(5), Request: q2, Decide: &Decide{MaxP: 400, Participants: []placement.PartitionID{1}, Part: writing(t, "a", `{"v":4}`, 100, "", "")}}
	a := r.step(310, decide)
	expect(t, "decide", a, txn.Committed, 400)
	if res := r.answer("decide", a); res.Wire.Version != 2 || res.Wire.Created || string(res.Wire.Doc) != string(body(t, `{"v":4}`)) {
		t.Errorf("decide: %+v", res.Wire)
	}
	expect(t, "settle", r.step(320, Txn{ID: txnID(5), Settle: &Settle{Abort: true}}), txn.Committed, 400)
	a = r.step(330, decide)
	expect(t, "decide again", a, txn.Committed, 400)
	if res := r.answer("decide again", a); res.Wire.Version != 2 || !res.Wire.Duplicate {
		t.Errorf("decide again: %+v", res.Wire)
	}
}

// A refusal is kept if what it rests on is the newest, and is final then.
func TestRequestRefused(t *testing.T) {
	r := newTxnRig(t)
	r.put(100, 0, "a", `{"v":1}`)
	q := func(n uint64) *Request {
		return &Request{ID: request(50, n), Refused: &Refused{Code: wire.CodeVersionConflict, Version: 7, Detail: "why"}}
	}
	read := func(at uint64) txn.Part {
		return txn.Part{Reads: []txn.Read{{Collection: 1, ID: "a", At: hlc.Timestamp(at)}}}
	}
	if a := r.step(110, attempt(1, q(100), read(99))); a.Write != nil || a.Conflict == nil || a.Conflict.Code != wire.CodeTxnConflict {
		t.Fatalf("a refusal that rests on an old version: %+v", a)
	}
	no := r.answer("refuse", r.step(120, attempt(2, q(100), read(100))))
	if no.Wire.Error == nil || no.Wire.Error.Code != wire.CodeVersionConflict || no.Wire.Error.Version != 7 || no.Detail != "why" {
		t.Fatalf("refuse: %+v %q", no.Wire.Error, no.Detail)
	}
	late := r.answer("late", r.step(130, attempt(3, &Request{ID: request(50, 100)}, writing(t, "a", `{"v":2}`, 100, "", ""))))
	if late.Wire.Error == nil || !late.Wire.Duplicate {
		t.Errorf("an attempt that comes after its refusal: %+v", late.Wire)
	}
	if _, v, _ := r.get(0, "a"); v != 1 {
		t.Errorf("version %d", v)
	}
	// Below the horizon nothing is known any more, and nothing is done.
	r.do(140, Command{Horizon: &Horizon{RequestIDs: 60}})
	x := attempt(4, &Request{ID: request(50, 100)}, writing(t, "a", `{"v":2}`, 100, "", ""))
	x.ID.Time = 150
	if a := r.step(150, x); a.State != txn.Expired || a.Write != nil {
		t.Errorf("an expired request: %+v", a)
	}
}

// An entry is one document's; who wants it is told whose.
func TestEntries(t *testing.T) {
	r := newTxnRig(t)
	n := uint64(100)
	next := func() *Request { n++; return &Request{ID: request(50, n)} }
	commit := func(part txn.Part) txn.Answer {
		r.t.Helper()
		q := next()
		return r.step(hlc.Timestamp(n), attempt(n, q, part))
	}
	r.answer("a", commit(writing(t, "a", `{"v":1}`, 0, "0:x", "")))
	if a := commit(writing(t, "b", `{"v":1}`, 0, "0:x", "")); a.Conflict == nil || a.Conflict.Code != wire.CodeDuplicateValue || a.Conflict.Detail != "a" || a.Conflict.Collection != entries || a.Conflict.ID != "0:x" {
		t.Fatalf("an entry of another: %+v %+v", a, a.Conflict)
	}
	if _, v, _ := r.get(0, "b"); v != 0 {
		t.Fatal("the document was written without its entry")
	}
	if a := commit(writing(t, "b", `{"v":1}`, 0, "", "0:y")); a.Conflict == nil || a.Conflict.Code != wire.CodeInternal {
		t.Fatalf("giving up what is not there: %+v", a)
	}
	// Both in one commit, from one document to another.
	move := writing(t, "a", `{"v":2}`, 101, "0:z", "")
	move.Writes = append(move.Writes, writes(t, "b", `{"v":1}`).Writes[0],
		txn.Write{Collection: entries, ID: "0:x", Ops: []txn.Op{{Op: wire.OpDelete}, {Op: wire.OpInsert, Body: unique.Body("b")}}})
	r.answer("move", commit(move))
	if a := commit(writing(t, "c", `{"v":1}`, 0, "0:x", "")); a.Conflict == nil || a.Conflict.Detail != "b" {
		t.Fatalf("the entry was not moved: %+v", a)
	}
	// They are no documents in sums, and go with their collection.
	if s := r.Stats(); s.Documents != 2 || len(s.Collections) != 2 || s.Collections[1].Documents != 2 {
		t.Errorf("stats %+v", s)
	}
	r.do(500, Command{Drop: &Drop{Collection: 1}})
	if s := r.Stats(); s.Documents != 0 || s.Rows != 0 {
		t.Errorf("after the drop: %+v", s)
	}
	if _, err := r.Get(ReadKey{Epoch: 1, Collection: entries, ID: "0:x"}, At{}, false); !gone(err) {
		t.Errorf("an entry of a dropped collection: %v", err)
	}
	if a := r.step(510, prepare(900, 0, txn.Part{Writes: []txn.Write{{Collection: entries, ID: "0:q", Ops: []txn.Op{{Op: wire.OpInsert, Body: unique.Body("q")}}}}})); a.State != txn.Refused {
		t.Errorf("an entry was prepared in a dropped collection: %+v", a)
	}
}

func gone(err error) bool {
	var no *Error
	return errors.As(err, &no) && no.Code == wire.CodeCollectionNotFound
}

// A request that its transaction does not fit is no command.
func TestRequestFits(t *testing.T) {
	q := &Request{ID: request(50, 1)}
	no := &Request{ID: request(50, 1), Refused: &Refused{Code: wire.CodeNotFound}}
	for name, x := range map[string]Txn{
		"nothing written":    attempt(1, q, txn.Part{}),
		"a refusal writes":   attempt(1, no, writes(t, "a", `{}`)),
		"no home":            {ID: txnID(1), Partition: 1, Request: q, Commit: &Commit{Parts: []PartitionPart{{0, writes(t, "a", `{}`)}}}},
		"a refused decision": {ID: txnID(1), Request: no, Decide: &Decide{}},
		"a prepare":          {ID: txnID(1), Request: q, Prepare: &Prepare{Part: writes(t, "a", `{}`)}},
	} {
		if err := (&Command{Txn: &x}).Check(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
