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

// A filter is blocks of one cache line; an ID sets five bits of one block, as
// its random part says.
const (
	filterBlocks = 1 << 10
	filterFull   = filterBlocks * 16 // at 32 bits for each ID, one in 10,000 is taken for another
)

type filter struct {
	blocks [filterBlocks][8]uint64
	count  int
	last   uint64 // largest time in it
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
	block, at := f.place(&id.Random)
	for range filterProbes {
		block[at>>6&7] |= 1 << (at & 63)
		at >>= 9
	}
	f.count++
	f.last = max(f.last, id.Time)
}

func (f *filter) has(random *[16]byte) bool {
	block, at := f.place(random)
	for range filterProbes {
		if block[at>>6&7]&(1<<(at&63)) == 0 {
			return false
		}
		at >>= 9
	}
	return true
}

const filterProbes = 5

// place is an ID's block, and nine bits for each probe.
func (f *filter) place(random *[16]byte) (block *[8]uint64, at uint64) {
	return &f.blocks[binary.LittleEndian.Uint32(random[:])%filterBlocks], binary.LittleEndian.Uint64(random[4:])
}

// head is what a write that does not look at the body needs of a document's
// newest version.
type head struct {
	key     string
	version uint64
	created hlc.Timestamp
	updated hlc.Timestamp
	size    uint32 // of the body
	deleted bool
}

// recentHeads remembers the heads of the documents that were written last, by
// their keys. Two generations, as above; one that is asked for stays.
type recentHeads struct {
	young map[string]*head
	old   map[string]*head
	last  *head // what get has found in young: put looks there first
}

const headsFull = 16 << 10 // in each generation; about 120 bytes for each

func (h *recentHeads) reset() { *h = recentHeads{young: map[string]*head{}} }

// get answers nil if the document is not remembered. The head is valid until
// the next put.
func (h *recentHeads) get(key []byte) *head {
	if h.last = h.young[string(key)]; h.last != nil {
		return h.last
	}
	return h.old[string(key)]
}

// put remembers a head, and answers its key as a string.
func (h *recentHeads) put(key []byte, v head) string {
	p := h.last
	if p == nil || p.key != string(key) {
		p = h.young[string(key)]
	}
	if p == nil {
		if len(h.young) >= headsFull {
			h.old, h.young = h.young, make(map[string]*head, headsFull)
		}
		p = &head{key: string(key)}
		h.young[p.key] = p
	}
	v.key = p.key
	*p, h.last = v, p
	return p.key
}

// forget is called when the newest version of a document is removed.
func (h *recentHeads) forget(key []byte) {
	delete(h.young, string(key))
	delete(h.old, string(key))
	h.last = nil
}
