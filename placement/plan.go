package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/impossibledb/idb/client/wire"
)

// CheckSpec refuses a cluster that cannot be formed: the numbers of shard
// groups, replicas and partitions against the number of nodes.
func CheckSpec(nodes, shards, replicas, partitions int) error {
	switch {
	case nodes < 1:
		return fmt.Errorf("no nodes are named; name at least one client address")
	case nodes > MaxNodes:
		return fmt.Errorf("%d nodes are named; a cluster has at most %d", nodes, MaxNodes)
	case shards < 1 || shards > MaxShards:
		return fmt.Errorf("%d shard groups are asked for; use 1 to %d", shards, MaxShards)
	case replicas < 1 || replicas > MaxReplicas:
		return fmt.Errorf("%d replicas are asked for; use 1 to %d", replicas, MaxReplicas)
	case replicas > nodes:
		return fmt.Errorf("%d replicas are asked for but only %s; name more nodes or ask for at most %d",
			replicas, countNodes(nodes), nodes)
	}
	return CheckPartitions(shards, partitions)
}

func countNodes(n int) string {
	if n == 1 {
		return "1 node is named"
	}
	return fmt.Sprintf("%d nodes are named", n)
}

// PlanMembers picks the voters of the placement group: the first five nodes by
// ID, or an odd number of them, for a fourth voter adds a vote to win and no
// failure to survive.
func PlanMembers(nodes []Node) []NodeID {
	ids := make([]NodeID, len(nodes))
	for i, n := range nodes {
		ids[i] = n.ID
	}
	slices.Sort(ids)
	n := min(len(ids), MaxMembers)
	if n > 2 && n%2 == 0 {
		n--
	}
	return ids[:n]
}

// PlanGroups places the replicas of new shard groups: each group in as many
// regions, then zones, as there are, and the nodes evenly filled; preferred
// leaders as PlanLeaders has them.
func PlanGroups(nodes []Node, shards, replicas int, leaders wire.Leaders) ([]Group, error) {
	if shards < 1 || shards > MaxShards {
		return nil, fmt.Errorf("%d shard groups are asked for; use 1 to %d", shards, MaxShards)
	}
	if replicas < 1 || replicas > len(nodes) || replicas > MaxReplicas {
		return nil, fmt.Errorf("%d replicas are asked for, with %d nodes and a limit of %d", replicas, len(nodes), MaxReplicas)
	}
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b Node) int { return strings.Compare(string(a.ID), string(b.ID)) })

	held := make([]int, len(nodes)) // replicas per node
	groups := make([]Group, shards)
	for g := range groups {
		picked := make([]int, 0, replicas)
		for range replicas {
			picked = append(picked, bestNode(nodes, held, picked, g))
		}
		groups[g] = Group{ID: GroupID(g + 1)}
		for _, n := range picked {
			held[n]++
			groups[g].Replicas = append(groups[g].Replicas, nodes[n].ID)
		}
		slices.Sort(groups[g].Replicas)
	}
	for i, n := range PlanLeaders(groups, leaders) {
		groups[i].Preferred = n
	}
	return groups, nil
}

// bestNode picks the next replica's node: the least used region and zone among
// those picked, then the emptiest node, then in turn.
func bestNode(nodes []Node, held, picked []int, turn int) int {
	type score struct{ region, zone, held, turn int }
	best, bestScore := -1, score{}
	for n := range nodes {
		if slices.Contains(picked, n) {
			continue
		}
		s := score{held: held[n], turn: (n - turn%len(nodes) + len(nodes)) % len(nodes)}
		for _, p := range picked {
			if nodes[p].Region == nodes[n].Region {
				s.region++
				if nodes[p].Zone == nodes[n].Zone {
					s.zone++
				}
			}
		}
		if best < 0 || cmp.Or(cmp.Compare(s.region, bestScore.region), cmp.Compare(s.zone, bestScore.zone),
			cmp.Compare(s.held, bestScore.held), cmp.Compare(s.turn, bestScore.turn)) < 0 {
			best, bestScore = n, s
		}
	}
	return best
}

// PlanLeaders chooses the preferred leader of every group among its replicas,
// in the order of groups. It depends on their replicas alone.
func PlanLeaders(groups []Group, leaders wire.Leaders) []NodeID {
	groups = slices.Clone(groups)
	for i := range groups {
		groups[i].Preferred = ""
	}
	if leaders == wire.LeadersTogether {
		gatherLeaders(groups)
	} else {
		spreadLeaders(groups)
	}
	var preferred []NodeID
	for _, g := range groups {
		preferred = append(preferred, g.Preferred)
	}
	return preferred
}

// gatherLeaders chooses preferred leaders on few nodes: again and again the
// node that has a replica of most of the groups that are left, the first by ID
// among equals. The fewest nodes of all would be a hard problem; greed finds
// them wherever one node, or nodes without a group in common, hold all groups.
func gatherLeaders(groups []Group) {
	for {
		left := make(map[NodeID]int)
		for _, g := range groups {
			if g.Preferred == "" {
				for _, n := range g.Replicas {
					left[n]++
				}
			}
		}
		if len(left) == 0 {
			return
		}
		var best NodeID
		for n, groups := range left { // in no order: the choice does not depend on it
			if best == "" || groups > left[best] || groups == left[best] && n < best {
				best = n
			}
		}
		for i := range groups {
			if g := &groups[i]; g.Preferred == "" && g.Has(best) {
				g.Preferred = best
			}
		}
	}
}

// spreadLeaders chooses preferred leaders. It starts greedily and then moves
// leaderships along chains of groups from the fullest node to emptier ones
// until no chain helps, which is an even spread wherever one exists.
func spreadLeaders(groups []Group) {
	leads := make(map[NodeID]int)
	for i := range groups {
		g := &groups[i]
		for turn := range g.Replicas {
			n := g.Replicas[(turn+i)%len(g.Replicas)]
			if g.Preferred == "" || leads[n] < leads[g.Preferred] {
				g.Preferred = n
			}
		}
		leads[g.Preferred]++
	}
	for shiftLeader(groups, leads) {
	}
}

// shiftLeader finds, breadth first, a chain from a node to one that leads at
// least two groups fewer, and shifts one leadership along it.
func shiftLeader(groups []Group, leads map[NodeID]int) bool {
	nodes := make([]NodeID, 0, len(leads))
	for _, g := range groups {
		for _, n := range g.Replicas {
			if !slices.Contains(nodes, n) {
				nodes = append(nodes, n)
			}
		}
	}
	slices.SortFunc(nodes, func(a, b NodeID) int {
		return cmp.Or(cmp.Compare(leads[b], leads[a]), cmp.Compare(a, b))
	})
	for _, from := range nodes {
		if leads[from] < 2 {
			break
		}
		via := map[NodeID]int{from: -1} // node → group whose leadership reaches it
		queue := []NodeID{from}
		for len(queue) > 0 {
			at := queue[0]
			queue = queue[1:]
			if leads[at] <= leads[from]-2 {
				leads[at]++
				leads[from]--
				for at != from {
					g := &groups[via[at]]
					at, g.Preferred = g.Preferred, at
				}
				return true
			}
			for i := range groups {
				if groups[i].Preferred != at {
					continue
				}
				for _, n := range groups[i].Replicas {
					if _, seen := via[n]; !seen {
						via[n] = i
						queue = append(queue, n)
					}
				}
			}
		}
	}
	return false
}
