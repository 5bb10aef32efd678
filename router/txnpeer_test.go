package router

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn"
)

var peerTxn = txn.ID{Time: 1 << 40, Random: [16]byte{1, 2, 3, 15: 9}}

// FuzzTxnRead: a question about a transaction comes through whole, and garbage
// is refused.
func FuzzTxnRead(f *testing.F) {
	for _, q := range []txnRead{
		{group: 3, epoch: 7, home: 270, id: peerTxn},
		{group: 3, epoch: 7, verify: []fsm.PartitionPart{{Partition: 4, Part: txn.Part{
			Reads: []txn.Read{{Collection: 1, ID: "a", At: 5}}, Ranges: []txn.Range{{Collection: 1, Prefix: "p", From: "pa", To: "pz", At: 6}},
		}}, {Partition: 5}}},
		{group: 1, epoch: 1, list: &wire.TxnListRequest{}},
		{group: 1, epoch: 1, list: &wire.TxnListRequest{Time: 9, Random: peerTxn.Random[:6]}},
	} {
		f.Add(q.encode())
		again, err := decodeTxnRead(q.encode())
		if err != nil || !reflect.DeepEqual(*again, q) {
			f.Errorf("%+v came back as %+v, %v", q, again, err)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := decodeTxnRead(b)
		if err != nil {
			return
		}
		again, err := decodeTxnRead(q.encode())
		if err != nil || !reflect.DeepEqual(again, q) {
			t.Fatalf("%+v came back as %+v, %v", q, again, err)
		}
	})
}

// FuzzSteps: commands of a transaction for another node's group come through
// whole, and garbage is refused.
func FuzzSteps(f *testing.F) {
	for _, s := range []step{
		{x: &fsm.Txn{ID: peerTxn, Partition: 3, Epoch: 2, Prepare: &fsm.Prepare{Home: 1, Deadline: 5, Born: 4, Part: txn.Part{Reads: []txn.Read{{Collection: 1, ID: "a"}}}}}, born: 4, free: true},
		{x: &fsm.Txn{ID: peerTxn, Partition: 3, Epoch: 2, Resolve: &fsm.Resolve{Commit: true, At: 9}}, later: true},
	} {
		b, err := fsm.AppendEntry(stepsHead(7, &s, 99), []fsm.Command{{Txn: s.x}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		id, now, steps, e := decodeStepsBody(b)
		if e != nil || len(steps) == 0 {
			return
		}
		commands := make([]fsm.Command, len(steps))
		for i, s := range steps {
			commands[i].Txn = s.x
		}
		b, err := fsm.AppendEntry(stepsHead(id, steps[0], now), commands)
		if err != nil {
			t.Fatal(err)
		}
		sameID, same, again, e := decodeStepsBody(b)
		if e != nil || sameID != id || same != now || !reflect.DeepEqual(again, steps) {
			t.Fatalf("%d %+v came back as %d %+v, %v", id, steps, sameID, again, e)
		}
	})
}

// FuzzStepAnswers: what became of them comes back as it was.
func FuzzStepAnswers(f *testing.F) {
	r := &Router{}
	steps := []*step{
		{answer: txn.Answer{State: txn.Prepared, At: 7}},
		{err: &shardgroup.StepBack{Rival: peerTxn}},
		{err: &wire.Error{Code: wire.CodeStaleEpoch, Message: "routed by an old map", Epoch: 3}},
		{answer: txn.Answer{State: txn.Refused, Conflict: &txn.Conflict{Code: wire.CodeTxnConflict, Collection: 1, ID: "a", Rival: peerTxn}}},
	}
	f.Add(r.appendSteps([]byte{peerVersion}, steps), 4)
	f.Add([]byte{peerVersion}, 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		empty := func() []*step {
			all := make([]*step, max(0, min(n, 100)))
			for i := range all {
				all[i] = &step{}
			}
			return all
		}
		got := empty()
		if decodeSteps(b, got) != nil {
			return
		}
		again := empty()
		if err := decodeSteps(r.appendSteps([]byte{peerVersion}, got), again); err != nil || fmt.Sprint(describeSteps(again)) != fmt.Sprint(describeSteps(got)) {
			t.Fatalf("%v came back as %v, %v", describeSteps(got), describeSteps(again), err)
		}
	})
}

func describeSteps(steps []*step) (out []string) {
	for _, s := range steps {
		text := fmt.Sprintf("%+v %v", s.answer, s.err)
		if c := s.answer.Conflict; c != nil {
			s.answer.Conflict = nil // its address says nothing
			text = fmt.Sprintf("%+v %v %+v", s.answer, s.err, *c)
			s.answer.Conflict = c
		}
		out = append(out, text)
	}
	return out
}
