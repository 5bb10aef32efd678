package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ConnOptions are the settings of a client's connection.
type ConnOptions struct {
	// MaxInFlight is how many requests are on their way at once; more callers
	// wait. More than the server allows is refused there. Zero means
	// MaxInFlight; Handshake lowers it to the server's.
	MaxInFlight int
	// MaxFrame is the largest frame accepted and sent, in bytes; Handshake
	// lowers what is sent to what the server takes. Zero means MaxFrameBytes.
	MaxFrame int
	// MaxQueued is how many bytes wait to be sent before callers wait too.
	// Zero means 4 MiB.
	MaxQueued int
	// MaxStream is how many bytes of one streaming answer may wait for their
	// reader; past it the stream fails. Answers are bounded by their request,
	// so this is met only by a reader that stands still. Zero means 128 MiB.
	MaxStream int
	// KeepAlive is how long a server may say nothing while it owes an answer
	// before it is asked for a sign of life; without one after as long again
	// the connection is given up. Too short gives up on a busy server, too
	// long keeps callers with a dead one. Zero means 5s; negative: never.
	KeepAlive time.Duration
}

func (o ConnOptions) withDefaults() ConnOptions {
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = MaxInFlight
	}
	if o.MaxFrame <= 0 {
		o.MaxFrame = MaxFrameBytes
	}
	if o.MaxQueued <= 0 {
		o.MaxQueued = 4 << 20
	}
	if o.MaxStream <= 0 {
		o.MaxStream = 128 << 20
	}
	if o.KeepAlive == 0 {
		o.KeepAlive = 5 * time.Second
	}
	return o
}

// Conn is the client's side of a connection: many calls at once over one
// socket. It is safe for concurrent use. A connection that has failed stays
// failed; Done tells, and the pool above dials another.
//
// A request's ID is the number of its slot and how often that slot was used:
//
//	63            16 15     0
//	| use of slot   |  slot  |
//
// so that an answer finds its caller by one index. A slot is free again when
// the last frame of its answer has arrived, also if its caller has long gone:
// slots in use are what the server counts against its limit.
type Conn struct {
	nc  net.Conn
	o   ConnOptions
	out *outbox
	in  frameReader

	sendLimit atomic.Int64 // largest frame the server takes

	mu      sync.Mutex
	slots   []slot
	free    []uint16      // slots not in use
	waiting []chan uint16 // callers that wait for a slot, first come first
	max     int           // slots there may be
	inUse   int           // requests without a last frame yet
	err     error         // set once, when the connection has failed
	reply   HelloReply    // of Handshake

	timer  *time.Timer // keepAlive's; nil: not armed
	seen   uint64      // in.received when keepAlive looked last
	pinged bool        // keepAlive has asked for a sign of life

	// Calls that wait no more, for the next ones. Not shared by connections:
	// a channel belongs to the test bubble it was made in.
	calls sync.Pool

	done chan struct{}  // closed when the connection has failed
	bg   sync.WaitGroup // the reader, the writer, and keepAlive while armed
}

// slot is one request on its way.
type slot struct {
	id   uint64 // of the request; its low bits are the slot's index
	call *call  // nil: free, or its caller has gone
	used bool   // no last frame yet
}

// call is one caller that waits. Its channel is used again by later calls, so
// exactly one signal is sent for each that a caller takes.
type call struct {
	ready  chan struct{}
	body   []byte
	err    error
	failed bool // the connection has failed; its err says why

	then func(body []byte, err error) // of Ask: called in place of the signal

	// Of a stream; guarded by Conn.mu.
	stream bool
	parts  [][]byte
	size   int // bytes in parts
	last   bool
}

const (
	slotBits = 16
	// pingSlot is of keepAlive's own requests, which take part in no limit.
	pingSlot = 1<<slotBits - 1
	pingID   = 1<<slotBits | pingSlot
)

// NewConn takes over nc. The first request must be a hello (Handshake, or a
// Call of KindPeerHello).
func NewConn(nc net.Conn, o ConnOptions) *Conn {
	o = o.withDefaults()
	c := &Conn{
		nc:   nc,
		o:    o,
		max:  min(o.MaxInFlight, pingSlot),
		done: make(chan struct{}),
	}
	c.out = newOutbox(nc, o.MaxQueued, c.fail)
	c.in = frameReader{src: c.out.source(), max: o.MaxFrame}
	c.sendLimit.Store(int64(o.MaxFrame))
	c.bg.Add(2)
	go func() {
		defer c.bg.Done()
		c.out.run()
	}()
	go func() {
		defer c.bg.Done()
		c.read()
	}()
	return c
}

// Handshake sends the hello, fills in what the caller left empty of it, and
// takes over the server's limits.
func (c *Conn) Handshake(ctx context.Context, hello Hello) (HelloReply, error) {
	hello.Magic = Magic
	if hello.MinVersion == 0 {
		hello.MinVersion = ProtocolVersion
	}
	if hello.MaxVersion == 0 {
		hello.MaxVersion = ProtocolVersion
	}
	var reply HelloReply
	if err := c.Do(ctx, KindHello, &hello, &reply); err != nil {
		var lost *ConnError
		if errors.As(err, &lost) && lost.Refusal() != nil {
			return HelloReply{}, lost.Refusal() // a hello has no effect to be unsure of
		}
		return HelloReply{}, err
	}
	if reply.Version < hello.MinVersion || reply.Version > hello.MaxVersion {
		return HelloReply{}, Refuse(CodeBadVersion, "hello: the server chose protocol version %d, offered were %d to %d",
			reply.Version, hello.MinVersion, hello.MaxVersion)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reply = reply
	if n := int(reply.MaxInFlight); n > 0 && n < c.max {
		c.max = n
	}
	if n := int64(reply.MaxFrame); n > 0 && n < c.sendLimit.Load() {
		c.sendLimit.Store(n)
	}
	return reply, nil
}

// Hello is the answer to Handshake.
func (c *Conn) Hello() HelloReply {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reply
}

// Done is closed when the connection has failed or was closed.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is why the connection failed; nil while it works.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// InFlight is how many requests have no answer yet.
func (c *Conn) InFlight() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inUse
}

// RemoteAddr is the server's address.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// Close ends the connection, and every call on it with ErrConnClosed, and
// waits for its goroutines.
func (c *Conn) Close() error {
	c.fail(ErrConnClosed)
	c.bg.Wait()
	return nil
}

// Do is Call with messages: it encodes request (nil: an empty body) and
// decodes the answer into reply (nil: the answer is not looked at).
func (c *Conn) Do(ctx context.Context, kind Kind, request, reply Message) error {
	body, err := c.call(ctx, outgoing{Frame: Frame{Kind: kind}, message: request})
	if err != nil || reply == nil {
		return err
	}
	return Decode(body, reply)
}

// Call sends a request and waits for its answer, which belongs to the caller.
// The request's body is copied and may be used again when Call returns. The
// error is an *Error if the server refused, or a *ConnError if there is no
// answer. The end of ctx cancels the request on the server too.
func (c *Conn) Call(ctx context.Context, kind Kind, body []byte) ([]byte, error) {
	return c.call(ctx, outgoing{Frame: Frame{Kind: kind, Body: body}})
}

func (c *Conn) call(ctx context.Context, f outgoing) ([]byte, error) {
	w, _ := c.calls.Get().(*call)
	if w == nil {
		w = &call{ready: make(chan struct{}, 1)}
	}
	defer c.release(w)
	id, begin, err := c.start(ctx, w, &f)
	if err != nil {
		return nil, err
	}
	if ended := ctx.Done(); ended == nil {
		<-w.ready
	} else {
		select {
		case <-w.ready:
		case <-ended:
			if c.abandon(id) {
				return nil, &ConnError{Sent: true, Err: ctx.Err()}
			}
			<-w.ready // the answer was on its way to us
		}
	}
	if w.failed {
		return nil, &ConnError{Sent: c.out.sent(begin), Err: c.Err()}
	}
	return w.body, w.err
}

// Ask is Call without waiting: then is called once with the answer, or with why
// there is none, on the goroutine that reads the connection. It must not wait.
// False: the connection has failed or is full, nothing was sent, and then is
// not called. Forget takes the caller off the request.
func (c *Conn) Ask(kind Kind, timeout time.Duration, body []byte, then func(body []byte, err error)) (forget func(), ok bool) {
	w := &call{then: then}
	c.mu.Lock()
	if c.err != nil || len(c.free) == 0 && len(c.slots) >= c.max {
		c.mu.Unlock()
		return nil, false
	}
	id, alone := c.takeLocked(w)
	c.mu.Unlock()
	f := Frame{Kind: kind, Request: id, Timeout: uint32(timeout / time.Millisecond), Body: body}
	if _, err := c.out.send(&f, alone); err != nil && c.drop(id) {
		return nil, false
	}
	return func() { c.abandon(id) }, true
}

func (c *Conn) release(w *call) {
	*w = call{ready: w.ready}
	c.calls.Put(w)
}

// Stream sends a request and gives each part of its answer to each, in order,
// in the caller's goroutine. A part belongs to each. An error of each ends
// the stream, cancels it on the server and is returned as it is. Parts wait
// for a slow reader without disturbing other calls, up to MaxStream.
func (c *Conn) Stream(ctx context.Context, kind Kind, body []byte, each func(part []byte) error) error {
	w := &call{ready: make(chan struct{}, 1), stream: true}
	id, begin, err := c.start(ctx, w, &outgoing{Frame: Frame{Kind: kind, Body: body}})
	if err != nil {
		return err
	}
	for {
		select {
		case <-w.ready:
		case <-ctx.Done():
			c.abandon(id)
			return &ConnError{Sent: true, Err: ctx.Err()}
		}
		c.mu.Lock()
		parts, last, failed, err := w.parts, w.last, w.failed, w.err
		w.parts, w.size = nil, 0
		c.mu.Unlock()
		for _, part := range parts {
			if err := ctx.Err(); err != nil {
				c.abandon(id)
				return &ConnError{Sent: true, Err: err}
			}
			if err := each(part); err != nil {
				c.abandon(id)
				return err
			}
		}
		switch {
		case failed:
			return &ConnError{Sent: c.out.sent(begin), Err: c.Err()}
		case last:
			return err
		}
	}
}

// start takes a slot and sends the request. Begin is where its frame begins
// in what was sent.
func (c *Conn) start(ctx context.Context, w *call, f *outgoing) (id, begin uint64, err error) {
	f.most = int(c.sendLimit.Load())
	if size := len(f.Body) + FrameOverhead; size > f.most {
		return 0, 0, tooLarge(size, f.most)
	}
	if err := ctx.Err(); err != nil {
		return 0, 0, &ConnError{Err: err}
	}
	if f.Timeout, err = timeoutOf(ctx); err != nil {
		return 0, 0, err
	}
	id, alone, err := c.acquire(ctx, w)
	if err != nil {
		return 0, 0, &ConnError{Err: err}
	}
	f.Request = id
	for {
		begin, room, err := c.out.offer(f, alone)
		if err == errTooLarge {
			if !c.drop(id) {
				<-w.ready
			}
			return 0, 0, tooLarge(f.size, f.most)
		}
		if err != nil {
			// The connection is failing, and every call with a slot is told so;
			// this one must take the signal out of its channel.
			c.fail(err)
			<-w.ready
			return 0, 0, &ConnError{Err: c.Err()}
		}
		if room == nil {
			return id, begin, nil
		}
		select {
		case <-room:
		case <-ctx.Done():
			if !c.drop(id) {
				<-w.ready
			}
			return 0, 0, &ConnError{Err: ctx.Err()}
		}
	}
}

func tooLarge(size, limit int) error {
	return Refuse(CodeFrameTooLarge, "request: %d bytes, the server accepts %d (send less in one request)", size, limit)
}

// drop frees the slot of a request that was not sent. It is false if the
// connection has failed meanwhile and the call was told so.
func (c *Conn) drop(id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false
	}
	c.freeLocked(uint16(id & pingSlot))
	return true
}

// timeoutOf is what the server may take, in milliseconds, rounded up; 0 if
// there is no deadline.
func timeoutOf(ctx context.Context) (uint32, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0, nil
	}
	left := time.Until(deadline)
	if left <= 0 {
		return 0, &ConnError{Err: context.DeadlineExceeded}
	}
	return uint32(min((left+time.Millisecond-1)/time.Millisecond, 1<<32-1)), nil
}

// acquire takes a slot for w, waiting for one if all are in use. Alone says
// that no other is.
func (c *Conn) acquire(ctx context.Context, w *call) (id uint64, alone bool, err error) {
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return 0, false, c.err
	}
	if len(c.free) > 0 || len(c.slots) < c.max {
		id, alone = c.takeLocked(w)
	} else {
		index, err := c.waitLocked(ctx)
		if err != nil {
			c.mu.Unlock()
			return 0, false, err
		}
		id, alone = c.useLocked(index, w)
	}
	c.mu.Unlock()
	return id, alone, nil
}

// takeLocked takes a slot that nobody uses; there must be one.
func (c *Conn) takeLocked(w *call) (id uint64, alone bool) {
	var index uint16
	if n := len(c.free); n > 0 {
		index = c.free[n-1]
		c.free = c.free[:n-1]
	} else {
		index = uint16(len(c.slots))
		c.slots = append(c.slots, slot{})
	}
	c.inUse++
	return c.useLocked(index, w)
}

func (c *Conn) useLocked(index uint16, w *call) (id uint64, alone bool) {
	s := &c.slots[index]
	s.id = s.id | uint64(index)
	s.id += 1 << slotBits
	s.call, s.used = w, true
	if c.timer == nil && c.o.KeepAlive > 0 {
		c.armLocked()
	}
	return s.id, c.inUse == 1
}

// waitLocked waits for a slot in line. It lets go of the lock meanwhile.
func (c *Conn) waitLocked(ctx context.Context) (uint16, error) {
	turn := make(chan uint16, 1)
	c.waiting = append(c.waiting, turn)
	c.mu.Unlock()
	var err error
	select {
	case index := <-turn:
		c.mu.Lock()
		if c.err == nil {
			return index, nil
		}
		return 0, c.err // no slot is of use any more
	case <-ctx.Done():
		err = ctx.Err()
	case <-c.done:
	}
	c.mu.Lock()
	if c.err != nil {
		return 0, c.err
	}
	for i, ch := range c.waiting {
		if ch == turn {
			c.waiting = slices.Delete(c.waiting, i, i+1)
			return 0, err
		}
	}
	c.freeLocked(<-turn) // it was our turn just now: pass it on
	return 0, err
}

// freeLocked ends a request: its slot goes to who waits longest.
func (c *Conn) freeLocked(index uint16) {
	c.slots[index].call, c.slots[index].used = nil, false
	if len(c.waiting) > 0 {
		turn := c.waiting[0]
		c.waiting[0] = nil
		c.waiting = c.waiting[1:]
		turn <- index
		return
	}
	c.free = append(c.free, index)
	c.inUse--
}

// abandon takes the caller off a request and tells the server. It is false if
// the answer has already been given to the caller.
func (c *Conn) abandon(id uint64) bool {
	c.mu.Lock()
	s := &c.slots[id&pingSlot]
	if s.id != id || s.call == nil {
		c.mu.Unlock()
		return false
	}
	s.call = nil
	c.mu.Unlock()
	c.cancel(id)
	return true
}

// cancel asks the server to stop. The answer still comes, and frees the slot.
func (c *Conn) cancel(id uint64) {
	_, _ = c.out.send(&Frame{Kind: KindCancel, Request: id}, true) // a failed connection cancels everything
}

// read takes frames until the connection fails.
func (c *Conn) read() {
	var f Frame
	for {
		err := c.in.next(&f)
		if err == nil {
			err = c.answer(&f)
		}
		if err != nil {
			if err == io.EOF {
				err = errServerClosed
			}
			c.fail(err)
			return
		}
	}
}

var errServerClosed = errors.New("wire: the server closed the connection")

// answer gives one frame to the call it belongs to.
func (c *Conn) answer(f *Frame) error {
	if f.Flags&FlagResponse == 0 {
		return badFrame(CodeBadRequest, f.Request, "a request of kind %s where only answers are expected", f.Kind)
	}
	var refusal *Error
	if f.Flags&FlagError != 0 {
		refusal = new(Error)
		if err := Decode(f.Body, refusal); err != nil {
			return fmt.Errorf("wire: an error frame that does not decode: %w", err)
		}
	}
	switch f.Request {
	case pingID:
		return nil
	case 0:
		if refusal != nil {
			return &connRefused{refusal}
		}
		return badFrame(CodeBadRequest, 0, "an answer to no request")
	}
	more := f.Flags&FlagMore != 0 && refusal == nil
	index := f.Request & pingSlot
	c.mu.Lock()
	if index >= uint64(len(c.slots)) || c.slots[index].id != f.Request || !c.slots[index].used {
		c.mu.Unlock()
		return badFrame(CodeBadRequest, f.Request, "an answer to a request that is not open")
	}
	w := c.slots[index].call
	if !more {
		c.freeLocked(uint16(index))
	}
	if w == nil {
		c.mu.Unlock()
		return nil
	}
	then := w.then // once signalled, w may be another caller's
	cancel := false
	if w.stream {
		cancel = c.partLocked(w, f, refusal, more)
		w.signal()
	} else {
		w.body = f.Body
		if refusal != nil {
			w.body, w.err = nil, refusal
		} else if more {
			w.body, w.err, cancel = nil, errStreamed, true
		}
		if then == nil {
			w.ready <- struct{}{} // never blocks: one signal per call
		}
	}
	if cancel {
		c.slots[index].call = nil
	}
	c.mu.Unlock()
	if cancel {
		c.cancel(f.Request)
	}
	if then != nil {
		then(w.body, w.err)
	}
	return nil
}

// partLocked adds a part to a stream, and says whether to cancel it.
func (c *Conn) partLocked(w *call, f *Frame, refusal *Error, more bool) (cancel bool) {
	w.last = !more
	if refusal != nil {
		w.err = refusal
		return false
	}
	if len(f.Body) > 0 {
		w.parts = append(w.parts, f.Body)
		w.size += len(f.Body)
	}
	if w.size > c.o.MaxStream {
		w.parts, w.last = nil, true
		w.err = fmt.Errorf("wire: more than %d bytes of a streaming answer wait for their reader (ask for less at once)", c.o.MaxStream)
		return more
	}
	return false
}

// signal wakes a stream's reader; one signal stands for all that is there.
func (w *call) signal() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// fail ends the connection: every call learns it, every later one is refused.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	var asked []*call
	for i := range c.slots {
		if w := c.slots[i].call; w != nil {
			c.slots[i].call = nil
			w.failed = true
			if w.then != nil {
				asked = append(asked, w)
			} else {
				w.signal()
			}
		}
	}
	c.waiting = nil
	if c.timer != nil && c.timer.Stop() {
		c.timer = nil
		c.bg.Done()
	}
	close(c.done)
	c.mu.Unlock()
	_ = c.nc.Close() // what matters is already lost; first, so that the writer gets free
	c.out.fail(err)
	for _, w := range asked {
		w.then(nil, &ConnError{Sent: true, Err: err})
	}
}
