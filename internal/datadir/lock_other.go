//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd || windows)

package datadir

import (
	"errors"
	"fmt"
	"io"
)

// lockDir is not offered by this system. A directory without a lock could be
// written by two nodes.
func lockDir(string) (io.Closer, error) {
	return nil, fmt.Errorf("file locks: %w on this system", errors.ErrUnsupported)
}
