package shardgroup

import (
	"context"
	"encoding/binary"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/shardgroup/transport"
)

// firstElection lets a group that starts have a leader soon. Raft's followers
// wait a heartbeat timeout and up to as long again before they ask for votes,
// which is right while there may be a leader; after a start of the whole
// cluster there is none, and every group of it stands still for that time.
//
// Here the preferred member asks for votes as soon as enough others run the
// group to elect it. The others stand back for half a timeout, in case it is
// behind and cannot win, and after four timeouts they are followers as any.
//
// Raft has no call for that, but a shortened heartbeat timeout ends the present
// one at once. What follows is its own: a follower that hears of a leader does
// nothing, any other asks for pre-votes, which voters that hear of a leader
// refuse. So a member that starts alone disturbs nobody.
func (g *Group) firstElection() {
	t := g.host.cfg.Timing
	ctx, cancel := context.WithTimeout(g.host.ctx, 4*t.Heartbeat)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	defer g.reload(func(rc *raft.ReloadableConfig) {
		if rc.HeartbeatTimeout > t.Heartbeat {
			rc.HeartbeatTimeout, rc.ElectionTimeout = t.Heartbeat, t.Election
		}
	})

	missing := g.spec.voters()/2 + 1
	standBack := time.Duration(0)
	runs := make(chan struct{}, len(g.spec.Members))
	for i, m := range g.spec.Members {
		switch {
		case m.Learner:
		case m.serverID() != g.self:
			asking.Go(func() {
				if g.awaitMember(ctx, m.serverID()) {
					runs <- struct{}{}
				}
			})
		default:
			missing--
			if g.spec.Preferred != g.host.cfg.NodeID {
				standBack = t.Heartbeat/2 + time.Duration(i)*t.Heartbeat/10 // not all at once
			}
		}
	}
	tick := time.NewTicker(g.pollEvery())
	defer tick.Stop()
	var stand <-chan time.Time
	for {
		select {
		case <-runs:
			if missing--; missing == 0 {
				timer := time.NewTimer(standBack)
				defer timer.Stop()
				stand = timer.C
			}
		case <-stand:
			return
		case <-tick.C:
			if _, _, known := g.Leader(); known {
				return
			}
		case <-ctx.Done():
			return
		case <-g.stop:
			return
		}
	}
}

func (g *Group) pollEvery() time.Duration {
	return max(g.host.cfg.Timing.Heartbeat/20, time.Millisecond)
}

// awaitMember waits until another member runs the group. False: ctx has ended.
func (g *Group) awaitMember(ctx context.Context, id raft.ServerID) bool {
	node, incarnation := transport.SplitServerID(id)
	question := binary.BigEndian.AppendUint32([]byte{confirmVersion}, 1)
	question = appendQuestion(question, g.id, math.MaxUint64) // no term is above that
	tick := time.NewTicker(g.pollEvery())
	defer tick.Stop()
	for {
		one, cancel := context.WithTimeout(ctx, g.host.cfg.Timing.Heartbeat)
		answer, err := g.host.cfg.Peers.CallIncarnation(one, node, incarnation, wire.KindConfirm, question)
		cancel()
		if err == nil {
			if v, err := decodeVerdicts(answer, 1); err == nil && v[0] == 1 {
				return true
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		case <-g.stop:
			return false
		}
	}
}
