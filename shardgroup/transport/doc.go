// Package transport carries everything that nodes say to each other: Raft's
// messages of all groups, leadership confirmations, and calls between the
// higher floors. It knows who the peers are and that they are of the same
// cluster; what a body means belongs to whoever registered its kind.
//
// One listener per node serves all of it. Between two nodes there are up to
// three connections in each direction, so that a heartbeat does not wait behind
// megabytes: log entries; heartbeats, votes and confirmations; everything else.
// A snapshot gets one of its own while it is sent.
//
// Life of a call: Call finds or dials the connection, both sides say who they
// are (cluster, node, incarnation), the body goes out in one frame, the
// handler on the other side answers in one frame.
//
//	p, err := transport.New(transport.Options{…})
//	p.Handle(wire.KindPlacement, placementHandler)
//	p.Start()           // serves from now on
//	answer, err := p.Call(ctx, "n2", wire.KindPlacement, body)
//	p.Close()           // joins every goroutine
package transport
