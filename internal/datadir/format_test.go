package datadir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestFormatIsKept(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data")
	d := open(t, path)
	if f := d.Format(); f != 1 {
		t.Errorf("a new directory has format %d", f)
	}
	if _, err := os.Stat(d.Path(formatName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open wrote the format: %v", err)
	}
	for _, f := range []int{-1, 0, Format + 1} {
		if err := d.SetFormat(f); err == nil {
			t.Errorf("format %d was accepted", f)
		}
	}
	for range 2 {
		if err := d.SetFormat(Format); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := d.SetFormat(Format); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		d = open(t, path)
		if f := d.Format(); f != Format {
			t.Errorf("format %d", f)
		}
	}
}

// A directory of a newer format is refused, and nothing in it changes: no file
// appears, not even the lock.
func TestNewerFormatIsRefusedUntouched(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	for name, content := range map[string]string{formatName: formatText(Format + 1), "f": "new"} {
		mustWrite(t, filepath.Join(path, name), content)
	}
	before := state(t, path)
	if _, err := Open(path); !errors.Is(err, ErrNewer) {
		t.Fatalf("%v", err)
	}
	if after := state(t, path); after != before {
		t.Errorf("it was\n%sand is now\n%s", before, after)
	}
}

// state describes the files of a directory.
func state(t *testing.T, path string) (s string) {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(path, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		s += fi.Mode().String() + " " + fi.ModTime().String() + " " + e.Name() + " " + string(b) + "\n"
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return s + fi.ModTime().String() + "\n"
}

// A format that cannot be read might be a newer one.
func TestDamagedFormatIsRefused(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"", "1", "\n", "0\n", "-1\n", "01\n", "+1\n", " 1\n", "1\n\n", "one\n", "99999999999\n"} {
		path := t.TempDir()
		mustWrite(t, filepath.Join(path, formatName), content)
		if _, err := Open(path); err == nil || errors.Is(err, ErrNewer) {
			t.Errorf("%q: %v", content, err)
		}
		if b, _ := os.ReadFile(filepath.Join(path, formatName)); string(b) != content {
			t.Errorf("%q became %q", content, b)
		}
		// It is not locked either.
		mustWrite(t, filepath.Join(path, formatName), "1\n")
		open(t, path)
	}
	path := t.TempDir()
	if err := os.Mkdir(filepath.Join(path, formatName), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil {
		t.Error("a directory is no format")
	}
}

func FuzzFormat(f *testing.F) {
	for _, s := range []string{"1\n", "12\n", "01\n", "x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if format, ok := parseFormat(b); ok && (format < 1 || formatText(format) != string(b)) {
			t.Errorf("%q is format %d", b, format)
		}
	})
}
