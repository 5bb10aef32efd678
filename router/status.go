package router

import (
	"context"
	"errors"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// clusterInit serves KindClusterInit.
func (r *Router) clusterInit(ctx context.Context, req *wire.ClusterInitRequest) (*wire.ClusterInitReply, *wire.Error) {
	if r.opts.Init == nil {
		return nil, refuse(wire.CodeUnsupported, "this node does not form clusters")
	}
	reply, err := r.opts.Init(ctx, req)
	if err != nil {
		return nil, r.wireError(err, subject{})
	}
	return reply, nil
}

// clusterStatus serves KindClusterStatus: every node's own answer, asked in
// parallel, and for each that gave none the reason. It takes no longer than
// StatusTimeout.
func (r *Router) clusterStatus(ctx context.Context) *wire.ClusterStatus {
	v := r.opts.Placement.View()
	ctx, cancel := context.WithTimeout(ctx, r.opts.StatusTimeout)
	defer cancel()
	status := &wire.ClusterStatus{Topology: v.Topology()}
	if len(v.Nodes) == 0 { // not initialised: this node alone
		status.Nodes = []wire.NodeAnswer{{ID: string(r.opts.Self), Status: r.opts.Status(ctx)}}
		return status
	}
	type numbered struct {
		i      int
		answer wire.NodeAnswer
	}
	answers := make(chan numbered, len(v.Nodes))
	for i, n := range v.Nodes {
		go func() { answers <- numbered{i, r.nodeStatus(ctx, n.ID)} }() // ends with ctx
	}
	status.Nodes = make([]wire.NodeAnswer, len(v.Nodes))
	for range v.Nodes {
		a := <-answers
		status.Nodes[a.i] = a.answer
	}
	r.fillLeaders(v, &status.Topology)
	leadersFrom(status)
	return status
}

// nodeStatus asks one node.
func (r *Router) nodeStatus(ctx context.Context, id placement.NodeID) wire.NodeAnswer {
	answer := wire.NodeAnswer{ID: string(id)}
	if id == r.opts.Self {
		answer.Status = r.opts.Status(ctx)
		return answer
	}
	body, err := r.opts.Peers.Call(ctx, id, wire.KindNodeStatus, nil)
	if err == nil {
		err = wire.Decode(body, &answer.Status)
	}
	switch {
	case err == nil:
	case errors.Is(err, context.DeadlineExceeded):
		answer.Error = "no answer within " + r.opts.StatusTimeout.String()
	default:
		answer.Error = err.Error()
	}
	return answer
}

// leadersFrom takes each group's leader from the node that says it leads, in
// the highest term: better than what this node has heard.
func leadersFrom(s *wire.ClusterStatus) {
	for i := range s.Topology.Groups {
		g := &s.Topology.Groups[i]
		for _, n := range s.Nodes {
			if n.Error != "" {
				continue
			}
			for _, replica := range n.Status.Groups {
				if replica.ID == g.ID && replica.State == "leader" && replica.Term >= g.Term {
					g.Leader, g.Term = n.ID, replica.Term
				}
			}
		}
	}
}
