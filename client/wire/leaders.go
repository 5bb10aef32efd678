package wire

import (
	"fmt"
	"strconv"
)

// Leaders says where the leaders of shard groups should be when nothing speaks
// against it.
type Leaders uint32

const (
	// LeadersSpread gives every node a share of the leaders: each carries a part
	// of the reads and writes, and one that is lost stops its part of the groups
	// until others are elected. A transaction over several groups goes over the
	// network to their leaders.
	LeadersSpread Leaders = 0
	// LeadersTogether puts them on as few nodes as possible, one where it holds
	// a replica of every group: a transaction over several groups stays in one
	// process there. That node carries all reads and writes, and its loss stops
	// every group until others are elected.
	LeadersTogether Leaders = 1
)

// Known says that the value is one of the constants.
func (l Leaders) Known() bool { return l <= LeadersTogether }

// String is "spread", "together", or the number of one that is not known here.
func (l Leaders) String() string {
	switch l {
	case LeadersSpread:
		return "spread"
	case LeadersTogether:
		return "together"
	}
	return strconv.FormatUint(uint64(l), 10)
}

// ParseLeaders is the reverse of String, of the constants.
func ParseLeaders(s string) (Leaders, error) {
	for l := LeadersSpread; l.Known(); l++ {
		if s == l.String() {
			return l, nil
		}
	}
	return 0, fmt.Errorf("%q: choose spread or together", s)
}

// MarshalText is String, so that JSON has the word.
func (l Leaders) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText is ParseLeaders.
func (l *Leaders) UnmarshalText(b []byte) (err error) {
	*l, err = ParseLeaders(string(b))
	return err
}
