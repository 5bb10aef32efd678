package client

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		target string
		addrs  []string
		check  func(config) bool
		bad    string // part of the error
	}{
		{target: "idb://a:1,b:2", addrs: []string{"a:1", "b:2"}},
		{target: "idb://a,b:2/", addrs: []string{"a:7400", "b:2"}},
		{target: "a:1, b:2", addrs: []string{"a:1", "b:2"}},
		{target: "[::1]:9", addrs: []string{"[::1]:9"}},
		{target: "[::1]", addrs: []string{"[::1]:7400"}},
		{target: "idb://a/?timeout=250ms&connect_timeout=1s&connections=3&cluster=x&name=me&silence=2s", addrs: []string{"a:7400"}, check: func(c config) bool {
			return c.timeout == 250*time.Millisecond && c.connectTimeout == time.Second && c.route.ConnsPerNode == 3 &&
				c.route.ClusterID == "x" && c.route.Name == "me" && c.route.Silence == 2*time.Second
		}},
		{target: "idb://a?timeout=0s", addrs: []string{"a:7400"}, check: func(c config) bool { return c.timeout == 0 }},
		{target: "", bad: "no host"},
		{target: "idb://", bad: "no host"},
		{target: "http://a", bad: `scheme "http"`},
		{target: "idb://a/users", bad: `path "users"`},
		{target: "idb://me:pw@a", bad: "user"},
		{target: "idb://a:0", bad: "port"},
		{target: "idb://a:x", bad: "port"},
		{target: "idb://a:70000", bad: "port"},
		{target: "::1", bad: "::1"},
		{target: "idb://a/?timout=1s", bad: `"timout" is not known`},
		{target: "idb://a/?timeout=1", bad: "timeout"},
		{target: "idb://a/?connections=many", bad: "connections"},
		{target: "idb://a/?%zz", bad: "%zz"},
	} {
		cfg, err := parse(tc.target)
		if tc.bad != "" {
			if err == nil || !strings.Contains(err.Error(), tc.bad) || !strings.Contains(err.Error(), "want idb://") {
				t.Errorf("%q: %v", tc.target, err)
			}
			continue
		}
		if err != nil || !slices.Equal(cfg.route.Addrs, tc.addrs) || tc.check != nil && !tc.check(cfg) {
			t.Errorf("%q: %v, %+v", tc.target, err, cfg)
		}
	}
}

// Operators say what package fsm/update is to read.
func TestUpdateBuilder(t *testing.T) {
	two := 2
	for _, tc := range []struct {
		update Update
		want   string
	}{
		{Set("a", 1).Set("b.c", "x").Unset("d"), `{"$set":{"a":1,"b.c":"x"},"$unset":{"d":true}}`},
		{Inc("n", 1).Mul("m", 1.5).Min("l", 0).Max("h", 9), `{"$inc":{"n":1},"$max":{"h":9},"$min":{"l":0},"$mul":{"m":1.5}}`},
		{Rename("a", "b").CurrentDate("t"), `{"$currentDate":{"t":true},"$rename":{"a":"b"}}`},
		{Push("a", 1), `{"$push":{"a":1}}`},
		{Push("a", 1, 2), `{"$push":{"a":{"$each":[1,2]}}}`},
		{Push("a"), `{"$push":{"a":{"$each":[]}}}`},
		{PushWith("a", PushOptions{Each: []any{3}, Position: new(int), Slice: &two, Sort: -1}), `{"$push":{"a":{"$each":[3],"$position":0,"$slice":2,"$sort":-1}}}`},
		{Pull("a", 1).AddToSet("b", "x", "y"), `{"$addToSet":{"b":{"$each":["x","y"]}},"$pull":{"a":1}}`},
		{AddToSet("b", "x").PopFirst("c"), `{"$addToSet":{"b":"x"},"$pop":{"c":-1}}`},
		{PopLast("c"), `{"$pop":{"c":1}}`},
	} {
		raw, e := operators(tc.update, "update", "c", "id")
		if e != nil {
			t.Errorf("%s: %v", tc.want, e)
			continue
		}
		if got := string(raw.JSON()); got != tc.want {
			t.Errorf("%s, want %s", got, tc.want)
		}
	}
}
