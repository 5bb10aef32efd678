// Package workload is what clients do to a database while it is being hurt, and
// what the database owes them afterwards.
//
// It owns the workloads: which collections they use, what a client does next
// (from a seeded source), how an answer is put into a history, and which
// checkers of package history judge it. It knows nothing of clusters, faults or
// processes: it is given connected clients. It uses the standard time package
// only, so the same workloads run in virtual time and against real clusters.
//
// Life of a run: New for each workload, Start (collections are made, clients
// begin), Load.Progress or Load.Wait beside the faults, Load.Stop, Load.Judge
// once the cluster is whole (reads at rest, then checkers), Load.Cleanup.
package workload
