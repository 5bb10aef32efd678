// Package seglog is the log of one node: append-only, synced, in segment files
// that are written over again and again, and shared by all Raft groups of the
// node, so that groups which write at the same moment share one fsync.
//
// It keeps two things per group: entries, numbered without a hole and cut at
// the front and at the back; and a few small records under keys, changed
// several at once. What the bytes mean is its user's.
//
// Life of an append: Append checks that it goes on where the group's log ends
// and encodes the entries into the batch that collects; one of those who wait
// writes the batch and syncs it; what was written is applied to the table in
// memory; all of its appenders return. While a sync runs the next batch
// collects. An append that comes alone writes at once, on its own goroutine.
//
// Life of a segment: prepared ahead (zeros written, or a segment that is free),
// written until it is full, and free again once nothing older is needed. Few
// old entries do not keep a segment: they are carried forward into new ones.
//
// After a failed write or sync nothing is known about the disk: the log is
// broken for good, Options.Fatal is told, and the process has to end.
//
// See the DESIGN.md of package shardgroup for the crash argument.
package seglog
