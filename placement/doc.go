// Package placement decides where things are: which nodes there are, which
// shard group owns a partition, which nodes hold a replica of a shard group,
// and which collections exist.
//
// It owns the state machine of the placement group, the computation of maps,
// and the service by which every node of the cluster, member of the group or
// not, sees the same state and can change it. It knows nothing of documents,
// and it starts nothing: what a node must do to follow the state is computed
// by Reconcile and done by the node.
//
// Life of a change: a node encodes a Command, Service.Propose takes it to the
// leader's Log, Machine.Apply builds the next State on every member, watchers
// on all nodes receive it, and each node reconciles.
package placement
