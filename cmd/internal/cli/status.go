package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// statusView is what `idb cluster status` shows: the nodes' answers put
// together group by group. It is also its JSON.
type statusView struct {
	ClusterID   string         `json:"cluster"`
	Epoch       uint64         `json:"epoch"`
	Catalog     uint64         `json:"catalog"`
	Leaders     wire.Leaders   `json:"leaders"` // where they should be
	Partitions  int            `json:"partitions"`
	Collections int            `json:"collections"`
	Documents   uint64         `json:"documents"`
	Nodes       []nodeView     `json:"nodes"`
	Groups      []groupView    `json:"groups"`
	Problems    []string       `json:"problems"` // empty: all is well
	Settings    *wire.Settings `json:"settings,omitempty"`
}

type nodeView struct {
	ID         string `json:"id"`
	State      string `json:"state"` // ready, starting, disk full, down
	Reason     string `json:"reason,omitempty"`
	ClientAddr string `json:"clientAddr"`
	PeerAddr   string `json:"peerAddr"`
	HTTPAddr   string `json:"httpAddr"`
	Region     string `json:"region,omitempty"`
	Zone       string `json:"zone,omitempty"`
	Version    string `json:"version,omitempty"`
	Epoch      uint64 `json:"epoch"`
	Leads      int    `json:"leads"`
	Replicas   int    `json:"replicas"`
	DiskUsed   uint64 `json:"diskUsedBytes"`
	DiskFree   uint64 `json:"diskFreeBytes"`
	Memory     uint64 `json:"memoryBytes"`
	Uptime     uint64 `json:"uptimeSeconds"`
}

type groupView struct {
	ID         uint32        `json:"id"`
	Name       string        `json:"name"`
	Leader     string        `json:"leader"`              // empty: none
	Preferred  string        `json:"preferred,omitempty"` // who should lead
	Term       uint64        `json:"term"`
	Commit     uint64        `json:"commit"`
	Applied    uint64        `json:"applied"` // by the leader
	Partitions uint32        `json:"partitions"`
	Documents  uint64        `json:"documents"`
	Bytes      uint64        `json:"bytes"`
	Replicas   []replicaView `json:"replicas"`
}

type replicaView struct {
	Node    string `json:"node"`
	State   string `json:"state"` // leader, follower, candidate, stopped, unknown
	Applied uint64 `json:"applied"`
	// Lag is how many log entries the replica is behind the group's commit
	// index. Nodes do not answer at one instant, so under load a few are normal.
	Lag   uint64 `json:"lag"`
	Error string `json:"error,omitempty"`
}

// newStatusView puts the answers together. It takes nothing for granted: any
// node may be missing, any two may disagree.
func newStatusView(s wire.ClusterStatus) statusView {
	v := statusView{
		ClusterID: s.Topology.ClusterID, Epoch: s.Topology.Epoch, Catalog: s.Topology.Catalog,
		Leaders: s.Topology.Leaders, Partitions: len(s.Topology.Owners), Problems: []string{},
		Nodes: []nodeView{}, Groups: []groupView{}, Settings: &s.Topology.Settings,
	}
	for _, c := range s.Topology.Collections {
		if !c.Dropping {
			v.Collections++
		}
	}
	answers := map[string]wire.NodeAnswer{}
	for _, a := range s.Nodes {
		answers[a.ID] = a
	}
	owned := map[uint32]uint32{}
	for _, g := range s.Topology.Owners {
		owned[g]++
	}

	groups := slices.Clone(s.Topology.Groups)
	if !slices.ContainsFunc(groups, func(g wire.GroupInfo) bool { return g.ID == 0 }) {
		// The placement group is not in the map it keeps; its members say so.
		p := wire.GroupInfo{}
		for _, a := range s.Nodes {
			if _, ok := statusOf(a, 0); ok {
				p.Replicas = append(p.Replicas, a.ID)
			}
		}
		groups = append(groups, p)
	}
	slices.SortFunc(groups, func(a, b wire.GroupInfo) int { return int(a.ID) - int(b.ID) })
	leads, replicas := map[string]int{}, map[string]int{}
	for _, g := range groups {
		gv := newGroupView(g, answers)
		gv.Partitions = owned[g.ID]
		v.Documents += gv.Documents
		if gv.Leader == "" {
			v.Problems = append(v.Problems, fmt.Sprintf("group %s has no leader: its documents cannot be read or written", gv.Name))
		} else {
			leads[gv.Leader]++
		}
		for _, r := range gv.Replicas {
			replicas[r.Node]++
			if r.Error != "" {
				v.Problems = append(v.Problems, fmt.Sprintf("group %s on %s: %s", gv.Name, r.Node, r.Error))
			}
		}
		v.Groups = append(v.Groups, gv)
	}

	for _, n := range s.Topology.Nodes {
		a, asked := answers[n.ID]
		nv := nodeView{
			ID: n.ID, ClientAddr: n.ClientAddr, PeerAddr: n.PeerAddr, HTTPAddr: n.HTTPAddr,
			Region: n.Region, Zone: n.Zone, Leads: leads[n.ID], Replicas: replicas[n.ID],
		}
		switch {
		case !asked || a.Error != "":
			nv.State, nv.Reason = "down", a.Error
			v.Problems = append(v.Problems, strings.TrimSuffix(fmt.Sprintf("node %s (%s) does not answer: %s", n.ID, n.ClientAddr, a.Error), ": "))
		default:
			st := a.Status
			nv.State, nv.Reason, nv.Version, nv.Epoch = "ready", st.Reason, st.Version, st.Epoch
			nv.DiskUsed, nv.DiskFree, nv.Memory, nv.Uptime = st.DiskUsedBytes, st.DiskFreeBytes, st.MemoryBytes, st.UptimeSeconds
			if !st.Ready {
				nv.State = "starting"
				v.Problems = append(v.Problems, fmt.Sprintf("node %s is not ready: %s", n.ID, st.Reason))
			}
			if st.DiskFull {
				nv.State = "disk full"
				v.Problems = append(v.Problems, fmt.Sprintf("node %s refuses writes: %s left on its disk", n.ID, bytesText(st.DiskFreeBytes)))
			}
		}
		v.Nodes = append(v.Nodes, nv)
	}
	return v
}

// newGroupView takes leader and term from the newest term that a leader
// answers for, or else from what most recent followers believe.
func newGroupView(g wire.GroupInfo, answers map[string]wire.NodeAnswer) groupView {
	v := groupView{ID: g.ID, Name: placement.GroupID(g.ID).String(), Preferred: g.Preferred, Replicas: []replicaView{}}
	led := false
	var commit uint64
	for _, id := range g.Replicas {
		st, ok := statusOf(answers[id], g.ID)
		if !ok {
			continue
		}
		commit = max(commit, st.Commit)
		isLeader := st.State == "leader"
		switch {
		case isLeader && (!led || st.Term > v.Term):
			led = true
			v.Leader, v.Term, v.Commit, v.Applied = id, st.Term, st.Commit, st.Applied
			v.Documents, v.Bytes = st.Documents, st.Bytes
		case !led && st.Applied >= v.Applied:
			v.Term, v.Commit, v.Applied = max(v.Term, st.Term), st.Commit, st.Applied
			v.Documents, v.Bytes = st.Documents, st.Bytes
		}
	}
	for _, id := range g.Replicas {
		r := replicaView{Node: id, State: "unknown"}
		if st, ok := statusOf(answers[id], g.ID); ok {
			r.State, r.Applied, r.Error = st.State, st.Applied, st.Error
			r.Lag = commit - min(commit, st.Applied)
		}
		v.Replicas = append(v.Replicas, r)
	}
	return v
}

// away says of every shard group that is not led by who should lead it, who
// leads it.
func (v statusView) away() (out []string) {
	for _, g := range v.Groups {
		switch {
		case g.Preferred == "" || g.Leader == g.Preferred:
		case g.Leader == "":
			out = append(out, fmt.Sprintf("%s has no leader", g.Name))
		default:
			out = append(out, fmt.Sprintf("%s is led by %s and not by %s", g.Name, g.Leader, g.Preferred))
		}
	}
	return out
}

// statusOf is a node's replica of a group, if the node answered and has one.
func statusOf(a wire.NodeAnswer, group uint32) (wire.GroupStatus, bool) {
	if a.Error == "" {
		for _, g := range a.Status.Groups {
			if g.ID == group {
				return g, true
			}
		}
	}
	return wire.GroupStatus{}, false
}

// writeTable prints the view for eyes.
func (v statusView) writeTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %s, map epoch %d: %s, %s, leaders %s, %s, %s, %s\n\n",
		v.ClusterID, v.Epoch, plural(len(v.Nodes), "node"), plural(max(0, len(v.Groups)-1), "shard group"), v.Leaders,
		plural(v.Partitions, "partition"), plural(v.Collections, "collection"), plural(int(v.Documents), "document"))

	t := table{head: []string{"NODE", "STATE", "CLIENT ADDRESS", "REGION/ZONE", "LEADS", "REPLICAS", "DISK USED", "DISK FREE", "MEMORY", "UP"}, right: map[int]bool{4: true, 5: true, 6: true, 7: true, 8: true, 9: true}}
	for _, n := range v.Nodes {
		row := []string{n.ID, n.State, n.ClientAddr, placeText(n.Region, n.Zone), fmt.Sprint(n.Leads), fmt.Sprint(n.Replicas), "-", "-", "-", "-"}
		if n.State != "down" {
			row = append(row[:6], bytesText(n.DiskUsed), bytesText(n.DiskFree), bytesText(n.Memory), upText(n.Uptime))
		}
		t.rows = append(t.rows, row)
	}
	t.write(&b)
	b.WriteByte('\n')

	t = table{head: []string{"GROUP", "LEADER", "TERM", "APPLIED", "PARTITIONS", "DOCUMENTS", "SIZE", "REPLICAS (LAG)"}, right: map[int]bool{2: true, 3: true, 4: true, 5: true, 6: true}}
	for _, g := range v.Groups {
		leader := g.Leader
		if leader == "" {
			leader = "none"
		}
		row := []string{g.Name, leader, fmt.Sprint(g.Term), fmt.Sprint(g.Applied), fmt.Sprint(g.Partitions), thousands(int64(g.Documents)), bytesText(g.Bytes), replicasText(g.Replicas)}
		if g.ID == 0 {
			row[4], row[5], row[6] = "-", "-", "-"
		}
		t.rows = append(t.rows, row)
	}
	t.write(&b)
	if len(v.Problems) > 0 {
		b.WriteString("\nProblems:\n")
		for _, p := range v.Problems {
			fmt.Fprintf(&b, "  %s\n", p)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// replicasText is "n1 n2(3) n3(?)": nothing behind n1, 3 entries behind n2,
// not known for n3.
func replicasText(rs []replicaView) string {
	var out []string
	for _, r := range rs {
		switch {
		case r.State == "unknown":
			out = append(out, r.Node+"(?)")
		case r.State == "stopped":
			out = append(out, r.Node+"(stopped)")
		case r.Lag > 0:
			out = append(out, fmt.Sprintf("%s(%d)", r.Node, r.Lag))
		default:
			out = append(out, r.Node)
		}
	}
	return strings.Join(out, " ")
}

func placeText(region, zone string) string {
	if region == "" && zone == "" {
		return "-"
	}
	return strings.Trim(region+"/"+zone, "/")
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return thousands(int64(n)) + " " + what + "s"
}

// upText is a duration in its two largest units: "3d4h", "12m5s".
func upText(seconds uint64) string {
	d := time.Duration(seconds) * time.Second
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", seconds)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", seconds/60, seconds%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", seconds/3600, seconds%3600/60)
	}
	return fmt.Sprintf("%dd%dh", seconds/86400, seconds%86400/3600)
}

// table aligns columns, two spaces apart; the columns in right end at the
// right. The last column is not padded.
type table struct {
	head  []string
	rows  [][]string
	right map[int]bool
}

func (t table) write(b *strings.Builder) {
	width := make([]int, len(t.head))
	all := append([][]string{t.head}, t.rows...)
	for _, row := range all {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range all {
		var line strings.Builder
		for i, cell := range row {
			if i > 0 {
				line.WriteString("  ")
			}
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if t.right[i] {
				line.WriteString(pad + cell)
			} else {
				line.WriteString(cell + pad)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
}
