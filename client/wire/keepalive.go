package wire

import "time"

// armLocked starts keepAlive, which runs as long as answers are owed.
func (c *Conn) armLocked() {
	c.seen, c.pinged = c.in.received.Load(), false
	c.bg.Add(1)
	c.timer = time.AfterFunc(c.o.KeepAlive, c.keepAlive)
}

// keepAlive looks whether anything came since it looked last.
func (c *Conn) keepAlive() {
	c.mu.Lock()
	if c.err != nil || c.inUse == 0 {
		c.timer = nil
		c.mu.Unlock()
		c.bg.Done()
		return
	}
	received := c.in.received.Load()
	silent := received == c.seen
	if silent && c.pinged {
		c.timer = nil
		c.mu.Unlock()
		c.fail(ErrPeerSilent)
		c.bg.Done()
		return
	}
	c.seen, c.pinged = received, silent
	c.timer.Reset(c.o.KeepAlive)
	c.mu.Unlock()
	if silent {
		_, _ = c.out.send(&Frame{Kind: KindPing, Request: pingID}, true) // a failure is seen by the reader
	}
}
