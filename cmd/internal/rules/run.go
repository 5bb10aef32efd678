package rules

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
)

// Run is one seeded run: its dice, its transcript, and the first fault found.
type Run struct {
	*rand.Rand
	out   io.Writer // nil: no transcript
	steps int
	fault error
	met   map[string]int // what happened, and how often
}

// Met counts something that a ring is there to meet.
func (r *Run) Met(what string, n int) {
	if n > 0 {
		r.met[what] += n
	}
}

// newRun makes the run of a seed. The transcript, if one is wanted, says every
// step; without, a step costs nothing to describe.
func newRun(seed uint64, out io.Writer) *Run {
	return &Run{Rand: rand.New(rand.NewPCG(seed, 0x5eed)), out: out, met: map[string]int{}}
}

// Once says yes one time in n.
func (r *Run) Once(n int) bool { return r.IntN(n) == 0 }

// Quiet says that nobody reads the transcript.
func (r *Run) Quiet() bool { return r.out == nil }

// Say writes a line of the transcript.
func (r *Run) Say(format string, args ...any) {
	if r.out != nil {
		fmt.Fprintf(r.out, "%4d  %s\n", r.steps, fmt.Sprintf(format, args...))
	}
}

// Fail reports what must not be. Only the first fault counts: it ends the run.
func (r *Run) Fail(format string, args ...any) {
	if r.fault == nil {
		r.fault = fmt.Errorf(format, args...)
		r.Say("FAULT: %v", r.fault)
	}
}

// Must reports an error that must not be.
func (r *Run) Must(what string, err error) bool {
	if err != nil {
		r.Fail("%s: %w", what, err)
	}
	return err == nil
}

// choice is something that can happen next, and how often.
type choice struct {
	weight int
	do     func()
}

// Play lets steps happen, each drawn by weight, until the run has had n of them
// or a fault.
func (r *Run) Play(n int, choices []choice) {
	total := 0
	for _, c := range choices {
		total += c.weight
	}
	for range n {
		if r.fault != nil {
			return
		}
		r.steps++
		at := r.IntN(total)
		for _, c := range choices {
			if at -= c.weight; at < 0 {
				c.do()
				break
			}
		}
	}
}

// ring is one kind of run.
type ring struct {
	name string
	run  func(r *Run, pool *enginePool)
}

// play runs one seed. A fault is met a second time, for its transcript: a run
// whose second time is another has found a machine that is not deterministic.
func (g ring) play(seed uint64, pool *enginePool) (met map[string]int, err error) {
	r := newRun(seed, nil)
	g.run(r, pool)
	if r.fault == nil {
		return r.met, nil
	}
	var transcript strings.Builder
	again := newRun(seed, &transcript)
	g.run(again, pool)
	again.Say("end")
	if again.fault == nil || again.fault.Error() != r.fault.Error() {
		return r.met, fmt.Errorf("seed %d of %s: %w; and when it was run again: %v", seed, g.name, r.fault, errors.Join(again.fault))
	}
	return r.met, fmt.Errorf("seed %d of %s: %w\n%s", seed, g.name, r.fault, transcript.String())
}
