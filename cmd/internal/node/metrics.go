package node

import (
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/router"
	"github.com/impossibledb/idb/shardgroup"
	"github.com/impossibledb/idb/shardgroup/seglog"
)

// metrics are what /metrics shows: requests as they are answered, and the rest
// read from the parts at each scrape.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	// Children by port, kind and code, so that an answer costs no label look-up.
	children [2][128]*kindMetrics
}

type kindMetrics struct {
	seconds prometheus.Observer
	in, out prometheus.Counter
	ok      prometheus.Counter // answers without an error
}

func newMetrics(n *Node) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "idb_requests_total", Help: "Requests answered, by port, kind and outcome.",
		}, []string{"port", "kind", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "idb_request_seconds", Help: "Time from a request's arrival to its answer.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18),
		}, []string{"port", "kind"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "idb_request_bytes_total", Help: "Bytes of request and answer bodies.",
		}, []string{"port", "kind", "direction"}),
	}
	for port, name := range []string{"client", "peer"} {
		for k := range m.children[port] {
			kind := wire.Kind(k).String()
			if kind == strconv.Itoa(k) {
				continue // a number without a name is no kind
			}
			m.children[port][k] = &kindMetrics{
				seconds: m.seconds.WithLabelValues(name, kind),
				in:      m.bytes.WithLabelValues(name, kind, "in"),
				out:     m.bytes.WithLabelValues(name, kind, "out"),
				ok:      m.requests.WithLabelValues(name, kind, wire.CodeOK.String()),
			}
		}
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.requests, m.seconds, m.bytes,
		newCollector(n),
	)
	return m
}

func portName(peer bool) (int, string) {
	if peer {
		return 1, "peer"
	}
	return 0, "client"
}

// observe counts one answered request.
func (m *metrics) observe(o wire.Observation) {
	i, port := portName(o.Peer)
	if int(o.Kind) >= len(m.children[i]) || m.children[i][o.Kind] == nil {
		m.requests.WithLabelValues(port, "unknown", o.Code.String()).Inc()
		return
	}
	c := m.children[i][o.Kind]
	c.seconds.Observe(o.Took.Seconds())
	c.in.Add(float64(o.BytesIn))
	c.out.Add(float64(o.BytesOut))
	if o.Code == wire.CodeOK {
		c.ok.Inc()
		return
	}
	m.requests.WithLabelValues(port, o.Kind.String(), o.Code.String()).Inc()
}

// gauge is one number that is read at a scrape.
type gauge struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func newGauge(kind prometheus.ValueType, name, help string, labels ...string) gauge {
	return gauge{prometheus.NewDesc(name, help, labels, nil), kind}
}

func (g gauge) send(ch chan<- prometheus.Metric, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(g.desc, g.kind, v, labels...)
}

// collector reads a node's parts at each scrape.
type collector struct {
	n *Node

	leads, term, commit, applied, last, flushed, queue, queueBytes, documents, bytes, partitions, rows gauge
	engineBytes, engineFiles, engineCount                                                              gauge
	conns, inFlight, dropped                                                                           gauge
	diskFree, diskFull, ready, uptime, epoch                                                           gauge

	txns, txnRetries, txnRunning                                       gauge
	txnPrepared, txnOldest, txnWaiting, txnStepped, txnLocks, txnTaken gauge
	txnRecovered                                                       gauge
	txnWaits                                                           *prometheus.Desc
}

func newCollector(n *Node) *collector {
	g, c := prometheus.GaugeValue, prometheus.CounterValue
	return &collector{
		n:           n,
		leads:       newGauge(g, "idb_group_leader", "1 if this node leads the group.", "group"),
		term:        newGauge(g, "idb_group_term", "Raft term of this replica.", "group"),
		commit:      newGauge(g, "idb_group_commit_index", "Committed log index known to this replica.", "group"),
		applied:     newGauge(g, "idb_group_applied_index", "Log index applied to this replica's state.", "group"),
		last:        newGauge(g, "idb_group_last_index", "Last index in this replica's log.", "group"),
		flushed:     newGauge(g, "idb_group_flushed_index", "Applied log index that is on disk.", "group"),
		queue:       newGauge(g, "idb_group_queue_commands", "Commands waiting to be proposed.", "group"),
		queueBytes:  newGauge(g, "idb_group_queue_bytes", "Bytes of the commands waiting to be proposed.", "group"),
		documents:   newGauge(g, "idb_group_documents", "Live documents.", "group"),
		bytes:       newGauge(g, "idb_group_document_bytes", "Bytes of live documents.", "group"),
		partitions:  newGauge(g, "idb_group_partitions", "Partitions that the group owns.", "group"),
		rows:        newGauge(g, "idb_group_versions", "Versions of all documents, tombstones included.", "group"),
		engineBytes: newGauge(g, "idb_engine_bytes", "Bytes of a storage engine, by use.", "engine", "use"),
		engineFiles: newGauge(g, "idb_engine_files", "Files of a storage engine, by kind.", "engine", "kind"),
		engineCount: newGauge(c, "idb_engine_total", "What a storage engine did since the node started.", "engine", "what"),
		conns:       newGauge(g, "idb_connections", "Open connections.", "port"),
		inFlight:    newGauge(g, "idb_requests_in_flight", "Requests being served.", "port"),
		dropped:     newGauge(c, "idb_connections_dropped_total", "Connections that broke a rule or stood still.", "port"),
		diskFree:    newGauge(g, "idb_disk_free_bytes", "Free bytes on the data disk."),
		diskFull:    newGauge(g, "idb_disk_full", "1 while writes are refused for lack of space."),
		ready:       newGauge(g, "idb_ready", "1 if /readyz says ready."),
		uptime:      newGauge(g, "idb_uptime_seconds", "Seconds since the node started."),
		epoch:       newGauge(g, "idb_placement_epoch", "Epoch of the placement map this node holds."),

		txns:       newGauge(c, "idb_transactions_total", "Commits that this node coordinated, by outcome.", "outcome"),
		txnRetries: newGauge(c, "idb_transaction_retries_total", "Of these, those that were not the first attempt at their work."),
		txnRunning: newGauge(g, "idb_transactions_running", "Commits at work, those whose client was answered included."),

		txnPrepared:  newGauge(g, "idb_transactions_prepared", "Transactions prepared in a group that this node leads.", "group"),
		txnOldest:    newGauge(g, "idb_transaction_oldest_prepared_seconds", "How long the oldest of them has been prepared.", "group"),
		txnWaiting:   newGauge(g, "idb_transaction_waiting", "Commands that wait for a lock.", "group"),
		txnWaits:     prometheus.NewDesc("idb_transaction_wait_seconds", "Waits for locks that have ended.", []string{"group"}, nil),
		txnStepped:   newGauge(c, "idb_transaction_stepbacks_total", "Commands that stepped back from an older transaction.", "group"),
		txnLocks:     newGauge(g, "idb_transaction_locks", "Documents that are locked up front.", "group"),
		txnTaken:     newGauge(c, "idb_transaction_locks_total", "Documents that were locked up front.", "group"),
		txnRecovered: newGauge(c, "idb_transaction_recoveries_total", "Done for transactions that were left behind: recoveries begun, aborts written, resolves confirmed.", "group", "what"),
	}
}

// Describe sends nothing: the collector is unchecked, for its groups come and go.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Collect reads everything once.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	n := c.n
	for _, s := range n.groupStatus() {
		group := placement.GroupID(s.ID).String()
		c.leads.send(ch, boolValue(s.State == "leader"), group)
		c.term.send(ch, float64(s.Term), group)
		c.commit.send(ch, float64(s.Commit), group)
		c.applied.send(ch, float64(s.Applied), group)
		c.last.send(ch, float64(s.LastIndex), group)
		if s.ID == 0 {
			continue
		}
		c.flushed.send(ch, float64(s.Flushed), group)
		c.documents.send(ch, float64(s.Documents), group)
		c.bytes.send(ch, float64(s.Bytes), group)
		c.partitions.send(ch, float64(s.Partitions), group)
		if g, ok := n.host.Group(placement.GroupID(s.ID)); ok {
			commands, bytes := g.Queued()
			c.queue.send(ch, float64(commands), group)
			c.queueBytes.send(ch, float64(bytes), group)
			c.rows.send(ch, float64(g.Machine().Stats().Rows), group)
			c.group(ch, group, s.State == "leader", g.TxnStats())
		}
	}
	s := n.router.TxnStats()
	for o, count := range s.Outcomes {
		c.txns.send(ch, float64(count), router.TxnOutcome(o).String())
	}
	c.txnRetries.send(ch, float64(s.Retries))
	c.txnRunning.send(ch, float64(s.Running))
	c.log(ch, n.host.LogMetrics())
	if m, err := n.host.StateEngine().Metrics(); err == nil { // not closed meanwhile
		c.engine(ch, "state", m)
	}
	for port, s := range map[string]wire.ServerStats{"client": n.clients.Stats(), "peer": n.peers.Stats()} {
		c.conns.send(ch, float64(s.Conns), port)
		c.inFlight.send(ch, float64(s.InFlight), port)
		c.dropped.send(ch, float64(s.Dropped), port)
	}
	if free, err := n.cfg.FreeSpace(n.cfg.DataDir); err == nil {
		c.diskFree.send(ch, float64(free))
	}
	c.diskFull.send(ch, boolValue(n.host.DiskFull()))
	c.ready.send(ch, boolValue(n.notReady() == nil))
	c.uptime.send(ch, time.Since(n.started).Seconds())
	c.epoch.send(ch, float64(n.places.View().Epoch))
}

// group sends what transactions did in a group. What is prepared is the same on
// every replica, and told by the leader.
func (c *collector) group(ch chan<- prometheus.Metric, group string, leads bool, s shardgroup.TxnStats) {
	if leads {
		c.txnPrepared.send(ch, float64(s.Prepared), group)
		c.txnOldest.send(ch, s.Oldest.Seconds(), group)
	}
	c.txnWaiting.send(ch, float64(s.Waiting), group)
	ch <- prometheus.MustNewConstSummary(c.txnWaits, s.Waits, s.WaitTime.Seconds(), nil, group)
	c.txnStepped.send(ch, float64(s.Stepped), group)
	c.txnLocks.send(ch, float64(s.FrontLocks), group)
	c.txnTaken.send(ch, float64(s.Locked), group)
	c.txnRecovered.send(ch, float64(s.Rescued), group, "begun")
	c.txnRecovered.send(ch, float64(s.Aborted), group, "aborted")
	c.txnRecovered.send(ch, float64(s.Resolved), group, "resolved")
}

func (c *collector) log(ch chan<- prometheus.Metric, m seglog.Metrics) {
	const engine = "log"
	c.engineBytes.send(ch, float64(m.DiskBytes), engine, "disk")
	c.engineBytes.send(ch, float64(m.LiveBytes), engine, "live")
	c.engineCount.send(ch, float64(m.Appends), engine, "appends")
	c.engineCount.send(ch, float64(m.Batches), engine, "syncs")
	c.engineCount.send(ch, m.WriteSeconds, engine, "sync_seconds")
	c.engineCount.send(ch, float64(m.WrittenBytes), engine, "written_bytes")
	c.engineCount.send(ch, float64(m.CarriedBytes), engine, "carried_bytes")
	c.engineCount.send(ch, float64(m.Switches), engine, "segments")
	c.engineCount.send(ch, float64(m.Reused), engine, "segments_reused")
	c.engineCount.send(ch, m.CrowdedSeconds, engine, "crowded_seconds")
	c.engineCount.send(ch, m.GatherSeconds, engine, "gather_seconds")
}

func (c *collector) engine(ch chan<- prometheus.Metric, engine string, m mvcc.EngineMetrics) {
	c.engineBytes.send(ch, float64(m.DiskBytes), engine, "disk")
	c.engineBytes.send(ch, float64(m.MemTableBytes), engine, "memtable")
	c.engineBytes.send(ch, float64(m.CacheBytes), engine, "cache")
	c.engineBytes.send(ch, float64(m.NewestBytes), engine, "newest")
	c.engineBytes.send(ch, float64(m.CompactionDebt), engine, "compaction_debt")
	c.engineFiles.send(ch, float64(m.Tables), engine, "tables")
	c.engineFiles.send(ch, float64(m.ValueFiles), engine, "values")
	c.engineCount.send(ch, float64(m.Rows), engine, "rows")
	c.engineCount.send(ch, float64(m.Flushes), engine, "flushes")
	c.engineCount.send(ch, float64(m.FlushedBytes), engine, "flushed_bytes")
	c.engineCount.send(ch, float64(m.CompactedBytes), engine, "compacted_bytes")
	c.engineCount.send(ch, float64(m.CacheHits), engine, "cache_hits")
	c.engineCount.send(ch, float64(m.CacheMisses), engine, "cache_misses")
	c.engineCount.send(ch, float64(m.NewestHits), engine, "newest_hits")
	c.engineCount.send(ch, float64(m.NewestMisses), engine, "newest_misses")
}

// memoryBytes is what the process holds of the system's memory, as the runtime
// knows it.
func memoryBytes() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Sys - m.HeapReleased
}
