package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Fault hurts the cluster once and ends when the cluster is whole again. It
// waits for progress of the load rather than for time where it can, so that a
// slow machine gets as far as a fast one.
type Fault struct {
	Name string
	// Kind is one of Kinds.
	Kind string
	// Do answers what was hurt, for people.
	Do func(ctx context.Context, c *Cluster, rng *rand.Rand, progress Progress) (target string, err error)
}

// Kinds of faults. Killing and pausing is possible everywhere; the others need
// a network, disks and clocks that can be hurt.
const (
	Kill      = "kill"
	PauseKind = "pause"
	Partition = "partition"
	Disk      = "disk"
	ClockKind = "clock"
)

// Kinds are all of them.
var Kinds = []string{Kill, PauseKind, Partition, Disk, ClockKind}

// Can says whether a cluster can be hurt in this way, and why not.
func (c *Cluster) Can(kind string) (bool, string) {
	switch kind {
	case Partition:
		if cuts, network := c.site.Network(); !cuts {
			return false, "the network is " + network
		}
	case Disk:
		if !slices.ContainsFunc(c.Nodes, (*Node).HasSmallDisk) {
			return false, "no node has a disk of its own"
		}
	case ClockKind:
		if !c.options.Clocks {
			return false, "the nodes' clocks were not made to be moved"
		}
	}
	return true, ""
}

// Progress waits until that many more operations were acknowledged.
type Progress func(ctx context.Context, operations int) error

// pause is time that passes because the fault is about time.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// victim is a random node that may be ended: any but the spared one.
func (c *Cluster) victim(rng *rand.Rand) *Node {
	for {
		if n := c.Nodes[rng.IntN(len(c.Nodes))]; n != c.Spared {
			return n
		}
	}
}

// KillOne ends a random node with kill -9, lets the others take over, and
// starts it again.
var KillOne = Fault{"kill one", Kill, func(ctx context.Context, c *Cluster, rng *rand.Rand, progress Progress) (string, error) {
	n := c.victim(rng)
	n.Kill()
	if err := progress(ctx, 100); err != nil {
		return n.ID, fmt.Errorf("with %s dead: %w", n.ID, err)
	}
	if err := n.Start(); err != nil {
		return n.ID, err
	}
	return n.ID, n.WaitReady(ctx)
}}

// KillRestart ends a random node and starts it again at once, often before
// anybody has noticed.
var KillRestart = Fault{"kill and restart at once", Kill, func(ctx context.Context, c *Cluster, rng *rand.Rand, progress Progress) (string, error) {
	n := c.victim(rng)
	n.Kill()
	if err := n.Start(); err != nil {
		return n.ID, err
	}
	return n.ID, n.WaitReady(ctx)
}}

// PauseOne stops a random node for up to three seconds: it wakes as a leader
// that does not know it was deposed.
var PauseOne = Fault{"pause one", PauseKind, func(ctx context.Context, c *Cluster, rng *rand.Rand, _ Progress) (string, error) {
	n := c.Nodes[rng.IntN(len(c.Nodes))]
	n.Pause()
	pause(ctx, time.Duration(100+rng.IntN(2900))*time.Millisecond)
	n.Resume()
	return n.ID, n.WaitReady(ctx)
}}

// PauseTwo takes the majority away for a moment: nothing may be acknowledged
// that the two do not know of.
var PauseTwo = Fault{"pause two", PauseKind, func(ctx context.Context, c *Cluster, rng *rand.Rand, _ Progress) (string, error) {
	order := rng.Perm(len(c.Nodes))
	for _, i := range order[:2] {
		c.Nodes[i].Pause()
	}
	pause(ctx, time.Duration(100+rng.IntN(1400))*time.Millisecond)
	for _, i := range order[:2] {
		c.Nodes[i].Resume()
	}
	return c.Nodes[order[0]].ID + " " + c.Nodes[order[1]].ID, c.WaitReady(ctx)
}}

// Stutter pauses one node after the other, briefly and often, around the
// election timeout.
var Stutter = Fault{"stutter", PauseKind, func(ctx context.Context, c *Cluster, rng *rand.Rand, _ Progress) (string, error) {
	for range 6 {
		n := c.Nodes[rng.IntN(len(c.Nodes))]
		n.Pause()
		pause(ctx, time.Duration(50+rng.IntN(400))*time.Millisecond)
		n.Resume()
		pause(ctx, time.Duration(rng.IntN(100))*time.Millisecond)
	}
	return "all", c.WaitReady(ctx)
}}

// KillAll ends all nodes at once and starts them again.
var KillAll = Fault{"kill all", Kill, func(ctx context.Context, c *Cluster, _ *rand.Rand, _ Progress) (string, error) {
	c.KillAll()
	return "all", c.Heal(ctx)
}}

// StopOne shuts a random node down in order and starts it again: leadership is
// handed over and nobody should notice much.
var StopOne = Fault{"stop one", Kill, func(ctx context.Context, c *Cluster, rng *rand.Rand, progress Progress) (string, error) {
	n := c.victim(rng)
	bounded, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := n.Stop(bounded); err != nil {
		return n.ID, err
	}
	if err := progress(ctx, 50); err != nil {
		return n.ID, fmt.Errorf("with %s stopped: %w", n.ID, err)
	}
	if err := n.Start(); err != nil {
		return n.ID, err
	}
	return n.ID, n.WaitReady(ctx)
}}

// Faults are those that any cluster can bear.
var Faults = []Fault{KillOne, KillRestart, PauseOne, PauseTwo, Stutter, KillAll, StopOne}
