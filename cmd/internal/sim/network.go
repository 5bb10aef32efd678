package sim

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Link is how traffic goes from one machine to another, one way.
type Link struct {
	// Cut: nothing arrives. What was sent is sent again until it does, at the
	// distances that TCP takes, so an old connection comes back late after a
	// long cut and a new one at once.
	Cut bool
	// Latency is the way's length; Jitter is added at random, each connection
	// for itself.
	Latency, Jitter time.Duration
	// Loss is the chance that a segment is lost and comes only with the next
	// try, and everything behind it on its connection too.
	Loss float64
	// BytesPerSecond is shared by all connections of the link; 0: no limit.
	BytesPerSecond float64
}

// firstRetry is TCP's least retransmission timeout; each next one is twice as
// long, up to lastRetry.
const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 120 * time.Second
	// firstSYN is when a connection that is being opened is tried again.
	firstSYN = time.Second
	// window is how much may be on its way or unread before a writer waits.
	window = 1 << 20
)

// Network connects machines by name: the host of an address is the machine's.
//
// Bytes of one connection arrive whole and in order or not at all, as TCP
// gives them; faults stall and break connections. A machine is told of by its
// Port, which dies with the process that holds it.
//
// Nothing here holds mu while it waits, or virtual time would stand still.
type Network struct {
	mu        sync.Mutex
	rng       *rand.Rand              // guarded by mu
	normal    Link                    // of links that have no fault
	links     map[[2]string]*Link     // guarded by mu; from, to
	busyUntil map[[2]string]time.Time // guarded by mu; of links with a bandwidth
	machines  map[string]*machine     // guarded by mu
	listeners map[string]*listener    // guarded by mu; by address
	conns     map[*conn]struct{}      // guarded by mu; both ends of all that are open
	sent      int64                   // guarded by mu; bytes, for reports
}

// machine is one host on the network.
type machine struct {
	frozen bool          // its processes stand still
	off    bool          // without power: not even a refusal comes back
	thawed chan struct{} // closed at the end of a freeze
}

// NewNetwork makes a network without machines.
func NewNetwork(rng *rand.Rand) *Network {
	return &Network{
		rng:       rng,
		normal:    Link{Latency: 200 * time.Microsecond, Jitter: 300 * time.Microsecond},
		links:     make(map[[2]string]*Link),
		busyUntil: make(map[[2]string]time.Time),
		machines:  make(map[string]*machine),
		listeners: make(map[string]*listener),
		conns:     make(map[*conn]struct{}),
	}
}

// Port is what one process of a machine does with the network.
type Port struct {
	n    *Network
	name string
	dead chan struct{} // closed when the process ends
	once sync.Once
}

// Join gives a process on a machine its way to the network; a machine that was
// off is on again.
func (n *Network) Join(name string) *Port {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.machineLocked(name)
	if m.off {
		m.off = false
		// It knows nothing of the connections it had: it resets them when it
		// hears of them.
		for c := range n.conns {
			if c.remote == name && c.orphan {
				c.resetOnWriteLocked()
			}
		}
	}
	return &Port{n: n, name: name, dead: make(chan struct{})}
}

func (n *Network) machineLocked(name string) *machine {
	m := n.machines[name]
	if m == nil {
		m = &machine{}
		n.machines[name] = m
	}
	return m
}

// linkLocked is how traffic goes now.
func (n *Network) linkLocked(from, to string) Link {
	if l := n.links[[2]string{from, to}]; l != nil {
		return *l
	}
	return n.normal
}

// Change alters a link, one way.
func (n *Network) Change(from, to string, f func(*Link)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.linkLocked(from, to)
	f(&l)
	n.links[[2]string{from, to}] = &l
	n.releaseLocked()
}

// Heal removes every fault of links.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.links)
	clear(n.busyUntil)
	n.releaseLocked()
}

// Freeze stops a machine's processes as far as the network can tell: what is
// sent to it is taken by its kernel, and nothing comes out.
func (n *Network) Freeze(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if m := n.machineLocked(name); !m.frozen {
		m.frozen, m.thawed = true, make(chan struct{})
	}
}

// Thaw ends a freeze.
func (n *Network) Thaw(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.machineLocked(name)
	if !m.frozen {
		return
	}
	m.frozen = false
	close(m.thawed)
	n.releaseLocked()
	for c := range n.conns {
		if c.local == name {
			c.wakeLocked()
		}
	}
}

// Reset breaks every connection between two machines, at both ends.
func (n *Network) Reset(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if c.local == a && c.remote == b || c.local == b && c.remote == a {
			c.breakLocked(syscall.ECONNRESET)
		}
	}
}

// Sent is how many bytes were sent in all.
func (n *Network) Sent() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent
}

// releaseLocked gives what was held back a time of arrival, where its way is
// open now.
func (n *Network) releaseLocked() {
	for c := range n.conns {
		c.scheduleLocked()
	}
}

// Exit ends the process: its kernel closes its listeners and connections. With
// power, the others are told; without, they hear nothing more.
func (p *Port) Exit(power bool) {
	p.once.Do(func() { close(p.dead) })
	n := p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.machineLocked(p.name)
	m.off = m.off || !power
	if m.frozen || !power {
		// A process that stood still has sent nothing, and a kernel without
		// power sends nothing again.
		for c := range n.conns {
			if c.p == p {
				c.peer.forgetHeldLocked()
			}
		}
	}
	if m.frozen {
		m.frozen = false
		close(m.thawed)
	}
	for addr, l := range n.listeners {
		if l.p == p {
			delete(n.listeners, addr)
			l.closeLocked()
		}
	}
	for c := range n.conns {
		if c.p != p {
			continue
		}
		if power {
			c.endLocked(net.ErrClosed)
		} else {
			c.peer.orphan = true
			c.dropLocked(net.ErrClosed)
		}
	}
}

// Listen opens a port of this machine.
func (p *Port) Listen(addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if host != p.name {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: address(addr), Err: syscall.EADDRNOTAVAIL}
	}
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	if p.n.listeners[addr] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: address(addr), Err: syscall.EADDRINUSE}
	}
	l := &listener{p: p, addr: address(addr), backlog: make(chan *conn, 1024), done: make(chan struct{})}
	p.n.listeners[addr] = l
	return l, nil
}

// Dial connects to an address. It takes one round trip, and as long as ctx
// lasts when nothing answers.
func (p *Port) Dial(ctx context.Context, addr string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: address(addr), Err: err}
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fail(err)
	}
	retry := firstSYN
	for {
		var wait time.Duration
		var thawed chan struct{}
		p.n.mu.Lock()
		there, back := p.n.linkLocked(p.name, host), p.n.linkLocked(host, p.name)
		m := p.n.machineLocked(host)
		switch self := p.n.machineLocked(p.name); {
		case self.frozen:
			thawed = self.thawed
		case there.Cut || back.Cut || m.off ||
			p.n.rng.Float64() < there.Loss || p.n.rng.Float64() < back.Loss:
			wait = retry
			retry *= 2
		default:
			rtt := p.n.delayLocked(there) + p.n.delayLocked(back)
			p.n.mu.Unlock()
			if err := p.pause(ctx, rtt); err != nil {
				return fail(err)
			}
			c, err := p.connect(host, addr)
			if err != nil {
				return fail(err)
			}
			return c, nil
		}
		p.n.mu.Unlock()
		if thawed != nil {
			select {
			case <-thawed:
			case <-ctx.Done():
				return fail(ctx.Err())
			case <-p.dead:
				return fail(net.ErrClosed)
			}
		} else if err := p.pause(ctx, wait); err != nil {
			return fail(err)
		}
	}
}

func (p *Port) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.dead:
		return net.ErrClosed
	}
}

func (p *Port) connect(host, addr string) (*conn, error) {
	n := p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[addr]
	switch {
	case p.gone():
		return nil, net.ErrClosed
	case l == nil:
		return nil, syscall.ECONNREFUSED
	case len(l.backlog) == cap(l.backlog):
		return nil, syscall.ETIMEDOUT
	}
	here := newConn(p, p.name, host, addr)
	there := newConn(l.p, host, p.name, p.name+":0")
	here.peer, there.peer = there, here
	n.conns[here], n.conns[there] = struct{}{}, struct{}{}
	l.backlog <- there // has room, and only this sends
	return here, nil
}

func (p *Port) gone() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

// delayLocked is how long one segment takes on a link.
func (n *Network) delayLocked(l Link) time.Duration {
	d := l.Latency
	if l.Jitter > 0 {
		d += time.Duration(n.rng.Int64N(int64(l.Jitter)))
	}
	return d
}

type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

type listener struct {
	p       *Port
	addr    address
	backlog chan *conn
	done    chan struct{}
	closed  bool // guarded by Network.mu
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done: // before what else may be there
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
	default:
	}
	select {
	case c := <-l.backlog:
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
	}
}

func (l *listener) Close() error {
	n := l.p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[string(l.addr)] == l {
		delete(n.listeners, string(l.addr))
	}
	l.closeLocked()
	return nil
}

// closeLocked refuses what nobody will accept any more.
func (l *listener) closeLocked() {
	if l.closed {
		return
	}
	l.closed = true
	close(l.done)
	for {
		select {
		case c := <-l.backlog:
			c.endLocked(net.ErrClosed)
		default:
			return
		}
	}
}

func (l *listener) Addr() net.Addr { return l.addr }

// conn is one end of a connection: what has come in and was not read yet.
//
//	peer.Write → chunks, each with a time of arrival or held back → Read
type conn struct {
	p             *Port
	local, remote string // machines
	addr          string
	peer          *conn

	wake    chan struct{} // one signal to the reader
	room    chan struct{} // one signal to a writer that waits for the window
	arrival *time.Timer   // fires when the first chunk arrives

	// Guarded by Network.mu.
	in       []chunk
	unread   int       // bytes in in
	last     time.Time // arrival of the last chunk: nothing overtakes
	held     time.Time // since when the way in is closed; zero: it is not
	err      error     // of every call on this end
	orphan   bool      // the other end is gone and could not say so
	deadline time.Time // of reads and writes
}

type chunk struct {
	data []byte
	at   time.Time // of arrival; zero: held back
	end  error     // not nil: the last one; what reads get after it
}

func newConn(p *Port, local, remote, addr string) *conn {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &conn{
		p: p, local: local, remote: remote, addr: addr,
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1), arrival: t,
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (c *conn) wakeLocked() {
	notify(c.wake)
	notify(c.room)
}

// scheduleLocked gives held chunks their time of arrival if the way to c is
// open, and arms the reader's timer.
func (c *conn) scheduleLocked() {
	n := c.p.n
	from, to := c.remote, c.local
	if c.err != nil || len(c.in) == 0 {
		return
	}
	link := n.linkLocked(from, to)
	frozen := n.machineLocked(from).frozen
	shut := link.Cut || frozen || n.machineLocked(to).off
	now := time.Now()
	for i := range c.in {
		k := &c.in[i]
		if !k.at.IsZero() {
			continue
		}
		if shut {
			if c.held.IsZero() && !frozen {
				c.held = now
			}
			break
		}
		at := now
		if !c.held.IsZero() {
			at = nextRetry(c.held, now)
			c.held = time.Time{}
		}
		at = at.Add(n.delayLocked(link))
		for lost := firstRetry; lost < lastRetry && n.rng.Float64() < link.Loss; lost *= 2 {
			at = at.Add(lost)
		}
		if link.BytesPerSecond > 0 {
			key := [2]string{from, to}
			begin := now
			if b := n.busyUntil[key]; b.After(begin) {
				begin = b
			}
			done := begin.Add(time.Duration(float64(len(k.data)) / link.BytesPerSecond * float64(time.Second)))
			n.busyUntil[key] = done
			at = at.Add(done.Sub(now))
		}
		if at.Before(c.last) {
			at = c.last
		}
		k.at, c.last = at, at
	}
	c.armLocked()
}

// forgetHeldLocked drops what has not left the other end.
func (c *conn) forgetHeldLocked() {
	for i := range c.in {
		if c.in[i].at.IsZero() {
			for _, k := range c.in[i:] {
				c.unread -= len(k.data)
			}
			c.in = c.in[:i]
			return
		}
	}
}

// nextRetry is the first time at or after now at which TCP sends again what it
// first could not deliver at held.
func nextRetry(held, now time.Time) time.Time {
	at, step := held, firstRetry
	for at.Before(now) {
		at = at.Add(step)
		step = min(2*step, lastRetry)
	}
	return at
}

// armLocked sets the reader's timer to the first arrival.
func (c *conn) armLocked() {
	if len(c.in) == 0 || c.in[0].at.IsZero() {
		return
	}
	if d := time.Until(c.in[0].at); d > 0 {
		c.arrival.Reset(d)
	} else {
		notify(c.wake)
	}
}

// Read waits for the first bytes.
func (c *conn) Read(b []byte) (int, error) {
	n := c.p.n
	for {
		n.mu.Lock()
		if err := c.failedLocked(); err != nil {
			n.mu.Unlock()
			return 0, c.opError("read", err)
		}
		thawed := n.machineLocked(c.local).thawed
		frozen := n.machineLocked(c.local).frozen
		if !frozen && len(c.in) > 0 && !c.in[0].at.IsZero() && !c.in[0].at.After(time.Now()) {
			k := &c.in[0]
			if k.end != nil {
				n.mu.Unlock()
				if k.end == io.EOF {
					return 0, io.EOF
				}
				return 0, c.opError("read", k.end)
			}
			if len(b) == 0 {
				n.mu.Unlock()
				return 0, nil
			}
			read := 0
			for read < len(b) && len(c.in) > 0 {
				k := &c.in[0]
				if k.end != nil || k.at.IsZero() || k.at.After(time.Now()) {
					break
				}
				m := copy(b[read:], k.data)
				read += m
				if k.data = k.data[m:]; len(k.data) == 0 {
					c.in[0] = chunk{}
					c.in = c.in[1:]
				}
			}
			c.unread -= read
			if len(c.in) == 0 {
				c.in = nil
			}
			notify(c.room)
			n.mu.Unlock()
			return read, nil
		}
		var late <-chan time.Time
		var timer *time.Timer
		if !c.deadline.IsZero() {
			timer = time.NewTimer(time.Until(c.deadline))
			late = timer.C
		}
		if frozen {
			n.mu.Unlock()
			select {
			case <-thawed:
			case <-late:
			case <-c.p.dead:
			}
		} else {
			c.armLocked()
			n.mu.Unlock()
			select {
			case <-c.wake:
			case <-c.arrival.C:
			case <-late:
			}
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// failedLocked is why a call cannot be served.
func (c *conn) failedLocked() error {
	if c.err != nil {
		return c.err
	}
	if !c.deadline.IsZero() && !time.Now().Before(c.deadline) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Write hands bytes to the kernel; it waits only while the window is full.
func (c *conn) Write(b []byte) (int, error) {
	n := c.p.n
	written := 0
	for {
		n.mu.Lock()
		if err := c.failedLocked(); err != nil {
			n.mu.Unlock()
			return written, c.opError("write", err)
		}
		to := c.peer
		if to.err != nil && !c.orphan {
			// Closed over there; the answer to this is a reset.
			n.mu.Unlock()
			return written, c.opError("write", syscall.EPIPE)
		}
		if to.unread < window {
			part := b[written:min(len(b), written+window)]
			to.in = append(to.in, chunk{data: append([]byte(nil), part...)})
			to.unread += len(part)
			n.sent += int64(len(part))
			written += len(part)
			if c.orphan && to.held.IsZero() {
				to.held = time.Now()
			}
			to.scheduleLocked()
			if c.orphan && !n.machineLocked(c.remote).off {
				c.resetOnWriteLocked()
			}
			if written == len(b) {
				n.mu.Unlock()
				return written, nil
			}
		}
		var late <-chan time.Time
		var timer *time.Timer
		if !c.deadline.IsZero() {
			timer = time.NewTimer(time.Until(c.deadline))
			late = timer.C
		}
		n.mu.Unlock()
		select {
		case <-to.room:
		case <-c.room: // woken: something has changed
		case <-late:
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// endLocked closes this end; the other one reads what is on its way and then
// that it is over.
func (c *conn) endLocked(err error) {
	if c.err != nil {
		return
	}
	c.dropLocked(err)
	to := c.peer
	if to.err == nil {
		to.in = append(to.in, chunk{end: io.EOF})
		to.scheduleLocked()
		notify(to.room)
	}
}

// breakLocked makes this end fail at once.
func (c *conn) breakLocked(err error) {
	if c.err == nil {
		c.dropLocked(err)
	}
}

// dropLocked forgets this end.
func (c *conn) dropLocked(err error) {
	c.err = err
	c.in, c.unread = nil, 0
	c.arrival.Stop()
	delete(c.p.n.conns, c)
	c.wakeLocked()
	notify(c.peer.room)
}

// resetOnWriteLocked: the machine over there has restarted and answers what it
// does not know with a reset, once something arrives.
func (c *conn) resetOnWriteLocked() {
	if c.err != nil || len(c.peer.in) == 0 {
		return // nothing is on its way: the next write will be
	}
	n := c.p.n
	at := time.Now()
	if !c.peer.held.IsZero() {
		at = nextRetry(c.peer.held, at)
	}
	at = at.Add(n.delayLocked(n.linkLocked(c.local, c.remote)))
	c.in = append(c.in, chunk{at: at, end: syscall.ECONNRESET})
	c.armLocked()
}

func (c *conn) Close() error {
	n := c.p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.err != nil {
		return nil
	}
	if c.orphan {
		c.dropLocked(net.ErrClosed)
		return nil
	}
	c.endLocked(net.ErrClosed)
	return nil
}

func (c *conn) opError(op string, err error) error {
	if err == net.ErrClosed || err == os.ErrDeadlineExceeded || err == syscall.ECONNRESET || err == syscall.EPIPE {
		return &net.OpError{Op: op, Net: "tcp", Addr: address(c.addr), Err: err}
	}
	return fmt.Errorf("%s %s: %w", op, c.addr, err)
}

func (c *conn) LocalAddr() net.Addr  { return address(c.local + ":0") }
func (c *conn) RemoteAddr() net.Addr { return address(c.addr) }

func (c *conn) SetDeadline(t time.Time) error {
	n := c.p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	c.deadline = t
	c.wakeLocked()
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }
