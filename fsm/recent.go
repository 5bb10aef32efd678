package fsm

import (
	"encoding/binary"
	"hash/maphash"

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
	version uint64
	created hlc.Timestamp
	updated hlc.Timestamp
	size    uint32 // of the body
	deleted bool
}

// recentHeads remembers the heads of the documents that were written last, by
// their keys. Two generations, as above.
type recentHeads struct {
	young headTable
	old   headTable
	seed  maphash.Seed
}

const headsFull = 16 << 10 // in each generation; about 80 bytes for each

func (h *recentHeads) reset() { *h = recentHeads{seed: maphash.MakeSeed()} }

func (h *recentHeads) get(key []byte) (v head, found bool) {
	hash := maphash.Bytes(h.seed, key)
	for _, t := range [...]*headTable{&h.young, &h.old} {
		if at := t.find(hash, key); at >= 0 {
			return t.read(at)
		}
	}
	return head{}, false
}

// put remembers a head.
func (h *recentHeads) put(key []byte, v head) {
	hash := maphash.Bytes(h.seed, key)
	at := h.young.find(hash, key)
	if at < 0 {
		if h.young.count >= headsFull {
			h.old, h.young = h.young, h.old
			h.young.clear()
		}
		if 2*h.young.count >= len(h.young.slots) {
			h.young.grow(h.seed)
		}
		at = h.young.add(hash, key)
	}
	h.young.write(at, v)
}

// forget is called when the newest version of a document is removed.
func (h *recentHeads) forget(key []byte) {
	hash := maphash.Bytes(h.seed, key)
	for _, t := range [...]*headTable{&h.young, &h.old} {
		if at := t.find(hash, key); at >= 0 {
			t.rows[at+headFlags] |= headGone
		}
	}
}

// headTable is one generation, without a pointer in it: the collector of
// garbage has nothing to look at, however many heads there are.
type headTable struct {
	slots []uint32 // open addressing, at most half full: where in rows, plus one
	rows  []byte   // | version, created, updated u64 | size u32 | flags u8 | key length u16 | key |, and so on
	count int
}

const (
	headFlags   = 3*8 + 4
	headFixed   = headFlags + 1 + 2
	headDeleted = 1 << 0
	headGone    = 1 << 1 // forgotten; the row is of use again when the document is
)

func (t *headTable) clear() {
	clear(t.slots)
	t.rows, t.count = t.rows[:0], 0
	if cap(t.rows) > 4<<20 {
		t.rows = nil
	}
}

// keyAt is a row's key.
func (t *headTable) keyAt(at int) []byte {
	n := int(binary.LittleEndian.Uint16(t.rows[at+headFlags+1:]))
	return t.rows[at+headFixed : at+headFixed+n]
}

// find is where the key's row is, or -1.
func (t *headTable) find(hash uint64, key []byte) int {
	if t.count == 0 {
		return -1
	}
	mask := uint64(len(t.slots) - 1)
	for s := hash & mask; t.slots[s] != 0; s = (s + 1) & mask {
		if at := int(t.slots[s] - 1); string(t.keyAt(at)) == string(key) {
			return at
		}
	}
	return -1
}

// add makes a row for a key that has none, and says where.
func (t *headTable) add(hash uint64, key []byte) int {
	at := len(t.rows)
	t.place(hash, at)
	var fixed [headFixed]byte
	binary.LittleEndian.PutUint16(fixed[headFlags+1:], uint16(len(key)))
	t.rows = append(append(t.rows, fixed[:]...), key...)
	t.count++
	return at
}

func (t *headTable) place(hash uint64, at int) {
	mask := uint64(len(t.slots) - 1)
	s := hash & mask
	for t.slots[s] != 0 {
		s = (s + 1) & mask
	}
	t.slots[s] = uint32(at) + 1
}

// grow makes room for twice as many rows.
func (t *headTable) grow(seed maphash.Seed) {
	t.slots = make([]uint32, max(256, 2*len(t.slots)))
	for at := 0; at < len(t.rows); {
		key := t.keyAt(at)
		t.place(maphash.Bytes(seed, key), at)
		at += headFixed + len(key)
	}
}

func (t *headTable) read(at int) (v head, found bool) {
	b := t.rows[at : at+headFixed]
	flags := b[headFlags]
	return head{
		version: binary.LittleEndian.Uint64(b),
		created: hlc.Timestamp(binary.LittleEndian.Uint64(b[8:])),
		updated: hlc.Timestamp(binary.LittleEndian.Uint64(b[16:])),
		size:    binary.LittleEndian.Uint32(b[24:]),
		deleted: flags&headDeleted != 0,
	}, flags&headGone == 0
}

func (t *headTable) write(at int, v head) {
	b := t.rows[at : at+headFixed]
	binary.LittleEndian.PutUint64(b, v.version)
	binary.LittleEndian.PutUint64(b[8:], uint64(v.created))
	binary.LittleEndian.PutUint64(b[16:], uint64(v.updated))
	binary.LittleEndian.PutUint32(b[24:], v.size)
	b[headFlags] = 0
	if v.deleted {
		b[headFlags] = headDeleted
	}
}
