package router

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// lookupOrCreate finds the collection of a write, and creates it if the write
// is one that creates documents.
func (r *Router) lookupOrCreate(ctx context.Context, req *wire.WriteRequest) (*placement.View, *placement.Collection, error) {
	if e := checkName(req.Collection); e != nil {
		return nil, nil, e
	}
	creating := false
	for i := range req.Items {
		creating = creating || creates(req.Items[i].Op)
	}
	if !creating {
		return r.opts.Placement.Lookup(ctx, req.Collection)
	}
	ctx, cancel := r.bounded(ctx)
	defer cancel()
	name := strings.Clone(req.Collection)
	return r.creating.do(ctx, name, func() (*placement.View, *placement.Collection, error) {
		if v := r.opts.Placement.View(); v != nil {
			if c, ok := v.Collection(name); ok {
				return v, c, nil
			}
		}
		_, err := r.create(ctx, &placement.CreateCollection{Name: name, Time: uint64(r.opts.Clock.Now()), Implicit: true})
		if err != nil {
			return nil, nil, err
		}
		v := r.opts.Placement.View()
		c, ok := v.Collection(name)
		if !ok { // dropped again already
			return nil, nil, refuse(wire.CodeUnavailable, "collection %s was dropped while it was created (retry)", name)
		}
		return v, c, nil
	})
}

// bounded gives a request without a deadline the router's patience.
func (r *Router) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, r.opts.Patience)
}

// create proposes a creation, and waits while the name is still being dropped.
func (r *Router) create(ctx context.Context, c *placement.CreateCollection) (*placement.Result, error) {
	var p patience
	for {
		result, err := r.opts.Placement.Propose(ctx, placement.Command{CreateCollection: c})
		if err != nil {
			return nil, err
		}
		err = result.Err()
		if result.Code != wire.CodeUnavailable {
			return result, err
		}
		if !p.wait(ctx, r.opts.Patience) {
			return result, err
		}
	}
}

// creations lets one request create a collection while others that want the
// same one wait for it.
type creations struct {
	mu      sync.Mutex
	running map[string]chan struct{} // closed when done
}

func (c *creations) do(ctx context.Context, name string, f func() (*placement.View, *placement.Collection, error)) (*placement.View, *placement.Collection, error) {
	for {
		c.mu.Lock()
		other, busy := c.running[name]
		if !busy {
			if c.running == nil {
				c.running = make(map[string]chan struct{})
			}
			mine := make(chan struct{})
			c.running[name] = mine
			c.mu.Unlock()
			defer func() {
				c.mu.Lock()
				delete(c.running, name)
				c.mu.Unlock()
				close(mine)
			}()
			return f()
		}
		c.mu.Unlock()
		select {
		case <-other: // done or failed: look again
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// createCollection serves KindCreateCollection.
func (r *Router) createCollection(ctx context.Context, req *wire.CreateCollectionRequest) (*wire.CollectionInfo, *wire.Error) {
	if _, e := r.ready(); e != nil {
		return nil, e
	}
	if e := checkName(req.Name); e != nil {
		return nil, e
	}
	s := subject{collection: req.Name}
	if err := placement.CheckCollectionOptions(req.Options); err != nil {
		return nil, refuse(wire.CodeBadCollection, "%s: %v", s, err)
	}
	ctx, cancel := r.bounded(ctx)
	defer cancel()
	result, err := r.create(ctx, &placement.CreateCollection{Name: req.Name, Options: req.Options, Time: uint64(r.opts.Clock.Now())})
	if err != nil {
		return nil, r.wireError(err, s)
	}
	return &result.Collection, nil
}

// dropCollection serves KindDropCollection. It answers when no group serves
// the collection any more; then the name can be used again.
func (r *Router) dropCollection(ctx context.Context, req *wire.DropCollectionRequest) (*wire.CollectionInfo, *wire.Error) {
	if _, e := r.ready(); e != nil {
		return nil, e
	}
	if e := checkName(req.Name); e != nil {
		return nil, e
	}
	s := subject{collection: req.Name}
	ctx, cancel := r.bounded(ctx)
	defer cancel()
	result, err := r.opts.Placement.Propose(ctx, placement.Command{DropCollection: &placement.DropCollection{Name: req.Name}})
	if err != nil {
		return nil, r.wireError(err, s)
	}
	if result.Code == wire.CodeCollectionNotFound {
		return nil, placement.NotFound(r.opts.Placement.View(), req.Name)
	}
	if err := result.Err(); err != nil {
		return nil, r.wireError(err, s)
	}
	v, err := r.opts.Placement.WaitFor(ctx, func(v *placement.View) bool {
		_, there := v.CollectionByID(placement.CollectionID(result.Collection.ID))
		return !there
	})
	info := result.Collection
	if err != nil {
		// The drop is decided and will be done; only the waiting ended. Say
		// for whom.
		left := 0
		if c, ok := v.CollectionByID(placement.CollectionID(info.ID)); ok {
			left = len(c.Pending)
		}
		return nil, refuse(wire.CodeOutcomeUnknown, "%s: the drop is decided, but %s did not confirm it in time (repeat it to wait for the rest)", s, plural(left, "shard group"))
	}
	info.Dropping = false
	return &info, nil
}

// settings serves KindSettings.
func (r *Router) settings(ctx context.Context, req *wire.Settings) (*wire.Settings, *wire.Error) {
	if _, e := r.ready(); e != nil {
		return nil, e
	}
	ctx, cancel := r.bounded(ctx)
	defer cancel()
	result, err := r.opts.Placement.Propose(ctx, placement.Command{SetSettings: &placement.SetSettings{Settings: *req}})
	if err == nil {
		err = result.Err()
	}
	if err != nil {
		return nil, r.wireError(err, subject{})
	}
	now := r.opts.Placement.View().Settings
	return &now, nil
}

// maxTopologyWait bounds how long a request for news is held.
const maxTopologyWait = time.Minute

// topology serves KindTopology. There is none before cluster init.
func (r *Router) topology(ctx context.Context, req *wire.TopologyRequest) (*wire.Topology, *wire.Error) {
	v := r.opts.Placement.View()
	if wait := min(time.Duration(req.WaitMillis)*time.Millisecond, maxTopologyWait); wait > 0 {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		v, _ = r.opts.Placement.WaitFor(ctx, func(v *placement.View) bool {
			return v.Newer(placement.Epoch(req.HaveEpoch), req.HaveCatalog)
		})
	}
	if _, e := r.ready(); e != nil {
		return nil, e
	}
	t := v.Topology()
	r.fillLeaders(v, &t)
	return &t, nil
}

// fillLeaders adds what this node knows of leaders.
func (r *Router) fillLeaders(v *placement.View, t *wire.Topology) {
	for i := range t.Groups {
		id := placement.GroupID(t.Groups[i].ID)
		if g, ok := r.opts.Groups.Group(id); ok {
			if leader, term, known := g.Leader(); known {
				t.Groups[i].Leader, t.Groups[i].Term = string(leader), term
			}
			continue
		}
		r.mu.RLock()
		t.Groups[i].Leader = string(r.leaders[id])
		r.mu.RUnlock()
	}
}
