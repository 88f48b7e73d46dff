// Package needs skips tests that lack what they need: on a machine without it,
// which is a failure in CI, where the check script provides it, or under -short.
package needs

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Time skips a test under -short because it takes more than 0.2 seconds of
// processor time and a cheaper one of the same part runs instead.
func Time(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes longer than -short allows")
	}
}

// Multicast skips a test without multicast, and where multicast would leave
// this machine: it needs a network namespace whose only interface is a
// multicast-capable loopback.
func Multicast(t testing.TB) {
	t.Helper()
	ifaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	loopback, others := false, false
	for _, i := range ifaces {
		switch {
		case i.Flags&net.FlagUp == 0 || i.Flags&net.FlagMulticast == 0:
		case i.Flags&net.FlagLoopback != 0:
			loopback = true
		default:
			others = true
		}
	}
	switch {
	case loopback && !others:
	case os.Getenv("CI") != "":
		t.Fatal("no loopback interface for multicast, or others alongside it")
	default:
		t.Skip("no loopback interface for multicast, or others alongside it")
	}
}

// NodeModules skips a test that runs a JavaScript program of a directory where
// Node, or the modules that the program imports, are not installed.
func NodeModules(t testing.TB, dir string) {
	t.Helper()
	_, err := exec.LookPath("node")
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "node_modules"))
	}
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("needs Node and its modules, see %s/README.md: %v", dir, err)
	default:
		t.Skipf("needs Node and its modules, see %s/README.md: %v", dir, err)
	}
}
