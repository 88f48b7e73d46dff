//go:build unix

package datadir

import (
	"fmt"
	"os"

	"github.com/go-p2pnode/p2pnode/internal/atomicfile"
)

// checkMode refuses a directory that everybody may write to: they could replace
// the node's key with theirs, or take the lock. A directory that its group may
// write to is accepted, because mounted volumes often are.
func checkMode(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("looking at the directory %q: %w", path, atomicfile.Bare(err))
	}
	if mode := fi.Mode().Perm(); fi.IsDir() && mode&0o002 != 0 {
		return fmt.Errorf("the directory %q has mode %#o: %w; give it mode 0700, or name another directory", path, mode, ErrExposed)
	}
	return nil
}
