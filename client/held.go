package client

import (
	"context"
	"maps"
	"slices"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
)

// What a transaction reads is of one instant, also what it reads by locking it:
// that is the newest version then, and of different documents at different
// moments. A lock keeps a document as it is, but a lock may be lost, with its
// leader or when its time is up. So it is not relied on: each document that was
// read so is known to be the newest from its UpdatedAt (one that is not there,
// from the moment it was looked for) up to the AsOf of its lock. While these
// spans have an instant in common, that is the transaction's. If they have none,
// those that end too early are read once more, and must not have changed; and so
// are all of them when the transaction is given a timestamp.

// holdLocked adds a document that was read when it was locked.
func (tx *Tx) holdLocked(ctx context.Context, k *txColl, id string, asOf Timestamp) error {
	d, _ := k.reads.get(id)
	if tx.at != 0 && d != nil && asOf >= tx.at {
		return nil // it was that at the transaction's timestamp: it is not younger
	}
	if k.held == nil {
		k.held = map[string]Timestamp{}
	}
	k.held[id] = asOf
	if tx.at != 0 {
		return tx.settleLocked(ctx)
	}
	return tx.agreeLocked(ctx)
}

// agreeLocked has everything that is held be of one instant.
func (tx *Tx) agreeLocked(ctx context.Context) error {
	var instant Timestamp
	for k := range tx.colls.values() {
		for id, asOf := range k.held {
			if d, _ := k.reads.get(id); d != nil {
				asOf = d.UpdatedAt
			}
			instant = max(instant, asOf)
		}
	}
	for k := range tx.colls.values() {
		var early []string
		for id, asOf := range k.held {
			if asOf < instant {
				early = append(early, id)
			}
		}
		if len(early) == 0 {
			continue
		}
		slices.Sort(early)
		docs, err := k.GetMany(ctx, early, AtTimestamp(instant))
		if err != nil {
			return tx.aheadLocked("get for update", k.name, err)
		}
		for i, id := range early {
			if err := k.unchanged(id, docs[i]); err != nil {
				return err
			}
			k.held[id] = instant
		}
	}
	return nil
}

// settleLocked has everything that is held be of the transaction's timestamp.
func (tx *Tx) settleLocked(ctx context.Context) error {
	for k := range tx.colls.values() {
		if len(k.held) > 0 {
			if _, err := tx.readAtLocked(ctx, k, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// readAtLocked reads documents at the transaction's timestamp, and with them
// once more what is held of the collection.
func (tx *Tx) readAtLocked(ctx context.Context, k *txColl, ids []string) ([]*Document, error) {
	all := ids
	var held []string
	if len(k.held) > 0 {
		held = slices.Sorted(maps.Keys(k.held))
		all = append(slices.Clip(ids), held...)
	}
	docs, err := k.GetMany(ctx, all, AtTimestamp(tx.timeLocked()))
	for err != nil {
		if !tx.laterLocked(err) {
			return nil, tx.aheadLocked("get", k.name, err)
		}
		docs, err = k.GetMany(ctx, all, AtTimestamp(tx.at))
	}
	tx.began = true
	for i, id := range held {
		if err := k.unchanged(id, docs[len(ids)+i]); err != nil {
			return nil, err
		}
	}
	k.held = nil
	return docs[:len(ids):len(ids)], nil
}

// unchanged compares a document with what was read when it was locked.
func (k *txColl) unchanged(id string, now *Document) error {
	was, _ := k.reads.get(id)
	if mutant.On(mutant.LockTrusted) || was == nil && now == nil || was != nil && now != nil && was.UpdatedAt == now.UpdatedAt {
		return nil
	}
	return refused(wire.CodeTxnConflict, "get for update", k.name, id, "has changed since the transaction locked it: the lock was lost (run it again)")
}
