package router

import (
	"errors"
	"unicode/utf8"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// checkID refuses an ID that no document can have.
func checkID(collection, id string) *wire.Error {
	switch {
	case id == "":
		return refuse(wire.CodeBadID, "%s: the document ID is empty", collection)
	case len(id) > wire.MaxIDBytes:
		return refuse(wire.CodeBadID, "%s: the document ID has %d bytes, at most %d are allowed", subject{collection, id}, len(id), wire.MaxIDBytes)
	case !utf8.ValidString(id):
		return refuse(wire.CodeBadID, "%s: the document ID is not UTF-8", subject{collection, id})
	}
	return nil
}

// checkName refuses a collection name that none can have. A good name is
// common, so it is looked for in the view before this is called.
func checkName(name string) *wire.Error {
	if err := placement.CheckCollectionName(name); err != nil {
		return refuse(wire.CodeBadCollection, "%v", err)
	}
	return nil
}

// checkItem refuses a write that is wrong whatever is stored.
func (r *Router) checkItem(collection string, it *wire.WriteItem) *wire.Error {
	if e := checkID(collection, it.ID); e != nil {
		return e
	}
	s := subject{collection, it.ID}
	if it.RequestID == (wire.RequestID{}) {
		return refuse(wire.CodeBadRequest, "%s: the write has no request ID", s)
	}
	if it.Cond&^(wire.CondAbsent|wire.CondPresent) != 0 {
		return refuse(wire.CodeBadRequest, "%s: unknown condition bits %#x", s, it.Cond)
	}
	if it.Cond&wire.CondAbsent != 0 && (it.Cond&wire.CondPresent != 0 || it.IfVersion != 0) {
		return refuse(wire.CodeBadRequest, "%s: the conditions contradict each other: the document cannot be absent and also have a version", s)
	}
	switch it.Op {
	case wire.OpPut, wire.OpInsert:
		if it.Op == wire.OpInsert && (it.Cond&wire.CondPresent != 0 || it.IfVersion != 0) {
			return refuse(wire.CodeBadRequest, "%s: an insert cannot demand that the document exists (use put)", s)
		}
		if len(it.Body) == 0 {
			return refuse(wire.CodeBadDocument, "%s: the write has no document", s)
		}
		if err := doc.CheckBody(it.Body, r.opts.Limits); err != nil {
			return docError(err, s)
		}
	case wire.OpUpdate, wire.OpUpsert:
		if it.Op == wire.OpUpdate && it.Cond&wire.CondAbsent != 0 {
			return refuse(wire.CodeBadRequest, "%s: an update cannot demand that the document is absent (use insert or upsert)", s)
		}
		if len(it.Body) == 0 {
			return refuse(wire.CodeBadUpdate, "%s: the update has no operators", s)
		}
		return r.checkUpdate(it.Body, s)
	case wire.OpDelete:
		if it.Cond&wire.CondAbsent != 0 {
			return refuse(wire.CodeBadRequest, "%s: a delete cannot demand that the document is absent", s)
		}
		if len(it.Body) != 0 {
			return refuse(wire.CodeBadRequest, "%s: a delete carries no document", s)
		}
	case wire.OpRestore:
		if it.RestoreVersion == 0 {
			return refuse(wire.CodeBadRequest, "%s: a restore names the version to restore, from 1", s)
		}
		if len(it.Body) != 0 {
			return refuse(wire.CodeBadRequest, "%s: a restore carries no document", s)
		}
	default:
		return refuse(wire.CodeBadRequest, "%s: unknown write operation %d", s, it.Op)
	}
	if it.Op != wire.OpRestore && it.RestoreVersion != 0 {
		return refuse(wire.CodeBadRequest, "%s: only a restore names a version to restore", s)
	}
	return nil
}

// docError words what package doc found.
func docError(err error, s subject) *wire.Error {
	code := wire.CodeBadDocument
	switch {
	case errors.Is(err, doc.ErrTooLarge):
		code = wire.CodeDocumentTooLarge
	case errors.Is(err, doc.ErrTooDeep):
		code = wire.CodeTooDeep
	case errors.Is(err, doc.ErrBadID):
		code = wire.CodeBadID
	}
	return refuse(code, "%s: %v", s, err)
}
