// Package history records what clients of a database were told, and judges it.
//
// It owns the words of a history (Operation on one document, Transaction on
// many), the Recorder, and the checkers, each an object of its own:
//
//   - Linearizability: every document behaved as one register with versions,
//     conditions and unknown outcomes (porcupine searches);
//   - StrictSerializability: transactions over many documents took effect one
//     after the other, in an order that agrees with time (a search for cycles,
//     which names the anomaly and shows the cycle);
//   - Versions: a version has one body for ever, versions do not go back in
//     real time, and the past is what it is said to be;
//   - Set: nothing acknowledged is missing and nothing refused is there;
//   - Counter: nothing was applied twice.
//
// It knows nothing of networks or clusters: a history can come from the real
// binary, from a simulator or from a text file.
//
// Life of an operation: Recorder.Begin, the call, Pending.End; then
// Recorder.Operations, a checker's Check, a Verdict that names the anomaly and
// has the shortest history that shows it.
//
// Three rules keep the judgement honest. An operation whose outcome is unknown
// stays open for ever, so it may take effect at any later moment or never. An
// operation that was refused is in the history as refused: should its effect
// show up, no order explains it. And a search that did not end is a failure,
// never a pass.
package history
