// Package keyfile keeps a secret key in a file: it loads the file when it is
// there and creates it when it is not, in a way that survives crashes and
// several processes doing the same at the same moment.
//
// # The promise
//
// Whatever stands at the path stays as it is. A file that exists is never
// replaced, truncated, repaired or removed, however broken it looks: it may be
// the only copy of somebody's identity.
//
// # How a file is created
//
// The key is written to a temporary file of mode 0600 in the same directory,
// synced, and only then given its name by a hard link, which the system
// refuses when the name is taken. So the file is either absent or complete,
// and of several processes exactly one wins while the others load its key.
//
// Some file systems have no hard links (FAT, some network and container
// mounts). There the temporary file is renamed with the flag that forbids
// replacing (Linux, macOS, Windows). Where neither works, creation fails and
// says so. Opening the path itself with O_EXCL would work everywhere but was
// rejected: a crash, or a full disk, in the middle of the write would leave a
// damaged key behind, and a second process could read half a key. Loading
// works on every file system.
//
// A crash can leave a temporary file (".p2pnode-key-*.tmp", mode 0600) behind.
// It disturbs nothing, and is not cleaned up because it might belong to a
// process that is at work this moment.
package keyfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// MaxSize is the largest key file that is read or written, in bytes. The
// largest key in use, RSA with 8192 bits in base64, needs less than half.
const MaxSize = 16 << 10

// tmpPattern names the temporary files. It does not contain the name of the
// key file, which may already be as long as the file system allows.
const tmpPattern = ".p2pnode-key-*.tmp"

// untouched ends the errors about content.
const untouched = "the file was left untouched; move it away to have a new key made, or restore it from a backup"

// LoadOrCreate returns the content of the file at path, and creates the file
// with the result of generate when there is none; created tells which. check
// decides whether content is a usable key: it is called on what was read, and
// on what generate returned before anything is written. Its errors become part
// of the errors returned here, so they must not contain key material.
//
// The directory must exist: creating it is left to whoever knows who may look
// into it. A symbolic link is followed when it leads to a file and refused when
// it leads nowhere, because a link that dangles most often means that the disk
// with the key is not mounted. On Unix a file that group or others may read or
// write is refused. On Windows, where the mode tells nothing about access,
// permissions are not checked and a new file inherits those of its directory.
//
// It is safe for concurrent use by any number of goroutines and processes on
// one path: all of them return the same key.
func LoadOrCreate(path string, generate func() ([]byte, error), check func([]byte) error) (data []byte, created bool, err error) {
	return loadOrCreate(path, generate, check, publish)
}

// loadOrCreate has the publishing step as a parameter, for tests of file
// systems that are not at hand.
func loadOrCreate(path string, generate func() ([]byte, error), check func([]byte) error, publish func(tmp, path string) error) ([]byte, bool, error) {
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

	err = create(path, data, publish)
	if errors.Is(err, fs.ErrExist) {
		// Another process published its key after we looked. Its key is
		// the one that counts; ours was never seen by anybody.
		data, err := load(path, check)
		if errors.Is(err, errAbsent) {
			return nil, false, fmt.Errorf("key file %q: it appeared and vanished again while it was being created; find out which program removes it", path)
		}
		if err != nil {
			return nil, false, err
		}
		// The winner may have been killed before it synced the
		// directory, and our caller is about to use the key.
		if err := syncDir(path); err != nil {
			return nil, false, err
		}
		return data, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return data, true, nil
}

// errAbsent is returned by load when nothing at all stands at the path.
var errAbsent = errors.New("no such key file")

// load reads and checks the file at path.
func load(path string, check func([]byte) error) ([]byte, error) {
	// Look before opening: opening a device or a pipe can have effects.
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if li, lerr := os.Lstat(path); lerr == nil && li.Mode()&fs.ModeSymlink != 0 {
			return nil, fmt.Errorf("key file %q: it is a dangling symbolic link: what it points to does not exist; "+
				"mount or restore the target, or remove the link to have a new key made", path)
		}
		return nil, errAbsent
	}
	if err != nil {
		return nil, fmt.Errorf("key file %q: looking for it: %w; %s", path, bare(err), wayOut(err))
	}
	if err := checkKind(path, fi); err != nil {
		return nil, err
	}

	f, err := openRead(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errAbsent
		}
		return nil, fmt.Errorf("key file %q: opening it: %w; %s", path, bare(err), wayOut(err))
	}
	defer f.Close() //nolint:errcheck // only read

	// Ask again, now about the open file: the path may lead to another one
	// than a moment ago.
	fi, err = f.Stat()
	if err != nil {
		return nil, fmt.Errorf("key file %q: looking at it: %w", path, bare(err))
	}
	if err := checkKind(path, fi); err != nil {
		return nil, err
	}
	if err := checkMode(path, fi.Mode()); err != nil {
		return nil, err
	}

	// One byte more than allowed, to notice a file that grew since.
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("key file %q: reading it: %w", path, bare(err))
	}
	if len(data) > MaxSize {
		return nil, tooLarge(path)
	}
	if err := check(data); err != nil {
		return nil, fmt.Errorf("key file %q: %w; %s", path, err, untouched)
	}
	return data, nil
}

// checkKind refuses what cannot be a key file by its kind and size.
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
	return fmt.Errorf("key file %q: it is larger than %d bytes, so it is no key: is the path right? %s", path, MaxSize, untouched)
}

// checkDir explains a directory that cannot take a new file before a key is
// made for it.
func checkDir(path string) error {
	dir := filepath.Dir(path)
	fi, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("key file %q: its directory %q does not exist and is not created; make it first, or correct the path: %w", path, dir, fs.ErrNotExist)
	}
	if err != nil {
		return fmt.Errorf("key file %q: looking at its directory: %w; %s", path, bare(err), wayOut(err))
	}
	if !fi.IsDir() {
		return fmt.Errorf("key file %q: %q is not a directory; correct the path", path, dir)
	}
	return nil
}

// create writes data to a temporary file and publishes it at path. The error
// matches fs.ErrExist when something stood at path by then. On any error
// nothing new stands at path, except when only the last sync failed.
func create(path string, data []byte, publish func(tmp, path string) error) error {
	dir := filepath.Dir(path)
	tmp, err := writeTemp(dir, data) // mode 0600, O_EXCL
	if tmp != "" {
		// After a hard link this takes away the second name, after a
		// rename there is nothing left to take away. An error leaves a
		// file behind that disturbs nothing, like a crash would.
		defer os.Remove(tmp) //nolint:errcheck
	}
	if err != nil {
		return fmt.Errorf("key file %q: %w", path, err)
	}
	if err := publish(tmp, path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return err
		}
		return fmt.Errorf("key file %q: the file system of %q offers no way to create it without the risk of replacing or damaging another (%w); "+
			"name a path on another file system, or make a key elsewhere and copy the file there", path, dir, err)
	}
	return syncDir(path)
}

// writeTemp leaves data on disk in a new file in dir. It returns the name of
// the file whenever there is one to remove, also with an error.
func writeTemp(dir string, data []byte) (name string, err error) {
	f, err := os.CreateTemp(dir, tmpPattern)
	if err != nil {
		return "", fmt.Errorf("creating a file in %q: %w; %s", dir, bare(err), wayOut(err))
	}
	name = f.Name()
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("closing the new file in %q: %w", dir, bare(cerr))
		}
	}()
	if err := restrict(f); err != nil {
		return name, fmt.Errorf("creating a file in %q: %w", dir, err)
	}
	if _, err := f.Write(data); err != nil {
		return name, fmt.Errorf("writing the new file in %q: %w", dir, bare(err))
	}
	// Without this the name could reach the disk before the content does,
	// and a power cut would leave an empty key file.
	if err := f.Sync(); err != nil {
		return name, fmt.Errorf("syncing the new file in %q: %w", dir, bare(err))
	}
	return name, nil
}

// publish gives the file tmp the name path unless that name is taken, in which
// case the error matches fs.ErrExist. tmp may or may not exist afterwards.
func publish(tmp, path string) error {
	return publishWith(tmp, path, os.Link, renameExclusive)
}

func publishWith(tmp, path string, link, rename func(from, to string) error) error {
	lerr := link(tmp, path)
	if lerr == nil || errors.Is(lerr, fs.ErrExist) {
		return lerr
	}
	// The second way cannot replace anything either, so it is tried after
	// every failure of the first; systems disagree about how to say that
	// hard links are not supported.
	rerr := rename(tmp, path)
	if rerr == nil || errors.Is(rerr, fs.ErrExist) {
		return rerr
	}
	return fmt.Errorf("hard link: %w, exclusive rename: %w", bare(lerr), bare(rerr))
}

// bare strips the operation and path that package os puts around an error; the
// errors here name the path themselves, quoted.
func bare(err error) error {
	var (
		pe *fs.PathError
		le *os.LinkError
		se *os.SyscallError
	)
	switch {
	case errors.As(err, &pe):
		return pe.Err
	case errors.As(err, &le):
		return le.Err
	case errors.As(err, &se):
		return se.Err
	}
	return err
}

// wayOut says what to do about an error of the system.
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
