// Package unique says what unique constraints mean: which values a document
// holds, where the entry of a value is kept, and what is in it.
//
// An entry is a document of a collection of its own, whose number follows from
// the collection's. So it has versions, intents, snapshots and garbage as any
// other, and whoever reads at a timestamp finds documents and entries that
// agree. It lies in the partition of its value: two documents that want one
// value meet there, wherever they are themselves.
//
// It knows nothing of transactions; the rules of when an entry is taken and
// given up are package router's (router/DESIGN.md).
package unique
