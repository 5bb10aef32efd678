// Package router answers clients: it finds the shard groups that a request
// concerns, runs each part at that group's leader, and words what comes back.
//
// It owns routing, forwarding between nodes, scatter-gather, cursors and the
// error table. It stores nothing and decides nothing about data: that is done
// by the machines behind Group.
//
// Life of a request: ServeWire decodes, the checks that need no state, the
// view, one part per shard group, here or at its leader, the answer. See
// DESIGN.md.
package router
