//go:build unix

package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// othersMay are the mode bits that let group or others read or write.
const othersMay fs.FileMode = 0o066

// openRead opens path for reading without ever waiting: a named pipe that took
// the place of the file would otherwise block the open until a writer comes.
func openRead(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

func checkMode(path string, mode fs.FileMode) error {
	if mode.Perm()&othersMay == 0 {
		return nil
	}
	return fmt.Errorf("key file %q: mode %#o lets group or others read or write it; run: chmod 600 %s", path, mode.Perm(), shellQuote(path))
}

// restrict makes sure that only the owner has access to the new file f.
func restrict(f *os.File) error {
	// It was created with 0600, but the umask may have taken bits away.
	// Some file systems refuse every change of mode; the look at the result
	// decides, not this error.
	cerr := f.Chmod(0o600)
	fi, err := f.Stat()
	if err != nil {
		return bare(err)
	}
	if fi.Mode().Perm()&othersMay != 0 {
		// Such a file would be refused at the next start: better now.
		err := fmt.Errorf("the file system gives new files mode %#o, so the key would not be secret; name a path on another file system, or mount this one with umask=077", fi.Mode().Perm())
		if cerr != nil {
			err = fmt.Errorf("%w (chmod: %w)", err, bare(cerr))
		}
		return err
	}
	return nil
}

// syncDir makes the name of a new file survive a power cut.
func syncDir(path string) error {
	dir := filepath.Dir(path)
	d, err := os.Open(dir)
	if err == nil {
		err = d.Sync()
		d.Close() //nolint:errcheck // only read
	}
	switch {
	case err == nil,
		// A directory may be writable and not readable, and some file
		// systems cannot sync one. The file is complete all the same.
		errors.Is(err, fs.ErrPermission),
		errors.Is(err, syscall.EINVAL),
		errors.Is(err, errors.ErrUnsupported):
		return nil
	}
	return fmt.Errorf("key file %q: syncing its directory: %w; the file is in place, try again", path, bare(err))
}
