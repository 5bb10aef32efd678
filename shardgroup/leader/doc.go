// Package leader holds the rules that a shard group's leader follows, apart
// from everything that makes them happen: which timestamps it gives out and
// what it has promised (Memory), whose answers prove that it still leads
// (Round), which entries of the log count (Stamp, Void), and which request IDs
// are forgotten (Forget).
//
// It is stepped from above. It knows no clock, no lock, no goroutine and no
// Raft, so that package shardgroup can run it beside Raft and the rules ring
// (cmd/internal/rules) can run the same code without.
//
// Life of a term: Open when the machine holds everything that earlier leaders
// committed; Assign and Send for each batch, Land when its fate is known;
// Promise for readers; Shut.
package leader
