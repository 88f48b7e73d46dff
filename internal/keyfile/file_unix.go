//go:build unix

package keyfile

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
)

// The mode bits that let group or others read or write, and those of them that
// may be intended.
const (
	othersMay  fs.FileMode = 0o066
	groupReads fs.FileMode = 0o040
)

// openRead opens path for reading without ever blocking: a named pipe that
// replaced the file would block until a writer comes.
func openRead(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// checkMode refuses a file that somebody else has access to.
func checkMode(path string, fi fs.FileInfo) error {
	mode := fi.Mode().Perm()
	if mode&othersMay == 0 || mode&othersMay == groupReads && given(fi) {
		return nil
	}
	return fmt.Errorf("key file %q: mode %#o: %w; run: chmod 600 %s", path, mode, ErrExposed, shellQuote(path))
}

// given reports whether a file that its group may read was given to this
// process like that, so that it cannot change the mode: the file belongs to
// somebody else or is not writable, and the process is its owner or in its
// group.
func given(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	owner := int(st.Uid) == os.Geteuid()
	if owner {
		return fi.Mode().Perm()&0o200 == 0
	}
	groups, err := os.Getgroups()
	return int(st.Gid) == os.Getegid() || err == nil && slices.Contains(groups, int(st.Gid))
}
