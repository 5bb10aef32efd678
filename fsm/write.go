package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/fsm/update"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// refusal is a definite "no" to a write: it is remembered like an effect.
type refusal struct {
	code    wire.Code
	version uint64
	detail  string
}

// write runs one write command. Its answer is folded into the digest: a
// replica that answers otherwise has another state, whatever its rows say.
func (a *applier) write(c *Command, r *Result) error {
	w := c.Write
	remember, keepDoc, err := a.decide(c, r)
	if err != nil {
		return err
	}
	if !remember {
		var code wire.Code
		version := r.Wire.Version
		if r.Wire.Error != nil {
			code, version = r.Wire.Error.Code, r.Wire.Error.Version
		}
		a.fold(opAnswer, nil, uint64(code), version, r.Wire.Time, r.Wire.CreatedAt)
		return nil
	}
	return a.remember(&w.Item.RequestID, w.Partition, r, keepDoc)
}

// decide finds the answer, and makes the effect. remember says whether a retry
// has to get the same one; keepDoc, whether the document must be kept for it.
func (a *applier) decide(c *Command, r *Result) (remember, keepDoc bool, err error) {
	w := c.Write
	no := func(code wire.Code, version uint64, detail string) {
		r.Wire.Error = &wire.Error{Code: code, Version: version}
		r.Detail = detail
		if len(detail) > maxAnswerDetail { // so that a retry is told the same
			r.Detail = strings.ToValidUTF8(detail[:maxAnswerDetail], "")
		}
	}

	// Refusals that a retry meets again, or that say "ask elsewhere".
	if !a.view.check(w.Partition, w.Epoch) {
		no(wire.CodeStaleEpoch, 0, a.view.why(a.m.group, w.Partition, w.Epoch))
		r.Wire.Error.Epoch = uint64(a.meta.epoch)
		return false, false, nil
	}
	if code, detail := malformed(&w.Item); code != wire.CodeOK {
		no(code, 0, detail)
		return false, false, nil
	}
	if hlc.Timestamp(w.Item.RequestID.Time) < a.meta.requests && !mutant.On(mutant.ExpiredRuns) {
		no(wire.CodeOutcomeExpired, 0, "the request ID is older than what is remembered")
		return false, false, nil
	}
	if known, err := a.known(w, r); err != nil || known {
		return false, false, err
	}
	if a.view.isDropped(w.Collection) {
		no(wire.CodeCollectionNotFound, 0, "the collection was dropped")
		return false, false, nil
	}

	if len(a.m.held.prepared) > 0 {
		if h := a.m.held.blocks(w.Partition, w.Collection, w.Item.ID); h != nil {
			// Not remembered: the same write may be done when the lock is gone.
			no(wire.CodeLocked, 0, "")
			r.Rival = h.id
			return false, false, nil
		}
	}

	refused, err := a.effect(c, r)
	if err != nil {
		return false, false, err
	}
	if refused != nil {
		no(refused.code, refused.version, refused.detail)
		return true, false, nil
	}
	bodyInRequest := w.Item.Op == wire.OpPut || w.Item.Op == wire.OpInsert
	return true, !bodyInRequest, nil
}

// malformed finds what is wrong with a write whatever is stored.
func malformed(w *wire.WriteItem) (wire.Code, string) {
	switch {
	case w.Op == 0:
		return wire.CodeBadRequest, "a write without an operation"
	case w.RequestID == wire.RequestID{}:
		return wire.CodeBadRequest, "a write without a request ID"
	case w.ID == "" || len(w.ID) > wire.MaxIDBytes || !utf8.ValidString(w.ID):
		return wire.CodeBadID, fmt.Sprintf("an ID is 1 to %d bytes of UTF-8", wire.MaxIDBytes)
	case (w.Op == wire.OpPut || w.Op == wire.OpInsert) && len(w.Body) == 0:
		return wire.CodeBadDocument, "a write without a document"
	case w.Op == wire.OpRestore && w.RestoreVersion == 0:
		return wire.CodeBadRequest, "a restore without a version"
	}
	return wire.CodeOK, ""
}

func requestKeyOf(p placement.PartitionID, id *wire.RequestID) (k requestKey) {
	binary.BigEndian.PutUint32(k[:], uint32(p))
	binary.BigEndian.PutUint64(k[4:], id.Time)
	copy(k[12:], id.Random[:])
	return k
}

func (k *requestKey) partition() placement.PartitionID {
	return placement.PartitionID(binary.BigEndian.Uint32(k[:]))
}

func (k *requestKey) time() uint64 { return binary.BigEndian.Uint64(k[4:]) }

// known answers a retry with the first attempt's answer.
func (a *applier) known(w *Write, r *Result) (bool, error) {
	answer, found, err := a.firstAnswer(w.Partition, &w.Item.RequestID, ofRequest)
	if err != nil || !found {
		return false, err
	}
	if err := decodeAnswer(answer, r); err != nil {
		return false, err
	}
	if r.Wire.Error == nil && w.Item.ReturnDoc && (w.Item.Op == wire.OpPut || w.Item.Op == wire.OpInsert) {
		r.Wire.Doc = w.Item.Body
	}
	return true, nil
}

// firstAnswer is answerTo, of IDs that were seen before.
func (a *applier) firstAnswer(p placement.PartitionID, id *wire.RequestID, of subject) ([]byte, bool, error) {
	if a.m.requests.unseen(id) || mutant.On(mutant.RetryRuns) {
		return nil, false, nil
	}
	return a.answerTo(p, id, of)
}

// effect makes the write's change, or says why not.
func (a *applier) effect(c *Command, r *Result) (*refusal, error) {
	w, item := c.Write, &c.Write.Item
	a.key = mvcc.AppendDocument(a.key[:0], a.m.group, w.Partition, w.Collection, item.ID)
	before, inBatch := a.docs[string(a.key)]
	current, found, size, err := a.current(item.Op, before, inBatch)
	if err != nil {
		return nil, err
	}
	live := found && !current.Deleted
	if no := conditions(item, live, current.Version); no != nil {
		return no, nil
	}

	// The new body is found before the clock moves: a refusal takes no time.
	limit := int(w.MaxBytes)
	if limit == 0 {
		limit = wire.DefaultDocumentSize
	}
	limit = min(limit, wire.MaxDocumentBytes)
	next := mvcc.Row{Version: current.Version + 1, Deleted: item.Op == wire.OpDelete}
	if mutant.On(mutant.ApplyReadsClock) {
		c.Time = hlc.FromMillis(mutant.Millis())
	}
	ts := max(c.Time, a.meta.clock+1)
	switch item.Op {
	case wire.OpPut, wire.OpInsert:
		next.Body = item.Body
	case wire.OpUpdate, wire.OpUpsert:
		var body []byte
		if live {
			body = current.Body
		}
		changed, no := evaluate(body, item.Body, ts, limit)
		if no != nil {
			return no, nil
		}
		next.Body = changed
	case wire.OpRestore:
		body, no, err := a.restored(item.RestoreVersion, current.Version, found, before)
		if no != nil || err != nil {
			return no, err
		}
		next.Body = body
	}
	if no := oversize(next.Body, limit); no != nil {
		return no, nil
	}

	ts, err = a.tick(c.Time)
	if err != nil {
		return nil, err
	}
	next.Created, next.Updated = ts, ts
	if mutant.On(mutant.ApplyRandom) && mutant.Once(8) {
		next.Created--
	}
	if live {
		next.Created = current.Created
	}

	a.install(countKey{w.Partition, w.Collection}, item.ID, &next, prior{found: found, live: live, size: size, pending: before, inBatch: inBatch})

	r.Wire = wire.WriteResult{Version: next.Version, Time: uint64(ts), CreatedAt: uint64(next.Created), Created: !live && !next.Deleted}
	if item.ReturnDoc && !next.Deleted {
		r.Wire.Doc = next.Body
	}
	return nil, nil
}

func oversize(body []byte, limit int) *refusal {
	if len(body) <= limit {
		return nil
	}
	return &refusal{code: wire.CodeDocumentTooLarge, detail: fmt.Sprintf("the document has %d bytes, at most %d are allowed", len(body), limit)}
}

// prior is what a new version follows.
type prior struct {
	found, live bool
	size        int // of the body
	pending     pending
	inBatch     bool
	late        bool // the new version is older than the clock
}

// install writes a version of the document at a.key, which a.key becomes the
// key of.
func (a *applier) install(k countKey, id string, next *mvcc.Row, was prior) {
	n := a.countsOf(k)
	if was.found && n.rows == n.docs {
		a.ripe[k] = next.Updated // the first superseded version
	} else if was.found && was.late {
		a.ripe[k] = 0 // a sweep may have been told that nothing is superseded so early
	}
	n.rows++
	if was.live && !(next.Deleted && mutant.On(mutant.DeleteCounted)) {
		n.docs--
		n.bytes -= uint64(len(id) + was.size)
	}
	if !next.Deleted {
		n.docs++
		n.bytes += uint64(len(id) + len(next.Body))
	}
	a.setCounts(k, n)

	p := pending{newest: *next}
	if was.inBatch {
		p.older = append(was.pending.older, was.pending.newest)
	}
	a.m.heads.put(a.key, head{version: next.Version, created: next.Created, updated: next.Updated, size: uint32(len(next.Body)), deleted: next.Deleted})
	a.docs[a.keep(a.key)] = p
	a.key = mvcc.AppendTime(a.key, next.Updated)
	a.foldRow(opSet, a.key, a.writer().SetDocument(a.key, next))
}

// keep makes a key a string that is good until the batch is done with.
func (a *applier) keep(key []byte) string {
	a.keys = append(a.keys, key...)
	kept := a.keys[len(a.keys)-len(key):]
	return unsafe.String(unsafe.SliceData(kept), len(kept)) // not changed before clear
}

// stringBytes is a string's bytes, which must not be changed.
func stringBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// current is the newest version of the document at a.key, and its body's size.
// The body itself is there for operations that look at it.
func (a *applier) current(op wire.WriteOp, p pending, inBatch bool) (row mvcc.Row, found bool, size int, err error) {
	if inBatch {
		return p.newest, true, len(p.newest.Body), nil
	}
	if op != wire.OpUpdate && op != wire.OpUpsert {
		if h, ok := a.m.heads.get(a.key); ok {
			return mvcc.Row{Version: h.version, Created: h.created, Updated: h.updated, Deleted: h.deleted}, true, int(h.size), nil
		}
	}
	reader, err := a.read()
	if err != nil {
		return row, false, 0, err
	}
	row, found, err = reader.Newest(a.key)
	return row, found, len(row.Body), err
}

// conditions refuses a write that does not fit what is stored.
func conditions(w *wire.WriteItem, live bool, version uint64) *refusal {
	if !live {
		switch {
		case w.Op == wire.OpUpdate || w.Op == wire.OpDelete || w.Cond&wire.CondPresent != 0:
			return &refusal{code: wire.CodeNotFound}
		case w.IfVersion != 0:
			return &refusal{code: wire.CodeVersionConflict, detail: "the document does not exist"}
		}
		return nil
	}
	switch {
	case w.Op == wire.OpInsert || w.Cond&wire.CondAbsent != 0:
		return &refusal{code: wire.CodeAlreadyExists, version: version}
	case w.IfVersion != 0 && w.IfVersion != version && !mutant.On(mutant.VersionUnchecked):
		return &refusal{code: wire.CodeVersionConflict, version: version}
	}
	return nil
}

// evaluate runs update operators on a body; nil is a document from nothing.
func evaluate(body, operators []byte, now hlc.Timestamp, limit int) ([]byte, *refusal) {
	lim := doc.Limits{MaxBytes: limit, MaxDepth: wire.MaxDepth}
	u, err := update.Parse(operators)
	if err == nil {
		var changed doc.Raw
		if changed, err = u.Apply(body, now, lim); err == nil {
			return changed, nil
		}
	}
	var e *update.Error
	if errors.As(err, &e) {
		return nil, &refusal{code: e.Code, detail: e.Error()}
	}
	return nil, &refusal{code: wire.CodeUpdateFailed, detail: err.Error()}
}

// restored finds an old version's body: first in what this batch wrote, then
// in what is stored.
func (a *applier) restored(version, newest uint64, found bool, p pending) ([]byte, *refusal, error) {
	if !found {
		return nil, &refusal{code: wire.CodeNotFound}, nil
	}
	if version > newest {
		return nil, &refusal{code: wire.CodeVersionNotFound, version: newest}, nil
	}
	var row mvcc.Row
	hit := false
	match := func(r mvcc.Row) bool {
		if r.Version == version {
			row, hit = r, true
		}
		return hit
	}
	match(p.newest)
	for _, r := range p.older {
		match(r)
	}
	if !hit {
		reader, err := a.read()
		if err != nil {
			return nil, nil, err
		}
		err = reader.Versions(a.key, func(r mvcc.Row) (bool, error) {
			if match(r) {
				row.Body = append([]byte(nil), r.Body...)
			}
			return r.Version > version, nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	switch {
	case !hit:
		return nil, &refusal{code: wire.CodeHistoryExpired, version: newest}, nil
	case row.Deleted:
		return nil, &refusal{code: wire.CodeVersionNotFound, version: newest, detail: "that version is a deletion"}, nil
	}
	return row.Body, nil, nil
}
