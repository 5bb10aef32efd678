package shardgroup

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

const (
	// maxFrontLocks bounds the locks taken up front in one group.
	maxFrontLocks = 100_000
	// maxEnded is how many transactions that have let go are remembered.
	maxEnded = 4096
)

// docKey names a document of the group.
type docKey struct {
	partition  placement.PartitionID
	collection placement.CollectionID
	id         string
}

// frontLock is a lock that a transaction took before its commit.
type frontLock struct {
	id      txn.ID
	born    hlc.Timestamp
	expires time.Time
}

// lockBook has the locks that transactions took up front, and who waits. It is
// in the leader's memory and lost with it: it makes conflicts rarer, and what
// is lost with it is found by validation.
type lockBook struct {
	count atomic.Int64 // locks, so that most commands need no more

	mu      sync.Mutex
	held    map[docKey]frontLock   // guarded by mu
	of      map[txn.ID][]docKey    // guarded by mu; the same, by holder
	wanted  map[docKey][]frontLock // guarded by mu; who asks for a lock
	changed chan struct{}          // guarded by mu; closed when one was let go
	waiting map[*Waiting]struct{}  // guarded by mu; so is what a Waiting says
	// Transactions that have let go of their locks, the last maxEnded of them. A
	// request for a lock may be carried twice, or be slow: one that comes when
	// all is over would hold the document for its whole lease.
	ended   map[txn.ID]struct{} // guarded by mu
	order   []txn.ID            // guarded by mu; a ring of the same
	oldest  int                 // guarded by mu; in order, when it is full
	waited  [2]atomic.Uint64    // waits ended, and the microseconds they took
	stepped atomic.Uint64       // commands that stepped back
	taken   atomic.Uint64       // locks taken
}

// Wait is what somebody is about to do who waits.
type Wait uint8

const (
	WaitWrite   Wait = iota + 1 // a single write
	WaitLock                    // a lock up front
	WaitPrepare                 // a participant's vote
	WaitDecide                  // home's decision
	WaitCommit                  // a commit within this group
)

// Waiting is a command that waits for locks.
type Waiting struct {
	What Wait
	ID   txn.ID // zero: a single write
	Born hlc.Timestamp
	// Home is the transaction's, if HomeKnown.
	Home      placement.PartitionID
	HomeKnown bool
	// For are those who hold what it waits for, and what that is.
	For   []WaitFor
	Since time.Time
}

// WaitFor is one reason to wait.
type WaitFor struct {
	ID         txn.ID // the holder
	Partition  placement.PartitionID
	Collection placement.CollectionID
	Document   string
}

// maxWaitFor bounds the reasons that are noted of one wait.
const maxWaitFor = 16

// FrontLock is a document that is locked up front.
type FrontLock struct {
	ID         txn.ID // the holder
	Born       hlc.Timestamp
	Partition  placement.PartitionID
	Collection placement.CollectionID
	Document   string
	Expires    time.Time
}

func (b *lockBook) init() {
	b.held, b.of = map[docKey]frontLock{}, map[txn.ID][]docKey{}
	b.wanted = map[docKey][]frontLock{}
	b.changed = make(chan struct{})
	b.ended = map[txn.ID]struct{}{}
	b.waiting = map[*Waiting]struct{}{}
}

// clear forgets everything: another leads.
func (b *lockBook) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.held)
	clear(b.of)
	b.count.Store(0)
	b.wakeLocked()
}

func (b *lockBook) wakeLocked() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// want and unwant bracket the asking for a lock: of those who ask, the oldest is
// to have it.
func (b *lockBook) want(k docKey, l frontLock) {
	b.mu.Lock()
	b.wanted[k] = append(b.wanted[k], l)
	b.mu.Unlock()
}

func (b *lockBook) unwant(k docKey, id txn.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	left := slices.DeleteFunc(b.wanted[k], func(l frontLock) bool { return l.id == id })
	if len(left) > 0 {
		b.wanted[k] = left
		b.wakeLocked() // it may have been the oldest
	} else {
		delete(b.wanted, k)
	}
}

// take takes a lock, or says who has it. If nobody has, it says who is to have
// it first, and when to look again. Of a transaction that has let go already it
// says the transaction itself.
func (b *lockBook) take(k docKey, l frontLock, now time.Time) (holder frontLock, changed <-chan struct{}, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, over := b.ended[l.id]; over {
		return l, nil, false
	}
	if h, there := b.held[k]; there && h.id != l.id && now.Before(h.expires) {
		return h, nil, false
	} else if !there && len(b.held) >= maxFrontLocks {
		if b.expireLocked(now); len(b.held) >= maxFrontLocks {
			return frontLock{}, nil, false
		}
	} else if there && h.id != l.id {
		b.dropLocked(h.id, k)
	}
	for _, o := range b.wanted[k] {
		if older(o.born, o.id, l.born, l.id) {
			return o, b.changed, false
		}
	}
	if h, there := b.held[k]; !there || h.id != l.id {
		b.of[l.id] = append(b.of[l.id], k)
		b.taken.Add(1)
	}
	b.held[k] = l
	b.count.Store(int64(len(b.held)))
	return l, nil, true
}

// expire lets go of what clients that died have left: nobody else may ever ask
// for those documents.
func (b *lockBook) expire(now time.Time) {
	if b.count.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expireLocked(now)
}

func (b *lockBook) expireLocked(now time.Time) {
	before := len(b.held)
	for k, h := range b.held {
		if !now.Before(h.expires) {
			b.dropLocked(h.id, k)
		}
	}
	if len(b.held) < before {
		b.count.Store(int64(len(b.held)))
		b.wakeLocked()
	}
}

// dropLocked lets one lock go.
func (b *lockBook) dropLocked(id txn.ID, k docKey) {
	delete(b.held, k)
	keys := b.of[id]
	for i := range keys {
		if keys[i] == k {
			keys[i] = keys[len(keys)-1]
			keys = keys[:len(keys)-1]
			break
		}
	}
	if len(keys) == 0 {
		delete(b.of, id)
	} else {
		b.of[id] = keys
	}
}

// release lets go of everything that a transaction has locked up front here. It
// may lock again.
func (b *lockBook) release(id txn.ID) {
	if b.count.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.releaseLocked(id)
}

// commits is release for one whose commit has come: if it had locks here, it
// gets none any more.
func (b *lockBook) commits(id txn.ID) {
	if b.count.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.releaseLocked(id) {
		b.endLocked(id)
	}
}

// end is release for one that has ended, and that may have asked for locks which
// have not come yet.
func (b *lockBook) end(id txn.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.releaseLocked(id)
	b.endLocked(id)
}

// pass makes one transaction's locks another's.
func (b *lockBook) pass(from, to txn.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	keys := b.of[from]
	for _, k := range keys {
		l := b.held[k]
		l.id = to
		b.held[k] = l
	}
	if len(keys) > 0 {
		b.of[to] = append(b.of[to], keys...)
		delete(b.of, from)
	}
}

func (b *lockBook) releaseLocked(id txn.ID) bool {
	keys := b.of[id]
	if len(keys) == 0 {
		return false
	}
	for _, k := range keys {
		delete(b.held, k)
	}
	delete(b.of, id)
	b.count.Store(int64(len(b.held)))
	b.wakeLocked()
	return true
}

func (b *lockBook) endLocked(id txn.ID) {
	if _, twice := b.ended[id]; twice {
		return
	}
	b.ended[id] = struct{}{}
	if len(b.order) < maxEnded {
		b.order = append(b.order, id)
		return
	}
	delete(b.ended, b.order[b.oldest])
	b.order[b.oldest] = id
	b.oldest = (b.oldest + 1) % maxEnded
}

// fronts are the locks that are held.
func (b *lockBook) fronts(now time.Time) (out []FrontLock) {
	if b.count.Load() == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, l := range b.held {
		if now.Before(l.expires) {
			out = append(out, FrontLock{l.id, l.born, k.partition, k.collection, k.id, l.expires})
		}
	}
	return out
}

// blocker is a lock up front that a command needs.
type blocker struct {
	frontLock
	docKey
}

// blockers are the holders of locks that a command needs, and a channel that is
// closed when one was let go. Expired locks are dropped.
func (b *lockBook) blockers(c *fsm.Command, now time.Time) ([]blocker, <-chan struct{}) {
	if b.count.Load() == 0 {
		return nil, nil
	}
	var self txn.ID
	if c.Txn != nil {
		self = c.Txn.ID
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []blocker
	note := func(k docKey) {
		h, there := b.held[k]
		if !there || h.id == self {
			return
		}
		if !now.Before(h.expires) {
			b.dropLocked(h.id, k)
			b.count.Store(int64(len(b.held)))
			b.wakeLocked()
			return
		}
		out = append(out, blocker{h, k})
	}
	part := func(p placement.PartitionID, part *txn.Part) {
		for i := range part.Writes {
			note(docKey{p, part.Writes[i].Collection, part.Writes[i].ID})
		}
		for i := range part.Reads {
			note(docKey{p, part.Reads[i].Collection, part.Reads[i].ID})
		}
	}
	switch {
	case c.Write != nil:
		note(docKey{c.Write.Partition, c.Write.Collection, c.Write.Item.ID})
	case c.Txn == nil:
	case c.Txn.Prepare != nil:
		part(c.Txn.Partition, &c.Txn.Prepare.Part)
	case c.Txn.Decide != nil:
		part(c.Txn.Partition, &c.Txn.Decide.Part)
	case c.Txn.Commit != nil:
		for i := range c.Txn.Commit.Parts {
			part(c.Txn.Commit.Parts[i].Partition, &c.Txn.Commit.Parts[i].Part)
		}
	}
	return out, b.changed
}

// enter and leave bracket a wait, for who wants to see it.
func (b *lockBook) enter(w *Waiting) {
	b.mu.Lock()
	b.waiting[w] = struct{}{}
	b.mu.Unlock()
}

// reasons notes what a wait is for now.
func (b *lockBook) reasons(w *Waiting, holders []fsm.Holder, fronts []blocker) {
	all := make([]WaitFor, 0, min(len(holders)+len(fronts), maxWaitFor))
	for i := range holders {
		if h := &holders[i]; len(all) < maxWaitFor {
			all = append(all, WaitFor{h.ID, h.Partition, h.Collection, h.Document})
		}
	}
	for i := range fronts {
		if f := &fronts[i]; len(all) < maxWaitFor {
			all = append(all, WaitFor{f.frontLock.id, f.partition, f.collection, f.docKey.id})
		}
	}
	b.mu.Lock()
	w.For = all // anew: who looks may hold the old one
	b.mu.Unlock()
}

func (b *lockBook) leave(w *Waiting) {
	b.mu.Lock()
	delete(b.waiting, w)
	b.mu.Unlock()
	b.waited[0].Add(1)
	b.waited[1].Add(uint64(time.Since(w.Since).Microseconds()))
}
