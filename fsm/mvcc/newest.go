package mvcc

import (
	"encoding/binary"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/txn/hlc"
)

// newestMemory remembers the newest versions, with their bodies, of documents
// that were written lately, for all groups of the engine. A search in the engine
// goes through memory tables and every level; this is one look at a hash table.
//
// It is filled by who writes, never by who reads: so what it says of a document
// is what the last batch that wrote it has said, or nothing. In a group that
// nobody reads here (most replicas of most groups are followers) nothing is kept.
//
// Shards by hash, two generations in each: when the younger is full, the older is
// dropped. No row has a pointer in it: the collector of garbage has nothing to
// look at, however many there are.
type newestMemory struct {
	seed   maphash.Seed
	most   int           // bytes of rows in a generation of one shard
	life   atomic.Uint32 // the last life given to a group
	hits   atomic.Uint64
	misses atomic.Uint64
	shards [newestShards]newestShard
}

const (
	newestShards = 16
	// maxNewestBody bounds a body: of larger ones few would fit, and what a read
	// of one costs is its copies.
	maxNewestBody = 8 << 10
)

type newestShard struct {
	mu         sync.RWMutex
	young, old newestTable // guarded by mu

	_ [64]byte // shards are locked by different processors
}

func newNewestMemory(bytes int64) *newestMemory {
	// Slots and the growing of tables take about a quarter more than rows.
	return &newestMemory{seed: maphash.MakeSeed(), most: int(bytes*3/4) / newestShards / 2}
}

func (n *newestMemory) bytes() (sum int64) {
	for i := range n.shards {
		s := &n.shards[i]
		s.mu.RLock()
		sum += s.young.bytes() + s.old.bytes()
		s.mu.RUnlock()
	}
	return sum
}

// Newest is one group's part of the engine's memory of newest versions. Get may
// be called by anybody; all else is for who applies, one goroutine at a time:
//
//	Begin, commit of a batch, Put or Forget of each document in it, publishing
//
// A reader asks after it has learned that what it must see is published, so it
// finds a version that is no older than that, or none. It may find one that is
// older than what the engine shows at that moment: of a batch that is not
// published yet.
type Newest struct {
	n *newestMemory

	life   atomic.Uint32 // rows of other lives are not seen; 0: nothing is kept
	wanted atomic.Bool   // somebody has looked lately
	hits   atomic.Uint64 // of this trial

	// What the writer alone knows.
	batches int // of this trial
	puts    uint64
	rest    int // batches until there may be another one
}

// Every trialBatches batches it is asked whether it is worth it: a put costs a
// tenth of what a hit saves. If not nothing of the group is kept any more. If
// that is because nobody looked, the next look begins anew; if there were looks
// in vain (more documents than there is memory for), only after restBatches.
const (
	trialBatches = 1024
	restBatches  = 16 * trialBatches
	putsPerHit   = 8
)

// Newest is the memory of one group; every call begins an empty one.
func (e *Engine) Newest() *Newest { return &Newest{n: e.newest} }

// Get finds the newest version of a document, if it is not younger than at (0:
// however young), with a copy of its body in dst's memory. Not found means that
// nothing is known.
func (g *Newest) Get(doc []byte, at hlc.Timestamp, dst []byte) (row Row, found bool) {
	life := g.life.Load()
	if !g.wanted.Load() {
		g.wanted.Store(true)
	}
	if life == 0 {
		return Row{}, false
	}
	hash := maphash.Bytes(g.n.seed, doc)
	s := g.n.shard(hash)
	s.mu.RLock()
	for _, t := range [...]*newestTable{&s.young, &s.old} {
		i := t.find(hash, doc)
		if i < 0 {
			continue
		}
		h := t.head(i)
		if found = !h.gone && h.life == life && (at == 0 || h.row.Updated <= at || mutant.On(mutant.NewestUndated)); found {
			row = h.row
			row.Body = append(dst[:0], t.body(i, &h)...)
		}
		break
	}
	s.mu.RUnlock()
	if found {
		g.hits.Add(1)
		g.n.hits.Add(1)
	} else {
		g.n.misses.Add(1)
	}
	return row, found
}

// Begin comes before a batch is committed, and says whether its documents are
// to be put. If not, nothing is known any more before they are readable.
func (g *Newest) Begin() bool {
	if g.life.Load() != 0 {
		if g.batches++; g.batches < trialBatches {
			return true
		}
		worth := g.hits.Swap(0)*putsPerHit >= max(g.puts, 1)
		looked := g.wanted.Swap(false)
		if g.batches, g.puts = 0, 0; worth {
			return true
		}
		if looked {
			g.rest = restBatches
		}
		g.life.Store(0)
		return false
	}
	if g.rest > 0 {
		g.rest--
		return false
	}
	if g.n.most <= 0 || !g.wanted.Load() {
		return false
	}
	g.begin()
	return true
}

func (g *Newest) begin() { g.life.Store(g.n.life.Add(1)) }

// Put says that this is the newest version of a document: its batch is committed.
func (g *Newest) Put(doc []byte, r *Row) {
	g.puts++
	need := newestFixed + len(doc) + roomFor(len(r.Body))
	if len(r.Body) > maxNewestBody || need > g.n.most {
		g.Forget(doc)
		return
	}
	hash := maphash.Bytes(g.n.seed, doc)
	s := g.n.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.young.find(hash, doc)
	if i < 0 || s.young.head(i).room < len(r.Body) {
		s.young.removeKey(hash, doc)
		s.old.removeKey(hash, doc)
		if len(s.young.rows)+need > g.n.most {
			s.young, s.old = s.old, s.young
			s.young.clear()
		}
		i = s.young.add(g.n, hash, doc, roomFor(len(r.Body)))
	}
	s.young.write(i, g.life.Load(), r)
}

// Forget says that what is known of a document is not true any more.
func (g *Newest) Forget(doc []byte) {
	hash := maphash.Bytes(g.n.seed, doc)
	s := g.n.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.young.removeKey(hash, doc)
	s.old.removeKey(hash, doc)
}

// Reset forgets everything of the group.
func (g *Newest) Reset() {
	if g.life.Load() != 0 {
		g.begin()
	}
}

func (n *newestMemory) shard(hash uint64) *newestShard { return &n.shards[hash>>60] }

// newestTable is one generation of a shard.
//
// Invariant: of the rows of a document in both generations at most one is not
// gone.
type newestTable struct {
	slots []uint32 // open addressing, at most half full: where in rows, plus one
	rows  []byte   // | updated, version, created u64 | life, body length, room u32 | key length u16 | flags u8 | key | room for the body |
	count int      // slots in use
}

const (
	newestFlags   = 3*8 + 3*4 + 2
	newestFixed   = newestFlags + 1
	newestDeleted = 1 << 0
	newestGone    = 1 << 1 // the row says nothing
)

// roomFor is how much room a body gets: it may grow a little where it is.
func roomFor(body int) int { return (body + 16 + 15) &^ 15 }

// newestHead is a row but for its body.
type newestHead struct {
	row  Row
	life uint32
	size int
	room int
	key  int
	gone bool
}

func (t *newestTable) bytes() int64 { return int64(cap(t.rows) + 4*cap(t.slots)) }

func (t *newestTable) clear() {
	clear(t.slots)
	t.rows, t.count = t.rows[:0], 0
}

func (t *newestTable) head(i int) newestHead {
	b := t.rows[i : i+newestFixed]
	flags := b[newestFlags]
	return newestHead{
		row: Row{
			Updated: hlc.Timestamp(binary.LittleEndian.Uint64(b)),
			Version: binary.LittleEndian.Uint64(b[8:]),
			Created: hlc.Timestamp(binary.LittleEndian.Uint64(b[16:])),
			Deleted: flags&newestDeleted != 0,
		},
		life: binary.LittleEndian.Uint32(b[24:]),
		size: int(binary.LittleEndian.Uint32(b[28:])),
		room: int(binary.LittleEndian.Uint32(b[32:])),
		key:  int(binary.LittleEndian.Uint16(b[36:])),
		gone: flags&newestGone != 0,
	}
}

func (t *newestTable) body(i int, h *newestHead) []byte {
	start := i + newestFixed + h.key
	return t.rows[start : start+h.size]
}

func (t *newestTable) keyAt(i int) []byte {
	n := int(binary.LittleEndian.Uint16(t.rows[i+36:]))
	return t.rows[i+newestFixed : i+newestFixed+n]
}

// find is where the key's row is, or -1.
func (t *newestTable) find(hash uint64, key []byte) int {
	if t.count == 0 {
		return -1
	}
	mask := uint64(len(t.slots) - 1)
	for s := hash & mask; t.slots[s] != 0; s = (s + 1) & mask {
		if i := int(t.slots[s] - 1); string(t.keyAt(i)) == string(key) {
			return i
		}
	}
	return -1
}

func (t *newestTable) remove(i int) { t.rows[i+newestFlags] |= newestGone }

func (t *newestTable) removeKey(hash uint64, key []byte) {
	if i := t.find(hash, key); i >= 0 {
		t.remove(i)
	}
}

// add makes a row for a key whose row, if it has one, is gone, and says where.
func (t *newestTable) add(n *newestMemory, hash uint64, key []byte, room int) int {
	if 2*(t.count+1) > len(t.slots) {
		t.grow(n)
	}
	i, end := len(t.rows), len(t.rows)+newestFixed+len(key)+room
	if end > cap(t.rows) {
		rows := make([]byte, len(t.rows), min(max(2*cap(t.rows), end, 4<<10), n.most))
		copy(rows, t.rows)
		t.rows = rows
	}
	t.rows = t.rows[:end]
	b := t.rows[i:]
	binary.LittleEndian.PutUint32(b[32:], uint32(room))
	binary.LittleEndian.PutUint16(b[36:], uint16(len(key)))
	copy(b[newestFixed:], key)
	mask := uint64(len(t.slots) - 1)
	s := hash & mask
	for ; t.slots[s] != 0; s = (s + 1) & mask {
		if old := int(t.slots[s] - 1); string(t.keyAt(old)) == string(key) {
			t.slots[s] = uint32(i) + 1
			return i
		}
	}
	t.slots[s] = uint32(i) + 1
	t.count++
	return i
}

// grow makes room for twice as many rows, or for as many without those that are
// gone.
func (t *newestTable) grow(n *newestMemory) {
	live := 0
	t.each(func(int) { live++ })
	size := 64
	for size < 4*(live+1) {
		size *= 2
	}
	t.slots, t.count = make([]uint32, size), live
	mask := uint64(size - 1)
	t.each(func(i int) {
		s := maphash.Bytes(n.seed, t.keyAt(i)) & mask
		for t.slots[s] != 0 {
			s = (s + 1) & mask
		}
		t.slots[s] = uint32(i) + 1
	})
}

// each calls fn with the rows that are not gone.
func (t *newestTable) each(fn func(i int)) {
	for i := 0; i < len(t.rows); {
		h := t.head(i)
		if !h.gone {
			fn(i)
		}
		i += newestFixed + h.key + h.room
	}
}

func (t *newestTable) write(i int, life uint32, r *Row) {
	b := t.rows[i:]
	binary.LittleEndian.PutUint64(b, uint64(r.Updated))
	binary.LittleEndian.PutUint64(b[8:], r.Version)
	binary.LittleEndian.PutUint64(b[16:], uint64(r.Created))
	binary.LittleEndian.PutUint32(b[24:], life)
	binary.LittleEndian.PutUint32(b[28:], uint32(len(r.Body)))
	b[newestFlags] = 0
	if r.Deleted {
		b[newestFlags] = newestDeleted
	}
	key := int(binary.LittleEndian.Uint16(b[36:]))
	copy(b[newestFixed+key:], r.Body)
}
