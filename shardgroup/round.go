package shardgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/leader"
	"github.com/impossibledb/idb/shardgroup/transport"
)

// round is one confirmation that this node still leads a term. All reads that
// arrived before it began share it. Why it proves anything: leader.Round.
type round struct {
	term, commit uint64
	done         chan struct{} // closed when decided
	err          error         // valid after done

	mu    sync.Mutex
	votes leader.Round  // guarded by mu
	rest  []raft.Server // guarded by mu; voters not asked yet
	late  *time.Timer   // guarded by mu; asks the rest
}

// askRestAfter is how long the first voters asked have before the others are
// asked too. A majority is enough, and one request less for every round is
// worth more than the time that a voter loses which has just stopped.
const askRestAfter = 5 * time.Millisecond

func (rd *round) over() bool {
	rd.mu.Lock()
	defer rd.mu.Unlock()
	return rd.votes.Decided()
}

// ReadIndex returns when the machine holds everything that was acknowledged
// before the call. It fails on a replica that does not lead, or that cannot
// prove it.
func (r *replica) ReadIndex(ctx context.Context) error {
	if _, err := r.term(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	if r.next == nil {
		r.next = &round{done: make(chan struct{})}
	}
	rd := r.next
	begin := r.cur == nil
	if begin {
		r.cur, r.next = rd, nil
	}
	r.mu.Unlock()
	if begin {
		r.drive(rd)
	}
	select {
	case <-rd.done:
		return rd.err
	case <-ctx.Done():
		return ErrTimeout
	case <-r.stop:
		return r.stopError()
	}
}

// drive begins rounds until one has to wait for answers, or none is left.
func (r *replica) drive(rd *round) {
	for rd != nil {
		err, decided := r.begin(rd)
		if !decided {
			return
		}
		rd = r.finish(rd, err)
	}
}

// begin notes what the round is about and asks the voters. It may be decided
// at once.
func (r *replica) begin(rd *round) (err error, decided bool) {
	rd.term = r.ready.Load()
	if rd.term == 0 {
		return r.notLeader(), true
	}
	rd.commit = r.raft.CommitIndex()
	voters, self := 0, false
	var others []raft.Server
	for _, s := range r.servers() {
		if s.Suffrage != raft.Voter {
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
	if verdict == leader.Won {
		return nil, true
	}
	need := votes.Need()
	// Begin with the voters that were good last time.
	turn := int(r.favour.Load() % uint32(len(others)))
	others = append(others[turn:len(others):len(others)], others[:turn]...)
	rd.mu.Lock()
	rd.votes = votes
	if rd.rest = others[need:]; len(rd.rest) > 0 {
		rd.late = time.AfterFunc(askRestAfter, func() { r.askRest(rd) })
	}
	rd.mu.Unlock()
	r.ask(rd, others[:need])
	return nil, false
}

func (r *replica) ask(rd *round, voters []raft.Server) {
	for _, s := range voters {
		r.host.confirm.ask(s.ID, question{group: r.id, term: rd.term, round: rd, replica: r})
	}
}

// askRest asks the voters that have not been asked: one of the first said no,
// did not answer, or takes too long. The next rounds begin with another one.
func (r *replica) askRest(rd *round) {
	rd.mu.Lock()
	rest := rd.rest
	rd.rest = nil
	if rd.votes.Decided() {
		rest = nil
	}
	rd.mu.Unlock()
	if len(rest) > 0 {
		r.favour.Add(1)
		r.ask(rd, rest)
	}
}

// voted counts one voter's answer; no answer is a no.
func (r *replica) voted(rd *round, yes bool) {
	rd.mu.Lock()
	verdict := rd.votes.Vote(yes)
	if verdict != leader.Won && verdict != leader.Lost {
		rd.mu.Unlock()
		if !yes {
			r.askRest(rd)
		}
		return
	}
	if rd.late != nil {
		rd.late.Stop()
	}
	rd.mu.Unlock()
	var err error
	if verdict == leader.Lost {
		err = r.unconfirmed()
	}
	r.drive(r.finish(rd, err))
}

// unconfirmed: a majority could not be asked, or says that there is a later
// term. Nothing was read.
func (r *replica) unconfirmed() error {
	return &NotLeaderError{Group: r.id, Term: r.raft.CurrentTerm()}
}

// finish decides a round and answers the one that collected meanwhile.
func (r *replica) finish(rd *round, err error) *round {
	if err == nil && (r.raft.State() != raft.Leader || r.raft.CurrentTerm() != rd.term || r.ready.Load() != rd.term) {
		err = r.notLeader()
	}
	if err != nil {
		rd.err = err
		close(rd.done)
	} else {
		r.applied.when(rd.commit, func() { close(rd.done) })
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cur, r.next = r.next, nil
	return r.cur
}

// question is one round's to one voter.
type question struct {
	group   placement.GroupID
	term    uint64
	round   *round
	replica *replica
}

// confirmer asks the voters. For each other node there is one request on its
// way at a time; the questions of all groups that come meanwhile go with the
// next one.
type confirmer struct {
	host   *Host
	wg     sync.WaitGroup
	served atomic.Uint64 // requests of other nodes answered

	mu     sync.Mutex
	lanes  map[raft.ServerID]*confirmLane // guarded by mu
	closed bool                           // guarded by mu
}

type confirmLane struct {
	to   raft.ServerID
	wake chan struct{}

	mu    sync.Mutex
	queue []question // guarded by mu
}

func newConfirmer(h *Host) *confirmer {
	return &confirmer{host: h, lanes: make(map[raft.ServerID]*confirmLane)}
}

func (c *confirmer) ask(to raft.ServerID, q question) {
	c.mu.Lock()
	l := c.lanes[to]
	if l == nil && !c.closed {
		l = &confirmLane{to: to, wake: make(chan struct{}, 1)}
		c.lanes[to] = l
		c.wg.Add(1)
		go func() { defer c.wg.Done(); c.run(l) }()
	}
	if c.closed {
		c.mu.Unlock()
		q.replica.voted(q.round, false)
		return
	}
	c.mu.Unlock()
	l.mu.Lock()
	l.queue = append(l.queue, q)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// close waits for the lanes; the host's stop channel is closed.
func (c *confirmer) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wg.Wait()
}

func (c *confirmer) run(l *confirmLane) {
	var batch []question
	for {
		select {
		case <-l.wake:
		case <-c.host.stop:
			l.mu.Lock()
			batch, l.queue = l.queue, nil
			l.mu.Unlock()
			for _, q := range batch {
				q.replica.voted(q.round, false)
			}
			return
		}
		l.mu.Lock()
		batch, l.queue = l.queue, batch[:0]
		l.mu.Unlock()
		// Another voter may have decided a round already.
		live := batch[:0]
		for _, q := range batch {
			if q.round.over() {
				q.replica.voted(q.round, false)
			} else {
				live = append(live, q)
			}
		}
		if len(live) == 0 {
			continue
		}
		verdicts, err := c.send(l.to, live)
		for i, q := range live {
			q.replica.voted(q.round, err == nil && verdicts[i])
		}
		clear(live)
	}
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

func (c *confirmer) send(to raft.ServerID, qs []question) ([]bool, error) {
	b := make([]byte, 0, confirmHead+len(qs)*confirmQuestion)
	b = append(b, confirmVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(qs)))
	for _, q := range qs {
		b = binary.BigEndian.AppendUint32(b, uint32(q.group))
		b = binary.BigEndian.AppendUint64(b, q.term)
	}
	ctx, cancel := context.WithTimeout(c.host.ctx, c.host.cfg.Timing.Heartbeat)
	defer cancel()
	node, incarnation := transport.SplitServerID(to)
	answer, err := c.host.cfg.Peers.CallIncarnation(ctx, node, incarnation, wire.KindConfirm, b)
	if err != nil {
		return nil, err
	}
	if len(answer) != confirmHead+len(qs) || answer[0] != confirmVersion || binary.BigEndian.Uint32(answer[1:]) != uint32(len(qs)) {
		return nil, errors.New("shardgroup: confirmation answer is damaged")
	}
	verdicts := make([]bool, len(qs))
	for i := range verdicts {
		verdicts[i] = answer[confirmHead+i] == 1
	}
	return verdicts, nil
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
