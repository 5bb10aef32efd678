package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/wire"
)

func status(id string, groups ...wire.GroupStatus) wire.NodeAnswer {
	return wire.NodeAnswer{ID: id, Status: wire.NodeStatus{
		Node: wire.NodeInfo{ID: id}, Version: "0.1.0", Ready: true, Epoch: 1, UptimeSeconds: 3725,
		DiskFreeBytes: 5 << 30, DiskUsedBytes: 123 << 20, MemoryBytes: 96 << 20, Groups: groups,
	}}
}

// threeNodes is a cluster in trouble: n3 is down, the disk of n2 is full, g2
// has no leader, and a deposed n2 still believes it leads g1.
func threeNodes() wire.ClusterStatus {
	nodes := []wire.NodeInfo{
		{ID: "n1", ClientAddr: "127.0.0.1:7400", PeerAddr: "127.0.0.1:7401", HTTPAddr: "127.0.0.1:7402", Region: "eu", Zone: "a"},
		{ID: "n2", ClientAddr: "127.0.0.1:7410", PeerAddr: "127.0.0.1:7411", HTTPAddr: "127.0.0.1:7412", Zone: "b"},
		{ID: "n3", ClientAddr: "127.0.0.1:7420", PeerAddr: "127.0.0.1:7421", HTTPAddr: "127.0.0.1:7422"},
	}
	all := []string{"n1", "n2", "n3"}
	s := wire.ClusterStatus{
		Topology: wire.Topology{
			ClusterID: "5f0c", Epoch: 1, Catalog: 4, Owners: []uint32{1, 2, 1, 2, 1}, Nodes: nodes,
			Groups:      []wire.GroupInfo{{ID: 2, Replicas: all, Leader: "n3", Preferred: "n3"}, {ID: 1, Replicas: all, Leader: "n1", Preferred: "n3"}},
			Leaders:     wire.LeadersTogether,
			Collections: []wire.CollectionInfo{{ID: 1, Name: "users"}, {ID: 2, Name: "old", Dropping: true}},
		},
		Nodes: []wire.NodeAnswer{
			status("n1", wire.GroupStatus{ID: 0, State: "leader", Leader: "n1", Term: 2, Commit: 17, Applied: 17},
				wire.GroupStatus{ID: 1, State: "leader", Leader: "n1", Term: 7, Commit: 1200, Applied: 1199, Documents: 171075, Bytes: 30 << 20},
				wire.GroupStatus{ID: 2, State: "follower", Leader: "n3", Term: 3, Commit: 50, Applied: 50, Documents: 3, Bytes: 100}),
			status("n2", wire.GroupStatus{ID: 0, State: "follower", Leader: "n1", Term: 2, Commit: 17, Applied: 17},
				wire.GroupStatus{ID: 1, State: "leader", Leader: "n2", Term: 6, Commit: 1000, Applied: 1000, Documents: 5},
				wire.GroupStatus{ID: 2, State: "stopped", Term: 3, Commit: 40, Applied: 40, Error: "digest differs from the leader's at index 40"}),
			{ID: "n3", Error: "no answer within 1s: connection refused"},
		},
	}
	s.Nodes[1].Status.DiskFull = true
	return s
}

func TestStatusTable(t *testing.T) {
	var b strings.Builder
	if err := newStatusView(threeNodes()).writeTable(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "status", b.String())
}

func TestStatusJSON(t *testing.T) {
	b, err := json.MarshalIndent(newStatusView(threeNodes()), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "status-json", string(b)+"\n")
}

// A group that is not led by who should lead it is named.
func TestLeadersAway(t *testing.T) {
	v := newStatusView(threeNodes())
	if got := strings.Join(v.away(), ", "); got != "g1 is led by n1 and not by n3, g2 has no leader" {
		t.Errorf("away: %q", got)
	}
	v.Groups[1].Leader, v.Groups[2].Leader = "n3", "n3"
	if got := v.away(); len(got) != 0 {
		t.Errorf("nothing is away, but %q", got)
	}
}

// TestStatusOfAnything: any part of the answer may be missing.
func TestStatusOfAnything(t *testing.T) {
	whole := threeNodes()
	for name, s := range map[string]wire.ClusterStatus{
		"nothing":     {},
		"no answers":  {Topology: whole.Topology},
		"no topology": {Nodes: whole.Nodes},
		"strangers":   {Topology: whole.Topology, Nodes: []wire.NodeAnswer{status("n9", wire.GroupStatus{ID: 99})}},
	} {
		v := newStatusView(s)
		var b strings.Builder
		if err := v.writeTable(&b); err != nil || b.Len() == 0 {
			t.Errorf("%s: %v, %q", name, err, b.String())
		}
		if v.Nodes == nil || v.Groups == nil || v.Problems == nil {
			t.Errorf("%s: null in JSON where a list belongs", name)
		}
	}
	if v := newStatusView(wire.ClusterStatus{Topology: whole.Topology}); len(v.Problems) != 6 {
		t.Errorf("no node answers: problems %q; want 3 nodes and 3 groups", v.Problems)
	}
}

func TestProgressText(t *testing.T) {
	for _, tc := range []struct {
		bytes, total, docs int64
		elapsed            time.Duration
		columns            int
		want               string
	}{
		{53, 100, 91210, 3340 * time.Millisecond, 100, "cities  ███████████████████░░░░░░░░░░░░░░░░░   53%   91,210 documents   27,308/s   3s left"},
		{0, 100, 0, 0, 100, "cities  ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░    0%   0 documents   0/s"},
		{100, 100, 171075, 5 * time.Second, 100, "cities  ████████████████████████████████████  100%   171,075 documents   34,215/s"},
		{50, 100, 10, time.Second, 60, "cities    50%   10 documents   10/s   1s left"},
		{50, 100, 10, time.Second, 0, "cities    50%   10 documents   10/s   1s left"},
		{50, 0, 10, time.Second, 100, "cities   10 documents   10/s"},
		{999, 100, 10, time.Second, 80, "cities  ████████████████  100%   10 documents   10/s"},
	} {
		if got := progressText("cities", tc.bytes, tc.total, tc.docs, tc.elapsed, tc.columns); got != tc.want {
			t.Errorf("\n got  %s\n want %s", got, tc.want)
		}
	}
}

func TestNumbersForEyes(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 7: "7", 999: "999", 1000: "1,000", 171075: "171,075", 1234567: "1,234,567", -1234: "-1,234"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) = %s, want %s", n, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 1<<20 - 1: "1.0 MiB", 5 << 30: "5.0 GiB", 1<<64 - 1: "16384.0 PiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %s, want %s", n, got, want)
		}
	}
	for n, want := range map[uint64]string{5: "5s", 65: "1m5s", 3725: "1h2m", 90000: "1d1h"} {
		if got := upText(n); got != want {
			t.Errorf("upText(%d) = %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		time.Second: "1s", 10 * time.Second: "10s", time.Minute: "1m", 10 * time.Minute: "10m", 90 * time.Second: "1m30s",
		time.Hour: "1h", 720 * time.Hour: "720h", 90 * time.Minute: "1h30m", time.Hour + 10*time.Second: "1h0m10s",
	} {
		if got := shortDuration(d); got != want {
			t.Errorf("shortDuration(%v) = %s, want %s", d, got, want)
		}
	}
}
