package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/check"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn/hlc"

	pebble "github.com/cockroachdb/pebble/v2/vfs"
)

// This file has the checks of a cluster at rest: everything is healed, no
// client works, every machine runs.

// settleWithin is how long replicas may take to be as far as each other once
// nobody writes.
const settleWithin = 10 * time.Second

// replica is one of a group's, on one machine.
type replica struct {
	node  *Node
	group *shardgroup.Group
}

// replicas are those of every shard group.
func (c *Cluster) replicas() map[placement.GroupID][]replica {
	all := map[placement.GroupID][]replica{}
	for _, n := range c.Nodes {
		if r := n.Running(); r != nil {
			for _, g := range r.Host().Groups() {
				all[g.ID()] = append(all[g.ID()], replica{n, g})
			}
		}
	}
	return all
}

// CheckReplicas waits until the replicas of every group have applied the same,
// and compares them, row for row, with each other and with a replay of the log.
func (c *Cluster) CheckReplicas(ctx context.Context) []error {
	var found []error
	all := c.replicas()
	if len(all) != c.o.Shards {
		found = append(found, fmt.Errorf("%d shard groups run, %d were formed", len(all), c.o.Shards))
	}
	for id, rs := range all {
		if len(rs) != c.o.Replicas {
			found = append(found, fmt.Errorf("%s runs on %d machines of %d", id, len(rs), c.o.Replicas))
		}
		if err := settle(ctx, rs); err != nil {
			found = append(found, fmt.Errorf("%s: %w", id, err))
			continue
		}
		for _, r := range rs[1:] {
			if err := difference(rs[0], r); err != nil {
				found = append(found, fmt.Errorf("%s: replicas on %s and %s differ: %w", id, rs[0].node.ID, r.node.ID, err))
			}
		}
		if err := c.replay(rs[0]); err != nil {
			found = append(found, fmt.Errorf("%s on %s: %w", id, rs[0].node.ID, err))
		}
	}
	return found
}

// settle waits until all have applied what any has.
func settle(ctx context.Context, rs []replica) error {
	deadline := time.Now().Add(settleWithin)
	for {
		low, high := uint64(1<<63), uint64(0)
		for _, r := range rs {
			applied := r.group.Machine().Applied()
			low, high = min(low, applied), max(high, applied)
			if s := r.group.Status(); s.Error != "" {
				return fmt.Errorf("the replica on %s: %s", r.node.ID, s.Error)
			}
		}
		if low == high {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("the replicas do not catch up: entries up to %d are applied everywhere, up to %d somewhere", low, high)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// difference is the first row that differs.
func difference(a, b replica) error {
	if x, y := a.group.Machine().Applied(), b.group.Machine().Applied(); x != y {
		return fmt.Errorf("one has applied %d, the other %d: somebody still writes", x, y)
	}
	return compareRows(a.group.ID(), a.group.Machine().Engine(), b.group.Machine().Engine())
}

// Transactions at rest: a commit is to be decided within the longest time that
// a client may ask for, and leaders look after what is past it.
const (
	txnsDecided = 10 * time.Second // at most, in package workload and in the client
	txnsSettled = 2 * time.Second  // after the deadline
)

// CheckTransactions waits until no group holds anything of a transaction: no
// intent, no lock, no vote, and no commit that is not resolved everywhere.
// Nothing may be held for longer than settling takes past its deadline.
func (c *Cluster) CheckTransactions(ctx context.Context) []error {
	begun := time.Now()
	for {
		var left []error
		for id, rs := range c.replicas() {
			for _, r := range rs {
				m := r.group.Machine()
				for _, h := range m.Holders() {
					err := fmt.Errorf("%s on %s: transaction %s, prepared by partition %d, home %d, is held %v past its deadline (%d reads, %d writes)",
						id, r.node.ID, h.ID, h.Partition, h.Home, time.Since(h.Deadline.Time()).Round(time.Millisecond), h.Reads, h.Writes)
					left = append(left, err)
				}
				for _, u := range m.Unfinished(hlc.Max) {
					left = append(left, fmt.Errorf("%s on %s: transaction %s of home %d was committed at %v, and its record is still there", id, r.node.ID, u.ID, u.Home, u.Record.At))
				}
				if n := r.group.LocksUpFront(); n > 0 {
					left = append(left, fmt.Errorf("%s on %s: %d documents are locked up front", id, r.node.ID, n))
				}
			}
		}
		if len(left) == 0 {
			return nil
		}
		if time.Since(begun) > txnsDecided+txnsSettled || ctx.Err() != nil {
			return append([]error{fmt.Errorf("%v after the last client, transactions are left behind", time.Since(begun).Round(time.Millisecond))}, left...)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

type row struct{ key, value []byte }

func rowsOf(e *mvcc.Engine, g placement.GroupID) (rows []row, err error) {
	r, err := e.NewReader(g, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	start, end := mvcc.GroupSpan(g)
	err = r.Each(start, end, func(k, v []byte) error {
		rows = append(rows, row{bytes.Clone(k), bytes.Clone(v)})
		return nil
	})
	return rows, err
}

func compareRows(g placement.GroupID, a, b *mvcc.Engine) error {
	one, err := rowsOf(a, g)
	if err != nil {
		return err
	}
	other, err := rowsOf(b, g)
	if err != nil {
		return err
	}
	for i := range max(len(one), len(other)) {
		switch {
		case i >= len(one):
			return fmt.Errorf("only the second has row %x", other[i].key)
		case i >= len(other):
			return fmt.Errorf("only the first has row %x", one[i].key)
		case !bytes.Equal(one[i].key, other[i].key):
			return fmt.Errorf("row %d is %x in one and %x in the other", i, one[i].key, other[i].key)
		case !bytes.Equal(one[i].value, other[i].value):
			return fmt.Errorf("row %x is %x in one and %x in the other", one[i].key, one[i].value, other[i].value)
		}
	}
	return nil
}

// replay compares a replica with what its log makes of an empty machine.
func (c *Cluster) replay(r replica) error {
	e, err := mvcc.OpenEngine("replay", mvcc.EngineOptions{FS: vfs.FS(pebble.NewMem()), MemTableBytes: 1 << 20, CacheBytes: 1 << 20})
	if err != nil {
		return err
	}
	defer e.Close()
	m, err := r.group.Replay(e)
	if errors.Is(err, shardgroup.ErrLogTruncated) {
		return nil
	}
	if err != nil {
		return err
	}
	if m.Applied() != r.group.Machine().Applied() {
		return nil // somebody still writes: difference has said so
	}
	if err := compareRows(r.group.ID(), r.group.Machine().Engine(), e); err != nil {
		return fmt.Errorf("the state is not what the log says: %w", err)
	}
	c.replays++
	return nil
}

// CheckReads compares the three ways to read a collection: scan, get and count
// must tell of the same documents.
func CheckReads(ctx context.Context, db *client.DB) []error {
	list, err := db.Collections(ctx)
	if err != nil {
		return []error{err}
	}
	var found []error
	for _, info := range list {
		if err := checkReads(ctx, db.Collection(info.Name)); err != nil {
			found = append(found, fmt.Errorf("collection %s: %w", info.Name, err))
		}
	}
	for _, u := range check.UniqueFields(ctx, db, check.Options{RateKiB: 1 << 20}) {
		if u.Error != "" {
			found = append(found, fmt.Errorf("the unique fields of %s: %s", u.Collection, u.Error))
		}
		for _, f := range u.Findings {
			found = append(found, fmt.Errorf("unique fields: %s", f))
		}
	}
	return found
}

func checkReads(ctx context.Context, c *client.Collection) error {
	docs, err := client.Collect(c.Scan(ctx))
	if err != nil {
		return err
	}
	count, err := c.Count(ctx)
	if err != nil {
		return err
	}
	if count != uint64(len(docs)) {
		return fmt.Errorf("the count is %d, a scan has %d documents", count, len(docs))
	}
	const batch = 200
	for part := range slices.Chunk(docs, batch) {
		ids := make([]string, len(part))
		for i, d := range part {
			ids[i] = d.ID
		}
		got, err := c.GetMany(ctx, ids)
		if err != nil {
			return err
		}
		for i, d := range part {
			switch g := got[i]; {
			case g == nil:
				return fmt.Errorf("%s is in the scan, and a get does not find it", d.ID)
			case g.Version != d.Version || !bytes.Equal(g.Body(), d.Body()):
				return fmt.Errorf("%s is version %d in the scan and %d in a get: %v and %v", d.ID, d.Version, g.Version, d, g)
			}
		}
	}
	return nil
}

// reclaimWithin is how long what was dropped may take up space.
const reclaimWithin = 20 * time.Second

// CheckReclaimed drops every collection and waits until no replica has a row of
// any.
func (c *Cluster) CheckReclaimed(ctx context.Context, db *client.DB) error {
	list, err := db.Collections(ctx)
	if err != nil {
		return err
	}
	for _, info := range list {
		if err := db.DropCollection(ctx, info.Name); err != nil && !errors.Is(err, client.ErrCollectionNotFound) {
			return fmt.Errorf("drop %s: %w", info.Name, err)
		}
	}
	deadline := time.Now().Add(reclaimWithin)
	for {
		var left error
		for id, rs := range c.replicas() {
			for _, r := range rs {
				s := r.group.Machine().Stats()
				if s.Rows != 0 || s.Documents != 0 || s.Bytes != 0 {
					left = fmt.Errorf("every collection was dropped, and %s on %s still has %d documents in %d rows and %d bytes", id, r.node.ID, s.Documents, s.Rows, s.Bytes)
				}
			}
		}
		if left == nil || time.Now().After(deadline) {
			return left
		}
		time.Sleep(100 * time.Millisecond)
	}
}
