package needs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

const (
	diskEnv = "P2PNODE_TEST_DISK"
	noDisk  = "no small file system can be mounted here"
)

// SmallDisk runs the test that calls it once more, in a process of its own, and
// returns a directory there that is a file system with room for size bytes. In
// the first process it waits for the other and returns "". A test is skipped
// where the process may not mount anything.
//
//	dir := needs.SmallDisk(t, 2<<20)
//	if dir == "" {
//		return
//	}
func SmallDisk(t *testing.T, size int) (dir string) {
	t.Helper()
	if dir := os.Getenv(diskEnv); dir != "" {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprint("size=", size)); err != nil {
			t.Fatalf("%s: %v", noDisk, err)
		}
		return dir
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), diskEnv+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 { // in a namespace of its own it is root
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	var pe *fs.PathError // it was not started
	lacks := errors.As(err, &pe) || bytes.Contains(out, []byte(noDisk))
	switch {
	case lacks && os.Getenv("CI") == "":
		t.Skipf("%s: %v\n%s", noDisk, err, out)
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name())):
		t.Fatalf("the test did not run:\n%s", out)
	}
	return ""
}
