//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package datadir

import (
	"syscall"
	"testing"
)

// A process that is being started has the files of this one until it runs its own
// program. That does not keep a closed directory locked.
func TestLockEndsThoughAForkedProcessHasTheFiles(t *testing.T) {
	path := t.TempDir()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range d.lock.(locks) {
		fd, err := syscall.Dup(int(f.Fd())) // as after a fork
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Close(fd); err != nil {
				t.Error(err)
			}
		}()
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
