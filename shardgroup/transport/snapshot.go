package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// pieceTimeout is how long one piece of a snapshot may take. A receiver that
// needs longer for a megabyte is as good as dead.
const pieceTimeout = 30 * time.Second

// idleStream is after how long without a piece a snapshot that is being
// received is given up. It is looked at when another one begins.
const idleStream = 2 * pieceTimeout

// Sized is a snapshot that knows its size only after some work, which is not
// done for a follower that cannot be reached.
type Sized interface{ Size() (int64, error) }

// InstallSnapshot sends a snapshot. data is written by its WriteTo if it has
// one, and its size is asked for if it is Sized. The follower's raft hears of
// it when all of it has arrived.
func (t *RaftTransport) InstallSnapshot(id raft.ServerID, _ raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	w := &pieceWriter{t: t, id: id, stream: rand.Uint64()}
	defer w.close()
	if err := w.dial(); err != nil {
		return err
	}
	if s, ok := data.(Sized); ok {
		size, err := s.Size()
		if err != nil {
			return fmt.Errorf("transport: snapshot of %s: %w", t.group, err)
		}
		args.Size = size
	}
	if err := w.send(stepBegin, appendMeta(nil, args), pieceTimeout); err != nil {
		return err
	}
	if err := w.copy(data); err != nil {
		w.abort()
		return err
	}
	if w.sent != args.Size {
		w.abort()
		return fmt.Errorf("transport: snapshot of %s has %d bytes, %d were announced", t.group, w.sent, args.Size)
	}
	if err := w.send(stepEnd, binary.BigEndian.AppendUint64(nil, uint64(w.sent)), t.o.InstallTimeout); err != nil {
		return err
	}
	a, err := decodeAnswer(w.answer)
	if err != nil {
		return err
	}
	*resp = raft.InstallSnapshotResponse{RPCHeader: header(id), Term: a.term, Success: a.flags&flagSuccess != 0}
	return nil
}

// pieceWriter cuts what is written to it into pieces and sends each. It has a
// connection of its own.
type pieceWriter struct {
	t      *RaftTransport
	id     raft.ServerID
	stream uint64
	conn   *peerConn

	sent   int64  // acknowledged by the receiver, or in buf
	buf    []byte // the piece that fills
	answer []byte // to the last piece
}

func (w *pieceWriter) dial() (err error) {
	ctx, cancel := context.WithTimeout(w.t.peers.ctx, w.t.peers.o.DialTimeout)
	defer cancel()
	node, incarnation := SplitServerID(w.id)
	w.conn, err = w.t.peers.dial(ctx, classSnapshot, node, incarnation)
	return err
}

func (w *pieceWriter) copy(data io.Reader) error {
	if _, err := io.Copy(w, data); err != nil {
		return err
	}
	return w.flush()
}

// Write collects bytes and sends every full piece.
func (w *pieceWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if w.buf == nil {
			w.buf = make([]byte, 0, pieceBytes)
		}
		n := min(len(p), pieceBytes-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		w.sent += int64(n)
		p = p[n:]
		if len(w.buf) == pieceBytes {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

func (w *pieceWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(w.buf)), uint64(w.sent-int64(len(w.buf))))
	b = append(b, w.buf...)
	w.buf = w.buf[:0]
	return w.send(stepData, b, pieceTimeout)
}

func (w *pieceWriter) send(step byte, rest []byte, timeout time.Duration) error {
	select {
	case <-w.t.down:
		return errShut
	default:
	}
	ctx, cancel := context.WithTimeout(w.t.peers.ctx, timeout)
	defer cancel()
	b := appendGroup(make([]byte, 0, 5+pieceHeader+len(rest)), w.t.group)
	b = binary.BigEndian.AppendUint64(append(b, step), w.stream)
	b = append(b, rest...)
	answer, err := w.conn.Call(ctx, wire.KindRaftSnapshot, b)
	w.answer = answer
	return err
}

// abort tells the receiver that nothing more will come; it would find out by
// itself, later.
func (w *pieceWriter) abort() {
	if w.conn != nil {
		_ = w.send(stepAbort, nil, time.Second)
	}
}

func (w *pieceWriter) close() {
	if w.conn != nil {
		_ = w.conn.Close()
	}
}

// streamKey names a snapshot that is being received.
type streamKey struct {
	from   placement.NodeID
	stream uint64
}

// stream is one of them.
type stream struct {
	meta raft.InstallSnapshotRequest // constant
	last atomic.Int64                // when a piece came last, unix nanoseconds

	mu      sync.Mutex
	staging Staging // guarded by mu; nil: ended
	got     int64   // guarded by mu
}

// end releases the staging; only the first call does something.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked()
}

func (s *stream) endLocked() {
	if s.staging != nil {
		s.staging.Release()
		s.staging = nil
	}
}

// servePiece takes one piece of a snapshot.
func (t *RaftTransport) servePiece(ctx context.Context, from *peerInfo, body []byte) ([]byte, error) {
	if len(body) < pieceHeader {
		return nil, bodyError("snapshot piece of %d bytes is too short", len(body))
	}
	step := body[0]
	key := streamKey{from: from.Node, stream: binary.BigEndian.Uint64(body[1:])}
	body = body[pieceHeader:]
	if step == stepBegin {
		return nil, t.beginStream(key, from, body)
	}
	t.mu.Lock()
	s := t.streams[key]
	if step != stepData {
		delete(t.streams, key)
	}
	t.mu.Unlock()
	if s == nil {
		return nil, bodyError("no snapshot is being received under this number")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.staging == nil {
		return nil, bodyError("the snapshot was given up")
	}
	switch step {
	case stepData:
		if err := s.takeLocked(body); err != nil {
			t.drop(key, s)
			s.endLocked()
			return nil, err
		}
		return nil, nil
	case stepEnd:
		defer s.endLocked()
		return t.finishStream(ctx, s, body)
	case stepAbort:
		s.endLocked()
		return nil, nil
	default:
		s.endLocked()
		return nil, bodyError("snapshot piece has unknown step %d", step)
	}
}

func (t *RaftTransport) beginStream(key streamKey, from *peerInfo, body []byte) error {
	if why := t.refuse.Load(); why != nil {
		return *why
	}
	s := &stream{}
	s.last.Store(time.Now().UnixNano())
	if err := decodeMeta(body, &s.meta); err != nil {
		return err
	}
	s.meta.RPCHeader = header(t.idOf(from))
	s.meta.Leader = s.meta.Addr

	// One at a time: a second one is from another leader, or the first one's
	// sender gave up without a word.
	t.mu.Lock()
	var old []*stream
	for k, o := range t.streams {
		idle := time.Since(time.Unix(0, o.last.Load()))
		if s.meta.Term <= o.meta.Term && k.from != key.from && idle < idleStream {
			t.mu.Unlock()
			return fmt.Errorf("transport: a snapshot of %s is being received from %s already", t.group, k.from)
		}
		delete(t.streams, k)
		old = append(old, o)
	}
	t.mu.Unlock()
	for _, o := range old {
		o.end()
	}
	staging, err := t.o.Receiver.ReceiveSnapshot(&s.meta)
	if err != nil {
		return err
	}
	s.staging = staging
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.streams == nil {
		s.end()
		return errShut
	}
	t.streams[key] = s
	return nil
}

func (t *RaftTransport) drop(key streamKey, s *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.streams[key] == s {
		delete(t.streams, key)
	}
}

func (s *stream) takeLocked(body []byte) error {
	if len(body) < 8 {
		return bodyError("snapshot piece has no offset")
	}
	if at := binary.BigEndian.Uint64(body); at != uint64(s.got) {
		return bodyError("snapshot piece is for offset %d, %d is next", at, s.got)
	}
	body = body[8:]
	if int64(len(body)) > s.meta.Size-s.got {
		return bodyError("snapshot is longer than the %d bytes announced", s.meta.Size)
	}
	if _, err := s.staging.Write(body); err != nil {
		return err
	}
	s.got += int64(len(body))
	s.last.Store(time.Now().UnixNano())
	return nil
}

// finishStream hands the complete snapshot to raft.
func (t *RaftTransport) finishStream(ctx context.Context, s *stream, body []byte) ([]byte, error) {
	if len(body) != 8 || binary.BigEndian.Uint64(body) != uint64(s.got) || s.got != s.meta.Size {
		return nil, bodyError("snapshot ends after %d bytes, %d were announced", s.got, s.meta.Size)
	}
	r, err := s.staging.Finish()
	if err != nil {
		return nil, err
	}
	meta := s.meta
	v, err := t.toRaft(ctx, raft.RPC{Command: &meta, Reader: r})
	if err != nil {
		return nil, err
	}
	resp, ok := v.(*raft.InstallSnapshotResponse)
	if !ok {
		return nil, fmt.Errorf("transport: raft answered %T", v)
	}
	return appendAnswer(nil, granted(resp.Term, resp.Success)), nil
}

// memoryReceiver receives small snapshots into memory.
type memoryReceiver struct{}

// maxMemorySnapshot bounds what is received into memory.
const maxMemorySnapshot = 64 << 20

func (memoryReceiver) ReceiveSnapshot(meta *raft.InstallSnapshotRequest) (Staging, error) {
	if meta.Size > maxMemorySnapshot {
		return nil, fmt.Errorf("transport: snapshot of %d bytes is too large for this group, at most %d are taken", meta.Size, maxMemorySnapshot)
	}
	return &memoryStaging{}, nil
}

type memoryStaging struct{ bytes.Buffer }

func (s *memoryStaging) Finish() (io.Reader, error) { return &s.Buffer, nil }

func (s *memoryStaging) Release() {}
