package fsm

import (
	"reflect"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
)

// TestTxnTraces: what is left of a transaction is found by the beginning of its
// ID, at its home and its participants, and nothing of any other, nor a single
// write under such an ID.
func TestTxnTraces(t *testing.T) {
	r := newTxnRig(t)
	near := txnID(1) // differs in the last byte of its random part only
	near.Random[15] ^= 1
	expect(t, "prepare", r.step(60, prepare(1, 1, writes(t, "b", `{"n":1}`))), txn.Prepared, 60)
	part := writes(t, "b", `{}`)
	part.Reads = []txn.Read{{Collection: 1, ID: "c"}}
	part.Ranges = []txn.Range{{Collection: 1, Prefix: "d/", To: "d/9", At: 55}}
	expect(t, "prepare at another", r.step(61, prepare(1, 2, part)), txn.Prepared, 61)
	held := []HeldDocument{{Collection: 1, ID: "b", Write: true}, {Collection: 1, ID: "c"}, {Collection: 1, ID: "d/", To: "d/9", Range: true}}
	if got := r.Held(2, txnID(1), 10); !reflect.DeepEqual(got, held) {
		t.Errorf("it holds %+v, want %+v", got, held)
	}
	if got := r.Held(2, txnID(1), 2); !reflect.DeepEqual(got, held[:2]) {
		t.Errorf("two of what it holds: %+v", got)
	}
	if got := r.Held(0, txnID(1), 10); got != nil {
		t.Errorf("at home it holds %+v", got)
	}
	traces := func(id txn.ID, n int, want ...TxnTrace) {
		t.Helper()
		got, err := r.TxnTraces(id.Time, id.Random[:n])
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("traces %+v, %v, want %+v", got, err, want)
		}
	}
	traces(txnID(1), 16) // prepared records are no traces
	expect(t, "abort of the near one", r.step(62, Txn{ID: near, Partition: 0, Settle: &Settle{Abort: true}}), txn.Aborted, 0)
	expect(t, "decide", r.step(70, Txn{ID: txnID(1), Partition: 0, Decide: &Decide{MaxP: 61, Participants: []placement.PartitionID{1, 2}, Part: writes(t, "a", `{"n":1}`)}}), txn.Committed, 70)
	expect(t, "resolve", r.step(71, Txn{ID: txnID(1), Partition: 1, Resolve: &Resolve{Commit: true, At: 70}}), txn.Done, 0)
	r.do(72, Command{Write: &Write{Partition: 0, Epoch: 1, Collection: 1, Item: wire.WriteItem{
		RequestID: wire.RequestID(txnID(2)), Op: wire.OpPut, ID: "x", Body: body(t, `{}`),
	}}})
	committed := TxnTrace{ID: txnID(1), Partition: 0, State: txn.Committed, At: 70}
	done := TxnTrace{ID: txnID(1), Partition: 1, State: txn.Done}
	traces(txnID(1), 16, committed, done)
	traces(txnID(1), 15, committed, TxnTrace{ID: near, Partition: 0, State: txn.Aborted}, done)
	traces(txnID(2), 16)
}
