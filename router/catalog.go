package router

import (
	"context"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// bounded gives a request without a deadline the router's patience.
func (r *Router) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, r.opts.Patience)
}

// checkNumber refuses what does not say which collection it is for.
func checkNumber(name string, number uint32) *wire.Error {
	if number == 0 {
		return refuse(wire.CodeBadRequest, "%s: the request does not have the collection's number (ask for the collection by its name, or create it, then send the number with every attempt)", subject{collection: name})
	}
	return nil
}

func checkRequestID(id wire.RequestID, s subject) *wire.Error {
	if id == (wire.RequestID{}) {
		return refuse(wire.CodeBadRequest, "%s: the request has no request ID (make a fresh one for each request, the same for its retries)", s)
	}
	return nil
}

// collectionInfo serves KindCollection: what the name stands for at a moment
// after the question. A node that knows the name may have missed that it was
// dropped, so the placement leader is always asked.
func (r *Router) collectionInfo(ctx context.Context, req *wire.CollectionRequest) (*wire.CollectionInfo, *wire.Error) {
	if _, e := r.ready(); e != nil {
		return nil, e
	}
	if e := checkName(req.Name); e != nil {
		return nil, e
	}
	ctx, cancel := r.bounded(ctx)
	defer cancel()
	v, err := r.opts.Placement.Refresh(ctx)
	if err != nil {
		return nil, r.wireReadError(err, subject{collection: req.Name})
	}
	c, ok := v.Collection(req.Name)
	if !ok {
		return nil, placement.NotFound(v, req.Name)
	}
	info := c.Info()
	return &info, nil
}

// createCollection serves KindCreateCollection. While the name is still being
// dropped it waits: the same request is done then.
func (r *Router) createCollection(ctx context.Context, req *wire.CreateCollectionRequest) (*wire.CollectionInfo, *wire.Error) {
	if _, e := r.ready(); e != nil {
		return nil, e
	}
	if e := checkName(req.Name); e != nil {
		return nil, e
	}
	s := subject{collection: req.Name}
	if e := checkRequestID(req.RequestID, s); e != nil {
		return nil, e
	}
	if err := placement.CheckCollectionOptions(req.Options); err != nil {
		return nil, refuse(wire.CodeBadCollection, "%s: %v", s, err)
	}
	ctx, cancel := r.bounded(ctx)
	defer cancel()
	c := placement.CreateCollection{
		Request: req.RequestID, Name: req.Name, Options: req.Options, Time: uint64(r.opts.Clock.Now()), Implicit: req.Implicit,
	}
	var p patience
	for {
		result, err := r.opts.Placement.Propose(ctx, placement.Command{CreateCollection: &c})
		if err == nil {
			err = result.Err()
		}
		if err == nil {
			return &result.Collection, nil
		}
		if result == nil || result.Code != wire.CodeUnavailable || !p.wait(ctx, r.opts.Patience) {
			return nil, r.wireError(err, s)
		}
	}
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
	if e := checkRequestID(req.RequestID, s); e != nil {
		return nil, e
	}
	ctx, cancel := r.bounded(ctx)
	defer cancel()
	result, err := r.opts.Placement.Propose(ctx, placement.Command{DropCollection: &placement.DropCollection{Request: req.RequestID, Name: req.Name}})
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
func (r *Router) settings(ctx context.Context, req *wire.SettingsRequest) (*wire.Settings, *wire.Error) {
	if _, e := r.ready(); e != nil {
		return nil, e
	}
	if e := checkRequestID(req.RequestID, subject{}); e != nil {
		return nil, e
	}
	ctx, cancel := r.bounded(ctx)
	defer cancel()
	result, err := r.opts.Placement.Propose(ctx, placement.Command{SetSettings: &placement.SetSettings{Request: req.RequestID, Settings: req.Settings}})
	if err == nil {
		err = result.Err()
	}
	if err != nil {
		return nil, r.wireError(err, subject{})
	}
	now := r.opts.Placement.View().Settings
	return &now, nil
}

// placeLeaders serves KindLeaders. The preferred leaders are planned here, for
// the groups as this node sees them; if they changed meanwhile, it plans again.
func (r *Router) placeLeaders(ctx context.Context, req *wire.LeadersRequest) (*wire.Topology, *wire.Error) {
	if _, e := r.ready(); e != nil {
		return nil, e
	}
	if !req.Leaders.Known() {
		return nil, refuse(wire.CodeBadRequest, "leaders: the place %s is not known here: 0 is spread, 1 is together (upgrade the server for others)", req.Leaders)
	}
	if e := checkRequestID(req.RequestID, subject{}); e != nil {
		return nil, e
	}
	ctx, cancel := r.bounded(ctx)
	defer cancel()
	var p patience
	for {
		result, err := r.opts.Placement.Propose(ctx, placement.Command{SetLeaders: &placement.SetLeaders{
			Request: req.RequestID, Leaders: req.Leaders, Preferred: placement.PlanLeaders(r.opts.Placement.View().Groups, req.Leaders),
		}})
		if err == nil {
			err = result.Err()
		}
		if err == nil {
			v := r.opts.Placement.View()
			t := v.Topology()
			r.fillLeaders(v, &t)
			return &t, nil
		}
		if result == nil || result.Code != wire.CodeUnavailable || !p.wait(ctx, r.opts.Patience) {
			return nil, r.wireError(err, subject{})
		}
	}
}

// maxTopologyWait bounds how long a request for news is held.
const maxTopologyWait = time.Minute

// topology serves KindTopology. There is none before cluster init.
func (r *Router) topology(ctx context.Context, req *wire.TopologyRequest) (*wire.Topology, *wire.Error) {
	v := r.opts.Placement.View()
	if req.Fresh {
		if _, e := r.ready(); e != nil {
			return nil, e
		}
		var err error
		if v, err = r.opts.Placement.Refresh(ctx); err != nil {
			return nil, r.wireReadError(err, subject{collection: "the catalog"})
		}
	}
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
