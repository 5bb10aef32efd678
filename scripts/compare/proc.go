package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

// sample is the resource use of all servers of a run directory.
type sample struct {
	cpu    float64 // seconds, all servers with their children
	wbytes int64   // bytes written to the disk by the whole machine (/proc/PID/io counts whole large folios on Linux 6.18)
	rss    []int64 // MiB per server (a server with children: its PSS sum)
	disk   []int64 // MiB allocated per data directory
}

func readPid(dir string, node int) int {
	b, _ := os.ReadFile(filepath.Join(dir, strconv.Itoa(node)+".pid"))
	p, _ := strconv.Atoi(strings.TrimSpace(strings.SplitN(string(b), "\n", 2)[0]))
	return p
}

func alive(pid int) bool {
	f := statFields(pid)
	return f != nil && f[0] != "Z"
}

func sampleDir(dir string) (s sample) {
	if dir == "" {
		return
	}
	s.wbytes = diskWritten(dir)
	pids, _ := filepath.Glob(filepath.Join(dir, "*.pid"))
	sort.Strings(pids)
	kids := map[int][]int{}
	ents, _ := os.ReadDir("/proc")
	for _, e := range ents {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if f := statFields(pid); f != nil {
				pp, _ := strconv.Atoi(f[1])
				kids[pp] = append(kids[pp], pid)
			}
		}
	}
	for _, pf := range pids {
		b, _ := os.ReadFile(pf)
		root, _ := strconv.Atoi(strings.TrimSpace(strings.SplitN(string(b), "\n", 2)[0]))
		if root <= 1 {
			continue
		}
		single := len(kids[root]) == 0
		var mem int64
		var walk func(int)
		walk = func(pid int) {
			f := statFields(pid)
			if f == nil {
				return
			}
			for _, i := range []int{11, 12} { // utime stime
				v, _ := strconv.ParseInt(f[i], 10, 64)
				s.cpu += float64(v) / 100
			}
			if !single && pid == root { // exited children
				for _, i := range []int{13, 14} {
					v, _ := strconv.ParseInt(f[i], 10, 64)
					s.cpu += float64(v) / 100
				}
			}
			if single {
				mem += field(pid, "status", "VmRSS:")
			} else {
				mem += field(pid, "smaps_rollup", "Pss:")
			}
			for _, k := range kids[pid] {
				walk(k)
			}
		}
		walk(root)
		s.rss = append(s.rss, mem/1024)
	}
	dirs, _ := filepath.Glob(filepath.Join(dir, "data*"))
	sort.Strings(dirs)
	for _, d := range dirs {
		var n int64
		filepath.WalkDir(d, func(_ string, e fs.DirEntry, err error) error {
			if err == nil {
				if fi, err := e.Info(); err == nil {
					n += fi.Sys().(*syscall.Stat_t).Blocks * 512
				}
			}
			return nil
		})
		s.disk = append(s.disk, n>>20)
	}
	return
}

// diskWritten is what was written so far to the device that holds dir.
func diskWritten(dir string) int64 {
	var st syscall.Stat_t
	if syscall.Stat(dir, &st) != nil {
		return 0
	}
	major := strconv.FormatUint(st.Dev>>8&0xfff, 10)
	minor := strconv.FormatUint(st.Dev&0xff|st.Dev>>12&0xfff00, 10)
	b, _ := os.ReadFile("/proc/diskstats")
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Fields(l); len(f) > 9 && f[0] == major && f[1] == minor {
			n, _ := strconv.ParseInt(f[9], 10, 64)
			return n * 512
		}
	}
	return 0
}

// statFields returns /proc/PID/stat from the state on ([0] state, [1] ppid, [11] utime …).
func statFields(pid int) []string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	i := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 15 {
		return nil
	}
	return f
}

func field(pid int, file, name string) int64 {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/" + file)
	for _, l := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(l, name) {
			if f := strings.Fields(l[len(name):]); len(f) > 0 {
				v, _ := strconv.ParseInt(f[0], 10, 64)
				return v
			}
		}
	}
	return 0
}

func selfCPU() float64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

// busyCPU is the machine's non-idle CPU seconds (steal left out).
func busyCPU() (s float64) {
	b, _ := os.ReadFile("/proc/stat")
	f := strings.Fields(strings.SplitN(string(b), "\n", 2)[0])
	for _, i := range []int{1, 2, 3, 6, 7} {
		v, _ := strconv.ParseInt(f[i], 10, 64)
		s += float64(v) / 100
	}
	return
}
