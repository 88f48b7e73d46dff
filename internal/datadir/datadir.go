// Package datadir keeps the small files of one node in a directory that nobody
// else uses at the same time.
//
// A file is replaced by writing a temporary one next to it, syncing that and
// renaming it, so a crash at any moment leaves the old or the new content. A
// checksum in the first line detects what a crash cannot cause: a failing disk,
// or an editor. A damaged file is set aside under another name and never
// overwritten, because somebody may want to look at it.
package datadir

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/go-p2pnode/p2pnode/internal/atomicfile"
)

// MaxSize is the largest content of a file, in bytes.
const MaxSize = 16 << 20

const (
	lockName = "lock"
	magic    = "p2pnode-data-1 "
	headLen  = len(magic) + 2*sha256.Size + 1
)

// ErrLocked is returned by Open for a directory that is open elsewhere, in
// this process or another.
var ErrLocked = errors.New("another node has it open")

// ErrExposed is returned by Open for a directory that everybody may write to.
var ErrExposed = errors.New("everybody can put files into it and replace the node's own")

// Dir is an open directory. Its methods are safe for concurrent use.
type Dir struct {
	path string

	format int // guarded by mu

	mu   sync.Mutex // one write at a time: they share temporary names
	lock io.Closer  // nil after Close; guarded by mu
	// sacred are files that could be neither used nor set aside: they are not
	// replaced. Guarded by mu.
	sacred map[string]bool
}

// Open creates the directory with mode 0700 if it is absent, and locks it. The
// lock ends with the process, so a crash leaves none behind. On Unix, a
// directory that everybody may write to is refused, and on every system one of a
// newer format.
func Open(path string) (*Dir, error) {
	// The working directory may change while the node runs.
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// Nothing is touched for a look, not even the lock.
	if _, err := readFormat(path); errors.Is(err, ErrNewer) {
		return nil, err
	}
	if err := makeDir(path); err != nil {
		return nil, fmt.Errorf("creating the directory %q: %w", path, atomicfile.Bare(err))
	}
	if err := checkMode(path); err != nil {
		return nil, err
	}
	lock, err := lockDir(path)
	switch {
	case errors.Is(err, ErrLocked):
		return nil, fmt.Errorf("the directory %q: %w; give each node a directory of its own", path, err)
	case err != nil:
		return nil, fmt.Errorf("the directory %q cannot be locked for writing: %w", path, atomicfile.Bare(err))
	}
	format, err := readFormat(path) // another process may just have changed it
	if err != nil {
		_ = lock.Close() // nothing was written
		return nil, err
	}
	// A lock file can be writable in a directory that is not.
	probe, err := os.CreateTemp(path, ".probe-*")
	if err != nil {
		_ = lock.Close() // nothing was written
		return nil, fmt.Errorf("the directory %q is not writable: %w", path, atomicfile.Bare(err))
	}
	_ = probe.Close()           // empty
	_ = os.Remove(probe.Name()) // an empty file disturbs nobody
	return &Dir{path: path, format: format, lock: lock, sacred: make(map[string]bool)}, nil
}

// makeDir creates a directory and its parents durably: each is an entry of its
// parent, which has to be synced too.
func makeDir(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err // the next step reports it if it is not a directory
	}
	above := filepath.Dir(path)
	if above == path {
		return fs.ErrNotExist
	}
	if err := makeDir(above); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return atomicfile.SyncDir(above)
}

// Path returns the absolute path of a file.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Close unlocks the directory. Later writes fail.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}

// DamagedError reports that the content of a file is not what was written.
type DamagedError struct {
	Path   string // where the file was
	Kept   string // where it is now; empty if it could not be moved
	Reason error
}

func (e *DamagedError) Error() string {
	if e.Kept == "" {
		return fmt.Sprintf("file %q is damaged and could not be set aside: %v", e.Path, e.Reason)
	}
	return fmt.Sprintf("file %q is damaged and was set aside as %q: %v", e.Path, e.Kept, e.Reason)
}

// Unwrap returns Reason.
func (e *DamagedError) Unwrap() error { return e.Reason }

// Read passes the content of a file to parse. A missing file is no error, and
// parse is not called. A file that is not regular, has a wrong checksum, or is
// refused by parse is set aside, lest the next Write replace it, and reported
// as a *DamagedError. A file that cannot be read now stays where it is, and
// Write does not replace it.
func (d *Dir) Read(name string, parse func([]byte) error) error {
	path := d.Path(name)
	b, err := load(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, errIrregular):
		return &DamagedError{Path: path, Kept: d.setAside(name), Reason: err}
	case err != nil:
		d.leaveAlone(name)
		return fmt.Errorf("file %q cannot be read and is left alone: %w", path, err)
	}
	content, err := decode(b)
	if err == nil {
		err = parse(content)
	}
	if err != nil {
		return &DamagedError{Path: path, Kept: d.setAside(name), Reason: err}
	}
	return nil
}

var errIrregular = errors.New("it is not a regular file")

func load(path string) ([]byte, error) {
	// Opening a named pipe would block until its other end is open.
	fi, err := os.Stat(path)
	if err == nil && !fi.Mode().IsRegular() {
		return nil, errIrregular
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, atomicfile.Bare(err)
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.LimitReader(f, int64(headLen+MaxSize+1)))
	if err != nil {
		return nil, atomicfile.Bare(err)
	}
	return b, nil
}

func (d *Dir) leaveAlone(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sacred[name] = true
}

// setAside renames a file to an unused name, and returns that. If it cannot,
// Write does not replace the file.
func (d *Dir) setAside(name string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	path := d.Path(name)
	for i := 1; i <= 1000; i++ {
		kept := fmt.Sprintf("%s.damaged-%d", path, i)
		if _, err := os.Lstat(kept); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if d.lock == nil || os.Rename(path, kept) != nil {
			break
		}
		return kept
	}
	d.sacred[name] = true
	return ""
}

// Write replaces the content of a file, or creates it with mode 0600. On error
// the old content remains, or the new one if only the last step failed, the
// sync of the directory. A file that Read could neither use nor set aside is
// not replaced.
func (d *Dir) Write(name string, content []byte) error {
	if len(content) > MaxSize {
		return fmt.Errorf("writing %q: %d bytes are more than %d", d.Path(name), len(content), MaxSize)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lock == nil {
		return fmt.Errorf("writing %q: %w", d.Path(name), fs.ErrClosed)
	}
	if d.sacred[name] {
		return fmt.Errorf("writing %q: the existing file could be neither used nor set aside; look at it and move it away", d.Path(name))
	}
	if err := atomicfile.Replace(d.Path(name), encode(content)); err != nil {
		return fmt.Errorf("writing %q: %w", d.Path(name), err)
	}
	return nil
}

// Remove removes a file. A missing file is no error, and one that Read could
// neither use nor set aside stays.
func (d *Dir) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lock == nil {
		return fmt.Errorf("removing %q: %w", d.Path(name), fs.ErrClosed)
	}
	if d.sacred[name] {
		return nil
	}
	if err := os.Remove(d.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %q: %w", d.Path(name), atomicfile.Bare(err))
	}
	return atomicfile.SyncDir(d.path)
}

func encode(content []byte) []byte {
	sum := sha256.Sum256(content)
	return append([]byte(magic+hex.EncodeToString(sum[:])+"\n"), content...)
}

// decode returns the content of an encoded file.
func decode(b []byte) ([]byte, error) {
	if len(b) > headLen+MaxSize {
		return nil, fmt.Errorf("it has more than %d bytes", MaxSize)
	}
	if len(b) < headLen || !bytes.HasPrefix(b, []byte(magic)) || b[headLen-1] != '\n' {
		return nil, errors.New("its first line is not that of a data file")
	}
	content := b[headLen:]
	sum := sha256.Sum256(content)
	if hex.EncodeToString(sum[:]) != string(b[len(magic):headLen-1]) {
		return nil, errors.New("its checksum is wrong")
	}
	return content, nil
}
