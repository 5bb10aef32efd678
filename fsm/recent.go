package fsm

import (
	"encoding/binary"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/txn/hlc"
)

// Two memories save Apply from reading: most writes carry a request ID that
// nobody has seen, and go to a document that was written not long ago. Both
// only say what the rows say. A replica that forgot more than another reads
// more, and comes to the same answers.

// recentRequests knows all recorded request IDs with a time of at least floor,
// as a filter: it never says "unseen" of one that was recorded.
//
// IDs carry the time of their first attempt, so those that arrive are mostly
// young. Two generations: when the younger is full the older is dropped, and
// floor rises above every time in it.
type recentRequests struct {
	floor uint64
	young filter
	old   filter
}

const (
	filterBits = 1 << 18
	filterFull = filterBits / 16 // at 16 bits for each ID, one in 400 is taken for another
)

type filter struct {
	bits  [filterBits / 64]uint64
	count int
	last  uint64 // largest time in it
}

// reset forgets everything. All IDs recorded so far have times up to last.
func (r *recentRequests) reset(last uint64) {
	*r = recentRequests{floor: last + 1}
}

// unseen says that the ID is certainly not recorded.
func (r *recentRequests) unseen(id *wire.RequestID) bool {
	return id.Time >= r.floor && !r.young.has(&id.Random) && !r.old.has(&id.Random)
}

// add is called for every ID that is recorded.
func (r *recentRequests) add(id *wire.RequestID) {
	if r.young.count >= filterFull {
		r.floor = max(r.floor, r.old.last+1)
		r.old = r.young
		r.young = filter{}
	}
	r.young.add(id)
}

func (f *filter) add(id *wire.RequestID) {
	for i := 0; i < 16; i += 4 {
		b := binary.LittleEndian.Uint32(id.Random[i:]) % filterBits
		f.bits[b/64] |= 1 << (b % 64)
	}
	f.count++
	f.last = max(f.last, id.Time)
}

func (f *filter) has(random *[16]byte) bool {
	for i := 0; i < 16; i += 4 {
		b := binary.LittleEndian.Uint32(random[i:]) % filterBits
		if f.bits[b/64]&(1<<(b%64)) == 0 {
			return false
		}
	}
	return true
}

// head is what a write that does not look at the body needs of a document's
// newest version.
type head struct {
	version uint64
	created hlc.Timestamp
	updated hlc.Timestamp
	size    uint32 // of the body
	deleted bool
}

// recentHeads remembers the heads of the documents that were written last, by
// their keys. Two generations, as above; one that is asked for stays.
type recentHeads struct {
	young map[string]head
	old   map[string]head
}

const headsFull = 16 << 10 // in each generation; about 100 bytes for each

func (h *recentHeads) reset() { *h = recentHeads{young: map[string]head{}} }

func (h *recentHeads) get(key []byte) (head, bool) {
	if v, ok := h.young[string(key)]; ok {
		return v, true
	}
	v, ok := h.old[string(key)]
	return v, ok
}

// put remembers a head; the key's string is shared with the caller.
func (h *recentHeads) put(key string, v head) {
	if len(h.young) >= headsFull {
		if _, known := h.young[key]; !known {
			h.old, h.young = h.young, make(map[string]head, headsFull)
		}
	}
	h.young[key] = v
}

// forget is called when the newest version of a document is removed.
func (h *recentHeads) forget(key []byte) {
	delete(h.young, string(key))
	delete(h.old, string(key))
}
