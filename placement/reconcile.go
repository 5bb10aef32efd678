package placement

import "slices"

// Replica is what a node observes of a group that runs on it.
type Replica struct {
	Leading bool   // leads, and its barrier has passed
	Commit  uint64 // log index
	// Owned is the epoch of the last Own that was applied; zero: never any.
	Owned Epoch
	// Preferred is who it thinks should lead.
	Preferred NodeID
}

// PeerState is what another node last answered about itself.
type PeerState struct {
	// Applied is, per group, how far its replica has come.
	Applied map[GroupID]uint64
	// Avoid says that it should not be given leaderships: it is draining, its
	// disk is full, or it is not ready.
	Avoid bool
}

// Observed is what Reconcile compares with the state.
type Observed struct {
	Self     NodeID
	Replicas map[GroupID]Replica
	// Peers has the other nodes that answered lately; one that is missing
	// counts as down.
	Peers map[NodeID]PeerState
}

// Steps is what a node should do next. Every step may be done again without
// harm, and a step that fails shows up in the next Reconcile.
type Steps struct {
	Start    []Group        // replicas to start here
	Prefer   []Group        // replicas here to tell whom they should prefer
	Own      []OwnStep      // first ownership, to propose to a group led here
	Drop     []DropStep     // drops to propose to a group led here, then to confirm
	Transfer []TransferStep // leaderships to hand to the preferred node
}

// OwnStep gives a group that never owned anything what the map gives it.
type OwnStep struct {
	Group      GroupID
	Epoch      Epoch
	Partitions []PartitionID
}

// DropStep makes a group forget a collection.
type DropStep struct {
	Group      GroupID
	Collection CollectionID
}

// TransferStep hands leadership over.
type TransferStep struct {
	Group GroupID
	To    NodeID
}

// transferSlack is how many entries a preferred leader may lack. Leadership
// transfer waits until it has them, and proposals wait with it, so it is kept
// to what a loaded follower always lags by.
const transferSlack = 256

// Reconcile compares what the placement group decided with what runs here.
func Reconcile(v *View, o Observed) Steps {
	var steps Steps
	for _, g := range v.Groups {
		if !g.Has(o.Self) {
			continue
		}
		r, running := o.Replicas[g.ID]
		if !running {
			steps.Start = append(steps.Start, g)
			continue
		}
		if r.Preferred != g.Preferred {
			steps.Prefer = append(steps.Prefer, g)
		}
		if !r.Leading {
			continue
		}
		// Ownership is never inferred from the map: only a group that has none
		// is given its first; later changes are moves.
		if r.Owned == 0 {
			steps.Own = append(steps.Own, OwnStep{Group: g.ID, Epoch: v.Epoch, Partitions: v.PartitionsOf(g.ID)})
		}
		for i := range v.Collections {
			if c := &v.Collections[i]; slices.Contains(c.Pending, g.ID) {
				steps.Drop = append(steps.Drop, DropStep{Group: g.ID, Collection: c.ID})
			}
		}
		if g.Preferred == o.Self || g.Preferred == "" {
			continue
		}
		if p, alive := o.Peers[g.Preferred]; alive && !p.Avoid {
			if applied, has := p.Applied[g.ID]; has && applied+transferSlack >= r.Commit {
				steps.Transfer = append(steps.Transfer, TransferStep{Group: g.ID, To: g.Preferred})
			}
		}
	}
	return steps
}
