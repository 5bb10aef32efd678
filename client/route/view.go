package route

import (
	"github.com/impossibledb/idb/client/wire"
)

// View is one version of the topology. It never changes; a newer one replaces it.
type View struct {
	Topology wire.Topology

	owners      []*group // by partition
	groups      map[uint32]*group
	nodes       map[string]*node
	collections map[string]*wire.CollectionInfo
}

// Collection is the catalog's entry of a name; nil if there is none.
func (v *View) Collection(name string) *wire.CollectionInfo {
	return v.collections[name]
}

// Numbered says that the name is that of the collection of this number.
func (v *View) Numbered(name string, number uint32) bool {
	info := v.collections[name]
	return info != nil && info.ID == number
}

// Partition is where a document lives. It is not known for a collection that
// this view does not know, because its separator is not.
func (v *View) Partition(collection, id string) (uint32, bool) {
	info := v.collections[collection]
	if info == nil || len(v.owners) == 0 {
		return 0, false
	}
	return wire.Partition(collection, info.Options.Separator, id, uint32(len(v.owners))), true
}

// Group is the shard group that owns a partition.
func (v *View) Group(partition uint32) (uint32, bool) {
	if int(partition) >= len(v.owners) || v.owners[partition] == nil {
		return 0, false
	}
	return v.owners[partition].id, true
}

// Leader is the node that is believed to lead a partition's group and can be
// reached; empty: nobody is, or it is to be looked for.
func (v *View) Leader(partition uint32) string {
	if int(partition) >= len(v.owners) || v.owners[partition] == nil {
		return ""
	}
	if w := v.owners[partition].route(); w != nil && w.direct {
		return w.node.id
	}
	return ""
}

// newer says that t has something that v has not, and lacks nothing.
func (v *View) newer(t *wire.Topology) bool {
	if v == nil {
		return true
	}
	return t.Epoch >= v.Topology.Epoch && t.Catalog >= v.Topology.Catalog &&
		(t.Epoch > v.Topology.Epoch || t.Catalog > v.Topology.Catalog)
}

// install makes t the current view if it is newer, and takes its leader hints
// in any case.
func (c *Cluster) install(t *wire.Topology) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	old := c.view.Load()
	if !old.newer(t) {
		if t.ClusterID == old.Topology.ClusterID {
			old.hints(t)
		}
		return
	}
	v := &View{
		Topology:    *t,
		groups:      make(map[uint32]*group, len(t.Groups)),
		nodes:       make(map[string]*node, len(t.Nodes)),
		collections: make(map[string]*wire.CollectionInfo, len(t.Collections)),
		owners:      make([]*group, len(t.Owners)),
	}
	for _, info := range t.Nodes {
		n := c.nodes[info.ID]
		if n == nil {
			n = newNode(c, info.ID)
			c.nodes[info.ID] = n
		}
		n.learn(info.ClientAddr)
		v.nodes[info.ID] = n
	}
	for id, n := range c.nodes {
		if v.nodes[id] == nil {
			delete(c.nodes, id)
			n.leave()
		}
	}
	for _, info := range t.Groups {
		var g *group
		if old != nil {
			g = old.groups[info.ID]
		}
		if g == nil {
			g = &group{id: info.ID}
		}
		g.setReplicas(info.Replicas)
		v.groups[info.ID] = g
	}
	for p, id := range t.Owners {
		v.owners[p] = v.groups[id]
	}
	for i := range t.Collections {
		if info := &v.Topology.Collections[i]; !info.Dropping {
			v.collections[info.Name] = info
		}
	}
	if t.ClusterID != "" {
		c.clusterID = t.ClusterID
	}
	v.hints(t)
	c.view.Store(v)
	c.opt.Logger.Debug("topology", "epoch", t.Epoch, "catalog", t.Catalog,
		"nodes", len(t.Nodes), "groups", len(t.Groups), "collections", len(t.Collections))
	c.changed.fire()
}

// hints passes the leaders that a topology names to the groups.
func (v *View) hints(t *wire.Topology) {
	for _, info := range t.Groups {
		if g := v.groups[info.ID]; g != nil && info.Leader != "" {
			g.told(info.Leader, info.Term)
		}
	}
}
