package verify

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/txn/hlc"
)

// ScratchPrefix begins the name of every collection that a run makes, so that
// what an interrupted one has left is recognised.
const ScratchPrefix = "idb-verify-"

// newPrefix names a run: when it began, and something that no other has.
func newPrefix(now time.Time) string {
	var r [3]byte
	_, _ = rand.Read(r[:]) // never fails
	return fmt.Sprintf("%s%s-%x", ScratchPrefix, strconv.FormatInt(now.Unix(), 36), r)
}

// inUse is how young a scratch collection is that another run may be working
// with: no round lasts longer.
const inUse = 15 * time.Minute

// Leftover is a scratch collection of another run.
type Leftover struct {
	Name string
	Age  time.Duration
	// InUse says that a run that is still going may have made it.
	InUse bool
}

// Leftovers are the scratch collections in a cluster, by name.
func Leftovers(ctx context.Context, db *client.DB) (left []Leftover, err error) {
	list, err := db.Collections(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		if strings.HasPrefix(c.Name, ScratchPrefix) {
			age := db.Now().Time().Sub(hlc.Timestamp(c.CreatedAt).Time())
			left = append(left, Leftover{c.Name, age, age < inUse})
		}
	}
	return left, nil
}

// Remove drops collections; those that are gone already are no failure.
func Remove(ctx context.Context, db *client.DB, names []string) error {
	var failed []error
	for _, name := range names {
		if err := db.DropCollection(ctx, name); err != nil && !errors.Is(err, client.ErrCollectionNotFound) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// removeRun drops everything of a run, and says how much that was.
func removeRun(ctx context.Context, db *client.DB, prefix string) (int, error) {
	left, err := Leftovers(ctx, db)
	if err != nil {
		return 0, err
	}
	var names []string
	for _, l := range left {
		if strings.HasPrefix(l.Name, prefix+"-") {
			names = append(names, l.Name)
		}
	}
	return len(names), Remove(ctx, db, names)
}
