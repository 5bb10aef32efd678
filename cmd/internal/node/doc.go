// Package node wires one ImpossibleDB node: the data directory, the peer,
// client and HTTP ports, the shard groups and the placement service. It is the
// only place where the parts meet.
//
// It owns identity, start order, shutdown order and metrics; it takes no
// decision about data.
//
// Life of a node: Start (lock, identity, engines, peers, recovered groups,
// ports), wait for a cluster or rejoin it, serve, Shutdown (hand leadership
// over, drain, close) or Fatal (a disk that failed: the process ends so that
// its groups fail over).
package node
