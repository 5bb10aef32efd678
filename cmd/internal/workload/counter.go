package workload

import (
	"context"
	"errors"
	"fmt"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// counters are documents that clients only increment. They keep the request
// IDs: an increment without an answer is asked for again under the same one,
// and so are some that were answered, by another connection, which must get
// the first answer.
type counters struct {
	*scratch
	counters []*history.Counter
	read     []history.Output // at rest; nil: not read
}

func newCounter(o Options) Workload {
	w := &counters{scratch: newScratch("counter", o, "")}
	for range max(1, o.Documents/2) {
		w.counters = append(w.counters, history.NewCounter())
	}
	return w
}

func counterKey(i int) string { return fmt.Sprint("counter-", i) }

func (w *counters) Client(s Session) Step {
	return func(ctx context.Context) history.Outcome {
		i := s.Rng.IntN(len(w.counters))
		in := history.Input{Key: counterKey(i), Verb: history.AddOrCreate, Add: 1, Value: "counted"}
		id := s.DB.NewRequestID()
		p := w.recorder.Begin(s.Number, in)
		out := w.do(ctx, s.DB.Collection(w.full("")), in, client.WithRequestID(id))
		if out.Outcome == history.Unknown || out.Outcome == history.Done && s.Rng.IntN(4) == 0 {
			again, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Again)
			defer cancel()
			second := w.do(again, s.other().Collection(w.full("")), in, client.Repeat(id))
			switch {
			case out.Outcome == history.Unknown:
				// That the repeat was not done says nothing about the first.
				if second.Outcome != history.Refused {
					out = second
				}
			case second.Outcome == history.Done && !sameAnswer(out, second):
				w.report("one increment, two answers: %+v, then %+v", out, second)
			case second.Outcome != history.Done && second.Outcome != history.Unknown && second.Outcome != history.Refused:
				w.report("an increment that was done was refused when asked again: %+v", second)
			}
		}
		p.End(out)
		w.counters[i].Incremented(out.Outcome, out.Count)
		return asked(out.Outcome)
	}
}

func sameAnswer(a, b history.Output) bool {
	return a.Outcome == b.Outcome && a.Version == b.Version && a.Time == b.Time && a.Value == b.Value && a.Count == b.Count
}

func (w *counters) Final(ctx context.Context, db *client.DB) error {
	c := db.Collection(w.full(""))
	var read []history.Output
	for i := range w.counters {
		in := history.Input{Key: counterKey(i), Verb: history.Get}
		p := w.recorder.Begin(finalReader, in)
		out := w.do(ctx, c, in)
		p.End(out)
		if out.Outcome != history.Done && out.Outcome != history.Missing {
			return errors.New("workload counter: the last read of " + in.Key + ": " + out.Reason)
		}
		read = append(read, out)
	}
	w.read = read
	return nil
}

func (w *counters) Judge() []history.Verdict {
	ops := w.recorder.Operations()
	checks := []history.Verdict{w.answers(), history.Versions{}.Check(ops, nil)}
	sum := history.Verdict{Checker: "exactly once"}
	acknowledged := 0
	for i, out := range w.read {
		v := w.counters[i].Judge(out.Count, out.Version)
		for _, a := range v.Anomalies {
			a.Text = counterKey(i) + ": " + a.Text
			sum.Anomalies = append(sum.Anomalies, a)
		}
		acknowledged += w.counters[i].Acknowledged()
	}
	sum.Judged = fmt.Sprintf("%d increments of %d counters were acknowledged", acknowledged, len(w.counters))
	return append(checks, sum)
}
