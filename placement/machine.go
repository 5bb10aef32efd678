package placement

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mutant"
)

// Machine is the replicated state of the placement group. Apply and Restore
// are called from one goroutine, raft's; everything else from any.
//
// Apply's answer depends on the entry and the state before it and on nothing
// else. It has no clock and no I/O: times and maps come in the entry.
type Machine struct {
	view atomic.Pointer[View]

	// applying keeps state and answers together: a snapshot has both as of one
	// entry.
	applying sync.Mutex
	answers  answers // guarded by applying

	mu      sync.Mutex
	changed chan struct{} // guarded by mu; closed at the next change
}

// NewMachine makes a machine that belongs to no cluster.
func NewMachine() *Machine {
	m := &Machine{changed: make(chan struct{})}
	m.view.Store(NewView(emptyState()))
	return m
}

func emptyState() *State {
	return &State{Settings: wire.Settings{RetentionSeconds: DefaultRetentionSeconds}}
}

// View is the present version. It never blocks and never returns nil.
func (m *Machine) View() *View { return m.view.Load() }

// Changed is closed when a version newer than every one read before the call
// is published. Take the channel first, then the View.
func (m *Machine) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// Apply carries out one log entry. An error means that the entry cannot be
// understood by this version of the software: the replica must halt.
func (m *Machine) Apply(index uint64, data []byte) (*Result, error) {
	if len(data) == 0 { // raft's own entries
		return &Result{}, nil
	}
	c, err := DecodeCommand(data)
	if err != nil {
		return nil, fmt.Errorf("placement entry %d: %w", index, err)
	}
	m.applying.Lock()
	defer m.applying.Unlock()
	before := m.View().State
	next := *before
	result := m.once(&next, c)
	if next.Epoch != before.Epoch || next.Catalog != before.Catalog {
		next.Applied = index
		m.publish(&next)
	}
	result.Epoch, result.Catalog = next.Epoch, next.Catalog
	return result, nil
}

// once runs a command, or answers what another attempt of the same request was
// answered. Only "not yet" is not kept: nothing was decided.
func (m *Machine) once(s *State, c Command) *Result {
	id, kind, name, ok := c.request()
	if !ok || s.ClusterID == "" {
		return s.step(c)
	}
	if r := m.answers.find(id, kind, name); r != nil {
		return r
	}
	r := s.step(c)
	if r.Code != wire.CodeUnavailable {
		m.answers.keep(id, kind, name, r)
	}
	return r
}

// Snapshot is the state's bytes and what was answered to requests.
func (m *Machine) Snapshot() ([]byte, error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	return encodeSnapshot(m.View().State, &m.answers), nil
}

// Restore replaces the state by a snapshot. On an error nothing has changed.
func (m *Machine) Restore(snapshot []byte) error {
	s, a, err := decodeSnapshot(snapshot)
	if err != nil {
		return fmt.Errorf("placement snapshot: %w", err)
	}
	m.applying.Lock()
	defer m.applying.Unlock()
	m.answers = a
	m.publish(s)
	return nil
}

func (m *Machine) publish(s *State) {
	m.view.Store(NewView(s))
	m.mu.Lock()
	close(m.changed)
	m.changed = make(chan struct{})
	m.mu.Unlock()
}

// step changes s, which shares its slices with the published state: they are
// replaced, never written to.
func (s *State) step(c Command) *Result {
	switch {
	case c.InitCluster != nil:
		return s.initCluster(c.InitCluster)
	case c.FinishInit != nil:
		return s.finishInit(c.FinishInit)
	}
	if s.ClusterID == "" {
		return refuse(wire.CodeNotInitialised, "the cluster is not initialised yet (run idb cluster init)")
	}
	switch {
	case c.UpsertNode != nil:
		return s.upsertNode(c.UpsertNode.Node)
	case c.CreateCollection != nil:
		return s.createCollection(c.CreateCollection)
	case c.DropCollection != nil:
		return s.dropCollection(c.DropCollection)
	case c.FinishDrop != nil:
		return s.finishDrop(c.FinishDrop)
	case c.SetSettings != nil:
		return s.setSettings(c.SetSettings.Settings)
	case c.SetLeaders != nil:
		return s.setLeaders(c.SetLeaders)
	}
	return refuse(wire.CodeBadRequest, "the placement command is empty")
}

func refuse(code wire.Code, format string, args ...any) *Result {
	return &Result{Code: code, Message: fmt.Sprintf(format, args...)}
}

func (s *State) initCluster(c *InitCluster) *Result {
	if s.ClusterID != "" {
		if s.ClusterID == c.ClusterID {
			return &Result{ClusterID: s.ClusterID}
		}
		r := refuse(wire.CodeClusterExists, "this is cluster %s already", s.ClusterID)
		r.ClusterID = s.ClusterID
		return r
	}
	next := State{
		ClusterID: c.ClusterID, Members: c.Members, Epoch: 1, Groups: c.Groups, Owners: c.Owners,
		Catalog: s.Catalog + 1, Nodes: slices.Clone(c.Nodes), Settings: s.Settings, NextCollection: s.NextCollection,
		Leaders: c.Leaders,
	}
	slices.SortFunc(next.Nodes, func(a, b Node) int { return strings.Compare(string(a.ID), string(b.ID)) })
	if err := next.check(); err != nil || c.ClusterID == "" || len(c.Groups) == 0 || len(c.Owners) == 0 {
		return refuse(wire.CodeBadClusterRequest, "the first map is incomplete: %d nodes, %d groups, %d partitions (%v)",
			len(c.Nodes), len(c.Groups), len(c.Owners), err)
	}
	*s = next
	return &Result{ClusterID: s.ClusterID}
}

func (s *State) finishInit(c *FinishInit) *Result {
	if s.ClusterID != c.ClusterID || s.ClusterID == "" {
		return refuse(wire.CodeWrongCluster, "this is cluster %q, not %q", s.ClusterID, c.ClusterID)
	}
	if !s.Ready {
		s.Ready = true
		s.Catalog++
	}
	return &Result{ClusterID: s.ClusterID}
}

func (s *State) upsertNode(n Node) *Result {
	i, found := slices.BinarySearchFunc(s.Nodes, n.ID, func(a Node, id NodeID) int {
		return strings.Compare(string(a.ID), string(id))
	})
	if found {
		old := s.Nodes[i]
		if old == n {
			return &Result{}
		}
		if old.Incarnation != n.Incarnation {
			return refuse(wire.CodeWrongCluster,
				"node %s was wiped: the cluster knows it as incarnation %s, and it is %s now; a node that lost its disk must not come back under its old ID",
				n.ID, old.Incarnation, n.Incarnation)
		}
		s.Nodes = slices.Clone(s.Nodes)
		s.Nodes[i] = n
		s.Catalog++
		return &Result{}
	}
	if len(s.Nodes) >= MaxNodes {
		return refuse(wire.CodeBadRequest, "the cluster has %d nodes, which is the limit", len(s.Nodes))
	}
	if n.ID == "" {
		return refuse(wire.CodeBadRequest, "a node without an ID cannot be registered")
	}
	s.Nodes = slices.Insert(slices.Clone(s.Nodes), i, n)
	s.Catalog++
	return &Result{}
}

func (s *State) createCollection(c *CreateCollection) *Result {
	for _, have := range s.Collections {
		if have.Name != c.Name {
			continue
		}
		if have.Dropping() && mutant.On(mutant.NameReused) {
			continue
		}
		if have.Dropping() {
			r := refuse(wire.CodeUnavailable, "collection %s is being dropped and cannot be created again until every shard group has confirmed (retry)", c.Name)
			r.Collection = have.Info()
			return r
		}
		if !c.Implicit && !have.Options.Equal(c.Options) {
			r := refuse(wire.CodeCollectionExists, "collection %s exists with other options: %s (drop it first, or create it with these)", c.Name, describeOptions(have.Options))
			r.Collection = have.Info()
			return r
		}
		return &Result{Collection: have.Info()}
	}
	if c.Implicit && s.Settings.ExplicitCollections {
		return refuse(wire.CodeCollectionNotFound, "collection %s does not exist, and this cluster creates none by writing (create it first: idb collection create %s)", c.Name, c.Name)
	}
	if err := CheckCollectionName(c.Name); err != nil {
		return refuse(wire.CodeBadCollection, "%v", err)
	}
	if err := CheckCollectionOptions(c.Options); err != nil {
		return refuse(wire.CodeBadCollection, "%s: %v", c.Name, err)
	}
	if len(s.Collections) >= MaxCollections {
		return refuse(wire.CodeBadCollection, "the cluster has %d collections, which is the limit (drop one first)", len(s.Collections))
	}
	if s.NextCollection >= maxCollectionID {
		return refuse(wire.CodeBadCollection, "the cluster has created %d collections in its life, which is the limit", s.NextCollection)
	}
	s.NextCollection++
	if mutant.On(mutant.CollectionIDAgain) {
		s.NextCollection = CollectionID(len(s.Collections) + 1)
	}
	created := Collection{ID: s.NextCollection, Name: c.Name, Options: c.Options, CreatedAt: c.Time}
	s.Collections = append(slices.Clone(s.Collections), created)
	s.Catalog++
	return &Result{Collection: created.Info()}
}

func (s *State) dropCollection(c *DropCollection) *Result {
	for i, have := range s.Collections {
		if have.Name != c.Name {
			continue
		}
		if have.Dropping() { // another request's drop: both wait for its end
			return &Result{Collection: have.Info()}
		}
		dropped := have
		dropped.Pending = make([]GroupID, len(s.Groups))
		for g := range s.Groups {
			dropped.Pending[g] = s.Groups[g].ID
		}
		s.Collections = slices.Clone(s.Collections)
		s.Collections[i] = dropped
		s.Catalog++
		return &Result{Collection: dropped.Info()}
	}
	return refuse(wire.CodeCollectionNotFound, "collection %s does not exist", c.Name)
}

func (s *State) finishDrop(c *FinishDrop) *Result {
	for i, have := range s.Collections {
		if have.ID != c.Collection {
			continue
		}
		at := slices.Index(have.Pending, c.Group)
		if at < 0 {
			break
		}
		have.Pending = slices.Delete(slices.Clone(have.Pending), at, at+1)
		s.Collections = slices.Clone(s.Collections)
		s.Catalog++
		if len(have.Pending) == 0 {
			s.Collections = slices.Delete(s.Collections, i, i+1)
			return &Result{}
		}
		s.Collections[i] = have
		return &Result{}
	}
	return &Result{} // confirmed before
}

func (s *State) setSettings(set wire.Settings) *Result {
	if set.RetentionSeconds == 0 {
		set.RetentionSeconds = s.Settings.RetentionSeconds
	}
	if set.RetentionSeconds != wire.RetainForever && set.RetentionSeconds > maxRetentionSeconds {
		return refuse(wire.CodeBadRequest, "a retention of %d seconds is above the largest, %d (100 years); use for ever instead", set.RetentionSeconds, maxRetentionSeconds)
	}
	if s.Settings != set {
		s.Settings = set
		s.Catalog++
	}
	return &Result{}
}

func (s *State) setLeaders(c *SetLeaders) *Result {
	// The groups may have changed since the proposer planned. That is no answer
	// to the request: it is to be planned again.
	again := len(c.Preferred) != len(s.Groups)
	for i := 0; i < len(s.Groups) && !again; i++ {
		again = !s.Groups[i].Has(c.Preferred[i])
	}
	if again {
		return refuse(wire.CodeUnavailable, "the shard groups changed while their leaders were planned (retry)")
	}
	groups := slices.Clone(s.Groups)
	for i := range groups {
		groups[i].Preferred = c.Preferred[i]
	}
	same := slices.EqualFunc(groups, s.Groups, func(a, b Group) bool { return a.Preferred == b.Preferred })
	if !same || s.Leaders != c.Leaders {
		s.Groups, s.Leaders = groups, c.Leaders
		s.Catalog++
	}
	return &Result{}
}

// describeOptions names what a creation with the same options would have to say.
func describeOptions(o wire.CollectionOptions) string {
	retention := "the cluster's retention"
	switch o.RetentionSeconds {
	case 0:
	case wire.RetainForever:
		retention = "retention for ever"
	default:
		retention = fmt.Sprintf("retention %ds", o.RetentionSeconds)
	}
	text := fmt.Sprintf("separator %q, %s", o.Separator, retention)
	if o.RetentionVersions > 0 {
		text += fmt.Sprintf(", at least %d versions", o.RetentionVersions)
	}
	for _, u := range o.Unique {
		text += ", unique " + u.Name()
	}
	return text
}
