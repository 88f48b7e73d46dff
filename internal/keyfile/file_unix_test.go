//go:build unix

package keyfile

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestSpecialFiles makes sure that nothing waits for the other end of a pipe.
func TestSpecialFiles(t *testing.T) {
	t.Parallel()
	// Socket addresses are short, test directories may not be.
	dir, err := os.MkdirTemp("", "kf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })

	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Skipf("no named pipes here: %v", err)
	}
	_, _, err = LoadOrCreate(pipe, noGenerate(t), check)
	wantError(t, err, pipe, nil)

	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Skipf("no sockets here: %v", err)
	}
	defer l.Close()
	_, _, err = LoadOrCreate(socket, noGenerate(t), check)
	wantError(t, err, socket, nil)
}
