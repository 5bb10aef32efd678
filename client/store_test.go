package client_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/txn/hlc"
)

// store is a linearizable document store for tests: one lock, everything in
// memory, and the servers' rule that a request ID has one answer for ever.
type store struct {
	clock *hlc.Clock

	mu      sync.Mutex
	docs    map[string][]wire.Document // collection NUL id → versions, oldest first
	answers map[wire.RequestID]wire.WriteResult
	effects map[wire.RequestID]int // how often a request changed something
}

func newStore() *store {
	return &store{
		clock:   hlc.NewClock(nil),
		docs:    make(map[string][]wire.Document),
		answers: make(map[wire.RequestID]wire.WriteResult),
		effects: make(map[wire.RequestID]int),
	}
}

func key(collection, id string) string { return collection + "\x00" + id }

// write applies one item, or answers what it answered before.
func (s *store) write(collection string, it *wire.WriteItem) wire.WriteResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.answers[it.RequestID]; ok {
		r.Duplicate = r.Error == nil
		return r
	}
	r := s.applyLocked(collection, it)
	s.answers[it.RequestID] = r
	if r.Error == nil {
		s.effects[it.RequestID]++
	}
	return r
}

func (s *store) applyLocked(collection string, it *wire.WriteItem) wire.WriteResult {
	k := key(collection, it.ID)
	chain := s.docs[k]
	var cur *wire.Document
	var last uint64
	if n := len(chain); n > 0 {
		last = chain[n-1].Version
		if !chain[n-1].Deleted {
			cur = &chain[n-1]
		}
	}
	refuse := func(code wire.Code, format string, args ...any) wire.WriteResult {
		e := &wire.Error{Code: code, Message: collection + "/" + it.ID + ": " + fmt.Sprintf(format, args...)}
		if cur != nil {
			e.Version = cur.Version
		}
		return wire.WriteResult{Error: e}
	}
	if it.IfVersion != 0 && (cur == nil || cur.Version != it.IfVersion) {
		return refuse(wire.CodeVersionConflict, "version is %d, the write expected %d (re-read and retry)", last, it.IfVersion)
	}
	if cur != nil && (it.Cond&wire.CondAbsent != 0 || it.Op == wire.OpInsert) {
		return refuse(wire.CodeAlreadyExists, "exists already")
	}
	if cur == nil && (it.Cond&wire.CondPresent != 0 || it.Op == wire.OpUpdate || it.Op == wire.OpDelete) {
		return refuse(wire.CodeNotFound, "not found")
	}
	now := uint64(s.clock.Now())
	next := wire.Document{ID: it.ID, Version: last + 1, CreatedAt: now, UpdatedAt: now}
	if cur != nil {
		next.CreatedAt = cur.CreatedAt
	}
	switch it.Op {
	case wire.OpPut, wire.OpInsert:
		next.Body = slices.Clone(it.Body)
	case wire.OpUpdate, wire.OpUpsert:
		body := doc.D{}
		if cur != nil {
			if err := doc.Raw(cur.Body).Decode(&body); err != nil {
				return refuse(wire.CodeInternal, "%v", err)
			}
		}
		var ops map[string]doc.D
		if err := doc.Raw(it.Body).Decode(&ops); err != nil {
			return refuse(wire.CodeBadUpdate, "%v", err)
		}
		for path, v := range ops["$set"] {
			body[path] = v
		}
		for path, v := range ops["$inc"] {
			old, _ := body[path].(int64)
			by, ok := v.(int64)
			if _, text := body[path].(string); text || !ok {
				return refuse(wire.CodeUpdateFailed, "$inc of %s, which is not a number", path)
			}
			body[path] = old + by
		}
		raw, err := doc.Marshal(body)
		if err != nil {
			return refuse(wire.CodeInternal, "%v", err)
		}
		next.Body = raw
	case wire.OpDelete:
		next.Deleted = true
	case wire.OpRestore:
		i := slices.IndexFunc(chain, func(d wire.Document) bool { return d.Version == it.RestoreVersion && !d.Deleted })
		if i < 0 {
			return refuse(wire.CodeVersionNotFound, "there is no version %d", it.RestoreVersion)
		}
		next.Body = chain[i].Body
	}
	s.docs[k] = append(chain, next)
	r := wire.WriteResult{Version: next.Version, Time: now, CreatedAt: next.CreatedAt, Created: cur == nil}
	if it.ReturnDoc && !next.Deleted {
		r.Doc = next.Body
	}
	return r
}

// read is one version of a document.
func (s *store) read(collection, id string, atVersion, atTime uint64) wire.GetResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	chain := s.docs[key(collection, id)]
	for i := len(chain) - 1; i >= 0; i-- {
		d := chain[i]
		if (atVersion != 0 && d.Version != atVersion) || (atTime != 0 && d.UpdatedAt > atTime) {
			continue
		}
		if d.Deleted {
			break
		}
		return wire.GetResult{Doc: d}
	}
	code := wire.CodeNotFound
	if atVersion != 0 || atTime != 0 {
		code = wire.CodeVersionNotFound
	}
	return wire.GetResult{Error: &wire.Error{Code: code, Message: collection + "/" + id + ": not found"}}
}

// ids of a collection as of a time, in order.
func (s *store) ids(collection, prefix string, at uint64) []string {
	s.mu.Lock()
	var ids []string
	for k := range s.docs {
		if c, id, _ := strings.Cut(k, "\x00"); c == collection && strings.HasPrefix(id, prefix) {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	ids = slices.DeleteFunc(ids, func(id string) bool { return s.read(collection, id, 0, at).Error != nil })
	slices.Sort(ids)
	return ids
}

func (s *store) history(collection, id string) []wire.Document {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Clone(s.docs[key(collection, id)])
	slices.Reverse(list)
	return list
}

// changed says whether a request had an effect.
func (s *store) changed(id wire.RequestID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.effects[id] > 0
}

// now is a server's clock: an hour off, as the client must not mind.
func (s *store) now() uint64 { return uint64(s.clock.Now().Add(time.Hour)) }
