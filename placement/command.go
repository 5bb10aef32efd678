package placement

import (
	"fmt"

	"github.com/impossibledb/idb/client/wire"
)

// Command is one change asked of the placement group. Exactly one of the
// pointers is set. Whatever needs a clock, randomness or a library is computed
// by the proposer and carried here.
type Command struct {
	InitCluster      *InitCluster
	FinishInit       *FinishInit
	UpsertNode       *UpsertNode
	CreateCollection *CreateCollection
	DropCollection   *DropCollection
	FinishDrop       *FinishDrop
	SetSettings      *SetSettings
	SetLeaders       *SetLeaders
}

// InitCluster forms the cluster. Applied again with the same cluster ID it
// changes nothing and succeeds.
type InitCluster struct {
	ClusterID string
	Members   []NodeID
	Nodes     []Node
	Groups    []Group
	Owners    []GroupID
	Leaders   wire.Leaders // by which the preferred leaders of Groups were planned
}

// FinishInit records that every shard group leads and owns its partitions.
type FinishInit struct{ ClusterID string }

// UpsertNode registers a node's present addresses and labels. A node that is
// known under another incarnation is refused.
type UpsertNode struct{ Node Node }

// CreateCollection creates a collection, or does nothing if one with the same
// options exists. With Implicit it stands for a first write: any existing
// collection will do, and the setting ExplicitCollections refuses it. Under one
// Request it is done once.
type CreateCollection struct {
	Request  wire.RequestID
	Name     string
	Options  wire.CollectionOptions
	Time     uint64
	Implicit bool
}

// DropCollection removes a collection's name; its documents go as groups
// confirm. Under one Request it is done once.
type DropCollection struct {
	Request wire.RequestID
	Name    string
}

// FinishDrop confirms that one group has applied the drop of a collection.
type FinishDrop struct {
	Collection CollectionID
	Group      GroupID
}

// SetSettings replaces the settings; a retention of zero keeps the present one.
// Under one Request it is done once.
type SetSettings struct {
	Request  wire.RequestID
	Settings wire.Settings
}

// SetLeaders changes where the leaders of shard groups should be. Preferred is
// planned by the proposer (PlanLeaders), for every group in the order of their
// IDs. Under one Request it is done once.
type SetLeaders struct {
	Request   wire.RequestID
	Leaders   wire.Leaders
	Preferred []NodeID
}

// Kinds of records. Numbers are on disk and never change meaning.
const (
	kindInitCluster      = 1
	kindFinishInit       = 2
	kindUpsertNode       = 3
	kindCreateCollection = 4
	kindDropCollection   = 5
	kindFinishDrop       = 6
	kindSetSettings      = 7
	kindSetLeaders       = 8

	kindState    = 64 // State, for watchers and the cache
	kindResult   = 65
	kindWait     = 66 // question of a watcher
	kindSnapshot = 67 // State and what was answered to requests
)

// Result is the answer to a command: what became of it, and the versions at
// which that can be seen.
type Result struct {
	Code       wire.Code // CodeOK: done
	Message    string    // why not, for people
	ClusterID  string    // InitCluster, and CodeClusterExists
	Collection wire.CollectionInfo
	Epoch      Epoch
	Catalog    uint64
}

// Err is the refusal as an error, nil when the command was done.
func (r *Result) Err() error {
	if r.Code == wire.CodeOK {
		return nil
	}
	return &wire.Error{Code: r.Code, Message: r.Message, Epoch: uint64(r.Epoch)}
}

// Encode is the command's log entry.
func (c Command) Encode() []byte {
	switch {
	case c.InitCluster != nil:
		e := newEncoder(kindInitCluster)
		e.str(c.InitCluster.ClusterID)
		e.nodeIDs(c.InitCluster.Members)
		e.nodes(c.InitCluster.Nodes)
		e.groups(c.InitCluster.Groups)
		e.groupIDs(c.InitCluster.Owners)
		e.leaders(c.InitCluster.Leaders)
		return e.b
	case c.FinishInit != nil:
		e := newEncoder(kindFinishInit)
		e.str(c.FinishInit.ClusterID)
		return e.b
	case c.UpsertNode != nil:
		e := newEncoder(kindUpsertNode)
		e.node(c.UpsertNode.Node)
		return e.b
	case c.CreateCollection != nil:
		e := newEncoder(kindCreateCollection)
		e.request(c.CreateCollection.Request)
		e.str(c.CreateCollection.Name)
		e.options(c.CreateCollection.Options)
		e.uint(c.CreateCollection.Time)
		e.bool(c.CreateCollection.Implicit)
		return e.b
	case c.DropCollection != nil:
		e := newEncoder(kindDropCollection)
		e.request(c.DropCollection.Request)
		e.str(c.DropCollection.Name)
		return e.b
	case c.FinishDrop != nil:
		e := newEncoder(kindFinishDrop)
		e.uint(uint64(c.FinishDrop.Collection))
		e.uint(uint64(c.FinishDrop.Group))
		return e.b
	case c.SetSettings != nil:
		e := newEncoder(kindSetSettings)
		e.request(c.SetSettings.Request)
		e.settings(c.SetSettings.Settings)
		return e.b
	case c.SetLeaders != nil:
		e := newEncoder(kindSetLeaders)
		e.request(c.SetLeaders.Request)
		e.uint(uint64(c.SetLeaders.Leaders))
		e.nodeIDs(c.SetLeaders.Preferred)
		return e.b
	}
	// An empty command has no bytes; DecodeCommand refuses them.
	return nil
}

// DecodeCommand reads a log entry. The errors are ErrNewer and ErrDamaged; both
// must stop a replica, for skipping an entry would make it differ.
func DecodeCommand(b []byte) (Command, error) {
	d, kind, err := newDecoder(b)
	if err != nil {
		return Command{}, err
	}
	var c Command
	switch kind {
	case kindInitCluster:
		c.InitCluster = &InitCluster{
			ClusterID: d.str(), Members: d.nodeIDs(), Nodes: d.nodes(), Groups: d.groups(), Owners: d.groupIDs(), Leaders: d.leaders(),
		}
	case kindFinishInit:
		c.FinishInit = &FinishInit{ClusterID: d.str()}
	case kindUpsertNode:
		c.UpsertNode = &UpsertNode{Node: d.node()}
	case kindCreateCollection:
		c.CreateCollection = &CreateCollection{Request: d.request(), Name: d.str(), Options: d.options(), Time: d.uint(), Implicit: d.bool()}
	case kindDropCollection:
		c.DropCollection = &DropCollection{Request: d.request(), Name: d.str()}
	case kindFinishDrop:
		c.FinishDrop = &FinishDrop{Collection: CollectionID(d.uint32()), Group: GroupID(d.uint32())}
	case kindSetSettings:
		c.SetSettings = &SetSettings{Request: d.request(), Settings: d.settings()}
	case kindSetLeaders:
		c.SetLeaders = &SetLeaders{Request: d.request(), Leaders: d.place(), Preferred: d.nodeIDs()}
	default:
		return Command{}, fmt.Errorf("%w: command of kind %d", ErrNewer, kind)
	}
	if err := d.done(); err != nil {
		return Command{}, err
	}
	return c, nil
}

// Encode is the result's bytes, as sent back by the node that proposed.
func (r *Result) Encode() []byte {
	e := newEncoder(kindResult)
	e.uint(uint64(r.Code))
	e.str(r.Message)
	e.str(r.ClusterID)
	e.collection(r.Collection)
	e.uint(uint64(r.Epoch))
	e.uint(r.Catalog)
	return e.b
}

// DecodeResult reads them.
func DecodeResult(b []byte) (*Result, error) {
	d, kind, err := newDecoder(b)
	if err != nil {
		return nil, err
	}
	if kind != kindResult {
		return nil, fmt.Errorf("%w: kind %d is no result", ErrDamaged, kind)
	}
	r := &Result{
		Code: wire.Code(d.uint32()), Message: d.str(), ClusterID: d.str(),
		Collection: d.collection(), Epoch: Epoch(d.uint()), Catalog: d.uint(),
	}
	return r, d.done()
}

// encodeSnapshot is all that a machine knows. Equal ones are equal bytes.
func encodeSnapshot(s *State, a *answers) []byte {
	e := newEncoder(kindSnapshot)
	e.str(string(encodeState(s)))
	e.answers(a)
	return e.b
}

func decodeSnapshot(b []byte) (*State, answers, error) {
	d, kind, err := newDecoder(b)
	if err != nil {
		return nil, answers{}, err
	}
	if kind != kindSnapshot {
		return nil, answers{}, fmt.Errorf("%w: kind %d is no snapshot", ErrDamaged, kind)
	}
	state, a := d.str(), d.answers()
	if err := d.done(); err != nil {
		return nil, answers{}, err
	}
	s, err := decodeState([]byte(state))
	return s, a, err
}

// encodeState is the state's bytes. Equal states are equal bytes.
func encodeState(s *State) []byte {
	e := newEncoder(kindState)
	e.uint(s.Applied)
	e.str(s.ClusterID)
	e.bool(s.Ready)
	e.nodeIDs(s.Members)
	e.uint(uint64(s.Epoch))
	e.groups(s.Groups)
	e.groupIDs(s.Owners)
	e.uint(s.Catalog)
	e.nodes(s.Nodes)
	e.uint(uint64(len(s.Collections)))
	for _, c := range s.Collections {
		e.uint(uint64(c.ID))
		e.str(c.Name)
		e.options(c.Options)
		e.uint(c.CreatedAt)
		e.groupIDs(c.Pending)
	}
	e.uint(uint64(s.NextCollection))
	e.settings(s.Settings)
	e.leaders(s.Leaders)
	return e.b
}

func decodeState(b []byte) (*State, error) {
	d, kind, err := newDecoder(b)
	if err != nil {
		return nil, err
	}
	if kind != kindState {
		return nil, fmt.Errorf("%w: kind %d is no state", ErrDamaged, kind)
	}
	s := &State{
		Applied: d.uint(), ClusterID: d.str(), Ready: d.bool(), Members: d.nodeIDs(),
		Epoch: Epoch(d.uint()), Groups: d.groups(), Owners: d.groupIDs(),
		Catalog: d.uint(), Nodes: d.nodes(),
	}
	for range d.count() {
		s.Collections = append(s.Collections, Collection{
			ID: CollectionID(d.uint32()), Name: d.str(), Options: d.options(), CreatedAt: d.uint(), Pending: d.groupIDs(),
		})
		if d.err != nil {
			break
		}
	}
	s.NextCollection = CollectionID(d.uint32())
	s.Settings = d.settings()
	s.Leaders = d.leaders()
	if err := d.done(); err != nil {
		return nil, err
	}
	return s, s.check()
}

// check refuses a decoded state that breaks an invariant on which indexing rests.
func (s *State) check() error {
	for i, g := range s.Groups {
		if g.ID != GroupID(i+1) {
			return fmt.Errorf("%w: group %d at place %d", ErrDamaged, g.ID, i+1)
		}
	}
	for p, g := range s.Owners {
		if g == 0 || int(g) > len(s.Groups) {
			return fmt.Errorf("%w: partition %d belongs to group %d of %d", ErrDamaged, p, g, len(s.Groups))
		}
	}
	for i := 1; i < len(s.Nodes); i++ {
		if s.Nodes[i-1].ID >= s.Nodes[i].ID {
			return fmt.Errorf("%w: nodes out of order at %q", ErrDamaged, s.Nodes[i].ID)
		}
	}
	for i := 1; i < len(s.Collections); i++ {
		if s.Collections[i-1].ID >= s.Collections[i].ID {
			return fmt.Errorf("%w: collections out of order at %d", ErrDamaged, s.Collections[i].ID)
		}
	}
	return nil
}

func (e *encoder) options(o wire.CollectionOptions) {
	e.str(o.Separator)
	e.uint(o.RetentionSeconds)
	e.uint(uint64(o.RetentionVersions))
	e.uint(uint64(len(o.Unique)))
	for _, u := range o.Unique {
		e.uint(uint64(len(u.Fields)))
		for _, path := range u.Fields {
			e.str(path)
		}
	}
}

func (d *decoder) options() wire.CollectionOptions {
	o := wire.CollectionOptions{Separator: d.str(), RetentionSeconds: d.uint(), RetentionVersions: d.uint32()}
	if d.version == plainVersion {
		return o
	}
	for range d.count() {
		var u wire.Unique
		for range d.count() {
			u.Fields = append(u.Fields, d.str())
			if d.err != nil {
				return wire.CollectionOptions{}
			}
		}
		o.Unique = append(o.Unique, u)
		if d.err != nil {
			return wire.CollectionOptions{}
		}
	}
	return o
}

func (e *encoder) settings(s wire.Settings) {
	e.bool(s.ExplicitCollections)
	e.uint(s.RetentionSeconds)
}

func (d *decoder) settings() wire.Settings {
	return wire.Settings{ExplicitCollections: d.bool(), RetentionSeconds: d.uint()}
}

// leaders ends a record that has them. Spread ones are not written, and leave
// the record as it is without: older nodes read it until an operator chooses
// otherwise.
func (e *encoder) leaders(l wire.Leaders) {
	if l != wire.LeadersSpread {
		e.b[0] = leadersVersion
		e.uint(uint64(l))
	}
}

func (d *decoder) leaders() wire.Leaders {
	if d.version < leadersVersion {
		return wire.LeadersSpread
	}
	l := d.place()
	if l == wire.LeadersSpread {
		d.fail("spread leaders, which are not written")
	}
	return l
}

// place reads where leaders should be. One that is not known here is of a newer
// version: a replica that took it for something else would differ.
func (d *decoder) place() wire.Leaders {
	l := wire.Leaders(d.uint32())
	if d.err == nil && !l.Known() {
		d.err = fmt.Errorf("%w: place of leaders %d", ErrNewer, l)
	}
	return l
}

func (e *encoder) node(n Node) {
	e.str(string(n.ID))
	e.str(n.ClientAddr)
	e.str(n.PeerAddr)
	e.str(n.HTTPAddr)
	e.str(n.Region)
	e.str(n.Zone)
	e.str(n.Incarnation)
}

func (d *decoder) node() Node {
	return Node{
		ID: NodeID(d.str()), ClientAddr: d.str(), PeerAddr: d.str(), HTTPAddr: d.str(),
		Region: d.str(), Zone: d.str(), Incarnation: d.str(),
	}
}

func (e *encoder) nodes(ns []Node) {
	e.uint(uint64(len(ns)))
	for _, n := range ns {
		e.node(n)
	}
}

func (d *decoder) nodes() (out []Node) {
	for range d.count() {
		out = append(out, d.node())
		if d.err != nil {
			return nil
		}
	}
	return out
}

func (e *encoder) nodeIDs(ids []NodeID) {
	e.uint(uint64(len(ids)))
	for _, id := range ids {
		e.str(string(id))
	}
}

func (d *decoder) nodeIDs() (out []NodeID) {
	for range d.count() {
		out = append(out, NodeID(d.str()))
		if d.err != nil {
			return nil
		}
	}
	return out
}

func (e *encoder) groups(gs []Group) {
	e.uint(uint64(len(gs)))
	for _, g := range gs {
		e.uint(uint64(g.ID))
		e.nodeIDs(g.Replicas)
		e.str(string(g.Preferred))
	}
}

func (d *decoder) groups() (out []Group) {
	for range d.count() {
		out = append(out, Group{ID: GroupID(d.uint32()), Replicas: d.nodeIDs(), Preferred: NodeID(d.str())})
		if d.err != nil {
			return nil
		}
	}
	return out
}

func (e *encoder) groupIDs(ids []GroupID) {
	e.uint(uint64(len(ids)))
	for _, id := range ids {
		e.uint(uint64(id))
	}
}

func (d *decoder) groupIDs() (out []GroupID) {
	for range d.count() {
		out = append(out, GroupID(d.uint32()))
		if d.err != nil {
			return nil
		}
	}
	return out
}
