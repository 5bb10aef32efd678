package chaos

import "syscall"

// processAttributes ties a node's life to the life of this process, and keeps
// the terminal's Ctrl-C, which is for this process, from it.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
