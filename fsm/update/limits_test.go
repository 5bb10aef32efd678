package update

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/doc"
)

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		body, update string
		lim          doc.Limits
		want         string
	}{
		{`{"a":1}`, `{"$set":{"b":"0123456789"}}`, doc.Limits{MaxBytes: 17}, `{"a":1,"b":"0123456789"}`},
		{`{"a":1}`, `{"$set":{"b":"0123456789"}}`, doc.Limits{MaxBytes: 16}, `too large: the document would have 17 bytes, the limit is 16`},
		{`{"a":"0123456789"}`, `{"$set":{"a":1}}`, doc.Limits{MaxBytes: 5}, `{"a":1}`},
		{`{}`, `{"$set":{"a.b":1}}`, doc.Limits{MaxDepth: 2}, `{"a":{"b":1}}`},
		{`{}`, `{"$set":{"a.b.c":1}}`, doc.Limits{MaxDepth: 2}, `too deep: $set "a.b.c": arrays and maps would be nested deeper than 2`},
		{`{}`, `{"$set":{"a":{"b":[]}}}`, doc.Limits{MaxDepth: 2}, `too deep: $set "a": arrays and maps would be nested deeper than 2`},
		{`{"a":{}}`, `{"$set":{"a.b":[]}}`, doc.Limits{MaxDepth: 2}, `too deep: $set "a.b": arrays and maps would be nested deeper than 2`},
		{`{"a":[]}`, `{"$set":{"a.0":{}}}`, doc.Limits{MaxDepth: 2}, `too deep: $set "a.0": arrays and maps would be nested deeper than 2`},
		{`{"a":{"b":{}},"c":{}}`, `{"$rename":{"a":"c.d"}}`, doc.Limits{MaxDepth: 3}, `too deep: $rename "c.d": arrays and maps would be nested deeper than 3`},
		{`{"a":{"b":{}},"c":{}}`, `{"$rename":{"a":"c.d"}}`, doc.Limits{MaxDepth: 4}, `{"c":{"d":{"b":{}}}}`},
		{`{}`, `{"$push":{"a":1}}`, doc.Limits{MaxDepth: 1}, `too deep: $push "a": arrays and maps would be nested deeper than 1`},
		{`{}`, `{"$push":{"a":{"$each":[[]]}}}`, doc.Limits{MaxDepth: 2}, `too deep: $push "a": arrays and maps would be nested deeper than 2`},
		{`{}`, `{"$push":{"a":{"$each":[]}}}`, doc.Limits{MaxDepth: 2}, `{"a":[]}`},
		{`{}`, `{"$addToSet":{"a":[]}}`, doc.Limits{MaxDepth: 2}, `too deep: $addToSet "a": arrays and maps would be nested deeper than 2`},
		{`{"a":[1]}`, `{"$min":{"a":[]}}`, doc.Limits{MaxDepth: 2}, `{"a":[]}`},
	} {
		if got := apply(t, c.body, c.update, c.lim); got != c.want {
			t.Errorf("%s %s\n  got  %s\n  want %s", c.body, c.update, got, c.want)
		}
	}
}

// Counts at which heads change their size, both ways.
func TestHeads(t *testing.T) {
	for _, n := range []int{0, 1, 14, 15, 16, 17, 65534, 65535, 65536} {
		var list, fields []string
		for i := range n {
			list = append(list, "0")
			fields = append(fields, fmt.Sprintf(`"f%05d":0`, i))
		}
		body := fmt.Sprintf(`{"l":[%s],"m":{%s}}`, strings.Join(list, ","), strings.Join(fields, ","))
		before := raw(t, body)
		for _, c := range []struct {
			update  string
			l, m, n int
		}{
			{`{"$push":{"l":1},"$set":{"m.x":1}}`, n + 1, n + 1, 0},
			{`{"$pop":{"l":1},"$unset":{"m.f00000":1}}`, max(n-1, 0), max(n-1, 0), 0},
			{`{"$push":{"l":{"$each":[1,2],"$position":1}},"$set":{"a":1,"z":2}}`, n + 2, n, 2},
			{`{"$pull":{"l":0},"$unset":{"m":1}}`, 0, 0, 0},
			{`{"$addToSet":{"l":{"$each":[0,1]}}}`, max(n, 1) + 1, n, 0},
		} {
			u, err := Parse(raw(t, c.update))
			if err != nil {
				t.Fatal(err)
			}
			lim := doc.Limits{MaxBytes: 4 << 20}
			got, err := u.Apply(before, testNow, lim)
			if err != nil {
				t.Fatal(err)
			}
			if err := doc.CheckBody(got, lim); err != nil {
				t.Fatalf("%d elements, %s: %v", n, c.update, err)
			}
			l, _ := doc.Field(got, "l")
			m, _ := doc.Field(got, "m")
			want := c.l
			if c.update[2:12] == "$addToSet\"" && n == 0 {
				want = 2
			}
			if l.Len() != want || m.Len() != c.m {
				t.Errorf("%d elements, %s: %d and %d, want %d and %d", n, c.update, l.Len(), m.Len(), want, c.m)
			}
		}
	}
}

// The answer is memory of its own.
func TestApplySharesNothing(t *testing.T) {
	body, operators := raw(t, `{"a":"xxxx","b":[1,2]}`), raw(t, `{"$set":{"c":"yyyy"},"$push":{"b":3}}`)
	u, err := Parse(operators)
	if err != nil {
		t.Fatal(err)
	}
	got, err := u.Apply(body, testNow, doc.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := got.String()
	for _, b := range [][]byte{body, operators} {
		for i := range b {
			b[i] = 0xff
		}
	}
	if got.String() != want {
		t.Errorf("the answer changed to %s", got)
	}
}

// hostileUpdates are of the full document size and meant to cost much.
func hostileUpdates(t testing.TB) map[string][2]doc.Raw {
	const size = doc.DefaultMaxBytes - 64
	zeros := append(doc.AppendArrayHead(nil, size), make([]byte, size)...)
	body := func(list doc.Raw) doc.Raw {
		return append(doc.AppendString(doc.AppendMapHead(nil, 1), "l"), list...)
	}
	update := func(op string, operand []byte) doc.Raw {
		return append(doc.AppendString(doc.AppendMapHead(nil, 1), op), body(operand)...)
	}
	var distinct []byte
	n := 200_000
	for i := range n {
		distinct = doc.AppendInt(distinct, int64(i))
	}
	distinct = append(doc.AppendArrayHead(nil, n), distinct...)
	each := func(list []byte, more ...byte) []byte {
		head := doc.AppendMapHead(nil, 1)
		if more != nil {
			head = doc.AppendMapHead(nil, 2)
		}
		return append(append(doc.AppendString(head, "$each"), list...), more...)
	}
	sort := doc.AppendInt(doc.AppendString(nil, "$sort"), -1)
	var paths []byte
	for i := range 100_000 {
		paths = append(doc.AppendString(paths, fmt.Sprintf("l.%06d", i+100_000)), 1)
	}
	conditions := raw(t, `{"$gte":-1,"$gt":-1,"$lte":5,"$lt":5,"$ne":7,"$nin":[3],"$in":[0]}`)
	return map[string][2]doc.Raw{
		"add a set to another":   {body(distinct), update("$addToSet", each(distinct))},
		"sort a million":         {body(zeros), update("$push", each([]byte{0x91, 1}, sort...))},
		"pull a million":         {body(zeros), update("$pull", conditions)},
		"pull by a long list":    {body(distinct), update("$pull", append(doc.AppendString(doc.AppendMapHead(nil, 1), "$nin"), distinct...))},
		"a hundred thousand set": {body(zeros), append(doc.AppendString(doc.AppendMapHead(nil, 1), "$set"), append(doc.AppendMapHead(nil, 100_000), paths...)...)},
		"push to a million":      {body(zeros), update("$push", each([]byte{0x91, 1}))},
	}
}

// The costliest updates stay within a multiple of the document, in memory and
// in time. The bound of time is loose: a quadratic loop takes hours.
func TestHostileUpdates(t *testing.T) {
	for name, c := range hostileUpdates(t) {
		start := time.Now()
		var err error
		n := allocated(func() {
			var u *Update
			if u, err = Parse(c[1]); err == nil {
				_, err = u.Apply(c[0], testNow, doc.Limits{})
			}
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if most := uint64(100 * (len(c[0]) + len(c[1]))); n > most {
			t.Errorf("%s allocates %d MiB for %d KiB", name, n>>20, (len(c[0])+len(c[1]))>>10)
		}
		took := time.Since(start)
		t.Logf("%-24s %6.1f MiB, %v", name, float64(n)/(1<<20), took.Round(time.Millisecond))
		if took > 2*time.Minute {
			t.Errorf("%s takes %v", name, took)
		}
	}
}

func kilobyte(t testing.TB) doc.Raw {
	return raw(t, `{"active":true,"address":{"city":"London","zip":"E1"},"age":33,"balance":1234.5,"email":"ada@example.com","name":"Ada Lovelace","note":null,"score":-5,"tags":["a","b","c"],"text":"`+
		strings.Repeat("lorem ipsum dolor sit amet ", 29)+`","visits":70000,"when":{"$date":0}}`)
}

func benchmarkUpdate(b *testing.B, update string) {
	body, operators := kilobyte(b), raw(b, update)
	b.ReportAllocs()
	for b.Loop() {
		u, err := Parse(operators)
		if err != nil {
			b.Fatal(err)
		}
		if got, err := u.Apply(body, testNow, doc.Limits{}); err != nil || bytes.Equal(got, body) {
			b.Fatal(err)
		}
	}
}

func BenchmarkSetOne(b *testing.B)  { benchmarkUpdate(b, `{"$set":{"name":"Grace Hopper"}}`) }
func BenchmarkIncOne(b *testing.B)  { benchmarkUpdate(b, `{"$inc":{"visits":1}}`) }
func BenchmarkPushOne(b *testing.B) { benchmarkUpdate(b, `{"$push":{"tags":"d"}}`) }
func BenchmarkSetFour(b *testing.B) {
	benchmarkUpdate(b, `{"$set":{"address.city":"Paris","name":"Grace Hopper","new.deep.field":5},"$inc":{"visits":1}}`)
}
