// Package check compares the replicas and invariants of a whole cluster, at
// rest or under load, through its nodes: it asks for one group after the other,
// a few partitions at a time, and puts the answers together.
//
// It owns the pace, the order and the verdict. What is compared and how is the
// servers' (router: compare.go, fsm: survey.go); but what documents hold of unique
// values and what the entries of those say is compared here.
package check
