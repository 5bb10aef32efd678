package router

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
)

func (c *testCluster) check(node placement.NodeID, req wire.CheckRequest) (*wire.CheckReply, error) {
	c.t.Helper()
	reply := new(wire.CheckReply)
	return reply, c.serve(node, wire.KindCheck, &req, reply)
}

// everything asks for all of group 1.
var everything = wire.CheckRequest{Group: 1, State: true, To: 1000}

func findingsText(reply *wire.CheckReply) string {
	var b strings.Builder
	for _, r := range reply.Replicas {
		if r.Error != "" && r.Error != "it has stopped" {
			fmt.Fprintf(&b, "%s was not compared: %s\n", r.Node, r.Error)
		}
	}
	for _, f := range reply.Findings {
		fmt.Fprintf(&b, "%s p%d %s/%s on %s: %s\n", f.Kind, int32(f.Partition), f.Collection, f.ID, strings.Join(f.Nodes, ","), f.Text)
	}
	return b.String()
}

// filled has documents in group 1, and says where "here" is.
func filled(t *testing.T) (c *testCluster, partition uint32) {
	c = newTestCluster(t, 3, 2)
	for i := range 40 {
		if r := c.put("n1", "users", fmt.Sprintf("u%d", i), map[string]any{"n": i}); r.Error != nil {
			t.Fatal(r.Error)
		}
	}
	v := c.places.View()
	for p := range v.Partitions() {
		if v.Owner(placement.PartitionID(p)) == 1 && wire.Partition("users", "", "u7", v.Partitions()) == p {
			return c, p
		}
	}
	t.Fatal("u7 is in another group: choose another document")
	return nil, 0
}

func TestCheckFindsNothing(t *testing.T) {
	c, _ := filled(t)
	for _, node := range c.ids { // the leader, and others
		reply, err := c.check(node, everything)
		if err != nil {
			t.Fatal(err)
		}
		if text := findingsText(reply); text != "" || reply.Found != 0 || len(reply.Replicas) != 3 {
			t.Errorf("%s: %d replicas, %d findings:\n%s", node, len(reply.Replicas), reply.Found, text)
		}
		want := len(c.places.View().PartitionsOf(1))
		if reply.Documents == 0 || reply.Documents != reply.Requests || reply.Bytes == 0 || len(reply.Owned) != want || reply.Index == 0 {
			t.Errorf("%+v", reply)
		}
	}
	if _, err := c.check("n1", wire.CheckRequest{Group: 9}); codeOf(err) != wire.CodeBadRequest {
		t.Error(err)
	}
}

// TestCheckFinds plants one thing after the other in what replicas answer.
func TestCheckFinds(t *testing.T) {
	c, u7 := filled(t)
	core := c.groups[1]
	row := func(f *fsm.Findings) int { // u7's version, in a listing
		return slices.IndexFunc(f.Rows, func(r fsm.RowSum) bool { return fsm.DescribeKey(r.Key).ID == "u7" })
	}
	partition := func(f *fsm.Findings) *fsm.PartitionSum {
		i := slices.IndexFunc(f.Partitions, func(p fsm.PartitionSum) bool { return uint32(p.Partition) == u7 })
		if i < 0 {
			return &fsm.PartitionSum{}
		}
		return &f.Partitions[i]
	}
	var bucket atomic.Int64 // of u7, from 1 on
	core.look = func(_ placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
		if row(f) >= 0 {
			bucket.Store(int64(k.Bucket))
		}
		return f, nil
	}
	for b := range fsm.Buckets {
		if bucket.Load() > 0 {
			break
		}
		var s checking
		s.r, s.view = c.nodes["n1"].router, c.places.View()
		s.group, _ = s.view.Group(1)
		if _, e := s.survey(t.Context(), fsm.Mark{From: placement.PartitionID(u7), To: placement.PartitionID(u7 + 1), Bucket: uint32(b) + 1}); e != nil {
			t.Fatal(e)
		}
	}
	differ := func(f *fsm.Findings) {
		partition(f).Sum++
		partition(f).Buckets[bucket.Load()-1]++
	}
	misses := 0
	c.timeout = 2 * time.Second
	for _, tc := range []struct {
		name string
		look func(node placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error)
		want string
	}{
		{"another row", func(node placement.NodeID, _ fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			if node == "n2" {
				differ(f)
				if i := row(f); i >= 0 {
					f.Rows[i].Sum++
				}
			}
			return f, nil
		}, "difference pP users/u7 on n2: the version of TIME: is another on n2 than on n1 and n3"},
		{"a row too few", func(node placement.NodeID, _ fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			if node == "n3" {
				differ(f)
				if i := row(f); i >= 0 {
					f.Rows = slices.Delete(f.Rows, i, i+1)
				}
			}
			return f, nil
		}, "difference pP users/u7 on n3: the version of TIME: is missing on n3"},
		{"a row too many", func(node placement.NodeID, _ fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			if i := row(f); i >= 0 && node != "n3" {
				f.Rows = slices.Delete(f.Rows, i, i+1)
			} else if node == "n3" {
				differ(f)
			}
			return f, nil
		}, "difference pP users/u7 on n3: the version of TIME: is on n3 and not on n1 and n2"},
		{"a row that went", func(node placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			if node == "n3" && k.Bucket == 0 {
				differ(f)
			}
			return f, nil
		}, "difference pP / on n3: the rows in partition P differed from those of n1 and n2, and do not any more at index "},
		{"three opinions", func(node placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			for range node[1] - '0' {
				differ(f)
				if i := row(f); i >= 0 {
					f.Rows[i].Sum++
				}
			}
			return f, nil
		}, "difference pP users/u7 on n2,n3: the version of TIME: is another on n2 and n3 than on n1"},
		{"own state", func(node placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			if node == "n1" && k.State {
				for b := range f.Partitions[0].Buckets {
					if f.Partitions[0].Partition == fsm.StatePartition && f.Partitions[0].Buckets[b] != 0 {
						f.Partitions[0].Sum++
						f.Partitions[0].Buckets[b]++
						break
					}
				}
				if len(f.Rows) > 0 { // their number follows from the time of request IDs
					f.Rows[0].Sum++
				}
			}
			return f, nil
		}, "difference p-1 / on n1: "},
		{"a fault of all", func(_ placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			f.Faults, f.FaultsFound = []fsm.Fault{{Partition: 3, Collection: 1, ID: "x", Text: "why"}}, 5
			return f, nil
		}, "fault p3 users/x on n1,n2,n3: why"},
		{"a stopped replica", func(node placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			if node == "n2" {
				return nil, &shardgroup.HaltError{Group: 1, Err: errors.New("it has diverged")}
			}
			return f, nil
		}, "stopped p-1 / on n2: the replica has stopped: "},
		{"a replica that missed one mark", func(node placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			if node == "n2" && misses == 0 {
				misses++
				return nil, shardgroup.ErrNoSurvey
			}
			return f, nil
		}, ""},
		{"a replica that misses every mark", func(node placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			if node == "n2" {
				return nil, shardgroup.ErrNoSurvey
			}
			return f, nil
		}, "n2 was not compared: it had no findings of 4 marks in a row"},
		{"a replica behind", func(node placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			if node == "n2" {
				return nil, shardgroup.ErrTimeout
			}
			return f, nil
		}, "n2 was not compared: it did not reach the mark in time"},
		{"a collection of nobody", func(_ placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			f.Collections = append(f.Collections, fsm.CollectionStats{Collection: 77, Rows: 1})
			return f, nil
		}, "orphan p-1 #77/ on n1,n2,n3: rows of a collection that is not in the catalog"},
		{"a partition too few", func(_ placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			f.Owned = slices.DeleteFunc(f.Owned, func(p placement.PartitionID) bool { return uint32(p) == u7 })
			return f, nil
		}, "placement pP / on : the map gives the partition to g1, which does not own it"},
		{"a horizon ahead", func(_ placement.NodeID, k fsm.Mark, f *fsm.Findings) (*fsm.Findings, error) {
			f.RequestsAt = c.clock.Now().Add(3600e9)
			return f, nil
		}, "horizon p-1 / on : the horizon of request IDs is 1h0m0s ahead"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c.t = t
			core.look = tc.look
			reply, err := c.check("n2", everything)
			if err != nil {
				t.Fatal(err)
			}
			want := strings.ReplaceAll(tc.want, "P", fmt.Sprint(u7))
			got := findingsText(reply)
			before, after, timed := strings.Cut(want, "TIME")
			if !strings.HasPrefix(got, before) || timed && !strings.Contains(got, after+"\n") || (want == "") != (got == "") {
				t.Errorf("found %d:\n%s\nwant %s", reply.Found, got, want)
			}
			if n := strings.Count(got, "\n"); n > 1 {
				t.Errorf("%d findings instead of one:\n%s", n, got)
			}
		})
	}
}

// A node that is down keeps the others from being compared no longer than a
// while, and is told.
func TestCheckWithoutNode(t *testing.T) {
	c, _ := filled(t)
	c.down["n3"] = true
	reply, err := c.check("n1", everything)
	if err != nil {
		t.Fatal(err)
	}
	if text := findingsText(reply); !strings.HasPrefix(text, "n3 was not compared: it cannot be reached: ") || reply.Found != 0 {
		t.Error(text)
	}
	c.timeout = 500 * time.Millisecond
	c.groups[1].setLeader("")
	if _, err := c.check("n1", everything); !passing(codeOf(err)) {
		t.Error(err)
	}
}

func FuzzPeerMark(f *testing.F) {
	f.Add(encodeMark(3, fsm.Mark{ID: [16]byte{1, 2}, State: true, From: 1, To: 300, Bucket: 256, RateKiB: 9}))
	f.Add(encodeFindingsRequest(3, [16]byte{1, 2}, 1<<40))
	f.Fuzz(func(t *testing.T, b []byte) {
		if g, k, e := decodeMark(b); e == nil {
			if g2, k2, e := decodeMark(encodeMark(g, k)); e != nil || g2 != g || k2 != k {
				t.Errorf("%+v came back as %+v", k, k2)
			}
		}
		if g, id, at, e := decodeFindingsRequest(b); e == nil {
			if g2, id2, at2, e := decodeFindingsRequest(encodeFindingsRequest(g, id, at)); e != nil || g2 != g || id2 != id || at2 != at {
				t.Errorf("%x came back as another", b)
			}
		}
	})
}
