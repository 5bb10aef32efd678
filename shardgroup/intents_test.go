package shardgroup

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
)

// elsewhere answers for a home that has committed, and resolves where the
// group's leader is.
type elsewhere struct {
	at      txn.Answer
	resolve func(context.Context, *fsm.Txn) error
}

func (e *elsewhere) Step(ctx context.Context, x *fsm.Txn) (txn.Answer, error) {
	if x.Resolve == nil {
		return e.at, nil
	}
	x.Epoch = 1
	return txn.Answer{State: txn.Done}, e.resolve(ctx, x)
}

func (e *elsewhere) Decision(context.Context, placement.PartitionID, txn.ID) (txn.Answer, error) {
	return e.at, nil
}

// A reader whose node is deposed while it has an intent resolved does not read
// the state from before.
func TestIntentResolvedElsewhere(t *testing.T) {
	c := seeded(t, 3, 1, nil)
	l := c.leader(1)
	at := prepared(t, l, "a").Resolve.At
	key := fsm.ReadKey{Epoch: 1, Collection: 1, ID: "a"}
	l.host.SetResolver(&elsewhere{
		at: txn.Answer{State: txn.Committed, At: at},
		resolve: func(ctx context.Context, x *fsm.Txn) error {
			c.isolate(l.host.cfg.NodeID, true)
			_, err := c.leader(1, l.host.cfg.NodeID).Propose(ctx, fsm.Command{Txn: x})
			return err
		},
	})
	if err := l.ReadAt(ctxFor(t, 10*time.Second), at); err != nil {
		t.Fatal(err)
	}
	err := l.ClearReads(ctxFor(t, 30*time.Second), []fsm.ReadKey{key}, at)
	var no *NotLeaderError
	if !errors.As(err, &no) {
		_, read := l.Machine().Get(key, fsm.At{Time: at}, false)
		t.Errorf("a deposed leader cleared a read (%v), which then says: %v", err, read)
	}
	c.isolate(l.host.cfg.NodeID, false)
}
