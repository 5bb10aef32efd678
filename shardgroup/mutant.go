package shardgroup

import (
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
)

// ackEarly is the mistake of mutant.AckBeforeCommit, and is called nowhere
// else: callers are told what would become of their writes if the entry were
// applied to the state as this node has it now.
func (b *batcher) ackEarly(bt *batch) {
	results := make([]fsm.Result, len(bt.props))
	for i, p := range bt.props {
		w := p.cmd.Write
		if w == nil || w.Item.IfVersion != 0 || w.Item.Cond != 0 || w.Item.Op != wire.OpPut && w.Item.Op != wire.OpUpsert {
			return
		}
		key := fsm.ReadKey{Partition: w.Partition, Epoch: w.Epoch, Collection: w.Collection, ID: w.Item.ID}
		d, err := b.g.machine.Get(key, fsm.At{}, true)
		results[i].Wire = wire.WriteResult{Version: d.Version + 1, Time: uint64(p.cmd.Time), CreatedAt: d.CreatedAt, Created: err != nil}
	}
	b.mu.Lock()
	bt.gaveUp = true
	b.mu.Unlock()
	for i, p := range bt.props {
		p.finish(results[i], nil)
	}
}
