package dstore

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/go-p2pnode/p2pnode/internal/atomicfile"
)

// Open opens the file at path, or creates it with mode 0600; its directory must
// exist. Nobody else can open it until Close, or until the process ends.
//
// A damaged file is renamed, to path with ".damaged-1" or a higher number, and
// what is whole in it is copied to a new file: [Store.Damage] reports that. A
// file that cannot be read or renamed now is left alone, and Open fails.
func Open(path string, log *slog.Logger) (*Store, error) {
	// The working directory may change while the store is open.
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	damage, err := prepare(path, log)
	if err == nil {
		var s *Store
		if s, err = open(path, log); err == nil {
			s.damage = damage
			return s, nil
		}
	}
	return nil, fmt.Errorf("the datastore %q: %w", path, atomicfile.Bare(err))
}

// prepare sees to it that there is a whole file at path.
func prepare(path string, log *slog.Logger) (*Damage, error) {
	// A rescue that came to its end but for the last rename is whole, and
	// any other is begun again.
	rescue := path + ".rescue"
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err = os.Rename(rescue, path); errors.Is(err, fs.ErrNotExist) {
			return nil, create(path)
		}
		if err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, errors.New("it is not a regular file; move it away")
	}
	if err := os.Remove(rescue); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}

	lock, err := lockFile(path)
	if err != nil {
		return nil, err
	}
	defer lock()
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	if fi, err = f.Stat(); err != nil {
		return nil, err
	}
	reason, _ := walk(f, fi.Size(), nil)
	if reason == nil {
		return nil, nil
	}

	recovered, err := copyWhole(rescue, f, fi.Size(), log)
	if err != nil {
		_ = os.Remove(rescue) // the next Open removes it otherwise
		return nil, fmt.Errorf("it is damaged (%w), and what is whole in it cannot be copied: %w", reason, atomicfile.Bare(err))
	}
	lock()    // Windows does not rename
	f.Close() //nolint:errcheck // only read
	kept, err := setAside(path)
	if err != nil {
		return nil, fmt.Errorf("it is damaged (%w), and cannot be renamed: %w", reason, atomicfile.Bare(err))
	}
	if err := os.Rename(rescue, path); err != nil {
		return nil, err // the next Open does it
	}
	damage := &Damage{Path: path, Kept: kept, Reason: reason, Recovered: recovered}
	log.Warn("datastore damaged", "file", path, "kept", kept, "recovered", recovered, "err", reason)
	return damage, atomicfile.SyncDir(filepath.Dir(path))
}

// lockFile keeps others from writing to a file until the function it returns is
// called, which may be more than once.
func lockFile(path string) (unlock func(), err error) {
	// Read only, bbolt reads nothing but the first two pages.
	o := options()
	o.ReadOnly = true
	var f *os.File
	var opening error
	o.OpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		f, opening = os.OpenFile(name, flag, mode)
		return f, opening
	}
	var db *bolt.DB
	err = caught(func() (err error) {
		db, err = bolt.Open(path, 0o600, o)
		return err
	})
	switch {
	case err == nil:
		return func() { _ = db.Close() }, nil // nothing was written
	case opening != nil:
		return nil, opening
	case errors.Is(err, berrors.ErrTimeout):
		return nil, ErrLocked
	case errors.Is(err, errPanic): // there is no second page
		_ = closeMapped(f) // nothing was written
	}
	return func() {}, nil // it is damaged, so nobody uses it
}

// setAside renames a file to an unused name, and returns that.
func setAside(path string) (string, error) {
	for i := 1; ; i++ {
		kept := fmt.Sprintf("%s.damaged-%d", path, i)
		_, err := os.Lstat(kept)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return kept, os.Rename(path, kept)
		case err != nil || i == 1000:
			return "", errors.Join(err, errors.New("there is no free name"))
		}
	}
}

// copyWhole makes a file at path of the entries that are whole in a damaged one,
// and returns how many there are.
func copyWhole(path string, from *os.File, size int64, log *slog.Logger) (n int, err error) {
	if err := build(path); err != nil {
		return 0, err
	}
	s, err := open(path, log)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var ops []op
	flush := func() error {
		err := s.commit(ops)
		ops = nil
		return err
	}
	_, err = walk(from, size, func(key, value []byte) error {
		n++
		ops = append(ops, op{append([]byte{}, key...), encode(key, value)})
		if len(ops) < chunkEntries {
			return nil
		}
		return flush()
	})
	return n, errors.Join(err, flush())
}

// create makes an empty file. A process that dies meanwhile leaves none.
func create(path string) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := build(tmp)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp) // the next call does
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

// build makes an empty file in place.
func build(path string) error {
	return caught(func() error {
		db, err := bolt.Open(path, 0o600, options())
		if err != nil {
			return err
		}
		err = db.Update(func(tx *bolt.Tx) error {
			_, err := tx.CreateBucketIfNotExists(bucketName)
			return err
		})
		return errors.Join(err, db.Close())
	})
}

// lockWait is how long to try for the lock of a file. A process that this one is
// about to start has its files until it runs its own program, and bbolt (1.4) does
// not give back the lock of a file that was open for reading before it closes it.
const lockWait = time.Second

func options() *bolt.Options {
	return &bolt.Options{
		Timeout:      lockWait,
		PageSize:     pageSize,
		FreelistType: bolt.FreelistMapType,
		NoStatistics: true,
	}
}

// open opens a file that is whole.
func open(path string, log *slog.Logger) (*Store, error) {
	s := &Store{path: path, log: log, turn: make(chan struct{}, 1)}
	o := options()
	o.OpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag, mode)
		s.file = f
		return f, err
	}
	err := caught(func() (err error) {
		s.db, err = bolt.Open(path, 0o600, o)
		return err
	})
	if errors.Is(err, berrors.ErrTimeout) {
		err = ErrLocked
	}
	return s, err
}
