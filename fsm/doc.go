// Package fsm is the state machine of one shard group: what the commands in
// its log mean, and what can be read of the result.
//
// It owns the group's rows in the state engine: documents and their history,
// which partitions the group owns and since which epoch, what was answered to
// which request, clock, ceiling and horizons, kept counts, the state's digest.
// It refuses to know where entries come from, who leads, and what time it is.
//
// Life of an entry: Apply decodes it, runs its commands one after the other
// against the state before it, folds every effect into the digest, commits one
// storage batch together with the applied index, and publishes what readers
// see. Applied moves last.
//
// The result of an entry depends on the entry and on the state before it, and
// on nothing else: not on how entries are grouped into calls of Apply, not on
// this node's settings. An entry that cannot be decoded, or is of a newer
// version, halts the machine.
package fsm
