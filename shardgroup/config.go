package shardgroup

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/transport"
	"github.com/impossibledb/idb/txn/hlc"
)

// Config is what a Host needs. NodeID, Dir, Peers and Clock must be set; the
// zero value of everything else works.
type Config struct {
	// NodeID and Incarnation name this node; the incarnation changes when the
	// node's data is wiped, so that it cannot vote as its former self.
	NodeID      placement.NodeID
	Incarnation string

	// Dir is the node's data directory; FS is where it is. Nil: the real one.
	Dir string
	FS  vfs.FS

	// Peers carries everything between nodes. The Host registers its handlers
	// and cuts it off when the node must not speak any more; whoever made it
	// closes it, after the Host.
	Peers *transport.Peers

	// Clock gives the timestamps of proposals.
	Clock *hlc.Clock

	Logger hclog.Logger // nil: none

	// OnFatal is called once, on a goroutine of its own, when the node must
	// end: its disk failed or stalled. By then the node is cut off from its
	// peers and refuses everything. Nil: the error is only logged.
	OnFatal func(error)

	// JoinAfterFatal has Close join everything after a fatal error too, the
	// engines included. It is for a process that goes on without this node, and
	// whose files are out of the node's reach by then: closing an engine writes
	// to them, and after a fatal error no write may land.
	JoinAfterFatal bool

	// OnHalt is called when one replica stops for good while the node goes on:
	// it differs from its leader, or cannot read an entry. May be nil.
	OnHalt func(*HaltError)

	// OnLeader is called, one call at a time per group, when this node learns
	// of another leader of a group. It must not block. May be nil.
	OnLeader func(group placement.GroupID, leader placement.NodeID, term uint64)

	// Stable opens the store of terms and votes at a path. Nil: OpenBoltStable.
	Stable func(path string) (StableStore, error)
	// PlacementStore opens the placement group's log, votes and snapshots in a
	// directory. Nil: OpenPlacementStore.
	PlacementStore func(dir string, log hclog.Logger) (PlacementStore, error)

	// Timing of elections.
	Timing Timing

	// CacheBytes is the state engine's block cache. Zero: its own default.
	CacheBytes int64
	// NewestBytes is the state engine's memory of documents that were written
	// lately. Zero: its own default; less than zero: none.
	NewestBytes int64

	// DiskReserve is the free space, in bytes, below which writes are refused.
	// Too small lets the disk fill up before the refusals take effect, which
	// ends the process; too large wastes disk. Zero means 256 MiB.
	DiskReserve uint64
	// FreeSpace tells the free bytes of the data directory's disk. Nil: ask FS.
	FreeSpace func() (uint64, error)
	// SpaceInterval is how often FreeSpace is asked. Zero means 500 ms.
	SpaceInterval time.Duration

	// StallLimit is how long a synced write may take before the node ends
	// itself. Too short kills nodes under a burst of other I/O; too long keeps
	// leaders that make no progress. Zero means 5 s.
	StallLimit time.Duration
	// ProbeInterval is how often the disk is probed. Zero means 1 s.
	ProbeInterval time.Duration

	// ProposalTimeout is how long a proposal may be in flight before its
	// callers are told that its outcome is unknown. Zero means 10 s.
	ProposalTimeout time.Duration
	// QueueCommands and QueueBytes bound what waits in one group's batcher.
	// Zero means 32768 and 64 MiB.
	QueueCommands int
	QueueBytes    int

	// SnapshotBytes and SnapshotEntries are how much log a group collects
	// before it is flushed and truncated. Smaller means faster restarts and
	// more flushes. Zero means 32 MiB and 4096.
	SnapshotBytes   int64
	SnapshotEntries uint64
	// LogBytes is how much disk the log may take, all groups together: above it
	// groups are flushed and cut. What is left serves followers that are behind;
	// those further behind get a snapshot. Too small makes
	// snapshots of short absences, too large wastes disk. While the state is
	// small the log takes less: twice the state, and at least 64 MiB. Zero means
	// 512 MiB. See DESIGN.md for what comes on top.
	LogBytes int64
	// TrailingEntries is how many entries a group keeps for followers at most.
	// Zero means 8192.
	TrailingEntries uint64

	// DigestEvery is how many entries lie between two comparisons of the
	// replicas' digests. Zero means 1024.
	DigestEvery uint64

	// Locate tells where a document belongs, for the comparison of replicas;
	// false if the collection is not known here. It is called often and must
	// not block. Nil: that is not checked.
	Locate func(c placement.CollectionID, id string) (p placement.PartitionID, known bool)

	// Resolver reaches other groups for transactions. Nil: intents whose
	// transaction has another home stay as they are (Host.SetResolver).
	Resolver Resolver
	// LockWait is how long a command waits, before it is proposed, for locks
	// that transactions hold. Too short makes conflicts of what would soon have
	// been free; too long makes callers wait for what is stuck. Zero means 1 s.
	LockWait time.Duration

	// Retention tells how long superseded versions are kept. Nil keeps them for
	// ever.
	Retention RetentionFunc
	// RequestIDTTL is how long the answer to a request is remembered; a retry
	// after that is refused as expired. Zero means 15 min.
	RequestIDTTL time.Duration
	// SweepInterval is how often a leader looks for garbage. Zero means 10 s.
	SweepInterval time.Duration
}

// RetentionFunc tells what history of a collection is kept. Of a collection
// that it does not know nothing is collected. It is called often and must not
// block.
type RetentionFunc func(placement.CollectionID) (r Retention, known bool)

// Retention is how much history is kept.
type Retention struct {
	Age      time.Duration // superseded versions younger than this are kept
	Versions uint32        // and at least this many of them
	Forever  bool
}

// Timing of elections. Heartbeats wait behind a follower's fsync (DESIGN.md),
// so Heartbeat must be far above the worst one; it is also what a fail-over
// takes at least.
type Timing struct {
	Heartbeat time.Duration // zero: 500 ms
	Election  time.Duration // zero: Heartbeat
	// Lease is how long a leader goes on without hearing from a majority. It
	// protects nothing: reads are confirmed. Zero: Heartbeat.
	Lease time.Duration
	// Commit is how long an idle leader waits to tell followers its commit
	// index. Short costs CPU on idle groups. Zero: 200 ms.
	Commit time.Duration
}

func (t Timing) withDefaults() Timing {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&t.Heartbeat, 500*time.Millisecond)
	def(&t.Election, t.Heartbeat)
	def(&t.Lease, t.Heartbeat)
	def(&t.Commit, 200*time.Millisecond)
	return t
}

func (c Config) withDefaults() Config {
	if c.FS == nil {
		c.FS = vfs.Default
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Stable == nil {
		c.Stable = OpenBoltStable
	}
	if c.PlacementStore == nil {
		c.PlacementStore = OpenPlacementStore
	}
	if c.FreeSpace == nil {
		fs, dir := c.FS, c.Dir
		c.FreeSpace = func() (uint64, error) {
			u, err := fs.GetDiskUsage(dir)
			return u.AvailBytes, err
		}
	}
	c.Timing = c.Timing.withDefaults()
	setDefault(&c.DiskReserve, 256<<20)
	setDefault(&c.SpaceInterval, 500*time.Millisecond)
	setDefault(&c.StallLimit, 5*time.Second)
	setDefault(&c.ProbeInterval, time.Second)
	setDefault(&c.ProposalTimeout, 10*time.Second)
	setDefault(&c.QueueCommands, 32768)
	setDefault(&c.QueueBytes, 64<<20)
	setDefault(&c.SnapshotBytes, 32<<20)
	setDefault(&c.SnapshotEntries, 4096)
	setDefault(&c.LogBytes, 512<<20)
	setDefault(&c.TrailingEntries, 8192)
	setDefault(&c.DigestEvery, 1024)
	setDefault(&c.RequestIDTTL, 15*time.Minute)
	setDefault(&c.LockWait, time.Second)
	setDefault(&c.SweepInterval, 10*time.Second)
	return c
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (c Config) validate() error {
	switch {
	case c.NodeID == "":
		return errors.New("shardgroup: Config.NodeID is empty")
	case c.Dir == "":
		return errors.New("shardgroup: Config.Dir is empty")
	case c.Peers == nil:
		return errors.New("shardgroup: Config.Peers is nil")
	case c.Clock == nil:
		return errors.New("shardgroup: Config.Clock is nil")
	case c.Timing.Lease > c.Timing.Heartbeat:
		return fmt.Errorf("shardgroup: lease %v is longer than the heartbeat timeout %v", c.Timing.Lease, c.Timing.Heartbeat)
	case c.Timing.Election < c.Timing.Heartbeat:
		return fmt.Errorf("shardgroup: election timeout %v is shorter than the heartbeat timeout %v", c.Timing.Election, c.Timing.Heartbeat)
	case c.StallLimit <= c.Timing.Heartbeat:
		return fmt.Errorf("shardgroup: stall limit %v is not above the heartbeat timeout %v", c.StallLimit, c.Timing.Heartbeat)
	}
	return nil
}

func (c *Config) path(elem ...string) string {
	return filepath.Join(append([]string{c.Dir}, elem...)...)
}

// maxAppendEntries bounds one AppendEntries by count; the transport bounds it
// by bytes. It is also how many entries go to the machine at once.
const maxAppendEntries = 64

// raftConfig is hashicorp/raft's configuration for one replica.
func (c *Config) raftConfig(id raft.ServerID, notify chan<- bool, log hclog.Logger, voters int) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = id
	rc.HeartbeatTimeout = c.Timing.Heartbeat
	rc.ElectionTimeout = c.Timing.Election
	rc.LeaderLeaseTimeout = c.Timing.Lease
	if voters == 1 {
		// Nobody else could win: do not wait for them.
		const alone = 20 * time.Millisecond
		rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = alone, alone, alone
	}
	rc.CommitTimeout = c.Timing.Commit
	rc.MaxAppendEntries = maxAppendEntries
	rc.NotifyCh = notify
	rc.Logger = newRaftLogger(log)
	rc.NoSnapshotRestoreOnStart = true
	rc.NoLegacyTelemetry = true
	// Snapshots are taken by the Host, by bytes and entries of the log.
	rc.SnapshotInterval = 1000 * time.Hour
	rc.SnapshotThreshold = 1 << 62
	rc.TrailingLogs = keepAll
	return rc
}
