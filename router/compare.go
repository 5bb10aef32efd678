package router

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/unique"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/txn/hlc"
)

// A comparison of one group's replicas: the group's leader logs a mark, every
// replica that applies it keeps its rows as of that entry and adds them up in
// the background, and this node fetches the sums and compares them. Nothing
// waits for that but the request. Where sums differ, further marks have the
// rows of a small part listed.

const (
	// checkLimit is how long a check without a deadline may take.
	checkLimit = 5 * time.Minute
	// checkSilences is for how many of Options.StatusTimeout a replica that does
	// not answer is asked again.
	checkSilences = 5
	// checkTries is how many marks are logged if replicas miss them.
	checkTries = 4
	// checkNames is in how many partitions differing rows are looked for, and
	// checkRows how many are named in each.
	checkNames = 3
	checkRows  = 4
	// checkFindings is how many findings an answer lists.
	checkFindings = 100
)

// What became of a question for findings.
const (
	findingsReady   = 0
	findingsPending = 1 // ask again
	findingsMissed  = 2 // the replica has none
	findingsStopped = 3 // the replica is halted; a text follows
)

// replicaFindings is one replica's answer.
type replicaFindings struct {
	node    placement.NodeID
	found   *fsm.Findings
	missed  bool
	stopped string // why the replica is halted
	err     string // why there are none
}

// checking is one request under way.
type checking struct {
	r     *Router
	view  *placement.View
	group placement.Group
	req   *wire.CheckRequest
	reply *wire.CheckReply
}

// check serves KindCheck.
func (r *Router) check(ctx context.Context, req *wire.CheckRequest) (*wire.CheckReply, *wire.Error) {
	if _, e := r.ready(); e != nil {
		return nil, e
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, checkLimit)
		defer cancel()
	}
	v, err := r.opts.Placement.Refresh(ctx)
	if err != nil {
		return nil, r.wireReadError(err, subject{})
	}
	g, ok := v.Group(placement.GroupID(req.Group))
	if !ok {
		return nil, refuse(wire.CodeBadRequest, "there is no group %d (there are 1 to %d)", req.Group, len(v.Groups))
	}
	to := min(req.To, v.Partitions())
	c := &checking{r: r, view: v, group: g, req: req, reply: &wire.CheckReply{Group: req.Group}}
	if n := len(c.mapped(v, req.From, to)); n > fsm.MaxMarkPartitions {
		return nil, refuse(wire.CodeTooManyItems, "%s of %s are to be compared, at most %d can be at once", plural(n, "partition"), g.ID, fsm.MaxMarkPartitions)
	}
	if e := c.run(ctx, req.From, to); e != nil {
		return nil, e
	}
	return c.reply, nil
}

func (c *checking) run(ctx context.Context, from, to uint32) *wire.Error {
	mark := fsm.Mark{State: c.req.State, From: placement.PartitionID(from), To: placement.PartitionID(to), RateKiB: c.req.RateKiB}
	all, e := c.survey(ctx, mark)
	if e != nil {
		return e
	}
	if strange := c.unknownCollections(ctx, all); len(strange) > 0 {
		// One that was dropped meanwhile is gone from the rows by now.
		if all, e = c.survey(ctx, mark); e != nil {
			return e
		}
		strange = c.unknownCollections(ctx, all)
		for _, id := range strange {
			c.finding(wire.CheckFinding{Kind: "orphan", Partition: wire.NoPartition, Collection: fmt.Sprintf("#%d", id), Nodes: c.names(all),
				Text: "rows of a collection that is not in the catalog"})
		}
	}
	var whole []*replicaFindings
	for _, a := range all {
		replica := wire.CheckReplica{Node: string(a.node), Error: a.err}
		switch {
		case a.stopped != "":
			replica.Error = "it has stopped"
			c.finding(wire.CheckFinding{Kind: "stopped", Partition: wire.NoPartition, Nodes: []string{string(a.node)}, Text: "the replica has stopped: " + a.stopped})
		case a.missed:
			replica.Error = fmt.Sprintf("it had no findings of %d marks in a row (is it busy catching up?)", checkTries)
		case a.found != nil:
			whole = append(whole, a)
		}
		c.reply.Replicas = append(c.reply.Replicas, replica)
	}
	if len(whole) == 0 {
		return nil
	}
	c.totals(whole[0].found)
	c.faults(whole)
	c.differences(ctx, mark, whole)
	c.placement(ctx, whole[0].found, from, to)
	c.horizons(whole[0].found)
	return nil
}

// finding notes one.
func (c *checking) finding(f wire.CheckFinding) {
	c.reply.Found++
	if len(c.reply.Findings) < checkFindings {
		c.reply.Findings = append(c.reply.Findings, f)
	}
}

func (c *checking) names(all []*replicaFindings) (names []string) {
	for _, a := range all {
		if a.found != nil {
			names = append(names, string(a.node))
		}
	}
	return names
}

// collection names a collection for people.
func (c *checking) collection(id placement.CollectionID) string {
	if id == 0 {
		return ""
	}
	if known, ok := c.view.CollectionByID(unique.Of(id)); ok && unique.IsEntries(id) {
		return known.Name + " (unique values)"
	} else if ok {
		return known.Name
	}
	return fmt.Sprintf("#%d", id)
}

func (c *checking) totals(f *fsm.Findings) {
	c.reply.Index = f.Index
	c.reply.Requests = f.Requests
	for _, p := range f.Owned {
		c.reply.Owned = append(c.reply.Owned, uint32(p))
	}
	for _, s := range f.Collections {
		c.reply.Versions += s.Rows
		if !unique.IsEntries(s.Collection) {
			c.reply.Documents += s.Documents
			c.reply.Bytes += s.Bytes
		}
	}
}

// faults are what replicas found wrong by themselves, one finding for all that
// found the same.
func (c *checking) faults(all []*replicaFindings) {
	at := map[fsm.Fault]int{}
	for _, a := range all {
		for _, x := range a.found.Faults {
			if i, ok := at[x]; ok {
				c.reply.Findings[i].Nodes = append(c.reply.Findings[i].Nodes, string(a.node))
				continue
			}
			if len(c.reply.Findings) < checkFindings {
				at[x] = len(c.reply.Findings)
			}
			c.finding(wire.CheckFinding{Kind: "fault", Partition: uint32(x.Partition), Collection: c.collection(x.Collection), ID: showID(x.ID),
				Nodes: []string{string(a.node)}, Text: x.Text})
		}
		c.reply.Found += a.found.FaultsFound - uint64(len(a.found.Faults))
	}
}

// differences compares the sums, partition by partition.
func (c *checking) differences(ctx context.Context, mark fsm.Mark, all []*replicaFindings) {
	var order []placement.PartitionID
	sums := map[placement.PartitionID]map[placement.NodeID]*fsm.PartitionSum{}
	for _, a := range all {
		for i := range a.found.Partitions {
			p := &a.found.Partitions[i]
			if sums[p.Partition] == nil {
				sums[p.Partition] = map[placement.NodeID]*fsm.PartitionSum{}
				order = append(order, p.Partition)
			}
			sums[p.Partition][a.node] = p
		}
	}
	slices.Sort(order)
	named := 0
	for _, p := range order {
		right, others := divide(all, func(n placement.NodeID) uint64 {
			if s := sums[p][n]; s != nil {
				return s.Sum
			}
			return 0
		})
		if len(others) == 0 {
			continue
		}
		if named++; named <= checkNames && c.nameRows(ctx, mark, p, sums[p], right, others) {
			continue
		}
		c.finding(wire.CheckFinding{Kind: "difference", Partition: uint32(p), Nodes: texts(others),
			Text: fmt.Sprintf("the rows %s differ from those of %s at index %d", inPartition(p), strings.Join(texts(right), " and "), all[0].found.Index)})
	}
}

func inPartition(p placement.PartitionID) string {
	if p == fsm.StatePartition {
		return "of the group's own state"
	}
	return fmt.Sprintf("in partition %d", p)
}

// divide puts replicas that say the same together: the largest party, and the
// others. Which of them is right only a majority can hint at.
func divide(all []*replicaFindings, value func(placement.NodeID) uint64) (most, others []placement.NodeID) {
	parties := map[uint64][]placement.NodeID{}
	var best uint64
	for i, a := range all {
		v := value(a.node)
		parties[v] = append(parties[v], a.node)
		if i == 0 || len(parties[v]) > len(parties[best]) {
			best = v
		}
	}
	most = parties[best]
	for _, a := range all {
		if !slices.Contains(most, a.node) {
			others = append(others, a.node)
		}
	}
	return most, others
}

func texts(nodes []placement.NodeID) []string {
	out := make([]string, len(nodes))
	for i, n := range nodes {
		out[i] = string(n)
	}
	return out
}

// nameRows has the rows of a differing bucket listed and names those that
// differ. False: nothing could be named.
func (c *checking) nameRows(ctx context.Context, mark fsm.Mark, p placement.PartitionID, sums map[placement.NodeID]*fsm.PartitionSum, right, others []placement.NodeID) bool {
	bucket := -1
	good := sums[right[0]]
	for _, n := range others {
		if bad := sums[n]; good != nil && bad != nil {
			for i := range good.Buckets {
				if good.Buckets[i] != bad.Buckets[i] && (bucket < 0 || i < bucket) {
					bucket = i
				}
			}
		}
	}
	if bucket < 0 {
		return false
	}
	mark.State = p == fsm.StatePartition
	mark.From, mark.To = p, p+1
	if mark.State {
		mark.From, mark.To = 0, 0
	}
	mark.Bucket = uint32(bucket) + 1
	all, e := c.survey(ctx, mark)
	if e != nil {
		return false
	}
	all = slices.DeleteFunc(all, func(a *replicaFindings) bool { return a.found == nil })
	rows := map[string]map[placement.NodeID]uint64{}
	for _, a := range all {
		for _, r := range a.found.Rows {
			if rows[string(r.Key)] == nil {
				rows[string(r.Key)] = map[placement.NodeID]uint64{}
			}
			rows[string(r.Key)][a.node] = r.Sum
		}
	}
	keys := make([]string, 0, len(rows))
	for k := range rows {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	differ, listed := 0, 0
	for _, k := range keys {
		most, few := divide(all, func(n placement.NodeID) uint64 { return rows[k][n] })
		if len(few) == 0 {
			continue
		}
		if differ++; listed < checkRows {
			listed++
			c.rowFinding(k, p, rows[k], most, few)
		}
	}
	if differ == 0 && len(all) > 1 {
		c.finding(wire.CheckFinding{Kind: "difference", Partition: uint32(p), Nodes: texts(others),
			Text: fmt.Sprintf("the rows %s differed from those of %s, and do not any more at index %d", inPartition(p), strings.Join(texts(right), " and "), all[0].found.Index)})
		return true
	}
	c.reply.Found += uint64(differ - listed)
	return differ > 0
}

// rowFinding words one row that differs.
func (c *checking) rowFinding(key string, p placement.PartitionID, sums map[placement.NodeID]uint64, most, few []placement.NodeID) {
	k := fsm.DescribeKey([]byte(key))
	var missing, other []string
	for _, n := range few {
		if _, there := sums[n]; there {
			other = append(other, string(n))
		} else {
			missing = append(missing, string(n))
		}
	}
	where := strings.Join(texts(most), " and ")
	text := k.What
	if _, there := sums[most[0]]; !there {
		text += fmt.Sprintf(": is on %s and not on %s", strings.Join(texts(few), " and "), where)
	} else {
		if len(missing) > 0 {
			text += fmt.Sprintf(": is missing on %s", strings.Join(missing, " and "))
		}
		if len(other) > 0 {
			text += fmt.Sprintf(": is another on %s than on %s", strings.Join(other, " and "), where)
		}
	}
	c.finding(wire.CheckFinding{Kind: "difference", Partition: uint32(p), Collection: c.collection(k.Collection), ID: showID(k.ID), Nodes: texts(few), Text: text})
}

// placement compares what the group owns with the map.
func (c *checking) placement(ctx context.Context, f *fsm.Findings, from, to uint32) {
	want := c.mapped(c.view, from, to)
	if slices.Equal(want, f.Owned) {
		return
	}
	v, err := c.r.opts.Placement.Refresh(ctx)
	if err != nil || v.Epoch != c.view.Epoch {
		return // the map has moved on; the next check will tell
	}
	for _, p := range want {
		if !slices.Contains(f.Owned, p) {
			c.finding(wire.CheckFinding{Kind: "placement", Partition: uint32(p), Text: fmt.Sprintf("the map gives the partition to %s, which does not own it", c.group.ID)})
		}
	}
	for _, p := range f.Owned {
		if !slices.Contains(want, p) {
			c.finding(wire.CheckFinding{Kind: "placement", Partition: uint32(p), Text: fmt.Sprintf("%s owns the partition, and the map gives it to %s", c.group.ID, v.Owner(p))})
		}
	}
}

// mapped are the partitions that the map gives to the group, of a range.
func (c *checking) mapped(v *placement.View, from, to uint32) []placement.PartitionID {
	return slices.DeleteFunc(v.PartitionsOf(c.group.ID), func(p placement.PartitionID) bool { return uint32(p) < from || uint32(p) >= to })
}

// horizons must not be ahead of the present. A clock that was fast when they
// were raised explains it: what it costs is answers that are refused as
// expired, and history that is gone early.
func (c *checking) horizons(f *fsm.Findings) {
	now := c.r.opts.Clock.Now()
	if f.RequestsAt > now {
		c.finding(wire.CheckFinding{Kind: "horizon", Warning: true, Partition: wire.NoPartition,
			Text: fmt.Sprintf("the horizon of request IDs is %v ahead of this node's clock: younger retries are refused as expired until then", ahead(f.RequestsAt, now))})
	}
	for _, h := range f.HistoryAt {
		if h.At > now {
			c.finding(wire.CheckFinding{Kind: "horizon", Warning: true, Partition: wire.NoPartition, Collection: c.collection(h.Collection),
				Text: fmt.Sprintf("the history horizon is %v ahead of this node's clock: reads at a time below it are refused", ahead(h.At, now))})
		}
	}
}

func ahead(t, now hlc.Timestamp) time.Duration { return t.Time().Sub(now.Time()).Round(time.Second) }

// unknownCollections have rows and are not in the catalog.
func (c *checking) unknownCollections(ctx context.Context, all []*replicaFindings) (unknown []placement.CollectionID) {
	seek := func() {
		unknown = nil
		for _, a := range all {
			if a.found == nil {
				continue
			}
			for _, s := range a.found.Collections {
				if _, ok := c.view.CollectionByID(unique.Of(s.Collection)); !ok && !slices.Contains(unknown, s.Collection) {
					unknown = append(unknown, s.Collection)
				}
			}
		}
	}
	if seek(); len(unknown) == 0 {
		return nil
	}
	// Made since the check began, perhaps.
	if v, err := c.r.opts.Placement.Refresh(ctx); err == nil {
		c.view = v
	}
	seek()
	return unknown
}

// survey logs a mark and fetches what the replicas found, again if some have
// missed it.
func (c *checking) survey(ctx context.Context, k fsm.Mark) (all []*replicaFindings, e *wire.Error) {
	var p patience
	for try := 1; ; try++ {
		_, _ = rand.Read(k.ID[:]) // never fails
		var index uint64
		e := c.r.onLeader(ctx, c.view, c.group.ID, false, subject{},
			func(ctx context.Context, g Group) (err error) {
				index, err = markHere(ctx, g, k)
				return err
			},
			func(ctx context.Context, node placement.NodeID) (err error) {
				index, err = c.r.askMark(ctx, node, c.group.ID, k)
				return err
			})
		if e != nil {
			return nil, e
		}
		all = make([]*replicaFindings, len(c.group.Replicas))
		missed := index == 0
		if !missed {
			c.r.parallel(len(all), func(i int) { all[i] = c.fetch(ctx, c.group.Replicas[i], k.ID, index) })
			for _, a := range all {
				missed = missed || a.missed
			}
		}
		if !missed {
			return all, nil
		}
		if try == checkTries || !p.wait(ctx, checkLimit) {
			if index == 0 {
				return nil, refuse(wire.CodeOverloaded, "%s is busy with other comparisons (retry)", c.group.ID)
			}
			return all, nil
		}
	}
}

// fetch asks one replica until it has an answer.
func (c *checking) fetch(ctx context.Context, node placement.NodeID, id [16]byte, index uint64) *replicaFindings {
	a := &replicaFindings{node: node}
	var p patience
	silent := time.Time{} // since when it does not answer
	for {
		var body []byte
		var err error
		if node == c.r.opts.Self {
			body, err = c.r.findingsHere(ctx, c.group.ID, id, index)
		} else {
			body, err = c.r.call(ctx, node, wire.KindGroupFindings, encodeFindingsRequest(c.group.ID, id, index), 0)
		}
		if err == nil {
			done, bad := a.take(body)
			if done {
				return a
			}
			err = bad
		}
		if err == nil { // pending
			silent, p = time.Time{}, patience{}
			if ctx.Err() != nil {
				a.err = "it did not reach the mark in time (is it far behind?)"
				return a
			}
			continue
		}
		if silent.IsZero() {
			silent = time.Now()
		}
		if time.Since(silent) > checkSilences*c.r.opts.StatusTimeout || !p.wait(ctx, checkLimit) {
			a.err = why(err)
			return a
		}
	}
}

// why words that a replica could not be asked.
func why(err error) string {
	var refusal *wire.Error
	var lost *wire.ConnError
	switch {
	case errors.As(err, &refusal):
		return refusal.Message
	case errors.As(err, &lost):
		return "it cannot be reached: " + lost.Err.Error()
	}
	return err.Error()
}

// take reads an answer; done is false if it is to be asked again.
func (a *replicaFindings) take(body []byte) (done bool, err error) {
	if len(body) < 2 || body[0] != peerVersion {
		return false, refuse(wire.CodeBadRequest, "node %s answers in another version (run the same version on all nodes)", a.node)
	}
	switch rest := body[2:]; body[1] {
	case findingsReady:
		if a.found, err = fsm.DecodeFindings(rest); err != nil {
			a.err = err.Error()
		}
	case findingsPending:
		return false, nil
	case findingsMissed:
		a.missed = true
	default:
		a.stopped = string(rest)
	}
	return true, nil
}

// markHere logs a mark; an index of 0 says that it was of no use.
func markHere(ctx context.Context, g Group, k fsm.Mark) (uint64, error) {
	index, err := g.Mark(ctx, k)
	if errors.Is(err, shardgroup.ErrNoSurvey) {
		return 0, nil
	}
	return index, err
}

// findingsHere waits a while for what this node's replica found.
func (r *Router) findingsHere(ctx context.Context, group placement.GroupID, id [16]byte, index uint64) ([]byte, error) {
	g, ok := r.opts.Groups.Group(group)
	if !ok {
		return nil, refuse(wire.CodeUnavailable, "node %s has no replica of %s running", r.opts.Self, group)
	}
	wait, cancel := context.WithTimeout(ctx, r.opts.AttemptTimeout/2)
	defer cancel()
	found, err := g.Findings(wait, id, index)
	answer := []byte{peerVersion, findingsReady}
	var halted *shardgroup.HaltError
	switch {
	case err == nil:
		return found.Append(answer), nil
	case errors.Is(err, shardgroup.ErrTimeout):
		answer[1] = findingsPending
	case errors.Is(err, shardgroup.ErrNoSurvey):
		answer[1] = findingsMissed
	case errors.As(err, &halted):
		answer[1] = findingsStopped
		return append(answer, halted.Error()...), nil
	default:
		return nil, err
	}
	return answer, nil
}

// Between nodes: a mark is
//
//	version u8 = 1 | group | id 16 | state, from, to, bucket, rate
//
// answered with the index as eight bytes, and a question for findings
//
//	version u8 = 1 | group | id 16 | index
//
// answered with version u8 = 1, what became of it u8, and findings or a text.

func encodeMark(group placement.GroupID, k fsm.Mark) []byte {
	b := binary.AppendUvarint([]byte{peerVersion}, uint64(group))
	b = append(b, k.ID[:]...)
	state := uint64(0)
	if k.State {
		state = 1
	}
	for _, n := range []uint64{state, uint64(k.From), uint64(k.To), uint64(k.Bucket), uint64(k.RateKiB)} {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func decodeMark(b []byte) (group placement.GroupID, k fsm.Mark, e *wire.Error) {
	d := peerDecoder{b: b}
	d.version()
	group = placement.GroupID(d.number32())
	k.ID = d.id()
	k.State = d.number() == 1
	k.From, k.To = placement.PartitionID(d.number32()), placement.PartitionID(d.number32())
	k.Bucket, k.RateKiB = d.number32(), d.number32()
	return group, k, d.done("mark")
}

func encodeFindingsRequest(group placement.GroupID, id [16]byte, index uint64) []byte {
	b := binary.AppendUvarint([]byte{peerVersion}, uint64(group))
	b = append(b, id[:]...)
	return binary.AppendUvarint(b, index)
}

func decodeFindingsRequest(b []byte) (group placement.GroupID, id [16]byte, index uint64, e *wire.Error) {
	d := peerDecoder{b: b}
	d.version()
	group = placement.GroupID(d.number32())
	id = d.id()
	index = d.number()
	return group, id, index, d.done("question for findings")
}

func (r *Router) askMark(ctx context.Context, node placement.NodeID, group placement.GroupID, k fsm.Mark) (uint64, error) {
	body, err := r.call(ctx, node, wire.KindGroupMark, encodeMark(group, k), 0)
	if err != nil {
		return 0, err
	}
	if len(body) != 8 {
		return 0, refuse(wire.CodeInternal, "node %s answered %s as an index", node, plural(len(body), "byte"))
	}
	return binary.BigEndian.Uint64(body), nil
}
