package router

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn"
)

// txnDriver carries a coordinator's messages. It has no goroutine: whoever
// brings an answer sends what follows from it. That is mostly a group that this
// node leads, as it tells the outcome of an entry (Group.StartTxn); what has to
// wait, and what goes to another node, has a goroutine meanwhile.
type txnDriver struct {
	t      *transaction
	others []placement.PartitionID // that take part, home left out
	until  time.Time               // it gives up
	ended  chan<- txnEnd           // takes one

	mu   sync.Mutex
	c    *txn.Coordinator // guarded by mu
	turn int              // guarded by mu; messages that were lost
	told bool             // guarded by mu; the client has its answer
	over bool             // guarded by mu; nothing is sent any more
}

// carried is a message on its way, as a command.
type carried struct {
	m txn.Message
	s *step
}

func newTxnDriver(t *transaction, ps []placement.PartitionID, ended chan<- txnEnd) *txnDriver {
	d := &txnDriver{t: t, ended: ended, others: slices.DeleteFunc(ps, func(p placement.PartitionID) bool { return p == t.home })}
	d.c = txn.NewCoordinator(txn.Spec{
		ID: t.id, Home: t.home, Deadline: t.deadline, Ordered: t.ordered, Participants: slices.Clone(d.others),
		Parallel: !t.front && !t.locked() && t.request == nil && len(d.others) <= maxStaged,
	})
	return d
}

// begin starts it; false if the router is closed or coordinates too many.
func (d *txnDriver) begin() bool {
	d.until = time.Now().Add(d.t.left() + afterlife)
	if !d.t.r.txns.enter(d) {
		return false
	}
	d.mu.Lock()
	var out []carried
	if !d.over { // the router may be closed already
		out = d.stepsLocked(d.c.Begin())
	}
	d.mu.Unlock()
	d.send(out, 0)
	return true
}

// tick looks at the time.
func (d *txnDriver) tick(now time.Time) {
	if now.After(d.until) {
		d.stop()
		return
	}
	d.mu.Lock()
	if d.over {
		d.mu.Unlock()
		return
	}
	d.goOnLocked(d.c.Tick(d.t.now()))
}

// stop gives up: what is left is for the leaders to settle.
func (d *txnDriver) stop() {
	d.mu.Lock()
	over, told := d.over, d.told
	d.over, d.told = true, true
	d.mu.Unlock()
	if !told {
		d.ended <- txnEnd{e: d.t.undecided()}
	}
	if !over {
		d.t.r.txns.leave(d)
	}
}

// take takes what became of messages.
func (d *txnDriver) take(batch ...carried) {
	d.mu.Lock()
	if d.over {
		d.mu.Unlock()
		return
	}
	var next []txn.Message
	for _, x := range batch {
		var back *shardgroup.StepBack
		switch {
		case x.s.err == nil:
			next = append(next, d.c.Answer(x.m, x.s.answer)...)
		case errors.As(x.s.err, &back) && x.m.Step == txn.Prepare:
			next = append(next, d.c.Answer(x.m, txn.Answer{Conflict: &txn.Conflict{
				Code: wire.CodeTxnConflict, Collection: d.first(x.m.To), ID: d.firstID(x.m.To), Rival: back.Rival,
			}})...)
		default:
			d.turn++
			d.c.Lost(x.m)
			if e := d.t.r.wireError(x.s.err, subject{}); e.Code == wire.CodeStaleEpoch {
				// This goroutine must not wait.
				d.spawn(func(ctx context.Context) { d.t.r.refreshFor(ctx, e) })
			}
		}
	}
	d.goOnLocked(next)
}

// goOnLocked does what follows from what the coordinator was told. It unlocks mu.
func (d *txnDriver) goOnLocked(next []txn.Message) {
	a, known := d.c.Outcome()
	tell := known && !d.told
	d.told = d.told || known
	d.over = d.c.Ended()
	over, turn := d.over, d.turn
	out := d.stepsLocked(next)
	d.mu.Unlock()
	if tell {
		d.ended <- txnEnd{a: a}
	}
	d.send(out, turn)
	if over {
		d.t.r.txns.leave(d)
	}
}

// spawn runs f, which may wait.
func (d *txnDriver) spawn(f func(ctx context.Context)) {
	txns := &d.t.r.txns
	txns.spawn(func() {
		ctx, cancel := context.WithDeadline(txns.ctx, d.until)
		defer cancel()
		f(ctx)
	})
}

// send sends messages. Those for one group that cannot be started here travel
// together. No lock is held: a command that is refused at once comes back
// before send returns.
func (d *txnDriver) send(out []carried, turn int) {
	if len(out) == 0 {
		return
	}
	r := d.t.r
	v := r.opts.Placement.View()
	var away map[placement.GroupID][]carried
	for _, x := range out {
		x.s.x.Epoch = v.Epoch
		id := v.Owner(x.m.To)
		if g, _ := r.locate(v, id, turn); g != nil && x.s.start(g, func() { d.take(x) }) {
			continue
		}
		if away == nil {
			away = map[placement.GroupID][]carried{}
		}
		away[id] = append(away[id], x)
	}
	for _, batch := range away {
		d.spawn(func(ctx context.Context) {
			steps := make([]*step, len(batch))
			for i := range batch {
				steps[i] = batch[i].s
			}
			r.steps(ctx, v, steps, turn)
			d.take(batch...)
		})
	}
}

// first and firstID name something of a part, for the words of a conflict.
func (d *txnDriver) first(p placement.PartitionID) placement.CollectionID {
	part := d.t.parts[p]
	switch {
	case len(part.Writes) > 0:
		return part.Writes[0].Collection
	case len(part.Reads) > 0:
		return part.Reads[0].Collection
	case len(part.Ranges) > 0:
		return part.Ranges[0].Collection
	}
	return 0
}

func (d *txnDriver) firstID(p placement.PartitionID) string {
	part := d.t.parts[p]
	switch {
	case len(part.Writes) > 0:
		return part.Writes[0].ID
	case len(part.Reads) > 0:
		return part.Reads[0].ID
	}
	return ""
}

// stepsLocked makes messages commands.
func (d *txnDriver) stepsLocked(ms []txn.Message) []carried {
	if len(ms) == 0 {
		return nil
	}
	out := make([]carried, len(ms))
	for i, m := range ms {
		out[i] = carried{m, d.stepLocked(m)}
	}
	return out
}

func (d *txnDriver) stepLocked(m txn.Message) *step {
	s := &step{born: d.t.born}
	switch m.Step {
	case txn.Prepare:
		s.free = d.t.ordered
		s.x = &fsm.Txn{ID: d.t.id, Partition: m.To, Prepare: &fsm.Prepare{
			Home: d.t.home, Deadline: d.t.deadline, Born: d.t.born, Part: *d.t.parts[m.To],
		}}
		if m.To == d.t.home {
			s.x.Prepare.Participants = d.others
		}
	case txn.Decide:
		s.x = &fsm.Txn{ID: d.t.id, Partition: m.To, Request: d.t.request, Decide: &fsm.Decide{
			MaxP: m.At, Participants: d.others, Part: *d.t.part(d.t.home),
		}}
	default:
		s.x = fsm.MessageTxn(d.t.id, m)
		s.later = m.Step == txn.Resolve || m.Step == txn.Forget
		if m.Step == txn.Confirm {
			_, s.later = d.c.Outcome()
		}
	}
	return s
}
