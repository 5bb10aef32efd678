// Package doc is the data model: values, documents, paths, the canonical and
// the order-preserving encoding, comparison, and JSON.
//
// A document travels and rests as its canonical bytes (Raw); nothing decodes
// it that does not have to. The package knows nothing of collections, versions
// kept in storage, or what update operators mean (package fsm/update).
//
// # The canonical encoding
//
// A value is one msgpack value in exactly one permitted form, so that equal
// values are equal bytes:
//
//	null       c0
//	bool       c2, c3
//	int        int64 in the shortest form; the unsigned forms for values >= 0
//	float      cb and 8 bytes, always; one NaN (7ff8000000000000); -0 is 0
//	string     shortest header; valid UTF-8
//	bytes      shortest bin header
//	timestamp  c7 0c ff, nanoseconds u32, seconds i64; years 1 to 9999
//	array      shortest header
//	map        shortest header; string keys, unique, in ascending byte order
//
// Extension codes 1 (decimal), 2 (object ID), 3 (binary subtype) and 4
// (hybrid logical timestamp) are reserved and refused until they mean
// something; every other extension is refused too.
//
// # Life of a document
//
// The client makes one with Marshal or FromJSON, cuts off its ID with
// SplitMeta and sends the body. The server runs CheckBody, which allocates
// nothing, and stores the bytes as they came. A reader takes single fields
// with Get or Iter, or everything with Decode, DecodeDocument or AppendJSON.
//
// # Hostile bytes
//
// Check, CheckBody and Canonicalize accept any bytes. They use no recursion,
// bound every declared length by the bytes that remain, and allocate nothing
// (Check) or a small multiple of the input (Canonicalize). The other functions
// expect checked bytes; given unchecked ones they return a wrong answer or an
// error, but do not panic and do not loop.
package doc
