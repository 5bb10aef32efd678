//go:build !linux

package chaos

import (
	"context"
	"errors"
	"io"
)

var errLinux = errors.New("namespaces are a thing of Linux")

// Stub runs what this program is when it was started as one of its own helpers;
// false if it was not.
func Stub([]string) (ran bool, err error) { return false, nil }

// Isolated says whether this process lives in namespaces of its own.
func Isolated() bool { return false }

// Isolate runs this program again in namespaces of its own; here it cannot.
func Isolate(context.Context, []string, io.Reader, io.Writer, io.Writer) (int, error) {
	return 0, errLinux
}

// Namespaces makes a site of network namespaces; here it cannot.
func Namespaces(context.Context, int) (Site, error) { return nil, errLinux }
