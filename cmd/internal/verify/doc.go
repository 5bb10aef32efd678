// Package verify runs the workloads of package workload against a live cluster
// for as long as wanted, has package history judge what the clients saw, and
// leaves a report and a clean cluster behind.
//
// It owns the rounds, the scratch collections and their names, and the sum of
// all verdicts. It knows nothing of processes and faults: whoever breaks the
// cluster gives it a Breaker (package chaos has one).
//
// Life of a run: Run makes collections under a prefix that says what they are,
// starts the clients, lets the breaker work, stops, has the breaker heal,
// judges, drops the collections; and again, with fresh collections, until the
// time is up. A round is short enough that its history fits into memory and
// into a judge's patience.
package verify
