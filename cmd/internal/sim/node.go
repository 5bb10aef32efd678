package sim

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/impossibledb/idb/cmd/internal/node"
	"github.com/impossibledb/idb/shardgroup"
)

// Node is one machine of the cluster: a drive, a clock, a place on the network
// and, while it runs, a process with the real node in it.
//
// A process that dies inside one that goes on is the trick of this type. Kill
// takes the network and the drive from it in one step, so that from then on
// nothing it does can be seen; it is then closed like any other, joined in the
// background, and what it still says is not listened to.
type Node struct {
	c     *Cluster
	ID    string
	Drive *Drive

	clock atomic.Pointer[wallClock] // nil: it is right

	mu     sync.Mutex
	life   *life // guarded by mu; nil: no process
	frozen bool  // guarded by mu
	held   bool  // guarded by mu; no supervisor starts it again
}

// life is one process on a machine.
type life struct {
	port     *Port
	mount    *Mount
	node     *node.Node    // nil until started
	stop     chan struct{} // closed when it is to shut down
	stopping bool          // guarded by Node.mu; stop is closed
	over     chan struct{} // closed when it was killed
	ready    chan struct{} // closed when Start has returned
}

// addresses of a machine.
func clientAddr(id string) string { return id + ":7400" }
func peerAddr(id string) string   { return id + ":7401" }
func httpAddr(id string) string   { return id + ":7402" }

// dataDir is where every node keeps its data, on a drive of its own.
const dataDir = "/idb"

// wallClock is how far a machine's clock is off, and how that changes.
type wallClock struct {
	since  time.Time
	offset time.Duration // at since
	gains  time.Duration // a second
}

// off is how far the clock is off at a moment; c may be nil.
func (c *wallClock) off(at time.Time) time.Duration {
	if c == nil {
		return 0
	}
	return c.offset + time.Duration(at.Sub(c.since).Seconds()*float64(c.gains))
}

// Now is the machine's wall clock.
func (n *Node) Now() time.Time {
	now := time.Now()
	return now.Add(n.clock.Load().off(now))
}

// Jump moves the machine's wall clock. Its rate stays as it is.
func (n *Node) Jump(d time.Duration) { n.adjust(d, nil) }

// Drift has the machine's wall clock gain so much a second from now on. One
// that gains less than -1s runs backwards.
func (n *Node) Drift(gains time.Duration) { n.adjust(0, &gains) }

// adjust is called by one goroutine at a time, that of the plan.
func (n *Node) adjust(jump time.Duration, gains *time.Duration) {
	now, was := time.Now(), n.clock.Load()
	c := &wallClock{since: now, offset: was.off(now) + jump}
	if was != nil {
		c.gains = was.gains
	}
	if gains != nil {
		c.gains = *gains
	}
	n.clock.Store(c)
}

// SetClock makes the wall clock right again, and its rate.
func (n *Node) SetClock() { n.clock.Store(nil) }

// Start boots the machine and starts its process. A process that cannot start
// is started again after a second, as an init system does, until the machine is
// killed.
func (n *Node) Start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = false
	n.startLocked()
}

func (n *Node) startLocked() {
	if n.life != nil {
		return
	}
	l := &life{
		port: n.c.Net.Join(n.ID), mount: n.Drive.Mount(),
		stop: make(chan struct{}), over: make(chan struct{}), ready: make(chan struct{}),
	}
	n.life = l
	n.c.bg.Go(func() { n.run(l) })
}

// restartAfter is how long the init system waits.
const restartAfter = time.Second

// run is the life of one process, to its end.
func (n *Node) run(l *life) {
	started, err := node.Start(context.Background(), n.config(l), n.c.log.Named(n.ID))
	l.node = started
	close(l.ready)
	if err != nil {
		if n.current() == l {
			n.c.note("%s cannot start: %v", n.ID, err)
		}
	} else {
		select {
		case err := <-started.Fatal():
			if n.current() == l { // or it finds that it was killed
				n.c.note("%s ends itself: %v", n.ID, err)
				n.c.fatal(n, err)
			}
		case <-l.stop:
			// When it is killed meanwhile it goes on in peace; nobody sees it.
			l.mount.quick.Store(true)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if err := started.Shutdown(ctx); err != nil && n.current() == l {
				n.c.note("%s shuts down: %v", n.ID, err)
			}
			cancel()
			started = nil // closed
		case <-l.over:
		}
	}
	ended := n.end(l, true, 0, false)
	if started != nil {
		// Its disk is a copy without faults by now. What it says about its end
		// is of no interest; that it ends is.
		_ = started.Close()
	}
	if !ended {
		return // somebody else has ended it and says what comes next
	}
	time.Sleep(restartAfter)
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.held && !n.c.closing() {
		n.startLocked()
	}
}

// end takes everything from a process; false if that was done already.
func (n *Node) end(l *life, power bool, keep float64, hold bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = n.held || hold
	if n.life != l || l == nil {
		return false
	}
	n.life = nil
	n.frozen = false
	l.port.Exit(power)
	if power {
		n.Drive.Kill()
	} else {
		n.Drive.CutPower(keep)
	}
	close(l.over)
	return true
}

// Kill ends the process, as kill -9 does. It stays down until Start.
func (n *Node) Kill() { n.end(n.current(), true, 0, true) }

// Stop ends the process in order, as SIGTERM does. It stays down until Start.
func (n *Node) Stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = true
	if l := n.life; l != nil && !l.stopping {
		l.stopping = true
		close(l.stop)
	}
}

// PowerOff takes the machine's power: of what was not synced, the share keep
// is left.
func (n *Node) PowerOff(keep float64) { n.end(n.current(), false, keep, true) }

func (n *Node) current() *life {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.life
}

// Pause stops the process as SIGSTOP does, as far as others can tell: nothing
// comes out of it, and what it has asked of its disk is not answered.
func (n *Node) Pause() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.life == nil || n.frozen {
		return
	}
	n.frozen = true
	n.c.Net.Freeze(n.ID)
	n.Drive.Stop()
}

// Resume ends a pause.
func (n *Node) Resume() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.frozen {
		return
	}
	n.frozen = false
	n.c.Net.Thaw(n.ID)
	n.Drive.Continue()
}

// Up says whether a process runs.
func (n *Node) Up() bool { return n.current() != nil }

// Running is the node that runs now; nil if there is none or it is starting.
func (n *Node) Running() *node.Node {
	l := n.current()
	if l == nil {
		return nil
	}
	select {
	case <-l.ready:
		return l.node
	default:
		return nil
	}
}

// Ready says why the machine cannot do its part; nil if it can.
func (n *Node) Ready() error {
	r := n.Running()
	if r == nil {
		return fmt.Errorf("%s does not run", n.ID)
	}
	return r.Ready()
}

// Leads says whether this node leads a group. Group 0 is placement.
func (n *Node) Leads(group uint32) bool {
	r := n.Running()
	if r == nil {
		return false
	}
	for _, s := range r.Groups() {
		if s.ID == group {
			return s.State == "leader"
		}
	}
	return false
}

// config is a node's, with everything that the simulation replaces.
func (n *Node) config(l *life) node.Config {
	o := &n.c.o
	return node.Config{
		ID: n.ID, DataDir: dataDir,
		ClientAddr: clientAddr(n.ID), PeerAddr: peerAddr(n.ID), HTTPAddr: httpAddr(n.ID),
		FS: l.mount, Now: n.Now, Listen: l.port.Listen, Dial: l.port.Dial,
		DiskReserveBytes: diskReserve,
		StateCacheBytes:  1 << 20,
		NewestBytes:      256 << 10, // small, so that some are pushed out
		Host: func(c *shardgroup.Config) {
			c.Stable = func(path string) (shardgroup.StableStore, error) { return OpenStable(l.mount, path) }
			c.PlacementStore = func(dir string, _ hclog.Logger) (shardgroup.PlacementStore, error) {
				return OpenPlacementStore(l.mount, dir)
			}
			c.JoinAfterFatal = true
			c.OnHalt = func(h *shardgroup.HaltError) { n.c.halted(n, h) }
			o.Host(c)
		},
	}
}

// diskReserve is small, so that faults need not fill much.
const diskReserve = 4 << 20
