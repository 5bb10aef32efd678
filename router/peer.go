package router

import (
	"context"
	"encoding/binary"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// Requests between routers, for one group's part of a scan, a count or a
// clock. Each is
//
//	version u8 = 1 | fields…
//
// with unsigned varints for numbers and length-prefixed bytes for strings.
// Answers are the client's messages: a ScanPage whose Cursor, one byte, says
// that there is more, a CountReply, and for the clock eight bytes.

const peerVersion = 1

// groupScan asks for one chunk of a scan, or for the number of what it would
// find.
type groupScan struct {
	group placement.GroupID
	spec  fsm.ScanSpec
}

const (
	scanReverse = 1 << 0
	scanNoBody  = 1 << 1
)

func (q *groupScan) encode() []byte {
	b := append(make([]byte, 0, 64+len(q.spec.Prefix)+len(q.spec.After)), peerVersion)
	var flags uint64
	if q.spec.Reverse {
		flags |= scanReverse
	}
	if q.spec.NoBody {
		flags |= scanNoBody
	}
	for _, n := range []uint64{
		uint64(q.group), uint64(q.spec.Epoch), uint64(q.spec.Collection), flags,
		uint64(q.spec.Limit), uint64(q.spec.MaxBytes), uint64(q.spec.At),
		uint64(len(q.spec.Partitions)),
	} {
		b = binary.AppendUvarint(b, n)
	}
	for _, p := range q.spec.Partitions {
		b = binary.AppendUvarint(b, uint64(p))
	}
	return appendStrings(b, q.spec.Prefix, q.spec.After)
}

func decodeGroupScan(b []byte) (*groupScan, *wire.Error) {
	d := peerDecoder{b: b}
	d.version()
	q := &groupScan{group: placement.GroupID(d.number32())}
	q.spec.Epoch = placement.Epoch(d.number())
	q.spec.Collection = placement.CollectionID(d.number32())
	flags := d.number()
	q.spec.Reverse, q.spec.NoBody = flags&scanReverse != 0, flags&scanNoBody != 0
	q.spec.Limit = int(min(d.number(), pageDocs))
	q.spec.MaxBytes = int(min(d.number(), maxScanBytes/8))
	q.spec.At = hlc.Timestamp(d.number())
	n := d.number()
	if n > uint64(len(d.b)) {
		d.bad = true
		n = 0
	}
	q.spec.Partitions = make([]placement.PartitionID, n) // never nil, which would mean all
	for i := range q.spec.Partitions {
		q.spec.Partitions[i] = placement.PartitionID(d.number32())
	}
	q.spec.Prefix, q.spec.After = d.text(), d.text()
	return q, d.done("scan")
}

func appendStrings(b []byte, ss ...string) []byte {
	for _, s := range ss {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

// peerDecoder reads fields; after the first failure all are zero.
type peerDecoder struct {
	b   []byte
	bad bool
}

func (d *peerDecoder) version() {
	if len(d.b) == 0 || d.b[0] != peerVersion {
		d.bad = true
		return
	}
	d.b = d.b[1:]
}

func (d *peerDecoder) number() uint64 {
	v, n := binary.Uvarint(d.b)
	if d.bad || n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *peerDecoder) number32() uint32 {
	v := d.number()
	d.bad = d.bad || v > 1<<32-1
	return uint32(v)
}

func (d *peerDecoder) text() string {
	n := d.number()
	if d.bad || n > uint64(len(d.b)) || n > wire.MaxIDBytes {
		d.bad = true
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *peerDecoder) id() (id [16]byte) {
	if d.bad || len(d.b) < len(id) {
		d.bad = true
		return id
	}
	d.b = d.b[copy(id[:], d.b):]
	return id
}

func (d *peerDecoder) done(what string) *wire.Error {
	if d.bad || len(d.b) != 0 {
		return refuse(wire.CodeBadRequest, "the %s from another node is malformed, or of another version", what)
	}
	return nil
}

// scanHere reads one chunk from a replica here.
func scanHere(ctx context.Context, g Group, q *groupScan) (*wire.ScanPage, error) {
	if err := g.ReadAt(ctx, q.spec.At); err != nil {
		return nil, err
	}
	if err := g.ClearScan(ctx, &q.spec, q.spec.At); err != nil {
		return nil, err
	}
	docs, more, cost, err := g.Machine().Scan(q.spec)
	if err != nil {
		return nil, err
	}
	page := &wire.ScanPage{Docs: docs, Time: uint64(q.spec.At), Cost: cost}
	if more {
		page.Cursor = []byte{1}
	}
	return page, nil
}

// countHere counts in a replica here.
func countHere(ctx context.Context, g Group, q *groupScan) (reply wire.CountReply, err error) {
	if q.spec.At != 0 {
		err = g.ReadAt(ctx, q.spec.At)
	} else {
		err = g.ReadIndex(ctx)
	}
	if err != nil {
		return reply, err
	}
	if err := g.ClearScan(ctx, &q.spec, q.spec.At); err != nil {
		return reply, err
	}
	if q.spec.Prefix == "" && q.spec.At == 0 {
		reply.Count, reply.Bytes, err = g.Machine().Count(q.spec.Collection)
		return reply, err
	}
	reply.Count, reply.Cost, err = g.Machine().CountPrefix(q.spec)
	return reply, err
}

func (r *Router) askScan(ctx context.Context, node placement.NodeID, q *groupScan) (*wire.ScanPage, error) {
	body, err := r.call(ctx, node, wire.KindGroupScan, q.encode(), 0)
	if err != nil {
		return nil, err
	}
	var page wire.ScanPage
	return &page, wire.Decode(body, &page)
}

func (r *Router) askCount(ctx context.Context, node placement.NodeID, q *groupScan) (reply wire.CountReply, err error) {
	body, err := r.call(ctx, node, wire.KindGroupCount, q.encode(), 0)
	if err == nil {
		err = wire.Decode(body, &reply)
	}
	return reply, err
}

func (r *Router) askClock(ctx context.Context, node placement.NodeID, id placement.GroupID) (hlc.Timestamp, error) {
	body, err := r.call(ctx, node, wire.KindGroupClock, binary.AppendUvarint([]byte{peerVersion}, uint64(id)), 0)
	if err != nil {
		return 0, err
	}
	if len(body) != 8 {
		return 0, refuse(wire.CodeInternal, "node %s answered %s as a clock", node, plural(len(body), "byte"))
	}
	return hlc.Timestamp(binary.BigEndian.Uint64(body)), nil
}

// PeerKinds are the kinds between nodes that HandlePeer serves.
var PeerKinds = []wire.Kind{wire.KindGroupScan, wire.KindGroupCount, wire.KindGroupClock, wire.KindGroupMark, wire.KindGroupFindings, wire.KindGroupTxn, wire.KindGroupTxnRead, wire.KindGroupCut}

// HandlePeer serves another node's router. What this node does not lead it
// refuses with the leader's name.
func (r *Router) HandlePeer(ctx context.Context, kind wire.Kind, body []byte) ([]byte, error) {
	switch kind {
	case wire.KindGroupScan:
		q, e := decodeGroupScan(body)
		if e != nil {
			return nil, e
		}
		g, e := r.leading(q.group)
		if e != nil {
			return nil, e
		}
		page, err := scanHere(ctx, g, q)
		if err != nil {
			return nil, r.wireReadError(err, subject{})
		}
		return wire.Append(nil, page), nil
	case wire.KindGroupCount:
		q, e := decodeGroupScan(body)
		if e != nil {
			return nil, e
		}
		g, e := r.leading(q.group)
		if e != nil {
			return nil, e
		}
		reply, err := countHere(ctx, g, q)
		if err != nil {
			return nil, r.wireReadError(err, subject{})
		}
		return wire.Append(nil, &reply), nil
	case wire.KindGroupClock:
		d := peerDecoder{b: body}
		d.version()
		id := placement.GroupID(d.number32())
		if e := d.done("clock request"); e != nil {
			return nil, e
		}
		g, e := r.leading(id)
		if e != nil {
			return nil, e
		}
		now, err := g.Clock(ctx)
		if err != nil {
			return nil, r.wireReadError(err, subject{})
		}
		return binary.BigEndian.AppendUint64(nil, uint64(now)), nil
	case wire.KindGroupMark:
		id, k, e := decodeMark(body)
		if e != nil {
			return nil, e
		}
		g, e := r.leading(id)
		if e != nil {
			return nil, e
		}
		index, err := markHere(ctx, g, k)
		if err != nil {
			return nil, r.wireReadError(err, subject{})
		}
		return binary.BigEndian.AppendUint64(nil, index), nil
	case wire.KindGroupFindings:
		group, id, index, e := decodeFindingsRequest(body)
		if e != nil {
			return nil, e
		}
		answer, err := r.findingsHere(ctx, group, id, index)
		if err != nil {
			return nil, r.wireReadError(err, subject{})
		}
		return answer, nil
	}
	switch kind {
	case wire.KindGroupTxn:
		return r.serveSteps(ctx, body)
	case wire.KindGroupTxnRead:
		return r.serveTxnRead(ctx, body)
	case wire.KindGroupCut:
		return r.serveCut(ctx, body)
	}
	return nil, refuse(wire.CodeUnsupported, "peer request kind %d is not the router's", kind)
}

// leading is the replica here if it leads.
func (r *Router) leading(id placement.GroupID) (Group, *wire.Error) {
	g, ok := r.opts.Groups.Group(id)
	if !ok {
		return nil, notLeaderHere(id, "", subject{})
	}
	leader, _, known := g.Leader()
	if !known || leader != r.opts.Self {
		if !known {
			leader = ""
		}
		return nil, notLeaderHere(id, leader, subject{})
	}
	return g, nil
}
