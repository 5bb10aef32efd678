package fsm

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

var updateGolden = flag.Bool("update", false, "rewrite golden files")

// TestTranscripts runs the files in testdata/fsm: commands, a line "----", and
// what they answer up to an empty line. Each line of writes is one entry; a
// line that begins with "+" joins the entry of the line before it.
//
//	own E P...                          the group owns partitions from epoch E on
//	put|insert|update|upsert C/ID JSON  and: delete C/ID, restore C/ID VERSION
//	   options: p= epoch= at= req= reqtime= if= absent present doc max=
//	get C/ID [version=] [time=] [p=] [epoch=]
//	history C/ID [before=] [limit=], scan C [prefix=] [after=] [reverse] [limit=] [at=]
//	count C, countprefix C PREFIX, stats, owned
//	ceiling T, horizon [requests=T] [C=T]..., drop C, empty
//	sweep [keep=N], collect C/ID T [p=]  garbage: found and collected; one named by hand
//	digest, digest AT VALUE              compare with the digest of an earlier entry
//	reopen, copy                         close and open; go on with a copy made by snapshot
//
// A collection is named c1, c2, …. At its end each transcript's log is applied
// again to other machines in other batches, and must come out the same; a
// comment that begins with "Not replayed: " says why one is not.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("../testdata/fsm/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) { runTranscript(t, f) })
	}
}

type transcript struct {
	t     *testing.T
	r     *replica
	log   []Entry
	index uint64
	now   uint64
	reqs  map[string]wire.RequestID
	sweep Sweep
}

func runTranscript(t *testing.T, file string) {
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &transcript{t: t, r: newReplica(t, nil), reqs: map[string]wire.RequestID{}}
	var out strings.Builder
	lines := strings.Split(string(src), "\n")
	for i := 0; i < len(lines); i++ {
		if lines[i] == "" || strings.HasPrefix(lines[i], "#") {
			out.WriteString(lines[i] + "\n")
			continue
		}
		var block []string
		for ; i < len(lines) && lines[i] != "----"; i++ {
			block = append(block, lines[i])
			out.WriteString(lines[i] + "\n")
		}
		for i++; i < len(lines) && lines[i] != ""; i++ {
		}
		out.WriteString("----\n")
		for _, answer := range s.run(block) {
			out.WriteString(answer + "\n")
		}
		out.WriteString("\n")
		s.r.verify()
	}
	got := strings.TrimRight(out.String(), "\n") + "\n"
	if *updateGolden {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want := string(src); got != want {
		t.Errorf("%s came out differently (make golden rewrites it):\n%s", file, diff(want, got))
	}
	if !strings.Contains(got, "\n# Not replayed: ") {
		s.replay()
	}
}

// diff is the first lines that differ, with a few around.
func diff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		if i >= len(w) || i >= len(g) || w[i] != g[i] {
			from := max(0, i-3)
			return fmt.Sprintf("line %d\nwant:\n%s\ngot:\n%s", i+1, strings.Join(w[min(from, len(w)):min(i+4, len(w))], "\n"), strings.Join(g[min(from, len(g)):min(i+4, len(g))], "\n"))
		}
	}
	return ""
}

// replay applies the log again, in batches of other sizes.
func (s *transcript) replay() {
	want := s.r.rows()
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		r := newReplica(s.t, nil)
		for rest := s.log; len(rest) > 0; {
			n := len(rest) // the first: all at once
			if seed > 0 {
				n = 1 + rng.IntN(len(rest))
			}
			r.mustApply(rest[:n]...)
			rest = rest[n:]
		}
		r.verify()
		if got := r.rows(); got != want {
			s.t.Fatalf("replayed in other batches (seed %d), the rows differ: %s", seed, diff(want, got))
		}
	}
}

func (s *transcript) run(block []string) (answers []string) {
	var commands []Command
	var names []string
	flush := func() {
		if len(commands) == 0 {
			return
		}
		s.index++
		e := mustEntry(s.t, s.index, commands...)
		results, err := s.r.Apply([]Entry{e})
		if err != nil {
			answers = append(answers, "halted: "+err.Error())
		} else {
			s.log = append(s.log, e)
			for i, r := range results[0] {
				answers = append(answers, names[i]+": "+s.result(&r))
			}
		}
		commands, names = nil, nil
	}
	for _, line := range block {
		line, joined := strings.CutPrefix(line, "+")
		if !joined {
			flush()
		}
		line = strings.TrimSpace(line)
		args := parseArgs(line)
		if c, ok := s.command(args); ok {
			commands = append(commands, c)
			names = append(names, strings.TrimSpace(args.verb+" "+args.arg(0)))
			continue
		}
		flush()
		answers = append(answers, s.query(args)...)
	}
	flush()
	return answers
}

// args is a line: a verb, words, options. The JSON of a line is one word.
type args struct {
	verb  string
	words []string
	opts  map[string]string
}

func parseArgs(line string) args {
	a := args{opts: map[string]string{}}
	json := ""
	if i := strings.IndexByte(line, '{'); i >= 0 {
		j := strings.LastIndexByte(line, '}') + 1
		json, line = line[i:j], line[:i]+" @json "+line[j:]
	}
	for i, w := range strings.Fields(line) {
		k, v, isOpt := strings.Cut(w, "=")
		switch {
		case i == 0:
			a.verb = w
		case w == "@json":
			a.words = append(a.words, json)
		case isOpt:
			a.opts[k] = v
		case w == "absent" || w == "present" || w == "doc" || w == "reverse" || w == "nobody":
			a.opts[w] = "yes"
		default:
			a.words = append(a.words, w)
		}
	}
	return a
}

func (a *args) arg(i int) string {
	if i >= len(a.words) {
		return ""
	}
	return a.words[i]
}

func (a *args) num(s *transcript, v string, otherwise uint64) uint64 {
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(v, 0, 64)
	if err != nil {
		s.t.Fatalf("%s: %v", a.verb, err)
	}
	return n
}

func (a *args) opt(s *transcript, name string, otherwise uint64) uint64 {
	return a.num(s, a.opts[name], otherwise)
}

func (s *transcript) collection(name string) placement.CollectionID {
	n, err := strconv.ParseUint(strings.TrimPrefix(name, "c"), 10, 32)
	if err != nil {
		s.t.Fatalf("collection %q: %v", name, err)
	}
	return placement.CollectionID(n)
}

// target is "c1/id" in a partition and at an epoch.
func (s *transcript) target(a *args) ReadKey {
	c, id, _ := strings.Cut(a.arg(0), "/")
	if unquoted, err := strconv.Unquote(`"` + id + `"`); err == nil {
		id = unquoted
	}
	return ReadKey{
		Partition:  placement.PartitionID(a.opt(s, "p", 1)),
		Epoch:      placement.Epoch(a.opt(s, "epoch", 1)),
		Collection: s.collection(c),
		ID:         id,
	}
}

var verbs = map[string]wire.WriteOp{
	"put": wire.OpPut, "insert": wire.OpInsert, "update": wire.OpUpdate,
	"upsert": wire.OpUpsert, "delete": wire.OpDelete, "restore": wire.OpRestore,
}

func (s *transcript) command(a args) (c Command, ok bool) {
	if op, isWrite := verbs[a.verb]; isWrite {
		s.now = a.opt(s, "at", s.now+10)
		k := s.target(&a)
		w := &Write{Partition: k.Partition, Epoch: k.Epoch, Collection: k.Collection, MaxBytes: uint32(a.opt(s, "max", 0))}
		w.Item = wire.WriteItem{
			Op: op, ID: k.ID, IfVersion: a.opt(s, "if", 0), ReturnDoc: a.opts["doc"] != "",
			RequestID: s.request(a.opts["req"], a.opt(s, "reqtime", s.now)),
		}
		if a.opts["absent"] != "" {
			w.Item.Cond |= wire.CondAbsent
		}
		if a.opts["present"] != "" {
			w.Item.Cond |= wire.CondPresent
		}
		if op == wire.OpRestore {
			w.Item.RestoreVersion = a.num(s, a.arg(1), 0)
		} else if j := a.arg(1); j != "" {
			w.Item.Body = body(s.t, j)
		}
		return Command{Time: hlc.Timestamp(s.now), Write: w}, true
	}
	switch a.verb {
	case "own":
		o := &Own{Epoch: placement.Epoch(a.num(s, a.arg(0), 0))}
		for i := 1; i < len(a.words); i++ {
			o.Partitions = append(o.Partitions, placement.PartitionID(a.num(s, a.words[i], 0)))
		}
		return Command{Own: o}, true
	case "ceiling":
		return Command{Ceiling: &Ceiling{To: hlc.Timestamp(a.num(s, a.arg(0), 0))}}, true
	case "horizon":
		h := &Horizon{RequestIDs: hlc.Timestamp(a.opt(s, "requests", 0))}
		for i := 1; i < 10; i++ {
			if v, ok := a.opts["c"+strconv.Itoa(i)]; ok {
				h.History = append(h.History, HistoryHorizon{Collection: placement.CollectionID(i), At: hlc.Timestamp(a.num(s, v, 0))})
			}
		}
		return Command{Horizon: h}, true
	case "drop":
		return Command{Drop: &Drop{Collection: s.collection(a.arg(0))}}, true
	case "digest":
		if a.arg(0) == "" {
			return s.r.DigestCommand(), true
		}
		return Command{Digest: &Digest{At: a.num(s, a.arg(0), 0), Value: a.num(s, a.arg(1), 0)}}, true
	case "collect":
		k := s.target(&a)
		return Command{Collect: &Collect{Keys: [][]byte{versionKey(k, a.num(s, a.arg(1), 0))}}}, true
	}
	return c, false
}

func (s *transcript) request(name string, time uint64) wire.RequestID {
	if name == "none" {
		return wire.RequestID{}
	}
	if id, ok := s.reqs[name]; ok && name != "" {
		return id
	}
	id := request(time, uint64(len(s.reqs))+1)
	if name == "" {
		name = fmt.Sprintf("#%d", len(s.reqs))
	}
	s.reqs[name] = id
	return id
}

// codes are as the answers print them.
var codes = map[wire.Code]string{
	wire.CodeBadRequest: "bad request", wire.CodeBadDocument: "bad document", wire.CodeBadUpdate: "bad update",
	wire.CodeBadID: "bad ID", wire.CodeNotFound: "not found", wire.CodeCollectionNotFound: "collection not found",
	wire.CodeVersionNotFound: "version not found", wire.CodeHistoryExpired: "history expired",
	wire.CodeVersionConflict: "version conflict", wire.CodeAlreadyExists: "already exists",
	wire.CodeUpdateFailed: "update failed", wire.CodeDocumentTooLarge: "document too large",
	wire.CodeStaleEpoch: "stale epoch", wire.CodeOutcomeExpired: "outcome expired", wire.CodeTooDeep: "too deep",
}

func code(c wire.Code) string {
	if n, ok := codes[c]; ok {
		return n
	}
	return fmt.Sprintf("code %d", c)
}

func (s *transcript) result(r *Result) string {
	w := &r.Wire
	var b strings.Builder
	switch {
	case w.Error != nil:
		b.WriteString(code(w.Error.Code))
		if w.Error.Version != 0 {
			fmt.Fprintf(&b, ", version is %d", w.Error.Version)
		}
		if w.Error.Epoch != 0 {
			fmt.Fprintf(&b, ", epoch is %d", w.Error.Epoch)
		}
		if r.Detail != "" {
			fmt.Fprintf(&b, " (%s)", r.Detail)
		}
	case w.Version == 0:
		b.WriteString("done")
	default:
		fmt.Fprintf(&b, "version %d at %d", w.Version, w.Time)
		if w.Created {
			b.WriteString(", created")
		} else if w.CreatedAt != 0 {
			fmt.Fprintf(&b, ", created at %d", w.CreatedAt)
		}
	}
	if w.Duplicate {
		b.WriteString(", as before")
	}
	if w.Doc != nil {
		b.WriteString(": " + string(doc.AppendJSON(nil, w.Doc)))
	}
	return b.String()
}

func document1(d *wire.Document) string {
	id := strings.Trim(strconv.Quote(d.ID), `"`)
	at := fmt.Sprintf("%s: version %d at %d, created at %d", id, d.Version, d.UpdatedAt, d.CreatedAt)
	switch {
	case d.Deleted:
		return fmt.Sprintf("%s: version %d at %d, deleted", id, d.Version, d.UpdatedAt)
	case d.Body == nil:
		return at
	}
	return at + ": " + string(doc.AppendJSON(nil, d.Body))
}

func failed(err error) []string {
	var e *Error
	if !errors.As(err, &e) {
		return []string{"error: " + err.Error()}
	}
	s := code(e.Code)
	if e.Version != 0 {
		s += fmt.Sprintf(", version is %d", e.Version)
	}
	if e.Detail != "" {
		s += " (" + e.Detail + ")"
	}
	return []string{s}
}

func (s *transcript) query(a args) (out []string) {
	switch a.verb {
	case "get":
		d, err := s.r.Get(s.target(&a), At{Version: a.opt(s, "version", 0), Time: hlc.Timestamp(a.opt(s, "time", 0))}, a.opts["nobody"] != "")
		if err != nil {
			return failed(err)
		}
		return []string{document1(&d)}
	case "history":
		docs, more, err := s.r.History(s.target(&a), a.opt(s, "before", 0), int(a.opt(s, "limit", 0)), a.opts["nobody"] != "")
		return s.page(docs, more, err)
	case "scan", "countprefix":
		spec := ScanSpec{
			Collection: s.collection(a.arg(0)), Prefix: a.opts["prefix"], After: a.opts["after"], Reverse: a.opts["reverse"] != "",
			Limit: int(a.opt(s, "limit", 0)), MaxBytes: int(a.opt(s, "bytes", 0)), At: hlc.Timestamp(a.opt(s, "at", 0)), NoBody: a.opts["nobody"] != "",
		}
		if p, ok := a.opts["p"]; ok {
			spec.Partitions = []placement.PartitionID{placement.PartitionID(a.num(s, p, 0))}
			spec.Epoch = placement.Epoch(a.opt(s, "epoch", 0))
		}
		if a.verb == "countprefix" {
			n, _, err := s.r.CountPrefix(spec)
			if err != nil {
				return failed(err)
			}
			return []string{fmt.Sprint(n)}
		}
		docs, more, _, err := s.r.Scan(spec)
		return s.page(docs, more, err)
	case "count":
		docs, bytes, err := s.r.Count(s.collection(a.arg(0)))
		if err != nil {
			return failed(err)
		}
		return []string{fmt.Sprintf("%d documents, %d bytes", docs, bytes)}
	case "stats":
		st := s.r.Stats()
		out = append(out, fmt.Sprintf("applied %d, clock %d, ceiling %d, %d documents, %d bytes, %d rows", st.Applied, st.Clock, st.Ceiling, st.Documents, st.Bytes, st.Rows))
		for _, c := range st.Collections {
			out = append(out, fmt.Sprintf("c%d: %d documents, %d bytes, %d rows", c.Collection, c.Documents, c.Bytes, c.Rows))
		}
		return out
	case "owned":
		epoch, ps := s.r.Owned()
		return []string{fmt.Sprintf("epoch %d: %v", epoch, ps)}
	case "horizons":
		req, hist := s.r.Horizons()
		out = append(out, fmt.Sprintf("request IDs from %d on", req))
		for _, h := range hist {
			out = append(out, fmt.Sprintf("c%d from %d on", h.Collection, h.At))
		}
		return out
	case "empty":
		s.index++
		e := Entry{Index: s.index, Term: 1}
		s.log = append(s.log, e)
		s.r.mustApply(e)
		return []string{fmt.Sprintf("applied %d", s.r.Applied())}
	case "sweep":
		keep := uint32(a.opt(s, "keep", 0))
		for {
			g, err := s.r.FindGarbage(&s.sweep, SweepLimits{Visit: int(a.opt(s, "visit", 0)), Find: int(a.opt(s, "find", 0))}, func(placement.CollectionID) uint32 { return keep })
			if err != nil {
				return failed(err)
			}
			out = append(out, fmt.Sprintf("found %d in %d", g.Versions, g.Visited))
			for i := range g.Collects {
				s.index++
				e := mustEntry(s.t, s.index, Command{Collect: &g.Collects[i]})
				s.log = append(s.log, e)
				s.r.mustApply(e)
			}
			if g.Done {
				return out
			}
		}
	case "reopen":
		s.r.shut()
		s.r.open()
		return []string{fmt.Sprintf("applied %d", s.r.Applied())}
	case "copy":
		to := newReplica(s.t, nil)
		copyTo(s.t, s.r, to)
		if a, b := s.r.rows(), to.rows(); a != b {
			s.t.Fatalf("the copy differs: %s", diff(a, b))
		}
		s.r = to
		return []string{fmt.Sprintf("applied %d", s.r.Applied())}
	}
	s.t.Fatalf("unknown verb %q", a.verb)
	return nil
}

func (s *transcript) page(docs []wire.Document, more bool, err error) (out []string) {
	if err != nil {
		return failed(err)
	}
	for i := range docs {
		out = append(out, document1(&docs[i]))
	}
	if more {
		out = append(out, "more")
	}
	if len(out) == 0 {
		out = append(out, "nothing")
	}
	return out
}

func versionKey(k ReadKey, ts uint64) []byte {
	key := mvcc.AppendDocument(nil, testGroup, k.Partition, k.Collection, k.ID)
	return mvcc.AppendTime(key, hlc.Timestamp(ts))[groupBytes:]
}
