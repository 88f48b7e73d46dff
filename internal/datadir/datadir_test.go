package datadir

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func read(t *testing.T, d *Dir, name string) (content []byte, err error) {
	t.Helper()
	err = d.Read(name, func(b []byte) error {
		content = bytes.Clone(b)
		return nil
	})
	return content, err
}

func TestWriteReplacesAndReadReturnsTheLast(t *testing.T) {
	t.Parallel()
	d := open(t, filepath.Join(t.TempDir(), "a", "b"))
	if b, err := read(t, d, "f"); b != nil || err != nil {
		t.Fatalf("an absent file: %q, %v", b, err)
	}
	for _, s := range []string{"one", "", "three\n"} {
		if err := d.Write("f", []byte(s)); err != nil {
			t.Fatal(err)
		}
		if b, err := read(t, d, "f"); string(b) != s || err != nil {
			t.Fatalf("read %q, %v after writing %q", b, err, s)
		}
	}
	fi, err := os.Stat(d.path)
	if err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, %v", fi.Mode(), err)
	}
	if err := d.Write("f", make([]byte, MaxSize+1)); err == nil {
		t.Error("content over the limit was written")
	}
	if b, _ := read(t, d, "f"); string(b) != "three\n" {
		t.Errorf("a refused write left %q", b)
	}
}

func TestOneHolderAtATime(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	d := open(t, path)
	if _, err := Open(path); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Fatalf("a second Open: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("f", nil); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a write without the lock: %v", err)
	}
	open(t, path)
}

// TestAttackLockOutlivesItsFile: two nodes with one identity are worse than none.
func TestAttackLockOutlivesItsFile(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	open(t, path)
	if err := os.Remove(filepath.Join(path, lockName)); err != nil {
		t.Skipf("the system protects the file: %v", err)
	}
	if _, err := Open(path); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Open after the lock file was removed: %v", err)
	}
}

func TestAttackModes(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("Windows does not keep modes")
	}
	for mode, ok := range map[fs.FileMode]bool{0o700: true, 0o755: true, 0o770: true, 0o777: false, 0o703: false, fs.ModeSticky | 0o777: false} {
		path := t.TempDir()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		d, err := Open(path)
		if ok && err != nil || !ok && !errors.Is(err, ErrExposed) {
			t.Errorf("%v: %v", mode, err)
		}
		if fi, serr := os.Stat(path); serr != nil || fi.Mode()&^fs.ModeDir != mode {
			t.Errorf("%v became %v, %v", mode, fi.Mode(), serr)
		}
		if err == nil {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestNotADirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("Open of a file: %v", err)
	}
	if b, _ := os.ReadFile(file); string(b) != "mine" {
		t.Errorf("the file holds %q now", b)
	}
}

func TestDamagedFilesAreKeptUnderAnotherName(t *testing.T) {
	t.Parallel()
	d := open(t, t.TempDir())
	for i, damage := range []string{"", "nonsense", string(encode([]byte("x"))) + "y"} {
		if err := os.WriteFile(d.Path("f"), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := read(t, d, "f")
		var de *DamagedError
		if !errors.As(err, &de) {
			t.Fatalf("%q: %v", damage, err)
		}
		if b, err := os.ReadFile(de.Kept); err != nil || string(b) != damage {
			t.Errorf("damage %d: kept %q, %v", i, b, err)
		}
		if b, err := read(t, d, "f"); b != nil || err != nil {
			t.Errorf("afterwards: %q, %v", b, err)
		}
	}
	kept, _ := filepath.Glob(d.Path("f.damaged-*"))
	if len(kept) != 3 {
		t.Errorf("kept %v", kept)
	}
}

// TestWhatCannotBeReadIsSetAside: otherwise the next Write would replace it.
func TestWhatCannotBeReadIsSetAside(t *testing.T) {
	t.Parallel()
	d := open(t, t.TempDir())
	if err := os.Mkdir(d.Path("f"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := read(t, d, "f")
	var de *DamagedError
	if !errors.As(err, &de) || de.Kept == "" {
		t.Fatalf("%v", err)
	}
	if err := d.Write("f", []byte("new")); err != nil {
		t.Error(err)
	}
	if fi, err := os.Stat(de.Kept); err != nil || !fi.IsDir() {
		t.Errorf("what was there is gone: %v", err)
	}
}

// TestWhatCannotBeSetAsideIsNotReplaced.
func TestWhatCannotBeSetAsideIsNotReplaced(t *testing.T) {
	t.Parallel()
	d := open(t, t.TempDir())
	for i := range 1000 {
		if err := os.WriteFile(fmt.Sprintf("%s.damaged-%d", d.Path("f"), i+1), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(d.Path("f"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := read(t, d, "f")
	var de *DamagedError
	if !errors.As(err, &de) || de.Kept != "" || de.Path != d.Path("f") {
		t.Fatalf("%v", err)
	}
	if err := d.Write("f", []byte("new")); err == nil || !strings.Contains(err.Error(), d.Path("f")) {
		t.Errorf("writing: %v", err)
	}
	if b, _ := os.ReadFile(d.Path("f")); string(b) != "precious" {
		t.Errorf("it is %q now", b)
	}
	if err := d.Write("g", []byte("new")); err != nil {
		t.Errorf("another file: %v", err)
	}
}

func TestParentsAreMade(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a", "b", "c")
	d := open(t, path)
	if err := d.Write("f", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Dir(path)); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(encode(nil))
	f.Add(encode([]byte("content")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if content, err := decode(b); err == nil && !bytes.Equal(encode(content), b) {
			t.Errorf("%q was taken for a data file", b)
		}
	})
}
