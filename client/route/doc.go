// Package route finds the node that can answer a request and keeps asking
// until one does.
//
// It owns the topology, the leaders, the connections, the estimate of the
// server's clock and the retry loop; what a request means is its Exchange's.
//
// Life of a request: Cluster.Do, pick (partition, group, leader, link), attempt
// (one frame there, one back), verdict (done, refused, or again), until the
// context ends. What is known at the end is in the Failure: refused, surely not
// done, or unknown.
package route
