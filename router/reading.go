package router

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
)

// reading is a get on the short way: of the newest version of one document of a
// group that this node leads. It waits in no goroutine for the confirmation
// that all reads of its moment share; when that is there, one goroutine reads
// for all of them from one state of the machine:
//
//	StartWire, StartWire, … → | round | → answered → one Visit, one write per client
//
// Whatever is not as expected on the short way (another leader, a moved
// partition, a client that does not take its answers) hands the request over to
// ServeWire, which does it all again and has the words for it.
type reading struct {
	r     *Router
	group Group
	view  *placement.View
	resp  *wire.Responder
	start time.Time
	req   wire.GetRequest
	key   fsm.ReadKey
	ids   [1]string
}

var readings = sync.Pool{New: func() any { return new(reading) }}

func (x *reading) release() {
	*x = reading{}
	readings.Put(x)
}

// shortGet is the longest get request that is looked at on the goroutine that
// reads the connection: one ID takes less.
const shortGet = 2 << 10

// readsAtOnce is how many reads one goroutine does for those that were
// confirmed together. With fewer the goroutines cost more than they win on
// other processors.
const readsAtOnce = 32

// StartWire takes gets that are fit for the short way.
func (r *Router) StartWire(_ context.Context, req *wire.Request, resp *wire.Responder) wire.Start {
	if req.Kind != wire.KindGet || len(req.Body) > shortGet {
		return wire.StartApart
	}
	x := readings.Get().(*reading)
	x.req.IDs = x.ids[:0]
	if err := wire.Decode(req.Body, &x.req); err != nil || !r.short(x) {
		x.release()
		return wire.StartApart
	}
	x.r, x.resp, x.start = r, resp, time.Now()
	// Once it has joined, x may be answered and released at any time.
	if !x.group.Join(x, answerReadings) {
		x.release()
		return wire.StartApart
	}
	return wire.StartTaken
}

// short finds where to read, if x is fit for the short way.
func (r *Router) short(x *reading) bool {
	q := &x.req
	if len(q.IDs) != 1 || q.AtVersion != 0 || q.AtTime != 0 || q.MaxBytes != 0 || checkID(q.Collection, q.IDs[0]) != nil {
		return false
	}
	v := r.opts.Placement.View()
	c, ok := v.Collection(q.Collection)
	if v.ClusterID == "" || !ok {
		return false
	}
	p := partitionOf(v, c, q.IDs[0])
	group, ok := r.opts.Groups.Group(v.Owner(p))
	if !ok {
		return false
	}
	x.view, x.group = v, group
	x.key = fsm.ReadKey{Partition: p, Epoch: v.Epoch, Collection: c.ID, ID: q.IDs[0]}
	return true
}

// answerReadings has the readings of one group done, a goroutine for every so
// many.
func answerReadings(reads []any, err error) {
	for part := range slices.Chunk(reads, readsAtOnce) {
		first := part[0].(*reading)
		first.resp.Spawn(func() { read(part, err) })
	}
}

// read does readings of one group.
func read(reads []any, err error) {
	xs := make([]*reading, len(reads))
	for i, x := range reads {
		xs[i] = x.(*reading)
	}
	if err != nil {
		for _, x := range xs {
			x.handOver()
		}
		return
	}
	// In order, so that one seek helps the next.
	slices.SortFunc(xs, func(a, b *reading) int {
		if a.key.Partition != b.key.Partition {
			return int(a.key.Partition) - int(b.key.Partition)
		}
		return strings.Compare(a.key.ID, b.key.ID)
	})
	keys := make([]fsm.ReadKey, len(xs))
	for i, x := range xs {
		keys[i] = x.key
	}
	// What a transaction is about to write goes the long way, which asks its home.
	if xs[0].group.Machine().LocksHeld() > 0 {
		xs, keys = handOverHeld(xs, keys)
		if len(xs) == 0 {
			return
		}
	}
	var out wire.Replies
	// Its own error comes again, in words, from those that were not visited.
	_ = xs[0].group.Machine().Visit(keys, fsm.At{}, false, func(i int, d wire.Document, err error) {
		if !xs[i].reply(&out, d, err) {
			xs[i].handOver()
		}
		xs[i] = nil
	})
	for _, x := range xs {
		if x != nil {
			x.handOver()
		}
	}
	out.Flush()
}

// handOverHeld hands over the readings of documents under an intent. It comes
// before the rows are looked at: what it finds no intent on is either not
// decided, or readable.
func handOverHeld(xs []*reading, keys []fsm.ReadKey) ([]*reading, []fsm.ReadKey) {
	m := xs[0].group.Machine()
	n := 0
	for i, x := range xs {
		if len(m.IntentsOn(keys[i:i+1])) > 0 {
			x.handOver()
			continue
		}
		xs[n], keys[n] = x, keys[i]
		n++
	}
	return xs[:n], keys[:n]
}

func (x *reading) handOver() {
	resp := x.resp
	x.release()
	resp.Handover()
}

// reply answers with a document, or that there is none. False: it is another
// error, or the client is slow.
func (x *reading) reply(out *wire.Replies, d wire.Document, err error) bool {
	reply := wire.GetReply{Now: uint64(x.r.opts.Clock.Now())}
	reply.Cost = wire.Cost{Groups: 1, Keys: 1, WaitMicros: micros(x.start)}
	results := [1]wire.GetResult{}
	reply.Results = results[:]
	var none *fsm.Error
	switch {
	case err == nil:
		if x.req.NoBody {
			d.Body = nil
		}
		results[0].Doc = d
		reply.Cost.Docs, reply.Cost.Bytes = 1, uint64(len(d.Body))
	case errors.As(err, &none) && none.Code == wire.CodeNotFound:
		results[0].Error = x.r.wireReadError(err, subject{x.req.Collection, x.req.IDs[0]})
	default:
		return false
	}
	if !out.Reply(x.resp, &reply) {
		return false
	}
	x.release()
	return true
}
