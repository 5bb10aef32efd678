package main

import (
	"encoding/json"
	"fmt"
	"os"
)

type result struct {
	Label, Workload, Dist, Mode      string
	C                                int
	Ops, Errs, Aborts                int64
	Secs, OpsPerSec                  float64
	P50, P95, P99, Max               float64 // milliseconds
	SrvCPUPerK, CliCPUPerK           float64 // CPU seconds per 1000 ops
	SrvCores                         float64 // servers' CPU seconds per second
	RSSMiB                           []int64
	DiskMiB                          []int64
	WriteKiBPerOp                    float64
	OtherCores                       float64 // CPU that neither servers nor client used (kernel threads, other jobs)
	ReadP50, ReadP99, UpdP50, UpdP99 float64
	Longest                          float64 // milliseconds, failed operations with them
	Accounts                         int     // of transfers
	Conserved                        bool    // the accounts' total after transfers is what it was
	Note                             string
}

// abortRate is the part of all runs of transactions that came to nothing and
// were run again.
func (r result) abortRate() float64 { return float64(r.Aborts) / float64(max(r.Ops+r.Aborts, 1)) }

func emit(r result) {
	ab := ""
	if r.Workload == "T" || r.Workload == "F" {
		ab = fmt.Sprintf(" aborts %.2f%%", 100*r.abortRate())
	}
	if r.Workload == "T" {
		ab += fmt.Sprintf(" of %d accounts, longest %.0f ms,", r.Accounts, r.Longest)
	}
	if r.ReadP50 > 0 {
		ab += fmt.Sprintf(" rd %.2f/%.2f upd %.2f/%.2f", r.ReadP50, r.ReadP99, r.UpdP50, r.UpdP99)
	}
	fmt.Printf("| %s | %s %s %s | %d | %.0f | %.2f | %.2f | %.2f | %.1f | %.3f | %.3f | %.2f | %.2f | %.1f | %v | %v | %d%s %s |\n",
		r.Label, r.Workload, r.Dist, r.Mode, r.C, r.OpsPerSec, r.P50, r.P95, r.P99, r.Max,
		r.SrvCPUPerK, r.CliCPUPerK, r.SrvCores, r.OtherCores, r.WriteKiBPerOp, r.RSSMiB, r.DiskMiB, r.Errs, ab, r.Note)
	if f, err := os.OpenFile(*fOut, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
		b, _ := json.Marshal(r)
		f.Write(append(b, '\n'))
		f.Close()
	}
}
