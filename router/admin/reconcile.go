package admin

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
)

// Local is what runs on this node, and what can be done with it.
type Local interface {
	// Replicas are the shard groups that run here.
	Replicas() map[placement.GroupID]placement.Replica
	// StartGroup starts a replica. Where it runs already it does nothing.
	StartGroup(g placement.Group) error
	// Prefer tells a replica that runs here who should lead its group.
	Prefer(g placement.GroupID, leader placement.NodeID) error
	// Propose proposes to a group led here.
	Propose(ctx context.Context, g placement.GroupID, c fsm.Command) (fsm.Result, error)
	// Transfer hands the leadership of a group led here to another node.
	Transfer(ctx context.Context, g placement.GroupID, to placement.NodeID) error
	// PeerStatus asks another node for its status.
	PeerStatus(ctx context.Context, node placement.NodeID) (wire.NodeStatus, error)
}

// ReconcilerOptions of a Reconciler. Self, Placement and Local are needed.
type ReconcilerOptions struct {
	Self placement.Node // registered with the cluster, if it changed
	// Placement is this node's placement service.
	Placement *placement.Service
	Local     Local
	Logger    hclog.Logger // nil: none

	// Interval is the longest time between two looks. Zero means 1s.
	Interval time.Duration
	// StepTimeout bounds one step. Zero means 5s.
	StepTimeout time.Duration
	// TransferPause is the least time between two leadership transfers of this
	// node. Each stops its group's writes for about an election's message
	// rounds; too short lets many groups stop at once. Zero means 250ms.
	TransferPause time.Duration
	// Settle is how long after the start no leadership is transferred: after a
	// restart of the cluster every transfer would interrupt a group that has
	// just found a leader. Zero means 5s; negative: none.
	Settle time.Duration
	// TransferRetry is how long a group is left alone after a failed transfer.
	// Zero means 10s.
	TransferRetry time.Duration
}

func (o ReconcilerOptions) withDefaults() ReconcilerOptions {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Interval <= 0 {
		o.Interval = time.Second
	}
	if o.StepTimeout <= 0 {
		o.StepTimeout = 5 * time.Second
	}
	if o.TransferPause <= 0 {
		o.TransferPause = 250 * time.Millisecond
	}
	if o.Settle == 0 {
		o.Settle = 5 * time.Second
	}
	if o.TransferRetry <= 0 {
		o.TransferRetry = 10 * time.Second
	}
	return o
}

// Reconciler does what placement.Reconcile says, again whenever the state or
// what runs here changes. Steps of different groups run side by side, so a
// group that is stuck holds up no other.
type Reconciler struct {
	opts ReconcilerOptions
	kick chan struct{}

	mu      sync.Mutex
	running map[string]struct{}             // guarded by mu; steps under way
	resting map[placement.GroupID]time.Time // guarded by mu; no transfer of it before
	quiet   time.Time                       // guarded by mu; no transfer before

	stop context.CancelFunc
	bg   sync.WaitGroup
}

// StartReconciler starts the loop. Close it before leaderships are handed over
// for a shutdown, or it may hand them back.
func StartReconciler(o ReconcilerOptions) *Reconciler {
	ctx, stop := context.WithCancel(context.Background())
	r := &Reconciler{
		opts: o.withDefaults(), kick: make(chan struct{}, 1), stop: stop,
		running: make(map[string]struct{}), resting: make(map[placement.GroupID]time.Time),
	}
	r.quiet = time.Now().Add(r.opts.Settle)
	r.bg.Add(1)
	go r.loop(ctx)
	return r
}

// Close stops the loop and waits for the steps under way.
func (r *Reconciler) Close() {
	r.stop()
	r.bg.Wait()
}

// Kick asks for a look now: a leadership changed. It never blocks.
func (r *Reconciler) Kick() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// soon is the time to the next look after something has changed.
const soon = 10 * time.Millisecond

func (r *Reconciler) loop(ctx context.Context) {
	defer r.bg.Done()
	// What a change leads to takes a moment: a new leader commits an entry of
	// its term before it serves. So after one the looks come soon, and then
	// further and further apart.
	delay := soon
	tick := time.NewTimer(delay)
	defer tick.Stop()
	for {
		changed := r.opts.Placement.Changed()
		r.look(ctx)
		tick.Reset(delay)
		select {
		case <-changed:
			delay = soon
		case <-r.kick:
			delay = soon
		case <-tick.C:
			delay = min(2*delay, r.opts.Interval)
		case <-ctx.Done():
			return
		}
	}
}

// look compares and starts what is to be done.
func (r *Reconciler) look(ctx context.Context) {
	v := r.opts.Placement.View()
	if v.ClusterID == "" {
		return
	}
	if known, ok := v.Node(r.opts.Self.ID); !ok || known != r.opts.Self {
		r.do(ctx, "register", func(ctx context.Context) error { return r.opts.Placement.Register(ctx, r.opts.Self) })
	}
	replicas := r.opts.Local.Replicas()
	steps := placement.Reconcile(v, placement.Observed{Self: r.opts.Self.ID, Replicas: replicas})
	for _, g := range steps.Start {
		r.do(ctx, "start "+g.ID.String(), func(context.Context) error { return r.opts.Local.StartGroup(g) })
	}
	for _, g := range steps.Prefer {
		r.do(ctx, "prefer in "+g.ID.String(), func(context.Context) error { return r.opts.Local.Prefer(g.ID, g.Preferred) })
	}
	for _, own := range steps.Own {
		r.do(ctx, "own "+own.Group.String(), func(ctx context.Context) error {
			return r.propose(ctx, own.Group, fsm.Command{Own: &fsm.Own{Epoch: own.Epoch, Partitions: own.Partitions}})
		})
	}
	for _, drop := range steps.Drop {
		r.do(ctx, fmt.Sprintf("drop %d in %s", drop.Collection, drop.Group), func(ctx context.Context) error {
			if err := r.propose(ctx, drop.Group, fsm.Command{Drop: &fsm.Drop{Collection: drop.Collection}}); err != nil {
				return err
			}
			result, err := r.opts.Placement.Propose(ctx, placement.Command{FinishDrop: &placement.FinishDrop{Collection: drop.Collection, Group: drop.Group}})
			if err != nil {
				return err
			}
			return result.Err()
		})
	}
	if r.wantsTransfer(v, replicas) {
		r.do(ctx, "transfer", func(ctx context.Context) error { return r.transfer(ctx, v, replicas) })
	}
}

func (r *Reconciler) propose(ctx context.Context, g placement.GroupID, c fsm.Command) error {
	result, err := r.opts.Local.Propose(ctx, g, c)
	if err != nil {
		return err
	}
	if e := result.Wire.Error; e != nil {
		return fmt.Errorf("refused with code %d: %s", e.Code, result.Detail)
	}
	return nil
}

// do runs one step, unless the same one is under way, and looks again when it
// is done: its success may be what the next one waits for. A step that failed
// is left to the next regular look.
func (r *Reconciler) do(ctx context.Context, name string, f func(context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, busy := r.running[name]; busy || ctx.Err() != nil {
		return
	}
	r.running[name] = struct{}{}
	r.bg.Add(1)
	go func() {
		defer r.bg.Done()
		step, cancel := context.WithTimeout(ctx, r.opts.StepTimeout)
		defer cancel()
		err := f(step)
		r.mu.Lock()
		delete(r.running, name)
		r.mu.Unlock()
		switch {
		case err == nil:
			r.Kick()
		case ctx.Err() == nil:
			r.opts.Logger.Warn("reconcile step failed", "step", name, "error", err)
		}
	}()
}

// wantsTransfer says that some group led here prefers another node and may be
// handed over now, as far as is known without asking that node.
func (r *Reconciler) wantsTransfer(v *placement.View, replicas map[placement.GroupID]placement.Replica) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Before(r.quiet) {
		return false
	}
	for id, replica := range replicas {
		g, ok := v.Group(id)
		if ok && replica.Leading && g.Preferred != "" && g.Preferred != r.opts.Self.ID && now.After(r.resting[id]) {
			return true
		}
	}
	return false
}

// transfer asks the preferred nodes how they are and hands over one group.
func (r *Reconciler) transfer(ctx context.Context, v *placement.View, replicas map[placement.GroupID]placement.Replica) error {
	r.mu.Lock()
	now := time.Now()
	movable := make(map[placement.GroupID]placement.Replica)
	for id, replica := range replicas {
		if replica.Leading && now.After(r.resting[id]) {
			movable[id] = replica
		}
	}
	r.mu.Unlock()

	peers := make(map[placement.NodeID]placement.PeerState)
	for id := range movable {
		g, ok := v.Group(id)
		if !ok || g.Preferred == "" || g.Preferred == r.opts.Self.ID {
			continue
		}
		if _, asked := peers[g.Preferred]; asked {
			continue
		}
		peers[g.Preferred] = r.peerState(ctx, g.Preferred)
	}
	steps := placement.Reconcile(v, placement.Observed{Self: r.opts.Self.ID, Replicas: movable, Peers: peers})
	if len(steps.Transfer) == 0 {
		// Who could not be asked, or lags, is asked again at the next interval.
		r.mu.Lock()
		r.quiet = now.Add(r.opts.Interval)
		r.mu.Unlock()
		return nil
	}
	step := steps.Transfer[0]
	if err := r.opts.Local.Transfer(ctx, step.Group, step.To); err != nil {
		r.mu.Lock()
		r.resting[step.Group] = time.Now().Add(r.opts.TransferRetry)
		r.mu.Unlock()
		return fmt.Errorf("%s to %s: %w", step.Group, step.To, err)
	}
	r.opts.Logger.Info("leadership handed over", "group", step.Group.String(), "to", step.To)
	pause := time.NewTimer(r.opts.TransferPause)
	defer pause.Stop()
	select {
	case <-pause.C: // do kicks the loop, which finds the next group
	case <-ctx.Done():
	}
	return nil
}

// peerState asks a node; one that does not answer is to be avoided.
func (r *Reconciler) peerState(ctx context.Context, node placement.NodeID) placement.PeerState {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	status, err := r.opts.Local.PeerStatus(ctx, node)
	if err != nil {
		return placement.PeerState{Avoid: true}
	}
	state := placement.PeerState{Avoid: !status.Ready || status.DiskFull, Applied: make(map[placement.GroupID]uint64, len(status.Groups))}
	for _, g := range status.Groups {
		if g.Error == "" && g.State != "stopped" {
			state.Applied[placement.GroupID(g.ID)] = g.Applied
		}
	}
	return state
}
