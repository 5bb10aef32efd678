// Package history records what clients of a database were told, and judges it.
//
// It owns three judgements: Judge (every document behaved as one linearizable
// register with versions, porcupine decides), Set (nothing acknowledged is
// missing and nothing refused is there) and Counter (nothing was applied
// twice). It knows nothing of networks or clusters: a history can come from
// the real binary, from a simulator or from a text file.
//
// Life of an operation: Recorder.Begin, the call, Pending.End; then
// Recorder.Operations, Judge.
//
// Three rules keep the judgement honest. An operation whose outcome is unknown
// stays open for ever, so it may take effect at any later moment or never. An
// operation that was refused is in the history as refused: should its effect
// show up, no order explains it. And a search that did not end is a failure,
// never a pass.
package history
