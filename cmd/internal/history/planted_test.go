package history

import (
	"fmt"
	"math/rand"
	"testing"
	"time"
)

// store is a database with a bug of choice, run step by step under a seed. A
// request is sent, takes effect at some moment before its answer arrives, and
// may lose its answer, in which case the client's library sends it again.
type store struct {
	rng  *rand.Rand
	bug  string
	docs map[string][]document // every state of each document, newest last
	late []func()              // effects that come after the answer
}

func (s *store) now(key string) document {
	if h := s.docs[key]; len(h) > 0 {
		return h[len(h)-1]
	}
	return document{}
}

// apply is where the bugs live; "" is a database without one.
func (s *store) apply(in Input) Output {
	d := s.now(in.Key)
	rare := s.rng.Intn(8) == 0
	if in.Verb == Get && s.bug == "stale read" && rare {
		// A deposed leader answers from the state it had.
		if h := s.docs[in.Key]; len(h) > 1 {
			d = h[len(h)-2]
		}
	}
	if s.bug == "lost compare-and-swap" && rare && d.present {
		in.IfVersion = 0 // the check and the write are not one step
	}
	if refusal := d.refusal(in); refusal != Done {
		out := Output{Outcome: refusal}
		if d.present {
			out.Version = d.version
		}
		return out
	}
	next := d.after(in)
	out := Output{Outcome: Done, Version: next.version}
	if in.Verb != Delete {
		out.Document, out.Value, out.Count = true, next.value, next.count
	}
	if in.Verb == Get {
		return out
	}
	switch {
	case s.bug == "lost write" && rare:
		return out // acknowledged from memory, and the memory is gone
	case s.bug == "late write" && rare:
		s.late = append(s.late, func() { s.docs[in.Key] = append(s.docs[in.Key], s.now(in.Key).after(in)) })
		return out
	}
	s.docs[in.Key] = append(s.docs[in.Key], next)
	if s.bug == "double apply" && rare {
		s.docs[in.Key] = append(s.docs[in.Key], next.after(in)) // the retry had no memory of the first
	}
	if s.bug == "unknown told as refused" && rare {
		return Output{Outcome: Refused}
	}
	return out
}

// run records what a few clients saw of the store.
func run(seed int64, bug string) []Operation {
	rng := rand.New(rand.NewSource(seed))
	s := &store{rng: rng, bug: bug, docs: map[string][]document{}}
	type client struct {
		op      Operation
		effect  time.Duration // when the request takes effect
		applied bool
		seen    uint64 // the version it saw last
	}
	clients := make([]*client, 4)
	var ops []Operation
	values := 0
	ask := func(c *client, id int, at time.Duration) {
		values++
		in := Input{Key: fmt.Sprint("k", rng.Intn(2)), Verb: Verb(rng.Intn(int(Delete) + 1))}
		if in.Verb != Get && in.Verb != Delete {
			in.Value = fmt.Sprint("x", values)
		}
		if in.Verb == Add || in.Verb == AddOrCreate {
			in.Add = 1
		}
		if in.Verb != Get && in.Verb != Insert && rng.Intn(2) == 0 {
			in.IfVersion = c.seen
		}
		call := at + time.Duration(rng.Intn(20))
		*c = client{seen: c.seen, op: Operation{Client: id, Input: in, Call: call, Return: call + time.Duration(1+rng.Intn(60))}}
		c.effect = call + time.Duration(rng.Intn(int(c.op.Return-call)))
	}
	for i := range clients {
		clients[i] = &client{}
		ask(clients[i], i, 0)
	}
	for at := time.Duration(0); at < 2500; at++ {
		if len(s.late) > 0 && rng.Intn(30) == 0 {
			s.late[0]()
			s.late = s.late[1:]
		}
		for i, c := range clients {
			if !c.applied && at >= c.effect {
				c.op.Output, c.applied = s.apply(c.op.Input), true
				if v := c.op.Output.Version; v != 0 {
					c.seen = v
				}
			}
			if at >= c.op.Return {
				if rng.Intn(40) == 0 && c.op.Output.Outcome != Refused {
					c.op.Output = Output{Outcome: Unknown} // the answer got lost
				}
				ops = append(ops, c.op)
				ask(c, i, at)
			}
		}
	}
	for _, c := range clients { // still waiting for an answer at the end
		c.op.Output = Output{Outcome: Unknown}
		ops = append(ops, c.op)
	}
	for i := range ops { // steps are printed as microseconds
		ops[i].Call *= time.Microsecond
		ops[i].Return *= time.Microsecond
	}
	return ops
}

// TestPlantedBugs: a healthy store passes with every seed, and each bug is
// caught with nearly every one.
func TestPlantedBugs(t *testing.T) {
	const seeds = 40
	for _, c := range []struct {
		bug   string
		least int // seeds that must catch it
	}{
		{"", 0},
		{"stale read", 36},
		{"lost write", 36},
		{"double apply", 36},
		{"late write", 36},
		{"lost compare-and-swap", 20},
		{"unknown told as refused", 36},
	} {
		t.Run("bug "+c.bug, func(t *testing.T) {
			caught := 0
			for seed := range int64(seeds) {
				err := Linearizability{Shrinking: -1}.Check(run(seed, c.bug)).Err()
				if err != nil {
					caught++
				}
				if c.bug == "" && err != nil {
					t.Fatalf("seed %d: a healthy store was condemned: %v", seed, err)
				}
			}
			if caught < c.least {
				t.Errorf("caught with %d of %d seeds, want at least %d", caught, seeds, c.least)
			}
			t.Logf("caught with %d of %d seeds", caught, seeds)
		})
	}
}
