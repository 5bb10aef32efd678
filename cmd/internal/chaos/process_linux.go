package chaos

import "syscall"

// processAttributes ties a node's life to the life of this process.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
