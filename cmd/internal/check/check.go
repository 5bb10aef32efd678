package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
)

// Options of Run. The zero value works.
type Options struct {
	// Groups to check. Nil: all, and that every partition has one owner, and that
	// the entries of unique values are what documents hold.
	Groups []uint32
	// RateKiB is how much each replica may read a second, half a KiB more counted
	// for every row. Too much is felt by
	// clients; too little keeps old tables on the nodes' disks for long. Zero:
	// the servers' choice.
	RateKiB uint32
	// Parallel is how many groups are compared at once. A node reads for one at
	// a time, whatever this is. Zero means 2.
	Parallel int
	// ChunkBytes is about how much of one group is compared at once. Zero means
	// 64 MiB.
	ChunkBytes uint64
	// Patience is how long one comparison may take besides reading. Zero means
	// a minute.
	Patience time.Duration
	// Progress is told of documents and bytes that were compared. May be nil.
	Progress func(documents, bytes uint64)
}

const defaultRateKiB = 32 << 10

func (o Options) withDefaults() Options {
	if o.Parallel == 0 {
		o.Parallel = 2
	}
	if o.ChunkBytes == 0 {
		o.ChunkBytes = 64 << 20
	}
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	if o.Progress == nil {
		o.Progress = func(uint64, uint64) {}
	}
	return o
}

// Report is what a check found.
type Report struct {
	Cluster  string    `json:"cluster"`
	Epoch    uint64    `json:"epoch"`
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"`
	Groups   []Group   `json:"groups"`
	Unique   []Unique  `json:"unique,omitempty"`
	Findings []Finding `json:"findings"` // that belong to no group
}

// Group is one group's part.
type Group struct {
	ID         uint32    `json:"id"`
	Index      uint64    `json:"index"` // of the last comparison
	Partitions int       `json:"partitions"`
	Documents  uint64    `json:"documents"`
	Versions   uint64    `json:"versions"`
	Bytes      uint64    `json:"bytes"`
	Answers    uint64    `json:"answers"` // to request IDs, remembered
	Replicas   []Replica `json:"replicas"`
	Found      uint64    `json:"found"` // findings, those not listed included
	Findings   []Finding `json:"findings"`
	Error      string    `json:"error,omitempty"` // why it was not compared
}

// Replica is one replica's.
type Replica struct {
	Node  string `json:"node"`
	Error string `json:"error,omitempty"` // why it was not compared
}

// Finding is something that is not as it should be.
type Finding struct {
	Kind       string   `json:"kind"`
	Warning    bool     `json:"warning,omitempty"`
	Group      uint32   `json:"group,omitempty"`
	Partition  *uint32  `json:"partition,omitempty"`
	Collection string   `json:"collection,omitempty"`
	ID         string   `json:"id,omitempty"`
	Nodes      []string `json:"nodes,omitempty"`
	Text       string   `json:"text"`
}

// String is where and what.
func (f Finding) String() string {
	var b strings.Builder
	if f.Group != 0 {
		fmt.Fprintf(&b, "g%d", f.Group)
	}
	if f.Partition != nil {
		fmt.Fprintf(&b, " partition %d", *f.Partition)
	}
	switch {
	case f.ID != "":
		fmt.Fprintf(&b, " %s/%s", f.Collection, f.ID)
	case f.Collection != "":
		fmt.Fprintf(&b, " %s", f.Collection)
	}
	if len(f.Nodes) > 0 {
		fmt.Fprintf(&b, " on %s", strings.Join(f.Nodes, ", "))
	}
	return strings.TrimSpace(b.String()) + ": " + f.Text
}

// Verdicts.
const (
	Equal      = "equal"      // all replicas were compared and all is as it should be
	Wrong      = "wrong"      // something is not
	Incomplete = "incomplete" // nothing was found, but not everything was compared
)

// Verdict of one group.
func (g *Group) Verdict() string {
	if g.Found > g.warnings() {
		return Wrong
	}
	if g.Error != "" || slices.ContainsFunc(g.Replicas, func(r Replica) bool { return r.Error != "" }) {
		return Incomplete
	}
	return Equal
}

func (g *Group) warnings() (n uint64) {
	for _, f := range g.Findings {
		if f.Warning {
			n++
		}
	}
	return n
}

// Verdict of the whole.
func (r *Report) Verdict() string {
	verdict := Equal
	for i := range r.Groups {
		switch r.Groups[i].Verdict() {
		case Wrong:
			return Wrong
		case Incomplete:
			verdict = Incomplete
		}
	}
	for i := range r.Unique {
		switch u := &r.Unique[i]; {
		case u.Found > 0:
			return Wrong
		case u.Error != "":
			verdict = Incomplete
		}
	}
	if slices.ContainsFunc(r.Findings, func(f Finding) bool { return !f.Warning }) {
		return Wrong
	}
	return verdict
}

// All are all findings, those of groups first.
func (r *Report) All() (all []Finding) {
	for _, g := range r.Groups {
		all = append(all, g.Findings...)
	}
	for _, u := range r.Unique {
		all = append(all, u.Findings...)
	}
	return append(all, r.Findings...)
}

// Incompletes say what was not compared and why.
func (r *Report) Incompletes() (out []string) {
	for _, g := range r.Groups {
		if g.Error != "" {
			out = append(out, fmt.Sprintf("g%d: %s", g.ID, g.Error))
		}
		for _, x := range g.Replicas {
			if x.Error != "" {
				out = append(out, fmt.Sprintf("g%d on %s: %s", g.ID, x.Node, x.Error))
			}
		}
	}
	for _, u := range r.Unique {
		if u.Error != "" {
			out = append(out, fmt.Sprintf("the unique fields of %s: %s", u.Collection, u.Error))
		}
	}
	return out
}

// Err is nil if all is well, else what is not, in a few lines.
func (r *Report) Err() error {
	verdict := r.Verdict()
	if verdict == Equal {
		return nil
	}
	lines := []string{"the cluster's state is " + verdict}
	for _, f := range r.All() {
		if !f.Warning {
			lines = append(lines, f.String())
		}
	}
	lines = append(lines, r.Incompletes()...)
	return errors.New(strings.Join(lines[:min(len(lines), 12)], "\n  "))
}

// Run checks a cluster. The error says that it could not be begun; what was
// found is in the report.
func Run(ctx context.Context, db *client.DB, o Options) (*Report, error) {
	o = o.withDefaults()
	began := time.Now()
	status, err := db.Status(ctx)
	if err != nil {
		return nil, err
	}
	t := &status.Topology
	r := &Report{Cluster: t.ClusterID, Epoch: t.Epoch, Started: began.UTC(), Findings: []Finding{}}
	for _, g := range t.Groups {
		if len(o.Groups) == 0 || slices.Contains(o.Groups, g.ID) {
			r.Groups = append(r.Groups, Group{ID: g.ID, Replicas: []Replica{}, Findings: []Finding{}})
		}
	}
	slices.SortFunc(r.Groups, func(a, b Group) int { return cmp.Compare(a.ID, b.ID) })
	for _, id := range o.Groups {
		if !slices.ContainsFunc(r.Groups, func(g Group) bool { return g.ID == id }) {
			return nil, fmt.Errorf("there is no group g%d (there are g1 to g%d)", id, len(t.Groups))
		}
	}
	owners := map[uint32][]uint32{} // partition to groups
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := make(chan *Group)
	for range min(o.Parallel, len(r.Groups)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for g := range next {
				owned := checkGroup(ctx, db, o, status, g)
				mu.Lock()
				for _, p := range owned {
					owners[p] = append(owners[p], g.ID)
				}
				mu.Unlock()
			}
		}()
	}
	for i := range r.Groups {
		next <- &r.Groups[i]
	}
	close(next)
	wg.Wait()
	if len(o.Groups) == 0 && !slices.ContainsFunc(r.Groups, func(g Group) bool { return g.Error != "" }) {
		r.checkOwners(uint32(len(t.Owners)), owners)
	}
	if len(o.Groups) == 0 {
		r.Unique = UniqueFields(ctx, db, o)
	}
	r.Seconds = time.Since(began).Seconds()
	return r, ctx.Err()
}

// checkOwners: every partition has exactly one.
func (r *Report) checkOwners(partitions uint32, owners map[uint32][]uint32) {
	for p := range partitions {
		switch groups := owners[p]; {
		case len(groups) == 0:
			r.Findings = append(r.Findings, Finding{Kind: "placement", Partition: &p, Text: "no group owns the partition"})
		case len(groups) > 1:
			slices.Sort(groups)
			r.Findings = append(r.Findings, Finding{Kind: "placement", Partition: &p, Text: fmt.Sprintf("the groups %v own the partition", groups)})
		}
	}
}

// checkGroup asks for one group, chunk by chunk, and answers what it owns.
func checkGroup(ctx context.Context, db *client.DB, o Options, status *client.ClusterStatus, g *Group) (owned []uint32) {
	mine, bytes := sizeOf(status, g.ID)
	rate := uint64(cmp.Or(o.RateKiB, defaultRateKiB)) << 10
	for i, c := range chunks(mine, uint32(len(status.Topology.Owners)), bytes, o.ChunkBytes) {
		limit := o.Patience + time.Duration(4*c.bytes/rate)*time.Second
		bounded, cancel := context.WithTimeout(ctx, limit)
		reply, err := db.Check(bounded, client.CheckRequest{Group: g.ID, State: i == 0, From: c.from, To: c.to, RateKiB: o.RateKiB})
		cancel()
		if err != nil {
			if g.Error = err.Error(); ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				g.Error = fmt.Sprintf("no answer within %v (%v)", limit, err)
			}
			return owned
		}
		owned = append(owned, reply.Owned...)
		g.add(reply)
		o.Progress(reply.Documents, reply.Bytes)
	}
	return owned
}

func (g *Group) add(reply *client.CheckReply) {
	g.Index = reply.Index
	g.Partitions += len(reply.Owned)
	g.Documents += reply.Documents
	g.Versions += reply.Versions
	g.Bytes += reply.Bytes
	g.Answers += reply.Requests
	g.Found += reply.Found
	for _, r := range reply.Replicas {
		i := slices.IndexFunc(g.Replicas, func(x Replica) bool { return x.Node == r.Node })
		if i < 0 {
			g.Replicas = append(g.Replicas, Replica{Node: r.Node})
			i = len(g.Replicas) - 1
		}
		if r.Error != "" {
			g.Replicas[i].Error = r.Error
		}
	}
	for _, f := range reply.Findings {
		x := Finding{Kind: f.Kind, Warning: f.Warning, Group: g.ID, Collection: f.Collection, ID: f.ID, Nodes: f.Nodes, Text: f.Text}
		if f.Partition != wire.NoPartition {
			x.Partition = &f.Partition
		}
		if f.Warning && slices.ContainsFunc(g.Findings, func(y Finding) bool { return y.Warning && y.Kind == x.Kind && y.Collection == x.Collection }) {
			g.Found-- // every chunk meets it
			continue
		}
		g.Findings = append(g.Findings, x)
	}
}

// sizeOf is what the map gives a group, and about how much there is to read.
// The servers count half a KiB for every row beside its bytes, and a document is
// a row and often a remembered answer.
func sizeOf(s *client.ClusterStatus, group uint32) (partitions []uint32, bytes uint64) {
	for p, g := range s.Topology.Owners {
		if g == group {
			partitions = append(partitions, uint32(p))
		}
	}
	for _, n := range s.Nodes {
		for _, g := range n.Status.Groups {
			if g.ID == group {
				bytes = max(bytes, g.Bytes+g.Documents<<10)
			}
		}
	}
	return partitions, bytes
}

// chunk is a range of partitions, and about how much of the group lies in it.
type chunk struct {
	from, to uint32
	bytes    uint64
}

// maxChunkPartitions keeps the sums of one comparison within an answer.
const maxChunkPartitions = 1024

// chunks cuts all partitions into ranges that hold about as many of the
// group's own each. History is not in the bytes: it may be several times that.
func chunks(mine []uint32, partitions uint32, bytes, most uint64) []chunk {
	n := int(max(1, bytes/max(most, 1), uint64(len(mine)/maxChunkPartitions+1)))
	n = min(n, max(1, len(mine)))
	var out []chunk
	from := uint32(0)
	for i := range n {
		to := partitions
		if i < n-1 {
			to = mine[(i+1)*len(mine)/n]
		}
		out = append(out, chunk{from, to, bytes / uint64(n)})
		from = to
	}
	return out
}
