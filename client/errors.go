package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/route"
	"github.com/impossibledb/idb/client/wire"
)

// Sentinels for errors.Is. Every error of an operation is an *Error that
// matches at most a few of them; errors.As gives the details.
var (
	// ErrNotFound: no such document. Nothing was done.
	ErrNotFound = errors.New("client: document not found")
	// ErrCollectionNotFound: no such collection; the message suggests a name.
	ErrCollectionNotFound = errors.New("client: collection not found")
	// ErrVersionNotFound: the document never had that version, or did not exist
	// at that time.
	ErrVersionNotFound = errors.New("client: version not found")
	// ErrHistoryExpired: it did, but the version is past its retention.
	ErrHistoryExpired = errors.New("client: history expired")

	// ErrConflict: the write does not fit what is stored. Read again, then
	// decide. It matches every conflict: ErrVersionConflict, ErrAlreadyExists,
	// ErrUpdateFailed, ErrDuplicate and a collection that exists with other options.
	ErrConflict = errors.New("client: conflict")
	// ErrVersionConflict: the document has another version than IfVersion
	// expected; Error.Version is the one it has.
	ErrVersionConflict = errors.New("client: version conflict")
	// ErrAlreadyExists: Insert, or IfAbsent, of a document that exists.
	ErrAlreadyExists = errors.New("client: document already exists")
	// ErrUpdateFailed: the operators do not fit the document ($inc of a string).
	ErrUpdateFailed = errors.New("client: update failed")
	// ErrDuplicate: another document holds the value of a unique field; the
	// message names it. Nothing was done.
	ErrDuplicate = errors.New("client: duplicate value")
	// ErrNotAttempted: ordered bulk, an earlier item failed. Nothing was done.
	ErrNotAttempted = errors.New("client: not attempted")

	// ErrTxConflict: a transaction read what has changed since, or met another.
	// Nothing was done; run it again from its beginning, as Transact does.
	ErrTxConflict = errors.New("client: transaction conflict")
	// ErrTxAborted: a transaction was not decided in its time, or somebody
	// aborted it. Nothing was done; run it again from its beginning.
	ErrTxAborted = errors.New("client: transaction aborted")
	// ErrTxDone: the transaction was committed or rolled back before.
	ErrTxDone = errors.New("client: transaction has ended")

	// ErrBadRequest: the request is wrong and will be wrong again: document, ID,
	// collection name, update operators, options or cursor.
	ErrBadRequest = errors.New("client: bad request")
	// ErrTooLarge: a document or a request beyond the limits.
	ErrTooLarge = errors.New("client: too large")
	// ErrDiskFull: the servers refuse writes until there is space. Nothing was done.
	ErrDiskFull = errors.New("client: disk full")

	// ErrUnavailable: no server could do it before the context ended. Nothing
	// was done; the same call may be made again.
	ErrUnavailable = errors.New("client: unavailable")
	// ErrNotInitialised: the nodes belong to no cluster yet.
	ErrNotInitialised = errors.New("client: cluster not initialised")
	// ErrWrongCluster: the node belongs to another cluster than expected.
	ErrWrongCluster = errors.New("client: wrong cluster")

	// ErrOutcomeUnknown: the write may have happened, or may yet. RetryOf sends
	// it again under the same request ID and learns which.
	ErrOutcomeUnknown = errors.New("client: outcome unknown")
	// ErrOutcomeExpired: the request ID is older than what servers remember. It
	// comes to a retry of an old write only; read the document to see.
	ErrOutcomeExpired = errors.New("client: outcome expired")

	// ErrInternal: a fault of the server; its log says more.
	ErrInternal = errors.New("client: server fault")

	// ErrClosed: the DB was closed.
	ErrClosed = route.ErrClosed
)

// Error is why an operation did not do what was asked.
type Error struct {
	// Code is the servers' answer. Without one it is CodeUnavailable: surely
	// nothing was done; or CodeOutcomeUnknown: it may have been.
	Code Code
	// Op, Collection and ID say what was asked: "put", "users", "u17".
	Op, Collection, ID string
	// Message is for people; Error returns it.
	Message string
	// Version is the document's (ErrVersionConflict, ErrAlreadyExists).
	Version uint64
	// RequestID names the write, for RetryOf; zero for reads.
	RequestID RequestID
	// Attempts counts how often the request was sent.
	Attempts int

	causes []error
	number uint32 // of the collection that the write was sent to; 0: none
}

// Error is the message, which stands alone.
func (e *Error) Error() string { return e.Message }

// Unwrap gives the context's error, if its end was the reason, and the last
// failure of a connection.
func (e *Error) Unwrap() []error { return e.causes }

// Unknown says that the write may have happened.
func (e *Error) Unknown() bool { return e.Code == wire.CodeOutcomeUnknown }

// Is matches the sentinels.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrConflict:
		return e.Code >= 300 && e.Code < 400 && e.Code != wire.CodeNotAttempted
	case ErrBadRequest:
		return e.Code >= 100 && e.Code < 200
	case ErrUnavailable:
		return e.Code.Retryable()
	}
	s := sentinel(e.Code)
	return s != nil && s == target
}

// sentinel is the one joint between codes and sentinels.
func sentinel(code Code) error {
	switch code {
	case wire.CodeNotFound:
		return ErrNotFound
	case wire.CodeCollectionNotFound:
		return ErrCollectionNotFound
	case wire.CodeVersionNotFound:
		return ErrVersionNotFound
	case wire.CodeHistoryExpired:
		return ErrHistoryExpired
	case wire.CodeVersionConflict:
		return ErrVersionConflict
	case wire.CodeAlreadyExists:
		return ErrAlreadyExists
	case wire.CodeUpdateFailed:
		return ErrUpdateFailed
	case wire.CodeNotAttempted:
		return ErrNotAttempted
	case wire.CodeDuplicateValue:
		return ErrDuplicate
	case wire.CodeTxnConflict:
		return ErrTxConflict
	case wire.CodeTxnAborted:
		return ErrTxAborted
	case wire.CodeDocumentTooLarge, wire.CodeTooDeep, wire.CodeFrameTooLarge, wire.CodeTooManyItems:
		return ErrTooLarge
	case wire.CodeDiskFull:
		return ErrDiskFull
	case wire.CodeNotInitialised:
		return ErrNotInitialised
	case wire.CodeWrongCluster:
		return ErrWrongCluster
	case wire.CodeOutcomeUnknown:
		return ErrOutcomeUnknown
	case wire.CodeOutcomeExpired:
		return ErrOutcomeExpired
	case wire.CodeInternal:
		return ErrInternal
	}
	return nil
}

// what names the target of an operation: "put users/u17".
func what(op, collection, id string) string {
	switch {
	case collection == "":
		return op
	case id == "":
		return op + " " + collection
	}
	return op + " " + collection + "/" + clip(id)
}

// clip keeps messages short whatever the ID is.
func clip(id string) string {
	if len(id) <= 128 {
		return id
	}
	return strings.ToValidUTF8(id[:128], "") + "…"
}

// refused is an error that was found before anything was sent.
func refused(code Code, op, collection, id, format string, args ...any) *Error {
	e := &Error{Code: code, Op: op, Collection: collection, ID: id}
	e.Message = what(op, collection, id) + ": " + fmt.Sprintf(format, args...)
	return e
}

// badDocument words an error of package doc.
func badDocument(err error, op, collection, id string) *Error {
	code := wire.CodeBadDocument
	switch {
	case errors.Is(err, doc.ErrTooLarge):
		code = wire.CodeDocumentTooLarge
	case errors.Is(err, doc.ErrTooDeep):
		code = wire.CodeTooDeep
	case errors.Is(err, doc.ErrBadID):
		code = wire.CodeBadID
	}
	e := refused(code, op, collection, id, "%v", err)
	e.causes = []error{err}
	return e
}

// ofRefusal is a server's refusal as an error.
func ofRefusal(r *wire.Error, op, collection, id string) *Error {
	e := &Error{
		Code: r.Code, Op: op, Collection: collection, ID: id,
		Message: r.Message, Version: r.Version,
	}
	if e.Message == "" {
		e.Message = fmt.Sprintf("%s: refused with code %d", what(op, collection, id), r.Code)
	}
	return e
}

// ofFailure is the error of a request that ended as err.
func ofFailure(err error, op, collection, id string) *Error {
	var f *route.Failure
	if !errors.As(err, &f) {
		e := refused(wire.CodeUnavailable, op, collection, id, "%v", err)
		e.causes = []error{err}
		return e
	}
	if f.Final() {
		e := ofRefusal(f.Refusal, op, collection, id)
		e.Attempts = f.Attempts
		return e
	}
	e := &Error{Op: op, Collection: collection, ID: id, Attempts: f.Attempts, causes: f.Unwrap()}
	var b strings.Builder
	b.WriteString(what(op, collection, id))
	if f.Unknown {
		e.Code = wire.CodeOutcomeUnknown
		b.WriteString(": outcome unknown: the request may have been carried out")
	} else {
		e.Code = wire.CodeUnavailable
		if f.Refusal != nil && f.Refusal.Code == wire.CodeNotInitialised {
			e.Code = wire.CodeNotInitialised
		}
		b.WriteString(": not done")
	}
	switch {
	case errors.Is(f.Ended, ErrClosed):
		b.WriteString("; the client was closed")
	case errors.Is(f.Ended, context.Canceled):
		b.WriteString("; the context was cancelled")
	case errors.Is(f.Ended, context.DeadlineExceeded):
		b.WriteString("; the time was up")
	}
	if f.Step != "" {
		b.WriteString(" while " + f.Step + ",")
	}
	switch took := f.Took.Round(time.Millisecond); {
	case f.Attempts > 0:
		fmt.Fprintf(&b, " after %s and %s", plural(f.Attempts, "attempt"), took)
	case took == 0:
		b.WriteString(" before anything was sent")
	default:
		fmt.Fprintf(&b, " after %s, before a node could be asked", took)
	}
	if cause := f.Cause(); cause != "" {
		b.WriteString("; last: " + cause)
	}
	switch {
	case f.Unknown:
		b.WriteString(" (retry under the same request ID, client.RetryOf, or read to see)")
	case errors.Is(f.Ended, ErrClosed):
	default:
		b.WriteString(" (safe to repeat)")
	}
	e.Message = b.String()
	return e
}

func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
