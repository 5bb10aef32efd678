package shardgroup

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/placement"
)

var (
	// ErrOutcomeUnknown: the command may have reached the log and was not seen
	// to be applied; it may yet be. Retry only under the same request ID.
	ErrOutcomeUnknown = errors.New("shardgroup: outcome unknown")
	// ErrOverloaded: the group's queue is full; nothing was proposed. Retry
	// after a pause.
	ErrOverloaded = errors.New("shardgroup: too many proposals are waiting")
	// ErrDiskFull: free space is below the reserve; nothing was proposed. Free
	// space on the node, or wait for leadership to move.
	ErrDiskFull = errors.New("shardgroup: disk is full up to the reserve")
	// ErrStopped: the group or the node is stopping, or the replica has halted;
	// nothing was proposed. Ask another replica.
	ErrStopped = errors.New("shardgroup: group is stopped")
	// ErrTimeout: the time was up before anything was proposed or confirmed.
	// Retry.
	ErrTimeout = errors.New("shardgroup: timed out before anything was done")
	// ErrNoGroup: this node has no replica of the group. Refresh the map.
	ErrNoGroup = errors.New("shardgroup: no such group on this node")
	// ErrExists: the group is already running here with other members.
	ErrExists = errors.New("shardgroup: group exists with other members")
)

// NotLeaderError says that nothing was done because this replica does not
// lead the group. Leader is the one to ask instead, empty when not known.
type NotLeaderError struct {
	Group  placement.GroupID
	Leader placement.NodeID
	Term   uint64
}

// Error names the leader if it is known.
func (e *NotLeaderError) Error() string {
	if e.Leader == "" {
		return fmt.Sprintf("shardgroup: %s has no known leader right now (retry)", e.Group)
	}
	return fmt.Sprintf("shardgroup: %s is led by %s (ask it instead)", e.Group, e.Leader)
}

// DiskFullError says that nothing was done because too few members of the group
// have disk space above their reserve to make a majority. It is ErrDiskFull.
type DiskFullError struct {
	Group placement.GroupID
	Nodes []placement.NodeID // those without
}

// Error names the nodes.
func (e *DiskFullError) Error() string {
	return fmt.Sprintf("shardgroup: %s has too few members with disk space above their reserve: %v are full", e.Group, e.Nodes)
}

// Is says that this is ErrDiskFull.
func (e *DiskFullError) Is(target error) bool { return target == ErrDiskFull }

// HaltError says why a replica stopped for good: it could not apply an entry,
// or its state differs from its leader's.
type HaltError struct {
	Group placement.GroupID
	Err   error
}

// Error tells the group and the reason.
func (e *HaltError) Error() string {
	return fmt.Sprintf("shardgroup: replica of %s halted: %v (its data must not be served; compare it with the other replicas, then remove it and let it be copied again)", e.Group, e.Err)
}

// Unwrap is the reason.
func (e *HaltError) Unwrap() error { return e.Err }

// proposalError maps what a raft future says. The first group was certainly
// not proposed. Everything else, a store error included, may have reached the
// log of this or another node.
func (r *replica) proposalError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress),
		errors.Is(err, raft.ErrEnqueueTimeout):
		return r.notLeader()
	case mutant.On(mutant.RefusalForgotten):
		return r.notLeader()
	default:
		return ErrOutcomeUnknown
	}
}
