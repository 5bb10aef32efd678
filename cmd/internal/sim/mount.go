package sim

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/impossibledb/idb/fsm/vfs"

	pebble "github.com/cockroachdb/pebble/v2/vfs"
)

// Drive is a machine's disk and what is wrong with it. It stays when processes
// come and go; each process uses it through a Mount of its own.
//
// Waiting happens in syncs only, where an operating system waits for the
// device too: what a process writes goes to memory. A caller may hold a mutex
// around a write, and virtual time stands still while somebody waits for a
// mutex.
type Drive struct {
	mu      sync.Mutex
	rng     *rand.Rand    // guarded by mu
	disk    *disk         // guarded by mu; of the latest process
	mount   *Mount        // guarded by mu; of the latest process, nil: none
	latency time.Duration // guarded by mu; of a sync
	jitter  time.Duration // guarded by mu
	hung    chan struct{} // guarded by mu; not nil: syncs wait until it is closed
	stopped chan struct{} // guarded by mu; the same while the process is paused
	lies    bool          // guarded by mu; syncs answer and do nothing
	failure error         // guarded by mu; what syncs and writes answer
	size    int64         // guarded by mu
	syncs   atomic.Int64
}

// driveSize is what fits on a healthy drive. It is never reached: space goes
// when a fault takes it.
const driveSize = 64 << 30

// NewDrive is an empty one.
func NewDrive(rng *rand.Rand) *Drive {
	return &Drive{rng: rng, disk: newDisk(), size: driveSize, latency: 100 * time.Microsecond, jitter: 200 * time.Microsecond}
}

// Mount gives a new process the drive.
func (d *Drive) Mount() *Mount {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mount = &Mount{drive: d, disk: d.disk, locks: map[string]bool{}}
	return d.mount
}

// Kill takes the drive from the process that has it, which does not notice: it
// goes on with a copy that nobody will see, so that it can be closed in peace.
func (d *Drive) Kill() { d.detach(func(old *disk) *disk { return old.clone() }) }

// CutPower is Kill for the whole machine: of what was not synced, only the
// share keep is left.
func (d *Drive) CutPower(keep float64) {
	d.mu.Lock()
	rng := rand.New(rand.NewPCG(d.rng.Uint64(), 0))
	d.mu.Unlock()
	d.detach(func(old *disk) *disk { return old.afterPowerLoss(survivors{keep: keep, rng: rng}) })
}

func (d *Drive) detach(left func(*disk) *disk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mount == nil {
		return
	}
	d.disk = left(d.disk)
	d.mount.gone.Store(true)
	d.mount = nil
	// It may wait for what it has asked; nobody sees the answer.
	if d.hung != nil {
		close(d.hung)
		d.hung = make(chan struct{})
	}
	d.goOnLocked()
}

// Hang makes every sync wait, until Repair.
func (d *Drive) Hang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hung == nil {
		d.hung = make(chan struct{})
	}
}

// Stop makes every sync wait while the process that asks is paused.
func (d *Drive) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped == nil {
		d.stopped = make(chan struct{})
	}
}

// Continue ends Stop.
func (d *Drive) Continue() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.goOnLocked()
}

func (d *Drive) goOnLocked() {
	if d.stopped != nil {
		close(d.stopped)
		d.stopped = nil
	}
}

// Slow sets how long a sync takes.
func (d *Drive) Slow(latency, jitter time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.latency, d.jitter = latency, jitter
}

// Fail makes every write and sync fail.
func (d *Drive) Fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failure = err
}

// Lie makes every sync answer and do nothing, as a device does that answers
// from a cache it loses with its power. No database survives that; the tests
// of the simulator do it to see that it is noticed.
func (d *Drive) Lie() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lies = true
}

// Fill leaves that many bytes free.
func (d *Drive) Fill(free int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.size = d.disk.usedBytes() + free
}

// Repair ends every fault.
func (d *Drive) Repair() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hung != nil {
		close(d.hung)
		d.hung = nil
	}
	d.failure, d.lies = nil, false
	d.size = driveSize
	d.latency, d.jitter = 100*time.Microsecond, 200*time.Microsecond
}

// Flip changes one bit of a file.
func (d *Drive) Flip(name string, bit int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.disk.flip(name, bit)
}

// Used is how many bytes the files have.
func (d *Drive) Used() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.disk.usedBytes()
}

func (d *disk) usedBytes() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used
}

// wait is what a sync takes.
func (d *Drive) wait() error {
	d.syncs.Add(1)
	d.mu.Lock()
	hung, stopped, failure, pause := d.hung, d.stopped, d.failure, d.latency
	if d.jitter > 0 {
		pause += time.Duration(d.rng.Int64N(int64(d.jitter)))
	}
	d.mu.Unlock()
	if failure != nil {
		return failure
	}
	time.Sleep(pause)
	for _, wait := range []chan struct{}{hung, stopped} {
		if wait != nil {
			<-wait
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failure
}

// Mount is one process's view of a drive: a vfs.FS. Its locks end with it.
type Mount struct {
	drive *Drive
	disk  *disk
	gone  atomic.Bool // the process was killed: nothing it does is seen, no fault is felt
	quick atomic.Bool // syncs take no time: an engine that closes holds its mutex around them

	mu    sync.Mutex
	locks map[string]bool // guarded by mu
}

// room refuses growth that the drive has no space for, and writes to a broken one.
func (m *Mount) room(bytes int64) error {
	if m.gone.Load() {
		return nil
	}
	m.drive.mu.Lock()
	defer m.drive.mu.Unlock()
	if m.drive.failure != nil {
		return m.drive.failure
	}
	if m.drive.size < driveSize && m.disk.usedBytes()+bytes > m.drive.size {
		return syscall.ENOSPC
	}
	return nil
}

// fitsAnywhere says whether there is room for a file on a full drive too: for
// what the storage engine writes in the second half of its opening, its options
// and an empty log. When it cannot, it leaves a goroutine behind, which a process
// that ends may do, and one that plays several lives may not.
func fitsAnywhere(base string) bool {
	return strings.HasPrefix(base, "temporary.") || strings.HasSuffix(base, ".log")
}

func (m *Mount) opened(n *inode, name string, write bool) vfs.File {
	return &file{m: m, n: n, name: path.Base(name), write: write}
}

// Create makes a new file, in place of one that is there.
func (m *Mount) Create(name string, _ vfs.WriteCategory) (vfs.File, error) {
	if err := m.room(pageSize); err != nil && !(err == syscall.ENOSPC && fitsAnywhere(path.Base(name))) {
		return nil, &os.PathError{Op: "create", Path: name, Err: err}
	}
	n, err := m.disk.open("create", name, true, true)
	if err != nil {
		return nil, err
	}
	return m.opened(n, name, true), nil
}

// Open opens a file for reading.
func (m *Mount) Open(name string, opts ...pebble.OpenOption) (vfs.File, error) {
	n, err := m.disk.open("open", name, false, false)
	if err != nil {
		return nil, err
	}
	f := m.opened(n, name, false)
	for _, o := range opts {
		o.Apply(f)
	}
	return f, nil
}

// OpenReadWrite opens a file, or makes it.
func (m *Mount) OpenReadWrite(name string, _ vfs.WriteCategory, _ ...pebble.OpenOption) (vfs.File, error) {
	n, err := m.disk.open("open", name, true, false)
	if err != nil {
		return nil, err
	}
	return m.opened(n, name, true), nil
}

// OpenDir opens a directory to sync it.
func (m *Mount) OpenDir(name string) (vfs.File, error) { return m.Open(name) }

// Remove removes a file or an empty directory.
func (m *Mount) Remove(name string) error { return m.disk.remove(name, false) }

// RemoveAll removes a tree.
func (m *Mount) RemoveAll(name string) error { return m.disk.remove(name, true) }

// Rename moves a file over another.
func (m *Mount) Rename(from, to string) error { return m.disk.rename(from, to, false) }

// Link gives a file a second name.
func (m *Mount) Link(from, to string) error { return m.disk.rename(from, to, true) }

// ReuseForWrite moves a file and opens it, its old content still there.
func (m *Mount) ReuseForWrite(from, to string, c vfs.WriteCategory) (vfs.File, error) {
	if err := m.Rename(from, to); err != nil {
		return nil, err
	}
	return m.OpenReadWrite(to, c)
}

// MkdirAll makes a directory and its parents.
func (m *Mount) MkdirAll(name string, _ os.FileMode) error { return m.disk.makeAll(name) }

// Lock takes a file for this process.
func (m *Mount) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locks[name] {
		return nil, syscall.EAGAIN
	}
	if _, err := m.disk.open("lock", name, true, false); err != nil {
		return nil, err
	}
	m.locks[name] = true
	return closer(func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.locks, name)
		return nil
	}), nil
}

type closer func() error

func (c closer) Close() error { return c() }

// List lists a directory.
func (m *Mount) List(name string) ([]string, error) { return m.disk.list(name) }

// Stat describes a file.
func (m *Mount) Stat(name string) (pebble.FileInfo, error) {
	n, err := m.disk.open("stat", name, false, false)
	if err != nil {
		return nil, err
	}
	return m.disk.stat(n, path.Base(name)), nil
}

// GetDiskUsage tells the free space.
func (m *Mount) GetDiskUsage(string) (pebble.DiskUsage, error) {
	m.drive.mu.Lock()
	size := m.drive.size
	m.drive.mu.Unlock()
	used := m.disk.usedBytes()
	free := max(0, size-used)
	return pebble.DiskUsage{TotalBytes: uint64(size), UsedBytes: uint64(used), AvailBytes: uint64(free)}, nil
}

// PathBase is path.Base.
func (*Mount) PathBase(p string) string { return path.Base(p) }

// PathJoin is path.Join.
func (*Mount) PathJoin(elem ...string) string { return path.Join(elem...) }

// PathDir is path.Dir.
func (*Mount) PathDir(p string) string { return path.Dir(p) }

// Unwrap is nil: there is nothing underneath.
func (*Mount) Unwrap() vfs.FS { return nil }

// file is an open file. Like an operating system's, it stays when its name is
// removed.
type file struct {
	m     *Mount
	n     *inode
	name  string
	write bool
	at    int64 // guarded by the callers: one goroutine reads or writes at a time
}

var errReadOnly = errors.New("file was opened for reading")

func (f *file) Close() error { return nil }

func (f *file) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	read, err := f.m.disk.readAt(f.n, b, f.at)
	f.at += int64(read)
	if read > 0 {
		err = nil
	}
	return read, err
}

func (f *file) ReadAt(b []byte, off int64) (int, error) { return f.m.disk.readAt(f.n, b, off) }

func (f *file) Write(b []byte) (int, error) {
	written, err := f.WriteAt(b, f.at)
	f.at += int64(written)
	return written, err
}

func (f *file) WriteAt(b []byte, off int64) (int, error) {
	if !f.write {
		return 0, &os.PathError{Op: "write", Path: f.name, Err: errReadOnly}
	}
	grow := off + int64(len(b)) - f.m.disk.stat(f.n, "").size
	if err := f.m.room(max(0, grow)); err != nil && !(err == syscall.ENOSPC && fitsAnywhere(f.name)) {
		return 0, &os.PathError{Op: "write", Path: f.name, Err: err}
	}
	f.m.disk.writeAt(f.n, b, off)
	return len(b), nil
}

func (f *file) Stat() (pebble.FileInfo, error) { return f.m.disk.stat(f.n, f.name), nil }

// waits says whether a sync takes time. Those of directories and of the storage
// engine's own lists do not: the engine holds its mutex around some of them,
// and while another goroutine waits for that, virtual time stands still.
func (f *file) waits() bool {
	if f.n.dir {
		return false
	}
	for _, list := range []string{"MANIFEST-", "OPTIONS-", "marker.", "temporary."} {
		if strings.HasPrefix(f.name, list) {
			return false
		}
	}
	return true
}

// Sync returns when the content is durable. What is written meanwhile is not.
func (f *file) Sync() error {
	if !f.waits() || f.m.quick.Load() {
		if err := f.m.room(0); err != nil && err != syscall.ENOSPC {
			return &os.PathError{Op: "sync", Path: f.name, Err: err}
		}
	} else if !f.m.gone.Load() {
		if err := f.m.drive.wait(); err != nil && !f.m.gone.Load() {
			return &os.PathError{Op: "sync", Path: f.name, Err: err}
		}
	}
	if !f.m.lied() {
		f.m.disk.sync(f.n)
	}
	return nil
}

func (m *Mount) lied() bool {
	m.drive.mu.Lock()
	defer m.drive.mu.Unlock()
	return m.drive.lies
}

func (f *file) SyncData() error { return f.Sync() }

// SyncTo promises nothing.
func (f *file) SyncTo(int64) (bool, error) { return false, nil }

func (f *file) Prefetch(int64, int64) error    { return nil }
func (f *file) Preallocate(int64, int64) error { return nil }
func (f *file) Fd() uintptr                    { return pebble.InvalidFd }
