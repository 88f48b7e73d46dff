package simhost

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/go-p2pnode/p2pnode/internal/raced"
)

// TestMain fails the suite when a goroutine outlives it.
func TestMain(m *testing.M) {
	raced.OneThread()
	goleak.VerifyTestMain(m,
		// Started once a process, on import.
		goleak.IgnoreTopFunction("github.com/ipfs/go-log/v2/writer.(*MirrorWriter).logRoutine"))
}
