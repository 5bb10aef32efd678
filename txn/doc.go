// Package txn has the rules of transactions over many shards that need no
// machine, disk or network: what a transaction is made of, the records that
// are kept of it and their encodings, and who sends what when.
//
// Coordinator and Recovery are step machines: they are told what was answered
// and what time it is, and say what to send. Package router carries their
// messages, the rules ring delays and loses them.
//
// Life of a transaction over several groups: a Coordinator begins with a
// Prepare for every participant and for home, and when all have voted yes it is
// committed; Confirm tells home, Resolve turns intents into versions, Forget
// drops the record. An Inquiry finds out what became of one that others have
// left. See DESIGN.md.
package txn
