package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/wire"
)

func groupIDs(n int) []GroupID {
	ids := make([]GroupID, n)
	for i := range ids {
		ids[i] = GroupID(i + 1)
	}
	return ids
}

func loads(owners []GroupID) map[GroupID]int {
	l := make(map[GroupID]int)
	for _, g := range owners {
		l[g]++
	}
	return l
}

// checkMap fails unless the map keeps both limits and uses exactly the groups.
func checkMap(t *testing.T, groups []GroupID, owners []GroupID) {
	t.Helper()
	l := loads(owners)
	if len(l) != len(groups) {
		t.Fatalf("%d groups own partitions, there are %d", len(l), len(groups))
	}
	low, high := mapFloor(len(groups), len(owners)), mapBound(len(groups), len(owners))
	for _, g := range groups {
		if l[g] < low || l[g] > high {
			t.Fatalf("%s owns %d partitions of %d, not %d to %d", g, l[g], len(owners), low, high)
		}
	}
}

func moved(a, b []GroupID) int {
	n := 0
	for p := range a {
		if a[p] != b[p] {
			n++
		}
	}
	return n
}

var primes = []int{2, 3, 5, 7, 11, 13, 31, 61, 127, 251, 271, 509, 1021}

// For every size that is accepted there is a map within the bound, it is the
// same when computed again, and nothing panics.
func TestMapGrid(t *testing.T) {
	for _, partitions := range primes {
		for shards := 1; shards <= partitions && shards <= 80; shards++ {
			if err := CheckPartitions(shards, partitions); err != nil {
				t.Fatalf("%d partitions over %d: %v", partitions, shards, err)
			}
			groups := groupIDs(shards)
			owners, err := ComputeMap(groups, uint32(partitions), nil)
			if err != nil {
				t.Fatalf("%d partitions over %d: %v", partitions, shards, err)
			}
			checkMap(t, groups, owners)
			again, err := ComputeMap(groups, uint32(partitions), owners)
			if err != nil || moved(owners, again) != 0 {
				t.Fatalf("%d partitions over %d: %d moved for no reason, %v", partitions, shards, moved(owners, again), err)
			}
		}
	}
	owners, err := ComputeMap(groupIDs(MaxShards), 1031, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkMap(t, groupIDs(MaxShards), owners)
}

// When groups come and go, no more partitions move than must: those of groups
// that are gone, what is over the bound, and what others lack to the floor.
func TestMapMoves(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 150 {
		partitions := primes[4+random.IntN(len(primes)-4)]
		n := 1 + random.IntN(min(24, partitions-1))
		groups := groupIDs(n)
		owners, err := ComputeMap(groups, uint32(partitions), nil)
		if err != nil {
			t.Fatal(err)
		}
		for change := range 6 {
			before := len(groups)
			if len(groups) > 1 && random.IntN(2) == 0 {
				at := random.IntN(len(groups))
				groups = slices.Delete(slices.Clone(groups), at, at+1)
			} else if len(groups) < partitions {
				groups = append(slices.Clone(groups), slices.Max(groups)+1)
			}
			next, err := ComputeMap(groups, uint32(partitions), owners)
			if err != nil {
				t.Fatalf("round %d change %d: %v", round, change, err)
			}
			checkMap(t, groups, next)
			low, high := mapFloor(len(groups), partitions), mapBound(len(groups), partitions)
			must, lack := 0, 0
			l := loads(owners)
			for g, n := range l {
				if !slices.Contains(groups, g) {
					must += n
				} else {
					must += max(0, n-high)
				}
			}
			for _, g := range groups {
				lack += max(0, low-l[g])
			}
			if got := moved(owners, next); got > max(must, lack) {
				t.Fatalf("round %d: %d → %d groups over %d partitions moved %d, must move %d", round, before, len(groups), partitions, got, max(must, lack))
			}
			owners = next
		}
	}
}

// A ninth group takes about a ninth.
func TestMapGrowth(t *testing.T) {
	eight, err := ComputeMap(groupIDs(8), 271, nil)
	if err != nil {
		t.Fatal(err)
	}
	nine, err := ComputeMap(groupIDs(9), 271, eight)
	if err != nil {
		t.Fatal(err)
	}
	if n := moved(eight, nine); n < 271/9-3 || n > 271/9+1 {
		t.Errorf("%d partitions moved, not about %d", n, 271/9)
	}
	for p := range eight {
		if eight[p] != nine[p] && nine[p] != 9 {
			t.Errorf("partition %d moved from %s to %s, which was there before", p, eight[p], nine[p])
		}
	}
}

// Maps are in logs, but new clusters of one release should look alike.
func TestMapIsStable(t *testing.T) {
	owners, err := ComputeMap(groupIDs(3), 11, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(owners), "[g3 g2 g3 g1 g1 g1 g2 g1 g3 g3 g2]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestMapRefusals(t *testing.T) {
	for _, c := range []struct {
		shards, partitions int
		want               string
	}{
		{8, 270, "no prime; 269 is one"},
		{8, 1, "use a prime from 2"},
		{8, 0, "use a prime from 2"},
		{8, -3, "use a prime from 2"},
		{8, 65_537, "use a prime from 2"},
		{8, 7, "ask for at least 11"},
		{1024, 271, "ask for at least 1031"},
		{2, 4, "no prime; 3 is one"},
	} {
		err := CheckPartitions(c.shards, c.partitions)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d over %d: %v, want %q", c.partitions, c.shards, err, c.want)
		}
		if c.partitions >= 0 {
			if _, err := ComputeMap(groupIDs(c.shards), uint32(c.partitions), nil); err == nil {
				t.Errorf("%d over %d: a map was computed", c.partitions, c.shards)
			}
		}
	}
	for _, groups := range [][]GroupID{nil, {0}, {1, 1}} {
		if _, err := ComputeMap(groups, 7, nil); err == nil {
			t.Errorf("a map over %v was computed", groups)
		}
	}
	if _, err := ComputeMap(groupIDs(2), 7, make([]GroupID, 5)); err == nil {
		t.Error("the number of partitions changed")
	}
}

func TestCheckSpec(t *testing.T) {
	for _, c := range []struct {
		nodes, shards, replicas, partitions int
		want                                string // empty: accepted
	}{
		{3, 8, 3, 271, ""},
		{1, 1, 1, 2, ""},
		{1, 1, 3, 271, "only 1 node is named"},
		{2, 8, 3, 271, "only 2 nodes are named"},
		{3, 0, 3, 271, "use 1 to 1024"},
		{3, 1025, 3, 271, "use 1 to 1024"},
		{3, 8, 0, 271, "use 1 to 9"},
		{0, 8, 1, 271, "no nodes"},
		{300, 8, 1, 271, "at most 256"},
		{3, 8, 3, 272, "no prime"},
	} {
		err := CheckSpec(c.nodes, c.shards, c.replicas, c.partitions)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// Replicas are on distinct nodes, in as many zones as there are, and both
// replicas and leaders are spread evenly.
func TestPlanGroups(t *testing.T) {
	for nodes := 1; nodes <= 9; nodes++ {
		for zones := 1; zones <= 4; zones++ {
			for shards := 1; shards <= 40; shards += 3 {
				for replicas := 1; replicas <= min(nodes, 5); replicas++ {
					checkPlan(t, nodes, zones, shards, replicas)
				}
			}
		}
	}
}

func checkPlan(t *testing.T, nodes, zones, shards, replicas int) {
	t.Helper()
	var ns []Node
	zoneOf := map[NodeID]string{}
	for i := range nodes {
		n := Node{ID: NodeID(fmt.Sprintf("n%02d", i)), Zone: fmt.Sprintf("z%d", i%zones)}
		ns = append(ns, n)
		zoneOf[n.ID] = n.Zone
	}
	groups, err := PlanGroups(ns, shards, replicas, wire.LeadersSpread)
	if err != nil {
		t.Fatal(err)
	}
	defer checkTogether(t, ns, groups)
	what := fmt.Sprintf("%d nodes in %d zones, %d shards, %d replicas", nodes, zones, shards, replicas)
	held, leads := map[NodeID]int{}, map[NodeID]int{}
	for i, g := range groups {
		if g.ID != GroupID(i+1) || len(g.Replicas) != replicas || !g.Has(g.Preferred) {
			t.Fatalf("%s: %+v", what, g)
		}
		inZones := map[string]bool{}
		for _, n := range slices.Compact(slices.Clone(g.Replicas)) {
			held[n]++
			inZones[zoneOf[n]] = true
		}
		if want := min(replicas, min(zones, nodes)); len(inZones) != want {
			t.Fatalf("%s: %s is in %d zones, not %d", what, g.ID, len(inZones), want)
		}
		leads[g.Preferred]++
	}
	total := 0
	for _, n := range held {
		total += n
	}
	if total != shards*replicas {
		t.Fatalf("%s: a group has two replicas on one node", what)
	}
	if nodes%zones != 0 && zones > 1 {
		return // uneven zones: the zones come first
	}
	spread := func(m map[NodeID]int) int {
		low, high := shards*replicas, 0
		for _, n := range ns {
			low, high = min(low, m[n.ID]), max(high, m[n.ID])
		}
		return high - low
	}
	if s := spread(held); s > 1 {
		t.Fatalf("%s: replicas per node differ by %d: %v", what, s, held)
	}
	if s := spread(leads); s > 1 {
		t.Fatalf("%s: leaders per node differ by %d: %v", what, s, leads)
	}
}

// checkTogether looks at the plan of the same groups with leaders together: it
// differs by its leaders alone, it may be made of the groups as they are, and of
// no two nodes of it could one lead everything that both lead.
func checkTogether(t *testing.T, nodes []Node, spread []Group) {
	t.Helper()
	what := fmt.Sprintf("%d nodes, %d shards, %d replicas", len(nodes), len(spread), len(spread[0].Replicas))
	together, err := PlanGroups(nodes, len(spread), len(spread[0].Replicas), wire.LeadersTogether)
	if err != nil {
		t.Fatal(err)
	}
	leads := map[NodeID][]Group{}
	for i, g := range together {
		if !g.Has(g.Preferred) || !slices.Equal(g.Replicas, spread[i].Replicas) {
			t.Fatalf("%s: together %+v, spread %+v", what, g, spread[i])
		}
		leads[g.Preferred] = append(leads[g.Preferred], g)
	}
	if len(spread[0].Replicas) == len(nodes) && len(leads["n00"]) != len(spread) {
		t.Fatalf("%s: not all on the first node: %v", what, leads)
	}
	for a := range leads {
		for b, groups := range leads {
			if a != b && !slices.ContainsFunc(groups, func(g Group) bool { return !g.Has(a) }) {
				t.Fatalf("%s: %s has replicas of all that %s leads: %v", what, a, b, leads)
			}
		}
	}
	for i, g := range spread { // and back, on a running cluster
		if n := PlanLeaders(together, wire.LeadersSpread)[i]; n != g.Preferred {
			t.Fatalf("%s: %s is led by %s when spread again, by %s at first", what, g.ID, n, g.Preferred)
		}
		if n := PlanLeaders(spread, wire.LeadersTogether)[i]; n != together[i].Preferred {
			t.Fatalf("%s: %s is led by %s when brought together, by %s at first", what, g.ID, n, together[i].Preferred)
		}
	}
}

// The node with most groups is taken first, then the one with most of those
// that are left; among equals the first by ID.
func TestLeadersTogether(t *testing.T) {
	for _, c := range []struct {
		name     string
		replicas [][]NodeID
		want     []NodeID
	}{
		{"one node has all", [][]NodeID{{"a", "c"}, {"b", "c"}, {"a", "c"}}, []NodeID{"c", "c", "c"}},
		{"equals", [][]NodeID{{"c", "b", "a"}, {"b", "c", "a"}}, []NodeID{"a", "a"}},
		{"two halves", [][]NodeID{{"a", "b"}, {"c", "d"}, {"b", "a"}, {"d", "c"}}, []NodeID{"a", "c", "a", "c"}},
		{"most of what is left", [][]NodeID{{"a", "b"}, {"a", "c"}, {"a", "d"}, {"b", "d"}, {"c", "d"}}, []NodeID{"a", "a", "a", "d", "d"}},
		{"one replica each", [][]NodeID{{"b"}, {"a"}, {"b"}}, []NodeID{"b", "a", "b"}},
		{"none", nil, nil},
	} {
		var groups []Group
		for i, r := range c.replicas {
			groups = append(groups, Group{ID: GroupID(i + 1), Replicas: r, Preferred: r[0]})
		}
		before := slices.Clone(groups)
		if got := PlanLeaders(groups, wire.LeadersTogether); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		for i := range groups {
			if groups[i].Preferred != before[i].Preferred {
				t.Errorf("%s: the plan changed the groups", c.name)
			}
		}
	}
}

func TestPlanMembers(t *testing.T) {
	for n, want := range map[int]int{1: 1, 2: 2, 3: 3, 4: 3, 5: 5, 6: 5, 40: 5} {
		var ns []Node
		for i := range n {
			ns = append(ns, Node{ID: NodeID(fmt.Sprintf("n%02d", n-i))})
		}
		got := PlanMembers(ns)
		if len(got) != want || got[0] != "n01" || !slices.IsSorted(got) {
			t.Errorf("%d nodes: %v", n, got)
		}
	}
}

// Reconcile asks for exactly what is missing.
func TestReconcile(t *testing.T) {
	m := NewMachine()
	for i, c := range []Command{
		{InitCluster: &InitCluster{
			ClusterID: "c", Members: []NodeID{"a", "b"}, Nodes: []Node{{ID: "a", Incarnation: "1"}, {ID: "b", Incarnation: "1"}},
			Groups: []Group{
				{ID: 1, Replicas: []NodeID{"a", "b"}, Preferred: "a"},
				{ID: 2, Replicas: []NodeID{"a", "b"}, Preferred: "b"},
				{ID: 3, Replicas: []NodeID{"b"}, Preferred: "b"},
			},
			Owners: []GroupID{1, 2, 3, 1, 2},
		}},
		{CreateCollection: &CreateCollection{Request: wire.RequestID{Time: 1}, Name: "users"}},
		{DropCollection: &DropCollection{Request: wire.RequestID{Time: 2}, Name: "users"}},
		{FinishDrop: &FinishDrop{Collection: 1, Group: 1}},
	} {
		if r, err := m.Apply(uint64(i+1), c.Encode()); err != nil || r.Err() != nil {
			t.Fatal(err, r.Err())
		}
	}
	// Replicas prefer whom they should, unless a case says otherwise: group 1 a,
	// group 2 b.
	leading := func(owned Epoch, commit uint64) Replica { return Replica{Leading: true, Owned: owned, Commit: commit} }
	other := func(r Replica, n NodeID) Replica { r.Preferred = n; return r }
	at := func(applied uint64) map[GroupID]uint64 { return map[GroupID]uint64{1: applied, 2: applied} }
	for _, c := range []struct {
		name     string
		replicas map[GroupID]Replica
		peers    map[NodeID]PeerState
		want     string
	}{
		{"nothing runs", nil, nil, "start g1, start g2"},
		{"followers", map[GroupID]Replica{1: {}, 2: {}}, nil, ""},
		{"one to start", map[GroupID]Replica{1: {}}, nil, "start g2"},
		{"leads, owns nothing", map[GroupID]Replica{1: leading(0, 9), 2: {}}, nil, "own g1 [0 3]@1"},
		{"leads what has a drop to do", map[GroupID]Replica{1: {}, 2: leading(1, 9)}, nil, "drop 1 in g2"},
		{"its drop is confirmed", map[GroupID]Replica{1: leading(1, 9), 2: {}}, nil, ""},
		{"preferred is away", map[GroupID]Replica{1: {}, 2: leading(1, 9)}, map[NodeID]PeerState{}, "drop 1 in g2"},
		{"preferred is there", map[GroupID]Replica{1: {}, 2: leading(1, 1000)}, map[NodeID]PeerState{"b": {Applied: at(900)}}, "drop 1 in g2, g2 to b"},
		{"preferred lags", map[GroupID]Replica{1: {}, 2: leading(1, 1000)}, map[NodeID]PeerState{"b": {Applied: at(700)}}, "drop 1 in g2"},
		{"preferred is full", map[GroupID]Replica{1: {}, 2: leading(1, 1000)}, map[NodeID]PeerState{"b": {Applied: at(1000), Avoid: true}}, "drop 1 in g2"},
		{"preferred has no replica yet", map[GroupID]Replica{1: {}, 2: leading(1, 10)}, map[NodeID]PeerState{"b": {}}, "drop 1 in g2"},
		{"a follower prefers another", map[GroupID]Replica{1: {}, 2: other(Replica{}, "a")}, nil, "g2 prefers b"},
		{"a leader prefers another", map[GroupID]Replica{1: other(leading(1, 9), "b"), 2: {}}, nil, "g1 prefers a"},
		{"leads what it should", map[GroupID]Replica{1: leading(1, 9), 2: {}}, map[NodeID]PeerState{"b": {Applied: at(9)}}, ""},
	} {
		var got []string
		for id, n := range map[GroupID]NodeID{1: "a", 2: "b"} {
			if r, ok := c.replicas[id]; ok && r.Preferred == "" {
				c.replicas[id] = other(r, n)
			}
		}
		steps := Reconcile(m.View(), Observed{Self: "a", Replicas: c.replicas, Peers: c.peers})
		for _, g := range steps.Prefer {
			got = append(got, fmt.Sprintf("%s prefers %s", g.ID, g.Preferred))
		}
		for _, g := range steps.Start {
			got = append(got, "start "+g.ID.String())
		}
		for _, o := range steps.Own {
			got = append(got, fmt.Sprintf("own %s %v@%d", o.Group, o.Partitions, o.Epoch))
		}
		for _, d := range steps.Drop {
			got = append(got, fmt.Sprintf("drop %d in %s", d.Collection, d.Group))
		}
		for _, x := range steps.Transfer {
			got = append(got, fmt.Sprintf("%s to %s", x.Group, x.To))
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: %q, want %q", c.name, s, c.want)
		}
	}
}
