package update

import (
	"errors"
	"runtime"
	"testing"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

// FuzzApply gives any bytes to Parse and, what can be repaired, to Apply. It
// must never panic; what it answers is a canonical body within the limits, the
// same each time; what it refuses has one of the four codes.
func FuzzApply(f *testing.F) {
	for _, s := range [][2]string{
		{`{"a":1,"b":[1,2,{"c":3}]}`, `{"$set":{"b.2.c":4,"b.5":5},"$inc":{"a":2}}`},
		{`{"l":[{"s":2},{"s":1}]}`, `{"$push":{"l":{"$each":[{"s":0}],"$position":1,"$slice":-2,"$sort":[{"s":1},{"x.y":-1}]}}}`},
		{`{"l":[1,2,3]}`, `{"$pull":{"l":{"$in":[1,"x"],"$gte":1}}}`},
		{`{"l":[{"a":1}]}`, `{"$pull":{"l":{"a":{"$ne":1},"b":null}}}`},
		{`{"a":{"b":1}}`, `{"$rename":{"a.b":"c.d"},"$unset":{"x":""}}`},
		{`{}`, `{"$addToSet":{"l":{"$each":[1,1.0,2]}},"$currentDate":{"t":{"$type":"date"}},"$setOnInsert":{"z.z":1}}`},
		{`{"n":9223372036854775807}`, `{"$mul":{"n":2},"$min":{"m":1},"$max":{"o.0":1},"$pop":{"p":-1}}`},
		{``, `{"$set":{"a.b.c.d":{"e":[[]]}}}`},
	} {
		body := []byte{}
		if s[0] != "" {
			body = raw(f, s[0])
		}
		f.Add(body, []byte(raw(f, s[1])), uint16(0), uint8(0))
		f.Add(body, []byte(raw(f, s[1])), uint16(20), uint8(3))
	}
	f.Fuzz(func(t *testing.T, body, operators []byte, maxBytes uint16, maxDepth uint8) {
		if _, err := Parse(operators); err != nil {
			mustBe(t, err, wire.CodeBadUpdate)
		}
		operators, err := doc.Canonicalize(operators, parseLimits)
		if err != nil {
			return
		}
		u, err := Parse(operators)
		if err != nil {
			mustBe(t, err, wire.CodeBadUpdate)
			return
		}
		if len(body) == 0 {
			body = nil
		} else if body, err = doc.Canonicalize(body, doc.Limits{}); err != nil || doc.CheckBody(body, doc.Limits{}) != nil {
			return
		}
		lim := doc.Limits{MaxBytes: int(maxBytes), MaxDepth: int(maxDepth)}
		kept := string(body)
		got, err := u.Apply(body, testNow, lim)
		if string(body) != kept {
			t.Fatal("the body was changed")
		}
		again, err2 := u.Apply(body, testNow, lim)
		if !again.Equal(got) || (err == nil) != (err2 == nil) || err != nil && err.Error() != err2.Error() {
			t.Fatalf("once %s, %v; once %s, %v", got, err, again, err2)
		}
		if err != nil {
			mustBe(t, err, wire.CodeUpdateFailed, wire.CodeDocumentTooLarge, wire.CodeTooDeep)
			return
		}
		// A body that was too deep before may still be, where no path leads.
		if maxDepth > 0 && doc.Depth(body) > int(maxDepth) {
			lim.MaxDepth = 0
		}
		if err := doc.CheckBody(got, lim); err != nil {
			t.Fatalf("%s changed by %s is %s: %v", doc.Raw(body), doc.Raw(operators), got, err)
		}
	})
}

func mustBe(t *testing.T, err error, codes ...wire.Code) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Text == "" {
		t.Fatalf("error %#v is not an *Error", err)
	}
	for _, c := range codes {
		if e.Code == c {
			return
		}
	}
	t.Fatalf("error %v has code %d", err, e.Code)
}

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
