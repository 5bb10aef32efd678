// Package admin forms clusters and keeps a node in step with what the
// placement group decided.
//
// It owns the coordination of cluster init, the identity that a node takes
// with it, and the loop that starts replicas, gives groups their first
// partitions, carries out drops and hands leaderships to where they should be.
// What a node can do of that is behind Node and Local; the node wires them.
//
// Life of a cluster init: Init on the node that was asked, Adopt on every
// node, InitCluster in the placement group, Reconciler on every node until all
// shard groups serve, FinishInit. See router/DESIGN.md for why each step may
// be interrupted and repeated.
package admin
