package rules

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/leader"
)

// Placements steps the placement group's machine.
var Placements = ring{"placement", runPlacement}

const placementSteps = 400

// placementMachine is placement.Machine as a Group steps it. Its state is in
// memory: a crash takes it back to the last snapshot.
type placementMachine struct {
	m       *placement.Machine
	applied uint64
	durable []byte
	at      uint64 // index of durable
}

func openPlacement() *placementMachine { return &placementMachine{m: placement.NewMachine()} }

// Apply is what shardgroup's placementFSM does with Raft's entries.
func (p *placementMachine) Apply(entries []*Entry) ([]any, error) {
	answers := make([]any, len(entries))
	for i, e := range entries {
		if e.Index <= p.applied {
			return nil, fmt.Errorf("entry %d was applied before", e.Index)
		}
		p.applied = e.Index
		if len(e.Data) == 0 {
			answers[i] = e.Term
			continue
		}
		void, err := leader.Void(e.Stamp, e.Term)
		if err != nil {
			return nil, err
		}
		if void {
			answers[i] = errVoid
			continue
		}
		r, err := p.m.Apply(e.Index, e.Data)
		if err != nil {
			return nil, err
		}
		answers[i] = r
	}
	return answers, nil
}

func (p *placementMachine) Applied() uint64 { return p.applied }

func (p *placementMachine) Flush() (err error) {
	p.durable, err = p.m.Snapshot()
	p.at = p.applied
	return err
}

func (p *placementMachine) Crash(bool) error {
	p.m, p.applied = placement.NewMachine(), p.at
	if p.durable == nil {
		return nil
	}
	return p.m.Restore(p.durable)
}

func (p *placementMachine) Install(from Machine) error {
	other := from.(*placementMachine)
	b, err := other.m.Snapshot()
	if err != nil {
		return err
	}
	if err := p.m.Restore(b); err != nil {
		return err
	}
	p.applied = other.applied
	return p.Flush()
}

// placementRun is the placement group under load.
type placementRun struct {
	*Run
	net     Net
	g       *Group
	model   *catalogModel
	want    []string // the model's answer by index from 1; empty: it does not say
	answers []string // the first machine's answer by index from 1
	states  []string // and its state after it
	sent    [][]byte // commands, for late attempts
	asked   int      // requests so far
}

func runPlacement(r *Run, _ *enginePool) {
	machines := make([]Machine, []int{1, 3, 5}[r.IntN(3)])
	for i := range machines {
		machines[i] = openPlacement()
	}
	p := &placementRun{Run: r, model: newCatalogModel()}
	p.net = Net{run: r, lose: 8, keep: 6}
	p.g = newGroup(r, &p.net, "placement", machines)
	p.g.onCommit = func(e *Entry) { p.want = append(p.want, p.model.apply(e)) }
	p.g.check = p.answered
	p.g.onReady = func(*Node) {}
	p.g.onLost = func(*Node) {}
	p.g.Elect(p.g.nodes[0], len(machines))
	p.g.Settle()
	faults := []int{0, 1, 2, 4}[r.IntN(4)]
	r.Play(placementSteps, []choice{
		{30, p.net.Step},
		{15, p.ask},
		{20, func() {
			if l := p.g.anyLeader(); l != nil {
				p.g.Replicate(l, p.g.any())
				p.g.Replicate(l, p.g.any())
			}
		}},
		{40, func() {
			n := p.g.any()
			n.Notice()
			n.Apply(6)
			p.look(n)
		}},
		{faults, func() { p.g.Elect(p.g.any(), 2+p.IntN(len(p.g.nodes))) }},
		{faults, func() { p.g.any().Crash(false) }},
		{3 * faults, func() { p.g.any().Start() }},
		{3, func() {
			// A snapshot's marker is the snapshot itself.
			if n := p.g.any(); n.up && p.Must("snapshot", n.m.Flush()) {
				n.marker = n.m.Applied()
			}
		}},
		{1 + faults, func() {
			if l := p.g.anyLeader(); l != nil {
				p.g.Install(l, p.g.any())
			}
		}},
	})
	p.g.Settle()
	p.net.Drain()
	p.g.Settle()
	if p.fault != nil {
		return
	}
	for _, n := range p.g.nodes {
		p.look(n)
	}
	p.Met("collections that were", len(p.model.ever))
}

// answered: every machine gives the same answer to an entry, and the one that
// the model gives.
func (p *placementRun) answered(e *Entry, answer any) {
	text := fmt.Sprint(answer)
	if r, ok := answer.(*placement.Result); ok {
		text = fmt.Sprintf("%x", r.Encode())
		p.Met("answers: "+r.Code.String(), 1)
		if want := p.want[e.Index-1]; want != "" {
			if got := fmt.Sprintf("%v %d", r.Code, r.Collection.ID); got != want {
				p.Fail("entry %d was answered %s (%s), the model says %s", e.Index, got, r.Message, want)
			}
		}
	}
	for uint64(len(p.answers)) < e.Index {
		p.answers = append(p.answers, "")
	}
	switch first := &p.answers[e.Index-1]; *first {
	case "":
		*first = text
	case text:
	default:
		p.Fail("entry %d was answered %s, and on another replica %s", e.Index, *first, text)
	}
}

// look compares a node's state with those of others at the same index, and
// with what must hold at any time.
func (p *placementRun) look(n *Node) {
	at := n.m.Applied()
	if !n.up || at == 0 {
		return
	}
	m := n.m.(*placementMachine).m
	b, err := m.Snapshot()
	if !p.Must("snapshot", err) {
		return
	}
	again := placement.NewMachine()
	if !p.Must("restoring a snapshot", again.Restore(b)) {
		return
	}
	if other, err := again.Snapshot(); err != nil || !bytes.Equal(b, other) {
		p.Fail("%s: a restored snapshot is another (%v)", n.name, err)
	}
	for uint64(len(p.states)) < at {
		p.states = append(p.states, "")
	}
	switch first := &p.states[at-1]; *first {
	case "":
		*first = string(b)
	case string(b):
	default:
		p.Fail("%s has another state at %d than the first replica that was there", n.name, at)
	}
	p.Met("states compared", 1)
	if at == uint64(len(p.g.log)) {
		if d := p.model.differs(m.View().State); d != "" {
			p.Fail("%s at %d: %s", n.name, at, d)
		}
	}
}

// ask sends a command to some node: a new one, or an old one again.
func (p *placementRun) ask() {
	var data []byte
	if len(p.sent) > 0 && p.Once(4) {
		data = p.sent[p.IntN(len(p.sent))]
	} else {
		data = p.command().Encode()
		p.sent = append(p.sent, data)
	}
	n := p.g.any()
	if l := p.g.anyLeader(); l != nil && !p.Once(5) {
		n = l
	}
	p.net.Send("client", n.name, "a command", func() {
		// As shardgroup's Placement.Propose: the term goes along.
		term := n.ready
		if !n.up || term == 0 {
			return
		}
		p.net.Send(n.name, n.name, "hand to Raft", func() {
			if n.up {
				n.Propose(data, term, func(any, error) {})
			}
		})
	})
}

var placementNames = []string{"a", "b", "orders", "orders_2"}

// request is a fresh ID.
func (p *placementRun) request() (id wire.RequestID) {
	p.asked++
	id.Time = uint64(p.asked)
	id.Random[0] = byte(p.IntN(256))
	return id
}

func (p *placementRun) command() placement.Command {
	var c placement.Command
	name := placementNames[p.IntN(len(placementNames))]
	kind := p.IntN(13)
	if p.model.cluster == "" && p.Once(2) {
		kind = 0
	}
	switch kind {
	case 0, 1:
		id := []string{"c1", "c1", "c1", "c2"}[p.IntN(4)]
		c.InitCluster = &placement.InitCluster{
			ClusterID: id, Members: []placement.NodeID{"n1"}, Owners: []placement.GroupID{1, 2, 1},
			Nodes:  []placement.Node{{ID: "n1", Incarnation: "i1"}, {ID: "n2", Incarnation: "i2"}},
			Groups: []placement.Group{{ID: 1, Replicas: []placement.NodeID{"n1", "n2"}, Preferred: "n1"}, {ID: 2, Replicas: []placement.NodeID{"n2"}, Preferred: "n2"}},
		}
	case 2:
		c.FinishInit = &placement.FinishInit{ClusterID: []string{"c1", "c2"}[p.IntN(2)]}
	case 3:
		c.UpsertNode = &placement.UpsertNode{Node: placement.Node{
			ID: placement.NodeID(fmt.Sprintf("n%d", 1+p.IntN(3))), Incarnation: fmt.Sprintf("i%d", 1+p.IntN(3)), Zone: fmt.Sprint(p.IntN(2)),
		}}
	case 4, 5, 6, 7:
		c.CreateCollection = &placement.CreateCollection{Request: p.request(), Name: name, Time: uint64(p.IntN(1000)), Implicit: p.Once(3)}
		if p.Once(3) {
			c.CreateCollection.Options.RetentionVersions = uint32(1 + p.IntN(2))
		}
	case 8, 9:
		c.DropCollection = &placement.DropCollection{Request: p.request(), Name: name}
	case 10:
		c.FinishDrop = &placement.FinishDrop{Collection: placement.CollectionID(1 + p.IntN(6)), Group: placement.GroupID(1 + p.IntN(2))}
	case 11:
		c.SetLeaders = &placement.SetLeaders{Request: p.request(), Leaders: wire.Leaders(p.IntN(2)), Preferred: []placement.NodeID{
			[]placement.NodeID{"n1", "n2"}[p.IntN(2)], []placement.NodeID{"n2", "n2", "n1"}[p.IntN(3)], // the last has no replica
		}}
	default:
		c.SetSettings = &placement.SetSettings{Request: p.request(), Settings: wire.Settings{
			RetentionSeconds: uint64(p.IntN(3)) * 3600, ExplicitCollections: p.Once(3),
		}}
	}
	return c
}

// catalogModel is what becomes of names: one incarnation after the other, each
// with an ID of its own, none before every group has confirmed the end of the
// one before.
type catalogModel struct {
	cluster  string
	explicit bool
	leaders  string // where they should be, and which should lead
	next     placement.CollectionID
	live     map[string]*modelCollection
	ever     map[placement.CollectionID]string
	answers  map[wire.RequestID]string // of requests that were decided
}

type modelCollection struct {
	id      placement.CollectionID
	options wire.CollectionOptions
	pending map[placement.GroupID]bool // not empty: it is being dropped
}

func newCatalogModel() *catalogModel {
	return &catalogModel{live: map[string]*modelCollection{}, ever: map[placement.CollectionID]string{}, answers: map[wire.RequestID]string{}}
}

// apply answers code and collection ID, or nothing for commands that are not
// about the catalog.
func (m *catalogModel) apply(e *Entry) (answer string) {
	if len(e.Data) == 0 || e.believed != e.Term {
		return ""
	}
	c, err := placement.DecodeCommand(e.Data)
	if err != nil {
		return err.Error()
	}
	say := func(code wire.Code, id placement.CollectionID) string { return fmt.Sprintf("%v %d", code, id) }
	var request wire.RequestID
	switch {
	case c.CreateCollection != nil:
		request = c.CreateCollection.Request
	case c.DropCollection != nil:
		request = c.DropCollection.Request
	case c.SetSettings != nil:
		request = c.SetSettings.Request
	case c.SetLeaders != nil:
		request = c.SetLeaders.Request
	}
	if request != (wire.RequestID{}) && m.cluster != "" {
		if answer, ok := m.answers[request]; ok {
			return answer
		}
		defer func() {
			if !strings.HasPrefix(answer, wire.CodeUnavailable.String()) { // not yet
				m.answers[request] = answer
			}
		}()
	}
	if c.InitCluster != nil {
		if m.cluster == "" {
			m.cluster = c.InitCluster.ClusterID
			m.leaders = "spread [n1 n2]"
		}
		if m.cluster != c.InitCluster.ClusterID {
			return say(wire.CodeClusterExists, 0)
		}
		return say(wire.CodeOK, 0)
	}
	if m.cluster == "" && c.FinishInit == nil {
		return say(wire.CodeNotInitialised, 0)
	}
	switch {
	case c.CreateCollection != nil:
		have := m.live[c.CreateCollection.Name]
		switch {
		case have == nil && c.CreateCollection.Implicit && m.explicit:
			return say(wire.CodeCollectionNotFound, 0)
		case have == nil:
			m.next++
			m.live[c.CreateCollection.Name] = &modelCollection{id: m.next, options: c.CreateCollection.Options}
			m.ever[m.next] = c.CreateCollection.Name
			return say(wire.CodeOK, m.next)
		case len(have.pending) > 0:
			return say(wire.CodeUnavailable, have.id)
		case !c.CreateCollection.Implicit && !have.options.Equal(c.CreateCollection.Options):
			return say(wire.CodeCollectionExists, have.id)
		}
		return say(wire.CodeOK, have.id)
	case c.DropCollection != nil:
		have := m.live[c.DropCollection.Name]
		if have == nil {
			return say(wire.CodeCollectionNotFound, 0)
		}
		if len(have.pending) == 0 {
			have.pending = map[placement.GroupID]bool{1: true, 2: true}
		}
		return say(wire.CodeOK, have.id)
	case c.FinishDrop != nil:
		for name, have := range m.live {
			if have.id == c.FinishDrop.Collection && have.pending[c.FinishDrop.Group] {
				delete(have.pending, c.FinishDrop.Group)
				if len(have.pending) == 0 {
					delete(m.live, name)
				}
			}
		}
		return say(wire.CodeOK, 0)
	case c.SetSettings != nil:
		m.explicit = c.SetSettings.Settings.ExplicitCollections
	case c.SetLeaders != nil:
		if c.SetLeaders.Preferred[1] != "n2" { // planned for other replicas
			return say(wire.CodeUnavailable, 0)
		}
		m.leaders = fmt.Sprint(c.SetLeaders.Leaders, c.SetLeaders.Preferred)
		return say(wire.CodeOK, 0)
	}
	return ""
}

// differs compares the catalog.
func (m *catalogModel) differs(s *placement.State) string {
	got := map[string]string{}
	for _, c := range s.Collections {
		if _, twice := got[c.Name]; twice {
			return "two collections of one name: " + c.Name
		}
		got[c.Name] = fmt.Sprintf("%d %v %v", c.ID, c.Options, c.Pending)
	}
	want := map[string]string{}
	for name, c := range m.live {
		want[name] = fmt.Sprintf("%d %v %v", c.id, c.options, slices.Sorted(maps.Keys(c.pending)))
	}
	switch {
	case s.ClusterID != m.cluster:
		return fmt.Sprintf("it is cluster %q, the model's is %q", s.ClusterID, m.cluster)
	case !maps.Equal(got, want):
		return fmt.Sprintf("the catalog is %v, the model's is %v", got, want)
	}
	if s.ClusterID != "" {
		leaders := fmt.Sprint(s.Leaders, []placement.NodeID{s.Groups[0].Preferred, s.Groups[1].Preferred})
		if leaders != m.leaders {
			return fmt.Sprintf("leaders should be %s, the model's %s", leaders, m.leaders)
		}
	}
	return ""
}
