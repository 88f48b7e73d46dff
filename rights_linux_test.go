package p2pnode

import (
	"runtime"
	"syscall"
	"testing"
)

// withoutRootsRights gives up root's rights over files, for this goroutine,
// until the function it returns is called.
func withoutRootsRights(t *testing.T) (back func()) {
	t.Helper()
	runtime.LockOSThread()
	mustNot(t, syscall.Setfsuid(65534))
	return func() {
		mustNot(t, syscall.Setfsuid(0))
		runtime.UnlockOSThread()
	}
}
