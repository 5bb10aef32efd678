package placement

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
)

// MaxAnswers is how many answers are remembered. With fewer, a retry is sooner
// refused as expired; each is about a hundred bytes of every snapshot.
const MaxAnswers = 16_384

// answers is what was answered to requests, so that another attempt of one is
// answered the same and does nothing.
//
// Invariant: list is ordered by ID; an ID that was ever answered is in it, or
// its time is below horizon.
type answers struct {
	list    []answered
	horizon uint64
}

// answered is one request and its answer. Kind and name are the request's: an
// ID that comes back with others was used twice.
type answered struct {
	id         wire.RequestID
	kind       byte
	name       string
	code       wire.Code
	message    string
	collection wire.CollectionInfo
}

// request is the ID, the kind and the name of a command that is done once; ok
// is false for those that may be done any number of times.
func (c Command) request() (id wire.RequestID, kind byte, name string, ok bool) {
	switch {
	case c.CreateCollection != nil:
		return c.CreateCollection.Request, kindCreateCollection, c.CreateCollection.Name, true
	case c.DropCollection != nil:
		return c.DropCollection.Request, kindDropCollection, c.DropCollection.Name, true
	case c.SetSettings != nil:
		return c.SetSettings.Request, kindSetSettings, "", true
	case c.SetLeaders != nil:
		return c.SetLeaders.Request, kindSetLeaders, "", true
	}
	return wire.RequestID{}, 0, "", false
}

func compareRequests(a, b wire.RequestID) int {
	if c := cmp.Compare(a.Time, b.Time); c != 0 {
		return c
	}
	return bytes.Compare(a.Random[:], b.Random[:])
}

func (a *answers) search(id wire.RequestID) (int, bool) {
	return slices.BinarySearchFunc(a.list, id, func(x answered, id wire.RequestID) int { return compareRequests(x.id, id) })
}

// find is the answer to an earlier attempt, or the refusal of an ID that can
// not be run; nil: it is new.
func (a *answers) find(id wire.RequestID, kind byte, name string) *Result {
	if id == (wire.RequestID{}) {
		return refuse(wire.CodeBadRequest, "the request has no request ID")
	}
	i, found := a.search(id)
	switch {
	case !found && id.Time < a.horizon:
		return refuse(wire.CodeOutcomeExpired, "this request ID is older than what the cluster remembers, nothing was done now (look at the catalog to see what was done then)")
	case !found || mutant.On(mutant.CatalogRetryRuns):
		return nil
	}
	x := &a.list[i]
	if x.kind != kind || x.name != name {
		return refuse(wire.CodeBadRequest, "this request ID was used for another request to the catalog (make a fresh one for each)")
	}
	return &Result{Code: x.code, Message: x.message, Collection: x.collection}
}

// keep remembers an answer, and forgets the oldest if there are too many.
func (a *answers) keep(id wire.RequestID, kind byte, name string, r *Result) {
	i, found := a.search(id)
	if found {
		return
	}
	a.list = slices.Insert(a.list, i, answered{
		id: id, kind: kind, name: name, code: r.Code, message: r.Message, collection: r.Collection,
	})
	for len(a.list) > MaxAnswers {
		a.horizon = max(a.horizon, a.list[0].id.Time+1)
		a.list[0] = answered{}
		a.list = a.list[1:]
	}
}

func (e *encoder) answers(a *answers) {
	e.uint(a.horizon)
	e.uint(uint64(len(a.list)))
	for i := range a.list {
		x := &a.list[i]
		e.request(x.id)
		e.b = append(e.b, x.kind)
		e.str(x.name)
		e.uint(uint64(x.code))
		e.str(x.message)
		e.collection(x.collection)
	}
}

func (d *decoder) answers() (a answers) {
	a.horizon = d.uint()
	n := d.count()
	if n > MaxAnswers {
		d.fail(fmt.Sprintf("%d answers, at most %d", n, MaxAnswers))
		return a
	}
	for range n {
		a.list = append(a.list, answered{
			id: d.request(), kind: d.byte(), name: d.str(), code: wire.Code(d.uint32()), message: d.str(), collection: d.collection(),
		})
		if d.err != nil {
			return answers{}
		}
		if n := len(a.list); n > 1 && compareRequests(a.list[n-2].id, a.list[n-1].id) >= 0 {
			d.fail("answers out of order")
			return answers{}
		}
	}
	return a
}

// request is an ID as its time and 16 bytes.
func (e *encoder) request(id wire.RequestID) {
	e.uint(id.Time)
	e.b = append(e.b, id.Random[:]...)
}

func (d *decoder) request() (id wire.RequestID) {
	id.Time = d.uint()
	if d.err != nil {
		return wire.RequestID{}
	}
	if len(d.b)-d.at < len(id.Random) {
		d.fail("it ends inside a request ID")
		return wire.RequestID{}
	}
	d.at += copy(id.Random[:], d.b[d.at:])
	return id
}

func (e *encoder) collection(c wire.CollectionInfo) {
	e.uint(uint64(c.ID))
	e.str(c.Name)
	e.options(c.Options)
	e.uint(c.CreatedAt)
	e.bool(c.Dropping)
}

func (d *decoder) collection() wire.CollectionInfo {
	return wire.CollectionInfo{
		ID: d.uint32(), Name: d.str(), Options: d.options(), CreatedAt: d.uint(), Dropping: d.bool(),
	}
}
