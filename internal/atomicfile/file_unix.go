//go:build unix

package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// restrict makes sure that only the owner has access to the new file f.
func restrict(f *os.File) error {
	// It was created with 0600, but the umask may have removed bits. Some file
	// systems refuse every change of mode: the resulting mode decides, not this
	// error.
	cerr := f.Chmod(0o600)
	fi, err := f.Stat()
	if err != nil {
		return Bare(err)
	}
	if mode := fi.Mode().Perm(); mode&0o066 != 0 {
		err := fmt.Errorf("%w: %#o", ErrNotPrivate, mode)
		if cerr != nil {
			err = fmt.Errorf("%w (chmod: %w)", err, Bare(cerr))
		}
		return err
	}
	return nil
}

// SyncDir syncs the names in a directory, if it can be synced: a directory may
// be writable but not readable, and some file systems do not support it.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err == nil || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return fmt.Errorf("syncing the directory %q: %w", dir, Bare(err))
}
