package cli

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

// memoryStore is a collection in memory that can be told to fail.
type memoryStore struct {
	mu      sync.Mutex
	docs    map[string]doc.Raw
	inserts int // items asked for
	reads   int
	puts    int
	// dieAfter ends the run: inserts are refused once so many documents are in.
	dieAfter int
	refuse   map[string]error
}

var errGone = errors.New("the cluster is gone")

func newMemoryStore() *memoryStore { return &memoryStore{docs: map[string]doc.Raw{}} }

func (s *memoryStore) insert(_ context.Context, items []importItem) ([]error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]error, len(items))
	for i, it := range items {
		if s.dieAfter > 0 && len(s.docs) >= s.dieAfter {
			return nil, errGone // with a part of the batch applied
		}
		s.inserts++
		if err := s.refuse[it.id]; err != nil {
			out[i] = err
			continue
		}
		if _, ok := s.docs[it.id]; ok {
			out[i] = &wire.Error{Code: wire.CodeAlreadyExists, Message: it.id + " exists"}
			continue
		}
		s.docs[it.id] = slices.Clone(it.body)
	}
	return out, nil
}

func (s *memoryStore) put(_ context.Context, items []importItem) ([]error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range items {
		s.puts++
		s.docs[it.id] = slices.Clone(it.body)
	}
	return make([]error, len(items)), nil
}

func (s *memoryStore) read(_ context.Context, items []importItem) ([]doc.Raw, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads += len(items)
	out := make([]doc.Raw, len(items))
	for i, it := range items {
		out[i] = s.docs[it.id]
	}
	return out, nil
}

// importText runs one import and answers what it reported.
func importText(t *testing.T, s importStore, text string, change func(*importRun)) (*importRun, []string, error) {
	t.Helper()
	var mu sync.Mutex
	var lines []string
	m := &importRun{
		store: s, source: "f", patience: time.Minute,
		limits: doc.Limits{MaxBytes: 1 << 20, MaxDepth: wire.MaxDepth},
		report: func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, fmt.Sprintf(format, args...))
		},
	}
	if change != nil {
		change(m)
	}
	err := m.run(t.Context(), newBlockReader(strings.NewReader(text), func() int64 { return 0 }), 3)
	slices.Sort(lines)
	return m, lines, err
}

func counts(m *importRun) string {
	s := m.summary("c", 0)
	return fmt.Sprintf("inserted %d replaced %d unchanged %d conflicts %d bad %d", s.Inserted, s.Replaced, s.Unchanged, s.Conflicts, s.Bad)
}

func cityLines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"_id":"c/%05d","name":"city %d","at":[%d,1.5]}`+"\n", i, i, i)
	}
	return b.String()
}

func TestImportLines(t *testing.T) {
	s := newMemoryStore()
	m, lines, err := importText(t, s, "\xef\xbb\xbf"+`{"_id":"a","n":1}`+"\r\n\n   \n"+`{"_id":"b","n":1} `+"\nnot json\n"+`{"_id":7}`+"\n[1]\n"+`{"_id":"c"`+"\n"+`{"_id":"d","$set":1}`+"\n"+`{"_id":"last"}`, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := counts(m), "inserted 3 replaced 0 unchanged 0 conflicts 0 bad 5"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for i, prefix := range []string{"f:5: ", "f:6: ", "f:7: ", "f:8: ", "f:9: "} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], prefix) || len(lines[i]) < len(prefix)+5 {
			t.Errorf("report %d is not about %s\n%s", i, prefix, strings.Join(lines, "\n"))
		}
	}
	if len(s.docs) != 3 || s.docs["last"] == nil {
		t.Errorf("stored %v", s.docs)
	}
}

// TestImportResumes kills an import at many points and runs it again.
func TestImportResumes(t *testing.T) {
	const n = 4000
	text := cityLines(n)
	for _, die := range []int{1, 499, 500, 1234, 3999} {
		s := newMemoryStore()
		s.dieAfter = die
		if _, _, err := importText(t, s, text, nil); !errors.Is(err, errGone) {
			t.Fatalf("died at %d: error %v", die, err)
		}
		there := len(s.docs)
		s.dieAfter = 0
		m, lines, err := importText(t, s, text, nil)
		if err != nil || len(lines) > 0 {
			t.Fatalf("resumed at %d: error %v, reports %q", die, err, lines)
		}
		if len(s.docs) != n {
			t.Errorf("died at %d: %d documents after resuming, want %d", die, len(s.docs), n)
		}
		want := fmt.Sprintf("inserted %d replaced 0 unchanged %d conflicts 0 bad 0", n-there, there)
		if got := counts(m); got != want {
			t.Errorf("died at %d: got %s, want %s", die, got, want)
		}
	}
}

// TestImportAgainReads: repeating an import must not go through the log again.
func TestImportAgainReads(t *testing.T) {
	const n = 40_000
	s := newMemoryStore()
	if _, _, err := importText(t, s, cityLines(n), nil); err != nil {
		t.Fatal(err)
	}
	s.inserts = 0
	m, _, err := importText(t, s, cityLines(n), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := counts(m), fmt.Sprintf("inserted 0 replaced 0 unchanged %d conflicts 0 bad 0", n); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if most := 3 * importBatchDocs; s.inserts > most { // each worker learns from its first batch
		t.Errorf("%d inserts asked for again, want at most %d", s.inserts, most)
	}
}

// TestImportAgainCompares: a worker that reads first still sees what differs,
// and inserts what is missing.
func TestImportAgainCompares(t *testing.T) {
	const n = 10_000
	for _, replace := range []bool{false, true} {
		s := newMemoryStore()
		if _, _, err := importText(t, s, cityLines(n), nil); err != nil {
			t.Fatal(err)
		}
		changed := strings.Replace(cityLines(n), `"name":"city 9990"`, `"name":"other"`, 1)
		delete(s.docs, "c/09991")
		m, _, err := importText(t, s, changed, func(m *importRun) { m.replace = replace })
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("inserted 1 replaced 0 unchanged %d conflicts 1 bad 0", n-2)
		if replace {
			want = fmt.Sprintf("inserted 1 replaced 1 unchanged %d conflicts 0 bad 0", n-2)
		}
		if got := counts(m); got != want {
			t.Errorf("replace %v: got %s, want %s", replace, got, want)
		}
	}
}

func TestImportWithoutIDs(t *testing.T) {
	text := "{\"a\":1}\n{\"a\":1}\n{\"b\":2}\n"
	s := newMemoryStore()
	for range 2 {
		if _, _, err := importText(t, s, text, nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.docs) != 3 {
		t.Errorf("%d documents after importing 3 lines twice, want 3", len(s.docs))
	}
	// The ID is documented, and files imported by an older idb resume with a
	// newer one: it may never change.
	raw, err := doc.FromJSON([]byte(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := lineID(1, raw), "2xd16v7rh7v73t7xsmz6v19n"; got != want {
		t.Errorf("lineID = %q, want %q", got, want)
	}
}

func TestImportConflict(t *testing.T) {
	s := newMemoryStore()
	if _, _, err := importText(t, s, `{"_id":"a","n":1}`+"\n"+`{"_id":"b","n":1}`+"\n", nil); err != nil {
		t.Fatal(err)
	}
	changed := `{"_id":"a","n":2}` + "\n" + `{"_id":"b","n":1}` + "\n"
	m, lines, err := importText(t, s, changed, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := counts(m), "inserted 0 replaced 0 unchanged 1 conflicts 1 bad 0"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if want := "f:1: a exists with other content (--replace overwrites it)"; len(lines) != 1 || lines[0] != want {
		t.Errorf("got %q, want %q", lines, want)
	}
	m, _, err = importText(t, s, changed, func(m *importRun) { m.replace = true })
	if err != nil {
		t.Fatal(err)
	}
	if got, want := counts(m), "inserted 0 replaced 1 unchanged 1 conflicts 0 bad 0"; got != want {
		t.Errorf("with --replace: got %s, want %s", got, want)
	}
	if s.puts != 1 {
		t.Errorf("%d puts, want 1: what is equal is left alone", s.puts)
	}
}

func TestImportStopOnError(t *testing.T) {
	s := newMemoryStore()
	m, _, err := importText(t, s, "{\"_id\":\"a\"}\nbad\n"+cityLines(100_000), func(m *importRun) { m.stopOnError = true })
	if !errors.Is(err, errStopped) {
		t.Errorf("error %v, want %v", err, errStopped)
	}
	if m.bad.Load() != 1 || len(s.docs) > 50_000 {
		t.Errorf("%d bad, %d documents: it did not stop", m.bad.Load(), len(s.docs))
	}
}

func TestImportRefusedByServer(t *testing.T) {
	s := newMemoryStore()
	s.refuse = map[string]error{"c/00007": &wire.Error{Code: wire.CodeDocumentTooLarge, Message: "c/c/00007: too large"}}
	m, lines, err := importText(t, s, cityLines(10), nil)
	if err != nil || counts(m) != "inserted 9 replaced 0 unchanged 0 conflicts 0 bad 1" || len(lines) != 1 || lines[0] != "f:8: c/c/00007: too large" {
		t.Errorf("error %v, %s, %q", err, counts(m), lines)
	}
	for _, code := range []wire.Code{wire.CodeDiskFull, wire.CodeUnavailable, wire.CodeOutcomeUnknown, wire.CodeBadCollection, wire.CodeInternal} {
		s := newMemoryStore()
		s.refuse = map[string]error{"c/00007": &wire.Error{Code: code, Message: "no"}}
		if _, _, err := importText(t, s, cityLines(10), nil); err == nil {
			t.Errorf("code %d of an item did not end the import", code)
		}
	}
}

func TestImportShowsSomeBadLines(t *testing.T) {
	var rejects bytes.Buffer
	m, lines, err := importText(t, newMemoryStore(), strings.Repeat("bad\n", 200), func(m *importRun) { m.rejects = &rejects })
	if err != nil || m.bad.Load() != 200 {
		t.Errorf("error %v, %d bad, want 200", err, m.bad.Load())
	}
	if len(lines) != shownBadLines+1 {
		t.Errorf("%d lines shown, want %d and a word on the rest", len(lines), shownBadLines)
	}
	if got := strings.Count(rejects.String(), "\n"); got != 200 {
		t.Errorf("%d rejects written, want 200", got)
	}
	if !strings.Contains(rejects.String(), `"line":200,"text":"bad"`) {
		t.Errorf("rejects do not name the last line: %.200s", rejects.String())
	}
}

func TestBlocks(t *testing.T) {
	var text strings.Builder
	for i := range 40_000 {
		fmt.Fprintf(&text, "line %d %s\n", i+1, strings.Repeat("x", i%37))
	}
	text.WriteString("line 40001")
	for name, r := range map[string]io.Reader{
		"whole":         strings.NewReader(text.String()),
		"halves":        iotest.HalfReader(strings.NewReader(text.String())),
		"end with data": iotest.DataErrReader(strings.NewReader(text.String())),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBlockReader(r, func() int64 { return 0 })
			next := 1
			for {
				blk, err := b.next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if blk.line != next {
					t.Fatalf("block starts at line %d, want %d", blk.line, next)
				}
				for l := range bytes.Lines(blk.text) {
					if !bytes.HasPrefix(l, fmt.Appendf(nil, "line %d", next)) {
						t.Fatalf("line %d is %.30q", next, l)
					}
					next++
				}
			}
			if next != 40_002 {
				t.Errorf("%d lines, want 40001", next-1)
			}
		})
	}
}

func TestBlocksLongLine(t *testing.T) {
	long := strings.Repeat("y", 3*blockBytes)
	read := func(max int, text string) (out []string, err error) {
		b := newBlockReader(strings.NewReader(text), func() int64 { return 0 })
		b.max = max
		for {
			blk, err := b.next()
			if err == io.EOF {
				return out, nil
			}
			if err != nil {
				return out, err
			}
			out = append(out, fmt.Sprintf("%d %v %d", blk.line, blk.long, len(blk.text)))
		}
	}
	got, err := read(maxLineBytes, "a\n"+long+"\nb\n")
	if want := []string{fmt.Sprintf("1 false %d", 2), fmt.Sprintf("2 false %d", len(long)+3)}; err != nil || !slices.Equal(got, want) {
		t.Errorf("a line of three blocks: %v, %v; want %v", got, err, want)
	}
	got, err = read(blockBytes, "a\n"+long+"\nb\nc\n")
	if want := []string{"1 false 2", "2 true 256", "3 false 4"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("a line above the bound: %v, %v; want %v", got, err, want)
	}
	got, err = read(blockBytes, long)
	if want := []string{"1 true 256"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("one long line without an end: %v, %v; want %v", got, err, want)
	}
}

func packed(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(text))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestOpenSource(t *testing.T) {
	dir := t.TempDir()
	zip := packed(t, "{}\n")
	for name, data := range map[string][]byte{"a.ndjson": []byte("{}\n"), "a.ndjson.gz": zip, "cut.gz": packed(t, cityLines(50_000))[:90_000], "no.gz": []byte("{}\n"), "empty": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		path  string
		stdin []byte
		text  string
		err   string
	}{
		{path: "a.ndjson", text: "{}\n"},
		{path: "a.ndjson.gz", text: "{}\n"},
		{path: "empty"},
		{path: "-", stdin: []byte("{}\n"), text: "{}\n"},
		{path: "-", stdin: zip, text: "{}\n"},
		{path: "-", stdin: nil},
		{path: "-", stdin: []byte("{"), text: "{"},
		{path: "no.gz", err: "DIR/no.gz: the packed file is damaged, or not gzip"},
		{path: "none", err: "DIR/none cannot be read: no such file or directory"},
		{path: ".", err: "DIR is a directory: name a file of one JSON document a line"},
	} {
		path := tc.path
		if path != "-" {
			path = filepath.Join(dir, path)
		}
		a := &app{Process: Process{In: bytes.NewReader(tc.stdin)}}
		r, _, done, err := a.openSource(path)
		if tc.err != "" {
			if err == nil || strings.ReplaceAll(err.Error(), dir, "DIR") != tc.err || exitCode(err) != exitRefused {
				t.Errorf("%s: error %v, want %s", tc.path, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.path, err)
			continue
		}
		blk, err := r.next()
		if string(blk.text) != tc.text || err != nil && err != io.EOF {
			t.Errorf("%s %q: %q, %v; want %q", tc.path, tc.stdin, blk.text, err, tc.text)
		}
		done()
	}

	// A packed file that was cut: the import says so and names the line.
	a := &app{}
	r, _, done, err := a.openSource(filepath.Join(dir, "cut.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	m := &importRun{store: newMemoryStore(), source: "cut.gz", patience: time.Minute, limits: doc.Limits{}, report: t.Logf}
	err = m.run(t.Context(), r, 2)
	if err == nil || !strings.Contains(err.Error(), "the packed file ends early") {
		t.Errorf("error %v", err)
	}
}
