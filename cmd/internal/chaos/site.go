package chaos

import (
	"fmt"
	"os/exec"
)

// Site is where the processes of a cluster live: their addresses, how one is
// started, and what can be done to the network and the disks between them.
// Nodes are numbered from 0.
type Site interface {
	// Addresses that node i listens on.
	Addresses(i int) (client, peer, http string, err error)
	// Command runs a program where node i lives.
	Command(i int, path string, args ...string) *exec.Cmd
	// Network says whether Cut can do anything, and what the network is.
	Network() (cuts bool, text string)
	// Cut drops what node from sends to node to, and nothing else, until Mend.
	Cut(from, to int) error
	// Mend ends all cuts.
	Mend() error
	// SmallDisk gives node i a file system of so many bytes at dir, if it can.
	SmallDisk(i int, dir string, bytes int64) (bool, error)
	// Close removes what the site has made.
	Close() error
}

// loopback is 127.0.0.1 for all: nothing can be cut.
type loopback struct{}

// Loopback is the site of plain processes.
func Loopback() Site { return loopback{} }

func (loopback) Addresses(int) (client, peer, http string, err error) {
	for _, addr := range []*string{&client, &peer, &http} {
		if *addr, err = freeAddr(); err != nil {
			return "", "", "", err
		}
	}
	return client, peer, http, nil
}

func (loopback) Command(_ int, path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = processAttributes()
	return cmd
}

func (loopback) Network() (bool, string) { return false, "plain loopback" }

func (loopback) Cut(from, to int) error {
	return fmt.Errorf("on plain loopback node %d cannot be cut off from node %d", from, to)
}

func (loopback) Mend() error { return nil }

func (loopback) SmallDisk(int, string, int64) (bool, error) { return false, nil }

func (loopback) Close() error { return nil }
