package node

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/impossibledb/idb/client/wire"
)

// status is what this node knows of itself.
func (n *Node) status(context.Context) wire.NodeStatus {
	s := wire.NodeStatus{
		Node: n.info(), ClusterID: n.clusterID(), Version: Version,
		UptimeSeconds: uint64(time.Since(n.started).Seconds()),
		Ready:         true,
		Epoch:         uint64(n.places.View().Epoch),
		Now:           uint64(n.clock.Now()),
		Groups:        n.groupStatus(),
		DiskUsedBytes: n.diskUsed(),
		MemoryBytes:   memoryBytes(),
		DiskFull:      n.host.DiskFull(),
	}
	if err := n.notReady(); err != nil {
		s.Ready, s.Reason = false, err.Error()
	}
	if free, err := n.cfg.FreeSpace(n.cfg.DataDir); err == nil {
		s.DiskFreeBytes = free
	}
	return s
}

// groupStatus is this node's replicas, the placement group first.
func (n *Node) groupStatus() []wire.GroupStatus {
	var out []wire.GroupStatus
	if p := n.host.Placement(); p != nil {
		out = append(out, p.Status())
	}
	for _, g := range n.host.Groups() {
		out = append(out, g.Status())
	}
	return out
}

// notReady says why this node cannot do its part, nil if it can.
func (n *Node) notReady() error {
	if n.stopping.Load() {
		return fmt.Errorf("node %s is stopping", n.self)
	}
	if n.identity.Load() == nil {
		return fmt.Errorf("node %s belongs to no cluster yet (run idb cluster init)", n.self)
	}
	v := n.places.View()
	if !v.Ready {
		return fmt.Errorf("cluster %s is being formed (run idb cluster init again if it was interrupted)", n.clusterID())
	}
	for _, g := range v.Groups {
		if !g.Has(n.self) {
			continue
		}
		replica, ok := n.host.Group(g.ID)
		if !ok {
			return fmt.Errorf("replica of %s is not running", g.ID)
		}
		s := replica.Status()
		if s.Error != "" {
			return fmt.Errorf("replica of %s: %s", g.ID, s.Error)
		}
		if s.Leader == "" {
			return fmt.Errorf("%s has no leader that this node knows", g.ID)
		}
	}
	return nil
}

// diskUsed adds up the files of the data directory; files that go while it
// looks are not there.
func (n *Node) diskUsed() (sum uint64) {
	_ = filepath.WalkDir(n.cfg.DataDir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			sum += uint64(info.Size())
		}
		return nil
	})
	return sum
}
