package client

import (
	"context"
	"errors"
	"hash/fnv"

	"github.com/impossibledb/idb/client/route"
	"github.com/impossibledb/idb/client/wire"
)

// What changes documents names its collection by number, the same in every
// attempt: between two attempts others may drop a collection and make its name
// anew, and the new one knows nothing of what was done in the old one.

// target is the collection that a call writes to.
type target struct {
	db      *DB
	name    string
	creates bool      // the call may make documents, and so the collection
	first   RequestID // of the call's first write that may
	created bool      // a creation under the ID that follows from first was answered
	number  uint32    // 0: not known yet
	unique  bool      // the collection of that number has unique fields
	turns   int       // how often the name was looked up again
}

// maxTurns is how often a call follows a name from one collection to the next.
// Each time somebody has dropped and made it anew since the time before.
const maxTurns = 16

// creating says that a write makes the collection that it is to.
func creating(op wire.WriteOp) bool {
	return op == wire.OpPut || op == wire.OpInsert || op == wire.OpUpsert
}

// creationID is the ID under which a first write creates its collection. It
// follows from the write's, so that a later call that repeats the write repeats
// the creation too, and from the name, for a transaction may write to several.
func creationID(first RequestID, name string) RequestID {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	sum := h.Sum64()
	for i := range 8 {
		first.Random[i] ^= byte(sum >> (8 * i))
	}
	return first
}

// bind finds the number, if it is not known. The error is one of route.Do.
func (t *target) bind(ctx context.Context) error {
	if t.number != 0 {
		return nil
	}
	if v := t.db.c.View(); v != nil {
		if info := v.Collection(t.name); info != nil {
			t.number, t.unique = info.ID, len(info.Options.Unique) > 0
			return nil
		}
	}
	return t.ask(ctx)
}

// ask looks the name up at the servers, and creates the collection if there is
// none and the call may.
func (t *target) ask(ctx context.Context) error {
	t.number = 0
	var info CollectionInfo
	err := during("its collection was looked up", t.db.c.Do(ctx, wire.KindCollection, route.Read, &control{ask: &wire.CollectionRequest{Name: t.name}, answer: &info}))
	if t.creates && isGone(err) {
		id := creationID(t.first, t.name)
		if t.created {
			// That one was dropped by others before the write arrived.
			id = t.db.NewRequestID()
		}
		err = during("its collection was created", decisive(t.db.c.Do(ctx, wire.KindCreateCollection, route.Write, &control{
			ask: &wire.CreateCollectionRequest{Name: t.name, RequestID: id, Implicit: true}, answer: &info,
		})))
		t.created = t.created || err == nil
	}
	if err != nil {
		return err
	}
	t.number, t.unique = info.ID, len(info.Options.Unique) > 0
	if v := t.db.c.View(); v == nil || !v.Numbered(t.name, t.number) {
		_ = t.db.c.Refresh(ctx) // for the way to the leaders; any node finds it too
	}
	return nil
}

// moved is called with the refusal of everything that was sent for t.number. If
// that is because the collection is gone, and no attempt is unanswered, nothing
// was done and nothing will be: the name is looked up again. It says whether it
// is another collection now; an error takes the refusal's place.
func (t *target) moved(ctx context.Context, refusal error) (bool, error) {
	if !isGone(refusal) || t.turns >= maxTurns {
		return false, refusal
	}
	t.turns++
	was := t.number
	if err := t.ask(ctx); err != nil {
		return false, err
	}
	return t.number != was, refusal
}

// isGone says that a request was refused for good because there is no such
// collection.
func isGone(err error) bool {
	var f *route.Failure
	return errors.As(err, &f) && f.Final() && f.Refusal.Code == wire.CodeCollectionNotFound
}

// decisive believes that a collection does not exist also after lost attempts.
// What a request to the catalog is told comes from its log, under its ID: every
// attempt is told the same.
func decisive(err error) error {
	var f *route.Failure
	if !errors.As(err, &f) || !f.Unknown || f.Ended != nil || f.Refusal == nil || f.Refusal.Code != wire.CodeCollectionNotFound {
		return err
	}
	sure := *f
	sure.Unknown, sure.Err = false, nil
	return &sure
}

// during says what was done for a request when it failed.
func during(step string, err error) error {
	var f *route.Failure
	if !errors.As(err, &f) || f.Final() {
		return err
	}
	named := *f
	named.Step = step
	return &named
}

// expired says that a request was refused for good because its ID is older than
// what is remembered.
func expired(err error) bool {
	var f *route.Failure
	return errors.As(err, &f) && f.Final() && f.Refusal.Code == wire.CodeOutcomeExpired
}

// maxRenames is how often a write whose ID was refused as expired gets another.
// None of its attempts was lost, or the refusal would not be the answer: it was
// not done. The ID was made by a clock that is behind those of the servers, one
// of which was ahead once; the refusal has the time there.
const maxRenames = 3

// doubtful is the failure of a call that repeats a write and could not: what an
// earlier call did is not known.
func doubtful(err error) error {
	var f *route.Failure
	if !errors.As(err, &f) {
		return err
	}
	unsure := *f
	unsure.Unknown = true
	return &unsure
}
