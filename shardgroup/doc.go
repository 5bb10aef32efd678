// Package shardgroup runs the Raft groups that live on this node.
//
// It owns logs, votes, snapshots, leadership, proposals and reads; what an
// entry means is package fsm's, and where members are is package placement's.
//
// Life of a proposal: Propose, the batcher gives it a timestamp and packs it
// into an entry, a majority syncs the entry, fsm.Machine.Apply, the waiter
// wakes.
//
// Life of a read: ReadIndex joins a round, the voters confirm the term, the
// commit index noted at the round's start is applied, the caller reads
// Group.Machine.
//
// Life of a Host:
//
//	h, err := shardgroup.OpenHost(cfg)   // engines open, nothing runs yet
//	err = h.Recover()                    // groups of earlier lives start
//	g, err := h.StartGroup(spec)         // new ones; the same spec again is fine
//	h.HandOver(ctx)                      // give leadership away before stopping
//	h.Close()                            // joins every goroutine
//
// See DESIGN.md for what is on disk, the crash argument and the read protocol.
package shardgroup
