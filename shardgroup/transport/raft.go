package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/placement"
)

// ServerID is a node's name in raft's configurations: the node, and the
// incarnation of its data if one is known. A node that lost its data comes
// back as another server and cannot vote twice in one term.
func ServerID(n placement.NodeID, incarnation string) raft.ServerID {
	if incarnation == "" {
		return raft.ServerID(n)
	}
	return raft.ServerID(string(n) + "@" + incarnation)
}

// SplitServerID is the inverse of ServerID.
func SplitServerID(id raft.ServerID) (n placement.NodeID, incarnation string) {
	node, inc, _ := strings.Cut(string(id), "@")
	return placement.NodeID(node), inc
}

// SnapshotReceiver takes a group's snapshot before raft hears of it, so that
// raft's loop does not stand still during the transfer.
type SnapshotReceiver interface {
	// ReceiveSnapshot begins. meta is what raft will be told at the end.
	ReceiveSnapshot(meta *raft.InstallSnapshotRequest) (Staging, error)
}

// Staging is a snapshot that is being received. One goroutine at a time uses it.
type Staging interface {
	io.Writer
	// Finish is called when all bytes were written. What it answers is given
	// to raft, which copies it into its snapshot store; the reader's content
	// is the receiver's own affair.
	Finish() (io.Reader, error)
	// Release is called exactly once, last, whatever happened.
	Release()
}

// RaftTransport is one group's raft.Transport.
//
// SetHeartbeatHandler does nothing, on purpose: with the fast path that raft
// asks for there, the term can rise on this package's goroutine while a
// deposed leader's main loop still accepts entries, and replicas diverge for
// good (hashicorp/raft issue 695). Every message, heartbeats too, goes to the
// main loop through Consumer.
//
// AppendEntriesPipeline is not supported, on purpose: with one message on its
// way per follower, entries that arrive meanwhile go out together.
type RaftTransport struct {
	peers *Peers
	group placement.GroupID
	o     RaftOptions

	rpc      chan raft.RPC
	down     chan struct{} // closed by Shut: no message gets in or out any more
	downOnce sync.Once

	// refuse, if set, is why entries are not taken at the moment.
	refuse atomic.Pointer[error]
	full   atomic.Bool // this node's disk is nearly full

	// fast handles heartbeats beside the main loop. Never set: see above, and
	// mutant.HeartbeatFastPath, which does it.
	fast atomic.Pointer[func(raft.RPC)]

	mu       sync.Mutex
	streams  map[streamKey]*stream      // guarded by mu; snapshots being received
	progress map[raft.ServerID]Progress // guarded by mu
}

// Progress is what a follower's last answer told.
type Progress struct {
	LastIndex uint64    // of its log
	At        time.Time // when it answered
	Success   bool      // it accepted what it was sent
	Full      bool      // its disk is nearly full
}

var (
	_ raft.Transport   = (*RaftTransport)(nil)
	_ raft.WithPreVote = (*RaftTransport)(nil)
)

// RaftOptions are a group's.
type RaftOptions struct {
	// Timeout is how long a message without entries may take. Zero means 1 s.
	Timeout time.Duration
	// AppendTimeout is how long a message with entries may take, a slow
	// follower's fsync included. Zero means 10 s.
	AppendTimeout time.Duration
	// InstallTimeout is how long a follower may take to install a snapshot
	// after the last byte. Zero means 2 min.
	InstallTimeout time.Duration
	// PlainIDs says that the group's members are known by their nodes alone,
	// without incarnations.
	PlainIDs bool
	// Durable returns when this node's own log has everything up to index on
	// disk. It is waited for before a follower's answer is given to raft, and
	// before an answer leaves this node. Nil: StoreLogs waits.
	Durable func(index uint64, cancel <-chan struct{}) error
	// Bursts says what belongs together. Nil: nothing does.
	Bursts Bursts
	// Receiver takes snapshots. Nil: they are received into memory, which is
	// for small machines only (at most 64 MiB).
	Receiver SnapshotReceiver
}

// Burst marks the messages with entries that a node sends to another one at
// about the same time, in several groups, so that it can sync them at once.
type Burst struct {
	Number uint32 // the sender's, in order
	Count  uint16 // of messages; below 2, this one is alone
}

// Bursts is what a group knows of them. Its methods must not wait.
type Bursts interface {
	// Leaving is what the entries that are about to be sent belong to.
	Leaving(to raft.ServerID) Burst
	// Arriving says that entries which belong to b are about to be given to raft.
	Arriving(from placement.NodeID, b Burst)
	// Answered says that raft has answered to what Arriving announced.
	Answered()
}

// Raft makes the transport of one group of this node. The group must not have
// one already; Close ends it.
func (p *Peers) Raft(g placement.GroupID, o RaftOptions) (*RaftTransport, error) {
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	if o.AppendTimeout == 0 {
		o.AppendTimeout = 10 * time.Second
	}
	if o.InstallTimeout == 0 {
		o.InstallTimeout = 2 * time.Minute
	}
	if o.Receiver == nil {
		o.Receiver = memoryReceiver{}
	}
	t := &RaftTransport{
		peers:   p,
		group:   g,
		o:       o,
		rpc:     make(chan raft.RPC),
		down:    make(chan struct{}),
		streams: make(map[streamKey]*stream),

		progress: make(map[raft.ServerID]Progress),
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.groups[g]; ok {
		return nil, fmt.Errorf("transport: %s has a transport already", g)
	}
	p.groups[g] = t
	return t, nil
}

// Shut stops messages in both directions: calls fail, and nothing that raft
// still answers leaves the node. It does not wait.
func (t *RaftTransport) Shut() {
	t.downOnce.Do(func() { close(t.down) })
	t.peers.mu.Lock()
	defer t.peers.mu.Unlock()
	if t.peers.groups[t.group] == t {
		delete(t.peers.groups, t.group)
	}
}

// Close is Shut, and ends the snapshots that are being received. Raft calls it
// at the end of its shutdown.
func (t *RaftTransport) Close() error {
	t.Shut()
	t.mu.Lock()
	streams := t.streams
	t.streams = nil
	t.mu.Unlock()
	for _, s := range streams {
		s.end()
	}
	return nil
}

// RefuseEntries makes this replica refuse entries and snapshots with err,
// while heartbeats and votes go on; nil accepts them again.
func (t *RaftTransport) RefuseEntries(err error) {
	if err == nil {
		t.refuse.Store(nil)
		return
	}
	t.refuse.Store(&err)
}

// SetFull tells the leaders of this group, with the next answer, whether this
// node's disk is nearly full.
func (t *RaftTransport) SetFull(full bool) { t.full.Store(full) }

// Progress is what a follower last answered to this node; the zero value if it
// never did.
func (t *RaftTransport) Progress(id raft.ServerID) Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.progress[id]
}

// Consumer is where raft takes its messages from.
func (t *RaftTransport) Consumer() <-chan raft.RPC { return t.rpc }

// LocalAddr is the node's name: addresses are looked up when dialling.
func (t *RaftTransport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.peers.o.NodeID) }

// EncodePeer is the server's address as bytes.
func (t *RaftTransport) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte {
	return []byte(addr)
}

// DecodePeer is the inverse of EncodePeer.
func (t *RaftTransport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler does nothing; see the type's comment.
func (t *RaftTransport) SetHeartbeatHandler(fast func(raft.RPC)) {
	if mutant.On(mutant.HeartbeatFastPath) {
		t.fast.Store(&fast)
	}
}

// AppendEntriesPipeline is not supported; see the type's comment.
func (t *RaftTransport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries sends entries, or a heartbeat if there are none. It may send
// fewer than it was given and cuts args.Entries to those; raft then sends the
// rest by itself.
func (t *RaftTransport) AppendEntries(id raft.ServerID, _ raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	buf := getBuffer(appendSize(args))
	defer putBuffer(buf)
	var burst Burst
	if len(args.Entries) > 0 && t.o.Bursts != nil {
		burst = t.o.Bursts.Leaving(id)
	}
	b := appendGroup(*buf, t.group)
	b, n := appendAppend(b, args, burst)
	*buf = b
	args.Entries = args.Entries[:n]
	class, timeout := classControl, t.o.Timeout
	if n > 0 {
		class, timeout = classEntries, t.o.AppendTimeout
	}
	a, err := t.call(class, id, wire.KindRaftAppend, b, timeout)
	if err != nil {
		return err
	}
	if n > 0 && a.flags&flagSuccess != 0 && t.o.Durable != nil {
		if err := t.o.Durable(args.Entries[n-1].Index, t.down); err != nil {
			return err
		}
	}
	p := Progress{LastIndex: a.last, At: time.Now(), Success: a.flags&flagSuccess != 0, Full: a.flags&flagFull != 0}
	if n > 0 && p.Success {
		// The answer's last index is from before the entries.
		p.LastIndex = max(p.LastIndex, args.Entries[n-1].Index)
	}
	t.mu.Lock()
	t.progress[id] = p
	t.mu.Unlock()
	*resp = raft.AppendEntriesResponse{
		RPCHeader:      header(id),
		Term:           a.term,
		LastLog:        a.last,
		Success:        a.flags&flagSuccess != 0,
		NoRetryBackoff: a.flags&flagNoRetryBackoff != 0,
	}
	return nil
}

// RequestVote asks for a vote.
func (t *RaftTransport) RequestVote(id raft.ServerID, _ raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	a, err := t.call(classControl, id, wire.KindRaftVote, appendVote(appendGroup(nil, t.group), args), t.o.Timeout)
	if err != nil {
		return err
	}
	*resp = raft.RequestVoteResponse{RPCHeader: header(id), Term: a.term, Granted: a.flags&flagSuccess != 0}
	return nil
}

// RequestPreVote asks whether a vote would be given.
func (t *RaftTransport) RequestPreVote(id raft.ServerID, _ raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	a, err := t.call(classControl, id, wire.KindRaftPreVote, appendPreVote(appendGroup(nil, t.group), args), t.o.Timeout)
	if err != nil {
		return err
	}
	*resp = raft.RequestPreVoteResponse{RPCHeader: header(id), Term: a.term, Granted: a.flags&flagSuccess != 0}
	return nil
}

// TimeoutNow hands leadership over.
func (t *RaftTransport) TimeoutNow(id raft.ServerID, _ raft.ServerAddress, _ *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	if _, err := t.call(classControl, id, wire.KindRaftTimeout, appendGroup(nil, t.group), t.o.Timeout); err != nil {
		return err
	}
	*resp = raft.TimeoutNowResponse{RPCHeader: header(id)}
	return nil
}

func header(id raft.ServerID) raft.RPCHeader {
	n, _ := SplitServerID(id)
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: []byte(n)}
}

var errShut = errors.New("transport: group is stopped")

// call sends one of raft's messages and reads the answer.
func (t *RaftTransport) call(c class, id raft.ServerID, kind wire.Kind, body []byte, timeout time.Duration) (answer, error) {
	b, err := t.send(c, id, kind, body, timeout)
	if err != nil {
		return answer{}, err
	}
	return decodeAnswer(b)
}

func (t *RaftTransport) send(c class, id raft.ServerID, kind wire.Kind, body []byte, timeout time.Duration) ([]byte, error) {
	select {
	case <-t.down:
		return nil, errShut
	default:
	}
	node, incarnation := SplitServerID(id)
	ctx, cancel := context.WithTimeout(t.peers.ctx, timeout)
	defer cancel()
	b, err := t.peers.call(ctx, c, node, incarnation, kind, body)
	if err != nil {
		return nil, err
	}
	select {
	case <-t.down: // raft is being stopped because its disk cannot be trusted
		return nil, errShut
	default:
		return b, nil
	}
}

// serve answers one of raft's messages of another node.
func (t *RaftTransport) serve(ctx context.Context, from *peerInfo, kind wire.Kind, body []byte) ([]byte, error) {
	select {
	case <-t.down:
		return nil, errShut
	default:
	}
	id := t.idOf(from)
	switch kind {
	case wire.KindRaftAppend:
		req := &raft.AppendEntriesRequest{RPCHeader: header(id)}
		burst, err := decodeAppend(body, req)
		if err != nil {
			return nil, err
		}
		if len(req.Entries) > 0 {
			if why := t.refuse.Load(); why != nil {
				return nil, *why
			}
			if burst.Count > 1 && t.o.Bursts != nil {
				t.o.Bursts.Arriving(from.Node, burst)
				defer t.o.Bursts.Answered()
			}
		}
		resp, err := t.toRaft(ctx, raft.RPC{Command: req})
		if err != nil {
			return nil, err
		}
		r, ok := resp.(*raft.AppendEntriesResponse)
		if !ok {
			return nil, fmt.Errorf("transport: raft answered %T", resp)
		}
		if n := len(req.Entries); n > 0 && r.Success && t.o.Durable != nil {
			// raft has skipped those that it had, from when this node led.
			if err := t.o.Durable(req.Entries[n-1].Index, t.down); err != nil {
				return nil, err
			}
		}
		a := answer{term: r.Term, last: r.LastLog}
		if r.Success {
			a.flags |= flagSuccess
		}
		if r.NoRetryBackoff {
			a.flags |= flagNoRetryBackoff
		}
		if t.full.Load() {
			a.flags |= flagFull
		}
		return appendAnswer(nil, a), nil
	case wire.KindRaftVote:
		req := &raft.RequestVoteRequest{RPCHeader: header(id)}
		if err := decodeVote(body, req); err != nil {
			return nil, err
		}
		resp, err := t.toRaft(ctx, raft.RPC{Command: req})
		if err != nil {
			return nil, err
		}
		r, ok := resp.(*raft.RequestVoteResponse)
		if !ok {
			return nil, fmt.Errorf("transport: raft answered %T", resp)
		}
		return appendAnswer(nil, granted(r.Term, r.Granted)), nil
	case wire.KindRaftPreVote:
		req := &raft.RequestPreVoteRequest{RPCHeader: header(id)}
		if err := decodePreVote(body, req); err != nil {
			return nil, err
		}
		resp, err := t.toRaft(ctx, raft.RPC{Command: req})
		if err != nil {
			return nil, err
		}
		r, ok := resp.(*raft.RequestPreVoteResponse)
		if !ok {
			return nil, fmt.Errorf("transport: raft answered %T", resp)
		}
		return appendAnswer(nil, granted(r.Term, r.Granted)), nil
	case wire.KindRaftTimeout:
		if len(body) != 0 {
			return nil, bodyError("timeout-now has %d bytes too many", len(body))
		}
		if why := t.refuse.Load(); why != nil {
			return nil, *why // a node that cannot write should not lead
		}
		if _, err := t.toRaft(ctx, raft.RPC{Command: &raft.TimeoutNowRequest{RPCHeader: header(id)}}); err != nil {
			return nil, err
		}
		return appendAnswer(nil, answer{flags: flagSuccess}), nil
	case wire.KindRaftSnapshot:
		return t.servePiece(ctx, from, body)
	default:
		return nil, fmt.Errorf("transport: kind %d is not raft's", kind)
	}
}

// idOf is how a node is called in this group's configuration.
func (t *RaftTransport) idOf(from *peerInfo) raft.ServerID {
	if t.o.PlainIDs {
		return ServerID(from.Node, "")
	}
	return ServerID(from.Node, from.Incarnation)
}

func granted(term uint64, yes bool) answer {
	a := answer{term: term}
	if yes {
		a.flags = flagSuccess
	}
	return a
}

// toRaft gives a message to raft's main loop and waits for what it says.
func (t *RaftTransport) toRaft(ctx context.Context, rpc raft.RPC) (any, error) {
	ch := make(chan raft.RPCResponse, 1)
	rpc.RespChan = ch
	if fast := t.fast.Load(); fast != nil {
		if q, ok := rpc.Command.(*raft.AppendEntriesRequest); ok && q.PrevLogEntry == 0 && q.PrevLogTerm == 0 && len(q.Entries) == 0 && q.LeaderCommitIndex == 0 {
			(*fast)(rpc)
			return (<-ch).Response, nil
		}
	}
	select {
	case t.rpc <- rpc:
	case <-t.down:
		return nil, errShut
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case r := <-ch:
		select {
		case <-t.down:
			return nil, errShut
		default:
			return r.Response, r.Error
		}
	case <-t.down:
		return nil, errShut
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// buffers holds the memory that appends are encoded in; Call copies them.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

func getBuffer(size int) *[]byte {
	b := buffers.Get().(*[]byte)
	if cap(*b) < size {
		*b = make([]byte, 0, size)
	}
	*b = (*b)[:0]
	return b
}

func putBuffer(b *[]byte) {
	if cap(*b) <= 1<<20 {
		buffers.Put(b)
	}
}
