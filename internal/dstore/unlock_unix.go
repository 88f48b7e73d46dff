//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package dstore

import (
	"os"
	"syscall"
)

// closeMapped closes a file that stays mapped. The mapping would keep its lock.
func closeMapped(f *os.File) error {
	_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) // another Open finds out
	return f.Close()
}
