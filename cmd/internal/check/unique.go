package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/fsm/unique"
)

// Unique is what was found of one collection's unique fields.
type Unique struct {
	Collection string    `json:"collection"`
	At         uint64    `json:"at"` // the timestamp
	Documents  uint64    `json:"documents"`
	Entries    uint64    `json:"entries"`
	Found      uint64    `json:"found"` // findings, those not listed included
	Findings   []Finding `json:"findings"`
	Error      string    `json:"error,omitempty"` // why it was not compared
}

const (
	// uniqueFindings is how many findings of one collection are listed.
	uniqueFindings = 100
	// uniqueAtOnce is about how many entries are held in memory: more documents
	// are read several times.
	uniqueAtOnce = 2_000_000
	// rowCharge is what a document counts for beside its bytes, as on the nodes.
	rowCharge = 512
)

// UniqueFields compares, in every collection with unique fields, the entries of
// values, which say who holds what, with what documents hold. Values and
// documents are in different groups, so they are compared at one timestamp,
// through the nodes, and not row by row.
func UniqueFields(ctx context.Context, db *client.DB, o Options) (all []Unique) {
	o = o.withDefaults()
	list, err := db.Collections(ctx)
	if err != nil {
		return []Unique{{Collection: "(all)", Findings: []Finding{}, Error: err.Error()}}
	}
	for i := range list {
		set := unique.SetOf(&list[i].Options)
		if set == nil {
			continue
		}
		u := Unique{Collection: list[i].Name, Findings: []Finding{}}
		rate := o.RateKiB
		if rate == 0 {
			rate = defaultRateKiB
		}
		c := comparison{u: &u, set: set, db: db, bytesPerSecond: float64(rate) * 1024, began: time.Now(), progress: o.Progress}
		err := c.run(ctx)
		if errors.Is(err, client.ErrCollectionNotFound) && dropped(ctx, db, list[i].ID) {
			continue
		}
		if err != nil {
			u.Error = err.Error()
		}
		all = append(all, u)
	}
	return all
}

// dropped says that a collection is gone.
func dropped(ctx context.Context, db *client.DB, id uint32) bool {
	list, err := db.Collections(ctx)
	return err == nil && !slices.ContainsFunc(list, func(c client.CollectionInfo) bool { return c.ID == id })
}

// comparison is one collection's.
type comparison struct {
	u        *Unique
	set      *unique.Set
	db       *client.DB
	progress func(documents, bytes uint64)

	bytesPerSecond float64
	began          time.Time
	read           float64 // bytes
}

// base64 are the characters that an entry's hash begins with, in their order
// (encoding/base64, URLEncoding).
const base64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// run reads the documents and then their entries, as of the documents' time. If
// they are many, entries are taken by what their hashes begin with.
func (c *comparison) run(ctx context.Context) error {
	documents, err := c.db.Collection(c.u.Collection).Count(ctx)
	if err != nil {
		return err
	}
	parts := 1
	for parts < len(base64) && documents/uint64(parts) > uniqueAtOnce {
		parts *= 2
	}
	for part := range parts {
		first := base64
		if parts > 1 {
			first = base64[part*len(base64)/parts : (part+1)*len(base64)/parts]
		}
		if err := c.part(ctx, first, part == 0, parts > 1); err != nil {
			return err
		}
	}
	return nil
}

// part compares the entries whose hashes begin with one of some characters.
func (c *comparison) part(ctx context.Context, first string, count, some bool) error {
	held := map[string]string{} // holders, by entry
	options := []client.ReadOption{}
	if c.u.At != 0 {
		options = append(options, client.AtTimestamp(client.Timestamp(c.u.At)))
	}
	it := c.db.Collection(c.u.Collection).Iterator(options...)
	for it.Next(ctx) {
		d := it.Document()
		if err := c.pace(ctx, len(d.ID)+len(d.Body())); err != nil {
			return err
		}
		if count {
			c.u.Documents++
		}
		for _, h := range c.set.Values(d.Body()) {
			if !strings.ContainsRune(first, hashOf(h.Entry)) {
				continue
			}
			if other, twice := held[h.Entry]; twice {
				c.found(d.ID, "%s is held by %s too", c.set.Text(h.Constraint, d.Body()), other)
				continue
			}
			held[h.Entry] = d.ID
		}
	}
	if err := it.Err(); err != nil {
		return err
	}
	c.u.At = uint64(it.Timestamp())
	prefixes := []string{""}
	if some {
		prefixes = nil
		for n := range c.set.Constraints() {
			for _, b := range first {
				prefixes = append(prefixes, fmt.Sprintf("%d:%c", n, b))
			}
		}
	}
	for _, prefix := range prefixes {
		it := c.db.Collection(unique.Name(c.u.Collection)).Iterator(client.AtTimestamp(client.Timestamp(c.u.At)), client.Prefix(prefix))
		for it.Next(ctx) {
			d := it.Document()
			if err := c.pace(ctx, len(d.ID)+len(d.Body())); err != nil {
				return err
			}
			c.u.Entries++
			holder, ok := unique.Holder(d.Body())
			switch id, there := held[d.ID]; {
			case !ok:
				c.found("", "the entry %s of a unique value names no document: %s", d.ID, d.Body())
			case !there:
				c.found(holder, "the entry %s of a unique value names the document, and no document holds it: it cannot be taken", d.ID)
			case id != holder:
				c.found(id, "the document holds a unique value whose entry %s names %s", d.ID, holder)
			}
			delete(held, d.ID)
		}
		if err := it.Err(); err != nil {
			return err
		}
	}
	for entry, id := range held {
		c.found(id, "the document holds a unique value, and its entry %s is missing: another may take it", entry)
	}
	return nil
}

// hashOf is the first character of an entry's hash.
func hashOf(entry string) rune {
	_, hash, _ := strings.Cut(entry, ":")
	for _, b := range hash {
		return b
	}
	return 0
}

// found notes a finding about a document.
func (c *comparison) found(id, format string, args ...any) {
	if c.u.Found++; len(c.u.Findings) < uniqueFindings {
		c.u.Findings = append(c.u.Findings, Finding{Kind: "unique", Collection: c.u.Collection, ID: id, Text: fmt.Sprintf(format, args...)})
	}
}

// pace keeps what is read a second within the rate.
func (c *comparison) pace(ctx context.Context, bytes int) error {
	c.progress(0, uint64(bytes))
	c.read += float64(bytes + rowCharge)
	ahead := time.Duration(c.read/c.bytesPerSecond*float64(time.Second)) - time.Since(c.began)
	if ahead < 10*time.Millisecond {
		return ctx.Err()
	}
	t := time.NewTimer(ahead)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
