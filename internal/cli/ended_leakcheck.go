//go:build leakcheck

package cli

import (
	"go.uber.org/goleak"

	"github.com/go-p2pnode/p2pnode/internal/leaktest"
)

// ended reports whether a program that is about to exit has closed everything: no
// goroutine is left. The tests of the examples build them with this tag.
func ended() bool {
	// A read of standard input cannot be interrupted (examples/chat, which the tests
	// link under this path).
	return leaktest.Ended(goleak.IgnoreAnyFunction("github.com/go-p2pnode/p2pnode/examples/all/chat.lines.func1"))
}
