package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// Workload is one kind of work on collections of its own. Setup, Final, Judge
// and Cleanup are called once each, in that order, by one goroutine.
type Workload interface {
	Name() string
	// Setup makes the collections.
	Setup(ctx context.Context, db *client.DB) error
	// Client is what one client does next; it is called again and again, by one
	// goroutine. Client itself is called once for each of them, after Setup.
	Client(s Session) Step
	// Final reads at rest what Judge needs: all clients have ended and the
	// cluster is whole. An error means that it could not be read.
	Final(ctx context.Context, db *client.DB) error
	// Judge says what of it no correct database could have answered.
	Judge() []history.Verdict
	// Recorder has what the clients asked and were told.
	Recorder() *history.Recorder
	// Cleanup drops every collection of the workload.
	Cleanup(ctx context.Context, db *client.DB) error
}

// Session is a client of a workload.
type Session struct {
	Number int          // names it in the history; different for every client of a run
	DB     *client.DB   // its connection
	All    []*client.DB // all connections of the run, its own included
	Rng    *rand.Rand   // its choices
	// Again bounds a second call that a step makes because the first had no
	// answer in time, or another one.
	Again time.Duration
}

// other is any connection.
func (s Session) other() *client.DB { return s.All[s.Rng.IntN(len(s.All))] }

// Step does one thing and says how it ended: Done for any answer that says
// something, Refused, or Unknown.
type Step func(ctx context.Context) history.Outcome

// Options of a workload. The zero value works.
type Options struct {
	// Prefix begins the name of every collection, so that runs do not meet.
	// Empty means "w".
	Prefix string
	// Documents are shared at a time. Fewer mean more conflicts. Zero means 6.
	Documents int
	// PerDocument is after how many operations a shared document is left for a
	// fresh one: the judge's work grows fast with it. Zero means 400.
	PerDocument int
	// Start is when the histories' clock begins; the same for all workloads of
	// a run. Zero means now.
	Start time.Time
	// Timeout bounds the judge's search over one document. Zero means 30s.
	Timeout time.Duration
	// Tolerate are codes of refusals that the run's faults explain, besides
	// those that always may come.
	Tolerate []client.Code
}

func (o Options) withDefaults() Options {
	if o.Prefix == "" {
		o.Prefix = "w"
	}
	if o.Documents == 0 {
		o.Documents = 6
	}
	if o.PerDocument == 0 {
		o.PerDocument = 400
	}
	if o.Start.IsZero() {
		o.Start = time.Now()
	}
	return o
}

// makers are all workloads, in the order in which they are listed.
var makers = []struct {
	name, about string
	make        func(Options) Workload
}{
	{"register", "reads, writes, compare-and-swap and deletes of shared documents", newRegister},
	{"counter", "increments whose lost answers are asked for again", newCounter},
	{"set", "documents that are created once", newSet},
	{"bulk", "ordered and unordered bulk writes", newBulk},
	{"scan", "scans of changing documents", newScan},
	{"history", "reads at versions and times, restores", newPast},
	{"catalog", "collections that come and go beside writes", newCatalog},
	{"bank", "transfers between accounts in transactions, and sums of all accounts", newBank},
	{"append", "transactions that read lists and append to them", newAppends},
	{"skew", "transactions that write less than they depend on, and read-only ones", newSkew},
	{"unique", "handles and seats of which there is one each: taken, moved and swapped", newUniques},
}

// Names are those of all workloads.
func Names() []string {
	var names []string
	for _, m := range makers {
		names = append(names, m.name)
	}
	return names
}

// About says in a few words what a workload does.
func About(name string) string {
	for _, m := range makers {
		if m.name == name {
			return m.about
		}
	}
	return ""
}

// Transactional says that a workload consists of transactions over many documents.
func Transactional(name string) bool {
	return slices.Contains([]string{"bank", "append", "skew", "unique"}, name)
}

// New makes workloads by name; without names, all of them.
func New(o Options, names ...string) ([]Workload, error) {
	o = o.withDefaults()
	if len(names) == 0 {
		names = Names()
	}
	var all []Workload
	for _, name := range names {
		i := slices.IndexFunc(makers, func(m struct {
			name, about string
			make        func(Options) Workload
		}) bool {
			return m.name == name
		})
		if i < 0 {
			return nil, fmt.Errorf("there is no workload %q: %s are", name, strings.Join(Names(), ", "))
		}
		all = append(all, makers[i].make(o))
	}
	return all, nil
}
