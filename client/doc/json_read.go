package doc

import (
	"encoding/base64"
	"math"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Names of extended JSON. A JSON object with exactly one of them, and nothing
// else, is not a map:
//
//	{"$date": "2026-01-02T03:04:05.678Z"}  a timestamp (or a number: Unix milliseconds)
//	{"$bytes": "aGVsbG8="}                 bytes, standard base64
//	{"$float": "NaN"}                      NaN, "Infinity", "-Infinity"
//	{"$literal": {"$date": 1}}             the map {"$date": 1} itself
//
// Everything else is what it looks like: a number without point and exponent
// is an int, any other a float.
const (
	jsonDate    = "$date"
	jsonBytes   = "$bytes"
	jsonFloat   = "$float"
	jsonLiteral = "$literal"
)

// FromJSON reads one JSON value (extended as above) into its canonical form.
// It refuses what would change silently: integers beyond int64, numbers beyond
// float64, a field twice in one object, unpaired surrogates, invalid UTF-8.
// Errors name the byte.
func FromJSON(src []byte) (Raw, error) {
	return AppendFromJSON(make([]byte, 0, len(src)), src)
}

// AppendFromJSON is FromJSON into dst, for callers that convert many.
func AppendFromJSON(dst, src []byte) (Raw, error) {
	bd := builders.Get().(*Builder)
	defer putBuilder(bd)
	// The wrappers of extended JSON nest in the text but not in the value.
	bd.Reset(dst, 2*DefaultMaxDepth+1)
	p := jsonParser{src: src, Builder: bd}
	p.value()
	out, err := p.Finish()
	if err == nil && p.deepest > DefaultMaxDepth {
		if err = Check(out[len(dst):], Limits{MaxBytes: maxBuild}); err != nil {
			return out[:len(dst)], err
		}
	}
	return out, err
}

// jsonParser is the state of one FromJSON. It uses no recursion: what is open
// is in the builder's frames.
type jsonParser struct {
	*Builder
	src []byte
	at  int
	// literals has the depths (of frames) at which a $literal's map is open.
	literals []int
	deepest  int // most containers open at once
}

func (p *jsonParser) syntax(at int, text string) {
	p.fail(errorf(ErrInvalid, p.path(), "bad JSON at byte %d: %s", at, text))
}

// peek skips white space and is the next byte, 0 at the end.
func (p *jsonParser) peek() byte {
	for p.at < len(p.src) {
		switch c := p.src[p.at]; c {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return c
		}
	}
	return 0
}

func (p *jsonParser) value() {
	if len(p.src) > maxBuild {
		p.fail(errorf(ErrTooLarge, "", "the JSON text is larger than %d bytes", maxBuild))
		return
	}
	for p.err == nil {
		// At the beginning of a value.
		switch c := p.peek(); c {
		case '{':
			p.at++
			p.BeginMap()
			if p.deepest = max(p.deepest, len(p.frames)); p.err != nil {
				return
			}
			if p.peek() != '}' {
				p.name()
				continue
			}
		case '[':
			p.at++
			p.BeginArray()
			if p.deepest = max(p.deepest, len(p.frames)); p.err != nil {
				return
			}
			if p.peek() != ']' {
				continue
			}
		case '"':
			p.text()
			p.element()
		case 't':
			p.word("true")
			p.Bool(true)
		case 'f':
			p.word("false")
			p.Bool(false)
		case 'n':
			p.word("null")
			p.Null()
		case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
			p.number()
		default:
			p.unexpected(c, "a value")
			return
		}
		if !p.behindValue() {
			return
		}
	}
}

// behindValue closes what ends here and moves to the next value, if there is one.
func (p *jsonParser) behindValue() bool {
	for p.err == nil {
		c := p.peek()
		if len(p.frames) == 0 {
			if p.at < len(p.src) {
				p.syntax(p.at, "something follows the value")
			}
			return false
		}
		f := &p.frames[len(p.frames)-1]
		switch {
		case c == ',' && f.n > 0:
			p.at++
			if f.isMap {
				p.peek()
				p.name()
			}
			return p.err == nil
		case c == '}' && f.isMap:
			p.at++
			p.closeMap()
		case c == ']' && !f.isMap:
			p.at++
			p.End()
		case f.isMap:
			p.unexpected(c, `"," or "}"`)
		default:
			p.unexpected(c, `"," or "]"`)
		}
	}
	return false
}

func (p *jsonParser) unexpected(c byte, wanted string) {
	switch {
	case p.at >= len(p.src) && len(p.src) == 0:
		p.syntax(0, "it is empty")
	case p.at >= len(p.src):
		p.syntax(p.at, "it ends where "+wanted+" is expected")
	default:
		p.syntax(p.at, "found "+strconv.QuoteRune(rune(c))+" where "+wanted+" is expected")
	}
}

func (p *jsonParser) word(w string) {
	if len(p.src)-p.at < len(w) || string(p.src[p.at:p.at+len(w)]) != w {
		p.syntax(p.at, "not a value (did you mean "+w+"?)")
		return
	}
	p.at += len(w)
}

// name reads a field's name and the colon.
func (p *jsonParser) name() {
	if p.at >= len(p.src) || p.src[p.at] != '"' {
		c := byte(0)
		if p.at < len(p.src) {
			c = p.src[p.at]
		}
		p.unexpected(c, "a field name in quotes")
		return
	}
	start := len(p.dst)
	n := p.text()
	if p.err != nil {
		return
	}
	p.keyWritten(start, len(p.dst)-n)
	if p.err != nil {
		return
	}
	if c := p.peek(); c != ':' {
		p.unexpected(c, `":"`)
		return
	}
	p.at++
	if n == len(jsonLiteral) && string(p.dst[len(p.dst)-n:]) == jsonLiteral && !p.inLiteral() {
		p.literals = append(p.literals, len(p.frames)+1)
	}
}

// inLiteral says whether the open map is the one inside a $literal.
func (p *jsonParser) inLiteral() bool {
	n := len(p.literals)
	return n > 0 && p.literals[n-1] == len(p.frames)
}

// text reads a string and writes it as a value; it answers its length in bytes.
func (p *jsonParser) text() int {
	src := p.src
	begin := p.at + 1
	i := begin
	var seen byte
	for i < len(src) && src[i] != '"' && src[i] != '\\' && src[i] >= ' ' {
		seen |= src[i]
		i++
	}
	if i < len(src) && src[i] == '"' {
		s := src[begin:i]
		if seen >= utf8.RuneSelf && !utf8.Valid(s) {
			p.syntax(begin, "a string is not valid UTF-8")
			return 0
		}
		p.dst = AppendText(p.dst, s)
		p.at = i + 1
		return len(s)
	}
	return p.escapedText(begin, i)
}

// escapedText reads on where text met a backslash, a control character or the end.
func (p *jsonParser) escapedText(begin, i int) int {
	src := p.src
	s := append(p.scratch[:0], src[begin:i]...)
	for {
		if i >= len(src) {
			p.syntax(begin-1, "a string has no end")
			return 0
		}
		switch c := src[i]; {
		case c == '"':
			p.scratch = s
			if !utf8.Valid(s) {
				p.syntax(begin, "a string is not valid UTF-8")
				return 0
			}
			p.dst = AppendText(p.dst, s)
			p.at = i + 1
			return len(s)
		case c < ' ':
			p.syntax(i, "a control character in a string must be escaped")
			return 0
		case c != '\\':
			s = append(s, c)
			i++
			continue
		}
		if i+1 >= len(src) {
			p.syntax(begin-1, "a string has no end")
			return 0
		}
		switch c := src[i+1]; c {
		case '"', '\\', '/':
			s = append(s, c)
		case 'b':
			s = append(s, '\b')
		case 'f':
			s = append(s, '\f')
		case 'n':
			s = append(s, '\n')
		case 'r':
			s = append(s, '\r')
		case 't':
			s = append(s, '\t')
		case 'u':
			r := hex4(src[i+2:])
			if r < 0 {
				p.syntax(i, `\u needs four hexadecimal digits`)
				return 0
			}
			i += 4
			if utf16.IsSurrogate(r) {
				var low rune = -1
				if len(src)-i > 4 && src[i+2] == '\\' && src[i+3] == 'u' {
					low = hex4(src[i+4:])
				}
				if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
					p.syntax(i-4, "half of a surrogate pair")
					return 0
				}
				i += 6
			}
			s = utf8.AppendRune(s, r)
		default:
			p.syntax(i, "unknown escape in a string")
			return 0
		}
		i += 2
	}
}

func hex4(b []byte) rune {
	if len(b) < 4 {
		return -1
	}
	var r rune
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// number reads an int or a float.
func (p *jsonParser) number() {
	src, begin := p.src, p.at
	i := begin
	if src[i] == '-' {
		i++
	}
	digits := i
	var v uint64
	for i < len(src) && src[i]-'0' <= 9 {
		v = v*10 + uint64(src[i]-'0') // meant only if there are at most 18 digits
		i++
	}
	n := i - digits
	if n == 0 || n > 1 && src[digits] == '0' {
		p.syntax(begin, "not a number")
		return
	}
	if i == len(src) || src[i] != '.' && src[i] != 'e' && src[i] != 'E' {
		p.at = i
		if n > 18 {
			long, err := strconv.ParseInt(string(src[begin:i]), 10, 64)
			if err != nil {
				p.syntax(begin, "an integer beyond 64 bits (write it with an exponent to store it as a float, or as a string)")
				return
			}
			p.Int(long)
			return
		}
		if digits > begin {
			p.Int(-int64(v))
		} else {
			p.Int(int64(v))
		}
		return
	}
	if src[i] == '.' {
		i++
		fraction := i
		for i < len(src) && src[i]-'0' <= 9 {
			i++
		}
		if i == fraction {
			p.syntax(begin, "a number needs digits behind its point")
			return
		}
	}
	if i < len(src) && (src[i] == 'e' || src[i] == 'E') {
		i++
		if i < len(src) && (src[i] == '+' || src[i] == '-') {
			i++
		}
		exponent := i
		for i < len(src) && src[i]-'0' <= 9 {
			i++
		}
		if i == exponent {
			p.syntax(begin, "a number needs digits in its exponent")
			return
		}
	}
	f, err := strconv.ParseFloat(string(src[begin:i]), 64)
	if err != nil {
		p.syntax(begin, "a number beyond a 64-bit float")
		return
	}
	p.at = i
	p.Float(f)
}

// closeMap ends the innermost map, or replaces it by what it means in
// extended JSON.
func (p *jsonParser) closeMap() {
	f := p.frames[len(p.frames)-1]
	literal := p.inLiteral()
	if literal {
		p.literals = p.literals[:len(p.literals)-1]
	}
	if !literal {
		for _, e := range p.entries[f.entries:] {
			if p.dst[min(int(e.key), len(p.dst)-1)] == '$' && e.key < e.keyEnd && p.special(f, e) {
				return
			}
		}
	}
	p.End()
}

// special handles a map that has the field e with a name beginning with "$".
// It answers whether the map has been dealt with.
func (p *jsonParser) special(f buildFrame, e buildEntry) bool {
	name := string(p.dst[e.key:e.keyEnd])
	switch name {
	case jsonDate, jsonBytes, jsonFloat, jsonLiteral:
	default:
		return false
	}
	if f.n != 1 {
		p.syntax(p.at-1, name+" must be alone in its object (wrap the object in $literal to store it as it is)")
		return true
	}
	value := Raw(p.dst[e.keyEnd:])
	bad := func(wants string) {
		p.syntax(p.at-1, name+" wants "+wants)
	}
	// The parts of value that are needed are copied before it is overwritten.
	replace := func(write func(dst []byte) []byte) {
		p.dst = write(p.dst[:f.head])
		p.entries = p.entries[:f.entries]
		p.frames = p.frames[:len(p.frames)-1]
	}
	switch name {
	case jsonDate:
		var t time.Time
		if ms, ok := value.Int(); ok {
			t = time.UnixMilli(ms)
		} else {
			text, _ := value.Text()
			var err error
			if t, err = time.Parse(time.RFC3339Nano, string(text)); err != nil {
				bad(`an RFC 3339 time such as "2026-01-02T03:04:05.678Z", or Unix milliseconds`)
				return true
			}
		}
		if !timeInRange(t.Unix(), uint32(t.Nanosecond())) {
			bad("a time in the years 1 to 9999")
			return true
		}
		replace(func(dst []byte) []byte { return AppendTime(dst, t) })
	case jsonBytes:
		text, ok := value.Text()
		decoded := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
		n, err := base64.StdEncoding.Strict().Decode(decoded, text)
		if !ok || err != nil {
			bad("a string of standard base64 with padding")
			return true
		}
		replace(func(dst []byte) []byte { return AppendBytes(dst, decoded[:n]) })
	case jsonFloat:
		var v float64
		switch text, _ := value.Text(); string(text) {
		case "NaN":
			v = math.NaN()
		case "Infinity":
			v = math.Inf(1)
		case "-Infinity":
			v = math.Inf(-1)
		default:
			bad(`"NaN", "Infinity" or "-Infinity"`)
			return true
		}
		replace(func(dst []byte) []byte { return AppendFloat(dst, v) })
	case jsonLiteral:
		if value.Kind() != KindMap {
			bad("an object")
			return true
		}
		replace(func(dst []byte) []byte { return append(dst, value...) })
	}
	return true
}
