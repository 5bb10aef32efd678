package seglog

// Metrics of a Log since it was opened.
type Metrics struct {
	DiskBytes int64 // of all files, those that are prepared or free included
	LiveBytes int64 // of entries and records that are needed
	Segments  int   // files that hold something
	Free      int   // files that are prepared, or wait to be used again

	Appends      int64 // calls of Append
	Batches      int64 // writes, each with one sync
	WrittenBytes int64 // by batches, padding included
	CarriedBytes int64 // of them, moved from old segments
	Switches     int64 // to another segment
	Reused       int64 // segments that were free before

	WriteSeconds   float64 // spent in writes and syncs
	GatherSeconds  float64 // spent by writes waiting for appends that were expected
	SlowestSeconds float64 // the slowest of them
	SwitchSeconds  float64 // spent waiting for segments that were not ready
	CrowdedSeconds float64 // spent by appends waiting for the cleaner
}

// Metrics reads the counters.
func (l *Log) Metrics() Metrics {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.stats
	for _, s := range l.table.segs {
		m.DiskBytes += s.bytes
		m.LiveBytes += s.live
	}
	m.Segments = len(l.table.segs)
	for _, s := range l.released {
		m.DiskBytes += s.bytes
		m.Free++
	}
	if l.ready != nil {
		m.DiskBytes += l.ready.bytes
		m.Free++
	}
	return m
}
