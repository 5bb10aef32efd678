// Package rules steps the production state machines single-threaded over
// plain ordered logs: proposals and answers that are lost, doubled and late,
// leaders that change without noticing, nodes that crash and come back with
// less. A run is a function of its seed: no goroutine, no clock, no socket. It
// finds mistakes of protocol, many thousand runs a minute; what needs real
// Raft, real time and real files is the simulator's and the other rings'.
//
// A Run has dice and, when it is told to, a transcript of its steps. A Net is
// a bag of messages. A Group is a log, nodes that agree on it as Raft does
// (terms, votes, a majority that holds an entry), and a Machine on each node.
// What a machine is, what is asked of it and what must be true is a ring's:
// runShard steps fsm.Machine with package leader's memory, runPlacement steps
// placement.Machine. A ring over several groups makes several Groups in one
// Run and lets their nodes send to each other over one Net.
//
// Every answer of a machine is compared with a model's that knows documents as
// lists in memory and nothing of storage; what clients saw is compared with
// the order of the log; what replicas hold, with each other.
//
//	go test ./cmd/internal/rules -rules.seeds 20000
//	go test ./cmd/internal/rules -run TestShard -rules.seed 4711   # one run, with its transcript
package rules
