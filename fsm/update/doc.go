// Package update changes documents by operators: {"$set": {"a.b": 1}, "$inc":
// {"n": 2}}. The language is a part of MongoDB's; docs/update-operators.md has
// all of it, and where it differs.
//
// It knows documents (client/doc) and nothing of where they are stored. Parse
// refuses what is wrong whatever the document; Apply refuses what does not fit
// the document. Both are pure: the same bytes and the same timestamp give the
// same answer on every replica, errors included.
//
// Life of an update: Parse on the node that receives it, to refuse it early;
// the bytes travel through the log; Parse and Apply on every replica.
//
// # How Apply works
//
// The operators are kept as one list ordered by path, component by component.
// Apply walks the list and the document together, once, and writes the new
// document as it goes: what no path touches is copied in runs, unread.
//
//	paths       a.x   a.z   c
//	document  { a: { w: 1, x: 2 }, b: …, c: 3 }
//	                 copy  op  +op copy   op
//
// A map's or array's head is written with the old count and corrected when the
// container is complete.
package update
