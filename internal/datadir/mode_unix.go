//go:build unix

package datadir

import (
	"fmt"
	"os"

	"github.com/go-p2pnode/p2pnode/internal/atomicfile"
)

// checkMode refuses a directory that everybody may write to: they could put a
// key of theirs where the node's is, or take the lock. One that its group may
// write to is accepted, because mounted volumes come like that.
func checkMode(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("looking at the directory %q: %w", path, atomicfile.Bare(err))
	}
	if mode := fi.Mode().Perm(); fi.IsDir() && mode&0o002 != 0 {
		return fmt.Errorf("the directory %q has mode %#o: %w; give it mode 0700, or name another one", path, mode, ErrExposed)
	}
	return nil
}
