//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package datadir

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// locks are open, locked files.
type locks []*os.File

// Close gives back the locks. Closing the files is not enough: a process that this
// one is about to start has them, too, until it runs its own program.
func (l locks) Close() error {
	var errs []error
	for _, f := range l {
		errs = append(errs, syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
	}
	return errors.Join(errs...)
}

// lockDir locks the lock file, and the directory itself if that is possible
// (NFS cannot), so that removing the file does not release the lock. The locks
// belong to the open files, so they also keep out a second node of this
// process.
func lockDir(path string) (io.Closer, error) {
	f, err := lock(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	d, err := lock(path, os.O_RDONLY)
	switch {
	case err == nil:
		return locks{f, d}, nil
	case errors.Is(err, ErrLocked):
		f.Close() //nolint:errcheck // nothing was written
		return nil, err
	default:
		return locks{f}, nil
	}
}

func lock(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close() //nolint:errcheck // nothing was written
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, err
	}
	return f, nil
}
