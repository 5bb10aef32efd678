// Package report turns what a run found into files that a person and a program
// can read: a JSON verdict, and one HTML page without anything outside itself.
//
// It owns the drawing: rates and latencies over time, faults as bands behind
// them, every client's lane, and each anomaly by itself, with the operations
// around it. A run of a hundred thousand operations is aggregated; only what is
// anomalous is drawn one by one. It judges nothing.
//
// Life of a report: fill a Report from the verdicts and timelines of a run,
// then WriteJSON and WriteHTML.
package report
