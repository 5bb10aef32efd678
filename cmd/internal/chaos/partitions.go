package chaos

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"
)

// cut runs a partition: for a while, nothing goes from one node to another
// where cut says so.
func cut(ctx context.Context, c *Cluster, rng *rand.Rand, cuts func(from, to int) bool) (err error) {
	// Also when ctx has ended: what is cut stays cut otherwise.
	defer func() { err = errors.Join(err, c.site.Mend()) }()
	for from := range c.Nodes {
		for to := range c.Nodes {
			if from != to && cuts(from, to) {
				if err := c.site.Cut(from, to); err != nil {
					return err
				}
			}
		}
	}
	pause(ctx, time.Duration(500+rng.IntN(3000))*time.Millisecond)
	return nil
}

// mended waits until the cluster is whole.
func mended(ctx context.Context, c *Cluster, err error) error {
	if err == nil {
		err = c.WaitReady(ctx)
	}
	return err
}

// CutOff takes one node, whatever it leads, from all others.
var CutOff = Fault{"cut one off", Partition, func(ctx context.Context, c *Cluster, rng *rand.Rand, _ Progress) (string, error) {
	alone := rng.IntN(len(c.Nodes))
	err := cut(ctx, c, rng, func(from, to int) bool { return from == alone || to == alone })
	return c.Nodes[alone].ID, mended(ctx, c, err)
}}

// Deaf keeps one node from hearing others; they hear it.
var Deaf = Fault{"one hears nobody", Partition, func(ctx context.Context, c *Cluster, rng *rand.Rand, _ Progress) (string, error) {
	deaf := rng.IntN(len(c.Nodes))
	err := cut(ctx, c, rng, func(_, to int) bool { return to == deaf })
	return c.Nodes[deaf].ID, mended(ctx, c, err)
}}

// Mute keeps others from hearing one node; it hears them.
var Mute = Fault{"nobody hears one", Partition, func(ctx context.Context, c *Cluster, rng *rand.Rand, _ Progress) (string, error) {
	mute := rng.IntN(len(c.Nodes))
	err := cut(ctx, c, rng, func(from, _ int) bool { return from == mute })
	return c.Nodes[mute].ID, mended(ctx, c, err)
}}

// Halves cuts the cluster in two.
var Halves = Fault{"two halves", Partition, func(ctx context.Context, c *Cluster, rng *rand.Rand, _ Progress) (string, error) {
	side, text := sides(c, rng)
	err := cut(ctx, c, rng, func(from, to int) bool { return side[from] != side[to] })
	return text, mended(ctx, c, err)
}}

// Bridge cuts the cluster in two but for one node, which sees both sides.
var Bridge = Fault{"a bridge", Partition, func(ctx context.Context, c *Cluster, rng *rand.Rand, _ Progress) (string, error) {
	side, _ := sides(c, rng)
	over := rng.IntN(len(c.Nodes))
	err := cut(ctx, c, rng, func(from, to int) bool { return from != over && to != over && side[from] != side[to] })
	return c.Nodes[over].ID, mended(ctx, c, err)
}}

// LeaderOff takes a node that leads a group from all others.
var LeaderOff = Fault{"cut a leader off", Partition, func(ctx context.Context, c *Cluster, rng *rand.Rand, progress Progress) (string, error) {
	alone := c.anyLeader(ctx, rng)
	if alone < 0 {
		return "", c.WaitReady(ctx)
	}
	err := cut(ctx, c, rng, func(from, to int) bool { return from == alone || to == alone })
	return c.Nodes[alone].ID, mended(ctx, c, err)
}}

// Flap cuts one node off and mends it again, several times.
var Flap = Fault{"flapping", Partition, func(ctx context.Context, c *Cluster, rng *rand.Rand, _ Progress) (string, error) {
	n := rng.IntN(len(c.Nodes))
	for range 4 {
		for other := range c.Nodes {
			if other != n {
				if err := errors.Join(c.site.Cut(n, other), c.site.Cut(other, n)); err != nil {
					return c.Nodes[n].ID, errors.Join(err, c.site.Mend())
				}
			}
		}
		pause(ctx, time.Duration(100+rng.IntN(700))*time.Millisecond)
		if err := c.site.Mend(); err != nil {
			return c.Nodes[n].ID, err
		}
		pause(ctx, time.Duration(50+rng.IntN(300))*time.Millisecond)
	}
	return c.Nodes[n].ID, c.WaitReady(ctx)
}}

// Partitions are the faults of a network that can be cut.
var Partitions = []Fault{CutOff, Deaf, Mute, Halves, Bridge, LeaderOff, Flap}

// sides puts each node on one of two sides, neither of which is empty.
func sides(c *Cluster, rng *rand.Rand) (side []bool, text string) {
	side = make([]bool, len(c.Nodes))
	order := rng.Perm(len(c.Nodes))
	var here, there []string
	for i, at := range order {
		side[at] = i >= (len(order)+1)/2
		if side[at] {
			there = append(there, c.Nodes[at].ID)
		} else {
			here = append(here, c.Nodes[at].ID)
		}
	}
	return side, strings.Join(here, " ") + " | " + strings.Join(there, " ")
}

// FillDisk takes the space of one node's disk: first so much that it refuses
// writes, sometimes so much that it takes no entries either.
var FillDisk = Fault{"fill a disk", Disk, func(ctx context.Context, c *Cluster, rng *rand.Rand, progress Progress) (string, error) {
	var small []*Node
	for _, n := range c.Nodes {
		if n.HasSmallDisk() {
			small = append(small, n)
		}
	}
	n := small[rng.IntN(len(small))]
	leave := uint64(smallReserve / 2)
	if rng.IntN(2) == 0 {
		leave = smallReserve / 8
	}
	if err := n.Fill(leave); err != nil {
		return n.ID, errors.Join(err, n.Empty())
	}
	pause(ctx, time.Duration(1500+rng.IntN(2500))*time.Millisecond)
	if err := n.Empty(); err != nil {
		return n.ID, err
	}
	return n.ID, n.WaitReady(ctx)
}}

// JumpClock moves one node's clock by up to an hour, forth or back, and back to
// where it was.
var JumpClock = Fault{"a clock jumps", ClockKind, func(ctx context.Context, c *Cluster, rng *rand.Rand, _ Progress) (string, error) {
	n := c.Nodes[rng.IntN(len(c.Nodes))]
	by := time.Duration(rng.Int64N(int64(2*time.Hour))) - time.Hour
	err := n.SetClock(by)
	pause(ctx, time.Duration(200+rng.IntN(1500))*time.Millisecond)
	return n.ID, errors.Join(err, n.SetClock(0))
}}

// SkewClocks gives every node a clock of its own, up to 20 seconds apart, until
// the next time, or Heal.
var SkewClocks = Fault{"clocks disagree", ClockKind, func(ctx context.Context, c *Cluster, rng *rand.Rand, _ Progress) (string, error) {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.SetClock(time.Duration(rng.Int64N(int64(20*time.Second)))-10*time.Second))
	}
	pause(ctx, time.Duration(500+rng.IntN(1000))*time.Millisecond)
	return "all", errors.Join(errs...)
}}

// AllFaults are the faults of these kinds.
func AllFaults(kinds []string) (all []Fault) {
	for _, f := range [][]Fault{Faults, Partitions, {FillDisk}, {JumpClock, SkewClocks}} {
		for _, x := range f {
			for _, k := range kinds {
				if x.Kind == k {
					all = append(all, x)
				}
			}
		}
	}
	return all
}
