package mvcc

import (
	"github.com/cockroachdb/pebble/v2"
)

// Batch is a set of changes that becomes visible, and later durable, as one.
type Batch struct {
	e *Engine
	b *pebble.Batch
}

// NewBatch starts a batch of about this many bytes.
func (e *Engine) NewBatch(sizeBytes int) *Batch {
	return &Batch{e: e, b: e.db.NewBatchWithSize(sizeBytes)}
}

// SetDocument writes a version and returns the row's bytes as they stand in
// the batch: valid until the batch is changed again.
func (b *Batch) SetDocument(key []byte, r *Row) []byte {
	var head [MaxRowHeader]byte
	h := AppendRow(head[:0], &Row{Version: r.Version, Created: r.Created, Deleted: r.Deleted})
	op := b.b.SetDeferred(len(key), len(h)+len(r.Body))
	copy(op.Key, key)
	copy(op.Value, h)
	copy(op.Value[len(h):], r.Body)
	value := op.Value
	// Finish only updates the index of an indexed batch, which this is not.
	_ = op.Finish()
	return value
}

// SetJoined writes a row whose value is two parts.
func (b *Batch) SetJoined(key, head, rest []byte) error {
	op := b.b.SetDeferred(len(key), len(head)+len(rest))
	copy(op.Key, key)
	copy(op.Value[copy(op.Value, head):], rest)
	return op.Finish()
}

// Set writes a row.
func (b *Batch) Set(key, value []byte) error { return b.b.Set(key, value, nil) }

// Delete removes a row.
func (b *Batch) Delete(key []byte) error { return b.b.Delete(key, nil) }

// DeleteRange removes everything in [start, end).
func (b *Batch) DeleteRange(start, end []byte) error { return b.b.DeleteRange(start, end, nil) }

// Len is the batch's size in bytes.
func (b *Batch) Len() int { return b.b.Len() }

// Commit applies the batch. Freed is how much, about, was removed in ranges: once
// it has come to reclaimBytes the engine starts on giving the space back.
func (b *Batch) Commit(freed uint64) error {
	if err := b.e.acquire(); err != nil {
		return err
	}
	defer b.e.release()
	rows := uint64(b.b.Count())
	if err := b.b.Commit(pebble.NoSync); err != nil {
		return err
	}
	b.e.rows.Add(rows)
	if freed > 0 && b.e.freed.Add(freed) >= reclaimBytes {
		return b.e.flushSoon()
	}
	return nil
}

// Close frees the batch, committed or not.
func (b *Batch) Close() error { return b.b.Close() }
