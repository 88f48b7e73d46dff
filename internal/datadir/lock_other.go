//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd || windows)

package datadir

import (
	"errors"
	"fmt"
	"os"
)

// lockFile is not offered by this system. A directory without a lock could be
// written by two nodes.
func lockFile(string) (*os.File, error) {
	return nil, fmt.Errorf("file locks: %w on this system", errors.ErrUnsupported)
}

func syncDir(string) error { return nil }
