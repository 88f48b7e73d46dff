//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd || windows)

package datadir

import (
	"errors"
	"fmt"
	"io"
)

// lockDir is not supported on this system. Without a lock, two nodes could
// write to the directory.
func lockDir(string) (io.Closer, error) {
	return nil, fmt.Errorf("file locks: %w on this system", errors.ErrUnsupported)
}
