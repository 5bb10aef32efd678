package node

import (
	"context"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
)

// pair is two documents of different groups, by hand.
type pair struct {
	t           *testing.T
	d           *Dev
	db          *client.DB
	v           *placement.View
	coll        placement.CollectionID
	home, other string
}

func newPair(t *testing.T, d *Dev, db *client.DB) *pair {
	t.Helper()
	p := &pair{t: t, d: d, db: db, home: "h"}
	if _, err := db.Collection("things").Put(t.Context(), "seed", map[string]any{"n": 0}); err != nil {
		t.Fatal(err)
	}
	v, coll, err := d.Nodes()[0].places.Lookup(t.Context(), "things")
	if err != nil {
		t.Fatal(err)
	}
	p.v, p.coll = v, coll.ID
	for _, id := range strings.Split("abcdefgijk", "") {
		if v.Owner(p.at(id)) != v.Owner(p.at(p.home)) {
			p.other = id
		}
	}
	return p
}

func (p *pair) at(id string) placement.PartitionID {
	return placement.PartitionID(wire.Partition("things", "", id, p.v.Partitions()))
}

// prepare leaves a transaction behind that is about to write the other document.
func (p *pair) prepare(ttl time.Duration) txn.ID {
	p.t.Helper()
	body, err := doc.FromJSON([]byte(`{"n":1}`))
	if err != nil {
		p.t.Fatal(err)
	}
	id := txn.ID{Time: uint64(p.db.Now())}
	_, _ = rand.Read(id.Random[:])
	n := p.d.Nodes()[0]
	if a, err := n.router.Step(p.t.Context(), &fsm.Txn{ID: id, Partition: p.at(p.other), Prepare: &fsm.Prepare{
		Home: p.at(p.home), Deadline: n.clock.Now().Add(ttl), Born: n.clock.Now(),
		Part: txn.Part{Writes: []txn.Write{{Collection: p.coll, ID: p.other, Ops: []txn.Op{{Op: wire.OpPut, Body: body}}}}},
	}}); err != nil || a.State != txn.Prepared {
		p.t.Fatalf("prepare: %+v, %v", a, err)
	}
	return id
}

// TestLookAtTransactions: what is prepared, locked and waited for is listed by
// any node; one transaction is shown with what it holds, and with its end when
// it is over; and an abort says what it came to.
func TestLookAtTransactions(t *testing.T) {
	d := startDev(t, t.TempDir(), 3)
	open := d.Nodes()
	defer func() {
		for _, n := range open {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
	}()
	db := dial(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	things := db.Collection("things")
	p := newPair(t, d, db)
	v, at, home, other := p.v, p.at, p.home, p.other
	id := p.prepare(time.Minute)
	name := wire.RequestID(id).String()

	// A write waits for it, and another transaction has locked something.
	wrote := make(chan error, 1)
	go func() {
		_, err := things.Put(ctx, other, map[string]any{"n": 2})
		wrote <- err
	}()
	locker := db.Begin()
	if _, err := locker.Collection("things").GetForUpdate(ctx, "seed"); err != nil {
		t.Fatal(err)
	}

	find := func(l *client.TransactionList, id wire.RequestID) *client.TransactionInfo {
		for i := range l.Txns {
			if l.Txns[i].ID == id {
				return &l.Txns[i]
			}
		}
		return nil
	}
	var list *client.TransactionList
	var err error
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if list, err = db.Transactions(ctx); err != nil {
			t.Fatal(err)
		}
		if len(list.Waits) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody waits: %+v", list)
		}
	}
	w := list.Waits[0]
	if w.ID != (wire.RequestID{}) || w.For != wire.RequestID(id) || w.What != wire.WaitWrite || w.Collection != "things" || w.Document != other || w.Group != uint32(v.Owner(at(other))) {
		t.Errorf("the wait is %+v", w)
	}
	prepared := find(list, wire.RequestID(id))
	switch {
	case prepared == nil:
		t.Fatalf("it is not listed: %+v", list)
	case prepared.State != wire.TxnPrepared || prepared.Home != uint32(at(home)) || prepared.HomeGroup != uint32(v.Owner(at(home))) || prepared.Writes != 1 || len(prepared.Parts) != 1 ||
		prepared.Parts[0].Partition != uint32(at(other)) || prepared.Parts[0].Group != uint32(v.Owner(at(other))) || len(prepared.Parts[0].Documents) != 0:
		t.Errorf("it is listed as %+v", prepared)
	}
	if x := find(list, locker.ID()); x == nil || x.State != wire.TxnOpen || x.Locks != 1 || x.Home != wire.NoPartition {
		t.Errorf("what is locked up front is listed as %+v", x)
	}
	if len(list.Missing) > 0 || list.LeftOut > 0 {
		t.Errorf("missing %+v, %d left out", list.Missing, list.LeftOut)
	}

	show := func(name string) *client.TransactionInfo {
		t.Helper()
		l, err := db.FindTransaction(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if len(l.Txns) != 1 {
			t.Fatalf("%s is found as %+v", name, l.Txns)
		}
		return &l.Txns[0]
	}
	if x := show(name); len(x.Parts) != 1 || len(x.Parts[0].Documents) != 1 || x.Parts[0].Documents[0] != (wire.TxnDocument{How: wire.HoldWrite, Collection: "things", ID: other}) {
		t.Errorf("it is shown as %+v", x)
	}
	if x := show(locker.ID().String()); len(x.Parts) != 1 || len(x.Parts[0].Documents) != 1 || x.Parts[0].Documents[0].How != wire.HoldFront || x.Parts[0].Documents[0].Expires == 0 {
		t.Errorf("the one with a lock is shown as %+v", x)
	}

	abort := func(name string) *client.AbortReply {
		t.Helper()
		a, err := db.AbortTransaction(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := abort(name); a.State != wire.TxnAborted || a.Already || a.Resolved != 1 || a.ID != wire.RequestID(id) {
		t.Errorf("the abort: %+v", a)
	}
	if err := <-wrote; err != nil { // nobody else would have let it go within a minute
		t.Errorf("the write that waited: %v", err)
	}
	if a := abort(name); a.State != wire.TxnAborted || !a.Already || a.Resolved != 0 {
		t.Errorf("the second abort: %+v", a)
	}
	if x := show(name); x.State != wire.TxnAborted {
		t.Errorf("after the abort it is shown as %+v", x)
	}
	if a := abort(locker.ID().String()); a.State != wire.TxnOpen || a.Unlocked != 1 {
		t.Errorf("the abort of one that has only locked: %+v", a)
	}
	if l, err := db.FindTransaction(ctx, locker.ID().String()); err != nil || len(l.Txns) != 0 {
		t.Errorf("it still holds something: %+v, %v", l, err)
	}

	// One that was committed, over two groups and in one.
	for _, ids := range [][]string{{home, other}, {home}} {
		tx := db.Begin()
		for _, id := range ids {
			if err := tx.Collection("things").Put(id, map[string]any{"n": 3}); err != nil {
				t.Fatal(err)
			}
		}
		res, err := tx.Commit(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if x := show(tx.ID().String()); x.State != wire.TxnCommitted || x.Time != uint64(res.Timestamp) || x.Home != uint32(at(home)) {
			t.Errorf("committed at %d it is shown as %+v", res.Timestamp, x)
		}
		if a := abort(tx.ID().String()); a.State != wire.TxnCommitted || !a.Already || a.Time != uint64(res.Timestamp) {
			t.Errorf("the abort of a committed one: %+v", a)
		}
	}
	if a := abort(db.NewRequestID().String()); a.State != wire.TxnUnknown {
		t.Errorf("the abort of one that never was: %+v", a)
	}
	if _, err := db.AbortTransaction(ctx, "19a3-zz"); err == nil || !strings.Contains(err.Error(), "is no transaction's ID") {
		t.Errorf("an ID that is none: %v", err)
	}

	// Without a majority nothing is known of any group, and that is said in time.
	for len(open) > 1 {
		last := open[len(open)-1]
		open = open[:len(open)-1]
		if err := last.Close(); err != nil {
			t.Fatal(err)
		}
	}
	alone, err := client.Dial(ctx, "idb://"+d.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	began := time.Now()
	for deadline := began.Add(20 * time.Second); ; { // until it has stepped down everywhere
		began = time.Now()
		if list, err = alone.Transactions(ctx); err != nil {
			t.Fatal(err)
		}
		if len(list.Missing) == len(v.Groups) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("of %d groups %+v are missing", len(v.Groups), list.Missing)
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the answer took %v", took)
	}
	for _, m := range list.Missing {
		if m.Error == "" {
			t.Errorf("g%d is missing without a reason", m.Group)
		}
	}
}
