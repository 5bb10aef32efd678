package router

import (
	"context"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// Sizes of a scan's answer.
const (
	// defaultScanDocs and defaultScanBytes end an answer that was asked for
	// without limits; the cursor goes on.
	defaultScanDocs  = 10_000
	defaultScanBytes = 8 << 20
	// maxScanBytes ends an answer whatever was asked for.
	maxScanBytes = 64 << 20
	// pageBytes is when a page is sent.
	pageBytes = 256 << 10
	// scanMemory is what the chunks of all groups of one scan may hold together,
	// and minChunk the least that one group is asked for.
	scanMemory = 8 << 20
	minChunk   = 16 << 10
	// pageDocs bounds a page by number.
	pageDocs = 2_000
)

// scan serves KindScan. Pages but the last go to send; the last is returned.
func (r *Router) scan(ctx context.Context, req *wire.ScanRequest, send Send) (*wire.ScanPage, *wire.Error) {
	start, sent := time.Now(), false
	tell := func(part wire.Message) error {
		sent = true
		return send(part)
	}
	var p patience
	for {
		s := &scanning{r: r, req: req, start: start}
		if e := s.prepare(ctx); e != nil {
			return nil, e
		}
		page, e := s.run(ctx, tell)
		if e == nil {
			return page, nil
		}
		// The name may stand for another collection than this node knew: the
		// scan begins again. Once a page is out it is of the collection that it
		// began with.
		if sent || !r.refreshStale(ctx, e, false, &p) {
			return nil, e
		}
	}
}

// scanning is one scan request on its way.
type scanning struct {
	r     *Router
	req   *wire.ScanRequest
	start time.Time

	view   *placement.View
	coll   *placement.Collection
	from   cursor // where it starts; its time is the scan's
	groups []part // that can hold matching documents

	docsLeft, bytesLeft int
	keys                atomic.Uint64
}

// part is one group's share of a scan or count.
type part struct {
	group      placement.GroupID
	partitions []placement.PartitionID
}

// prepare checks the request, finds the groups and fixes the timestamp.
func (s *scanning) prepare(ctx context.Context) *wire.Error {
	req, subj := s.req, subject{collection: s.req.Collection}
	switch {
	case len(req.Prefix) > wire.MaxIDBytes || !utf8.ValidString(req.Prefix):
		return refuse(wire.CodeBadID, "%s: the scan's prefix is longer than %d bytes or not UTF-8", subj, wire.MaxIDBytes)
	}
	var e *wire.Error
	s.view, s.coll, e = s.r.readable(ctx, req.Collection)
	if e != nil {
		return e
	}
	s.docsLeft, s.bytesLeft = int(req.Limit), int(req.MaxBytes)
	if s.docsLeft == 0 {
		s.docsLeft = defaultScanDocs
		if s.bytesLeft == 0 {
			s.bytesLeft = defaultScanBytes
		}
	}
	if s.bytesLeft == 0 || s.bytesLeft > maxScanBytes {
		s.bytesLeft = maxScanBytes
	}
	s.groups = s.holders()
	if len(req.Cursor) > 0 {
		s.from, e = decodeCursor(req.Cursor)
		if e != nil {
			return e
		}
		return s.checkCursor(ctx)
	}
	s.from = cursor{collection: s.coll.ID, prefix: strings.Clone(req.Prefix), reverse: req.Reverse, time: hlc.Timestamp(req.AtTime)}
	if req.AtTime != 0 {
		return s.r.checkTime(ctx, s.view, req.AtTime, subj)
	}
	s.from.time, e = s.now(ctx)
	return e
}

// checkCursor refuses a cursor of another scan.
func (s *scanning) checkCursor(ctx context.Context) *wire.Error {
	subj := subject{collection: s.req.Collection}
	switch {
	case s.from.collection != s.coll.ID:
		return refuse(wire.CodeBadCursor, "%s: the cursor is of another collection, or of one that was dropped since (start the scan again without one)", subj)
	case s.from.prefix != s.req.Prefix || s.from.reverse != s.req.Reverse:
		return refuse(wire.CodeBadCursor, "%s: the cursor is of a scan with another prefix or direction (repeat those of the first page)", subj)
	case s.req.AtTime != 0 && hlc.Timestamp(s.req.AtTime) != s.from.time:
		return refuse(wire.CodeBadCursor, "%s: the cursor is of a scan at another time (leave the time out, the cursor has it)", subj)
	}
	return s.r.checkTime(ctx, s.view, uint64(s.from.time), subj)
}

// holders are the groups that can hold documents with the prefix: one, if the
// prefix contains all that decides the partition.
func (s *scanning) holders() []part {
	if sep := s.coll.Options.Separator; sep != "" && strings.Contains(s.req.Prefix, sep) {
		p := partitionOf(s.view, s.coll, s.req.Prefix)
		return []part{{s.view.Owner(p), []placement.PartitionID{p}}}
	}
	parts := make([]part, len(s.view.Groups))
	for i, g := range s.view.Groups {
		parts[i].group = g.ID
	}
	for p, g := range s.view.Owners {
		parts[g-1].partitions = append(parts[g-1].partitions, placement.PartitionID(p))
	}
	return parts
}

// now is the timestamp that the scan reads at: strictly, as if all of it were
// read at one moment between the scan's beginning and its first page.
func (s *scanning) now(ctx context.Context) (hlc.Timestamp, *wire.Error) {
	return s.r.moment(ctx, s.view, s.groupIDs(), s.coll.ID, subject{collection: s.req.Collection})
}

func (s *scanning) groupIDs() []placement.GroupID {
	groups := make([]placement.GroupID, len(s.groups))
	for i, p := range s.groups {
		groups[i] = p.group
	}
	return groups
}

// run merges what the groups answer into pages.
func (s *scanning) run(ctx context.Context, send Send) (*wire.ScanPage, *wire.Error) {
	ctx, cancel := context.WithCancel(ctx)
	feeds := make([]*feed, len(s.groups))
	for i, p := range s.groups {
		feeds[i] = s.newFeed(p)
		feeds[i].fetch(ctx)
	}
	defer func() { // no fetch outlives the request
		cancel()
		for _, f := range feeds {
			f.drain()
		}
	}()

	page := &wire.ScanPage{Time: uint64(s.from.time)}
	size, total, totalDocs := 0, uint64(0), uint64(0)
	last := s.from
	for {
		next, e := s.least(ctx, feeds)
		if e != nil {
			return nil, e
		}
		ended := next == nil
		full := s.docsLeft == 0 || s.bytesLeft <= 0
		if !ended && !full {
			d := next.take()
			n := len(d.ID) + len(d.Body) + 32
			page.Docs = append(page.Docs, d)
			last.after = d.ID
			size += n
			total += uint64(len(d.Body))
			totalDocs++
			s.docsLeft--
			s.bytesLeft -= n
			if size < pageBytes && len(page.Docs) < pageDocs {
				continue
			}
		}
		if ended || full {
			if !ended {
				if mutant.On(mutant.CursorSkips) {
					last.after = next.head().ID
				}
				page.Cursor = last.encode()
			}
			page.Cost = wire.Cost{
				Groups: uint32(len(s.groups)), Keys: s.keys.Load(), Docs: totalDocs, Bytes: total,
				WaitMicros: micros(s.start), ReadVersion: uint64(s.from.time),
			}
			return page, nil
		}
		// A page in the middle carries a cursor too: a client whose connection
		// breaks goes on behind the last page it got.
		page.Cursor = last.encode()
		if err := send(page); err != nil {
			return nil, s.r.wireReadError(err, subject{collection: s.req.Collection})
		}
		page, size = &wire.ScanPage{Time: uint64(s.from.time)}, 0
	}
}

// least finds the feed with the next document, nil if all are at their end.
func (s *scanning) least(ctx context.Context, feeds []*feed) (*feed, *wire.Error) {
	var best *feed
	for _, f := range feeds {
		d, e := f.peek(ctx)
		if e != nil {
			return nil, e
		}
		if d == nil {
			continue
		}
		if best == nil || s.from.reverse && d.ID > best.head().ID || !s.from.reverse && d.ID < best.head().ID {
			best = f
		}
	}
	return best, nil
}

// feed is one group's part of a scan, in order. The next chunk is fetched
// while the present one is merged, so at most two are held.
type feed struct {
	s     *scanning
	part  part
	after string // where the next chunk starts
	size  int    // documents to ask for in the next chunk

	chunk   []wire.Document
	at      int
	more    bool           // there is a chunk after this one
	pending chan feedChunk // a fetch under way; nil: none
}

type feedChunk struct {
	docs []wire.Document
	more bool
	err  *wire.Error
}

func (s *scanning) newFeed(p part) *feed {
	// A small scan asks each group for its likely share and a little more.
	share := s.docsLeft/len(s.groups) + s.docsLeft/(4*len(s.groups)) + 8
	return &feed{s: s, part: p, after: s.from.after, size: min(share, s.docsLeft), more: true}
}

// fetch starts getting the next chunk.
func (f *feed) fetch(ctx context.Context) {
	c := make(chan feedChunk, 1)
	f.pending = c
	req := groupScan{
		group: f.part.group, spec: fsm.ScanSpec{
			Partitions: f.part.partitions, Epoch: f.s.view.Epoch,
			Collection: f.s.coll.ID, Prefix: f.s.from.prefix, After: f.after, Reverse: f.s.from.reverse,
			Limit: min(f.size, pageDocs), MaxBytes: min(f.s.r.opts.ScanChunk, max(minChunk, scanMemory/2/len(f.s.groups))), At: f.s.from.time, NoBody: f.s.req.NoBody,
		},
	}
	if mutant.On(mutant.ScanTimesDiffer) {
		req.spec.At = 0
	}
	f.size = pageDocs // whoever is asked twice is likely to be asked again
	go func() { c <- f.s.fetch(ctx, &req) }()
}

// peek is the next document, nil at the end. It waits for a chunk if it must.
func (f *feed) peek(ctx context.Context) (*wire.Document, *wire.Error) {
	for f.at == len(f.chunk) {
		if !f.more {
			return nil, nil
		}
		if f.pending == nil {
			f.fetch(ctx)
		}
		got := <-f.pending // ends with ctx
		f.pending = nil
		if got.err != nil {
			return nil, got.err
		}
		f.chunk, f.at, f.more = got.docs, 0, got.more && len(got.docs) > 0
		if f.more {
			f.after = got.docs[len(got.docs)-1].ID
			if f.s.docsLeft > len(f.chunk) {
				f.fetch(ctx)
			}
		}
	}
	return &f.chunk[f.at], nil
}

func (f *feed) head() *wire.Document { return &f.chunk[f.at] }

func (f *feed) take() wire.Document {
	d := f.chunk[f.at]
	f.chunk[f.at] = wire.Document{} // the page holds it now
	f.at++
	return d
}

// drain waits for a fetch that is under way.
func (f *feed) drain() {
	if f.pending != nil {
		<-f.pending
	}
}

// fetch gets one chunk from a group's leader.
func (s *scanning) fetch(ctx context.Context, req *groupScan) feedChunk {
	var chunk feedChunk
	chunk.err = s.r.onLeader(ctx, s.view, req.group, false, subject{collection: s.req.Collection},
		func(ctx context.Context, g Group) error {
			page, err := scanHere(ctx, g, req)
			if err == nil {
				chunk.docs, chunk.more = page.Docs, len(page.Cursor) > 0
				s.keys.Add(page.Cost.Keys)
			}
			return err
		},
		func(ctx context.Context, node placement.NodeID) error {
			page, err := s.r.askScan(ctx, node, req)
			if err == nil {
				chunk.docs, chunk.more = page.Docs, len(page.Cursor) > 0
				s.keys.Add(page.Cost.Keys)
			}
			return err
		})
	if e := chunk.err; e != nil {
		subj := subject{collection: s.req.Collection}
		switch e.Code {
		case wire.CodeHistoryExpired:
			chunk.err = refuse(e.Code, "%s: the scan's snapshot of %s is past the retention window (start the scan again)", subj, s.from.time.Time().Format(time.RFC3339))
		case wire.CodeCollectionNotFound:
			// The group knows collections by number only.
			chunk.err = refuse(e.Code, "collection %s does not exist any more", subj)
		}
	}
	return chunk
}

// count serves KindCount.
func (r *Router) count(ctx context.Context, req *wire.CountRequest) (*wire.CountReply, *wire.Error) {
	s := &scanning{r: r, req: &wire.ScanRequest{Collection: req.Collection, Prefix: req.Prefix}, start: time.Now()}
	subj := subject{collection: req.Collection}
	if len(req.Prefix) > wire.MaxIDBytes || !utf8.ValidString(req.Prefix) {
		return nil, refuse(wire.CodeBadID, "%s: the prefix is longer than %d bytes or not UTF-8", subj, wire.MaxIDBytes)
	}
	var p patience
	for {
		var e *wire.Error
		s.view, s.coll, e = r.readable(ctx, req.Collection)
		if e != nil {
			return nil, e
		}
		s.groups = s.holders()
		reply, e := s.countAll(ctx, subj)
		if e == nil {
			return reply, nil
		}
		if !r.refreshStale(ctx, e, false, &p) {
			return nil, e
		}
	}
}

// exactCuts is how many cuts a count makes, if transactions are found committed
// that the kept counts do not have yet, before it counts document by document.
const exactCuts = 3

// countAll counts at one moment. Kept counts come with a cut's holds, as of its
// timestamp if no transaction was found committed that they may not have.
func (s *scanning) countAll(ctx context.Context, subj subject) (*wire.CountReply, *wire.Error) {
	reply := &wire.CountReply{Cost: wire.Cost{Groups: uint32(len(s.groups))}}
	var at hlc.Timestamp
	var bytes uint64
	var e *wire.Error
	switch {
	case len(s.view.Groups) == 1: // of one group there is nobody elsewhere who could know better
	case s.req.Prefix == "":
		for try := 0; at == 0 || try < exactCuts; try++ {
			run, e := s.r.cut(ctx, s.view, s.groupIDs(), s.coll.ID, true)
			if e != nil {
				return nil, e
			}
			at, bytes = run.at, run.kept[s.coll.ID].Bytes
			if run.exact {
				reply.Count, reply.Bytes = run.kept[s.coll.ID].Documents, bytes
				reply.Cost.WaitMicros, reply.Cost.ReadVersion = micros(s.start), uint64(at)
				return reply, nil
			}
		}
	default:
		if at, e = s.now(ctx); e != nil {
			return nil, e
		}
	}
	parts := make([]wire.CountReply, len(s.groups))
	errs := make([]*wire.Error, len(s.groups))
	s.r.parallel(len(s.groups), func(i int) {
		ask := groupScan{group: s.groups[i].group, spec: fsm.ScanSpec{
			Partitions: s.groups[i].partitions, Epoch: s.view.Epoch, Collection: s.coll.ID, Prefix: s.req.Prefix, At: at,
		}}
		errs[i] = s.r.onLeader(ctx, s.view, ask.group, false, subj,
			func(ctx context.Context, g Group) (err error) {
				parts[i], err = countHere(ctx, g, &ask)
				return err
			},
			func(ctx context.Context, node placement.NodeID) (err error) {
				parts[i], err = s.r.askCount(ctx, node, &ask)
				return err
			})
	})
	for i := range parts {
		if errs[i] != nil {
			return nil, errs[i]
		}
		reply.Count += parts[i].Count
		reply.Bytes += parts[i].Bytes
		reply.Cost.Keys += parts[i].Cost.Keys
		reply.Cost.Docs += parts[i].Cost.Docs
	}
	reply.Cost.WaitMicros, reply.Cost.ReadVersion = micros(s.start), uint64(at)
	switch {
	case s.req.Prefix != "":
		reply.Bytes = 0
	case at != 0:
		reply.Bytes = bytes // as kept, just before
	}
	return reply, nil
}
