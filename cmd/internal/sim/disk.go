package sim

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	pebble "github.com/cockroachdb/pebble/v2/vfs"
)

// disk is what one machine has stored: what its kernel knows, and what of it a
// power loss would leave.
//
// A file is a list of pages. Sync remembers the list; a page that is
// remembered is copied before it is written again, so that a sync costs what
// has changed and not what is there. Directories are maps of names and work
// the same way: a name is durable when its directory was synced.
//
//	cur:    [p1][p2'][p3]      what reads see
//	synced: [p1][p2 ]          what is left for sure
type disk struct {
	mu   sync.Mutex
	root *inode
	used int64 // bytes in files, for the free space
}

const (
	pageSize = 4096
	// sectorSize is what a device writes whole: a torn page is old and new in
	// sectors.
	sectorSize = 512
)

// inode is a file or a directory. Guarded by disk.mu.
type inode struct {
	dir      bool
	children map[string]*inode // of a directory
	known    map[string]*inode // of a directory, as last synced
	pages    []*page           // of a file
	size     int64
	synced   []*page
	safe     int64 // size as last synced
	dirty    bool  // pages, size or children differ from what is synced
	modTime  time.Time
	links    int
}

type page struct {
	shared bool // in another list too: copy before writing
	data   [pageSize]byte
}

func newDisk() *disk { return &disk{root: newDir()} }

func newDir() *inode {
	return &inode{dir: true, children: map[string]*inode{}, known: map[string]*inode{}}
}

// survivors is what is left of a disk after a fault.
type survivors struct {
	// keep is the chance that what was not synced is there after all: each
	// sector and each name for itself.
	keep float64
	rng  *rand.Rand // needed if keep is neither 0 nor 1
}

// clone is the disk as it is when a process ends and the machine goes on: all
// is there, and what was not synced is still not durable.
func (d *disk) clone() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	copies := map[*inode]*inode{}
	c := &disk{root: cloneInode(d.root, copies), used: d.used}
	return c
}

func cloneInode(n *inode, copies map[*inode]*inode) *inode {
	if c := copies[n]; c != nil {
		return c
	}
	c := *n
	copies[n] = &c
	if n.dir {
		c.children, c.known = map[string]*inode{}, map[string]*inode{}
		for name, child := range n.children {
			c.children[name] = cloneInode(child, copies)
		}
		for name, child := range n.known {
			c.known[name] = cloneInode(child, copies)
		}
		return &c
	}
	share(n.pages)
	share(n.synced)
	c.pages, c.synced = slices.Clone(n.pages), slices.Clone(n.synced)
	return &c
}

func share(pages []*page) {
	for _, p := range pages {
		if p != nil && !p.shared {
			p.shared = true
		}
	}
}

// afterPowerLoss is the disk as it is found when power is back. What is there
// then is durable.
func (d *disk) afterPowerLoss(s survivors) *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &disk{}
	copies := map[*inode]*inode{}
	c.root = s.inode(d.root, copies)
	for _, n := range copies {
		if !n.dir {
			c.used += n.size
		}
	}
	return c
}

func (s survivors) lucky() bool {
	return s.keep >= 1 || s.keep > 0 && s.rng.Float64() < s.keep
}

func (s survivors) inode(n *inode, copies map[*inode]*inode) *inode {
	if c := copies[n]; c != nil {
		return c
	}
	if n.dir {
		c := newDir()
		c.modTime = n.modTime
		copies[n] = c
		names := maps.Clone(n.known)
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			// A name that was moved or removed and not synced comes back, unless
			// another has taken its place.
			if child := n.children[name]; names[name] != child && s.lucky() {
				names[name] = child
			}
		}
		if s.keep >= 1 {
			names = n.children
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			child := s.inode(names[name], copies)
			child.links++
			c.children[name] = child
		}
		c.known = maps.Clone(c.children)
		return c
	}
	c := &inode{modTime: n.modTime, size: n.safe, pages: slices.Clone(n.synced)}
	copies[n] = c
	share(n.synced)
	if n.dirty {
		s.unsynced(n, c)
	}
	share(c.pages)
	c.synced, c.safe = slices.Clone(c.pages), c.size
	return c
}

// unsynced adds to c what of n's changes since the last sync was written by
// chance, whole sectors at a time and in any order.
func (s survivors) unsynced(n, c *inode) {
	if s.keep >= 1 {
		share(n.pages)
		c.pages, c.size = slices.Clone(n.pages), n.size
		return
	}
	for i, p := range n.pages {
		if p == nil || i < len(n.synced) && n.synced[i] == p {
			continue
		}
		for at := 0; at < pageSize; at += sectorSize {
			begin := int64(i)*pageSize + int64(at)
			if begin >= n.size || !s.lucky() {
				continue
			}
			for len(c.pages) <= i {
				c.pages = append(c.pages, nil)
			}
			to := writable(&c.pages[i])
			end := min(begin+sectorSize, n.size)
			copy(to.data[at:], p.data[at:at+int(end-begin)])
			c.size = max(c.size, end)
		}
	}
	if n.size < c.size && s.lucky() {
		c.size = n.size // truncated
	}
}

// writable is a page that may be changed.
func writable(p **page) *page {
	switch {
	case *p == nil:
		*p = &page{}
	case (*p).shared:
		own := &page{data: (*p).data}
		*p = own
	}
	return *p
}

// walkLocked finds the directory of a path and its last name.
func (d *disk) walkLocked(op, full string) (dir *inode, name string, err error) {
	full = path.Clean("/" + full)
	dir = d.root
	for {
		full = strings.TrimPrefix(full, "/")
		first, rest, more := strings.Cut(full, "/")
		if !more {
			return dir, first, nil
		}
		child := dir.children[first]
		if child == nil || !child.dir {
			return nil, "", &os.PathError{Op: op, Path: full, Err: os.ErrNotExist}
		}
		dir, full = child, rest
	}
}

func (d *disk) findLocked(op, full string) (*inode, error) {
	dir, name, err := d.walkLocked(op, full)
	if err != nil {
		return nil, err
	}
	if name == "" {
		return dir, nil
	}
	n := dir.children[name]
	if n == nil {
		return nil, &os.PathError{Op: op, Path: full, Err: os.ErrNotExist}
	}
	return n, nil
}

func (d *disk) linkLocked(dir *inode, name string, n *inode) {
	d.unlinkLocked(dir, name)
	dir.children[name] = n
	dir.dirty = true
	n.links++
}

func (d *disk) unlinkLocked(dir *inode, name string) {
	n := dir.children[name]
	if n == nil {
		return
	}
	delete(dir.children, name)
	dir.dirty = true
	if n.links--; n.links == 0 {
		d.used -= n.size
	}
}

// open finds a file, or makes it.
func (d *disk) open(op, full string, create, fresh bool) (*inode, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, name, err := d.walkLocked(op, full)
	if err != nil {
		return nil, err
	}
	if name == "" {
		return dir, nil
	}
	n := dir.children[name]
	switch {
	case n != nil && !fresh:
		return n, nil
	case !create:
		return nil, &os.PathError{Op: op, Path: full, Err: os.ErrNotExist}
	case n != nil && n.dir:
		return nil, &os.PathError{Op: op, Path: full, Err: syscall.EISDIR}
	}
	n = &inode{modTime: time.Now(), dirty: true}
	d.linkLocked(dir, name, n)
	return n, nil
}

func (d *disk) remove(full string, all bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, name, err := d.walkLocked("remove", full)
	if err != nil || dir.children[name] == nil {
		if all {
			return nil
		}
		return &os.PathError{Op: "remove", Path: full, Err: os.ErrNotExist}
	}
	n := dir.children[name]
	if n.dir && len(n.children) > 0 {
		if !all {
			return &os.PathError{Op: "remove", Path: full, Err: syscall.ENOTEMPTY}
		}
		d.clearLocked(n)
	}
	d.unlinkLocked(dir, name)
	return nil
}

func (d *disk) clearLocked(dir *inode) {
	for name, child := range dir.children {
		if child.dir {
			d.clearLocked(child)
		}
		d.unlinkLocked(dir, name)
	}
}

func (d *disk) rename(from, to string, keep bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	fromDir, fromName, err := d.walkLocked("rename", from)
	if err != nil {
		return err
	}
	n := fromDir.children[fromName]
	if n == nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: os.ErrNotExist}
	}
	toDir, toName, err := d.walkLocked("rename", to)
	if err != nil {
		return err
	}
	if keep && toDir.children[toName] != nil {
		return &os.LinkError{Op: "link", Old: from, New: to, Err: os.ErrExist}
	}
	if toDir.children[toName] == n {
		return nil
	}
	d.linkLocked(toDir, toName, n)
	if !keep {
		d.unlinkLocked(fromDir, fromName)
	}
	return nil
}

func (d *disk) makeAll(full string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := d.root
	for name := range strings.SplitSeq(path.Clean("/" + full)[1:], "/") {
		if name == "" {
			continue
		}
		child := at.children[name]
		if child == nil {
			child = newDir()
			child.modTime = time.Now()
			d.linkLocked(at, name, child)
		}
		if !child.dir {
			return &os.PathError{Op: "mkdir", Path: full, Err: syscall.ENOTDIR}
		}
		at = child
	}
	return nil
}

func (d *disk) list(full string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.findLocked("readdir", full)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, &os.PathError{Op: "readdir", Path: full, Err: syscall.ENOTDIR}
	}
	return slices.Sorted(maps.Keys(n.children)), nil
}

// writeAt is how many bytes the file has grown by.
func (d *disk) writeAt(n *inode, b []byte, off int64) (grown int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for done := 0; done < len(b); {
		at := off + int64(done)
		i := int(at / pageSize)
		for len(n.pages) <= i {
			n.pages = append(n.pages, nil)
		}
		done += copy(writable(&n.pages[i]).data[at%pageSize:], b[done:])
	}
	n.dirty = true
	n.modTime = time.Now()
	if end := off + int64(len(b)); end > n.size {
		grown = end - n.size
		n.size = end
		d.used += grown
	}
	return grown
}

func (d *disk) readAt(n *inode, b []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off >= n.size {
		return 0, io.EOF
	}
	want := int(min(int64(len(b)), n.size-off))
	for done := 0; done < want; {
		at := off + int64(done)
		i := int(at / pageSize)
		if i < len(n.pages) && n.pages[i] != nil {
			done += copy(b[done:want], n.pages[i].data[at%pageSize:])
			continue
		}
		hole := min(want-done, int(pageSize-at%pageSize))
		clear(b[done : done+hole])
		done += hole
	}
	if want < len(b) {
		return want, io.EOF
	}
	return want, nil
}

// sync makes a file's content, or a directory's names, durable.
func (d *disk) sync(n *inode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !n.dirty {
		return
	}
	n.dirty = false
	if n.dir {
		n.known = maps.Clone(n.children)
		return
	}
	n.synced = append(n.synced[:min(len(n.synced), len(n.pages))], make([]*page, max(0, len(n.pages)-len(n.synced)))...)
	for i, p := range n.pages {
		if n.synced[i] != p {
			n.synced[i] = p
			p.shared = true
		}
	}
	n.safe = n.size
}

// flip changes one bit of what is stored in a file.
func (d *disk) flip(full string, bit int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.findLocked("flip", full)
	if err != nil {
		return err
	}
	if n.dir || n.size == 0 {
		return fmt.Errorf("%s has no bits", full)
	}
	bit %= n.size * 8
	at := bit / 8
	for _, pages := range []*[]*page{&n.pages, &n.synced} {
		if i := int(at / pageSize); i < len(*pages) && (*pages)[i] != nil {
			writable(&(*pages)[i]).data[at%pageSize] ^= 1 << (bit % 8)
		}
	}
	n.dirty = true
	return nil
}

// info is an inode as others see it.
type info struct {
	name    string
	size    int64
	dir     bool
	modTime time.Time
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return i.modTime }
func (i info) IsDir() bool        { return i.dir }
func (i info) Sys() any           { return nil }
func (i info) Mode() os.FileMode {
	if i.dir {
		return os.ModeDir | 0o755
	}
	return 0o644
}
func (i info) DeviceID() pebble.DeviceID { return pebble.DeviceID{} }

func (d *disk) stat(n *inode, name string) info {
	d.mu.Lock()
	defer d.mu.Unlock()
	return info{name: name, size: n.size, dir: n.dir, modTime: n.modTime}
}
