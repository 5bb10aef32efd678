package workload

import (
	"context"
	"fmt"
	"sync"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// past changes shared documents and reads what they were: at versions, at
// times, and restores old versions. Any client reads versions that any client
// has made.
type past struct {
	*scratch
	slots  *slots
	stored map[string][]history.Stored

	mu    sync.Mutex
	known []knownVersion // guarded by mu; the latest of what clients were told
	next  int            // guarded by mu; where the next goes
}

// knownVersion is a version that a client was told of.
type knownVersion struct {
	key           string
	version, time uint64
	deleted       bool
	value         string
}

// remembered is how many versions clients choose from.
const remembered = 200

func newPast(o Options) Workload {
	return &past{scratch: newScratch("history", o, ""), slots: newSlots(o)}
}

func (w *past) remember(in history.Input, out history.Output) {
	if out.Outcome != history.Done || out.Version == 0 || in.Past() {
		return
	}
	k := knownVersion{key: in.Key, version: out.Version, time: out.Time, deleted: in.Verb == history.Delete, value: in.Value}
	if out.Document {
		k.value = out.Value
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.known) < remembered {
		w.known = append(w.known, k)
		return
	}
	w.known[w.next] = k
	w.next = (w.next + 1) % remembered
}

func (w *past) recall(s Session) (knownVersion, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.known) == 0 {
		return knownVersion{}, false
	}
	return w.known[s.Rng.IntN(len(w.known))], true
}

func (w *past) Client(s Session) Step {
	c := s.DB.Collection(w.full(""))
	writes := 0
	return func(ctx context.Context) history.Outcome {
		in := history.Input{}
		k, any := w.recall(s)
		switch n := s.Rng.IntN(100); {
		case any && n < 25:
			in.Key, in.AtVersion = k.key, k.version
		case any && n < 50:
			in.Key, in.AtTime = k.key, k.time
			switch s.Rng.IntN(4) {
			case 0: // just before
				in.AtTime--
			case 1: // between this version and the next, perhaps
				in.AtTime += s.Rng.Uint64N(1 << 17)
			}
		case any && n < 60 && !k.deleted:
			in.Key, in.Verb, in.AtVersion, in.Value = k.key, history.Restore, k.version, k.value
		case n < 70:
			in.Key = w.slots.key(s.Rng.IntN(len(w.slots.uses)))
		default:
			in.Key = w.slots.key(s.Rng.IntN(len(w.slots.uses)))
			writes++
			in.Verb, in.Value = history.Put, fmt.Sprintf("c%d-%d", s.Number, writes)
			switch s.Rng.IntN(6) {
			case 0:
				in.Verb, in.Value = history.Delete, ""
			case 1:
				in.Verb = history.Insert
			}
		}
		p := w.recorder.Begin(s.Number, in)
		out := w.do(ctx, c, in)
		p.End(out)
		w.remember(in, out)
		return asked(out.Outcome)
	}
}

func (w *past) Final(ctx context.Context, db *client.DB) (err error) {
	c := db.Collection(w.full(""))
	keys := w.slots.used()
	if err := w.lastReads(ctx, c, keys); err != nil {
		return err
	}
	stored, err := w.scratch.stored(ctx, c, keys)
	if err != nil {
		return err
	}
	// A sample of every version is read once more: at its version and time.
	for _, key := range keys {
		step := max(1, len(stored[key])/20)
		for i := 0; i < len(stored[key]); i += step {
			v := stored[key][i]
			for _, in := range []history.Input{{Key: key, AtVersion: v.Version}, {Key: key, AtTime: v.Time}} {
				p := w.recorder.Begin(finalReader, in)
				out := w.do(ctx, c, in)
				p.End(out)
				if out.Outcome != history.Done && out.Outcome != history.Missing {
					return fmt.Errorf("workload history: %s: %s", key, out.Reason)
				}
			}
		}
	}
	w.stored = stored
	return nil
}

func (w *past) Judge() []history.Verdict {
	ops := w.recorder.Operations()
	return []history.Verdict{
		w.answers(),
		history.Linearizability{Timeout: w.o.Timeout}.Check(ops),
		history.Versions{Stored: w.stored, Complete: true}.Check(ops, nil),
	}
}
