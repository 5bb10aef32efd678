//go:build !linux

package chaos

import "syscall"

// processAttributes: elsewhere a node may outlive a test that was killed.
func processAttributes() *syscall.SysProcAttr { return nil }
