package history

import (
	"fmt"
	"math/rand"
	"slices"
	"testing"
	"time"
)

// ledger is a database of lists and of numbered documents under transactions,
// with a bug of choice, run step by step under a seed. Transactions buffer their
// writes, and commit only if nothing that they read has changed.
type ledger struct {
	rng   *rand.Rand
	bug   string
	lists map[string][][]string // every state of each list, newest last
	regs  map[string][]document // and of each document
}

func (l *ledger) list(key string, ago int) []string {
	h := l.lists[key]
	if n := len(h) - 1 - ago; n >= 0 {
		return h[n]
	}
	return nil
}

func (l *ledger) reg(key string) document {
	if h := l.regs[key]; len(h) > 0 {
		return h[len(h)-1]
	}
	return document{}
}

// running is a transaction on its way.
type running struct {
	t        Transaction
	todo     []Input
	snapshot map[string]int // of lists: states there were at the beginning
	read     map[string]int // lists and documents read: states there were
	wait     time.Duration  // until the next step
	lose     bool           // nobody hears the answer
}

func (l *ledger) states(key string) int { return len(l.lists[key]) + len(l.regs[key]) }

// step does the next thing of a transaction; true: it has ended.
func (l *ledger) step(r *running) bool {
	rare := l.rng.Intn(12) == 0
	if len(r.todo) == 0 {
		return l.commit(r)
	}
	in := r.todo[0]
	r.todo = r.todo[1:]
	out := Output{Outcome: Done}
	if in.Verb != Get {
		if l.bug == "dirty write seen" && in.Verb == Append && rare {
			l.lists[in.Key] = append(l.lists[in.Key], append(slices.Clone(l.list(in.Key, 0)), in.Value))
		}
		r.t.Parts = append(r.t.Parts, Part{in, out})
		return false
	}
	if _, again := r.read[in.Key]; !again {
		r.read[in.Key] = l.states(in.Key)
	}
	if in.Key[0] == 'r' {
		d := l.reg(in.Key)
		if !d.present {
			out.Outcome = Missing
		} else {
			out.Document, out.Version, out.Value, out.Count = true, d.version, d.value, d.count
		}
	} else {
		ago := 0
		switch {
		case l.bug == "stale read" && rare:
			ago = 1
			r.read[in.Key] = l.states(in.Key) // and it is not even validated
		case l.bug == "snapshot isolation":
			ago = len(l.lists[in.Key]) - r.snapshot[in.Key]
			r.read[in.Key] = r.snapshot[in.Key]
		}
		out.List = slices.Clone(l.list(in.Key, ago))
		out.Document = true
		if out.List == nil {
			out = Output{Outcome: Missing}
		}
	}
	r.t.Parts = append(r.t.Parts, Part{in, out})
	return false
}

func (l *ledger) commit(r *running) bool {
	wrote := map[string]bool{}
	for _, p := range r.t.Parts {
		if p.Input.Writes() {
			wrote[p.Input.Key] = true
		}
	}
	for key, n := range r.read {
		if l.states(key) == n {
			continue
		}
		switch {
		case l.bug == "no validation":
		case l.bug == "snapshot isolation" && !wrote[key]:
		case l.bug == "read-only are not validated" && len(wrote) == 0:
		default:
			r.t.Outcome = Refused
			if l.bug == "refused but done" && l.rng.Intn(3) == 0 {
				break
			}
			return true
		}
	}
	for i := range r.t.Parts {
		p := &r.t.Parts[i]
		key := p.Input.Key
		if l.bug == "half a transaction" && i > 0 && l.rng.Intn(20) == 0 {
			continue
		}
		switch p.Input.Verb {
		case Append:
			if l.bug == "dirty write seen" && slices.Contains(l.list(key, 0), p.Input.Value) {
				continue
			}
			times := 1
			if l.bug == "applied twice" && l.rng.Intn(20) == 0 {
				times = 2
			}
			for range times {
				l.lists[key] = append(l.lists[key], append(slices.Clone(l.list(key, 0)), p.Input.Value))
			}
		case Put:
			d := l.reg(key).after(p.Input)
			l.regs[key] = append(l.regs[key], d)
			p.Output.Version = d.version
		}
	}
	return true
}

func runLedger(seed int64, bug string) []Transaction {
	rng := rand.New(rand.NewSource(seed))
	l := &ledger{rng: rng, bug: bug, lists: map[string][][]string{}, regs: map[string][]document{}}
	values := 0
	begin := func(client int, at time.Duration) *running {
		r := &running{snapshot: map[string]int{}, read: map[string]int{}, lose: rng.Intn(25) == 0}
		r.t = Transaction{Client: client, Call: at}
		for range 1 + rng.Intn(4) {
			values++
			in := Input{Key: fmt.Sprint("l", rng.Intn(4)), Verb: Get}
			if rng.Intn(3) == 0 {
				in.Key = fmt.Sprint("r", rng.Intn(3))
			}
			if rng.Intn(2) == 0 {
				in.Verb, in.Value = Append, fmt.Sprint(values)
				if in.Key[0] == 'r' {
					in.Verb = Put
				}
			}
			// One write of a document per transaction, and no read behind it.
			if slices.ContainsFunc(r.todo, func(o Input) bool { return o.Key == in.Key && o.Writes() }) {
				continue
			}
			r.todo = append(r.todo, in)
		}
		for k := range l.lists {
			r.snapshot[k] = len(l.lists[k])
		}
		return r
	}
	clients := make([]*running, 5)
	for i := range clients {
		clients[i] = begin(i, 0)
	}
	var all []Transaction
	for at := time.Duration(1); at < 1800; at++ {
		for i, r := range clients {
			if r.wait > 0 {
				r.wait--
				continue
			}
			r.wait = time.Duration(rng.Intn(5))
			if !l.step(r) {
				continue
			}
			r.t.Return = at
			if r.lose && r.t.Outcome == Done {
				r.t.Outcome = Unknown
				for j := range r.t.Parts {
					r.t.Parts[j].Output = Output{Outcome: Unknown}
				}
			}
			all = append(all, r.t)
			clients[i] = begin(i, at+time.Duration(1+rng.Intn(3)))
			clients[i].wait += clients[i].t.Call - at
		}
	}
	// Everything is read at rest.
	last := Transaction{Client: 99, Call: 4000, Return: 4001}
	for k := range 4 {
		key := fmt.Sprint("l", k)
		last.Parts = append(last.Parts, Part{Input{Key: key}, Output{Outcome: Done, Document: true, List: slices.Clone(l.list(key, 0))}})
	}
	all = append(all, last)
	for i := range all {
		all[i].Call *= time.Microsecond
		all[i].Return *= time.Microsecond
	}
	return all
}

// TestPlantedTransactions: a healthy ledger passes with every seed, and each
// bug is caught and called by its name.
func TestPlantedTransactions(t *testing.T) {
	const seeds = 40
	for _, c := range []struct {
		bug   string
		least int      // seeds that must catch it
		names []string // each must be among what is found, over all seeds
	}{
		{"", 0, nil},
		{"no validation", 40, []string{"lost update", "G2", "G-single"}},
		{"snapshot isolation", 36, []string{"G2"}},
		{"read-only are not validated", 36, []string{"G-single"}},
		{"stale read", 36, []string{"stale read"}},
		{"refused but done", 36, []string{"G1a"}},
		{"dirty write seen", 36, []string{"G1a"}},
		{"half a transaction", 36, []string{"lost write"}},
		{"applied twice", 36, []string{"duplicate"}},
	} {
		t.Run("bug "+c.bug, func(t *testing.T) {
			caught, names := 0, map[string]int{}
			for seed := range int64(seeds) {
				v := StrictSerializability{Search: 100_000}.Check(runLedger(seed, c.bug))
				if c.bug == "" && v.Err() != nil {
					t.Fatalf("seed %d: a healthy ledger was condemned: %v", seed, v.Err())
				}
				if len(v.Anomalies) > 0 {
					caught++
				}
				for _, a := range v.Anomalies {
					names[a.Name]++
					checkCycle(t, a)
				}
			}
			if caught < c.least {
				t.Errorf("caught with %d of %d seeds, want at least %d", caught, seeds, c.least)
			}
			for _, n := range c.names {
				if names[n] == 0 {
					t.Errorf("never called %q, but %v", n, names)
				}
			}
			t.Logf("caught with %d of %d seeds: %v", caught, seeds, names)
		})
	}
}
