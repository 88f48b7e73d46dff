package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

func noLink(string, string) error {
	return &os.LinkError{Op: "link", Err: errors.ErrUnsupported}
}

// softRename is exclusive enough for one goroutine.
func softRename(from, to string) error {
	if _, err := os.Lstat(to); err == nil {
		return fs.ErrExist
	}
	return os.Rename(from, to)
}

// wantFiles checks that a directory holds one file with the content, or none.
func wantFiles(t *testing.T, dir, content string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if content == "" {
		if len(entries) > 0 {
			t.Errorf("left behind: %v", entries)
		}
		return
	}
	if len(entries) != 1 {
		t.Fatalf("the directory has %v, want one file", entries)
	}
	b, err := os.ReadFile(filepath.Join(dir, entries[0].Name()))
	if err != nil || string(b) != content {
		t.Errorf("the file holds %q, %v; want %q", b, err, content)
	}
	if fi, err := entries[0].Info(); err != nil || runtime.GOOS != "windows" && fi.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", fi.Mode(), err)
	}
}

// Create never replaces, whichever way gives the file its name.
func TestCreate(t *testing.T) {
	t.Parallel()
	for name, way := range map[string]struct{ link, rename func(string, string) error }{
		"link": {os.Link, noLink}, "rename": {noLink, softRename},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "file")
			if err := create(path, []byte("one"), way.link, way.rename); err != nil {
				t.Fatal(err)
			}
			wantFiles(t, dir, "one")
			if err := create(path, []byte("two"), way.link, way.rename); !errors.Is(err, fs.ErrExist) {
				t.Errorf("a second time: %v", err)
			}
			wantFiles(t, dir, "one")
		})
	}
}

func TestCreateWhereNothingIsExclusive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	err := create(filepath.Join(dir, "file"), []byte("one"), noLink, noLink)
	if !errors.Is(err, ErrNotExclusive) || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
	wantFiles(t, dir, "")
}

func TestCreateWithoutADirectory(t *testing.T) {
	t.Parallel()
	if err := Create(filepath.Join(t.TempDir(), "no", "file"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestRenameExclusive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for i, content := range []string{"a", "other"} {
		if err := os.WriteFile(a, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		err := renameExclusive(a, b)
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			t.Skip("not offered here")
		case i == 0 && err != nil:
			t.Fatal(err)
		case i == 1 && !errors.Is(err, fs.ErrExist):
			t.Errorf("onto a file: %v", err)
		}
	}
	if b, err := os.ReadFile(b); string(b) != "a" {
		t.Errorf("the file was replaced by %q, %v", b, err)
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	// Leftovers of a crash do no harm.
	if err := os.WriteFile(filepath.Join(dir, ".file.tmp"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"one", "two"} {
		if err := Replace(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		wantFiles(t, dir, content)
	}
}

// A failed Replace leaves the former file, and no other.
func TestReplaceFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("one")); err == nil {
		t.Error("a directory was replaced")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 || !entries[0].IsDir() {
		t.Errorf("%v, %v", entries, err)
	}
}
