package shardgroup

import "github.com/impossibledb/idb/shardgroup/seglog"

// Queued is what waits in the group's batcher to be proposed.
func (g *Group) Queued() (commands, bytes int) { return g.batcher.queued() }

// LogMetrics are the numbers of the log that all groups share.
func (h *Host) LogMetrics() seglog.Metrics { return h.logs.Metrics() }
