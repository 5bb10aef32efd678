package route

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/impossibledb/idb/client/wire"
)

// verdict is what to do about a refusal.
type verdict uint8

const (
	again   verdict = iota // nothing was done: ask again
	doubt                  // it may have happened: ask again under the same ID
	final                  // believe it
	unknown                // give up; what happened is not known
)

// Decisive refusals answer for the request as a whole: the log decided them,
// under the request ID, or every attempt would have met them. Any other refusal
// says nothing about an earlier attempt whose answer was lost.
func Decisive(code wire.Code) bool {
	switch code {
	case wire.CodeBadRequest, wire.CodeBadDocument, wire.CodeBadUpdate, wire.CodeBadID,
		wire.CodeBadCollection, wire.CodeBadCursor, wire.CodeUnsupported, wire.CodeFutureTime,
		wire.CodeNotFound, wire.CodeVersionNotFound, wire.CodeHistoryExpired,
		wire.CodeVersionConflict, wire.CodeAlreadyExists, wire.CodeUpdateFailed,
		wire.CodeCollectionExists, wire.CodeNotAttempted, wire.CodeTxnConflict, wire.CodeTxnAborted, wire.CodeDuplicateValue,
		wire.CodeDocumentTooLarge, wire.CodeTooDeep, wire.CodeTooManyItems:
		return true
	}
	return false
}

// judge says what a refusal means for a request; lost: an earlier attempt may
// have been received and its answer was lost.
func judge(code wire.Code, mutates, lost bool) verdict {
	switch {
	case code == wire.CodeOutcomeUnknown:
		return doubt
	case code.Retryable(), code == wire.CodeTooManyRequests, code == wire.CodeTooManyConns:
		return again
	case code == wire.CodeInternal:
		if mutates {
			return doubt
		}
		return again
	case !mutates || !lost || Decisive(code):
		return final
	case code == wire.CodeDiskFull:
		// Whether the lost attempt was written before the disk was full can
		// still be learned.
		return again
	}
	return unknown
}

// Pending says that an item of a request is still to be decided after this
// refusal: the request will be sent again with it. It is how a bulk judges its
// items; doubtful means that the item may have happened.
func Pending(e *wire.Error, lost bool) (pending, doubtful bool) {
	switch judge(e.Code, true, lost) {
	case again:
		return true, lost
	case doubt:
		return true, true
	case unknown:
		return false, true
	}
	return false, false
}

// internalTries is how often a request is sent to servers that answer with a
// fault of their own before the fault is handed to the caller.
const internalTries = 3

// Failure is why a request has no answer.
type Failure struct {
	// Refusal is the last refusal; nil if no server ever answered.
	Refusal *wire.Error
	// Err is the last failure to reach a server, if that came after the refusal.
	Err error
	// Ended is the context's error or ErrClosed, if that ended the request.
	Ended error
	// Unknown: the request may have taken effect, or may yet.
	Unknown bool
	// Attempts counts the frames that were sent.
	Attempts int
	// Node was asked last; empty: none could be.
	Node string
	// Took is the time from the first attempt to the end.
	Took time.Duration
	// Step is what was done for the caller's request at the time, if it was not
	// the request itself: "its collection was looked up".
	Step string
}

// Final says that a server decided the request: Refusal is the answer.
func (f *Failure) Final() bool { return f.Refusal != nil && f.Ended == nil && !f.Unknown }

// Cause says what went wrong last, for people.
func (f *Failure) Cause() string {
	var parts []string
	if f.Refusal != nil {
		parts = append(parts, f.Refusal.Message)
	}
	if f.Err != nil {
		where := f.Node
		if where != "" {
			where += ": "
		}
		parts = append(parts, where+f.Err.Error())
	}
	return strings.Join(parts, "; ")
}

func (f *Failure) Error() string {
	switch {
	case f.Final():
		return f.Refusal.Message
	case f.Unknown:
		return fmt.Sprintf("outcome unknown after %d attempts in %s: %s", f.Attempts, f.Took.Round(time.Millisecond), f.Cause())
	}
	return fmt.Sprintf("not done after %d attempts in %s: %s", f.Attempts, f.Took.Round(time.Millisecond), f.Cause())
}

// Unwrap gives the context's error and the last causes.
func (f *Failure) Unwrap() []error {
	var errs []error
	for _, e := range []error{f.Ended, f.Err} {
		if e != nil {
			errs = append(errs, e)
		}
	}
	if f.Refusal != nil {
		errs = append(errs, f.Refusal)
	}
	return errs
}

// badAnswer is an answer that cannot be read. It hides the decoder's refusal,
// which is about the answer, not about the request.
type badAnswer struct{ err error }

func (e *badAnswer) Error() string { return "unreadable answer: " + e.err.Error() }

// BadAnswer marks an error of Exchange.Read as a fault of the answer.
func BadAnswer(err error) error {
	if err == nil {
		return nil
	}
	return &badAnswer{err}
}

// maybeSent says that a failed call may have reached the server.
func maybeSent(err error) bool {
	var lost *wire.ConnError
	if errors.As(err, &lost) {
		return lost.Sent
	}
	return !errors.Is(err, errDown)
}
