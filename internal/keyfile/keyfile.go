// Package keyfile keeps a secret key in a file: it loads the file if it exists
// and creates it if not, in a way that survives crashes and several processes
// doing the same at the same time.
//
// An existing file is never replaced, truncated, repaired or removed, however
// damaged it looks: it may be the only copy of somebody's identity.
//
// A file is created by atomicfile.Create, so it is either absent or complete,
// and of several processes exactly one wins while the others load its key.
package keyfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-p2pnode/p2pnode/internal/atomicfile"
)

// MaxSize is the largest key file that is read or written, in bytes. The
// largest key in use, RSA with 8192 bits in base64, needs less than half.
const MaxSize = 16 << 10

// ErrExposed is returned for a file that too many may read or write.
var ErrExposed = errors.New("group or others may read or write it")

// untouched ends the errors about content.
const untouched = "the file was left untouched; move it away to get a new key, or restore it from a backup"

// LoadOrCreate returns the content of the file at path, or creates it with the
// result of generate if it does not exist; created reports which. check decides
// whether content is a usable key: it is called on what was read, and on what
// generate returned before anything is written. Its errors become part of the
// errors returned here, so they must not contain key material.
//
// The directory must exist: whoever knows who may read it creates it. A
// symbolic link to a file is followed; a dangling one is refused, because it
// usually means that the disk with the key is not mounted. On Unix, a file that
// others may read or write is refused with ErrExposed. So is one that its group
// may, unless this process cannot change that: a mounted secret of mode 0440,
// or another owner's file that only its group may read and only that owner may
// write. On Windows, where the mode says nothing about access, permissions are
// not checked and a new file inherits those of its directory.
//
// It is safe for concurrent use by any number of goroutines and processes on
// one path: all of them return the same key.
func LoadOrCreate(path string, generate func() ([]byte, error), check func([]byte) error) (data []byte, created bool, err error) {
	return loadOrCreate(path, generate, check, atomicfile.Create)
}

// loadOrCreate takes the last step as a parameter, for tests of file systems
// that are not at hand.
func loadOrCreate(path string, generate func() ([]byte, error), check func([]byte) error, create func(path string, data []byte) error) ([]byte, bool, error) {
	if path == "" {
		return nil, false, errors.New("key file: the path is empty; name a file")
	}
	if os.IsPathSeparator(path[len(path)-1]) {
		return nil, false, fmt.Errorf("key file %q: the path ends in a separator, which names a directory; add a file name", path)
	}

	data, err := load(path, check)
	if !errors.Is(err, errAbsent) {
		return data, false, err
	}
	if err := checkDir(path); err != nil {
		return nil, false, err
	}

	data, err = generate()
	if err != nil {
		return nil, false, fmt.Errorf("key file %q: making a key: %w", path, err)
	}
	if len(data) > MaxSize {
		return nil, false, fmt.Errorf("key file %q: the new key has %d bytes, more than the limit of %d", path, len(data), MaxSize)
	}
	if err := check(data); err != nil {
		return nil, false, fmt.Errorf("key file %q: the new key is not usable: %w", path, err)
	}

	err = create(path, data)
	if errors.Is(err, fs.ErrExist) {
		// Another process published its key since the first look. That key
		// counts; nobody has seen the one made here.
		data, err := load(path, check)
		if errors.Is(err, errAbsent) {
			return nil, false, fmt.Errorf("key file %q: it appeared and disappeared while it was being created; find out which program removes it", path)
		}
		if err != nil {
			return nil, false, err
		}
		// The winner may have been killed before it synced the
		// directory, and our caller is about to use the key.
		if err := atomicfile.SyncDir(filepath.Dir(path)); err != nil {
			return nil, false, notCreated(path, err)
		}
		return data, false, nil
	}
	if err != nil {
		return nil, false, notCreated(path, err)
	}
	return data, true, nil
}

// notCreated adds what to do about a file that could not be created.
func notCreated(path string, err error) error {
	way := "free the disk or name another path, and try again"
	switch {
	case errors.Is(err, atomicfile.ErrNotExclusive):
		way = "name a path on another file system, or create the file elsewhere and copy it there"
	case errors.Is(err, atomicfile.ErrNotPrivate):
		way = "name a path on another file system, or mount this one with umask=077"
	case errors.Is(err, fs.ErrPermission):
		way = wayOut(err)
	}
	return fmt.Errorf("key file %q: %w; %s", path, err, way)
}

// errAbsent is returned by load if nothing exists at the path.
var errAbsent = errors.New("no such key file")

// load reads and checks the file at path.
func load(path string, check func([]byte) error) ([]byte, error) {
	// Look before opening: opening a device or a pipe can have effects.
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if li, lerr := os.Lstat(path); lerr == nil && li.Mode()&fs.ModeSymlink != 0 {
			return nil, fmt.Errorf("key file %q: it is a dangling symbolic link: what it points to does not exist; "+
				"mount or restore the target, or remove the link to get a new key", path)
		}
		return nil, errAbsent
	}
	if err != nil {
		return nil, fmt.Errorf("key file %q: looking for it: %w; %s", path, atomicfile.Bare(err), wayOut(err))
	}
	if err := checkKind(path, fi); err != nil {
		return nil, err
	}

	f, err := openRead(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errAbsent
		}
		return nil, fmt.Errorf("key file %q: opening it: %w; %s", path, atomicfile.Bare(err), wayOut(err))
	}
	defer f.Close() // only read

	// Check again, now the open file: the path may lead to another one by now.
	fi, err = f.Stat()
	if err != nil {
		return nil, fmt.Errorf("key file %q: looking at it: %w", path, atomicfile.Bare(err))
	}
	if err := checkKind(path, fi); err != nil {
		return nil, err
	}
	if err := checkMode(path, fi); err != nil {
		return nil, err
	}

	// One byte more than allowed, to notice a file that grew since.
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("key file %q: reading it: %w", path, atomicfile.Bare(err))
	}
	if len(data) > MaxSize {
		return nil, tooLarge(path)
	}
	if err := check(data); err != nil {
		return nil, fmt.Errorf("key file %q: %w; %s", path, err, untouched)
	}
	return data, nil
}

// checkKind refuses what cannot be a key file by its type and size.
func checkKind(path string, fi fs.FileInfo) error {
	switch mode := fi.Mode(); {
	case mode.IsDir():
		return fmt.Errorf("key file %q: it is a directory; name a file inside it", path)
	case !mode.IsRegular():
		return fmt.Errorf("key file %q: it is not a regular file but %s; name another path", path, kind(mode))
	case fi.Size() > MaxSize:
		return tooLarge(path)
	}
	return nil
}

func kind(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	default:
		return "something else (" + mode.String() + ")"
	}
}

func tooLarge(path string) error {
	return fmt.Errorf("key file %q: it is larger than %d bytes, so it is not a key; check the path; %s", path, MaxSize, untouched)
}

// checkDir reports a directory that cannot take a new file, before a key is
// made for it.
func checkDir(path string) error {
	dir := filepath.Dir(path)
	fi, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("key file %q: its directory %q does not exist and is not created; make it first, or correct the path: %w", path, dir, fs.ErrNotExist)
	}
	if err != nil {
		return fmt.Errorf("key file %q: looking at its directory: %w; %s", path, atomicfile.Bare(err), wayOut(err))
	}
	if !fi.IsDir() {
		return fmt.Errorf("key file %q: %q is not a directory; correct the path", path, dir)
	}
	return nil
}

// wayOut returns what to do about an error of the system.
func wayOut(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return "give this user access to it, or name another path"
	}
	return "correct the path, or name another one"
}

// shellQuote returns path as one word of a Unix shell command.
func shellQuote(path string) string {
	if path[0] == '-' {
		path = "./" + path
	}
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+,:@%=", r)
	}
	if strings.IndexFunc(path, func(r rune) bool { return !plain(r) }) < 0 {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
