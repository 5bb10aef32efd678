package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/impossibledb/idb/client/route"
	"github.com/impossibledb/idb/client/wire"
)

var errCount = errors.New("it does not have one result per item")

// Get reads the latest version of a document, or with AtVersion or AtTime an
// earlier one. A document that does not exist is ErrNotFound.
func (c *Collection) Get(ctx context.Context, id string, opts ...ReadOption) (*Document, error) {
	if e := checkID("get", c.name, id); e != nil {
		return nil, e
	}
	r := readingOf(opts)
	x := gets.Get().(*get)
	x.clock = c.db.c.Clock()
	x.ids[0] = id
	x.req = wire.GetRequest{Collection: c.name, IDs: x.ids[:], AtVersion: r.atVersion, AtTime: r.atTime, NoBody: r.noBody}

	ctx, cancel := c.db.bound(ctx)
	err := c.db.c.Do(ctx, wire.KindGet, route.Read, x)
	if cancel != nil {
		cancel()
	}
	addCost(r.cost, &x.reply.Cost)
	if err != nil {
		x.release()
		return nil, ofFailure(err, "get", c.name, id)
	}
	d := documentOf(&x.reply.Results[0].Doc)
	x.release()
	return d, nil
}

// GetInto reads a document and decodes it into v.
func (c *Collection) GetInto(ctx context.Context, id string, v any, opts ...ReadOption) error {
	d, err := c.Get(ctx, id, opts...)
	if err != nil {
		return err
	}
	return d.Decode(v)
}

// Exists says whether there is such a document.
func (c *Collection) Exists(ctx context.Context, id string, opts ...ReadOption) (bool, error) {
	_, err := c.Get(ctx, id, append(opts[:len(opts):len(opts)], NoBody())...)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrVersionNotFound):
		return false, nil
	}
	return false, err
}

// get is the exchange of one read, pooled as write is.
type get struct {
	clock *route.Clock
	req   wire.GetRequest
	ids   [1]string
	reply wire.GetReply
}

var gets = sync.Pool{New: func() any { return new(get) }}

func (x *get) release() {
	x.ids[0] = ""
	x.req = wire.GetRequest{}
	clear(x.reply.Results)
	x.reply.Cost = wire.Cost{}
	gets.Put(x)
}

func (x *get) Place(v *route.View) (uint32, bool) { return v.Partition(x.req.Collection, x.ids[0]) }

func (x *get) Append(dst []byte, epoch uint64, direct bool) []byte {
	x.req.Epoch, x.req.Direct = epoch, direct
	return x.req.AppendTo(dst)
}

func (x *get) Read(body []byte, _ bool) error {
	if err := wire.Decode(body, &x.reply); err != nil {
		return route.BadAnswer(err)
	}
	x.clock.Observe(x.reply.Now)
	if len(x.reply.Results) != 1 {
		return route.BadAnswer(errCount)
	}
	if e := x.reply.Results[0].Error; e != nil {
		return e
	}
	return nil
}

// getChunk is how many IDs one request of GetMany carries.
const getChunk = 256

// GetMany reads many documents at once; each is linearizable on its own. The
// answer has one entry per ID, nil where there is no such document.
func (c *Collection) GetMany(ctx context.Context, ids []string, opts ...ReadOption) ([]*Document, error) {
	for _, id := range ids {
		if e := checkID("get", c.name, id); e != nil {
			return nil, e
		}
	}
	r := readingOf(opts)
	ctx, cancel := c.db.bound(ctx)
	if cancel != nil {
		defer cancel()
	}
	m := manyGets{c: c, ids: ids, docs: make([]*Document, len(ids)), reading: r}
	all := make([]int, len(ids))
	for i := range all {
		all[i] = i
	}
	var err error
	if c.atOneNode(ids) {
		err = m.ask(ctx, all, true)
	} else {
		err = m.askAll(ctx, c.together(m.byGroup(all), ids), true)
	}
	if apart := m.apart; err == nil && len(apart) > 0 {
		m.apart = nil
		err = m.askAll(ctx, m.byGroup(apart), false)
	}
	if err != nil {
		return nil, err
	}
	return m.docs, nil
}

// manyGets is a GetMany under way.
type manyGets struct {
	c       *Collection
	ids     []string
	docs    []*Document
	reading reading

	mu    sync.Mutex
	apart []int // what is to be asked for group by group; guarded by mu
}

// askAll asks for parts of the documents side by side.
func (m *manyGets) askAll(ctx context.Context, parts [][]int, mixed bool) error {
	return each(len(parts), func(k int) error { return m.ask(ctx, parts[k], mixed) })
}

// ask asks for some of the documents.
func (m *manyGets) ask(ctx context.Context, part []int, mixed bool) error {
	c, r := m.c, &m.reading
	x := &getMany{c: c, docs: m.docs, left: part, ids: m.ids, mixed: mixed}
	x.req = wire.GetRequest{Collection: c.name, AtVersion: r.atVersion, AtTime: r.atTime, NoBody: r.noBody}
	asked := len(part)
	err := c.db.c.Do(ctx, wire.KindGet, route.Read, x)
	for err == nil && len(x.left) > 0 { // those that had no room in the answer
		err = c.db.c.Do(ctx, wire.KindGet, route.Read, x)
	}
	m.mu.Lock()
	addCost(r.cost, &x.cost)
	m.apart = append(m.apart, x.apart...)
	m.mu.Unlock()
	if err != nil {
		return ofFailure(err, "get", c.name, fmt.Sprintf("(%d documents)", asked))
	}
	return nil
}

// byGroup cuts some of the documents by their groups.
func (m *manyGets) byGroup(of []int) [][]int {
	parts := m.c.split(len(of), func(i int) string { return m.ids[of[i]] }, func([]int, int) bool { return true }, getChunk)
	for _, part := range parts {
		for k, i := range part {
			part[k] = of[i]
		}
	}
	return parts
}

// atOneNode says that one node is believed to lead all the groups of documents
// that fit in one request.
func (c *Collection) atOneNode(ids []string) bool {
	v := c.db.c.View()
	if v == nil || len(ids) == 0 || len(ids) > getChunk {
		return false
	}
	node := ""
	for _, id := range ids {
		p, ok := v.Partition(c.name, id)
		leader := ""
		if ok {
			leader = v.Leader(p)
		}
		if leader == "" || node != "" && leader != node {
			return false
		}
		node = leader
	}
	return true
}

// together joins parts of groups that the same node leads, as far as they fit
// in one request.
func (c *Collection) together(parts [][]int, ids []string) [][]int {
	v := c.db.c.View()
	if v == nil || len(parts) < 2 {
		return parts
	}
	open := make(map[string]int, len(parts)) // by leader: where its part is in joined
	joined := parts[:0]
	for _, part := range parts {
		leader := ""
		if p, ok := v.Partition(c.name, ids[part[0]]); ok {
			leader = v.Leader(p)
		}
		k, ok := open[leader]
		if ok && leader != "" && len(joined[k])+len(part) <= getChunk {
			joined[k] = append(joined[k], part...)
			continue
		}
		open[leader] = len(joined)
		joined = append(joined, part)
	}
	return joined
}

// getMany is the exchange of a part of GetMany. What is answered leaves left;
// what an answer had no room for stays there.
//
// A mixed part is of several groups that one node is believed to lead. It is
// routed, and its fate judged, as the first one's; a leader may move for one group
// alone, so what comes back of the others with a refusal that passes goes to
// apart, and so do others that are not led by that node when it is sent again.
type getMany struct {
	c     *Collection
	ids   []string
	docs  []*Document
	left  []int // indexes without an answer; if mixed, those of the first's group come first
	mixed bool
	first int   // if mixed: how many of left are of the first's group
	apart []int // indexes that this exchange leaves to others
	req   wire.GetRequest
	reply wire.GetReply
	cost  Cost
}

func (x *getMany) Place(v *route.View) (uint32, bool) {
	if x.mixed {
		return x.placeMixed(v)
	}
	return samePlace(v, x.c.name, len(x.left), func(i int) string { return x.ids[x.left[i]] })
}

// placeMixed is the partition of the first, and keeps in left what goes with it.
func (x *getMany) placeMixed(v *route.View) (uint32, bool) {
	first, ok := v.Partition(x.c.name, x.ids[x.left[0]])
	group, known := v.Group(first)
	if !ok || !known {
		return 0, false // the server routes them all
	}
	leader := v.Leader(first)
	kept := 0
	x.first = 0
	for _, i := range x.left {
		p, _ := v.Partition(x.c.name, x.ids[i]) // known, as the first's is
		g, ok := v.Group(p)
		switch {
		case ok && g == group:
			x.left[kept] = x.left[x.first]
			x.left[x.first] = i
			x.first++
			kept++
		case leader != "" && v.Leader(p) == leader:
			x.left[kept] = i
			kept++
		default:
			x.apart = append(x.apart, i)
		}
	}
	x.left = x.left[:kept]
	return first, true
}

func (x *getMany) Append(dst []byte, epoch uint64, direct bool) []byte {
	x.req.Epoch, x.req.Direct = epoch, direct
	x.req.IDs = slices.Grow(x.req.IDs[:0], len(x.left))
	for _, i := range x.left {
		x.req.IDs = append(x.req.IDs, x.ids[i])
	}
	return x.req.AppendTo(dst)
}

func (x *getMany) Read(body []byte, lost bool) error {
	// Documents keep their bytes, so each answer has results of its own.
	x.reply = wire.GetReply{}
	if err := wire.Decode(body, &x.reply); err != nil {
		return route.BadAnswer(err)
	}
	x.c.db.c.Clock().Observe(x.reply.Now)
	if len(x.reply.Results) != len(x.left) {
		return route.BadAnswer(errCount)
	}
	addCost(&x.cost, &x.reply.Cost)
	var wait, room *wire.Error
	left := x.left[:0]
	asked := len(x.left)
	read := make([]Document, asked)
	for k, i := range x.left {
		r := &x.reply.Results[k]
		if r.Error == nil {
			read[k] = documentAs(&r.Doc)
			x.docs[i] = &read[k]
			continue
		}
		others := x.mixed && k >= x.first
		switch r.Error.Code {
		case wire.CodeNotFound, wire.CodeVersionNotFound:
			continue
		case wire.CodeFrameTooLarge:
			left, room = append(left, i), r.Error
			continue
		}
		switch pending, _ := route.Pending(r.Error, false); {
		case pending && others:
			x.apart = append(x.apart, i)
			continue
		case pending:
			left = append(left, i)
			if wait == nil {
				wait = r.Error
			}
			continue
		}
		return r.Error // one that no repeat will cure
	}
	x.left = left
	switch {
	case wait != nil:
		return wait
	case len(left) == asked:
		return room // nothing came: asking again would bring no more
	}
	return nil
}

// samePlace is the partition of the first of n IDs, if all of them are in the
// same group.
func samePlace(v *route.View, collection string, n int, id func(int) string) (uint32, bool) {
	first, ok := v.Partition(collection, id(0))
	if !ok {
		return 0, false
	}
	group, ok := v.Group(first)
	for i := 1; i < n && ok; i++ {
		var p, g uint32
		if p, ok = v.Partition(collection, id(i)); ok {
			g, ok = v.Group(p)
			ok = ok && g == group
		}
	}
	return first, ok
}

// split cuts n items by their group, and every group's by count and by fits,
// which is asked whether an item may join a part.
func (c *Collection) split(n int, id func(int) string, fits func(part []int, i int) bool, most int) [][]int {
	v := c.db.c.View()
	open := make(map[uint32][]int)
	var parts [][]int
	for i := range n {
		group := ^uint32(0) // not known: the server routes
		if v != nil {
			if p, ok := v.Partition(c.name, id(i)); ok {
				if g, ok := v.Group(p); ok {
					group = g
				}
			}
		}
		part := open[group]
		if len(part) > 0 && (len(part) >= most || !fits(part, i)) {
			parts = append(parts, part)
			part = nil
		}
		open[group] = append(part, i)
	}
	for _, part := range open {
		if len(part) > 0 {
			parts = append(parts, part)
		}
	}
	return parts
}

// parallel is how many requests one call has under way at once.
const parallel = 16

// each runs f for 0 … n-1, the last in the caller's goroutine, and joins them.
// The error is the first one that any gave.
func each(n int, f func(int) error) error {
	switch n {
	case 0:
		return nil
	case 1:
		return f(0)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	note := func(err error) {
		if err != nil {
			mu.Lock()
			if first == nil {
				first = err
			}
			mu.Unlock()
		}
	}
	slots := make(chan struct{}, parallel)
	for i := range n - 1 {
		slots <- struct{}{}
		wg.Go(func() {
			note(f(i))
			<-slots
		})
	}
	note(f(n - 1))
	wg.Wait()
	return first
}

// Count is the number of documents; with Prefix, of those whose ID begins so.
func (c *Collection) Count(ctx context.Context, opts ...ReadOption) (uint64, error) {
	s, err := c.Stats(ctx, opts...)
	return s.Documents, err
}

// Stats are a collection's size.
type Stats struct {
	Documents uint64
	Bytes     uint64 // of live documents; 0 with a Prefix
}

// Stats counts documents and their bytes. Without a Prefix the numbers are
// kept by the servers, not scanned for.
func (c *Collection) Stats(ctx context.Context, opts ...ReadOption) (Stats, error) {
	r := readingOf(opts)
	var reply wire.CountReply
	err := c.db.controlNamed(ctx, "count", c.name, wire.KindCount,
		&wire.CountRequest{Collection: c.name, Prefix: r.prefix}, &reply)
	addCost(r.cost, &reply.Cost)
	return Stats{Documents: reply.Count, Bytes: reply.Bytes}, err
}

// History lists the versions of a document, newest first, deletions included;
// as far back as the collection keeps them. Before and Limit narrow it.
func (c *Collection) History(ctx context.Context, id string, opts ...ReadOption) iter.Seq2[*Document, error] {
	return func(yield func(*Document, error) bool) {
		if e := checkID("history", c.name, id); e != nil {
			yield(nil, e)
			return
		}
		r := readingOf(opts)
		x := history{req: wire.HistoryRequest{Collection: c.name, ID: id, Before: r.before, NoBody: r.noBody}}
		seen := uint64(0)
		for {
			x.req.Limit = uint32(min(r.page, 1<<31))
			if r.limit > 0 && (x.req.Limit == 0 || uint64(x.req.Limit) > r.limit-seen) {
				x.req.Limit = uint32(min(r.limit-seen, 1<<31))
			}
			x.reply = wire.HistoryReply{}
			bound, cancel := c.db.bound(ctx)
			err := c.db.c.Do(bound, wire.KindHistory, route.Read, &x)
			if cancel != nil {
				cancel()
			}
			addCost(r.cost, &x.reply.Cost)
			if err != nil {
				yield(nil, ofFailure(err, "history", c.name, id))
				return
			}
			for i := range x.reply.Versions {
				d := &x.reply.Versions[i]
				if d.ID == "" {
					d.ID = id
				}
				if !yield(documentOf(d), nil) {
					return
				}
				x.req.Before = d.Version
				if seen++; r.limit > 0 && seen >= r.limit {
					return
				}
			}
			if !x.reply.More || len(x.reply.Versions) == 0 {
				return
			}
		}
	}
}

type history struct {
	req   wire.HistoryRequest
	reply wire.HistoryReply
}

func (x *history) Place(v *route.View) (uint32, bool) {
	return v.Partition(x.req.Collection, x.req.ID)
}

func (x *history) Append(dst []byte, epoch uint64, direct bool) []byte {
	x.req.Epoch, x.req.Direct = epoch, direct
	return x.req.AppendTo(dst)
}

func (x *history) Read(body []byte, _ bool) error {
	return route.BadAnswer(wire.Decode(body, &x.reply))
}
