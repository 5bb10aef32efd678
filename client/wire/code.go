package wire

// Code is the stable number of an outcome. Programs decide by the code, people
// read the message. The hundreds tell what the caller may do next:
//
//	0    done
//	1xx  refused: the request is wrong, and will be wrong again
//	2xx  refused: what was asked for is not there
//	3xx  conflict: it does not fit what is stored; read again, then decide
//	4xx  refused by a limit
//	5xx  not now: nothing was done; the same request may be sent again
//	6xx  unknown: it may have happened; retry only under the same request ID
//	7xx  a fault of the server
type Code uint16

const (
	CodeOK Code = 0

	CodeBadRequest        Code = 100 // malformed message or field
	CodeBadVersion        Code = 101 // no protocol version in common
	CodeBadDocument       Code = 102 // not a document, or a value that cannot be stored
	CodeBadUpdate         Code = 103 // update operators that do not parse
	CodeBadID             Code = 104 // document ID empty, too long or not UTF-8
	CodeBadCollection     Code = 105 // collection name or options
	CodeBadCursor         Code = 106 // a cursor this cluster did not make
	CodeBadClusterRequest Code = 107 // cluster init that cannot work
	CodeUnsupported       Code = 108 // unknown message kind
	CodeFutureTime        Code = 109 // a read at a time that no clock has reached; Version is the time now

	CodeNotFound           Code = 200 // no such document
	CodeCollectionNotFound Code = 201
	CodeVersionNotFound    Code = 202 // the document never had that version, or did not exist at that time
	CodeHistoryExpired     Code = 203 // it did, but past the retention window

	CodeVersionConflict  Code = 300 // the document has another version than the write expected
	CodeAlreadyExists    Code = 301 // insert, or if-absent, of a document that exists
	CodeUpdateFailed     Code = 302 // the operators do not fit the document ($inc of a string, …)
	CodeCollectionExists Code = 303 // with other options
	CodeClusterExists    Code = 304
	CodeNotAttempted     Code = 305 // ordered bulk: an earlier item failed
	CodeTxnConflict      Code = 306 // a transaction met another, or read what has changed: run it again
	CodeTxnAborted       Code = 307 // a transaction was aborted past its deadline: run it again
	CodeDuplicateValue   Code = 308 // another document holds the value of a unique field

	CodeDocumentTooLarge Code = 400
	CodeTooDeep          Code = 401
	CodeFrameTooLarge    Code = 402
	CodeTooManyItems     Code = 403
	CodeTooManyRequests  Code = 404 // in flight on one connection
	CodeDiskFull         Code = 405 // writes are refused until space is back
	CodeTooManyConns     Code = 406

	CodeNotLeader      Code = 500 // Error.Leader names the one to ask, if known
	CodeStaleEpoch     Code = 501 // routed by an old placement map, or an old catalog
	CodeUnavailable    Code = 502 // no leader, or no majority, right now
	CodeOverloaded     Code = 503 // queue full
	CodeTimeout        Code = 504 // the deadline passed before anything was done
	CodeNotInitialised Code = 505 // the node belongs to no cluster yet
	CodeWrongCluster   Code = 506 // the node belongs to another cluster
	CodeShuttingDown   Code = 507
	CodeLocked         Code = 508 // held by a transaction that is about to be decided

	CodeOutcomeUnknown Code = 600 // it may yet happen: retry under the same request ID
	CodeOutcomeExpired Code = 601 // the request ID is older than what is remembered

	CodeInternal Code = 700
)

// Retryable says that nothing was done and the same request may be sent again.
func (c Code) Retryable() bool { return c >= 500 && c < 600 && c != CodeWrongCluster }

// Unknown says that the request may or may not have taken effect.
func (c Code) Unknown() bool { return c == CodeOutcomeUnknown }

// Error is a refusal on the wire. Message is for people: what was wrong, where,
// and what to do. The other fields are what a program needs to act.
type Error struct {
	Code    Code
	Message string
	// Leader is the node to ask instead (NotLeader); empty when not known.
	Leader string
	// Version is the document's version (VersionConflict, AlreadyExists).
	Version uint64
	// Epoch is the map epoch of whoever refused (StaleEpoch).
	Epoch uint64
	// RetryAfterMillis is how long to wait before trying again; 0: no advice.
	RetryAfterMillis uint32
	// Now is the clock of the node that answers the client; 0: not told. What
	// was in the way may be younger than all that the client has heard of.
	Now uint64
}

// Error is the message, which stands alone: "users/u17: version is 9, …".
func (e *Error) Error() string { return e.Message }
