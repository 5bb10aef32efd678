// Package wire is the protocol between clients and nodes, and between nodes:
// frames, messages, codes, limits and version negotiation. docs/protocol.md is
// its specification.
//
// It owns bytes and connections; it does not know what a request means.
//
// Life of a request: Conn.Call, a frame, Server's reader, Validate, Handler,
// Reply, the waiter wakes.
package wire
