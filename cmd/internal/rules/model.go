package rules

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// model is what a shard's log means, said as simply as possible: documents are
// lists of versions, nothing is ever forgotten but marked as gone, and nothing
// is stored. It is written from the design, not from package fsm.
type model struct {
	applied        uint64
	clock, ceiling hlc.Timestamp
	requests       hlc.Timestamp // request IDs below are forgotten
	epoch          placement.Epoch
	owned          map[placement.PartitionID]placement.Epoch
	ownedAt        map[placement.PartitionID]uint64 // index of the entry
	dropped        map[placement.CollectionID]uint64
	horizons       map[placement.CollectionID]hlc.Timestamp
	docs           map[docKey][]*version
	answers        map[requestKey]wire.WriteResult
	effects        map[wire.RequestID]int // versions that a request has made
}

type docKey struct {
	partition  placement.PartitionID
	collection placement.CollectionID
	id         string
}

type requestKey struct {
	partition placement.PartitionID
	id        wire.RequestID
}

// version is one of a document's.
type version struct {
	number        uint64
	time, created hlc.Timestamp
	deleted       bool
	n             int    // the body is bodies[n]
	born          uint64 // index of the entry
	gone          uint64 // index of the entry that collected or dropped it; 0: it is kept
}

func newModel() *model {
	return &model{
		owned:    map[placement.PartitionID]placement.Epoch{},
		ownedAt:  map[placement.PartitionID]uint64{},
		dropped:  map[placement.CollectionID]uint64{},
		horizons: map[placement.CollectionID]hlc.Timestamp{},
		docs:     map[docKey][]*version{},
		answers:  map[requestKey]wire.WriteResult{},
		effects:  map[wire.RequestID]int{},
	}
}

// Bodies and operators of the workload. A body is one number, so that the model
// need not evaluate anything.
var (
	bodies = func() (b []doc.Raw) {
		for n := range 256 {
			b = append(b, mustJSON(fmt.Sprintf(`{"n":%d}`, n)))
		}
		return b
	}()
	increment = mustJSON(`{"$inc":{"n":1}}`)
)

func mustJSON(s string) doc.Raw {
	raw, err := doc.FromJSON([]byte(s))
	if err != nil {
		panic(err)
	}
	return raw
}

// numberOf is the number in a body.
func numberOf(body doc.Raw) int {
	return slices.IndexFunc(bodies, func(b doc.Raw) bool { return string(b) == string(body) })
}

// apply runs the entry's commands and answers what a machine has to.
func (m *model) apply(e *Entry) (any, error) {
	m.applied = e.Index
	switch {
	case len(e.Data) == 0:
		return e.Term, nil
	case e.believed != e.Term:
		return errVoid, nil
	}
	commands, err := fsm.DecodeEntry(e.Data)
	if err != nil {
		return nil, err
	}
	results := make([]fsm.Result, len(commands))
	for i := range commands {
		m.command(&commands[i], &results[i])
	}
	return results, nil
}

func (m *model) command(c *fsm.Command, r *fsm.Result) {
	switch {
	case c.Write != nil:
		r.Wire = m.write(c)
	case c.Own != nil:
		for _, p := range c.Own.Partitions {
			if _, ok := m.owned[p]; !ok {
				m.owned[p], m.ownedAt[p] = c.Own.Epoch, m.applied
			}
		}
		m.epoch = max(m.epoch, c.Own.Epoch)
	case c.Ceiling != nil:
		m.ceiling = max(m.ceiling, c.Ceiling.To)
	case c.Horizon != nil:
		m.requests = max(m.requests, c.Horizon.RequestIDs)
		for k := range m.answers {
			if hlc.Timestamp(k.id.Time) < m.requests {
				delete(m.answers, k)
			}
		}
		for _, h := range c.Horizon.History {
			if _, dropped := m.dropped[h.Collection]; !dropped {
				m.horizons[h.Collection] = max(m.horizons[h.Collection], h.At)
			}
		}
	case c.Collect != nil:
		for _, k := range c.Collect.Keys {
			m.collect(k)
		}
	case c.Drop != nil:
		m.drop(c.Drop.Collection)
	}
}

func (m *model) drop(c placement.CollectionID) {
	if _, done := m.dropped[c]; done {
		return
	}
	m.dropped[c] = m.applied
	delete(m.horizons, c)
	for k, versions := range m.docs {
		if k.collection == c {
			for _, v := range versions {
				if v.gone == 0 {
					v.gone = m.applied
				}
			}
		}
	}
}

// collect marks a version as gone if the state before this entry allows that.
func (m *model) collect(key []byte) {
	k, err := mvcc.DecodeDocument(key)
	if err != nil {
		return
	}
	var v, successor *version
	older := false
	for _, x := range m.docs[docKey{k.Partition, k.Collection, k.ID}] {
		switch {
		case x.born == m.applied || x.gone != 0:
		case x.time < k.Time:
			older = true
		case x.time == k.Time:
			v = x
		case successor == nil:
			successor = x
		}
	}
	if v == nil {
		return
	}
	horizon := m.horizons[k.Collection]
	if successor != nil && successor.time <= horizon || successor == nil && v.deleted && v.time <= horizon && !older {
		v.gone = m.applied
	}
}

// keeps says that a version is there for a write: what is collected in an entry
// is there until the entry's end, so that the order of its commands is nothing
// to the garbage in it.
func (m *model) keeps(v *version) bool { return v.gone == 0 || v.gone == m.applied }

// newest is the last version that a write meets.
func (m *model) newest(versions []*version) *version {
	for i := len(versions) - 1; i >= 0; i-- {
		if m.keeps(versions[i]) {
			return versions[i]
		}
	}
	return nil
}

func (m *model) write(c *fsm.Command) wire.WriteResult {
	w, item := c.Write, &c.Write.Item
	no := func(code wire.Code, version uint64) wire.WriteResult {
		return wire.WriteResult{Error: &wire.Error{Code: code, Version: version}}
	}
	if since, ok := m.owned[w.Partition]; !ok || w.Epoch < since {
		r := no(wire.CodeStaleEpoch, 0)
		r.Error.Epoch = uint64(m.epoch)
		return r
	}
	if hlc.Timestamp(item.RequestID.Time) < m.requests {
		return no(wire.CodeOutcomeExpired, 0)
	}
	rk := requestKey{w.Partition, item.RequestID}
	if first, ok := m.answers[rk]; ok {
		first.Duplicate = true
		return first
	}
	if _, dropped := m.dropped[w.Collection]; dropped {
		return no(wire.CodeCollectionNotFound, 0)
	}
	r := m.effect(c, no)
	m.answers[rk] = r
	return r
}

func (m *model) effect(c *fsm.Command, no func(wire.Code, uint64) wire.WriteResult) wire.WriteResult {
	w, item := c.Write, &c.Write.Item
	k := docKey{w.Partition, w.Collection, item.ID}
	last := m.newest(m.docs[k])
	live := last != nil && !last.deleted
	number := uint64(0)
	if last != nil {
		number = last.number
	}
	switch {
	case !live && (item.Op == wire.OpUpdate || item.Op == wire.OpDelete || item.Cond&wire.CondPresent != 0):
		return no(wire.CodeNotFound, 0)
	case !live && item.IfVersion != 0:
		return no(wire.CodeVersionConflict, 0)
	case live && (item.Op == wire.OpInsert || item.Cond&wire.CondAbsent != 0):
		return no(wire.CodeAlreadyExists, number)
	case live && item.IfVersion != 0 && item.IfVersion != number:
		return no(wire.CodeVersionConflict, number)
	}
	next := &version{number: number + 1, deleted: item.Op == wire.OpDelete, born: m.applied}
	switch item.Op {
	case wire.OpPut, wire.OpInsert:
		next.n = numberOf(item.Body)
	case wire.OpUpdate, wire.OpUpsert:
		next.n = 1
		if live {
			next.n = last.n + 1
		}
	case wire.OpRestore:
		switch {
		case last == nil:
			return no(wire.CodeNotFound, 0)
		case item.RestoreVersion > number:
			return no(wire.CodeVersionNotFound, number)
		}
		var old *version
		for _, v := range m.docs[k] {
			if m.keeps(v) && v.number == item.RestoreVersion {
				old = v
			}
		}
		switch {
		case old == nil:
			return no(wire.CodeHistoryExpired, number)
		case old.deleted:
			return no(wire.CodeVersionNotFound, number)
		}
		next.n = old.n
	}
	m.clock = max(c.Time, m.clock+1)
	m.ceiling = max(m.ceiling, m.clock)
	next.time, next.created = m.clock, m.clock
	if live {
		next.created = last.created
	}
	m.docs[k] = append(m.docs[k], next)
	m.effects[item.RequestID]++
	r := wire.WriteResult{Version: next.number, Time: uint64(next.time), CreatedAt: uint64(next.created), Created: !live && !next.deleted}
	if item.ReturnDoc && !next.deleted {
		r.Doc = bodies[next.n]
	}
	return r
}

// at is the version of a document that a read at ts sees, gone or not.
func (m *model) at(k docKey, ts hlc.Timestamp) *version {
	var seen *version
	for _, v := range m.docs[k] {
		if v.time <= ts {
			seen = v
		}
	}
	if seen == nil || seen.deleted {
		return nil
	}
	return seen
}

// after is what a reader of the newest version saw when the log was applied up
// to an index.
func (m *model) after(k docKey, index uint64) *version {
	var seen *version
	for _, v := range m.docs[k] {
		if v.born <= index {
			seen = v
		}
	}
	if seen == nil || seen.deleted {
		return nil
	}
	return seen
}

// kept lists a document's versions that are stored, oldest first.
func (m *model) kept(k docKey) (list []*version) {
	for _, v := range m.docs[k] {
		if v.gone == 0 {
			list = append(list, v)
		}
	}
	return list
}

// keys are all documents that ever were, in order.
func (m *model) keys() []docKey {
	keys := make([]docKey, 0, len(m.docs))
	for k := range m.docs {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b docKey) int {
		return cmp.Or(cmp.Compare(a.partition, b.partition), cmp.Compare(a.collection, b.collection), strings.Compare(a.id, b.id))
	})
	return keys
}

// stats are what a machine's have to be.
func (m *model) stats() (documents, bytes, rows uint64) {
	for k, versions := range m.docs {
		for _, v := range versions {
			if v.gone == 0 {
				rows++
			}
		}
		if last := versions[len(versions)-1]; last.gone == 0 && !last.deleted {
			documents++
			bytes += uint64(len(k.id) + len(bodies[last.n]))
		}
	}
	return documents, bytes, rows
}

// differ compares an answer with the model's.
func differ(got, want any) string {
	g, ok := got.([]fsm.Result)
	w, both := want.([]fsm.Result)
	if !ok || !both {
		if got != want {
			return fmt.Sprintf("answered %v, the model says %v", got, want)
		}
		return ""
	}
	if len(g) != len(w) {
		return fmt.Sprintf("answered %d results, the model says %d", len(g), len(w))
	}
	for i := range g {
		a, b := g[i].Wire, w[i].Wire
		same := a.Version == b.Version && a.Time == b.Time && a.CreatedAt == b.CreatedAt && a.Created == b.Created &&
			a.Duplicate == b.Duplicate && string(a.Doc) == string(b.Doc) && (a.Error == nil) == (b.Error == nil)
		if same && a.Error != nil {
			same = a.Error.Code == b.Error.Code && a.Error.Version == b.Error.Version && a.Error.Epoch == b.Error.Epoch
		}
		if !same {
			return fmt.Sprintf("command %d answered %s, the model says %s", i, tell(a), tell(b))
		}
	}
	return ""
}

// tell is an answer for people.
func tell(r wire.WriteResult) string {
	s := ""
	if r.Duplicate {
		s = " (again)"
	}
	if r.Error != nil {
		return fmt.Sprintf("refused with code %d, version %d%s", r.Error.Code, r.Error.Version, s)
	}
	return fmt.Sprintf("version %d at %d, created at %d, body %d%s", r.Version, r.Time, r.CreatedAt, numberOf(doc.Raw(r.Doc)), s)
}
