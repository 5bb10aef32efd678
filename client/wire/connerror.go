package wire

import (
	"errors"
	"fmt"
)

// ConnError says that a request got no answer. If Sent is false it never left
// this process and nothing was done; if it is true the server may have done
// it, and only a retry under the same request ID tells.
type ConnError struct {
	Sent bool
	Err  error // why: the context's error, or what became of the connection
}

// Error says why there is no answer.
func (e *ConnError) Error() string {
	if e.Sent {
		return fmt.Sprintf("no answer, the request may have arrived: %v", e.Err)
	}
	return fmt.Sprintf("the request was not sent: %v", e.Err)
}

// Unwrap is why there is no answer. It is never an *Error: what the server
// holds against the connection says nothing about this request.
func (e *ConnError) Unwrap() error { return e.Err }

// Refusal is what the server held against the connection as a whole when it
// closed it (too many connections, a broken frame); nil if it said nothing.
func (e *ConnError) Refusal() *Error {
	if refused, ok := e.Err.(*connRefused); ok {
		return refused.refusal
	}
	return nil
}

// connRefused is the server's refusal of the connection. It hides the *Error
// from errors.As on purpose; see ConnError.Unwrap.
type connRefused struct{ refusal *Error }

func (e *connRefused) Error() string { return "the server closed the connection: " + e.refusal.Message }

// ErrConnClosed: the connection was closed by Close.
var ErrConnClosed = errors.New("wire: connection closed")

// ErrPeerSilent: the server owed an answer and said nothing for too long.
var ErrPeerSilent = errors.New("wire: no sign of life from the server")

// errStreamed is a stream of answers where one was asked for.
var errStreamed = errors.New("wire: the answer is a stream; use Stream")
