package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/txn/hlc"
)

func stamp(seconds int) uint64 {
	return uint64(hlc.EndOf(time.Date(2026, 5, 1, 12, 0, seconds, 0, time.UTC)))
}

func idOf(seconds int, b byte) wire.RequestID {
	return wire.RequestID{Time: stamp(seconds), Random: [16]byte{b, 0x0c, 0x9a, 0x1b, 0x2c, 0x3d, 0xff}}
}

// aLook is a cluster with one transaction of every state, waits, and a group
// without a leader.
func aLook() *client.TransactionList {
	return &client.TransactionList{
		Txns: []wire.TxnInfo{
			{ID: idOf(0, 1), State: wire.TxnPrepared, Home: 17, HomeGroup: 2, Time: stamp(1), Born: stamp(0) - 100<<16, Deadline: stamp(5), Participants: 90, Reads: 1, Writes: 2, Parts: []wire.TxnPart{
				{Group: 1, Partition: 3, State: wire.TxnPrepared, Time: stamp(1), Reads: 1, Writes: 1, Documents: []wire.TxnDocument{
					{How: wire.HoldWrite, Collection: "accounts", ID: "ada"}, {How: wire.HoldRead, Collection: "accounts", ID: "bob"},
					{How: wire.HoldRange, Collection: "orders", ID: "acme/", From: "acme/1", To: "acme/9"}, {How: wire.HoldFront, Collection: "hot", ID: "h", Expires: 900},
				}},
				{Group: 3, Partition: 9, State: wire.TxnPrepared, Time: stamp(1), Writes: 1},
			}},
			{ID: idOf(1, 2), State: wire.TxnPrepared, Home: 17, HomeGroup: 2, Deadline: stamp(2), Participants: 1, Writes: 1},
			{ID: idOf(2, 3), State: wire.TxnCommitted, Home: 4, HomeGroup: 1, Time: stamp(3), Participants: 2},
			{ID: idOf(3, 4), State: wire.TxnOpen, Home: wire.NoPartition, Participants: 1, Locks: 2, Born: stamp(3)},
		},
		Waits: []wire.TxnWait{
			{ID: idOf(3, 4), For: idOf(0, 1), Micros: 1_234_000, What: wire.WaitLock, Group: 1, Partition: 3, Collection: "accounts", Document: "ada"},
			{For: idOf(1, 2), Micros: 300_000, What: wire.WaitWrite, Group: 1, Partition: 3, Collection: "accounts", Document: "ada"},
		},
		LeftOut: 1200,
		Missing: []wire.TxnMissing{{Group: 5, Error: "g5 has no known leader right now (retry)"}},
		Now:     stamp(4),
	}
}

func TestTxnTables(t *testing.T) {
	var b strings.Builder
	v := newTxnListView(aLook())
	if err := v.writeTable(&b); err != nil {
		t.Fatal(err)
	}
	b.WriteString("----\n")
	if err := newTxnListView(&client.TransactionList{}).writeTable(&b); err != nil {
		t.Fatal(err)
	}
	for i := range v.Transactions {
		b.WriteString("----\n")
		one := aLook()
		one.Txns, one.Waits, one.Missing = one.Txns[i:i+1], one.Waits[:1-min(i, 1)], nil
		if err := newTxnListView(one).writeOne(&b); err != nil {
			t.Fatal(err)
		}
	}
	b.WriteString("----\n")
	for _, r := range []client.AbortReply{
		{ID: idOf(0, 1), State: wire.TxnAborted, Resolved: 2, Unlocked: 1, Missing: []wire.TxnMissing{{Group: 5}}},
		{ID: idOf(0, 1), State: wire.TxnAborted, Already: true},
		{ID: idOf(0, 1), State: wire.TxnCommitted, Already: true, Time: stamp(3)},
		{ID: idOf(0, 1), State: wire.TxnExpired},
		{ID: idOf(0, 1), State: wire.TxnOpen, Unlocked: 3},
		{ID: idOf(0, 1), State: wire.TxnResolved},
		{ID: idOf(0, 1)},
	} {
		b.WriteString(newAbortView(&r).sentence() + "\n")
	}
	golden(t, "txn", b.String())
	j, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "txn-json", string(j)+"\n")
	if err := v.incomplete(); exitCode(err) != exitIncomplete || !strings.HasPrefix(err.Error(), "g5 did not answer") {
		t.Errorf("a list without g5 ends with %v", err)
	}
}
