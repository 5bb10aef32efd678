package wire

import (
	"context"
	"errors"
	"fmt"
	"strconv"
)

// Refuse makes an Error. The text says what was wrong, where, and what to do:
// "users/u17: version is 9, the write expected 8 (re-read and retry)".
func Refuse(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// CodeOf is the outcome that an error of Conn tells: its own code if the
// server answered; OutcomeUnknown if the request may have arrived and has no
// answer; Unavailable if it never left, Timeout if that was for lack of time.
func CodeOf(err error) Code {
	if err == nil {
		return CodeOK
	}
	var lost *ConnError
	if errors.As(err, &lost) {
		switch {
		case lost.Sent:
			return CodeOutcomeUnknown
		case errors.Is(lost.Err, context.DeadlineExceeded), errors.Is(lost.Err, context.Canceled):
			return CodeTimeout
		}
		return CodeUnavailable
	}
	var refusal *Error
	if errors.As(err, &refusal) {
		return refusal.Code
	}
	return CodeInternal
}

var codeNames = map[Code]string{
	CodeOK:                 "ok",
	CodeBadRequest:         "bad_request",
	CodeBadVersion:         "bad_version",
	CodeBadDocument:        "bad_document",
	CodeBadUpdate:          "bad_update",
	CodeBadID:              "bad_id",
	CodeBadCollection:      "bad_collection",
	CodeBadCursor:          "bad_cursor",
	CodeBadClusterRequest:  "bad_cluster_request",
	CodeUnsupported:        "unsupported",
	CodeFutureTime:         "future_time",
	CodeNotFound:           "not_found",
	CodeCollectionNotFound: "collection_not_found",
	CodeVersionNotFound:    "version_not_found",
	CodeHistoryExpired:     "history_expired",
	CodeVersionConflict:    "version_conflict",
	CodeAlreadyExists:      "already_exists",
	CodeUpdateFailed:       "update_failed",
	CodeCollectionExists:   "collection_exists",
	CodeClusterExists:      "cluster_exists",
	CodeNotAttempted:       "not_attempted",
	CodeTxnConflict:        "txn_conflict",
	CodeTxnAborted:         "txn_aborted",
	CodeDuplicateValue:     "duplicate_value",
	CodeDocumentTooLarge:   "document_too_large",
	CodeTooDeep:            "too_deep",
	CodeFrameTooLarge:      "frame_too_large",
	CodeTooManyItems:       "too_many_items",
	CodeTooManyRequests:    "too_many_requests",
	CodeDiskFull:           "disk_full",
	CodeTooManyConns:       "too_many_conns",
	CodeNotLeader:          "not_leader",
	CodeStaleEpoch:         "stale_epoch",
	CodeUnavailable:        "unavailable",
	CodeOverloaded:         "overloaded",
	CodeTimeout:            "timeout",
	CodeNotInitialised:     "not_initialised",
	CodeWrongCluster:       "wrong_cluster",
	CodeShuttingDown:       "shutting_down",
	CodeLocked:             "locked",
	CodeOutcomeUnknown:     "outcome_unknown",
	CodeOutcomeExpired:     "outcome_expired",
	CodeInternal:           "internal",
}

// String is the code's name, as in metrics and in -o json, or its number.
func (c Code) String() string {
	if name, ok := codeNames[c]; ok {
		return name
	}
	return strconv.Itoa(int(c))
}
