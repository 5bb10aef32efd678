package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/history"
)

// scratch is what all workloads have: a name, collections, a recorder, and the
// answers that nothing explains.
type scratch struct {
	name        string
	o           Options
	collections map[string]client.CollectionOptions // by full name
	recorder    *history.Recorder

	mu   sync.Mutex
	odd  []history.Anomaly // guarded by mu
	odds int               // guarded by mu; how many there were
}

func newScratch(name string, o Options, collections ...string) *scratch {
	s := &scratch{name: name, o: o, recorder: history.NewRecorderAt(o.Start), collections: map[string]client.CollectionOptions{}}
	for _, c := range collections {
		// Nothing is collected, so that the judge sees every version.
		s.collections[s.full(c)] = client.CollectionOptions{RetentionSeconds: client.RetainForever}
	}
	return s
}

// full is the name of one of the workload's collections in the database.
func (s *scratch) full(collection string) string {
	if collection == "" {
		return s.o.Prefix + "-" + s.name
	}
	return s.o.Prefix + "-" + s.name + "-" + collection
}

func (s *scratch) Name() string { return s.name }

func (s *scratch) Recorder() *history.Recorder { return s.recorder }

func (s *scratch) Setup(ctx context.Context, db *client.DB) error {
	for name, o := range s.collections {
		if _, err := db.CreateCollection(ctx, name, o); err != nil {
			return fmt.Errorf("workload %s: %w", s.name, err)
		}
	}
	return nil
}

func (s *scratch) Cleanup(ctx context.Context, db *client.DB) error {
	list, err := db.Collections(ctx)
	if err != nil {
		return fmt.Errorf("workload %s: %w", s.name, err)
	}
	var failed []error
	for _, c := range list {
		if c.Name != s.full("") && !strings.HasPrefix(c.Name, s.full("")+"-") {
			continue
		}
		if err := db.DropCollection(ctx, c.Name); err != nil && !errors.Is(err, client.ErrCollectionNotFound) {
			failed = append(failed, fmt.Errorf("workload %s: %w", s.name, err))
		}
	}
	return errors.Join(failed...)
}

// report notes an answer that should never come, whatever the faults.
func (s *scratch) report(format string, args ...any) {
	s.anomaly("unexpected answer", format, args...)
}

// anomaly notes what a client found wrong on its own.
func (s *scratch) anomaly(name, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.odds++; len(s.odd) < 10 {
		s.odd = append(s.odd, history.Anomaly{Name: name, Text: fmt.Sprintf(format, args...)})
	}
}

// answers judges what clients found odd as they went.
func (s *scratch) answers() history.Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	return history.Verdict{
		Checker: "answers", Judged: fmt.Sprintf("%d that nothing explains", s.odds), Anomalies: s.odd,
	}
}

// body is a document of a workload.
type body struct {
	Value string `idb:"v"`
	Count int64  `idb:"n"`
}

// change is the update that Add and AddOrCreate ask for.
func change(in history.Input) client.Update {
	return client.Set("v", in.Value).Inc("n", in.Add)
}

// conditions are an operation's conditions as options.
func conditions(in history.Input) []client.WriteOption {
	var options []client.WriteOption
	if in.IfVersion != 0 {
		options = append(options, client.IfVersion(in.IfVersion))
	}
	if in.IfAbsent {
		options = append(options, client.IfAbsent())
	}
	if in.IfPresent {
		options = append(options, client.IfPresent())
	}
	return options
}

// do asks the database and puts its answer into the history's words.
func (s *scratch) do(ctx context.Context, c *client.Collection, in history.Input, options ...client.WriteOption) history.Output {
	var r client.Result
	var err error
	options = append(options, conditions(in)...)
	switch in.Verb {
	case history.Get:
		var at []client.ReadOption
		if in.AtVersion != 0 {
			at = append(at, client.AtVersion(in.AtVersion))
		}
		if in.AtTime != 0 {
			at = append(at, client.AtTimestamp(client.Timestamp(in.AtTime)))
		}
		doc, err := c.Get(ctx, in.Key, at...)
		if err != nil {
			return s.refusal(in, err)
		}
		return s.read(in.Key, doc)
	case history.Put:
		r, err = c.Put(ctx, in.Key, body{Value: in.Value}, options...)
	case history.Insert:
		r, err = c.Insert(ctx, in.Key, body{Value: in.Value}, options...)
	case history.Add:
		r, err = c.Update(ctx, in.Key, change(in), append(options, client.ReturnDoc())...)
	case history.AddOrCreate:
		r, err = c.Upsert(ctx, in.Key, change(in), append(options, client.ReturnDoc())...)
	case history.Delete:
		r, err = c.Delete(ctx, in.Key, options...)
	case history.Restore:
		r, err = c.Restore(ctx, in.Key, in.AtVersion, append(options, client.ReturnDoc())...)
	default:
		panic("workload: no way to ask for " + in.Verb.String())
	}
	return s.wrote(in, r, err)
}

// wrote is what a write was told.
func (s *scratch) wrote(in history.Input, r client.Result, err error) history.Output {
	if err != nil {
		return s.refusal(in, err)
	}
	out := history.Output{Outcome: history.Done, Version: r.Version, Time: uint64(r.Timestamp)}
	if r.Doc != nil {
		b, err := decode(r.Doc)
		if err != nil {
			s.report("%s %s: the returned document: %v", in.Verb, in.Key, err)
			return out
		}
		out.Document, out.Value, out.Count = true, b.Value, b.Count
	}
	return out
}

// read is what a reader was told of a document.
func (s *scratch) read(key string, doc *client.Document) history.Output {
	b, err := decode(doc)
	if err != nil {
		s.report("get %s: %v", key, err)
		return history.Output{Outcome: history.Unknown, Reason: err.Error()}
	}
	if doc.ID != key {
		s.report("get %s: the answer is document %s", key, doc.ID)
	}
	return history.Output{
		Outcome: history.Done, Version: doc.Version, Time: uint64(doc.UpdatedAt),
		Document: true, Value: b.Value, Count: b.Count,
	}
}

func decode(doc *client.Document) (body, error) {
	var b body
	err := doc.Decode(&b)
	return b, err
}

// refusal puts an error into the history's words. What the client calls a
// refusal is held against it: a refused operation must leave no trace.
func (s *scratch) refusal(in history.Input, err error) history.Output {
	out := history.Output{Outcome: history.Unknown, Reason: err.Error()}
	var e *client.Error
	if !errors.As(err, &e) {
		s.report("%s %s: %v", in.Verb, in.Key, err)
		return out
	}
	switch {
	case e.Code == wire.CodeNotFound:
		out.Outcome = history.Missing
	case e.Code == wire.CodeVersionNotFound && in.Past():
		out.Outcome = history.Missing
	case e.Code == wire.CodeVersionConflict:
		out.Outcome, out.Version = history.Conflict, e.Version
	case e.Code == wire.CodeAlreadyExists:
		out.Outcome, out.Version = history.Exists, e.Version
	default:
		out.Outcome = s.outcome(in.Verb.String()+" "+in.Key, err)
	}
	return out
}

// outcome is what an error says when it says nothing of a document.
func (s *scratch) outcome(what string, err error) history.Outcome {
	var e *client.Error
	if !errors.As(err, &e) {
		s.report("%s: %v", what, err)
		return history.Unknown
	}
	switch {
	case e.Code.Unknown():
		return history.Unknown
	case e.Code.Retryable(), e.Code == wire.CodeNotAttempted,
		e.Code == wire.CodeDiskFull, e.Code == wire.CodeTooManyConns, e.Code == wire.CodeTooManyRequests:
		return history.Refused
	}
	if !slices.Contains(s.o.Tolerate, e.Code) {
		// No fault of the run explains any other answer.
		s.report("%s: %v (code %d)", what, err, e.Code)
	}
	if e.Code < 600 {
		return history.Refused
	}
	return history.Unknown
}

// asked is Done for every outcome that is an answer.
func asked(o history.Outcome) history.Outcome {
	if o == history.Refused || o == history.Unknown {
		return o
	}
	return history.Done
}

// slots are places for shared documents: which document is in one changes with
// use, so that no document has more operations than a judge can search.
type slots struct {
	per  int64
	uses []atomic.Int64

	mu   sync.Mutex
	keys []string // guarded by mu; every document that was used
}

func newSlots(o Options) *slots {
	return &slots{per: int64(o.PerDocument), uses: make([]atomic.Int64, o.Documents)}
}

// key is the document in a slot: a new one after enough uses.
func (s *slots) key(i int) string {
	use := s.uses[i].Add(1) - 1
	key := fmt.Sprintf("d%d-%d", i, use/s.per)
	if use%s.per == 0 {
		s.mu.Lock()
		s.keys = append(s.keys, key)
		s.mu.Unlock()
	}
	return key
}

// used are the documents so far, sorted.
func (s *slots) used() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(slices.Values(s.keys))
}

// lastReads reads documents once more, as a client of its own.
func (s *scratch) lastReads(ctx context.Context, c *client.Collection, keys []string) error {
	for _, key := range keys {
		in := history.Input{Key: key, Verb: history.Get}
		p := s.recorder.Begin(finalReader, in)
		out := s.do(ctx, c, in)
		p.End(out)
		if out.Outcome != history.Done && out.Outcome != history.Missing {
			return fmt.Errorf("workload %s: the last read of %s: %s", s.name, key, out.Reason)
		}
	}
	return nil
}

// finalReader is the client number of the reads at rest.
const finalReader = 1 << 20

// stored reads the histories of documents.
func (s *scratch) stored(ctx context.Context, c *client.Collection, keys []string) (map[string][]history.Stored, error) {
	all := map[string][]history.Stored{}
	for _, key := range keys {
		list := []history.Stored{}
		for v, err := range c.History(ctx, key) {
			if errors.Is(err, client.ErrNotFound) {
				break // it never came to be
			}
			if err != nil {
				return nil, fmt.Errorf("workload %s: the history of %s: %w", s.name, key, err)
			}
			sv := history.Stored{Version: v.Version, Time: uint64(v.UpdatedAt), Deleted: v.Deleted}
			if !v.Deleted {
				b, err := decode(v)
				if err != nil {
					return nil, fmt.Errorf("workload %s: the history of %s, version %d: %w", s.name, key, v.Version, err)
				}
				sv.Value, sv.Count = b.Value, b.Count
			}
			list = append(list, sv)
		}
		all[key] = list
	}
	return all, nil
}
