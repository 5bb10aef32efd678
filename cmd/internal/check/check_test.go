package check

import (
	"fmt"
	"slices"
	"testing"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
)

func TestChunks(t *testing.T) {
	var many []uint32
	for p := range uint32(4000) {
		many = append(many, p*2)
	}
	for _, tc := range []struct {
		mine        []uint32
		partitions  uint32
		bytes, most uint64
		want        string
	}{
		{nil, 7, 0, 64, "[{0 7 0}]"},
		{[]uint32{1, 3, 5}, 7, 10, 64, "[{0 7 10}]"},
		{[]uint32{1, 3, 5}, 7, 200, 64, "[{0 3 66} {3 5 66} {5 7 66}]"},
		{[]uint32{1, 3, 5}, 7, 2000, 64, "[{0 3 666} {3 5 666} {5 7 666}]"}, // a partition is the least
		{many, 8001, 0, 64, "[{0 2000 0} {2000 4000 0} {4000 6000 0} {6000 8001 0}]"},
	} {
		if got := fmt.Sprint(chunks(tc.mine, tc.partitions, tc.bytes, tc.most)); got != tc.want {
			t.Errorf("%d partitions, %d bytes: %s, want %s", len(tc.mine), tc.bytes, got, tc.want)
		}
	}
}

func TestVerdict(t *testing.T) {
	ok := client.CheckReply{Replicas: []wire.CheckReplica{{Node: "n1"}, {Node: "n2"}}}
	away := client.CheckReply{Replicas: []wire.CheckReplica{{Node: "n1"}, {Node: "n2", Error: "away"}}}
	warned := client.CheckReply{Found: 1, Findings: []wire.CheckFinding{{Kind: "horizon", Warning: true, Partition: wire.NoPartition}}}
	wrong := client.CheckReply{Found: 1, Findings: []wire.CheckFinding{{Kind: "difference", Partition: 3, Collection: "users", ID: "ada", Nodes: []string{"n2"}, Text: "differs"}}}
	unlisted := client.CheckReply{Found: 1}
	for _, tc := range []struct {
		replies []client.CheckReply
		want    string
	}{
		{[]client.CheckReply{ok, ok}, Equal},
		{[]client.CheckReply{ok, away}, Incomplete},
		{[]client.CheckReply{away, ok}, Incomplete},
		{[]client.CheckReply{ok, warned, warned}, Equal},
		{[]client.CheckReply{away, wrong}, Wrong},
		{[]client.CheckReply{unlisted, ok}, Wrong},
	} {
		g := Group{ID: 2}
		for i := range tc.replies {
			g.add(&tc.replies[i])
		}
		r := Report{Groups: []Group{{ID: 1}, g}}
		if got := r.Verdict(); got != tc.want || (r.Err() == nil) != (tc.want == Equal) {
			t.Errorf("%+v: %s (%v), want %s", tc.replies, got, r.Err(), tc.want)
		}
	}
	g := Group{ID: 2}
	g.add(&wrong)
	if got := g.Findings[0].String(); got != "g2 partition 3 users/ada on n2: differs" {
		t.Error(got)
	}
}

func TestOwners(t *testing.T) {
	var r Report
	r.checkOwners(4, map[uint32][]uint32{0: {1}, 2: {3, 1}, 3: {2}})
	got := []string{}
	for _, f := range r.Findings {
		got = append(got, f.String())
	}
	if want := []string{"partition 1: no group owns the partition", "partition 2: the groups [1 3] own the partition"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
