//go:build unix

package p2pnode

import (
	"syscall"
	"time"
)

// cpuTime returns the processor time that this process has used, of the kernel's
// too.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
