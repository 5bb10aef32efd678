// Package sim runs whole clusters in virtual time, hurts them, and judges what
// clients saw and what is left.
//
// The nodes are the real ones (package node, with real Raft and the real
// storage); only what they stand on is simulated: the network (Network), the
// disks (Drive), the wall clocks and the processes (Node). All of it runs in
// one testing/synctest bubble, where time passes when nobody has anything to
// do. What clients do and what they are owed is package workload's.
//
//	plan (seed or scenario file)
//	  └ Run: cluster formed → load → events of the plan → healed → at rest → judged
//
// A run is likely to repeat with its seed and not certain to: the seed makes
// the plan, the network's and the drives' choices, and the clients'; goroutines
// are scheduled as they are. Checkers judge histories, so a verdict needs no
// repetition to be true.
//
// See cmd/DESIGN.md for what is simulated how, and what is not.
package sim
