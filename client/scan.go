package client

import (
	"context"
	"errors"
	"iter"

	"github.com/impossibledb/idb/client/route"
	"github.com/impossibledb/idb/client/wire"
)

// What one request of a scan asks for at most.
const (
	scanDocs  = 1000
	scanBytes = 1 << 20
)

// Scan reads documents in order of ID, all as of one instant:
//
//	for d, err := range users.Scan(ctx, client.Prefix("acme/")) {
//		if err != nil { return err }
//		…
//	}
//
// The next documents are fetched while the loop works on these. An error ends
// the iteration. Options: Prefix, Limit, Reverse, FromCursor, AtTime, NoBody,
// PageSize, CostTo. For a position to go on from later, use Iterator.
func (c *Collection) Scan(ctx context.Context, opts ...ReadOption) iter.Seq2[*Document, error] {
	return func(yield func(*Document, error) bool) {
		it := c.Iterator(opts...)
		ctx, cancel := context.WithCancel(ctx)
		var ahead chan answer // the fetch under way
		defer func() {
			cancel()
			if ahead != nil {
				<-ahead
			}
		}()
		for {
			a := answer{}
			if ahead != nil {
				a = <-ahead
				ahead = nil
			} else {
				a = it.fetch(ctx, it.position)
			}
			if !it.take(a) {
				yield(nil, it.err)
				return
			}
			if next := it.position; it.more() {
				ahead = make(chan answer, 1)
				go func() { ahead <- it.fetch(ctx, next) }()
			}
			for it.step() {
				if !yield(it.current, nil) {
					return
				}
			}
			if ahead == nil {
				return
			}
		}
	}
}

// Iterator is a scan taken step by step. It holds no connection and needs no
// Close. It is not safe for concurrent use.
//
//	it := users.Iterator(client.Prefix("acme/"))
//	for it.Next(ctx) {
//		var u User
//		err := it.Decode(&u)
//	}
//	err := it.Err()
type Iterator struct {
	c *Collection
	r reading

	page     []wire.Document // answered, not yet stepped over
	current  *Document
	stamp    uint64 // of the snapshot; 0: not fixed yet
	position position
	behind   position // before the page at hand
	err      error
}

// position is where the next answer begins.
type position struct {
	cursor []byte
	taken  uint64 // documents answered before
	ended  bool
}

// Iterator starts a scan; nothing is sent before the first Next.
func (c *Collection) Iterator(opts ...ReadOption) *Iterator {
	it := &Iterator{c: c, r: readingOf(opts)}
	it.position.cursor = it.r.cursor
	it.behind = it.position
	return it
}

// Next steps to the next document; false at the end or at an error.
func (it *Iterator) Next(ctx context.Context) bool {
	for it.err == nil {
		if it.step() {
			return true
		}
		if !it.more() {
			return false
		}
		it.take(it.fetch(ctx, it.position))
	}
	it.current = nil
	return false
}

// Document is the one that Next stepped to.
func (it *Iterator) Document() *Document { return it.current }

// Decode decodes the document that Next stepped to.
func (it *Iterator) Decode(v any) error {
	if it.current == nil {
		return errors.New("client: Decode without a successful Next")
	}
	return it.current.Decode(v)
}

// Err is why Next gave false; nil at the end. After an error Resume goes on.
func (it *Iterator) Err() error { return it.err }

// Resume clears the error: the next Next asks again for what it failed to get.
func (it *Iterator) Resume() { it.err = nil }

// Timestamp is the instant that the scan reads at; zero before the first Next.
func (it *Iterator) Timestamp() Timestamp { return Timestamp(it.stamp) }

// Cursor is where the page of the current document begins or, once all of its
// documents have been stepped over, where the next one does. A scan from it, in
// this process or another, has the same snapshot and may repeat documents of
// that page, none before it. It is nil before the first page has been used up,
// and at the end (Done).
func (it *Iterator) Cursor() []byte {
	if len(it.page) > 0 {
		return it.behind.cursor
	}
	return it.position.cursor
}

// Done says that the scan has reached its end.
func (it *Iterator) Done() bool { return len(it.page) == 0 && !it.more() && it.err == nil }

// more says that there is another answer to fetch.
func (it *Iterator) more() bool {
	return !it.position.ended && (it.r.limit == 0 || it.position.taken < it.r.limit)
}

// step goes to the next document of the page at hand.
func (it *Iterator) step() bool {
	if len(it.page) == 0 {
		it.current = nil
		return false
	}
	it.current = documentOf(&it.page[0])
	it.page = it.page[1:]
	return true
}

// answer is a whole answer, which may have come in several pages.
type answer struct {
	docs   []wire.Document
	cursor []byte
	time   uint64
	cost   Cost
	err    error
}

// take makes a fetched answer the page at hand.
func (it *Iterator) take(a answer) bool {
	addCost(it.r.cost, &a.cost)
	if a.err != nil {
		it.err = a.err
		return false
	}
	it.behind = it.position
	it.page = a.docs
	if it.r.limit > 0 {
		it.page = a.docs[:min(uint64(len(a.docs)), it.r.limit-it.position.taken)]
	}
	if a.time != 0 {
		it.stamp = a.time
	}
	it.position = position{
		cursor: a.cursor,
		taken:  it.position.taken + uint64(len(it.page)),
		ended:  len(a.cursor) == 0,
	}
	return true
}

// fetch asks for one answer. It reads only what does not change while a scan is
// under way, so that it may run beside the stepping.
func (it *Iterator) fetch(ctx context.Context, at position) answer {
	x := scan{req: wire.ScanRequest{
		Collection: it.c.name, Prefix: it.r.prefix, Cursor: at.cursor,
		Limit: scanDocs, MaxBytes: scanBytes,
		NoBody: it.r.noBody, AtTime: it.r.atTime, Reverse: it.r.reverse,
	}}
	if it.r.page > 0 {
		x.req.Limit = uint32(min(it.r.page, 1<<31))
	}
	if it.r.limit > 0 {
		x.req.Limit = uint32(min(uint64(x.req.Limit), it.r.limit-at.taken))
	}
	ctx, cancel := it.c.db.bound(ctx)
	if cancel != nil {
		defer cancel()
	}
	if err := it.c.db.c.Do(ctx, wire.KindScan, route.Read, &x); err != nil {
		return answer{err: ofFailure(err, "scan", it.c.name, "")}
	}
	return x.got
}

// scan is the exchange of one answer. What came of a broken stream is dropped:
// the answer is asked for again.
type scan struct {
	req wire.ScanRequest
	got answer
}

func (x *scan) Place(*route.View) (uint32, bool) { return 0, false }

func (x *scan) Append(dst []byte, _ uint64, _ bool) []byte { return x.req.AppendTo(dst) }

func (x *scan) Begin() { x.got = answer{} }

func (x *scan) Part(body []byte) error {
	var page wire.ScanPage
	if err := wire.Decode(body, &page); err != nil {
		return route.BadAnswer(err)
	}
	if x.got.docs == nil {
		x.got.docs = page.Docs
	} else {
		x.got.docs = append(x.got.docs, page.Docs...)
	}
	x.got.cursor = page.Cursor
	x.got.time = page.Time
	addCost(&x.got.cost, &page.Cost)
	return nil
}

func (x *scan) Read([]byte, bool) error { return nil }

// Collect gathers an iteration into a slice, up to its first error.
func Collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	var all []T
	for v, err := range seq {
		if err != nil {
			return all, err
		}
		all = append(all, v)
	}
	return all, nil
}

// Get reads a document as a T.
func Get[T any](ctx context.Context, c *Collection, id string, opts ...ReadOption) (T, error) {
	var v T
	err := c.GetInto(ctx, id, &v, opts...)
	return v, err
}

// Scan reads documents as Ts; see Collection.Scan.
func Scan[T any](ctx context.Context, c *Collection, opts ...ReadOption) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for d, err := range c.Scan(ctx, opts...) {
			var v T
			if err == nil {
				err = d.Decode(&v)
			}
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}
