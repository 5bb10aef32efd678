package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

// Exit codes. Scripts decide by them; docs/cli.md lists them.
const (
	exitOK          = 0
	exitFault       = 1   // a fault of the server or of this machine
	exitUsage       = 2   // the command line or a setting is wrong
	exitRefused     = 3   // the input is wrong: not JSON, not a document, not an update
	exitNotFound    = 4   // no such document, version or collection
	exitConflict    = 5   // it does not fit what is stored
	exitLimit       = 6   // too large, too many, too deep, disk full
	exitUnavailable = 7   // no node or no majority answered; nothing was done
	exitUnknown     = 8   // the write may or may not have happened
	exitIncomplete  = 9   // an import, export or bulk did a part of its work
	exitStart       = 10  // the node could not start
	exitStopped     = 11  // the node stopped because something failed
	exitInterrupted = 130 // Ctrl-C
)

// exitTable is the documentation of the codes, in the help of idb and in
// docs/cli.md.
var exitTable = []struct {
	code int
	text string
}{
	{exitOK, "done"},
	{exitFault, "a fault: of the server, or of reading and writing on this machine; check and verify: they found one"},
	{exitUsage, "usage: unknown command, flag, setting or argument"},
	{exitRefused, "refused: the input is not valid (JSON, document, update, ID, name, cursor)"},
	{exitNotFound, "not found: no such document, version or collection"},
	{exitConflict, "conflict: version, existence or type does not fit what is stored"},
	{exitLimit, "limit: too large, too deep, too many, or the disk is full"},
	{exitUnavailable, "unavailable: nothing was done; the same command may be tried again"},
	{exitUnknown, "unknown: the write may or may not have happened; read before you repeat it"},
	{exitIncomplete, "incomplete: some items were done and some were not"},
	{exitStart, "the node could not start"},
	{exitStopped, "the node stopped because something failed (disk, replica)"},
	{exitInterrupted, "interrupted"},
}

// exitError is an error with its exit code decided where it arose.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// saidError is a failure that was told already; only its code is left.
type saidError struct{ code int }

func (e *saidError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

func usagef(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

func refusedf(format string, args ...any) error {
	return &exitError{exitRefused, fmt.Errorf(format, args...)}
}

func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code, err}
}

// exitCode is what the process answers for err.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if e := (*exitError)(nil); errors.As(err, &e) {
		return e.code
	}
	if e := (*saidError)(nil); errors.As(err, &e) {
		return e.code
	}
	if e := (*client.Error)(nil); errors.As(err, &e) {
		return codeExit(e.Code)
	}
	if e := (*wire.Error)(nil); errors.As(err, &e) {
		return codeExit(e.Code)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, context.DeadlineExceeded):
		return exitUnavailable
	}
	return exitFault
}

// codeExit maps a code of the protocol: the hundreds tell the kind.
func codeExit(c wire.Code) int {
	switch {
	case c == wire.CodeOutcomeExpired:
		return exitUnknown
	case c < 100:
		return exitFault
	case c < 200:
		return exitRefused
	case c < 300:
		return exitNotFound
	case c < 400:
		return exitConflict
	case c < 500:
		return exitLimit
	case c < 600:
		return exitUnavailable
	case c < 700:
		return exitUnknown
	}
	return exitFault
}

// docExit is the exit code of a document that package doc refuses.
func docExit(err error) int {
	if errors.Is(err, doc.ErrTooLarge) || errors.Is(err, doc.ErrTooDeep) {
		return exitLimit
	}
	return exitRefused
}

// oneLine is an error's message on one line of standard error, without advice
// that is for programs.
func oneLine(err error) string {
	s := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	if e := (*client.Error)(nil); errors.As(err, &e) && e.Unknown() {
		s = strings.Replace(s, "retry under the same request ID, client.RetryOf, or read to see", "read the document to see", 1)
	}
	return s
}
