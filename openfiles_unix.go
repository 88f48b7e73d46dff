//go:build unix

package p2pnode

import "golang.org/x/sys/unix"

// openFiles returns how many files the process may open, if there is a limit.
func openFiles() (uint64, bool) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0, false
	}
	return uint64(r.Cur), true //nolint:unconvert // it is signed on some systems
}
