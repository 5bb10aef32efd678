package shardgroup

import (
	"errors"
	"fmt"
	"testing"

	"github.com/hashicorp/raft"
)

// Only what certainly never reached a log is "nothing was done".
func TestProposalErrors(t *testing.T) {
	r := &replica{host: &Host{}}
	for _, tc := range []struct {
		err  error
		done bool // it may have been done
	}{
		{raft.ErrNotLeader, false},
		{raft.ErrLeadershipTransferInProgress, false},
		{raft.ErrEnqueueTimeout, false},
		{fmt.Errorf("wrapped: %w", raft.ErrNotLeader), false},
		{raft.ErrLeadershipLost, true},
		{raft.ErrRaftShutdown, true},
		{raft.ErrAbortedByRestore, true},
		{errors.New("disk: write error"), true},
	} {
		err := r.proposalError(tc.err)
		var nl *NotLeaderError
		switch {
		case tc.done && !errors.Is(err, ErrOutcomeUnknown):
			t.Errorf("%v: it may have been done, the caller is told %v", tc.err, err)
		case !tc.done && !errors.As(err, &nl):
			t.Errorf("%v: nothing was done, the caller is told %v", tc.err, err)
		}
	}
	if err := r.proposalError(nil); err != nil {
		t.Errorf("no error became %v", err)
	}
}
