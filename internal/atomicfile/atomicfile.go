// Package atomicfile writes small files of mode 0600 so that a crash, a full
// disk or a power cut at any moment leaves either nothing new or all of it.
//
// Content is written to a temporary file in the same directory and synced
// before it gets its name: [Create] fails if the name is taken, [Replace]
// replaces the file. The directory is synced last.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// createPattern names the temporary files of Create. It does not contain the
// name of the file, which may already be as long as the file system allows.
const createPattern = ".p2pnode-key-*.tmp"

// The errors of Create that callers explain further.
var (
	// ErrNotExclusive is returned by Create on a file system that has neither
	// hard links nor a rename that refuses to replace.
	ErrNotExclusive = errors.New("the file system cannot create a file without the risk of replacing or damaging another")
	// ErrNotPrivate is returned by Create on a file system that gives new files
	// a mode with which others have access.
	ErrNotPrivate = errors.New("the file system gives new files a mode that lets others in")
)

// Create puts data into a new file at path. If anything exists there, Create
// leaves it alone and returns an error that matches fs.ErrExist: of several
// processes that create one path, exactly one succeeds. The directory must
// exist. On error nothing new is at path, unless the error comes from syncing
// the directory.
//
// A hard link gives the file its name. File systems without hard links (FAT,
// some network and container mounts) use a rename with the flag that forbids
// replacing (Linux, macOS, Windows). Opening the path itself with O_EXCL would
// work everywhere, but a crash in the middle of the write would leave half a
// file, and another process could read one.
//
// A crash can leave a temporary file (".p2pnode-key-*.tmp") behind. It does no
// harm, and is not removed because it might belong to a running process.
func Create(path string, data []byte) error { return create(path, data, os.Link, renameExclusive) }

// create takes the two ways to name the file as parameters, for tests of file
// systems that are not at hand.
func create(path string, data []byte, link, rename func(from, to string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, createPattern) // mode 0600, O_EXCL
	if err != nil {
		return fmt.Errorf("creating a file in %q: %w", dir, Bare(err))
	}
	// After a hard link this removes the second name; after a rename there is
	// nothing to remove. Like a crash, an error leaves a harmless file behind.
	defer os.Remove(f.Name()) //nolint:errcheck // it has another name by then
	if err := restrict(f); err != nil {
		return fmt.Errorf("creating a file in %q: %w", dir, errors.Join(err, f.Close()))
	}
	if err := write(f, data); err != nil {
		return fmt.Errorf("writing a new file in %q: %w", dir, err)
	}
	if err := publish(f.Name(), path, link, rename); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return err
		}
		return fmt.Errorf("%w (%w)", ErrNotExclusive, err)
	}
	return SyncDir(dir)
}

// publish gives the file tmp the name path unless that name is taken, in which
// case the error matches fs.ErrExist. tmp may or may not exist afterwards.
func publish(tmp, path string, link, rename func(from, to string) error) error {
	lerr := link(tmp, path)
	if lerr == nil || errors.Is(lerr, fs.ErrExist) {
		return lerr
	}
	// The rename cannot replace anything either, so it is tried after every
	// failure of the link: systems report missing hard links differently.
	rerr := rename(tmp, path)
	if rerr == nil || errors.Is(rerr, fs.ErrExist) {
		return rerr
	}
	return fmt.Errorf("hard link: %w, exclusive rename: %w", Bare(lerr), Bare(rerr))
}

// Replace puts data into the file at path, replacing or creating it. On error
// the old content remains, or the new one if only the last step failed, the
// sync of the directory. Only one Replace of a path may run at a time: its
// temporary file, "."+name+".tmp", has a fixed name, so that the next call
// removes what a crash left behind.
func Replace(path string, data []byte) error {
	dir, name := filepath.Split(path)
	tmp := filepath.Join(dir, "."+name+".tmp")
	err := os.Remove(tmp)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Bare(err)
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Bare(err)
	}
	if err = write(f, data); err == nil {
		err = Bare(os.Rename(tmp, path))
	}
	if err != nil {
		os.Remove(tmp) //nolint:errcheck // the next Replace does it
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// write fills a new file, syncs it and closes it.
func write(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		// Without this the name could reach the disk before the content does,
		// and a power cut would leave an empty file.
		err = f.Sync()
	}
	return errors.Join(Bare(err), Bare(f.Close()))
}

// Bare removes the operation and the path that package os adds to an error, for
// callers that name the path themselves. Bare(nil) is nil.
func Bare(err error) error {
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
