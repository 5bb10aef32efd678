package placement

import (
	"fmt"
	"math"
	"slices"

	"github.com/buraksezer/consistent"
	"github.com/cespare/xxhash/v2"
)

// How the map is spread. They are used when a map is computed and are in no
// entry, so they may change with a release.
const (
	// mapLoad bounds a group's partitions to this many times the average. More
	// makes groups uneven; less moves more partitions when groups change.
	mapLoad = 1.05
	// ringReplicas is how often a group is on the library's ring.
	ringReplicas = 20
)

// CheckPartitions refuses a partition count that is no prime, out of range, or
// that cannot be spread over the shard groups.
func CheckPartitions(shards, partitions int) error {
	switch {
	case partitions < 2 || partitions > MaxPartitions:
		return fmt.Errorf("%d partitions are asked for; use a prime from 2 to %d", partitions, MaxPartitions)
	case !isPrime(partitions):
		return fmt.Errorf("%d partitions are asked for, which is no prime; %d is one", partitions, nearestPrime(partitions))
	case partitions < shards:
		return fmt.Errorf("%d partitions cannot be spread over %d shard groups; ask for at least %d partitions (a prime)",
			partitions, shards, nextPrime(shards))
	}
	if most := mapBound(shards, partitions); most*shards < partitions {
		return fmt.Errorf("%d partitions cannot be spread over %d shard groups with at most %d each; ask for another number",
			partitions, shards, most)
	}
	return nil
}

// mapBound is the most partitions that a group may own. It is the library's
// own formula, in the library's own order of operations.
func mapBound(shards, partitions int) int {
	return int(math.Ceil(float64(uint64(partitions)/uint64(shards)) * mapLoad))
}

// mapFloor is the fewest that a group should own.
func mapFloor(shards, partitions int) int {
	return max(1, int(float64(partitions/shards)/mapLoad))
}

// member is a group on the library's ring. Its name has a fixed width and ends
// in a delimiter, because the library's ring keys are name + replica number:
// "g1" and "g11" would share keys.
type member GroupID

func (m member) String() string { return fmt.Sprintf("group-%010d/", uint32(m)) }

type ringHash struct{}

func (ringHash) Sum64(b []byte) uint64 { return xxhash.Sum64(b) }

// ringTarget is the library's answer, after a check that it has one.
func ringTarget(groups []GroupID, partitions int) ([]GroupID, error) {
	if err := CheckPartitions(len(groups), partitions); err != nil {
		return nil, err
	}
	// The library loses ring positions when two hashes collide. Among 20,480
	// of 64 bits it will not be seen, but then the refusal is ours to make.
	seen := make(map[uint64]GroupID, len(groups)*ringReplicas)
	members := make([]consistent.Member, len(groups))
	for i, g := range groups {
		members[i] = member(g)
		for r := range ringReplicas {
			h := ringHash{}.Sum64(fmt.Appendf(nil, "%s%d", member(g), r))
			if other, ok := seen[h]; ok {
				return nil, fmt.Errorf("groups %s and %s collide on the hash ring; use another number of shard groups", other, g)
			}
			seen[h] = g
		}
	}
	ring := consistent.New(members, consistent.Config{
		Hasher: ringHash{}, PartitionCount: partitions, ReplicationFactor: ringReplicas, Load: mapLoad,
	})
	target := make([]GroupID, partitions)
	for p := range target {
		target[p] = GroupID(ring.GetPartitionOwner(p).(member))
	}
	return target, nil
}

// ComputeMap answers partition → group. Without a previous map it is the
// library's, levelled; with one, it is the previous map with the fewest moves
// after which every partition has one of the groups and every group has no
// fewer than the floor and no more than the bound; the library's answer decides
// which partitions move, and where to, as far as that leaves a choice.
func ComputeMap(groups []GroupID, partitions uint32, previous []GroupID) ([]GroupID, error) {
	groups = slices.Clone(groups)
	slices.Sort(groups)
	if len(groups) == 0 || groups[0] == 0 || len(slices.Compact(slices.Clone(groups))) != len(groups) {
		return nil, fmt.Errorf("a map needs distinct shard groups with IDs above 0, not %v", groups)
	}
	if len(previous) != 0 && len(previous) != int(partitions) {
		return nil, fmt.Errorf("the previous map has %d partitions, not %d; the number is fixed for ever", len(previous), partitions)
	}
	target, err := ringTarget(groups, int(partitions))
	if err != nil {
		return nil, err
	}
	l := leveller{
		target: target,
		owners: slices.Clone(previous),
		load:   make(map[GroupID]int, len(groups)),
		groups: groups,
		floor:  mapFloor(len(groups), int(partitions)),
		bound:  mapBound(len(groups), int(partitions)),
	}
	if len(previous) == 0 {
		l.owners = slices.Clone(target)
	}
	l.level()
	return l.owners, nil
}

// leveller moves partitions until the map is within its limits.
type leveller struct {
	target, owners []GroupID
	groups         []GroupID // ascending
	load           map[GroupID]int
	floor, bound   int
}

func (l *leveller) level() {
	var loose []PartitionID
	for _, g := range l.groups {
		l.load[g] = 0
	}
	for p, g := range l.owners {
		if _, ok := l.load[g]; ok {
			l.load[g]++
		} else {
			loose = append(loose, PartitionID(p)) // its group is gone
		}
	}
	for _, p := range loose {
		l.give(p)
	}
	// Groups over the bound give up what the target wants elsewhere, first
	// what it wants in a group that has too few.
	for pass := range 3 {
		for p, g := range l.owners {
			if l.load[g] <= l.bound {
				continue
			}
			t := l.target[p]
			if pass == 0 && (t == g || l.load[t] >= l.floor) || pass == 1 && (t == g || l.load[t] >= l.bound) {
				continue
			}
			l.load[g]--
			l.give(PartitionID(p))
		}
	}
	// Groups under the floor take from the fullest.
	for _, g := range l.groups {
		for l.load[g] < l.floor {
			l.take(g)
		}
	}
}

// give finds a group for a partition that has none.
func (l *leveller) give(p PartitionID) {
	least := l.groups[0]
	for _, g := range l.groups {
		if l.load[g] < l.load[least] {
			least = g
		}
	}
	to := l.target[p]
	switch {
	case l.load[to] < l.floor:
	case l.load[least] < l.floor:
		to = least
	case l.load[to] >= l.bound:
		to = least
	}
	l.owners[p] = to
	l.load[to]++
}

// take moves one partition to a group from one of the fullest groups, one that
// the target wants there if such a group has any.
func (l *leveller) take(to GroupID) {
	most := 0
	for _, g := range l.groups {
		most = max(most, l.load[g])
	}
	pick := -1
	for p, g := range l.owners {
		if l.load[g] != most {
			continue
		}
		if l.target[p] == to {
			pick = p
			break
		}
		if pick < 0 {
			pick = p
		}
	}
	l.load[l.owners[pick]]--
	l.owners[pick] = to
	l.load[to]++
}

func isPrime(n int) bool {
	if n < 2 {
		return false
	}
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}

func nextPrime(n int) int {
	for !isPrime(n) {
		n++
	}
	return n
}

// nearestPrime is the prime next to n on either side, within the limits.
func nearestPrime(n int) int {
	for d := 1; ; d++ {
		if isPrime(n-d) && n-d >= 2 {
			return n - d
		}
		if isPrime(n+d) && n+d <= MaxPartitions {
			return n + d
		}
	}
}
