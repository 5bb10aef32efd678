// Package mvcc keeps versioned rows in the node's state engine.
//
// It owns the engine (one Pebble instance without a write-ahead log for all
// groups of the node), the layout of keys and of document rows, the walks over
// versions (newest, at a version, at a time, history, scan), and the stream
// that carries a group's span to another node. What a command means, who owns a
// partition and what is remembered of a request is package fsm's.
//
// Life of a version: AppendVersion writes it once under (document, ^timestamp);
// a newer one supersedes it; below the horizon it is collected. It is never
// changed in between.
//
// A key picture, big endian throughout:
//
//	0      4    5           9            13
//	| group | kind | partition | collection | id, 00→00 ff | 00 01 | ^ts |
package mvcc
