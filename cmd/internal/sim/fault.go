package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/impossibledb/idb/client"
)

// Event is one line of a schedule: what happens to whom, and when.
//
//	2s     kill leader
//	2.5s   cut n1 | n2 n3
//	3s     link n1 > n2, latency 200ms, loss 5%
//	4s     power off all, keep 30%
//	5s     heal
type Event struct {
	At   time.Duration // since the load began
	Verb string
	// Who are machines, as words (target); Whom are those on the other side of
	// a bar (both ways) or an arrow (one way).
	Who, Whom []string
	OneWay    bool
	// Set are the words behind the commas.
	Set map[string]string
}

// verb is one kind of event.
type verb struct {
	sides int      // how many sides it needs: 0, 1 or 2
	set   []string // settings that it knows
	about string
	do    func(x *stage, e *Event, who, whom []*Node) error
}

// verbs are all that can happen. The table is the language's documentation.
var verbs = map[string]verb{
	"kill":      {1, nil, "kill -9", each(func(x *stage, n *Node) { n.Kill() })},
	"stop":      {1, nil, "an orderly shutdown", each(func(x *stage, n *Node) { n.Stop() })},
	"start":     {1, nil, "boot, start the process", each(func(x *stage, n *Node) { n.Start() })},
	"power off": {1, []string{"keep"}, "lose power; of what was not synced the share keep is left", powerOff},
	"pause":     {1, nil, "SIGSTOP", each(func(x *stage, n *Node) { n.Pause() })},
	"resume":    {1, nil, "SIGCONT", each(func(x *stage, n *Node) { n.Resume() })},

	"cut":    {2, nil, "nothing passes between the sides (|) or from one to the other (>)", cut},
	"mend":   {2, nil, "traffic passes as it always did", mend},
	"bridge": {1, nil, "the others are two halves that see this machine and not each other", bridge},
	"link":   {2, []string{"latency", "jitter", "loss", "rate"}, "traffic is slow, lossy, or narrow (bytes a second)", slowLink},
	"reset":  {2, nil, "connections break", reset},

	"hang disk":   {1, nil, "syncs do not return", each(func(x *stage, n *Node) { n.Drive.Hang() })},
	"slow disk":   {1, []string{"sync"}, "a sync takes that long", slowDisk},
	"fail disk":   {1, nil, "writes and syncs fail (EIO)", each(func(x *stage, n *Node) { n.Drive.Fail(syscall.EIO) })},
	"fill disk":   {1, []string{"free"}, "that many bytes are free", fillDisk},
	"lie disk":    {1, nil, "syncs answer and do nothing: nothing survives this, it is for tests of the simulator", each(func(x *stage, n *Node) { n.Drive.Lie() })},
	"repair disk": {1, nil, "the disk works and has room", each(func(x *stage, n *Node) { n.Drive.Repair() })},

	"jump clock":  {1, []string{"by"}, "the wall clock jumps", jumpClock},
	"drift clock": {1, []string{"gains"}, "the wall clock gains that much a second, or loses it (-)", driftClock},
	"set clock":   {1, nil, "the wall clock is right", each(func(x *stage, n *Node) { n.SetClock() })},

	"gather leaders": {0, nil, "an operator wants the leaders of all groups together", place(client.LeadersTogether)},
	"spread leaders": {0, nil, "an operator wants every machine to have a share of them", place(client.LeadersSpread)},

	"heal network": {0, nil, "every link is as it was", func(x *stage, _ *Event, _, _ []*Node) error { x.c.Net.Heal(); return nil }},
	"heal":         {0, nil, "everything works and runs", func(x *stage, _ *Event, _, _ []*Node) error { x.c.Heal(); return nil }},
}

// stage is where a schedule is played.
type stage struct {
	c   *Cluster
	db  *client.DB // the operator's; events go on while it waits for an answer
	rng *rand.Rand
	it  []*Node // whom the last event that named somebody was about

	bg sync.WaitGroup // requests of the operator
}

func each(f func(*stage, *Node)) func(*stage, *Event, []*Node, []*Node) error {
	return func(x *stage, _ *Event, who, _ []*Node) error {
		for _, n := range who {
			f(x, n)
		}
		return nil
	}
}

// place asks for leaders to be somewhere. What becomes of it is noted: while
// machines are away it may be refused, or not be known.
func place(l client.Leaders) func(*stage, *Event, []*Node, []*Node) error {
	return func(x *stage, _ *Event, _, _ []*Node) error {
		x.bg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if _, err := x.db.SetLeaders(ctx, l); err != nil {
				x.c.note("leaders %s: %v", l, err)
				return
			}
			x.c.note("leaders %s: decided", l)
		})
		return nil
	}
}

func powerOff(_ *stage, e *Event, who, _ []*Node) error {
	keep, err := e.share("keep", 0)
	for _, n := range who {
		n.PowerOff(keep)
	}
	return err
}

// pairs calls f for every pair of the two sides, in both directions unless the
// event is one-way.
func (x *stage) pairs(e *Event, who, whom []*Node, f func(from, to string)) {
	for _, a := range who {
		for _, b := range whom {
			if a == b {
				continue
			}
			f(a.ID, b.ID)
			if !e.OneWay {
				f(b.ID, a.ID)
			}
		}
	}
}

func cut(x *stage, e *Event, who, whom []*Node) error {
	x.pairs(e, who, whom, func(from, to string) { x.c.Net.Change(from, to, func(l *Link) { l.Cut = true }) })
	return nil
}

func mend(x *stage, e *Event, who, whom []*Node) error {
	x.pairs(e, who, whom, func(from, to string) { x.c.Net.Change(from, to, func(l *Link) { *l = x.c.Net.normal }) })
	return nil
}

func bridge(x *stage, _ *Event, who, _ []*Node) error {
	rest := x.others(who)
	half := len(rest) / 2
	return cut(x, &Event{}, rest[:half], rest[half:])
}

func slowLink(x *stage, e *Event, who, whom []*Node) error {
	var errs []error
	latency, err := e.duration("latency", x.c.Net.normal.Latency)
	errs = append(errs, err)
	jitter, err := e.duration("jitter", latency/2)
	errs = append(errs, err)
	loss, err := e.share("loss", 0)
	errs = append(errs, err)
	rate, err := e.bytes("rate", 0)
	errs = append(errs, err)
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	x.pairs(e, who, whom, func(from, to string) {
		x.c.Net.Change(from, to, func(l *Link) {
			l.Latency, l.Jitter, l.Loss, l.BytesPerSecond = latency, jitter, loss, float64(rate)
		})
	})
	return nil
}

func reset(x *stage, e *Event, who, whom []*Node) error {
	x.pairs(e, who, whom, x.c.Net.Reset)
	return nil
}

func slowDisk(_ *stage, e *Event, who, _ []*Node) error {
	d, err := e.duration("sync", 20*time.Millisecond)
	for _, n := range who {
		n.Drive.Slow(d, d/2)
	}
	return err
}

func fillDisk(_ *stage, e *Event, who, _ []*Node) error {
	free, err := e.bytes("free", 0)
	for _, n := range who {
		n.Drive.Fill(free)
	}
	return err
}

func jumpClock(_ *stage, e *Event, who, _ []*Node) error {
	by, err := e.duration("by", time.Hour)
	for _, n := range who {
		n.Jump(by)
	}
	return err
}

func driftClock(_ *stage, e *Event, who, _ []*Node) error {
	gains, err := e.duration("gains", 100*time.Millisecond)
	for _, n := range who {
		n.Drift(gains)
	}
	return err
}

// target are the machines that a word stands for, now.
//
//	n3          that machine
//	all         every machine
//	leader      of the first shard group; leader2 of the second, …
//	placement   the placement group's leader
//	follower    one that does not lead the first shard group
//	minority    as many as may fail; majority: one more
//	any         one by chance
//	it          whom the last event was about
//	others      all but those on the other side
//	clients     where the clients are (links only)
func (x *stage) target(word string, group uint32) []*Node {
	all := x.c.Nodes
	leader := func(g uint32) []*Node {
		for _, n := range all {
			if n.Leads(g) {
				return []*Node{n}
			}
		}
		return []*Node{all[x.rng.IntN(len(all))]} // nobody leads now
	}
	some := func(count int) []*Node {
		list := slices.Clone(all)
		x.rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		return list[:count]
	}
	switch {
	case word == "all":
		return all
	case word == "leader":
		return leader(1)
	case word == "placement":
		return leader(0)
	case word == "follower":
		for _, n := range some(len(all)) {
			if !n.Leads(1) {
				return []*Node{n}
			}
		}
		return all[:1]
	case word == "minority":
		return some((len(all) - 1) / 2)
	case word == "majority":
		return some(len(all)/2 + 1)
	case word == "any":
		return some(1)
	case word == "it":
		return x.it
	case word == "clients":
		return []*Node{{ID: clientMachine}}
	}
	if g, ok := strings.CutPrefix(word, "leader"); ok {
		if k, err := strconv.Atoi(g); err == nil && k > 0 {
			return leader(uint32(k))
		}
	}
	if n := x.c.Node(word); n != nil {
		return []*Node{n}
	}
	return nil
}

// clientMachine is where all clients run.
const clientMachine = "clients"

func (x *stage) side(words []string, other []*Node) ([]*Node, error) {
	var side []*Node
	for _, w := range words {
		var found []*Node
		if w == "others" {
			found = x.others(other)
		} else if found = x.target(w, 1); found == nil && w != "it" && w != "minority" {
			return nil, fmt.Errorf("there is no machine %q", w)
		}
		for _, n := range found {
			if !slices.Contains(side, n) {
				side = append(side, n)
			}
		}
	}
	return side, nil
}

func (x *stage) others(than []*Node) []*Node {
	var rest []*Node
	for _, n := range x.c.Nodes {
		if !slices.Contains(than, n) {
			rest = append(rest, n)
		}
	}
	return rest
}

// play makes an event happen.
func (x *stage) play(e *Event) error {
	who, err := x.side(e.Who, nil)
	if err != nil {
		return err
	}
	whom, err := x.side(e.Whom, who)
	if err != nil {
		return err
	}
	x.c.note("%s%s", e.text(), resolved(e, who))
	if len(who) > 0 {
		x.it = who
	}
	return verbs[e.Verb].do(x, e, who, whom)
}

// resolved says whom words stood for.
func resolved(e *Event, who []*Node) string {
	var ids []string
	for _, n := range who {
		ids = append(ids, n.ID)
	}
	if names := strings.Join(ids, " "); names != strings.Join(e.Who, " ") {
		return " (" + names + ")"
	}
	return ""
}

// String is the event as ParseEvent reads it.
func (e Event) String() string { return fmt.Sprintf("%-7s %s", short(e.At), e.text()) }

// short is a time in seconds, exactly.
func short(d time.Duration) string {
	s := fmt.Sprintf("%d.%09d", d/time.Second, d%time.Second)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".") + "s"
}

func (e Event) text() string {
	s := e.Verb
	if len(e.Who) > 0 {
		s += " " + strings.Join(e.Who, " ")
	}
	if len(e.Whom) > 0 {
		sign := "|"
		if e.OneWay {
			sign = ">"
		}
		s += " " + sign + " " + strings.Join(e.Whom, " ")
	}
	for _, k := range verbs[e.Verb].set {
		if v, ok := e.Set[k]; ok {
			s += ", " + k + " " + v
		}
	}
	return s
}

// ParseEvent reads one line of a schedule.
func ParseEvent(line string) (e Event, err error) {
	at, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if e.At, err = time.ParseDuration(at); err != nil || e.At < 0 {
		return e, fmt.Errorf("%q: want a time first, such as 2.5s", line)
	}
	parts := strings.Split(rest, ",")
	words := strings.Fields(parts[0])
	for n := min(2, len(words)); n > 0; n-- {
		if _, ok := verbs[strings.Join(words[:n], " ")]; ok {
			e.Verb, words = strings.Join(words[:n], " "), words[n:]
			break
		}
	}
	v, ok := verbs[e.Verb]
	if !ok {
		return e, fmt.Errorf("%q: nothing is known that happens so", line)
	}
	sides := 0
	if len(words) > 0 {
		sides = 1
	}
	for _, w := range words {
		switch {
		case w == "|" || w == ">":
			sides++
			e.OneWay = w == ">"
		case sides == 2:
			e.Whom = append(e.Whom, w)
		default:
			e.Who = append(e.Who, w)
		}
	}
	if sides != v.sides || sides > 0 && len(e.Who) == 0 || sides == 2 && len(e.Whom) == 0 {
		return e, fmt.Errorf("%q: %q is about %d sides of machines", line, e.Verb, v.sides)
	}
	for _, p := range parts[1:] {
		k, value, ok := strings.Cut(strings.TrimSpace(p), " ")
		if !ok || !slices.Contains(v.set, k) {
			return e, fmt.Errorf("%q: %q says nothing of %q", line, e.Verb, strings.TrimSpace(p))
		}
		if e.Set == nil {
			e.Set = map[string]string{}
		}
		e.Set[k] = strings.TrimSpace(value)
	}
	// A setting that cannot be read is found now and not in the middle of a run.
	for k := range e.Set {
		var err error
		switch k {
		case "keep", "loss":
			_, err = e.share(k, 0)
		case "rate", "free":
			_, err = e.bytes(k, 0)
		default:
			_, err = e.duration(k, 0)
		}
		if err != nil {
			return e, fmt.Errorf("%q: %w", line, err)
		}
	}
	return e, nil
}

func (e *Event) duration(key string, otherwise time.Duration) (time.Duration, error) {
	s, ok := e.Set[key]
	if !ok {
		return otherwise, nil
	}
	return time.ParseDuration(s)
}

func (e *Event) share(key string, otherwise float64) (float64, error) {
	s, ok := e.Set[key]
	if !ok {
		return otherwise, nil
	}
	f, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !strings.HasSuffix(s, "%") || f < 0 || f > 100 {
		return 0, fmt.Errorf("%s %q: want a share, such as 30%%", key, s)
	}
	return f / 100, nil
}

func (e *Event) bytes(key string, otherwise int64) (int64, error) {
	s, ok := e.Set[key]
	if !ok {
		return otherwise, nil
	}
	factor := int64(1)
	number := s
	for _, u := range []struct {
		name   string
		factor int64
	}{{"KB", 1 << 10}, {"MB", 1 << 20}, {"B", 1}} {
		if n, ok := strings.CutSuffix(s, u.name); ok {
			number, factor = n, u.factor
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s %q: want bytes, such as 512KB", key, s)
	}
	return n * factor, nil
}
