package update

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/txn/hlc"
)

var testNow = hlc.FromTime(time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC))

func raw(t testing.TB, json string) doc.Raw {
	t.Helper()
	r, err := doc.FromJSON([]byte(json))
	if err != nil {
		t.Fatalf("FromJSON(%s): %v", json, err)
	}
	return r
}

// apply answers the result as JSON, or the error's code in words and its text.
func apply(t testing.TB, body, update string, lim doc.Limits) string {
	t.Helper()
	var before doc.Raw
	if body != "" {
		before = raw(t, body)
	}
	return applyRaw(t, before, raw(t, update), lim)
}

func applyRaw(t testing.TB, body, update doc.Raw, lim doc.Limits) string {
	t.Helper()
	kept := string(body)
	words := func(err error) string {
		var e *Error
		if !errors.As(err, &e) {
			t.Fatalf("error %v is a %T, not an *Error", err, err)
		}
		switch e.Code {
		case wire.CodeBadUpdate:
			return "bad: " + e.Error()
		case wire.CodeUpdateFailed:
			return "failed: " + e.Error()
		case wire.CodeDocumentTooLarge:
			return "too large: " + e.Error()
		case wire.CodeTooDeep:
			return "too deep: " + e.Error()
		}
		t.Fatalf("error %v has code %d", err, e.Code)
		return ""
	}
	u, err := Parse(update)
	if err != nil {
		return words(err)
	}
	after, err := u.Apply(body, testNow, lim)
	if string(body) != kept {
		t.Fatalf("Apply changed its argument")
	}
	if err != nil {
		if after != nil {
			t.Fatalf("Apply answered both a document and %v", err)
		}
		return words(err)
	}
	if err := doc.CheckBody(after, lim); err != nil {
		t.Fatalf("the result is not a canonical body: %v", err)
	}
	again, err := u.Apply(body, testNow, lim)
	if err != nil || !again.Equal(after) {
		t.Fatalf("a second Apply answered %v, %v", again, err)
	}
	return after.String()
}

func TestApply(t *testing.T) {
	for _, c := range []struct{ body, update, want string }{
		// $set
		{`{}`, `{"$set":{"a":1}}`, `{"a":1}`},
		{`{"a":1,"c":3}`, `{"$set":{"b":2}}`, `{"a":1,"b":2,"c":3}`},
		{`{"a":1}`, `{"$set":{"a":"x"}}`, `{"a":"x"}`},
		{`{"a":1}`, `{"$set":{"a":1.0}}`, `{"a":1.0}`},
		{`{}`, `{"$set":{"a.b.c":1}}`, `{"a":{"b":{"c":1}}}`},
		{`{"a":{"b":{"x":1}},"z":0}`, `{"$set":{"a.b.c":1,"a.a":2,"y":3}}`, `{"a":{"a":2,"b":{"c":1,"x":1}},"y":3,"z":0}`},
		{`{}`, `{"$set":{}}`, `{}`},
		{`{"a":[1,2,3]}`, `{"$set":{"a.1":9}}`, `{"a":[1,9,3]}`},
		{`{"a":[1]}`, `{"$set":{"a.3":9}}`, `{"a":[1,null,null,9]}`},
		{`{"a":[]}`, `{"$set":{"a.10":10,"a.2":2,"a.9":9}}`, `{"a":[null,null,2,null,null,null,null,null,null,9,10]}`},
		{`{"a":[{"b":1},{"b":2}]}`, `{"$set":{"a.1.b":9,"a.0.c":3}}`, `{"a":[{"b":1,"c":3},{"b":9}]}`},
		{`{"a":[0]}`, `{"$set":{"a.1.b":9}}`, `{"a":[0,{"b":9}]}`},
		{`{}`, `{"$set":{"a.0":1,"a.1":2}}`, `{"a":{"0":1,"1":2}}`},
		{`{"a":{"x":1}}`, `{"$set":{"a.0":1}}`, `{"a":{"0":1,"x":1}}`},
		{`{"a":1}`, `{"$set":{"a.b":1}}`, `failed: $set "a.b": cannot make the field "b": "a" is an int, not a map`},
		{`{"a":null}`, `{"$set":{"a.b":1}}`, `failed: $set "a.b": cannot make the field "b": "a" is null, not a map`},
		{`{"a":{"b":"s"}}`, `{"$set":{"a.b.c.d":1}}`, `failed: $set "a.b.c.d": cannot make the field "c": "a.b" is a string, not a map`},
		{`{"a":[1]}`, `{"$set":{"a.x":1}}`, `failed: $set "a.x": "a" is an array: a path into it must name an index, not "x"`},
		{`{"a":[1]}`, `{"$set":{"a.01":1}}`, `failed: $set "a.01": "a" is an array: a path into it must name an index, not "01"`},
		{`{"a":[1]}`, `{"$set":{"a.-1":1}}`, `failed: $set "a.-1": "a" is an array: a path into it must name an index, not "-1"`},
		{`{"a":[1]}`, `{"$set":{"a.10002":1}}`, `failed: $set "a.10002": index 10002 lies more than 10000 beyond the array's 1 elements`},
		{`{"a":{"$x":1}}`, `{"$set":{"b":{"$date":"2020-01-01T00:00:00Z"}}}`, `{"a":{"$x":1},"b":{"$date":"2020-01-01T00:00:00.000Z"}}`},
		{`{"a":1,"aa":2,"b":3}`, `{"$set":{"a":{"x":1},"aa":0}}`, `{"a":{"x":1},"aa":0,"b":3}`},
		{`{"a-b":1,"a":{"b":2}}`, `{"$set":{"a-b":5,"a.b":6}}`, `{"a":{"b":6},"a-b":5}`},

		// $setOnInsert and upsert from nothing
		{``, `{"$set":{"b":1},"$setOnInsert":{"a":2}}`, `{"a":2,"b":1}`},
		{`{}`, `{"$set":{"b":1},"$setOnInsert":{"a":2,"c.d":3}}`, `{"b":1}`},
		{`{"a":1}`, `{"$setOnInsert":{"a":2,"a2.b":2}}`, `{"a":1}`},
		{`{"a":1}`, `{"$setOnInsert":{"a.b":2}}`, `{"a":1}`},
		{``, `{"$inc":{"n":5},"$push":{"l":1},"$unset":{"x":1},"$pop":{"p":1},"$pull":{"q":1}}`, `{"l":[1],"n":5}`},

		// $unset
		{`{"a":1,"b":2}`, `{"$unset":{"a":""}}`, `{"b":2}`},
		{`{"a":{"b":1,"c":2}}`, `{"$unset":{"a.b":""}}`, `{"a":{"c":2}}`},
		{`{"a":{"b":1}}`, `{"$unset":{"a.b":""}}`, `{"a":{}}`},
		{`{"a":1}`, `{"$unset":{"x.y.z":"","a.b":"","c":""}}`, `{"a":1}`},
		{`{"a":[1,2,3]}`, `{"$unset":{"a.1":"","a.7":"","a.x":""}}`, `{"a":[1,null,3]}`},
		{`{"a":[{"b":1}]}`, `{"$unset":{"a.0.b":""}}`, `{"a":[{}]}`},

		// $inc, $mul
		{`{"n":1}`, `{"$inc":{"n":2}}`, `{"n":3}`},
		{`{"n":1}`, `{"$inc":{"n":-2}}`, `{"n":-1}`},
		{`{"n":1}`, `{"$inc":{"n":0.5}}`, `{"n":1.5}`},
		{`{"n":1.5}`, `{"$inc":{"n":1}}`, `{"n":2.5}`},
		{`{}`, `{"$inc":{"a.n":2,"b":1.5}}`, `{"a":{"n":2},"b":1.5}`},
		{`{"n":9223372036854775807}`, `{"$inc":{"n":1}}`, `failed: $inc "n": the result is beyond a 64-bit integer`},
		{`{"n":-9223372036854775808}`, `{"$inc":{"n":-1}}`, `failed: $inc "n": the result is beyond a 64-bit integer`},
		{`{"n":9223372036854775807}`, `{"$inc":{"n":0}}`, `{"n":9223372036854775807}`},
		{`{"n":9223372036854775806}`, `{"$inc":{"n":1}}`, `{"n":9223372036854775807}`},
		{`{"n":"s"}`, `{"$inc":{"n":1}}`, `failed: $inc "n": the field is a string, not a number`},
		{`{"n":null}`, `{"$inc":{"n":1}}`, `failed: $inc "n": the field is null, not a number`},
		{`{"n":[1,2]}`, `{"$inc":{"n.1":5}}`, `{"n":[1,7]}`},
		{`{"n":3}`, `{"$mul":{"n":4}}`, `{"n":12}`},
		{`{"n":3}`, `{"$mul":{"n":0.5}}`, `{"n":1.5}`},
		{`{}`, `{"$mul":{"n":4,"f":2.0}}`, `{"f":0.0,"n":0}`},
		{`{"n":4611686018427387904}`, `{"$mul":{"n":2}}`, `failed: $mul "n": the result is beyond a 64-bit integer`},
		{`{"n":4611686018427387904}`, `{"$mul":{"n":-2}}`, `{"n":-9223372036854775808}`},
		{`{"n":-9223372036854775808}`, `{"$mul":{"n":-1}}`, `failed: $mul "n": the result is beyond a 64-bit integer`},
		{`{"n":-9223372036854775808}`, `{"$mul":{"n":1}}`, `{"n":-9223372036854775808}`},
		{`{"n":-5}`, `{"$mul":{"n":0}}`, `{"n":0}`},
		{`{"n":-5}`, `{"$mul":{"n":0.0}}`, `{"n":0.0}`},
		{`{"n":{"$float":"Infinity"}}`, `{"$inc":{"n":{"$float":"-Infinity"}}}`, `{"n":{"$float":"NaN"}}`},

		// $min, $max
		{`{"n":5}`, `{"$min":{"n":3}}`, `{"n":3}`},
		{`{"n":5}`, `{"$min":{"n":7}}`, `{"n":5}`},
		{`{"n":5}`, `{"$max":{"n":7}}`, `{"n":7}`},
		{`{"n":5}`, `{"$max":{"n":3,"m.k":4}}`, `{"m":{"k":4},"n":5}`},
		{`{"n":5}`, `{"$max":{"n":5.0}}`, `{"n":5}`},
		{`{"n":5}`, `{"$min":{"n":5.0}}`, `{"n":5}`},
		{`{"n":5}`, `{"$max":{"n":"a"}}`, `{"n":"a"}`},
		{`{"n":5}`, `{"$min":{"n":null}}`, `{"n":null}`},

		// $rename
		{`{"a":1,"b":2}`, `{"$rename":{"a":"c"}}`, `{"b":2,"c":1}`},
		{`{"a":1,"b":2}`, `{"$rename":{"a":"b"}}`, `{"b":1}`},
		{`{"a":{"x":1,"y":2}}`, `{"$rename":{"a.x":"b.c"}}`, `{"a":{"y":2},"b":{"c":1}}`},
		{`{"a":{"x":1}}`, `{"$rename":{"a.x":"a.y"}}`, `{"a":{"y":1}}`},
		{`{"b":2}`, `{"$rename":{"a":"b"}}`, `{"b":2}`},
		{`{"b":2}`, `{"$rename":{"a.x":"c.d"}}`, `{"b":2}`},
		{`{"a":[1]}`, `{"$rename":{"a.0":"b"}}`, `failed: $rename "a.0": a path of $rename must not lead through an array`},
		{`{"a":1,"b":[1]}`, `{"$rename":{"a":"b.0"}}`, `failed: $rename "b.0": a path of $rename must not lead through an array`},
		{`{"a":1,"b":[{}]}`, `{"$rename":{"a":"b.0.c"}}`, `failed: $rename "b.0.c": a path of $rename must not lead through an array`},
		{`{"a":1,"b":[]}`, `{"$rename":{"a":"b.0.c"}}`, `failed: $rename "b.0.c": a path of $rename must not lead through an array`},
		{`{"a":[{"x":1}]}`, `{"$rename":{"a.0.x":"b"}}`, `failed: $rename "a.0.x": a path of $rename must not lead through an array`},
		{`{"a":1,"b":2}`, `{"$rename":{"a":"b.c"}}`, `failed: $rename "b.c": cannot make the field "c": "b" is an int, not a map`},
		{`{"a":1,"b":2}`, `{"$rename":{"a":"x","b":"y"},"$set":{"c":1}}`, `{"c":1,"x":1,"y":2}`},
		{`{"a":1}`, `{"$rename":{"a":"b","b":"a"}}`, `bad: "a": the update changes this field twice`},

		// $push
		{`{}`, `{"$push":{"l":1}}`, `{"l":[1]}`},
		{`{"l":[1]}`, `{"$push":{"l":[2,3]}}`, `{"l":[1,[2,3]]}`},
		{`{"l":[1]}`, `{"$push":{"l":{"$each":[2,3]}}}`, `{"l":[1,2,3]}`},
		{`{}`, `{"$push":{"l":{"$each":[]}}}`, `{"l":[]}`},
		{`{"l":[1,2]}`, `{"$push":{"l":{"$each":[8,9],"$position":1}}}`, `{"l":[1,8,9,2]}`},
		{`{"l":[1,2]}`, `{"$push":{"l":{"$each":[8,9],"$position":0}}}`, `{"l":[8,9,1,2]}`},
		{`{"l":[1,2]}`, `{"$push":{"l":{"$each":[9],"$position":-1}}}`, `{"l":[1,9,2]}`},
		{`{"l":[1,2]}`, `{"$push":{"l":{"$each":[9],"$position":-7}}}`, `{"l":[9,1,2]}`},
		{`{"l":[1,2]}`, `{"$push":{"l":{"$each":[9],"$position":7}}}`, `{"l":[1,2,9]}`},
		{`{"l":[1,2,3]}`, `{"$push":{"l":{"$each":[4,5],"$slice":-3}}}`, `{"l":[3,4,5]}`},
		{`{"l":[1,2,3]}`, `{"$push":{"l":{"$each":[4,5],"$slice":4}}}`, `{"l":[1,2,3,4]}`},
		{`{"l":[1,2,3]}`, `{"$push":{"l":{"$each":[4,5],"$slice":0}}}`, `{"l":[]}`},
		{`{"l":[1,2,3]}`, `{"$push":{"l":{"$each":[],"$slice":-2}}}`, `{"l":[2,3]}`},
		{`{"l":[1,2,3,4]}`, `{"$push":{"l":{"$each":[8,9],"$position":2,"$slice":-3}}}`, `{"l":[9,3,4]}`},
		{`{"l":[1,2,3,4]}`, `{"$push":{"l":{"$each":[8,9],"$position":2,"$slice":3}}}`, `{"l":[1,2,8]}`},
		{`{"l":[1,2,3,4]}`, `{"$push":{"l":{"$each":[8,9],"$position":2,"$slice":1}}}`, `{"l":[1]}`},
		{`{"l":[1,2,3,4]}`, `{"$push":{"l":{"$each":[8,9],"$position":2,"$slice":-1}}}`, `{"l":[4]}`},
		{`{"l":[3,1]}`, `{"$push":{"l":{"$each":[2,"a",null,1.5],"$sort":1}}}`, `{"l":[null,1,1.5,2,3,"a"]}`},
		{`{"l":[3,1]}`, `{"$push":{"l":{"$each":[2],"$sort":-1,"$slice":2}}}`, `{"l":[3,2]}`},
		{`{"l":[{"s":3,"n":1},{"s":1,"n":2}]}`, `{"$push":{"l":{"$each":[{"s":3,"n":3},{"n":4}],"$sort":{"s":-1}}}}`,
			`{"l":[{"n":1,"s":3},{"n":3,"s":3},{"n":2,"s":1},{"n":4}]}`},
		{`{"l":[{"s":3,"n":1},{"s":1,"n":2}]}`, `{"$push":{"l":{"$each":[{"s":3,"n":3}],"$sort":[{"s":1},{"n":-1}]}}}`,
			`{"l":[{"n":2,"s":1},{"n":3,"s":3},{"n":1,"s":3}]}`},
		{`{"l":[{"a":{"b":2}},{"a":{"b":1}}]}`, `{"$push":{"l":{"$each":[],"$sort":{"a.b":1}}}}`, `{"l":[{"a":{"b":1}},{"a":{"b":2}}]}`},
		{`{"l":"s"}`, `{"$push":{"l":1}}`, `failed: $push "l": the field is a string, not an array`},
		{`{"l":[[1],2]}`, `{"$push":{"l.0":9}}`, `{"l":[[1,9],2]}`},
		{`{"l":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]}`, `{"$push":{"l":16}}`, `{"l":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}`},

		// $addToSet
		{`{}`, `{"$addToSet":{"l":1}}`, `{"l":[1]}`},
		{`{"l":[1]}`, `{"$addToSet":{"l":1.0}}`, `{"l":[1]}`},
		{`{"l":[1]}`, `{"$addToSet":{"l":2}}`, `{"l":[1,2]}`},
		{`{"l":[1]}`, `{"$addToSet":{"l":[1]}}`, `{"l":[1,[1]]}`},
		{`{"l":[1]}`, `{"$addToSet":{"l":{"$each":[2,1,2,3]}}}`, `{"l":[1,2,3]}`},
		{`{"l":[{"a":1,"b":2}]}`, `{"$addToSet":{"l":{"b":2,"a":1}}}`, `{"l":[{"a":1,"b":2}]}`},
		{`{"l":3}`, `{"$addToSet":{"l":3}}`, `failed: $addToSet "l": the field is an int, not an array`},

		// $pull
		{`{"l":[1,2,1.0,3,1]}`, `{"$pull":{"l":1}}`, `{"l":[2,3]}`},
		{`{"l":[1,2,3,4,5]}`, `{"$pull":{"l":{"$gte":2,"$lt":5}}}`, `{"l":[1,5]}`},
		{`{"l":[1,"a",2,null]}`, `{"$pull":{"l":{"$gt":0}}}`, `{"l":["a",null]}`},
		{`{"l":[1,2,3]}`, `{"$pull":{"l":{"$in":[1.0,3,9]}}}`, `{"l":[2]}`},
		{`{"l":[1,2,3]}`, `{"$pull":{"l":{"$nin":[1,3]}}}`, `{"l":[1,3]}`},
		{`{"l":[1,2,3]}`, `{"$pull":{"l":{"$ne":2}}}`, `{"l":[2]}`},
		{`{"l":[{"a":1,"b":1},{"a":1,"b":2},{"a":2},5]}`, `{"$pull":{"l":{"a":1}}}`, `{"l":[{"a":2},5]}`},
		{`{"l":[{"a":1,"b":1},{"a":1,"b":2},{"a":2},5]}`, `{"$pull":{"l":{"a":1,"b":{"$gte":2}}}}`, `{"l":[{"a":1,"b":1},{"a":2},5]}`},
		{`{"l":[{"a":{"b":1}},{"a":{"b":2}}]}`, `{"$pull":{"l":{"a.b":2}}}`, `{"l":[{"a":{"b":1}}]}`},
		{`{"l":[{"t":[1,2]},{"t":[3]},{}]}`, `{"$pull":{"l":{"t":3}}}`, `{"l":[{"t":[1,2]},{}]}`},
		{`{"l":[{"t":[1,2]},{"t":null},{}]}`, `{"$pull":{"l":{"t":null}}}`, `{"l":[{"t":[1,2]}]}`},
		{`{"l":[{"t":1},{}]}`, `{"$pull":{"l":{"t":{"$exists":false}}}}`, `{"l":[{"t":1}]}`},
		{`{"l":[[1,2],[1],1]}`, `{"$pull":{"l":[1]}}`, `{"l":[[1,2],1]}`},
		{`{"l":[{"$float":"NaN"},1]}`, `{"$pull":{"l":{"$lte":5}}}`, `{"l":[{"$float":"NaN"}]}`},
		{`{"l":[1,{},{"a":1}]}`, `{"$pull":{"l":{}}}`, `{"l":[1]}`},
		{`{"l":1}`, `{"$pull":{"l":1}}`, `failed: $pull "l": the field is an int, not an array`},
		{`{"a":1}`, `{"$pull":{"l":1,"a.b.c":2}}`, `{"a":1}`},

		// $pop
		{`{"l":[1,2,3]}`, `{"$pop":{"l":1}}`, `{"l":[1,2]}`},
		{`{"l":[1,2,3]}`, `{"$pop":{"l":-1}}`, `{"l":[2,3]}`},
		{`{"l":[1]}`, `{"$pop":{"l":1}}`, `{"l":[]}`},
		{`{"l":[1]}`, `{"$pop":{"l":-1.0}}`, `{"l":[]}`},
		{`{"l":[]}`, `{"$pop":{"l":-1}}`, `{"l":[]}`},
		{`{"l":1}`, `{"$pop":{"l":-1}}`, `failed: $pop "l": the field is an int, not an array`},

		// $currentDate
		{`{}`, `{"$currentDate":{"a":true,"b.c":{"$type":"date"}}}`, `{"a":{"$date":"2026-01-02T03:04:05.678Z"},"b":{"c":{"$date":"2026-01-02T03:04:05.678Z"}}}`},

		// several at once
		{`{"a":1,"b":[1,2],"c":{"d":1}}`, `{"$inc":{"a":1,"c.d":1},"$push":{"b":3},"$set":{"c.e":5},"$unset":{"z":1}}`, `{"a":2,"b":[1,2,3],"c":{"d":2,"e":5}}`},
		{`{"a":1}`, `{"$inc":{"a":1},"$push":{"a2":3},"$set":{"b.c":5},"$mul":{"a3":5}}`, `{"a":2,"a2":[3],"a3":0,"b":{"c":5}}`},
	} {
		if got := apply(t, c.body, c.update, doc.Limits{}); got != c.want {
			t.Errorf("%s\n  %s\n  got  %s\n  want %s", c.body, c.update, got, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ update, want string }{
		{`5`, `an update is a map of operators`},
		{`{}`, `needs at least one operator`},
		{`{"a":1}`, `to replace the whole document, put it`},
		{`{"$set":{"a":1},"b":2}`, `made of operators`},
		{`{"$foo":{"a":1}}`, `unknown operator "$foo"; there are $addToSet`},
		{`{"$set":1}`, `$set: wants a map from paths to operands, not an int`},
		{`{"$set":{"":1}}`, `a path is empty`},
		{`{"$set":{"a.":1}}`, `begin or end with a dot`},
		{`{"$set":{".a":1}}`, `begin or end with a dot`},
		{`{"$set":{"a..b":1}}`, `begin or end with a dot`},
		{`{"$set":{"_id":"x"}}`, `kept by the database`},
		{`{"$inc":{"_version":1}}`, `kept by the database`},
		{`{"$set":{"_x.y":1}}`, `kept by the database`},
		{`{"$rename":{"a":"_id"}}`, `kept by the database`},
		{`{"$set":{"$a":1}}`, `must not begin with "$"`},
		{`{"$set":{"a.$":1}}`, `positional operators are not supported`},
		{`{"$set":{"a.$[].b":1}}`, `positional operators are not supported`},
		{`{"$set":{"` + strings.Repeat("a.", 128) + `a":1}}`, `more than 128 names`},
		{`{"$inc":{"a":"1"}}`, `$inc "a": wants a number, not a string`},
		{`{"$mul":{"a":null}}`, `$mul "a": wants a number, not null`},
		{`{"$rename":{"a":1}}`, `wants the new path as a string, not an int`},
		{`{"$rename":{"a":"a"}}`, `"a": the update changes this field twice`},
		{`{"$rename":{"a":"a.b"}}`, `"a.b": the update changes this field and "a" around it`},
		{`{"$rename":{"a":"b."}}`, `begin or end with a dot`},
		{`{"$set":{"a":1,"a.b":2}}`, `"a.b": the update changes this field and "a" around it`},
		{`{"$set":{"a":1},"$inc":{"a":2}}`, `"a": the update changes this field twice`},
		{`{"$set":{"a.b.c":1},"$inc":{"a.b":2}}`, `"a.b.c": the update changes this field and "a.b" around it`},
		{`{"$set":{"a":1,"a-b":1,"a.b":1}}`, `"a.b": the update changes this field and "a" around it`},
		{`{"$push":{"l":{"$each":1}}}`, `$each wants an array, not an int`},
		{`{"$push":{"l":{"$slice":1}}}`, `modifiers need $each`},
		{`{"$push":{"l":{"$each":[],"$foo":1}}}`, `unknown modifier "$foo"`},
		{`{"$push":{"l":{"$each":[],"x":1}}}`, `unknown modifier "x"`},
		{`{"$push":{"l":{"$each":[],"$position":1.5}}}`, `$position wants an integer`},
		{`{"$push":{"l":{"$each":[],"$slice":"1"}}}`, `$slice wants an integer`},
		{`{"$push":{"l":{"$each":[],"$sort":2}}}`, `$sort wants 1, -1`},
		{`{"$push":{"l":{"$each":[],"$sort":{"a":1,"b":1}}}}`, `for several fields a list`},
		{`{"$push":{"l":{"$each":[],"$sort":{"a":0}}}}`, `$sort wants 1, -1`},
		{`{"$push":{"l":{"$each":[],"$sort":{"a..b":1}}}}`, `"a..b" is not a path`},
		{`{"$push":{"l":{"$each":[],"$sort":[]}}}`, `$sort wants 1 to 8 fields`},
		{`{"$addToSet":{"l":{"$each":[],"$slice":1}}}`, `the only modifier is $each`},
		{`{"$addToSet":{"l":{"$each":1}}}`, `$each wants an array`},
		{`{"$pull":{"l":{"$foo":1}}}`, `unknown comparison "$foo"; there are $eq`},
		{`{"$pull":{"l":{"$in":1}}}`, `$in wants an array, not an int`},
		{`{"$pull":{"l":{"a":{"$exists":1}}}}`, `$exists wants true or false`},
		{`{"$pull":{"l":{"$exists":true}}}`, `$exists needs a field`},
		{`{"$pull":{"l":{"a..b":1}}}`, `"a..b" is not a path`},
		{`{"$pop":{"l":2}}`, `wants 1 (remove the last element) or -1`},
		{`{"$pop":{"l":"1"}}`, `wants 1 (remove the last element) or -1`},
		{`{"$currentDate":{"a":false}}`, `wants true or`},
		{`{"$currentDate":{"a":{"$type":"timestamp"}}}`, `wants true or`},
	} {
		got := apply(t, `{"a":1}`, c.update, doc.Limits{})
		if !strings.HasPrefix(got, "bad: ") || !strings.Contains(got, c.want) {
			t.Errorf("%s\n  got  %s\n  want %s", c.update, got, c.want)
		}
	}
	for _, b := range [][]byte{nil, {0xc1}, {0x81}, {0x82, 0xa1, 'b', 1, 0xa1, 'a', 1}} {
		if got := applyRaw(t, raw(t, `{}`), b, doc.Limits{}); !strings.Contains(got, "not a canonical document") {
			t.Errorf("% x: %s", b, got)
		}
	}
}
