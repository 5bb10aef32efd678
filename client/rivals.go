package client

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// A document is locked before it is read for rivalsFor after it was in a
	// conflict, and for twice as long as the last time, up to rivalsMost, if it
	// is in one again as soon as it is not locked any more.
	rivalsFor  = time.Second
	rivalsMost = 16 * time.Second
	// rivalLock is how long such a lock lasts at most: a client that dies does
	// not keep others waiting longer.
	rivalLock = 2 * time.Second
	maxRivals = 10_000
)

// rivals are the documents that transactions of this client have lately lost
// conflicts about. Whoever reads such a document without a lock and waits for
// its turn to write it has read the old version by then, and has to begin
// again; so Transact locks them first, and reads what the one before has
// written.
type rivals struct {
	mu sync.Mutex
	of map[rival]rivalry // guarded by mu
}

type rival struct{ collection, id string }

type rivalry struct {
	until time.Time
	lasts time.Duration
}

// note remembers that there was a conflict about documents.
func (r *rivals) note(of []rival, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil || len(r.of)+len(of) > maxRivals {
		r.of = map[rival]rivalry{} // what is still true is learned again
	}
	for _, x := range of {
		was, there := r.of[x]
		switch {
		case !there || now.After(was.until.Add(was.lasts)):
			was.lasts = rivalsFor
		case now.After(was.until):
			was.lasts = min(2*was.lasts, rivalsMost)
		}
		r.of[x] = rivalry{now.Add(was.lasts), was.lasts}
	}
}

// known says which of the documents are such.
func (r *rivals) known(collection string, ids []string, now time.Time) (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.of) == 0 {
		return nil
	}
	for _, id := range ids {
		x := rival{collection, id}
		switch is, there := r.of[x]; {
		case !there:
		case now.After(is.until.Add(is.lasts)):
			delete(r.of, x)
		case !now.After(is.until):
			out = append(out, id)
		}
	}
	return out
}

// lockRivalsLocked locks and reads those of the documents that there were
// conflicts about, in order of their IDs, and answers the others.
func (c *TxCollection) lockRivalsLocked(ctx context.Context, want []string) ([]string, error) {
	tx := c.tx
	if !tx.careful || tx.cfg.readOnly {
		return want, nil
	}
	hot := tx.db.rivals.known(c.name, want, time.Now())
	if len(hot) == 0 {
		return want, nil
	}
	slices.Sort(hot)
	for _, id := range hot {
		if err := c.lockLocked(ctx, id, rivalLock); errors.Is(err, ErrTxConflict) {
			return nil, err
		}
		// Without the lock it is read as any other.
	}
	k := tx.collLocked(c.name)
	return slices.DeleteFunc(want, k.reads.has), nil
}

// lockAll locks and reads what an attempt before had a conflict about. All who
// have been there lock in the same order, so that they queue for the first
// document, where each waits its turn, and not for the others, where a younger
// one that holds something steps back.
func (tx *Tx) lockAll(ctx context.Context, of []rival) error {
	if tx.cfg.readOnly {
		return nil
	}
	tx.mu.Lock()
	defer tx.mu.Unlock()
	for _, x := range of {
		c := tx.Collection(x.collection)
		if err := c.lockLocked(ctx, x.id, rivalLock); errors.Is(err, ErrTxConflict) {
			return err
		}
		// Without the lock it is read as any other.
	}
	return nil
}

// contested are the documents that a transaction has read and written, or could
// not lock, in order.
func (tx *Tx) contested() (out []rival) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	for c := range tx.colls.values() {
		for _, read := range c.reads.all {
			if id := read.key; c.writes.has(id) || slices.Contains(c.locked, id) {
				out = append(out, rival{c.name, id})
			}
		}
		for _, id := range c.locked { // in vain
			if !c.reads.has(id) {
				out = append(out, rival{c.name, id})
			}
		}
	}
	slices.SortFunc(out, func(a, b rival) int {
		return cmp.Or(strings.Compare(a.collection, b.collection), strings.Compare(a.id, b.id))
	})
	return out
}
