package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// outbox is the sending half of a connection. Frames are appended to one
// buffer; one goroutine at a time writes all that is there with one system
// call, while the next frames gather in a second buffer:
//
//	send, send, send → | queued | → | being written | → socket
//
// Writing is the work of a goroutine of its own, except that a sender that is
// alone, or has put many frames on hold, writes them itself, without waiting
// (socket.tryWrite): this saves it the switch to the writer and back.
//
// Invariant: at most one goroutine writes (busy), so bytes keep their order.
type outbox struct {
	nc  net.Conn
	raw *socket // nil: the connection is none
	// failed is told once why nothing can be sent any more.
	failed func(error)
	// limit is how many bytes may be queued before senders wait.
	limit int
	all   *pressure // of all connections of a server; nil: of a client

	mu     sync.Mutex
	queued []byte // frames not yet taken for writing
	spare  []byte // the other buffer, empty
	rest   []byte // what a lone sender could not write at once
	busy   bool   // someone is writing, or the writer has been woken
	err    error  // set once; nothing is sent after it
	taken  uint64 // bytes ever taken for writing
	added  uint64 // bytes ever appended
	room   chan struct{}
	idle   chan struct{} // closed when nothing is queued any more; nil: nobody asks

	wake chan struct{} // one signal to the writer
	stop chan struct{} // closed by fail

	// For a watcher that looks for a peer that does not read.
	written atomic.Uint64 // bytes ever written
	backlog atomic.Int64  // bytes appended and not yet written
}

// pressure is what waits to be sent on all connections together. Past its
// bound no connection may queue more than pressedLimit.
type pressure struct {
	bytes atomic.Int64
	max   int64
}

func (p *pressure) high() bool { return p != nil && p.bytes.Load() > p.max }

const pressedLimit = 64 << 10

func (o *outbox) limitNow() int {
	if o.all.high() {
		return min(o.limit, pressedLimit)
	}
	return o.limit
}

// count adds to what waits to be sent, or takes off.
func (o *outbox) count(bytes int) {
	o.backlog.Add(int64(bytes))
	if o.all != nil {
		o.all.bytes.Add(int64(bytes))
	}
}

// keepBuffer is how large a write buffer is kept after use.
const keepBuffer = 256 << 10

func newOutbox(nc net.Conn, limit int, failed func(error)) *outbox {
	return &outbox{
		nc:     nc,
		raw:    newSocket(nc),
		failed: failed,
		limit:  limit,
		wake:   make(chan struct{}, 1),
		stop:   make(chan struct{}),
	}
}

// source is where the other half of the connection is read.
func (o *outbox) source() io.Reader {
	if o.raw != nil {
		return o.raw
	}
	return o.nc
}

// outgoing is a frame to send. Its body is Body, or message, which is encoded
// straight into the queue: a document is copied once on its way to the socket.
type outgoing struct {
	Frame
	message Message
	most    int  // largest frame that may be sent; 0: whatever
	hold    bool // flush will send it
	size    int  // of the frame, once it was queued or found too large
}

var errTooLarge = errors.New("frame too large")

func (f *outgoing) appendTo(dst []byte) []byte {
	if f.message == nil {
		return AppendFrame(slices.Grow(dst, FrameOverhead+len(f.Body)), &f.Frame)
	}
	before := len(dst)
	dst = AppendFrame(slices.Grow(dst, FrameOverhead+sizeHint(f.message)), &f.Frame)
	dst = f.message.AppendTo(dst)
	binary.BigEndian.PutUint32(dst[before:], uint32(len(dst)-before-lengthBytes))
	return dst
}

// hint is about how many bytes a frame's body has.
func (f *outgoing) hint() int {
	if f.message == nil {
		return len(f.Body)
	}
	return sizeHint(f.message)
}

// send queues a frame, however much is queued already, and gives its start as
// a position in the stream. Alone says that the sender expects no other frame
// soon. An error says that the frame was not queued.
func (o *outbox) send(f *Frame, alone bool) (start uint64, err error) {
	start, _, err = o.put(&outgoing{Frame: *f}, alone, 0)
	return start, err
}

// offer is send for what may wait: if more than the limit is queued it gives
// a channel to wait on before it is called again, and has queued nothing.
func (o *outbox) offer(f *outgoing, alone bool) (start uint64, room <-chan struct{}, err error) {
	return o.put(f, alone, o.limitNow())
}

func (o *outbox) put(f *outgoing, alone bool, limit int) (start uint64, room <-chan struct{}, err error) {
	o.mu.Lock()
	if o.err != nil {
		err = o.err
		o.mu.Unlock()
		return 0, nil, err
	}
	if limit > 0 && len(o.queued) >= limit {
		room = o.roomLocked()
		o.mu.Unlock()
		return 0, room, nil
	}
	before := len(o.queued)
	o.queued = f.appendTo(o.queued)
	f.size = len(o.queued) - before
	if f.most > 0 && f.size > f.most {
		o.queued = o.queued[:before]
		o.mu.Unlock()
		return 0, nil, errTooLarge
	}
	start = o.added
	o.added += uint64(f.size)
	o.count(f.size)
	if o.busy || f.hold {
		o.mu.Unlock()
		return start, nil, nil
	}
	o.busy = true
	if !alone || o.raw == nil {
		o.mu.Unlock()
		o.wake <- struct{}{} // never blocks: busy was false, so none is pending
		return start, nil, nil
	}
	o.writeQueued()
	return start, nil, nil
}

// flush sends what was put on hold.
func (o *outbox) flush() {
	o.mu.Lock()
	if o.busy || o.err != nil || len(o.queued) == 0 {
		o.mu.Unlock()
		return
	}
	o.busy = true
	if o.raw == nil {
		o.mu.Unlock()
		o.wake <- struct{}{}
		return
	}
	o.writeQueued()
}

// writeQueued writes what is queued as far as the socket takes it, and leaves the
// rest to the writer. It is called with mu held and by who has set busy, and
// lets go of mu.
func (o *outbox) writeQueued() {
	buf := o.takeLocked()
	o.mu.Unlock()
	n, err := o.raw.tryWrite(buf)
	o.wrote(n)
	if err != nil {
		o.fail(err) // taken: the peer may have it
		return
	}
	o.mu.Lock()
	if n < len(buf) {
		o.rest = buf[n:]
	} else {
		o.recycleLocked(buf)
		if len(o.queued) == 0 {
			o.restLocked()
			o.mu.Unlock()
			return
		}
	}
	o.mu.Unlock()
	o.wake <- struct{}{}
}

// takeLocked takes all that is queued.
func (o *outbox) takeLocked() []byte {
	buf := o.queued
	o.queued, o.spare = o.spare[:0], nil
	o.taken += uint64(len(buf))
	return buf
}

func (o *outbox) recycleLocked(buf []byte) {
	if cap(buf) <= keepBuffer {
		o.spare = buf[:0]
	}
	if o.room != nil && len(o.queued) < o.limitNow() {
		close(o.room)
		o.room = nil
	}
}

// restLocked ends the writing: nothing is queued.
func (o *outbox) restLocked() {
	o.busy = false
	if o.idle != nil {
		close(o.idle)
		o.idle = nil
	}
}

func (o *outbox) wrote(n int) {
	o.written.Add(uint64(n))
	o.count(-n)
}

// run is the writer. It ends with fail.
func (o *outbox) run() {
	for {
		select {
		case <-o.wake:
		case <-o.stop:
			return
		}
		// Whoever is ready to send now may do so first: one write for all.
		runtime.Gosched()
		o.mu.Lock()
		for o.err == nil {
			buf := o.rest
			o.rest = nil
			if len(buf) == 0 {
				if len(o.queued) == 0 {
					o.restLocked()
					break
				}
				buf = o.takeLocked()
			}
			o.mu.Unlock()
			if err := o.write(buf); err != nil {
				o.fail(err)
				return
			}
			runtime.Gosched()
			o.mu.Lock()
			o.recycleLocked(buf)
		}
		o.mu.Unlock()
	}
}

// writePiece is how much is written at once, so that a watcher sees progress.
const writePiece = 256 << 10

func (o *outbox) write(buf []byte) error {
	for try := o.raw != nil; len(buf) > 0; try = false {
		piece := buf[:min(len(buf), writePiece)]
		var n int
		var err error
		if try {
			n, err = o.raw.tryWrite(piece) // most often that is all
		} else {
			n, err = o.nc.Write(piece)
		}
		o.wrote(n)
		if err != nil {
			return err
		}
		buf = buf[n:]
	}
	return nil
}

// fail ends the sending for good. It does not close the connection.
func (o *outbox) fail(err error) {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		return
	}
	o.err = err
	close(o.stop)
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
	if o.idle != nil {
		close(o.idle)
		o.idle = nil
	}
	o.mu.Unlock()
	o.failed(err)
}

// sent says that a frame that begins at start may have reached the peer.
func (o *outbox) sent(start uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.taken > start
}

// full gives a channel to wait on while there is more queued than the limit;
// it is nil when there is room.
func (o *outbox) full() <-chan struct{} {
	limit := o.limitNow()
	if o.backlog.Load() < int64(limit) {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil || len(o.queued) < limit {
		return nil
	}
	return o.roomLocked()
}

func (o *outbox) roomLocked() <-chan struct{} {
	if o.room == nil {
		o.room = make(chan struct{})
	}
	return o.room
}

// drained gives a channel that is closed when everything is written, or
// nothing will be any more; nil when that is so now.
func (o *outbox) drained() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil || !o.busy && len(o.queued) == 0 {
		return nil
	}
	if o.idle == nil {
		o.idle = make(chan struct{})
	}
	return o.idle
}
