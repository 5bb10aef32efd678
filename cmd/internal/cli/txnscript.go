package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/impossibledb/idb/client/doc"
)

// A script of a transaction is operations, one a line, or several with ";"
// between them. What follows a "#" that begins a word is a comment.
//
//	get accounts ada bob
//	require accounts ada balance >= 5
//	update accounts ada {"$inc": {"balance": -5}}
//
// A word ends at white space or ";". One that begins with a quote is a JSON
// string, one that begins with a brace or a bracket is JSON to its end, over
// several lines if need be.

// maxScript bounds a script's text, maxScriptOps its operations: a transaction
// may hold no more.
const (
	maxScript    = 64 << 20
	maxScriptOps = 10_000
)

// scriptWord is one word of an operation.
type scriptWord struct {
	text   string
	json   bool // an object or an array
	quoted bool // it was a JSON string: no keyword, no number
}

// is says that a word is a keyword.
func (w scriptWord) is(keyword string) bool { return !w.json && !w.quoted && w.text == keyword }

// scriptOp is one operation of a script.
type scriptOp struct {
	where string // "line 3", or "operation 2" of a command line
	line  int    // the same as a number
	verb  string

	collection string
	ids        []string
	raw        doc.Raw // document or operators
	version    uint64  // of restore, and of an if-version condition
	cond       string  // if-version, if-absent, if-present

	prefix  string // of scan
	limit   int
	reverse bool

	path  string // of require; "" asks for the whole document
	test  string // exists, absent, version, or a comparison
	value doc.Raw
}

// scriptVerbs are the operations and how they are written.
var scriptVerbs = []struct{ verb, usage string }{
	{"get", "get COLLECTION ID..."},
	{"get-for-update", "get-for-update COLLECTION ID..."},
	{"scan", "scan COLLECTION [PREFIX] [limit N] [reverse]"},
	{"require", "require COLLECTION ID exists|absent|version N|PATH exists|PATH absent|PATH COMPARISON VALUE"},
	{"put", "put COLLECTION [ID] DOCUMENT [if-version N|if-absent|if-present]"},
	{"insert", "insert COLLECTION [ID] DOCUMENT"},
	{"update", "update COLLECTION ID OPERATORS [if-version N]"},
	{"upsert", "upsert COLLECTION ID OPERATORS"},
	{"delete", "delete COLLECTION ID... [if-version N]"},
	{"restore", "restore COLLECTION ID VERSION"},
}

var comparisons = []string{"=", "==", "!=", "<", "<=", ">", ">="}

// writes says that the operation changes something.
func (op *scriptOp) writes() bool {
	switch op.verb {
	case "get", "get-for-update", "scan", "require":
		return false
	}
	return true
}

func (op *scriptOp) refusef(format string, args ...any) error {
	return refusedf("%s: %s", op.where, fmt.Sprintf(format, args...))
}

// parseScript reads a script. numbered says that operations are counted, where
// lines mean nothing: on a command line.
func parseScript(text string, numbered bool) ([]scriptOp, error) {
	if !utf8.ValidString(text) {
		return nil, refusedf("the script is not UTF-8")
	}
	s := &scriptReader{rest: text, line: 1, counted: numbered}
	var ops []scriptOp
	for {
		words, line, err := s.operation()
		if err != nil {
			return nil, err
		}
		if words == nil {
			break
		}
		op := scriptOp{line: line, where: s.place(line, len(ops)+1)}
		if numbered {
			op.line = len(ops) + 1
		}
		if err := op.parse(words); err != nil {
			return nil, err
		}
		if ops = append(ops, op); len(ops) > maxScriptOps {
			return nil, withCode(exitLimit, fmt.Errorf("%s: more than %d operations in one transaction (split it)", op.where, maxScriptOps))
		}
	}
	if len(ops) == 0 {
		return nil, refusedf("the script has no operation (for example: get accounts ada)")
	}
	return ops, nil
}

// scriptReader cuts a script into operations.
type scriptReader struct {
	rest    string
	line    int
	counted bool
	seen    int
}

func (s *scriptReader) place(line, n int) string {
	if s.counted {
		return "operation " + strconv.Itoa(n)
	}
	return "line " + strconv.Itoa(line)
}

// operation is the words of the next one; nil at the end.
func (s *scriptReader) operation() (words []scriptWord, line int, err error) {
	for s.rest != "" {
		r, n := utf8.DecodeRuneInString(s.rest)
		switch {
		case r == '\n' || r == ';':
			s.rest = s.rest[n:]
			if r == '\n' {
				s.line++
			}
			if words != nil {
				s.seen++
				return words, line, nil
			}
		case unicode.IsSpace(r):
			s.rest = s.rest[n:]
		case r == '#':
			end := strings.IndexByte(s.rest, '\n')
			if end < 0 {
				end = len(s.rest)
			}
			s.rest = s.rest[end:]
		default:
			if words == nil {
				line = s.line
			}
			w, err := s.word(r)
			if err != nil {
				return nil, line, refusedf("%s: %w", s.place(line, s.seen+1), err)
			}
			words = append(words, w)
		}
	}
	s.seen++
	return words, line, nil
}

// word takes the next word, which begins with r.
func (s *scriptReader) word(r rune) (scriptWord, error) {
	switch r {
	case '"', '{', '[':
		end, err := jsonEnd(s.rest)
		if err != nil {
			return scriptWord{}, err
		}
		text := s.rest[:end]
		s.rest = s.rest[end:]
		s.line += strings.Count(text, "\n")
		if r != '"' {
			return scriptWord{text: text, json: true}, nil
		}
		var plain string
		if err := json.Unmarshal([]byte(text), &plain); err != nil {
			return scriptWord{}, fmt.Errorf("%s is no JSON string: %w", text, err)
		}
		return scriptWord{text: plain, quoted: true}, nil
	}
	end := strings.IndexFunc(s.rest, func(r rune) bool { return unicode.IsSpace(r) || r == ';' })
	if end < 0 {
		end = len(s.rest)
	}
	w := s.rest[:end]
	s.rest = s.rest[end:]
	return scriptWord{text: w}, nil
}

// jsonEnd is where the JSON string, object or array ends that s begins with. What
// is wrong inside is for the reader of JSON to say.
func jsonEnd(s string) (int, error) {
	depth, inString := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			if inString = !inString; !inString && depth == 0 {
				return i + 1, nil
			}
		case inString:
			if c == '\n' {
				return 0, fmt.Errorf("a quote is not closed: %s", firstLine(s))
			}
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return i + 1, nil
			}
		}
	}
	what := "a brace"
	if inString {
		what = "a quote"
	} else if s[0] == '[' {
		what = "a bracket"
	}
	return 0, fmt.Errorf("%s is not closed: %s", what, firstLine(s))
}

func firstLine(s string) string {
	const most = 60
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		s = s[:i]
	}
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// parse reads an operation out of its words.
func (op *scriptOp) parse(words []scriptWord) error {
	op.verb = words[0].text
	known := slices.IndexFunc(scriptVerbs, func(v struct{ verb, usage string }) bool { return v.verb == op.verb })
	if known < 0 {
		var names []string
		for _, v := range scriptVerbs {
			names = append(names, v.verb)
		}
		if best := nearest(op.verb, names); best != "" {
			return op.refusef("unknown operation %q, did you mean %s?", firstLine(op.verb), best)
		}
		return op.refusef("unknown operation %q (there are %s)", firstLine(op.verb), strings.Join(names, ", "))
	}
	usage := scriptVerbs[known].usage
	left := words[1:]
	// next takes a plain word.
	next := func() (string, bool) {
		if len(left) == 0 || left[0].json {
			return "", false
		}
		w := left[0].text
		left = left[1:]
		return w, true
	}
	bad := func(format string, args ...any) error {
		return op.refusef("%s (usage: %s)", fmt.Sprintf(format, args...), usage)
	}
	var ok bool
	if op.collection, ok = next(); !ok {
		return bad("%s names no collection", op.verb)
	}
	needID := func() error {
		id, ok := next()
		if !ok {
			return bad("%s names no document", op.verb)
		}
		op.ids = append(op.ids, id)
		return nil
	}
	var err error
	switch op.verb {
	case "get", "get-for-update", "delete":
		if err = needID(); err != nil {
			return err
		}
		for len(left) > 0 && !left[0].json && (op.verb != "delete" || !left[0].is("if-version")) {
			if err = needID(); err != nil {
				return err
			}
		}
	case "put", "insert", "update", "upsert":
		if len(left) > 0 && !left[0].json {
			if err = needID(); err != nil {
				return err
			}
		}
		what := "document"
		if op.verb == "update" || op.verb == "upsert" {
			what = "operators"
		}
		if len(left) == 0 || !left[0].json || left[0].text[0] != '{' {
			return bad("the %s of %s is missing: a JSON object", what, op.verb)
		}
		if op.raw, err = doc.FromJSON([]byte(left[0].text)); err != nil {
			return withCode(docExit(err), fmt.Errorf("%s: the %s: %w", op.where, what, err))
		}
		left = left[1:]
		if what == "document" {
			err = op.ownID()
		} else if len(op.ids) == 0 {
			return bad("%s names no document", op.verb)
		}
		if err != nil {
			return err
		}
	case "restore":
		if err = needID(); err != nil {
			return err
		}
		v, _ := next()
		if op.version, err = strconv.ParseUint(v, 10, 64); err != nil || op.version == 0 {
			return bad("version %q: want a number, 1 or above", v)
		}
	case "scan":
		if len(left) > 0 && !left[0].json && !left[0].is("limit") && !left[0].is("reverse") {
			op.prefix, _ = next()
		}
		for len(left) > 0 {
			switch w, _ := next(); w {
			case "limit":
				n, _ := next()
				if op.limit, err = strconv.Atoi(n); err != nil || op.limit < 1 {
					return bad("limit %q: want a number, 1 or above", n)
				}
			case "reverse":
				op.reverse = true
			default:
				return bad("%q has no meaning after a scan's prefix", w)
			}
		}
	case "require":
		if err = needID(); err != nil {
			return err
		}
		if err = op.parseTest(&left, bad); err != nil {
			return err
		}
	}
	if len(left) > 0 && (op.verb == "put" || op.verb == "update" || op.verb == "delete") && !left[0].json && !left[0].quoted && strings.HasPrefix(left[0].text, "if-") {
		op.cond, _ = next()
		switch {
		case op.cond == "if-version":
			v, _ := next()
			if op.version, err = strconv.ParseUint(v, 10, 64); err != nil || op.version == 0 {
				return bad("if-version %q: want a number, 1 or above", v)
			}
			if len(op.ids) > 1 {
				return bad("if-version goes with one ID")
			}
		case op.verb == "put" && (op.cond == "if-absent" || op.cond == "if-present"):
		default:
			return bad("%s has no condition %s", op.verb, op.cond)
		}
	}
	if len(left) > 0 {
		return bad("%q is one word too many", firstLine(left[0].text))
	}
	return nil
}

// ownID takes a document's ID out of it, where it has one.
func (op *scriptOp) ownID() error {
	own, _, err := doc.SplitMeta(op.raw)
	switch {
	case err != nil:
		return withCode(docExit(err), fmt.Errorf("%s: the document: %w", op.where, err))
	case len(op.ids) == 0 && own == "":
		return op.refusef("the document has no ID (give it as a word before the document, or as _id in it)")
	case len(op.ids) == 0:
		op.ids = []string{own}
	case own != "" && own != op.ids[0]:
		return op.refusef("the document's _id is %q and it is to be %q (leave one out, or make them equal)", own, op.ids[0])
	}
	return nil
}

// parseTest reads what is required of a document.
func (op *scriptOp) parseTest(left *[]scriptWord, bad func(string, ...any) error) error {
	words := *left
	if len(words) == 0 {
		return bad("what is required of the document is missing")
	}
	take := func() scriptWord {
		w := words[0]
		words = words[1:]
		return w
	}
	defer func() { *left = words }()
	switch first := take(); {
	case first.json:
		return bad("%s stands where a path should", firstLine(first.text))
	case (first.is("exists") || first.is("absent")) && len(words) == 0:
		op.test = first.text
		return nil
	case first.is("version") && len(words) == 1 && !words[0].json:
		n, err := strconv.ParseUint(words[0].text, 10, 64)
		if err != nil || n == 0 {
			break // a path of that name, compared with nothing
		}
		op.test, op.version = "version", n
		take()
		return nil
	default:
		op.path = first.text
	}
	if len(words) == 0 {
		return bad("what is required of %s is missing", op.path)
	}
	switch op.test = take().text; {
	case op.test == "exists" || op.test == "absent":
		return nil
	case !slices.Contains(comparisons, op.test):
		return bad("%q is no comparison (there are %s, exists and absent)", firstLine(op.test), strings.Join(comparisons, " "))
	case len(words) == 0:
		return bad("the value that %s is compared with is missing", op.path)
	}
	w := take()
	var err error
	text := w.text
	if !w.json && (w.quoted || !bareValue(text)) {
		// A word stands for itself: name = Ada.
		quoted, _ := json.Marshal(text) // never fails
		text = string(quoted)
	}
	if op.value, err = doc.FromJSON([]byte(text)); err != nil {
		return withCode(docExit(err), fmt.Errorf("%s: the value: %w", op.where, err))
	}
	return nil
}

// bareValue says that a word is a number, true, false or null.
func bareValue(w string) bool {
	return w == "true" || w == "false" || w == "null" || w != "" && (w[0] == '-' || w[0] >= '0' && w[0] <= '9') && json.Valid([]byte(w))
}
