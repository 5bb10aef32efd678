package shardgroup

import "github.com/impossibledb/idb/fsm/mvcc"

// Queued is what waits in the group's batcher to be proposed.
func (g *Group) Queued() (commands, bytes int) { return g.batcher.queued() }

// LogMetrics are the log engine's numbers, in the state engine's terms.
func (h *Host) LogMetrics() mvcc.EngineMetrics { return mvcc.MetricsOf(h.logs.db) }
