package chaos

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Sample is what a node's process holds at one moment.
type Sample struct {
	Goroutines  int
	HeapBytes   int64 // of Go's objects, garbage left out
	CacheBytes  int64 // of memory tables, cached blocks and newest versions, which fill up to a limit
	SpareBytes  int64 // of Go's heap: free, and not given back to the system
	MemoryBytes int64 // resident
	Files       int   // open, sockets included
	DiskBytes   int64 // of the data directory
}

func (s Sample) String() string {
	return fmt.Sprintf("%d goroutines, %d MiB resident, %d MiB heap, %d MiB caches, %d files, %d MiB on disk",
		s.Goroutines, s.MemoryBytes>>20, s.HeapBytes>>20, s.CacheBytes>>20, s.Files, s.DiskBytes>>20)
}

// Sample asks /metrics and /proc, after a garbage collection.
func (n *Node) Sample(ctx context.Context) (Sample, error) {
	// The profile's own figures are taken before it is written, which makes
	// megabytes of garbage.
	heap, err := n.fetch(ctx, "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return Sample{}, fmt.Errorf("%s: /debug/pprof/heap: %w", n.ID, err)
	}
	page, err := n.fetch(ctx, "/metrics")
	if err != nil {
		return Sample{}, fmt.Errorf("%s: /metrics: %w", n.ID, err)
	}
	var s Sample
	for _, m := range []struct {
		name string
		set  func(int64)
	}{
		{"HeapAlloc", func(v int64) { s.HeapBytes += v; s.SpareBytes -= v }},
		{"HeapSys", func(v int64) { s.SpareBytes += v }},
		{"HeapReleased", func(v int64) { s.SpareBytes -= v }},
	} {
		v, ok := metric(heap, "# "+m.name+" =")
		if !ok {
			return s, fmt.Errorf("%s: /debug/pprof/heap has no %s", n.ID, m.name)
		}
		m.set(int64(v))
	}
	for _, m := range []struct {
		name string
		set  func(float64)
	}{
		{"go_goroutines", func(v float64) { s.Goroutines = int(v) }},
		{`idb_engine_bytes{engine="state",use="memtable"}`, func(v float64) { s.CacheBytes += int64(v) }},
		{`idb_engine_bytes{engine="state",use="cache"}`, func(v float64) { s.CacheBytes += int64(v) }},
		{`idb_engine_bytes{engine="state",use="newest"}`, func(v float64) { s.CacheBytes += int64(v) }},
		{"process_resident_memory_bytes", func(v float64) { s.MemoryBytes = int64(v) }},
		{"process_open_fds", func(v float64) { s.Files = int(v) }},
	} {
		v, ok := metric(page, m.name)
		if !ok {
			return s, fmt.Errorf("%s: /metrics has no %s", n.ID, m.name)
		}
		m.set(v)
	}
	s.DiskBytes = directoryBytes(n.Dir)
	return s, nil
}

// metric finds the sample of a metric, its labels included in the name.
func metric(page []byte, name string) (float64, bool) {
	for sc := bufio.NewScanner(bytes.NewReader(page)); sc.Scan(); {
		if value, ok := strings.CutPrefix(sc.Text(), name+" "); ok {
			v, err := strconv.ParseFloat(value, 64)
			return v, err == nil
		}
	}
	return 0, false
}

// directoryBytes adds up the files below dir; those that vanish meanwhile
// count as nothing.
func directoryBytes(dir string) int64 {
	var sum int64
	_ = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				sum += info.Size()
			}
		}
		return nil
	})
	return sum
}

// ResidentBytes is the process's resident memory, asked of the kernel: it
// works while the node itself is too busy to answer.
func (n *Node) ResidentBytes() (int64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(n.PID()) + "/statm")
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0, fmt.Errorf("%s: /proc statm: %q", n.ID, b)
	}
	pages, err := strconv.ParseInt(f[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}
