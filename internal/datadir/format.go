package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/go-p2pnode/p2pnode/internal/atomicfile"
)

// Format is the newest format of a directory that this version knows:
//
//  1. a file for the identity and one for each list. A directory without a
//     format file has this one.
const Format = 1

// formatName names the file with the number of the format. It has no checksum,
// so that every version, also an older one, can read it.
const formatName = "format"

// ErrNewer is returned by Open for a directory whose format is newer than Format.
// Open leaves it untouched.
var ErrNewer = errors.New("a newer version of the library has changed its files")

// readFormat returns the format of the directory at path.
func readFormat(path string) (int, error) {
	name := filepath.Join(path, formatName)
	b, err := load(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 1, nil
	case err != nil:
		return 0, fmt.Errorf("file %q cannot be read: %w", name, err)
	}
	format, ok := parseFormat(b)
	switch {
	case !ok:
		return 0, fmt.Errorf("file %q holds %.40q instead of the number of a format; if no newer version of the library has used the directory, move the file away", name, b)
	case format > Format:
		return 0, fmt.Errorf("the directory %q has format %d, and this version of the library knows those up to %d: %w; use that version, or name another directory", path, format, Format, ErrNewer)
	}
	return format, nil
}

func parseFormat(b []byte) (format int, ok bool) {
	if len(b) < 2 || len(b) > 10 || b[len(b)-1] != '\n' {
		return 0, false
	}
	format, err := strconv.Atoi(string(b[:len(b)-1]))
	return format, err == nil && format > 0 && string(b) == formatText(format)
}

func formatText(format int) string { return strconv.Itoa(format) + "\n" }

// Format returns the format of the directory's files, at most the constant
// Format.
func (d *Dir) Format() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.format
}

// SetFormat notes that the files are of a newer format now, and is called once
// they are: after a crash before that, they are migrated again. Versions that do
// not know the format refuse the directory from then on.
func (d *Dir) SetFormat(format int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := d.Path(formatName)
	switch {
	case d.lock == nil:
		return fmt.Errorf("writing %q: %w", name, fs.ErrClosed)
	case format < d.format || format > Format:
		return fmt.Errorf("writing %q: format %d is not one from %d to %d", name, format, d.format, Format)
	}
	if err := atomicfile.Replace(name, []byte(formatText(format))); err != nil {
		return fmt.Errorf("writing %q: %w", name, err)
	}
	d.format = format
	return nil
}
