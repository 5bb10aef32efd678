package placement

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/vfs"
)

// Log is the replicated log of the placement group on a member. The Machine
// given with it to StartMember is applied to by this log and by nothing else.
type Log interface {
	// Propose appends data, waits until the local machine has applied it and
	// answers what Machine.Apply answered (a *Result). After an error the
	// entry may still be applied.
	Propose(ctx context.Context, data []byte) (any, error)
	// ReadIndex returns when the local machine has applied everything that was
	// committed before the call. It fails on a replica that does not lead.
	ReadIndex(ctx context.Context) error
	// Leader is the leader as far as this replica knows.
	Leader() (node NodeID, term uint64, known bool)
}

// Peers carries requests to other nodes. A refusal is a *wire.Error; a request
// without an answer a *wire.ConnError; with any other error it was not sent.
type Peers interface {
	Call(ctx context.Context, node NodeID, kind wire.Kind, body []byte) ([]byte, error)
}

// Options of a Service.
type Options struct {
	Self   NodeID
	Peers  Peers
	Logger hclog.Logger // nil: none

	// FS and Path are where the last known state is cached; an empty path
	// keeps no cache, and the node cannot start its groups until it has
	// reached a member.
	FS   vfs.FS
	Path string

	// AttemptTimeout bounds one try at one member. Too short gives up on a
	// slow disk's fsync; too long waits on a dead node. Zero means 2s.
	AttemptTimeout time.Duration
	// PollTimeout is how long a question for news is held. Zero means 10s.
	PollTimeout time.Duration
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.AttemptTimeout <= 0 {
		o.AttemptTimeout = 2 * time.Second
	}
	if o.PollTimeout <= 0 {
		o.PollTimeout = 10 * time.Second
	}
	return o
}

// Service shows a node the state of the placement group and lets it change it,
// whether the node is a member of the group or not.
//
// Invariant: the published view never goes back; what a successful Propose or
// Refresh of this node saw is in it before the call returns.
type Service struct {
	opts Options

	view    atomic.Pointer[View]
	machine atomic.Pointer[Machine] // the log's; nil until this node is a member

	mu      sync.Mutex
	changed chan struct{} // guarded by mu; closed at the next publication
	log     Log           // guarded by mu; nil until this node is a member
	members []NodeID      // guarded by mu; whom to ask while the view knows none
	leader  NodeID        // guarded by mu; who answered last as leader
	running bool          // guarded by mu; a follow loop is started
	closed  bool          // guarded by mu

	refresh refreshGate
	encoded encodedState

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	bg   sync.WaitGroup
}

// NewService makes a service that shows the cached state, if there is one. It
// follows nothing until StartMember or StartFollower.
func NewService(o Options) *Service {
	o = o.withDefaults()
	ctx, stop := context.WithCancel(context.Background())
	s := &Service{opts: o, changed: make(chan struct{}), ctx: ctx, stop: stop}
	s.view.Store(NewView(emptyState()))
	if o.Path != "" {
		state, err := readCache(o.FS, o.Path)
		switch {
		case err == nil && state != nil:
			s.view.Store(NewView(state))
		case err != nil: // only a cache
			o.Logger.Warn("placement cache ignored", "path", o.Path, "error", err)
		}
	}
	s.bg.Add(1)
	go s.cacheLoop(s.view.Load().Applied)
	return s
}

// StartMember makes this node's replica the source of the state.
func (s *Service) StartMember(log Log, machine *Machine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.running {
		return
	}
	s.log, s.running = log, true
	s.machine.Store(machine)
	s.bg.Add(1)
	go s.memberLoop(machine)
}

// StartFollower makes the members of the placement group the source; members
// tells who they are until the state itself does.
func (s *Service) StartFollower(members []NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.running {
		return
	}
	s.members, s.running = members, true
	s.bg.Add(1)
	go s.followLoop()
}

// Close stops following and waits for it. The Log is not closed.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.refresh.close()
	s.bg.Wait()
}

// View is the latest state this node knows, on a member what its replica has
// applied. It never waits for anybody and is never nil.
func (s *Service) View() *View {
	v := s.view.Load()
	if m := s.machine.Load(); m != nil && m.View().Applied > v.Applied {
		s.publish(m.View())
		return s.view.Load()
	}
	return v
}

// Changed is closed when a newer view is published. Take the channel first,
// then the view, then wait.
func (s *Service) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// WaitFor returns the first view for which ok holds, or the last one seen and
// the context's error.
func (s *Service) WaitFor(ctx context.Context, ok func(*View) bool) (*View, error) {
	for {
		changed := s.Changed()
		v := s.View()
		if ok(v) {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return v, ctx.Err()
		case <-s.ctx.Done():
			return v, errClosed
		}
	}
}

var errClosed = &wire.Error{Code: wire.CodeShuttingDown, Message: "this node is shutting down (ask another)"}

// Lookup finds a live collection by name. If this node knows none, it first
// makes sure that it has not missed a creation.
func (s *Service) Lookup(ctx context.Context, name string) (*View, *Collection, error) {
	v := s.View()
	if c, ok := v.Collection(name); ok {
		return v, c, nil
	}
	if err := CheckCollectionName(name); err != nil {
		return v, nil, &wire.Error{Code: wire.CodeBadCollection, Message: err.Error()}
	}
	v, err := s.Refresh(ctx)
	if err != nil {
		return v, nil, err
	}
	if c, ok := v.Collection(name); ok {
		return v, c, nil
	}
	return v, nil, NotFound(v, name)
}

// LookupNumber finds the live collection of that name and number. If this node
// does not know it, it first makes sure that it has not missed a creation.
func (s *Service) LookupNumber(ctx context.Context, name string, number CollectionID) (*View, *Collection, error) {
	v := s.View()
	if c, ok := v.Numbered(name, number); ok {
		return v, c, nil
	}
	v, c, err := s.Lookup(ctx, name)
	switch {
	case err != nil:
		return v, nil, err
	case c.ID == number:
		return v, c, nil
	case c.ID < number: // this node has missed that it was made anew
		if v, err = s.Refresh(ctx); err != nil {
			return v, nil, err
		}
		var ok bool
		if c, ok = v.Collection(name); !ok {
			return v, nil, NotFound(v, name)
		}
		if c.ID == number {
			return v, c, nil
		}
	}
	return v, nil, &wire.Error{Code: wire.CodeCollectionNotFound, Message: fmt.Sprintf(
		"collection %s number %d was dropped; the name is number %d now (look it up again)", name, number, c.ID)}
}

// NotFound words the absence of a collection, with the name that was probably
// meant.
func NotFound(v *View, name string) *wire.Error {
	e := &wire.Error{Code: wire.CodeCollectionNotFound, Message: fmt.Sprintf("collection %s does not exist", name)}
	if near := v.Nearest(name); near != "" {
		e.Message += fmt.Sprintf(" (did you mean %s?)", near)
	}
	return e
}

// Register tells the cluster this node's present addresses, if it does not
// know them.
func (s *Service) Register(ctx context.Context, n Node) error {
	if known, ok := s.View().Node(n.ID); ok && known == n {
		return nil
	}
	r, err := s.Propose(ctx, Command{UpsertNode: &UpsertNode{Node: n}})
	if err != nil {
		return err
	}
	return r.Err()
}

// publish shows a state if it is newer than the one shown.
func (s *Service) publish(v *View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.view.Load(); v.Applied <= now.Applied || now.ClusterID != "" && v.ClusterID != now.ClusterID {
		return
	}
	s.view.Store(v)
	close(s.changed)
	s.changed = make(chan struct{})
}

// member is the local replica, nil where there is none.
func (s *Service) member() (Log, *Machine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log, s.machine.Load()
}

func (s *Service) memberLoop(m *Machine) {
	defer s.bg.Done()
	for {
		changed := m.Changed()
		s.publish(m.View())
		select {
		case <-changed:
		case <-s.ctx.Done():
			return
		}
	}
}

// followLoop asks the members in turn for anything newer.
func (s *Service) followLoop() {
	defer s.bg.Done()
	delay := retryDelay{}
	for turn := 0; s.ctx.Err() == nil; turn++ {
		members := s.memberIDs()
		if len(members) == 0 {
			s.opts.Logger.Error("placement members unknown; this node cannot follow the cluster")
			return
		}
		// Start at another member on each node, so that watchers spread.
		node := members[(turn+len(s.opts.Self)+int(lastByte(s.opts.Self)))%len(members)]
		answered, news := s.poll(node)
		if news {
			turn-- // stay with who has news; one without may be cut off
		}
		if answered {
			delay.reset()
			continue
		}
		delay.wait(s.ctx)
	}
}

func lastByte(id NodeID) byte {
	if id == "" {
		return 0
	}
	return id[len(id)-1]
}

// poll asks one member for news and says whether it answered, and had any.
func (s *Service) poll(node NodeID) (answered, news bool) {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.PollTimeout+s.opts.AttemptTimeout)
	defer cancel()
	v, err := s.ask(ctx, node, question{have: s.View().Applied, wait: s.opts.PollTimeout})
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			s.opts.Logger.Debug("placement member did not answer", "node", node, "error", err)
		}
		return false, false
	}
	if v != nil {
		s.publish(v)
	}
	return true, v != nil
}

// memberIDs are the members of the placement group, from the state or, before
// there is one, from cluster init.
func (s *Service) memberIDs() []NodeID {
	if v := s.View(); len(v.Members) > 0 {
		return v.Members
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.members
}

// retryDelay waits a little, then longer, up to half a second.
type retryDelay struct{ next time.Duration }

func (d *retryDelay) reset() { d.next = 0 }

// wait answers false when the context ended.
func (d *retryDelay) wait(ctx context.Context) bool {
	d.next = min(max(2*d.next, 10*time.Millisecond), 500*time.Millisecond)
	t := time.NewTimer(d.next)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
