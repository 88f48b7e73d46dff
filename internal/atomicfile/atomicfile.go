// Package atomicfile writes small files of mode 0600 so that a crash, a full
// disk or a power cut at any moment leaves either nothing new or all of it.
//
// Content is written to a temporary file in the same directory and synced, and
// only then given its name: [Create] does so in a way that the system refuses
// when the name is taken, [Replace] in a way that takes the name over.
// The directory is synced last.
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

// The errors of Create that a caller has more to say about.
var (
	// ErrNotExclusive is returned by Create on a file system that has neither
	// hard links nor a rename that refuses to replace.
	ErrNotExclusive = errors.New("the file system cannot create a file without the risk of replacing or damaging another")
	// ErrNotPrivate is returned by Create on a file system that gives new files
	// a mode with which others have access.
	ErrNotPrivate = errors.New("the file system gives new files a mode that lets others in")
)

// Create puts data into a new file at path. When something stands there, it
// stays as it is, and the error matches fs.ErrExist: of several processes that
// create one path, exactly one succeeds. The directory must exist. An error
// means that nothing new stands at path, unless it comes from the sync of the
// directory.
//
// A hard link gives the file its name. Some file systems have none (FAT, some
// network and container mounts); there a rename does, with the flag that
// forbids replacing (Linux, macOS, Windows). Opening the path itself with
// O_EXCL would work everywhere, but a crash in the middle of the write would
// leave half a file, and another process could read one.
//
// A crash can leave a temporary file (".p2pnode-key-*.tmp") behind. It disturbs
// nothing, and is not cleaned up because it might belong to a process that is
// at work this moment.
func Create(path string, data []byte) error { return create(path, data, os.Link, renameExclusive) }

// create has the two ways to give a file its name as parameters, for tests of
// file systems that are not at hand.
func create(path string, data []byte, link, rename func(from, to string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, createPattern) // mode 0600, O_EXCL
	if err != nil {
		return fmt.Errorf("creating a file in %q: %w", dir, Bare(err))
	}
	// After a hard link this takes away the second name, after a rename there
	// is nothing left to take away. An error leaves a file behind that disturbs
	// nothing, like a crash would.
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
	// The second way cannot replace anything either, so it is tried after
	// every failure of the first; systems disagree about how to say that
	// hard links are not supported.
	rerr := rename(tmp, path)
	if rerr == nil || errors.Is(rerr, fs.ErrExist) {
		return rerr
	}
	return fmt.Errorf("hard link: %w, exclusive rename: %w", Bare(lerr), Bare(rerr))
}

// Replace puts data into the file at path in place of what was there, or
// creates it. On error the old content stands, or the new one when the last
// step failed, the sync of the directory. Of one path only one Replace may run
// at a time: its temporary file, "."+name+".tmp", has one name, so that what a
// crash leaves behind is taken away by the next.
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

// write fills a new file, brings it to the disk and closes it.
func write(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		// Without this the name could reach the disk before the content does,
		// and a power cut would leave an empty file.
		err = f.Sync()
	}
	return errors.Join(Bare(err), Bare(f.Close()))
}

// Bare takes off the operation and the path that package os puts around an
// error, for a caller that names the path itself. Bare(nil) is nil.
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
