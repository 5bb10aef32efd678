// Package chaos runs clusters of the real binary on loopback and hurts them:
// kill -9, SIGSTOP, all nodes at once, hostile bytes. Clients work meanwhile
// and their histories are judged by package history.
//
// It owns processes, their directories and ports, and the faults; what clients
// do is package workload's. It knows the database only as a user does: the idb
// command, the client library, HTTP. It ends only processes that it started.
//
// Life of a run: Build, Start (processes, idb cluster init, ready), StartLoad
// beside Faults, Cluster.Heal, Load.Stop, Load.Judge (CompareReplicas), Close.
package chaos
