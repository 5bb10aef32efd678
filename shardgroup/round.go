package shardgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/leader"
	"github.com/impossibledb/idb/shardgroup/transport"
)

// round is one confirmation that this node still leads a term. All reads that
// arrived before it began share it.
//
// Life of a round: the first read that finds none to join makes one and queues
// it for as many voters as are needed; further reads join it; it begins when it
// is sent to the first of them, and then a new one is made for later reads; it
// is decided by the answers; its reads go on once the machine has caught up.
//
// Why it proves anything: leader.Round.
type round struct {
	done chan struct{} // closed when its reads may go on
	err  error         // valid after done

	mu           sync.Mutex
	begun        bool          // guarded by mu; nobody joins any more
	term, commit uint64        // guarded by mu; noted when it began
	votes        leader.Round  // guarded by mu
	rest         []raft.Server // guarded by mu; voters not asked yet
	turn         uint32        // guarded by mu; which voter came first
	ended        bool          // guarded by mu; decided, by votes or without

	// Reads that do not wait in a goroutine of their own; guarded by replica.mu
	// until the round has begun.
	joined []any
	answer func(reads []any, err error)
}

// askRestAfter is how long the first voters asked have before the others are
// asked too. A majority is enough, and one request less for every round is
// worth more than the time that a voter loses which has just stopped.
const askRestAfter = 5 * time.Millisecond

// maxCatchUp is how long joined reads wait for the machine. Past it they are
// told ErrTimeout, though it is not known that anything is wrong.
const maxCatchUp = 100 * time.Millisecond

// ReadIndex returns when the machine holds everything that was acknowledged
// before the call. It fails on a replica that does not lead, or that cannot
// prove it.
func (r *replica) ReadIndex(ctx context.Context) error {
	if _, err := r.term(ctx); err != nil {
		return err
	}
	return r.awaitRound(ctx, r.joinRound())
}

// joinRound joins the next round.
func (r *replica) joinRound() *round {
	r.mu.Lock()
	rd, made := r.joinLocked()
	r.mu.Unlock()
	if made {
		r.queue(rd)
	}
	return rd
}

func (r *replica) awaitRound(ctx context.Context, rd *round) error {
	select {
	case <-rd.done:
		return rd.err
	case <-ctx.Done():
		return ErrTimeout
	case <-r.stop:
		return r.stopError()
	}
}

// Join is ReadIndex for a read that has no goroutine to wait in: answer is
// called with it, and with all that joined the same round, when they may be
// read or when it is known that they may not. All that join a group's rounds
// give the same answer function. It runs on a goroutine of the transport or of
// the machine and must not wait. False: the replica does not serve as leader,
// and answer is not called.
func (r *replica) Join(read any, answer func(reads []any, err error)) bool {
	if !r.IsLeader() {
		return false
	}
	r.mu.Lock()
	if r.deaf {
		r.mu.Unlock()
		return false
	}
	rd, made := r.joinLocked()
	rd.joined, rd.answer = append(rd.joined, read), answer
	r.mu.Unlock()
	if made {
		r.queue(rd)
	}
	return true
}

func (r *replica) joinLocked() (rd *round, made bool) {
	if r.next == nil {
		r.next, made = &round{done: make(chan struct{})}, true
	}
	return r.next, made
}

// closeRounds answers the joined reads whose rounds were never decided, and
// lets nobody join any more. The replica is to stop.
func (r *replica) closeRounds() {
	r.mu.Lock()
	r.deaf = true
	rd := r.next
	r.mu.Unlock()
	if rd != nil {
		r.decide(rd, r.stopError())
	}
	r.applied.close()
}

// queue puts a new round before as many voters as it takes.
func (r *replica) queue(rd *round) {
	voters, self := 0, false
	var others []raft.Server
	for _, s := range r.servers() {
		if s.Suffrage != raft.Voter && !mutant.On(mutant.LearnersConfirm) {
			continue
		}
		voters++
		if s.ID == r.self {
			self = true
		} else {
			others = append(others, s)
		}
	}
	votes, verdict := leader.NewRound(voters, self)
	if verdict == leader.Won || mutant.On(mutant.ReadUnconfirmed) {
		if r.begin(rd) {
			r.decide(rd, nil)
		}
		return
	}
	need := votes.Need()
	// Begin with the voters that were good last time.
	turn := r.favour.Load()
	first := int(turn % uint32(len(others)))
	others = append(others[first:len(others):len(others)], others[:first]...)
	rd.mu.Lock()
	rd.turn, rd.votes = turn, votes
	rd.rest = others[need:]
	rd.mu.Unlock()
	r.ask(rd, others[:need])
}

func (r *replica) ask(rd *round, voters []raft.Server) {
	for _, s := range voters {
		r.host.confirm.ask(s.ID, question{round: rd, replica: r})
	}
}

// begin notes what the round is about, if that is not done yet: it is about to
// be sent to a voter. False: it is decided.
func (r *replica) begin(rd *round) bool {
	r.mu.Lock()
	if r.next == rd && !mutant.On(mutant.OldAnswersConfirm) {
		r.next = nil // whoever comes now comes too late
	}
	deaf := r.deaf
	r.mu.Unlock()
	if deaf {
		r.decide(rd, r.stopError())
		return false
	}
	rd.mu.Lock()
	if rd.ended || rd.begun {
		live := !rd.ended
		rd.mu.Unlock()
		return live
	}
	rd.begun = true
	rd.term = r.ready.Load()
	rd.commit = r.raft.CommitIndex()
	leads := rd.term != 0
	rd.mu.Unlock()
	if !leads {
		r.decide(rd, r.notLeader())
	}
	return leads
}

// askRest asks the voters that have not been asked: one of the first said no,
// did not answer, or takes too long. The next rounds begin with another one.
func (r *replica) askRest(rd *round) {
	rd.mu.Lock()
	rest, turn := rd.rest, rd.turn
	rd.rest = nil
	if rd.ended {
		rest = nil
	}
	rd.mu.Unlock()
	if len(rest) > 0 {
		r.favour.CompareAndSwap(turn, turn+1)
		r.ask(rd, rest)
	}
}

// voted counts one voter's answer; no answer is a no.
func (r *replica) voted(rd *round, yes bool) {
	rd.mu.Lock()
	verdict := rd.votes.Vote(yes)
	rd.mu.Unlock()
	switch verdict {
	case leader.Won:
		r.decide(rd, nil)
	case leader.Lost:
		r.decide(rd, r.unconfirmed())
	case leader.Open:
		if !yes {
			r.askRest(rd)
		}
	}
}

// unconfirmed: a majority could not be asked, or says that there is a later
// term. Nothing was read.
func (r *replica) unconfirmed() error {
	return &NotLeaderError{Group: r.id, Term: r.raft.CurrentTerm()}
}

// decide ends a round, once.
func (r *replica) decide(rd *round, err error) {
	r.mu.Lock()
	if r.next == rd {
		r.next = nil
	}
	r.mu.Unlock()
	rd.mu.Lock()
	if rd.ended {
		rd.mu.Unlock()
		return
	}
	rd.ended = true
	term, commit := rd.term, rd.commit
	rd.mu.Unlock()
	if err == nil && (r.raft.State() != raft.Leader || r.raft.CurrentTerm() != term || r.ready.Load() != term) {
		err = r.notLeader()
	}
	if err != nil || r.applied.load() >= commit {
		rd.end(err)
		rd.deliver(err)
		return
	}
	r.catchUp(rd, commit)
}

// catchUp lets the reads go on when the machine has caught up.
func (r *replica) catchUp(rd *round, commit uint64) {
	var told atomic.Bool
	tell := func(err error) {
		if told.CompareAndSwap(false, true) {
			rd.deliver(err)
		}
	}
	var late *time.Timer
	if len(rd.joined) > 0 {
		late = time.AfterFunc(maxCatchUp, func() { tell(ErrTimeout) })
	}
	r.applied.when(commit, func(reached bool) {
		var err error
		if !reached {
			err = r.stopError()
		}
		rd.end(err)
		if late != nil {
			late.Stop()
		}
		tell(err)
	})
}

// end lets go who waits.
func (rd *round) end(err error) {
	rd.err = err
	close(rd.done)
}

// deliver answers who has joined.
func (rd *round) deliver(err error) {
	if len(rd.joined) > 0 {
		rd.answer(rd.joined, err)
	}
}

// question is one round's to one voter.
type question struct {
	round   *round
	replica *replica
}

// confirmer asks the voters. For each other node there is one request on its
// way at a time; the questions of all groups that come meanwhile go with the
// next one.
type confirmer struct {
	host   *Host
	served atomic.Uint64 // requests of other nodes answered

	mu     sync.Mutex
	lanes  map[raft.ServerID]*confirmLane // guarded by mu
	closed bool                           // guarded by mu; no goroutine is started any more
	bg     sync.WaitGroup                 // requests that make a connection
}

// confirmLane is the way to one voter. It has no goroutine: requests are sent
// by who asks, or by the goroutine that has brought the last answer.
type confirmLane struct {
	c           *confirmer
	node        placement.NodeID
	incarnation string

	mu     sync.Mutex
	queue  []question  // guarded by mu; not sent yet
	sent   []question  // guarded by mu; on its way
	spare  []question  // guarded by mu; for the next queue
	busy   bool        // guarded by mu; a request is on its way, or about to be sent
	flight uint64      // guarded by mu; number of the request on its way
	slow   bool        // guarded by mu; it has taken longer than askRestAfter
	timer  *time.Timer // guarded by mu; of the request on its way
	drop   func()      // guarded by mu; gives up the request on its way
}

func newConfirmer(h *Host) *confirmer {
	return &confirmer{host: h, lanes: make(map[raft.ServerID]*confirmLane)}
}

func (c *confirmer) lane(to raft.ServerID) *confirmLane {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.lanes[to]
	if l == nil {
		l = &confirmLane{c: c}
		l.node, l.incarnation = transport.SplitServerID(to)
		c.lanes[to] = l
	}
	return l
}

// spawn runs f in a goroutine, unless the host has stopped.
func (c *confirmer) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.bg.Add(1)
	go func() { defer c.bg.Done(); f() }()
	return true
}

// close gives up what is on its way; the groups have stopped.
func (c *confirmer) close() {
	c.mu.Lock()
	c.closed = true
	lanes := slices.Collect(maps.Values(c.lanes))
	c.mu.Unlock()
	for _, l := range lanes {
		l.mu.Lock()
		flight, drop := l.flight, l.drop
		l.mu.Unlock()
		if drop != nil {
			drop()
		}
		l.answered(flight, nil, ErrStopped)
	}
	c.bg.Wait()
}

func (c *confirmer) ask(to raft.ServerID, q question) {
	l := c.lane(to)
	l.mu.Lock()
	l.queue = append(l.queue, q)
	busy, slow := l.busy, l.slow
	l.busy = true
	l.mu.Unlock()
	switch {
	case !busy:
		l.next()
	case slow:
		q.replica.askRest(q.round)
	}
}

// next sends what is queued, if anything is. The caller has set busy.
func (l *confirmLane) next() {
	for {
		l.mu.Lock()
		batch := l.queue
		l.queue, l.spare = l.spare[:0], nil
		if len(batch) == 0 {
			l.busy, l.spare = false, batch
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		live := batch[:0]
		for _, q := range batch {
			if q.replica.begin(q.round) {
				live = append(live, q)
			}
		}
		clear(batch[len(live):])
		if len(live) > 0 {
			l.send(live)
			return
		}
		l.mu.Lock()
		l.spare = live
		l.mu.Unlock()
	}
}

// send puts the questions on their way.
func (l *confirmLane) send(qs []question) {
	body := encodeQuestions(qs)
	l.mu.Lock()
	l.flight++
	flight := l.flight
	l.sent, l.slow = qs, false
	if l.timer == nil {
		l.timer = time.AfterFunc(askRestAfter, l.late)
	} else {
		l.timer.Reset(askRestAfter)
	}
	l.mu.Unlock()
	h := l.c.host
	answered := func(answer []byte, err error) { l.answered(flight, answer, err) }
	drop := h.cfg.Peers.Ask(l.node, l.incarnation, wire.KindConfirm, body, answered)
	if drop != nil {
		l.mu.Lock()
		if l.flight == flight && l.sent != nil {
			l.drop = drop
		}
		l.mu.Unlock()
		return
	}
	// There is no connection, and making one takes a while.
	if !l.c.spawn(func() {
		ctx, cancel := context.WithTimeout(h.ctx, h.cfg.Timing.Heartbeat)
		defer cancel()
		answered(h.cfg.Peers.CallIncarnation(ctx, l.node, l.incarnation, wire.KindConfirm, body))
	}) {
		answered(nil, ErrStopped)
	}
}

// late runs when an answer takes long: first the other voters are asked, by the
// rounds that wait in the queue too, later the request is given up.
func (l *confirmLane) late() {
	l.mu.Lock()
	if l.sent == nil {
		l.mu.Unlock()
		return
	}
	flight, drop := l.flight, l.drop
	if l.slow {
		l.mu.Unlock()
		if drop != nil {
			drop()
		}
		l.answered(flight, nil, ErrTimeout)
		return
	}
	l.slow = true
	l.timer.Reset(l.c.host.cfg.Timing.Heartbeat)
	qs := append(slices.Clone(l.sent), l.queue...)
	l.mu.Unlock()
	for _, q := range qs {
		q.replica.askRest(q.round)
	}
}

// answered takes a voter's answers, or why there are none.
func (l *confirmLane) answered(flight uint64, answer []byte, err error) {
	l.mu.Lock()
	if l.flight != flight || l.sent == nil {
		l.mu.Unlock()
		return // given up already
	}
	qs := l.sent
	l.sent, l.drop, l.slow = nil, nil, false
	l.timer.Stop()
	l.mu.Unlock()
	var verdicts []byte
	if err == nil {
		verdicts, err = decodeVerdicts(answer, len(qs))
	}
	for i, q := range qs {
		q.replica.voted(q.round, err == nil && verdicts[i] == 1)
	}
	clear(qs)
	l.mu.Lock()
	l.spare = qs[:0]
	l.mu.Unlock()
	l.next()
}

// Body of a confirmation, and of its answer. All integers are big-endian.
//
//	request | version u8 = 1 | count u32 | count × (group u32, term u64) |
//	answer  | version u8 = 1 | count u32 | count × verdict u8 |
//
// A verdict is 1 if the replica runs here and its term is not above the one
// asked about. Who is asked is a matter of the connection: the asker names
// the incarnation it means, and the connection's hello tells who answers.
const (
	confirmVersion  = 1
	maxConfirmed    = 1 << 16
	confirmHead     = 1 + 4
	confirmQuestion = 4 + 8
)

func encodeQuestions(qs []question) []byte {
	b := make([]byte, 0, confirmHead+len(qs)*confirmQuestion)
	b = append(b, confirmVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(qs)))
	for _, q := range qs {
		b = appendQuestion(b, q.replica.id, q.round.termOf())
	}
	return b
}

func appendQuestion(b []byte, g placement.GroupID, term uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(g))
	return binary.BigEndian.AppendUint64(b, term)
}

// termOf is the term of a round that has begun.
func (rd *round) termOf() uint64 {
	rd.mu.Lock()
	defer rd.mu.Unlock()
	return rd.term
}

func decodeVerdicts(b []byte, n int) ([]byte, error) {
	if len(b) != confirmHead+n || b[0] != confirmVersion || binary.BigEndian.Uint32(b[1:]) != uint32(n) {
		return nil, errors.New("shardgroup: confirmation answer is damaged")
	}
	return b[confirmHead:], nil
}

// serve answers another node's questions.
func (c *confirmer) serve(_ context.Context, _ placement.NodeID, body []byte) ([]byte, error) {
	if len(body) < confirmHead || body[0] != confirmVersion {
		return nil, &wire.Error{Code: wire.CodeBadRequest, Message: "confirmation of another version, or damaged"}
	}
	n := binary.BigEndian.Uint32(body[1:])
	body = body[confirmHead:]
	if n > maxConfirmed || uint64(n)*confirmQuestion != uint64(len(body)) {
		return nil, &wire.Error{Code: wire.CodeBadRequest, Message: fmt.Sprintf("confirmation claims %d questions in %d bytes", n, len(body))}
	}
	answer := make([]byte, 0, confirmHead+int(n))
	answer = append(answer, confirmVersion)
	answer = binary.BigEndian.AppendUint32(answer, n)
	for ; len(body) > 0; body = body[confirmQuestion:] {
		g := placement.GroupID(binary.BigEndian.Uint32(body))
		term := binary.BigEndian.Uint64(body[4:])
		verdict := byte(0)
		if r := c.host.replica(g); r != nil && r.check() == nil && r.raft.CurrentTerm() <= term {
			verdict = 1
		}
		answer = append(answer, verdict)
	}
	c.served.Add(1)
	return answer, nil
}
