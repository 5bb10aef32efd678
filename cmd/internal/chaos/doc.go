// Package chaos runs clusters of the real binary on loopback and hurts them:
// kill -9, SIGSTOP, all nodes at once, hostile bytes. Clients work meanwhile
// and their histories are judged by package history.
//
// It owns processes, their directories and ports, the faults and the load. It
// knows the database only as a user does: the idb command, the client library,
// HTTP. It ends only processes that it started.
//
// Life of a run: Build, Start (processes, idb cluster init, ready), Load.Run
// beside Faults, Cluster.Heal, Load.Judge, Cluster.CompareReplicas, Close.
package chaos
