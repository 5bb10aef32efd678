package chaos

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
)

// CompareReplicas waits until the replicas of every group were seen with equal
// state at an equal applied index. Divergence ends the wait at once.
func CompareReplicas(ctx context.Context, db *client.DB) error {
	looks := newLooks()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := db.Status(ctx)
		if err != nil {
			return fmt.Errorf("comparing replicas: %w", err)
		}
		if equal, err := looks.add(status); equal || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("replicas were not seen equal: %w; last status:\n%s", ctx.Err(), describeGroups(status))
		}
	}
}

// looks puts the statuses of different moments together. Leaders go on writing
// entries of their own, so one replica may be seen at an index now and another
// one later; two digests for one index of one group are divergence.
type looks struct {
	seen  map[place]look
	equal map[uint32]bool // groups whose replicas all were seen at one place
}

type place struct {
	group   uint32
	applied uint64
}

type look struct {
	digest uint64
	nodes  []string // who was seen there with it
}

func newLooks() *looks { return &looks{seen: map[place]look{}, equal: map[uint32]bool{}} }

// add takes one status in and says whether all groups are equal by now.
func (l *looks) add(status *wire.ClusterStatus) (bool, error) {
	replicas := map[uint32]int{}
	for _, g := range status.Topology.Groups {
		replicas[g.ID] = len(g.Replicas)
	}
	for _, n := range status.Nodes {
		for _, g := range n.Status.Groups {
			if g.ID == 0 {
				continue // the placement group has no digest
			}
			if g.Error != "" {
				return false, fmt.Errorf("group %d on %s: %s", g.ID, n.ID, g.Error)
			}
			p := place{g.ID, g.Applied}
			at, ok := l.seen[p]
			if ok && at.digest != g.Digest {
				return false, fmt.Errorf("group %d has diverged: at index %d %s has digest %x, and %s %x",
					g.ID, g.Applied, n.ID, g.Digest, strings.Join(at.nodes, " and "), at.digest)
			}
			if !slices.Contains(at.nodes, n.ID) {
				at.digest, at.nodes = g.Digest, append(at.nodes, n.ID)
				l.seen[p] = at
			}
			if len(at.nodes) == replicas[g.ID] {
				l.equal[g.ID] = true
			}
		}
	}
	return len(replicas) > 0 && len(l.equal) == len(replicas), nil
}

func describeGroups(s *wire.ClusterStatus) string {
	var b strings.Builder
	for _, n := range s.Nodes {
		if n.Error != "" {
			fmt.Fprintf(&b, "%s: %s\n", n.ID, n.Error)
		}
		for _, g := range n.Status.Groups {
			fmt.Fprintf(&b, "%s group %d: %s, leader %s, term %d, commit %d, applied %d, last %d, digest %x %s\n",
				n.ID, g.ID, g.State, g.Leader, g.Term, g.Commit, g.Applied, g.LastIndex, g.Digest, g.Error)
		}
	}
	return b.String()
}

// Leaders are the nodes that say of themselves that they lead, by group.
func Leaders(s *wire.ClusterStatus) map[uint32]string {
	leaders := map[uint32]string{}
	for _, n := range s.Nodes {
		for _, g := range n.Status.Groups {
			if g.State == "leader" {
				leaders[g.ID] = n.ID
			}
		}
	}
	return leaders
}
